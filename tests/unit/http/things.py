"""A noun that only the tests of the API have, with every kind of parameter, answer and failure."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import urlencode

from pvc.cluster import paths, tokens
from pvc.cluster.store import Create, Put
from pvc.commands import registry
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Operation, Role, operation
from pvc.errors import Failed, NotFound
from pvc.http.app import Site, make_app
from tests.fakes.store import MemoryCluster, MemoryStore

ROOT = "/things"
NOW = 1_800_000_000.0

Name = Annotated[str, Arg("name of the thing", pattern=r"[a-z][a-z0-9-]{0,20}", what="a thing's name")]


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Thing:
    name: str
    size: int
    colour: Colour
    tags: tuple[str, ...]
    heavy: bool
    version: str


@operation("GET", "/thing/{name}", noun="item")
def info(ctx: Context, name: Name) -> Thing:
    """Show a thing."""
    stored = ctx.reader.get(f"{ROOT}/{name}")
    if stored is None:
        raise NotFound(f"no thing named {name}", hint="pvc thing list")
    plain = json.loads(stored.data)
    return Thing(
        name,
        plain["size"],
        Colour(plain["colour"]),
        tuple(plain["tags"]),
        plain["heavy"],
        f"{stored.version}",
    )


@operation("GET", "/thing", noun="item", verb="list")
def list_(
    ctx: Context, *, limit: str = "", colour: Colour | None = None, tag: tuple[str, ...] = ()
) -> list[Thing]:
    """List things."""
    every = [info(ctx, name) for name in ctx.reader.children(ROOT) if limit in name]
    return [one for one in every if colour in (None, one.colour) and set(tag) <= set(one.tags)]


@operation("POST", "/thing", noun="item", role=Role.OPERATE)
def create(
    ctx: Context,
    name: Name,
    *,
    size: Annotated[int, Arg(minimum=1, maximum=1000)] = 1,
    colour: Colour = Colour.RED,
    tags: tuple[str, ...] = (),
    heavy: bool = False,
    secret: str | None = None,
) -> Thing:
    """Make a thing."""
    plain = {"size": size, "colour": colour, "tags": list(tags), "heavy": heavy}
    ctx.say(f"{name} would be made")
    ctx.commit(Create(f"{ROOT}/{name}", json.dumps(plain).encode()))
    return Thing(name, size, colour, tags, heavy, "0") if ctx.planning else info(ctx, name)


@operation("PATCH", "/thing/{name}", noun="item", role=Role.OPERATE)
def paint(ctx: Context, name: Name, *, colour: Colour) -> Thing:
    """Change a thing's colour."""
    stored = ctx.reader.get(f"{ROOT}/{name}")
    if stored is None:
        raise NotFound(f"no thing named {name}")
    data = json.dumps(json.loads(stored.data) | {"colour": colour}).encode()
    ctx.commit(Put(stored.path, data, stored.version))
    return info(ctx, name)


@operation("POST", "/thing/{name}/break", noun="item", verb="break", role=Role.ADMIN)
def break_(ctx: Context, name: Name, *, how: str = "") -> str:
    """Fail, in the way asked for."""
    if how == "bug":
        raise KeyError("a secret inside")
    if how == "failed":
        raise Failed("it did not break")
    return "broken"


@operation("GET", "/thing/{name}/secret", noun="item", role=Role.ADMIN)
def secret(ctx: Context, name: Name) -> str:
    """What only administrators see."""
    return f"the secret of {name}"


def operations() -> list[Operation]:
    return [found for found in registry._registered.values() if found.noun == "item"]


def lookup(name: str) -> Operation:
    return next(found for found in operations() if found.name == name)


@dataclass(slots=True)
class FixedClock:
    now: float = NOW

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


@dataclass(slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.text)


@dataclass(slots=True)
class Served:
    """The application over a store in memory, asked without a socket."""

    clock: FixedClock = field(default_factory=FixedClock)
    cluster: MemoryCluster = field(default_factory=MemoryCluster)
    store: MemoryStore = field(init=False)
    site: Site = field(init=False)
    app: Any = field(init=False)
    keys: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = self.cluster.connect()
        layout = ("/pvc", paths.TOKENS, ROOT)
        self.store.commit(*(Create(path) for path in layout))
        self.site = Site(self.store, self.store, clock=self.clock)
        self.app = make_app(self.site, operations())
        for role in Role:
            self.add_token(role, role)

    def add_token(self, name: str, role: str, expires: float | None = None) -> str:
        token, text = tokens.make(name, role, self.clock.wall(), expires)
        self.store.commit(Create(paths.token(name), tokens.document(token)))
        self.keys[name] = text
        return text

    def ask(self, method: str, path: str, key: str | None = "admin", **given: Any) -> Answer:
        """given: query, json, form, body with type, environ."""
        headers = {} if key is None else {"HTTP_AUTHORIZATION": f"Bearer {self.keys.get(key, key)}"}
        body, kind = _body(given)
        environ = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": given.get("query", ""),
            "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": kind,
            "REMOTE_ADDR": "192.0.2.1",
            "SERVER_NAME": "n1",
            "SERVER_PORT": "7370",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": io.StringIO(),
            **headers,
            **given.get("environ", {}),
        }
        seen: list[Any] = []
        content = b"".join(self.app(environ, lambda status, found, _=None: seen.append((status, found))))
        assert not environ["wsgi.errors"].getvalue()
        status, found = seen[-1]
        return Answer(int(status.split()[0]), dict(found), content)


def _body(given: dict[str, Any]) -> tuple[bytes, str]:
    if "json" in given:
        return json.dumps(given["json"]).encode(), "application/json"
    if "form" in given:
        return urlencode(given["form"], doseq=True).encode(), "application/x-www-form-urlencoded"
    return given.get("body", b""), given.get("type", "application/json")
