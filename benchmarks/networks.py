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

from pvc.clock import SystemClock
from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.network import Kind, NetworkSpec
from pvc.cluster.store import Create, Delete
from pvc.node.drivers import Link
from pvc.node.drivers.links import NetlinkLinks
from pvc.node.network import Networks
from pvc.node.path_mtu import PathMTU
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
    networks = Networks(
        "10.9.0.1", "", store, links, FakeRouting(), clock, lambda found: None, lambda: None, path_mtu
    )
    specs = [NetworkSpec(vni, f"net{vni}", Kind.MANAGED) for vni in range(1001, 1001 + count)]
    store.commit(*(Create(paths.network(spec.vni), dumps(spec)) for spec in specs))
    measured(networks, links, "make them")
    measured(networks, links, "look again")
    _one_more(store)
    measured(networks, links, "make one more")
    store.commit(*(Delete(paths.network(name)) for name in store.children(paths.NETWORKS)))
    measured(networks, links, "remove them")


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


def main() -> None:
    in_namespace(measure_all)


if __name__ == "__main__":
    main()
