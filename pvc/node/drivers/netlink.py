"""This host's floating addresses, through netlink: the only importer of pyroute2."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_interface

from pyroute2 import IPRoute, NetlinkError

from pvc.clock import Clock, SystemClock
from pvc.cluster.addresses import Interface, device_for
from pvc.node.drivers import DriverError
from pvc.node.drivers.networks import TooLate

OURS = 0x70
"""In IFA_PROTO, which the kernel keeps for each address since 5.18: whose it is, over our restarts too."""
LATE_S = 0.5
"""The lifetime is in whole seconds, from when the kernel gets it: by so much it may end too late."""
IFF_UP, IFF_LOOPBACK = 0x1, 0x8
IFA_F_NODAD = 0x2
ETH_P_ARP = 0x0806
BROADCAST = b"\xff" * 6
ALL_NODES = "ff02::1"
ROUTER, OVERRIDE = 0x80000000, 0x20000000


@dataclass(frozen=True, slots=True)
class _Address:
    value: Interface
    device: str
    index: int
    is_ours: bool
    is_usable: bool
    """Its device is up, and leads to others."""


class NetlinkAddresses:
    """HostAddresses of the network namespace of the calling thread."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()

    def hold(self, address: str, until: float) -> bool:
        wanted = ip_interface(address)
        with opened(address) as route:
            every = _addresses(route)
            before = _same(wanted, every)
            for one in before:
                if not one.is_ours:
                    raise DriverError(f"{address} is an address of {one.device} already, and no floating one")
            index = _place(wanted, every)
            stay = [one for one in before if one.index == index and one.value == wanted]
            for one in before:
                if one not in stay:
                    _remove(route, one)
            self._give(route, wanted, index, until)
        return not stay

    def _give(self, route: IPRoute, wanted: Interface, index: int, until: float) -> None:
        """Deprecated from the start: the host's own connections keep their own address.

        Who is halted between the look at the clock and the kernel gives it for too long. So the clock is
        looked at once more, before anything else is done.
        """
        seconds = int(until - self.clock.monotonic())
        if seconds < 1:
            raise TooLate(f"nothing confirms any more that {wanted} belongs here")
        route.addr(
            "replace",
            index=index,
            address=str(wanted.ip),
            prefixlen=wanted.network.prefixlen,
            valid_lft=seconds,
            preferred_lft=0,
            proto=OURS,
            # Nobody else has it, and the wait for an answer is a second without an address.
            flags=IFA_F_NODAD if wanted.version == 6 else 0,
        )
        if self.clock.monotonic() + seconds > until + LATE_S:
            for one in _same(wanted, _addresses(route)):
                _remove(route, one)
            raise TooLate(f"this daemon stood still while it took {wanted}")

    def drop(self, address: str) -> None:
        with opened(address) as route:
            for one in _same(ip_interface(address), _addresses(route)):
                if one.is_ours:
                    _remove(route, one)

    def held(self) -> dict[str, str]:
        with opened("addresses") as route:
            return {str(one.value): one.device for one in _addresses(route) if one.is_ours}

    def announce(self, address: str) -> None:
        device = self.held().get(address)
        if device is None:
            return
        value = ip_interface(address)
        try:
            tell(device, value)
        except OSError as error:
            raise DriverError(f"{address} cannot be announced on {device}: {error.strerror}") from None


@contextmanager
def opened(what: str) -> Iterator[IPRoute]:
    """The kernel's networks; what it refuses is a DriverError about `what`."""
    try:
        with IPRoute() as route, refused(what):
            yield route
    except OSError as error:
        raise DriverError(f"no netlink: {error.strerror}", retryable=True) from None


