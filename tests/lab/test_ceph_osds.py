"""Disks of nodes that become OSDs of the lab's Ceph, and go again."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.labs import RunningLab, with_ceph
from tests.lab.vms import Cluster
from tests.support import eventually

pytestmark = with_ceph


@pytest.fixture
def disk(lab: RunningLab) -> Iterator[str]:
    """A new one of n2."""
    file = lab.directory / "spare-disk"
    with file.open("wb") as new:
        new.truncate(8 * 1024**3)
    made = subprocess.run(["losetup", "--find", "--show", file], capture_output=True, text=True, check=True)
    path = made.stdout.strip()
    lab.sh("n2", f"test -b {path} || mknod {path} b 7 {path.removeprefix('/dev/loop')}")
    yield path
    lab.sh("n2", f"systemctl stop 'ceph-osd@3'; rm -f {path}", check=False)
    subprocess.run(["losetup", "--detach", path], check=False)
    Path(file).unlink()


def states(cluster: Cluster) -> dict[int, str]:
    return {one["id"]: f"{one['node']} {one['state']}" for one in cluster.json("storage", "osd", "list")}


def test_a_disk_of_a_node_becomes_an_osd_and_goes_again(lab: RunningLab, disk: str) -> None:
    cluster = Cluster(lab)
    eventually(lambda: cluster.pvc("storage", "status", check=False).code == 0, within=60)
    assert cluster.json("storage", "status")["osds"] == {"total": 3, "up,in": 3}
    cluster.pvc("storage", "osd", "add", "n2", disk, "--yes")
    before = {0: "n1 up,in", 1: "n2 up,in", 2: "n3 up,in"}
    assert states(cluster) == {**before, 3: "n2 up,in"}
    known = cluster.json("storage", "osd", "info", "3")
    assert (known["node"], known["devices"], known["store"]) == ("n2", [disk], "bluestore")
    refused = cluster.pvc("storage", "osd", "add", "n2", disk, "--yes", "--force", check=False)
    assert (refused.code, f"{disk} has data or the database of OSD 3" in refused.stderr) == (4, True)
    # The manager's figures come some seconds late.
    eventually(lambda: cluster.json("storage", "util")["size_bytes"] > 3 * 32 * 1024**3, within=60)
    eventually(lambda: cluster.pvc("storage", "osd", "out", "3", check=False).code == 0, within=60)
    assert states(cluster)[3] == "n2 up,out"
    cluster.pvc("storage", "osd", "remove", "3", "--yes")
    assert states(cluster) == before
    assert lab.sh("n2", f"wipefs --no-act {disk}") == ""


def test_an_osd_that_is_down_is_named_by_the_status_of_the_cluster(lab: RunningLab) -> None:
    cluster, told = Cluster(lab), "OSD 2 on n3 is down"
    lab.sh("n3", "systemctl stop ceph-osd@2")
    try:
        eventually(lambda: told in cluster.json("cluster", "status")["problems"], within=60)
        assert states(cluster)[2] == "n3 down,in"
        known = cluster.json("storage", "osd", "info", "2")
        assert (known["state"], known["created_at"] < known["since"]) == ("down,in", True)
    finally:
        lab.sh("n3", "systemctl start ceph-osd@2")
    eventually(lambda: told not in cluster.json("cluster", "status")["problems"], within=60)


def test_a_flag_of_all_osds_shows(lab: RunningLab) -> None:
    cluster = Cluster(lab)
    cluster.pvc("storage", "osd", "set", "noout")
    assert cluster.json("storage", "status")["flags"] == ["noout"]
    cluster.pvc("storage", "osd", "unset", "noout")
    assert cluster.json("storage", "status")["flags"] == []
