"""Lanes for the tasks of a node, without threads."""

from __future__ import annotations

from collections.abc import Callable

from pvc.node.tasks import Job


class Lanes:
    """Acts when the test says so, in its thread."""

    def __init__(self, carry_out: Callable[[Job], None], done: Callable[[], None], **_: object) -> None:
        self.carry_out = carry_out
        self.busy: dict[str, Job] = {}
        self.is_closed = False

    def submit(self, job: Job) -> None:
        assert job.id not in self.busy
        self.busy[job.id] = job

    def run(self) -> None:
        for job in list(self.busy.values()):
            try:
                self.carry_out(job)
            finally:
                del self.busy[job.id]

    def close(self) -> None:
        self.is_closed = True
