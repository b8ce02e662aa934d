"""Disks of a VM: which it has, one more, one less; while it runs, where that is possible."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

from pvc.cluster import paths, records
from pvc.cluster.storage import Volume
from pvc.cluster.vm import Change, Drive, Power
from pvc.commands import types, vm_write
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.task import TaskInfo
from pvc.commands.types import Live, Restart, VMName
from pvc.commands.vm_define import wanted
from pvc.commands.vm_info import DeviceState, VMInfo, describe, disks_of
from pvc.commands.vm_settings import changed
from pvc.commands.vm_write import save, with_definition
from pvc.errors import Conflict, NotFound

if TYPE_CHECKING:
    from pvc.cluster.view import VM


class Bus(StrEnum):
    """On which the guest finds the disk."""

    VIRTIO = "virtio"
    SCSI = "scsi"
    SATA = "sata"
    USB = "usb"


@dataclass(frozen=True, slots=True)
class VMVolume:
    device: str
    volume: str
    """Pool and name; empty: it is in no pool."""
    source: str
    format: str
    bus: str
    state: DeviceState
    why: str


@operation(
    "GET",
    "/vm/{vm}/volume",
    noun="vm",
    verb="volume get",
    columns=("device", "volume", "source", "format", "bus", "state", "why"),
)
def volume_get(ctx: Context, vm: VMName) -> tuple[VMVolume, ...]:
    """List a VM's disks, and how those it has now differ from those of its definition."""
    found = ctx.view.vm(vm)
    volumes = records.volumes(ctx.view, found.spec)
    return tuple(
        VMVolume(
            one.device,
            str(volumes[one.device]) if one.device in volumes and one.state is not DeviceState.UNTIL else "",
            one.source,
            one.format,
            one.bus,
            one.state,
            one.why,
        )
        for one in disks_of(found.spec, found.status)
    )


@operation(
    "POST",
    "/vm/{vm}/volume",
    role=Role.OPERATE,
    noun="vm",
    verb="volume add",
    waits="task.info",
    done="{vm} has {volume}; if it runs, it gets it now unless it was told to wait: pvc vm volume get {vm}",
)
def volume_add(
    ctx: Context,
    vm: VMName,
    volume: types.DiskText,
    *,
    device: Annotated[
        str,
        Arg(
            "its name in the guest; the next one unless given",
            short="-d",
            metavar="DEV",
            pattern="[vs]d[a-z]{1,2}",
            what="a name like vdb",
        ),
    ]
    | None = None,
    bus: Annotated[Bus, Arg("on which the guest finds it", short="-b")] = Bus.VIRTIO,
    live: Live = True,
    force: Annotated[bool, Arg("also when the pool gets fuller than it should", short="-f")] = False,
) -> TaskInfo:
    """Give a VM a volume as a disk; a new one where a size is given. One that runs gets it at once."""
    from pvc.cluster import domainxml

    found = ctx.view.vm(vm)
    spec = found.spec
    taken = [one.target for one in found.status.drives]
    target = device or domainxml.free_target(spec.definition, bus, taken)
    if not target.startswith(domainxml.BUSES[bus]):
        raise Conflict(f"a disk on {bus} is not called {target}", hint=f"like {domainxml.BUSES[bus]}b")
    if target in {*taken, *(one.target for one in domainxml.parse(spec.definition).disks)}:
        raise Conflict(f"{spec.name} has a disk {target} already", hint=f"pvc vm volume get {spec.name}")
    if live and is_up(found) and (why := _never_live(spec.definition, bus)):
        raise Conflict(f"{spec.name} cannot get it now: {why}", hint="--no-live: from its next start")
    disk = wanted(ctx, spec.name, volume, target, bus)
    volumes = [Volume(disk["pool"], disk["volume"])] if disk["pool"] else []
    for one in volumes:
        if (node := ctx.view.pool(one.pool).spec.node) and spec.node_limit != (node,):
            raise Conflict(
                f"pool {one.pool} is on {node} only, and {spec.name} may be elsewhere",
                hint=f"pvc vm meta {spec.name} --limit {node}",
            )
    unused = [op for one in volumes for op in records.absent(paths.pool_vm(one.pool, one.name))]
    about = f"giving {spec.name} {volumes[0] if volumes else disk['path']} as {target}"
    arguments = {"vm": spec.uuid, "disks": [disk], "live": live, "force": force}
    return vm_write.begin(ctx, "vm.volume-add", about, found, volumes, arguments=arguments, ops=unused)


@operation(
    "DELETE",
    "/vm/{vm}/volume",
    role=Role.OPERATE,
    noun="vm",
    verb="volume remove",
    done="{name} does not have {volume} any more{pending}; the volume stays",
    waits="vm.info",
)
def volume_remove(
    ctx: Context,
    vm: VMName,
    volume: Annotated[
        str,
        Arg(
            "the disk: its volume as POOL/VOLUME, its name like vdb, or its file",
            metavar="VOLUME",
            pattern=rf"{types.names.POOL}/{types.names.VOLUME}|{types.FILE_PATTERN}|[a-z]{{2,8}}",
            what="POOL/VOLUME, a name like vdb, or an absolute path",
        ),
    ],
    *,
    live: Live = True,
    restart: Restart = False,
) -> VMInfo:
    """Take exactly one disk from a VM; what is on it stays.

    The guest of one that runs is asked to let it go at once, unless told otherwise. If it does not, it has it
    until its next start.
    """
    from pvc.cluster import domainxml

    found = ctx.view.vm(vm)
    spec = found.spec
    target, source = _chosen(ctx, found, volume)
    device = Drive(target, source, "").device
    new = with_definition(spec, domainxml.remove_disk(spec.definition, target))
    may_go = device in {one.device for one in domainxml.shape(spec.definition).drives}
    now = live and not restart and is_up(found) and may_go
    ctx.say(f"{spec.name} loses the disk {target} ({source})")
    others = tuple(one for one in new.live if one.device != device)
    # That one has gone need not be known any longer.
    others = tuple(one for one in others if one.digest or not one.is_made(found.status.devices))
    if not now:
        return changed(ctx, found, replace(new, live=others if is_up(found) else ()), restart)
    saved = save(ctx, found, replace(new, live=(*others, Change(device))), relies_on_status=True)
    return describe(saved, {"state": "start", "refused": ""})


def _never_live(definition: str, bus: Bus) -> str:
    from pvc.cluster import domainxml

    if bus is Bus.SATA:
        return "SATA disks do not come while a machine runs"
    if bus is Bus.VIRTIO or domainxml.has_controller(definition, str(bus)):
        return ""
    return f"its machine has no {bus} controller"


def _chosen(ctx: Context, vm: VM, text: str) -> tuple[str, str]:
    """Target and source of the one that is meant."""
    from pvc.cluster import domainxml

    volumes = records.volumes(ctx.view, vm.spec)
    for disk in domainxml.parse(vm.spec.definition).disks:
        if text in (disk.target, disk.source, str(volumes.get(disk.target, ""))):
            return disk.target, disk.source
    name = vm.spec.name
    raise NotFound(f"{name} has no disk {text}", hint=f"pvc vm volume get {name} shows what it has")


def is_up(vm: VM) -> bool:
    return vm.status.owner is not None and vm.spec.power is Power.STARTED
