"""What must not count as a death, what must, and BMCs and clocks that are wrong: no VM ever runs twice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.clocks import wrong_clock
from tests.lab.dying import (
    VMS,
    cut,
    finished,
    leader,
    make_primary,
    on,
    only_leading,
    pause,
    receipt,
    recovered,
    refused,
    returned_clean,
    secondary,
    seen,
    untouched,
)
from tests.lab.vms import Cluster

HOUR_S = 3600
SOON_S = 60.0


@pytest.fixture
def cluster(armed: Cluster) -> Cluster:
    return armed


# Nothing has died


def test_moments(cluster: Cluster) -> None:
    """A daemon that stands still for five seconds, a network that does, a ZooKeeper leader that is killed."""
    victim = secondary(cluster)
    with on(cluster, victim) as witness:
        with untouched(cluster, victim):
            cluster.lab.lab("kill", victim, "pvc-node", "--stop")
            pause(5.0)
            cluster.lab.lab("kill", victim, "pvc-node", "--cont")
        with untouched(cluster, victim):
            cluster.lab.lab("cut", victim)
            pause(5.0)
            cluster.lab.lab("heal", victim)
        with untouched(cluster, victim):
            cluster.lab.lab("kill", leader(cluster), "zookeeper")
            seen(lambda: leader(cluster), within=30)
        assert not any(witness.has_run(name, 2) for name in VMS)


# Somebody has


def test_zookeeper_leader_loses_power(cluster: Cluster) -> None:
    """Its session, and everybody's, is counted anew by the next leader: later, and otherwise the same."""
    victim = only_leading(cluster)
    with on(cluster, victim) as witness:
        began = cut(cluster, victim)
        recovered(cluster, witness, victim, began)
        assert finished(cluster, victim)["evidence"] == "power-off"
        returned_clean(cluster, victim)


def test_a_node_is_cut_off(cluster: Cluster) -> None:
    """Nobody can tell it from one that is dead; its BMC ends its VMs before they start elsewhere."""
    victim = secondary(cluster)
    with on(cluster, victim) as witness:
        began = time.monotonic()
        cluster.lab.lab("cut", victim)
        recovered(cluster, witness, victim, began)
        assert finished(cluster, victim)["evidence"] == "power-off"
        assert all(witness.gap_s(name) > 0 for name in VMS)
        returned_clean(cluster, victim)


def test_a_daemon_that_stands_still_for_long(cluster: Cluster) -> None:
    """Its VMs are cut off with it, and move; it comes back clean, whatever somebody has started there.

    Without a watchdog, which may be quicker: the machine is reset then, and starts its VMs itself.
    """
    victim = secondary(cluster)
    with without_watchdog(cluster, victim), on(cluster, victim) as witness:
        began = time.monotonic()
        cluster.lab.lab("kill", victim, "pvc-node", "--stop")
        recovered(cluster, witness, victim, began)
        assert finished(cluster, victim)["evidence"] == "power-off"
        returned_clean(cluster, victim)
        witness.ended.set()  # what is started by hand from here on does run twice
        _started_by_hand(cluster, VMS[0], victim)


@contextmanager
def without_watchdog(cluster: Cluster, node: str) -> Iterator[None]:
    """Not even after it was fenced."""
    told = "sed -i 's/^#*watchdog = /{}watchdog = /' /etc/pvc/pvc.toml && systemctl restart pvc-node"
    cluster.lab.sh(node, told.format("#"))
    cluster.lab.settle()
    try:
        yield
    finally:
        cluster.lab.sh(node, told.format(""))


def _started_by_hand(cluster: Cluster, name: str, node: str) -> None:
    """While its daemon is away, on a node that lost the VM: the daemon ends it, and says so."""
    rightful = cluster.info(name)["node"]
    pid = cluster.qemu_pid(name, rightful)
    definition = cluster.run(rightful, "virsh", "dumpxml", name).stdout
    cluster.run(node, "systemctl", "stop", "pvc-node")
    cluster.lab.run(node, "virsh", "create", "/dev/stdin", stdin=definition)
    assert sorted(cluster.qemus(name)) == sorted([node, rightful])
    cluster.run(node, "systemctl", "start", "pvc-node")
    seen(lambda: cluster.qemus(name) == [rightful], within=20)
    assert cluster.qemu_pid(name, rightful) == pid
    said = cluster.run(node, "journalctl", "-b", "-u", "pvc-node", "-o", "cat").stdout
    assert f"it is owned by {rightful}" in said


