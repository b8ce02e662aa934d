"""Clients wait here: until what a change set in motion is done, or for the next change to show.

No thread of a server is held: a read answers when its object has another version than the client knows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from pvc import output
from pvc.clock import Clock, SystemClock
from pvc.cluster.codec import version_of
from pvc.commands.context import Transport
from pvc.errors import Failed, TimedOut, Unavailable, from_code

ASK_WITHIN_S = 20.0
"""A read answers after that even when nothing changed: below the usual timeouts of proxies."""
OUTAGE_S = 60.0
"""So long an API that does not answer is asked again: servers restart, primaries move."""
PAUSE_S = 1.0

Pause = Callable[[float], object]


def pause(seconds: float) -> None:
    """Between two tries of something that failed at once."""
    threading.Event().wait(seconds)


def wait(
    transport: Transport,
    name: str,
    arguments: Mapping[str, Any],
    goal: Mapping[str, Any],
    *,
    timeout_s: float | None = None,
    again: str = "",
    clock: Clock | None = None,
    pause: Pause = pause,
) -> dict[str, Any]:
    """The object once it is settled and as intended. Raises Failed with its reason, TimedOut."""
    clock = clock or SystemClock()
    end = None if timeout_s is None else clock.monotonic() + timeout_s
    asker = Asker(transport, name, arguments, clock, pause)
    while True:
        left = ASK_WITHIN_S if end is None else min(ASK_WITHIN_S, end - clock.monotonic())
        # A time that is over still gets one look: it may have been reached meanwhile.
        state = asker.ask(max(left, 0.0))
        if state.get("settled"):
            return _outcome(state, goal)
        output.progress(output.sentence(state))
        if end is not None and clock.monotonic() >= end:
            hint = f"to see how: {again}" if again else ""
            raise TimedOut(
                f"gave up waiting after {timeout_s:g} s; it goes on: {output.sentence(state)}", hint=hint
            )


def _outcome(state: dict[str, Any], goal: Mapping[str, Any]) -> dict[str, Any]:
    missed = {field: state.get(field) for field, wanted in goal.items() if state.get(field) != wanted}
    if not missed:
        return state
    if error := state.get("error"):
        raise from_code(error["code"], error["message"], error["hint"])
    name = f"{state['name']}: " if state.get("name") else ""
    found = ", ".join(f"{field} is {value or 'none'}" for field, value in missed.items())
    wanted = ", ".join(f"{field} {goal[field] or 'none'}" for field in missed)
    reason = state.get("reason") or f"{found}, wanted was {wanted}"
    raise Failed(f"{name}{reason}")


class Asker:
    """Reads one thing over and over, each time when it has changed."""

    def __init__(
        self, transport: Transport, name: str, arguments: Mapping[str, Any], clock: Clock, pause: Pause
    ) -> None:
        self.transport, self.name, self.arguments = transport, name, arguments
        self.clock, self.pause = clock, pause
        self.version = ""
        self._failing_since: float | None = None

    def ask(self, within_s: float) -> Any:
        """The answer when it is another than the one before, or after that time as it is then."""
        end = self.clock.monotonic() + within_s
        while True:
            left = end - self.clock.monotonic()
            began = self.clock.monotonic()
            try:
                answer = self.transport.call(
                    self.name,
                    self.arguments,
                    after=self.version,
                    within_s=max(left, 0.0) if self.version else 0.0,
                )
            except Unavailable as error:
                self._outage(error)
                continue
            self._failing_since = None
            version = version_of(answer)
            if version != self.version or self.clock.monotonic() >= end:
                self.version = version
                return answer
            if self.clock.monotonic() - began < PAUSE_S:
                # It did not wait (a server too busy to, or an older one): ask no faster than this.
                self.pause(min(PAUSE_S, max(left, 0.0)))

    def _outage(self, error: Unavailable) -> None:
        now = self.clock.monotonic()
        if not self.version:
            raise error
        self._failing_since = now if self._failing_since is None else self._failing_since
        if now - self._failing_since > OUTAGE_S:
            raise error
        output.progress(f"{error.message}; asking again")
        self.pause(PAUSE_S)


def watch(
    transport: Transport,
    name: str,
    arguments: Mapping[str, Any],
    render: Callable[[Any], str],
    *,
    clock: Clock | None = None,
    pause: Pause = pause,
) -> int:
    """Show a result again whenever it changes, until interrupted."""
    asker = Asker(transport, name, arguments, clock or SystemClock(), pause)
    shown = None
    while True:
        text = render(asker.ask(ASK_WITHIN_S))
        if text != shown:
            output.redraw(text)
            shown = text
