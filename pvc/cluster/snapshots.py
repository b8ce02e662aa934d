"""Snapshots of VMs: all disks and the definition at one moment. What memory held is not in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pvc.cluster import paths
from pvc.cluster.storage import Driver, Format, PoolSpec, volumes_of
from pvc.cluster.store import Create, Delete, Op
from pvc.errors import Conflict

if TYPE_CHECKING:
    from pvc.cluster.vm import VMSpec

RESERVED = "vm."
"""So begin snapshots of volumes that belong to one of a VM."""


class Quiesced(StrEnum):
    """How what is on the disks came to fit together."""

    AGENT = "agent"
    """The agent in the guest had its file systems written and held still."""
    PAUSED = "paused"
    """The guest stood still: as after a loss of power."""
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class SnapshotDisk:
    target: str
    pool: str
    volume: str
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class VMSnapshot:
    """Written when all of it is there."""

    name: str
    at: float
    """Wall clock of the node that took it, to show to people."""
    definition: str
    disks: tuple[SnapshotDisk, ...]
    quiesced: Quiesced
    leaving: bool = False
    """It is being removed: some of its disks may be gone already."""
    restored_by: str = ""
    """The newest task that has brought the VM back to it."""
    extra: Mapping[str, Any] = field(default_factory=dict)


def on_volumes(uuid: str, name: str) -> str:
    """What the snapshots of the volumes are called: those of no two VMs have the same name."""
    return f"{RESERVED}{uuid[:8]}.{name}"


def vm_part(snapshot: str) -> tuple[str, str] | None:
    """Of the name of a volume's snapshot: how the UUID of its VM begins, and what the VM calls it."""
    prefix, _, name = snapshot.removeprefix(RESERVED).partition(".")
    return (prefix, name) if snapshot.startswith(RESERVED) and name else None


def disks_of(
    vm: str, definition: str, pools: Mapping[str, PoolSpec], nodes: Iterable[str]
) -> tuple[SnapshotDisk, ...]:
    """The disks that a snapshot of the VM has: all that its guest can write. Raises Conflict, Invalid."""
    from pvc.cluster import domainxml

    disks = [one for one in domainxml.parse(definition).disks if one.device == "disk" and not one.is_readonly]
    volumes = volumes_of(disks, pools.values(), nodes)
    for disk in disks:
        volume = volumes.get(disk.target)
        if volume is None:
            raise Conflict(
                f"disk {disk.target} of {vm}, {disk.source or 'an empty drive'}, is in no pool",
                hint="a snapshot of a VM is of disks in pools: pvc storage volume",
            )
        if pools[volume.pool].driver is Driver.DIR and disk.source.endswith(f".{Format.RAW}"):
            raise Conflict(
                f"disk {disk.target} of {vm}, volume {volume.name} of pool {volume.pool}, is raw: "
                "in a directory only qcow2 has snapshots"
            )
    if not disks:
        raise Conflict(f"{vm} has no disk to keep")
    return tuple(
        SnapshotDisk(disk.target, volumes[disk.target].pool, volumes[disk.target].name) for disk in disks
    )


def known_ops(spec: VMSpec, snapshot: str, document: bytes) -> tuple[Op, ...]:
    """What makes one known, beside what changes the VM's own list of them."""
    parent = () if spec.snapshots else (Create(paths.vm_snapshots(spec.uuid)),)
    return (*parent, Create(paths.vm_snapshot(spec.uuid, snapshot), document))


def forget_ops(spec: VMSpec, snapshots: Iterable[str]) -> tuple[Op, ...]:
    """The same, of those that go."""
    going = tuple(snapshots)
    parent = () if set(spec.snapshots) - set(going) else (Delete(paths.vm_snapshots(spec.uuid)),)
    return (*(Delete(paths.vm_snapshot(spec.uuid, one)) for one in going), *parent)


def restored(spec: VMSpec, snapshot: VMSnapshot) -> VMSpec:
    """The VM with the definition that it had then, and the name that it has now. Raises Invalid."""
    from pvc.cluster import domainxml
    from pvc.cluster.records import with_definition

    return with_definition(spec, domainxml.set_name(snapshot.definition, spec.name))
