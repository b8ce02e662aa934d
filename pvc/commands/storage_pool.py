"""Pools: places for the volumes of VMs."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from pvc.cluster import ceph_pools, paths, storage
from pvc.cluster.ceph import Traffic
from pvc.cluster.ceph_pools import CephFacts, Tier
from pvc.cluster.codec import dumps, from_json, to_json
from pvc.cluster.storage import Driver, PoolSpec
from pvc.cluster.store import Op, Put
from pvc.commands import task, types
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.task import TaskInfo
from pvc.commands.types import Limit, PoolName
from pvc.errors import Conflict, Invalid, PVCError, Unavailable

if TYPE_CHECKING:
    from pvc.cluster.view import Node, Pool

SHARED = "all nodes"
REPLICATION = "copies=3,mincopies=2"
PGs = Annotated[
    int,
    Arg(
        "placement groups, a power of two; as many as Ceph finds right unless given",
        metavar="PGS",
        minimum=1,
        maximum=ceph_pools.MOST_PGS,
    ),
]
TRIES = 2
"""Nodes that are asked one after the other when the first does not answer."""


@dataclass(frozen=True, slots=True)
class PoolInfo:
    name: str
    driver: Driver
    path: str
    """Of a directory."""
    reach: str
    """Which nodes have it."""
    state: str
    """up: every running node that should have it has it."""
    health: str
    """ok, or what Ceph says against it."""
    nodes: Mapping[str, str]
    """How it is on each."""
    total_bytes: int
    """Of what users write: all copies of it have room."""
    used_bytes: int
    used_percent: int
    volumes: int
    provisioned_bytes: int
    """What the volumes could grow to."""
    ceph: CephFacts | None
    """None for a directory."""
    each_second: Traffic | None
    """None for a directory."""


@dataclass(frozen=True, slots=True)
class PoolRow:
    name: str
    driver: Driver
    path: str
    """Of a directory."""
    tier: str
    copies: int | None
    pgs: int | None
    total_bytes: int | None
    """None where nobody can be asked."""
    used_bytes: int | None
    reach: str
    state: str
    health: str


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
    pgs: PGs | None = None,
    *,
    driver: Annotated[Driver, Arg("what keeps the volumes; a directory where --path is given, else Ceph")]
    | None = None,
    path: Annotated[
        str,
        Arg(
            "the directory, which exists",
            metavar="DIRECTORY",
            pattern=r"/(?!.*(?:^|/)\.\.(?:/|$))[^\0\n<>&\"]{1,1023}",
            what="an absolute path",
        ),
    ]
    | None = None,
    node: Annotated[types.NodeName, Arg("the one node that has it; all share it unless given", short="-n")]
    | None = None,
    tier: Annotated[Tier, Arg("in Ceph: on devices of that class, a copy on each host", short="-t")]
    | None = None,
    replcfg: Annotated[
        str,
        Arg(
            f"in Ceph: how many copies, and with how few there is still writing; {REPLICATION} unless given",
            metavar="copies=N,mincopies=M",
            pattern=ceph_pools.REPLICATION,
            what="like copies=3,mincopies=2",
        ),
    ]
    | None = None,
    force: Annotated[bool, Arg("also with fewer hosts than copies, or fewer copies than are safe")] = False,
) -> TaskInfo:
    """Make a pool: in Ceph, or of a directory that one node has, or all have mounted at the same path.

    In Ceph, a pool of that name is made; its placement groups are Ceph's business unless PGS says how many.
    In a directory, a file says which pool it is: what is below a missing mount is not taken for it.
    """
    ctx.view.cluster()
    driver = driver or (Driver.DIR if path else Driver.RBD)
    if pool in (known := ctx.view.pools()):
        raise Conflict(f"there is a pool {pool} already", hint=f"pvc storage pool info {pool}")
    if driver is Driver.DIR:
        _check_absent(driver, pgs=pgs, tier=tier, replcfg=replcfg)
        return _add_directory(ctx, pool, path, node, known.values())
    _check_absent(driver, path=path, node=node)
    plan = ceph_pools.plan(pgs, tier or Tier.DEFAULT, replcfg or REPLICATION, force=force)
    spec = PoolSpec(pool, secrets.token_hex(8), driver, ceph_pool=pool)
    return task.begin(
        ctx,
        "storage.pool-add",
        f"making pool {pool} in Ceph, tier {plan.tier}, {plan.copies} copies",
        _near_ceph(ctx),
        arguments={"pool": to_json(spec), "plan": to_json(plan), "force": force},
    )


def _check_absent(driver: Driver, **given: object) -> None:
    for name, value in given.items():
        if value is not None:
            what = "a pool in Ceph" if driver is Driver.RBD else "a directory"
            raise Invalid(f"{what} has no {name}", hint="pvc storage pool add --help")


def _add_directory(
    ctx: Context, pool: str, path: str | None, node: str | None, known: Iterable[Pool]
) -> TaskInfo:
    if path is None:
        raise Invalid("a pool of driver dir needs a directory", hint="--path /srv/vms")
    path = path.rstrip("/")
    for other in known:
        if other.spec.path == path and (not other.spec.node or other.spec.node == (node or other.spec.node)):
            raise Conflict(f"{path} is pool {other.spec.name} already")
    spec = PoolSpec(pool, secrets.token_hex(8), Driver.DIR, path, node=node or "")
    return task.begin(
        ctx,
        "storage.pool-add",
        f"making {path} pool {pool}, of {node or SHARED}",
        node or _any_running(ctx),
        arguments={"pool": to_json(spec)},
    )


def _near_ceph(ctx: Context) -> str:
    """One that says it reaches it; another one says why not."""
    able = [name for name, node in ctx.view.nodes().items() if node.is_running and _reaches_ceph(node)]
    return min(able, default="") or _any_running(ctx)


def _reaches_ceph(node: Node) -> bool:
    return node.status.ceph is not None and bool(node.status.ceph.fsid)


def _any_running(ctx: Context) -> str:
    running = sorted(name for name, node in ctx.view.nodes().items() if node.is_running)
    if not running:
        raise Conflict("the daemon of no node runs", hint="pvc node list")
    return running[0]


@operation(
    "DELETE",
    "/storage/pool/{pool}",
    noun="storage",
    verb="pool remove",
    role=Role.ADMIN,
    confirm="Remove pool {pool}?",
    waits="task.info",
    done="pool {pool} is removed",
)
def remove(
    ctx: Context,
    pool: PoolName,
    *,
    force: Annotated[bool, Arg("also when it has volumes, or nobody reaches it any more")] = False,
) -> TaskInfo:
    """Remove a pool in which there is nothing: from Ceph, too, while a directory stays.

    With --force the cluster only forgets it: what is in it stays where it is, in Ceph as in a directory.
    """
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


@operation(
    "PUT",
    "/storage/pool/{pool}/pgs",
    noun="storage",
    verb="pool set-pgs",
    role=Role.ADMIN,
    waits="task.info",
    done="Ceph gives pool {pool} that many placement groups by and by",
)
def set_pgs(ctx: Context, pool: PoolName, pgs: PGs | None = None) -> TaskInfo:
    """Give a pool in Ceph so many placement groups; without PGS as many as Ceph finds right."""
    spec = ctx.view.pool(pool).spec
    if spec.driver is not Driver.RBD:
        raise Conflict(f"pool {pool} is a directory, which has no placement groups")
    ceph_pools.check_pgs(pgs or 0)
    words = f"{pgs} placement groups" if pgs else "as many placement groups as Ceph finds right"
    return task.begin(
        ctx,
        "storage.pool-set-pgs",
        f"giving pool {pool} {words}",
        reaching(ctx, spec)[0].spec.name,
        arguments={"pool": pool, "pgs": pgs or 0},
        claims=[paths.pool_claim(pool, ".placement-groups")],
    )


@operation("GET", "/storage/pool/{pool}", noun="storage", verb="pool info")
def info(ctx: Context, pool: PoolName) -> PoolInfo:
    """Show a pool: how it is on each node and in Ceph, how full it is, what is in it."""
    found = ctx.view.pool(pool)
    told = ask(ctx, found.spec, how="whole")
    total, used = told["capacity"]["total_bytes"], told["capacity"]["used_bytes"]
    nodes, facts = ctx.view.nodes(), _facts(told)
    return PoolInfo(
        name=pool,
        driver=found.spec.driver,
        path=found.spec.path,
        reach=found.spec.node or SHARED,
        state=_state(found, nodes),
        health=facts.health if facts else "ok",
        nodes=_on_nodes(found.spec, nodes),
        total_bytes=total,
        used_bytes=used,
        used_percent=used * 100 // max(total, 1),
        volumes=len(told["volumes"]),
        provisioned_bytes=sum(volume["size_bytes"] for volume in told["volumes"]),
        ceph=facts,
        each_second=None if told.get("traffic") is None else from_json(Traffic, told["traffic"]),
    )


def _facts(told: Mapping[str, Any]) -> CephFacts | None:
    """None also from a node with an older pvc."""
    found = told.get("ceph")
    return None if found is None else from_json(CephFacts, found)


@operation(
    "GET",
    "/storage/pool",
    noun="storage",
    verb="pool list",
    columns=("name", "driver", "tier", "copies", "pgs", "total_bytes", "used_bytes", "state", "health"),
)
def list_(ctx: Context, limit: Limit = "") -> tuple[PoolRow, ...]:
    """List pools, with how full each is as far as nodes say so."""
    matches = types.limit_pattern(limit).search
    nodes = ctx.view.nodes()
    return tuple(_row(ctx, one, nodes) for name, one in sorted(ctx.view.pools().items()) if matches(name))


def _row(ctx: Context, pool: Pool, nodes: Mapping[str, Node]) -> PoolRow:
    """One that nobody can tell of is in the list all the same."""
    spec, health = pool.spec, "ok"
    try:
        told = ask(ctx, spec, how="brief")
    except PVCError as error:
        told, health = {}, error.message
    facts, capacity = _facts(told), told.get("capacity", {})
    return PoolRow(
        name=spec.name,
        driver=spec.driver,
        path=spec.path,
        tier=facts.tier if facts else "",
        copies=facts.copies if facts else None,
        pgs=facts.pgs if facts else None,
        total_bytes=capacity.get("total_bytes"),
        used_bytes=capacity.get("used_bytes"),
        reach=spec.node or SHARED,
        state=_state(pool, nodes),
        health=facts.health if facts else health,
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


def who_does(ctx: Context, spec: PoolSpec, volume: str) -> str:
    """What is to be done to a volume."""
    return storage.spread((node.spec.name for node in reaching(ctx, spec)), f"{spec.name}/{volume}")


def ask(ctx: Context, spec: PoolSpec, volume: str = "", *, how: str = "") -> Any:
    """A node that reaches the pool; another one when that does not answer.

    `how`: brief (how it is, not what is in it) or whole (both).
    """
    *others, last = reaching(ctx, spec)[:TRIES]
    path = f"storage/{spec.name}" + (f"/{volume}" if volume else f"?{how}=1" if how else "")
    for node in others:
        try:
            return _asked(ctx, node, path)
        except Unavailable:
            continue
    return _asked(ctx, last, path)


def _asked(ctx: Context, node: Node, path: str) -> Any:
    return ctx.ask(node.spec.address, node.status.console_port, path)
