"""What filters cost with 1, 100 and 1,000 rules: python3 -m benchmarks.filters (as root)

The real nftables of a network namespace that is made for it. `nft -f` alone loads the same text.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pvc.clock import SystemClock
from pvc.cluster.clients import AccessList, Clients, Direction, Rule
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.network import IPv4, Kind, NetworkSpec
from pvc.node.drivers.gateways import NetlinkGateways
from pvc.node.drivers.nft import NFT, routes
from pvc.node.filters import Filters
from pvc.node.services import Scene
from pvc.proc import Completed, run
from tests.contract.test_addresses import enter, ip

SIZES = ((1, 1), (1, 100), (1, 1_000), (1_000, 1), (1_000, 0))
"""Networks, and rules of each."""
TIMES = 7
NAMESPACE = f"pvc-{os.getpid()}-bench"


@dataclass
class Counting:
    started: Counter[str] = field(default_factory=Counter)
    text: str = ""

    def __call__(
        self, argv: list[str], /, *, stdin: str = "", check: bool = True, timeout_s: float = 60.0
    ) -> Completed:
        self.started["processes"] += 1
        self.text = stdin or self.text
        return run(argv, stdin=stdin, check=check, timeout_s=timeout_s)


def timed(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return (time.monotonic() - began) * 1000


def clients(number: int, rules: int, extra: int = 0) -> Clients:
    spec = NetworkSpec(
        1000 + number,
        f"net{number}",
        Kind.MANAGED,
        ipv4=IPv4(f"10.{number // 250}.{number % 250}.0/24", f"10.{number // 250}.{number % 250}.1"),
    )
    known = tuple(
        Rule(
            Direction.IN if n % 2 else Direction.OUT,
            f"r{n}",
            f"ip saddr 192.0.2.{n % 250} tcp dport {n + 1} accept",
            n,
        )
        for n in range(rules + extra)
    )
    return Clients(spec, access=AccessList(known, rules + extra))


def measure(networks: int, rules: int) -> None:
    nft = Counting()
    filters = Filters(NFT(nft), ("10.255.0.1",), routes, NetlinkGateways(), SystemClock())
    every = {1000 + n: clients(n, rules) for n in range(networks)}

    def serve(extra: int) -> None:
        found = {**every, 1000: clients(0, rules, extra)}
        assert not filters.serve(Scene(ClusterSpec("bench"), {}, found))

    first = timed(lambda: serve(0))
    apply = statistics.median(timed(lambda n=n: serve(1 + n % 2)) for n in range(TIMES))  # type: ignore[misc]
    serve(1)
    alone = statistics.median(timed(lambda: run(["nft", "-f", "-"], stdin=nft.text)) for _ in range(TIMES))
    serve(1)
    nft.started.clear()
    unchanged = statistics.median(timed(lambda: serve(1)) for _ in range(TIMES))
    assert not nft.started, "an unchanged round starts no process"
    print(
        f"{networks:5} networks with {rules:5} rules each: first {first:7.1f} ms,"
        f" one rule more {apply:7.1f} ms, nft -f alone {alone:7.1f} ms,"
        f" ratio {apply / alone:4.1f}, unchanged {unchanged:6.2f} ms"
    )
    filters.rest()


def measure_all() -> None:
    for networks, rules in SIZES:
        measure(networks, rules)


def main() -> None:
    ip("netns", "add", NAMESPACE)
    try:
        with ThreadPoolExecutor(1, initializer=enter, initargs=(NAMESPACE,)) as inside:
            inside.submit(measure_all).result()
    finally:
        subprocess.run(["ip", "netns", "del", NAMESPACE], check=False)


if __name__ == "__main__":
    main()