@contextmanager
def refused(what: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        said = errno.errorcode.get(error.code, str(error.code))
        raise DriverError(f"the kernel refuses {what}: {said}", retryable=True) from None


def done_already(code: int, act: Callable[[], object]) -> None:
    """What the kernel refuses with this is so already."""
    try:
        act()
    except NetlinkError as error:
        if error.code != code:
            raise


@contextmanager
def unless(*codes: int) -> Iterator[None]:
    """These refusals mean that there is nothing to be done."""
    try:
        yield
    except NetlinkError as error:
        if error.code not in codes:
            raise


@contextmanager
def unsupported(words: str) -> Iterator[None]:
    """What is said when the kernel does not know something at all."""
    try:
        yield
    except NetlinkError as error:
        if error.code != errno.EOPNOTSUPP:
            raise
        raise DriverError(words) from None


def index_of(route: IPRoute, name: str) -> int:
    found = route.link_lookup(ifname=name)
    if not found:
        raise DriverError(f"there is no device {name}", retryable=True)
    return found[0]


def _addresses(route: IPRoute) -> list[_Address]:
    links = {link["index"]: (dict(link["attrs"])["IFLA_IFNAME"], link["flags"]) for link in route.get_links()}
    found = []
    for one in route.get_addr():
        attributes, index = dict(one["attrs"]), one["index"]
        if index not in links or one["family"] not in (socket.AF_INET, socket.AF_INET6):
            continue
        device, flags = links[index]
        # IPv4 has the address of the other end of a point-to-point link in IFA_ADDRESS.
        value = attributes.get("IFA_LOCAL") or attributes["IFA_ADDRESS"]
        found.append(
            _Address(
                value=ip_interface(f"{value}/{one['prefixlen']}"),
                device=device,
                index=index,
                is_ours=attributes.get("IFA_PROTO") == OURS,
                is_usable=bool(flags & IFF_UP) and not flags & IFF_LOOPBACK,
            )
        )
    return found


def _same(wanted: Interface, addresses: list[_Address]) -> list[_Address]:
    return [one for one in addresses if one.value.ip == wanted.ip]


def _place(wanted: Interface, addresses: list[_Address]) -> int:
    """The device where the host itself has an address of that network."""
    own = [one for one in addresses if one.is_usable and not one.is_ours]
    device = device_for(wanted, ((one.device, one.value) for one in own))
    if device is None:
        raise DriverError(f"no network device of this node has an address in the network of {wanted}")
    return next(one.index for one in own if one.device == device)


def _remove(route: IPRoute, one: _Address) -> None:
    with unless(errno.EADDRNOTAVAIL, errno.ENODEV):
        route.addr("del", index=one.index, address=str(one.value.ip), prefixlen=one.value.network.prefixlen)


# Announcing


def tell(device: str, address: Interface, *, is_router: bool = False) -> None:
    """All on the device's network, whose the address is. Raises OSError."""
    if address.version == 4:
        _gratuitous_arp(device, address.ip.packed)
    else:
        _unsolicited_advertisement(device, str(address.ip), ROUTER if is_router else 0)


def _gratuitous_arp(device: str, address: bytes) -> None:
    """A request for one's own address: RFC 5227 calls it an announcement; all who know the address learn."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP)) as wire:
        wire.bind((device, ETH_P_ARP))
        mac: bytes = wire.getsockname()[4]
        ethernet = BROADCAST + mac + struct.pack("!H", ETH_P_ARP)
        request = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
        wire.send(ethernet + request + mac + address + bytes(6) + address)


def _unsolicited_advertisement(device: str, address: str, flags: int) -> None:
    """RFC 4861, 7.2.6: it overrides what neighbours know. Of a router it has to say that it is one."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
        wire.bind((device, 0))
        mac: bytes = wire.getsockname()[4]
    target = socket.inet_pton(socket.AF_INET6, address)
    message = struct.pack("!BBHI", 136, 0, 0, flags | OVERRIDE) + target + bytes([2, 1]) + mac
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as wire:
        wire.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        index = socket.if_nametoindex(device)
        wire.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        wire.bind((address, 0, 0, index))
        wire.sendto(message, (ALL_NODES, 0))
