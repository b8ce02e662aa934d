"""Nodes that nobody can fence: their promise counts, and is kept; an outage of the store is no death."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lab.dying import (
    VMS,
    cut,
    finished,
    on,
    pause,
    recovered,
    returned_clean,
    secondary,
    seen,
    untouched,
)
from tests.lab.vms import Cluster
from tests.support import eventually

PROMISED_S = 45.0
"""From the power cut, with the BMC dead too."""
OUTAGE_S = 60.0


@pytest.fixture
def cluster(armed: Cluster) -> Cluster:
    return armed


@dataclass(slots=True)
class Ticks:
    """When the console of each guest last grew, by node: seen from outside, whatever is cut."""

    files: dict[tuple[str, str], Path]
    """By node and VM."""
    sizes: dict[tuple[str, str], int] = field(default_factory=dict)
    first_s: dict[tuple[str, str], float] = field(default_factory=dict)
    last_s: dict[tuple[str, str], float] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        while not self.ended.wait(0.05):
            now = time.monotonic()
            for key, file in self.files.items():
                size = file.stat().st_size if file.exists() else 0
                if size > self.sizes.setdefault(key, size):
                    self.first_s.setdefault(key, now)
                    self.last_s[key] = now
                    self.sizes[key] = size


@contextmanager
def ticks(cluster: Cluster) -> Iterator[Ticks]:
    layout = cluster.lab.layout
    uuids = {name: cluster.info(name)["uuid"] for name in VMS}
    seen_ticks = Ticks(
        {
            (node.name, name): Path(layout.root(node), "var/log/pvc/console", f"{uuid}.log")
            for node in layout.nodes
            for name, uuid in uuids.items()
        }
    )
    thread = threading.Thread(target=seen_ticks.watch, daemon=True)
    thread.start()
    try:
        yield seen_ticks
    finally:
        seen_ticks.ended.set()
        thread.join()


def promising(cluster: Cluster, node: str) -> None:
    seen(lambda: "watchdog" in cluster.json("node", "info", node)["fenced_by"], within=30)


def test_power_and_bmc_are_gone_and_nobody_comes(cluster: Cluster) -> None:
    victim = secondary(cluster)
    with on(cluster, victim) as witness:
        promising(cluster, victim)
        cluster.lab.lab("bmc", victim, "off")
        began = cut(cluster, victim)
        recovered(cluster, witness, victim, began)
        took_s = max(witness.runs[name][-1].first_s for name in VMS) - began
        print(f"BMC dead: all VMs ran elsewhere {took_s:.1f} s after the power cut; promised {PROMISED_S:g}")
        assert finished(cluster, victim)["evidence"] == "watchdog"
        cluster.lab.lab("bmc", victim, "on")
        cluster.lab.power(victim, "on")
        returned_clean(cluster, victim)


def test_a_node_is_cut_off_with_its_bmc(cluster: Cluster) -> None:
    """It ends its VMs before they run elsewhere, by the guests' own ticks; it comes back without a reset."""
    victim = secondary(cluster)
    with on(cluster, victim) as witness:
        promising(cluster, victim)
        pid = cluster.lab.states()[victim]["pid"]
        with ticks(cluster) as seen_ticks:
            cluster.lab.lab("bmc", victim, "off")
            cluster.lab.lab("cut", victim, "--network", "clu")
            began = time.monotonic()
            recovered(cluster, witness, victim, began)
        for name in VMS:
            ended = seen_ticks.last_s[victim, name]
            begun = min(at for (node, vm), at in seen_ticks.first_s.items() if vm == name and node != victim)
            print(
                f"{name} ticked on {victim} until {ended - began:.1f} s, elsewhere from {begun - began:.1f} s"
            )
            assert ended < begun
        assert finished(cluster, victim)["evidence"] == "watchdog"
        assert cluster.lab.states()[victim]["pid"] == pid, "nothing of it ran: no reason to reset it"
        cluster.lab.lab("heal", victim)
        cluster.lab.lab("bmc", victim, "on")
        returned_clean(cluster, victim)


def test_a_daemon_is_gone_for_good(cluster: Cluster) -> None:
    """Nobody feeds the watchdog: the machine is reset, and that ends its VMs."""
    victim = secondary(cluster)
    with on(cluster, victim) as witness:
        promising(cluster, victim)
        pid = cluster.lab.states()[victim]["pid"]
        cluster.lab.lab("bmc", victim, "off")
        cluster.run(
            victim, "sh", "-c", "systemctl mask --runtime pvc-node && systemctl kill -s KILL pvc-node"
        )
        began = time.monotonic()
        eventually(lambda: cluster.lab.states()[victim]["pid"] != pid, within=30, every=0.5)
        print(f"the watchdog reset {victim} {time.monotonic() - began:.1f} s after its daemon was killed")
        cluster.lab.lab("bmc", victim, "on")
        seen(lambda: cluster.json("node", "info", victim)["daemon_state"] == "run", within=90)
        for name in VMS:
            eventually(lambda name=name: witness.has_run(name, 2), within=60)  # type: ignore[misc]


def test_all_of_the_store_is_out_for_a_minute(cluster: Cluster) -> None:
    """Armed as they are, nodes keep their VMs: the coordinators say to each other that nobody can fence."""
    victim = secondary(cluster)
    with on(cluster, victim), untouched(cluster, victim):
        for node in cluster.lab.nodes:
            promising(cluster, node)
        pids = {name: one["pid"] for name, one in cluster.lab.states().items()}
        for node in cluster.lab.nodes:
            cluster.run(node, "systemctl", "stop", "zookeeper")
        pause(OUTAGE_S)
        for node in cluster.lab.nodes:
            cluster.run(node, "systemctl", "start", "zookeeper")
        eventually(lambda: cluster.pvc("node", "list", check=False).code == 0, within=40, every=0.5)
        assert {name: one["pid"] for name, one in cluster.lab.states().items()} == pids
