"""Whether nodes could be lost now: what coordinators found out about their BMCs, and finding it out now."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from pvc import names
from pvc.cluster import paths, readiness
from pvc.cluster.codec import dumps
from pvc.cluster.node import NodeRole
from pvc.cluster.readiness import Facts, Readiness
from pvc.cluster.store import Create, Op, Put
from pvc.cluster.verification import Verification, Wish
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.types import NODE_WORDS
from pvc.commands.vm_info import Goal
from pvc.errors import Conflict

OneNode = Annotated[
    str, Arg("only that node; all unless told", metavar="NODE", pattern=names.NODE, what=NODE_WORDS)
]


@dataclass(frozen=True, slots=True)
class NodeReadiness:
    node: str
    can_be_lost: bool
    fenced_by: tuple[str, ...]
    """By what it could be fenced now."""
    verified_at: float
    """When its BMC last answered a coordinator as it should; 0: never."""
    watchdog: str
    """What this life of its daemon promises by a watchdog, or why nothing."""


@dataclass(frozen=True, slots=True)
class ReadinessInfo:
    activity: str
    """Who is looking; empty when nobody is."""
    nodes: tuple[NodeReadiness, ...]
    why_not: tuple[str, ...]
    """Why nodes could not be lost."""
    fence_problems: tuple[str, ...]
    """What is wrong with fencing them, also where another way is left."""
    ready: bool
    """Each of them could be fenced now, and each BMC is as it should be."""
    reason: str
    settled: bool
    version: str
    goal: Goal | None = None


def facts_of(ctx: Context) -> Facts:
    view = ctx.view
    return Facts(view.cluster(), view.nodes(), view.vms(), view.verifications(), ctx.clock.wall())


@operation("GET", "/readiness", noun="node", verb="readiness")
def show(ctx: Context, node: OneNode = "") -> ReadinessInfo:
    """Show which nodes could be lost now, by what they would be fenced, and why not."""
    return _info(ctx, node, facts_of(ctx), ctx.view.wish())


@operation("POST", "/readiness", noun="node", role=Role.OPERATE, waits="node.readiness")
def verify(ctx: Context, node: OneNode = "") -> ReadinessInfo:
    """Have each coordinator log in to the BMCs now: address, user and permission. Nothing is switched.

    What the nodes promise by their watchdogs is shown beside it.

    They do so every hour by themselves. pvc node fence --verify is the same, and waits.
    """
    facts = facts_of(ctx)
    if node:
        found = ctx.view.node(node)
        if found.spec.bmc is None and not found.status.quiet_after_s:
            raise Conflict(
                f"{node} has no BMC and {readiness.promise_of(found)}", hint=f"pvc node bmc {node}"
            )
    if not _coordinators(facts):
        raise Conflict("the daemon of no coordinator runs: nobody could look", hint="pvc node list")
    stored = ctx.reader.get(paths.VERIFIED)
    wish = Wish(ctx.view.wish().asked + 1, node)
    data = dumps(wish)
    op: Op = Create(paths.VERIFIED, data) if stored is None else Put(paths.VERIFIED, data, stored.version)
    ctx.say(f"{', '.join(_coordinators(facts))} log in to the BMC of {node or 'each node'}")
    ctx.commit(op)
    return replace(_info(ctx, node, facts, wish), goal={"ready": True})


def _coordinators(facts: Facts) -> list[str]:
    return sorted(
        name
        for name, node in facts.nodes.items()
        if node.is_running and node.spec.role is NodeRole.COORDINATOR
    )


def _info(ctx: Context, node: str, facts: Facts, wish: Wish) -> ReadinessInfo:
    if node:
        ctx.view.node(node)
    looking = [
        name
        for name in _coordinators(facts)
        if facts.verifications.get(name, Verification()).asked < wish.asked
    ]
    rows = tuple(row for row in readiness.readiness(facts) if node in ("", row.node))
    problems = tuple(f"{row.node}: {problem}" for row in rows for problem in row.fence_problems)
    return ReadinessInfo(
        activity=f"the BMCs are being tried by {', '.join(looking)}" if looking else "",
        nodes=tuple(
            NodeReadiness(row.node, row.can_be_lost, row.fenced_by, row.verified_at, row.watchdog)
            for row in rows
        ),
        why_not=tuple(f"{row.node}: {why}" for row in rows for why in row.why_not),
        fence_problems=problems,
        ready=not problems,
        reason="; ".join(problems),
        settled=not looking,
        version=f"{wish.asked}.{len(looking)}.{hash_of(rows)}",
    )


def hash_of(rows: tuple[Readiness, ...]) -> str:
    import hashlib

    return hashlib.sha256(dumps(rows)).hexdigest()[:16]
