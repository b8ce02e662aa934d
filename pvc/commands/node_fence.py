"""Fencing by hand, and the receipts of all fences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.membership import Evidence, Fence, FenceState, StepKind, is_gone
from pvc.cluster.node import DaemonState
from pvc.cluster.readiness import readiness
from pvc.cluster.store import Create, Op, Put
from pvc.cluster.timeline import at
from pvc.commands.context import Context
from pvc.commands.node_ready import facts_of
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.types import Limit, NodeName, limit_pattern
from pvc.errors import Conflict, Invalid, NotFound


@operation(
    "POST",
    "/node/{node}/fence",
    noun="node",
    role=Role.ADMIN,
    done="{node} is to be fenced: pvc node fences {node} tells what becomes of it",
    confirm="Fence {node}? Its power is cut and its VMs start anew elsewhere, a drill is no less real. With "
    "--confirm-off nothing is cut: if {node} runs after all, its VMs run twice and their disks break.",
)
def fence(
    ctx: Context,
    node: NodeName,
    *,
    confirm_off: Annotated[
        bool, Arg("you have seen that it is off, with your own eyes: no BMC is asked")
    ] = False,
    drill: Annotated[
        bool, Arg("cut its power as a failure would, to see what becomes of it; only where it can be lost")
    ] = False,
) -> Fence:
    """Switch a node off through its BMC, and start its VMs elsewhere when it is off.

    The primary does it, and writes a receipt: pvc node fences. With --confirm-off your word is the evidence.

    A drill cuts the power of a node that lives, and leaves the rest to what follows any failure: it is found
    dead, fenced, its VMs are recovered and its power comes back. pvc why fence NODE tells how long each step
    took. To spare its VMs pvc node flush NODE first.

    pvc node fence --verify [NODE] only finds out whether it could be done now: see pvc node verify.
    """
    if drill and confirm_off:
        raise Invalid("--drill and --confirm-off exclude each other", hint="leave one of them out")
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
    if drill:
        _check_drill(ctx, node)
    wanted = Fence(
        node,
        found.status.incarnation,
        asked_by=ctx.caller.name,
        confirmed=confirm_off,
        drill=ctx.caller.name if drill else "",
        since=ctx.clock.wall(),
    )
    path = paths.fence(node, found.status.incarnation)
    stored = ctx.reader.get(path)
    op: Op = Create(path, dumps(wanted)) if stored is None else Put(path, dumps(wanted), stored.version)
    if not any(one.is_primary for one in ctx.view.nodes().values()):
        ctx.say("no coordinator is primary now: it waits for one")
    ctx.say(f"{node} is released on your word" if confirm_off else f"the primary cuts the power of {node}")
    ctx.commit(op)
    return wanted


def _check_drill(ctx: Context, node: str) -> None:
    """A drill must not become the failure that it is to prepare for."""
    facts = facts_of(ctx)
    for name, other in sorted(facts.nodes.items()):
        if not other.is_running:
            raise Conflict(f"no drill while {name} is {other.daemon_state}", hint=f"pvc why node {name}")
    ready = next(one for one in readiness(facts) if one.node == node)
    if not ready.can_be_lost:
        raise Conflict(f"{node} could not be lost now: {'; '.join(ready.why_not)}", hint="pvc cluster status")
    if "bmc" not in ready.fenced_by:
        raise Conflict(
            f"a drill needs a BMC that works: {'; '.join(ready.fence_problems)}",
            hint=f"pvc node fence --verify {node}",
        )


COLUMNS = ("node", "incarnation", "state", "evidence", "judge", "attempts", "recovered", "reason")


@operation("GET", "/fence", noun="node", verb="fences", columns=COLUMNS)
def fences(ctx: Context, limit: Limit = "") -> tuple[Fence, ...]:
    """List fences, the newest first: the evidence, who judged, how long it took, what was recovered."""
    matches = limit_pattern(limit).search
    found = [one for one in ctx.view.shown_fences() if matches(one.node)]
    return tuple(sorted(found, key=lambda one: (-one.since, one.node, -one.incarnation)))


def newest(ctx: Context, node: str) -> Fence:
    """Raises NotFound for a node that has never been fenced."""
    found = [one for one in ctx.view.shown_fences() if one.node == node]
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
    zero = "its power was cut" if at(fence, StepKind.CUT) is not None else "its last contact"
    for step in fence.timeline:
        after = f"{step.at_s:.1f} s after {zero}: "
        if step.what in GONE_SO_FAR:
            yield after + GONE_SO_FAR[step.what]
        elif step.what is StepKind.RELEASED:
            yield after + f"{step.vm} released" + (f" for {step.node}" if step.node else ", it fits nowhere")
        elif step.what is StepKind.STOPPED:
            yield after + f"{step.vm} released, it was to be stopped"
        elif step.what is StepKind.RUNNING:
            yield after + f"{step.vm} runs on {step.node}"


EVIDENCE = {
    Evidence.POWER_OFF: "its BMC says that it is off",
    Evidence.OPERATOR: "somebody's word",
    Evidence.WATCHDOG: "by its promise nothing of it runs after so long away",
    Evidence.STOPPED: "its own last word, that it had ended its VMs",
}


def told(fence: Fence) -> str:
    """What became of it, in a sentence."""
    name = f"{fence.node} (a drill)" if fence.drill else fence.node
    if fence.state is FenceState.FENCED:
        proof = EVIDENCE.get(fence.evidence, str(fence.evidence))
        return f"{name} was fenced by {fence.judge} after {fence.fence_s:g} s, the evidence: {proof}"
    if fence.state is FenceState.FAILED:
        return f"{name} could not be fenced ({fence.attempts} tries): {fence.reason}{_but(fence)}"
    if fence.state is FenceState.RETURNED:
        return f"{name} was about to be fenced and came back"
    return f"{name} is being fenced{f': {fence.reason}' if fence.reason else ''}{_but(fence)}"


def _but(fence: Fence) -> str:
    if fence.evidence is not Evidence.BLOCKLIST:
        return ""
    return "; Ceph takes no more writes from it: VMs that are only in Ceph go on elsewhere, others wait"
