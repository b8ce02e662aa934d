"""An application on a unix socket and on TCP at once. The only importer of waitress.

waitress runs each request on a thread of a small pool. A request that waits for a change must not keep one,
so its connection leaves the pool for the waiting room (wait.py) in the middle of its request, and comes back
to have the request run again. Private to waitress, and held by tests against its pinned version: that a
channel keeps its request until `service` returns, and that this passes on an exception that is no Exception.
"""

from __future__ import annotations

import logging
import pwd
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer, UnixWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask

from pvc.http.app import WSGI, error_body
from pvc.http.arguments import LARGEST_BODY
from pvc.http.auth import PEER
from pvc.http.wait import TICKET, TURN, Ticket, Turn, WaitingRoom

log = logging.getLogger(__name__)

THREADS = 12
RECEIVE_BYTES = 256 * 1024
"""Read from a client at once: pieces of disks are large."""
TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """By default those of the API, whose clients may wait for long."""

    threads: int = THREADS
    connections: int = 4096
    connections_each: int | None = None
    """Of all clients that `group_of` puts together; those beyond are closed unheard. None: no matter."""
    group_of: Callable[[str], str] = lambda address: address
    lifetime_s: float | None = None
    """A connection is closed then, whatever it does. None: it may live."""
    header: int = 64 * 1024
    body: int = LARGEST_BODY
    answers_half_closed: bool = False
    """A client that closes its side when it has asked gets its answer. One that has gone is not noticed then
    while its request runs or waits."""
    trusted_proxy: str | None = "127.0.0.1"
    """The packaged nginx; its clients' addresses are for the limit of wrong tokens and the log."""


class Parked(BaseException):
    """Leaves a request unanswered, through waitress, which handles Exceptions itself."""

    def __init__(self, ticket: Ticket) -> None:
        super().__init__()
        self.ticket = ticket


class _Error(ErrorTask):
    """What waitress refuses before the application sees it, in JSON too."""

    def execute(self) -> None:
        error = self.request.error
        body = error_body("invalid" if error.code < 500 else "bug", f"{error.reason}: {error.body}".lower())
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Task(WSGITask):
    def get_environment(self) -> dict[str, Any]:
        environ = super().get_environment()
        channel = self.channel
        assert isinstance(channel, Channel)
        environ[TURN] = channel.turn()
        if channel.peer:
            environ[PEER] = channel.peer
        return environ


class Channel(HTTPChannel):
    """A connection; may wait in the room in the middle of a request."""

    task_class = _Task
    error_task_class = _Error

    def __init__(self, server: Any, sock: socket.socket, addr: Any, adj: Any, map: Any = None) -> None:
        self.deadline: float | None = None
        self.began = time.monotonic()
        self.room: WaitingRoom[Channel] = server.room
        self.peer = _peer(sock)
        super().__init__(server, sock, addr, adj, map=map)

    def turn(self) -> Turn:
        has_time = self.deadline is None or time.monotonic() < self.deadline
        return Turn(has_time and not self.room.is_full, self.room.changes)

    def service(self) -> None:
        try:
            super().service()
        except Parked as parked:
            self.room.enter(self, parked.ticket)
        else:
            self.deadline = None

    def handle_close(self) -> None:
        super().handle_close()
        self.room.leave(self)


def _peer(sock: socket.socket) -> str:
    """The user at the other end of a unix socket; empty for any other."""
    if sock.family != socket.AF_UNIX:
        return ""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid = struct.unpack("3i", credentials)[1]
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


class _TcpServer(TcpWSGIServer):
    channel_class = Channel
    room: WaitingRoom[Channel]
    limits: Limits

    def accept(self) -> tuple[socket.socket, Any] | None:
        found = super().accept()
        if found is None or self.limits.connections_each is None:
            return found
        group = self.limits.group_of(found[1][0])
        others = [one for one in self.active_channels.values() if self.limits.group_of(one.addr[0]) == group]
        if len(others) < self.limits.connections_each:
            return found
        log.warning("too many connections of %s", group)
        found[0].close()
        return None


class _UnixServer(UnixWSGIServer):
    channel_class = Channel
    room: WaitingRoom[Channel]
    limits: Limits


