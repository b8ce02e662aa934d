"""The own networks of a host in memory, as the kernel treats them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface

from pvc.node.drivers import DriverError
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

PLAIN_MTU = 1500


@dataclass(slots=True)
class FakeHost:
    devices: dict[str, Device] = field(default_factory=dict)
    addresses: list[DeviceAddress] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    lacks: set[str] = field(default_factory=set)
    """Kinds that this kernel does not know."""
    taken: list[HostStep] = field(default_factory=list)
    meanwhile: Callable[[HostStep], None] = lambda step: None
    """Before each step."""

    looks: int = 0

    def state(self) -> HostState:
        self.looks += 1
        return HostState(tuple(self.devices.values()), tuple(self.addresses), tuple(self.routes))

    def take(self, step: HostStep) -> None:
        self.meanwhile(step)
        self.taken.append(step)
        match step:
            case RemoveDevice(name):
                self._remove(name)
            case MakeDevice(device):
                self._make(device)
            case SetMaster(name, master):
                self._set_master(name, master)
            case SetMTU(name, mtu):
                self._set_mtu(name, mtu)
            case SetUp(name, up):
                self._set_up(name, up)
            case AddAddress(address):
                self._know(address.device)
                if address not in self.addresses:
                    self.addresses.append(address)
            case DropAddress(address):
                self.addresses = [one for one in self.addresses if one != address]
                self.routes = [one for one in self.routes if self._is_reached(one)]
            case AddRoute(route):
                if not self._is_reached(route):
                    raise DriverError(f"the kernel refuses a change of {route.device}: ENETUNREACH")
                self.routes.append(route)
            case DropRoute(route):
                self.routes = [one for one in self.routes if one != route]

    def _know(self, name: str) -> Device:
        if name not in self.devices:
            raise DriverError(f"there is no device {name}", retryable=True)
        return self.devices[name]

    def _is_reached(self, route: Route) -> bool:
        if not route.gateway or ":" in route.gateway:
            return self._know(route.device).up
        near = [ip_interface(one.value).network for one in self.addresses if one.device == route.device]
        return self._know(route.device).up and any(ip_address(route.gateway) in one for one in near)

    def _remove(self, name: str) -> None:
        if name not in self.devices:
            return
        if not self.devices[name].is_ours:
            raise DriverError(f"{name} is a device of the host's own")
        self._vanish(name)
        for one in list(self.devices.values()):
            if one.master == name:
                self.devices[one.name] = replace(one, master="", up=False)
            if one.vlan is not None and one.vlan.device == name:
                self._vanish(one.name)

    def _vanish(self, name: str) -> None:
        del self.devices[name]
        self.addresses = [one for one in self.addresses if one.device != name]
        self.routes = [one for one in self.routes if one.device != name]

    def _make(self, device: Device) -> None:
        if device.kind in self.lacks:
            raise DriverError(f"the kernel has no {device.kind} devices: is its module loaded?")
        if device.name in self.devices:
            raise DriverError(f"the kernel refuses a change of {device.name}: EEXIST")
        below = self._know(device.vlan.device) if device.vlan else None
        mtu = device.mtu or (below.mtu if below else PLAIN_MTU)
        if below is not None and mtu > below.mtu:
            raise DriverError(f"the kernel refuses a change of {device.name}: ERANGE")
        self.devices[device.name] = replace(device, mtu=mtu)

    def _set_master(self, name: str, master: str) -> None:
        known = self._know(name)
        if master:
            self.routes = [one for one in self.routes if one.device != name]
            known = replace(known, mtu=self._know(master).mtu)
        self.devices[name] = replace(known, master=master, up=True)

    def _set_mtu(self, name: str, mtu: int) -> None:
        self.devices[name] = replace(self._know(name), mtu=mtu)
        for one in list(self.devices.values()):
            if one.vlan is not None and one.vlan.device == name and one.mtu > mtu:
                self.devices[one.name] = replace(one, mtu=mtu)

    def _set_up(self, name: str, up: bool) -> None:
        self.devices[name] = replace(self._know(name), up=up)
        if not up:
            self.routes = [one for one in self.routes if one.device != name]
