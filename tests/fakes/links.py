"""Network devices of a host in memory, as the kernel treats them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pvc.node.drivers import DriverError
from pvc.node.drivers.networks import Link


@dataclass(slots=True)
class FakeLinks:
    found: dict[str, Link] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    """Each with its device."""
    lacks: set[str] = field(default_factory=set)
    """Kinds that this kernel does not know."""
    calls: list[str] = field(default_factory=list)
    """That change something."""
    fails: str = ""
    """Why nothing can be looked at."""

    def links(self) -> Mapping[str, Link]:
        if self.fails:
            raise DriverError(self.fails)
        return dict(self.found)

    def device_of(self, address: str) -> str:
        return self.addresses.get(address, "")

    def add(self, link: Link) -> None:
        self.calls.append(f"add {link.name}")
        if link.kind in self.lacks:
            raise DriverError(f"the kernel refuses to make {link.name}: EOPNOTSUPP")
        if link.name in self.found:
            raise DriverError(f"the kernel refuses to make {link.name}: EEXIST")
        self._check(link)
        self.found[link.name] = link

    def change(self, link: Link) -> None:
        self.calls.append(f"change {link.name}")
        known = self._own(link.name)
        self._check(link)
        self.found[link.name] = replace(link, kind=known.kind, vxlan=known.vxlan, vlan=known.vlan)

    def remove(self, name: str) -> None:
        self.calls.append(f"remove {name}")
        if name not in self.found:
            return
        self._own(name)
        del self.found[name]
        for port in list(self.found.values()):
            if port.master == name:
                self.found[port.name] = replace(port, master="", learning=True)
            if port.vlan is not None and port.vlan.device == name:
                del self.found[port.name]

    def _own(self, name: str) -> Link:
        if name not in self.found:
            raise DriverError(f"there is no device {name}")
        if not self.found[name].is_ours:
            raise DriverError(f"{name} is a device of the host's own")
        return self.found[name]

    def _check(self, link: Link) -> None:
        needed = (link.master, link.vlan.device if link.vlan else "")
        for name in needed:
            if name and name not in self.found:
                raise DriverError(f"there is no device {name}")
