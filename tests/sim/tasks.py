"""Real blocking code under a scheduler: threads of which exactly one runs, until it hands the baton back.

What a run does depends only on its seed, and code that blocks (an action, a round of the daemon) can be held
up, or end as by kill -9, between any two calls to the world outside.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable
from typing import Any


class Crashed(BaseException):
    """kill -9: no handler of the program may see it."""


class _Worker:
    """A thread that carries out one task after another."""

    def __init__(self) -> None:
        self.go = _thread.allocate_lock()
        self.back = _thread.allocate_lock()
        self.go.acquire()
        self.back.acquire()
        self.task: Task | None = None
        _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        while True:
            self.go.acquire()
            assert self.task is not None
            self.task.carry_out()
            self.back.release()


_idle: list[_Worker] = []


class Task:
    def __init__(self, function: Callable[[], Any]) -> None:
        self.done = False
        self.killed = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._function = function
        self._worker: _Worker | None = None

    def resume(self) -> None:
        """Let it run until it pauses or ends. Of the scheduler's thread."""
        if self._worker is None:
            self._worker = _idle.pop() if _idle else _Worker()
            self._worker.task = self
        worker = self._worker
        worker.go.release()
        worker.back.acquire()
        if self.done:
            worker.task = self._worker = None
            _idle.append(worker)

    def pause(self) -> None:
        """Of its own thread: give the baton back until it is resumed. Raises Crashed when it was killed."""
        assert self._worker is not None
        self._worker.back.release()
        self._worker.go.acquire()
        if self.killed:
            raise Crashed

    def kill(self) -> None:
        """End it where it is. Of the scheduler's thread."""
        if self.done:
            return
        self.killed = True
        if self._worker is None:
            self.done = True
        else:
            self.resume()
        assert self.done, "a killed task went on"

    def carry_out(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:  # noqa: BLE001  the scheduler looks at it
            self.error = error
        self.done = True
