"""Interfaces of a VM: which it has, one more, one less; while it runs, where that is possible."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

from pvc.cluster import paths
from pvc.cluster.clients import Member
from pvc.cluster.network import bridge_name
from pvc.cluster.placement import without_bridge
from pvc.cluster.vm import Change, Power, VMSpec
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.types import Live, MACText, NetworkText, Restart, VMName
from pvc.commands.vm_info import DeviceState, NicInfo, VMInfo, describe, is_moving, nics_of
from pvc.commands.vm_settings import changed
from pvc.commands.vm_write import save, with_definition
from pvc.errors import Conflict, NotFound

if TYPE_CHECKING:
    from pvc.cluster.view import VM


class Model(StrEnum):
    """Of the network card that the guest sees; all that QEMU has for a machine of this kind."""

    VIRTIO = "virtio"
    VIRTIO_NEW = "virtio-non-transitional"
    VIRTIO_OLD = "virtio-transitional"
    E1000 = "e1000"
    E1000E = "e1000e"
    NE2K = "ne2k_pci"
    PCNET = "pcnet"
    RTL8139 = "rtl8139"
    VMXNET3 = "vmxnet3"


@operation(
    "GET",
    "/vm/{vm}/network",
    noun="vm",
    verb="network get",
    columns=("mac", "network", "model", "bridge", "state", "why"),
)
def network_get(ctx: Context, vm: VMName) -> tuple[NicInfo, ...]:
    """List a VM's interfaces, and how those it has now differ from those of its definition."""
    found = ctx.view.vm(vm)
    return tuple(_explained(ctx, found, one) for one in nics_of(found.spec, found.status))


def _explained(ctx: Context, vm: VM, nic: NicInfo) -> NicInfo:
    if nic.state not in (DeviceState.COMES, DeviceState.GOES):
        return nic
    return replace(nic, why=what_it_waits_for(ctx, vm, nic))


def what_it_waits_for(ctx: Context, vm: VM, nic: NicInfo) -> str:
    """Of an interface that comes or goes; empty when nothing is in the way."""
    if is_moving(vm):
        return f"it waits until the VM is on {vm.spec.node}"
    if vm.status.reason.startswith("paused"):
        return "the VM is paused"
    return _without_bridge(ctx, vm, nic.bridge) if nic.state is DeviceState.COMES else ""


def _without_bridge(ctx: Context, vm: VM, bridge: str) -> str:
    """Why it cannot have an interface on that bridge where it runs; empty if it can."""
    owner = vm.status.owner
    node = ctx.view.nodes([owner.node]).get(owner.node) if owner is not None else None
    if node is None or not bridge or bridge in node.status.bridges:
        return ""
    return f"{node.spec.name} cannot: {without_bridge(bridge, node.status.network_problems)}"


@operation(
    "POST",
    "/vm/{vm}/network",
    role=Role.OPERATE,
    noun="vm",
    verb="network add",
    done="{name} has a new interface in {network}{pending}",
    waits="vm.info",
)
def network_add(
    ctx: Context,
    vm: VMName,
    network: NetworkText,
    *,
    mac: MACText | None = None,
    model: Annotated[Model, Arg("of the card that the guest sees", short="-m")] = Model.VIRTIO,
    live: Live = True,
    restart: Restart = False,
) -> VMInfo:
    """Give a VM an interface in a network, or on a bridge of the nodes.

    One that runs gets it at once, unless told otherwise. Without a MAC address it gets one that nobody else
    has in that network.
    """
    from pvc.cluster import domainxml

    found = ctx.view.vm(vm)
    spec = found.spec
    vni, bridge = _resolved(ctx, network)
    address = _address(ctx, found, vni, mac)
    nic = domainxml.NewNic(bridge, vni, model, address)
    new = with_definition(spec, domainxml.add_nic(spec.definition, nic))
    digest = next(one.digest for one in domainxml.shape(new.definition).interfaces if one.mac == address)
    now = live and not restart and _is_up(found)
    if now and (why := _lasting(ctx, found, vni, bridge)):
        raise Conflict(f"{spec.name} cannot get it now: {why}", hint="--no-live: from its next start")
    ctx.say(f"{spec.name} gets the interface {address} in {network}{_when(found, now)}")
    return _saved(ctx, found, new, Change(address, digest), now, restart)