# BMCs that are no help


def test_a_bmc_that_is_no_help(cluster: Cluster) -> None:
    """Noise is no answer, and a "yes" no evidence; when it is well again, all goes on by itself."""
    victim = secondary(cluster)
    with on(cluster, victim) as witness:
        cluster.lab.lab("bmc", victim, "rubbish")
        cluster.lab.lab("cut", victim)
        assert "BMC" in seen(lambda: refused(cluster, victim), within=30)["reason"]
        cluster.lab.lab("bmc", victim, "lies")
        seen(lambda: "not off yet" in (receipt(cluster, victim) or {}).get("reason", ""), within=30)
        assert not any(witness.has_run(name, 2) for name in VMS), "without proof its VMs are its own"
        began = time.monotonic()
        cluster.lab.lab("bmc", victim, "on")
        recovered(cluster, witness, victim, began)
        assert finished(cluster, victim)["evidence"] == "power-off"
        returned_clean(cluster, victim)


# Clocks


def test_wall_clocks_that_are_wrong(cluster: Cluster) -> None:
    """The primary is an hour ahead, another node an hour behind: all goes on, even a fence of the third."""
    ahead, behind, victim = cluster.lab.nodes
    with wrong_clock(cluster.lab, ahead, HOUR_S), wrong_clock(cluster.lab, behind, -HOUR_S):
        cluster.lab.settle()
        make_primary(cluster, ahead)
        _moves_between(cluster, "wanders", ahead, behind)
        with on(cluster, victim) as witness:
            cluster.asked = ahead
            with untouched(cluster, victim):
                _opens_everywhere(cluster, ahead)
            began = cut(cluster, victim)
            recovered(cluster, witness, victim, began)
            shown = finished(cluster, victim)
            assert (shown["evidence"], shown["judge"]) == ("power-off", ahead)
            assert shown["since"] - time.time() > HOUR_S / 2, "times of the day are the judge's"
            assert all(0 <= shown[one] < SOON_S for one in ("suspect_s", "fence_s", "recovery_s"))
            returned_clean(cluster, victim)


def _moves_between(cluster: Cluster, name: str, ahead: str, behind: str) -> None:
    """One guest, started by a clock that is ahead and carried on by one that is behind."""
    with cluster.vm(name, "--target", ahead):
        assert cluster.info(name)["since"] - time.time() > HOUR_S / 2
        last = cluster.ticking(name, ahead, more_than=3)[-1]
        cluster.pvc("vm", "move", name, "--target", behind, "--wait", "--timeout", "60")
        assert cluster.ticking(name, behind, more_than=last.number)[-1].uptime_s > last.uptime_s
        assert cluster.qemus(name) == [behind]
        cluster.pvc("vm", "stop", name, "--yes", "--wait", "--timeout", "60")
        assert cluster.info(name)["since"] - time.time() < -HOUR_S / 2


def _opens_everywhere(cluster: Cluster, maker: str) -> None:
    """A token for a day, made by one clock, at the APIs of all of them."""
    words = ("api", "token", "add", "traveller", "--role", "read", "--expires", "1d")
    token = json.loads(cluster.run(maker, "pvc", *words, "-f", "json").stdout)["token"]
    try:
        for node in cluster.lab.nodes:
            assert cluster.run(node, "python3", "-c", ASK, token).stdout.strip() == "200", node
    finally:
        cluster.run(maker, "pvc", "api", "token", "remove", "traveller", "--yes")


ASK = """
import sys, urllib.request
asked = urllib.request.Request("http://127.0.0.1:7370/api/v1/node")
asked.add_header("Authorization", "Bearer " + sys.argv[1])
print(urllib.request.urlopen(asked).status)
"""
