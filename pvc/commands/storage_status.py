"""How Ceph is, and how full: asked of a node at the moment, kept nowhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from pvc.cluster import ceph
from pvc.cluster.ceph import ALL, Figures, Growth, Traffic
from pvc.cluster.codec import from_json
from pvc.commands.context import Context
from pvc.commands.registry import operation
from pvc.commands.storage_osd import OSDRow, ask, row


@dataclass(frozen=True, slots=True)
class StorageStatus:
    health: str
    """HEALTH_OK, HEALTH_WARN or HEALTH_ERR. The first field, so that `-f short` is this word."""
    checks: tuple[str, ...]
    """What Ceph minds."""
    fsid: str
    monitors: int
    quorum: tuple[str, ...]
    """Those that agree with each other."""
    manager: bool
    """One is active: without it figures are old."""
    osds: Mapping[str, int]
    """How many are in which state; and in total."""
    flags: tuple[str, ...]
    pgs: Mapping[str, int]
    objects: int
    degraded: int
    """Copies of objects that are missing."""
    misplaced: int
    size_bytes: int
    used_bytes: int
    available_bytes: int
    """Until Ceph takes no writes."""
    each_second: Traffic


@dataclass(frozen=True, slots=True)
class Use:
    name: str
    stored_bytes: int
    """Without copies."""
    used_bytes: int
    """With all copies."""
    available_bytes: int
    used_percent: int
    objects: int
    daily_growth_bytes: int | None
    """Of late; None: not known yet."""
    days_to_full: float | None
    """If that goes on; None: not known yet, or not within ten years."""


@dataclass(frozen=True, slots=True)
class StorageUse:
    size_bytes: int
    """Of all disks."""
    used_bytes: int
    available_bytes: int
    """Until Ceph takes no writes, which is before the last byte."""
    used_percent: int
    daily_growth_bytes: int | None
    days_to_full: float | None
    forecast: str
    pools: tuple[Use, ...]
    osds: tuple[OSDRow, ...]


@operation("GET", "/storage/status", noun="storage", verb="status")
def status(ctx: Context) -> StorageStatus:
    """Show how Ceph is: its health, monitors, OSDs, placement groups, and what goes on."""
    found = from_json(Figures, ask(ctx)["figures"])
    counted = Counter(osd.state for osd in found.osds)
    return StorageStatus(
        health=found.health,
        checks=tuple(f"{one.name}: {one.message}" for one in found.checks),
        fsid=found.fsid,
        monitors=found.monitors,
        quorum=found.quorum,
        manager=found.manager,
        osds={"total": counted.total(), **dict(sorted(counted.items()))},
        flags=found.flags,
        pgs=found.pgs,
        objects=found.objects,
        degraded=found.degraded,
        misplaced=found.misplaced,
        size_bytes=found.size_bytes,
        used_bytes=found.used_bytes,
        available_bytes=ceph.available_bytes(found),
        each_second=found.traffic,
    )


@operation("GET", "/storage/util", noun="storage", verb="util")
def util(ctx: Context) -> StorageUse:
    """Show how full Ceph, each pool and each OSD is, and when it will be full if it goes on like this."""
    told = ask(ctx)
    found = from_json(Figures, told["figures"])
    growths = {name: from_json(Growth, one) for name, one in told["growth"].items()}
    left = ceph.available_bytes(found)
    return StorageUse(
        size_bytes=found.size_bytes,
        used_bytes=found.used_bytes,
        available_bytes=left,
        used_percent=_percent(found.used_bytes, left),
        daily_growth_bytes=growths[ALL].bytes_a_day,
        days_to_full=growths[ALL].days_to_full,
        forecast=ceph.forecast(growths[ALL]),
        pools=tuple(_use(one, growths[one.name]) for one in found.pools),
        osds=tuple(row(osd) for osd in found.osds),
    )


def _use(pool: ceph.PoolUse, growth: Growth) -> Use:
    return Use(
        name=pool.name,
        stored_bytes=pool.stored_bytes,
        used_bytes=pool.used_bytes,
        available_bytes=pool.available_bytes,
        used_percent=_percent(pool.stored_bytes, pool.available_bytes),
        objects=pool.objects,
        daily_growth_bytes=growth.bytes_a_day,
        days_to_full=growth.days_to_full,
    )


def _percent(used: int, left: int) -> int:
    return used * 100 // max(used + left, 1)
