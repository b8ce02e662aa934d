"""What is to be done so that a node has its own networks as its pvc.toml describes them: pure functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network

from pvc.hostnetworks import HostNetwork, HostNetworks
from pvc.node.drivers.host_state import (
    AddAddress,
    AddRoute,
    Device,
    DeviceAddress,
    DropAddress,
    DropRoute,
    HostState,
    HostStep,
    MakeDevice,
    RemoveDevice,
    Route,
    SetMaster,
    SetMTU,
    SetUp,
)
from pvc.node.drivers.networks import Vlan

OURS = 0x71
"""The protocol of addresses and routes that we gave: the kernel keeps it, over our restarts too."""
DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}
METRIC = {4: 0, 6: 512}
"""Of IPv6 it comes before a default route that routers announce."""


@dataclass(frozen=True, slots=True)
class Wanted:
    made: tuple[Device, ...] = ()
    """Bonds before VLANs."""
    masters: tuple[tuple[str, str], ...] = ()
    mtus: tuple[tuple[str, int], ...] = ()
    """Of devices that others made."""
    ups: tuple[tuple[str, bool], ...] = ()
    addresses: tuple[DeviceAddress, ...] = ()
    routes: tuple[Route, ...] = ()
    problems: tuple[str, ...] = ()


def wanted(networks: HostNetworks, bridge_device: str, found: HostState) -> Wanted:
    """What can be had of it on this host; the problems say what cannot."""
    sections = networks.sections()
    if not sections:
        return Wanted()
    devices = {one.name: one for one in found.devices}
    problems: list[str] = []
    masters = tuple(_masters(networks, devices, problems))
    taken = dict(_taken(networks, devices))
    problems += taken.values()
    made = {one.name: one for one in _made(networks, devices)}
    there = {*made, *(name for name, one in devices.items() if not one.is_ours)}
    problems += (
        f"there is no device {one.device}, which network.{name}.device names"
        for name, one in sections.items()
        if one.device not in there
    )
    there -= {*taken}
    usable = {name: one for name, one in sections.items() if {one.device, one.link} <= there}
    lower = {one.device for one in usable.values()}
    if bridge_device in there:
        lower.add(bridge_device)
    members = [member for member, _ in masters]
    return Wanted(
        made=tuple(one for one in made.values() if one.vlan is None or one.vlan.device in there),
        masters=masters,
        mtus=tuple((name, mtu) for name in sorted(lower - {*made}) if (mtu := _mtu_of(name, sections))),
        ups=tuple((name, True) for name in (*members, *sorted(lower - {*made}))),
        addresses=tuple(_addresses(usable, found, problems)),
        routes=tuple(_routes(usable, found, problems)),
        problems=tuple(problems),
    )


def _masters(
    networks: HostNetworks, devices: Mapping[str, Device], problems: list[str]
) -> Iterator[tuple[str, str]]:
    for bond, described in networks.bonds().items():
        if _is_foreign(bond, devices):
            continue
        for member in described.members:
            known = devices.get(member)
            if known is None:
                problems.append(f"there is no device {member}, a member of {bond}")
            elif known.master and known.master != bond and _is_foreign(known.master, devices):
                problems.append(f"{member}, a member of {bond}, is a port of {known.master}")
            else:
                yield member, bond


def _is_foreign(name: str, devices: Mapping[str, Device]) -> bool:
    return name in devices and not devices[name].is_ours


def _taken(networks: HostNetworks, devices: Mapping[str, Device]) -> Iterator[tuple[str, str]]:
    """Names that a device has which somebody else made, and which cannot serve instead; and why."""
    for bond in networks.bonds():
        if _is_foreign(bond, devices) and devices[bond].kind != "bond":
            yield bond, f"{bond} is a device of the host's own, and no bond"
    for one in networks.sections().values():
        if (
            one.vlan
            and _is_foreign(one.link, devices)
            and devices[one.link].vlan != Vlan(one.vlan, one.device)
        ):
            yield one.link, f"{one.link} is a device of the host's own, and not VLAN {one.vlan}"


def _made(networks: HostNetworks, devices: Mapping[str, Device]) -> Iterator[Device]:
    """One of somebody else's that is the same serves as well."""
    sections = networks.sections()
    for bond, described in networks.bonds().items():
        if not _is_foreign(bond, devices):
            yield Device(bond, "bond", _mtu_of(bond, sections), mode=described.mode, is_ours=True)
    for one in sections.values():
        if one.vlan and not _is_foreign(one.link, devices):
            yield Device(one.link, "vlan", one.mtu, vlan=Vlan(one.vlan, one.device), is_ours=True)


