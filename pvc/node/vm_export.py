"""Exports of snapshots of VMs to a directory of this node, and VMs made of them.

An export is written under another name, read back, and named in one step when all of it is on the disk: one
that failed, was cancelled, or whose daemon died is no export, and nobody's parent.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol
from uuid import uuid4

from pvc.cluster import domainxml, exports, paths, records
from pvc.cluster.codec import dumps, to_json
from pvc.cluster.domainxml import NewDisk
from pvc.cluster.exports import MANIFEST, ExportedDisk, Manifest, Parent
from pvc.cluster.records import with_definition
from pvc.cluster.snapshots import Quiesced, SnapshotDisk, VMSnapshot, known_ops, on_volumes
from pvc.cluster.storage import Driver, Format, PoolSpec, Volume, default_format, location
from pvc.cluster.store import Check, Create, Delete, Op, Put, Store, Stored
from pvc.cluster.tasks import TaskSpec
from pvc.cluster.view import View
from pvc.cluster.vm import VMSpec
from pvc.errors import Conflict, Failed, Invalid, NotFound, PVCError
from pvc.node import diffs
from pvc.node.drivers import DriverError
from pvc.node.drivers.directory import sync
from pvc.node.storage import Pools, Result, guard
from pvc.node.tasks import Progress, Work, passes

WRITING = 0.8
"""How much of an export that is; the rest is reading it again."""
NewFile = Callable[[str], AbstractContextManager[IO[bytes]]]
"""Makes a file of an export, by its name."""


def works(pools: Pools) -> dict[str, Work]:
    """By the operation that asks for them."""
    return {"vm.snapshot-export": Export(pools), "vm.snapshot-import": Import(pools)}


# The directories


@dataclass(frozen=True, slots=True)
class Found:
    where: Path
    manifest: Manifest


def look(where: Path) -> Found:
    """Raises NotFound, Invalid."""
    try:
        data = (where / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{where} is no export: there is no {MANIFEST}") from None
    return Found(where, exports.read(data, str(where / MANIFEST)))


def chain_to(where: Path) -> tuple[Found, ...]:
    """With all that it needs, the oldest first. Raises NotFound, Invalid."""
    found = [look(where)]
    while parent := found[-1].manifest.parent:
        place = found[-1].where.parent / parent.directory
        if not place.exists():
            raise NotFound(
                f"{found[-1].where} needs the export of snapshot {parent.snapshot}, and there is no {place}",
                hint="put that beside it",
            )
        found.append(look(place))
        if not exports.is_of(found[-1].manifest, found[-2].manifest.uuid, parent.snapshot, parent.at):
            raise Invalid(f"{place} is not the export that {found[-2].where} differs from")
    found.reverse()
    exports.check_chain(one.manifest for one in found)
    for one in found:
        for disk in one.manifest.disks:
            _check_size(one.where / disk.file, disk.file_bytes)
    return tuple(found)


def _check_size(file: Path, expected: int) -> None:
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        raise Invalid(f"{file} is missing") from None
    if size != expected:
        raise Invalid(f"{file} has {size} bytes, and should have {expected}")


@contextmanager
def _on_disk(node: str, where: Path) -> Iterator[None]:
    """What the file system says, in our words."""
    try:
        yield
    except OSError as error:
        raise Failed(f"{error.filename or where} on {node}: {error.strerror or error}") from None


@contextmanager
def _new_file(where: Path) -> Iterator[BinaryIO]:
    """For root only, and on the disk at the end."""
    with where.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        yield file
        file.flush()
        os.fsync(file.fileno())


# Export


class Source:
    """The snapshot that a task is to export, and the one that it is to differ from."""

    def __init__(self, pools: Pools, task: TaskSpec) -> None:
        asked = task.arguments
        self.pools = pools
        self.uuid: str = asked["vm"]
        self.vm = View(pools.store).vm(self.uuid).spec
        self.snapshot = self._document(asked["snapshot"])
        self.parent = self._document(asked["parent"]) if asked["parent"] else None
        self.parent_in = exports.directory_of(self.vm.name, asked["parent"])
        """The directory of its export."""

    def _document(self, name: str) -> VMSnapshot:
        stored = self.pools.store.get(paths.vm_snapshot(self.uuid, name))
        if stored is None:
            raise NotFound(f"{self.vm.name} has no snapshot {name}")
        found = View(self.pools.store).decode(VMSnapshot, stored)
        if found.leaving:
            raise Conflict(f"snapshot {name} of {self.vm.name} is being removed")
        return found

    def write(self, create: NewFile, told: Callable[[float, str], None]) -> Manifest:
        """A file for each disk; what the manifest is to say of them."""
        whole, done, disks = sum(one.size_bytes for one in self.snapshot.disks), 0, []
        for disk in self.snapshot.disks:

            def at(fraction: float, disk: SnapshotDisk = disk, done: int = done) -> None:
                told((done + fraction * disk.size_bytes) / max(whole, 1), f"writing disk {disk.target}")

            disks.append(self._disk(disk, create, at))
            done += disk.size_bytes
        parent = self.parent
        return Manifest(
            kind=exports.KIND,
            version=exports.VERSION,
            vm=self.vm.name,
            uuid=self.uuid,
            snapshot=self.snapshot.name,
            at=self.snapshot.at,
            quiesced=str(self.snapshot.quiesced),
            definition=self.snapshot.definition,
            disks=tuple(disks),
            parent=Parent(self.parent_in, parent.name, parent.at) if parent else None,
            settings={name: value for name, value in to_json(self.vm).items() if name in exports.SETTINGS},
        )

    def _disk(self, disk: SnapshotDisk, create: NewFile, told: Callable[[float], None]) -> ExportedDisk:
        name, kept = f"{disk.target}{exports.SUFFIX}", on_volumes(self.uuid, self.snapshot.name)
        before = exports.since(self.parent, disk.pool, disk.volume)
        since = on_volumes(self.uuid, self.parent.name) if self.parent and before else ""
        with self.pools.open(disk.pool).content(disk.volume, kept) as content, create(name) as file:
            out = diffs.Written(file)
            diffs.write(out, content, kept, since, told)
            size = content.size_bytes
        return ExportedDisk(disk.target, disk.pool, disk.volume, size, name, out.bytes, out.sha256, before)


class Export:
    """A snapshot of a VM, as a directory."""

    def __init__(self, pools: Pools) -> None:
        self.pools = pools
        self.store: Store = pools.store

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        asked, target = task.arguments, Path(task.arguments["path"])
        place = target / exports.directory_of(asked["name"], asked["snapshot"])
        with _on_disk(self.pools.node, target):
            if not target.is_dir():
                raise NotFound(f"{self.pools.node} has no directory {target}", hint="make it, or mount it")
            if place.exists():
                raise Conflict(f"{place} on {self.pools.node} is there already")
            source = Source(self.pools, task)
            self._check_parent(target, source)
            half = _half_done(task)
            half.mkdir(mode=0o700)

            def told(fraction: float, words: str) -> None:
                progress(WRITING * fraction, words)

            manifest = source.write(lambda name: _new_file(half / name), told)
            self._read_again(half, manifest, progress)
            progress.check()
            with _new_file(half / MANIFEST) as file:
                file.write(exports.written(manifest))
            sync(half)
            half.rename(place)
            sync(target)
        size = sum(one.file_bytes for one in manifest.disks)
        return {"node": self.pools.node, "path": str(place), "bytes": size}

    def _check_parent(self, target: Path, source: Source) -> None:
        """There is an export of it, with all that it needs itself."""
        if source.parent is None:
            return
        for where in sorted(target.glob(f"*/{MANIFEST}")):
            with suppress(Invalid, NotFound):
                if exports.is_of(
                    look(where.parent).manifest, source.uuid, source.parent.name, source.parent.at
                ):
                    source.parent_in = chain_to(where.parent)[-1].where.name
                    return
        raise NotFound(
            f"in {target} on {self.pools.node} there is no whole export of snapshot {source.parent.name} of "
            f"{source.vm.name}",
            hint="export that one first, or all of this one: without --parent",
        )

    def _read_again(self, half: Path, manifest: Manifest, progress: Progress) -> None:
        for number, disk in enumerate(manifest.disks):

            def told(fraction: float, disk: ExportedDisk = disk, number: int = number) -> None:
                at = (number + fraction) / len(manifest.disks)
                progress(WRITING + (1 - WRITING) * at, f"reading disk {disk.target} again")

            diffs.check(half / disk.file, disk.sha256, told)

    def undo(self, task: TaskSpec) -> None:
        half = _half_done(task)
        shutil.rmtree(half, ignore_errors=True)
        if half.exists():
            raise DriverError(f"{half} cannot be removed")


def _half_done(task: TaskSpec) -> Path:
    return Path(task.arguments["path"], f".task-{task.id}")


# Import


@dataclass(frozen=True, slots=True)
class NewVolume:
    target: str
    pool: PoolSpec
    name: str
    size_bytes: int

    @property
    def format(self) -> Format:
        return default_format(self.pool)

    @property
    def claim(self) -> str:
        return paths.pool_claim(self.pool.name, self.name)

    @property
    def index(self) -> str:
        return paths.pool_vm(self.pool.name, self.name)


class Chain(Protocol):
    """What a VM is made of: each is what the next one differs from."""

    @property
    def manifests(self) -> tuple[Manifest, ...]: ...

    def opened(self, number: int, disk: ExportedDisk) -> AbstractContextManager[diffs.Read]:
        """Called once for each of the files that are needed, in that order."""
        ...


class Directories:
    """Exports, beside each other."""

    def __init__(self, chain: tuple[Found, ...]) -> None:
        self.places = tuple(one.where for one in chain)
        self.manifests = tuple(one.manifest for one in chain)

    def opened(self, number: int, disk: ExportedDisk) -> AbstractContextManager[diffs.Read]:
        return diffs.opened(self.places[number] / disk.file)


class Import:
    """A new VM, made of an export.

    Its volumes are claimed, and stand in the store as its own, before they are made: so whoever has to undo
    it knows them. The claims go with the commit that makes the VM, which fails once they are being undone.
    """

    def __init__(self, pools: Pools) -> None:
        self.pools = pools
        self.store: Store = pools.store

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        where = Path(task.arguments["path"])
        with _on_disk(self.pools.node, where):
            return self.make(task, Directories(self._chain(where)), progress)

    def make(self, task: TaskSpec, given: Chain, progress: Progress) -> Result:
        """The VM. All of what is given is checked before this, but what is in its files."""
        asked, last = task.arguments, given.manifests[-1]
        volumes = self._volumes(asked, last)
        spec = self._spec(asked, last, volumes)
        self._check_free(spec)
        claims = self._claimed(task, spec.uuid, volumes)
        for number, volume in enumerate(volumes):

            def told(fraction: float, volume: NewVolume = volume, number: int = number) -> None:
                progress((number + fraction) / len(volumes), f"making disk {volume.target}")

            self._fill(task, given, volume, told)
        if asked["retain"]:
            for volume in volumes:
                self.pools.open(volume.pool.name).add_snapshot(
                    volume.name, on_volumes(spec.uuid, last.snapshot)
                )
        progress.check()
        self._make_known(task, spec, last, volumes, claims)
        return {"vm": spec.name, "uuid": spec.uuid, "snapshot": last.snapshot if asked["retain"] else ""}

    # Deciding

    def _chain(self, where: Path) -> tuple[Found, ...]:
        """What is wrong with it is told with whose directory it is: nobody may have said which is meant."""
        node = self.pools.node
        if not where.is_dir():
            raise NotFound(f"{node} has no directory {where}", hint="--node says which node has it")
        try:
            return chain_to(where)
        except PVCError as error:
            raise type(error)(f"on {node}, {error.message}", hint=error.hint) from None

    def _volumes(self, asked: Mapping[str, Any], manifest: Manifest) -> list[NewVolume]:
        pools = View(self.store).pools()
        named = exports.volumes_for(manifest, asked["name"], asked["pool"], pools)
        return [
            NewVolume(disk.target, pools[one.pool].spec, one.name, disk.size_bytes)
            for disk, one in zip(manifest.disks, named.values(), strict=True)
        ]

    def _spec(self, asked: Mapping[str, Any], manifest: Manifest, volumes: list[NewVolume]) -> VMSpec:
        xml = domainxml.set_name(manifest.definition, asked["name"])
        uuid = manifest.uuid if asked["same"] else str(uuid4())
        xml = domainxml.set_uuid(xml, uuid) if asked["same"] else domainxml.set_identity(xml, uuid)
        targets = {disk.target for disk in domainxml.parse(xml).disks}
        if missing := [one.target for one in volumes if one.target not in targets]:
            raise Invalid(f"the definition of {manifest.vm} has no disk {missing[0]}")
        for volume in volumes:
            place = location(volume.pool, volume.name, volume.format)
            is_rbd = volume.pool.driver is Driver.RBD
            xml = domainxml.replace_disk(xml, NewDisk(place, str(volume.format), is_rbd), volume.target)
        spec = with_definition(replace(exports.treated(manifest), uuid=uuid), xml)
        limit = sorted({*spec.node_limit})
        return replace(spec, node_limit=tuple(View(self.store).nodes(limit)))

    def _check_free(self, spec: VMSpec) -> None:
        view = View(self.store)
        if self.store.get(paths.vm_name(spec.name)) is not None:
            raise Conflict(f"there is a VM named {spec.name} already", hint="choose another name")
        if (other := view.vms([spec.uuid]).get(spec.uuid)) is not None:
            raise Conflict(f"{other.spec.name} has the UUID {spec.uuid}", hint="leave out --same-identity")
        records.network_ops(view, spec.uuid, None, spec)

    # Making

    def _claimed(self, task: TaskSpec, uuid: str, volumes: list[NewVolume]) -> list[Stored]:
        view = View(self.store)
        for name in sorted({one.pool.name for one in volumes}):
            total = sum(one.size_bytes for one in volumes if one.pool.name == name)
            guard(name, self.pools.open(name), total, force=task.arguments["force"])
        pools = [view.pool(name) for name in sorted({one.pool.name for one in volumes})]
        if leaving := [pool.spec.name for pool in pools if pool.spec.leaving]:
            raise Conflict(f"pool {leaving[0]} is being removed", hint="pvc task list")
        self._check_unclaimed(task, volumes)
        self.store.commit(
            *(Check(paths.pool(pool.spec.name), pool.spec_version) for pool in pools),
            *(Create(one.claim, task.id.encode()) for one in volumes if one.claim not in task.claims),
            *(op for one in volumes for op in records.absent(one.index)),
        )
        for one in volumes:
            with suppress(NotFound):
                self.pools.open(one.pool.name).volume(one.name)
                raise Conflict(f"there is a volume {one.name} in pool {one.pool.name} already")
        self.store.commit(*(Create(one.index, uuid.encode()) for one in volumes))
        return [claim for claim in self.store.get_many([one.claim for one in volumes]) if claim is not None]

    def _check_unclaimed(self, task: TaskSpec, volumes: Collection[NewVolume]) -> None:
        """By others. Raises Conflict: the commits after it would only say that something is there."""
        claims = self.store.get_many([one.claim for one in volumes])
        users = self.store.get_many([one.index for one in volumes])
        for volume, claim, user in zip(volumes, claims, users, strict=True):
            what = f"volume {volume.name} of pool {volume.pool.name}"
            if claim is not None and (by := claim.data.decode()) != task.id:
                raise Conflict(f"{what} is being changed by task {by}", hint=f"pvc task wait {by}")
            if user is not None:
                name = records.name_of(View(self.store), user.data.decode())
                raise Conflict(f"{what} is a disk of {name}", hint="choose another name")

    def _fill(self, task: TaskSpec, given: Chain, volume: NewVolume, told: Callable[[float], None]) -> None:
        files = exports.files_of(given.manifests, volume.target)
        whole, done, size = sum(disk.file_bytes for _, disk in files), 0, 0
        pool = self.pools.open(volume.pool.name)
        with pool.filled(volume.name, volume.size_bytes, volume.format, _token(task, volume.name)) as filling:
            for number, disk in files:

                def at(fraction: float, disk: ExportedDisk = disk, done: int = done) -> None:
                    told((done + fraction * disk.file_bytes) / whole)

                with given.opened(number, disk) as file:
                    size = diffs.apply(file, disk.sha256, filling, volume.size_bytes, size, at)
                done += disk.file_bytes
            if size != volume.size_bytes:
                raise Invalid(f"disk {volume.target} has {size} bytes, and should have {volume.size_bytes}")

    def _make_known(
        self,
        task: TaskSpec,
        spec: VMSpec,
        manifest: Manifest,
        volumes: list[NewVolume],
        claims: list[Stored],
    ) -> None:
        more: tuple[Op, ...] = tuple(Delete(one.path, one.version) for one in claims)
        if task.arguments["retain"]:
            disks = tuple(
                SnapshotDisk(one.target, one.pool.name, one.name, one.size_bytes) for one in volumes
            )
            quiesced = Quiesced(manifest.quiesced)
            kept = VMSnapshot(manifest.snapshot, manifest.at, spec.definition, disks, quiesced)
            more += known_ops(spec, kept.name, dumps(kept))
            spec = replace(spec, snapshots=(kept.name,))
        self.store.commit(*records.creation(View(self.store), spec, task.id), *more)

    def undo(self, task: TaskSpec) -> None:
        """What is claimed by it; when the VM is there, nothing is."""
        mine = [(pool, claim) for pool, claim in self._claims() if claim.data.decode() == task.id]
        if not mine:
            return
        # A commit of the VM that comes true late must not find its claims as they were.
        self.store.commit(*(Put(claim.path, claim.data, claim.version) for _, claim in mine))
        try:
            for pool, claim in mine:
                self._take_away(task, pool, claim.path.rpartition("/")[2])
        except PVCError as error:
            if not passes(error):
                self._release(mine)
            raise
        self._release(mine)

    def _release(self, mine: Iterable[tuple[str, Stored]]) -> None:
        self.store.commit(*(Delete(claim.path) for _, claim in mine))

    def _claims(self) -> list[tuple[str, Stored]]:
        found = []
        for pool in View(self.store).pools():
            where = [paths.pool_claim(pool, name) for name in self.store.children(paths.pool_claims(pool))]
            found += [(pool, claim) for claim in self.store.get_many(where) if claim is not None]
        return found

    def _take_away(self, task: TaskSpec, pool_name: str, volume: str) -> None:
        index = paths.pool_vm(pool_name, volume)
        if not self._taken_over(task, index, Volume(pool_name, volume)):
            return
        pool = self.pools.open(pool_name)
        pool.discard(_token(task, volume))
        with suppress(NotFound):
            pool.remove(volume, _token(task, volume))
        self.store.commit(Delete(index))

    def _taken_over(self, task: TaskSpec, index: str, volume: Volume) -> bool:
        """Nobody else has it, nor gets it from now on: it is the task's, and no longer a VM's to be.

        Others can have made a VM with that UUID, without the volume and with it.
        """
        stored, view = self.store.get(index), View(self.store)
        if stored is None:
            return False
        uuid = stored.data.decode()
        vm = view.vms([uuid]).get(uuid)
        if vm is not None and volume in records.volumes(view, vm.spec).values():
            return False
        as_seen = records.absent(paths.vm(uuid)) if vm is None else (Check(paths.vm(uuid), vm.spec_version),)
        self.store.commit(*as_seen, Put(index, task.id.encode(), stored.version))
        return True


def _token(task: TaskSpec, volume: str) -> str:
    return f"{task.id}-{volume}"
