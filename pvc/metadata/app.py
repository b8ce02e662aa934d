"""The metadata service as a WSGI application: who asks, and what is at that path for him.

It takes little from a guest: a path, and a header where it is a token that is asked for. Nothing is passed on
to anybody else, and what comes through somebody else is refused: a proxy inside of a guest would tell its own
clients the guest's secrets.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from pvc.clock import Clock
from pvc.cluster.guests import ADDRESS, Guest, Guests, MacAt, Unknown
from pvc.errors import PVCError
from pvc.metadata import documents
from pvc.metadata.documents import USER_DATA

log = logging.getLogger(__name__)

TOKEN = ("latest", "api", "token")
TTL = "HTTP_X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS"
LONGEST_TTL_S = 21_600
PROXIED = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_VIA")
OWN_NAMES = ("", ADDRESS, f"{ADDRESS}:80")
REPEAT_S = 60.0
MOST_REMEMBERED = 4096

Environ = Mapping[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], object]


class Refused(Exception):
    def __init__(self, status: HTTPStatus, why: str, *, of: str = "", **headers: str) -> None:
        super().__init__(why)
        self.status = status
        self.of = of
        """The VM, if it is a known one and has just not what it asks for."""
        self.headers = headers


@dataclass(slots=True)
class App:
    guests: Callable[[], Guests]
    mac_at: MacAt
    user_data: Callable[[str], bytes | None]
    """Of the VM with that UUID. Raises Unavailable."""
    clock: Clock
    _logged: dict[tuple[str, str], float] = field(default_factory=dict)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        headers = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"}
        try:
            status, body = HTTPStatus.OK, self._answer(environ, headers)
        except Refused as refused:
            # What a guest we know does not have is nothing to worry about.
            self._log(environ, str(refused), logging.INFO if refused.of else logging.WARNING)
            status, body = refused.status, f"{refused.status.phrase}\n".encode()
            headers.update(refused.headers)
        except PVCError as error:
            self._log(environ, error.message)
            status, body = HTTPStatus.SERVICE_UNAVAILABLE, b"try again in a moment\n"
            headers["Retry-After"] = "1"
        except Exception:  # the boundary: no traceback leaves the log
            log.exception("a request failed: a bug in pvc")
            status, body = HTTPStatus.INTERNAL_SERVER_ERROR, b"pvc made a mistake\n"
        headers["Content-Length"] = str(len(body))
        start_response(f"{status.value} {status.phrase}", list(headers.items()))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _answer(self, environ: Environ, headers: dict[str, str]) -> bytes:
        if any(name in environ for name in PROXIED):
            raise Refused(HTTPStatus.FORBIDDEN, "it asks for somebody else")
        if environ.get("HTTP_HOST", "") not in OWN_NAMES:
            raise Refused(HTTPStatus.FORBIDDEN, "it asks for another host")
        try:
            guest = self.guests().identify(environ["REMOTE_ADDR"], self.mac_at)
        except Unknown as error:
            raise Refused(HTTPStatus.NOT_FOUND, str(error)) from None
        path = tuple(part for part in environ["PATH_INFO"].split("/") if part)
        method = environ["REQUEST_METHOD"]
        if path == TOKEN:
            return _token(method, environ, headers)
        if method not in ("GET", "HEAD"):
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{method} is not possible", Allow="GET, HEAD")
        return self._found(guest, path)

    def _found(self, guest: Guest, path: tuple[str, ...]) -> bytes:
        at: documents.Tree | str = documents.tree(guest)
        for part in path:
            at = at[part] if isinstance(at, dict) and part in at else _nothing(guest, path)
        if len(path) == 2 and path[1] == USER_DATA:
            return self._user_data(guest, path)
        return (documents.listing(at) if isinstance(at, dict) else at).encode()

    def _user_data(self, guest: Guest, path: tuple[str, ...]) -> bytes:
        data = self.user_data(guest.uuid)
        if data is None and path[0] != documents.NOCLOUD:
            _nothing(guest, path)
        log.info("%s gets its user data", guest.name)
        return data or b""

    def _log(self, environ: Environ, why: str, level: int = logging.WARNING) -> None:
        """Once a minute: a guest that asks in a loop must not fill the log."""
        key, now = (environ["REMOTE_ADDR"], why), self.clock.monotonic()
        if now - self._logged.get(key, -REPEAT_S) < REPEAT_S:
            return
        if len(self._logged) >= MOST_REMEMBERED:
            self._logged.clear()
        self._logged[key] = now
        log.log(level, "refused %s: %s", *key)


def _nothing(guest: Guest, path: tuple[str, ...]) -> str:
    why = f"{guest.name} has no {'/'.join(path)[:80]!r}"
    raise Refused(HTTPStatus.NOT_FOUND, why, of=guest.name)


def _token(method: str, environ: Environ, headers: dict[str, str]) -> bytes:
    """Of EC2's second version. Clients ask for one first, and for long where they get none.

    Who asks without is answered, too: a guest is known by its network, not by what it says.
    """
    if method != "PUT":
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{method} is not possible", Allow="PUT")
    seconds = environ.get(TTL, "")
    if not seconds.isascii() or not seconds.isdigit() or not 1 <= int(seconds[:9]) <= LONGEST_TTL_S:
        raise Refused(HTTPStatus.BAD_REQUEST, f"a token is for 1 to {LONGEST_TTL_S} seconds")
    headers["X-aws-ec2-metadata-token-ttl-seconds"] = seconds
    return secrets.token_urlsafe(32).encode()
