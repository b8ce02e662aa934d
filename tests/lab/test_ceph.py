"""VMs on a real Ceph: its daemons die, its nodes lose their power, and it fills up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.labs import RunningLab, with_ceph
from tests.support import eventually

pytestmark = with_ceph


@pytest.fixture(autouse=True)
def _whole_again(lab: RunningLab) -> Iterator[None]:
    yield
    lab.repair()


def ceph(lab: RunningLab, *words: str, node: str = "n1") -> Any:
    asked = ("ceph", "--name", "client.pvc", "--connect-timeout", "20", *words, "--format", "json")
    return json.loads(lab.run(node, *asked).stdout.strip() or "null")


def osds_up(lab: RunningLab) -> list[int]:
    return [one["osd"] for one in ceph(lab, "osd", "dump")["osds"] if one["up"]]


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


def test_what_it_holds_survives_the_power_cut_of_a_node(lab: RunningLab) -> None:
    ceph(lab, "osd", "pool", "create", "kept", "8")
    lab.sh("n1", "echo here >/tmp/what && rados -n client.pvc -p kept put what /tmp/what")
    lab.power("n3", "off")
    eventually(lambda: osds_up(lab) == [0, 1], within=60)
    lab.power("n3", "on")
    lab.settle(within=120)
    assert lab.sh("n3", "rados -n client.pvc -p kept get what -") == "here\n"
    ceph(lab, "osd", "pool", "rm", "kept", "kept", "--yes-i-really-really-mean-it")
