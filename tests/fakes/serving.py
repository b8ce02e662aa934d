"""The API on real sockets over a store in memory, in a thread of the test."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvc.cluster import paths, tokens
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.codec import dumps
from pvc.cluster.mirror import Follow
from pvc.cluster.store import Create
from pvc.cluster.view import expand_whole_cluster, whole_cluster
from pvc.commands.registry import Operation, Role
from pvc.http.app import make_app
from pvc.http.client import HttpTransport
from pvc.http.serve import Keeper, Texts, tcp_socket, unix_socket
from pvc.http.server import Server
from tests.fakes.store import MemoryCluster, MemoryStore
from tests.unit.http import things


@dataclass(slots=True)
class Serving:
    server: Server
    cluster: MemoryCluster
    store: MemoryStore
    keeper: Keeper
    path: str
    port: int
    keys: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, operation: str, key: str = "admin", /, **arguments: Any) -> Any:
        """By a client of its own."""
        transport = self.transport(key)
        try:
            return transport.call(operation, arguments)
        finally:
            transport.close()

    def transport(self, key: str = "admin", *, local: bool = False) -> HttpTransport:
        if local:
            return HttpTransport(self.path, lookup=things.lookup)
        return HttpTransport(self.url, self.keys.get(key, key), lookup=things.lookup)


def _follow(listing: str, names: tuple[str, ...]) -> Iterable[Follow]:
    if listing == things.ROOT:
        return [Follow(f"{listing}/{name}") for name in names]
    return expand_whole_cluster(listing, names)


@contextlib.contextmanager
def serving(
    directory: Path,
    cluster: MemoryCluster | None = None,
    operations: list[Operation] | None = None,
    texts: Texts | None = None,
) -> Iterator[Serving]:
    """One API server; given a cluster, one more of it."""
    cluster = cluster or MemoryCluster()
    store = cluster.connect()
    keys: dict[str, str] = {}
    for path in (*paths.LAYOUT, things.ROOT):
        if store.get(path) is None:
            store.commit(Create(path))
    if store.get(paths.CLUSTER) is None:
        store.commit(Create(paths.CLUSTER, dumps(ClusterSpec("test"))))
    for role in Role:
        name = f"{role}-{store.session.id}"
        token, keys[role] = tokens.make(name, role, 0.0, None)
        store.commit(Create(paths.token(name), tokens.document(token)))
    keeper = Keeper(store, (*whole_cluster(), Follow(things.ROOT, children=True)), _follow)
    keeper.first()
    path = str(directory / f"api-{store.session.id}.sock")
    sockets = [unix_socket(path), tcp_socket("127.0.0.1:0")]
    app = make_app(keeper.site(texts), things.operations() if operations is None else operations)
    server = Server(app, sockets, tick=keeper.tick)
    keeper.start(server)
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    try:
        port = sockets[1].getsockname()[1]
        yield Serving(server, cluster, store, keeper, path, port, keys)
    finally:
        server.stop()
        thread.join(20)
        keeper.stop()
        assert not thread.is_alive(), "the server did not stop"


def connect(serving: Serving) -> socket.socket:
    return socket.create_connection(("127.0.0.1", serving.port), timeout=10)
