"""What is to be done to this host's links so that it has the cluster's networks: a pure function."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pvc.cluster.network import (
    VXLAN_OVERHEAD,
    VXLAN_OVERHEAD_IPV6,
    Kind,
    NetworkSpec,
    bridge_name,
    vlan_name,
    vxlan_name,
)
from pvc.cluster.node import NetworkProblem
from pvc.node.drivers.networks import Link, Vlan, Vxlan

NAME = re.compile(r"(?:br|vx|vl)([1-9][0-9]{0,7})")


@dataclass(frozen=True, slots=True)
class Add:
    link: Link


@dataclass(frozen=True, slots=True)
class Change:
    link: Link


@dataclass(frozen=True, slots=True)
class Remove:
    link: Link


Step = Add | Change | Remove


@dataclass(frozen=True, slots=True)
class Host:
    """What networks are made of on this node."""

    address: str
    """On the cluster network."""
    cluster_device: str
    """That has it; empty: none."""
    bridge_device: str
    links: Mapping[str, Link]

    @property
    def managed_mtu(self) -> int:
        """The greatest; 0 where there can be none."""
        overhead = VXLAN_OVERHEAD_IPV6 if ":" in self.address else VXLAN_OVERHEAD
        return self.links[self.cluster_device].mtu - overhead if self.cluster_device in self.links else 0

    @property
    def bridged_mtu(self) -> int:
        return self.links[self.bridge_device].mtu if self.bridge_device in self.links else 0


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    steps: tuple[Step, ...]
    """In this order. Of each network whose step fails the others are left."""
    problems: tuple[NetworkProblem, ...]
    bridges: Mapping[int, int] = field(default_factory=dict)
    """Of the networks that are managed and possible here, the MTU of each."""


def vni_of(link: Link) -> int | None:
    """Of which network it is by its name; None: of none that this version knows of."""
    found = NAME.fullmatch(link.name)
    return int(found[1]) if found else None


def plan(specs: Iterable[NetworkSpec], host: Host, unreadable: Mapping[int, str]) -> NetworkPlan:
    """Create what is missing, correct what differs, remove what is ours and unwanted, leave the rest alone.

    A network that cannot be as it is wanted stays as it is: VMs may be in it.
    """
    steps: list[Step] = []
    problems = [NetworkProblem(vni, why) for vni, why in sorted(unreadable.items())]
    kept = set(unreadable)
    wanted: dict[str, Link] = {}
    for spec in sorted(specs, key=lambda one: one.vni):
        why = _impossible(spec, host)
        if why:
            problems.append(NetworkProblem(spec.vni, why))
            kept.add(spec.vni)
            continue
        for link in _links(spec, host):
            wanted[link.name] = link
            steps += _towards(link, host.links.get(link.name))
    removals, in_use = _unwanted(wanted, kept, host.links)
    bridges = {link.vxlan.vni: link.mtu for link in wanted.values() if link.vxlan is not None}
    return NetworkPlan((*removals, *steps), (*problems, *in_use), bridges)


def _impossible(spec: NetworkSpec, host: Host) -> str:
    """Why this node cannot have it; empty if it can."""
    if spec.kind is Kind.MANAGED:
        if not host.managed_mtu:
            return f"no device has {host.address}, this node's address on the cluster network"
        greatest, below = host.managed_mtu, host.cluster_device
    else:
        if not host.bridge_device:
            return "this node's pvc.toml names no node.bridge_device"
        if not host.bridged_mtu:
            return f"there is no device {host.bridge_device}, which node.bridge_device names"
        greatest, below = host.bridged_mtu, host.bridge_device
    if spec.mtu > greatest:
        return f"its MTU of {spec.mtu} is more than the {greatest} that {below} leaves it here"
    for link in _links(spec, host):
        found = host.links.get(link.name)
        if found is not None and not found.is_ours:
            return f"{link.name} is a device of the host's own"
    return ""


def _links(spec: NetworkSpec, host: Host) -> Iterator[Link]:
    """The bridge first, which the other is a port of."""
    is_managed = spec.kind is Kind.MANAGED
    mtu = spec.mtu or (host.managed_mtu if is_managed else host.bridged_mtu)
    bridge = bridge_name(spec.vni)
    yield Link(bridge, "bridge", mtu, is_quiet=True, is_ours=True)
    if is_managed:
        tunnel = Vxlan(spec.vni, host.address)
        yield Link(
            vxlan_name(spec.vni),
            "vxlan",
            mtu,
            master=bridge,
            learning=False,
            vxlan=tunnel,
            is_quiet=True,
            is_ours=True,
        )
    else:
        vlan = Vlan(spec.vni, host.bridge_device)
        yield Link(vlan_name(spec.vni), "vlan", mtu, master=bridge, vlan=vlan, is_quiet=True, is_ours=True)


def _towards(wanted: Link, found: Link | None) -> Iterator[Step]:
    if found is None:
        yield Add(wanted)
    elif (found.kind, found.vxlan, found.vlan) != (wanted.kind, wanted.vxlan, wanted.vlan):
        yield Remove(found)
        yield Add(wanted)
    elif found != wanted:
        yield Change(wanted)


def _unwanted(
    wanted: Mapping[str, Link], kept: set[int], links: Mapping[str, Link]
) -> tuple[list[Step], list[NetworkProblem]]:
    """Ports before their bridges. A bridge that somebody else's device is a port of stays, with its ports."""
    gone = [
        link
        for link in links.values()
        if link.is_ours and link.name not in wanted and (vni := vni_of(link)) is not None and vni not in kept
    ]
    users = {
        vni: sorted(port.name for port in links.values() if port.master == link.name and not port.is_ours)
        for link in gone
        if link.kind == "bridge" and (vni := vni_of(link)) is not None
    }
    removals: list[Step] = [
        Remove(link)
        for link in sorted(gone, key=lambda link: (link.kind == "bridge", link.name))
        if not users.get(vni_of(link) or 0)
    ]
    in_use = [
        NetworkProblem(vni, f"it was removed, and {bridge_name(vni)} is still used by {', '.join(ports)}")
        for vni, ports in sorted(users.items())
        if ports
    ]
    return removals, in_use
