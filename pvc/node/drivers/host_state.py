"""Devices, addresses and routes of the host itself, and what changes them one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pvc.node.drivers.networks import Vlan


@dataclass(frozen=True, slots=True)
class Device:
    """A network device that the node's own networks could be on, as it is or is wanted."""

    name: str
    kind: str = ""
    """bond, vlan; others as the kernel calls them, empty for a real one."""
    mtu: int = 0
    """Of one that is wanted, 0: as the kernel makes it."""
    up: bool = True
    master: str = ""
    mode: str = ""
    """Of a bond."""
    vlan: Vlan | None = None
    is_ours: bool = False
    """Made by us for a network of the node itself, in whatever life of the daemon."""


@dataclass(frozen=True, slots=True)
class DeviceAddress:
    value: str
    """With the length of its network."""
    device: str
    protocol: int = 0
    """The kernel's word for who gave it."""


@dataclass(frozen=True, slots=True)
class Route:
    to: str
    gateway: str
    device: str
    protocol: int
    metric: int


@dataclass(frozen=True, slots=True)
class HostState:
    """Devices, permanent addresses and static routes of a host, without what is made for VMs."""

    devices: tuple[Device, ...] = ()
    addresses: tuple[DeviceAddress, ...] = ()
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True, slots=True)
class RemoveDevice:
    device: str


@dataclass(frozen=True, slots=True)
class MakeDevice:
    wanted: Device

    @property
    def device(self) -> str:
        return self.wanted.name


@dataclass(frozen=True, slots=True)
class SetMaster:
    device: str
    master: str
    """A bond; empty: none any more."""


@dataclass(frozen=True, slots=True)
class SetMTU:
    device: str
    mtu: int


@dataclass(frozen=True, slots=True)
class SetUp:
    device: str
    up: bool


@dataclass(frozen=True, slots=True)
class AddAddress:
    address: DeviceAddress

    @property
    def device(self) -> str:
        return self.address.device


@dataclass(frozen=True, slots=True)
class DropAddress:
    address: DeviceAddress

    @property
    def device(self) -> str:
        return self.address.device


@dataclass(frozen=True, slots=True)
class AddRoute:
    route: Route

    @property
    def device(self) -> str:
        return self.route.device


@dataclass(frozen=True, slots=True)
class DropRoute:
    route: Route

    @property
    def device(self) -> str:
        return self.route.device


HostStep = (
    RemoveDevice | MakeDevice | SetMaster | SetMTU | SetUp | AddAddress | DropAddress | AddRoute | DropRoute
)


class HostNetworking(Protocol):
    """The networks of this host itself. Every call may raise DriverError. For one thread at a time."""

    def state(self) -> HostState: ...

    def take(self, step: HostStep) -> None:
        """What is so already is done. A device that somebody else made is never removed."""
        ...
