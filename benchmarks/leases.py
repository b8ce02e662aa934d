"""How soon a lease is in the store, and what that costs: python3 -m benchmarks.leases (as root)

A real dnsmasq with real clients in network namespaces that are made for it; the store is in memory, and
systemd is played. What is compared is of the same run: a shell and a Python that do nothing.
"""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

from pvc.clock import SystemClock
from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.membership import Primary
from pvc.cluster.store import Create, Op
from pvc.node.dhcp import DHCP
from pvc.node.loop import Loop
from pvc.node.services import Commit, Service, Services
from tests.contract.test_name_servers import SPEC, Bench, wire
from tests.fakes.store import MemoryCluster

CLIENTS = 20
"""As many as are heard without delay: see pvc.node.drivers.dnsmasq."""
LEASES = (10, 100, 1_000)


def seconds(act: Callable[[], object], times: int) -> float:
    """The median of so many."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


class Timed:
    """Knows when the last commit was done."""

    def __init__(self, commit: Commit) -> None:
        self.commit, self.done, self.at_ns = commit, threading.Event(), 0

    def __call__(self, *ops: Op) -> None:
        self.commit(*ops)
        self.at_ns = time.time_ns()
        self.done.set()


def latencies(bench: Bench) -> list[float]:
    """Seconds from dnsmasq's having written a lease to its being in the store."""
    store = MemoryCluster().connect()
    for path in paths.LAYOUT:
        store.commit(Create(path))
    store.commit(Create(paths.PRIMARY, dumps(Primary("n1", 1, 0)), ephemeral=True))
    store.commit(Create(paths.network(101), dumps(SPEC)), Create(paths.network_leases(101)))
    loop = Loop("services", SystemClock())
    bench.servers._wake = loop.wake
    timed: list[Timed] = []

    def services(commit: Commit) -> Sequence[Service]:
        timed.append(Timed(commit))
        return (DHCP(bench.servers, timed[0], SystemClock()),)

    made = Services("n1", store, services, lambda problems: None, loop.wake)
    made.step()
    loop.start(made.step)
    taken = []
    file = bench.root / "101/leases"
    for number in range(CLIENTS):
        timed[0].done.clear()
        assert bench.ask(f"52:54:00:00:01:{number:02x}")
        assert timed[0].done.wait(10), "it did not come"
        taken.append((timed[0].at_ns - file.stat().st_mtime_ns) / 1e9)
    loop.close()
    return taken


def rounds(bench: Bench) -> None:
    """What a round costs in which nothing changed, and one in which a lease did."""
    from pvc.cluster.clients import Clients, Lease
    from pvc.cluster.cluster import ClusterSpec
    from pvc.node.plan_dhcp import lease_file
    from pvc.node.services import Scene

    for count in LEASES:
        leases = {
            address: Lease(address, f"52:54:00:00:{number // 256:02x}:{number % 256:02x}", until=2e9)
            for number in range(count)
            if (address := f"10.101.{number // 250}.{number % 250 + 1}")
        }
        clients = Clients(SPEC, leases=leases)
        scene = Scene(ClusterSpec("bench"), {}, {101: clients})
        service = DHCP(bench.servers, lambda *ops: None, SystemClock())
        service.serve(scene)
        idle = seconds(lambda scene=scene, service=service: service.serve(scene), 20)  # type: ignore[misc]
        text = lease_file(leases)
        (bench.root / "101/leases").write_text(text)

        def told(service: DHCP = service, scene: Scene = scene) -> None:
            bench.servers._changed.add(101)
            service.serve(scene)

        busy = seconds(told, 20)
        print(f"{count:>6} leases: a round {idle * 1000:6.2f} ms, with a lease {busy * 1000:6.2f} ms")
        service.rest()


def main() -> None:
    shell = seconds(lambda: subprocess.run(["sh", "-c", ":"], check=True), 50)
    python = seconds(lambda: subprocess.run(["python3", "-I", "-c", "pass"], check=True), 20)
    with wire() as root:
        bench = Bench(root)
        try:
            taken = sorted(latencies(bench))
        finally:
            bench.systemd.close()
        bench.servers.stop([101])
        bench.servers.forget()
        rounds(bench)
        bench.systemd.close()
    median, worst = statistics.median(taken), taken[-1]
    print(f"lease to store: median {median * 1000:.1f} ms, worst of {CLIENTS} {worst * 1000:.1f} ms")
    print(f"sh that does nothing {shell * 1000:.1f} ms, python3 -I {python * 1000:.1f} ms")
    print(f"ratios: lease to store {median / shell:.1f} x sh, {median / python:.2f} x python3")


if __name__ == "__main__":
    main()
