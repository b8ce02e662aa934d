"""Pools in Ceph: each volume an RBD image. The only importer of rbd (Debian's package).

A clone shares blocks with the volume it was made of, by a snapshot of that which nobody sees, and which goes
with the clone. When the other volume goes first, its clones get blocks of their own before: so no user has to
know who is whose parent.
"""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC
from typing import Any

import rbd

from pvc import names
from pvc.cluster.ceph import Traffic
from pvc.cluster.ceph_pools import CephFacts
from pvc.cluster.images import ImageFormat, written
from pvc.cluster.storage import Format
from pvc.errors import Conflict, Invalid, NotFound, Unavailable
from pvc.node.drivers import DriverError, images
from pvc.node.drivers.ceph import ASK_TIMES, TIMES, Ceph, application_value, omap_value, words
from pvc.node.drivers.ceph_pools import CephPools
from pvc.node.drivers.storage import (
    Capacity,
    Content,
    Extent,
    Filling,
    Holder,
    Image,
    Incoming,
    Progress,
    Reading,
    Scratch,
    Snapshot,
    User,
    Volume,
    check_name,
    cut_off,
    in_use,
    is_protected,
    no_volume,
    snapshot_exists,
    unheard,
    volume_exists,
)

HALF_DONE = ".task-"
CAME = ".came"
WATCHED_S = 40
PARENT = ".clone-"
"""Names that begin with a dot are not of users."""

PIECE = 4 * 1024**2
"""Of a copy, between two looks whether it is still wanted."""
AT_ONCE = 64 * 1024**3
"""Of an image, so much is asked for differences."""
FEATURES = (
    rbd.RBD_FEATURE_LAYERING
    | rbd.RBD_FEATURE_EXCLUSIVE_LOCK
    | rbd.RBD_FEATURE_OBJECT_MAP
    | rbd.RBD_FEATURE_FAST_DIFF
    | rbd.RBD_FEATURE_DEEP_FLATTEN
)


