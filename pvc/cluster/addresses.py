"""Floating addresses: how they are written, and on which device of a host each belongs. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from pvc.errors import Invalid

Interface = IPv4Interface | IPv6Interface


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


def device_for(wanted: Interface, own: Iterable[tuple[str, Interface]]) -> str | None:
    """Of a host's devices with their own addresses, the one in whose network the address is."""
    best: tuple[int, str] | None = None
    for device, address in own:
        if address.version == wanted.version and wanted.ip in address.network:
            length = address.network.prefixlen
            if best is None or length > best[0]:
                best = length, device
    return best[1] if best else None