@operation(
    "DELETE",
    "/vm/{vm}/network/{network}",
    role=Role.OPERATE,
    noun="vm",
    verb="network remove",
    done="{name} has one interface less in {network}{pending}",
    waits="vm.info",
)
def network_remove(
    ctx: Context,
    vm: VMName,
    network: NetworkText,
    *,
    mac: Annotated[MACText, Arg("the interface with that MAC address, where it has several", short="-a")]
    | None = None,
    live: Live = True,
    restart: Restart = False,
) -> VMInfo:
    """Take exactly one interface from a VM.

    The guest of one that runs is asked to let it go at once, unless told otherwise. If it does not, it has
    it until its next start.
    """
    from pvc.cluster import domainxml

    found = ctx.view.vm(vm)
    spec = found.spec
    address = _chosen(ctx, found, network, mac)
    new = with_definition(spec, domainxml.remove_nic(spec.definition, address))
    now = live and not restart and _is_up(found)
    ctx.say(f"{spec.name} loses the interface {address} in {network}{_when(found, now)}")
    return _saved(ctx, found, new, Change(address), now, restart)


def _resolved(ctx: Context, network: str) -> tuple[int, str]:
    """Number of a network of the cluster, or a bridge."""
    kind, separator, bridge = network.partition(":")
    return (0, bridge) if separator else (ctx.view.network(kind).spec.vni, "")


def _address(ctx: Context, vm: VM, vni: int, given: str | None) -> str:
    """The MAC address for a new interface: one that is free in its network."""
    from pvc.cluster import domainxml

    nics = domainxml.parse(vm.spec.definition).nics
    taken = {nic.mac: vm.spec.name for nic in nics} | {one.mac: vm.spec.name for one in vm.status.interfaces}
    taken |= {mac: member.vm for member in _members(ctx, vni) for mac in member.macs}
    if given is None:
        return domainxml.free_mac(vm.spec.uuid, len(nics), taken)
    address = given.lower()
    if address in {nic.mac for nic in nics} or taken.get(address, vm.spec.name) != vm.spec.name:
        raise Conflict(f"{taken[address]} has an interface {address} already", hint="leave --mac out")
    return address


def _members(ctx: Context, vni: int) -> tuple[Member, ...]:
    if not vni:
        return ()
    names = ctx.reader.children(paths.network_vms(vni))
    stored = ctx.reader.get_many([paths.network_vm(vni, name) for name in names])
    return tuple(ctx.view.decode(Member, one) for one in stored if one is not None and one.data)


def _lasting(ctx: Context, vm: VM, vni: int, bridge: str) -> str:
    """Why its node will not have the bridge by itself; empty when it has it, or is about to."""
    why = _without_bridge(ctx, vm, bridge_name(vni) if vni else bridge)
    owner = vm.status.owner
    if not why or owner is None or is_moving(vm):
        return ""
    problems = ctx.view.node(owner.node).status.network_problems
    return why if not vni or any(one.vni == vni for one in problems) else ""


def _chosen(ctx: Context, vm: VM, network: str, given: str | None) -> str:
    """The MAC address of the one that is meant."""
    from pvc.cluster import domainxml

    name, nics = vm.spec.name, domainxml.parse(vm.spec.definition).nics
    kind, separator, bridge = network.partition(":")
    if separator:
        there = [nic.mac for nic in nics if nic.vni is None and nic.type == "bridge" and nic.source == bridge]
    else:
        vni = ctx.view.resolve_network(kind)
        there = [nic.mac for nic in nics if nic.vni == vni]
    hint = f"pvc vm network get {name} shows what it has"
    if given is not None:
        if given.lower() not in there:
            raise NotFound(f"{name} has no interface {given.lower()} in {network}", hint=hint)
        return given.lower()
    if not there:
        raise NotFound(f"{name} has no interface in {network}", hint=hint)
    if len(there) > 1:
        raise Conflict(
            f"{name} has {len(there)} interfaces in {network}: {', '.join(there)}",
            hint="--mac says which one",
        )
    return there[0]


def _is_up(vm: VM) -> bool:
    return vm.status.owner is not None and vm.spec.power is Power.STARTED


def _when(vm: VM, now: bool) -> str:
    if vm.status.owner is None:
        return ""
    return ", while it runs" if now else ", from its next start"


def _saved(ctx: Context, vm: VM, new: VMSpec, change: Change, now: bool, restart: bool) -> VMInfo:
    others = tuple(one for one in new.live if one.device != change.device)
    # That one has gone need not be known any longer.
    others = tuple(one for one in others if one.digest or not one.is_made(vm.status.devices))
    if not now:
        return changed(ctx, vm, replace(new, live=others if _is_up(vm) else ()), restart)
    saved = save(ctx, vm, replace(new, live=(*others, change)), relies_on_status=True)
    return describe(saved, {"state": "start", "refused": ""})
