"""Exports of snapshots of VMs: what is said of each in its manifest, and what may be done with it.

An export is a directory with a manifest, and a file for each disk: all that is on it, or what differs from
the export that is its parent, which is beside it. One without a manifest is none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pvc import bounds, names
from pvc.bounds import Bounds
from pvc.cluster.codec import Unreadable, dumps, from_json, loads
from pvc.cluster.snapshots import Quiesced, VMSnapshot
from pvc.cluster.storage import GREATEST_BYTES, Volume
from pvc.cluster.vm import VMSpec
from pvc.errors import Conflict, Invalid, NotFound

MANIFEST = "manifest.json"
KIND, VERSION = "pvc vm snapshot", 1
SUFFIX = ".rbddiff"
FILE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}"
"""Of a file, and of a directory: never a path."""
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
LATEST = 1e11
"""When a snapshot can have been taken."""
MANIFESTS_BYTES = 1024**2
"""All those together that a VM is made of."""
MOST_FILE_BYTES = 2 * GREATEST_BYTES
"""A file says more than what is on the disk: where that is."""
SETTINGS = (
    *("selector", "node_limit", "method", "max_downtime_ms", "migration_timeout_s", "shutdown_timeout_s"),
    *("start_priority", "tags", "profile"),
)
"""Of a VM beside its definition, what an export keeps."""


@dataclass(frozen=True, slots=True)
class ExportedDisk:
    target: str
    pool: str
    volume: str
    size_bytes: int
    """What a guest sees."""
    file: str
    file_bytes: int
    sha256: str
    since: str = ""
    """Which disk of the parent it differs from, by target; empty: all of it is here."""


@dataclass(frozen=True, slots=True)
class Parent:
    """The snapshot of which an export is needed as well: any, since what is in a snapshot does not change."""

    directory: str
    """Where it is, beside this one."""
    snapshot: str
    at: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """Written when all else is there."""

    kind: str
    version: int
    vm: str
    uuid: str
    snapshot: str
    at: float
    """When the snapshot was taken."""
    quiesced: str
    definition: str
    disks: tuple[ExportedDisk, ...]
    parent: Parent | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How the VM was treated."""
    sha256: str = ""
    """Of all else in it."""
    extra: Mapping[str, Any] = field(default_factory=dict)


def written(manifest: Manifest) -> bytes:
    """The document, with its checksum."""
    return dumps(replace(manifest, sha256=_sha256(manifest)))


def _sha256(manifest: Manifest) -> str:
    return hashlib.sha256(dumps(replace(manifest, sha256=""))).hexdigest()


def directory_of(vm: str, snapshot: str) -> str:
    return f"{vm}-{snapshot}"


def read(data: bytes, where: str) -> Manifest:
    """Raises Invalid."""
    try:
        found = loads(Manifest, data, where)
        sha256 = _sha256(found)
    except (Unreadable, UnicodeEncodeError, RecursionError) as error:
        said = error.message if isinstance(error, Unreadable) else "it is not written by pvc"
        raise Invalid(f"{where} is no manifest of an export: {said}") from None
    if found.kind != KIND:
        raise Invalid(f"{where} is no manifest of an export of a VM's snapshot")
    if found.version != VERSION:
        raise Invalid(f"{where} is of version {found.version}: this pvc reads {VERSION}")
    if found.sha256 != sha256:
        raise Invalid(f"{where} is damaged, or was changed: its checksum is another one")
    _check(found, where)
    return found


def _check(found: Manifest, where: str) -> None:
    """Whoever can write a file can write its checksum, too: what is in it becomes names of ours."""
    for what, name, pattern in _named(found):
        if not re.fullmatch(pattern, name):
            raise Invalid(f"{where} names a {what} {name!r}")
    for one in found.disks:
        if not (0 < one.size_bytes <= GREATEST_BYTES and 0 < one.file_bytes <= MOST_FILE_BYTES):
            raise Invalid(f"{where} names no size that disk {one.target} could have")
    files = {one.file for one in found.disks}
    if not files or not 0 <= found.at < LATEST:
        raise Invalid(f"{where} names no {'time' if files else 'disk'}")
    if found.parent and not 0 <= found.parent.at < found.at:
        raise Invalid(f"{where} differs from snapshot {found.parent.snapshot}, which is not older")
    if not len(files) == len({one.target for one in found.disks}) == len(found.disks):
        raise Invalid(f"{where} names a disk twice")
    if not isinstance(found.settings, Mapping):
        raise Invalid(f"{where} does not say how {found.vm} was treated")


def _named(found: Manifest) -> Iterator[tuple[str, str, str]]:
    """What, its name, and the pattern of such names."""
    yield "VM", found.vm, names.VM
    yield "VM's UUID", found.uuid, UUID
    yield "snapshot", found.snapshot, names.VM
    yield "way to hold still", found.quiesced, "|".join(Quiesced)
    if found.parent:
        yield "file", found.parent.directory, FILE
        yield "snapshot", found.parent.snapshot, names.VM
    for one in found.disks:
        yield "file", one.file, FILE
        yield "target", one.target, FILE
        yield "pool", one.pool, names.POOL
        yield "volume", one.volume, names.VOLUME
        if one.since:
            yield "target", one.since, FILE


