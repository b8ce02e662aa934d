"""`pvc api serve`: the store, its mirror in memory, the application and the server, put together."""

from __future__ import annotations

import contextlib
import functools
import grp
import logging
import os
import resource
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pvc import systemd
from pvc.clock import SystemClock
from pvc.cluster.mirror import Expand, Follow, Mirror
from pvc.cluster.store import Session, Store
from pvc.cluster.view import View, expand_whole_cluster, whole_cluster
from pvc.cluster.zookeeper import ZooKeeperStore
from pvc.commands.context import AskNode, Carry, FetchText
from pvc.config import Config
from pvc.errors import Failed, Invalid, Unavailable
from pvc.http.app import Site, make_app
from pvc.http.server import THREADS, Server
from pvc.peerclient import ask, carry, fetch

log = logging.getLogger(__name__)

FILES = 8192
"""File descriptors, when the system allows: each waiting client is one."""
GROUP = "pvc"
"""Its members may use the unix socket, which is as much as being administrator of the cluster."""
CONNECT_S = 4.0
RETRY_S = 1.0
LOOK_S = 5.0
"""The mirror is looked after at least this often; and half a watchdog period is what it may be late."""
LATE_S = 20.0
MOST_TEXTS = THREADS // 2
FORGET_S = 600.0


def serve(config: Config) -> None:
    """Until SIGTERM. Raises Failed or Invalid for an address that cannot be had."""
    _raise_file_limit()
    sockets = listen(config)
    of_nodes = (
        functools.partial(fetch, config),
        functools.partial(ask, config),
        functools.partial(carry, config),
    )
    texts = Texts(*of_nodes)
    store = ZooKeeperStore(
        config.servers(), secret=config.secret(), session_timeout_s=config.cluster.session_timeout_s
    )
    try:
        connect(store)
        keeper = Keeper(store)
        keeper.first()
        server = Server(
            make_app(keeper.site(texts)),
            sockets,
            tick=keeper.tick,
        )
        keeper.start(server)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        systemd.notify("READY=1", "STATUS=serving")
        log.info("serving on %s", ", ".join([config.api.socket, *config.api.listen]))
        server.run()
        systemd.notify("STOPPING=1")
        keeper.stop()
    finally:
        store.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(config.api.socket)


@dataclass(slots=True)
class Texts:
    """What is fetched from nodes, mostly texts: never by so many threads at once that others must wait."""

    fetch: FetchText
    node: AskNode
    piece: Carry
    busy: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(
        self,
        address: str,
        port: int,
        path: str,
        *,
        lines: int = 100,
        cursor: int | None = None,
        wait_s: int = 0,
    ) -> tuple[str, int]:
        with self._counted():
            wait_s = wait_s if self.busy <= MOST_TEXTS // 2 else 0
            return self.fetch(address, port, path, lines=lines, cursor=cursor, wait_s=wait_s)

    def ask(self, address: str, port: int, path: str) -> Any:
        with self._counted():
            return self.node(address, port, path)

    def carry(self, address: str, port: int, path: str, piece: bytes | None = None) -> bytes:
        with self._counted():
            return self.piece(address, port, path, piece)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            if self.busy >= MOST_TEXTS:
                raise Unavailable(
                    "this API server fetches too many texts at once", hint="try again in a moment"
                )
            self.busy += 1
        try:
            yield
        finally:
            with self._lock:
                self.busy -= 1


def connect(store: ZooKeeperStore) -> None:
    """However long it takes: this server may have been started before ZooKeeper."""
    while True:
        try:
            store.connect(CONNECT_S)
            return
        except Unavailable as error:
            log.warning("%s; trying on", error.message)
            systemd.notify(f"STATUS={error.message}", "WATCHDOG=1")


