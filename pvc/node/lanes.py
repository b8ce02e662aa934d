"""One lane per object: at most one action of it at a time, so that a slow one delays nobody else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

from pvc.errors import Conflict, PVCError
from pvc.node.actions import key

log = logging.getLogger(__name__)

WORKERS = 32
REST_S = 1.0
"""A lane whose action failed stays closed so long: a failure that lasts must not become a hot loop."""
REST_AFTER_CONFLICT_S = 0.1


A = TypeVar("A")


class Lanes(Protocol[A]):
    @property
    def busy(self) -> Mapping[str, A]:
        """What is going on, by lane."""
        ...

    def submit(self, action: A) -> None:
        """Begin an action whose lane is free."""
        ...

    def close(self) -> None: ...


class ThreadLanes(Generic[A]):
    """Lanes on a pool of threads: the only threads that act."""

    def __init__(
        self,
        carry_out: Callable[[A], None],
        done: Callable[[], None],
        lane_of: Callable[[Any], str] = key,
        workers: int = WORKERS,
    ) -> None:
        self._carry_out = carry_out
        self._lane_of = lane_of
        self._done = done
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="lane")
        self._lock = threading.Lock()
        self._busy: dict[str, A] = {}

    @property
    def busy(self) -> Mapping[str, A]:
        with self._lock:
            return dict(self._busy)

    def submit(self, action: A) -> None:
        lane = self._lane_of(action)
        with self._lock:
            assert lane not in self._busy, f"lane {lane} is busy"
            self._busy[lane] = action
        future = self._pool.submit(self._carry_out, action)
        future.add_done_callback(lambda ended: self._ended(lane, action, ended))

    def _ended(self, lane: str, action: A, future: Future[None]) -> None:
        error = future.exception() if not future.cancelled() else None
        if error is None:
            self._open(lane)
            return
        if isinstance(error, PVCError):
            log.warning("%s: %s", type(action).__name__, error.message)
        else:
            log.error("%s failed: a bug in pvc", type(action).__name__, exc_info=error)
        rest = threading.Timer(
            REST_AFTER_CONFLICT_S if isinstance(error, Conflict) else REST_S, self._open, [lane]
        )
        rest.daemon = True
        rest.start()

    def _open(self, lane: str) -> None:
        with self._lock:
            del self._busy[lane]
        self._done()

    def close(self) -> None:
        """Begin nothing more. Python waits for what is going on before it exits, until systemd ends that."""
        self._pool.shutdown(wait=False, cancel_futures=True)