class RBDPool:
    """A Pool."""

    def __init__(self, pool: str, ceph: Ceph, identity: str = "") -> None:
        self.pool = pool
        self.ceph = ceph
        self.identity = identity
        """What Ceph says of the pool where it is this one; empty: whichever has that name."""
        self.rbd = rbd.RBD()

    # Looking

    def check(self) -> None:
        with self._opened(ASK_TIMES):
            pass

    def capacity(self) -> Capacity:
        self.check()
        used, free = CephPools(self.ceph).used_and_free_bytes(self.pool)
        return Capacity(used + free, used)

    def ceph_facts(self) -> CephFacts | None:
        return CephPools(self.ceph).facts(self.pool, self.identity)

    def traffic(self) -> Traffic | None:
        self.check()
        return CephPools(self.ceph).traffic(self.pool)

    def volumes(self) -> tuple[Volume, ...]:
        """Without opening each: how much one uses is told by `volume`."""
        with self._opened(ASK_TIMES) as io:
            found = {
                one["name"]: one["id"]
                for one in self.rbd.list2(io)
                if re.fullmatch(names.VOLUME, one["name"])
            }
            sizes = {name: _size(io, identity) for name, identity in found.items()}
            lost = [name for name, size in sizes.items() if size is None]
            present = {one["name"] for one in self.rbd.list2(io)} if lost else set()
        return tuple(
            Volume(name, size or 0, None, Format.RAW, "" if size is not None else "its header is missing")
            for name, size in sorted(sizes.items())
            if size is not None or name in present
        )

    def volume(self, name: str) -> Volume:
        with self._image(name) as image:
            return Volume(name, image.size(), _used(image), Format.RAW)

    def is_open(self, name: str) -> bool:
        with self._image(name) as image:
            return any(True for _ in image.watchers_list())

    def users(self, name: str) -> tuple[User, ...]:
        with self._image(name) as image:
            locked = {client for client, _, _ in (image.list_lockers() or {"lockers": []})["lockers"]}
            return tuple(
                User(one["addr"], client := f"client.{one['id']}", client in locked)
                for one in image.watchers_list()
            )

    def location(self, name: str) -> str:
        self.volume(name)
        return f"{self.pool}/{name}"

    # Who writes

    def holders(self, name: str) -> tuple[Holder, ...]:
        with self._image(name) as image:
            # As it was opened: whoever comes after that has no lock here, and is not taken for dead.
            found = image.list_lockers() or {"lockers": []}
            there = {one["addr"] for one in image.watchers_list()}
            return tuple(
                Holder(client, cookie, address, address in there)
                for client, cookie, address in found["lockers"]
            )

    def break_lock(self, name: str, holder: Holder) -> None:
        check_name(name, names.VOLUME, "volume")
        gone = suppress(rbd.ImageNotFound)  # it has let go
        asking = self._opened(ASK_TIMES)  # what is dead stays so: it may come true after it was given up
        with asking as io, _named(name), rbd.Image(io, name, read_only=True) as image, gone:
            image.break_lock(holder.client, holder.cookie)

    # Volumes

    def add(self, name: str, size_bytes: int, format: Format, token: str) -> None:
        self._check_format(format)
        with self._writing() as io:
            self._check_free(io, name)
            self.rbd.create(io, HALF_DONE + token, size_bytes, old_format=False, features=FEATURES)
            self._name(io, HALF_DONE + token, name)

    def remove(self, name: str, token: str, progress: Progress = unheard) -> None:
        if self._is_lost(name):
            with self._writing() as io:
                self.rbd.remove(io, name)
            return
        for snapshot in self.snapshots(name):
            if snapshot.is_protected:
                raise is_protected(name, snapshot.name)
        self.set_aside(name, token, progress)
        self.discard(token)

    def set_aside(self, name: str, token: str, progress: Progress = unheard) -> None:
        self._check_unused(name)
        with self._writing() as io:
            self._part(io, name, progress)
            self._name(io, name, HALF_DONE + token)

    def put_back(self, name: str, token: str) -> None:
        if not self._is_listed(HALF_DONE + token):
            return
        with self._writing() as io, suppress(rbd.ImageNotFound):
            self._name(io, HALF_DONE + token, name)

    def _is_lost(self, name: str) -> bool:
        """In the list, and nothing else of it is there any more."""
        try:
            self.volume(name)
        except NotFound:
            return self._is_listed(name)
        return False

    def _is_listed(self, name: str) -> bool:
        with self._opened(ASK_TIMES) as io:
            return _is_listed(io, name)

    def resize(self, name: str, size_bytes: int, *, shrink: bool = False) -> None:
        before = self.volume(name).size_bytes
        if size_bytes >= before:
            with self._writing() as io, rbd.Image(io, name) as image:
                image.resize(size_bytes)
            return
        if not shrink:
            raise cut_off(name, before, size_bytes)
        with self._alone(name) as image:
            image.resize(size_bytes, True)

    def rename(self, name: str, new: str) -> None:
        self._check_unused(name)
        with self._writing() as io:
            self._check_free(io, new)
            self._name(io, name, new)

    def clone(self, name: str, new: str, token: str, progress: Progress, *, flatten: bool = False) -> None:
        self.volume(name)
        with self._writing() as io:
            self._check_free(io, new)
            if flatten:
                self._copy(io, name, new, token, progress)
                return
            self._shared(io, name, token)
            progress(0.5)
            self._name(io, HALF_DONE + token, new)

    def _shared(self, io: Any, name: str, token: str) -> None:
        """What is half done: a clone as it is now."""
        parent = PARENT + token
        with rbd.Image(io, name) as image:
            image.create_snap(parent)
            image.protect_snap(parent)
        self.rbd.clone(io, name, parent, io, HALF_DONE + token, features=FEATURES)

    def _copy(self, io: Any, name: str, new: str, token: str, progress: Progress) -> None:
        """As it is at one moment."""
        with rbd.Image(io, name) as image:
            image.create_snap(PARENT + token)
        with rbd.Image(io, name, snapshot=PARENT + token, read_only=True) as image:
            source = _Content(image)
            with self.filled(new, source.size_bytes, Format.RAW, token) as copy:
                for extent in source.extents():
                    for offset in range(extent.offset, extent.offset + extent.length, PIECE):
                        progress(offset / source.size_bytes)
                        length = min(PIECE, extent.offset + extent.length - offset)
                        copy.write(offset, source.read(offset, length))
                _check_still(io, name, PARENT + token)
        _release(io, name, PARENT + token)

    def clones_bytes(self, name: str) -> int:
        """Not more than it has, nor than each has not."""
        with self._image(name) as image, self._opened(ASK_TIMES) as io:
            count = 0
            for parent in _parents(image):
                has, children = _children(image, parent)
                for child in children:
                    with suppress(rbd.ImageNotFound), rbd.Image(io, child, read_only=True) as clone:
                        count += min(has, max(clone.size() - _used(clone), 0))
            return count

    def _part(self, io: Any, name: str, progress: Progress = unheard) -> None:
        """From its clones, each of which gets all blocks for itself."""
        with rbd.Image(io, name) as image:
            found = {parent: _children(image, parent)[1] for parent in _parents(image)}
            for number, (parent, children) in enumerate(found.items()):
                for child in children:
                    progress(number / len(found))
                    with rbd.Image(io, child) as clone:
                        clone.flatten()
                if image.is_protected_snap(parent):
                    image.unprotect_snap(parent)
                image.remove_snap(parent)

    # Images that come and go

    @contextmanager
    def incoming(self, name: str, image: Image, format: Format, token: str) -> Iterator[Incoming]:
        self._check_format(format)
        with self._writing() as io:
            self._check_free(io, name)
            made = HALF_DONE + token
            came = made if image.format is ImageFormat.RAW else made + CAME
            self.rbd.create(io, came, image.size_bytes, old_format=False, features=FEATURES)
            taken = _Incoming(self, io, image, came, made)
            try:
                yield taken
            finally:
                taken.file.close()
            if not taken.is_whole:
                raise DriverError(f"volume {name} was not finished")
            self._name(io, made, name)
        self.discard(token)

    @contextmanager
    def reading(self, name: str, token: str) -> Iterator[Reading]:
        """A clone that is never given a name."""
        self.volume(name)
        try:
            with self._writing() as io:
                self._shared(io, name, token)
                with rbd.Image(io, HALF_DONE + token, read_only=True) as image:
                    yield _Reading(image)
        finally:
            self.discard(token, name)

    @contextmanager
    def scratch(self, size_bytes: int, token: str) -> Iterator[Scratch]:
        name = HALF_DONE + token
        with self._writing() as io:
            self.rbd.create(io, name, size_bytes, old_format=False, features=FEATURES)
        where = (
            "--ioengine=rbd",
            f"--pool={self.pool}",
            f"--rbdname={name}",
            f"--clientname={self.ceph.user}",
        )
        yield Scratch(where, {"CEPH_CONF": self.ceph.conf})
        self.discard(token)

    def options(self, image: str) -> str:
        """What QEMU calls it."""
        where = {"pool": self.pool, "image": image, "conf": self.ceph.conf, "user": self.ceph.user}
        named = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in where.items())
        return f"driver=rbd,{named}"

    # Snapshots

    def snapshots(self, name: str) -> tuple[Snapshot, ...]:
        with self._image(name) as image:
            return tuple(
                Snapshot(
                    one["name"],
                    image.get_snap_timestamp(one["id"]).replace(tzinfo=UTC).timestamp(),
                    one["size"],
                    bool(image.is_protected_snap(one["name"])),
                )
                for one in sorted(image.list_snaps(), key=lambda one: int(one["id"]))
                if not one["name"].startswith(".")
            )

    def add_snapshot(self, name: str, snapshot: str) -> None:
        check_name(snapshot, names.SNAPSHOT, "snapshot")
        self._check_no_snapshot(name, snapshot)
        with self._writing() as io, rbd.Image(io, name) as image:
            image.create_snap(snapshot)

    def name_in_qemu(self, snapshot: str) -> str:
        return ""

    def remove_snapshot(self, name: str, snapshot: str) -> None:
        if self._snapshot(name, snapshot).is_protected:
            raise is_protected(name, snapshot)
        with self._writing() as io, rbd.Image(io, name) as image:
            image.remove_snap(snapshot)

    def rename_snapshot(self, name: str, snapshot: str, new: str) -> None:
        check_name(new, names.SNAPSHOT, "snapshot")
        self._snapshot(name, snapshot)
        self._check_no_snapshot(name, new)
        with self._writing() as io, rbd.Image(io, name) as image:
            image.rename_snap(snapshot, new)

    def roll_back(self, name: str, snapshot: str) -> None:
        self._snapshot(name, snapshot)
        with self._alone(name) as image:
            image.rollback_to_snap(snapshot)

    def protect(self, name: str, snapshot: str, *, on: bool) -> None:
        if self._snapshot(name, snapshot).is_protected is on:
            return
        with self._writing() as io, rbd.Image(io, name) as image:
            if on:
                image.protect_snap(snapshot)
            else:
                image.unprotect_snap(snapshot)

    def _snapshot(self, name: str, snapshot: str) -> Snapshot:
        for one in self.snapshots(name):
            if one.name == snapshot:
                return one
        raise NotFound(f"volume {name} has no snapshot {snapshot}")

    def _check_no_snapshot(self, name: str, snapshot: str) -> None:
        if snapshot in {one.name for one in self.snapshots(name)}:
            raise snapshot_exists(name, snapshot)

    # Content

    @contextmanager
    def content(self, name: str, snapshot: str) -> Iterator[Content]:
        self._snapshot(name, snapshot)
        with self._opened() as io, rbd.Image(io, name, snapshot=snapshot, read_only=True) as image:
            yield _Content(image)

    @contextmanager
    def filled(self, name: str, size_bytes: int, format: Format, token: str) -> Iterator[Filling]:
        self._check_format(format)
        with self._writing() as io:
            self._check_free(io, name)
            self.rbd.create(io, HALF_DONE + token, size_bytes, old_format=False, features=FEATURES)
            with rbd.Image(io, HALF_DONE + token) as image:
                yield _Filling(image)
                image.flush()
            self._name(io, HALF_DONE + token, name)

    # Half done

    def discard(self, token: str, of: str = "") -> None:
        """Where there is nothing, nothing is written: a full Ceph lets also that wait."""
        for name in (HALF_DONE + token, HALF_DONE + token + CAME):
            if self._is_listed(name):
                with self._writing() as io:
                    self._discard(io, name)
        with suppress(NotFound):
            if of and self._has_parent(of, PARENT + token):
                with self._writing() as io:
                    _release(io, of, PARENT + token)

    def _has_parent(self, name: str, parent: str) -> bool:
        with self._image(name) as image:
            return parent in _parents(image)

    def _discard(self, io: Any, name: str) -> None:
        parent = None
        with suppress(rbd.ImageNotFound), rbd.Image(io, name) as image:
            parent = _parent(image)
            for one in list(image.list_snaps()):
                image.remove_snap(one["name"])
        # Also where it cannot be opened: one whose removal was cut off has no header any more, but its name.
        with suppress(rbd.ImageNotFound):
            self._remove_once_closed(io, name)
        if parent is not None:
            _release(io, *parent)

    def _remove_once_closed(self, io: Any, name: str) -> None:
        """Ceph waits half a minute for whoever had it open and was killed; nobody opens it any more."""
        for _ in range(WATCHED_S):
            with suppress(rbd.ImageBusy):
                self.rbd.remove(io, name)
                return
            threading.Event().wait(1.0)
        self.rbd.remove(io, name)

    def _name(self, io: Any, name: str, new: str) -> None:
        try:
            self.rbd.rename(io, name, new)
        except rbd.ImageExists:
            raise volume_exists(new) from None

    def _check_format(self, format: Format) -> None:
        if format is not Format.RAW:
            raise Invalid(f"volumes in Ceph are raw, not {format}", hint="they have snapshots all the same")

    def _check_free(self, io: Any, name: str) -> None:
        check_name(name, names.VOLUME, "volume")
        if _is_listed(io, name):
            raise volume_exists(name)

    def _check_unused(self, name: str) -> None:
        if self.is_open(name):
            raise in_use(name)

    # Ceph

    @contextmanager
    def _opened(self, times: Mapping[str, str] = TIMES) -> Iterator[Any]:
        with self.ceph.opened(self.pool, times) as io, _told():
            if self.identity and application_value(io, "rbd", "pvc") != self.identity:
                raise Unavailable(
                    f"the pool {self.pool} of the Ceph that is reached from here is not that of this cluster"
                )
            yield io

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """To change something. Raises Conflict where who does would wait until there is room."""
        flags = CephPools(self.ceph).flags(self.pool)
        if "full_quota" in flags:
            raise Conflict(
                f"the pool {self.pool} is full: Ceph lets nobody change anything beyond its quota",
                hint=f"ceph osd pool set-quota {self.pool}",
            )
        if "full" in flags:
            raise Conflict(
                f"Ceph is full: it lets nobody change anything in the pool {self.pool}, nor remove it",
                hint="add disks; or ceph osd set-full-ratio 0.97, and remove what nobody needs",
            )
        with self._opened() as io:
            yield io

    @contextmanager
    def _image(self, name: str) -> Iterator[rbd.Image]:
        """To look at: nobody sees that it is open."""
        check_name(name, names.VOLUME, "volume")
        with self._opened(ASK_TIMES) as io, _named(name), rbd.Image(io, name, read_only=True) as image:
            yield image

    @contextmanager
    def _alone(self, name: str) -> Iterator[rbd.Image]:
        """To change what is in it: who opens it from now on can write nothing. Raises Conflict."""
        check_name(name, names.VOLUME, "volume")
        self._check_unused(name)
        with self._writing() as io, _named(name), rbd.Image(io, name) as image:
            image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
            if sum(1 for _ in image.watchers_list()) > 1:  # ours is one
                raise in_use(name)
            yield image


