"""One node's daemon over a store and a host in memory: what happens between the steps of a round."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pvc.clock import SystemClock
from pvc.cluster import domainxml, paths
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.codec import Unreadable, dumps
from pvc.cluster.membership import Evidence, Fence, FenceState
from pvc.cluster.node import Alive, DaemonState, Load, NetworkProblem, NodeRole, NodeSpec, NodeStatus, Wanted
from pvc.cluster.storage import CephAccess, Monitor
from pvc.cluster.store import Create, Delete, Put
from pvc.cluster.view import VM, Node, View
from pvc.cluster.vm import Owner, Power, State, Target, VMSpec, VMStatus, move
from pvc.config import Config, NodeConfig, PathsConfig, parse
from pvc.errors import Conflict, Failed, Invalid, NotFound, Unavailable
from pvc.node.actions import Action, NodeAction
from pvc.node.daemon import Daemon
from pvc.node.drivers import DriverError
from pvc.node.drivers.hypervisor import Domain, MigrationResult, MigrationSettings, MigrationTarget
from pvc.node.drivers.storage import Holder
from pvc.node.execute import Executor
from pvc.node.locks import Held
from pvc.node.network import Found
from pvc.node.process import Process, main
from tests.fakes.hypervisor import FakeHypervisor, FakeWorld
from tests.fakes.store import MemoryCluster, MemoryStore
from tests.unit.node.pictures import UUID, XML, spec
from tests.unit.node.test_lease import Clock, Memory

FENCED = Fence("n1", 1, FenceState.FENCED, Evidence.POWER_OFF)


@dataclass(slots=True)
class Host(FakeHypervisor):
    after_listing: Callable[[], object] = lambda: None
    migrations: list[MigrationSettings] = field(default_factory=list)

    def migrate(
        self, uuid: str, target: MigrationTarget, settings: MigrationSettings, **more: Any
    ) -> MigrationResult:
        self.migrations.append(settings)
        return FakeHypervisor.migrate(self, uuid, target, settings, **more)

    def domains(self) -> Mapping[str, Domain]:
        listed = FakeHypervisor.domains(self)
        self.after_listing()
        return listed


@dataclass(slots=True)
class Inline:
    """Lanes without threads; `held` keeps actions from beginning."""

    carry_out: Callable[[Action | NodeAction], None]
    held: bool = False
    seen: list[Action | NodeAction] = field(default_factory=list)

    @property
    def busy(self) -> Mapping[str, Action | NodeAction]:
        return {}

    def submit(self, action: Action | NodeAction) -> None:
        self.seen.append(action)
        if not self.held:
            self.carry_out(action)

    def close(self) -> None:
        self.held = True


@dataclass(slots=True)
class Bench:
    cluster: MemoryCluster
    store: MemoryStore
    host: Host
    daemon: Daemon
    lanes: list[Inline]
    begin: Callable[[], Daemon]
    """Another life of the daemon."""
    bridges: set[str]

    def add(self, new: VMSpec) -> None:
        self.store.commit(
            Create(paths.vm(new.uuid), dumps(new)),
            Create(paths.vm_status(new.uuid), dumps(VMStatus())),
            Create(paths.node_vm("n1", new.uuid)),
        )

    def rounds(self, count: int = 1) -> None:
        for _ in range(count):
            self.cluster.deliver()
            self.daemon.step()

    @property
    def vm(self) -> VM:
        return View(self.store).vm(UUID)

    @property
    def node(self) -> Node:
        return View(self.store).node("n1")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    cluster = MemoryCluster()
    store = cluster.connect()
    store.commit(*(Create(path) for path in paths.LAYOUT), Create(paths.CLUSTER, dumps(ClusterSpec("c"))))
    host = Host(FakeWorld(), "n1", 16384, 8)
    config = Config(node=NodeConfig("n1"), paths=PathsConfig(console=str(tmp_path)))
    lanes: list[Inline] = []

    def make(carry_out: Callable[[Action | NodeAction], None], done: Callable[[], None]) -> Inline:
        lanes.append(Inline(carry_out))
        return lanes[-1]

    bridges = {"br0"}

    def begin() -> Daemon:
        return Daemon(config, store, host, SystemClock(), lanes=make, bridges=lambda: frozenset(bridges))

    yield Bench(cluster, store, host, begin(), lanes, begin, bridges)
    store.close()


@dataclass(slots=True)
class Watchdog:
    name: str = "dog"
    is_armed: bool = False
    changed: Callable[[], object] = lambda: None

    def arm(self, seconds: int) -> float:
        self.is_armed = True
        return float(seconds)

    def feed(self) -> None:
        pass

    def disarm(self) -> None:
        self.is_armed = False
        self.changed()


@dataclass(slots=True)
class Watched:
    dog: Watchdog = field(default_factory=Watchdog)
    memory: Memory = field(default_factory=Memory)
    clock: Clock = field(default_factory=Clock)


def test_end_that_is_told_after_the_domains_were_listed_is_not_forgotten(bench: Bench) -> None:
    bench.add(spec())
    bench.rounds(2)
    assert bench.vm.status.state is State.START

    def leave() -> None:
        if UUID in bench.host.machines:
            bench.host.leave(UUID)

    bench.host.after_listing = leave
    bench.rounds(2)
    assert bench.vm.status.reason == "the guest powered itself off"
    assert (bench.vm.spec.power, bench.vm.status.owner) == (Power.STOPPED, None)


def test_states_of_a_daemon_from_its_start_to_its_end(bench: Bench) -> None:
    daemon = bench.begin()
    assert bench.node.status.state is DaemonState.INIT
    seen = []
    for go_on in (daemon.step, daemon.begin_to_leave, daemon.leave):
        go_on()
        seen.append((str(bench.node.daemon_state), bench.node.is_running))
    assert seen == [("run", True), ("shutdown", False), ("stop", False)]


def test_floating_addresses_are_told_at_once(bench: Bench) -> None:
    bench.rounds()
    bench.daemon.floating = lambda: (("10.0.0.250/24",), "no device")
    bench.rounds()
    load = bench.node.load
    assert (load.addresses, load.address_problem) == (("10.0.0.250/24",), "no device")


def test_load_counts_what_is_about_to_run(bench: Bench) -> None:
    bench.rounds()
    bench.lanes[0].held = True
    bench.add(spec(attempts=1))
    other = UUID.replace("1", "2")
    bench.add(spec(uuid=other, name="web2", definition=XML.replace(UUID, other)))
    bench.rounds()
    assert UUID not in bench.host.machines
    assert (bench.node.load.memory_allocated_mib, bench.node.load.vcpus_allocated) == (512, 1)
    bench.lanes[0].held = False
    bench.rounds(2)
    assert bench.node.load.memory_allocated_mib == 1024


def join(bench: Bench, name: str, address: str) -> None:
    """Another node, as its daemon would write it."""
    status = NodeStatus(1, DaemonState.RUN, cpus=8, memory_mib=16384, bridges=("br0",))
    bench.store.commit(
        Create(paths.node(name), dumps(NodeSpec(name, address, address))),
        Create(paths.node_vms(name)),
        Create(paths.node_status(name), dumps(status)),
        Create(paths.load(name), dumps(Load(memory_free_mib=15000))),
        Create(paths.alive(name), dumps(Alive(1)), ephemeral=True),
    )


def coordinator(bench: Bench, name: str, address: str) -> None:
    """One that has never come: the store knows it."""
    bench.store.commit(
        Create(paths.node(name), dumps(NodeSpec(name, address, address, NodeRole.COORDINATOR)))
    )


def test_unreadable_definition_does_not_keep_the_others_from_leaving(bench: Bench) -> None:
    join(bench, "n2", "10.0.0.2")
    broken = spec(uuid=UUID.replace("1", "2"), name="web2", definition="<domain")
    bench.add(spec())
    bench.add(broken)
    here = bench.node
    bench.store.commit(Put(paths.node("n1"), dumps(replace(here.spec, wanted=Wanted.FLUSHED))))
    bench.rounds(4)
    assert bench.vm.spec.node == "n2"
    assert View(bench.store).vm(broken.uuid).spec.node == "n1"
    assert "web2 has an unreadable definition" in bench.node.load.problem


def test_a_vm_whose_disks_are_in_a_ceph_that_this_node_does_not_reach_is_tried_again(bench: Bench) -> None:
    disk = domainxml.NewDisk("vms/web1", "raw", is_rbd=True)
    xml = domainxml.create("web1", UUID, memory_mib=512, vcpus=1, disks=[disk])
    bench.add(spec(definition=xml))
    with pytest.raises(Unavailable):
        bench.rounds(1)
    assert (bench.vm.status.state, bench.vm.status.owner) == (State.STARTING, None)
    assert bench.vm.status.reason == "cannot start: this node does not reach the cluster's Ceph"
    access = CephAccess((Monitor("10.0.0.9", 3300),), "pvc-vm", UUID)
    bench.daemon.executor.ceph = lambda: access
    found = bench.vm
    again = replace(found.spec, attempts=found.spec.attempts + 1)
    bench.store.commit(Put(paths.vm(UUID), dumps(again), found.spec_version))
    bench.rounds(3)
    assert bench.vm.status.state is State.START
    assert '<host name="10.0.0.9" port="3300" />' in bench.host.machines[UUID].xml
    assert (bench.vm.status.digest, *bench.vm.status.drives) == (
        domainxml.digest(xml),
        *domainxml.shape(xml).drives,
    )


ON_CEPH = domainxml.create(
    "web1", UUID, memory_mib=512, vcpus=1, disks=[domainxml.NewDisk("vms/web1", "raw", is_rbd=True)]
)


def test_no_start_is_tried_while_ceph_takes_no_writes_from_the_node(bench: Bench) -> None:
    """Each try would keep a lane busy, and the node comes off Ceph's block list when none is."""
    bench.daemon.ceph_problem = lambda: "it is listed"
    bench.add(spec(definition=ON_CEPH))
    bench.rounds(3)
    assert bench.vm.status.reason == "waits: it is listed"
    assert [type(action).__name__ for action in bench.lanes[-1].seen] == ["Commit"]


