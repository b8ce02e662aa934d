"""A managed network where not every node is a coordinator: hypervisors hear of each other by reflection."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.labs import RunningLab
from tests.lab.test_networks import answers
from tests.lab.vms import Cluster
from tests.support import eventually

pytestmark = pytest.mark.parametrize("lab", [5], indirect=True, ids=["five nodes"])


@pytest.fixture
def cluster(lab: RunningLab) -> Iterator[Cluster]:
    """n1 to n3 are coordinators, n4 and n5 hypervisors."""
    found = Cluster(lab)
    found.pvc("network", "add", "101", "-d", "shop", "-p", "managed", "--wait")
    try:
        yield found
    finally:
        found.pvc("network", "remove", "shop", "--yes", check=False)


def neighbours(cluster: Cluster, node: str) -> dict[str, Any]:
    """Those with which EVPN is spoken, by address."""
    said = cluster.lab.sh(node, "vtysh -c 'show bgp l2vpn evpn summary json' 2>/dev/null", check=False)
    peers = json.loads(said or "{}").get("peers", {})
    return {address: peer for address, peer in peers.items() if peer["state"] == "Established"}


def test_hypervisors_hear_of_each_other_and_a_node_that_goes_disturbs_nobody(cluster: Cluster) -> None:
    lab = cluster.lab.layout
    at = {node.name: lab.address(node) for node in lab.nodes}
    reflectors = {at[name] for name in ("n1", "n2", "n3")}
    eventually(lambda: neighbours(cluster, "n4").keys() == reflectors, within=60, every=0.5)
    eventually(lambda: neighbours(cluster, "n1").keys() == {*at.values()} - {at["n1"]}, within=60, every=0.5)

    guest = ("--network", "shop", "--target")
    with cluster.vm("far-a", *guest, "n4", cmdline="pvc.ip=10.1.0.1/24 pvc.ping=10.1.0.2"):
        with cluster.vm("far-b", *guest, "n5", cmdline="pvc.ip=10.1.0.2/24 pvc.ping=10.1.0.1"):
            answers(cluster, "far-a", "n4")
            answers(cluster, "far-b", "n5")
        before = neighbours(cluster, "n1")[at["n4"]]
        pids = cluster.lab.sh("n1", "cat /run/frr/*.pid")
        cluster.run("n5", "systemctl", "stop", "pvc-node")
        try:
            cluster.pvc("node", "remove", "n5", "--yes")
            eventually(lambda: at["n5"] not in configured(cluster, "n1"), within=30, every=0.5)
            eventually(lambda: at["n5"] not in neighbours(cluster, "n1"), within=30, every=0.5)
            after = neighbours(cluster, "n1")[at["n4"]]
            same = ("connectionsEstablished", "connectionsDropped")
            assert [after[field] for field in same] == [before[field] for field in same]
            assert after["peerUptimeMsec"] > before["peerUptimeMsec"]
            assert cluster.lab.sh("n1", "cat /run/frr/*.pid") == pids
        finally:
            cluster.run("n5", "systemctl", "start", "--no-block", "pvc-node")
            cluster.lab.settle()
        eventually(lambda: at["n5"] in neighbours(cluster, "n1"), within=60, every=0.5)


def configured(cluster: Cluster, node: str) -> str:
    return cluster.lab.sh(node, "cat /etc/frr/frr.conf")
