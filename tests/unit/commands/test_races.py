"""Many clients and the daemons change the same VM: nothing is lost, the index stays true, losers are told."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.store import Check, Create, Put
from pvc.cluster.view import View
from pvc.cluster.vm import Owner, Power, State, Tag, index_nodes, index_ops, move, settled, shown_state
from pvc.commands.context import TRIES, Stale
from pvc.errors import Conflict, NotFound, PVCError
from tests.unit.commands.world import UUID, Interrupted, World, a_world, with_vm, xml_of

CLIENTS = 20

Client = Callable[[Interrupted], Any]


def race(world: World, path: str, clients: list[Client]) -> list[Any]:
    """Every client reads before any of them writes; the last to read writes first. Results or errors."""
    results: list[Any] = [None] * len(clients)

    def run(index: int) -> None:
        if index == len(clients):
            return
        reader = Interrupted(world.store, path, lambda: run(index + 1))
        try:
            results[index] = clients[index](reader)
        except PVCError as error:
            results[index] = error

    run(0)
    return results


def test_twenty_clients_change_one_vm_and_no_change_is_lost() -> None:
    world = with_vm()
    names = [f"tag{number:02}" for number in range(CLIENTS)]

    def adding(name: str) -> Client:
        return lambda reader: world.call("vm.tag-add", reader=reader, vm="web1", tag=name)

    clients = [adding(name) for name in names]
    results = race(world, paths.vm(UUID), clients)
    assert not [result for result in results if isinstance(result, PVCError)]
    assert world.spec("web1").tags == tuple(Tag(name) for name in names)


def test_twenty_clients_start_one_vm_once() -> None:
    world = with_vm(node=None)
    clients: list[Client] = [
        lambda reader: world.call("vm.start", reader=reader, vm="web1") for _ in range(CLIENTS)
    ]
    results = race(world, paths.vm(UUID), clients)
    assert [result["state"] for result in results] == ["starting"] * CLIENTS
    spec = world.spec("web1")
    assert (spec.attempts, spec.moves, spec.node) == (1, 1, "n1")
    world.check_invariants()


def test_twenty_clients_move_one_vm_and_all_but_one_are_told() -> None:
    world = with_vm("running")

    def moving(target: str) -> Client:
        return lambda reader: world.call("vm.migrate", reader=reader, vm="web1", target=target)

    clients = [moving(target) for target in ["n2", "n3"] * (CLIENTS // 2)]
    results = race(world, paths.vm(UUID), clients)
    winners = [result for result in results if not isinstance(result, PVCError)]
    assert [winner["moving_to"] for winner in winners] == [world.spec("web1").node]
    losers = [result for result in results if isinstance(result, PVCError)]
    assert all(type(loser) is Conflict and "on its way from n1" in loser.message for loser in losers)
    world.check_invariants()


def test_twenty_clients_define_the_same_name() -> None:
    world = a_world()
    clients: list[Client] = [
        lambda reader: world.call("vm.create", reader=reader, name="web1") for _ in range(CLIENTS)
    ]
    results = race(world, paths.vm_name("web1"), clients)
    winners = [result for result in results if not isinstance(result, PVCError)]
    losers = [result for result in results if isinstance(result, Conflict)]
    assert (len(winners), len(losers)) == (1, CLIENTS - 1)
    assert {loser.message for loser in losers} == {
        f"there is a VM named web1 already, {winners[0]['uuid']}",
    }
    world.check_invariants()


def test_two_rename_to_the_same_name() -> None:
    world = with_vm()
    other = world.call("vm.create", name="web2")["uuid"]
    clients: list[Client] = [
        lambda reader: world.call("vm.rename", reader=reader, vm=UUID, new="web9"),
        lambda reader: world.call("vm.rename", reader=reader, vm=other, new="web9"),
    ]
    first, second = race(world, paths.vm_name("web9"), clients)
    assert isinstance(first, Conflict)
    assert second["name"] == "web9"
    world.check_invariants()


def test_a_vm_that_vanishes_meanwhile_is_not_found() -> None:
    world = with_vm()
    reader = Interrupted(world.store, paths.vm(UUID), lambda: world.call("vm.undefine", vm=UUID))
    with pytest.raises(NotFound):
        world.call("vm.start", reader=reader, vm="web1")
    assert world.call("vm.list") == []


def test_endless_change_ends_in_a_clear_conflict() -> None:
    world = with_vm()

    def meanwhile() -> None:
        world.edit(paths.vm(UUID), restarts=world.spec("web1").restarts + 1)

    reader = Interrupted(world.store, paths.vm(UUID), meanwhile, times=10**6)
    with pytest.raises(Stale, match="changed by somebody else") as caught:
        world.call("vm.tag-add", reader=reader, vm="web1", tag="blue")
    assert caught.value.exit_code == Conflict.exit_code
    assert world.spec("web1").restarts == TRIES


def claim(world: World) -> None:
    """What n1's daemon does first when it starts the VM."""
    found = world.vm("web1")
    status = replace(found.status, owner=Owner("n1", 1), state=State.STARTING, attempts=found.spec.attempts)
    assert found.status_version is not None
    world.store.commit(
        Check(paths.vm(UUID), found.spec_version),
        Put(paths.vm_status(UUID), dumps(status), found.status_version),
    )


