"""The tasks of a node: done once, undone when they fail or their daemon ends, told as they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.store import Create, Put
from pvc.cluster.tasks import (
    KEEP_COUNT,
    KEEP_S,
    TaskSpec,
    TaskState,
    TaskStatus,
    begin_ops,
    hand_over_ops,
    outdated,
)
from pvc.cluster.view import View
from pvc.cluster.vm import Owner
from pvc.errors import Conflict, Failed, PVCError, TimedOut, Unavailable
from pvc.node.drivers import DriverError, NoAnswer
from pvc.node.tasks import AGAIN_S, LOOK_S, UNAVAILABLE_S, WORKERS, Progress, Tasks
from tests.fakes.lanes import Lanes
from tests.support import eventually
from tests.unit.commands.world import World, a_world
from tests.unit.thing import FakeClock

CLAIM = f"{paths.TASKS}/claim"


@dataclass
class Recorder:
    """A kind of work that does what a test wants."""

    doing: Callable[[Progress], Mapping[str, Any]] = lambda progress: {"made": "it"}
    undoing: Callable[[], object] = lambda: None
    calls: list[str] = field(default_factory=list)

    def do(self, task: TaskSpec, progress: Progress) -> Mapping[str, Any]:
        self.calls.append(f"do {task.arguments['what']}")
        return self.doing(progress)

    def undo(self, task: TaskSpec) -> None:
        self.calls.append(f"undo {task.arguments['what']}")
        self.undoing()


class Bench:
    def __init__(self) -> None:
        self.world: World = a_world()
        self.clock = FakeClock()
        self.work = Recorder()
        self.life(1)

    def life(self, incarnation: int) -> None:
        """The daemon begins, again."""
        self.store = self.world.cluster.connect()
        works = {"thing.make": self.work}
        made = Tasks(Owner("n1", incarnation), self.store, works, self.clock, lambda: None, lanes=Lanes)
        self.tasks = made
        assert isinstance(made.lanes, Lanes)
        self.lanes: Lanes = made.lanes
        self.world.edit(paths.node_status("n1"), incarnation=incarnation)

    def ask(self, identity: str = "0000000a", kind: str = "thing.make", claims: tuple[str, ...] = ()) -> str:
        about, what = f"making {identity[-1]}", identity[-1]
        spec = TaskSpec(identity, kind, about, "n1", "tester", 0.0, {"what": what}, claims)
        self.tasks.step()
        self.store.commit(*begin_ops(spec))
        return identity

    def round(self) -> None:
        self.tasks.step()
        self.lanes.run()

    def status(self, identity: str = "0000000a") -> TaskStatus:
        return View(self.world.store).task(identity).status

    def cancel(self, identity: str = "0000000a") -> None:
        self.world.call("task.cancel", task=identity)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_task_is_done_once_with_its_result(bench: Bench) -> None:
    bench.ask(claims=(CLAIM,))
    assert bench.world.store.get(CLAIM) is not None
    bench.round()
    bench.round()
    assert bench.work.calls == ["do a"]
    found = bench.status()
    assert (found.state, found.result, found.fraction) == (TaskState.DONE, {"made": "it"}, 1.0)
    assert bench.world.store.get(CLAIM) is None, "what it claimed is free again"
    assert bench.tasks.step() == LOOK_S


def test_only_the_tasks_of_this_node(bench: Bench) -> None:
    bench.tasks.step()
    spec = TaskSpec("0000000b", "thing.make", "", "n2", "tester", 0.0, {"what": "b"})
    bench.store.commit(*begin_ops(spec))
    bench.round()
    assert not bench.work.calls


def test_what_is_handed_over_while_it_is_done_stops_and_is_undone_by_its_heir_only(bench: Bench) -> None:
    went_on: list[str] = []

    def lose(progress: Progress) -> Mapping[str, Any]:
        task = View(bench.store).task("0000000a")
        bench.store.commit(
            *hand_over_ops(task.spec, task.spec_version, task.status, task.status_version, "n2")
        )
        bench.tasks.step()
        progress.check()
        went_on.append("at a node that has lost it")
        return {}

    bench.work.doing = lose
    bench.ask()
    with pytest.raises(Conflict, match="handed over to n2"):
        bench.round()
    assert (bench.work.calls, went_on) == (["do a"], [])
    assert bench.status().lost_by == "n1"


def test_two_tasks_with_the_same_claim_are_not_begun(bench: Bench) -> None:
    bench.ask(claims=(CLAIM,))
    with pytest.raises(Conflict):
        bench.ask("0000000b", claims=(CLAIM,))


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (Conflict("it is there already", hint="take another"), "conflict", "it is there already"),
        (KeyError("secret"), "bug", "pvc made a mistake in task 0000000a"),
    ],
)
def test_what_fails_is_undone_and_says_why(bench: Bench, error: Exception, code: str, message: str) -> None:
    def fail(_: Progress) -> Mapping[str, Any]:
        raise error

    bench.work.doing = fail
    bench.ask(claims=(CLAIM,))
    bench.round()
    found = bench.status()
    assert bench.work.calls == ["do a", "undo a"]
    assert found.state is TaskState.FAILED
    assert found.error is not None
    assert (found.error.code, found.error.message) == (code, message)
    assert bench.world.store.get(CLAIM) is None


def test_what_cannot_be_undone_is_said(bench: Bench) -> None:
    def fail(*_: Progress) -> Mapping[str, Any]:
        raise Failed("the disk is gone")

    bench.work.doing, bench.work.undoing = fail, fail
    bench.ask()
    bench.round()
    error = bench.status().error
    assert error is not None
    assert error.message == "the disk is gone; what it had begun could not be taken away: the disk is gone"


@pytest.mark.parametrize(
    "problem",
    [
        Unavailable("it is not mounted"),
        Conflict("it is in use"),
        TimedOut("it is slow"),
        DriverError("it is busy", retryable=True),
        NoAnswer("it is silent"),
    ],
)
def test_what_cannot_be_undone_yet_keeps_its_claims_until_it_can(bench: Bench, problem: PVCError) -> None:
    def fail(*_: Progress) -> Mapping[str, Any]:
        raise Failed("the disk is full")

    def not_yet() -> None:
        raise problem

    bench.work.doing, bench.work.undoing = fail, not_yet
    bench.ask(claims=(CLAIM,))
    bench.round()
    bench.cancel()
    for _ in range(3):
        bench.round()
        assert bench.work.calls == ["do a", "undo a"], "not at once again"
    shown = bench.world.call("task.info", task="0000000a")
    assert (shown["state"], shown["settled"]) == ("running", False)
    assert f"undoing: {problem.message}" in shown["activity"]
    assert bench.world.store.get(CLAIM) is not None
    assert bench.tasks.step() == AGAIN_S
    bench.clock.now += AGAIN_S
    bench.round()
    assert bench.work.calls == ["do a", "undo a", "undo a"]
    bench.work.undoing = lambda: None
    bench.clock.now += AGAIN_S
    bench.round()
    found = bench.status()
    assert found.error is not None
    assert (found.state, found.error.message) == (TaskState.FAILED, "the disk is full")
    assert bench.world.store.get(CLAIM) is None
    assert bench.tasks.step() == LOOK_S


def test_the_next_life_goes_on_undoing_what_was_lost(bench: Bench) -> None:
    def not_yet() -> None:
        raise Unavailable("it is not mounted")

    bench.work.undoing = not_yet
    bench.ask(claims=(CLAIM,))
    bench.store.commit(
        Create(paths.task_status("0000000a"), dumps(TaskStatus(TaskState.RUNNING, incarnation=1)))
    )
    for life in (2, 3):
        bench.life(life)
        bench.round()
        shown = bench.world.call("task.info", task="0000000a")
        assert (shown["state"], shown["settled"]) == ("lost", True)
        assert "is not undone yet (undoing: it is not mounted)" in shown["reason"]
        assert bench.world.store.get(CLAIM) is not None
    bench.work.undoing = lambda: None
    bench.clock.now += AGAIN_S
    bench.round()
    assert bench.status().state is TaskState.LOST
    assert bench.world.store.get(CLAIM) is None


def test_a_kind_nobody_knows_fails(bench: Bench) -> None:
    bench.ask(kind="thing.melt")
    bench.round()
    error = bench.status().error
    assert error is not None
    assert "does not know the task thing.melt" in error.message


def test_a_task_that_waits_is_cancelled_without_being_begun(bench: Bench) -> None:
    bench.ask()
    bench.cancel()
    bench.round()
    assert bench.status().state is TaskState.CANCELLED
    assert not bench.work.calls


def test_a_task_that_runs_learns_that_it_is_cancelled(bench: Bench) -> None:
    def go_on(progress: Progress) -> Mapping[str, Any]:
        progress(0.5, "half")
        bench.cancel()
        bench.tasks.step()
        progress(0.6, "more")
        raise AssertionError("it went on")

    bench.work.doing = go_on
    bench.ask(claims=(CLAIM,))
    bench.round()
    assert bench.status().state is TaskState.CANCELLED
    assert bench.work.calls == ["do a", "undo a"]
    assert bench.world.store.get(CLAIM) is None
    with pytest.raises(Conflict, match="is over: cancelled"):
        bench.cancel()


def test_progress_is_written_now_and_then(bench: Bench) -> None:
    told: list[tuple[float, str]] = []

    def go_on(progress: Progress) -> Mapping[str, Any]:
        for percent in range(100):
            bench.clock.now += 0.1
            progress(percent / 100, "copying")
            if (now := (bench.status().fraction, bench.status().words)) not in told:
                told.append(now)
        return {}

    bench.work.doing = go_on
    bench.ask()
    bench.round()
    assert 5 <= len(told) <= 12
    assert told[-1][1] == "copying"
    shown = bench.world.call("task.info", task="0000000a")
    assert (shown["state"], shown["percent"], shown["settled"]) == ("done", 100, True)


def test_what_a_daemon_that_ended_was_at_is_lost_and_undone_by_its_next_life(bench: Bench) -> None:
    def die(_: Progress) -> Mapping[str, Any]:
        raise SystemExit

    bench.work.doing = die
    bench.ask(claims=(CLAIM,))
    with pytest.raises(SystemExit):
        bench.round()
    assert bench.status().state is TaskState.RUNNING
    bench.life(2)
    shown = bench.world.call("task.info", task="0000000a")
    assert (shown["state"], shown["settled"]) == ("lost", True)
    assert "is not undone yet" in shown["reason"]
    bench.round()
    assert bench.work.calls == ["do a", "undo a"]
    shown = bench.world.call("task.info", task="0000000a")
    assert (shown["state"], shown["reason"]) == ("lost", "the daemon of n1 ended while it was at it")
    assert bench.world.store.get(CLAIM) is None


def test_a_daemon_that_ends_undoes_what_it_is_at_and_leaves_what_waits(bench: Bench) -> None:
    def go_on(progress: Progress) -> Mapping[str, Any]:
        bench.tasks.close()
        bench.ask("0000000b")
        bench.tasks.step()
        progress.check()
        raise AssertionError("it went on")

    bench.work.doing = go_on
    bench.ask()
    bench.round()
    assert bench.lanes.is_closed
    assert bench.status().state is TaskState.LOST
    assert bench.work.calls == ["do a", "undo a"]
    assert bench.status("0000000b").state is TaskState.WAITING
    bench.work.doing = lambda progress: {}
    bench.life(2)
    bench.round()
    assert bench.status("0000000b").state is TaskState.DONE


def test_an_end_that_could_not_be_written_is_written_later(bench: Bench) -> None:
    def break_off(_: Progress) -> Mapping[str, Any]:
        bench.world.cluster.suspend(bench.store)
        return {"made": "it"}

    bench.work.doing = break_off
    bench.ask()
    with pytest.raises(PVCError):
        bench.round()
    assert bench.tasks.step() == UNAVAILABLE_S
    bench.world.cluster.resume(bench.store)
    bench.round()
    assert bench.work.calls == ["do a"], "the work is not done twice"
    assert bench.status().state is TaskState.DONE


def test_an_end_whose_reply_was_lost_is_not_written_again(bench: Bench) -> None:
    def lose(_: Progress) -> Mapping[str, Any]:
        bench.world.cluster.lose_next_reply(bench.store)
        return {}

    bench.work.doing = lose
    bench.ask(claims=(CLAIM,))
    with pytest.raises(PVCError):
        bench.round()
    version = View(bench.world.store).task("0000000a").status_version
    bench.round()
    assert View(bench.world.store).task("0000000a").status_version == version
    assert bench.work.calls == ["do a"]


def test_tasks_that_wait_hold_up_no_others() -> None:
    bench, going, nobody = Bench(), [], threading.Event()

    def wait(progress: Progress) -> Mapping[str, Any]:
        going.append(1)
        nobody.wait(30)
        return {}

    works = {"thing.wait": Recorder(wait), "thing.make": bench.work}
    bench.tasks = Tasks(Owner("n1", 1), bench.store, works, bench.clock, lambda: None, waiting={"thing.wait"})
    try:
        for number in range(WORKERS + 1):
            bench.ask(f"0000000{number:x}", "thing.wait")
        bench.ask("000000ff")
        bench.tasks.step()
        eventually(lambda: len(going) == WORKERS + 1, within=10)
        eventually(lambda: bench.status("000000ff").state is TaskState.DONE, within=10)
        bench.cancel("00000003")
        bench.tasks.step()
        assert bench.tasks.waiting_lanes.busy["00000003"].progress.stopped is TaskState.CANCELLED
    finally:
        nobody.set()
        bench.tasks.close()


def test_a_damaged_document_holds_up_its_own_task_only(bench: Bench) -> None:
    bench.ask()
    bench.store.commit(Put(paths.task("0000000a"), b"{"))
    bench.ask("0000000b")
    bench.round()
    assert bench.work.calls == ["do b"]


def test_old_tasks_are_forgotten(bench: Bench) -> None:
    bench.tasks.step()
    for number in range(KEEP_COUNT + 5):
        spec = TaskSpec(f"{number:08x}", "thing.make", "", "n1", "tester", 0.0, {})
        ended = dumps(TaskStatus(TaskState.DONE, ended=float(number)))
        bench.store.commit(*begin_ops(spec), Create(paths.task_status(spec.id), ended))
    bench.round()
    left = View(bench.world.store).tasks()
    assert len(left) == KEEP_COUNT
    assert f"{4:08x}" not in left
    assert set(bench.store.children(paths.node_tasks("n1"))) == left.keys()


def test_what_is_outdated() -> None:
    assert outdated([("a", 0.0), ("b", KEEP_S)], KEEP_S + 1) == ["a"]
    assert outdated([], 0.0) == []


def test_a_task_of_a_dead_node_may_still_go_on_until_it_is_fenced_or_back(bench: Bench) -> None:
    bench.ask()
    running = TaskStatus(TaskState.RUNNING, incarnation=1)
    bench.store.commit(Create(paths.task_status("0000000a"), dumps(running)))
    bench.world.kill_node("n1")
    shown = bench.world.call("task.info", task="0000000a")
    assert (shown["state"], shown["settled"]) == ("running", False)
    assert "n1, which is to do it, is dead" in shown["activity"]
    bench.world.edit(paths.node_status("n1"), state="stop")
    assert bench.world.call("task.info", task="0000000a")["state"] == "lost"


def test_a_node_that_is_removed_takes_its_tasks_along_but_those_that_it_had_begun(bench: Bench) -> None:
    other = f"{paths.node('n2')}/claim"
    bench.ask(claims=(CLAIM,))
    bench.ask("0000000b", claims=(other,))
    running = replace(TaskStatus(), state=TaskState.RUNNING, incarnation=1)
    bench.store.commit(Create(paths.task_status("0000000b"), dumps(running)))
    bench.world.kill_node("n1")
    bench.world.call("node.remove", node="n1")
    (left,) = View(bench.world.store).tasks().values()
    assert (left.spec.id, left.spec.node != "n1", left.status.lost_by) == ("0000000b", True, "n1")
    assert bench.world.store.get(CLAIM) is None
    assert bench.world.store.get(other) is not None, "until it is undone"
