"""With one rule of safety taken away the simulation has to fail: else it shows nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest

from pvc.cluster import fencing, paths
from pvc.cluster.fencing import Duties, Release, Scene
from pvc.cluster.membership import Evidence, Fence, FenceState
from pvc.cluster.node import DaemonState, NodeStatus
from pvc.cluster.store import ANY_VERSION, Check, Op, Put
from pvc.cluster.view import VM, View
from pvc.cluster.vm import Power, State
from pvc.errors import PVCError
from pvc.node.actions import Action, Commit, Migrate, NodeAction, Shutdown, Start, StopStray
from pvc.node.daemon import Daemon
from pvc.node.drivers.hypervisor import MigrationResult
from pvc.node.execute import Executor
from pvc.node.judge import Judge, Look
from pvc.node.keeper import Keeper, Tenure
from pvc.node.lease import Guard
from pvc.node.outage import Answer, Outage, is_established
from pvc.node.plan import Picture, Plan, plan
from tests.sim.ceph import SEEDS as CEPH
from tests.sim.hosts import BMCFault
from tests.sim.network import bmc_of, both_ways
from tests.sim.test_liveness import Stage
from tests.sim.world import (
    Mutant,
    Violation,
    World,
    ceph_fault,
    kill,
    leave,
    lost,
    maintenance_fault,
    pause_machine,
    simulate,
    suspend,
)

WITHIN = 600
"""Seeds until the simulation has to have noticed."""


class StartsWithoutClaim(Executor):
    """QEMU first, the transaction afterwards."""

    __slots__ = ()

    def start(self, vm: VM) -> None:
        self._start_domain(vm.spec)
        claimed = replace(vm.status, owner=self.me, state=State.START, attempts=vm.spec.attempts)
        self.write(vm, None, claimed)


class TrustsEveryFailedMigration(Executor):
    """That the VM is still here is believed without looking."""

    __slots__ = ()

    def migrate(self, action: Migrate) -> None:
        try:
            super().migrate(action)
        except PVCError:
            vm = self._fresh(action.vm.spec.uuid)
            self.write(vm, None, replace(vm.status, owner=None, state=State.STARTING, migration=None))
            raise


def each(
    change: Callable[[Picture, Action | NodeAction], Action | NodeAction | None],
) -> Callable[[Picture], Plan]:
    """The planner with each of its actions changed, or taken away."""

    def planner(picture: Picture) -> Plan:
        planned = plan(picture)
        changed = [change(picture, action) for action in planned.actions]
        return Plan([action for action in changed if action is not None], planned.wake_at)

    return planner


def releases_when_asked(picture: Picture, action: Action | NodeAction) -> Action | NodeAction:
    """A guest that was asked once is taken for gone."""
    if isinstance(action, Shutdown) and picture.note(action.vm.spec.uuid).asked_first is not None:
        return Commit(
            action.vm, None, replace(action.vm.status, owner=None, state=State.STARTING), "as good as gone"
        )
    return action


def forgets_the_target(picture: Picture, action: Action | NodeAction) -> Action | NodeAction:
    """A domain that went while it was migrated is nobody's."""
    if isinstance(action, Commit) and action.why.startswith("it left for") and action.status is not None:
        return replace(action, status=replace(action.status, owner=None, state=State.STARTING))
    return action


def leaves_strays(picture: Picture, action: Action | NodeAction) -> Action | NodeAction | None:
    return None if isinstance(action, StopStray) else action


def starts_whoever_owns_it(picture: Picture) -> Plan:
    """What is wanted here is started here."""
    planned = plan(picture)
    for uuid, vm in sorted(picture.vms.items()):
        wanted = vm.spec.node == picture.me.node and vm.spec.power is Power.STARTED
        foreign = vm.status.owner is not None and vm.status.owner.node != picture.me.node
        if wanted and foreign and uuid not in picture.busy and uuid not in picture.domains:
            planned.actions = [a for a in planned.actions if getattr(a, "vm", None) is not vm]
            planned.actions.append(Start(vm))
    return planned


def expects_everything(picture: Picture, action: Action | NodeAction) -> Action | NodeAction | None:
    """The exception for a VM that arrives is made for each that is assigned here, or not known here."""
    if isinstance(action, StopStray):
        expected = (
            action.vm is None or action.vm.spec.node == picture.me.node or action.vm.status.owner is None
        )
        return None if expected else action
    return action


def forgets_requests(picture: Picture, action: Action | NodeAction) -> Action | NodeAction:
    """Who powers off while a user wants it started is taken for stopped."""
    if isinstance(action, Commit) and action.why == "it has stopped to start again":
        assert action.status is not None
        stopped = replace(action.vm.spec, power=Power.STOPPED)
        return replace(action, spec=stopped, status=replace(action.status, state=State.STOP))
    return action