@pytest.mark.parametrize("verb", ["vm.move", "vm.migrate"])
def test_a_node_that_takes_ownership_meanwhile_keeps_its_index(verb: str) -> None:
    world = with_vm()
    world.call("vm.start", vm="web1")
    reader = Interrupted(world.store, paths.vm(UUID), lambda: claim(world))
    shown = world.call(verb, reader=reader, vm="web1", target="n2")
    assert shown["node"] == "n1", "it runs there now, and is moved from there"
    assert shown["moving_to"] == "n2"
    assert UUID in world.store.children(paths.node_vms("n1"))
    world.check_invariants()


@pytest.mark.parametrize("verb", ["vm.undefine", "vm.rename", "vm.disable"])
def test_what_needs_a_stopped_vm_loses_against_a_start(verb: str) -> None:
    world = with_vm()

    def starts() -> None:
        world.call("vm.start", vm="web1")
        claim(world)

    reader = Interrupted(world.store, paths.vm(UUID), starts)
    given: dict[str, Any] = {"new": "web2"} if verb == "vm.rename" else {}
    with pytest.raises(Conflict):
        world.call(verb, reader=reader, vm="web1", **given)
    assert world.spec("web1").power is Power.STARTED
    assert world.vm("web1").status.owner == Owner("n1", 1)
    world.check_invariants()


@pytest.mark.parametrize("verb", ["vm.undefine", "vm.rename", "vm.disable"])
def test_a_claim_that_leaves_the_spec_alone_counts_too(verb: str) -> None:
    """It changes only the status: that version is checked as well."""
    world = with_vm()
    world.call("vm.start", vm="web1")
    world.status_is("web1", state=State.FAIL, attempts=world.spec("web1").attempts)
    reader = Interrupted(world.store, paths.vm(UUID), lambda: claim(world))
    given: dict[str, Any] = {"new": "web2"} if verb == "vm.rename" else {}
    with pytest.raises(Conflict, match=r"needs it stopped|web1 runs"):
        world.call(verb, reader=reader, vm="web1", **given)
    assert world.vm("web1").status.owner == Owner("n1", 1)


def test_a_start_that_meets_a_claim_is_no_new_attempt() -> None:
    world = with_vm()
    world.call("vm.start", vm="web1")
    world.status_is("web1", state=State.STARTING, attempts=1, failures=1)
    reader = Interrupted(world.store, paths.vm(UUID), lambda: claim(world))
    world.call("vm.start", reader=reader, vm="web1")
    assert world.spec("web1").attempts == 1


def test_restart_loses_against_a_guest_that_powers_itself_off() -> None:
    world = with_vm("running")

    def powers_off() -> None:
        spec = world.spec("web1")
        world.store.commit(Put(paths.vm(UUID), dumps(replace(spec, power=Power.STOPPED))))
        world.ended("web1")

    reader = Interrupted(world.store, paths.vm(UUID), powers_off)
    with pytest.raises(Conflict, match="web1 does not run"):
        world.call("vm.restart", reader=reader, vm="web1")


