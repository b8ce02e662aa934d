"""One suite for every Store: the fake in memory and real ZooKeeper servers keep the same promises."""

from __future__ import annotations

import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest
from kazoo.client import KazooClient

from pvc.cluster.mirror import Follow, Mirror
from pvc.cluster.store import Check, Create, Delete, Op, Put, Session, SessionState, Store, Stored
from pvc.cluster.zookeeper import ZooKeeperStore
from pvc.errors import Conflict, Invalid, NotFound, NotPermitted, PVCError, Unavailable
from tests.fakes.store import MemoryCluster, MemoryStore
from tests.support import eventually
from tests.zookeeper import Ensemble, Link, zookeeper

SESSION_S = 3.0
CONNECT_S = 1.0
WITHIN_S = 20.0
AT_ONCE_S = 1.0
"""Far below any time-out of the client, far above a busy machine's hiccup."""

_roots = itertools.count(1)


class AnyStore(Store, Protocol):
    def last_contact(self) -> float: ...


class Backend(Protocol):
    """A cluster under test, and the faults that can be put into it; the client may notice them later."""

    def connect(self) -> AnyStore: ...
    def suspend(self, store: AnyStore) -> None: ...
    def resume(self, store: AnyStore) -> None: ...
    def expire(self, store: AnyStore) -> None: ...
    def lose_next_reply(self, store: AnyStore) -> None: ...


class MemoryBackend:
    def __init__(self) -> None:
        self.cluster = MemoryCluster(monotonic=time.monotonic)

    def connect(self) -> MemoryStore:
        return self.cluster.connect()

    def suspend(self, store: AnyStore) -> None:
        self.cluster.suspend(_memory(store))

    def resume(self, store: AnyStore) -> None:
        self.cluster.resume(_memory(store))

    def expire(self, store: AnyStore) -> None:
        connected = store.session.state is SessionState.CONNECTED
        self.cluster.expire(_memory(store))
        if connected:
            self.cluster.resume(_memory(store))

    def lose_next_reply(self, store: AnyStore) -> None:
        self.cluster.lose_next_reply(_memory(store))


def _memory(store: AnyStore) -> MemoryStore:
    assert isinstance(store, MemoryStore)
    return store


class ZooKeeperBackend:
    def __init__(self, ensemble: Ensemble, stack: ExitStack) -> None:
        self._server = ensemble.servers[0]
        self._stack = stack
        self._links: dict[int, Link] = {}

    def connect(self) -> ZooKeeperStore:
        link = Link(self._server)
        self._stack.callback(link.close)
        store = ZooKeeperStore([link.address], secret="key", session_timeout_s=SESSION_S)
        self._stack.callback(store.close)
        store.connect(WITHIN_S)
        self._links[id(store)] = link
        return store

    def suspend(self, store: AnyStore) -> None:
        self._links[id(store)].cut()

    def resume(self, store: AnyStore) -> None:
        self._links[id(store)].heal()

    def expire(self, store: AnyStore) -> None:
        """A second connection takes the session over and closes it: to the first it looks expired."""
        assert isinstance(store, ZooKeeperStore)
        mine = store._client
        thief = KazooClient(self._server.address, client_id=(store.session.id, mine._session_passwd))
        thief.start(WITHIN_S)
        thief.stop()
        thief.close()

    def lose_next_reply(self, store: AnyStore) -> None:
        self._links[id(store)].swallow_next_reply()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ensemble]:
    with zookeeper(tmp_path_factory.mktemp("single")) as ensemble:
        yield ensemble


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ensemble]:
    with zookeeper(tmp_path_factory.mktemp("three"), servers=3) as ensemble:
        yield ensemble


