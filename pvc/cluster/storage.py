"""Storage: which pools there are, and the rules. What is in a pool only the pool itself knows."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pvc import names, sizes
from pvc.errors import Conflict, Invalid, Unavailable

if TYPE_CHECKING:
    from pvc.cluster.domainxml import Disk
    from pvc.cluster.view import Node

FILL_PERCENT = 80
"""A pool is not filled beyond that: what copes with a full one copes badly."""
LEAST_BYTES, GREATEST_BYTES = 512, 1024**5
SECTOR_BYTES = 512


class Driver(StrEnum):
    DIR = "dir"
    """A directory: shared by all nodes, or of one."""
    RBD = "rbd"
    """A pool of Ceph, whose volumes are RBD images."""


class Format(StrEnum):
    QCOW2 = "qcow2"
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """Written once it has been prepared."""

    name: str
    id: str
    """Also in the pool itself: a directory that is not mounted is not taken for the pool."""
    driver: Driver = Driver.DIR
    path: str = ""
    """Of a directory."""
    ceph_pool: str = ""
    """What Ceph calls it."""
    node: str = ""
    """The one that has it; empty: all do."""
    leaving: bool = False
    """It is being removed: nothing new begins in it."""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Monitor:
    """Of Ceph."""

    host: str
    """An address, of IPv6 without brackets."""
    port: int


@dataclass(frozen=True, slots=True)
class CephAccess:
    """How QEMU on a node reaches the cluster's Ceph."""

    monitors: tuple[Monitor, ...]
    user: str
    secret: str
    """UUID of the secret in libvirt that has the user's key; the same on all nodes."""


@dataclass(frozen=True, slots=True, order=True)
class Volume:
    """Which one."""

    pool: str
    name: str

    def __str__(self) -> str:
        return f"{self.pool}/{self.name}"


# Rules


def check_fill(pool: str, *, total_bytes: int, used_bytes: int, new_bytes: int) -> None:
    """Raises Conflict saying by how much it is too much. Counted is what is there and what is new."""
    limit = total_bytes * FILL_PERCENT // 100
    excess = used_bytes + new_bytes - limit
    if new_bytes <= 0 or excess <= 0:
        return
    if total_bytes <= 0:
        raise Conflict(
            f"pool {pool} has no space that anybody knows of", hint="pvc storage pool info, or --force"
        )
    used, total = sizes.show(used_bytes), sizes.show(total_bytes)
    if used_bytes >= limit:
        raise Conflict(
            f"pool {pool} is full: {used} of its {total} are used, and its limit is {FILL_PERCENT} %",
            hint="remove what nobody needs, or --force",
        )
    if used_bytes + new_bytes > total_bytes:
        raise Conflict(
            f"{sizes.show(new_bytes)} more do not fit into pool {pool}: {used} of its {total} are used",
            hint="a smaller one, or --force",
        )
    percent = (used_bytes + new_bytes) * 100 // total_bytes
    raise Conflict(
        f"{sizes.show(new_bytes)} more would fill pool {pool} to {percent} %, {sizes.show(excess)} above its "
        f"limit of {FILL_PERCENT} %",
        hint="a smaller one, or --force",
    )


def check_size(size_bytes: int) -> None:
    """Raises Invalid."""
    if not LEAST_BYTES <= size_bytes <= GREATEST_BYTES:
        raise Invalid(f"a volume of {sizes.show(size_bytes)} is not between 512 B and 1 PiB")
    if size_bytes % SECTOR_BYTES:
        raise Invalid(f"{size_bytes} bytes are no multiple of {SECTOR_BYTES}, as disks are")


def default_format(pool: PoolSpec) -> Format:
    return Format.QCOW2 if pool.driver is Driver.DIR else Format.RAW


def check_format(pool: PoolSpec, format: Format) -> None:
    """Raises Invalid."""
    if pool.driver is Driver.RBD and format is not Format.RAW:
        raise Invalid(f"volumes in Ceph are raw, not {format}", hint="they have snapshots all the same")


def location(pool: PoolSpec, volume: str, format: Format) -> str:
    """What the definition of a VM calls the volume."""
    if pool.driver is Driver.RBD:
        return f"{pool.ceph_pool}/{volume}"
    return f"{pool.path}/{volume}/disk.{format}"


def volume_in(pool: PoolSpec, disk: Disk) -> str:
    """Which of the pool's volumes it is; empty: none."""
    if pool.driver is Driver.RBD:
        where, _, volume = disk.source.partition("/")
        return volume if disk.protocol == "rbd" and where == pool.ceph_pool else ""
    if disk.type != "file" or not disk.source.startswith(f"{pool.path}/"):
        return ""
    volume, _, file = disk.source.removeprefix(f"{pool.path}/").partition("/")
    return volume if file and re.fullmatch(names.VOLUME, volume) else ""


def volumes_of(disks: Iterable[Disk], pools: Iterable[PoolSpec], nodes: Iterable[str]) -> dict[str, Volume]:
    """By target, those of the disks that are volumes.

    Where several pools, each of one node, have the same path, it is that of the nodes where the VM may be.
    """
    found: dict[str, Volume] = {}
    likely = frozenset(nodes)
    ordered = sorted(pools, key=lambda pool: (pool.node not in likely, pool.name))
    for disk in disks:
        for pool in ordered:
            if volume := volume_in(pool, disk):
                found[disk.target] = Volume(pool.name, volume)
                break
    return found


def who_reaches(pool: PoolSpec, nodes: Iterable[Node]) -> list[Node]:
    """Nodes that have the pool, in the same order each time. Raises Unavailable when there is none."""
    having = [node for node in nodes if pool.node in ("", node.spec.name)]
    able = [node for node in having if node.is_running and pool.name not in node.status.pool_problems]
    if able:
        return sorted(able, key=lambda node: node.spec.name)
    told = [f"{node.spec.name}: {_why_not(pool, node)}" for node in having]
    raise Unavailable(f"no node reaches pool {pool.name} now: {'; '.join(told) or pool.node + ' is gone'}")


def spread(able: Iterable[str], what: str) -> str:
    """One of them: the same for the same thing, and each as often as the others for all things."""
    names = sorted(able)
    return names[zlib.crc32(what.encode()) % len(names)]


def _why_not(pool: PoolSpec, node: Node) -> str:
    if not node.is_running:
        return f"its daemon is {node.daemon_state}"
    return node.status.pool_problems.get(pool.name, "")
