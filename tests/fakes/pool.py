"""A pool in memory. The contract suite holds it to what the real drivers do."""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pvc import names
from pvc.cluster.ceph import Traffic
from pvc.cluster.ceph_pools import CephFacts
from pvc.cluster.images import ImageFormat
from pvc.cluster.storage import Format
from pvc.errors import Conflict, Invalid, NotFound, Unavailable
from pvc.node.drivers import DriverError, images
from pvc.node.drivers.storage import (
    Capacity,
    Content,
    Extent,
    Filling,
    Image,
    Incoming,
    Progress,
    Reading,
    Scratch,
    Snapshot,
    User,
    Volume,
    unheard,
)


@dataclass
class Kept:
    volume: Volume
    content: bytes = b""
    snapshots: dict[str, tuple[Snapshot, bytes]] = field(default_factory=dict)


@dataclass
class FakePool:
    total_bytes: int = 100 * 1024**3
    used_bytes: int = 0
    place: str = "/srv/vms/{}/disk.qcow2"
    """Of a volume, as definitions say."""
    is_mounted: bool = True
    open: set[str] = field(default_factory=set)
    """Volumes that somebody has open."""
    ceph: CephFacts | None = None
    goes_on: Traffic | None = None
    shared_bytes: dict[str, int] = field(default_factory=dict)
    """Of volumes, what their clones have of them."""
    kept: dict[str, Kept] = field(default_factory=dict)
    half_done: set[str] = field(default_factory=set)
    aside: dict[str, Kept] = field(default_factory=dict)
    _clock: Iterator[int] = field(default_factory=lambda: itertools.count(1_700_000_000))

    def check(self) -> None:
        if not self.is_mounted:
            raise Unavailable("the pool is not here", hint="is it mounted?")

    def capacity(self) -> Capacity:
        self.check()
        return Capacity(self.total_bytes, self.used_bytes)

    def ceph_facts(self) -> CephFacts | None:
        return self.ceph

    def traffic(self) -> Traffic | None:
        return self.goes_on

    def volumes(self) -> tuple[Volume, ...]:
        self.check()
        return tuple(self.kept[name].volume for name in sorted(self.kept))

    def volume(self, name: str) -> Volume:
        return self._found(name).volume

    def is_open(self, name: str) -> bool:
        self._found(name)
        return name in self.open

    def location(self, name: str) -> str:
        return self.place.format(self._found(name).volume.name)

    def add(self, name: str, size_bytes: int, format: Format, token: str) -> None:
        self._check_free(name)
        self.kept[name] = Kept(Volume(name, size_bytes, 0, format))

    def remove(self, name: str, token: str, progress: Progress = unheard) -> None:
        found = self._found(name)
        for snapshot, _ in found.snapshots.values():
            if snapshot.is_protected:
                raise Conflict(f"snapshot {snapshot.name} of volume {name} is protected")
        self.set_aside(name, token, progress)
        self.discard(token)

    def set_aside(self, name: str, token: str, progress: Progress = unheard) -> None:
        found = self._found(name)
        self._unused(name)
        del self.kept[name]
        self.aside[token] = found
        self.half_done.add(token)

    def clones_bytes(self, name: str) -> int:
        self._found(name)
        return self.shared_bytes.get(name, 0)

    def put_back(self, name: str, token: str) -> None:
        self.check()
        if token in self.aside:
            self._check_free(name)
            self.kept[name] = self.aside.pop(token)
            self.half_done.discard(token)

    def resize(self, name: str, size_bytes: int, *, shrink: bool = False) -> None:
        found = self._found(name)
        if size_bytes < found.volume.size_bytes and not shrink:
            lost = found.volume.size_bytes - size_bytes
            raise Conflict(f"the last {lost} would be cut off")
        self._unused(name)
        found.volume = replace(found.volume, size_bytes=size_bytes)
        found.content = found.content[:size_bytes]

    def rename(self, name: str, new: str) -> None:
        found = self._found(name)
        self._check_free(new)
        self._unused(name)
        del self.kept[name]
        self.kept[new] = replace(found, volume=replace(found.volume, name=new))

    def users(self, name: str) -> tuple[User, ...]:
        self._found(name)
        return (User("10.0.0.9:0/1", "client.7", has_lock=True),) if name in self.open else ()

    def clone(self, name: str, new: str, token: str, progress: Progress, *, flatten: bool = False) -> None:
        found = self._found(name)
        self._check_free(new)
        self._unused(name)
        self.half_done.add(token)
        progress(0.5)
        self.half_done.discard(token)
        self.kept[new] = Kept(replace(found.volume, name=new), found.content)

    @contextmanager
    def incoming(self, name: str, image: Image, format: Format, token: str) -> Iterator[Incoming]:
        self._check_free(name)
        self.half_done.add(token)
        taken = FakeIncoming(image)
        yield taken
        if taken.made is None:
            raise DriverError(f"volume {name} was not finished")
        self.half_done.discard(token)
        self.kept[name] = Kept(Volume(name, len(taken.made), 0, format), taken.made)

    @contextmanager
    def reading(self, name: str, token: str) -> Iterator[Reading]:
        found = self._found(name)
        self._unused(name)
        yield FakeReading(found.volume.size_bytes, found.content)

    @contextmanager
    def scratch(self, size_bytes: int, token: str) -> Iterator[Scratch]:
        self.check()
        self.half_done.add(token)
        yield Scratch(("--ioengine=null",), {})
        self.half_done.discard(token)

    def snapshots(self, name: str) -> tuple[Snapshot, ...]:
        return tuple(snapshot for snapshot, _ in self._found(name).snapshots.values())

    def add_snapshot(self, name: str, snapshot: str) -> None:
        found = self._found(name)
        _check_name(snapshot)
        if found.volume.format is Format.RAW:
            raise Conflict(f"volume {name} is raw")
        if snapshot in found.snapshots:
            raise Conflict(f"volume {name} has a snapshot {snapshot} already")
        self._unused(name)
        made = Snapshot(snapshot, float(next(self._clock)), found.volume.size_bytes)
        found.snapshots[snapshot] = made, found.content

    def name_in_qemu(self, snapshot: str) -> str:
        return f"@{snapshot}"

    def remove_snapshot(self, name: str, snapshot: str) -> None:
        taken, _ = self._snapshot(name, snapshot)
        if taken.is_protected:
            raise Conflict(f"snapshot {snapshot} of volume {name} is protected")
        self._unused(name)
        del self.kept[name].snapshots[snapshot]

    def rename_snapshot(self, name: str, snapshot: str, new: str) -> None:
        self._snapshot(name, snapshot)
        _check_name(new)
        found = self.kept[name]
        if new in found.snapshots:
            raise Conflict(f"volume {name} has a snapshot {new} already")
        found.snapshots = {
            (new if one == snapshot else one): (replace(of, name=new if one == snapshot else one), content)
            for one, (of, content) in found.snapshots.items()
        }

    def roll_back(self, name: str, snapshot: str) -> None:
        taken, content = self._snapshot(name, snapshot)
        self._unused(name)
        found = self.kept[name]
        found.content = content
        found.volume = replace(found.volume, size_bytes=taken.size_bytes)

    def protect(self, name: str, snapshot: str, *, on: bool) -> None:
        taken, content = self._snapshot(name, snapshot)
        self.kept[name].snapshots[snapshot] = replace(taken, is_protected=on), content

    @contextmanager
    def content(self, name: str, snapshot: str) -> Iterator[Content]:
        self._snapshot(name, snapshot)
        yield FakeContent(self._found(name), snapshot)

    @contextmanager
    def filled(self, name: str, size_bytes: int, format: Format, token: str) -> Iterator[Filling]:
        self._check_free(name)
        self.half_done.add(token)
        filling = FakeFilling(bytearray(size_bytes))
        yield filling
        self._check_free(name)
        self.half_done.discard(token)
        self.kept[name] = Kept(Volume(name, size_bytes, 0, format), bytes(filling.content))

    def discard(self, token: str, of: str = "") -> None:
        self.check()
        self.aside.pop(token, None)
        self.half_done.discard(token)

    def _found(self, name: str) -> Kept:
        self.check()
        _check_name(name)
        if name not in self.kept:
            raise NotFound(f"no volume {name} in the pool")
        return self.kept[name]

    def _snapshot(self, name: str, snapshot: str) -> tuple[Snapshot, bytes]:
        found = self._found(name).snapshots.get(snapshot)
        if found is None:
            raise NotFound(f"volume {name} has no snapshot {snapshot}")
        return found

    def _check_free(self, name: str) -> None:
        self.check()
        _check_name(name)
        if name in self.kept:
            raise Conflict(f"there is a volume {name} already")

    def _unused(self, name: str) -> None:
        if name in self.open:
            raise Conflict(f"volume {name} is in use")


