"""Volumes: the disks of VMs, and their snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pvc import sizes
from pvc.cluster import paths
from pvc.cluster.records import absent, name_of
from pvc.cluster.storage import Format, Volume, check_format, default_format
from pvc.cluster.store import Check, Op
from pvc.cluster.vm import Power
from pvc.commands import task, types, vm_write
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.storage_pool import ask, who_does
from pvc.commands.task import TaskInfo
from pvc.commands.types import Limit, NewVolumeName, PoolName, SnapshotName, VolumeName, VolumeSize
from pvc.errors import Conflict, Invalid

if TYPE_CHECKING:
    from pvc.cluster.view import VM

Force = Annotated[bool, Arg("also when the pool gets fuller than it should", short="-f")]


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    name: str
    at: float
    size_bytes: int
    """Of the volume at that time."""
    is_protected: bool


@dataclass(frozen=True, slots=True)
class VolumeRow:
    pool: str
    name: str
    size_bytes: int
    used_bytes: int | None
    """None where it would take long to find out: `volume info` tells."""
    format: Format
    problem: str = ""
    """What is wrong with it: then nobody knows its size."""


@dataclass(frozen=True, slots=True)
class VolumeUser:
    """Who has a volume in Ceph open."""

    address: str
    client: str
    has_lock: bool


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    pool: str
    name: str
    size_bytes: int
    """What a guest sees."""
    used_bytes: int
    """What it takes of the pool."""
    format: Format
    location: str
    """What the definition of a VM says for it."""
    is_open: bool
    """Somebody, on whatever node, has it open as a disk."""
    vm: str | None
    """Whose disk it is."""
    users: tuple[VolumeUser, ...]
    """Who that is, of a volume in Ceph."""
    snapshots: tuple[SnapshotRow, ...]
    problem: str = ""


# Looking


@operation("GET", "/storage/volume/{pool}/{volume}", noun="storage", verb="volume info")
def info(ctx: Context, pool: PoolName, volume: VolumeName) -> VolumeInfo:
    """Show a volume: exact size, use, whether it is open, which VMs have it, its snapshots."""
    spec = ctx.view.pool(pool).spec
    told = ask(ctx, spec, volume)
    return VolumeInfo(
        pool=pool,
        location=told["location"],
        is_open=told["is_open"],
        vm=vm.spec.name if (vm := user_of(ctx, pool, volume)) is not None else None,
        users=tuple(VolumeUser(**one) for one in told.get("users", ())),
        snapshots=tuple(SnapshotRow(**one) for one in told["snapshots"]),
        **told["volume"],
    )


@operation("GET", "/storage/volume", noun="storage", verb="volume list")
def list_(
    ctx: Context,
    limit: Limit = "",
    *,
    pool: Annotated[types.PoolName, Arg("only volumes in that pool", short="-p")] | None = None,
) -> tuple[VolumeRow, ...]:
    """List volumes: of all pools, or of one."""
    matches = types.limit_pattern(limit).search
    wanted = [ctx.view.pool(pool)] if pool else ctx.view.pools().values()
    told = {one.spec.name: ask(ctx, one.spec)["volumes"] for one in wanted}
    return tuple(
        VolumeRow(pool=name, **volume)
        for name, volumes in sorted(told.items())
        for volume in volumes
        if matches(volume["name"])
    )


@operation("GET", "/storage/snapshot/{pool}/{volume}", noun="storage", verb="volume snapshot list")
def snapshots(ctx: Context, pool: PoolName, volume: VolumeName) -> tuple[SnapshotRow, ...]:
    """List the snapshots of a volume, the oldest first."""
    told = ask(ctx, ctx.view.pool(pool).spec, volume)
    return tuple(SnapshotRow(**one) for one in told["snapshots"])


# Volumes


@operation(
    "POST",
    "/storage/volume/{pool}/{volume}",
    noun="storage",
    verb="volume add",
    role=Role.OPERATE,
    waits="task.info",
    done="volume {volume} in pool {pool} is there",
)
def add(
    ctx: Context,
    pool: PoolName,
    volume: Annotated[VolumeName, Arg("what it is called", metavar="NAME", complete="none")],
    size: VolumeSize,
    *,
    format: Annotated[
        Format,
        Arg("in a directory: qcow2 unless given, or raw, without snapshots", long="image-format"),
    ]
    | None = None,
    force: Force = False,
) -> TaskInfo:
    """Make an empty volume. It takes space when it is written to; counted is the size that it may get."""
    size_bytes = types.volume_bytes(size)
    spec = ctx.view.pool(pool).spec
    format = format or default_format(spec)
    check_format(spec, format)
    about = f"adding volume {volume} ({sizes.show(size_bytes)}) to pool {pool}"
    asked = {"size_bytes": size_bytes, "format": str(format), "force": force}
    return _begin(ctx, "add", about, pool, volume, asked)


@operation(
    "DELETE",
    "/storage/volume/{pool}/{volume}",
    noun="storage",
    verb="volume remove",
    role=Role.OPERATE,
    confirm="Remove volume {volume} of pool {pool}, with all that is on it and its snapshots?",
    waits="task.info",
    done="volume {volume} of pool {pool} is removed",
)
def remove(
    ctx: Context,
    pool: PoolName,
    volume: VolumeName,
    *,
    force: Annotated[bool, Arg("also when its clones fill the pool more than it should be")] = False,
) -> TaskInfo:
    """Remove a volume that no VM has, with its snapshots unless one is protected."""
    ops = _check_unused(ctx, pool, volume)
    _check_unkept(ctx, pool, volume)
    about = f"removing volume {volume} of pool {pool}"
    return _begin(ctx, "remove", about, pool, volume, {"force": force}, ops=ops)


@operation(
    "PATCH",
    "/storage/volume/{pool}/{volume}",
    noun="storage",
    verb="volume resize",
    role=Role.OPERATE,
    waits="task.info",
    done="volume {volume} of pool {pool} has its new size",
)
def resize(
    ctx: Context,
    pool: PoolName,
    volume: VolumeName,
    size: VolumeSize,
    *,
    shrink: Annotated[bool, Arg("also smaller: what is at its end is lost")] = False,
    force: Annotated[bool, Arg("also when the pool gets fuller than it should")] = False,
) -> TaskInfo:
    """Make a volume larger, also while its VM runs: the guest sees it. With --shrink also smaller, while
    nobody has it open."""
    size_bytes = types.volume_bytes(size)
    about = f"resizing volume {volume} of pool {pool} to {sizes.show(size_bytes)}"
    asked: dict[str, Any] = {"size_bytes": size_bytes, "shrink": shrink, "force": force}
    vm = user_of(ctx, pool, volume)
    if vm is None or vm.status.owner is None:
        return _begin(ctx, "resize", about, pool, volume, asked, ops=_check_rests(ctx, pool, volume))
    asked |= {"pool": pool, "volume": volume, "vm": vm.spec.uuid}
    return vm_write.begin(ctx, "storage.volume-resize", about, vm, [Volume(pool, volume)], arguments=asked)


@operation(
    "POST",
    "/storage/volume/{pool}/{volume}/rename",
    noun="storage",
    verb="volume rename",
    role=Role.OPERATE,
    waits="task.info",
    done="volume {volume} of pool {pool} is {new} now",
)
def rename(ctx: Context, pool: PoolName, volume: VolumeName, new: NewVolumeName) -> TaskInfo:
    """Give a volume that no VM has another name. Its snapshots stay with it."""
    ops = _check_unused(ctx, pool, volume)
    _check_unkept(ctx, pool, volume)
    about = f"renaming volume {volume} of pool {pool} to {new}"
    return _begin(ctx, "rename", about, pool, volume, {"new_volume": new}, also=[new], ops=ops)


@operation(
    "POST",
    "/storage/volume/{pool}/{volume}/clone",
    noun="storage",
    verb="volume clone",
    role=Role.OPERATE,
    waits="task.info",
    done="volume {new} in pool {pool} is a clone of {volume}",
)
def clone(
    ctx: Context,
    pool: PoolName,
    volume: VolumeName,
    new: Annotated[VolumeName, Arg("what the clone is called", metavar="NEW", complete="none")],
    *,
    flatten: Annotated[bool, Arg("copy all of it now, and share nothing")] = False,
    force: Annotated[bool, Arg("also when the pool gets fuller than it should")] = False,
) -> TaskInfo:
    """Make a volume with the same content. Either may be changed and removed without the other.

    They share blocks until one writes to them: in Ceph, and in a directory where the file system can (XFS,
    btrfs), so that it is there at once; else it is copied. In a directory nobody may have it open.
    """
    about = f"cloning volume {volume} of pool {pool} to {new}"
    # Others may clone the same one: only the new one is claimed, unless what is copied has to stay there.
    claims = [volume, new] if flatten else [new]
    asked = {"new_volume": new, "flatten": flatten, "force": force}
    return _begin(ctx, "clone", about, pool, volume, asked, claims=claims)


# Their snapshots


@operation(
    "POST",
    "/storage/snapshot/{pool}/{volume}/{snapshot}",
    noun="storage",
    verb="volume snapshot add",
    role=Role.OPERATE,
    waits="task.info",
    done="volume {volume} of pool {pool} has a snapshot {snapshot}",
)
def add_snapshot(
    ctx: Context,
    pool: PoolName,
    volume: VolumeName,
    snapshot: Annotated[SnapshotName, Arg("what it is called", metavar="NAME", complete="none")],
) -> TaskInfo:
    """Keep a volume as it is now. Not while it is in use."""
    _check_own_name(snapshot)
    return _of_snapshot(ctx, "add", "taking", pool, volume, snapshot)


@operation(
    "DELETE",
    "/storage/snapshot/{pool}/{volume}/{snapshot}",
    noun="storage",
    verb="volume snapshot remove",
    role=Role.OPERATE,
    confirm="Remove snapshot {snapshot} of volume {volume} in pool {pool}?",
    waits="task.info",
    done="snapshot {snapshot} of volume {volume} is removed",
)
def remove_snapshot(ctx: Context, pool: PoolName, volume: VolumeName, snapshot: SnapshotName) -> TaskInfo:
    """Remove a snapshot that is not protected. The volume stays as it is."""
    _check_no_part(ctx, snapshot)
    return _of_snapshot(ctx, "remove", "removing", pool, volume, snapshot)


@operation(
    "POST",
    "/storage/snapshot/{pool}/{volume}/{snapshot}/rename",
    noun="storage",
    verb="volume snapshot rename",
    role=Role.OPERATE,
    waits="task.info",
    done="snapshot {snapshot} of volume {volume} is {new} now",
)
def rename_snapshot(
    ctx: Context,
    pool: PoolName,
    volume: VolumeName,
    snapshot: SnapshotName,
    new: Annotated[SnapshotName, Arg("its name from now on", metavar="NEW", complete="none")],
) -> TaskInfo:
    """Give a snapshot another name."""
    _check_own_name(new)
    _check_no_part(ctx, snapshot)
    return _of_snapshot(ctx, "rename", "renaming", pool, volume, snapshot, new=new)


@operation(
    "POST",
    "/storage/snapshot/{pool}/{volume}/{snapshot}/rollback",
    noun="storage",
    verb="volume snapshot rollback",
    role=Role.OPERATE,
    confirm="Bring volume {volume} of pool {pool} back to {snapshot}, and lose what was written since?",
    waits="task.info",
    done="volume {volume} of pool {pool} is as it was at {snapshot}",
)
def roll_back(ctx: Context, pool: PoolName, volume: VolumeName, snapshot: SnapshotName) -> TaskInfo:
    """Bring back content and size that a volume had. Not while it is in use."""
    ops = _check_rests(ctx, pool, volume)
    return _of_snapshot(ctx, "rollback", "rolling back to", pool, volume, snapshot, ops)


@operation(
    "POST",
    "/storage/snapshot/{pool}/{volume}/{snapshot}/protect",
    noun="storage",
    verb="volume snapshot protect",
    role=Role.OPERATE,
    waits="task.info",
    done="protection of snapshot {snapshot} is changed",
)
def protect(
    ctx: Context,
    pool: PoolName,
    volume: VolumeName,
    snapshot: SnapshotName,
    *,
    off: Annotated[bool, Arg("it may be removed again")] = False,
) -> TaskInfo:
    """Keep a snapshot, and its volume, from being removed."""
    words = "unprotecting" if off else "protecting"
    return _of_snapshot(ctx, "protect", words, pool, volume, snapshot, on=not off)


def _of_snapshot(
    ctx: Context,
    verb: str,
    words: str,
    pool: str,
    volume: str,
    snapshot: str,
    ops: Iterable[Op] = (),
    **asked: Any,
) -> TaskInfo:
    about = f"{words} snapshot {snapshot} of volume {volume} in pool {pool}"
    return _begin(ctx, f"snapshot-{verb}", about, pool, volume, {"snapshot": snapshot, **asked}, ops=ops)


def _begin(
    ctx: Context,
    verb: str,
    about: str,
    pool: str,
    volume: str,
    asked: Mapping[str, Any] | None = None,
    *,
    also: Iterable[str] = (),
    claims: Iterable[str] | None = None,
    ops: Iterable[Op] = (),
) -> TaskInfo:
    """A task that has the volume, and what else it names, for itself."""
    found = ctx.view.pool(pool)
    if found.spec.leaving:
        raise Conflict(f"pool {pool} is being removed", hint="pvc task list")
    names = [volume, *also] if claims is None else claims
    return task.begin(
        ctx,
        f"storage.volume-{verb}",
        about,
        who_does(ctx, found.spec, volume),
        arguments={"pool": pool, "volume": volume, **(asked or {})},
        claims=[paths.pool_claim(pool, name) for name in names],
        ops=[Check(paths.pool(pool), found.spec_version), *ops],  # or it has begun to leave
    )


def _check_own_name(snapshot: str) -> None:
    from pvc.cluster.snapshots import RESERVED

    if snapshot.startswith(RESERVED):
        raise Invalid(f"{snapshot}: names that begin with {RESERVED} are of snapshots of VMs")


def _check_no_part(ctx: Context, snapshot: str) -> None:
    if whose := _part_of(ctx, snapshot):
        raise Conflict(f"{snapshot} is a part of {whose}", hint="pvc vm snapshot remove")


def _part_of(ctx: Context, snapshot: str) -> str:
    """Of which snapshot of a VM a volume's is a part; empty: of none."""
    from pvc.cluster.snapshots import vm_part

    if (found := vm_part(snapshot)) is None:
        return ""
    beginning, name = found
    uuids = [one for one in ctx.store.children(paths.SNAPSHOTS) if one.startswith(beginning)]
    for vm in ctx.view.vms(uuids).values():
        if name in vm.spec.snapshots:
            return f"snapshot {name} of {vm.spec.name}"
    return ""


