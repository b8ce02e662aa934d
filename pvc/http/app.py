"""The API as a WSGI application: a route for each operation of the registry. The only importer of bottle."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bottle import Bottle, HTTPError, HTTPResponse, request, response

from pvc import __version__
from pvc.clock import Clock, SystemClock
from pvc.cluster.codec import to_json, version_of
from pvc.cluster.store import Reader, SessionState, Store
from pvc.cluster.view import View
from pvc.commands.context import AskNode, Caller, Carry, Context, FetchText, invoke
from pvc.commands.registry import TRUE, Operation, every_operation
from pvc.errors import Bug, Invalid, PVCError, Unavailable
from pvc.http import openapi
from pvc.http.arguments import BYTES, JSON, LARGEST_BODY, TooLarge, gather
from pvc.http.auth import Gate
from pvc.http.wait import DEFAULT_S, LONGEST_S, TICKET, TURN, Ticket, Turn

log = logging.getLogger(__name__)
audit = logging.getLogger("pvc.audit")

PREFIX = "/api/v1"
RESERVED = ("plan", "after", "within")
"""Query parameters of every operation (plan) and of every GET (after, within)."""

Environ = Mapping[str, Any]
WSGI = Callable[[dict[str, Any], Any], Iterable[bytes]]


@dataclass(slots=True)
class Site:
    """What the application serves from. `reader` is a mirror in the server, the store itself in tests."""

    store: Store
    reader: Reader
    refresh: Callable[[list[str]], None] = lambda paths: None
    clock: Clock = field(default_factory=SystemClock)
    view: View | None = None
    """Kept for all requests, so that a document is decoded once."""
    console: FetchText | None = None
    ask: AskNode | None = None
    carry: Carry | None = None

    def context(self, caller: Caller, planning: bool) -> Context:
        context = Context(
            self.store, self.reader, caller, self.refresh, planning, self.clock, known_view=self.view
        )
        if self.console is not None:
            context.console = self.console
        if self.ask is not None:
            context.ask = self.ask
        if self.carry is not None:
            context.carry = self.carry
        return context

    @property
    def is_stale(self) -> bool:
        return self.store.session.state is not SessionState.CONNECTED


def make_app(site: Site, operations: Iterable[Operation] | None = None) -> WSGI:
    """Raises TypeError for an operation whose parameters clash with those of every operation."""
    every = [one for one in (every_operation() if operations is None else operations) if not one.is_local]
    gate = Gate(site.reader, site.clock)
    app = Bottle()
    app.default_error_handler = _http_error
    app.route("/healthz", "GET", lambda: _health(site))
    app.route(f"{PREFIX}/openapi.json", "GET", _guarded(lambda: _openapi(gate, every)))
    for found in every:
        clash = {param.name for param in found.params} & set(RESERVED)
        if clash:
            raise TypeError(f"{found.name} has a parameter {clash.pop()}, which every operation has")
        path = PREFIX + found.path.replace("{", "<").replace("}", ">")
        app.route(path, found.method, _route(site, gate, found))
    return app


def _route(site: Site, gate: Gate, found: Operation) -> Callable[..., HTTPResponse]:
    return _guarded(
        lambda **path: _Run(site, found, request.environ, gate.admit(request.environ)).answer(path)
    )


def _guarded(handle: Callable[..., HTTPResponse]) -> Callable[..., HTTPResponse]:
    """Every exception becomes an answer in JSON; no traceback leaves the log."""

    def guarded(**path: str) -> HTTPResponse:
        try:
            return handle(**path)
        except PVCError as error:
            return _refusal(error)
        except Exception as error:  # noqa: BLE001 (the edge of the program)
            return _refusal(_bug(error))

    return guarded


def _bug(error: BaseException | None) -> Bug:
    number = secrets.token_hex(4)
    log.error("request %s: %s %s failed", number, request.method, request.path, exc_info=error)
    return Bug(
        f"pvc made a mistake (request {number})", hint=f"on the node: journalctl -u pvc-api -g {number}"
    )


@dataclass(slots=True)
class _Run:
    """One run of one request."""

    site: Site
    found: Operation
    environ: dict[str, Any]
    caller: Caller
    has_asked: bool = False
    """A node: no change of a document tells when its answer is another."""

    def answer(self, path: Mapping[str, str]) -> HTTPResponse:
        arguments = gather(
            self.found,
            path,
            self.environ.get("QUERY_STRING", ""),
            self.environ.get("CONTENT_TYPE", ""),
            self.body(),
        )
        planning = _flag("plan", arguments.pop("plan", "false"))
        after, within_s = self.waiting(arguments)
        if not self.found.is_read and not planning:
            return self.change(arguments)
        body = self.run(arguments, planning)
        if isinstance(body, bytes):
            return _response(200, body, BYTES)
        version = version_of(body)
        if after == version and self.waits(arguments, after, within_s):
            return _response(200, b"")
        return _response(200, _encoded(body), ETag=f'"{version}"', **self.freshness())

    def run(self, arguments: Mapping[str, Any], planning: bool) -> Any:
        context = self.site.context(self.caller, planning)
        context.ask = self.noting(context.ask)
        result = invoke(self.found, context, arguments)
        return result if isinstance(result, bytes) else to_json(result)

    def noting(self, ask: AskNode) -> AskNode:
        def noted(address: str, port: int, path: str) -> Any:
            self.has_asked = True
            return ask(address, port, path)

        return noted

    def change(self, arguments: Mapping[str, Any]) -> HTTPResponse:
        outcome = "failed"
        try:
            if self.site.is_stale:
                raise Unavailable(
                    "this API server has lost ZooKeeper, so nothing can be changed now",
                    hint="pvc cluster status; another API server may have a connection",
                )
            body = self.run(arguments, False)
            outcome = "done"
            begun = self.found.is_task and isinstance(body, dict) and body.get("goal")
            return _response(202 if begun else 200, _encoded(body))
        except PVCError as error:
            outcome = error.code
            raise
        finally:
            # Of what comes in pieces its beginning is told, and a piece that was refused.
            if self.found.raw is None or outcome != "done":
                self.tell(arguments, outcome)

    def tell(self, arguments: Mapping[str, Any], outcome: str) -> None:
        """Only what names the object: options and files may carry secrets."""
        named = {
            one.name: arguments.get(one.name)
            for one in self.found.params
            if one.positional and not one.arg.file
        }
        audit.info("%s: %s %s: %s", self.caller.name, self.found.name, json.dumps(_short(named)), outcome)

    def waiting(self, arguments: dict[str, Any]) -> tuple[str | None, float]:
        if not self.found.is_read:
            return None, 0.0
        after, within = arguments.pop("after", None), arguments.pop("within", None)
        if within is None:
            return after, DEFAULT_S
        try:
            seconds = float(within)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds <= LONGEST_S:
            raise Invalid(f"within must be a number of seconds from 0 to {LONGEST_S:g}, not {within!r}")
        return after, seconds

    def waits(self, arguments: Mapping[str, Any], after: str, within_s: float) -> bool:
        """Leave a ticket for the waiting room, if this server has one and this client has time left."""
        turn: Turn | None = self.environ.get(TURN)
        if turn is None or not turn.may_wait or not within_s or self.has_asked:
            return False

        def is_ready() -> bool:
            try:
                return version_of(self.run(arguments, False)) != after
            except Exception:  # noqa: BLE001 (whatever it is, the request itself is to meet and report it)
                return True

        key = json.dumps([self.found.name, arguments, after], sort_keys=True, default=str)
        self.environ[TICKET] = Ticket(key, is_ready, within_s, turn.changes)
        return True

    def freshness(self) -> dict[str, str]:
        return {"PVC-Stale": "true"} if self.site.is_stale else {}

    def body(self) -> bytes:
        try:
            length = int(self.environ.get("CONTENT_LENGTH") or 0)
        except ValueError:
            raise Invalid("Content-Length is not a number") from None
        if length > LARGEST_BODY:
            raise TooLarge(f"the body is larger than {LARGEST_BODY >> 20} MiB")
        return bytes(self.environ["wsgi.input"].read(length)) if length > 0 else b""


def _flag(name: str, value: Any) -> bool:
    if value in (False, "false", "0", "no", "off"):
        return False
    if value is True or (isinstance(value, str) and value in TRUE):
        return True
    raise Invalid(f"{name} must be true or false, not {value!r}")


def _short(named: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value)[:80] for name, value in named.items() if value is not None}


def _encoded(body: Any) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace")


def _response(status: int, body: bytes, kind: str = JSON, **headers: str) -> HTTPResponse:
    return HTTPResponse(
        body,
        status,
        {
            "Content-Type": kind,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "PVC-Version": __version__,
            **headers,
        },
    )


def error_body(code: str, message: str, hint: str = "") -> bytes:
    return _encoded({"error": code, "message": message, "hint": hint})


def _refusal(error: PVCError) -> HTTPResponse:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "60"}, 503: {"Retry-After": "2"}}
    body = error_body(error.code, error.message, error.hint)
    answer = _response(error.http_status, body)
    for name, value in headers.get(error.http_status, {}).items():
        answer.set_header(name, value)
    return answer


def _http_error(error: HTTPError) -> bytes:
    """What bottle itself refuses: no such path, no such method, or its own failure."""
    kept = error.get_header("Allow")
    if error.status_code == 404:
        answer = (
            404,
            "not-found",
            f"the API has nothing at {request.path}",
            "GET /api/v1/openapi.json lists what it has",
        )
    elif error.status_code == 405:
        answer = (405, "invalid", f"{request.path} takes no {request.method}", f"it takes {kept}")
    elif error.status_code < 500:
        answer = (error.status_code, "invalid", str(error.body), "")
    else:
        bug = _bug(error.exception)
        answer = (500, bug.code, bug.message, bug.hint)
    status, code, message, hint = answer
    _response(status, b"", **({"Allow": kept} if kept else {})).apply(response)
    return error_body(code, message, hint)


def _health(site: Site) -> HTTPResponse:
    if site.is_stale:
        return _response(503, _encoded({"status": "no contact with ZooKeeper"}))
    return _response(200, _encoded({"status": "ok"}))


def _openapi(gate: Gate, every: list[Operation]) -> HTTPResponse:
    gate.admit(request.environ)
    return _response(200, _encoded(openapi.document(every)))