@dataclass(slots=True)
class Keeper:
    """Keeps the mirror up to date in a thread of its own, and tells the waiting room of each change."""

    store: Store
    roots: tuple[Follow, ...] = field(default_factory=whole_cluster)
    expand: Expand = expand_whole_cluster
    seen: Callable[[frozenset[str]], None] = lambda changed: None
    """Told of what has changed in the mirror, before anybody else is."""
    mirror: Mirror = field(init=False)
    view: View = field(init=False)
    _wake: threading.Event = field(default_factory=threading.Event)
    _stopping: bool = False
    _alive_at: float = 0.0
    _forgot_at: float = 0.0
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        self.mirror = Mirror(self.store, self.roots, self.expand, self._wake.set)
        self.view = View(self.mirror)
        self._alive_at = self._forgot_at = time.monotonic()

    def site(self, texts: Texts | None = None) -> Site:
        site = Site(self.store, self.mirror, self.mirror.refresh, SystemClock(), self.view, texts)
        if texts is not None:
            site.ask, site.carry = texts.ask, texts.carry
        return site

    def first(self) -> None:
        """Everything once, before anybody is served."""
        while True:
            self._wake.clear()
            try:
                self.seen(self.mirror.sync())
                return
            except Unavailable as error:
                log.warning("reading the cluster: %s; trying again", error.message)
                systemd.notify(f"STATUS={error.message}", "WATCHDOG=1")
                self._wake.wait(RETRY_S)

    def start(self, server: Server) -> None:
        def session_changed(session: Session) -> None:
            log.info("ZooKeeper session %x: %s", session.id, session.state)
            self._wake.set()

        self.store.on_session(session_changed)
        self._thread = threading.Thread(target=self._run, args=(server,), name="mirror", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(LOOK_S)

    def tick(self) -> None:
        """The watchdog is fed only while the mirror is looked after."""
        if time.monotonic() - self._alive_at < LATE_S:
            systemd.notify("WATCHDOG=1")

    def _run(self, server: Server) -> None:
        while not self._stopping:
            self._wake.wait(LOOK_S)
            self._wake.clear()
            self._alive_at = time.monotonic()
            try:
                if changed := self.mirror.sync():
                    self.seen(changed)
                    server.room.changed()
                self._forget()
            except Unavailable as error:
                log.warning("reading the cluster: %s; answers may be old", error.message)
                self._pause()
            except Exception:
                log.exception("reading the cluster failed")
                self._pause()

    def _pause(self) -> None:
        """Before the next try, which happens whether or not something wakes us."""
        self._wake.wait(RETRY_S)
        self._wake.set()

    def _forget(self) -> None:
        if time.monotonic() - self._forgot_at > FORGET_S:
            self._forgot_at = time.monotonic()
            self.view.forget_missing()


# Sockets

IP_FREEBIND, IPV6_FREEBIND = (socket.IPPROTO_IP, 15), (socket.IPPROTO_IPV6, 78)
"""Of linux/in.h and in6.h."""


def listen(config: Config) -> list[socket.socket]:
    """The unix socket and each address, bound. Raises Failed naming the one that is taken."""
    return [unix_socket(config.api.socket), *(tcp_socket(address) for address in config.api.listen)]


def tcp_socket(address: str, hint: str = "api.listen in /etc/pvc/pvc.toml") -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit():
        raise Invalid(f"api.listen: {address!r} is not an address", hint="like 127.0.0.1:7370 or [::1]:7370")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # A floating address is here only while this node is primary.
    sock.setsockopt(*(IPV6_FREEBIND if ":" in host else IP_FREEBIND), 1)
    try:
        sock.bind((host, int(port)))
    except OSError as error:
        sock.close()
        raise Failed(f"cannot listen on {address}: {error.strerror}", hint=hint) from None
    return sock


def unix_socket(path: str) -> socket.socket:
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    _remove_left_over(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(path)
    except OSError as error:
        sock.close()
        raise Failed(f"cannot make the socket {path}: {error.strerror}") from None
    finally:
        os.umask(before)
    with contextlib.suppress(KeyError, PermissionError):
        os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)
        os.chmod(path, 0o660)
    return sock


def _remove_left_over(path: str) -> None:
    """Of a server that was killed; not of one that runs."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise Failed(f"{path} is in the way: it is no socket", hint="remove it")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            os.unlink(path)
            return
    raise Failed(f"an API server is running already on {path}", hint="systemctl status pvc-api")


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