def test_vm_on_ceph_may_not_come_when_the_node_is_listed_since_that_was_planned(bench: Bench) -> None:
    join(bench, "n2", "10.0.0.2")
    bench.add(spec(definition=ON_CEPH))
    found = bench.vm
    elsewhere = replace(found.status, owner=Owner("n2", 1), state=State.START)
    bench.store.commit(Put(paths.vm_status(UUID), dumps(elsewhere), found.status_version or 0))
    planned: list[str] = []

    def problem() -> str:
        planned.append("")
        return "" if len(planned) == 1 else "it is listed"

    bench.daemon.ceph_problem = problem
    bench.rounds(1)
    answer = View(bench.store).target(UUID)
    assert answer is not None
    assert answer[0].refused == "it is listed"
    assert bench.daemon.is_idle() is False
    bench.rounds(1)
    assert bench.daemon.is_idle()


def test_return_goes_on_until_what_waits_for_ceph_has_come_too(bench: Bench) -> None:
    join(bench, "n2", "10.0.0.2")
    other = UUID.replace("1", "2")
    bench.add(spec(definition=ON_CEPH, node="n2", home="n1"))
    bench.add(spec(uuid=other, name="web2", node="n2", home="n1"))
    bench.store.commit(*(Create(paths.node_vm("n2", uuid)) for uuid in (UUID, other)))
    bench.daemon.ceph_problem = lambda: "it is listed"
    bench.daemon._change_status(lambda status: replace(status, flushed=True))
    bench.rounds(2)
    assert (View(bench.store).vm(other).spec.node, bench.vm.spec.node) == ("n1", "n2")
    assert bench.node.status.flushed
    assert "it is listed" in bench.node.load.problem
    bench.daemon.ceph_problem = lambda: ""
    bench.daemon.executor.ceph = lambda: CephAccess((Monitor("10.0.0.9", 3300),), "pvc-vm", UUID)
    bench.rounds(2)
    assert bench.vm.spec.node == "n1"
    assert not bench.node.status.flushed
    assert bench.node.load.problem == ""


