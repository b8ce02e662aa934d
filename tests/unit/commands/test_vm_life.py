"""start, shutdown, stop, restart, disable: what they write, from every state."""

from __future__ import annotations

import pytest

from pvc.cluster import paths
from pvc.cluster.vm import Migration, Power, Recovery, State
from pvc.errors import Conflict
from tests.unit.commands.test_vm import failed
from tests.unit.commands.world import UUID, World, a_world, with_vm, xml_of


def spec_of(world: World) -> tuple[Power, bool, str | None, int, int]:
    spec = world.spec("web1")
    return spec.power, spec.force, spec.node, spec.attempts, spec.restarts


def test_start_stays_on_its_node_when_that_can_take_it() -> None:
    world = with_vm(node="n3")
    shown = world.call("vm.start", vm="web1")
    assert spec_of(world) == (Power.STARTED, False, "n3", 1, 0)
    assert (shown["state"], shown["settled"], shown["goal"]) == ("starting", False, {"state": "start"})
    world.check_invariants()


def test_start_places_a_vm_without_a_node() -> None:
    world = with_vm(node=None)
    planned = world.plan("vm.start", vm="web1")
    assert "web1 goes to n1: most free memory (6900 MiB)" in planned["plan"]
    world.call("vm.start", vm="web1")
    assert world.spec("web1").node == "n1"
    assert world.spec("web1").moves == 1
    world.check_invariants()


def test_start_places_anew_when_its_node_cannot_take_it() -> None:
    world = with_vm(node="n2")
    world.kill_node("n2")
    planned = world.plan("vm.start", vm="web1")
    assert "not on n2, its node: its daemon is dead" in planned["plan"]
    world.call("vm.start", vm="web1")
    assert world.spec("web1").node == "n1"
    world.check_invariants()


def test_start_places_anew_when_its_node_is_gone() -> None:
    world = with_vm(node="n2")
    world.call("vm.start", vm="web1")
    world.edit(paths.vm(UUID), node="n9", power="stopped")
    with_index = world.call("vm.info", vm="web1")
    assert with_index["node"] == "n9"
    planned = world.plan("vm.start", vm="web1")
    assert any("no node of the cluster any more" in line for line in planned["plan"])


def test_start_says_for_each_node_why_not() -> None:
    world = a_world()
    world.kill_node("n1")
    world.call("vm.define", xml=xml_of(memory_mib=6850, bridge="br0"))
    world.call("node.flush", node="n3")
    with pytest.raises(Conflict) as caught:
        world.call("vm.start", vm="web1")
    assert caught.value.message == (
        "no node can take web1: n1: its daemon is dead; n2: 6850 MiB do not fit its free 6800 MiB; "
        "n3: it is flushed"
    )


def test_start_with_force_overlooks_size_and_nothing_else() -> None:
    world = a_world()
    world.call("vm.define", xml=xml_of(memory_mib=100_000))
    world.call("node.flush", node="n1")
    world.call("vm.start", vm="web1", force=True)
    assert world.spec("web1").node == "n2"
    assert world.spec("web1").memory_mib == 100_000


def test_start_needs_a_node_with_its_bridge() -> None:
    world = a_world()
    world.add_node("n4", bridges=("br0", "br7"), free_mib=600)
    world.call("vm.define", xml=xml_of(bridge="br7"))
    world.call("vm.start", vm="web1")
    assert world.spec("web1").node == "n4"


def test_start_of_one_that_runs_changes_nothing() -> None:
    world = with_vm("running")
    before = world.documents()
    shown = world.call("vm.start", vm="web1")
    assert world.documents() == before
    assert (shown["state"], shown["settled"]) == ("start", True)
    assert world.plan("vm.start", vm="web1") == {"plan": ["web1 is started already"], "changes": []}


def test_start_again_before_its_node_has_looked_changes_nothing() -> None:
    world = with_vm()
    world.call("vm.start", vm="web1")
    before = world.documents()
    world.call("vm.start", vm="web1")
    assert world.documents() == before


def test_start_again_finds_a_place_when_its_node_died_before_it_looked() -> None:
    world = with_vm(node="n2")
    world.call("vm.start", vm="web1")
    world.kill_node("n2")
    world.call("vm.start", vm="web1")
    assert (world.spec("web1").node, world.spec("web1").attempts) == ("n1", 2)
    world.check_invariants()


def test_start_of_one_that_failed_is_a_new_attempt() -> None:
    world = failed()
    assert world.call("vm.info", vm="web1")["state"] == "fail"
    shown = world.call("vm.start", vm="web1")
    assert world.spec("web1").attempts == 2
    assert (shown["state"], shown["settled"]) == ("starting", False)


def test_start_of_one_that_waits_before_its_next_try_tries_at_once() -> None:
    world = with_vm()
    world.call("vm.start", vm="web1")
    world.status_is("web1", state=State.STARTING, attempts=1, failures=2, reason="the guest crashed")
    assert world.call("vm.info", vm="web1")["activity"] == "to be started again on n1 after 2 failures"
    world.call("vm.start", vm="web1")
    assert world.spec("web1").attempts == 2


