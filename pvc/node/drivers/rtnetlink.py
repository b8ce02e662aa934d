"""What the kernel says of links, addresses and tunnels, read in bulk: thousands of them in a moment.

Only what is asked for is decoded. Changes of single ones go through pyroute2.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from pvc.node.drivers import DriverError

RTM_DELLINK, RTM_GETLINK, RTM_GETADDR, RTM_NEWROUTE, RTM_GETROUTE = 17, 18, 22, 24, 26
RTM_GETNEIGH = 30
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR = 0x1, 0x4, 0x300, 0x10
NLA_TYPE = 0x3FFF
HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
LINK = struct.Struct("=BxHiII")
ADDRESS = struct.Struct("=BBBBI")
ROUTE = struct.Struct("=BBBBBBBBI")
NEIGHBOUR = struct.Struct("=BxxxiHBB")
BUFFER = 1 << 18
TRIES = 5
TIMEOUT_S = 5.0
LONG_S = 60.0
"""To remove thousands of links."""

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER = 1, 3, 4, 10
IFLA_LINKINFO, IFLA_AF_SPEC, IFLA_GROUP, IFLA_EXT_MASK = 18, 26, 27, 29
IFLA_INFO_KIND = 1
IFLA_INET_CONF, IFLA_INET6_CONF = 1, 2
RTEXT_FILTER_SKIP_STATS = 8
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF = 1, 4
NDA_DST, NDA_LLADDR = 1, 2

Attributes = dict[int, memoryview]


@dataclass(frozen=True, slots=True)
class RawLink:
    index: int
    name: str
    flags: int
    mtu: int
    mac: str
    group: int
    master: int
    ipv4: tuple[int, ...]
    """The settings of /proc/sys/net/ipv4/conf; the one that the kernel calls 1 is the first, 0."""
    ipv6: tuple[int, ...]
    """Of /proc/sys/net/ipv6/conf, by the kernel's numbers; empty: without IPv6."""
    kind: str = ""
    """Like bridge; empty: hardware."""


@dataclass(frozen=True, slots=True)
class RawAddress:
    index: int
    text: str
    """Like 10.1.0.1/24."""


def links() -> list[RawLink]:
    """Raises DriverError."""
    asked = LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + struct.pack(
        "=HHI", 8, IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS
    )
    return [_link(body) for body in _dump(RTM_GETLINK, asked)]