def test_a_vm_whose_disk_somebody_seems_to_hold_is_tried_again(bench: Bench) -> None:
    """After an outage Ceph takes for alive, for a while, who died before."""
    holder = Holder("client.7", "auto 1", "10.0.0.3:0/123", is_there=True)

    def held(found: VM) -> None:
        raise Held(found, "vms/web1", holder)

    bench.daemon.executor.free_disks = held
    bench.add(spec())
    with pytest.raises(Held):
        bench.rounds(1)
    assert (bench.vm.status.state, bench.vm.status.owner) == (State.STARTING, None)
    assert "vms/web1 is held by a client at 10.0.0.3:0/123" in bench.vm.status.reason


def test_a_vm_that_a_task_is_at_does_not_start(bench: Bench) -> None:
    bench.add(spec())
    bench.store.commit(Create(paths.vm_claim(UUID), b"0000000a"))
    with pytest.raises(Conflict, match="task 0000000a is at web1"):
        bench.rounds(1)
    assert (bench.vm.status.owner, bench.host.calls) == (None, [])
    bench.store.commit(Delete(paths.vm_claim(UUID)))
    bench.rounds(3)
    assert bench.vm.status.state is State.START


@pytest.mark.parametrize("autoready", [True, False])
def test_who_was_fenced_fetches_its_vms_home_where_that_is_wanted(bench: Bench, autoready: bool) -> None:
    join(bench, "n2", "10.0.0.2")
    bench.store.commit(Put(paths.CLUSTER, dumps(ClusterSpec("c", autoready=autoready))))
    bench.rounds()
    away = spec(node="n2", home="n1")
    bench.add(away)
    bench.store.commit(
        Delete(paths.alive("n1")),
        Create(paths.fence("n1", 1), dumps(Fence("n1", 1, FenceState.FENCED, Evidence.POWER_OFF))),
        Create(paths.node_vm("n2", UUID)),
    )
    bench.daemon = bench.begin()
    bench.rounds(3)
    assert bench.vm.spec.node == ("n1" if autoready else "n2")
    assert not bench.node.status.flushed


