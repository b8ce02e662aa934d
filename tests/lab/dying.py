"""Nodes that die in a lab, and those who look: what tests of failover and its benchmark have in common."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
LOOK_EVERY_S = 0.5
"""For what starts a program in a node each time: it must not slow down what it waits for."""
seen = functools.partial(eventually, every=LOOK_EVERY_S)


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
    seen(lambda: cluster.pvc("cluster", "maintenance", "on", check=False).code == 0, within=30)
    cluster.lab.repair()


def primary(cluster: Cluster) -> str:
    rows = cluster.json("node", "list", "--coordinator-state", "primary")
    return str(rows[0]["name"]) if rows else ""


def secondary(cluster: Cluster) -> str:
    """A node that is not primary; the cluster is asked through another one."""
    first = seen(lambda: primary(cluster), within=30)
    return next(node for node in reversed(cluster.lab.nodes) if node != first)


@contextmanager
def on(cluster: Cluster, node: str) -> Iterator[Witness]:
    """Two VMs that tick on a node, and somebody who looks; asked is a node that will not die."""
    cluster.asked = next(name for name in cluster.lab.nodes if name != node)

    def begin(name: str) -> None:
        cluster.create(name, "--target", node)
        cluster.ticking(name, node, more_than=3)

    of_each(cluster.remove)
    with watching(cluster.lab.layout.prefix) as witness:
        try:
            of_each(begin)
            yield witness
        finally:
            disarm(cluster)
            of_each(cluster.remove)


def of_each(act: Callable[[str], None]) -> None:
    """With both VMs at once; both have ended when it returns, or raises."""
    with ThreadPoolExecutor(len(VMS)) as threads:
        list(threads.map(act, VMS))


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
        place = seen(functools.partial(where, cluster, name, dead), within=20)
        assert cluster.ticking(name, place, more_than=3)


def where(cluster: Cluster, name: str, dead: str) -> str:
    """Its node, once it runs on another one than that."""
    info = cluster.info(name)
    return str(info["node"]) if info["state"] in ("start", "migrate") and info["node"] != dead else ""


def receipt(cluster: Cluster, node: str) -> Any:
    """The newest fence of a node, or None."""
    return max(cluster.json("node", "fences", node), key=lambda one: one["incarnation"], default=None)


def finished(cluster: Cluster, node: str) -> Any:
    """The newest fence of a node when all is done: it names what was recovered."""
    return seen(lambda: (one := receipt(cluster, node)) and one["finished"] and one, within=30)


def returned_clean(cluster: Cluster, node: str) -> None:
    """It runs again, and nothing that it had before."""
    seen(lambda: cluster.json("node", "info", node)["daemon_state"] == "run", within=90)
    for name in VMS:
        places = cluster.qemus(name)
        assert len(places) == 1
        assert node not in places


def refused(cluster: Cluster, node: str) -> Any:
    """The newest fence of a node while there is no evidence."""
    shown = receipt(cluster, node)
    return shown if shown and shown["state"] == "failed" else None


def leader(cluster: Cluster) -> str:
    """The node whose ZooKeeper server leads."""
    return next((name for name, one in cluster.lab.states().items() if one["zookeeper"] == "leader"), "")


def not_leading(cluster: Cluster) -> str:
    """A node that neither is primary nor leads ZooKeeper: nothing but its VMs go with it."""
    taken = {seen(lambda: primary(cluster), within=30), seen(lambda: leader(cluster), within=30)}
    return next(node for node in reversed(cluster.lab.nodes) if node not in taken)


def only_leading(cluster: Cluster) -> str:
    """The node whose ZooKeeper leads; somebody else is primary."""
    name = seen(lambda: leader(cluster), within=30)
    make_primary(cluster, next(node for node in cluster.lab.nodes if node != name))
    return name


def only_primary(cluster: Cluster) -> str:
    """The primary; the ZooKeeper of another node leads."""
    leads = seen(lambda: leader(cluster), within=30)
    if seen(lambda: primary(cluster), within=30) == leads:
        make_primary(cluster, next(node for node in cluster.lab.nodes if node != leads))
    return primary(cluster)


def leading_primary(cluster: Cluster) -> str:
    """One node that is both."""
    name = seen(lambda: leader(cluster), within=30)
    make_primary(cluster, name)
    return name


def make_primary(cluster: Cluster, node: str) -> None:
    cluster.pvc("node", "primary", node, "--wait")
    seen(lambda: primary(cluster) == node, within=20)


def pause(seconds: float) -> None:
    """The length of a fault, or of the time in which nothing may happen: no wait for something to happen."""
    until = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > until, within=2 * seconds)


@contextmanager
def untouched(cluster: Cluster, node: str) -> Iterator[None]:
    """Whatever is done within: nobody is fenced, every daemon is in the cluster again, and the VMs ran on."""
    fences = cluster.json("node", "fences")
    pids = {name: cluster.qemu_pid(name, node) for name in VMS}
    yield
    pause(SETTLED_S)
    seen(lambda: all_run(cluster), within=60)
    assert cluster.json("node", "fences") == fences
    assert {name: cluster.qemu_pid(name, node) for name in VMS} == pids
    assert not [name for name in VMS if cluster.info(name)["state"] != "start"]


def all_run(cluster: Cluster) -> bool:
    done = cluster.pvc("node", "list", "-f", "json", check=False)
    return done.code == 0 and all(one["daemon_state"] == "run" for one in json.loads(done.stdout))
