"""Fencing by hand, and the receipts of all fences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.membership import Evidence, Fence, FenceState, StepKind, is_gone
from pvc.cluster.node import DaemonState
from pvc.cluster.store import Create, Op, Put
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.types import Limit, NodeName, limit_pattern
from pvc.errors import Conflict, NotFound


@operation(
    "POST",
    "/node/{node}/fence",
    noun="node",
    role=Role.ADMIN,
    done="{node} is to be fenced: pvc node fences {node} tells what becomes of it",
    confirm="Fence {node}? Its power is cut and its VMs start elsewhere. With --confirm-off nothing is cut: "
    "if {node} runs after all, its VMs run twice and their disks break.",
)
def fence(
    ctx: Context,
    node: NodeName,
    *,
    confirm_off: Annotated[
        bool, Arg("you have seen that it is off, with your own eyes: no BMC is asked")
    ] = False,
) -> Fence:
    """Switch a node off through its BMC, and start its VMs elsewhere when it is off.

    The primary does it, and writes a receipt: pvc node fences. With --confirm-off your word is the evidence.

    pvc node fence --verify [NODE] only finds out whether it could be done now: see pvc node verify.
    """
    found = ctx.view.node(node)
    if found.is_primary:
        raise Conflict(f"{node} is the primary, which would fence itself", hint=f"pvc node secondary {node}")
    if found.daemon_state is DaemonState.FENCED:
        raise Conflict(f"{node} is fenced already", hint=f"pvc node fences {node}")
    if confirm_off and not is_gone(found.status, found.alive):
        raise Conflict(f"{node} is not off: its daemon has a session", hint=f"pvc node fence {node}")
    if not confirm_off and found.spec.bmc is None:
        raise Conflict(
            f"{node} has no BMC that could switch it off",
            hint=f"pvc node bmc {node}, or see that it is off and pvc node fence {node} --confirm-off",
        )
    wanted = Fence(node, found.status.incarnation, asked_by=ctx.caller.name, confirmed=confirm_off)
    path = paths.fence(node, found.status.incarnation)
    stored = ctx.reader.get(path)
    op: Op = Create(path, dumps(wanted)) if stored is None else Put(path, dumps(wanted), stored.version)
    ctx.say(f"{node} is released on your word" if confirm_off else f"the primary cuts the power of {node}")
    ctx.commit(op)
    return wanted


COLUMNS = ("node", "incarnation", "state", "evidence", "judge", "attempts", "recovered", "reason")


@operation("GET", "/fence", noun="node", verb="fences", columns=COLUMNS)
def fences(ctx: Context, limit: Limit = "") -> tuple[Fence, ...]:
    """List fences, the newest first: the evidence, who judged, how long it took, what was recovered."""
    matches = limit_pattern(limit).search
    found = [one for one, _ in ctx.view.fences().values() if matches(one.node)]
    return tuple(sorted(found, key=lambda one: (-one.since, one.node, -one.incarnation)))


def newest(ctx: Context, node: str) -> Fence:
    """Raises NotFound for a node that has never been fenced."""
    found = [one for one, _ in ctx.view.fences().values() if one.node == node]
    if not found:
        raise NotFound(f"no fence of {node} is known", hint="pvc node fences lists them")
    return max(found, key=lambda one: one.incarnation)


GONE_SO_FAR = {
    StepKind.GONE: "its session ended",
    StepKind.FENCING: "the first attempt to fence it",
    StepKind.FENCED: "fenced",
}


def story(fence: Fence) -> Iterator[str]:
    """What it took, in sentences."""
    for step in fence.timeline:
        after = f"{step.at_s:.1f} s after its last contact: "
        if step.what in GONE_SO_FAR:
            yield after + GONE_SO_FAR[step.what]
        elif step.what is StepKind.RELEASED:
            yield after + f"{step.vm} released" + (f" for {step.node}" if step.node else ", it fits nowhere")
        elif step.what is StepKind.STOPPED:
            yield after + f"{step.vm} released, it was to be stopped"
        elif step.what is StepKind.RUNNING:
            yield after + f"{step.vm} runs on {step.node}"


def told(fence: Fence) -> str:
    """What became of it, in a sentence."""
    name = fence.node
    if fence.state is FenceState.FENCED:
        word = "its BMC says that it is off" if fence.evidence is Evidence.POWER_OFF else "somebody's word"
        return f"{name} was fenced by {fence.judge} after {fence.fence_s:g} s, the evidence: {word}"
    if fence.state is FenceState.FAILED:
        return f"{name} could not be fenced ({fence.attempts} tries): {fence.reason}"
    if fence.state is FenceState.RETURNED:
        return f"{name} was about to be fenced and came back"
    return f"{name} is being fenced{f': {fence.reason}' if fence.reason else ''}"
