"""A node dies: it is fenced, its VMs run elsewhere soon, and never twice; without proof nothing moves."""

from __future__ import annotations

import time

import pytest

from tests.lab.dying import (
    SETTLED_S,
    VMS,
    cut,
    finished,
    on,
    pause,
    primary,
    receipt,
    recovered,
    refused,
    returned_clean,
    secondary,
    seen,
    where,
)
from tests.lab.vms import Cluster


@pytest.fixture
def cluster(armed: Cluster) -> Cluster:
    return armed


def test_a_node_loses_power(cluster: Cluster) -> None:
    victim = secondary(cluster)
    with on(cluster, victim) as witness:
        began = cut(cluster, victim)
        recovered(cluster, witness, victim, began)
        shown = finished(cluster, victim)
        assert (shown["state"], shown["evidence"]) == ("fenced", "power-off")
        assert all(any(name in line for line in shown["recovered"]) for name in VMS)
        returned_clean(cluster, victim)


def test_a_vm_comes_home_live_when_its_node_is_back(cluster: Cluster) -> None:
    """Nobody counts its QEMUs here: while it migrates there are two, of which one waits."""
    victim = secondary(cluster)
    cluster.asked = next(name for name in cluster.lab.nodes if name != victim)
    with cluster.vm("brave", "--target", victim):
        cut(cluster, victim)
        place = seen(lambda: where(cluster, "brave", victim), within=60)
        before = cluster.ticking("brave", place, more_than=3)
        seen(lambda: cluster.json("node", "info", victim)["daemon_state"] == "run", within=90)
        cluster.pvc("vm", "unmigrate", "brave", "--wait", "--timeout", "120")
        assert cluster.qemus("brave") == [victim]
        assert cluster.ticking("brave", victim, more_than=before[-1].number)


def test_the_primary_loses_power(cluster: Cluster) -> None:
    """The next one is looked for at once: the role goes home to who was wanted when that one is back."""
    victim = seen(lambda: primary(cluster), within=30)
    with on(cluster, victim) as witness:
        began = cut(cluster, victim)
        heir = seen(lambda: (now := primary(cluster)) != victim and now, within=30)
        recovered(cluster, witness, victim, began)
        shown = receipt(cluster, victim)
        assert (shown["state"], shown["evidence"]) == ("fenced", "power-off")
        assert shown["judge"] == heir
        returned_clean(cluster, victim)


def test_power_and_bmc_are_gone(cluster: Cluster) -> None:
    """No evidence, no recovery, and it says so; then somebody who has looked gives their word."""
    victim = secondary(cluster)
    with on(cluster, victim) as witness:
        cluster.lab.lab("bmc", victim, "off")
        cut(cluster, victim)
        failed = seen(lambda: refused(cluster, victim), within=30)
        assert "does not answer" in failed["reason"]
        seen(lambda: receipt(cluster, victim)["attempts"] > failed["attempts"], within=30)
        assert not any(witness.has_run(name, 2) for name in VMS), "without proof its VMs are its own"
        assert cluster.json("node", "info", victim)["daemon_state"] == "dead"
        began = time.monotonic()
        cluster.pvc("node", "fence", victim, "--confirm-off", "--yes")
        recovered(cluster, witness, victim, began)
        assert receipt(cluster, victim)["evidence"] == "operator"
        cluster.lab.lab("bmc", victim, "on")
        cluster.lab.power(victim, "on")
        returned_clean(cluster, victim)


def test_maintenance_disarms(cluster: Cluster) -> None:
    victim = secondary(cluster)
    with on(cluster, victim) as witness:
        before = receipt(cluster, victim)
        cluster.pvc("cluster", "maintenance", "on")
        cut(cluster, victim)
        seen(lambda: cluster.json("node", "info", victim)["daemon_state"] == "dead", within=30)
        pause(SETTLED_S)
        assert receipt(cluster, victim) == before
        assert not any(witness.has_run(name, 2) for name in VMS)
        began = time.monotonic()
        cluster.pvc("cluster", "maintenance", "off")
        recovered(cluster, witness, victim, began)
        returned_clean(cluster, victim)
