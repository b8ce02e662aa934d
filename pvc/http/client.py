"""The client's way to the API: HTTP over a unix socket, TCP or TLS; one connection, kept."""

from __future__ import annotations

import http.client
import json
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from pvc.commands.registry import Operation, find
from pvc.errors import Invalid, NotPermitted, PVCError, Unavailable, from_code

PREFIX = "/api/v1"
PORT = 7370
CONNECT_S = 10.0
DROPPED = (
    http.client.RemoteDisconnected,
    BrokenPipeError,
    ConnectionResetError,
    http.client.CannotSendRequest,
)


@dataclass(slots=True)
class HttpTransport:
    """A Transport. The key is sent to this address and nowhere else; redirects are not followed."""

    address: str
    """http://host:port, https://host:port, or the path of a unix socket."""
    key: str = field(default="", repr=False)
    ca: str = ""
    """Certificates to trust, as text (PEM); empty: the system's."""
    timeout_s: float = 60.0
    lookup: Callable[[str], Operation] = find
    stale: bool = False
    """The last answer came from a server that has lost ZooKeeper: it may be old."""
    _connection: http.client.HTTPConnection | None = None

    def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        *,
        plan: bool = False,
        after: str = "",
        within_s: float = 0.0,
    ) -> Any:
        """See Transport. One request."""
        found = self.lookup(name)
        extra = [("plan", "true")] if plan else []
        if after and found.is_read:
            extra += [("after", after), ("within", f"{within_s:g}")]
        target, body = _request(found, arguments, extra)
        answer, content = self._exchange(found, target, body, self.timeout_s + within_s)
        self.stale = answer.getheader("PVC-Stale") == "true"
        return self._result(answer, content)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _exchange(
        self, found: Operation, target: str, body: bytes | None, timeout_s: float
    ) -> tuple[http.client.HTTPResponse, bytes]:
        kind = "application/octet-stream" if found.raw is not None else "application/json"
        headers = {"Content-Type": kind} if body is not None else {}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        while True:
            kept = self._connection is not None
            connection = self._connect(timeout_s)
            try:
                connection.request(found.method, target, body, headers)
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.close()
                # The server drops idle connections; only what changes nothing may be sent twice.
                if kept and found.is_read and isinstance(error, DROPPED):
                    continue
                raise self._unavailable(error, changes=not found.is_read) from error
            _debug("%s %s %s: %s", self.address, found.method, target, answer.status)
            if answer.will_close:
                self.close()
            return answer, content

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        connection = self._connection
        if connection is None:
            connection = _connection(self.address, self.ca, min(self.timeout_s, CONNECT_S))
            try:
                connection.connect()
            except PermissionError as error:
                raise NotPermitted(
                    f"you may not use {self.address}", hint=_way_out(self.address, error)
                ) from error
            except OSError as error:
                raise self._unavailable(error, changes=False) from error
            self._connection = connection
        if connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        return connection

    def _unavailable(self, error: Exception, *, changes: bool) -> Unavailable:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, TimeoutError):
            reason = "no answer in time"
        if changes:
            return Unavailable(
                f"lost the API at {self.address} ({reason}); the request may have been carried out",
                hint="look before you try again",
            )
        return Unavailable(
            f"cannot reach the API at {self.address} ({reason})", hint=_way_out(self.address, error)
        )

    def _result(self, answer: http.client.HTTPResponse, content: bytes) -> Any:
        if answer.status == 200 and answer.getheader("Content-Type") == "application/octet-stream":
            return content
        try:
            value = json.loads(content)
        except ValueError:
            raise Unavailable(
                f"{self.address} does not answer like a pvc API (status {answer.status})",
                hint="pvc connection list shows the address; is there a proxy in front?",
            ) from None
        if 200 <= answer.status < 300:
            return value
        if not isinstance(value, dict) or "error" not in value:
            raise PVCError(f"{self.address} answered with status {answer.status}")
        raise from_code(str(value["error"]), str(value.get("message", "")), str(value.get("hint", "")))


def _debug(message: str, *values: object) -> None:
    """Logging takes as long to import as a request: with --debug, and in daemons, it is there already."""
    if "logging" in sys.modules:
        import logging

        logging.getLogger(__name__).debug(message, *values)


def _request(
    found: Operation, arguments: Mapping[str, Any], extra: list[tuple[str, str]]
) -> tuple[str, bytes | None]:
    """Target and body. What the path does not name goes into the query (GET) or the body."""
    rest = {name: value for name, value in arguments.items() if value is not None}
    path = found.path
    for param in found.params:
        marker = f"{{{param.name}}}"
        if marker in path:
            value = str(rest.pop(param.name, ""))
            if value in ("", ".", "..") or "/" in value:
                raise Invalid(f"{param.name} cannot be {value!r}")
            path = path.replace(marker, quote(value, safe=""))
    query = list(extra)
    body: bytes | None = rest.pop(found.raw.name, b"") if found.raw is not None else None
    in_query = found.is_read or found.raw is not None
    if in_query:
        query += [(name, _text(one)) for name, value in rest.items() for one in _each(value)]
    target = PREFIX + path + (f"?{urlencode(query)}" if query else "")
    if in_query:
        return target, body
    return target, json.dumps(rest, default=list).encode()


def _each(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self.path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self.timeout)
        try:
            sock.connect(self.path)
        except OSError:
            sock.close()
            raise
        self.sock = sock


def _connection(address: str, ca: str, timeout_s: float) -> http.client.HTTPConnection:
    if address.startswith("/"):
        return _UnixConnection(address, timeout_s)
    parts = urlsplit(address)
    host, port = parts.hostname, parts.port or PORT
    if host is None or parts.scheme not in ("http", "https"):
        raise Invalid(
            f"{address} is no address of an API", hint="http://HOST:7370, https://HOST:7370 or a socket"
        )
    if parts.scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=timeout_s)
    return _tls(host, port, ca, timeout_s)


def _tls(host: str, port: int, ca: str, timeout_s: float) -> http.client.HTTPConnection:
    import ssl

    try:
        context = ssl.create_default_context(cadata=ca or None)
    except OSError as error:
        raise Invalid(f"the certificates to trust cannot be used: {error}") from None
    return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)


def _way_out(address: str, error: Exception) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "name the certificate to trust: pvc connection add … --ca FILE"
    if "WRONG_VERSION_NUMBER" in str(error):
        return "this port speaks plain HTTP: pvc connection add … -S"
    if isinstance(error, TimeoutError) and address.startswith("https:"):
        return "is the host up? if its API is without TLS: pvc connection add … -S"
    if isinstance(error, PermissionError):
        return "run as root, or as a member of the group that owns the socket"
    if address.startswith("/"):
        return "systemctl status pvc-api; --direct goes to ZooKeeper without it"
    return "pvc connection list shows the address; on that node: systemctl status pvc-api"