def treated(manifest: Manifest) -> VMSpec:
    """A VM that is nothing yet, treated as that one was. Raises Invalid, as what sets it would."""
    kept = {name: value for name, value in manifest.settings.items() if name in SETTINGS}
    plain = {"uuid": "", "name": "", "definition": "", "memory_mib": 0, "vcpus": 0, **kept}
    said = f"what the manifest says of how {manifest.vm} is treated"
    try:
        spec = from_json(VMSpec, plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"{said}: {error}") from None
    for what, value, (least, most) in _numbers(spec):
        if not least <= value <= most:
            raise Invalid(f"{said}: its {what} is not between {least} and {most}")
    tags = [one.name for one in spec.tags]
    called = [("profile", spec.profile, names.PROFILE), *(("tag", one, names.TAG) for one in tags)]
    called += [("node", one, names.NODE) for one in spec.node_limit]
    for what, name, pattern in called:
        if not re.fullmatch(pattern, name):
            raise Invalid(f"{said}: it names a {what} {name!r}")
    if len({*tags}) != len(tags):
        raise Invalid(f"{said}: it names a tag twice")
    return spec


def _numbers(spec: VMSpec) -> Iterator[tuple[str, int, Bounds]]:
    yield "start priority", spec.start_priority, bounds.START_PRIORITY
    yield "greatest downtime in ms", spec.max_downtime_ms, bounds.MAX_DOWNTIME_MS
    yield "time to migrate in s", spec.migration_timeout_s, bounds.MIGRATION_TIMEOUT_S
    yield "time to shut down in s", spec.shutdown_timeout_s, bounds.SHUTDOWN_TIMEOUT_S


def is_of(manifest: Manifest, uuid: str, snapshot: str, at: float) -> bool:
    """Of that very snapshot: not of an earlier one with the same name."""
    return (manifest.uuid, manifest.snapshot, manifest.at) == (uuid, snapshot, at)


def since(parent: VMSnapshot | None, pool: str, volume: str) -> str:
    """The disk of the parent that a volume differs from; empty: the VM did not have it then."""
    if parent is None:
        return ""
    return next((one.target for one in parent.disks if (one.pool, one.volume) == (pool, volume)), "")


def check_order(chain: Sequence[Manifest]) -> None:
    """The oldest first, and nothing but what makes the last one. Raises NotFound, Invalid."""
    before: Manifest | None = None
    for one in chain:
        said, parent = f"the export of snapshot {one.snapshot} of {one.vm}", one.parent
        if parent is None and before is not None:
            raise Invalid(f"{said} is whole: those before it are not needed", hint="leave them out")
        if parent is not None and before is None:
            raise NotFound(
                f"{said} needs that of snapshot {parent.snapshot}", hint="name that before it, too"
            )
        if parent and before and not is_of(before, one.uuid, parent.snapshot, parent.at):
            raise Invalid(
                f"{said} differs from snapshot {parent.snapshot}, and what comes before it is not the "
                "export of that",
                hint="the oldest first, and none left out",
            )
        before = one
    check_chain(chain)


def check_chain(chain: Iterable[Manifest]) -> None:
    """The oldest first: each disk is whole, or differs from one that the parent has. Raises Invalid."""
    had: frozenset[str] = frozenset()
    for manifest in chain:
        for disk in manifest.disks:
            if disk.since and disk.since not in had:
                said = f"disk {disk.target} of {manifest.snapshot} differs from {disk.since}"
                raise Invalid(f"{said}, which is not in its parent")
        had = frozenset(one.target for one in manifest.disks)


def files_of(chain: tuple[Manifest, ...], target: str) -> list[tuple[int, ExportedDisk]]:
    """What makes a disk of the last one: (which export, file), in the order to be applied."""
    found: list[tuple[int, ExportedDisk]] = []
    for number in reversed(range(len(chain))):
        disk = next(one for one in chain[number].disks if one.target == target)
        found.append((number, disk))
        if not (target := disk.since):
            break
    return found[::-1]


def needed(chain: tuple[Manifest, ...]) -> list[tuple[int, ExportedDisk]]:
    """What makes all disks of the last one: (which export, file), in the order they are read."""
    return [one for disk in chain[-1].disks for one in files_of(chain, disk.target)]


def volumes_for(manifest: Manifest, vm: str, pool: str, known: Iterable[str]) -> dict[str, Volume]:
    """The volumes of an imported VM, by target: in the pool, or (empty) where they were; called after it, if
    they were after the other one. Raises NotFound where a pool is not known, Conflict."""
    found, known = {}, frozenset(known)
    for one in manifest.disks:
        if (pool or one.pool) not in known:
            raise NotFound(
                f"there is no pool {pool or one.pool}"
                + ("" if pool else f", in which disk {one.target} was"),
                hint="pvc storage pool list" if pool else "--pool says another one",
            )
        found[one.target] = Volume(pool or one.pool, _named_after(one.volume, manifest.vm, vm))
    if len({*found.values()}) != len(found):
        raise Conflict(f"two disks of {manifest.vm} would have the same name")
    return found


def _named_after(volume: str, old: str, new: str) -> str:
    rest = volume.removeprefix(old)
    return new + rest if rest != volume and not rest[:1].isalnum() else volume
