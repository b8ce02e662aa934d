"""VMs that are made of exports of snapshots: of a node's directory, or of what a client brings."""

from __future__ import annotations

from typing import Annotated

from pvc import sizes
from pvc.cluster import paths
from pvc.cluster.records import absent
from pvc.cluster.storage import Volume
from pvc.commands import task as tasks
from pvc.commands import vm_write
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.storage_transfer import Offset, Taken, carry_piece, going_on, going_on_already
from pvc.commands.storage_volume import user_of
from pvc.commands.task import TaskInfo
from pvc.commands.types import NewName, NodeName, PoolName, TaskName
from pvc.commands.vm_export import Place, settled, whose_directory
from pvc.errors import Conflict, Invalid

UPLOAD = "vm.snapshot-upload"

IntoPool = Annotated[
    PoolName, Arg("where its disks go; into the pools they were in unless given", short="-p")
]
SameIdentity = Annotated[bool, Arg("with the UUID and the MAC addresses that it had; else it gets new ones")]
Retain = Annotated[bool, Arg("keep the snapshot, so that later exports can differ from it", short="-r/-R")]
Force = Annotated[bool, Arg("also when a pool gets fuller than it should")]


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
    node: Annotated[
        NodeName, Arg("the node whose directory it is; needed where there are several", short="-n")
    ]
    | None = None,
    pool: IntoPool | None = None,
    same_identity: SameIdentity = False,
    retain: Retain = True,
    force: Force = False,
) -> TaskInfo:
    """Make a new VM of an exported snapshot, and of those that it differs from. It is stopped.

    Checksums are compared while its disks are made, and a VM of damaged ones is never seen.
    """
    _check_new(ctx, name)
    pools = {pool} if pool else set()
    ops = settled(ctx, pools)
    on = whose_directory(ctx, path, pools, node, None)
    return tasks.begin(
        ctx,
        "vm.snapshot-import",
        f"importing {name} from {path} on {on}",
        on,
        arguments={
            "name": name,
            "path": path,
            "pool": pool or "",
            "same": same_identity,
            "retain": retain,
            "force": force,
        },
        ops=ops,
    )


@operation(
    "POST",
    "/vm/upload",
    noun="vm",
    verb="snapshot upload-begin",
    role=Role.OPERATE,
    waits="task.info",
    done="{name} is a new VM, stopped: pvc vm start {name}",
)
def upload_begin(
    ctx: Context,
    name: NewName,
    *,
    manifest: Annotated[
        tuple[str, ...], Arg("the text of the manifest of each export, the oldest first", metavar="TEXT")
    ],
    pool: IntoPool | None = None,
    same_identity: SameIdentity = False,
    retain: Retain = True,
    force: Force = False,
) -> TaskInfo:
    """Begin a task that makes a VM of exports whose pieces are to come; people have `snapshot upload`.

    What comes is the manifests as they are given here, and then the files that they name and the VM needs,
    one after the other. The same again goes on with what has come.
    """
    from hashlib import sha256

    from pvc.cluster import exports

    documents = [one.encode("utf-8", "surrogatepass") for one in manifest]
    if not 0 < sum(len(one) for one in documents) <= exports.MANIFESTS_BYTES:
        raise Invalid(
            f"all manifests together are to have between 1 and {exports.MANIFESTS_BYTES} bytes",
            hint="a shorter chain: all of a newer snapshot, and what differs from that",
        )
    chain = tuple(exports.read(one, f"manifest {place}") for place, one in enumerate(documents, 1))
    exports.check_order(chain)
    exports.treated(chain[-1])
    _check_new(ctx, name)
    volumes = [*exports.volumes_for(chain[-1], name, pool or "", ctx.view.pools()).values()]
    lengths = [len(one) for one in documents]
    size = sum(lengths) + sum(disk.file_bytes for _, disk in exports.needed(chain))
    asked = {
        "name": name,
        "pool": pool or "",
        "same": same_identity,
        "retain": retain,
        "force": force,
        "manifests": lengths,
        "sha256": sha256(b"".join(documents)).hexdigest(),
        "size_bytes": size,
    }
    if before := going_on_already(ctx, UPLOAD, _claim(volumes[0]), asked):
        return before
    for one in volumes:
        if (user := user_of(ctx, one.pool, one.name)) is not None:
            raise Conflict(f"volume {one} is a disk of {user.spec.name}", hint="choose another name")
    about = f"making {name} of an export that is sent ({sizes.show(size)})"
    unused = [op for one in volumes for op in absent(paths.pool_vm(one.pool, one.name))]
    return vm_write.begin(ctx, UPLOAD, about, None, volumes, arguments=asked, ops=unused)


@operation(
    "PUT",
    "/task/{task}/export",
    noun="vm",
    verb="snapshot upload-piece",
    role=Role.OPERATE,
    done="{next} bytes of {size_bytes} are there",
)
def upload_piece(
    ctx: Context,
    task: TaskName,
    *,
    offset: Offset,
    piece: Annotated[bytes, Arg("up to 4 MiB of it; none asks which is wanted next")] = b"",
) -> Taken:
    """Bring what comes next. A piece that came already, or that there is no room for yet, changes nothing."""
    return carry_piece(ctx, going_on(ctx, task, UPLOAD), {"offset": offset}, piece)


def _check_new(ctx: Context, name: str) -> None:
    ctx.view.cluster()
    if (other := ctx.reader.get(paths.vm_name(name))) is not None:
        raise Conflict(
            f"there is a VM named {name} already, {other.data.decode()}", hint="choose another name"
        )


def _claim(volume: Volume) -> str:
    return paths.pool_claim(volume.pool, volume.name)