def addresses() -> list[RawAddress]:
    """Raises DriverError."""
    found = []
    for body in _dump(RTM_GETADDR, ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        family, length, _, _, index = ADDRESS.unpack_from(body)
        if family not in (socket.AF_INET, socket.AF_INET6):
            continue
        attributes = _attributes(body[ADDRESS.size :])
        # IPv4 has the address of the other end of a point-to-point link in IFA_ADDRESS.
        value = attributes.get(IFA_LOCAL) or attributes[IFA_ADDRESS]
        found.append(RawAddress(index, f"{ip_address(bytes(value))}/{length}"))
    return found


def way_to(address: str) -> int:
    """The number of the device through which packets to it leave; 0: there is no way."""
    target = ip_address(address)
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    packed = target.packed
    asked = ROUTE.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    asked += ATTRIBUTE.pack(4 + len(packed), RTA_DST) + packed
    try:
        kind, body = _ask(RTM_GETROUTE, asked, 0)
    except OSError:
        return 0
    return _number(_attributes(body[ROUTE.size :]).get(RTA_OIF)) if kind == RTM_NEWROUTE else 0


def tunnels_to(mac: str) -> Iterator[tuple[int, str]]:
    """Each VXLAN device, by its number, that sends what is for the MAC address to a VTEP, and its address.

    Raises DriverError.
    """
    wanted = bytes.fromhex(mac.replace(":", ""))
    for body in _dump(RTM_GETNEIGH, NEIGHBOUR.pack(socket.AF_BRIDGE, 0, 0, 0, 0)):
        attributes = _attributes(body[NEIGHBOUR.size :])
        if NDA_DST in attributes and bytes(attributes.get(NDA_LLADDR, b"")) == wanted:
            yield NEIGHBOUR.unpack_from(body)[1], str(ip_address(bytes(attributes[NDA_DST])))


def remove_group(group: int) -> None:
    """Every link that is in it. Done already where there is none."""
    asked = LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + struct.pack("=HHI", 8, IFLA_GROUP, group)
    try:
        _ask(RTM_DELLINK, asked, NLM_F_ACK)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise DriverError(
                f"the kernel refuses to remove links: {error.strerror}", retryable=True
            ) from None


def _ask(kind: int, asked: bytes, flags: int) -> tuple[int, memoryview]:
    """One question, one answer. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as wire:
        wire.settimeout(LONG_S)
        wire.bind((0, 0))
        wire.send(HEADER.pack(HEADER.size + len(asked), kind, NLM_F_REQUEST | flags, 1, 0) + asked)
        answer, _, body = next(_messages(memoryview(wire.recv(BUFFER))))
    if answer == NLMSG_ERROR and (number := -struct.unpack_from("=i", body)[0]):
        raise OSError(number, os.strerror(number))
    return answer, body


def _link(body: memoryview) -> RawLink:
    _, _, index, flags, _ = LINK.unpack_from(body)
    attributes = _attributes(body[LINK.size :])
    families = _attributes(attributes[IFLA_AF_SPEC]) if IFLA_AF_SPEC in attributes else {}
    return RawLink(
        index=index,
        name=_text(attributes[IFLA_IFNAME]),
        flags=flags,
        mtu=_number(attributes.get(IFLA_MTU)),
        mac=bytes(attributes.get(IFLA_ADDRESS, b"")).hex(":"),
        group=_number(attributes.get(IFLA_GROUP)),
        master=_number(attributes.get(IFLA_MASTER)),
        ipv4=_numbers(families.get(socket.AF_INET), IFLA_INET_CONF),
        ipv6=_numbers(families.get(socket.AF_INET6), IFLA_INET6_CONF),
        kind=_text(_attributes(attributes.get(IFLA_LINKINFO, memoryview(b""))).get(IFLA_INFO_KIND)),
    )


def _text(value: memoryview | None) -> str:
    return bytes(value or b"").rstrip(b"\0").decode()


def _number(value: memoryview | None) -> int:
    return int(struct.unpack("=I", value)[0]) if value is not None else 0


def _numbers(family: memoryview | None, which: int) -> tuple[int, ...]:
    if family is None or (values := _attributes(family).get(which)) is None:
        return ()
    return struct.unpack(f"={len(values) // 4}i", values[: len(values) // 4 * 4])


def _attributes(data: memoryview) -> Attributes:
    found: Attributes = {}
    at, end = 0, len(data)
    while at + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            break
        found[kind & NLA_TYPE] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def _dump(kind: int, asked: bytes) -> list[memoryview]:
    """Again where something changed meanwhile: half of a dump may be old then."""
    try:
        for _ in range(TRIES):
            found, is_whole = _dump_once(kind, asked)
            if is_whole:
                return found
    except OSError as error:
        raise DriverError(f"no netlink: {error.strerror or error}", retryable=True) from None
    raise DriverError("the networks of this host change too fast to be looked at", retryable=True)


def _dump_once(kind: int, asked: bytes) -> tuple[list[memoryview], bool]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as wire:
        wire.settimeout(TIMEOUT_S)
        wire.bind((0, 0))
        wire.send(HEADER.pack(HEADER.size + len(asked), kind, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + asked)
        found: list[memoryview] = []
        is_whole = True
        while True:
            for what, flags, body in _messages(memoryview(wire.recv(BUFFER))):
                if what == NLMSG_ERROR:
                    number = -struct.unpack_from("=i", body)[0]
                    raise OSError(number, os.strerror(number))
                is_whole = is_whole and not flags & NLM_F_DUMP_INTR
                if what == NLMSG_DONE:
                    return found, is_whole
                found.append(body)


def _messages(data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, flags, _, _ = HEADER.unpack_from(data, at)
        yield kind, flags, data[at + HEADER.size : at + length]
        at += (length + 3) & ~3