def test_stray_is_ended_and_told(bench: Bench) -> None:
    bench.rounds()
    join(bench, "n2", "10.0.0.2")
    bench.add(spec(node="n2"))
    bench.store.commit(
        Put(paths.vm_status(UUID), dumps(VMStatus(State.START, Owner("n2", 1)))),
        Create(paths.node_vm("n2", UUID)),
    )
    bench.host.start(XML)
    bench.rounds(2)
    assert UUID not in bench.host.machines
    (told,) = bench.node.status.strays
    assert (told.vm, told.why) == ("web1", "it is owned by n2")


def test_settings_of_a_migration_reach_the_hypervisor_in_their_units(bench: Bench) -> None:
    """14.2.13: milliseconds stay milliseconds."""
    join(bench, "n2", "10.0.0.2")
    bench.host.world.hosts["n1"] = bench.host
    bench.host.world.add("10.0.0.2")
    bench.add(spec(max_downtime_ms=250, migration_timeout_s=30))
    bench.rounds(2)
    moved = move(bench.vm.spec, "n2", home=None)
    bench.store.commit(
        Put(paths.vm(UUID), dumps(moved)),
        Create(paths.node_vm("n2", UUID)),
        Create(paths.vm_target(UUID), dumps(Target("n2", moved.moves, 1))),
    )
    bench.rounds()
    (given,) = bench.host.migrations
    assert (given.max_downtime_ms, given.timeout_s) == (250, 30.0)


def test_a_vm_that_a_task_is_at_is_not_moved(bench: Bench) -> None:
    join(bench, "n2", "10.0.0.2")
    bench.host.world.hosts["n1"] = bench.host
    bench.host.world.add("10.0.0.2")
    bench.add(spec())
    bench.rounds(2)
    moved = move(bench.vm.spec, "n2", home="n1")
    bench.store.commit(
        Put(paths.vm(UUID), dumps(moved)),
        Create(paths.node_vm("n2", UUID)),
        Create(paths.vm_target(UUID), dumps(Target("n2", moved.moves, 1))),
        Create(paths.vm_claim(UUID), b"0000000a"),
    )
    bench.rounds(2)
    assert bench.host.migrations == []
    assert (bench.vm.spec.node, bench.vm.spec.home, bench.vm.status.state) == ("n1", None, State.START)
    assert bench.vm.status.reason == "not moved to n2: task 0000000a is at it"


def test_a_vm_whose_guest_stands_still_is_not_moved_before_it_goes_on(bench: Bench) -> None:
    """There nobody would tell it."""
    join(bench, "n2", "10.0.0.2")
    bench.host.world.hosts["n1"] = bench.host
    bench.host.world.add("10.0.0.2")
    bench.add(spec())
    bench.rounds(2)
    still = {UUID}
    bench.daemon.executor.stands_still = still.__contains__
    moved = move(bench.vm.spec, "n2", home="n1")
    bench.store.commit(
        Put(paths.vm(UUID), dumps(moved)),
        Create(paths.node_vm("n2", UUID)),
        Create(paths.vm_target(UUID), dumps(Target("n2", moved.moves, 1))),
    )
    bench.rounds(2)
    assert bench.host.migrations == []
    assert (bench.vm.spec.node, bench.vm.spec.home, bench.vm.status.state) == ("n1", None, State.START)
    assert bench.vm.status.reason == (
        "not moved to n2: its guest stands still for a snapshot, and is told to go on: "
        "pvc vm restart web1, if it does not"
    )
    still.clear()
    again = move(bench.vm.spec, "n2", home="n1")
    answer = Put(paths.vm_target(UUID), dumps(Target("n2", again.moves, 1)))
    bench.store.commit(Put(paths.vm(UUID), dumps(again)), Create(paths.node_vm("n2", UUID)), answer)
    bench.rounds()
    assert len(bench.host.migrations) == 1


