"""Names for the world: many networks, one lease that comes, and a round in which nothing did.

python -m benchmarks.names [--networks 1000] [--guests 50]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from pvc.cluster import paths
from pvc.cluster.clients import Clients, Lease, Member
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.network import IPv4, IPv6, Kind, NetworkSpec
from pvc.cluster.node import NodeRole, NodeSpec
from pvc.cluster.store import Create
from pvc.node.drivers.networks import Answering
from pvc.node.drivers.powerdns import PowerDNS
from pvc.node.names import Names
from pvc.node.services import Scene
from pvc.proc import Completed
from tests.fakes.store import MemoryCluster

ROUNDS = 20


def a_network(vni: int, guests: int) -> Clients:
    four, six = int(ip_address("10.0.0.0")) + vni * 256, f"fd00:{vni:x}::"
    spec = NetworkSpec(
        vni,
        f"net{vni}",
        Kind.MANAGED,
        domain=f"net{vni}.example",
        ipv4=IPv4(f"{ip_address(four)}/24", str(ip_address(four + 1))),
        ipv6=IPv6(f"{six}/64", f"{six}1"),
    )
    macs = [f"02:00:00:{vni >> 8:02x}:{vni & 255:02x}:{guest:02x}" for guest in range(guests)]
    members = {f"uuid-{vni}-{guest}": Member(f"vm{guest}", (mac,)) for guest, mac in enumerate(macs)}
    leases = [Lease(str(ip_address(four + 10 + guest)), mac) for guest, mac in enumerate(macs)]
    return Clients(spec, members, leases={one.address: one for one in leases})


def never(argv: list[str], /, *, check: bool = True, timeout_s: float = 0.0) -> Completed:
    """Instead of systemd and pdns_control."""
    return Completed(0, "", "")


class Running(PowerDNS):
    """Without a process."""

    def serve(self, wanted: Answering) -> bool:
        return False

    def life(self) -> int:
        return 1


def took(what: str, act: Callable[[], object]) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    act()
    wall, spent = time.perf_counter() - began, time.process_time() - cpu
    print(f"  {what:<48} {1000 * wall:9.1f} ms  ({1000 * spent:.1f} ms of CPU)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=1000)
    parser.add_argument("--guests", type=int, default=50)
    given = parser.parse_args()
    store = MemoryCluster().connect()
    store.commit(*(Create(path) for path in paths.LAYOUT))
    nodes = {"n1": NodeSpec("n1", "10.255.0.1", "10.255.0.1", NodeRole.COORDINATOR)}
    cluster = ClusterSpec("test", dns_domain="pvc.example", upstream_address="192.0.2.250/24")
    networks = {vni: a_network(vni, given.guests) for vni in range(1, given.networks + 1)}
    scene = Scene(cluster, nodes, networks)
    print(f"{given.networks} networks of {given.guests} guests, each with an IPv4 and an IPv6 prefix")
    with tempfile.TemporaryDirectory() as root:
        server = Running(root, never, os.getgid())
        names = Names("n1", store, store.commit, server, time.time)
        took("take-over: zones, serials, a new file", lambda: names.serve(scene))
        files = list(Path(root).rglob("*.sqlite3*"))
        print(f"  the file: {sum(path.stat().st_size for path in files) / 2**20:.1f} MiB")
        idle, leases = [], []
        for number in range(ROUNDS):
            began = time.perf_counter()
            names.serve(Scene(cluster, dict(nodes), dict(networks)))
            idle.append(time.perf_counter() - began)
            clients = networks[7]
            lease = Lease(f"10.0.7.{200 + number}", f"02:ff:00:00:00:{number:02x}", f"guest{number}")
            networks[7] = replace(clients, leases={**clients.leases, lease.address: lease})
            began = time.perf_counter()
            names.serve(Scene(cluster, dict(nodes), dict(networks)))
            leases.append(time.perf_counter() - began)
        print(f"  {'a round in which nothing changed':<48} {1000 * statistics.median(idle):9.2f} ms")
        print(f"  {'one lease, until it is answered':<48} {1000 * statistics.median(leases):9.2f} ms")
        again = Names("n1", store, store.commit, Running(root, never, os.getgid()), time.time)
        took("a daemon that starts again", lambda: again.serve(Scene(cluster, nodes, networks)))


if __name__ == "__main__":
    main()
