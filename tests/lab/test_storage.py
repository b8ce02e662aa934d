"""Pools on real nodes: a shared directory, and a volume that a VM runs from."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.labs import RunningLab
from tests.lab.vms import Cluster
from tests.support import eventually


@pytest.fixture
def cluster(lab: RunningLab) -> Cluster:
    """With the pool vms, a directory that all its nodes share."""
    return Cluster(lab)


def volume(cluster: Cluster, name: str) -> Any:
    return cluster.json("storage", "volume", "info", "vms", name)


def test_a_vm_runs_from_a_volume_which_is_left_alone_on_every_node(cluster: Cluster) -> None:
    assert set(cluster.json("storage", "pool", "info", "vms")["nodes"].values()) == {"up"}
    cluster.pvc("storage", "volume", "add", "vms", "web1", "64M")
    found = volume(cluster, "web1")
    assert (found["size_bytes"], found["is_open"], found["vm"]) == (64 * 1024**2, False, None)
    again = cluster.pvc("storage", "volume", "add", "vms", "web1", "64M", check=False)
    assert (again.code, "there is a volume web1 already" in again.stderr) == (4, True)
    # On a node that is not the one that does the tasks: its QEMU's locks are seen from there.
    with cluster.vm("web1", "--target", "n3", "--disk", found["location"]):
        cluster.ticking("web1", "n3")
        eventually(lambda: volume(cluster, "web1")["is_open"], within=10)
        assert volume(cluster, "web1")["vm"] == "web1"
        removed = cluster.pvc("storage", "volume", "remove", "vms", "web1", "--yes", check=False)
        assert (removed.code, "is a disk of web1" in removed.stderr) == (4, True)
        kept = cluster.pvc("storage", "volume", "snapshot", "add", "vms", "web1", "s1", check=False)
        assert (kept.code, "web1 is in use" in kept.stderr) == (4, True)
        cluster.pvc("vm", "stop", "web1", "--yes", "--wait", "--timeout", "60")
        cluster.pvc("vm", "undefine", "web1", "--yes")
    eventually(lambda: not volume(cluster, "web1")["is_open"], within=30)
    cluster.pvc("storage", "volume", "snapshot", "add", "vms", "web1", "s1")
    cluster.pvc("storage", "volume", "remove", "vms", "web1", "--yes")
    assert cluster.json("storage", "volume", "list", "--pool", "vms") == []


def test_what_a_daemon_was_making_when_it_was_killed_is_lost_and_taken_away(cluster: Cluster) -> None:
    cluster.pvc("storage", "volume", "add", "vms", "large", "2G", "--image-format", "raw")
    where = volume(cluster, "large")["location"]
    cluster.run("n1", "sh", "-c", f"yes | head -c 2G | dd of={where} bs=1M conv=notrunc iflag=fullblock")
    begun = cluster.json("storage", "volume", "clone", "vms", "large", "copy", "--no-wait")
    daemon = cluster.run(begun["node"], "systemctl", "show", "-P", "MainPID", "pvc-node").stdout.strip()
    half = cluster.lab.layout.share / "vms" / f".task-{begun['name']}"
    eventually(half.exists, within=30)
    cluster.run(begun["node"], "kill", "-9", daemon)

    def is_undone() -> bool:
        found = cluster.json("task", "info", begun["name"])
        return found["state"] == "lost" and "not undone yet" not in found["reason"]

    eventually(is_undone, within=60, every=0.5)
    assert not half.exists()
    assert [one["name"] for one in cluster.json("storage", "volume", "list", "--pool", "vms")] == ["large"]
    cluster.pvc("storage", "volume", "remove", "vms", "large", "--yes")