def test_a_vm_that_a_task_is_at_starts_when_that_has_ended(bench: Bench) -> None:
    bench.add(spec())
    bench.store.commit(Create(paths.vm_claim(UUID), b"0000000a"))
    with pytest.raises(Conflict, match="task 0000000a is at web1"):
        bench.rounds()
    assert (bench.vm.status.owner, bench.vm.status.failures, bench.host.machines) == (None, 0, {})
    bench.store.commit(Delete(paths.vm_claim(UUID)))
    bench.rounds(2)
    assert UUID in bench.host.machines


def test_hand_over_that_cannot_be_written_is_not_tried_for_ever(bench: Bench) -> None:
    join(bench, "n2", "10.0.0.2")
    bench.host.world.hosts["n1"] = bench.host
    bench.host.world.add("10.0.0.2")
    bench.add(spec())
    bench.rounds(2)
    moved = move(bench.vm.spec, "n2", home=None)
    bench.store.commit(
        Put(paths.vm(UUID), dumps(moved)),
        Create(paths.node_vm("n2", UUID)),
        Create(paths.vm_target(UUID), dumps(Target("n2", moved.moves, 1))),
    )

    def lose_index(uuid: str) -> None:
        with suppress(NotFound):
            bench.store.commit(Delete(paths.node_vm("n1", uuid)))

    bench.host.world.during_migration = lose_index
    with pytest.raises(NotFound):
        bench.rounds(1)
    assert bench.host.world.running_on(UUID) == ("10.0.0.2",)


def depart(bench: Bench, incarnation: int) -> None:
    """It is to move to n2, which lives for the first time; n2 has answered in the given life."""
    join(bench, "n2", "10.0.0.2")
    bench.host.world.hosts["n1"] = bench.host
    bench.host.world.add("10.0.0.2")
    bench.add(spec())
    bench.rounds(2)
    moved = move(bench.vm.spec, "n2", home=None)
    bench.store.commit(
        Put(paths.vm(UUID), dumps(moved)),
        Create(paths.node_vm("n2", UUID)),
        Create(paths.vm_target(UUID), dumps(Target("n2", moved.moves, incarnation))),
    )


@pytest.mark.parametrize("is_there", [True, False])
def test_answer_of_a_life_that_is_over_is_taken_away(bench: Bench, is_there: bool) -> None:
    depart(bench, 0 if is_there else 1)
    if not is_there:
        bench.store.commit(Delete(paths.alive("n2")))
    with pytest.raises(Conflict):
        bench.rounds()
    assert not bench.host.migrations
    assert bench.store.get(paths.vm_target(UUID)) is None
    assert bench.vm.status.state is State.START


