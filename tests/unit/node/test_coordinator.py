"""A coordinator over a store and BMCs in memory: what it checks around every order and every commit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from pvc.cluster import paths
from pvc.cluster.cluster import ClusterSpec, FencePolicy
from pvc.cluster.codec import dumps
from pvc.cluster.fencing import Duty, Shoot
from pvc.cluster.membership import Evidence, Fence, FenceState, StepKind
from pvc.cluster.node import BMC, Alive, BMCDriver, DaemonState, Load, NodeRole, NodeSpec, NodeStatus
from pvc.cluster.storage import PoolSpec
from pvc.cluster.store import Create, Delete, Put
from pvc.cluster.tasks import TaskSpec, TaskState, begin_ops, hand_over_ops
from pvc.cluster.timing import Timing
from pvc.cluster.view import View
from pvc.cluster.vm import Owner, State, VMStatus
from pvc.commands.task import describe
from pvc.errors import Conflict, PVCError, Unavailable
from pvc.node.coordinator import Coordinator
from pvc.node.drivers.power import BMCAccess
from pvc.node.tasks import Progress, Tasks
from tests.fakes.addresses import FakeAddresses
from tests.fakes.blocklist import FakeBlocklist, FakeCeph
from tests.fakes.lanes import Lanes
from tests.fakes.power import FakePower, Fault, Machine
from tests.fakes.store import MemoryCluster
from tests.unit.node.pictures import UUID, spec


@dataclass(slots=True)
class Hands:
    """Lanes of which the test carries out each duty itself."""

    carry_out: Callable[[Duty], None]
    todo: list[Duty] = field(default_factory=list)

    @property
    def busy(self) -> Mapping[str, Duty]:
        return {}

    def submit(self, action: Duty) -> None:
        self.todo.append(action)

    def close(self) -> None:
        self.todo.clear()


class Bench:
    TASK = TaskSpec(
        "0000000a", "vm.snapshot-create", "a snapshot", "n3", "tester", 0.0, {}, (paths.vm_claim(UUID),)
    )

    def __init__(self) -> None:
        self.now = 0.0
        self.cluster = MemoryCluster()
        self.store = self.cluster.connect()
        self.power = FakePower({"n3": Machine("secret", is_on=True)})
        self.store.commit(*(Create(path) for path in paths.LAYOUT))
        self.store.commit(Create(paths.CLUSTER, dumps(ClusterSpec("test"))))
        for name in ("n1", "n2", "n3"):
            bmc = BMC(BMCDriver.IPMI, name, "admin", "")
            told = NodeStatus(1, DaemonState.RUN, cpus=4, memory_mib=8192, bridges=("br0",))
            node = NodeSpec(name, "a", "a", NodeRole.COORDINATOR, bmc=bmc)
            self.store.commit(
                Create(paths.node(name), dumps(node)),
                Create(paths.node_status(name), dumps(told)),
                Create(paths.node_vms(name)),
                Create(paths.load(name), dumps(Load(memory_free_mib=4000))),
                Create(paths.alive(name), dumps(Alive(1))),
            )
        self.store.commit(
            Create(paths.vm(UUID), dumps(spec(node="n3"))),
            Create(paths.vm_status(UUID), dumps(VMStatus(owner=Owner("n3", 1)))),
            Create(paths.node_vm("n3", UUID)),
        )
        self.ceph = FakeCeph()
        self.hands: dict[str, Hands] = {}
        self.hosts: dict[str, FakeAddresses] = {}
        self.one = self.coordinator("n1")

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 0.0

    def coordinator(self, name: str) -> Coordinator:
        def lanes(carry_out: Callable[[Duty], None], done: Callable[[], None]) -> Hands:
            self.hands[name] = Hands(carry_out)
            return self.hands[name]

        def access(bmc: BMC, secret: str) -> BMCAccess:
            return BMCAccess(bmc.driver, bmc.address, bmc.user, "secret")

        store = self.cluster.connect()
        self.hosts[name] = FakeAddresses(self, {"10.0.0.1/24": "br0"})
        return Coordinator(
            Owner(name, 1),
            store,
            self.power,
            self.hosts[name],
            self,
            Timing(),
            "",
            lanes=lanes,
            access=access,
            blocklist=FakeBlocklist(self.ceph),
        )

    def until_duty(self, name: str = "n1") -> Duty:
        """n3 has died; the duty that its judge finds once the first look at its power is over."""
        self.one.judge.carry_out(self.first_look(name))
        return self.next_duty(name)

    def first_look(self, name: str = "n1") -> Duty:
        stored = self.store.get(paths.alive("n3"))
        if stored is not None:
            self.store.commit(Delete(paths.alive("n3")))
        duty = self.next_duty(name)
        assert isinstance(duty, Shoot)
        assert duty.only_looks
        return duty

    def next_duty(self, name: str = "n1") -> Duty:
        self.hands[name].todo.clear()
        for _ in range(10):
            self.now += 2.0
            self.one.step()
            if self.hands[name].todo:
                return self.hands[name].todo[0]
        raise AssertionError("nothing to do")

    def until(self, is_so: Callable[[], bool]) -> float:
        """When it was so."""
        self.hands["n1"].todo.clear()
        for _ in range(100):
            self.now += 1.0
            self.one.step()
            if is_so():
                return self.now
        raise AssertionError("never")

    def tasks(
        self, node: str, meanwhile: Callable[[], None] = sys.exit, *, life: int = 1
    ) -> tuple[Tasks, list[str]]:
        """Who does those of a node, and what was called."""
        calls: list[str] = []

        class Recorded:
            def do(self, task: TaskSpec, progress: Progress) -> Mapping[str, Any]:
                calls.append("do")
                meanwhile()
                raise Unavailable("it was interrupted")

            def undo(self, task: TaskSpec) -> None:
                calls.append("undo")

        kinds = (self.TASK.kind, "storage.osd-add", "vm.snapshot-export")
        store, works = self.cluster.connect(), dict.fromkeys(kinds, Recorded())
        made = Tasks(Owner(node, life), store, works, self, lambda: None, lanes=Lanes)
        made.step()
        return made, calls

    def ask(self, task: TaskSpec) -> None:
        for node in ("n1", "n2"):
            self.tasks(node)
        self.store.commit(*begin_ops(task))

    def work(self, tasks: Tasks) -> None:
        tasks.step()
        assert isinstance(tasks.lanes, Lanes)
        tasks.lanes.run()

    def released(self) -> str:
        """n3 dies and is fenced; where its VM goes."""
        for _ in range(2):
            self.one.judge.carry_out(self.next_duty() if self.fences() else self.until_duty())
        assert self.owner is None
        node = View(self.store).vm(UUID).spec.node
        assert node in ("n1", "n2")
        return node

    def hand_over(self, node: str) -> None:
        task = View(self.store).task(self.TASK.id)
        version = task.status_version
        self.store.commit(*hand_over_ops(task.spec, task.spec_version, task.status, version, node))

    def fences(self) -> Mapping[str, tuple[Fence, int]]:
        return View(self.store).fences()

    def fence(self) -> Fence:
        return self.fences()["n3-1"][0]

    def runs(self, node: str) -> None:
        """Its new node has started the VM."""
        found = View(self.store).vm(UUID)
        up = replace(found.status, owner=Owner(node, 1), state=State.START)
        self.store.commit(Put(paths.vm_status(UUID), dumps(up)))

    @property
    def owner(self) -> Owner | None:
        return View(self.store).vm(UUID).status.owner


def test_power_off_read_back_is_a_receipt_and_frees_the_vms() -> None:
    bench = Bench()
    bench.one.judge.carry_out(bench.until_duty())
    assert (bench.fence().state, bench.fence().evidence) == (FenceState.FENCED, Evidence.POWER_OFF)
    assert bench.power.machines["n3"].orders == ["state", "state", "off", "state"]
    bench.one.judge.carry_out(bench.next_duty())
    assert bench.owner is None
    assert View(bench.store).vm(UUID).spec.node in ("n1", "n2")
    assert not bench.power.machines["n3"].is_on
    bench.one.judge.carry_out(bench.next_duty())
    assert bench.power.machines["n3"].is_on, "the policy is power-cycle"
    assert bench.fence().finished


@pytest.mark.parametrize("life", [1, 7])
def test_task_that_has_a_vm_for_itself_goes_with_it_and_is_undone_there(life: int) -> None:
    """By a first life: of which number the other one was on its own node says nothing."""
    bench = Bench()
    dead, calls = bench.tasks("n3", life=life)
    bench.ask(Bench.TASK)
    with pytest.raises(SystemExit):
        bench.work(dead)
    new = bench.released()
    task = View(bench.store).task(Bench.TASK.id)
    assert (task.spec.node, bench.store.children(paths.node_tasks("n3"))) == (new, ())
    shown = describe(task, View(bench.store).node(new))
    assert (shown.state, "n3 ended while" in shown.reason) == (TaskState.LOST, True)
    heir, calls = bench.tasks(new)
    bench.work(heir)
    assert calls == ["undo"]
    shown = describe(View(bench.store).task(Bench.TASK.id), View(bench.store).node(new))
    assert (shown.state, shown.reason) == (TaskState.LOST, "the daemon of n3 ended while it was at it")
    assert bench.store.get(paths.vm_claim(UUID)) is None, "now it can be started"


def test_task_that_was_not_begun_is_done_where_the_vm_goes() -> None:
    bench = Bench()
    bench.tasks("n3")
    bench.ask(Bench.TASK)
    heir, calls = bench.tasks(bench.released(), lambda: None)
    bench.work(heir)
    assert calls == ["do", "undo"], "it says that it was interrupted"
    assert View(bench.store).task(Bench.TASK.id).status.state is TaskState.FAILED


def test_who_comes_back_ends_no_task_that_was_taken_from_it() -> None:
    bench = Bench()
    old, calls = bench.tasks("n3", lambda: bench.hand_over("n1"))
    bench.ask(Bench.TASK)
    with pytest.raises(Conflict, match="handed over to n1"):
        bench.work(old)
    assert calls == ["do"], "what it has begun is for its heir to undo"
    bench.work(old)
    assert calls == ["do"]
    heir, calls = bench.tasks("n1")
    bench.work(heir)
    assert (calls, View(bench.store).task(Bench.TASK.id).status.state) == (["undo"], TaskState.LOST)


CLAIM = paths.pool_claim("vms", "web1_vda")


def finished(task: TaskSpec, *, is_begun: bool = True, node: str = "") -> Bench:
    """Where n3 was fenced with a task that has no VM; the pool is of all nodes, or of that one."""
    bench = Bench()
    bench.store.commit(
        Create(paths.pool("vms"), dumps(PoolSpec("vms", "1", path="/srv/vms", node=node))),
        Create(paths.pool_claims("vms")),
    )
    dead, _ = bench.tasks("n3")
    bench.ask(task)
    if is_begun:
        with pytest.raises(SystemExit):
            bench.work(dead)
    bench.released()
    bench.one.judge.carry_out(bench.next_duty())
    assert bench.fence().finished
    return bench


MAKES_VOLUME = TaskSpec(
    "0000000c", "vm.snapshot-create", "a volume", "n3", "tester", 0.0, {"pool": "vms"}, (CLAIM,)
)


def test_what_a_fenced_node_had_begun_is_undone_by_another_though_it_never_returns() -> None:
    bench = finished(MAKES_VOLUME)
    (task,) = View(bench.store).tasks().values()
    assert (task.spec.node in ("n1", "n2"), task.status.lost_by) == (True, "n3")
    heir, calls = bench.tasks(task.spec.node)
    bench.work(heir)
    assert calls == ["undo"]
    assert bench.store.get(CLAIM) is None, "the volume is free"


def test_what_a_fenced_node_was_to_do_is_done_by_another() -> None:
    bench = finished(MAKES_VOLUME, is_begun=False)
    (task,) = View(bench.store).tasks().values()
    heir, calls = bench.tasks(task.spec.node, lambda: None)
    bench.work(heir)
    assert calls[0] == "do"


@pytest.mark.parametrize(
    ("task", "is_begun", "node"),
    [
        (MAKES_VOLUME, True, "n3"),
        (replace(MAKES_VOLUME, arguments={"pool": {"name": "more", "node": "n3"}}), True, ""),
        (replace(MAKES_VOLUME, kind="storage.osd-add"), True, ""),
        (replace(MAKES_VOLUME, kind="vm.snapshot-export"), True, ""),
        (replace(MAKES_VOLUME, arguments={"path": "/srv/exports/web1"}), False, ""),
    ],
    ids=["in its own pool", "of its own pool", "on its disks", "in its directory", "from its directory"],
)
def test_what_only_its_node_can_end_waits_for_it(task: TaskSpec, is_begun: bool, node: str) -> None:
    bench = finished(task, is_begun=is_begun, node=node)
    (found,) = View(bench.store).tasks().values()
    assert found.spec.node == "n3"
    assert bench.store.get(CLAIM) is not None, "and keeps what it claimed"


def test_a_damaged_task_keeps_no_fence_from_its_end() -> None:
    bench = Bench()
    bench.tasks("n3")
    bench.ask(replace(MAKES_VOLUME, claims=()))
    bench.store.commit(Put(paths.task(MAKES_VOLUME.id), b"{"))
    bench.released()
    bench.one.judge.carry_out(bench.next_duty())
    assert bench.fence().finished


def test_what_only_promised_to_be_quiet_keeps_its_tasks() -> None:
    """Its VMs have ended; its tasks may go on as long as it reaches the pools."""
    bench = Bench()
    dead, _ = bench.tasks("n3")
    bench.ask(replace(MAKES_VOLUME, claims=()))
    with pytest.raises(SystemExit):
        bench.work(dead)
    bench.released()
    fence, version = bench.fences()["n3-1"]
    promised = dumps(replace(fence, evidence=Evidence.WATCHDOG))
    bench.store.commit(Put(paths.fence("n3", 1), promised, version))
    bench.one.judge.carry_out(bench.next_duty())
    (found,) = View(bench.store).tasks().values()
    assert (found.spec.node, bench.fence().finished) == ("n3", True)


def test_a_damaged_pool_keeps_no_fence_from_its_end() -> None:
    bench = Bench()
    bench.tasks("n3")
    bench.ask(replace(MAKES_VOLUME, claims=()))
    bench.store.commit(Create(paths.pool("vms"), b"{"))
    bench.released()
    bench.one.judge.carry_out(bench.next_duty())
    assert bench.fence().finished
    assert bench.power.machines["n3"].is_on


def test_who_is_back_before_its_fence_ends_sees_to_its_tasks_itself() -> None:
    bench = Bench()
    dead, _ = bench.tasks("n3")
    bench.ask(replace(MAKES_VOLUME, claims=()))
    with pytest.raises(SystemExit):
        bench.work(dead)
    bench.released()
    finish = bench.next_duty()
    status = View(bench.store).node("n3")
    again = replace(status.status, incarnation=2)
    bench.store.commit(Put(paths.node_status("n3"), dumps(again), status.status_version or 0))
    bench.one.judge.carry_out(finish)
    (found,) = View(bench.store).tasks().values()
    assert (found.spec.node, bench.fence().finished) == ("n3", True)


def test_who_is_too_old_for_a_task_that_another_began_keeps_it_until_it_is_not() -> None:
    bench = finished(replace(MAKES_VOLUME, kind="vm.snapshot-export", arguments={}), node="")
    task = View(bench.store).task(MAKES_VOLUME.id)
    bench.store.commit(
        *hand_over_ops(task.spec, task.spec_version, task.status, task.status_version, "n1"),
    )
    heir, calls = bench.tasks("n1")
    known, heir.works = heir.works, {}
    bench.work(heir)
    found = View(bench.store).task(MAKES_VOLUME.id).status
    assert (found.state.is_over, "is too old" in found.words) == (False, True)
    assert bench.store.get(CLAIM) is not None
    heir.works, bench.now = known, bench.now + 10
    bench.work(heir)
    assert (calls, View(bench.store).task(MAKES_VOLUME.id).status.state) == (["undo"], TaskState.LOST)


def test_task_of_another_node_stays_there() -> None:
    bench = Bench()
    bench.tasks("n3")
    bench.ask(replace(Bench.TASK, node="n1"))
    bench.released()
    assert View(bench.store).task(Bench.TASK.id).spec.node == "n1"


def test_machine_that_cannot_be_switched_on_again_is_tried_now_and_then() -> None:
    bench = Bench()
    for _ in range(2):
        bench.one.judge.carry_out(bench.until_duty() if not bench.fences() else bench.next_duty())
    finish = bench.next_duty()
    bench.power.machines["n3"].fault = Fault.SILENT
    with pytest.raises(PVCError):
        bench.one.judge.carry_out(finish)
    failed = bench.now
    again = bench.until(lambda: bool(bench.hands["n1"].todo))
    assert again - failed >= 30
    bench.power.machines["n3"].fault = Fault.NONE
    bench.one.judge.carry_out(bench.hands["n1"].todo[0])
    assert bench.fence().finished


def test_a_machine_that_is_off_is_given_no_grace() -> None:
    """It cannot come back to life by itself; and looking at its power harms nobody."""
    bench = Bench()
    bench.power.machines["n3"].is_on = False
    bench.one.judge.carry_out(bench.first_look())
    assert (bench.fence().state, bench.fence().evidence) == (FenceState.FENCED, Evidence.POWER_OFF)
    assert bench.power.machines["n3"].orders == ["state"]


def test_who_is_back_at_the_first_look_is_not_even_looked_at() -> None:
    bench = Bench()
    bench.power.machines["n3"].is_on = False
    duty = bench.first_look()
    bench.store.commit(Create(paths.alive("n3"), dumps(Alive(1))))
    bench.one.judge.carry_out(duty)
    assert not bench.fences()
    assert not bench.power.machines["n3"].orders


def test_another_judge_finishes_and_tells_the_whole_of_it() -> None:
    """What was released, when and where to: though the judge that did it is gone."""
    bench = Bench()
    bench.one.judge.carry_out(bench.until_duty())
    bench.one.judge.carry_out(bench.next_duty())
    place = View(bench.store).vm(UUID).spec.node
    bench.store.commit(Put(paths.CLUSTER, dumps(ClusterSpec("test", primary="n2"))))
    bench.one.step()
    bench.one = bench.coordinator("n2")
    bench.one.judge.carry_out(bench.next_duty("n2"))
    told = bench.fence()
    assert (told.finished, told.recovered) == (True, (f"web1 -> {place}",))
    assert [step.what for step in told.timeline] == ["contact", "gone", "fencing", "fenced", "released"]
    assert [step.at_s for step in told.timeline] == sorted(step.at_s for step in told.timeline)
    bench.runs(str(place))
    bench.one.judge.carry_out(bench.next_duty("n2"))
    last = bench.fence().timeline[-1]
    assert (last.what, last.vm, last.node) == (StepKind.RUNNING, "web1", place)


def test_drill_cuts_the_power_and_tells_what_it_took() -> None:
    bench = Bench()
    off = ClusterSpec("test", fence_policy=FencePolicy.OFF)
    bench.store.commit(Put(paths.CLUSTER, dumps(off)))
    asked = Fence("n3", 1, asked_by="admin", drill="admin")
    bench.store.commit(Create(paths.fence("n3", 1), dumps(asked)))
    bench.one.judge.carry_out(bench.next_duty())
    assert not bench.power.machines["n3"].is_on
    assert (bench.fence().state, bench.fence().asked_by) == (FenceState.SUSPECT, "")
    bench.one.judge.carry_out(bench.first_look())
    for _ in range(2):
        bench.one.judge.carry_out(bench.next_duty())
    told = bench.fence()
    assert [step.what for step in told.timeline] == ["cut", "gone", "fencing", "fenced", "released"]
    assert (told.evidence, told.finished, told.drill) == (Evidence.POWER_OFF, True, "admin")
    assert bench.power.machines["n3"].is_on, "whatever the policy: nothing was wrong with it"


@pytest.mark.parametrize("fault", [Fault.SILENT, Fault.RUBBISH, Fault.DEAF])
def test_no_answer_is_no_evidence(fault: Fault) -> None:
    """14.1.1, 14.1.2, 14.1.4"""
    bench = Bench()
    bench.power.machines["n3"].fault = fault
    bench.one.judge.carry_out(bench.until_duty())
    assert bench.fence().state in (FenceState.FAILED, FenceState.FENCING)
    assert bench.fence().reason
    assert bench.owner == Owner("n3", 1)


def test_who_is_back_at_the_last_look_is_not_shot() -> None:
    bench = Bench()
    duty = bench.until_duty()
    bench.store.commit(Create(paths.alive("n3"), dumps(Alive(1))))
    bench.one.judge.carry_out(duty)
    assert bench.fence().state is FenceState.RETURNED
    assert "off" not in bench.power.machines["n3"].orders


def test_off_by_the_bmc_and_alive_by_its_session_is_no_evidence() -> None:
    """The BMC of another machine, perhaps."""
    bench = Bench()
    bench.power.machines["n3"].is_on = False
    asked = Fence("n3", 1, asked_by="admin")
    bench.store.commit(Create(paths.fence("n3", 1), dumps(asked)))
    bench.one.judge.carry_out(bench.next_duty())
    assert bench.fence().state is FenceState.FAILED
    assert "yet its daemon has a session" in bench.fence().reason


def test_who_was_primary_can_do_nothing_any_more() -> None:
    """14.3.1: also where the new primary's document has the version that the old one's had."""
    bench = Bench()
    duty = bench.until_duty()
    bench.power.machines["n3"].orders.clear()
    bench.store.commit(Put(paths.CLUSTER, dumps(ClusterSpec("test", primary="n2"))))
    stale = bench.one.mirror.get(paths.PRIMARY)
    bench.store.commit(Delete(paths.PRIMARY))
    two = bench.coordinator("n2")
    two.step()
    assert two.role.is_primary
    taken = bench.store.get(paths.PRIMARY)
    assert stale is not None
    assert taken is not None
    assert stale.version == taken.version
    with pytest.raises(Conflict):
        bench.one.judge.carry_out(duty)
    assert bench.power.machines["n3"].orders == []
    assert View(bench.store).fences() == {}


def test_only_one_is_primary_and_leaves_to_who_is_wanted() -> None:
    bench = Bench()
    two = bench.coordinator("n2")
    bench.one.step()
    two.step()
    assert (bench.one.role.is_primary, two.role.is_primary) == (True, False)
    bench.store.commit(Put(paths.CLUSTER, dumps(ClusterSpec("test", primary="n2"))))
    bench.one.step()
    two.step()
    assert (bench.one.role.is_primary, two.role.is_primary) == (False, True)


def test_who_was_shot_together_with_the_majority_is_switched_on_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found by the simulation: no store, no receipt, and nobody left who would end the fence."""
    bench = Bench()
    duty = bench.until_duty()
    machine, power_off = bench.power.machines["n3"], FakePower.off

    def takes_the_store(power: FakePower, access: BMCAccess) -> None:
        power_off(power, access)
        bench.cluster.suspend(bench.one.store)  # type: ignore[arg-type]

    monkeypatch.setattr(FakePower, "off", takes_the_store)
    with pytest.raises(Unavailable):
        bench.one.judge.carry_out(duty)
    bench.one.step()
    assert not machine.is_on, "the store may be back in a moment, and then there is a receipt"
    bench.now += 31.0
    bench.one.step()
    assert machine.is_on
    machine.is_on = False
    bench.now += 31.0
    bench.one.step()
    assert not machine.is_on, "once: now it was somebody else"


def test_who_was_fenced_before_the_majority_went_is_switched_on_again() -> None:
    """Found by the simulation, too: a receipt, and no store for what comes after it."""
    bench = Bench()
    bench.one.judge.carry_out(bench.until_duty())
    bench.one.step()
    machine = bench.power.machines["n3"]
    assert not machine.is_on
    bench.cluster.suspend(bench.one.store)  # type: ignore[arg-type]
    bench.one.step()
    bench.now += 31.0
    bench.one.step()
    assert machine.is_on


def test_decisions_freeze_without_the_store() -> None:
    bench = Bench()
    bench.until_duty()
    bench.cluster.suspend(bench.one.store)  # type: ignore[arg-type]
    bench.hands["n1"].todo.clear()
    bench.now += 100.0
    bench.one.step()
    assert bench.hands["n1"].todo == []
