"""Snapshots of VMs that leave the cluster, and come back as VMs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

from pvc.cluster import paths
from pvc.cluster.storage import who_reaches
from pvc.cluster.store import Check, Op
from pvc.commands import task
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.storage_transfer import Offset, carry, going_on
from pvc.commands.task import TaskInfo
from pvc.commands.types import NewName, NodeName, PoolName, SnapshotName, TaskName, VMName
from pvc.commands.vm_snapshot import document
from pvc.errors import Conflict, Unavailable

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
    snapshot: SnapshotName,
    path: Annotated[Place, Arg("a directory of the node, in which a new one is made: VM-SNAPSHOT")],
    *,
    parent: Annotated[
        SnapshotName,
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
    on = _node(ctx, found, pools, node)
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
        ops=_same(ctx, pools),
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
    snapshot: SnapshotName,
    *,
    parent: Annotated[SnapshotName, Arg("only what differs from that snapshot", short="-i")] | None = None,
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


@operation(
    "POST",
    "/vm/import",
    noun="vm",
    verb="snapshot import",
    role=Role.ADMIN,
    waits="task.info",
    done="{name} is a new VM, stopped: pvc vm start {name}",
)
def import_(
    ctx: Context,
    name: NewName,
    path: Annotated[Place, Arg("the directory of the export, beside those that it needs")],
    *,
    node: Annotated[NodeName, Arg("the node whose directory it is", short="-n")] | None = None,
    pool: Annotated[PoolName, Arg("where its disks go; into the pools they were in unless given", short="-p")]
    | None = None,
    same_identity: Annotated[
        bool, Arg("with the UUID and the MAC addresses that it had; else it gets new ones")
    ] = False,
    retain: Annotated[
        bool, Arg("keep the snapshot, so that later exports can differ from it", short="-r/-R")
    ] = (True),
    force: Annotated[bool, Arg("also when a pool gets fuller than it should")] = False,
) -> TaskInfo:
    """Make a new VM of an exported snapshot, and of those that it differs from. It is stopped.

    Checksums are compared while its disks are made, and a VM of damaged ones is never seen.
    """
    ctx.view.cluster()
    if (other := ctx.reader.get(paths.vm_name(name))) is not None:
        raise Conflict(
            f"there is a VM named {name} already, {other.data.decode()}", hint="choose another name"
        )
    pools = {pool} if pool else set()
    on = _node(ctx, None, pools, node)
    return task.begin(
        ctx,
        "vm.snapshot-import",
        f"importing {name} from {path} on {on}",
        on,
        arguments={
            "name": name,
            "uuid": str(uuid4()),
            "path": path,
            "pool": pool or "",
            "same": same_identity,
            "retain": retain,
            "force": force,
        },
        ops=_same(ctx, pools),
    )


def _same(ctx: Context, pools: set[str]) -> list[Op]:
    """Or one has begun to leave. Raises Conflict, NotFound."""
    found = [ctx.view.pool(name) for name in sorted(pools)]
    for one in found:
        if one.spec.leaving:
            raise Conflict(f"pool {one.spec.name} is being removed", hint="pvc task list")
    return [Check(paths.pool(one.spec.name), one.spec_version) for one in found]


def _node(ctx: Context, vm: VM | None, pools: set[str], asked: str | None) -> str:
    """That reaches all of the pools: the one that was asked for, or the VM's own. Raises Unavailable."""
    nodes = ctx.view.nodes()
    able = {name for name, node in nodes.items() if node.is_running}
    for pool in sorted(pools):
        able &= {one.spec.name for one in who_reaches(ctx.view.pool(pool).spec, nodes.values())}
    if asked is not None:
        ctx.view.node(asked)
        if asked not in able:
            raise Unavailable(f"{asked} does not reach {', '.join(sorted(pools)) or 'the cluster'} now")
        return asked
    if not able:
        raise Unavailable(f"no node reaches all of {', '.join(sorted(pools)) or 'the cluster'} now")
    own = vm.status.owner.node if vm is not None and vm.status.owner is not None else None
    return own if own in able else min(able)