class _Content:
    def __init__(self, image: rbd.Image) -> None:
        self.image = image
        self.size_bytes = image.size()

    def extents(self, since: str = "") -> Iterator[Extent]:
        """First which objects differ, by their map; then what of each, as its snapshots say."""
        if since and since not in {one["name"] for one in self.image.list_snaps()}:
            raise NotFound(f"the volume has no snapshot {since}")
        for piece in range(0, self.size_bytes, AT_ONCE):
            length = min(AT_ONCE, self.size_bytes - piece)
            for objects in self._differing(piece, length, since, whole_object=True):
                yield from self._differing(objects.offset, objects.length, since)

    def _differing(self, offset: int, length: int, since: str, *, whole_object: bool = False) -> list[Extent]:
        found: list[Extent] = []

        def note(offset: int, length: int, exists: bool) -> None:
            found.append(Extent(offset, length, exists))

        with _told():
            self.image.diff_iterate(
                offset, length, since or None, note, include_parent=True, whole_object=whole_object
            )
        return found

    def read(self, offset: int, length: int) -> bytes:
        with _told():
            return self.image.read(offset, length)


class _Filling:
    def __init__(self, image: rbd.Image) -> None:
        self.image = image

    def write(self, offset: int, data: bytes) -> None:
        with _told():
            self.image.write(data, offset)

    def zero(self, offset: int, length: int) -> None:
        """Not `discard`, which leaves what is less than 64 KiB as it was."""
        with _told():
            self.image.write_zeroes(offset, length)


