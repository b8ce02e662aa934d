"""A guest that writes, kept as it is at one moment and brought back to that."""

from __future__ import annotations

import pytest

from tests.lab.labs import RunningLab
from tests.lab.vms import Cluster
from tests.support import eventually

MIB = 1024**2


@pytest.fixture
def cluster(lab: RunningLab) -> Cluster:
    """With the pool vms, a directory that all its nodes share."""
    return Cluster(lab)


def parts(cluster: Cluster) -> list[int]:
    """How many snapshots each of its volumes has."""
    volumes = [row["name"] for row in cluster.json("storage", "volume", "list", "--pool", "vms")]
    return [len(cluster.json("storage", "volume", "snapshot", "list", "vms", name)) for name in volumes]


def test_a_guest_that_writes_goes_on_and_is_brought_back(cluster: Cluster) -> None:
    disks = ("--disk", "64M", "--disk", "16M")
    with cluster.vm("web", *disks, "--target", "n2", cmdline="pvc.write=vda"):
        before = cluster.writing("web", "n2", more_than=3)
        cluster.pvc("vm", "snapshot", "create", "web", "daily")
        later = cluster.writing("web", "n2", more_than=cluster.wrote("web", "n2") + 5)
        (row,) = cluster.json("vm", "snapshot", "list", "web")
        assert (row["name"], row["quiesced"], row["size_bytes"]) == ("daily", "paused", 80 * MIB)
        assert (cluster.info("web")["snapshots"], parts(cluster)) == (["daily"], [1, 1])
        refused = cluster.pvc("vm", "snapshot", "rollback", "web", "daily", "--yes", check=False)
        assert (refused.code, "a rollback needs it stopped" in refused.stderr) == (4, True)
        cluster.pvc("vm", "memory", "set", "web", "128M")
        cluster.pvc("vm", "stop", "web", "--yes", "--wait", "--timeout", "60")
        cluster.pvc("vm", "snapshot", "rollback", "web", "daily", "--yes")
        assert (cluster.info("web")["memory_mib"], parts(cluster)) == (96, [1, 1])
        cluster.pvc("vm", "start", "web", "--wait", "--timeout", "60")
        kept = eventually(lambda: (found := cluster.kept("web", "n2"))[1:] and found, within=90)
        assert before <= kept[-1] < later
        cluster.pvc("vm", "snapshot", "remove", "web", "daily", "--yes")
        assert (cluster.info("web")["snapshots"], parts(cluster)) == ([], [0, 0])
        cluster.writing("web", "n2", more_than=later)
