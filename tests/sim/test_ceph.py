"""Histories of VMs on Ceph whose node nobody can switch off: it writes no more, and they run elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.membership import FenceState
from pvc.cluster.store import Put
from pvc.cluster.view import View
from pvc.node.blocked import Blocked
from tests.sim.ceph import FILE
from tests.sim.hosts import BMCFault
from tests.sim.test_liveness import Stage
from tests.sim.test_promise import PROMISED_S, VICTIM, has_promised, lose, runs_elsewhere
from tests.sim.world import Mutant, Violation, World

SEEDS = range(4)


@contextmanager
def staged(seed: int, mutant: Mutant, vms: int = 1, *, has_watchdog: bool = False) -> Iterator[Stage]:
    """Without a watchdog: what is known of it Ceph alone knows."""
    world = World(seed, mutant, keep_log=True, nodes=3, vms=vms, has_ceph=True)
    world.faulty = False
    for host in world.hosts.values():
        host.has_watchdog = has_watchdog
    stage = Stage(world)
    try:
        stage.start(VICTIM)
        world.until(lambda: all(node.status.ceph_addresses for node in View(world.truth).nodes().values()))
        yield stage
    finally:
        world.end()


@pytest.fixture(params=SEEDS, name="stage")
def _stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with staged(request.param, Mutant()) as stage:
        yield stage


def is_open(world: World) -> bool:
    """There is no receipt: whether it runs nobody knows."""
    node = View(world.truth).node(VICTIM)
    return node.fence is not None and node.fence.state is not FenceState.FENCED


def comes_back(stage: Stage) -> None:
    """And can use Ceph again."""
    world = stage.world
    assert world.ceph is not None
    assert world.ceph.listed, "so long as nobody knows whether it runs"
    world.network.heal_all()
    stage.at_rest()
    assert not world.ceph.listed
    world.command("move", stage.uuid, target=VICTIM)
    world.until(lambda: stage.runs_on(VICTIM))


def test_power_and_bmc_are_gone(stage: Stage) -> None:
    world, began = stage.world, stage.world.now
    lose(world)
    world.power_cut(VICTIM)
    world.until(lambda: runs_elsewhere(stage))
    assert world.now - began < PROMISED_S
    assert is_open(world)
    world.power_on(VICTIM)
    comes_back(stage)


def stands_still_and_goes_on(stage: Stage) -> None:
    """With its QEMU as it was: the rules of SimCeph hold at each step."""
    world, host = stage.world, stage.world.hosts[VICTIM]
    lose(world)
    host.bmc = BMCFault.SILENT
    world.zookeeper.before_change()
    host.paused_until = world.now + 90.0
    world.asleep[VICTIM] = None
    world.until(lambda: len(world.where(stage.uuid)) == 2)
    assert is_open(world)
    assert world.ceph is not None
    assert not world.ceph.can_write(VICTIM)
    host.libvirt_down()  # so that it cannot end what it has
    world.network.heal_all()
    world.until(lambda: world.now > host.paused_until)
    until = world.now + 40.0
    world.until(lambda: world.now > until)
    host.libvirt_up()
    comes_back(stage)


def test_machine_that_stands_still_and_goes_on_writes_nothing(stage: Stage) -> None:
    stands_still_and_goes_on(stage)


class ReturnsAtOnce(Blocked):
    """Off the list when the node is back, whatever runs there."""

    def _is_free(self) -> bool:
        return True


@pytest.mark.parametrize(
    "mutant",
    [Mutant(blocked=ReturnsAtOnce), Mutant(ceph_hour=40.0)],
    ids=["off the list at once", "on the list for an hour only"],
)
def test_simulation_notices(mutant: Mutant) -> None:
    for seed in SEEDS:
        with staged(seed, mutant) as stage, pytest.raises(Violation, match="can be written by"):
            stands_still_and_goes_on(stage)


def has_file(world: World, uuid: str) -> None:
    vm = world.found()[uuid]
    more = vm.spec.definition.replace("<devices>", "<devices>" + FILE.format(name="x"), 1)
    world.truth.commit(Put(paths.vm(uuid), dumps(replace(vm.spec, definition=more)), vm.spec_version))


@pytest.mark.parametrize("seed", [*SEEDS, 17])  # 17: both VMs wait for the node that is back
def test_vm_that_writes_elsewhere_too_has_its_watchdog_in_time(seed: int) -> None:
    """Of a node that Ceph shuts out meanwhile, for a VM beside it."""
    with staged(seed, Mutant(), 2, has_watchdog=True) as stage:
        world = stage.world
        other = next(uuid for uuid in world.expected if uuid != stage.uuid)
        assert world.ceph is not None
        world.ceph.in_ceph.discard(other)
        has_file(world, other)
        world.until(lambda: has_promised(world))
        world.command("start", other)
        world.until(lambda: bool(world.where(other)) and not stage.unrest())
        if world.where(other) != [VICTIM]:
            world.command("move", other, target=VICTIM)
            world.until(lambda: world.where(other) == [VICTIM] and not stage.unrest())
        began = world.now
        lose(world)
        world.power_cut(VICTIM)
        world.until(lambda: runs_elsewhere(stage))
        assert is_open(world)
        world.until(lambda: bool(world.where(other)))
        assert world.now - began < PROMISED_S
        world.network.heal_all()
        world.power_on(VICTIM)
        stage.at_rest()
        assert not world.ceph.listed


def test_vm_that_writes_elsewhere_too_waits(stage: Stage) -> None:
    """As soon as its definition has another disk, whatever QEMU has."""
    world = stage.world
    has_file(world, stage.uuid)
    lose(world)
    world.power_cut(VICTIM)
    until = world.now + 60.0
    world.until(lambda: world.now > until)
    assert not runs_elsewhere(stage)
    world.network.heal_all()
    world.power_on(VICTIM)
    stage.at_rest()
