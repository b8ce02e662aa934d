"""Does the tasks of this node, on threads of their own: VMs wait for none of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from pvc.clock import Clock
from pvc.cluster import paths
from pvc.cluster.codec import Unreadable, dumps, loads
from pvc.cluster.mirror import Mirror
from pvc.cluster.store import Check, Create, Op, Put, SessionState, Store, Stored
from pvc.cluster.tasks import TaskError, TaskSpec, TaskState, TaskStatus, forget_ops, outdated, release_ops
from pvc.cluster.view import Task, View, expand_tasks, tasks_of
from pvc.cluster.vm import Owner
from pvc.errors import Bug, Conflict, Failed, PVCError, TimedOut, Unavailable
from pvc.node.drivers import DriverError, NoAnswer
from pvc.node.lanes import Lanes, ThreadLanes

log = logging.getLogger(__name__)

WORKERS = 12
"""Many more would only contend for the same disks."""
WAITERS = 100
"""For tasks that do little but wait: for whoever brings an image, or until an OSD is empty."""
LOOK_S = 60.0
UNAVAILABLE_S = 1.0
PROGRESS_S = 1.0
"""Between two writes of how far a task is."""
AGAIN_S = 5.0
"""Between two tries to undo."""


class Stopped(PVCError):
    """A task is told to end before it is done."""


class Progress:
    """What a task tells of itself while it is at it; and where it learns that it is to end."""

    def __init__(self, publish: Callable[[float, str], None], clock: Clock) -> None:
        self._publish = publish
        self._clock = clock
        self._next = clock.monotonic() + PROGRESS_S
        self._told = (0, "")
        self.stopped: TaskState | None = None
        """As what it is to end."""

    def __call__(self, fraction: float, words: str) -> None:
        """Tell how far it is. Raises Stopped."""
        self.check()
        told = int(fraction * 100), words
        if told != self._told and self._clock.monotonic() >= self._next:
            self._publish(fraction, words)
            self._told, self._next = told, self._clock.monotonic() + PROGRESS_S

    def check(self) -> None:
        """Raises Stopped."""
        if self.stopped is not None:
            raise Stopped("it was told to end")


class Work(Protocol):
    """One kind of task."""

    def do(self, task: TaskSpec, progress: Progress) -> Mapping[str, Any]:
        """All of it, with a result for whoever asked; or raise and leave the rest to `undo`."""
        ...

    def undo(self, task: TaskSpec) -> None:
        """Take away what is half done, and nothing that is done. Also a second time, or where nothing was
        begun."""
        ...


@dataclass(slots=True)
class Job:
    task: Task
    progress: Progress

    @property
    def id(self) -> str:
        return self.task.spec.id


@dataclass(frozen=True, slots=True)
class Undoing:
    """What a task ends as when what it had begun is taken away, which could not be done yet."""

    state: TaskState
    error: PVCError | None
    next: float
    """By the clock of this daemon, when it is tried again."""


class Tasks:
    """`step` looks what is to be done and begins it; each task ends on its own thread."""

    def __init__(
        self,
        me: Owner,
        store: Store,
        works: Mapping[str, Work],
        clock: Clock,
        wake: Callable[[], None],
        lanes: Callable[..., Lanes[Job]] = ThreadLanes,
        waiting: Collection[str] = (),
    ) -> None:
        """`waiting`: kinds of tasks that mostly wait."""
        self.me = me
        self.store = store
        self.works = works
        self.clock = clock
        self.mirror = Mirror(store, tasks_of(me.node), expand_tasks, wake)
        self.view = View(self.mirror)
        self.lanes = lanes(self._carry_out, wake, lane_of=lambda job: job.id, workers=WORKERS)
        self.waiting = waiting
        self.waiting_lanes = lanes(self._carry_out, wake, lane_of=lambda job: job.id, workers=WAITERS)
        self.outcomes: dict[str, TaskStatus] = {}
        """Of tasks that ended, as long as that is not written."""
        self.undoing: dict[str, Undoing] = {}
        self.is_known = False
        self.is_ending = threading.Event()

    # One round

    def step(self) -> float:
        """Seconds until the next round is due."""
        if self.store.session.state is not SessionState.CONNECTED:
            return UNAVAILABLE_S
        self._be_known()
        busy = self._busy()  # before the documents are read: what is not busy has written its end
        self.mirror.sync()
        self._let_go(set(self.mirror.children(paths.node_tasks(self.me.node))), busy)
        tasks = self._tasks()
        for task in tasks:
            self._see_to(task, busy)
        self._forget([task for task in tasks if task.status.state.is_over])
        self.view.forget_missing()
        return AGAIN_S if self.undoing else LOOK_S

    def _let_go(self, mine: set[str], busy: Mapping[str, Job]) -> None:
        """Of what was handed over, nothing is left to be done, written or undone here."""
        for identity in busy.keys() - mine:
            busy[identity].progress.stopped = TaskState.LOST
        for identity in {*list(self.outcomes), *list(self.undoing)} - mine:
            self.outcomes.pop(identity, None)
            self.undoing.pop(identity, None)

    def _be_known(self) -> None:
        """By its index: operations give no tasks to a daemon that is too old for any."""
        path = paths.node_tasks(self.me.node)
        if not self.is_known and self.store.get(path) is None:
            self.store.commit(Create(path))
        self.is_known = True

    def _tasks(self) -> list[Task]:
        """A document that is damaged holds up its own task only."""
        found: list[Task] = []
        for identity in self.mirror.children(paths.node_tasks(self.me.node)):
            try:
                found += self.view.tasks([identity]).values()
            except Unreadable as error:
                log.error("%s", error.message)
        return sorted(found, key=lambda task: task.spec.at)

    def _see_to(self, task: Task, busy: Mapping[str, Job]) -> None:
        if task.status.state.is_over:
            return
        if job := busy.get(task.spec.id):
            if task.spec.cancel and job.progress.stopped is None:
                job.progress.stopped = TaskState.CANCELLED
        elif not self.is_ending.is_set() and self._is_due(task.spec.id):
            publish = partial(self._publish_progress, task.spec)
            lanes = self.waiting_lanes if task.spec.kind in self.waiting else self.lanes
            lanes.submit(Job(task, Progress(publish, self.clock)))

    def is_busy(self) -> bool:
        return bool(self._busy())

    def _busy(self) -> dict[str, Job]:
        return {**self.lanes.busy, **self.waiting_lanes.busy}

    def _is_due(self, identity: str) -> bool:
        undoing = self.undoing.get(identity)
        return undoing is None or self.clock.monotonic() >= undoing.next

    def _forget(self, ended: list[Task]) -> None:
        by_id = {task.spec.id: task for task in ended}
        for identity in outdated([(one.spec.id, one.status.ended) for one in ended], self.clock.wall()):
            task = by_id[identity]
            self.store.commit(*forget_ops(task.spec, has_status=task.status_version is not None))

    def close(self) -> None:
        """What goes on is told to end, and what was begun is undone; the next life does what waits."""
        self.is_ending.set()
        for job in self._busy().values():
            job.progress.stopped = job.progress.stopped or TaskState.LOST
        self.lanes.close()
        self.waiting_lanes.close()

    # One task, on a thread of its own

    def _carry_out(self, job: Job) -> None:
        """To its end; called again when only the writing of that failed."""
        task = View(self.store).tasks([job.id]).get(job.id)
        if task is None or task.status.state.is_over:
            self.outcomes.pop(job.id, None)
            self.undoing.pop(job.id, None)
            return
        spec = task.spec
        if spec.id not in self.outcomes:
            outcome = self._outcome(task, job.progress)
            if outcome is None:
                return
            self.outcomes[spec.id] = outcome
        ended = self.outcomes[spec.id]
        self._write(spec, ended, *release_ops(spec, self.store))
        del self.outcomes[spec.id]
        log.info("task %s, %s: %s", spec.id, spec.about, ended.error.message if ended.error else ended.state)

    def _outcome(self, task: Task, progress: Progress) -> TaskStatus | None:
        """None: it is still to be undone."""
        spec, before = task.spec, task.status
        if undoing := self.undoing.get(spec.id):
            return self._undone(spec, before, undoing.state, undoing.error)
        is_mine = before.incarnation == self.me.incarnation and not before.lost_by
        if before.state is TaskState.RUNNING and not is_mine:
            return self._undone(spec, before, TaskState.LOST)
        if spec.cancel:
            return self._ended(before, TaskState.CANCELLED)
        running = replace(
            before, state=TaskState.RUNNING, incarnation=self.me.incarnation, began=self.clock.wall()
        )
        self._write(spec, running)
        log.info("task %s: %s", spec.id, spec.about)
        try:
            work = self.works.get(spec.kind)
            if work is None:
                raise Failed(f"this pvc on {self.me.node} does not know the task {spec.kind}")
            result = work.do(spec, progress)
        except Stopped:
            return self._undone(spec, running, progress.stopped or TaskState.CANCELLED)
        except PVCError as error:
            return self._undone(spec, running, TaskState.FAILED, error)
        except Exception:  # the boundary: a mistake in one task ends that task
            log.exception("task %s failed: a bug in pvc", spec.id)
            bug = Bug(f"pvc made a mistake in task {spec.id}", hint=f"pvc node log {self.me.node}")
            return self._undone(spec, running, TaskState.FAILED, bug)
        return replace(self._ended(running, TaskState.DONE), fraction=1.0, result=result)

    def _undone(
        self, spec: TaskSpec, status: TaskStatus, state: TaskState, error: PVCError | None = None
    ) -> TaskStatus | None:
        """None where that is to be tried again: until then it keeps what it has claimed."""
        if error is None and state is TaskState.LOST:
            who = status.lost_by or self.me.node
            error = Failed(f"the daemon of {who} ended while it was at it", hint="try again")
        self._check_mine(spec)
        try:
            if work := self.works.get(spec.kind):
                work.undo(spec)
            elif state is TaskState.LOST:
                raise Unavailable(f"this pvc does not know {spec.kind}: that of {self.me.node} is too old")
        except Exception as problem:  # whatever it is: the end of the task must be told
            if isinstance(problem, PVCError) and passes(problem):
                self._undo_later(spec, status, Undoing(state, error, self._again()), problem.message)
                return None
            left = problem.message if isinstance(problem, PVCError) else "a bug in pvc"
            log.warning("task %s left something behind: %s", spec.id, left, exc_info=problem)
            said = error.message if error else state
            error = Failed(f"{said}; what it had begun could not be taken away: {left}")
        self.undoing.pop(spec.id, None)
        return self._ended(status, state, error)

    def _again(self) -> float:
        return self.clock.monotonic() + AGAIN_S

    def _undo_later(self, spec: TaskSpec, status: TaskStatus, undoing: Undoing, why: str) -> None:
        self.undoing[spec.id] = undoing
        words = f"undoing: {why}"
        if words != status.words:
            log.warning(
                "task %s, %s: what it had begun cannot be taken away yet: %s", spec.id, spec.about, why
            )
            with suppress(Unavailable):
                self._write(spec, replace(status, words=words))

    def _ended(self, status: TaskStatus, state: TaskState, error: PVCError | None = None) -> TaskStatus:
        told = TaskError(error.code, error.message, error.hint) if error else None
        return replace(status, state=state, ended=self.clock.wall(), words="", error=told)

    def _check_mine(self, spec: TaskSpec) -> None:
        """Raises Conflict where it was handed over. Without the store nobody can say that."""
        with suppress(Unavailable):
            _check_mine(spec, self.store.get(paths.task(spec.id)))

    # Writing: nobody else writes the status of a task of this node, unless it takes the task away with it

    def _publish_progress(self, spec: TaskSpec, fraction: float, words: str) -> None:
        with suppress(Unavailable):
            stored = self.store.get(paths.task_status(spec.id))
            if stored is not None:
                status = View(self.store).decode(TaskStatus, stored)
                self._write(spec, replace(status, fraction=fraction, words=words))

    def _write(self, spec: TaskSpec, status: TaskStatus, *ops: Op) -> None:
        path = paths.task_status(spec.id)
        # In this order: who finds the status of a task that was handed over finds that it was.
        stored, task = self.store.get_many([path, paths.task(spec.id)])
        _check_mine(spec, task)
        if stored is None:
            self.store.commit(Create(path, dumps(status)), *ops)
            return
        before = View(self.store).decode(TaskStatus, stored)
        if before.incarnation > self.me.incarnation:
            raise Conflict(f"another daemon of {self.me.node} has taken up task {spec.id}")
        self.store.commit(Put(path, dumps(status), stored.version), *ops)
        with suppress(Unavailable):
            self.mirror.refresh([path])


def passes(problem: PVCError) -> bool:
    """What was not there, or in use, may be there and free the next time: it is undone again then."""
    if isinstance(problem, DriverError):
        return problem.retryable or isinstance(problem, NoAnswer)
    return isinstance(problem, Unavailable | Conflict | TimedOut)


def still_its(task: TaskSpec) -> Check:
    """For the transaction by which what a task has done comes true: it was not handed over."""
    return Check(paths.node_task(task.node, task.id), 0)


def _check_mine(spec: TaskSpec, stored: Stored | None) -> None:
    """As it is now. Raises Conflict."""
    now = None if stored is None else loads(TaskSpec, stored.data, stored.path)
    if now is not None and now.node != spec.node:
        raise Conflict(f"task {spec.id} was handed over to {now.node}")
