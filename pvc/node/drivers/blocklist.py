"""Ceph's list of clients that no OSD listens to: one protocol, held by one suite (tests/contract)."""

from __future__ import annotations

from dataclasses import dataclass
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


def as_listed(address: str) -> str:
    """As Ceph writes it: FD00::0005 is fd00::5."""
    try:
        return str(ip_address(address))
    except ValueError:
        return address
