"""Pools: places for the volumes of VMs."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from pvc.cluster import paths, storage
from pvc.cluster.codec import dumps, to_json
from pvc.cluster.storage import Driver, PoolSpec
from pvc.cluster.store import Op, Put
from pvc.commands import task, types
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.task import TaskInfo
from pvc.commands.types import Limit, PoolName
from pvc.errors import Conflict, Unavailable

if TYPE_CHECKING:
    from pvc.cluster.view import Node, Pool

SHARED = "all nodes"
TRIES = 2
"""Nodes that are asked one after the other when the first does not answer."""


@dataclass(frozen=True, slots=True)
class PoolInfo:
    name: str
    driver: Driver
    path: str
    reach: str
    """Which nodes have it."""
    state: str
    """up: every running node that should have it has it."""
    nodes: Mapping[str, str]
    """How it is on each."""
    total_bytes: int
    used_bytes: int
    used_percent: int
    volumes: int
    provisioned_bytes: int
    """What the volumes could grow to."""


@dataclass(frozen=True, slots=True)
class PoolRow:
    name: str
    driver: Driver
    path: str
    reach: str
    state: str


@operation(
    "POST",
    "/storage/pool/{pool}",
    noun="storage",
    verb="pool add",
    role=Role.ADMIN,
    waits="task.info",
    done="pool {pool} is there",
)
def add(
    ctx: Context,
    pool: Annotated[types.PoolName, Arg("what it is called", metavar="NAME", complete="none")],
    *,
    path: Annotated[
        str,
        Arg(
            "the directory, which exists",
            metavar="DIRECTORY",
            pattern=r"/(?!.*(?:^|/)\.\.(?:/|$))[^\0\n<>&\"]{1,1023}",
            what="an absolute path",
        ),
    ],
    node: Annotated[types.NodeName, Arg("the one node that has it; all share it unless given", short="-n")]
    | None = None,
    driver: Annotated[Driver, Arg("what keeps the volumes")] = Driver.DIR,
) -> TaskInfo:
    """Make a directory a pool: one that all nodes have mounted at the same path, or of one node.

    A file in it says which pool it is, so that the empty directory below a missing mount is not taken for it.
    """
    ctx.view.cluster()
    path = path.rstrip("/")
    if pool in (known := ctx.view.pools()):
        raise Conflict(f"there is a pool {pool} already", hint=f"pvc storage pool info {pool}")
    for other in known.values():
        if other.spec.path == path and (not other.spec.node or other.spec.node == (node or other.spec.node)):
            raise Conflict(f"{path} is pool {other.spec.name} already")
    spec = PoolSpec(pool, secrets.token_hex(8), driver, path, node or "")
    on = node or _any_running(ctx)
    return task.begin(
        ctx,
        "storage.pool-add",
        f"making {path} pool {pool}, of {node or SHARED}",
        on,
        arguments={"pool": to_json(spec)},
    )


def _any_running(ctx: Context) -> str:
    running = sorted(name for name, node in ctx.view.nodes().items() if node.is_running)
    if not running:
        raise Unavailable("the daemon of no node runs", hint="pvc node list")
    return running[0]


@operation(
    "DELETE",
    "/storage/pool/{pool}",
    noun="storage",
    verb="pool remove",
    role=Role.ADMIN,
    confirm="Remove pool {pool}?",
    waits="task.info",
    done="pool {pool} is removed; its directory stays",
)
def remove(
    ctx: Context,
    pool: PoolName,
    *,
    force: Annotated[bool, Arg("also when it has volumes, or nobody reaches it any more")] = False,
) -> TaskInfo:
    """Forget a pool in which there are no volumes. The directory stays, with --force also what is in it."""
    found = ctx.view.pool(pool)
    leaving = replace(found.spec, leaving=True)
    ops: list[Op] = [Put(paths.pool(pool), dumps(leaving), found.spec_version)]
    return task.begin(
        ctx,
        "storage.pool-remove",
        f"removing pool {pool}",
        _any_running(ctx) if force else reaching(ctx, found.spec)[0].spec.name,
        arguments={"pool": to_json(found.spec), "force": force},
        ops=ops,
    )


@operation("GET", "/storage/pool/{pool}", noun="storage", verb="pool info")
def info(ctx: Context, pool: PoolName) -> PoolInfo:
    """Show a pool: how it is on each node, how full it is, what is in it."""
    found = ctx.view.pool(pool)
    told = ask(ctx, found.spec)
    total, used = told["capacity"]["total_bytes"], told["capacity"]["used_bytes"]
    nodes = ctx.view.nodes()
    return PoolInfo(
        name=pool,
        driver=found.spec.driver,
        path=found.spec.path,
        reach=found.spec.node or SHARED,
        state=_state(found, nodes),
        nodes=_on_nodes(found.spec, nodes),
        total_bytes=total,
        used_bytes=used,
        used_percent=used * 100 // max(total, 1),
        volumes=len(told["volumes"]),
        provisioned_bytes=sum(volume["size_bytes"] for volume in told["volumes"]),
    )


@operation("GET", "/storage/pool", noun="storage", verb="pool list")
def list_(ctx: Context, limit: Limit = "") -> tuple[PoolRow, ...]:
    """List pools."""
    matches = types.limit_pattern(limit).search
    nodes = ctx.view.nodes()
    return tuple(
        PoolRow(name, one.spec.driver, one.spec.path, one.spec.node or SHARED, _state(one, nodes))
        for name, one in sorted(ctx.view.pools().items())
        if matches(name)
    )


def _on_nodes(spec: PoolSpec, nodes: Mapping[str, Node]) -> dict[str, str]:
    having = {name: node for name, node in sorted(nodes.items()) if spec.node in ("", name)}
    return {
        name: node.status.pool_problems.get(spec.name, "up")
        if node.is_running
        else f"its daemon is {node.daemon_state}"
        for name, node in having.items()
    }


def _state(pool: Pool, nodes: Mapping[str, Node]) -> str:
    if pool.spec.leaving:
        return "leaving"
    found = _on_nodes(pool.spec, nodes)
    running = [how for name, how in found.items() if nodes[name].is_running]
    if "up" not in running:
        return "down"
    return "up" if set(running) == {"up"} else "incomplete"


# For all that concerns what is in a pool


def reaching(ctx: Context, spec: PoolSpec) -> list[Node]:
    return storage.who_reaches(spec, ctx.view.nodes().values())


def ask(ctx: Context, spec: PoolSpec, volume: str = "") -> Any:
    """A node that reaches the pool; another one when that does not answer."""
    *others, last = reaching(ctx, spec)[:TRIES]
    path = f"storage/{spec.name}/{volume}" if volume else f"storage/{spec.name}"
    for node in others:
        try:
            return _asked(ctx, node, path)
        except Unavailable:
            continue
    return _asked(ctx, last, path)


def _asked(ctx: Context, node: Node, path: str) -> Any:
    return ctx.ask(node.spec.address, node.status.console_port, path)