def without_grace(picture: Picture) -> Plan:
    """A domain that is not listed is gone at once. Safe: no list is older than what the store says."""
    notes = {
        uuid: note if note.gone_since is None else replace(note, gone_since=0.0)
        for uuid, note in picture.notes.items()
    }
    return plan(replace(picture, notes=notes))


class TakesSilenceForOff(Judge):
    """A BMC that does not answer has lost its power with the node."""

    def _evidence(self, fence: Fence) -> Evidence:
        try:
            return super()._evidence(fence)
        except PVCError:
            return Evidence.POWER_OFF


class TakesTheOrderForItsEffect(Judge):
    """Who was ordered off is off."""

    def _evidence(self, fence: Fence) -> Evidence:
        super()._evidence(fence)
        return Evidence.POWER_OFF


class ShootsFromMemory(Judge):
    """Who was gone when the duty was found is gone still: nobody looks a second time."""

    def _look(self, fence: Fence) -> Look | None:
        return Look(self.view.node(fence.node), self.clock.monotonic())


class GoesOn(Guard):
    """Cut off, it neither ends its VMs nor lets the machine be reset."""

    def feed(self) -> float:
        self.lease = replace(self.lease, quiet_at=self.clock.monotonic())
        return super().feed()

    def end(self) -> float:
        return 1.0


class BelievesPings(Guard):
    """That a server answers is taken for contact with the cluster."""

    def prove(self) -> float:
        if self.lease.armed and self.granted is not None:
            self._confirmed(self.clock.monotonic())
        return 1.0


class BelievesAtOnce(Judge):
    """Who promised anything is as good as gone."""

    def _by_promise(self, fence: Fence, look: Look) -> Evidence:
        return Evidence.WATCHDOG if look.node.status.quiet_after_s else Evidence.NONE


class ShutsOutAtOnce(Judge):
    """Whom the monitors have listed can write no more: no OSD is asked."""

    def _isolate_or_why_not(self, fence: Fence) -> str:
        assert self.blocklist is not None
        self.blocklist.epoch_of = lambda osd: 10**9  # type: ignore[method-assign]
        return super()._isolate_or_why_not(fence)


class ForgetsWhoReturned(Judge):
    """What was so when it began is so when it is proven."""

    def _isolate_or_why_not(self, fence: Fence) -> str:
        commit = self.role.commit
        self.role.commit = lambda *ops: commit(  # type: ignore[method-assign]
            *(op for op in ops if not op.path.startswith(paths.NODES))
        )
        try:
            return super()._isolate_or_why_not(fence)
        finally:
            self.role.commit = commit  # type: ignore[method-assign]


def releases_whatever_it_runs(scene: Scene) -> Duties:
    """Who cannot write to Ceph can write nothing."""
    fences = {
        name: (replace(fence, state=FenceState.FENCED, finished=True), version)
        if (block := scene.blocks.get(fence.node)) and block[0].proves(fence.incarnation)
        else (fence, version)
        for name, (fence, version) in scene.fences.items()
    }
    found = fencing.duties(scene)
    others = [
        replace(duty, block=scene.blocks[duty.fence.node][1])
        for duty in fencing.duties(replace(scene, fences=fences)).todo
        if isinstance(duty, Release) and duty.fence.node in scene.blocks
    ]
    lanes = {fencing.lane(duty): duty for duty in [*found.todo, *others]}
    return Duties(list(lanes.values()), found.wake_at)


def releases_the_suspects(scene: Scene) -> Duties:
    """VMs of a node that is about to be fenced are as good as free."""
    fences = {
        name: (replace(fence, state=FenceState.FENCED, finished=True), version)
        if fence.state in (FenceState.FENCING, FenceState.FAILED)
        else (fence, version)
        for name, (fence, version) in scene.fences.items()
    }
    found = fencing.duties(scene)
    found.todo += [
        duty for duty in fencing.duties(replace(scene, fences=fences)).todo if isinstance(duty, Release)
    ]
    lanes = {fencing.lane(duty): duty for duty in found.todo}
    return Duties(list(lanes.values()), found.wake_at)


def sees_nobody(scene: Scene) -> Duties:
    """A mirror that has lost the sessions of all others."""
    nodes = {
        name: node if name == scene.me else replace(node, alive=None) for name, node in scene.nodes.items()
    }
    notes = {name: replace(note, gone_since=0.0) for name, note in scene.notes.items()}
    return fencing.duties(replace(scene, nodes=nodes, notes=notes))


