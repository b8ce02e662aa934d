"""Who asks: a bearer token or X-Api-Key, or the owner of the process at the other end of the unix socket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pvc.clock import Clock
from pvc.cluster import tokens
from pvc.cluster.store import Reader
from pvc.commands.context import Caller
from pvc.commands.registry import Role
from pvc.errors import Unauthenticated

PEER = "pvc.peer"
"""Key of the WSGI environment with the user at the other end of the unix socket. Who can open that file (its
mode says who) is trusted with everything; a client cannot set the key, its headers begin with HTTP_."""

WRONG_TOKENS = 20
PER_S = 60.0
MOST_ADDRESSES = 10_000
HINT = (
    "pvc api token add on a node makes one; give it to pvc connection add -k, "
    "or send it in the header `Authorization: Bearer TOKEN`"
)


class TooManyWrongTokens(Unauthenticated):
    http_status = 429


@dataclass(slots=True)
class Gate:
    """A right token is always let in, so nobody can lock others out; wrong ones are counted per address."""

    reader: Reader
    clock: Clock
    _wrong: dict[str, list[float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def admit(self, environ: Mapping[str, Any]) -> Caller:
        """Raises Unauthenticated."""
        peer = environ.get(PEER)
        if peer is not None:
            return Caller(f"{peer} on this node", Role.ADMIN)
        given = _given(environ)
        if given is None:
            raise Unauthenticated("this needs a token", hint=HINT)
        token = tokens.verify(self.reader, given, self.clock.wall())
        if token is None or token.role not in list(Role):
            self._count(environ.get("REMOTE_ADDR", ""))
            raise Unauthenticated("this token is wrong, removed or expired", hint=HINT)
        return Caller(token.name, Role(token.role))

    def _count(self, address: str) -> None:
        now = self.clock.monotonic()
        with self._lock:
            recent = [moment for moment in self._wrong.get(address, []) if moment > now - PER_S]
            if len(recent) >= WRONG_TOKENS:
                raise TooManyWrongTokens("too many wrong tokens from this address", hint=f"wait {PER_S:g} s")
            if len(self._wrong) >= MOST_ADDRESSES:
                self._wrong.clear()
            self._wrong[address] = [*recent, now]


def _given(environ: Mapping[str, Any]) -> str | None:
    scheme, _, credentials = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() == "bearer":
        return str(credentials)
    return environ.get("HTTP_X_API_KEY")


Admit = Callable[[Mapping[str, Any]], Caller]
