"""Real blocking code under a scheduler: threads of which exactly one runs, until it hands the baton on.

What a run does depends only on its seed, and code that blocks (an action, a round of the daemon) can be held
up, or end as by kill -9, between any two calls to the world outside.

Changing threads is what costs most, so no thread is a scheduler's own: whoever pauses carries out the next
events itself, and hands the baton on only when they lead to a task that has a thread of its own already, or
needs one.
"""

from __future__ import annotations

import _thread
import os
from collections.abc import Callable
from typing import Any


class Crashed(BaseException):
    """kill -9: no handler of the program may see it."""


class _Thread:
    """Whoever may have the baton. `go` is locked while it waits for it."""

    def __init__(self) -> None:
        self.go = _thread.allocate_lock()
        self.go.acquire()


class _Worker(_Thread):
    """A thread that carries out one task after another."""

    def __init__(self) -> None:
        super().__init__()
        self.task: Task | None = None
        _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        while True:
            self.go.acquire()
            task = self.task
            while task is not None:
                task.carry_out()
                # Whoever gets the baton there may already give this thread its next task: not looked at here.
                task = self._go_on(task)

    def _go_on(self, ended: Task) -> Task | None:
        """The next task if it is a new one; else the baton goes to whoever is next."""
        scheduler = ended.scheduler
        if ended.killer is not None:
            killer, ended.killer = ended.killer, None
            _idle.append(self)
            killer.go.release()
            return None
        following = scheduler.ended(ended)
        if following is not None and following.worker is None:
            following.worker = self
            return following
        _idle.append(self)
        scheduler.hand_on(following)
        return None


_idle: list[_Worker] = []
os.register_at_fork(after_in_child=_idle.clear)  # their threads stay behind


class Scheduler:
    """Of one world. `advance` carries out events until a task is to go on; None: until the end."""

    def __init__(self, advance: Callable[[Task | None], Task | None], ended: Callable[[Task], None]) -> None:
        self.running: Task | None = None
        self.error: BaseException | None = None
        """Of the simulation itself."""
        self._advance = advance
        self._ended = ended
        self._main = _Thread()
        self._here: _Thread = self._main

    def run(self) -> None:
        """Of the thread that began it all."""
        following = self.next(None)
        if following is not None:
            self.hand_on(following)
            self._main.go.acquire()
            self._here = self._main
        if self.error is not None:
            raise self.error

    def next(self, own: Task | None) -> Task | None:
        self.running = None
        try:
            return self._advance(own)
        except BaseException as error:  # noqa: BLE001  `run` raises it
            self.error = error
            return None

    def ended(self, task: Task) -> Task | None:
        self.running = None
        task.done = True
        try:
            self._ended(task)
        except BaseException as error:  # noqa: BLE001  `run` raises it
            self.error = error
            return None
        return self.next(None)

    def hand_on(self, task: Task | None) -> None:
        """The caller waits from then on. None: the end."""
        self.running = task
        if task is None:
            self._here = self._main
        elif task.worker is None:
            task.worker = _idle.pop() if _idle else _Worker()
            task.worker.task = task
            self._here = task.worker
        else:
            self._here = task.worker
        self._here.go.release()

    def kill(self, task: Task) -> None:
        """Unwind it, and come back."""
        if task.worker is self._here:
            return  # it is further up this very stack, and looks when the event is over
        assert task.worker is not None
        here, running = self._here, self.running
        task.killer, self._here, self.running = here, task.worker, task
        task.worker.go.release()
        here.go.acquire()
        self._here, self.running = here, running


class Task:
    def __init__(self, scheduler: Scheduler, function: Callable[[], Any]) -> None:
        self.scheduler = scheduler
        self.done = False
        self.killed = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.worker: _Worker | None = None
        self.killer: _Thread | None = None
        self._function = function

    def pause(self) -> None:
        """Of its own thread: until it is to go on, others do. Raises Crashed when it was killed."""
        scheduler, worker = self.scheduler, self.worker
        assert worker is not None
        following = scheduler.next(self)
        if following is not self:
            scheduler.hand_on(following)
            worker.go.acquire()
        scheduler.running = self
        if self.killed:
            raise Crashed

    def kill(self) -> None:
        """End it where it is."""
        if self.done:
            return
        self.killed = True
        if self.worker is None:
            self.done = True
        else:
            self.scheduler.kill(self)

    def carry_out(self) -> None:
        self.scheduler.running = self
        try:
            self.result = self._function()
        except BaseException as error:  # noqa: BLE001  the scheduler looks at it
            self.error = error
        self.done = True
