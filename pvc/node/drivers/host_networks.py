"""The networks of this host itself, through netlink: bonds, VLANs, addresses, default routes."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvc.cluster.network import GATEWAY_GROUP, HOST_GROUP, LINK_GROUP
from pvc.node.drivers import DriverError, rtnetlink
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
from pvc.node.drivers.links import SYSCTL
from pvc.node.drivers.netlink import (
    IFA_F_NODAD,
    IFF_LOOPBACK,
    IFF_UP,
    done_already,
    index_of,
    opened,
    unsupported,
)
from pvc.node.drivers.networks import Vlan

if TYPE_CHECKING:
    from pyroute2 import IPRoute

OURS = HOST_GROUP
"""The group of bonds and VLANs of the node itself, given in the very call that makes them."""
FOR_VMS = (LINK_GROUP, GATEWAY_GROUP)
IFA_F_PERMANENT = 0x80
RT_TABLE_MAIN, RTN_UNICAST, RT_SCOPE_LINK = 254, 1, 253
LEARNED = frozenset((1, 2, 9, 11, 16, *range(186, 200)))
"""Protocols of routes that somebody renews: the kernel, redirects, advertisements, DHCP, routing daemons."""
MODES = {
    name: number
    for number, name in enumerate(
        (
            "balance-rr",
            "active-backup",
            "balance-xor",
            "broadcast",
            "802.3ad",
            "balance-tlb",
            "balance-alb",
        )
    )
}
MODE_NAMES = {number: name for name, number in MODES.items()}
MIIMON_MS = 100
LAYERS_3_4 = 1
HASHED = ("802.3ad", "balance-xor", "balance-tlb")
"""Modes that choose the member by what a packet is."""


class NetlinkHostNetworking:
    """HostNetworking of the network namespace of the calling thread."""

    def state(self) -> HostState:
        every = rtnetlink.links()
        names = {one.index: one.name for one in every}
        for_vms = {one.index for one in every if one.group in FOR_VMS}
        own = [one for one in every if not one.flags & IFF_LOOPBACK and not for_vms & {one.index, one.master}]
        with opened("its networks") as route:
            devices = {one.index: device for one in own for device in _devices(route, one.index, names)}
            found = {index: one.name for index, one in devices.items()}
            return HostState(
                tuple(devices.values()),
                tuple(_addresses(route.get_addr(), found)),
                tuple(_routes(_every_route(route), found)),
            )

    def take(self, step: HostStep) -> None:
        with opened(f"a change of {step.device}") as route:
            match step:
                case RemoveDevice(name):
                    _remove(route, name)
                case MakeDevice(device):
                    _make(route, device)
                case SetMaster(name, master):
                    _set_master(route, name, master)
                case SetMTU(name, mtu):
                    route.link("set", index=index_of(route, name), mtu=mtu)
                case SetUp(name, up):
                    route.link("set", index=index_of(route, name), state="up" if up else "down")
                case AddAddress(address):
                    _add_address(route, address)
                case DropAddress(address):
                    _drop_address(route, address)
                case AddRoute(wanted):
                    done_already(errno.EEXIST, lambda: route.route("add", **route_about(route, wanted)))
                case DropRoute(wanted):
                    done_already(errno.ESRCH, lambda: route.route("del", **route_about(route, wanted)))


# Reading


def _devices(route: IPRoute, index: int, names: Mapping[int, str]) -> list[Device]:
    """The one; none where it has gone meanwhile."""
    found: list[Any] = []
    done_already(errno.ENODEV, lambda: found.extend(route.get_links(index)))
    return [device_of(one["flags"], dict(one["attrs"]), names) for one in found]


def device_of(flags: int, attributes: Mapping[str, Any], names: Mapping[int, str]) -> Device:
    told = attributes.get("IFLA_LINKINFO")
    info = dict(told["attrs"]) if told else {}
    kind = str(info.get("IFLA_INFO_KIND") or "")
    nested = info.get("IFLA_INFO_DATA") if kind in ("bond", "vlan") else None
    data = dict(nested["attrs"]) if nested else {}
    below = names.get(attributes.get("IFLA_LINK", 0), "")
    return Device(
        name=str(attributes["IFLA_IFNAME"]),
        kind=kind,
        mtu=int(attributes["IFLA_MTU"]),
        up=bool(flags & IFF_UP),
        master=names.get(attributes.get("IFLA_MASTER", 0), ""),
        mode=MODE_NAMES.get(data.get("IFLA_BOND_MODE", -1), ""),
        vlan=Vlan(int(data["IFLA_VLAN_ID"]), below) if kind == "vlan" else None,
        is_ours=attributes.get("IFLA_GROUP") == OURS,
    )


def _addresses(every: Any, names: Mapping[int, str]) -> Iterator[DeviceAddress]:
    """Those that nobody has to renew."""
    for one in every:
        if one["index"] not in names:
            continue
        attributes = dict(one["attrs"])
        if not attributes.get("IFA_FLAGS", one["flags"]) & IFA_F_PERMANENT:
            continue
        value = attributes.get("IFA_LOCAL") or attributes["IFA_ADDRESS"]
        interface = ip_interface(f"{value}/{one['prefixlen']}")
        if not interface.is_link_local:
            protocol = int(attributes.get("IFA_PROTO") or 0)
            yield DeviceAddress(str(interface), names[one["index"]], protocol)


def _every_route(route: IPRoute) -> Iterator[Any]:
    for family in (socket.AF_INET, socket.AF_INET6):
        yield from route.get_routes(family=family, table=RT_TABLE_MAIN)


def _routes(every: Iterator[Any], names: Mapping[int, str]) -> Iterator[Route]:
    for one in every:
        if one["type"] != RTN_UNICAST or one["proto"] in LEARNED:
            continue
        attributes = dict(one["attrs"])
        device = names.get(attributes.get("RTA_OIF", 0))
        if device is None:
            continue
        everything = "0.0.0.0" if one["family"] == socket.AF_INET else "::"
        to = ip_network(f"{attributes.get('RTA_DST', everything)}/{one['dst_len']}")
        gateway, metric = attributes.get("RTA_GATEWAY") or "", attributes.get("RTA_PRIORITY", 0)
        yield Route(str(to), str(gateway), device, int(one["proto"]), int(metric))


# Changing


def _remove(route: IPRoute, name: str) -> None:
    if not route.link_lookup(ifname=name):
        return
    index = index_of(route, name)
    groups = [dict(one["attrs"]).get("IFLA_GROUP") for one in route.get_links(index)]
    if groups != [OURS]:
        raise DriverError(f"{name} is a device of the host's own")
    route.link("del", index=index)


def _make(route: IPRoute, device: Device) -> None:
    about = made_of(device, lambda name: index_of(route, name))
    with unsupported(f"the kernel has no {device.kind} devices: is its module loaded?"):
        route.link("add", **about)
    if device.up:
        route.link("set", index=index_of(route, device.name), state="up")


def made_of(device: Device, index: Callable[[str], int]) -> dict[str, Any]:
    """A device of ours, as it is asked for from the kernel."""
    about: dict[str, Any] = {"ifname": device.name, "group": OURS, "kind": device.kind}
    if device.mtu:
        about["mtu"] = device.mtu
    if device.vlan is not None:
        return {**about, "link": index(device.vlan.device), "vlan_id": device.vlan.number}
    about |= {"bond_mode": MODES[device.mode], "bond_miimon": MIIMON_MS}
    if device.mode in HASHED:
        about["bond_xmit_hash_policy"] = LAYERS_3_4
    return about


def _set_master(route: IPRoute, name: str, master: str) -> None:
    """A bond takes only what is down, and leaves down what it lets go."""
    index = index_of(route, name)
    if master:
        route.link("set", index=index, state="down")
    route.link("set", index=index, master=index_of(route, master) if master else 0)
    route.link("set", index=index, state="up")


def _add_address(route: IPRoute, address: DeviceAddress) -> None:
    value, index = ip_interface(address.value), index_of(route, address.device)
    more = {"proto": address.protocol} if address.protocol else {}
    if value.version == 6:
        # Services bind to it at once; and who has it is said here, not found out.
        more["flags"] = IFA_F_NODAD
        _allow_ipv6(address.device)
    done_already(
        errno.EEXIST,
        lambda: route.addr(
            "add", index=index, address=str(value.ip), prefixlen=value.network.prefixlen, **more
        ),
    )


def _allow_ipv6(device: str) -> None:
    """A host may have it off where nobody configured it."""
    file = SYSCTL / "ipv6" / "conf" / device / "disable_ipv6"
    with suppress(OSError):
        if file.read_text().strip() == "1":
            file.write_text("0")


def _drop_address(route: IPRoute, address: DeviceAddress) -> None:
    value = ip_interface(address.value)
    if value.version == 4:
        _spare_neighbours(SYSCTL / "ipv4" / "conf" / address.device / "promote_secondaries")
    done_already(
        errno.EADDRNOTAVAIL,
        lambda: route.addr(
            "del",
            index=index_of(route, address.device),
            address=str(value.ip),
            prefixlen=value.network.prefixlen,
        ),
    )


def _spare_neighbours(file: Path) -> None:
    """Else the other addresses of its network, floating ones too, go with the first."""
    try:
        file.write_text("1")
    except OSError as error:
        raise DriverError(f"{file} cannot be set: {error.strerror}", retryable=True) from None


def route_about(route: IPRoute, wanted: Route) -> dict[str, Any]:
    about: dict[str, Any] = {
        "family": socket.AF_INET6 if ":" in wanted.to else socket.AF_INET,
        "dst": wanted.to,
        "oif": index_of(route, wanted.device),
        "proto": wanted.protocol,
        "table": RT_TABLE_MAIN,
    }
    if wanted.metric:
        about["priority"] = wanted.metric
    if wanted.gateway:
        about["gateway"] = wanted.gateway
    elif ":" not in wanted.to:
        about["scope"] = RT_SCOPE_LINK
    return about
