"""Disks of a real guest, from a shared directory: they come, grow and go while it runs, and go with it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.lab.labs import RunningLab
from tests.lab.vms import Cluster
from tests.support import eventually

MIB = 1024**2
SEEN = re.compile(r"^disks((?: [a-z]+=\d+)*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def cluster(lab: RunningLab) -> Iterator[Cluster]:
    """web boots with one new disk, on a node that is not the one that makes it."""
    made = Cluster(lab)
    with made.vm("web", "--disk", "64M", "--target", "n2"):
        made.ticking("web", "n2")
        yield made
    made.remove("shop")


def in_guest(cluster: Cluster, node: str) -> dict[str, int]:
    """Sizes by name, as its kernel says on its console."""
    uuid = cluster.info("web")["uuid"]
    text = cluster.run(node, "cat", f"/var/log/pvc/console/{uuid}.log").stdout.replace("\r", "")
    found = SEEN.findall(text)
    return (
        {name: int(size) for name, size in (word.split("=") for word in found[-1].split())} if found else {}
    )


def sees(cluster: Cluster, **sizes: int) -> None:
    """The guest does, and nothing is pending."""
    eventually(lambda: in_guest(cluster, "n2") == sizes, within=30.0, every=0.5)
    rows = cluster.json("vm", "volume", "get", "web")
    assert [(row["device"], row["state"]) for row in rows] == [(name, "live") for name in sizes]
    found = eventually(lambda: (info := cluster.info("web"))["settled"] and info, within=10)
    assert (found["pending_restart"], found["refused"]) == (False, "")


def volumes(cluster: Cluster) -> list[str]:
    return [row["name"] for row in cluster.json("storage", "volume", "list", "--pool", "vms")]


def test_a_running_guest_gets_disks_sees_them_grow_and_gives_them_up(cluster: Cluster) -> None:
    sees(cluster, vda=64 * MIB)
    cluster.pvc("vm", "volume", "add", "web", "vms/32M")
    cluster.pvc("storage", "volume", "add", "vms", "data", "16M", "--image-format", "raw")
    cluster.pvc("vm", "volume", "add", "web", "vms/data")
    sees(cluster, vda=64 * MIB, vdb=32 * MIB, vdc=16 * MIB)
    assert volumes(cluster) == ["data", "web-vda", "web-vdb"]
    for name, size, was in (("web-vdb", 48 * MIB, "vdb"), ("data", 16 * MIB + 512, "vdc")):
        cluster.pvc("storage", "volume", "resize", "vms", name, str(size))
        assert cluster.json("storage", "volume", "info", "vms", name)["size_bytes"] == size, was
    sees(cluster, vda=64 * MIB, vdb=48 * MIB, vdc=16 * MIB + 512)
    refused = cluster.pvc("storage", "volume", "remove", "vms", "data", "--yes", check=False)
    assert (refused.code, "is a disk of web" in refused.stderr) == (4, True)
    cluster.pvc("vm", "volume", "remove", "web", "vms/web-vdb", "--wait", "--timeout", "60")
    sees(cluster, vda=64 * MIB, vdc=16 * MIB + 512)
    cluster.pvc("storage", "volume", "remove", "vms", "web-vdb", "--yes")
    cluster.pvc("vm", "migrate", "web", "--target", "n3", "--wait", "--timeout", "60")
    cluster.pvc("vm", "unmigrate", "web", "--wait", "--timeout", "60")
    assert [row["state"] for row in cluster.json("vm", "volume", "get", "web")] == ["live", "live"]


def test_its_disks_change_their_name_and_go_with_it(cluster: Cluster) -> None:
    cluster.pvc("vm", "stop", "web", "--yes", "--wait", "--timeout", "60")
    cluster.pvc("vm", "rename", "web", "shop")
    assert volumes(cluster) == ["data", "shop-vda"]
    cluster.pvc("vm", "start", "shop", "--wait", "--timeout", "60")
    refused = cluster.pvc("vm", "remove", "shop", "--yes", check=False)
    assert (refused.code, "needs it stopped" in refused.stderr) == (4, True)
    cluster.pvc("vm", "stop", "shop", "--yes", "--wait", "--timeout", "60")
    cluster.pvc("storage", "volume", "snapshot", "add", "vms", "shop-vda", "s1")
    cluster.pvc("vm", "remove", "shop", "--yes")
    assert volumes(cluster) == []
    assert cluster.run("n1", "ls", "-A", "/srv/share/vms").stdout.split() == [".pvc-pool"]
    assert cluster.json("vm", "list") == []
