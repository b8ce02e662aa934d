"""Snapshots of VMs: all disks and the definition at one moment."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pvc.cluster import paths, records
from pvc.cluster.codec import to_json
from pvc.cluster.storage import Volume
from pvc.cluster.vm import State, VMSpec
from pvc.commands import vm_write
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.task import TaskInfo
from pvc.commands.types import VMName, VMSnapshotName
from pvc.commands.vm_info import is_moving
from pvc.errors import Conflict, NotFound

if TYPE_CHECKING:
    from pvc.cluster.snapshots import SnapshotDisk, VMSnapshot
    from pvc.cluster.view import VM


@dataclass(frozen=True, slots=True)
class VMSnapshotRow:
    name: str
    at: float
    disks: tuple[str, ...]
    size_bytes: int
    """Of all disks together, as a guest sees them."""
    quiesced: str
    """How what is on the disks came to fit together: agent, paused or stopped."""
    leaving: bool
    """It is being removed, or has been in part."""


@operation(
    "GET",
    "/vm/{vm}/snapshot",
    noun="vm",
    verb="snapshot list",
    columns=("name", "at", "disks", "size_bytes", "quiesced", "leaving"),
)
def list_(ctx: Context, vm: VMName) -> tuple[VMSnapshotRow, ...]:
    """List the snapshots of a VM, the oldest first, and how each came about."""
    found = ctx.view.vm(vm)
    return tuple(
        VMSnapshotRow(
            one.name,
            one.at,
            tuple(f"{disk.pool}/{disk.volume}" for disk in one.disks),
            sum(disk.size_bytes for disk in one.disks),
            one.quiesced,
            one.leaving,
        )
        for one in _documents(ctx, found.spec, found.spec.snapshots)
    )


@operation(
    "POST",
    "/vm/{vm}/snapshot",
    noun="vm",
    verb="snapshot create",
    role=Role.OPERATE,
    waits="task.info",
    done="the snapshot of {vm} is taken: pvc vm snapshot list {vm}",
)
def create(
    ctx: Context,
    vm: VMName,
    snapshot: Annotated[
        VMSnapshotName, Arg("what it is called; the time of now unless given", complete="none")
    ]
    | None = None,
) -> TaskInfo:
    """Keep all disks of a VM and its definition as they are at one moment; what its memory holds is not kept.

    While it runs, the agent in its guest holds the file systems still for that moment; where there is none,
    the guest stands still, and what is kept is as after a loss of power.
    """
    from pvc.cluster.snapshots import disks_of

    found = ctx.view.vm(vm)
    spec = found.spec
    name = snapshot or time.strftime("%Y%m%d%H%M%S", time.gmtime(ctx.clock.wall()))
    if name in spec.snapshots:
        raise Conflict(f"{spec.name} has a snapshot {name} already", hint="choose another name")
    _check_settled(found)
    pools = {name: one.spec for name, one in ctx.view.pools().items()}
    owner = found.status.owner
    disks = disks_of(spec.name, spec.definition, pools, [owner.node if owner else spec.node or ""])
    return _begin(ctx, "create", f"taking snapshot {name} of {spec.name}", found, name, disks)


@operation(
    "DELETE",
    "/vm/{vm}/snapshot/{snapshot}",
    noun="vm",
    verb="snapshot remove",
    role=Role.OPERATE,
    confirm="Remove snapshot {snapshot} of {vm}?",
    waits="task.info",
    done="snapshot {snapshot} of {vm} is removed",
)
def remove(ctx: Context, vm: VMName, snapshot: VMSnapshotName) -> TaskInfo:
    """Remove a snapshot of a VM, which stays as it is; also while it runs."""
    found = ctx.view.vm(vm)
    kept = document(ctx, found.spec, snapshot)
    _check_settled(found)
    about = f"removing snapshot {snapshot} of {found.spec.name}"
    return _begin(ctx, "remove", about, found, snapshot, kept.disks)


@operation(
    "POST",
    "/vm/{vm}/snapshot/{snapshot}/rollback",
    noun="vm",
    verb="snapshot rollback",
    role=Role.OPERATE,
    confirm="Bring {vm} back to {snapshot}, and lose what its disks and definition have become since?",
    waits="task.info",
    done="{vm} is as it was at {snapshot}, stopped: pvc vm start {vm}",
)
def roll_back(ctx: Context, vm: VMName, snapshot: VMSnapshotName) -> TaskInfo:
    """Bring a stopped VM back to a snapshot: disks and definition, all or none of it. It boots anew.

    Disks that it got since leave its definition and stay in their pools.
    """
    from pvc.cluster.snapshots import restored

    found = ctx.view.vm(vm)
    spec = found.spec
    kept = document(ctx, spec, snapshot)
    if kept.leaving:
        raise Conflict(
            f"snapshot {snapshot} of {spec.name} was removed in part",
            hint=f"pvc vm snapshot remove {spec.name} {snapshot}",
        )
    if found.status.owner is not None or found.shown_state not in ("stop", "disable", "fail"):
        raise Conflict(
            f"{spec.name} is in state {found.shown_state}: a rollback needs it stopped",
            hint=f"pvc vm shutdown {spec.name}",
        )
    records.change(ctx.view, found, restored(spec, kept))  # refused now rather than when the disks are back
    about = f"bringing {spec.name} back to snapshot {snapshot}"
    return _begin(ctx, "rollback", about, found, snapshot, kept.disks)


# What they have in common


def _check_settled(vm: VM) -> None:
    name, running = vm.spec.name, vm.status.owner is not None
    if running and (is_moving(vm) or vm.status.state is State.MIGRATE):
        raise Conflict(f"{name} is being moved", hint="try again when it has arrived")
    if not running and vm.shown_state == "starting":
        raise Conflict(f"{name} is about to start", hint="try again when it runs")


def document(ctx: Context, spec: VMSpec, snapshot: str) -> VMSnapshot:
    found = _documents(ctx, spec, [snapshot])
    if not found:
        raise NotFound(f"{spec.name} has no snapshot {snapshot}", hint=f"pvc vm snapshot list {spec.name}")
    return found[0]


def _documents(ctx: Context, spec: VMSpec, names: Iterable[str]) -> list[VMSnapshot]:
    """The mirror does not follow them."""
    from pvc.cluster.snapshots import VMSnapshot

    stored = ctx.store.get_many([paths.vm_snapshot(spec.uuid, name) for name in names])
    return [ctx.view.decode(VMSnapshot, one) for one in stored if one is not None]


def _begin(
    ctx: Context, verb: str, about: str, vm: VM, snapshot: str, disks: Iterable[SnapshotDisk]
) -> TaskInfo:
    """A task that has the VM and all those volumes for itself."""
    disks = tuple(disks)
    return vm_write.begin(
        ctx,
        f"vm.snapshot-{verb}",
        about,
        vm,
        [Volume(disk.pool, disk.volume) for disk in disks],
        arguments={"vm": vm.spec.uuid, "snapshot": snapshot, "disks": to_json(disks)},
    )
