"""The store on ZooKeeper: the only importer of kazoo.

kazoo keeps the session; this module adds what a cluster needs of it: calls that fail at once instead of
queueing while no server answers, an end to every wait, thousands of reads in one round, and the time of the
last proven contact. Private methods of kazoo are overridden for that: `_call` and `_session_callback` of the
client, `_connect`, `_read*` and `_send*` of its connection. Its version is pinned, and the contract suite
runs against real servers.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from kazoo import exceptions as zk
from kazoo.client import KazooClient, TransactionRequest
from kazoo.handlers.threading import KazooTimeoutError, SequentialThreadingHandler
from kazoo.protocol.connection import CLOSE_RESPONSE, PING_XID, ConnectionHandler
from kazoo.protocol.states import KazooState
from kazoo.retry import KazooRetry
from kazoo.security import make_digest_acl

from pvc.cluster.store import Check, Create, Delete, Op, Put, Session, SessionState, Stored, Watch
from pvc.errors import Conflict, Failed, Invalid, NotFound, NotPermitted, PVCError, Unavailable

log = logging.getLogger(__name__)
_kazoo = logging.getLogger("kazoo")
_kazoo.setLevel(max(_kazoo.level, logging.INFO))  # below that it logs each request, the password included

USER = "pvc"
WINDOW = 2000
"""Requests in flight: enough to hide the round trip, few enough not to swamp the server (it queues 1,000)."""
BATCH_BYTES = 64 * 1024
LARGEST_COMMIT = 1_000_000
"""The server hangs up on more (jute.maxbuffer), which would look like a lost connection."""
PER_OPERATION = 150
SAME_KEY = "compare key_file between the nodes"

_int = struct.Struct("!i")
_two_ints = struct.Struct("!ii")

_STATES = {
    KazooState.CONNECTED: SessionState.CONNECTED,
    KazooState.SUSPENDED: SessionState.SUSPENDED,
    KazooState.LOST: SessionState.LOST,
}


class ZooKeeperStore:
    """A Store. Servers are tried in the order given: a node names its own first. No secret: open to all."""

    def __init__(
        self,
        servers: Sequence[str],
        *,
        secret: str | None,
        session_timeout_s: float = 6.0,
        connect_timeout_s: float = 2.0,
    ) -> None:
        self.servers = tuple(servers)
        self._answer_within_s = session_timeout_s * 2 / 3
        self._session = Session(0, SessionState.LOST)
        self._listeners: list[Callable[[Session], None]] = []
        self._started = False
        password = None if secret is None else hashlib.sha256(f"{USER}:{secret}".encode()).hexdigest()
        self._client = _Client(
            hosts=",".join(servers),
            timeout=session_timeout_s,
            handler=_Handler(connect_timeout_s),
            randomize_hosts=False,
            auth_data=[] if password is None else [("digest", f"{USER}:{password}")],
            default_acl=None if password is None else [make_digest_acl(USER, password, all=True)],
            connection_retry=KazooRetry(max_tries=-1, delay=0.1, backoff=1.5, max_jitter=0.3, max_delay=1.0),
        )
        self._client.announce = self._changed

    # -- session

    def connect(self, within_s: float) -> None:
        """Wait for a session. On Unavailable it goes on trying: call again to wait longer, or close."""
        if not self._started:
            self._started = True
            self._client.start_async()
        if not self._client.live.wait(within_s):
            raise Unavailable(
                f"no ZooKeeper server answers within {within_s:g} s: {', '.join(self.servers)}",
                hint="see whether zookeeper runs there and a majority of the coordinators is up",
            )

    @property
    def session(self) -> Session:
        return self._session

    def on_session(self, listener: Callable[[Session], None]) -> None:
        """The listener runs on the connection's thread: it must not block and not call the store."""
        self._listeners.append(listener)

    def last_contact(self) -> float:
        """Monotonic time at which the newest request or ping that got its answer was sent; 0.0 before any.

        The server was there at that moment or later, so this never flatters. A follower cut off from its
        leader answers pings for up to syncLimit ticks more: a lease has to allow for that.
        """
        return self._client.contact

    def close(self) -> None:
        if self._started:
            self._client.stop()
            self._client.close()

    def _changed(self, state: str, session_id: int | None) -> None:
        self._session = Session(session_id or self._session.id, _STATES[state])
        for listener in self._listeners:
            listener(self._session)

    # -- reads

    def get(self, path: str) -> Stored | None:
        return self.get_many((path,))[0]

    def get_many(self, paths: Sequence[str]) -> tuple[Stored | None, ...]:
        return self.read(paths, ())[0]

    def children(self, path: str) -> tuple[str, ...]:
        return self.read((), (path,))[1][0]

    def read(
        self, paths: Sequence[str], listings: Sequence[str], watch: Watch | None = None
    ) -> tuple[tuple[Stored | None, ...], tuple[tuple[str, ...], ...]]:
        requests = [_Request(path, False, _fire(path, watch)) for path in paths]
        requests += [_Request(path, True, _fire(path, watch)) for path in listings]
        todo = requests
        while todo:
            # Reading what is absent leaves no watch: exists does. What just appeared is read again.
            absent = [each for each in self._ask(todo) if watch is not None and not each.found]
            todo = self._appeared(absent)
        documents = requests[: len(paths)]
        return tuple(each.stored for each in documents), tuple(each.names for each in requests[len(paths) :])

    def _ask(self, requests: list[_Request]) -> list[_Request]:
        calls = (partial(each.send, self._client) for each in requests)
        for request, answer in zip(requests, self._pipelined(calls), strict=True):
            request.take(answer)
        return requests

    def _appeared(self, absent: list[_Request]) -> list[_Request]:
        calls = (partial(self._client.exists_async, each.path, each.watch) for each in absent)
        found = self._pipelined(calls)
        return [each for each, stat in zip(absent, found, strict=True) if stat is not None]

    def _pipelined(self, calls: Iterable[Callable[[], Any]]) -> Iterator[Any]:
        """Answers in the order of the calls, None for what does not exist, at most WINDOW in flight."""
        flying: deque[Any] = deque()
        for call in calls:
            flying.append(call())
            if len(flying) >= WINDOW:
                yield from self._landed(flying, WINDOW // 2)
        yield from self._landed(flying, len(flying))

    def _landed(self, flying: deque[Any], count: int) -> Iterator[Any]:
        """The first of them. Answers come in order, so waiting for the last one wakes this thread once."""
        landed = 0
        while count and not flying[count - 1].wait(self._answer_within_s):
            before, landed = landed, sum(each.ready() for each in islice(flying, count))
            if landed == before:
                self._client.drop()
                raise Unavailable("the ZooKeeper server does not answer")
        for _ in range(count):
            yield self._answer(flying.popleft())

    def _answer(self, result: Any) -> Any:
        try:
            return result.get_nowait()
        except zk.NoNodeError:
            return None
        except zk.NoAuthError:
            raise NotPermitted("the store refuses this cluster key", hint=SAME_KEY) from None
        except zk.KazooException as error:
            raise Unavailable(f"no ZooKeeper server answers ({_name(error)})") from None

    # -- writes

    def commit(self, *ops: Op) -> None:
        size = sum(len(op.path) + len(getattr(op, "data", b"")) + PER_OPERATION for op in ops)
        if size > LARGEST_COMMIT:
            raise Invalid(f"a change of {size} bytes is too large", hint=f"at most {LARGEST_COMMIT} bytes")
        transaction = TransactionRequest(self._client)
        for op in ops:
            _add(transaction, op)
        unknown = "nobody knows whether the change was made"
        try:
            results = transaction.commit_async().get(timeout=self._answer_within_s)
        except _NotSent:
            raise Unavailable("no ZooKeeper server answers", hint="nothing was changed") from None
        except KazooTimeoutError:
            self._client.drop()
            raise Unavailable(f"the ZooKeeper server does not answer: {unknown}") from None
        except zk.KazooException as error:
            raise Unavailable(f"the ZooKeeper server went away ({_name(error)}): {unknown}") from None
        for op, result in zip(ops, results, strict=True):
            if isinstance(result, Exception) and not isinstance(result, _BYSTANDERS):
                raise _refusal(op, result)


_BYSTANDERS = (zk.RolledBackError, zk.RuntimeInconsistency)
"""What the other operations of a failed transaction answer."""


def _add(transaction: Any, op: Op) -> None:
    match op:
        case Create(path, data, ephemeral):
            transaction.create(path, data, ephemeral=ephemeral)
        case Put(path, data, version):
            transaction.set_data(path, data, version)
        case Delete(path, version):
            transaction.delete(path, version)
        case Check(path, version):
            transaction.check(path, version)


def _refusal(op: Op, error: Exception) -> PVCError:
    """Why the transaction was refused, in the words of the Store protocol."""
    match error:
        case zk.BadVersionError():
            return Conflict(f"{op.path} has changed meanwhile")
        case zk.NodeExistsError():
            return Conflict(f"{op.path} exists already")
        case zk.NotEmptyError():
            return Conflict(f"{op.path} still has documents below it")
        case zk.NoChildrenForEphemeralsError():
            return Conflict(f"{op.path} cannot be created below an ephemeral document")
        case zk.NoNodeError() if isinstance(op, Create):
            return NotFound(f"nothing to create {op.path} below", hint="run pvc cluster init first")
        case zk.NoNodeError():
            return NotFound(f"{op.path} does not exist")
        case zk.NoAuthError():
            return NotPermitted(f"the store refuses to change {op.path}", hint=SAME_KEY)
    return Failed(f"the store refused to change {op.path}: {_name(error)}")


def _name(error: Exception) -> str:
    return type(error).__name__


@dataclass(frozen=True, slots=True)
class _Fire:
    """A watch as kazoo wants it: equal ones are one in its sets. A lost connection names no path."""

    path: str
    watch: Watch

    def __call__(self, event: object) -> None:
        self.watch(self.path)


def _fire(path: str, watch: Watch | None) -> _Fire | None:
    return None if watch is None else _Fire(path, watch)


@dataclass(slots=True)
class _Request:
    """One document, or one listing of children, to be read."""

    path: str
    listing: bool
    watch: _Fire | None
    found: bool = False
    stored: Stored | None = None
    names: tuple[str, ...] = ()

    def send(self, client: _Client) -> Any:
        call = client.get_children_async if self.listing else client.get_async
        return call(self.path, self.watch)

    def take(self, answer: Any) -> None:
        self.found = answer is not None
        if answer is None:
            return
        if self.listing:
            self.names = tuple(sorted(answer))
        else:
            data, stat = answer
            self.stored = Stored(self.path, data, stat.version, stat.ephemeralOwner)


class _NotSent(zk.ConnectionLoss):
    """Refused here: no server has seen the request."""


class _Client(KazooClient):
    """A client whose calls fail at once unless it is connected."""

    def __init__(self, **arguments: Any) -> None:
        self.contact = 0.0
        self.announce: Callable[[str, int | None], None] = lambda state, session_id: None
        # Held over each change of state and over each request's way into the queue, so that no request slips
        # into the queue of a connection that has just gone, to be sent who knows when.
        self._gate = threading.Lock()
        super().__init__(**arguments)
        self._connection = _Connection(self, self._conn_retry.copy(), logger=self.logger)

    @property
    def live(self) -> threading.Event:
        event: threading.Event = self._live
        return event

    def drop(self) -> None:
        """Give up this connection, not the session: the server took too long."""
        self._connection.hang_up()

    def _safe_close(self) -> None:
        if not self._live.is_set():
            self._connection.hang_up()  # or it waits for a server that may never answer
        super()._safe_close()

    def _call(self, request: Any, async_object: Any) -> Any:
        with self._gate:
            if self._stopped.is_set() or not self._live.is_set():
                async_object.set_exception(_NotSent())
                return False
            async_object.sent = time.monotonic()
            return super()._call(request, async_object)

    def _session_callback(self, state: str) -> None:
        before, session_id = self.state, self._session_id
        with self._gate:
            super()._session_callback(state)
        if self.state != before:
            self.announce(self.state, session_id)


class _Connection(ConnectionHandler):
    """Writes all that waits and reads all that came at once; kazoo makes ten system calls per message."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._received = bytearray()
        self._ping_sent = 0.0

    def hang_up(self) -> None:
        sock = self._socket
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                log.debug("the connection was gone already")

    def _connect(self, host: str, hostip: str, port: int) -> Any:
        self._received.clear()
        return super()._connect(host, hostip, port)

    def _send_ping(self, connect_timeout: float) -> None:
        self._ping_sent = time.monotonic()
        super()._send_ping(connect_timeout)

    def _send_request(self, read_timeout: float, connect_timeout: float) -> None:
        self._read_sock.recv(1)
        queue, pending = self.client._queue, self.client._pending
        out = bytearray()
        while queue and len(out) < BATCH_BYTES:
            request, async_object = queue.popleft()
            self._xid = self._xid % 2147483647 + 1
            pending.append((request, async_object, self._xid))
            body = request.serialize()
            out += _int.pack(len(body) + _two_ints.size) + _two_ints.pack(self._xid, request.type) + body
        if queue:
            self._write_sock.send(b"\0")
        if out:
            self._write(out, connect_timeout)

    def _read_socket(self, read_timeout: float) -> Any:
        response = super()._read_socket(read_timeout)
        while self._received and response != CLOSE_RESPONSE:
            response = super()._read_socket(read_timeout)
        return response

    def _read_header(self, timeout: float) -> Any:
        answer = super()._read_header(timeout)
        xid = answer[0].xid
        if xid == PING_XID:
            self._confirm(self._ping_sent)
        elif xid > 0 and self.client._pending:
            self._confirm(getattr(self.client._pending[0][1], "sent", 0.0))
        return answer

    def _confirm(self, sent: float) -> None:
        self.client.contact = max(self.client.contact, sent)

    def _read(self, length: int, timeout: float) -> bytes:
        while len(self._received) < length:
            with self._socket_error_handling():
                if not self.handler.select([self._socket], [], [], timeout)[0]:
                    raise self.handler.timeout_exception("no answer")
                chunk = self._socket.recv(BATCH_BYTES)
            if not chunk:
                raise zk.ConnectionDropped("the server hung up")
            self._received += chunk
        data = bytes(self._received[:length])
        del self._received[:length]
        return data


class _Handler(SequentialThreadingHandler):
    """kazoo's threads, with a short patience for hosts that are down."""

    def __init__(self, connect_timeout_s: float) -> None:
        super().__init__()
        self._connect_timeout_s = connect_timeout_s

    def create_connection(self, *arguments: Any, **options: Any) -> Any:
        options["timeout"] = min(options["timeout"], self._connect_timeout_s)
        return super().create_connection(*arguments, **options)

    def create_socket_pair(self) -> tuple[_Wakeup, _Wakeup]:
        wakeup = _Wakeup()
        return wakeup, wakeup


@dataclass(slots=True)
class _Wakeup:
    """Wakes the connection's thread. Unlike kazoo's pipe it is never full, so it cannot block who sends."""

    descriptor: int = field(default_factory=lambda: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def fileno(self) -> int:
        return self.descriptor

    def send(self, data: bytes) -> None:
        os.eventfd_write(self.descriptor, len(data))

    def recv(self, size: int) -> None:
        os.eventfd_read(self.descriptor)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