@pytest.fixture(params=["memory", "zookeeper"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with ExitStack() as stack:
        if request.param == "memory":
            yield MemoryBackend()
        else:
            yield ZooKeeperBackend(request.getfixturevalue("single"), stack)


@pytest.fixture
def store(backend: Backend) -> AnyStore:
    return backend.connect()


@pytest.fixture
def root(store: AnyStore) -> str:
    """A document of this test's own, since the real servers outlive a test."""
    path = f"/test{next(_roots)}"
    store.commit(Create(path))
    return path


def connected(store: AnyStore) -> bool:
    return store.session.state is SessionState.CONNECTED


def waiting_for(store: AnyStore, state: SessionState) -> None:
    eventually(lambda: store.session.state is state, within=WITHIN_S)


def data(stored: Stored | None) -> bytes | None:
    return None if stored is None else stored.data


class Fired:
    """A watch that keeps what it was told. Watches may come late, never twice."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def __call__(self, path: str) -> None:
        self.paths.append(path)


# -- documents and transactions


def test_a_document_is_read_as_written(store: AnyStore, root: str) -> None:
    store.commit(Create(f"{root}/a", b"one"))
    assert store.get(f"{root}/a") == Stored(f"{root}/a", b"one", 0)
    store.commit(Put(f"{root}/a", b"two"))
    assert store.get(f"{root}/a") == Stored(f"{root}/a", b"two", 1)
    store.commit(Put(f"{root}/a", b"", version=1))
    assert store.get(f"{root}/a") == Stored(f"{root}/a", b"", 2)
    store.commit(Delete(f"{root}/a", version=2))
    assert store.get(f"{root}/a") is None


def test_a_document_created_again_starts_at_version_0(store: AnyStore, root: str) -> None:
    store.commit(Create(f"{root}/a"), Put(f"{root}/a", b"x"))
    store.commit(Delete(f"{root}/a"), Create(f"{root}/a", b"new"))
    assert store.get(f"{root}/a") == Stored(f"{root}/a", b"new", 0)


def test_children_are_names_in_order(store: AnyStore, root: str) -> None:
    assert store.children(root) == ()
    store.commit(*(Create(f"{root}/{name}") for name in ("c", "a", "b")), Create(f"{root}/a/below"))
    assert store.children(root) == ("a", "b", "c")
    assert store.children(f"{root}/absent") == ()


def test_many_reads_come_in_the_order_asked(store: AnyStore, root: str) -> None:
    for start in range(0, 3000, 500):
        store.commit(*(Create(f"{root}/{n}", b"%d" % n) for n in range(start, start + 500)))
    asked = [n * 7 % 4000 for n in range(4000)]
    found = store.get_many([f"{root}/{n}" for n in asked])
    assert [data(each) for each in found] == [b"%d" % n if n < 3000 else None for n in asked]
    documents, listings = store.read([f"{root}/2", f"{root}/1"], [f"{root}/1", root, f"{root}/absent"])
    assert [data(each) for each in documents] == [b"2", b"1"]
    assert listings == ((), tuple(sorted(str(n) for n in range(3000))), ())
    assert store.read((), ()) == ((), ())


REFUSED: list[tuple[str, Callable[[str], Op], type[PVCError]]] = [
    ("a version that moved", lambda root: Put(f"{root}/there", b"x", version=7), Conflict),
    ("a delete of a version that moved", lambda root: Delete(f"{root}/there", version=7), Conflict),
    ("a check of a version that moved", lambda root: Check(f"{root}/there", 7), Conflict),
    ("a path that exists", lambda root: Create(f"{root}/there"), Conflict),
    ("documents below", lambda root: Delete(f"{root}/full"), Conflict),
    ("an ephemeral parent", lambda root: Create(f"{root}/ephemeral/below"), Conflict),
    ("no parent", lambda root: Create(f"{root}/absent/below"), NotFound),
    ("nothing to write", lambda root: Put(f"{root}/absent", b"x"), NotFound),
    ("nothing to delete", lambda root: Delete(f"{root}/absent"), NotFound),
    ("nothing to check", lambda root: Check(f"{root}/absent", 0), NotFound),
]


@pytest.mark.parametrize(("name", "op", "error"), REFUSED, ids=[each[0] for each in REFUSED])
def test_a_refused_transaction_leaves_nothing_and_names_the_path(
    store: AnyStore, root: str, name: str, op: Callable[[str], Op], error: type[PVCError]
) -> None:
    store.commit(Create(f"{root}/there", b"old"), Create(f"{root}/full"), Create(f"{root}/full/x"))
    store.commit(Create(f"{root}/ephemeral", ephemeral=True))
    refused = op(root)
    around: list[Op] = [Create(f"{root}/new"), Put(f"{root}/there", b"new")]
    if isinstance(refused, Put | Check | Delete) and refused.path == f"{root}/there":
        around.pop()
    with pytest.raises(error, match=refused.path):
        store.commit(*around, refused, Create(f"{root}/after"))
    with pytest.raises(error, match=refused.path):
        store.commit(refused)
    assert store.children(root) == ("ephemeral", "full", "there")
    assert store.get(f"{root}/there") == Stored(f"{root}/there", b"old", 0)


def test_a_check_guards_a_transaction(store: AnyStore, root: str) -> None:
    store.commit(Create(f"{root}/guard"))
    store.commit(Check(f"{root}/guard", 0), Create(f"{root}/a"))
    store.commit(Put(f"{root}/guard", b"moved"))
    with pytest.raises(Conflict):
        store.commit(Check(f"{root}/guard", 0), Create(f"{root}/b"))
    assert store.children(root) == ("a", "guard")


def test_operations_of_a_transaction_build_on_each_other(store: AnyStore, root: str) -> None:
    store.commit(
        Create(f"{root}/a"),
        Create(f"{root}/a/b"),
        Put(f"{root}/a/b", b"1", version=0),
        Check(f"{root}/a/b", 1),
    )
    assert data(store.get(f"{root}/a/b")) == b"1"
    store.commit(Delete(f"{root}/a/b", version=1), Delete(f"{root}/a"))
    assert store.children(root) == ()


def test_two_clients_cannot_both_win(backend: Backend, store: AnyStore, root: str) -> None:
    other = backend.connect()
    store.commit(Create(f"{root}/owner"))
    seen = other.get(f"{root}/owner")
    assert seen is not None
    store.commit(Put(f"{root}/owner", b"first", version=seen.version))
    with pytest.raises(Conflict):
        other.commit(Put(f"{root}/owner", b"second", version=seen.version))
    assert data(store.get(f"{root}/owner")) == b"first"


# -- watches


def test_a_watch_fires_once_after_the_change(store: AnyStore, root: str) -> None:
    store.commit(Create(f"{root}/a"))
    fired = Fired()
    store.read([f"{root}/a"], (), fired)
    assert fired.paths == []
    store.commit(Put(f"{root}/a", b"1"))
    eventually(lambda: fired.paths, within=WITHIN_S)
    store.commit(Put(f"{root}/a", b"2"))
    settle(store, root)
    assert fired.paths == [f"{root}/a"]


def test_a_watch_asked_for_twice_fires_once(store: AnyStore, root: str) -> None:
    fired = Fired()
    store.read([root], (), fired)
    store.read([root], (), fired)
    store.commit(Put(root, b"1"))
    settle(store, root)
    assert fired.paths == [root]


def settle(store: AnyStore, root: str) -> None:
    """Every watch of an earlier change has been called once this later one has."""
    last = Fired()
    store.read([f"{root}/settled"], (), last)
    store.commit(Create(f"{root}/settled"))
    eventually(lambda: last.paths, within=WITHIN_S)
    store.commit(Delete(f"{root}/settled"))


def test_a_watch_on_what_is_absent_fires_when_it_appears(store: AnyStore, root: str) -> None:
    document, listing = Fired(), Fired()
    assert store.read([f"{root}/a"], (), document)[0] == (None,)
    assert store.read((), [f"{root}/a"], listing)[1] == ((),)
    store.commit(Create(f"{root}/a"))
    eventually(lambda: document.paths and listing.paths, within=WITHIN_S)
    assert (document.paths, listing.paths) == ([f"{root}/a"], [f"{root}/a"])


def test_a_watch_fires_when_its_document_goes(store: AnyStore, root: str) -> None:
    store.commit(Create(f"{root}/a"))
    document, listing = Fired(), Fired()
    store.read([f"{root}/a"], (), document)
    store.read((), [f"{root}/a"], listing)
    store.commit(Delete(f"{root}/a"))
    eventually(lambda: document.paths and listing.paths, within=WITHIN_S)
    assert (document.paths, listing.paths) == ([f"{root}/a"], [f"{root}/a"])


def test_a_watch_on_a_listing_fires_for_names_only(store: AnyStore, root: str) -> None:
    store.commit(Create(f"{root}/a"))
    fired = Fired()
    store.read((), [root], fired)
    store.commit(Put(f"{root}/a", b"1"), Put(root, b"1"), Create(f"{root}/a/below"))
    marker = Fired()
    store.read([root], (), marker)
    store.commit(Put(root, b"2"))
    eventually(lambda: marker.paths, within=WITHIN_S)
    assert fired.paths == []
    store.commit(Create(f"{root}/b"))
    eventually(lambda: fired.paths, within=WITHIN_S)
    store.read((), [root], fired)
    store.commit(Delete(f"{root}/b"))
    eventually(lambda: len(fired.paths) == 2, within=WITHIN_S)
    assert fired.paths == [root, root]


def test_a_refused_transaction_fires_nothing(store: AnyStore, root: str) -> None:
    fired = Fired()
    store.read([root], [root], fired)
    with pytest.raises(NotFound):
        store.commit(Put(root, b"x"), Create(f"{root}/a"), Put(f"{root}/absent", b""))
    marker = Fired()
    store.commit(Create(f"{root}-marker"))
    store.read([f"{root}-marker"], (), marker)
    store.commit(Put(f"{root}-marker", b"x"))
    eventually(lambda: marker.paths, within=WITHIN_S)
    assert fired.paths == []


def test_another_client_s_change_fires(backend: Backend, store: AnyStore, root: str) -> None:
    other, fired = backend.connect(), Fired()
    store.read([root], (), fired)
    other.commit(Put(root, b"x"))
    eventually(lambda: fired.paths == [root], within=WITHIN_S)
    assert data(store.get(root)) == b"x"


# -- sessions


def test_a_session_is_told_apart(backend: Backend, store: AnyStore) -> None:
    assert connected(store)
    assert store.session.id
    assert backend.connect().session.id != store.session.id


def test_an_ephemeral_names_its_session_and_goes_at_once_on_close(
    backend: Backend, store: AnyStore, root: str
) -> None:
    other = backend.connect()
    other.commit(Create(f"{root}/alive", b"here", ephemeral=True))
    assert store.get(f"{root}/alive") == Stored(f"{root}/alive", b"here", 0, other.session.id)
    start = time.monotonic()
    other.close()
    eventually(lambda: store.get(f"{root}/alive") is None, within=AT_ONCE_S)
    assert time.monotonic() - start < AT_ONCE_S
    assert other.session.state is SessionState.LOST
    with pytest.raises(Unavailable):
        other.get(root)
    with pytest.raises(Unavailable):
        other.commit(Create(f"{root}/after-close"))


def test_an_expired_session_loses_its_ephemerals_and_a_new_one_begins(
    backend: Backend, store: AnyStore, root: str
) -> None:
    other, told, fired = backend.connect(), list[Session](), Fired()
    first = other.session.id
    other.on_session(told.append)
    other.commit(Create(f"{root}/alive", ephemeral=True))
    other.read([root], (), fired)
    backend.expire(other)
    eventually(lambda: connected(other) and other.session.id != first, within=WITHIN_S)
    assert store.get(f"{root}/alive") is None
    states = [each.state for each in told]
    assert states[-2:] == [SessionState.LOST, SessionState.CONNECTED]
    assert [each.id for each in told[-2:]] == [first, other.session.id]
    # The watch went with the session, and says so: look again.
    eventually(lambda: fired.paths == [root], within=WITHIN_S)
    other.commit(Create(f"{root}/alive", ephemeral=True))
    found = store.get(f"{root}/alive")
    assert found is not None
    assert found.session == other.session.id


def test_while_suspended_every_call_fails_at_once_and_nothing_is_queued(
    backend: Backend, store: AnyStore, root: str
) -> None:
    other, told = backend.connect(), list[Session]()
    other.on_session(told.append)
    before = other.session.id
    backend.suspend(other)
    waiting_for(other, SessionState.SUSPENDED)
    calls: list[Callable[[], object]] = [
        lambda: other.get(root),
        lambda: other.get_many([root] * 5000),
        lambda: other.children(root),
        lambda: other.read([root], [root], Fired()),
        lambda: other.commit(Create(f"{root}/queued")),
    ]
    start = time.monotonic()
    for call in calls:
        with pytest.raises(Unavailable):
            call()
    assert time.monotonic() - start < AT_ONCE_S
    backend.resume(other)
    waiting_for(other, SessionState.CONNECTED)
    assert other.session.id == before
    assert [each.state for each in told] == [SessionState.SUSPENDED, SessionState.CONNECTED]
    other.commit(Create(f"{root}/after"))
    assert store.children(root) == ("after",)


def test_a_suspended_session_keeps_its_ephemerals(backend: Backend, store: AnyStore, root: str) -> None:
    other = backend.connect()
    other.commit(Create(f"{root}/alive", ephemeral=True))
    backend.suspend(other)
    waiting_for(other, SessionState.SUSPENDED)
    assert store.get(f"{root}/alive") is not None
    backend.resume(other)
    waiting_for(other, SessionState.CONNECTED)
    assert store.get(f"{root}/alive") is not None


def test_a_session_that_ends_while_suspended_is_lost_on_return(
    backend: Backend, store: AnyStore, root: str
) -> None:
    other, told = backend.connect(), list[Session]()
    first = other.session.id
    other.commit(Create(f"{root}/alive", ephemeral=True))
    other.on_session(told.append)
    backend.suspend(other)
    waiting_for(other, SessionState.SUSPENDED)
    backend.expire(other)
    eventually(lambda: store.get(f"{root}/alive") is None, within=WITHIN_S)
    assert other.session.state is SessionState.SUSPENDED
    backend.resume(other)
    eventually(lambda: connected(other) and other.session.id != first, within=WITHIN_S)
    assert [each.state for each in told] == [
        SessionState.SUSPENDED,
        SessionState.LOST,
        SessionState.CONNECTED,
    ]


def test_a_watch_of_a_broken_connection_fires_and_can_be_set_again(
    backend: Backend, store: AnyStore, root: str
) -> None:
    other, fired = backend.connect(), Fired()
    other.read([root], (), fired)
    backend.suspend(other)
    waiting_for(other, SessionState.SUSPENDED)
    eventually(lambda: fired.paths == [root], within=WITHIN_S)
    store.commit(Put(root, b"unseen"))
    backend.resume(other)
    waiting_for(other, SessionState.CONNECTED)
    again = Fired()
    assert data(other.read([root], (), again)[0][0]) == b"unseen"
    store.commit(Put(root, b"seen"))
    eventually(lambda: again.paths == [root], within=WITHIN_S)
    assert fired.paths == [root]


def test_a_lost_reply_is_unavailable_and_the_change_was_made(
    backend: Backend, store: AnyStore, root: str
) -> None:
    other = backend.connect()
    other.get(root)  # the answers to the connection itself are not the ones to lose
    backend.lose_next_reply(other)
    with pytest.raises(Unavailable, match="nobody knows"):
        other.commit(Create(f"{root}/a", b"made"), Put(root, b"made"))
    waiting_for(other, SessionState.CONNECTED)
    assert data(store.get(f"{root}/a")) == b"made"
    assert data(other.get(root)) == b"made"


def test_the_last_contact_advances_only_while_a_server_answers(
    backend: Backend, store: AnyStore, root: str
) -> None:
    start = time.monotonic()
    store.get(root)
    assert start <= store.last_contact() <= time.monotonic()
    backend.suspend(store)
    waiting_for(store, SessionState.SUSPENDED)
    stopped = store.last_contact()
    with pytest.raises(Unavailable):
        store.get(root)
    assert store.last_contact() == stopped
    backend.resume(store)
    waiting_for(store, SessionState.CONNECTED)
    store.get(root)
    assert store.last_contact() > stopped


def test_a_mirror_follows_through_suspension_and_a_new_session(
    backend: Backend, store: AnyStore, root: str
) -> None:
    other, woken = backend.connect(), threading.Event()
    mirror = Mirror(
        other, [Follow(root, True)], lambda path, names: [Follow(f"{path}/{n}") for n in names], woken.set
    )

    def shows(name: str, content: bytes) -> bool:
        if woken.is_set() and connected(other):
            woken.clear()
            mirror.sync()
        return name in mirror.children(root) and data(mirror.get(f"{root}/{name}")) == content

    mirror.sync()
    store.commit(Create(f"{root}/a", b"1"))
    eventually(lambda: shows("a", b"1"), within=WITHIN_S)
    backend.suspend(other)
    waiting_for(other, SessionState.SUSPENDED)
    assert mirror.stale
    store.commit(Put(f"{root}/a", b"2"))
    backend.resume(other)
    waiting_for(other, SessionState.CONNECTED)
    eventually(lambda: shows("a", b"2"), within=WITHIN_S)
    first = other.session.id
    backend.expire(other)
    eventually(lambda: connected(other) and other.session.id != first, within=WITHIN_S)
    store.commit(Create(f"{root}/b", b"3"))
    eventually(lambda: shows("b", b"3"), within=WITHIN_S)


# -- real servers only


def open_store(stack: ExitStack, servers: list[str], secret: str | None = "key") -> ZooKeeperStore:
    store = ZooKeeperStore(servers, secret=secret, session_timeout_s=SESSION_S, connect_timeout_s=CONNECT_S)
    stack.callback(store.close)
    store.connect(WITHIN_S)
    return store


@pytest.mark.parametrize("secret", [None, "another key"])
def test_without_the_cluster_key_nothing_can_be_read_or_written(single: Ensemble, secret: str | None) -> None:
    with ExitStack() as stack:
        store = open_store(stack, single.addresses)
        root = f"/test{next(_roots)}"
        store.commit(Create(root, b"secret"), Create(f"{root}/a", b"secret"))
        store.commit(Create(f"{root}/alone", b"secret"))
        foreign = open_store(stack, single.addresses, secret)
        refused: list[Callable[[], object]] = [
            lambda: foreign.get(root),
            lambda: foreign.children(root),
            lambda: foreign.read([f"{root}/a", f"{root}/alone"], [root], Fired()),
            lambda: foreign.commit(Put(root, b"x")),
            lambda: foreign.commit(Create(f"{root}/b")),
            lambda: foreign.commit(Delete(f"{root}/a")),
            lambda: foreign.commit(Create(f"{root}-mine"), Put(f"{root}/a", b"x")),
        ]
        for call in refused:
            with pytest.raises(NotPermitted):
                call()
        same = open_store(stack, single.addresses)
        assert same.children(root) == ("a", "alone")
        assert data(same.get(f"{root}/a")) == b"secret"


def test_the_key_is_never_logged(single: Ensemble, caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as stack, caplog.at_level(logging.DEBUG):
        store = open_store(stack, single.addresses, "a secret")
        store.commit(Create(f"/test{next(_roots)}"))
        ((_, credential),) = store._client.auth_data
    assert "connection established" in caplog.text
    assert credential.partition(":")[2] not in caplog.text


def test_a_change_the_server_would_hang_up_on_is_refused_here(single: Ensemble) -> None:
    with ExitStack() as stack:
        store = open_store(stack, single.addresses)
        root = f"/test{next(_roots)}"
        with pytest.raises(Invalid, match="too large"):
            store.commit(Create(root, b"x" * 1_000_000))
        store.commit(Create(root, b"x" * 999_000))
        assert len(data(store.get(root)) or b"") == 999_000


def test_no_server_is_said_in_time_and_by_name() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        store = ZooKeeperStore([address], secret=None)
        start = time.monotonic()
        with pytest.raises(Unavailable, match=address):
            store.connect(0.5)
        assert time.monotonic() - start < 0.5 + AT_ONCE_S
        with pytest.raises(Unavailable):
            store.get("/")
        store.close()


def test_close_does_not_wait_for_a_server_that_hangs() -> None:
    with socket.create_server(("127.0.0.1", 0)) as hung:
        store = ZooKeeperStore([f"127.0.0.1:{hung.getsockname()[1]}"], secret=None)
        with pytest.raises(Unavailable):
            store.connect(0.2)
        start = time.monotonic()
        store.close()
        assert time.monotonic() - start < AT_ONCE_S


def test_a_first_server_that_hangs_delays_little(single: Ensemble) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hung, ExitStack() as stack:
        start = time.monotonic()
        store = open_store(stack, [f"127.0.0.1:{hung.getsockname()[1]}", *single.addresses])
        assert time.monotonic() - start < SESSION_S / 2 + AT_ONCE_S
        assert store.get("/") is not None


def test_a_first_host_that_is_dead_delays_little(single: Ensemble) -> None:
    """Packets to it vanish, as here where its queue of connections is full."""
    with socket.socket() as dead, ExitStack() as stack:
        dead.bind(("127.0.0.1", 0))
        dead.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(dead.getsockname())
        start = time.monotonic()
        store = open_store(stack, [f"127.0.0.1:{dead.getsockname()[1]}", *single.addresses])
        assert time.monotonic() - start < CONNECT_S + AT_ONCE_S
        assert store.get("/") is not None


def test_connect_waits_for_a_server_that_comes_later(tmp_path: Path) -> None:
    with zookeeper(tmp_path) as ensemble, ExitStack() as stack:
        ensemble.servers[0].kill()
        store = ZooKeeperStore(ensemble.addresses, secret=None, session_timeout_s=SESSION_S)
        stack.callback(store.close)
        with pytest.raises(Unavailable):
            store.connect(0.2)
        ensemble.servers[0].start()
        store.connect(WITHIN_S)
        assert store.get("/") is not None


def test_a_server_restart_is_survived_with_the_session(tmp_path: Path) -> None:
    with zookeeper(tmp_path) as ensemble, ExitStack() as stack:
        store = open_store(stack, ensemble.addresses)
        store.commit(Create("/kept", b"x"), Create("/alive", ephemeral=True))
        first = store.session.id
        ensemble.servers[0].kill()
        waiting_for(store, SessionState.SUSPENDED)
        ensemble.servers[0].start()
        waiting_for(store, SessionState.CONNECTED)
        assert store.session.id == first
        assert data(store.get("/kept")) == b"x"
        assert store.get("/alive") is not None
        store.commit(Put("/kept", b"y"))


def test_a_server_that_hangs_is_given_up(tmp_path: Path) -> None:
    with zookeeper(tmp_path) as ensemble, ExitStack() as stack:
        store = open_store(stack, ensemble.addresses)
        store.commit(Create("/a"))
        ensemble.servers[0].pause()
        start = time.monotonic()
        with pytest.raises(Unavailable):
            store.commit(Put("/a", b"x"))
        assert time.monotonic() - start < SESSION_S
        assert store.last_contact() <= start
        waiting_for(store, SessionState.SUSPENDED)
        ensemble.servers[0].resume()
        waiting_for(store, SessionState.CONNECTED)
        store.commit(Put("/a", b"y"))
        assert data(store.get("/a")) == b"y"


def test_a_server_that_hangs_is_given_up_however_much_is_sent_to_it(tmp_path: Path) -> None:
    """Requests stand in for pings, so while they are sent no ping is missed."""
    with zookeeper(tmp_path) as ensemble, ExitStack() as stack:
        store = open_store(stack, ensemble.addresses)
        store.get("/")
        done = threading.Event()

        def ask(after: float) -> None:
            done.wait(after)
            while not done.is_set():
                with pytest.raises(Unavailable):
                    store.get("/")

        workers = [threading.Thread(target=ask, args=(number * 0.25,)) for number in range(8)]
        ensemble.servers[0].pause()
        for worker in workers:
            worker.start()
        try:
            eventually(lambda: store.session.state is SessionState.SUSPENDED, within=SESSION_S)
        finally:
            done.set()
            ensemble.servers[0].resume()
            for worker in workers:
                worker.join(WITHIN_S)


def test_pings_alone_keep_the_contact_fresh(single: Ensemble) -> None:
    with ExitStack() as stack:
        store = open_store(stack, single.addresses)
        store.get("/")
        before = store.last_contact()
        eventually(lambda: store.last_contact() > before, within=SESSION_S)
        assert connected(store)


@pytest.mark.parametrize("victim", ["follower", "leader"])
def test_commits_go_on_when_one_of_three_servers_dies(three: Ensemble, victim: str) -> None:
    three.heal()
    dying = eventually(lambda: three.in_mode(victim), within=WITHIN_S)[0]
    root = f"/test{next(_roots)}"
    # Its clients name it first, so that they are connected to it when it dies.
    others = [address for address in three.addresses if address != dying.address]
    with ExitStack() as stack:
        store = open_store(stack, [dying.address, *others])
        bystander = open_store(stack, others)
        first = store.session.id
        store.commit(Create(root, b"0"), Create(f"{root}/alive", ephemeral=True))
        dying.kill()

        def committed(through: ZooKeeperStore, content: bytes) -> bool:
            try:
                through.commit(Put(root, content))
            except Unavailable:
                return False
            return True

        eventually(lambda: committed(store, b"1"), within=WITHIN_S)
        eventually(lambda: committed(bystander, b"2"), within=WITHIN_S)
        assert store.session.id == first
        assert bystander.get(f"{root}/alive") is not None
        assert data(bystander.get(root)) == b"2"
    three.heal()


def test_five_servers_survive_the_loss_of_two(tmp_path: Path) -> None:
    with zookeeper(tmp_path, servers=5) as ensemble, ExitStack() as stack:
        store = open_store(stack, ensemble.addresses)
        store.commit(Create("/five", b"0"))
        for dying in ensemble.servers[:2]:
            dying.kill()

        def committed() -> bool:
            try:
                store.commit(Put("/five", b"1"))
            except Unavailable:
                return False
            return True

        eventually(committed, within=WITHIN_S)
        assert data(store.get("/five")) == b"1"


def test_one_of_three_servers_alone_serves_nobody(three: Ensemble) -> None:
    three.heal()
    last, *dying = three.servers
    with ExitStack() as stack:
        store = open_store(stack, [last.address])
        root = f"/test{next(_roots)}"
        store.commit(Create(root))
        for server in dying:
            server.kill()
        waiting_for(store, SessionState.SUSPENDED)
        with pytest.raises(Unavailable):
            store.commit(Put(root, b"x"))
        three.heal()
        eventually(lambda: connected(store), within=WITHIN_S)
        store.commit(Put(root, b"y"))


def test_threads_that_race_lose_no_update(single: Ensemble) -> None:
    threads, rounds = 8, 20
    with ExitStack() as stack:
        stores = [open_store(stack, single.addresses) for _ in range(threads // 2)]
        root = f"/test{next(_roots)}"
        stores[0].commit(Create(root, b"0"))

        def count(store: ZooKeeperStore) -> None:
            done = 0
            while done < rounds:
                seen = store.get(root)
                assert seen is not None
                try:
                    store.commit(Put(root, b"%d" % (int(seen.data) + 1), version=seen.version))
                except Conflict:
                    continue
                done += 1

        # Two threads on each store: its connection is shared.
        workers = [threading.Thread(target=count, args=(store,)) for store in stores * 2]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(WITHIN_S * 3)
        assert data(stores[0].get(root)) == b"%d" % (threads * rounds)


def test_on_a_wire_that_breaks_all_the_time_no_call_hangs_and_no_acknowledged_write_is_lost(
    single: Ensemble,
) -> None:
    with ExitStack() as stack:
        link = Link(single.servers[0])
        stack.callback(link.close)
        store = open_store(stack, [link.address])
        root = f"/test{next(_roots)}"
        store.commit(Create(root))
        done = threading.Event()
        acknowledged: list[str] = []
        slowest: list[float] = []

        def write(number: int) -> None:
            for count in itertools.count():
                if done.is_set():
                    return
                path, start = f"{root}/{number}-{count}", time.monotonic()
                try:
                    store.commit(Create(path))
                    acknowledged.append(path)
                    store.get_many([path] * 300)
                except Unavailable:
                    done.wait(0.01)
                slowest.append(time.monotonic() - start)

        workers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for worker in workers:
            worker.start()
        for _ in range(15):
            before = len(acknowledged)
            eventually(lambda before=before: len(acknowledged) > before, within=WITHIN_S)  # type: ignore[misc]
            link.cut()
            waiting_for(store, SessionState.SUSPENDED)
            link.heal()
        done.set()
        for worker in workers:
            worker.join(WITHIN_S)
        assert not any(worker.is_alive() for worker in workers)
        assert max(slowest) < SESSION_S
        waiting_for(store, SessionState.CONNECTED)
        assert None not in store.get_many(acknowledged)
