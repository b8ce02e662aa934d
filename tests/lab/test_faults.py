"""What breaks around the VMs, and what happens to them: nothing."""

from __future__ import annotations

import pytest

from tests.lab.labs import RunningLab
from tests.lab.vms import Cluster
from tests.support import eventually


@pytest.fixture
def cluster(lab: RunningLab) -> Cluster:
    return Cluster(lab)


def zookeeper_mode(cluster: Cluster, node: str) -> str:
    """leader or follower, as the server itself says; empty while it does not answer."""
    told = cluster.run(node, "sh", "-c", "echo srvr | nc -w 2 127.0.0.1 2181", check=False).stdout
    return next((line.split()[-1] for line in told.splitlines() if line.startswith("Mode:")), "")


def test_zookeeper_server_killed(cluster: Cluster) -> None:
    """One that follows; the leader is killed in test_chaos.py."""
    with cluster.vm("steady") as vm:
        pid = cluster.qemu_pid("steady", vm["node"])
        victim = next(node for node in cluster.lab.nodes if zookeeper_mode(cluster, node) == "follower")
        cluster.run(victim, "systemctl", "kill", "-s", "KILL", "zookeeper")
        eventually(
            lambda: cluster.pvc("vm", "tag", "add", "steady", "killed", check=False).code == 0, within=30
        )
        eventually(lambda: zookeeper_mode(cluster, victim) != "", within=30)
        assert cluster.qemu_pid("steady", vm["node"]) == pid
        states = dict.fromkeys(cluster.lab.nodes, "run")

        def all_run() -> bool:
            return {one["name"]: one["daemon_state"] for one in cluster.json("node", "list")} == states

        eventually(all_run, within=30)
        cluster.pvc("vm", "shutdown", "steady", "--wait", "--timeout", "60")


def test_whole_store_down_and_back(cluster: Cluster) -> None:
    with cluster.vm("patient") as vm:
        pid = cluster.qemu_pid("patient", vm["node"])
        for node in cluster.lab.nodes:
            cluster.run(node, "systemctl", "stop", "zookeeper")
        refused = cluster.pvc("vm", "shutdown", "patient", check=False)
        assert refused.code == 5, refused
        for node in cluster.lab.nodes:
            cluster.run(node, "systemctl", "start", "zookeeper")
        eventually(
            lambda: cluster.pvc("vm", "tag", "add", "patient", "back", check=False).code == 0, within=40
        )
        assert cluster.qemu_pid("patient", vm["node"]) == pid
        eventually(lambda: cluster.info("patient")["state"] == "start", within=20)
        cluster.pvc("vm", "shutdown", "patient", "--wait", "--timeout", "60")


def test_node_loses_power_and_comes_back(cluster: Cluster) -> None:
    with cluster.vm("phoenix", "--target", "n3"):
        cluster.ticking("phoenix", "n3", more_than=3)
        cluster.lab.power("n3", "off")
        eventually(lambda: cluster.json("node", "info", "n3")["daemon_state"] == "dead", within=20)
        assert cluster.info("phoenix")["node"] == "n3", "without proof that n3 is off, its VMs are its own"
        cluster.lab.power("n3", "on")
        eventually(lambda: cluster.json("node", "info", "n3")["daemon_state"] == "run", within=60)
        eventually(lambda: cluster.qemus("phoenix") == ["n3"], within=30)
        eventually(lambda: cluster.info("phoenix")["state"] == "start", within=30)
