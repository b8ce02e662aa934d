"""Ceph's list of clients that no OSD listens to: one protocol, held by one suite (tests/contract)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Protocol


@dataclass(frozen=True, slots=True)
class OSDMap:
    """As one epoch of Ceph's own map has it."""

    epoch: int
    up: frozenset[int]
    """OSDs. One that comes up knows this epoch before it serves anybody."""
    listed: frozenset[str]
    """Addresses that are listed as a whole, whatever the port."""
    hosts: Mapping[int, str] = field(default_factory=dict)
    """The address of each OSD that is up."""

    def at(self, addresses: Collection[str]) -> frozenset[int]:
        """OSDs there."""
        return frozenset(osd for osd, address in self.hosts.items() if address in addresses)


class Blocklist(Protocol):
    """All may raise DriverError."""

    def addresses(self) -> frozenset[str]:
        """By which Ceph knows clients on this node."""
        ...

    def map(self) -> OSDMap: ...

    def add(self, address: str) -> None:
        """Until it is removed: an entry that ends by itself lets a client that slept meanwhile write again.
        `map` shows it from then on."""
        ...

    def remove(self, address: str) -> None:
        """Done already where it is not listed."""
        ...

    def epoch_of(self, osd: int) -> int:
        """The newest map that it knows, from itself."""
        ...

    def mark_down(self, osds: Collection[int]) -> None:
        """Nobody waits any more until Ceph finds that out by itself; one that lives comes up again."""
        ...


def as_listed(address: str) -> str:
    """As Ceph writes it: FD00::0005 is fd00::5."""
    try:
        return str(ip_address(address))
    except ValueError:
        return address
