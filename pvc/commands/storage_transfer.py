"""Images into volumes and content out of them, piece by piece, for programs; people have `volume upload`.

A task on a node holds the volume; pieces go to that node through whatever API server they come to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

from pvc import sizes
from pvc.cluster import paths
from pvc.cluster.images import ImageFormat
from pvc.cluster.storage import Driver, Format, PoolSpec, check_size
from pvc.cluster.store import Check
from pvc.cluster.tasks import TaskState
from pvc.commands import task as tasks
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.storage_pool import who_does
from pvc.commands.task import TaskInfo, describe
from pvc.commands.types import PoolName, TaskName, VolumeName
from pvc.errors import Conflict, Unavailable, from_code

if TYPE_CHECKING:
    from pvc.cluster.view import Pool, Task

UPLOAD, DOWNLOAD = "storage.volume-upload", "storage.volume-download"
SHA256 = r"[0-9a-f]{64}"
MOST_BYTES = 1024**5
PIECE_BYTES = 4 * 1024**2

NewVolume = Annotated[VolumeName, Arg("what the volume is called", metavar="NAME", complete="none")]
Raw = Annotated[bool, Arg("a raw volume in a directory: a little faster, without snapshots")]
Force = Annotated[bool, Arg("also when the pool gets fuller than it should")]
Offset = Annotated[int, Arg("where in it", metavar="BYTES", minimum=0, maximum=MOST_BYTES)]


@dataclass(frozen=True, slots=True)
class Taken:
    next: int
    """The offset that is wanted now: the same as before when the piece was not."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Stretch:
    extents: tuple[tuple[int, int], ...]
    """(offset, length) of what is not only zeros, up to `until`."""
    until: int
    size_bytes: int
    """Of the volume."""


@operation(
    "POST",
    "/storage/volume/{pool}/{volume}/upload",
    noun="storage",
    verb="volume upload-begin",
    role=Role.OPERATE,
    waits="task.info",
    done="volume {volume} in pool {pool} is there",
)
def upload_begin(
    ctx: Context,
    pool: PoolName,
    volume: NewVolume,
    *,
    size: Annotated[
        int, Arg("of the file that is to come, in bytes", metavar="BYTES", minimum=1, maximum=MOST_BYTES)
    ],
    format: Annotated[ImageFormat, Arg("what kind of file it is", long="image-format")],
    fingerprint: Annotated[
        str,
        Arg("of the file: who names the same one goes on with an upload", pattern=SHA256, what="a sha256"),
    ] = "",
    raw: Raw = False,
    force: Force = False,
) -> TaskInfo:
    """Begin a task that makes a volume of a file, whose pieces are to come within a minute each."""
    found = ctx.view.pool(pool)
    if format is ImageFormat.RAW:
        check_size(size)
    asked = {
        "pool": pool,
        "volume": volume,
        "image_format": str(format),
        "format": str(_made(found.spec, raw)),
        "size_bytes": size,
        "fingerprint": fingerprint,
        "force": force,
    }
    if fingerprint and (before := going_on_already(ctx, UPLOAD, paths.pool_claim(pool, volume), asked)):
        return before
    about = f"taking volume {volume} into pool {pool} ({format}, {sizes.show(size)})"
    return _begin(ctx, UPLOAD, about, found, volume, asked)


def _made(spec: PoolSpec, raw: bool) -> Format:
    return Format.RAW if raw or spec.driver is not Driver.DIR else Format.QCOW2


def going_on_already(ctx: Context, kind: str, claimed: str, asked: Mapping[str, Any]) -> TaskInfo | None:
    """The same task that has claimed that."""
    claim = ctx.store.get(claimed)
    found = ctx.view.tasks([claim.data.decode()]) if claim is not None else {}
    for one in found.values():
        told = describe(one, ctx.view.nodes([one.spec.node]).get(one.spec.node))
        if one.spec.kind == kind and dict(one.spec.arguments) == asked and not told.state.is_over:
            ctx.say(f"task {told.name} goes on")
            return replace(told, goal={"state": TaskState.DONE})
    return None


def _begin(
    ctx: Context, kind: str, about: str, pool: Pool, volume: str, asked: Mapping[str, Any]
) -> TaskInfo:
    name = pool.spec.name
    if pool.spec.leaving:
        raise Conflict(f"pool {name} is being removed", hint="pvc task list")
    return tasks.begin(
        ctx,
        kind,
        about,
        who_does(ctx, pool.spec, volume),
        arguments=asked,
        claims=[paths.pool_claim(name, volume)],
        ops=[Check(paths.pool(name), pool.spec_version)],
    )