def test_target_that_goes_before_libvirt_is_asked_is_not_asked(bench: Bench) -> None:
    depart(bench, 1)
    executor = bench.daemon.executor
    believe = executor._believe_answer

    def gone_after_that(vm: VM, target: Target) -> None:
        believe(vm, target)
        bench.store.commit(Delete(paths.alive("n2")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Executor, "_believe_answer", lambda self, *given: gone_after_that(*given))
        with pytest.raises(DriverError):
            bench.rounds()
    assert not bench.host.migrations
    assert bench.vm.status.owner == bench.daemon.me


def test_vm_that_has_moved_belongs_to_the_newest_life_there(bench: Bench) -> None:
    depart(bench, 1)

    def begin_again(uuid: str) -> None:
        bench.store.commit(Put(paths.node_status("n2"), dumps(NodeStatus(2, DaemonState.INIT))))

    bench.host.world.during_migration = begin_again
    bench.rounds()
    assert bench.vm.status.owner == Owner("n2", 2)


def test_life_for_which_there_is_a_receipt_ends(bench: Bench) -> None:
    """Its VMs run elsewhere: it must not be alive again, and the next life of the daemon may."""
    bench.rounds()
    bench.store.commit(Create(paths.fence("n1", 1), dumps(FENCED)))
    bench.cluster.expire(bench.store)
    bench.cluster.resume(bench.store)
    with pytest.raises(Failed, match="was fenced"):
        bench.rounds()
    assert bench.node.alive is None


def test_receipt_made_while_a_node_returns_keeps_it_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has looked for a receipt and found none when the judge writes one, and the status with it."""
    bench.rounds()
    bench.cluster.expire(bench.store)
    bench.cluster.resume(bench.store)
    looked = bench.daemon._returned

    def look_too_early(status: NodeStatus) -> NodeStatus:
        after = looked(status)
        node = bench.node
        bench.store.commit(
            Create(paths.fence("n1", 1), dumps(FENCED)),
            Put(paths.node_status("n1"), dumps(node.status), node.status_version or 0),
        )
        return after

    monkeypatch.setattr(bench.daemon, "_returned", look_too_early)
    with pytest.raises(Conflict):
        bench.rounds()
    assert bench.node.alive is None


def watched(bench: Bench) -> Watched:
    """Its daemon with a watchdog and a clock of its own, in contact and armed: another one could judge it."""
    found = Watched()
    coordinator(bench, "n9", "127.0.0.1")
    guard = bench.daemon.guard
    guard.watchdog, guard.memory, guard.clock = found.dog, found.memory, found.clock
    guard.spawn = lambda function: function()
    bench.rounds()
    return found


def test_promise_is_published_when_the_watchdog_is_armed_and_taken_back_before_it_is_not(
    bench: Bench,
) -> None:
    seen = watched(bench)
    assert bench.node.status.quiet_after_s == bench.daemon.guard.promise > 0
    assert bench.node.status.watchdog == "dog, 8 s"
    told: list[tuple[bool, float]] = []
    seen.dog.changed = lambda: told.append((seen.dog.is_armed, bench.node.status.quiet_after_s))
    stored = bench.store.get(paths.CLUSTER)
    assert stored is not None
    bench.store.commit(Put(paths.CLUSTER, dumps(ClusterSpec("c", maintenance=True)), stored.version))
    bench.rounds()
    assert told == [(False, 0.0)]
    bench.rounds()
    assert not seen.dog.is_armed
    bench.store.commit(Put(paths.CLUSTER, dumps(ClusterSpec("c"))))
    bench.rounds()
    assert seen.dog.is_armed
    assert bench.node.status.quiet_after_s


def test_node_that_does_not_know_all_coordinators_promises_nothing_and_believes_no_outage(
    bench: Bench,
) -> None:
    watched(bench)
    guard = bench.daemon.guard
    coordinator(bench, "n8", "10.0.0.8")
    bench.rounds()
    assert bench.node.status.quiet_after_s == 0
    assert "lacks 10.0.0.8" in bench.node.status.watchdog
    bench.daemon.load_due = 0
    bench.rounds()
    assert "cluster.coordinators of its pvc.toml lacks 10.0.0.8" in bench.node.load.problem
    assert guard.lease.armed, "its VMs end with its contact all the same"
    guard.is_out = lambda: True
    bench.cluster.suspend(bench.store)
    before = guard.lease.contact
    assert isinstance(guard.clock, Clock)
    guard.clock.now += 5
    guard.prove()
    assert guard.lease.contact == before
    bench.cluster.resume(bench.store)
    bench.store.commit(Delete(paths.node("n8")))
    bench.rounds()
    assert bench.node.status.quiet_after_s
    assert not bench.node.load.problem


def test_node_that_believes_other_ticks_than_zookeeper_has_promises_nothing(bench: Bench) -> None:
    watched(bench)
    bench.daemon.wrong_ticks = "tickTime = 2000"
    bench.rounds()
    assert (bench.node.status.quiet_after_s, bench.node.status.watchdog) == (0, "tickTime = 2000")


def test_only_coordinator_of_a_cluster_is_not_armed_until_another_one_could_judge_it(bench: Bench) -> None:
    seen = Watched()
    guard = bench.daemon.guard
    guard.watchdog, guard.memory, guard.clock = seen.dog, seen.memory, seen.clock
    join(bench, "n2", "10.0.0.2")
    bench.rounds()
    assert (seen.dog.is_armed, guard.lease.armed, bench.node.status.quiet_after_s) == (False, False, 0)
    assert "nobody could judge" in bench.node.status.watchdog
    coordinator(bench, "n9", "127.0.0.1")
    bench.rounds()
    assert seen.dog.is_armed
    assert bench.node.status.quiet_after_s
    bench.store.commit(Delete(paths.node("n9")))
    bench.rounds()
    assert (seen.dog.is_armed, bench.node.status.quiet_after_s) == (False, 0)


def test_life_is_alive_with_its_first_document(bench: Bench) -> None:
    """Nothing may wait in between: a life that is seen and not alive is a suspect."""
    for incarnation in (1, 2):
        assert bench.node.alive == Alive(incarnation)
        assert bench.node.status.incarnation == incarnation
        assert not bench.node.is_running, "no VM is placed there before the first round"
        bench.rounds()
        assert bench.node.is_running
        bench.daemon = bench.begin()


def test_joining_is_contact(bench: Bench) -> None:
    clock, guard = watched(bench).clock, bench.daemon.guard
    bench.daemon.clock = clock
    clock.now += guard.timing.lease_s + 1
    bench.cluster.expire(bench.store)
    bench.cluster.resume(bench.store)
    bench.daemon.rejoin()
    assert guard.lease.contact == clock.now


def test_idle_needs_to_know_what_earlier_lives_have_answered(bench: Bench) -> None:
    bench.daemon.rejoin()
    assert not bench.daemon.is_idle()
    bench.rounds()
    assert bench.daemon.is_idle()


def test_who_leaves_joins_again_and_goes_on_leaving(bench: Bench) -> None:
    bench.rounds()
    bench.daemon.begin_to_leave()
    bench.cluster.expire(bench.store)
    bench.cluster.resume(bench.store)
    assert bench.store.get(paths.alive("n1")) is None
    bench.daemon.stay()
    assert bench.daemon.has_contact()
    assert (bench.node.alive, bench.node.status.state) == (Alive(1), DaemonState.SHUTDOWN)


def test_contact_needs_the_ephemeral_of_this_life(bench: Bench) -> None:
    bench.rounds()
    assert bench.daemon.has_contact()
    bench.store.commit(Delete(paths.alive("n1")))
    with pytest.raises(NotFound):
        bench.daemon.has_contact()
    bench.cluster.expire(bench.store)
    bench.cluster.resume(bench.store)
    assert not bench.daemon.has_contact(), "not in this session"


def test_vm_does_not_start_on_a_node_that_is_cut_off(bench: Bench) -> None:
    seen = watched(bench)
    seen.clock.now += 100
    bench.add(spec())
    with pytest.raises(Unavailable, match="lost contact"):
        bench.rounds()
    assert bench.vm.status.owner is None


def test_lease_that_ends_on_the_way_to_libvirt_ends_the_start(bench: Bench) -> None:
    """Frozen between its claim and the start: QEMU must not be asked for afterwards."""
    seen = watched(bench)
    bench.add(spec())

    def too_late(*_: object) -> None:
        seen.clock.now += 100

    bench.daemon.executor.note = too_late
    with pytest.raises(Unavailable, match="lost contact"):
        bench.rounds()
    assert UUID not in bench.host.machines


def test_vm_that_was_ended_by_its_own_node_starts_again_and_has_not_failed(bench: Bench) -> None:
    seen = watched(bench)
    bench.add(spec())
    bench.rounds(2)
    assert bench.vm.status.state is State.START
    seen.clock.now += 100
    bench.daemon.guard.end()
    assert UUID not in bench.host.machines
    bench.daemon.step()
    assert bench.vm.status.owner is not None, "first all has to have ended"
    bench.daemon.guard.prove()
    bench.daemon.guard.end()
    bench.daemon.step()
    assert bench.vm.status.owner is None
    assert "lost contact" in bench.vm.status.reason
    assert (bench.vm.status.failures, bench.vm.spec.power) == (0, Power.STARTED)
    bench.rounds(2)
    assert bench.vm.status.state is State.START


@pytest.mark.parametrize("runs", [True, False])
def test_last_word_of_a_node(bench: Bench, runs: bool) -> None:
    seen = watched(bench)
    if runs:
        bench.add(spec())
        bench.rounds(2)
    bench.daemon.leave()
    status = bench.node.status
    assert (status.state, status.quiet_after_s, status.nothing_runs) == (DaemonState.STOP, 0.0, not runs)
    assert not seen.dog.is_armed


def test_vm_of_ours_that_has_lost_our_metadata_still_runs(bench: Bench) -> None:
    """Before this life, so that libvirt does not tell it from somebody else's."""
    watched(bench)
    bench.add(spec())
    bench.rounds(2)
    machine = bench.host.machines[UUID]
    bench.host.machines[UUID] = replace(machine, domain=replace(machine.domain, digest=""))
    bench.rounds(1)
    bench.daemon.leave()
    assert not bench.node.status.nothing_runs


@pytest.mark.parametrize("runs", [True, False])
def test_who_cannot_take_the_promise_back_keeps_it(bench: Bench, runs: bool) -> None:
    """Unless it is kept already: nothing runs, and nothing will."""
    seen = watched(bench)
    if runs:
        bench.add(spec())
        bench.rounds(2)
    bench.cluster.suspend(bench.store)
    bench.daemon.leave()
    assert seen.dog.is_armed is runs


def test_vm_that_may_be_sent_here_keeps_a_node_from_being_idle(bench: Bench) -> None:
    join(bench, "n2", "10.0.0.2")
    bench.add(spec())
    owned = replace(bench.vm.status, owner=Owner("n2", 1), state=State.START)
    bench.store.commit(Put(paths.vm_status(UUID), dumps(owned)))
    bench.rounds(1)
    assert not bench.daemon.is_idle()
    bench.store.commit(Put(paths.vm_status(UUID), dumps(replace(owned, owner=None))))
    bench.lanes[0].held = True
    bench.rounds(1)
    assert bench.daemon.is_idle()


def test_daemon_does_not_start_with_times_that_do_not_fit() -> None:
    with pytest.raises(Invalid, match=r"daemon\.lease_s = 5 is too short"):
        main(parse({"daemon": {"lease_s": 5}}))


def test_how_the_networks_are_is_published_with_the_bridges_there_are_now(bench: Bench) -> None:
    bench.rounds()
    problems = (NetworkProblem(101, "somebody else's"),)
    bench.bridges.add("br102")
    bench.daemon.networks_are(Found(8950, 1500, problems))
    status = bench.node.status
    assert (status.bridges, status.network_problems) == (("br0", "br102"), problems)
    assert (status.managed_mtu, status.bridged_mtu) == (8950, 1500)


def test_unreadable_document_is_a_failed_round(bench: Bench) -> None:
    """It may be of a newer pvc: a daemon that ends would lose contact, and with that its VMs."""
    process = Process(bench.daemon.config, lambda *told: None)
    rounds: list[str] = []

    def step() -> float:
        rounds.append("")
        process.woken.set()
        if len(rounds) == 1:
            raise Unreadable("/pvc/cluster cannot be read")
        process.end()
        return 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.daemon, "step", step)
        process.loop(bench.daemon)
    assert len(rounds) == 2


