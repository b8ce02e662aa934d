"""A VM's serial console text, from the nodes it ran on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pvc.commands.context import Context, LocalContext
from pvc.commands.registry import Arg, local, operation
from pvc.commands.types import Lines, VMName
from pvc.errors import Conflict, Unavailable

if TYPE_CHECKING:
    from pvc.cluster.view import Node

CURSOR = r"([a-z0-9-]+:\d+(,[a-z0-9-]+:\d+)*)?"
LINES_OF_A_NEW_NODE = 1000
"""When a VM that is followed comes to a node where it has not been followed before."""
PAUSE_S = 1.0

Follow = Annotated[bool, Arg("go on with what comes", short="-f")]
Cursor = Annotated[
    str, Arg("the cursor of the answer before", pattern=CURSOR, what="the cursor of an earlier answer")
]


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    cursor: str
    """To go on after this text, also when the VM has moved: `n1:120,n2:7`, the newest node last."""
    node: str


@operation("GET", "/vm/{vm}/console", verb="log-text", noun="vm")
def log_text(ctx: Context, vm: VMName, *, lines: Lines = 1000, cursor: Cursor = "") -> Text:
    """Console text as data, with a cursor to go on from; `vm log` is the verb for people."""
    found = ctx.view.vm(vm)
    here = found.place
    if here is None:
        raise Conflict(f"{found.spec.name} has not run yet, so there is no console text")
    offsets = parse_cursor(cursor)
    before = next(reversed(offsets), here)
    path = f"console/{found.spec.uuid}"
    rest = _rest(ctx, before, path, offsets) if before != here else ""
    known = offsets.pop(here, None)
    wanted = lines if not cursor else LINES_OF_A_NEW_NODE
    text, offset = _fetch(ctx, ctx.view.node(here), path, wanted, known)
    offsets[here] = offset
    return Text(rest + text, ",".join(f"{name}:{at}" for name, at in offsets.items()), here)


def parse_cursor(cursor: str) -> dict[str, int]:
    """Node → how far its text was read; the newest node last."""
    pairs = (one.split(":") for one in cursor.split(",") if one)
    return {name: int(offset) for name, offset in pairs}


def _rest(ctx: Context, name: str, path: str, offsets: dict[str, int]) -> str:
    """What the node before still has; nothing if it cannot be asked any more."""
    node = ctx.view.nodes([name]).get(name)
    if node is None or not node.is_running:
        return ""
    try:
        text, offsets[name] = _fetch(ctx, node, path, 0, offsets[name])
    except Unavailable:
        return ""
    return text


def _fetch(ctx: Context, node: Node, path: str, lines: int, known: int | None) -> tuple[str, int]:
    if not node.status.console_port:
        raise Unavailable(
            f"{node.spec.name} does not serve texts: its daemon is in state {node.daemon_state}"
        )
    wait_s = 0 if known is None else 1
    return ctx.console(
        node.spec.address, node.status.console_port, path, lines=lines, cursor=known, wait_s=wait_s
    )


@local(noun="vm")
def log(ctx: LocalContext, vm: VMName, *, lines: Lines | None = None, follow: Follow = False) -> None:
    """Print what a VM wrote to its serial console: 1000 lines; with -f 10 and what comes, wherever it is."""
    show(ctx, "vm.log-text", vm, "vm", lines, follow)


def show(ctx: LocalContext, name: str, what: str, parameter: str, lines: int | None, follow: bool) -> None:
    """Print the text of an operation that answers with text and cursor; with `follow` until interrupted."""
    from pvc import output
    from pvc.waiting import OUTAGE_S, pause

    count = lines if lines is not None else 10 if follow else 1000
    answer = ctx.call(name, **{parameter: what}, lines=count)
    if not follow:
        output.emit(answer["text"])
        return
    outages, begun = 0, ""
    while True:
        # The guest may be in the middle of a line: that waits for its end.
        whole, end, begun = (begun + answer["text"]).rpartition("\n")
        output.emit(whole + end)
        if not answer["text"]:
            pause(PAUSE_S / 5)
        try:
            answer = ctx.call(name, **{parameter: what}, cursor=answer["cursor"])
            outages = 0
        except Unavailable as error:
            outages += 1
            if outages * PAUSE_S > OUTAGE_S:
                raise
            output.progress(f"{error.message}; asking again")
            pause(PAUSE_S)
            answer = {**answer, "text": ""}