def _mtu_of(device: str, sections: Mapping[str, HostNetwork]) -> int:
    """As told; else what the VLANs on it need."""
    on_it = [one for one in sections.values() if one.device == device]
    told = [one.mtu for one in on_it if not one.vlan]
    return max(told, default=0) or max((one.mtu for one in on_it), default=0)


def _addresses(
    usable: Mapping[str, HostNetwork], found: HostState, problems: list[str]
) -> Iterator[DeviceAddress]:
    foreign = [one for one in found.addresses if one.protocol != OURS]
    for network in usable.values():
        for text in network.address:
            value = ip_interface(text)
            others = [
                one
                for one in foreign
                if ip_interface(one.value).ip == value.ip
                and (one.device, ip_interface(one.value)) != (network.link, value)
            ]
            if others:
                problems.append(f"{others[0].value} is an address of {others[0].device} already, not of ours")
            else:
                yield DeviceAddress(str(value), network.link, OURS)


def _routes(usable: Mapping[str, HostNetwork], found: HostState, problems: list[str]) -> Iterator[Route]:
    for network in usable.values():
        for text in network.gateway:
            gateway = ip_address(text)
            to, metric = DEFAULT[gateway.version], METRIC[gateway.version]
            others = [one for one in found.routes if one.protocol != OURS and one.to == to]
            if (gateway, network.link) in [(_gateway(one), one.device) for one in others]:
                continue
            first = next((one for one in others if one.metric <= metric), None)
            if first is not None:
                through = first.gateway or first.device
                problems.append(
                    f"the default route through {through} is not ours, and comes before {gateway}"
                )
            else:
                yield Route(to, str(gateway), network.link, OURS, metric)


def _gateway(route: Route) -> object:
    return ip_address(route.gateway) if route.gateway else None


def towards(goal: Wanted, found: HostState) -> tuple[HostStep, ...]:
    """Create what is missing, correct what differs, remove what is ours and unwanted, leave the rest alone.

    A step may undo what was right before, as a port loses its routes: so look again afterwards.
    """
    devices = {one.name: one for one in found.devices}
    gone = _unwanted(goal, devices)
    steps: list[HostStep] = [RemoveDevice(name) for name in gone]
    left = {name: _left(one, gone) for name, one in devices.items() if name not in gone}
    return (
        *steps,
        *_device_steps(goal, left),
        *_address_steps(goal, [one for one in found.addresses if one.device not in gone], left),
        *_route_steps(goal, [one for one in found.routes if one.device not in gone]),
    )


def _left(one: Device, gone: Collection[str]) -> Device:
    """A bond that goes leaves its members down."""
    return replace(one, master="", up=False) if one.master in gone else one


def _unwanted(goal: Wanted, devices: Mapping[str, Device]) -> list[str]:
    """With what is on them, VLANs first."""
    same = {(one.name, one.kind, one.mode, one.vlan) for one in goal.made}
    gone = {
        one.name
        for one in devices.values()
        if one.is_ours and (one.name, one.kind, one.mode, one.vlan) not in same
    }
    gone |= {one.name for one in devices.values() if one.is_ours and one.vlan and one.vlan.device in gone}
    return sorted(gone, key=lambda name: (devices[name].vlan is None, name))


def _device_steps(goal: Wanted, devices: Mapping[str, Device]) -> Iterator[HostStep]:
    """What is below comes before what is on it."""
    masters = dict(goal.masters)
    ours = {name for name, one in devices.items() if one.is_ours}
    for name, one in devices.items():
        if one.master in ours and masters.get(name) != one.master:
            yield SetMaster(name, "")
    for made in (one for one in goal.made if one.vlan is None):
        yield from _made_steps(made, devices)
    for member, bond in goal.masters:
        if member in devices and devices[member].master != bond:
            yield SetMaster(member, bond)
    for name, mtu in goal.mtus:
        if name in devices and devices[name].mtu != mtu:
            yield SetMTU(name, mtu)
    for name, up in goal.ups:
        if name in devices and devices[name].up != up:
            yield SetUp(name, up)
    for made in (one for one in goal.made if one.vlan is not None):
        yield from _made_steps(made, devices)