def maintain(bench: Bench) -> None:
    bench.store.commit(Put(paths.CLUSTER, dumps(ClusterSpec("c", maintenance=True))))


def test_silent_libvirt_is_told_and_maintenance_is_obeyed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(bench)

    def silent(host: Host) -> Mapping[str, Domain]:
        raise DriverError("libvirt does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(Host, "domains", silent)
        maintain(bench)
        for _ in range(2):
            with pytest.raises(DriverError):
                bench.rounds()
    assert bench.node.load.problem == "libvirt does not answer"
    assert bench.node.load.memory_free_mib
    assert not seen.dog.is_armed
    bench.rounds()
    assert not bench.node.load.problem


def test_vms_that_do_not_end_are_told_and_maintenance_is_obeyed(bench: Bench) -> None:
    seen = watched(bench)
    bench.add(spec())
    bench.rounds(2)
    guard = bench.daemon.guard
    guard._change(over=True)
    bench.rounds()
    assert bench.node.load.problem == "it had lost contact to the cluster, and ends web1"
    maintain(bench)
    bench.rounds()
    assert not seen.dog.is_armed
    bench.rounds()
    assert not bench.node.load.problem


@pytest.mark.processes
def test_daemon_that_fails_does_not_wait_for_its_lanes() -> None:
    script = (
        "import threading\n"
        "from pvc.errors import Failed\n"
        "from pvc.node.process import end_at_once\n"
        "from pvc.node.lanes import ThreadLanes\n"
        "begun = threading.Event()\n"
        "def last(action): begun.set(); threading.Event().wait()\n"
        "ThreadLanes(last, lambda: None, lambda action: 'a').submit('a')\n"
        "begun.wait()\n"
        "end_at_once(Failed('fenced'))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 1
