"""Snapshots of VMs that leave the cluster."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pvc.cluster import paths
from pvc.cluster.storage import spread, who_reaches
from pvc.cluster.store import Check, Op
from pvc.commands import task
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.storage_transfer import Offset, carry, going_on
from pvc.commands.task import TaskInfo
from pvc.commands.types import NodeName, TaskName, VMName, VMSnapshotName
from pvc.commands.vm_snapshot import document
from pvc.errors import Conflict, Invalid, Unavailable

if TYPE_CHECKING:
    from pvc.cluster.view import VM

DOWNLOAD = "vm.snapshot-download"

Place = Annotated[
    str,
    Arg(metavar="PATH", pattern=r"/(?!.*(?:^|/)\.\.(?:/|$))[^\0\n]{0,1023}", what="an absolute path"),
]


@operation(
    "POST",
    "/vm/{vm}/snapshot/{snapshot}/export",
    noun="vm",
    verb="snapshot export",
    role=Role.ADMIN,
    waits="task.info",
    done="snapshot {snapshot} of {vm} is exported to {path}",
)
def export(
    ctx: Context,
    vm: VMName,
    snapshot: VMSnapshotName,
    path: Annotated[Place, Arg("a directory of the node, in which a new one is made: VM-SNAPSHOT")],
    *,
    parent: Annotated[
        VMSnapshotName,
        Arg("only what differs from that snapshot, whose export is in the same directory", short="-i"),
    ]
    | None = None,
    node: Annotated[NodeName, Arg("the node whose directory it is; the VM's own unless given", short="-n")]
    | None = None,
) -> TaskInfo:
    """Write a snapshot of a VM into a directory of a node: definition, disks, and checksums of them.

    Disks are in the format of `rbd export-diff`. All of it is read again before the new directory gets its
    name: one that failed leaves nothing. `snapshot download` writes the same into a file where you are.
    """
    return _begin(ctx, "vm.snapshot-export", vm, snapshot, parent, node, path)


def _begin(
    ctx: Context, kind: str, vm: str, snapshot: str, parent: str | None, node: str | None, path: str = ""
) -> TaskInfo:
    found = ctx.view.vm(vm)
    name = found.spec.name
    kept = document(ctx, found.spec, snapshot)
    if parent is not None:
        earlier = document(ctx, found.spec, parent)
        if earlier.at >= kept.at:
            raise Conflict(f"snapshot {parent} of {name} is not older than {snapshot}")
    pools = {disk.pool for disk in kept.disks}
    on = whose_directory(ctx, path, pools, node, _own(found)) if path else _any_node(ctx, found, pools)
    only = f", what differs from {parent}" if parent else ""
    about = f"exporting snapshot {snapshot} of {name}{only} to {path} on {on}"
    if kind == DOWNLOAD:
        about = f"handing out snapshot {snapshot} of {name}{only}"
    arguments = {"vm": found.spec.uuid, "name": name, "snapshot": snapshot, "parent": parent or ""}
    return task.begin(
        ctx,
        kind,
        about,
        on,
        arguments=arguments | ({"path": path} if path else {}),
        claims=[paths.pool_claim(disk.pool, disk.volume) for disk in kept.disks],
        ops=settled(ctx, pools),
    )


@operation(
    "POST",
    "/vm/{vm}/snapshot/{snapshot}/download",
    noun="vm",
    verb="snapshot download-begin",
    role=Role.OPERATE,
    waits="task.info",
    done="snapshot {snapshot} of {vm} was handed out",
)
def download_begin(
    ctx: Context,
    vm: VMName,
    snapshot: VMSnapshotName,
    *,
    parent: Annotated[VMSnapshotName, Arg("only what differs from that snapshot", short="-i")] | None = None,
) -> TaskInfo:
    """Begin a task that makes an export, as a zip file, while it is fetched; people: `snapshot download`."""
    return _begin(ctx, DOWNLOAD, vm, snapshot, parent, None)


@operation("GET", "/task/{task}/export", noun="vm", verb="snapshot download-piece", role=Role.OPERATE)
def download_piece(ctx: Context, task: TaskName, *, offset: Offset) -> bytes:
    """Fetch what comes at an offset: in order, the last piece again if need be.

    Nothing: nothing more has been made yet, or that was all. Ending it tells which.
    """
    return carry(ctx, going_on(ctx, task, DOWNLOAD), "piece", {"offset": offset})


@dataclass(frozen=True, slots=True)
class Handed:
    is_whole: bool
    """Else there is more to fetch, and the task goes on."""


@operation(
    "POST",
    "/task/{task}/export/end",
    noun="vm",
    verb="snapshot download-end",
    role=Role.OPERATE,
    done="whether task {task} has handed out all of it: {is_whole}",
)
def download_end(ctx: Context, task: TaskName, *, offset: Offset) -> Handed:
    """End a download of which all up to an offset has come, if that is all of it.

    The result of the task says how large it is, and its SHA-256.
    """
    found = going_on(ctx, task, DOWNLOAD)
    ctx.say(f"{found.spec.node} lets go of the snapshot when that was all")
    if ctx.planning:
        return Handed(is_whole=True)
    return Handed(**json.loads(carry(ctx, found, "end", {"offset": offset}, b"")))


def settled(ctx: Context, pools: set[str]) -> list[Op]:
    """Or one has begun to leave. Raises Conflict, NotFound."""
    found = [ctx.view.pool(name) for name in sorted(pools)]
    for one in found:
        if one.spec.leaving:
            raise Conflict(f"pool {one.spec.name} is being removed", hint="pvc task list")
    return [Check(paths.pool(one.spec.name), one.spec_version) for one in found]


def whose_directory(ctx: Context, path: str, pools: set[str], asked: str | None, own: str | None) -> str:
    """The node that was asked for, else the VM's own, else the only one that it can be: what a path means on
    another one nobody knows. Raises Invalid, NotFound, Unavailable."""
    if asked is not None:
        ctx.view.node(asked)
    having = {one for name in pools if (one := ctx.view.pool(name).spec.node)} or {*ctx.view.nodes()}
    node = asked or own or (having.pop() if len(having) == 1 else "")
    if not node:
        raise Invalid(f"which node has {path}? it could be any of {', '.join(sorted(having))}", hint="--node")
    if node not in _able(ctx, pools):
        raise Unavailable(f"{node} does not reach {_named(pools)} now", hint="--node says another one")
    return node


def _any_node(ctx: Context, vm: VM, pools: set[str]) -> str:
    """The VM's own where that can. Raises Unavailable."""
    able, own = _able(ctx, pools), _own(vm)
    if not able:
        raise Unavailable(f"no node reaches all of {_named(pools)} now")
    return own if own in able else spread(able, vm.spec.uuid)


def _own(vm: VM) -> str | None:
    return vm.status.owner.node if vm.status.owner is not None else vm.spec.node


def _able(ctx: Context, pools: set[str]) -> set[str]:
    """Those that reach all of the pools. Raises Unavailable."""
    nodes = ctx.view.nodes()
    able = {name for name, node in nodes.items() if node.is_running}
    for pool in sorted(pools):
        able &= {one.spec.name for one in who_reaches(ctx.view.pool(pool).spec, nodes.values())}
    return able


def _named(pools: set[str]) -> str:
    return ", ".join(sorted(pools)) or "the cluster"
