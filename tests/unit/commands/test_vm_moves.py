"""move, migrate, unmigrate: targets, homes, refusals, calling back."""

from __future__ import annotations

from typing import Any

import pytest

from pvc.cluster import paths
from pvc.cluster.vm import Method, Migration, State
from pvc.errors import Conflict, NotFound
from tests.unit.commands.world import UUID, World, a_world, with_vm, xml_of


def migrated() -> World:
    world = with_vm("running")
    world.call("vm.migrate", vm="web1", target="n2")
    world.runs("web1", "n2")
    return world


def where(world: World) -> tuple[str | None, str | None, Method]:
    spec = world.spec("web1")
    return spec.node, spec.home, spec.move_method


def test_migrate_chooses_the_best_other_node_and_remembers_home() -> None:
    world = with_vm("running")
    shown = world.call("vm.migrate", vm="web1")
    assert where(world) == ("n2", "n1", Method.NONE)
    assert shown["goal"] == {"node": "n2", "state": "start"}
    assert (shown["node"], shown["moving_to"], shown["settled"]) == ("n1", "n2", False)
    assert shown["activity"] == "waiting for n2 to prepare"
    world.check_invariants()


def test_info_tells_how_a_migration_gets_on() -> None:
    world = with_vm("running")
    world.call("vm.migrate", vm="web1", target="n3")
    world.status_is("web1", state=State.MIGRATE, migration=Migration("n3", 43))
    shown = world.call("vm.info", vm="web1")
    assert (shown["state"], shown["percent"], shown["activity"]) == ("migrate", 43, "migrating to n3, 43 %")
    world.runs("web1", "n3", migration=None, last_migration="n1 to n3 in 2.1 s")
    shown = world.call("vm.info", vm="web1")
    assert (shown["node"], shown["moving_to"], shown["migrated_from"]) == ("n3", None, "n1")
    assert (shown["settled"], shown["percent"]) == (True, None)
    world.check_invariants()


def test_a_migration_that_was_taken_back_is_settled_elsewhere_than_its_goal() -> None:
    world = with_vm("running")
    goal = world.call("vm.migrate", vm="web1")["goal"]
    world.edit(paths.vm(UUID), node="n1", home=None, moves=9)
    world.status_is("web1", reason="not moved to n2: n2 does not answer")
    shown = world.call("vm.info", vm="web1")
    assert shown["settled"]
    assert shown["node"] != goal["node"]


def test_move_is_for_good() -> None:
    world = with_vm("running")
    world.call("vm.move", vm="web1", target="n3")
    assert where(world) == ("n3", None, Method.NONE)
    world.check_invariants()


def test_move_of_a_migrated_vm_forgets_its_home() -> None:
    world = migrated()
    world.call("vm.move", vm="web1", target="n3")
    assert where(world)[:2] == ("n3", None)
    world.check_invariants()


def test_move_to_where_a_migrated_vm_is_makes_that_its_home() -> None:
    world = migrated()
    moves = world.spec("web1").moves
    shown = world.call("vm.move", vm="web1", target="n2")
    assert where(world)[:2] == ("n2", None)
    assert world.spec("web1").moves == moves, "nothing moves"
    assert shown["settled"]
    world.check_invariants()


def test_a_stopped_vm_only_changes_its_node() -> None:
    world = with_vm()
    shown = world.call("vm.move", vm="web1", target="n2")
    assert (shown["node"], shown["state"], shown["goal"]) == ("n2", "stop", {"node": "n2"})
    world.call("vm.migrate", vm="web1", target="n3")
    assert where(world)[:2] == ("n3", "n2")
    world.call("vm.unmigrate", vm="web1")
    assert where(world)[:2] == ("n2", None)
    world.check_invariants()


def test_a_stopped_vm_may_move_where_it_would_not_fit_now() -> None:
    world = a_world()
    world.call("vm.define", xml=xml_of(memory_mib=100_000), target="n1")
    world.call("vm.move", vm="web1", target="n2")
    assert where(world)[0] == "n2"


def test_migrate_again_needs_force_and_keeps_the_home() -> None:
    world = migrated()
    world.call("vm.migrate", vm="web1", target="n3", force=True)
    assert where(world)[:2] == ("n3", "n1")
    world.check_invariants()


def test_migrate_with_force_to_its_home_is_coming_home() -> None:
    world = migrated()
    world.call("vm.migrate", vm="web1", target="n1", force=True)
    assert where(world)[:2] == ("n1", None)
    world.check_invariants()


def test_unmigrate_goes_home() -> None:
    world = migrated()
    shown = world.call("vm.unmigrate", vm="web1")
    assert where(world)[:2] == ("n1", None)
    assert shown["goal"] == {"node": "n1", "state": "start"}
    world.check_invariants()


