"""What a node's networks cost with 1, 100 and 1,000 of them: python3 -m benchmarks.networks (as root)

The real links of a network namespace that is made for it; the store and FRR are in memory.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory

from pvc.clock import SystemClock
from pvc.cluster import paths
from pvc.cluster.clients import Clients
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.codec import dumps
from pvc.cluster.network import IPv4, IPv6, Kind, NetworkSpec, bridge_name
from pvc.cluster.store import Create, Delete
from pvc.node.drivers import rtnetlink
from pvc.node.drivers.gateways import NetlinkGateways
from pvc.node.drivers.links import OURS, NetlinkLinks
from pvc.node.drivers.networks import Link
from pvc.node.drivers.tunnels import NetlinkTunnels
from pvc.node.gateway import Gateways
from pvc.node.gateway_ways import GatewayWays
from pvc.node.network import Networks
from pvc.node.path_mtu import PathMTU
from pvc.node.routing import Speaking
from pvc.node.services import Scene
from tests.contract.test_addresses import enter, ip
from tests.fakes.routing import FakeRouting
from tests.fakes.store import MemoryCluster, MemoryStore

SIZES = (1, 100, 1_000)
NAMESPACE = f"pvc-{os.getpid()}-bench"


@dataclass
class CountedLinks(NetlinkLinks):
    calls: Counter[str] = field(default_factory=Counter)

    def links(self) -> Mapping[str, Link]:
        self.calls["look"] += 1
        return super().links()

    def add(self, link: Link) -> None:
        self.calls["change"] += 1
        super().add(link)

    def change(self, link: Link) -> None:
        self.calls["change"] += 1
        super().change(link)

    def remove(self, name: str) -> None:
        self.calls["change"] += 1
        super().remove(name)


def measured(networks: Networks, links: CountedLinks, what: str) -> None:
    links.calls.clear()
    networks.links_due = 0.0
    began = time.monotonic()
    networks.step()
    taken = time.monotonic() - began
    assert networks.published is not None
    assert not networks.published.problems, networks.published.problems[:3]
    print(f"    {what:<28} {taken:8.3f} s   {links.calls['change']:5} calls that change")


def measure(count: int) -> None:
    print(f"{count} networks")
    store = MemoryCluster().connect()
    store.commit(*(Create(path) for path in (paths.ROOT, paths.NETWORKS, paths.NODES)))
    links = CountedLinks()
    clock = SystemClock()
    path_mtu = PathMTU(lambda address, payload: True, clock, lambda: None, lambda: None)
    speaking = Speaking(FakeRouting(), lambda: None, lambda: None)
    ways = GatewayWays(NetlinkTunnels(), clock)
    networks = Networks(
        "10.9.0.1", "", store, links, speaking, clock, lambda found: None, lambda: None, path_mtu, ways
    )
    specs = [NetworkSpec(vni, f"net{vni}", Kind.MANAGED) for vni in range(1001, 1001 + count)]
    store.commit(*(Create(paths.network(spec.vni), dumps(spec)) for spec in specs))
    measured(networks, links, "make them")
    measured(networks, links, "look again")
    _one_more(store)
    measured(networks, links, "make one more")
    store.commit(*(Delete(paths.network(name)) for name in store.children(paths.NETWORKS)))
    measured(networks, links, "remove them")


def measure_gateways(count: int) -> None:
    """A take-over, a round that finds nothing, and the end of the role; with as many bridges."""
    specs = [_routed(vni) for vni in range(1, count + 1)]
    scene = Scene(ClusterSpec("bench"), {}, {spec.vni: Clients(spec) for spec in specs})
    links = NetlinkLinks()
    for spec in specs:
        links.add(Link(bridge_name(spec.vni), "bridge", 8950, is_quiet=True, is_ours=True))
    with TemporaryDirectory() as where:
        host = NetlinkGateways(f"{where}/before")
        bridges = {spec.vni: 8950 for spec in specs}
        gateways = Gateways(host, lambda: bridges, lambda vni: True, SystemClock(), lambda: None)
        timed("take over the gateways", lambda: gateways.serve(scene))
        timed("a round, unchanged", lambda: gateways.serve(scene))
        gateways.due = 0.0
        timed("look again", lambda: gateways.serve(scene))
        timed("announce them", lambda: gateways.announce())
        timed("give them up", gateways.rest)
        assert not host.gateways()
    rtnetlink.remove_group(OURS)


def _routed(vni: int) -> NetworkSpec:
    high, low = divmod(vni, 250)
    return NetworkSpec(
        vni,
        f"net{vni}",
        Kind.MANAGED,
        ipv4=IPv4(f"10.{high}.{low}.0/24", f"10.{high}.{low}.1"),
        ipv6=IPv6(f"fd00:{vni:x}::/64", f"fd00:{vni:x}::1"),
    )


def timed(what: str, act: Callable[[], object]) -> None:
    began = time.monotonic()
    act()
    print(f"    {what:<28} {time.monotonic() - began:8.3f} s")


def _one_more(store: MemoryStore) -> None:
    store.commit(Create(paths.network(999), dumps(NetworkSpec(999, "more", Kind.MANAGED))))


def in_namespace(act: Callable[[], None]) -> None:
    ip("netns", "add", NAMESPACE)
    try:
        ip("-n", NAMESPACE, "link", "add", "clu", "mtu", "9000", "type", "veth", "peer", "name", "other")
        ip("-n", NAMESPACE, "link", "set", "clu", "up")
        ip("-n", NAMESPACE, "address", "add", "10.9.0.1/24", "dev", "clu")
        with ThreadPoolExecutor(1, initializer=enter, initargs=(NAMESPACE,)) as inside:
            inside.submit(act).result()
    finally:
        subprocess.run(["ip", "netns", "del", NAMESPACE], check=False)


def measure_all() -> None:
    for count in SIZES:
        measure(count)
        measure_gateways(count)


def main() -> None:
    in_namespace(measure_all)


if __name__ == "__main__":
    main()
