"""What an operation is given: a reader, a commit, the caller; and how one is carried out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pvc.clock import Clock, SystemClock
from pvc.commands.registry import Operation, Planned, Role, convert
from pvc.errors import Conflict, NotFound, NotPermitted, Unavailable

if TYPE_CHECKING:
    from pvc.cluster.cluster import Authority
    from pvc.cluster.store import Op, Reader, Store
    from pvc.cluster.view import View

TRIES = 8
"""How often an operation is run again when a document changed between its check and its commit."""


class Stale(Conflict):
    """A document changed between check and commit: run the operation again."""


@dataclass(frozen=True, slots=True)
class Caller:
    name: str
    role: Role


class FetchText(Protocol):
    """How console text and logs are got from the node that has them: (text, cursor after it)."""

    def __call__(
        self,
        address: str,
        port: int,
        path: str,
        *,
        lines: int = 100,
        cursor: int | None = None,
        wait_s: int = 0,
    ) -> tuple[str, int]: ...


def _no_nodes(
    address: str, port: int, path: str, *, lines: int = 100, cursor: int | None = None, wait_s: int = 0
) -> tuple[str, int]:
    raise Unavailable("texts of nodes come through the API", hint="leave out --direct")


class AskNode(Protocol):
    """How a node is asked for what only it has; the answer is JSON. Raises Unavailable, or what it says."""

    def __call__(self, address: str, port: int, path: str) -> Any: ...


def _ask_nobody(address: str, port: int, path: str) -> Any:
    raise Unavailable("nodes are asked through the API", hint="leave out --direct")


class Carry(Protocol):
    """How a piece of something large is brought to the node that takes it, or fetched (None) from there."""

    def __call__(self, address: str, port: int, path: str, piece: bytes | None = None) -> bytes: ...


def _carry_nothing(address: str, port: int, path: str, piece: bytes | None = None) -> bytes:
    raise Unavailable("nodes are reached through the API", hint="leave out --direct")


def _check_filters(text: str) -> None:
    """With this machine's nft and kernel."""
    from pvc.node.drivers.nft import NFT

    NFT().check(text)


def _new_authority() -> Authority:
    """Of this machine's cluster key."""
    from pvc import config, pki
    from pvc.cluster.cluster import Authority

    return Authority(*pki.create_ca(config.load().cluster.key_file))


def _seal(text: str, about: str) -> str:
    """With this machine's cluster key."""
    from pvc import config, secretbox

    return secretbox.encrypt(text, config.load().secret(), about=about)


@dataclass(slots=True)
class Context:
    """`reader` is a mirror in the API server and the store itself with --direct."""

    store: Store
    reader: Reader
    caller: Caller
    refresh: Callable[[list[str]], None] = lambda paths: None
    """Make the reader see these paths as they are now; nothing to do where the reader is the store."""
    planning: bool = False
    clock: Clock = field(default_factory=SystemClock)
    notes: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    known_view: View | None = None
    """Of whoever keeps one view for many operations: documents that did not change are not decoded again."""
    console: FetchText = _no_nodes
    ask: AskNode = _ask_nobody
    carry: Carry = _carry_nothing
    check_filters: Callable[[str], None] = _check_filters
    """Raises Refused for a table of nftables that could not be loaded."""
    new_authority: Callable[[], Authority] = _new_authority
    seal: Callable[[str, str], str] = _seal
    """Encrypt a text, and say what it is good for."""

    @property
    def view(self) -> View:
        if self.known_view is None:
            from pvc.cluster.view import View

            self.known_view = View(self.reader)
        return self.known_view

    def say(self, sentence: str) -> None:
        """A sentence for --plan: what would happen, or why."""
        self.notes.append(sentence)

    def commit(self, *ops: Op) -> None:
        """All or nothing; raises Stale when something read before has changed. With --plan only notes it."""
        self.changes += _described(ops)
        if self.planning:
            return
        try:
            self.store.commit(*ops)
        except (Conflict, NotFound) as error:
            self.refresh([op.path for op in ops])
            raise Stale(
                "it was changed by somebody else at the same time", hint="look at it and try again"
            ) from error
        self.refresh([op.path for op in ops])


def _described(ops: Iterable[Op]) -> list[str]:
    from pvc.cluster.store import Create, Delete, Put

    words = {Create: "create", Put: "change", Delete: "remove"}
    return [f"{words[type(op)]} {op.path}" for op in ops if type(op) in words]


def invoke(found: Operation, ctx: Context, given: Mapping[str, Any]) -> Any:
    """Check the role, convert the arguments, run; again from the top when a document had changed."""
    if not ctx.caller.role.allows(found.role):
        raise NotPermitted(
            f"{found.noun} {found.verb} needs the role {found.role}, {ctx.caller.name} has {ctx.caller.role}"
        )
    arguments = convert(found, given)
    for attempt in range(1, TRIES + 1):
        ctx.notes.clear()
        ctx.changes.clear()
        try:
            result = found.function(ctx, **arguments)
        except Stale:
            if attempt == TRIES:
                raise
            continue
        return Planned(list(ctx.notes), list(ctx.changes)) if ctx.planning else result
    raise AssertionError("unreachable")


class Transport(Protocol):
    """How a client reaches operations: HTTP, the unix socket, or in this process straight to the store."""

    def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        *,
        plan: bool = False,
        after: str = "",
        within_s: float = 0.0,
    ) -> Any:
        """The JSON of the result (dict, list, str). Raises the PVCError the operation raised.

        With `after` (the `version` field of an earlier answer) a GET answers when the object has another
        version, or after `within_s` as it is then: how a client waits without holding a thread of the server.
        """
        ...

    def close(self) -> None: ...


@dataclass(slots=True)
class LocalContext:
    """What a verb that runs in the client's process is given."""

    connect: Callable[[], Transport]
    """The cluster the user chose; connects at the first call."""
    unsafe: bool = False
    """Never ask."""
    quiet: bool = False
    wait_timeout_s: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """The global options as given: connection, direct, format, …"""

    def call(self, name: str, /, **arguments: Any) -> Any:
        return self.connect().call(name, arguments)
