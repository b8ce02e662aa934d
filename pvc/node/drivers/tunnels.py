"""Which node a packet for a gateway goes to, in the kernel's forwarding database, through netlink."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Mapping

from pvc.cluster.network import GATEWAY_MAC, vxlan_name
from pvc.node.drivers import rtnetlink
from pvc.node.drivers.netlink import opened, unless

STATE, FLAGS = 0x40 | 0x02, 0x02 | 0x10
"""As routing makes it: NUD_NOARP and NUD_REACHABLE, NTF_SELF and NTF_EXT_LEARNED."""


class NetlinkTunnels:
    """GatewayTunnels of the network namespace of the calling thread."""

    def vteps(self, vnis: Iterable[int]) -> Mapping[int, str]:
        of = {_index(vni): vni for vni in vnis}
        return {of[index]: vtep for index, vtep in rtnetlink.tunnels_to(GATEWAY_MAC) if index in of}

    def lead(self, vni: int, vtep: str) -> None:
        index = _index(vni)
        if not index:
            return
        with opened(f"to lead elsewhere with network {vni}") as route, unless(errno.ENOENT, errno.ENODEV):
            about = {"family": socket.AF_BRIDGE, "state": STATE, "flags": FLAGS}
            route.neigh("change", ifindex=index, lladdr=GATEWAY_MAC, dst=vtep, **about)


def _index(vni: int) -> int:
    """0: there is none."""
    try:
        return socket.if_nametoindex(vxlan_name(vni))
    except OSError:
        return 0
