"""Which node a packet for a gateway goes to, in the kernel's forwarding database, through netlink."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping

from pvc.cluster.network import GATEWAY_MAC, vxlan_name
from pvc.node.drivers import rtnetlink


class NetlinkTunnels:
    """GatewayTunnels of the network namespace of the calling thread."""

    def vteps(self, vnis: Iterable[int]) -> Mapping[int, str]:
        of = {_index(vni): vni for vni in vnis}
        return {of[index]: vtep for index, vtep in rtnetlink.tunnels_to(GATEWAY_MAC) if index in of}

    def lead(self, vni: int, vtep: str) -> None:
        if index := _index(vni):
            rtnetlink.tunnel(index, GATEWAY_MAC, vtep)


def _index(vni: int) -> int:
    """0: there is none."""
    try:
        return socket.if_nametoindex(vxlan_name(vni))
    except OSError:
        return 0
