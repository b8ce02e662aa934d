"""Is the whole store out, or only this node? Coordinators are asked. The proof is in pvc.cluster.timing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from pvc.clock import Clock
from pvc.cluster.store import Session, SessionState
from pvc.cluster.timing import ASK_S, POLL_S, Timing
from pvc.errors import PVCError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    without_quorum_s: float
    """For how long that coordinator's own server has refused to serve."""
    took_s: float
    """From the question to the answer."""


def is_established(answers: Sequence[Answer], servers: int, timing: Timing) -> bool:
    """No majority of the servers served at the moment of the question, nor for a while before."""
    out = [one for one in answers if one.without_quorum_s >= one.took_s + timing.out_after_s]
    return len(out) >= (servers + 1) // 2


def doubt(listed: Collection[str], coordinators: Collection[str]) -> str:
    """Why this node can neither count servers that are out, nor promise anything; empty: it can.

    All coordinators of the store have to be listed in its file. What is listed beside them, such as a server
    of ZooKeeper without a node daemon, is never counted as out, so it only makes the count stricter.
    """
    missing = sorted(set(coordinators) - set(listed))
    if not missing:
        return ""
    return f"cluster.coordinators of its pvc.toml lacks {', '.join(missing)}: it promises nothing"


Ask = Callable[[str], float]
"""A coordinator, by its address: for how long its server has been without a quorum. Raises PVCError."""
Gather = Callable[[Mapping[str, Callable[[], Answer]], Callable[[Sequence[Answer]], bool]], Sequence[Answer]]
"""Puts the questions, until the answers are enough."""


class Outage:
    """Asks all coordinators at once."""

    def __init__(
        self,
        addresses: Sequence[str],
        ask: Ask,
        timing: Timing,
        clock: Clock,
        *,
        gather: Gather | None = None,
    ) -> None:
        self.addresses = tuple(addresses)
        self.ask = ask
        self.timing = timing
        self.clock = clock
        self.gather = gather or in_threads
        self._was_out = False

    def is_out(self) -> bool:
        sent = self.clock.monotonic()

        def asked(address: str) -> Callable[[], Answer]:
            return lambda: Answer(self.ask(address), self.clock.monotonic() - sent)

        def is_enough(answers: Sequence[Answer]) -> bool:
            return is_established(answers, len(self.addresses), self.timing)

        is_out = is_enough(self.gather({address: asked(address) for address in self.addresses}, is_enough))
        if is_out != self._was_out:
            self._was_out = is_out
            log.warning("the whole store is out: VMs go on" if is_out else "the store is out for this node")
        return is_out


def in_threads(
    questions: Mapping[str, Callable[[], Answer]], is_enough: Callable[[Sequence[Answer]], bool]
) -> Sequence[Answer]:
    """What comes in time, or suffices; whoever is late is asked again the next time."""
    answers: list[Answer] = []
    done = threading.Semaphore(0)

    def put(question: Callable[[], Answer]) -> None:
        try:
            answers.append(question())
        except PVCError as error:
            log.debug("%s", error.message)
        finally:
            done.release()

    for address, question in questions.items():
        threading.Thread(target=put, args=[question], name=f"ask {address}", daemon=True).start()
    end = time.monotonic() + ASK_S
    for _ in questions:
        if not done.acquire(timeout=max(0.0, end - time.monotonic())) or is_enough(tuple(answers)):
            break
    return tuple(answers)


class OwnServer:
    """For how long this coordinator's ZooKeeper server has refused to serve, as seen from beside it.

    It is looked at while this node's session is away, which it is when the server refuses. A server that
    comes and goes between two looks would have to be elected and lose its quorum within POLL_S.
    """

    def __init__(self, refuses: Callable[[], bool], session: Callable[[], Session], clock: Clock) -> None:
        self.refuses = refuses
        """Asks the server; False also where it does not answer in time: it may serve and be slow."""
        self.session = session
        self.clock = clock
        self._since: float | None = None
        self._lock = threading.Lock()

    def look(self) -> float:
        """One round; seconds until the next."""
        if self.session().state is not SessionState.CONNECTED:
            self.without_quorum_s()
            return POLL_S
        with self._lock:
            self._since = None
        return POLL_S

    def without_quorum_s(self) -> float:
        """Asked now: it covers all of the time until the question came."""
        with self._lock:
            asked = self.clock.monotonic()
            if not self.refuses():
                self._since = None
                return 0.0
            if self._since is None:
                self._since = self.clock.monotonic()
            return max(0.0, asked - self._since)