@operation(
    "PUT",
    "/storage/upload/{task}",
    noun="storage",
    verb="volume upload-piece",
    role=Role.OPERATE,
    done="{next} bytes of {size_bytes} are there",
)
def upload_piece(
    ctx: Context,
    task: TaskName,
    *,
    offset: Offset,
    sha256: Annotated[
        str, Arg("of the whole file, with its last piece", pattern=f"({SHA256})?", what="a sha256")
    ] = "",
    piece: Annotated[bytes, Arg("up to 4 MiB of the file; none asks which is wanted next")] = b"",
) -> Taken:
    """Bring a piece of a file, in order. One that is there already, or comes too early, changes nothing."""
    query = {"offset": offset} | ({"sha256": sha256} if sha256 else {})
    return carry_piece(ctx, going_on(ctx, task, UPLOAD), query, piece)


def carry_piece(ctx: Context, task: Task, query: Mapping[str, Any], piece: bytes) -> Taken:
    """`query` says at least the offset."""
    if ctx.planning:
        ctx.say(f"{task.spec.node} takes {len(piece)} bytes")
        return Taken(query["offset"] + len(piece), task.spec.arguments["size_bytes"])
    return Taken(**json.loads(carry(ctx, task, "piece", query, piece)))


@operation(
    "POST",
    "/storage/volume/{pool}/{volume}/download",
    noun="storage",
    verb="volume download-begin",
    role=Role.OPERATE,
    waits="task.info",
    done="volume {volume} of pool {pool} was handed out",
)
def download_begin(ctx: Context, pool: PoolName, volume: VolumeName) -> TaskInfo:
    """Begin a task that holds a volume as it is now, for its content to be fetched.

    In a directory a volume in use is refused, and cannot be used meanwhile; in Ceph nobody is held up.
    """
    about = f"handing out volume {volume} of pool {pool}"
    return _begin(ctx, DOWNLOAD, about, ctx.view.pool(pool), volume, {"pool": pool, "volume": volume})


@operation(
    "GET", "/storage/download/{task}/map", noun="storage", verb="volume download-map", role=Role.OPERATE
)
def download_map(ctx: Context, task: TaskName, *, offset: Offset = 0) -> Stretch:
    """Where from an offset on there is something to fetch: what is left out is zeros."""
    answer = json.loads(carry(ctx, going_on(ctx, task, DOWNLOAD), "map", {"offset": offset}))
    extents = tuple((first, count) for first, count in answer["extents"])
    return Stretch(extents, answer["until"], answer["size_bytes"])


@operation("GET", "/storage/download/{task}", noun="storage", verb="volume download-piece", role=Role.OPERATE)
def download_piece(
    ctx: Context,
    task: TaskName,
    *,
    offset: Offset,
    length: Annotated[
        int, Arg("how much, up to 4 MiB", metavar="BYTES", minimum=1, maximum=PIECE_BYTES)
    ] = PIECE_BYTES,
) -> bytes:
    """Fetch content of the volume."""
    found = going_on(ctx, task, DOWNLOAD)
    return carry(ctx, found, "piece", {"offset": offset, "length": length})


@operation(
    "POST",
    "/storage/download/{task}/end",
    noun="storage",
    verb="volume download-end",
    role=Role.OPERATE,
    done="task {task} ends",
)
def download_end(ctx: Context, task: TaskName) -> None:
    """End a download that is done, and let go of the volume."""
    found = going_on(ctx, task, DOWNLOAD)
    ctx.say(f"{found.spec.node} lets go of the volume")
    if not ctx.planning:
        carry(ctx, found, "end", {}, b"")


def going_on(ctx: Context, task: str, kind: str) -> Task:
    """Raises Conflict, or the error that the task has ended with."""
    found = ctx.view.task(task)
    if found.spec.kind != kind:
        raise Conflict(f"task {task} is another one: {found.spec.about}")
    if found.status.state.is_over:
        if error := found.status.error:
            raise from_code(error.code, error.message, error.hint)
        raise Conflict(f"task {task} is over: {found.status.state}", hint="begin again")
    return found


def carry(
    ctx: Context, task: Task, what: str, query: Mapping[str, object], piece: bytes | None = None
) -> bytes:
    node = ctx.view.node(task.spec.node)
    if not node.status.console_port:
        raise Unavailable(f"{task.spec.node} is not reached: its daemon is {node.daemon_state}")
    path = f"transfer/{task.spec.id}/{what}?{urlencode(query)}"
    return ctx.carry(node.spec.address, node.status.console_port, path, piece)