def test_remove_of_a_node_loses_against_a_vm_that_comes() -> None:
    world = with_vm(node=None)
    world.kill_node("n3")

    def comes() -> None:
        world.store.commit(
            Put(paths.vm(UUID), dumps(move(world.spec("web1"), "n3", home=None))),
            Create(paths.node_vm("n3", UUID)),
        )

    reader = Interrupted(world.store, paths.load("n3"), comes)
    with pytest.raises(Conflict, match="n3 still has VMs: web1"):
        world.call("node.remove", reader=reader, node="n3")
    world.check_invariants()


# Anything in any order

VERBS: list[tuple[str, dict[str, Any]]] = [
    ("vm.start", {}),
    ("vm.start", {"force": True}),
    ("vm.shutdown", {}),
    ("vm.stop", {}),
    ("vm.restart", {}),
    ("vm.disable", {}),
    ("vm.disable", {"force": True}),
    ("vm.move", {}),
    ("vm.move", {"target": "n1"}),
    ("vm.move", {"target": "n2"}),
    ("vm.migrate", {}),
    ("vm.migrate", {"target": "n3", "force": True}),
    ("vm.unmigrate", {}),
    ("vm.memory-set", {"memory": "700"}),
    ("vm.vcpu-set", {"vcpus": 2, "restart": True}),
    ("vm.meta", {"limit": ["n1", "n2"]}),
    ("vm.meta", {"limit": []}),
    ("vm.tag-add", {"tag": "blue"}),
]


def daemon_step(world: World, chance: random.Random) -> None:
    """Something that a VM's daemon might do next, in its own transaction."""
    found = View(world.store).vms().get(UUID)
    if found is None:
        return
    spec, status = found.spec, found.status
    new_spec, new = spec, status
    if status.owner is None:
        if spec.power is Power.STARTED and spec.node:
            owner = Owner(spec.node, 1)
            new = replace(status, owner=owner, state=State.START, attempts=spec.attempts)
            if chance.random() < 0.2:
                new = replace(status, state=State.FAIL, attempts=spec.attempts)
    elif spec.power is not Power.STARTED:
        new = replace(status, owner=None, state=State.STOP)
    elif spec.node and spec.node != status.owner.node:
        new = replace(status, owner=Owner(spec.node, 1), state=State.START)
        if chance.random() < 0.3:
            home = None if spec.home == status.owner.node else spec.home
            new_spec, new = move(spec, status.owner.node, home=home), replace(status, state=State.START)
    else:
        new = replace(status, restarts=max(spec.restarts, status.restarts), attempts=spec.attempts)
    assert found.status_version is not None
    before, after = index_nodes(spec, status.owner), index_nodes(new_spec, new.owner)
    world.store.commit(
        Put(paths.vm(UUID), dumps(new_spec), found.spec_version)
        if new_spec is not spec
        else Check(paths.vm(UUID), found.spec_version),
        Put(paths.vm_status(UUID), dumps(new), found.status_version),
        *index_ops(UUID, before, after),
    )


@pytest.mark.parametrize("seed", range(25))
def test_any_order_of_operations_and_daemons_keeps_the_index_true_and_settles(seed: int) -> None:
    chance = random.Random(seed)
    world = a_world()
    world.call("vm.define", xml=xml_of())
    for _ in range(30):
        name, given = chance.choice(VERBS)
        meanwhile = (lambda: daemon_step(world, chance)) if chance.random() < 0.5 else (lambda: None)
        reader = Interrupted(world.store, paths.vm(UUID), meanwhile)
        with suppress(Conflict):
            world.call(name, **{"reader": reader, "vm": "web1", **given})
        world.check_invariants()
        if chance.random() < 0.5:
            daemon_step(world, chance)
            world.check_invariants()
    for _ in range(6):
        daemon_step(world, random.Random(1))
    found = world.vm("web1")
    assert settled(found.spec, found.status), (
        found.spec,
        found.status,
        shown_state(found.spec, found.status),
    )
