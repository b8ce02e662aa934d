#!/usr/bin/env python3
"""A whole cluster: lab up, daemon start, live migration against libvirt's own, flush against one by one.

Runs as root, in a lab of its own. Guests are emulated where KVM does not work: the ratios are what counts.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.lab.labs import PVC, RunningLab, run_lab
from tests.lab.vms import Cluster
from tests.support import eventually

DIRECTORY = Path("/var/lib/pvc-lab-bench")
HERD = [f"herd{index}" for index in range(5)]
ROUNDS = 5


def elapsed_s(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def line(what: str, times: Sequence[float], ratio: float | None = None, promise: str = "") -> None:
    figures = f"{statistics.median(times):8.2f}{min(times):8.2f}{max(times):8.2f}"
    print(f"{what:46}{figures}{f'{ratio:8.2f}' if ratio else ' ' * 8}  {promise}", flush=True)


def lab_up() -> Cluster:
    """Down to the image in the cache, then up with a VM that runs."""
    cluster = Cluster(RunningLab(DIRECTORY))

    def up() -> None:
        run_lab(DIRECTORY, "up", "--nodes", "3")
        cluster.create("bench", "--target", "n1")

    line("lab up, three nodes and a running VM", [elapsed_s(up)], promise="≤ 60")
    return cluster


def daemon_start(cluster: Cluster) -> None:
    """systemctl returns when the daemon has said READY, in state run; its VMs run on."""
    times = []
    for _ in range(ROUNDS):
        cluster.run("n3", "systemctl", "stop", "pvc-node")
        times.append(elapsed_s(lambda: cluster.run("n3", "systemctl", "start", "pvc-node")))
    line("node daemon: start to run", times, promise="≤ 3")


def migration(cluster: Cluster) -> None:
    """Of the same guest, between the same nodes, with the same TLS: by pvc --wait and by virsh alone."""
    cluster.ticking("bench", "n1", more_than=10)
    ours = []
    for index in range(ROUNDS):
        move = ("vm", "move", "bench", "--target", ("n2", "n1")[index % 2], "--wait")
        ours.append(elapsed_s(functools.partial(cluster.pvc, *move)))
    theirs = _virsh(cluster)
    line("live migration by virsh alone", theirs, 1.0)
    line("live migration by pvc vm move --wait", ours, statistics.median(ours) / statistics.median(theirs))


def _virsh(cluster: Cluster) -> list[float]:
    """Behind the back of daemons that are stopped, so that they do not call it back."""
    here = cluster.info("bench")["node"]
    there = "n2" if here == "n1" else "n1"
    address = {name: one["address"] for name, one in cluster.lab.states().items()}
    for node in (here, there):
        cluster.run(node, "systemctl", "stop", "pvc-node")
    times = []
    for index in range(ROUNDS + 1):
        source, target = ((here, there), (there, here))[index % 2]
        flags = ("migrate", "--live", "--p2p", "--tls", "--unsafe", "bench")
        there_uri, data_uri = f"qemu+tls://{address[target]}/system", f"tcp://{address[target]}"
        virsh = ("virsh", *flags, there_uri, "--migrateuri", data_uri)
        taken = elapsed_s(functools.partial(cluster.run, source, *virsh))
        if index < ROUNDS:
            times.append(taken)
    for node in (here, there):
        cluster.run(node, "systemctl", "start", "pvc-node")
    return times


@contextmanager
def _herd(cluster: Cluster) -> Iterator[None]:
    try:
        for name in HERD:
            cluster.create(name, "--target", "n3")
        for name in HERD:
            cluster.ticking(name, "n3")
        yield
    finally:
        for name in HERD:
            cluster.remove(name)


def flush(cluster: Cluster) -> None:
    with _herd(cluster):
        together = elapsed_s(lambda: cluster.pvc("node", "flush", "n3", "--wait"))
        cluster.pvc("node", "ready", "n3", "--wait")
        eventually(lambda: all(cluster.info(name)["node"] == "n3" for name in HERD), within=60)

        def one_by_one() -> None:
            for index, name in enumerate(HERD):
                cluster.pvc("vm", "migrate", name, "--target", ("n1", "n2")[index % 2], "--wait")

        apart = elapsed_s(one_by_one)
    line("five VMs migrated one by one", [apart], 1.0)
    line("five VMs by node flush --wait", [together], together / apart)


def main() -> int:
    if not PVC.exists():
        sys.exit(f"{PVC} is missing; ./build.py zipapp image")
    run_lab(DIRECTORY, "down")
    print(f"{'':46}{'median':>8}{'min':>8}{'max':>8}{'ratio':>8}  promise   (seconds)")
    try:
        cluster = lab_up()
        daemon_start(cluster)
        migration(cluster)
        flush(cluster)
    finally:
        run_lab(DIRECTORY, "down")
    return 0


if __name__ == "__main__":
    sys.exit(main())
