"""Floating addresses of a host in memory, with lifetimes as the kernel keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_interface

from pvc.clock import Clock
from pvc.cluster.addresses import device_for
from pvc.node.drivers import DriverError
from pvc.node.drivers.networks import TooLate


@dataclass(slots=True)
class FakeAddresses:
    clock: Clock
    own: Mapping[str, str]
    """The host's own addresses, each with its device."""
    until: dict[str, float] = field(default_factory=dict)
    announced: list[str] = field(default_factory=list)
    fails: str = ""
    """With this the kernel refuses whatever is asked."""

    def hold(self, address: str, until: float) -> bool:
        self._asked()
        wanted = ip_interface(address)
        for own, device in self.own.items():
            if ip_interface(own).ip == wanted.ip:
                raise DriverError(f"{address} is an address of {device} already, and no floating one")
        if self._device(address) is None:
            raise DriverError(f"no network device of this node has an address in the network of {wanted}")
        now = self.clock.monotonic()
        seconds = int(until - now)
        if seconds < 1:
            raise TooLate(f"nothing confirms any more that {wanted} belongs here")
        known = self.held()
        for other in list(known):
            if other != address and ip_interface(other).ip == wanted.ip:
                del self.until[other]
        self.until[address] = now + seconds
        return address not in known

    def drop(self, address: str) -> None:
        self._asked()
        self.until.pop(address, None)

    def held(self) -> dict[str, str]:
        self._asked()
        now = self.clock.monotonic()
        return {one: self._device(one) or "" for one, until in self.until.items() if now < until}

    def announce(self, address: str) -> None:
        if address in self.held():
            self.announced.append(address)

    def _device(self, address: str) -> str | None:
        own = ((device, ip_interface(one)) for one, device in self.own.items())
        return device_for(ip_interface(address), own)

    def _asked(self) -> None:
        if self.fails:
            raise DriverError(self.fails, retryable=True)