def _parking(app: WSGI) -> WSGI:
    def parking(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        answer = app(environ, start_response)
        ticket = environ.get(TICKET)
        if ticket is not None:
            raise Parked(ticket)
        return answer

    return parking


@dataclass(slots=True)
class Server:
    """Serves `app` on sockets that listen already, until stop()."""

    app: WSGI
    sockets: Sequence[socket.socket]
    limits: Limits = field(default_factory=Limits)
    tick: Callable[[], None] = lambda: None
    """Called by the loop about every second."""
    room: WaitingRoom[Channel] = field(init=False)
    _map: dict[int, Any] = field(default_factory=dict)
    _servers: list[Any] = field(default_factory=list)
    _dispatcher: ThreadedTaskDispatcher = field(default_factory=ThreadedTaskDispatcher)
    _stopping: bool = False
    _closing: Any = field(default_factory=threading.RLock)
    """Held while triggers are pulled or closed. A signal handler may meet it in its own thread."""

    def __post_init__(self) -> None:
        # Eighty clients that wake together are normal here, not worth waitress' warning about its queue.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)
        self.room = WaitingRoom(self._dispatcher.add_task)
        settings = Adjustments(
            threads=self.limits.threads,
            ident="pvc",
            max_request_body_size=self.limits.body + 1,  # from which on it refuses
            max_request_header_size=self.limits.header,
            connection_limit=self.limits.connections,
            channel_timeout=300,
            recv_bytes=RECEIVE_BYTES,
            asyncore_use_poll=True,
            # Read on while a request runs or waits: it is how one learns that the client has gone.
            channel_request_lookahead=int(not self.limits.answers_half_closed),
            log_socket_errors=False,
            **_proxied(self.limits.trusted_proxy),
        )
        for sock in self.sockets:
            server = (_UnixServer if sock.family == socket.AF_UNIX else _TcpServer)(
                _parking(self.app),
                self._map,
                _sock=sock,
                dispatcher=self._dispatcher,
                adj=settings,
                sockinfo=(sock.family, sock.type, sock.proto, sock.getsockname()),
                bind_socket=False,
            )
            # Connections are accepted by run(), not before.
            server.room, server.limits = self.room, self.limits
            self._servers.append(server)
        self._dispatcher.set_thread_count(self.limits.threads)

    def run(self) -> None:
        """The loop, until stop(): then every waiting client gets an answer, and what runs is finished."""
        waiting = threading.Thread(target=self.room.run, name="waiting room", daemon=True)
        waiting.start()
        ticked = 0.0
        while not self._stopping:
            if time.monotonic() >= ticked + TICK_S:
                ticked = time.monotonic()
                self.tick()
                self._close_old()
            wasyncore.loop(timeout=TICK_S, use_poll=True, map=self._map, count=1)
        self.room.close()
        waiting.join()
        self._drain()
        self._dispatcher.shutdown()
        with self._closing:
            self._servers.clear()
            wasyncore.close_all(self._map)

    def _close_old(self) -> None:
        if self.limits.lifetime_s is None:
            return
        now = time.monotonic()
        for each in list(self._map.values()):
            if isinstance(each, Channel) and now - each.began > self.limits.lifetime_s:
                each.handle_close()

    def stop(self) -> None:
        """From any thread, or a signal handler."""
        with self._closing:
            self._stopping = True
            for server in self._servers:
                server.pull_trigger()

    def _drain(self, within_s: float = 5.0) -> None:
        """Go on sending until no request is left."""
        end = time.monotonic() + within_s
        while time.monotonic() < end and any(_is_busy(each) for each in list(self._map.values())):
            wasyncore.loop(timeout=0.05, use_poll=True, map=self._map, count=1)


def _proxied(by: str | None) -> dict[str, object]:
    """Without a proxy, what says that there is one reaches the application, which may refuse it."""
    if by is None:
        return {"clear_untrusted_proxy_headers": False}
    return {"trusted_proxy": by, "trusted_proxy_headers": "x-forwarded-for"}


def _is_busy(each: Any) -> bool:
    return isinstance(each, Channel) and bool(
        getattr(each, "requests", ()) or getattr(each, "total_outbufs_len", 0)
    )