class RenewsWithoutTheStore(Keeper):
    """Who was primary is primary, until somebody says something else."""

    def _confirm(self, tenure: Tenure) -> None:
        with suppress(PVCError):
            super()._confirm(tenure)


class KeepsThemToTheEnd(Keeper):
    """Drops them after the role: there is time enough for that."""

    def rest(self) -> bool:
        return True


class HandsOverEarly(Executor):
    """Whoever was asked to take it has it, before libvirt says so."""

    __slots__ = ()

    def _move_domain(self, uuid: str, action: Migrate) -> MigrationResult:
        self._hand_over(uuid, action, MigrationResult(0.0, 0))
        return super()._move_domain(uuid, action)


class ShootsEveryLife(Judge):
    """A suspicion of one life of a node is good for the next."""

    def _look(self, fence: Fence) -> Look | None:
        at = self.clock.monotonic()
        self.role.confirm()
        return Look(View(self.store).node(fence.node), at)


class JoinsAfterItsReceipt(Daemon):
    """A life that was fenced goes on when it is back."""

    def _returned(self, status: NodeStatus) -> NodeStatus:
        return replace(status, state=DaemonState.RUN)


def whatever_changed(ops: Sequence[Op]) -> Sequence[Op]:
    """No comparison before a VM's documents are written."""
    found: list[Op] = []
    for op in ops:
        if not op.path.startswith(paths.VMS):
            found.append(op)
        elif not isinstance(op, Check):
            found.append(replace(op, version=ANY_VERSION) if isinstance(op, Put) else op)
    return tuple(found)


def without_grace_for_nodes(scene: Scene) -> Duties:
    """Gone is dead."""
    return fencing.duties(
        replace(scene, cluster=replace(scene.cluster, fence_grace_s=0.0), believed_from=0.0)
    )


def in_maintenance_too(scene: Scene) -> Duties:
    return fencing.duties(replace(scene, cluster=replace(scene.cluster, maintenance=False)))


class PromisesTooMuch(Guard):
    """To be quiet at once when it is cut off."""

    @property
    def promise(self) -> float:
        return min(super().promise, 1.0)


class FeedsToTheEnd(Guard):
    """Its VMs are ended, if libvirt does it; the machine is never reset."""

    def feed(self) -> float:
        if self.lease.armed:
            with self._device:
                self.lease = replace(self.lease, quiet_at=self.clock.monotonic())
        return super().feed()


class BelievesOneCoordinator(Outage):
    """One that has no quorum speaks for all."""

    def is_out(self) -> bool:
        found: list[Answer] = []
        sent = self.clock.monotonic()
        for address in self.addresses:
            with suppress(PVCError):
                found.append(Answer(self.ask(address), self.clock.monotonic() - sent))
        return is_established(found, 1, self.timing)


def lost_without_libvirt(world: World) -> None:
    """Nobody reaches a node, and its daemon cannot end its VMs."""
    name = world.rng.choice(list(world.hosts))
    if world.now < 1025 and world.hosts[name].domains and world.network.is_whole:
        world.hosts[name].libvirt_down()
        world.network.cut(both_ways([name, bmc_of(name)], [one for one in world.hosts if one != name]))


def pause_without_bmc(world: World) -> None:
    """It stands still, with its QEMUs, and goes on: meanwhile nobody can switch it off."""
    for host in world.hosts.values():
        host.bmc = BMCFault.SILENT
    pause_machine(world)


LIES = ("a false receipt", "runs on", "changed the owner", "gave up", "after the faults", "circles")
"""What breaks when a BMC lies: what holds nevertheless is the rule to be shown."""


@dataclass(frozen=True)
class Bite:
    name: str
    mutant: Mutant
    kinds: tuple[Callable[[World], None], ...] = ()
    """Faults that bring it to light; empty: any."""
    first: int = 0
    """Seed."""


OUT_OF_REACH = (lost, pause_without_bmc)
"""Machines that stand still, or go on by themselves, and nobody can switch them off."""

