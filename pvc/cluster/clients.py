"""Who is in a managed network and what they are given: interfaces of VMs, reservations, leases, filters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pvc.cluster.network import NetworkSpec


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
    """An nftables rule without its chain."""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AccessList:
    """Of one network, in the order in which they are tried; written by operations."""

    rules: tuple[Rule, ...] = ()
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
