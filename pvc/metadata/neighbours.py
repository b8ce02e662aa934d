"""Who answers for an address on a network of this host, through netlink."""

from __future__ import annotations

import errno
import socket

from pvc.node.drivers.netlink import opened, unless

NOBODY = (errno.ENOENT, errno.ENODEV)
UNUSABLE = 0x01 | 0x20 | 0x40
"""Of NUD_INCOMPLETE, NUD_FAILED and NUD_NOARP: nobody has answered."""


def mac_at(device: str, address: str) -> str:
    """The MAC address to which this host sends what is for that IPv4 address now; empty: it knows none.

    Raises DriverError.
    """
    try:
        index = socket.if_nametoindex(device)
    except OSError:
        return ""
    with opened(f"to say who is {address}") as route, unless(*NOBODY):
        (found,) = route.neigh("get", dst=address, ifindex=index, family=socket.AF_INET)
        if not found["state"] & UNUSABLE:
            return str(dict(found["attrs"]).get("NDA_LLADDR", ""))
    return ""
