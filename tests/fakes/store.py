"""MemoryStore: the Store protocol without threads or time, with faults on command.

One MemoryCluster is the servers; each connect() is a client with its own session. The contract suite holds it
to what real ZooKeeper servers do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from pvc.cluster.store import (
    ANY_VERSION,
    Check,
    Create,
    Delete,
    Op,
    Put,
    Session,
    SessionState,
    Stored,
    Watch,
)
from pvc.errors import Conflict, NotFound, Unavailable


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _name(path: str) -> str:
    return path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class _Watching:
    """Equal ones are one: a reader that asks twice is told once."""

    session: int
    path: str
    watch: Watch


_Watchers = dict[str, dict[_Watching, None]]
"""By path; the inner dict is a set that keeps its order, so that runs repeat exactly."""


@dataclass(slots=True)
class MemoryCluster:
    """The tree that all clients share. queued: watches wait for deliver(); else they follow each change."""

    queued: bool = False
    monotonic: Callable[[], float] = lambda: 0.0
    _documents: dict[str, Stored] = field(default_factory=lambda: {"/": Stored("/", b"", 0)})
    _children: dict[str, set[str]] = field(default_factory=lambda: {"/": set()})
    _data_watchers: _Watchers = field(default_factory=dict)
    _listing_watchers: _Watchers = field(default_factory=dict)
    _pending: deque[_Watching] = field(default_factory=deque)
    _last_session: int = 0
    _alive: set[int] = field(default_factory=set)

    # -- clients and their faults

    def connect(self) -> MemoryStore:
        return MemoryStore(self, Session(self._new_session(), SessionState.CONNECTED))

    def suspend(self, store: MemoryStore) -> None:
        """No server answers this client; its session goes on until expire()."""
        store.last_contact()
        self._forget_watches(store.session.id)
        store.change(SessionState.SUSPENDED)

    def expire(self, store: MemoryStore) -> None:
        """The servers end the session. A suspended client learns of it when it resumes."""
        self._end(store.session.id)
        if store.session.state is SessionState.CONNECTED:
            store.last_contact()
            store.change(SessionState.LOST)

    def resume(self, store: MemoryStore) -> None:
        """The client reaches a server again: with its session, or with a new one if that has ended."""
        if store.session.id not in self._alive:
            if store.session.state is SessionState.SUSPENDED:
                store.change(SessionState.LOST)
            store.change(SessionState.CONNECTED, self._new_session())
        else:
            store.change(SessionState.CONNECTED)

    def lose_next_reply(self, store: MemoryStore) -> None:
        """The next commit is made, and raises Unavailable."""
        store.reply_lost = True

    def drop_next_request(self, store: MemoryStore) -> None:
        """The next call raises Unavailable, and no server has seen it."""
        store.request_lost = True

    def deliver(self) -> int:
        """Call the watches that wait; how many there were."""
        count = len(self._pending)
        for _ in range(count):
            watching = self._pending.popleft()
            watching.watch(watching.path)
        return count

    def _new_session(self) -> int:
        self._last_session += 1
        self._alive.add(self._last_session)
        return self._last_session

    def _end(self, session: int) -> None:
        self._alive.discard(session)
        ephemerals = [document for document in self._documents.values() if document.session == session]
        for document in ephemerals:
            self._set(document.path, None)
            self._changed(document.path, listing=True)
        self._forget_watches(session)
        self._settle()

    def _forget_watches(self, session: int) -> None:
        """The client fires what it had: it will not hear of changes any more, so it has to look."""
        for watchers in (self._data_watchers, self._listing_watchers):
            for path in list(watchers):
                for watching in [each for each in watchers[path] if each.session == session]:
                    del watchers[path][watching]
                    self._pending.append(watching)
        self._settle()

    # -- the tree

    def document(self, path: str) -> Stored | None:
        return self._documents.get(path)

    def names(self, path: str) -> tuple[str, ...]:
        return tuple(sorted(self._children.get(path, ())))

    def watch(self, session: int, path: str, watch: Watch, *, listing: bool) -> None:
        absent = path not in self._documents
        watchers = self._listing_watchers if listing and not absent else self._data_watchers
        watchers.setdefault(path, {})[_Watching(session, path, watch)] = None

    def apply(self, session: int, ops: Sequence[Op]) -> None:
        undo: list[tuple[str, Stored | None]] = []
        try:
            for op in ops:
                before = self._documents.get(op.path)
                after = self._after(session, op, before)
                if after is not before:
                    undo.append((op.path, before))
                    self._set(op.path, after)
        except (Conflict, NotFound):
            for path, before in reversed(undo):
                self._set(path, before)
            raise
        for op in ops:
            if not isinstance(op, Check):
                self._changed(op.path, listing=not isinstance(op, Put))
        self._settle()

    def _after(self, session: int, op: Op, before: Stored | None) -> Stored | None:
        if isinstance(op, Create):
            return self._created(session, op, before)
        if before is None:
            raise NotFound(f"{op.path} does not exist")
        if op.version not in (ANY_VERSION, before.version):
            raise Conflict(f"{op.path} has changed meanwhile")
        match op:
            case Put():
                return replace(before, data=op.data, version=before.version + 1)
            case Delete():
                if self._children.get(op.path):
                    raise Conflict(f"{op.path} still has documents below it")
                return None
            case Check():
                return before

    def _created(self, session: int, op: Create, before: Stored | None) -> Stored:
        parent = self._documents.get(_parent(op.path))
        if parent is None:
            raise NotFound(f"nothing to create {op.path} below")
        if before is not None:
            raise Conflict(f"{op.path} exists already")
        if parent.session:
            raise Conflict(f"{op.path} cannot be created below an ephemeral document")
        return Stored(op.path, op.data, 0, session if op.ephemeral else 0)

    def _set(self, path: str, document: Stored | None) -> None:
        if document is None:
            del self._documents[path]
            del self._children[path]
            self._children[_parent(path)].discard(_name(path))
        else:
            self._documents[path] = document
            self._children.setdefault(path, set())
            self._children[_parent(path)].add(_name(path))

    def _changed(self, path: str, *, listing: bool) -> None:
        self._pending.extend(self._data_watchers.pop(path, ()))
        if listing:
            self._pending.extend(self._listing_watchers.pop(_parent(path), ()))
            self._pending.extend(self._listing_watchers.pop(path, ()))

    def _settle(self) -> None:
        if not self.queued:
            self.deliver()


class MemoryStore:
    """One client of a MemoryCluster."""

    def __init__(self, cluster: MemoryCluster, session: Session) -> None:
        self.reads = 0
        self.request_lost = False
        self.reply_lost = False
        self._cluster = cluster
        self._session = session
        self._listeners: list[Callable[[Session], None]] = []
        self._contact = cluster.monotonic()

    @property
    def session(self) -> Session:
        return self._session

    def on_session(self, listener: Callable[[Session], None]) -> None:
        self._listeners.append(listener)

    def last_contact(self) -> float:
        if self._session.state is SessionState.CONNECTED:
            self._contact = self._cluster.monotonic()
        return self._contact

    def change(self, state: SessionState, session: int = 0) -> None:
        self._session = Session(session or self._session.id, state)
        for listener in self._listeners:
            listener(self._session)

    def get(self, path: str) -> Stored | None:
        return self.get_many((path,))[0]

    def get_many(self, paths: Sequence[str]) -> tuple[Stored | None, ...]:
        return self.read(paths, ())[0]

    def children(self, path: str) -> tuple[str, ...]:
        return self.read((), (path,))[1][0]

    def read(
        self, paths: Sequence[str], listings: Sequence[str], watch: Watch | None = None
    ) -> tuple[tuple[Stored | None, ...], tuple[tuple[str, ...], ...]]:
        self._reach()
        self.reads += len(paths) + len(listings)
        if watch is not None:
            for path in paths:
                self._cluster.watch(self._session.id, path, watch, listing=False)
            for path in listings:
                self._cluster.watch(self._session.id, path, watch, listing=True)
        documents = tuple(self._cluster.document(path) for path in paths)
        return documents, tuple(self._cluster.names(path) for path in listings)

    def commit(self, *ops: Op) -> None:
        self._reach()
        self._cluster.apply(self._session.id, ops)
        if self.reply_lost:
            self.reply_lost = False
            raise Unavailable("the server went away: nobody knows whether the change was made")

    def _reach(self) -> None:
        if self._session.state is not SessionState.CONNECTED:
            raise Unavailable("no server answers", hint="nothing was changed")
        if self.request_lost:
            self.request_lost = False
            raise Unavailable("the server went away: nobody knows whether the change was made")

    def close(self) -> None:
        self._cluster.expire(self)
        if self._session.state is not SessionState.LOST:
            self.change(SessionState.LOST)
