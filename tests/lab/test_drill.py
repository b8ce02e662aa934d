"""Knowing beforehand: BMCs are tried while all is well, and a drill shows what a failure would take."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.lab.dying import VMS, finished, on, receipt, recovered, returned_clean, secondary
from tests.lab.vms import Cluster
from tests.support import eventually


@pytest.fixture
def cluster(armed: Cluster) -> Cluster:
    return armed


def of(cluster: Cluster, node: str) -> Any:
    """Its row of what could be lost now."""
    return next(row for row in cluster.json("node", "readiness")["nodes"] if row["node"] == node)


def is_powered(cluster: Cluster) -> bool:
    return all(one["power"] == "on" for one in cluster.lab.states().values())


def test_verify_tells_which_bmc_would_fail_and_switches_nothing(cluster: Cluster) -> None:
    victim = secondary(cluster)
    cluster.asked = next(name for name in cluster.lab.nodes if name != victim)
    shown = json.loads(cluster.pvc("node", "fence", "--verify", "-f", "json").stdout)
    assert shown["ready"]
    assert {row["node"]: "bmc" in row["fenced_by"] for row in shown["nodes"]} == dict.fromkeys(
        cluster.lab.nodes, True
    )
    assert cluster.json("cluster", "status")["redundancy"] == "any one node could be lost now"
    cluster.lab.lab("bmc", victim, "off")
    told = cluster.pvc("node", "fence", victim, "--verify", check=False)
    assert told.code == 1
    assert "does not answer" in told.stderr
    assert "bmc" not in of(cluster, victim)["fenced_by"]
    cluster.lab.lab("bmc", victim, "on")
    assert cluster.pvc("node", "fence", victim, "--verify").code == 0
    assert is_powered(cluster)


def test_drill_is_a_failure_with_a_good_end(cluster: Cluster) -> None:
    victim = secondary(cluster)
    with on(cluster, victim) as witness:
        cluster.pvc("node", "fence", "--verify")
        began = time.monotonic()
        cluster.pvc("node", "fence", victim, "--drill", "--yes")
        recovered(cluster, witness, victim, began)
        shown = finished(cluster, victim)
        assert (shown["state"], shown["evidence"], bool(shown["drill"])) == ("fenced", "power-off", True)
        returned_clean(cluster, victim)
        ran = eventually(lambda: timeline(cluster, victim, "running"), within=30)
        assert {step["vm"] for step in ran} == set(VMS)
        steps = receipt(cluster, victim)["timeline"]
        assert [step["what"] for step in steps[:4]] == ["cut", "gone", "fencing", "fenced"]
        assert [step["at_s"] for step in steps[:4]] == sorted(step["at_s"] for step in steps[:4])
        told = cluster.pvc("why", "fence", victim).stdout
        print(told)
        assert f"{victim} (a drill) was fenced" in told


def timeline(cluster: Cluster, node: str, what: str) -> list[Any]:
    """Steps of that kind, once there is one of each VM."""
    found = [step for step in receipt(cluster, node)["timeline"] if step["what"] == what]
    return found if len(found) == len(VMS) else []
