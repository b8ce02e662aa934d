"""Whether a node could be lost now: values in, reasons out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.node import BMC, Alive, BMCDriver, DaemonState, Load, NodeRole, NodeSpec, NodeStatus
from pvc.cluster.readiness import Facts, Readiness, readiness
from pvc.cluster.verification import AGAIN_S, HOUR_S, Look, Verification, Verified, Wish, due_at, wished
from pvc.cluster.view import VM, Node
from pvc.cluster.vm import Owner, Power
from tests.unit.node.pictures import UUID, spec, status

WALL = 1_000_000.0
A_BMC = BMC(BMCDriver.IPMI, "10.0.0.201", "admin", "sealed")
NAMES = ("n1", "n2", "n3")


def node(name: str, *, alive: bool = True, bmc: BMC | None = A_BMC, quiet: float = 0.0) -> Node:
    role = NodeRole.COORDINATOR if name in NAMES else NodeRole.HYPERVISOR
    told = NodeStatus(
        1,
        DaemonState.RUN,
        cpus=4,
        memory_mib=8192,
        bridges=("br0",),
        watchdog="dog, 6 s",
        quiet_after_s=quiet,
    )
    live = Alive(1) if alive else None
    return Node(NodeSpec(name, "a", "a", role, bmc=bmc), 1, told, 1, live, Load(memory_free_mib=4000), 1)


def vm(number: int, on: str, **fields: Any) -> VM:
    uuid = f"{number:08d}{UUID[8:]}"
    return VM(spec(uuid=uuid, name=f"vm{number}", node=on, **fields), 1, status(Owner(on, 1)), 1)


def found(*problems: tuple[str, str, str], at: float = WALL) -> dict[str, Verification]:
    """Each coordinator could switch every other off, but for (who, whom, why not)."""
    said = {(who, whom): why for who, whom, why in problems}
    every = (*NAMES, "n4")
    return {
        one: Verification(0, tuple(Verified(to, said.get((one, to), ""), at) for to in every if to != one))
        for one in NAMES
    }


def facts(*vms: VM, **changes: Any) -> Facts:
    given: dict[str, Any] = {
        "cluster": ClusterSpec("test"),
        "nodes": {name: node(name) for name in NAMES},
        "vms": {one.spec.uuid: one for one in vms},
        "verifications": found(),
        "wall": WALL,
    }
    return Facts(**{**given, **changes})


def of(facts: Facts, name: str) -> Readiness:
    return next(one for one in readiness(facts) if one.node == name)


def with_node(facts: Facts, new: Node) -> Facts:
    return replace(facts, nodes={**facts.nodes, new.spec.name: new})


def test_a_well_cluster_can_lose_any_node() -> None:
    ready = readiness(facts(vm(1, "n1"), vm(2, "n2")))
    assert [one.can_be_lost for one in ready] == [True, True, True]
    assert {one.fenced_by for one in ready} == {("bmc",)}
    assert {one.verified_at for one in ready} == {WALL}


def test_majority_of_the_coordinators_has_to_be_left() -> None:
    one_is_gone = with_node(facts(), node("n3", alive=False))
    assert [one.node for one in readiness(one_is_gone)] == ["n1", "n2"], "who is lost already is no question"
    assert of(one_is_gone, "n1").why_not == ("of 3 coordinators 1 would be left, and 2 are needed",)
    hypervisor = with_node(one_is_gone, node("n4"))
    assert of(hypervisor, "n4").can_be_lost


def test_zookeeper_server_that_does_not_serve_is_no_vote() -> None:
    """Its daemon runs, and talks to another server."""
    down = found()
    down["n3"] = replace(down["n3"], is_store_down=True)
    ready = readiness(facts(verifications=down))
    assert [one.can_be_lost for one in ready] == [False, False, True]


def test_room_is_needed_for_every_vm_and_taken_once() -> None:
    """N-1, VM by VM: what one takes the next does not find any more."""
    vms = [vm(number, "n1", memory_mib=3000) for number in range(3)]
    assert of(facts(*vms[:2]), "n1").can_be_lost
    assert of(facts(*vms), "n1").why_not == ("these VMs fit nowhere else: vm2",)
    important = vm(2, "n1", memory_mib=3000, start_priority=200)
    assert of(facts(*vms[:2], important), "n1").why_not == ("these VMs fit nowhere else: vm1",)
    stopped = vm(2, "n1", memory_mib=3000, power=Power.STOPPED)
    assert of(facts(*vms[:2], replace(stopped, status=replace(stopped.status, owner=None))), "n1").can_be_lost


def test_limits_and_bridges_count() -> None:
    assert of(facts(vm(1, "n1", node_limit=("n1",))), "n1").why_not == ("these VMs fit nowhere else: vm1",)
    assert not of(facts(vm(1, "n1", definition="<domain")), "n1").can_be_lost


def test_many_vms_are_not_all_named() -> None:
    vms = [vm(number, "n1", memory_mib=9000) for number in range(12)]
    (why,) = of(facts(*vms), "n1").why_not
    assert why.endswith("vm9 and 2 more")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"verifications": {}}, "n1 has not tried its BMC yet"),
        (
            {"verifications": found(("n1", "n2", "refused"))},
            "n1 could not fence it: refused",
        ),
        ({"verifications": found(at=WALL - 3 * HOUR_S)}, "n1 has not tried its BMC for 3 hours"),
    ],
)
def test_bmc_counts_only_when_each_coordinator_could_use_it_now(changes: dict[str, Any], says: str) -> None:
    """The primary of tomorrow too; a node cannot fence itself, so it is not asked."""
    ready = of(facts(**changes), "n2")
    assert not ready.can_be_lost
    assert ready.fenced_by == ()
    assert ready.why_not[0].startswith(says)


def test_watchdog_is_a_way_where_there_is_no_other() -> None:
    armed = with_node(facts(), node("n2", bmc=None, quiet=30.0))
    promise = "dog, 6 s: nothing of it runs 30.0 s after it is gone"
    assert of(armed, "n2") == Readiness("n2", True, ("watchdog",), WALL, (), (), promise)
    assert of(armed, "n1").watchdog == "promises nothing by a watchdog (dog, 6 s)"
    broken = replace(facts(verifications=found(("n1", "n2", "silence"))))
    both = of(with_node(broken, node("n2", quiet=30.0)), "n2")
    assert (both.can_be_lost, both.fenced_by) == (True, ("watchdog",))
    assert both.fence_problems == ("n1 could not fence it: silence",), "and yet somebody should look at it"


def test_nothing_can_be_lost_in_maintenance() -> None:
    ready = of(facts(cluster=ClusterSpec("test", maintenance=True)), "n1")
    assert ready.why_not == ("maintenance is on: nothing is fenced",)


def test_one_node_alone_has_nobody() -> None:
    alone = replace(facts(), nodes={"n1": node("n1")})
    assert of(alone, "n1").why_not == (
        "of 1 coordinators 0 would be left, and 1 are needed",
        "there is no other coordinator that could fence it",
    )


# When to look


def test_bmc_is_looked_at_every_hour_and_sooner_after_a_failure_or_a_change() -> None:
    good = Look(A_BMC, 100.0, Verified("n2", "", WALL))
    assert due_at(node("n2"), None) == 0.0
    assert due_at(node("n2"), good) == 100.0 + HOUR_S
    assert due_at(node("n2"), replace(good, found=Verified("n2", "silence", WALL))) == 100.0 + AGAIN_S
    assert due_at(node("n2", bmc=replace(A_BMC, user="other")), good) == 0.0
    assert due_at(node("n2", bmc=None), good) is None
    assert due_at(node("n2", alive=False), good) is None, "it is fenced, not looked at"


def test_who_missed_a_wish_looks_at_all() -> None:
    nodes = {name: node(name) for name in NAMES}
    assert wished(Wish(3, "n2"), 3, nodes) == set()
    assert wished(Wish(3, "n2"), 2, nodes) == {"n2"}
    assert wished(Wish(3, "n2"), 1, nodes) == set(NAMES)
    assert wished(Wish(3, ""), 2, nodes) == set(NAMES)
    assert wished(Wish(3, "n9"), 2, nodes) == set()
