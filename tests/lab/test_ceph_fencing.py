"""VMs on Ceph whose node nobody can switch off: Ceph takes no more from it, and they run elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.dying import cut, disarm, pause, secondary, seen
from tests.lab.labs import with_ceph
from tests.lab.vms import Cluster

pytestmark = with_ceph

POOL, VM = "safe", "steady"
PROMISED_S = 45.0
"""From the power cut, with the BMC dead too."""
GOES_ON_S = 10.0


@pytest.fixture
def cluster(armed: Cluster) -> Cluster:
    return armed


@contextmanager
def unwatched(cluster: Cluster) -> Iterator[str]:
    """A node without a watchdog, and a VM there that writes: nothing but Ceph tells of its end."""
    victim = secondary(cluster)
    cluster.asked = next(name for name in cluster.lab.nodes if name != victim)
    if POOL not in cluster.pvc("storage", "pool", "list").stdout:
        cluster.pvc("storage", "pool", "add", POOL, "--timeout", "60")
    watch(cluster, victim, on=False)
    cluster.remove(VM)
    try:
        cluster.create(VM, "--disk", f"{POOL}/64M", "--target", victim, cmdline="pvc.write=vda")
        cluster.writing(VM, victim, more_than=5)
        cluster.lab.lab("bmc", victim, "off")
        yield victim
    finally:
        disarm(cluster)
        watch(cluster, victim, on=True)
        cluster.remove(VM)


def watch(cluster: Cluster, node: str, *, on: bool) -> None:
    """By its watchdog."""
    change = f"sed -i 's/^#*watchdog = /{'' if on else '#'}watchdog = /' /etc/pvc/pvc.toml"
    cluster.lab.sh(node, f"{change} && systemctl restart pvc-node")
    seen(lambda: cluster.json("node", "info", node)["daemon_state"] == "run", within=60)


def listed(cluster: Cluster) -> str:
    asked = ("ceph", "--name", "client.pvc", "--connect-timeout", "20", "osd", "blocklist", "ls")
    return cluster.run(cluster.asked, *asked).stdout


def elsewhere(cluster: Cluster, victim: str) -> str:
    """Where it writes; "" while it does not."""
    node = cluster.info(VM)["node"]
    return "" if node in (None, victim) or not cluster.wrote(VM, node) else str(node)


def took_over(cluster: Cluster, victim: str, began: float) -> str:
    node = seen(lambda: elsewhere(cluster, victim), within=90)
    print(f"it writes on {node} {time.monotonic() - began:.1f} s after; promised {PROMISED_S:g}")
    (fence,) = [one for one in cluster.json("node", "fences") if one["node"] == victim][:1]
    assert fence["state"] != "fenced", "nobody knows whether it runs"
    assert ":0/0" in listed(cluster)
    kept, before = cluster.kept(VM, node)[-1], cluster.wrote(VM, victim)
    assert kept >= before, "what its guest was told is on the disk was there"
    return str(node)


def back(cluster: Cluster, victim: str) -> None:
    """It may use Ceph again."""
    seen(lambda: cluster.json("node", "info", victim)["daemon_state"] == "run", within=90)
    seen(lambda: ":0/0" not in listed(cluster), within=60)
    cluster.pvc("vm", "unmigrate", VM, "--wait", "--timeout", "90")
    assert cluster.qemus(VM) == [victim]


def test_power_and_bmc_are_gone_and_nothing_was_promised(cluster: Cluster) -> None:
    with unwatched(cluster) as victim:
        began = cut(cluster, victim)
        took_over(cluster, victim, began)
        assert time.monotonic() - began < PROMISED_S
        cluster.lab.lab("bmc", victim, "on")
        cluster.lab.power(victim, "on")
        back(cluster, victim)


@contextmanager
def standing_still(cluster: Cluster, node: str, qemu: str) -> Iterator[None]:
    """Daemon and QEMU, until they go on."""
    # Or systemd starts a daemon that stands still anew, and that one ends what is not its own any more.
    stop = "systemctl service-watchdogs no; systemctl kill -s STOP pvc-node"
    try:
        cluster.lab.sh(node, f"{stop}; kill -STOP {qemu}")
        yield
    finally:
        go_on = f"kill -CONT {qemu}; systemctl kill -s CONT pvc-node; systemctl service-watchdogs yes"
        cluster.lab.sh(node, go_on, check=False)


def test_node_that_stood_still_and_goes_on_writes_not_one_byte(cluster: Cluster) -> None:
    with unwatched(cluster) as victim:
        began, qemu = time.monotonic(), str(cluster.qemu_pid(VM, victim))
        with standing_still(cluster, victim, qemu):
            node = took_over(cluster, victim, began)
            found = cluster.kept(VM, node)[-1]
            cluster.lab.sh(victim, f"kill -CONT {qemu}")
            pause(GOES_ON_S)
            assert cluster.qemu_pid(VM, victim) == int(qemu), "it goes on, beside the other one"
            # An answer of before may have waited for it: the other one found that on the disk.
            assert cluster.wrote(VM, victim) <= found, "it was told that nothing more is on the disk"
            last = cluster.wrote(VM, node)
            cluster.writing(VM, node, more_than=last)
        seen(lambda: cluster.qemus(VM) == [node], within=60)
        cluster.pvc("vm", "stop", VM, "--yes", "--wait", "--timeout", "60")
        told = cluster.wrote(VM, node)
        cluster.pvc("vm", "start", VM, "--wait", "--timeout", "60")
        place = cluster.info(VM)["node"]
        cluster.writing(VM, place, more_than=told)
        assert told <= cluster.kept(VM, place)[-1] <= told + 1, "and nobody else has written there"
        cluster.lab.lab("bmc", victim, "on")
        back(cluster, victim)