def test_unmigrate_waits_for_a_home_that_can_take_it() -> None:
    world = migrated()
    world.call("node.flush", node="n1")
    with pytest.raises(Conflict, match="n1 cannot take web1: it is flushed"):
        world.call("vm.unmigrate", vm="web1")
    world.call("node.ready", node="n1")
    world.kill_node("n1")
    with pytest.raises(Conflict, match="n1 cannot take web1: its daemon is dead"):
        world.call("vm.unmigrate", vm="web1")


def test_unmigrate_to_a_home_that_is_gone() -> None:
    world = migrated()
    world.edit(paths.vm(UUID), home="n9")
    with pytest.raises(NotFound, match="no node named n9"):
        world.call("vm.unmigrate", vm="web1")


@pytest.mark.parametrize(("verb", "given"), [("vm.unmigrate", {}), ("vm.move", {"target": "n1"})])
def test_calling_back_a_migration_that_is_under_way(verb: str, given: dict[str, Any]) -> None:
    world = with_vm("running")
    world.call("vm.migrate", vm="web1", target="n2")
    moves = world.spec("web1").moves
    shown = world.call(verb, vm="web1", **given)
    assert where(world)[:2] == ("n1", None)
    assert world.spec("web1").moves == moves + 1, (
        "the target's answer to the old move does not count any more"
    )
    assert shown["goal"] == {"node": "n1", "state": "start"}
    world.check_invariants()


@pytest.mark.parametrize("verb", ["vm.move", "vm.migrate"])
@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda world: world.kill_node("n2"), "its daemon is dead"),
        (lambda world: world.call("node.flush", node="n2"), "it is flushed"),
        (lambda world: world.edit(paths.load("n2"), memory_free_mib=100), "do not fit its free 100 MiB"),
        (lambda world: world.edit(paths.node_status("n2"), bridges=[]), "it has no bridge br0"),
        (lambda world: world.call("vm.meta", vm="web1", limit=["n1", "n3"]), "limited to n1, n3"),
    ],
)
def test_a_target_that_cannot_take_it_is_refused_with_the_reason(verb: str, break_it: Any, says: str) -> None:
    world = with_vm("running")
    break_it(world)
    before = world.spec("web1")
    with pytest.raises(Conflict, match=says):
        world.call(verb, vm="web1", target="n2")
    assert world.spec("web1") == before
    world.call(verb, vm="web1")
    assert world.spec("web1").node == "n3", "without a target the next best is taken"


@pytest.mark.parametrize("verb", ["vm.move", "vm.migrate"])
def test_nothing_moves_off_a_dead_node(verb: str) -> None:
    world = with_vm("running")
    world.kill_node("n1")
    with pytest.raises(Conflict, match="web1 runs on n1, whose daemon is dead"):
        world.call(verb, vm="web1", target="n2")


@pytest.mark.parametrize("verb", ["vm.move", "vm.migrate"])
def test_one_move_at_a_time(verb: str) -> None:
    world = with_vm("running")
    world.call("vm.move", vm="web1", target="n2")
    with pytest.raises(Conflict, match="on its way from n1 to n2"):
        world.call(verb, vm="web1", target="n3")
    with pytest.raises(Conflict, match="being stopped"):
        _stopping().call(verb, vm="web1", target="n3")


def _stopping() -> World:
    world = with_vm("running")
    world.call("vm.shutdown", vm="web1")
    return world


@pytest.mark.parametrize(
    ("method", "force_live", "used"),
    [
        ("none", False, Method.NONE),
        ("live", False, Method.LIVE),
        ("shutdown", False, Method.SHUTDOWN),
        ("shutdown", True, Method.LIVE),
        ("none", True, Method.LIVE),
    ],
)
def test_the_method_of_a_move(method: str, force_live: bool, used: Method) -> None:
    world = with_vm("running", method=method)
    world.call("vm.migrate", vm="web1", force_live=force_live)
    assert where(world)[2] is used


def test_a_vm_with_host_devices_moves_by_shutting_down() -> None:
    device = "<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/></source></hostdev>"
    xml = xml_of().replace("</devices>", f"{device}</devices>")
    world = with_vm("running", xml=xml)
    with pytest.raises(Conflict, match="has devices of its host"):
        world.call("vm.move", vm="web1", force_live=True)
    world.call("vm.move", vm="web1")
    assert where(world)[2] is Method.SHUTDOWN


def test_a_plan_says_where_and_why_not_elsewhere() -> None:
    world = with_vm("running")
    world.call("node.flush", node="n2")
    assert world.plan("vm.migrate", vm="web1")["plan"] == [
        "web1 goes to n3: most free memory (6700 MiB)",
        "not n1: the VM is to leave it",
        "not n2: it is flushed",
    ]
