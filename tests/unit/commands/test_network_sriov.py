"""SR-IOV as users see it: devices, functions, and what is set of each."""

from __future__ import annotations

from typing import Any

import pytest

from pvc.cluster import paths
from pvc.cluster.codec import to_json
from pvc.cluster.sriov import PhysicalFunction, VFSettings, VirtualFunction
from pvc.errors import Conflict, Invalid, NotFound, PVCError
from tests.fakes.functions import EVERYTHING
from tests.unit.commands.world import World, a_world


def split(**settings: Any) -> World:
    """n1 has eth2 with two functions, of which the driver tells everything but trust."""
    world = a_world()
    known = tuple(name for name in EVERYTHING if name != "trust")
    functions = tuple(
        VirtualFunction(
            number,
            f"0000:03:10.{number}",
            f"02:00:00:00:00:0{number}",
            f"eth2v{number}",
            VFSettings(**settings),
            known,
        )
        for number in range(2)
    )
    device = PhysicalFunction("eth2", 2, "0000:03:00.0", 63, functions)
    world.edit(paths.node_status("n1"), sriov=[to_json(device)])
    return world


def test_devices_and_functions_are_listed() -> None:
    world = split()
    (device,) = world.call("network.sriov-pf-list", node="n1")
    assert (device["name"], device["functions"], device["total"]) == ("eth2", 2, 63)
    assert [one["name"] for one in world.call("network.sriov-vf-list", node="n1")] == ["eth2v0", "eth2v1"]
    assert world.call("network.sriov-pf-list", node="n2") == []
    found = world.call("network.sriov-vf-info", node="n1", function="eth2v1")
    assert (found["pci"], found["spoof_check"], found["unsupported"]) == ("0000:03:10.1", True, ["trust"])
    assert found["settled"]


def test_only_what_is_given_is_set_and_the_node_is_waited_for() -> None:
    world = split()
    after = world.call("network.sriov-vf-set", node="n1", function="eth2v0", vlan=7, qos=3)
    assert (after["settled"], after["activity"]) == (False, "about to set vlan, qos")
    world.call("network.sriov-vf-set", node="n1", function="eth2v0", tx_rate_max=500)
    world.call("network.sriov-vf-set", node="n1", function="eth2v1", spoof_check=False)
    wishes = world.plain(paths.node_sriov("n1"))["functions"]
    given = [{name: value for name, value in one.items() if value is not None} for one in wishes]
    assert given == [
        {"name": "eth2v0", "vlan": 7, "qos": 3, "tx_rate_max": 500},
        {"name": "eth2v1", "spoof_check": False},
    ]


def test_a_function_that_is_as_wanted_is_settled() -> None:
    world = split(vlan=7)
    found = world.call("network.sriov-vf-set", node="n1", function="eth2v0", vlan=7)
    assert (found["settled"], found["activity"]) == (True, "")


def test_what_the_node_could_not_set_ends_the_wait() -> None:
    world = split()
    world.call("network.sriov-vf-set", node="n1", function="eth2v0", vlan=7)
    said = "eth2v0: the kernel refuses vlan, qos of eth2: EBUSY"
    status = world.plain(paths.node_status("n1"))
    world.edit(paths.node_status("n1"), sriov=[{**status["sriov"][0], "problems": [said]}])
    found = world.call("network.sriov-vf-info", node="n1", function="eth2v0")
    assert (found["settled"], found["reason"]) == (True, said)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({}, Invalid, "needs something to set"),
        ({"qos": 3}, Invalid, "a priority needs a VLAN"),
        ({"tx_rate_min": 9, "tx_rate_max": 5}, Invalid, "is more than the greatest, 5"),
        ({"vlan": 4095}, Invalid, "at most 4094"),
        ({"trust": True}, Conflict, "the driver of eth2 knows no trust"),
        ({"function": "eth2v7", "vlan": 1}, NotFound, "n1 has no virtual function eth2v7"),
    ],
)
def test_what_cannot_be_changes_nothing(given: dict[str, Any], error: type[PVCError], said: str) -> None:
    world = split()
    before = world.documents()
    with pytest.raises(error, match=said):
        world.call("network.sriov-vf-set", **{"node": "n1", "function": "eth2v0", **given})
    assert world.documents() == before


def test_a_node_that_is_forgotten_takes_its_wishes_along() -> None:
    world = split()
    world.call("network.sriov-vf-set", node="n1", function="eth2v0", vlan=7)
    world.kill_node("n1")
    world.call("node.remove", node="n1")
    assert not [path for path in world.documents() if path.startswith(paths.node("n1"))]
