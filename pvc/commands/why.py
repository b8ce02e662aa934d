"""Why something is as it is, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pvc.cluster import domainxml, paths
from pvc.cluster.network import Kind
from pvc.cluster.node import DaemonState, Wanted
from pvc.cluster.vm import Power, State, VMSpec, settled, shown_state, under_way
from pvc.commands.context import Context
from pvc.commands.network import NetworkInfo
from pvc.commands.network import info as network_info
from pvc.commands.node import vms_of
from pvc.commands.node_fence import newest, story, told
from pvc.commands.registry import operation
from pvc.commands.types import NetworkName, NodeName, VMName
from pvc.commands.vm_info import (
    DeviceState,
    activity,
    bridges_of,
    disks_of,
    is_moving,
    is_pending,
    nics_of,
    refusals,
)
from pvc.commands.vm_network import what_it_waits_for
from pvc.commands.vm_place import placement_of
from pvc.errors import Invalid

if TYPE_CHECKING:
    from pvc.cluster.view import VM, Node

GUEST_MTU = 1500
"""Of a guest that nobody has told otherwise."""


@dataclass(frozen=True, slots=True)
class Explanation:
    name: str
    state: str
    because: tuple[str, ...]


@operation("GET", "/why/vm/{vm}", verb="vm")
def why_vm(ctx: Context, vm: VMName) -> Explanation:
    """Explain the state of a VM: what is wanted, what is, and what is in the way."""
    found = ctx.view.vm(vm)
    return Explanation(found.spec.name, shown_state(found.spec, found.status), tuple(_of_vm(ctx, found)))


def _of_vm(ctx: Context, vm: VM) -> Iterator[str]:
    spec, status = vm.spec, vm.status
    yield _wanted(spec)
    yield from _owned(ctx, vm)
    if doing := activity(spec, status):
        yield f"it is not there yet: {doing}"
    if status.reason:
        yield f"{_who_says(vm)}: {status.reason}"
    if status.owner is None and spec.power is Power.STARTED:
        yield from _not_running(ctx, vm)
    if spec.home is not None:
        yield f"it is away from its home {spec.home} for now; pvc vm unmigrate {spec.name} brings it back"
    yield from _interfaces(ctx, vm)
    yield from _definition(vm)
    if settled(spec, status) and shown_state(spec, status) != State.FAIL:
        yield "nothing is going on: it is as wanted"


def _who_says(vm: VM) -> str:
    is_recovered = vm.status.owner is None and vm.status.recovery is not None
    return "found when it was recovered" if is_recovered else "its node says"


def _wanted(spec: VMSpec) -> str:
    where = f" on {spec.node}" if spec.node else ""
    return {
        Power.STARTED: f"it is wanted running{where}",
        Power.STOPPED: "it is wanted stopped" + (", at once" if spec.force else ""),
        Power.DISABLED: f"it is disabled: pvc vm start {spec.name} enables it",
    }[spec.power]


def _owned(ctx: Context, vm: VM) -> Iterator[str]:
    owner = vm.status.owner
    if owner is None:
        yield "no node runs it"
        return
    yield f"{owner.node} runs it"
    node = ctx.view.nodes([owner.node]).get(owner.node)
    if node is None or not node.is_running:
        state = node.daemon_state if node else "gone"
        yield f"the daemon of {owner.node} is {state}: what is said here may be old, and no other may run it"
    elif node.status.incarnation != owner.incarnation:
        yield f"the daemon of {owner.node} was restarted and has not taken it over yet"
    if is_moving(vm) and ctx.store.get(paths.vm_target(vm.spec.uuid)) is None:
        yield f"{vm.spec.node} has not answered yet whether it can take it"


def _not_running(ctx: Context, vm: VM) -> Iterator[str]:
    spec, status = vm.spec, vm.status
    if status.failures:
        limit = ctx.view.cluster().restart_limit
        times = "once" if status.failures == 1 else f"{status.failures} times in a row"
        yield f"it ended badly {times}, {limit} times are the limit"
    if shown_state(spec, status) == State.FAIL:
        yield f"it is not tried again by itself: pvc vm start {spec.name} does"
    try:
        bridges = bridges_of(spec, status)
    except Invalid:
        return
    placement = placement_of(ctx)
    if spec.node is not None and spec.node not in placement.nodes:
        yield f"its node {spec.node} is no node of the cluster any more"
    for name in sorted(placement.nodes):
        refused = placement.refusal(name, spec, bridges=bridges)
        yield f"{name} cannot take it: {refused}" if refused else f"{name} can take it"


def _interfaces(ctx: Context, vm: VM) -> Iterator[str]:
    """And disks: those that are to come or go while it runs."""
    yield from refusals(vm.spec, vm.status)
    if not under_way(vm.spec, vm.status):
        return
    with suppress(Invalid):
        for nic in nics_of(vm.spec, vm.status):
            if nic.state in (DeviceState.COMES, DeviceState.GOES):
                why = what_it_waits_for(ctx, vm, nic)
                yield f"interface {nic.mac} in {nic.network} is {nic.state}{f': {why}' if why else ''}"
        for disk in disks_of(vm.spec, vm.status):
            if disk.state in (DeviceState.COMES, DeviceState.GOES):
                yield f"disk {disk.device} ({disk.source}) is {disk.state}"


def _definition(vm: VM) -> Iterator[str]:
    try:
        digest = domainxml.digest(vm.spec.definition)
        domainxml.parse(vm.spec.definition)
    except Invalid as error:
        yield f"its definition is unreadable: {error.message}"
        return
    if is_pending(vm.status, digest):
        yield f"its definition was changed since it started; pvc vm restart {vm.spec.name} runs the new one"


@operation("GET", "/why/node/{node}", verb="node")
def why_node(ctx: Context, node: NodeName = "") -> Explanation:
    """Explain the state of a node: what is wanted, what its daemon says, and which VMs are in the way."""
    found = ctx.view.node(node)
    state = f"{found.daemon_state},{found.domain_state}"
    return Explanation(node, state, tuple(_of_node(ctx, found)))


@operation("GET", "/why/fence/{node}", verb="fence")
def why_fence(ctx: Context, node: NodeName = "") -> Explanation:
    """Explain the newest fence of a node: the evidence, and how long each step took."""
    found = newest(ctx, node)
    return Explanation(node, found.state, (told(found), *story(found)))


def _of_node(ctx: Context, node: Node) -> Iterator[str]:
    name = node.spec.name
    is_flushed = node.spec.wanted is Wanted.FLUSHED
    yield (
        f"it is wanted flushed: pvc node ready {name} changes that"
        if is_flushed
        else "it is wanted ready for VMs"
    )
    yield _daemon(node)
    if node.load.problem:
        yield f"it says: {node.load.problem}"
    for problem in node.status.host_network_problems:
        yield f"its own networks: {problem}"
    vms = vms_of(ctx, name)
    running = [vm for vm in vms if vm.status.owner is not None and vm.status.owner.node == name]
    away = [vm for vm in vms if vm.spec.home == name and vm.spec.node != name]
    for what, some in (("it runs", running), ("at home here and away", away)):
        if some:
            yield f"{what}: {', '.join(vm.spec.name for vm in some)}"
    if is_flushed:
        yield from _still_here(ctx, node, running)


def _daemon(node: Node) -> str:
    state = node.daemon_state
    if node.fence is not None:
        return told(node.fence)
    if state is DaemonState.DEAD:
        return "its daemon is dead: it said that it runs, and its session with the store is gone"
    if state is DaemonState.STOP:
        return "its daemon was stopped"
    return f"its daemon is in state {state}, version {node.status.version or 'unknown'}"


def _still_here(ctx: Context, node: Node, running: list[VM]) -> Iterator[str]:
    placement = placement_of(ctx)
    for vm in running:
        if is_moving(vm):
            yield f"{vm.spec.name} is on its way: {activity(vm.spec, vm.status)}"
            continue
        try:
            bridges = bridges_of(vm.spec, vm.status)
        except Invalid as error:
            yield f"{vm.spec.name} cannot be placed: {error.message}"
            continue
        for other in sorted(placement.nodes):
            if other != node.spec.name and (why := placement.refusal(other, vm.spec, bridges=bridges)):
                yield f"{vm.spec.name} cannot go to {other}: {why}"


@operation("GET", "/why/network/{network}", verb="network")
def why_network(ctx: Context, network: NetworkName) -> Explanation:
    """Explain the state of a network: how it is on each node, and which VMs are in it."""
    found = network_info(ctx, network)
    return Explanation(found.description, found.state, tuple(_of_network(ctx, found)))


def _of_network(ctx: Context, found: NetworkInfo) -> Iterator[str]:
    carried = "by VXLAN over the cluster network" if found.kind is Kind.MANAGED else f"as VLAN {found.vni}"
    yield f"it is wanted on every node as bridge {found.bridge}, carried {carried}"
    if found.mtu:
        yield f"its MTU is {found.mtu}, as it was told"
    yield from _mtus(ctx, found)
    for name, how in sorted(found.nodes.items()):
        yield f"{name}: {how}"
    yield from _of_gateway(ctx, found)
    yield f"VMs in it: {', '.join(found.vms)}" if found.vms else "no VM is in it"


def _of_gateway(ctx: Context, found: NetworkInfo) -> Iterator[str]:
    gateways = [one for one in (found.gateway, found.gateway6) if one]
    if not gateways:
        if found.kind is Kind.MANAGED:
            yield "it has no gateway: its VMs reach nobody outside, and nobody gives them addresses"
        return
    where = (
        f"{found.gateway_node}, the primary, has"
        if found.gateway_node
        else "no coordinator is primary to have"
    )
    yield f"{where} its gateway {' and '.join(gateways)}"
    if found.dhcp_start:
        leases = "1 lease" if found.leases == 1 else f"{found.leases} leases"
        yield f"DHCP gives {found.dhcp_start} to {found.dhcp_end}; {leases}"
    for node in ctx.view.nodes([found.gateway_node]).values() if found.gateway_node else ():
        for problem in node.status.service_problems:
            if problem.vni in (found.vni, 0):
                yield f"{node.spec.name} cannot serve it: {problem.why}"


def _mtus(ctx: Context, found: NetworkInfo) -> Iterator[str]:
    """What the nodes could give it, and what that means for guests."""
    is_managed = found.kind is Kind.MANAGED
    greatest = {
        node.spec.name: node.status.managed_mtu if is_managed else node.status.bridged_mtu
        for node in ctx.view.nodes().values()
        if node.is_running
    }
    known = {name: mtu for name, mtu in greatest.items() if mtu}
    if not known:
        return
    least = found.mtu or min(known.values())
    if not found.mtu:
        yield f"its MTU is {least}, what the nodes can give it"
    if len({*known.values()}) > 1:
        said = ", ".join(f"{name} {mtu}" for name, mtu in sorted(known.items()))
        yield f"the nodes differ in the MTU they can give it: {said}"
    if least < GUEST_MTU:
        yield f"guests use {GUEST_MTU} unless told: set {least} in them, or more on the network below"
