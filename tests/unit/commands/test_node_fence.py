"""The primary role and fences, as operations see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pvc.cluster import paths
from pvc.cluster.codec import dumps, from_json
from pvc.cluster.membership import Block, Evidence, Fence, FenceState, Primary, Step, StepKind
from pvc.cluster.node import BMC, BMCDriver
from pvc.cluster.store import Create
from pvc.commands.context import LocalContext
from pvc.commands.registry import find
from pvc.errors import Conflict, Invalid
from tests.unit.commands.test_vm_settings import ToWorld
from tests.unit.commands.world import World, a_world, well


def coordinators(*names: str) -> World:
    """n1 is primary."""
    world = a_world()
    for name in names:
        world.edit(paths.node(name), role="coordinator")
    world.store.commit(Create(paths.PRIMARY, dumps(Primary("n1", 1, 0)), ephemeral=True))
    return world


def with_fence(**fields: Any) -> World:
    world = a_world()
    world.kill_node("n3")
    world.store.commit(Create(paths.fence("n3", 1), dumps(Fence("n3", 1, **fields))))
    return world


def test_role_is_shown() -> None:
    rows = coordinators("n1", "n2").call("node.list")
    assert [row["coordinator_state"] for row in rows] == ["primary", "secondary", "hypervisor"]


@pytest.mark.parametrize(("node", "code"), [("n1", 0), ("n2", 1)])
def test_is_primary_answers_by_its_exit_code(node: str, code: int) -> None:
    world = coordinators("n1", "n2")
    ctx = LocalContext(lambda: ToWorld(world))
    assert find("node.is-primary").function(ctx, node) == code


def test_role_moves_to_whoever_is_wanted() -> None:
    world = coordinators("n1", "n2")
    assert world.call("node.info", node="n2")["settled"]
    shown = world.call("node.primary", node="n2")
    assert (shown["goal"], shown["settled"]) == ({"coordinator_state": "primary"}, False)
    assert [row["settled"] for row in world.call("node.list")] == [False, False, True]
    assert world.plain(paths.CLUSTER)["primary"] == "n2"
    world.call("node.primary", node="n1")
    world.call("node.secondary", node="n1")
    assert world.plain(paths.CLUSTER)["primary"] == "n2", "the other coordinator"
    world.call("node.secondary", node="n2")
    assert world.plain(paths.CLUSTER)["primary"] == "", "it is wanted no more, though it is not primary yet"


def test_last_coordinator_keeps_the_role() -> None:
    with pytest.raises(Conflict, match="n1 is the only coordinator"):
        coordinators("n1").call("node.secondary", node="n1")


def test_dead_coordinator_is_no_primary() -> None:
    world = coordinators("n1", "n2")
    world.kill_node("n2")
    with pytest.raises(Conflict, match="the daemon of n2 is dead"):
        world.call("node.primary", node="n2")


def test_fence_by_hand_is_an_intent() -> None:
    world = a_world()
    world.kill_node("n3")
    with pytest.raises(Conflict, match="no BMC"):
        world.call("node.fence", node="n3")
    shown = world.call("node.fence", node="n3", confirm_off=True)
    assert (shown["state"], shown["asked_by"], shown["confirmed"]) == ("suspect", "tester", True)
    world.edit(paths.node("n3"), bmc={"driver": "ipmi", "address": "a", "user": "u", "password": "p"})
    shown = world.call("node.fence", node="n3")
    assert not world.plain(paths.fence("n3", 1))["confirmed"], "the newer word replaces the older"
    assert from_json(BMC, world.plain(paths.node("n3"))["bmc"]).driver is BMCDriver.IPMI


def test_fence_that_was_just_asked_for_is_the_newest() -> None:
    world = with_fence(state=FenceState.FAILED, since=5.0)
    world.kill_node("n2")
    world.call("node.fence", node="n2", confirm_off=True)
    assert [one["node"] for one in world.call("node.fences")] == ["n2", "n3"]


def test_readiness_of_one_node_or_of_all() -> None:
    world = well()
    world.edit(paths.verified("n1"), found=[{"node": "n3", "problem": "silence", "at": 0.0}])
    shown = world.call("node.readiness", node="n3")
    assert [row["node"] for row in shown["nodes"]] == ["n3"]
    assert (shown["ready"], shown["reason"]) == (False, "n3: n1 could not fence it: silence")
    rows = world.call("node.readiness")["nodes"]
    assert {row["node"]: row["fenced_by"] for row in rows} == {"n1": ["bmc"], "n2": [], "n3": []}


def test_wish_to_verify_is_settled_when_every_coordinator_has_answered() -> None:
    world = well()
    shown = world.call("node.verify")
    assert (shown["settled"], shown["activity"]) == (False, "the BMCs are being tried by n1, n2, n3")
    for name in ("n1", "n2"):
        world.edit(paths.verified(name), asked=1)
    assert world.call("node.readiness")["activity"] == "the BMCs are being tried by n3"
    world.kill_node("n3")
    assert world.call("node.readiness")["settled"], "nobody waits for one who is gone"


def test_verify_shows_what_this_life_of_a_node_promises() -> None:
    world = well()
    without_bmc(world)
    with pytest.raises(Conflict, match=r"n3 has no BMC and promises nothing by a watchdog$"):
        world.call("node.verify", node="n3")
    world.edit(paths.node_status("n3"), watchdog="it burns")
    (row,) = world.call("node.readiness", node="n3")["nodes"]
    assert row["watchdog"] == "promises nothing by a watchdog (it burns)"
    world.edit(paths.node_status("n3"), watchdog="dog, 8 s", quiet_after_s=30.3)
    (row,) = world.call("node.verify", node="n3")["nodes"]
    assert row["watchdog"] == "dog, 8 s: nothing of it runs 30.3 s after it is gone"


def test_drill_is_an_intent_with_a_name() -> None:
    world = well()
    shown = world.call("node.fence", node="n3", drill=True)
    assert (shown["asked_by"], shown["drill"], shown["confirmed"]) == ("tester", "tester", False)


def without_bmc(world: World) -> None:
    world.call("node.bmc", node="n3", remove=True)


def with_watchdog_only(world: World) -> None:
    world.edit(paths.verified("n1"), found=[{"node": "n3", "problem": "silence", "at": 0.0}])
    world.edit(paths.node_status("n3"), quiet_after_s=30.0)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda world: world.kill_node("n2"), "no drill while n2 is dead"),
        (lambda world: world.kill_node("n3"), "no drill while n3 is dead"),
        (lambda world: world.call("cluster.maintenance", switch="on"), "maintenance is on"),
        (lambda world: world.call("node.flush", node="n2"), "web1 fit nowhere|fit nowhere else: web1"),
        (without_bmc, "has no BMC"),
        (with_watchdog_only, "a drill needs a BMC that works: n1 could not fence it: silence"),
    ],
)
def test_drill_is_refused_where_it_would_be_a_failure(spoil: Callable[[World], object], says: str) -> None:
    world = well()
    world.edit(paths.load("n1"), memory_free_mib=0)
    world.call("vm.move", vm="web1", target="n3")
    world.runs("web1", "n3")
    spoil(world)
    before = world.documents()
    with pytest.raises(Conflict, match=says):
        world.call("node.fence", node="n3", drill=True)
    assert world.documents() == before


def test_drill_is_no_word_of_an_operator() -> None:
    with pytest.raises(Invalid, match="exclude each other"):
        well().plan("node.fence", node="n3", drill=True, confirm_off=True)


def test_receipt_shows_as_fenced_everywhere() -> None:
    world = with_fence(state=FenceState.FENCED, evidence=Evidence.POWER_OFF, judge="n1", fence_s=0.5)
    assert world.call("node.info", node="n3")["daemon_state"] == "fenced"
    told = "n3 was fenced by n1 after 0.5 s, the evidence: its BMC says that it is off"
    assert f"node n3 is fenced: {told}" in world.call("cluster.status")["problems"]
    assert told in world.call("why.node", node="n3")["because"]
    (receipt,) = world.call("node.fences")
    assert (receipt["node"], receipt["evidence"]) == ("n3", "power-off")
    assert world.call("node.fences", limit="n1") == []
    with pytest.raises(Conflict, match="n3 is fenced already"):
        world.call("node.fence", node="n3", confirm_off=True)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"state": FenceState.FAILED, "attempts": 2, "reason": "no answer"},
            "not be fenced (2 tries): no answer",
        ),
        ({"state": FenceState.FENCING}, "n3 is being fenced"),
        ({"state": FenceState.FENCED, "evidence": Evidence.OPERATOR}, "somebody's word"),
        ({"state": FenceState.FENCED, "evidence": Evidence.WATCHDOG}, "by its promise"),
        ({"state": FenceState.FENCED, "evidence": Evidence.STOPPED}, "its own last word"),
    ],
)
def test_status_says_how_a_fence_goes(fields: dict[str, Any], told: str) -> None:
    world = with_fence(**fields)
    assert any(told in problem for problem in world.call("cluster.status")["problems"])


def test_why_fence_tells_each_step() -> None:
    steps = (
        Step(0.0, StepKind.CONTACT),
        Step(6.0, StepKind.GONE),
        Step(8.0, StepKind.FENCING),
        Step(8.5, StepKind.FENCED),
        Step(8.6, StepKind.RELEASED, "web1", "n1"),
        Step(8.7, StepKind.RELEASED, "big"),
        Step(8.8, StepKind.STOPPED, "old"),
        Step(9.7, StepKind.RUNNING, "web1", "n1"),
    )
    world = with_fence(state=FenceState.FENCED, evidence=Evidence.OPERATOR, judge="n1", timeline=steps)
    assert world.call("why.fence", node="n3")["because"][1:] == [
        "6.0 s after its last contact: its session ended",
        "8.0 s after its last contact: the first attempt to fence it",
        "8.5 s after its last contact: fenced",
        "8.6 s after its last contact: web1 released for n1",
        "8.7 s after its last contact: big released, it fits nowhere",
        "8.8 s after its last contact: old released, it was to be stopped",
        "9.7 s after its last contact: web1 runs on n1",
    ]


def test_receipt_of_an_earlier_life_says_nothing_of_this_one() -> None:
    world = with_fence(state=FenceState.FENCED, evidence=Evidence.POWER_OFF)
    world.edit(paths.node_status("n3"), incarnation=2)
    assert world.call("node.info", node="n3")["daemon_state"] == "dead"


@pytest.mark.parametrize(
    ("block", "is_told"),
    [
        (Block("n3", 1, ("10.0.0.3",), epoch=7), True),
        (Block("n3", 1, ("10.0.0.3",)), False),
        (Block("n3", 1, ("10.0.0.3",), epoch=7, lifted=True), False),
        (Block("n3", 0, ("10.0.0.3",), epoch=7), False),
    ],
    ids=("proven", "not proven", "lifted", "of an earlier life"),
)
def test_who_is_shut_out_of_ceph_is_told_so(block: Block, is_told: bool) -> None:
    world = with_fence(state=FenceState.FAILED, attempts=2, reason="the BMC of n3 does not answer")
    world.store.commit(Create(paths.block("n3"), dumps(block)))
    (fence,) = world.call("node.fences")
    assert fence["evidence"] == ("blocklist" if is_told else "")
    for said in (world.call("why.fence", node="n3")["because"], world.call("why.node", node="n3")["because"]):
        assert any("only in Ceph go on elsewhere" in line for line in said) is is_told


def test_receipt_outweighs_the_block_list() -> None:
    world = with_fence(state=FenceState.FENCED, evidence=Evidence.WATCHDOG, finished=True)
    world.store.commit(Create(paths.block("n3"), dumps(Block("n3", 1, ("10.0.0.3",), epoch=7))))
    assert world.call("node.fences")[0]["evidence"] == "watchdog"
