"""Rounds on a thread: what a daemon does beside its own loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pvc.clock import Clock
from pvc.errors import Conflict, PVCError

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 5.0


class Loop:
    """Rounds on a thread of their own, each when it is due or when something wakes it."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self.step: Callable[[], float] = lambda: LONGEST_WAIT_S
        self.beat = clock.monotonic()
        """When its newest round began."""
        self._woken = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self, step: Callable[[], float]) -> None:
        self.step = step
        self._thread.start()

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        self._ending.set()
        self._woken.set()
        self._thread.join(LONGEST_WAIT_S)

    def _run(self) -> None:
        while not self._ending.is_set():
            self.beat = self.clock.monotonic()
            self._woken.wait(self._round())
            self._woken.clear()

    def _round(self) -> float:
        try:
            return self.step()
        except Conflict as error:
            log.info("%s; looking again", error.message)
            return 0.1
        except PVCError as error:
            log.warning("%s: %s", self.name, error.message)
            return 1.0
        except Exception:  # the boundary: one mistake must not end the cluster's only judge
            log.exception("a round of the %s failed: a bug in pvc", self.name)
            return 1.0
