"""Histories of nodes that nobody reaches: their promise counts, and is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from pvc.cluster import paths
from pvc.cluster.membership import Evidence, Fence
from pvc.cluster.store import Put
from pvc.cluster.timing import Timing
from pvc.cluster.view import Node, View
from pvc.node.judge import Judge
from tests.sim.hosts import BMCFault
from tests.sim.network import bmc_of, both_ways
from tests.sim.test_liveness import SEEDS, Stage
from tests.sim.world import PLACES, Mutant, Violation, World
from tests.sim.world import _set_maintenance as set_maintenance

PROMISED_S = 45.0
VICTIM = "n3"


@pytest.fixture(params=SEEDS, name="stage")
def _stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    world = World(request.param, keep_log=True, nodes=3, vms=1)
    world.faulty = False
    stage = Stage(world)
    try:
        stage.start(VICTIM)
        world.until(lambda: has_promised(world))
        yield stage
    finally:
        world.end()


def has_promised(world: World) -> bool:
    return all(node.status.quiet_after_s for node in View(world.truth).nodes().values())


def lose(world: World) -> None:
    """Nobody reaches it, nor its BMC."""
    others = [name for name in world.hosts if name != VICTIM]
    world.network.cut(both_ways([VICTIM], others) + both_ways([bmc_of(VICTIM)], others))


def evidence(world: World) -> Evidence:
    node = View(world.truth).node(VICTIM)
    return node.fence.evidence if node.fence else Evidence.NONE


def runs_elsewhere(stage: Stage) -> bool:
    places = stage.world.where(stage.uuid)
    return bool(places) and VICTIM not in places


def test_power_and_bmc_are_gone(stage: Stage) -> None:
    world = stage.world
    lose(world)
    world.power_cut(VICTIM)
    began = world.now
    world.until(lambda: runs_elsewhere(stage))
    assert world.now - began < PROMISED_S
    assert evidence(world) is Evidence.WATCHDOG
    world.network.heal_all()
    world.power_on(VICTIM)
    stage.at_rest()


def test_node_that_is_cut_off_ends_its_vms_before_they_run_elsewhere(stage: Stage) -> None:
    """And goes on: it is not reset, since nothing of it runs. It comes back as another life."""
    world = stage.world
    incarnation = View(world.truth).node(VICTIM).status.incarnation
    lose(world)
    began = world.now
    world.until(lambda: not world.where(stage.uuid))
    assert world.now - began <= Timing().lease_s + 2
    world.until(lambda: runs_elsewhere(stage))
    assert evidence(world) is Evidence.WATCHDOG
    assert world.hosts[VICTIM].is_up
    assert not any("watchdog resets" in line for line in world.log)
    world.network.heal_all()
    world.until(lambda: View(world.truth).node(VICTIM).status.incarnation > incarnation)
    stage.at_rest()


def test_daemon_that_is_killed_for_good_leaves_it_to_the_watchdog(stage: Stage) -> None:
    world = stage.world
    lose(world)
    world.kill_daemon(VICTIM)
    world.until(lambda: not world.where(stage.uuid))
    assert any("watchdog resets" in line for line in world.log)
    world.until(lambda: runs_elsewhere(stage))
    world.network.heal_all()
    stage.at_rest()


def test_next_life_goes_on_from_the_contact_of_the_last_one(stage: Stage) -> None:
    """Cut off and restarted over and over: no life may believe that it has just had contact."""
    world = stage.world
    lose(world)
    began = world.now
    for after in range(2, 30, 4):
        world.later(float(after), lambda: world.restart_daemon(VICTIM, 0.5))
    world.until(lambda: not world.where(stage.uuid))
    timing = Timing()
    assert world.now - began <= timing.lease_s + 2 * timing.watchdog_s
    world.until(lambda: runs_elsewhere(stage))
    world.network.heal_all()
    stage.at_rest()


def test_all_of_the_store_is_down_for_a_minute(stage: Stage) -> None:
    """Nobody is fenced, no VM is stopped, no machine is reset."""
    world = stage.world
    before = world.hosts[VICTIM].domains[stage.uuid]
    for place in PLACES:
        world.zookeeper.kill(place)
    end = world.now + 60
    world.until(lambda: world.now > end)
    assert world.hosts[VICTIM].domains.get(stage.uuid) is before
    for place in PLACES:
        world.zookeeper.start(place)
    stage.at_rest()
    assert world.hosts[VICTIM].domains[stage.uuid] is before
    assert not View(world.truth).fences()
    assert not any("watchdog resets" in line for line in world.log)


def test_cluster_document_that_cannot_be_read_ends_no_vm(stage: Stage) -> None:
    """It may be of a newer pvc. No daemon ends for it: lives that are short lose contact."""
    world = stage.world
    before = world.hosts[VICTIM].domains[stage.uuid]
    stored = world.cluster.document(paths.CLUSTER)
    assert stored is not None
    world.truth.commit(Put(paths.CLUSTER, stored.data.replace(b"sim", b"", 1) + b"]"))
    end = world.now + 60
    world.until(lambda: world.now > end)
    assert world.hosts[VICTIM].domains.get(stage.uuid) is before
    assert not any("daemon ends" in line for line in world.log)
    world.truth.commit(Put(paths.CLUSTER, stored.data))
    stage.at_rest()


def test_in_maintenance_nothing_is_promised_and_nothing_ends(stage: Stage) -> None:
    world = stage.world
    set_maintenance(world, "on", insists=True)
    world.until(lambda: not any(n.status.quiet_after_s for n in View(world.truth).nodes().values()))
    world.until(lambda: not any(host.watchdog_s for host in world.hosts.values()))
    lose(world)
    end = world.now + 60
    world.until(lambda: world.now > end)
    assert world.where(stage.uuid) == [VICTIM]
    world.network.heal_all()
    set_maintenance(world, "off", insists=True)
    world.until(lambda: has_promised(world))
    stage.at_rest()


def test_clean_end_takes_the_promise_back(stage: Stage) -> None:
    world = stage.world
    life = world.lives[VICTIM]
    assert life.daemon is not None
    world.spawn(life, life.daemon.leave, lambda error: world.kill_daemon(VICTIM))
    world.until(lambda: life.dead)
    assert View(world.truth).node(VICTIM).status.quiet_after_s == 0
    assert not world.hosts[VICTIM].watchdog_s
    end = world.now + 60
    world.until(lambda: world.now > end)
    assert world.where(stage.uuid) == [VICTIM]
    assert evidence(world) is Evidence.NONE


def test_node_that_was_stopped_and_switched_off_is_seen_to_be_off(stage: Stage) -> None:
    world = stage.world
    life = world.lives[VICTIM]
    assert life.daemon is not None
    world.spawn(life, life.daemon.leave, lambda error: world.power_cut(VICTIM))
    world.until(lambda: runs_elsewhere(stage))
    assert evidence(world) is Evidence.POWER_OFF
    assert not world.hosts[VICTIM].is_up, "nobody switches it on"


class CountsOn(Judge):
    """A judge to whom an interruption of its own connection means nothing."""

    def _count(self, nodes: Mapping[str, Node]) -> None:
        self.connected_since = 0.0
        super()._count(nodes)

    def _evidence(self, fence: Fence) -> Evidence:
        self.connected_since = 0.0
        return super()._evidence(fence)


@pytest.mark.parametrize("judge", [Judge, CountsOn])
@pytest.mark.parametrize("seed", SEEDS)
def test_outage_in_which_leases_grow_is_no_time_that_counts(seed: int, judge: type[Judge]) -> None:
    """A node loses its session, then the whole store is out for long: its VMs go on, and rightly so."""
    world = World(seed, Mutant(judge=judge), keep_log=True, nodes=3, vms=1)
    world.faulty = False
    stage = Stage(world)
    stage.start(VICTIM)
    world.until(lambda: has_promised(world))
    began = world.now
    world.until(lambda: world.now > began + 6)  # it has looked around since the VM came
    began = world.now
    client = world.lives[VICTIM].client
    world.hosts[VICTIM].bmc = BMCFault.SILENT
    client.drop()
    client.barred_until = began + 120
    world.zookeeper.expire(client.session.id)
    world.until(lambda: world.now > began + 2)
    for place in PLACES:
        world.zookeeper.kill(place)
    world.until(lambda: world.now > began + 45)
    assert world.where(stage.uuid) == [VICTIM], "the coordinators have said that the store is out"
    for place in PLACES:
        world.zookeeper.start(place)
    try:
        world.until(lambda: runs_elsewhere(stage))
        assert judge is Judge
        assert evidence(world) is Evidence.WATCHDOG
        assert world.now > began + 45 + Timing().quiet_after_s() - 2
    except Violation:
        assert judge is CountsOn
    finally:
        world.end()


def arrives_after_a_reset(seed: int, mutant: Mutant) -> None:
    """A target loses its power with an answer outstanding, is fenced, and boots cut off from the store only:
    the connection that its source has begun meanwhile may be answered then."""
    world = World(seed, mutant, keep_log=True, nodes=5, vms=1)
    world.faulty = False
    stage = Stage(world)
    try:
        stage.start("n5")
        world.command("move", stage.uuid, target="n4")
        world.until(lambda: View(world.truth).target(stage.uuid))
        world.network.cut(both_ways(["n4"], list(PLACES)))
        world.power_cut("n4")
        world.until(lambda: any(one.fenced_at for one, _ in View(world.truth).fences().values()))
        if not world.hosts["n4"].is_up:
            world.power_on("n4")
        world.until(lambda: stage.vm().spec.node != "n4", within=400.0)
        world.network.heal_all()
        stage.at_rest()
    finally:
        world.end()


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_arrives_before_a_life_has_joined(seed: int) -> None:
    arrives_after_a_reset(seed, Mutant())


def test_who_is_open_from_boot_runs_vms_twice() -> None:
    def is_bitten(seed: int) -> bool:
        try:
            arrives_after_a_reset(seed, Mutant(open_from_boot=True))
        except Violation as violation:
            return "changed the owner" in str(violation) or " runs on " in str(violation)
        return False

    assert any(map(is_bitten, SEEDS))