PIECE = 4096


@dataclass
class FakeContent:
    kept: Kept
    snapshot: str

    @property
    def size_bytes(self) -> int:
        return self.kept.snapshots[self.snapshot][0].size_bytes

    def extents(self, since: str = "") -> Iterator[Extent]:
        if since and since not in self.kept.snapshots:
            raise NotFound(f"the volume has no snapshot {since}")
        before = self.kept.snapshots[since][1] if since else b""
        for offset in range(0, self.size_bytes, PIECE):
            length = min(PIECE, self.size_bytes - offset)
            now = self.read(offset, length)
            if now != before[offset : offset + length].ljust(length, b"\0"):
                yield Extent(offset, length, any(now))

    def read(self, offset: int, length: int) -> bytes:
        return self.kept.snapshots[self.snapshot][1][offset : offset + length].ljust(length, b"\0")


@dataclass
class FakeFilling:
    content: bytearray

    def write(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        self.content[offset : offset + length] = bytes(length)


class FakeIncoming:
    def __init__(self, image: Image) -> None:
        self.image = image
        self.came = bytearray(image.size_bytes)
        self.made: bytes | None = None

    def write(self, offset: int, piece: bytes) -> None:
        self.came[offset : offset + len(piece)] = piece

    def finish(self, check: Callable[[int], None], progress: Progress) -> None:
        if self.image.format is ImageFormat.RAW:
            check(len(self.came))
            self.made = bytes(self.came)
            return
        with tempfile.TemporaryDirectory() as where:
            came, made = Path(where, "came"), Path(where, "made")
            came.write_bytes(self.came)
            named = images.of_file(came)
            size = images.look(named, self.image.format, self.image.size_bytes, check)
            with made.open("wb") as file:
                file.truncate(size)
            images.convert(
                *(named, self.image.format, images.of_file(made), Format.RAW),
                progress,
                lambda: 0.5,
            )
            self.made = made.read_bytes()


@dataclass
class FakeReading:
    size_bytes: int
    content: bytes

    def read(self, offset: int, length: int) -> bytes:
        return self.content.ljust(self.size_bytes, b"\0")[offset : offset + length]

    def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        count = min(offset + length, len(self.content)) - offset
        return [(offset, count)] if count > 0 else []


def _check_name(name: str) -> None:
    if not re.fullmatch(names.VOLUME, name):
        raise Invalid(f"{name!r} is no name")
