"""Nodes that die in a lab, and those who look: what tests of failover and its benchmark have in common."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.lab.labs import RunningLab
from tests.lab.vms import Cluster
from tests.lab.witness import Witness, watching
from tests.support import eventually

PROMISED_S = 15.0
"""From the power cut until the last VM runs elsewhere."""
SETTLED_S = 8.0
"""Longer than a session and the grace of a fence together take to begin one."""
VMS = ("brave", "brisk")


@contextmanager
def armed(lab: RunningLab) -> Iterator[Cluster]:
    """With fencing armed, as it is in every cluster that is not in maintenance."""
    cluster = Cluster(lab)
    cluster.pvc("cluster", "maintenance", "off")
    try:
        yield cluster
    finally:
        disarm(cluster)


def disarm(cluster: Cluster) -> None:
    """First nobody shoots any more, then what was broken is repaired."""
    cluster.asked = next(
        node for node, one in cluster.lab.states().items() if one["power"] == "on" and not one["cut"]
    )
    eventually(lambda: cluster.pvc("cluster", "maintenance", "on", check=False).code == 0, within=30)
    cluster.lab.repair()


def primary(cluster: Cluster) -> str:
    rows = cluster.json("node", "list", "--coordinator-state", "primary")
    return str(rows[0]["name"]) if rows else ""


def secondary(cluster: Cluster) -> str:
    """A node that is not primary; the cluster is asked through another one."""
    first = eventually(lambda: primary(cluster), within=30)
    return next(node for node in reversed(cluster.lab.nodes) if node != first)


@contextmanager
def on(cluster: Cluster, node: str) -> Iterator[Witness]:
    """Two VMs that tick on a node, and somebody who looks; asked is a node that will not die."""
    cluster.asked = next(name for name in cluster.lab.nodes if name != node)
    for name in VMS:
        cluster.remove(name)
    with watching(cluster.lab.layout.prefix) as witness:
        try:
            for name in VMS:
                cluster.create(name, "--target", node)
            for name in VMS:
                cluster.ticking(name, node, more_than=3)
            yield witness
        finally:
            disarm(cluster)
            for name in VMS:
                cluster.remove(name)


def cut(cluster: Cluster, node: str) -> float:
    began = time.monotonic()
    cluster.lab.power(node, "off")
    return began


def recovered(cluster: Cluster, witness: Witness, dead: str, since_s: float) -> None:
    """Both VMs run elsewhere, and tick there; how soon is for benchmarks/failover.py to judge."""
    eventually(lambda: all(witness.has_run(name, 2) for name in VMS), within=4 * PROMISED_S)
    took_s = max(witness.runs[name][-1].first_s for name in VMS) - since_s
    print(f"all VMs of {dead} ran elsewhere {took_s:.1f} s after the power cut; promised {PROMISED_S:g}")
    for name in VMS:
        place = eventually(functools.partial(where, cluster, name, dead), within=20)
        assert cluster.ticking(name, place, more_than=3)


def where(cluster: Cluster, name: str, dead: str) -> str:
    """Its node, once it runs on another one than that."""
    info = cluster.info(name)
    return str(info["node"]) if info["state"] in ("start", "migrate") and info["node"] != dead else ""


def receipt(cluster: Cluster, node: str) -> Any:
    """The newest fence of a node, or None."""
    return next(iter(cluster.json("node", "fences", node)), None)


def finished(cluster: Cluster, node: str) -> Any:
    """The newest fence of a node when all is done: it names what was recovered."""
    return eventually(lambda: (one := receipt(cluster, node)) and one["finished"] and one, within=30)


def returned_clean(cluster: Cluster, node: str) -> None:
    """It runs again, and nothing that it had before."""
    eventually(lambda: cluster.json("node", "info", node)["daemon_state"] == "run", within=90)
    for name in VMS:
        places = cluster.qemus(name)
        assert len(places) == 1
        assert node not in places


def refused(cluster: Cluster, node: str) -> Any:
    """The newest fence of a node while there is no evidence."""
    shown = receipt(cluster, node)
    return shown if shown and shown["state"] == "failed" else None
