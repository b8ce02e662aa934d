"""A noun for tests of the command line: one verb of every kind, and a transport that answers as told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from pvc.commands.context import Context, LocalContext
from pvc.commands.registry import Arg, Role, local, operation
from pvc.errors import PVCError

VERBS = (
    *("list", "info", "state", "text", "start", "meta", "forget", "tag add", "define", "at"),
    *("exec", "here", "broken"),
)


class Shape(StrEnum):
    ROUND = "round"
    FLAT = "flat"


@dataclass(frozen=True, slots=True)
class Thing:
    name: str
    state: str
    memory_mib: int
    version: str = ""


Name = Annotated[str, Arg("its name", metavar="THING", pattern=r"[a-z0-9-]+", what="a name")]


@operation("GET", "/thing", verb="list", columns=("name", "state", "memory_mib"))
def list_(
    ctx: Context,
    limit: str = "",
    *,
    node: Annotated[str, Arg("only there", short="-t", complete="node")] | None = None,
    state: Annotated[str, Arg("only in it", short="-s")] | None = None,
    tag: Annotated[tuple[str, ...], Arg("only with it", short="-g", complete="tag")] = (),
    note: Annotated[tuple[str, ...], Arg("any text", short="-n")] = (),
) -> list[Thing]:
    """List things."""
    return []


@operation("GET", "/thing/{thing}")
def info(ctx: Context, thing: Name) -> Thing:
    """Show a thing."""
    document = ctx.reader.get("/thing")
    return Thing(thing, document.data.decode() if document else "none", 1)


@operation("GET", "/thing/{thing}/state")
def state(ctx: Context, thing: Name) -> str:
    """Print its state."""
    return info(ctx, thing).state


@operation("GET", "/thing/{thing}/text")
def text(ctx: Context, thing: Name) -> str:
    """Print its text."""
    return "text"


@operation("POST", "/thing/{thing}/start", role=Role.OPERATE, waits="thing.info")
def start(
    ctx: Context,
    thing: Name,
    *,
    force: Annotated[bool, Arg("at once")] = False,
    live: Annotated[bool, Arg("while it runs", short="-l/-L")] = True,
    shape: Annotated[Shape, Arg("how it looks", short="-m")] = Shape.ROUND,
    count: Annotated[int, Arg("how many", minimum=1, maximum=9)] = 1,
) -> Thing:
    """Start a thing.

    More about it.
    """
    return Thing(thing, "starting", 1)


@operation("PATCH", "/thing/{thing}", role=Role.OPERATE, done="{name} is as you say{pending}")
def meta(
    ctx: Context,
    thing: Name,
    *,
    autostart: Annotated[bool, Arg("with its node", short="-a/-A")] | None = None,
) -> Thing:
    """Change a thing."""
    return Thing(thing, "stop", 1)


@operation("DELETE", "/thing/{thing}", role=Role.OPERATE, confirm="Forget {thing}?", done="{thing} is gone")
def forget(ctx: Context, thing: Name) -> None:
    """Forget a thing."""


@operation("POST", "/thing/{thing}/tag/{tag}", role=Role.OPERATE, verb="tag add")
def tag_add(ctx: Context, thing: Name, tag: str) -> Thing:
    """Tag a thing."""
    return Thing(thing, "stop", 1)


@operation("POST", "/thing", role=Role.OPERATE)
def define(ctx: Context, xml: Annotated[str, Arg("definition", metavar="FILE", file=True)]) -> Thing:
    """Define a thing."""
    return Thing("new", "stop", 1)


@operation("GET", "/thing/at/{node}")
def at(ctx: Context, node: Annotated[str, Arg("where", complete="node")] = "") -> Thing:
    """What is at a node."""
    return Thing(node, "stop", 1)


@local(verb="exec")
def exec_(
    ctx: LocalContext, thing: Name, cmd: Annotated[tuple[str, ...], Arg("what to run", metavar="CMD")] = ()
) -> int:
    """Run a command."""
    return len(cmd)


@local()
def here(ctx: LocalContext) -> list[Thing]:
    """Things here."""
    return [Thing("local", "stop", 2048)]


@local()
def broken(ctx: LocalContext) -> None:
    """Fails in a way nobody thought of."""
    raise ZeroDivisionError("nobody thought of it")


@dataclass(slots=True)
class Call:
    name: str
    arguments: Mapping[str, Any]
    plan: bool
    after: str
    within_s: float


@dataclass(slots=True)
class FakeTransport:
    """Gives each answer once, the last for ever; an answer that is an exception is raised."""

    answers: list[Any] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    options: Mapping[str, Any] = field(default_factory=dict)
    closed: bool = False
    stale: bool = False
    on_call: Callable[[Call], None] = lambda call: None

    def pick(self, options: Mapping[str, Any]) -> FakeTransport:
        self.options = dict(options)
        return self

    def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        *,
        plan: bool = False,
        after: str = "",
        within_s: float = 0.0,
    ) -> Any:
        call = Call(name, dict(arguments), plan, after, within_s)
        self.calls.append(call)
        self.on_call(call)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, PVCError | KeyboardInterrupt):
            raise answer
        return answer

    def close(self) -> None:
        self.closed = True


@dataclass(slots=True)
class FakeClock:
    now: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


def states(*words: str) -> Iterator[dict[str, Any]]:
    """A thing on its way, each with its own version."""
    for number, word in enumerate(words):
        state, _, done = word.partition("!")
        yield {"name": "t1", "state": state, "settled": "!" in word, "reason": done, "version": str(number)}