BITES = [
    Bite("start without a claim", Mutant(executor=StartsWithoutClaim)),
    Bite("start whoever owns it", Mutant(planner=starts_whoever_owns_it)),
    Bite("release before it is gone", Mutant(planner=each(releases_when_asked))),
    Bite("release what may have been moved", Mutant(planner=each(forgets_the_target)), (kill, leave)),
    Bite("release after every failed migration", Mutant(executor=TrustsEveryFailedMigration)),
    Bite("leave strays", Mutant(planner=each(leaves_strays))),
    Bite("expect everything", Mutant(planner=each(expects_everything))),
    Bite("list domains before the store is read", Mutant(planner=without_grace, old_lists=True)),
    Bite("take silence for off", Mutant(judge=TakesSilenceForOff)),
    Bite("take an order for its effect", Mutant(judge=TakesTheOrderForItsEffect)),
    Bite("shoot from memory", Mutant(judge=ShootsFromMemory, decide=sees_nobody)),
    Bite("go on when cut off", Mutant(guard=GoesOn)),
    Bite("believe pings", Mutant(guard=BelievesPings)),
    Bite("believe a promise at once", Mutant(judge=BelievesAtOnce)),
    Bite("promise too much", Mutant(guard=PromisesTooMuch), (lost,)),
    Bite("feed to the end", Mutant(guard=FeedsToTheEnd), (lost_without_libvirt,)),
    Bite("believe one coordinator", Mutant(outage=BelievesOneCoordinator), (lost,)),
    Bite("release without evidence", Mutant(decide=releases_the_suspects)),
    Bite("hand over early", Mutant(executor=HandsOverEarly)),
    Bite(
        "join after the receipt", Mutant(daemon=JoinsAfterItsReceipt, judge=TakesSilenceForOff, ignores=LIES)
    ),
    Bite("write over what has changed", Mutant(ops=whatever_changed)),
    Bite("fence in maintenance", Mutant(decide=in_maintenance_too), (maintenance_fault, kill, suspend)),
    Bite("forget requests", Mutant(planner=each(forgets_requests))),
    Bite("shut out at once", Mutant(judge=ShutsOutAtOnce), (lost, ceph_fault), CEPH),
    Bite("release whatever it runs", Mutant(decide=releases_whatever_it_runs), (lost,), CEPH),
    Bite("forget who returned", Mutant(judge=ForgetsWhoReturned), OUT_OF_REACH, CEPH),
    Bite("addresses without a lifetime", Mutant(no_lifetime=True)),
    Bite("renew addresses without the store", Mutant(keeper=RenewsWithoutTheStore)),
    Bite("keep addresses beyond the role", Mutant(keeper=KeepsThemToTheEnd)),
]


def bitten(
    mutant: Mutant, within: int = WITHIN, kinds: Sequence[Callable[[World], None]] = (), first: int = 0
) -> tuple[int, str]:
    """The first seed that notices, and what it says."""
    for seed in range(first, first + within):
        try:
            simulate(seed, mutant, kinds=kinds)
        except Violation as violation:
            return seed, str(violation)
    return within, ""


@pytest.mark.parametrize("bite", BITES, ids=lambda bite: bite.name)
def test_simulation_notices(bite: Bite) -> None:
    _, why = bitten(bite.mutant, kinds=bite.kinds, first=bite.first)
    assert why, f"{WITHIN} seeds and nobody noticed"


def keeps_its_vm(seed: int, mutant: Mutant, is_back: Callable[[World], bool], bmc: BMCFault) -> bool:
    """A node is out of reach until then: is what runs on it left alone? Raises Violation."""
    world = World(seed, mutant, nodes=3, vms=1)
    world.faulty = False
    try:
        stage = Stage(world)
        stage.start("n3")
        before = world.hosts["n3"].domains[stage.uuid]
        world.hosts["n3"].bmc = bmc
        cut = world.network.cut(both_ways(["n3"], ["n1", "n2"]))
        world.until(lambda: is_back(world))
        world.network.heal(cut)
        end = world.now + 30
        world.until(lambda: world.now > end)
        return world.hosts["n3"].domains.get(stage.uuid) is before
    finally:
        world.end()


def when_its_session_ends(world: World) -> bool:
    return world.cluster.document(paths.alive("n3")) is None


def when_its_bmc_is_asked(world: World) -> bool:
    return any(fence.state is FenceState.FENCING for fence, _ in View(world.truth).fences().values())


def test_grace_is_for_those_who_are_back_at_once() -> None:
    def kept(mutant: Mutant) -> bool:
        return all(keeps_its_vm(seed, mutant, when_its_session_ends, BMCFault.NONE) for seed in range(5))

    assert kept(Mutant())
    assert not kept(Mutant(decide=without_grace_for_nodes))


def test_second_look_is_for_those_who_are_back_while_their_bmc_thinks() -> None:
    """Not each of them is back soon enough; who is keeps its power."""

    def look(mutant: Mutant) -> None:
        for seed in range(12):
            keeps_its_vm(seed, mutant, when_its_bmc_is_asked, BMCFault.SLOW)

    look(Mutant())
    with pytest.raises(Violation, match="fenced though it is back"):
        look(Mutant(judge=ShootsEveryLife))


def test_order_of_observations_suffices_without_grace() -> None:
    """The grace is for the reason why a domain ended; safety rests on the order in which a round observes."""
    assert bitten(Mutant(planner=without_grace), 60) == (60, "")
