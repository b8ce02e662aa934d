"""Addresses of a host on its loopback, in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from pvc.node.drivers import DriverError


@dataclass(slots=True)
class FakeOwnAddresses:
    ours: set[str] = field(default_factory=set)
    others: dict[str, str] = field(default_factory=dict)
    """Given by others, each with its device."""

    def hold(self, address: str) -> bool:
        if address in self.others:
            raise DriverError(f"{address} is an address of this node's {self.others[address]} already")
        is_new = address not in self.ours
        self.ours.add(address)
        return is_new

    def drop(self, address: str) -> bool:
        was_held = address in self.ours
        self.ours.discard(address)
        return was_held