def test_start_while_it_shuts_down_makes_it_start_again() -> None:
    world = with_vm("running")
    world.call("vm.shutdown", vm="web1")
    world.status_is("web1", state=State.SHUTDOWN)
    shown = world.call("vm.start", vm="web1")
    assert spec_of(world) == (Power.STARTED, False, "n1", 2, 1)
    assert shown["settled"] is False
    world.runs("web1")
    assert world.call("vm.info", vm="web1")["settled"] is True


@pytest.mark.parametrize(("verb", "force"), [("vm.shutdown", False), ("vm.stop", True)])
def test_shutdown_asks_and_stop_does_not(verb: str, force: bool) -> None:
    world = with_vm("running")
    shown = world.call(verb, vm="web1")
    assert spec_of(world) == (Power.STOPPED, force, "n1", 1, 0)
    assert (shown["goal"], shown["settled"]) == ({"state": "stop"}, False)
    assert shown["activity"] == ("being stopped" if force else "shutting down")
    world.ended("web1")
    assert world.call("vm.info", vm="web1")["settled"] is True


@pytest.mark.parametrize("verb", ["vm.shutdown", "vm.stop"])
def test_stopping_one_that_is_stopped_changes_nothing(verb: str) -> None:
    world = with_vm()
    before = world.documents()
    assert world.call(verb, vm="web1")["state"] == "stop"
    assert world.documents() == before


def test_stop_ends_what_shutdown_has_asked_for() -> None:
    world = with_vm("running")
    world.call("vm.shutdown", vm="web1")
    world.call("vm.stop", vm="web1")
    assert world.spec("web1").force is True
    before = world.documents()
    world.call("vm.shutdown", vm="web1")
    assert world.documents() == before, "asking again does not take the order back"


def test_stop_of_one_that_failed_makes_it_stopped() -> None:
    world = failed()
    assert world.call("vm.stop", vm="web1")["state"] == "stop"


@pytest.mark.parametrize("verb", ["vm.shutdown", "vm.stop"])
def test_stopping_calls_a_migration_back(verb: str) -> None:
    world = with_vm("running")
    world.call("vm.migrate", vm="web1", target="n2")
    world.status_is("web1", state=State.MIGRATE, migration=Migration("n2", 40))
    moves = world.spec("web1").moves
    assert "its move to n2 is called back" in world.plan(verb, vm="web1")["plan"]
    world.call(verb, vm="web1")
    spec = world.spec("web1")
    assert (spec.node, spec.home, spec.power, spec.moves) == ("n1", None, Power.STOPPED, moves + 1)
    world.check_invariants()


def test_restart_counts_and_waits_for_that_restart() -> None:
    world = with_vm("running")
    shown = world.call("vm.restart", vm="web1")
    assert world.spec("web1").restarts == 1
    assert (shown["activity"], shown["settled"]) == ("restarting", False)
    world.runs("web1")
    shown = world.call("vm.info", vm="web1")
    assert (shown["restarts"], shown["settled"]) == (1, True)


def test_a_restart_that_a_stop_overtook_does_not_come_back() -> None:
    world = with_vm("running")
    world.call("vm.restart", vm="web1")
    world.call("vm.stop", vm="web1")
    world.ended("web1")
    world.call("vm.start", vm="web1")
    assert world.spec("web1").restarts <= world.vm("web1").status.restarts


@pytest.mark.parametrize("state", ["stopped", "stopping", "moving", "arriving"])
def test_restart_refuses_what_does_not_run_steadily(state: str) -> None:
    world = with_vm("stopped" if state == "stopped" else "running")
    if state == "stopping":
        world.call("vm.shutdown", vm="web1")
    if state == "moving":
        world.call("vm.move", vm="web1")
    if state == "arriving":
        world.status_is("web1", state=State.MIGRATE)
    with pytest.raises(Conflict):
        world.call("vm.restart", vm="web1")


def test_disable_and_start_again() -> None:
    world = with_vm()
    assert world.call("vm.disable", vm="web1")["state"] == "disable"
    assert world.call("vm.list", state="disable")
    world.call("vm.start", vm="web1")
    assert world.spec("web1").power is Power.STARTED


def test_disable_with_force_powers_it_off() -> None:
    world = with_vm("running")
    shown = world.call("vm.disable", vm="web1", force=True)
    assert spec_of(world)[:2] == (Power.DISABLED, True)
    assert (shown["goal"], shown["settled"]) == ({"state": "disable"}, False)
    world.ended("web1")
    assert world.call("vm.info", vm="web1")["state"] == "disable"


def test_recovered_vm_that_fits_nowhere_says_so_until_it_has_a_place() -> None:
    world = with_vm("running")
    world.kill_node("n1")
    why = "n1 was fenced; it fits nowhere else: n2: it is flushed"
    world.status_is("web1", owner=None, state=State.STARTING, recovery=Recovery("n1-1", 8.0), reason=why)
    shown = world.call("vm.info", vm="web1")
    assert (shown["activity"], shown["reason"]) == ("waiting for room: n1 was fenced", why)
    assert f"found when it was recovered: {why}" in world.call("why.vm", vm="web1")["because"]
    world.edit(paths.vm(UUID), node="n2")
    assert world.call("vm.info", vm="web1")["activity"] == "starting on n2"
    world.runs("web1", "n2")
    assert world.call("vm.info", vm="web1")["activity"] == ""
