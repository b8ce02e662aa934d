"""Serves what only a node itself has: console text, its daemon's log, whether its ZooKeeper server serves,
what its filters count.

HTTPS on the cluster network; a caller must show a certificate of the cluster's own authority.
"""

from __future__ import annotations

import json
import logging
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import parse_qs, urlsplit

from pvc.cluster.clients import Direction
from pvc.cluster.filters import chain_name
from pvc.config import Config
from pvc.errors import Bug, Failed, Invalid, PVCError, Unavailable
from pvc.node.drivers.nft import NFT
from pvc.proc import Completed, run

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 10.0
POLL_S = 0.1
JOURNAL_POLL_S = 1.0
"""Reading the journal is a process each time."""
MOST_BYTES = 256 * 1024
"""Of one answer; a follower comes back for the rest."""
MOST_PIECE_BYTES = 4 * 1024 * 1024
"""Of a disk that comes or goes: as much as the API takes at once."""
TRANSFER = r"/transfer/([0-9a-f]{8})/([a-z]{1,16})"
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"

Answer = bytes | dict[str, object]


def read_console(path: Path, *, lines: int, cursor: int | None) -> tuple[str, int]:
    """Text and the cursor after it: the last lines, or what came since a cursor.

    A shorter file was begun anew.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if cursor is None:
                return _last_lines(file, size, lines), size
            file.seek(cursor if cursor <= size else 0)
            data = file.read(MOST_BYTES)
            return data.decode(errors="replace"), file.tell()
    except FileNotFoundError:
        return "", 0


def read_journal(
    *, lines: int, cursor: int | None, journalctl: Callable[..., Completed] = run
) -> tuple[str, int]:
    """The daemon's log and the cursor after it, the time of its last entry in microseconds."""
    which = ["-n", str(lines)] if cursor is None else ["--since", f"@{cursor // 1_000_000}"]
    form = ["-o", "json", "--output-fields=MESSAGE", "--no-pager", "-q"]
    entries = [
        json.loads(line)
        for line in journalctl(["journalctl", "-u", "pvc-node", *which, *form]).stdout.splitlines()
    ]
    last = cursor or 0
    text = []
    for entry in entries:
        at = int(entry["__REALTIME_TIMESTAMP"])
        if cursor is None or at > cursor:
            text.append(_journal_line(at, entry.get("MESSAGE")))
            last = max(last, at)
    return "".join(text), last


def _journal_line(at: int, message: object) -> str:
    """The journal gives a message that is no UTF-8 as a list of bytes."""
    if isinstance(message, list):
        message = bytes(message).decode(errors="replace")
    when = datetime.fromtimestamp(at // 1_000_000, UTC).isoformat()
    return f"{when} {message or ''}\n"


def _last_lines(file: BinaryIO, size: int, lines: int) -> str:
    """No further than the cursor that goes with it, whatever is written meanwhile."""
    begin = max(0, size - MOST_BYTES)
    file.seek(begin)
    text = file.read(size - begin).decode(errors="replace")
    return "".join(text.splitlines(keepends=True)[-lines:]) if lines else ""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 30
    wbufsize = -1
    """An answer is sent as one: of two parts, the second would wait 40 ms until the first is acknowledged."""

    def do_GET(self) -> None:
        self._tell(self._answer)

    def do_PUT(self) -> None:
        self._tell(self._take)

    def _tell(self, answer: Callable[[], Answer]) -> None:
        try:
            told, status = answer(), 200
        except PVCError as error:
            told, status = _told(error), error.http_status
        except Exception:  # the boundary: whoever asked is told, and this goes on
            log.exception("%s failed: a bug in pvc", self.path)
            bug = Bug("the node made a mistake", hint="pvc node log")
            told, status = _told(bug), bug.http_status
        body = told if isinstance(told, bytes) else json.dumps(told).encode()
        kind = "application/octet-stream" if isinstance(told, bytes) else "application/json"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _asked(self) -> tuple[str, dict[str, str]]:
        url = urlsplit(self.path)
        return url.path, {key: values[-1] for key, values in parse_qs(url.query).items()}

    def _take(self) -> Answer:
        """A piece that is brought; all of it is read, so that the connection stays good."""
        path, query = self._asked()
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,8}", length) or int(length) > MOST_PIECE_BYTES:
            self.close_connection = True
            raise Invalid(f"a piece of {length or 'unknown'} bytes is too large")
        piece = self.rfile.read(int(length))
        if len(piece) < int(length):
            raise Invalid("the piece is not whole")
        if found := re.fullmatch(TRANSFER, path):
            return self.server.transfer(found[1], found[2], query, piece)
        raise Invalid(f"no such path {path}")

    def _answer(self) -> Answer:
        path, query = self._asked()
        lines = _number(query, "lines", 100)
        if found := re.fullmatch(rf"/console/({UUID})", path):
            return self._console(found[1], lines, query)
        if path == "/journal":
            return self._journal(lines, query)
        if path == "/quorum":
            return {"without_quorum_s": self.server.without_quorum_s()}
        if found := re.fullmatch(r"/storage/([^/]+)(?:/([^/]+))?", path):
            how = {word: word in query for word in ("brief", "whole")}
            return self.server.storage(found[1], found[2] or "", **how)
        if found := re.fullmatch(r"/ceph(?:/osd/(\d{1,6}))?", path):
            return self.server.ceph(None if found[1] is None else int(found[1]))
        if found := re.fullmatch(TRANSFER, path):
            return self.server.transfer(found[1], found[2], query, None)
        if found := re.fullmatch(r"/filters/(\d{1,8})", path):
            return {"rules": _filters(int(found[1]))}
        raise Invalid(f"no such path {path}")

    def _console(self, uuid: str, lines: int, query: dict[str, str]) -> dict[str, object]:
        path = Path(self.server.directory, f"{uuid}.log")
        cursor = _number(query, "cursor", 0) if "cursor" in query else None
        until = time.monotonic() + min(_number(query, "wait", 0), LONGEST_WAIT_S)
        while True:
            text, after = read_console(path, lines=lines, cursor=cursor)
            if text or cursor is None or time.monotonic() >= until:
                return {"text": text, "cursor": after}
            # Growth of a file wakes nobody: look again shortly, or end with the server.
            if self.server.ending.wait(POLL_S):
                return {"text": "", "cursor": after}

    def _journal(self, lines: int, query: dict[str, str]) -> dict[str, object]:
        cursor = _number(query, "cursor", 0) if "cursor" in query else None
        text, after = read_journal(lines=lines, cursor=cursor)
        if not text and cursor is not None and query.get("wait", "0") != "0":
            self.server.ending.wait(JOURNAL_POLL_S)
            text, after = read_journal(lines=lines, cursor=cursor)
        return {"text": text, "cursor": after}

    def log_message(self, format: str, *arguments: object) -> None:
        log.debug(format, *arguments)


