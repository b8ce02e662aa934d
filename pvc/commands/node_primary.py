"""The primary role: who is to have it, and whether a node has it."""

from __future__ import annotations

from dataclasses import replace

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.node import NodeRole
from pvc.cluster.store import Put
from pvc.commands.context import Context, LocalContext
from pvc.commands.node import NodeInfo, describe
from pvc.commands.registry import Role, local, operation
from pvc.commands.types import CoordinatorState, NodeName
from pvc.commands.vm_info import Goal
from pvc.errors import Conflict


@operation("POST", "/node/{node}/primary", noun="node", role=Role.OPERATE, waits="node.info")
def primary(ctx: Context, node: NodeName = "") -> NodeInfo:
    """Make a coordinator the primary, which fences dead nodes and recovers their VMs."""
    found = ctx.view.node(node)
    if found.spec.role is not NodeRole.COORDINATOR:
        raise Conflict(f"{node} is no coordinator", hint="pvc node list -cs secondary shows who could be")
    if not found.is_running:
        raise Conflict(f"the daemon of {node} is {found.daemon_state}", hint="only one that runs can be")
    _want(ctx, node)
    return describe(replace(found, role_moves=not found.is_primary), {"coordinator_state": "primary"})


@operation("POST", "/node/{node}/secondary", noun="node", role=Role.OPERATE, waits="node.info")
def secondary(ctx: Context, node: NodeName = "") -> NodeInfo:
    """Take the primary role from a node; another coordinator gets it."""
    found = ctx.view.node(node)
    if found.spec.role is not NodeRole.COORDINATOR:
        raise Conflict(f"{node} is no coordinator")
    goal: Goal = {"coordinator_state": "secondary"}
    if not found.is_primary:
        ctx.say(f"{node} is secondary already")
        if ctx.view.cluster().primary == node:
            _want(ctx, "")
        return describe(found, goal)
    others = [
        name
        for name, other in sorted(ctx.view.nodes().items())
        if name != node and other.is_running and other.spec.role is NodeRole.COORDINATOR
    ]
    if not others:
        raise Conflict(
            f"{node} is the only coordinator whose daemon runs", hint="start pvc-node on another first"
        )
    _want(ctx, others[0])
    return describe(replace(found, role_moves=True), goal)


def _want(ctx: Context, node: str) -> None:
    spec, version = ctx.view.cluster_document()
    if spec.primary == node:
        ctx.say(f"{node} is the wanted primary already")
        return
    ctx.say(f"{node} is wanted as primary" if node else "no coordinator is wanted as primary above others")
    ctx.commit(Put(paths.CLUSTER, dumps(replace(spec, primary=node)), version))


@local(noun="node", verb="is-primary")
def is_primary(ctx: LocalContext, node: NodeName = "") -> int:
    """Exit with 0 where a node is primary, with 1 where it is not."""
    return 0 if ctx.call("node.info", node=node)["coordinator_state"] == CoordinatorState.PRIMARY else 1
