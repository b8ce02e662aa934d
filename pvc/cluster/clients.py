"""Who is in a managed network and what they are given: interfaces of VMs, reservations, leases, filters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.network import LABEL, NetworkSpec
from pvc.cluster.store import Create, Delete, Op, Put


@dataclass(frozen=True, slots=True)
class Member:
    """A VM with an interface in the network; the document of the index, written with the VM's own."""

    vm: str = ""
    """Its name."""
    macs: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Whoever has this MAC address gets this address; written by operations."""

    mac: str
    address: str
    hostname: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lease:
    """Given by DHCP; written by the primary."""

    address: str
    mac: str
    hostname: str = ""
    client_id: str = ""
    """Or the DUID, for DHCPv6."""
    iaid: str = ""
    """Of DHCPv6: which of its addresses it is for the client."""
    until: float = 0.0
    """By the wall clock; 0: for ever."""
    extra: Mapping[str, Any] = field(default_factory=dict)


class Direction(StrEnum):
    IN = "in"
    """Towards the network's VMs."""
    OUT = "out"


@dataclass(frozen=True, slots=True)
class Rule:
    direction: Direction
    description: str
    """No two of a network and direction have the same."""
    rule: str
    """An nftables rule without its chain; never changed."""
    number: int
    """It keeps that one, wherever it stands: by it the kernel's rules and counters are known."""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AccessList:
    """Of one network, those of a direction in the order in which they are tried; written by operations."""

    rules: tuple[Rule, ...] = ()
    last: int = 0
    """The greatest number that a rule ever had."""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Clients:
    """A managed network with all that is known of those in it.

    One that did not change is the same object in the next round.
    """

    spec: NetworkSpec
    members: Mapping[str, Member] = field(default_factory=dict)
    """By the VM's UUID."""
    reservations: Mapping[str, Reservation] = field(default_factory=dict)
    """By MAC address."""
    leases: Mapping[str, Lease] = field(default_factory=dict)
    """By address."""
    access: AccessList = field(default_factory=AccessList)


def use_ops(uuid: str, before: Mapping[int, Member], after: Mapping[int, Member]) -> tuple[Op, ...]:
    """What a transaction that changes the networks of a VM, or its name, must do to the index; both by VNI.

    A network is deleted together with its index, which is possible only when that is empty: so neither a VM
    comes to a network that has just gone, nor goes a network that has just got a VM.
    """
    written: list[Op] = []
    for vni, member in sorted(after.items()):
        path = paths.network_vm(vni, uuid)
        if vni not in before:
            written.append(Create(path, dumps(member)))
        elif before[vni] != member:
            written.append(Put(path, dumps(member)))
    return (*written, *(Delete(paths.network_vm(vni, uuid)) for vni in sorted(before.keys() - after.keys())))


# What they are called

RESERVED_NAMES = frozenset({"ns", "gateway"})
"""Of the network itself."""


def label(vm: str) -> str:
    """What a VM can call itself: neither dots nor underscores are in a host's name."""
    return re.sub(r"[^a-z0-9]+", "-", vm.lower()).strip("-")[:63].rstrip("-")


def hostnames(clients: Clients) -> dict[str, str]:
    """MAC address → name. No two have the same, and what a guest calls itself changes nothing.

    A reservation says its own name, unless another VM is called so. Of a VM with several interfaces the first
    one without a name has the VM's: dnsmasq tells one address by each name.
    """
    vms = Counter(host_name(member.vm) for member in clients.members.values())
    owners = {mac: host_name(member.vm) for member in clients.members.values() for mac in member.macs}
    found: dict[str, str] = {}
    for mac, one in sorted(clients.reservations.items()):
        name = host_name(one.hostname)
        if name and (name not in vms or owners.get(mac) == name):
            found.setdefault(name, mac)
    named = set(found.values())
    for member in clients.members.values():
        free = [mac for mac in member.macs if mac not in named]
        if free and vms[host_name(member.vm)] == 1:
            found.setdefault(host_name(member.vm), free[0])
    return {mac: name for name, mac in sorted(found.items()) if name and name not in RESERVED_NAMES}


def host_name(text: str) -> str:
    """As a host's name in the network's domain; empty where it cannot be one."""
    name = text.lower()
    return name if LABEL.fullmatch(name) else ""