def _filters(vni: int) -> list[dict[str, object]] | None:
    """The rules for a network as this kernel has them, in its order; None: it filters nothing for us."""
    nft, rules = NFT(), []
    for direction in Direction:
        counts = nft.counts(chain_name(direction, vni))
        if counts is None:
            return None
        rules += [
            {"direction": direction, "rule": comment, "packets": packets, "bytes": size}
            for (_, comment), (packets, size) in counts.items()
        ]
    return rules


def _told(error: PVCError) -> dict[str, object]:
    return {"error": error.code, "message": error.message, "hint": error.hint}


def _number(query: dict[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not re.fullmatch(r"\d{1,15}", text):
        raise Invalid(f"{name} must be a whole number, not {text!r}")
    return int(text)


Storage = Callable[..., dict[str, object]]
"""Tells of a pool and what is in it, or of one volume."""


class Transfer(Protocol):
    """Takes or gives a piece of what a task takes in or hands out."""

    def __call__(self, task: str, what: str, query: Mapping[str, str], piece: bytes | None) -> Answer: ...


def _no_transfer(task: str, what: str, query: Mapping[str, str], piece: bytes | None) -> Answer:
    raise Unavailable("this node has only just begun")


Ceph = Callable[[int | None], dict[str, object]]
"""Tells how Ceph is, or an OSD of it."""


def _not_yet(*_: object, **__: bool) -> dict[str, object]:
    raise Unavailable("this node has only just begun")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self, address: tuple[str, int], directory: str, without_quorum_s: Callable[[], float]
    ) -> None:
        super().__init__(address, _Handler)
        self.directory = directory
        self.without_quorum_s = without_quorum_s
        self.storage: Storage = _not_yet
        self.ceph: Ceph = _not_yet
        self.transfer: Transfer = _no_transfer
        self.ending = threading.Event()
        self.context: ssl.SSLContext | None = None

    def finish_request(self, request: object, client_address: object) -> None:
        """The handshake happens on the connection's own thread: a silent caller holds up nobody."""
        if self.context is not None:
            request.settimeout(10)  # type: ignore[attr-defined]
            request = self.context.wrap_socket(request, server_side=True)  # type: ignore[arg-type]
        super().finish_request(request, client_address)  # type: ignore[arg-type]

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("request of %s ended early", client_address, exc_info=True)  # noqa: LOG014 - called in a handler


class PeerServer:
    """The server and its thread. `reload` takes a renewed certificate without a restart."""

    def __init__(self, config: Config, without_quorum_s: Callable[[], float] = lambda: 0.0) -> None:
        self.config = config
        self.without_quorum_s = without_quorum_s
        self._server: _Server | None = None

    def start(self) -> None:
        """Done already when it runs; then its certificate may be another one now."""
        if self._server is not None:
            self.reload()
            return
        address = (self.config.node.address, self.config.daemon.console_port)
        try:
            self._server = _Server(address, self.config.paths.console, self.without_quorum_s)
        except OSError as error:
            raise Failed(f"cannot listen on {address[0]}:{address[1]}: {error.strerror}") from error
        self.reload()
        threading.Thread(target=self._server.serve_forever, name="peers", daemon=True).start()

    def reload(self) -> None:
        if self._server is not None:
            self._server.context = server_context(self.config.paths.tls)

    def tell_of_storage(self, storage: Storage) -> None:
        if self._server is not None:
            self._server.storage = storage

    def tell_of_ceph(self, ceph: Ceph) -> None:
        if self._server is not None:
            self._server.ceph = ceph

    def carry_for(self, transfer: Transfer) -> None:
        if self._server is not None:
            self._server.transfer = transfer

    def close(self) -> None:
        if self._server is not None:
            self._server.ending.set()
            self._server.shutdown()
            self._server.server_close()


def server_context(directory: str) -> ssl.SSLContext:
    """Only callers with a certificate of the cluster's authority get through the handshake."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=f"{directory}/ca.pem")
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(f"{directory}/cert.pem", f"{directory}/key.pem")
    return context
