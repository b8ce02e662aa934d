"""What Ceph tells of itself, as plain values: how it is, how full, and when it will be full."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DAY_S = 86_400.0
LEAST_SPAN_S = DAY_S / 4
"""A forecast from less would be chance."""
LEAST_SAMPLES = 4
LONGEST_FORECAST_DAYS = 3650.0
ALL = "*"
"""All of Ceph, among pools: no pool is called that."""

TOLD = (
    *("MON_DOWN", "MGR_DOWN", "MON_DISK_LOW", "MON_CLOCK_SKEW"),
    *("OSD_NEARFULL", "OSD_BACKFILLFULL", "OSD_FULL"),
    *("POOL_NEARFULL", "POOL_BACKFILLFULL", "POOL_FULL", "POOL_NEAR_FULL"),
    *("PG_AVAILABILITY", "PG_DAMAGED", "OSD_SCRUB_ERRORS"),
)
"""Warnings of Ceph that somebody has to look at. Others tell of what it does about it, or of taste."""
ERROR = "HEALTH_ERR"


@dataclass(frozen=True, slots=True)
class OSD:
    id: int
    node: str
    """The host in CRUSH that it is under; empty: under none yet."""
    tier: str
    """Its device class."""
    state: str
    """up or down, in or out: `up,in`. `destroyed` waits for another disk."""
    weight: float
    """In CRUSH: its share of the data, by default its size in TiB."""
    size_bytes: int
    used_bytes: int
    pgs: int


@dataclass(frozen=True, slots=True)
class PoolUse:
    name: str
    stored_bytes: int
    """Without copies."""
    used_bytes: int
    """With all copies."""
    available_bytes: int
    """What can still be stored, copies counted off."""
    objects: int


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    severity: str
    message: str
    details: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """At one moment."""

    fsid: str
    health: str
    """HEALTH_OK, HEALTH_WARN or HEALTH_ERR."""
    checks: tuple[Check, ...]
    monitors: int
    quorum: tuple[str, ...]
    manager: bool
    """One of them is active."""
    flags: tuple[str, ...]
    """Of all OSDs: noout, …"""
    pgs: Mapping[str, int]
    """How many are in which state."""
    objects: int
    degraded: int
    """Copies of objects that are missing."""
    misplaced: int
    read_bytes_s: int
    write_bytes_s: int
    read_ops_s: int
    write_ops_s: int
    recovery_bytes_s: int
    size_bytes: int
    used_bytes: int
    full_ratio: float
    """So full it takes no writes any more."""
    osds: tuple[OSD, ...]
    pools: tuple[PoolUse, ...]


INTERNAL_FLAGS = ("sortbitwise", "recovery_deletes", "purged_snapdirs", "pglog_hardlimit")
"""Set in every Ceph of our time."""


def figures(
    status: Mapping[str, Any],
    health: Mapping[str, Any],
    df: Mapping[str, Any],
    tree: Mapping[str, Any],
    dump: Mapping[str, Any],
) -> Figures:
    """From `status`, `health detail`, `df`, `osd df tree` and `osd dump`."""
    pgmap = status["pgmap"]
    return Figures(
        fsid=status["fsid"],
        health=health["status"],
        checks=tuple(_checks(health)),
        monitors=status["monmap"]["num_mons"],
        quorum=tuple(status["quorum_names"]),
        manager=bool(status["mgrmap"]["available"]),
        flags=tuple(one for one in dump["flags_set"] if one not in INTERNAL_FLAGS),
        pgs={one["state_name"]: one["count"] for one in pgmap["pgs_by_state"]},
        objects=pgmap["num_objects"],
        degraded=pgmap.get("degraded_objects", 0),
        misplaced=pgmap.get("misplaced_objects", 0),
        read_bytes_s=pgmap.get("read_bytes_sec", 0),
        write_bytes_s=pgmap.get("write_bytes_sec", 0),
        read_ops_s=pgmap.get("read_op_per_sec", 0),
        write_ops_s=pgmap.get("write_op_per_sec", 0),
        recovery_bytes_s=pgmap.get("recovering_bytes_per_sec", 0),
        size_bytes=df["stats"]["total_bytes"],
        used_bytes=df["stats"]["total_used_raw_bytes"],
        full_ratio=round(dump["full_ratio"], 4),
        osds=tuple(_osds(tree, dump)),
        pools=tuple(_pools(df)),
    )


def _checks(health: Mapping[str, Any]) -> Iterator[Check]:
    for name, check in sorted(health["checks"].items()):
        if not check.get("muted"):
            details = tuple(one["message"] for one in check.get("detail", ()))
            yield Check(name, check["severity"], check["summary"]["message"], details)


def _osds(tree: Mapping[str, Any], dump: Mapping[str, Any]) -> Iterator[OSD]:
    hosts = {
        child: node["name"]
        for node in tree["nodes"]
        if node["type"] == "host"
        for child in node.get("children", ())
    }
    known = {node["id"]: node for node in (*tree["nodes"], *tree["stray"]) if node["type"] == "osd"}
    for one in sorted(dump["osds"], key=lambda one: int(one["osd"])):
        found = known.get(one["osd"], {})
        yield OSD(
            id=one["osd"],
            node=hosts.get(one["osd"], ""),
            tier=found.get("device_class", ""),
            state=_state(one),
            weight=round(found.get("crush_weight", 0.0), 5),
            size_bytes=found.get("kb", 0) * 1024,
            used_bytes=found.get("kb_used", 0) * 1024,
            pgs=found.get("pgs", 0),
        )


def _state(osd: Mapping[str, Any]) -> str:
    if "destroyed" in osd["state"]:
        return "destroyed"
    return f"{'up' if osd['up'] else 'down'},{'in' if osd['in'] else 'out'}"


def _pools(df: Mapping[str, Any]) -> Iterator[PoolUse]:
    for pool in sorted(df["pools"], key=lambda pool: str(pool["name"])):
        stats = pool["stats"]
        yield PoolUse(
            pool["name"], stats["stored"], stats["bytes_used"], stats["max_avail"], stats["objects"]
        )


def problems(found: Figures) -> Iterator[str]:
    """What somebody should look at, one sentence each."""
    for osd in found.osds:
        if osd.state == "down,in":
            yield f"OSD {osd.id} on {osd.node or 'no node'} is down"
        elif osd.state == "down,out":
            yield f"OSD {osd.id} on {osd.node or 'no node'} is down, and its data has gone to others"
    for check in found.checks:
        if check.name in TOLD or (check.severity == ERROR and check.name != "OSD_DOWN"):
            more = f": {'; '.join(check.details[:3])}" if check.details else ""
            yield f"Ceph: {check.message}{more}"


def osds_of(node: str, found: Figures) -> tuple[int, ...]:
    return tuple(osd.id for osd in found.osds if osd.node == node)


# When it will be full


@dataclass(frozen=True, slots=True)
class Sample:
    at: float
    used: Mapping[str, int]
    """Bytes that were stored in each pool; used of all Ceph as `*`."""


@dataclass(frozen=True, slots=True)
class Growth:
    bytes_a_day: int | None
    """None: not known yet."""
    days_to_full: float | None
    """None: not known yet, or not within ten years."""


def forecast(found: Growth) -> str:
    """In words."""
    if found.bytes_a_day is None:
        return "not known yet: it takes a quarter of a day to tell"
    if found.days_to_full is None:
        return "not within ten years, at this rate"
    return f"full in {found.days_to_full:.0f} days, at this rate"


def sample(at: float, found: Figures) -> Sample:
    return Sample(at, {ALL: found.used_bytes, **{pool.name: pool.stored_bytes for pool in found.pools}})


def growth(points: Sequence[tuple[float, int]], available_bytes: int) -> Growth:
    """By the straight line through the points (time, bytes) that is nearest to all of them."""
    if len(points) < LEAST_SAMPLES or points[-1][0] - points[0][0] < LEAST_SPAN_S:
        return Growth(None, None)
    bytes_a_day = round(slope(points) * DAY_S)
    days = max(available_bytes, 0) / bytes_a_day if bytes_a_day > 0 else LONGEST_FORECAST_DAYS
    return Growth(bytes_a_day, round(days, 1) if days < LONGEST_FORECAST_DAYS else None)


def slope(points: Sequence[tuple[float, int]]) -> float:
    """Of the line of least squares. Times are counted from the first: their squares would be too large."""
    times = [at - points[0][0] for at, _ in points]
    mean_time, mean_value = sum(times) / len(times), sum(value for _, value in points) / len(points)
    spread = sum((at - mean_time) ** 2 for at in times)
    if not spread:
        return 0.0
    together = zip(times, points, strict=True)
    return sum((at - mean_time) * (value - mean_value) for at, (_, value) in together) / spread


def points_of(name: str, history: Iterable[Sample]) -> list[tuple[float, int]]:
    return [(one.at, one.used[name]) for one in history if name in one.used]


def available_bytes(found: Figures) -> int:
    """Of all Ceph, until it takes no writes."""
    return int(found.size_bytes * found.full_ratio) - found.used_bytes


def growths(found: Figures, history: Sequence[Sample]) -> dict[str, Growth]:
    """Of each pool, and of all."""
    left = {ALL: available_bytes(found), **{pool.name: pool.available_bytes for pool in found.pools}}
    return {name: growth(points_of(name, history), available) for name, available in left.items()}
