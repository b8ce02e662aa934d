"""Addresses that this host answers for without being in their network, through netlink."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from pvc.node.drivers import DriverError
from pvc.node.drivers.netlink import opened, unless

if TYPE_CHECKING:
    from pyroute2 import IPRoute

OURS = 0x71
"""In IFA_PROTO, as of floating addresses, and another: those have a lifetime, and are dropped at a start."""
LOOPBACK = "lo"


class NetlinkLoopback:
    """OwnAddresses of the network namespace of the calling thread."""

    def hold(self, address: str) -> bool:
        with opened(address) as route:
            device, is_ours = _holder(route, address)
            if is_ours:
                return False
            if device:
                raise DriverError(f"{address} is an address of this node's {device} already")
            index = socket.if_nametoindex(LOOPBACK)
            route.addr("add", index=index, address=address, prefixlen=32, proto=OURS)
            return True

    def drop(self, address: str) -> bool:
        with opened(address) as route:
            _, is_ours = _holder(route, address)
            if not is_ours:
                return False
            with unless(errno.EADDRNOTAVAIL):
                route.addr("del", index=socket.if_nametoindex(LOOPBACK), address=address, prefixlen=32)
            return True


def is_served(address: str, port: int) -> bool:
    """Somebody takes connections there."""
    try:
        socket.create_connection((address, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _holder(route: IPRoute, address: str) -> tuple[str, bool]:
    """The device that has it, and whether it was given by us."""
    for one in route.get_addr(family=socket.AF_INET):
        attributes = dict(one["attrs"])
        if attributes.get("IFA_LOCAL") == address:
            return socket.if_indextoname(one["index"]), attributes.get("IFA_PROTO") == OURS
    return "", False
