"""Where clients wait for a change (`?after=VERSION&within=SECONDS`): each costs some memory and no thread.

A request that finds what its client already knows leaves a Ticket; the server puts its connection into the
WaitingRoom and gives the thread back. One thread looks, after each change of the mirror, at what the waiting
ones wait for (once for all who wait for the same), and hands a connection back when its answer has changed or
its time is over: the request then runs again from the start, with its check of the token.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

log = logging.getLogger(__name__)

TURN = "pvc.turn"
TICKET = "pvc.ticket"
"""Keys of the WSGI environment; a client cannot set them, its headers begin with HTTP_."""

LONGEST_S = 60.0
DEFAULT_S = 25.0
"""Below the usual timeouts of proxies; a client asks again."""
SETTLE_S = 0.02
"""Changes in this time are looked at together."""
REST = 4
"""The room looks for at most a fifth of the time: where looking takes long, changes gather for longer."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Given to each run of a request that may wait."""

    may_wait: bool
    """False when its time is over: answer with what there is."""
    changes: int
    """How many changes the room had seen before this run looked."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """Left by a run that found nothing new."""

    key: str
    """Equal for all who wait for the same."""
    is_ready: Callable[[], bool]
    within_s: float
    changes: int


class Guest(Protocol):
    """A connection that waits."""

    connected: bool
    deadline: float | None
    """Monotonic; None before it first waited."""


G = TypeVar("G", bound=Guest)


@dataclass(slots=True)
class WaitingRoom(Generic[G]):
    resume: Callable[[G], None]
    """Run its request again; must not block."""
    capacity: int = 4096
    changes: int = 0
    _guests: dict[G, Ticket] = field(default_factory=dict)
    _condition: threading.Condition = field(default_factory=threading.Condition)
    _seen: int = 0
    _took_s: float = 0.0
    _closed: bool = False

    def __len__(self) -> int:
        return len(self._guests)

    @property
    def is_full(self) -> bool:
        return len(self._guests) >= self.capacity

    def enter(self, guest: G, ticket: Ticket) -> None:
        if guest.deadline is None:
            guest.deadline = time.monotonic() + ticket.within_s
        with self._condition:
            # One that hung up meanwhile is handed back, to be tidied away.
            if guest.connected and not self._closed:
                self._guests[guest] = ticket
                if ticket.changes != self.changes:
                    self._seen = min(self._seen, ticket.changes)
                self._condition.notify()
                return
        self.resume(guest)

    def leave(self, guest: G) -> None:
        """It hung up."""
        with self._condition:
            self._guests.pop(guest, None)

    def changed(self) -> None:
        """What is waited for may have changed."""
        with self._condition:
            self.changes += 1
            self._condition.notify()

    def close(self) -> None:
        """Everybody gets an answer now."""
        with self._condition:
            self._closed = True
            self._condition.notify()
            everybody = list(self._guests)
            self._guests.clear()
        for guest in everybody:
            guest.deadline = 0.0
            self.resume(guest)

    def run(self) -> None:
        """The room's thread, until close()."""
        while self._wait():
            for guest in self._served():
                self.resume(guest)

    def _wait(self) -> bool:
        """Until something changed or somebody's time is over."""
        with self._condition:
            while not self._closed and self._seen == self.changes:
                left = self._time_left()
                if left is not None and left <= 0:
                    break
                self._condition.wait(left)
            if not self._closed and self._seen != self.changes:
                self._condition.wait_for(lambda: self._closed, max(SETTLE_S, REST * self._took_s))
            return not self._closed

    def _time_left(self) -> float | None:
        if not self._guests:
            return None
        return min(guest.deadline or 0.0 for guest in self._guests) - time.monotonic()

    def _served(self) -> list[G]:
        with self._condition:
            look = self._seen != self.changes
            self._seen = self.changes
            waiting = dict(self._guests)
        now = time.monotonic()
        ready = self._look(waiting.values()) if look else {}
        done = [
            guest
            for guest, ticket in waiting.items()
            if ready.get(ticket.key, False) or (guest.deadline or 0.0) <= now
        ]
        with self._condition:
            return [guest for guest in done if self._guests.pop(guest, None) is not None]

    def _look(self, tickets: Iterable[Ticket]) -> dict[str, bool]:
        """By key; any ticket of a key stands for all of them."""
        began = time.monotonic()
        ready = {key: ticket.is_ready() for key, ticket in {ticket.key: ticket for ticket in tickets}.items()}
        self._took_s = time.monotonic() - began
        return ready
