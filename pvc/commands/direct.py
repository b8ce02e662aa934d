"""--direct: operations run in the client's own process on the store, without an API server."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pvc import config
from pvc.clock import Clock, SystemClock
from pvc.cluster.codec import to_json, version_of
from pvc.cluster.store import Session, Store, Stored
from pvc.commands.context import Caller, Context, invoke
from pvc.commands.registry import Operation, Role, find
from pvc.config import Config

CONNECT_WITHIN_S = 10.0


class DirectTransport:
    """A Transport of whoever can read the cluster key: what they may do there, they may do here."""

    def __init__(self, store: Store | None = None, node: str = "", clock: Clock | None = None) -> None:
        self._store = store
        self._config: Config | None = None
        self._node = node
        self._clock = clock or SystemClock()
        self._watching: Watching | None = None

    def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        *,
        plan: bool = False,
        after: str = "",
        within_s: float = 0.0,
    ) -> Any:
        found = find(name)
        store = self._connected()
        if not found.is_read or not after or within_s <= 0:
            return self._invoke(found, store, store, arguments, plan)
        end = self._clock.monotonic() + within_s
        if self._watching is None:
            # One for all calls: what it watches already is not watched twice.
            self._watching = Watching(store)
        changed = self._watching.changed
        while True:
            changed.clear()
            answer = self._invoke(found, store, self._watching, arguments, plan)
            left = end - self._clock.monotonic()
            if version_of(answer) != after or left <= 0:
                return answer
            changed.wait(left)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = self._watching = None

    def _invoke(
        self,
        found: Operation,
        store: Store,
        reader: Store | Watching,
        arguments: Mapping[str, Any],
        plan: bool,
    ) -> Any:
        context = Context(store, reader, Caller(f"root on {self._node}", Role.ADMIN), planning=plan)
        if self._config is not None:
            context.console = partial(_fetch, self._config)
            context.ask = partial(_ask, self._config)
            context.carry = partial(_carry, self._config)
        result = invoke(found, context, arguments)
        return result if isinstance(result, bytes) else to_json(result)

    def _connected(self) -> Store:
        if self._store is None:
            self._config = config.load()
            self._node = self._config.node.name
            self._store = connect(self._config)
        return self._store


def connect(settings: Config) -> Store:
    """The store of this node's cluster. Raises NotFound, Invalid, Unavailable."""
    secret = settings.secret()
    from pvc.cluster.zookeeper import ZooKeeperStore

    store = ZooKeeperStore(
        settings.servers(), secret=secret, session_timeout_s=settings.cluster.session_timeout_s
    )
    try:
        store.connect(CONNECT_WITHIN_S)
    except BaseException:
        store.close()
        raise
    return store


def _fetch(
    settings: Config,
    address: str,
    port: int,
    path: str,
    *,
    lines: int = 100,
    cursor: int | None = None,
    wait_s: int = 0,
) -> tuple[str, int]:
    # TLS and HTTP only for the verbs that need them.
    from pvc.peerclient import fetch

    return fetch(settings, address, port, path, lines=lines, cursor=cursor, wait_s=wait_s)


def _ask(settings: Config, address: str, port: int, path: str) -> Any:
    from pvc.peerclient import ask

    return ask(settings, address, port, path)


def _carry(settings: Config, address: str, port: int, path: str, piece: bytes | None = None) -> bytes:
    from pvc.peerclient import carry

    return carry(settings, address, port, path, piece)


class Watching:
    """A reader that leaves a watch on all it reads: on that an operation's answer depends."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.changed = threading.Event()
        store.on_session(self._session_changed)

    def get(self, path: str) -> Stored | None:
        return self.get_many([path])[0]

    def get_many(self, paths: Sequence[str]) -> tuple[Stored | None, ...]:
        return self._store.read(paths, (), self._wake)[0]

    def children(self, path: str) -> tuple[str, ...]:
        return self._store.read((), [path], self._wake)[1][0]

    def _session_changed(self, session: Session) -> None:
        self.changed.set()

    def _wake(self, path: str) -> None:
        self.changed.set()