class _Incoming:
    """What is raw comes to where it stays; anything else beside it, into an image of its own."""

    def __init__(self, pool: RBDPool, io: Any, image: Image, came: str, made: str) -> None:
        self.pool, self.io = pool, io
        self.image = image
        self.came, self.made = came, made
        self.file = rbd.Image(io, came)
        self.is_whole = False

    def write(self, offset: int, piece: bytes) -> None:
        with _told():
            for at, data in written(offset, piece):
                self.file.write(data, at)

    def finish(self, check: Callable[[int], None], progress: Progress) -> None:
        self.file.flush()
        if self.came == self.made:
            check(self.image.size_bytes)
        else:
            self._convert(check, progress)
        self.is_whole = True

    def _convert(self, check: Callable[[int], None], progress: Progress) -> None:
        self.file.close()  # what waits to be written is there for others now
        came, to = self.pool.options(self.came), self.pool.options(self.made)
        size = images.look(came, self.image.format, self.image.size_bytes, check)
        self.pool.rbd.create(self.io, self.made, size, old_format=False, features=FEATURES)
        images.convert(came, self.image.format, to, Format.RAW, progress, lambda: 0.5)


class _Reading:
    def __init__(self, image: rbd.Image) -> None:
        self.image = image
        self.size_bytes = int(image.size())

    def read(self, offset: int, length: int) -> bytes:
        with _told():
            return bytes(self.image.read(offset, length))

    def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []

        def note(start: int, count: int, exists: bool) -> None:
            if exists:
                found.append((start, count))

        with _told():
            # By objects: in parts of them an older Ceph does not tell where there are zeros.
            count = min(length, self.size_bytes - offset)
            self.image.diff_iterate(offset, count, None, note, include_parent=True, whole_object=True)
        return found


