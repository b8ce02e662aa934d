"""The one channel of the cluster: versioned documents in a tree, changed by transactions.

The semantics are ZooKeeper's and are held by one contract suite for every implementation:

- a commit is atomic: all of its operations happen, or none and Conflict (or NotFound) is raised;
- a commit that raises Unavailable may have happened: the reply was lost, so read again before deciding;
- a watch fires once, after the change, and only says that something changed: readers read again;
- a watch also fires when its connection breaks, since nobody would tell it of a change any more;
- an ephemeral document goes with the session that created it;
- while the session is not CONNECTED every call fails at once with Unavailable, never queues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

ANY_VERSION = -1

Watch = Callable[[str], None]
"""Called with the path that changed, on a thread of the store: must not block, must not call the store."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A document as read.

    `version` is the token for compare-and-set; `session` is 0 unless it is ephemeral.
    """

    path: str
    data: bytes
    version: int
    session: int = 0


@dataclass(frozen=True, slots=True)
class Create:
    path: str
    data: bytes = b""
    ephemeral: bool = False


@dataclass(frozen=True, slots=True)
class Put:
    path: str
    data: bytes
    version: int = ANY_VERSION


@dataclass(frozen=True, slots=True)
class Delete:
    path: str
    version: int = ANY_VERSION


@dataclass(frozen=True, slots=True)
class Check:
    """The document still has this version."""

    path: str
    version: int


Op = Create | Put | Delete | Check


class SessionState(StrEnum):
    CONNECTED = "connected"
    SUSPENDED = "suspended"
    """No server answers: nobody knows, act on nothing."""
    LOST = "lost"
    """The session is over: every ephemeral and every watch of it is gone."""


@dataclass(frozen=True, slots=True)
class Session:
    id: int
    state: SessionState


class Reader(Protocol):
    """What reads need: a store and a mirror of it both are one."""

    def get(self, path: str) -> Stored | None: ...

    def get_many(self, paths: Sequence[str]) -> tuple[Stored | None, ...]:
        """Pipelined: one round trip, whatever the number of paths. Order as asked."""
        ...

    def children(self, path: str) -> tuple[str, ...]:
        """Names (not paths), sorted; empty where there is no such document."""
        ...


class Store(Reader, Protocol):
    def read(
        self, paths: Sequence[str], listings: Sequence[str], watch: Watch | None = None
    ) -> tuple[tuple[Stored | None, ...], tuple[tuple[str, ...], ...]]:
        """Documents and listings of children in one pipelined round, each with a one-shot watch if given.

        A watch on a document that is absent fires when it is created.
        """
        ...

    def commit(self, *ops: Op) -> None:
        """Raises Conflict (a version moved, a path exists), NotFound (a parent or path is missing) or
        Unavailable."""
        ...

    @property
    def session(self) -> Session: ...

    def on_session(self, listener: Callable[[Session], None]) -> None:
        """Be told of each change of the session state, on a thread of the store."""
        ...

    def close(self) -> None:
        """End the session cleanly: its ephemerals go at once."""
        ...
