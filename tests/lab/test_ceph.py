"""VMs on a real Ceph: its daemons die, its nodes lose their power, and it fills up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.lab import dying
from tests.lab.dying import seen
from tests.lab.labs import RunningLab, with_ceph
from tests.lab.vms import Cluster
from tests.support import eventually

pytestmark = with_ceph

MORE = 5
"""Numbers that a guest writes until it counts as going on."""
SIZE = 1_000_000_512
"""No round number, though whole sectors."""


@pytest.fixture(autouse=True)
def _whole_again(lab: RunningLab) -> Iterator[None]:
    yield
    lab.repair()


@pytest.fixture(scope="module")
def cluster(lab: RunningLab) -> Cluster:
    return Cluster(lab)


@contextmanager
def writing_vm(cluster: Cluster, name: str, node: str) -> Iterator[None]:
    """A guest that counts on its disk in Ceph, once it does."""
    with cluster.vm(name, "--disk", "ceph/64M", "--target", node, cmdline="pvc.write=vda"):
        cluster.writing(name, node, more_than=MORE)
        yield


def goes_on(cluster: Cluster, name: str, node: str, within: float = 90) -> int:
    """Wait until the guest has written some more."""
    return cluster.writing(name, node, more_than=cluster.wrote(name, node) + MORE, within=within)


def ceph(lab: RunningLab, *words: str, node: str = "n1") -> Any:
    asked = ("ceph", "--name", "client.pvc", "--connect-timeout", "20", *words, "--format", "json")
    return json.loads(lab.run(node, *asked).stdout.strip() or "null")


def osds_up(lab: RunningLab, node: str = "n1") -> list[int]:
    return [one["osd"] for one in ceph(lab, "osd", "dump", node=node)["osds"] if one["up"]]


def quorum(lab: RunningLab, node: str = "n1") -> list[str]:
    found: list[str] = ceph(lab, "quorum_status", node=node)["quorum_names"]
    return sorted(found)


# The lab's own


def test_every_node_has_its_daemons(lab: RunningLab) -> None:
    assert {name: one["ceph"] for name, one in lab.states().items()} == {
        "n1": ["mgr", "mon", "osd"],
        "n2": ["mgr", "mon", "osd"],
        "n3": ["mon", "osd"],
    }
    assert osds_up(lab) == [0, 1, 2]
    hosts = [one for one in ceph(lab, "osd", "tree")["nodes"] if one["type"] == "host"]
    assert {one["name"]: one["children"] for one in hosts} == {"n1": [0], "n2": [1], "n3": [2]}


# Faults


def test_a_vm_writes_on_while_it_migrates_and_while_its_disk_grows(cluster: Cluster) -> None:
    with writing_vm(cluster, "mover", "n1"):
        cluster.pvc("vm", "migrate", "mover", "--target", "n2", "--wait", "--timeout", "60")
        assert cluster.qemus("mover") == ["n2"]
        last = cluster.wrote("mover", "n1")
        assert cluster.writing("mover", "n2", more_than=last) > last
        assert cluster.kept("mover", "n2") == [], "it did not boot there"
        assert cluster.disks("mover", "n1") == {"vda": 64 * 1024**2}
        (disk,) = cluster.info("mover")["disks"]
        cluster.pvc("storage", "volume", "resize", "ceph", disk["source"].partition("/")[2], "96M")
        eventually(lambda: cluster.disks("mover", "n2") == {"vda": 96 * 1024**2}, within=30)
        goes_on(cluster, "mover", "n2")


def test_a_vm_writes_on_while_an_osd_and_a_monitor_die(cluster: Cluster, lab: RunningLab) -> None:
    node = "n1"
    with writing_vm(cluster, "steady", node):
        lab.lab("kill", "n2", "ceph-osd@1")
        goes_on(cluster, "steady", node)
        lab.settle()
        # Halted, which nobody is told, as if the machine of the monitor hung.
        lab.lab("kill", "n3", "ceph-mon@n3", "--stop")
        eventually(lambda: quorum(lab) == ["n1", "n2"], within=60, every=0.5)
        goes_on(cluster, "steady", node)
        lab.lab("kill", "n3", "ceph-mon@n3", "--cont")
        lab.lab("kill", "n3", "ceph-mon@n3")
        lab.settle()
        goes_on(cluster, "steady", node)
        assert cluster.kept("steady", node) == [0], "it booted once"


def test_a_vm_runs_elsewhere_after_a_power_cut_with_what_it_wrote(lab: RunningLab, cluster: Cluster) -> None:
    """Its monitor and its OSD are gone as well; what the guest was told is on its disk is there."""
    with dying.armed(lab) as armed:
        victim = dying.secondary(armed)
        armed.asked = next(name for name in lab.nodes if name != victim)
        with writing_vm(armed, "brave", victim):
            armed.lab.power(victim, "off")
            last = armed.wrote("brave", victim)
            place = seen(lambda: dying.where(armed, "brave", victim), within=60)
            armed.writing("brave", place, more_than=last, within=120)
            (kept,) = armed.kept("brave", place)
            assert kept in (last, last + 1), "one may have been written that it was not told of"
            seen(lambda: armed.json("node", "info", victim)["daemon_state"] == "run", within=90)
            armed.lab.settle(within=120)
            goes_on(armed, "brave", place)


# Full


def test_of_a_full_ceph_nobody_gets_a_volume_and_a_guest_waits_until_there_is_room(
    cluster: Cluster, lab: RunningLab
) -> None:
    with writing_vm(cluster, "patient", "n1"):
        with full(lab):
            seen(lambda: health(cluster).startswith("full:"), within=60)  # and no longer only nearly so
            refused = cluster.pvc("storage", "volume", "add", "ceph", "late", "1G", check=False)
            assert refused.code != 0
            assert "pool ceph" in refused.stderr
            (there,) = volumes(cluster)
            changing = ("volume", "snapshot", "add", "ceph", there["name"], "tue")
            refused = cluster.pvc("storage", *changing, check=False)
            assert "Ceph is full" in refused.stderr
            assert [one["name"] for one in volumes(cluster)] == [there["name"]]
            eventually(lambda: stands_still(cluster, "patient", "n1"), within=60)
        goes_on(cluster, "patient", "n1")
        assert cluster.kept("patient", "n1") == [0], "it booted once"


@contextmanager
def full(lab: RunningLab) -> Iterator[None]:
    """As Ceph sees it: what it holds by now is more than it takes."""
    ratios = {"nearfull": "0.85", "backfillfull": "0.90", "full": "0.95"}
    for at, ratio in enumerate(ratios):
        ceph(lab, "osd", f"set-{ratio}-ratio", f"0.00{at + 1}")
    try:
        yield
    finally:
        for ratio, usual in reversed(ratios.items()):
            ceph(lab, "osd", f"set-{ratio}-ratio", usual)


def stands_still(cluster: Cluster, name: str, node: str) -> bool:
    last = cluster.wrote(name, node)
    dying.pause(5)
    return cluster.wrote(name, node) == last


def health(cluster: Cluster) -> str:
    return str(cluster.json("storage", "pool", "info", "ceph")["health"])


# Many


def volumes(cluster: Cluster) -> list[Any]:
    found: list[Any] = cluster.json("storage", "volume", "list", "--pool", "ceph")
    return found


def test_fifty_volumes_are_made_and_removed_at_once(cluster: Cluster) -> None:
    all_fifty = "for n in $(seq -w 0 49); do pvc -q storage volume {} & done; wait"
    cluster.lab.sh("n1", all_fifty.format(f"add ceph many$n {SIZE}"))
    assert {one["name"]: one["size_bytes"] for one in volumes(cluster)} == {
        f"many{number:02}": SIZE for number in range(50)
    }
    cluster.lab.sh("n1", all_fifty.format("remove ceph many$n --yes"))
    assert cluster.lab.sh("n1", "rbd -n client.pvc ls ceph") == "", "nor halves of any"