def _parent(image: rbd.Image) -> tuple[str, str] | None:
    """Volume and snapshot it is a clone of."""
    try:
        _, name, snapshot = image.parent_info()
    except rbd.ImageNotFound:
        return None
    return (name, snapshot) if snapshot.startswith(PARENT) else None


def _check_still(io: Any, name: str, snapshot: str) -> None:
    """Ceph gives zeros for what is gone. Raises Conflict."""
    with suppress(rbd.ImageNotFound), rbd.Image(io, name, read_only=True) as image:
        if any(one["name"] == snapshot for one in image.list_snaps()):
            return
    raise Conflict(f"volume {name} was removed or renamed while it was copied", hint="begin again")


def _parents(image: rbd.Image) -> list[str]:
    """Its snapshots that are there for clones."""
    return [one["name"] for one in image.list_snaps() if one["name"].startswith(PARENT)]


def _children(image: rbd.Image, parent: str) -> tuple[int, list[str]]:
    """How much one of these has, and the clones it is there for."""
    image.set_snap(parent)
    try:
        has = _used(image, include_parent=True)
        return has, [one["image"] for one in image.list_children2() if not one["trash"]]
    finally:
        image.set_snap(None)


def _release(io: Any, name: str, snapshot: str) -> None:
    """A snapshot that was there for one clone only. One whose clone is there stays."""
    with suppress(rbd.ImageNotFound, rbd.ImageBusy), rbd.Image(io, name) as image:
        if image.is_protected_snap(snapshot):
            image.unprotect_snap(snapshot)
        image.remove_snap(snapshot)


def _is_listed(io: Any, name: str) -> bool:
    """Also where no more is left of it."""
    return omap_value(io, "rbd_directory", f"name_{name}") is not None


def _size(io: Any, identity: str) -> int | None:
    """From the header of the image; None where it has just gone."""
    value = omap_value(io, f"rbd_header.{identity}", "size")
    return None if value is None else int(struct.unpack("<Q", value)[0])


def _used(image: rbd.Image, *, include_parent: bool = False) -> int:
    """By the map of its objects, which are there or not."""
    found: list[int] = []

    def count(offset: int, length: int, exists: bool) -> None:
        if exists:
            found.append(length)

    image.diff_iterate(0, image.size(), None, count, include_parent=include_parent, whole_object=True)
    return sum(found)


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except rbd.ImageNotFound:
        raise no_volume(name) from None


@contextmanager
def _told() -> Iterator[None]:
    """What librbd raises, in our words."""
    try:
        yield
    except rbd.ImageBusy as error:
        raise Conflict(f"the volume is in use: {words(error)}") from None
    except rbd.Error as error:
        raise DriverError(f"Ceph: {words(error)}", retryable=isinstance(error, rbd.Timeout)) from None