def _made_steps(made: Device, devices: Mapping[str, Device]) -> Iterator[HostStep]:
    found = devices.get(made.name)
    if found is None:
        yield MakeDevice(made)
        return
    if made.mtu and found.mtu != made.mtu:
        yield SetMTU(made.name, made.mtu)
    if found.up != made.up:
        yield SetUp(made.name, made.up)


def _address_steps(
    goal: Wanted, found: Iterable[DeviceAddress], devices: Mapping[str, Device]
) -> Iterator[HostStep]:
    """The new ones first, so that the node is never without; only of one address the length is changed."""
    there = {*devices, *(one.name for one in goal.made)}
    known = {(one.device, one.value): one for one in found}
    wanted = {(one.device, one.value): one for one in goal.addresses if one.device in there}
    adds = [one for key, one in wanted.items() if key not in known]
    drops = [one for key, one in known.items() if one.protocol == OURS and key not in wanted]
    same = {(one.device, ip_interface(one.value).ip) for one in adds}
    first = [one for one in drops if (one.device, ip_interface(one.value).ip) in same]
    yield from map(DropAddress, first)
    yield from map(AddAddress, adds)
    yield from (DropAddress(one) for one in drops if one not in first)


def _route_steps(goal: Wanted, found: Iterable[Route]) -> Iterator[HostStep]:
    known = list(found)
    wanted = [one for one in goal.routes if one not in known]
    yield from (DropRoute(one) for one in known if one.protocol == OURS and one not in goal.routes)
    yield from map(AddRoute, wanted)


# Back


def touched(steps: Iterable[HostStep], *states: HostState) -> frozenset[str]:
    """The devices that are not afterwards what they were, with those on them and below them."""
    names = {step.device for step in steps}
    names |= {step.master for step in steps if isinstance(step, SetMaster) and step.master}
    devices = [one for state in states for one in state.devices]
    while more := {*_neighbours(devices, names)} - names:
        names |= more
    return frozenset(names)


def _neighbours(devices: Iterable[Device], names: Collection[str]) -> Iterator[str]:
    for one in devices:
        if one.name in names and one.master:
            yield one.master
        if one.master in names or (one.vlan is not None and one.vlan.device in names):
            yield one.name


def as_before(before: HostState, names: Collection[str]) -> Wanted:
    """All of these devices as they were, whoever had made them so; the others were left alone."""
    devices = [one for one in before.devices if one.name in names]
    foreign = [one for one in devices if not one.is_ours]
    ours = [one for one in before.devices if one.is_ours]
    bonds = {one.name for one in ours if one.kind == "bond"}
    return Wanted(
        made=tuple(sorted(ours, key=lambda one: (one.vlan is not None, one.name))),
        masters=tuple((one.name, one.master) for one in before.devices if one.master in bonds),
        mtus=tuple((one.name, one.mtu) for one in foreign),
        ups=tuple((one.name, one.up) for one in foreign),
        addresses=tuple(one for one in before.addresses if one.device in names or one.protocol == OURS),
        routes=tuple(one for one in before.routes if one.device in names or one.protocol == OURS),
    )


def carries(state: HostState, address: str, others: Iterable[str]) -> frozenset[str]:
    """The devices without which this address reaches the others."""
    own = ip_address(address)
    mine = [one for one in state.addresses if ip_interface(one.value).ip == own]
    names = {one.device for one in mine}
    near = [ip_interface(one.value).network for one in mine]
    for other in others:
        try:
            to = ip_address(other)
        except ValueError:  # a name, which may be anywhere
            to = None
        if to is None or not any(to in network for network in near):
            names |= {one.device for one in state.routes if to is None or to in ip_network(one.to)}
    below = {one.name: one for one in state.devices}
    while more := {*_below(below, names)} - names:
        names |= more
    return frozenset(names)


def _below(devices: Mapping[str, Device], names: Collection[str]) -> Iterator[str]:
    for one in devices.values():
        if one.name in names and one.vlan is not None:
            yield one.vlan.device
        if one.master in names:
            yield one.name
