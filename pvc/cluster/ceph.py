"""What Ceph tells of itself, as plain values: how it is, how full, and when it will be full."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
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

    @property
    def used_percent(self) -> int:
        return self.used_bytes * 100 // max(self.size_bytes, 1)


@dataclass(frozen=True, slots=True)
class OSDInfo:
    """All that is known of one."""

    id: int
    node: str
    tier: str
    state: str
    since: float | None
    """When it came up, or went down, last; None: longer ago than Ceph remembers."""
    devices: tuple[str, ...]
    """Of its node; known since it ran first."""
    db_devices: tuple[str, ...]
    """Where its database is, if not there."""
    serials: tuple[str, ...]
    """Model and serial number of each."""
    weight: float
    reweight: float
    """How much of that counts: 0 while it is out."""
    size_bytes: int
    used_bytes: int
    used_percent: int
    pgs: int
    commit_latency_ms: float | None
    """Until what is written is safe, of late; None while it is down."""
    apply_latency_ms: float | None
    """Until it can be read."""
    is_safe_to_stop: bool
    """All can go on being written without it."""
    is_safe_to_remove: bool
    """Nothing depends on it any more."""
    objections: tuple[str, ...]
    """Why not."""
    address: str
    store: str
    version: str
    """Of Ceph, that it runs."""
    created_at: float | None


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
class Traffic:
    """What goes on, each second: of late, as the manager of Ceph sees it."""

    read_bytes: int
    write_bytes: int
    reads: int
    writes: int
    recovery_bytes: int
    """To other disks, so that there are all copies, where they are to be."""


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
    traffic: Traffic
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
        traffic=traffic(pgmap),
        size_bytes=df["stats"]["total_bytes"],
        used_bytes=df["stats"]["total_used_raw_bytes"],
        full_ratio=round(dump["full_ratio"], 4),
        osds=tuple(_osds(tree, dump)),
        pools=tuple(_pools(df)),
    )


def traffic(*rates: Mapping[str, Any]) -> Traffic:
    """From where Ceph tells of it: what is not said there is 0."""
    told = {name: count for some in rates for name, count in some.items()}
    return Traffic(
        read_bytes=told.get("read_bytes_sec", 0),
        write_bytes=told.get("write_bytes_sec", 0),
        reads=told.get("read_op_per_sec", 0),
        writes=told.get("write_op_per_sec", 0),
        recovery_bytes=told.get("recovering_bytes_per_sec", 0),
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


def osd_info(
    osd: int,
    tree: Mapping[str, Any],
    dump: Mapping[str, Any],
    changed: Mapping[str, Any],
    metadata: Mapping[str, Any],
    perf: Mapping[str, Any],
    stop: Mapping[str, Any],
    removal: Mapping[str, Any],
) -> OSDInfo:
    """From `osd df tree`, `osd dump`, `osd metadata`, `osd perf`, `osd ok-to-stop` and `osd safe-to-destroy`.

    `changed` is the `osd dump` in which it came up or went down. The last two may say `refused`, and why.
    """
    (found,) = (one for one in _osds(tree, dump) if one.id == osd)
    (entry,) = (one for one in dump["osds"] if one["osd"] == osd)
    figures = (one["perf_stats"] for one in perf["osdstats"]["osd_perf_infos"] if one["id"] == osd)
    latency: Mapping[str, Any] = next(figures, {}) if entry["up"] else {}
    objections = {"stop": _why_not_stop(stop), "remove": _why_not_remove(osd, removal)}
    return OSDInfo(
        id=osd,
        node=found.node,
        tier=found.tier,
        state=found.state,
        since=_time(changed.get("modified", "")),
        devices=_devices(metadata, "bluestore_bdev_devices"),
        db_devices=_devices(metadata, "bluefs_db_devices"),
        serials=tuple(one for one in str(metadata.get("device_ids", "")).split(",") if one),
        weight=found.weight,
        reweight=round(entry["weight"], 5),
        size_bytes=found.size_bytes,
        used_bytes=found.used_bytes,
        used_percent=found.used_percent,
        pgs=found.pgs,
        commit_latency_ms=_milliseconds(latency, "commit_latency_ns"),
        apply_latency_ms=_milliseconds(latency, "apply_latency_ns"),
        is_safe_to_stop=not objections["stop"],
        is_safe_to_remove=not objections["remove"],
        objections=tuple(f"{what}: {why}" for what, why in objections.items() if why),
        address=next((one["addr"] for one in entry["public_addrs"]["addrvec"]), ""),
        store=metadata.get("osd_objectstore", ""),
        version=metadata.get("ceph_version_short", ""),
        created_at=_time(metadata.get("created_at", "")),
    )


def _devices(metadata: Mapping[str, Any], key: str) -> tuple[str, ...]:
    return tuple(f"/dev/{name}" for name in str(metadata.get(key, "")).split(",") if name)


def _milliseconds(latency: Mapping[str, Any], key: str) -> float | None:
    return round(latency[key] / 1e6, 2) if key in latency else None


def _time(text: str) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None


def _why_not_stop(answer: Mapping[str, Any]) -> str:
    if "refused" in answer:
        return str(answer["refused"])
    return "" if answer.get("ok_to_stop") else "Ceph does not know"


def _why_not_remove(osd: int, answer: Mapping[str, Any]) -> str:
    """That Ceph does not know is no yes."""
    if "refused" in answer:
        return str(answer["refused"])
    if answer.get("safe_to_destroy") == [osd]:
        return ""
    if osd in answer.get("active", ()):
        return "placement groups are on it"
    return (
        "it has what is not whole elsewhere" if osd in answer.get("stored_pgs", ()) else "Ceph does not know"
    )


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