def _check_unkept(ctx: Context, pool: str, volume: str) -> None:
    """By a snapshot of a VM, which it may have been a disk of."""
    if not ctx.store.children(paths.SNAPSHOTS):
        return
    for one in ask(ctx, ctx.view.pool(pool).spec, volume)["snapshots"]:
        if whose := _part_of(ctx, one["name"]):
            raise Conflict(
                f"volume {volume} of pool {pool} is in {whose}",
                hint="remove that first: pvc vm snapshot remove",
            )


# Who has it


def user_of(ctx: Context, pool: str, volume: str) -> VM | None:
    """The VM whose disk it is."""
    stored = ctx.store.get(paths.pool_vm(pool, volume))
    if stored is None:
        return None
    uuid = stored.data.decode()
    found = ctx.view.vms([uuid]).get(uuid)
    if found is None:
        raise Conflict(f"volume {volume} of pool {pool} belongs to {name_of(ctx.view, uuid)}")
    return found


def _check_unused(ctx: Context, pool: str, volume: str) -> tuple[Op, ...]:
    """What holds the commit to it."""
    if (vm := user_of(ctx, pool, volume)) is not None:
        name = vm.spec.name
        raise Conflict(
            f"volume {volume} of pool {pool} is a disk of {name}",
            hint=f"pvc vm volume remove {name} {pool}/{volume}",
        )
    return absent(paths.pool_vm(pool, volume))


def _check_rests(ctx: Context, pool: str, volume: str) -> tuple[Op, ...]:
    """Also a VM that is only about to run has it: one that waits for its place, or is recovered."""
    vm = user_of(ctx, pool, volume)
    if vm is None:
        return absent(paths.pool_vm(pool, volume))
    if vm.spec.power is Power.STARTED or vm.status.owner is not None:
        name = vm.spec.name
        raise Conflict(f"volume {volume} of pool {pool} is a disk of {name}, which runs or is to run")
    return (Check(paths.vm(vm.spec.uuid), vm.spec_version),)
