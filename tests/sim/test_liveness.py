"""Histories with a plot: after one certain misfortune at the worst moment, all comes right by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest

from pvc.cluster import domainxml, paths
from pvc.cluster.cluster import FencePolicy
from pvc.cluster.codec import dumps
from pvc.cluster.node import BMC, BMCDriver, Wanted
from pvc.cluster.store import Put
from pvc.cluster.view import VM, View
from pvc.cluster.vm import Method, Power, State
from pvc.errors import Conflict
from pvc.node.drivers.hypervisor import DomainState, Ended
from tests.fakes.store import MemoryCluster, MemoryStore
from tests.sim.hosts import BMCFault
from tests.sim.world import World

SEEDS = range(8)
"""Each plot with other delays between its steps."""


@dataclass
class Stage:
    """A world in which nothing happens but what the test does."""

    world: World

    @property
    def uuid(self) -> str:
        return next(iter(self.world.expected))

    def vm(self) -> VM:
        return self.world.found()[self.uuid]

    def is_ready(self) -> bool:
        loads = [node.load for node in View(self.world.truth).nodes().values()]
        return len(loads) == len(self.world.hosts) and all(load.memory_free_mib for load in loads)

    def runs_on(self, node: str) -> bool:
        return self.world.where(self.uuid) == [node] and not self.unrest()

    def unrest(self) -> str:
        return self.world._unrest()

    def start(self, node: str = "n1") -> None:
        """The VM runs there."""
        self.world.until(self.is_ready)
        self.world.command("start", self.uuid)
        self.world.until(lambda: self.vm().status.owner is not None and not self.unrest())
        if not self.runs_on(node):
            self.world.command("move", self.uuid, target=node)
            self.world.until(lambda: self.runs_on(node))

    def migration(self) -> None:
        """Wait until libvirt is at it."""
        self.world.until(lambda: self.uuid in self.world.hosts["n1"].jobs)

    def at_rest(self, within: float = 300.0) -> None:
        """For good: nobody does anything any more."""
        world = self.world
        world.until(lambda: not self.unrest() and world.now > world.last_action_at + 30, within)


@pytest.fixture(params=SEEDS, name="stage")
def _stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    world = World(request.param, keep_log=True, nodes=3, vms=1)
    world.faulty = False
    try:
        yield Stage(world)
    finally:
        world.end()


def test_vm_starts_moves_and_stops(stage: Stage) -> None:
    stage.start()
    assert stage.vm().status.digest
    stage.world.command("move", stage.uuid, target="n2")
    stage.world.until(lambda: stage.runs_on("n2"))
    assert stage.vm().status.last_migration.startswith("to n2")
    stage.world.command("shutdown", stage.uuid)
    stage.at_rest()
    assert stage.world.where(stage.uuid) == []


def test_daemon_killed_while_vms_run_touches_nothing(stage: Stage) -> None:
    stage.start()
    before = stage.world.hosts["n1"].domains[stage.uuid]
    stage.world.restart_daemon("n1")
    stage.at_rest()
    assert stage.world.hosts["n1"].domains[stage.uuid] is before
    assert stage.vm().status.owner == stage.world.lives["n1"].daemon.me  # type: ignore[union-attr]


def test_daemon_killed_while_it_migrates_and_the_vm_is_called_back(stage: Stage) -> None:
    """14.2.5: libvirt finishes by itself, and then nobody but the target may say where the VM is."""
    stage.start()
    world = stage.world
    world.command("move", stage.uuid, target="n2")
    stage.migration()
    world.kill_daemon("n1")
    world.until(lambda: world.where(stage.uuid) == ["n2"])
    world.command("move", stage.uuid, target="n1")
    world.until(lambda: stage.vm().spec.node == "n1")
    world.boot("n1")
    stage.at_rest()
    assert stage.runs_on("n1")


def test_source_loses_power_while_it_migrates(stage: Stage) -> None:
    stage.start()
    world = stage.world
    world.command("move", stage.uuid, target="n2")
    stage.migration()
    world.power_cut("n1")
    world.later(20.0, lambda: world.power_on("n1"))
    world.until(lambda: bool(world.hosts["n1"].is_up))
    stage.at_rest()
    assert stage.runs_on("n2")


def test_target_loses_power_while_the_vm_migrates(stage: Stage) -> None:
    """14.2.7: nothing is shut down for a target that is not there; the intent is taken back with a reason."""
    stage.start()
    world = stage.world
    world.command("move", stage.uuid, target="n2")
    stage.migration()
    world.hosts["n2"].bmc = BMCFault.SILENT  # else the fence brings it back in time for the fallback
    world.power_cut("n2")
    world.until(lambda: _is_back(stage))
    assert "not moved to n2" in stage.vm().status.reason
    assert stage.vm().spec.node == "n1"


def _is_back(stage: Stage) -> bool:
    vm = stage.vm()
    assert stage.world.where(stage.uuid)[:1] == ["n1"], "it was shut down for nothing"
    return vm.spec.node == "n1" and vm.status.state is State.START


def test_fallback_with_a_guest_that_ignores_acpi(stage: Stage) -> None:
    """14.2.1: ended after the timeout, and only then started elsewhere."""
    stage.start()
    world = stage.world
    for host in world.hosts.values():
        host.deaf.add(stage.uuid)
    world.command("move", stage.uuid, target="n2")
    stage.migration()
    world.hosts["n1"].fail(world.hosts["n1"].jobs[stage.uuid], "the network is too slow")
    asked_at = world.now
    world.until(lambda: stage.runs_on("n2"))
    assert world.now - asked_at >= 30  # the cluster's shutdown timeout


def test_migration_that_fails_takes_a_live_move_back(stage: Stage) -> None:
    stage.start()
    world = stage.world
    world.command("move", stage.uuid, target="n2", force_live=True)
    stage.migration()
    world.hosts["n1"].fail(world.hosts["n1"].jobs[stage.uuid], "the network is too slow")
    stage.at_rest()
    assert stage.runs_on("n1")
    assert "too slow" in stage.vm().status.reason


def test_store_away_for_long_changes_nothing(stage: Stage) -> None:
    """In maintenance: else nodes that nobody reaches end their VMs (test_promise.py)."""
    stage.start()
    _told(stage, maintenance=True)
    world = stage.world
    begun = world.now
    world.until(lambda: world.now > begun + 5)
    clients = [life.client for life in world.lives.values()]
    for client in clients:
        client.drop()
        client.barred_until = world.now + 100
    world.command("shutdown", stage.uuid)
    world.until(lambda: stage.vm().spec.power is Power.STOPPED)
    begun = world.now
    world.until(lambda: world.now > begun + 99)
    assert world.where(stage.uuid) == ["n1"], "decisions freeze"
    world.until(lambda: all(client.is_connected for client in clients))
    stage.at_rest()
    assert world.where(stage.uuid) == []


def test_start_after_shutdown_is_not_lost(stage: Stage) -> None:
    """Asked to shut down, then wanted again before it was off: it is running in the end."""
    stage.start()
    stage.world.command("shutdown", stage.uuid)
    stage.world.until(lambda: stage.vm().status.state is State.SHUTDOWN)
    stage.world.command("start", stage.uuid)
    stage.at_rest()
    assert stage.runs_on("n1")


def test_guest_that_powers_itself_off_stays_off(stage: Stage) -> None:
    stage.start()
    stage.world.expected[stage.uuid] = "any"
    stage.world.hosts["n1"].end(stage.uuid, Ended.SHUTDOWN)
    stage.at_rest()
    assert stage.vm().spec.power is Power.STOPPED
    assert stage.vm().status.reason == "the guest powered itself off"


def test_guest_that_keeps_crashing_fails_with_the_reason(stage: Stage) -> None:
    stage.start()
    world = stage.world

    def crashes() -> None:
        world.hosts["n1"].change(stage.uuid, DomainState.CRASHED)
        world.later(1.0, crashes)

    crashes()
    world.until(lambda: stage.vm().status.state is State.FAIL)
    assert "3 times" in stage.vm().status.reason
    world.command("start", stage.uuid)
    world.until(lambda: stage.vm().status.owner is not None)


def test_restart_kills_a_hung_guest(stage: Stage) -> None:
    """14.2.6"""
    stage.start()
    world = stage.world
    for host in world.hosts.values():
        host.deaf.add(stage.uuid)
    before = world.hosts["n1"].domains[stage.uuid]
    world.command("restart", stage.uuid)
    stage.at_rest()
    assert stage.runs_on("n1")
    assert world.hosts["n1"].domains[stage.uuid] is not before


def test_flush_and_ready_bring_everything_away_and_back() -> None:
    world = World(3, nodes=3, vms=4)
    world.faulty = False
    stage = Stage(world)
    stage.start()
    for uuid in world.expected:
        world.command("start", uuid)
    world.until(lambda: all(world.where(uuid) for uuid in world.expected) and not stage.unrest())
    for uuid in world.expected:
        if world.where(uuid) != ["n1"]:
            world.command("move", uuid, target="n1")
    world.until(lambda: all(world.where(uuid) == ["n1"] for uuid in world.expected) and not stage.unrest())
    world.command("flush", "n1")
    world.until(lambda: View(world.truth).node("n1").domain_state == "flushed")
    assert world.hosts["n1"].domains == {}
    world.command("ready", "n1")
    stage.at_rest()
    assert sorted(world.hosts["n1"].domains) == sorted(world.expected)
    world.end()


def _touch(world: World, vm: VM) -> None:
    with suppress(Conflict):
        world.truth.commit(Put(paths.vm(vm.spec.uuid), dumps(vm.spec), vm.spec_version))


@pytest.mark.parametrize("seed", SEEDS)
def test_fetching_back_is_not_lost_to_a_conflict(seed: int) -> None:
    """`node ready` while somebody changes the VM: the node must not say that it is done."""
    world = World(seed, nodes=2, vms=1)
    world.faulty = False
    stage = Stage(world)
    stage.start()
    world.command("flush", "n1")
    world.until(lambda: View(world.truth).node("n1").domain_state == "flushed")
    vm = stage.vm()
    world.command("ready", "n1")
    world.later(0.0, partial(_touch, world, vm))
    stage.at_rest()
    assert stage.runs_on("n1")
    world.end()


@pytest.mark.parametrize("lose", [MemoryCluster.lose_next_reply, MemoryCluster.drop_next_request])
def test_daemon_joins_whatever_it_says_first_is_lost(
    lose: Callable[[MemoryCluster, MemoryStore], None],
) -> None:
    for after in range(25):
        world = World(after, nodes=2, vms=1)
        world.faulty = False
        some = iter(range(after))
        world.until(lambda some=some: next(some, None) is None)  # type: ignore[misc]
        lose(world.cluster, world.lives["n1"].client)
        Stage(world).at_rest()
        world.end()


def test_damaged_document_freezes_its_own_vm_only() -> None:
    world = World(0, nodes=2, vms=2)
    world.faulty = False
    first, second = world.expected
    stage = Stage(world)
    stage.start()
    world.truth.commit(Put(paths.vm(first), b'{"torn": '))
    world.command("start", second)
    world.until(lambda: bool(world.where(second)))
    world.command("shutdown", second)
    world.until(lambda: not world.where(second))
    for name in world.hosts:
        world.restart_daemon(name)
    begun = world.now
    world.until(lambda: world.now > begun + 60)
    assert world.where(first) == ["n1"]
    world.end()


def test_vm_that_cannot_come_home_remembers_where_that_is(stage: Stage) -> None:
    stage.start()
    world = stage.world
    world.command("migrate", stage.uuid, target="n2")
    world.until(lambda: stage.runs_on("n2"))
    assert stage.vm().spec.home == "n1"
    world.command("flush", "n1")
    world.until(lambda: View(world.truth).node("n1").status.flushed)
    for host in world.hosts.values():
        host.deaf.add(stage.uuid)
    vm = stage.vm()
    only_live = replace(vm.spec, method=Method.LIVE)
    world.truth.commit(Put(paths.vm(stage.uuid), dumps(only_live), vm.spec_version))
    world.command("ready", "n1")
    world.until(lambda: stage.uuid in world.hosts["n2"].jobs)
    world.hosts["n2"].fail(world.hosts["n2"].jobs[stage.uuid], "the network is too slow")
    stage.at_rest()
    assert stage.runs_on("n2")
    assert stage.vm().spec.home == "n1"
    world.command("unmigrate", stage.uuid)
    world.until(lambda: stage.runs_on("n1"))
    stage.at_rest()
    assert stage.vm().spec.home is None


def _told(stage: Stage, **settings: Any) -> None:
    """The cluster has these settings, and n1 a BMC."""
    view = View(stage.world.truth)
    cluster, version = view.cluster_document()
    n1 = view.node("n1")
    bmc = BMC(BMCDriver.IPMI, "n1", "admin", "")
    stage.world.truth.commit(
        Put(paths.CLUSTER, dumps(replace(cluster, **settings)), version),
        Put(paths.node("n1"), dumps(replace(n1.spec, bmc=bmc)), n1.spec_version),
    )


def test_vm_that_fits_nowhere_says_why_and_starts_when_there_is_room(stage: Stage) -> None:
    """14.1.9"""
    stage.start()
    world = stage.world
    _told(stage, fence_policy=FencePolicy.OFF)
    limited = replace(stage.vm().spec, node_limit=("n1", "n2"))
    world.truth.commit(Put(paths.vm(stage.uuid), dumps(limited), stage.vm().spec_version))
    world.command("flush", "n2")
    world.until(lambda: View(world.truth).node("n2").domain_state == "flushed")
    world.power_cut("n1")
    world.until(lambda: "it fits nowhere else: n1" in stage.vm().status.reason)
    assert stage.vm().status.owner is None
    n2 = View(world.truth).node("n2")
    world.truth.commit(Put(paths.node("n2"), dumps(replace(n2.spec, wanted=Wanted.READY)), n2.spec_version))
    world.until(lambda: world.where(stage.uuid) == ["n2"])
    assert stage.vm().spec.home == "n1"


def test_who_was_fenced_fetches_its_vms_home_by_itself(stage: Stage) -> None:
    stage.start()
    _told(stage, autoready=True)
    stage.world.power_cut("n1")
    stage.world.until(lambda: "released" in _told_of(stage))
    stage.at_rest()
    assert stage.runs_on("n1")
    assert stage.vm().spec.home is None


def test_receipt_tells_all_of_it_until_the_vm_runs_again(stage: Stage) -> None:
    stage.start()
    _told(stage)
    world = stage.world
    world.power_cut("n1")
    world.until(lambda: _told_of(stage)[-1:] == ["running"])
    stage.at_rest()
    assert _told_of(stage) == ["contact", "gone", "fencing", "fenced", "released", "running"]
    ((fence, _),) = [one for one in View(world.truth).fences().values() if one[0].finished]
    times = [step.at_s for step in fence.timeline]
    assert times == sorted(times)
    assert fence.recovered == (f"{stage.vm().spec.name} -> {fence.timeline[-1].node}",)


def _told_of(stage: Stage) -> list[str]:
    fences = [fence for fence, _ in View(stage.world.truth).fences().values() if fence.node == "n1"]
    return [str(step.what) for fence in fences for step in fence.timeline]


# Interfaces

MAC = "52:54:00:00:00:07"


def _has_as_defined(stage: Stage) -> bool:
    (node,) = stage.world.where(stage.uuid)
    has = stage.world.hosts[node].domains[stage.uuid].interfaces
    vm = stage.vm()
    return {*has} == {*domainxml.shape(vm.spec.definition).interfaces} == {*vm.status.interfaces}


def _is_done(stage: Stage) -> bool:
    vm = stage.vm()
    return (
        vm.spec.live != () and not stage.unrest() and vm.status.digest == domainxml.digest(vm.spec.definition)
    )


@pytest.mark.parametrize("accident", ["none", "daemon", "libvirt", "move"])
def test_interface_comes_and_another_goes_whatever_happens_on_the_way(stage: Stage, accident: str) -> None:
    stage.start()
    world = stage.world
    (old,) = domainxml.parse(stage.vm().spec.definition).nics
    world.command("network-add", stage.uuid, network="bridge:br0", mac=MAC)
    world.until(lambda: stage.vm().spec.live != ())
    _accident(stage, accident)
    world.until(lambda: _is_done(stage))
    world.command("network-remove", stage.uuid, network="bridge:br0", mac=old.mac)
    world.until(lambda: len(stage.vm().spec.live) == 2)
    _accident(stage, accident)
    stage.at_rest()
    assert _has_as_defined(stage)
    assert [one.mac for one in stage.vm().status.interfaces] == [MAC]
    assert not stage.vm().status.refused


def _accident(stage: Stage, what: str) -> None:
    world = stage.world
    (node,) = world.where(stage.uuid)
    if what == "daemon":
        world.restart_daemon(node)
    elif what == "libvirt":
        world.hosts[node].libvirt_down()
        world.later(3.0, world.hosts[node].libvirt_up)
    elif what == "move":
        world.command("move", stage.uuid, target="n2" if node == "n1" else "n1")


def test_interface_that_its_guest_keeps_goes_with_the_next_start(stage: Stage) -> None:
    stage.start()
    world = stage.world
    world.hosts["n1"].deaf.add(stage.uuid)
    world.command("network-remove", stage.uuid, network="bridge:br0")
    world.until(lambda: stage.vm().status.refused != ())
    stage.at_rest()
    assert not _has_as_defined(stage)
    world.hosts["n1"].deaf.clear()
    world.command("restart", stage.uuid)
    world.until(lambda: stage.vm().status.restarts == 1 and not stage.unrest())
    assert _has_as_defined(stage)
