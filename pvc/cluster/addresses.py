"""Floating addresses, and routers: how they are written, and on which device of a host each belongs. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface

from pvc.errors import Invalid

Interface = IPv4Interface | IPv6Interface
GREATEST_AS = 2**32 - 2


def parse(text: str) -> Interface:
    """Of "10.0.0.250/24" or "fd00::250/64". Raises Invalid."""
    try:
        found = ip_interface(text)
    except ValueError:
        found = None
    if found is None or "/" not in text or "%" in text:
        raise Invalid(
            f"{text!r} is no address with the length of its network",
            hint="like 10.0.0.250/24 or fd00::250/64",
        )
    if found.is_multicast or found.is_loopback or found.is_link_local or found.is_unspecified:
        raise Invalid(f"{text} cannot be a floating address: nobody could reach it")
    if found.max_prefixlen - found.network.prefixlen > 1 and _is_reserved(found):
        raise Invalid(f"{text} is the address of the network {found.network} itself")
    return found


def _is_reserved(address: Interface) -> bool:
    """The first one belongs to the network (IPv6: to its routers), the last one of IPv4 is broadcast."""
    network = address.network
    return address.ip == network.network_address or (
        address.version == 4 and address.ip == network.broadcast_address
    )


@dataclass(frozen=True, slots=True)
class Router:
    """One upstream, with which the coordinators speak BGP."""

    address: str
    as_number: int

    def __str__(self) -> str:
        return f"{self.address}@{self.as_number}"


def parse_router(text: str) -> Router:
    """Of "10.0.0.254@64512". Raises Invalid."""
    address, _, number = text.partition("@")
    try:
        found = ip_address(address)
    except ValueError:
        raise Invalid(
            f"{text!r} is no router", hint="like 10.0.0.254@64512: its address and its AS"
        ) from None
    if found.is_multicast or found.is_loopback or found.is_unspecified or found.is_link_local:
        raise Invalid(f"{found} cannot be a router: no node could speak with it")
    if not number.isdigit() or not 1 <= int(number) <= GREATEST_AS:
        raise Invalid(f"{text!r} has no AS number between 1 and {GREATEST_AS}", hint="like 10.0.0.254@64512")
    return Router(str(found), int(number))


def device_for(wanted: Interface, own: Iterable[tuple[str, Interface]]) -> str | None:
    """Of a host's devices with their own addresses, the one in whose network the address is."""
    best: tuple[int, str] | None = None
    for device, address in own:
        if address.version == wanted.version and wanted.ip in address.network:
            length = address.network.prefixlen
            if best is None or length > best[0]:
                best = length, device
    return best[1] if best else None
