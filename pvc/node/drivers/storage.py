"""What a node needs of a pool: one protocol for all drivers, held by one suite (tests/contract)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from pvc.cluster.ceph import Traffic
from pvc.cluster.ceph_pools import CephFacts
from pvc.cluster.images import ImageFormat
from pvc.cluster.storage import Format
from pvc.errors import Conflict, Invalid, NotFound

Progress = Callable[[float], None]
"""Called with how much is done, from 0 to 1; may raise, and then what was begun ends soon."""


def unheard(fraction: float) -> None:
    """Progress that nobody waits for, nor ends."""


@dataclass(frozen=True, slots=True)
class Capacity:
    total_bytes: int
    used_bytes: int


@dataclass(frozen=True, slots=True)
class Volume:
    name: str
    size_bytes: int
    """What a guest sees."""
    used_bytes: int | None
    """What it takes of the pool; None in a list where it would take long to find out."""
    format: Format
    problem: str = ""
    """What is wrong with it, in a list: then nobody knows its size."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    name: str
    at: float
    """Wall clock of whoever made it, to show to people."""
    size_bytes: int
    """Of the volume at that time."""
    is_protected: bool = False


@dataclass(frozen=True, slots=True)
class User:
    """Who has a volume open."""

    address: str
    client: str
    """As Ceph calls it."""
    has_lock: bool
    """Writes go through it."""


@dataclass(frozen=True, slots=True)
class Extent:
    offset: int
    length: int
    is_data: bool
    """Else there are zeros: it was never written, or is no more."""


class Content(Protocol):
    """Of a snapshot: it does not change."""

    @property
    def size_bytes(self) -> int: ...

    def extents(self, since: str = "") -> Iterator[Extent]:
        """In order: data; since an older snapshot of the same volume all that may differ, zeros too. What is
        in none of them is zero, or as it was."""
        ...

    def read(self, offset: int, length: int) -> bytes: ...


class Filling(Protocol):
    """A volume that is not there yet. All of it is zero at first."""

    def write(self, offset: int, data: bytes) -> None: ...

    def zero(self, offset: int, length: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Image:
    """A file that holds a disk, as whoever sends it says."""

    format: ImageFormat
    size_bytes: int
    """Of the file."""


class Incoming(Protocol):
    """A volume that is made of an image while that comes."""

    def write(self, offset: int, piece: bytes) -> None:
        """Some bytes of the image, once each."""
        ...

    def finish(self, check: Callable[[int], None], progress: Progress) -> None:
        """All of it has come. `check` is told the size that the volume gets, and may raise.

        Raises Invalid for an image that is no such one.
        """
        ...


class Reading(Protocol):
    """What is on a volume at one moment."""

    size_bytes: int

    def read(self, offset: int, length: int) -> bytes: ...

    def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(from, how much) of what is not only zeros there, in order; may tell of more than there is."""
        ...


@dataclass(frozen=True, slots=True)
class Scratch:
    """A disk to be measured."""

    options: tuple[str, ...]
    """How fio is told of it."""
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Holder:
    """Of the lock by which one client at a time writes to an image of Ceph."""

    client: str
    cookie: str
    address: str
    """With what tells it from other clients there: 10.0.0.3:0/123."""
    is_there: bool
    """It watches the image: within the last half minute it was alive."""

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0].strip("[]")


class Locked(Protocol):
    """What of a pool of Ceph has to do with such locks. All may raise DriverError; NotFound."""

    def holders(self, name: str) -> tuple[Holder, ...]: ...

    def break_lock(self, name: str, holder: Holder) -> None:
        """For good: that client is never heard again."""
        ...


class Pool(Protocol):
    """The volumes of one pool.

    Names are those of pvc.names. A volume that somebody has open is not removed, renamed, cut or rolled back:
    Conflict; in a directory it is not changed at all. What happens to a volume is atomic: it happens, or
    nothing is left but what `discard` takes away, by the `token` (of the task) that names what is half done.
    All may raise DriverError; NotFound for what is not there.
    """

    def check(self) -> None:
        """Raises Unavailable when this node does not reach it."""
        ...

    def capacity(self) -> Capacity: ...

    def ceph_facts(self) -> CephFacts | None:
        """How Ceph keeps it; None for what is not in Ceph."""
        ...

    def traffic(self) -> Traffic | None:
        """How much is read and written at the moment; None where nobody counts."""
        ...

    def volumes(self) -> tuple[Volume, ...]:
        """By name; also those that are damaged."""
        ...

    def volume(self, name: str) -> Volume: ...

    def is_open(self, name: str) -> bool:
        """Somebody, here or on another node, reads or writes it as a disk."""
        ...

    def users(self, name: str) -> tuple[User, ...]:
        """Who has it open; none where that cannot be told, as of files on other nodes."""
        ...

    def location(self, name: str) -> str:
        """What the definition of a VM says for it."""
        ...

    def add(self, name: str, size_bytes: int, format: Format, token: str) -> None: ...

    def remove(self, name: str, token: str, progress: Progress = unheard) -> None:
        """With its snapshots. Raises Conflict where one is protected."""
        ...

    def set_aside(self, name: str, token: str, progress: Progress = unheard) -> None:
        """With its snapshots, whatever they are: nobody finds it, `discard` ends it. Raises Conflict."""
        ...

    def clones_bytes(self, name: str) -> int:
        """How much more its clones take at most, once it goes and they have blocks of their own."""
        ...

    def put_back(self, name: str, token: str) -> None:
        """What was set aside. Done already where nothing is."""
        ...

    def resize(self, name: str, size_bytes: int, *, shrink: bool = False) -> None:
        """Raises Conflict for a smaller one, unless told to cut it off."""
        ...

    def rename(self, name: str, new: str) -> None: ...

    def clone(self, name: str, new: str, token: str, progress: Progress, *, flatten: bool = False) -> None:
        """A volume with the same content and no snapshots; either may be removed before the other.

        They share blocks where that is possible, unless each is to have its own at once (`flatten`).
        """
        ...

    def incoming(
        self, name: str, image: Image, format: Format, token: str
    ) -> AbstractContextManager[Incoming]:
        """A volume that is there at the end of this, when it was finished."""
        ...

    def reading(self, name: str, token: str) -> AbstractContextManager[Reading]:
        """Of one that may change meanwhile where the driver can; Conflict where it cannot."""
        ...

    def scratch(self, size_bytes: int, token: str) -> AbstractContextManager[Scratch]:
        """A disk that is no volume, and is gone afterwards."""
        ...

    def snapshots(self, name: str) -> tuple[Snapshot, ...]:
        """The oldest first."""
        ...

    def add_snapshot(self, name: str, snapshot: str) -> None: ...

    def name_in_qemu(self, snapshot: str) -> str:
        """How QEMU is to call one of a volume that it has open; empty: `add_snapshot` takes it then, too."""
        ...

    def remove_snapshot(self, name: str, snapshot: str) -> None: ...

    def rename_snapshot(self, name: str, snapshot: str, new: str) -> None: ...

    def roll_back(self, name: str, snapshot: str) -> None: ...

    def protect(self, name: str, snapshot: str, *, on: bool) -> None: ...

    def content(self, name: str, snapshot: str) -> AbstractContextManager[Content]:
        """As long as nobody removes the snapshot. Also while a VM has the volume open."""
        ...

    def filled(
        self, name: str, size_bytes: int, format: Format, token: str
    ) -> AbstractContextManager[Filling]:
        """A new volume, that is there with all of it once the block ends well."""
        ...

    def discard(self, token: str, of: str = "") -> None:
        """Take away what is half done; done already where nothing is. `of`: what was being cloned."""
        ...


# What every driver says in the same words


def check_name(name: str, pattern: str, what: str) -> None:
    """Raises Invalid."""
    if not re.fullmatch(pattern, name):
        raise Invalid(f"{name!r} is no name of a {what}")


def no_volume(name: str) -> NotFound:
    return NotFound(f"no volume {name} in the pool", hint="pvc storage volume list")


def volume_exists(name: str) -> Conflict:
    return Conflict(f"there is a volume {name} already", hint="choose another name")


def in_use(name: str) -> Conflict:
    return Conflict(f"volume {name} is in use: a process on this node or another has it open")


def cut_off(name: str, before: int, after: int) -> Conflict:
    """Sizes in bytes."""
    return Conflict(
        f"volume {name} has {before} bytes: the last {before - after} would be cut off",
        hint="--shrink, when nothing uses them any more",
    )


def snapshot_exists(name: str, snapshot: str) -> Conflict:
    return Conflict(f"volume {name} has a snapshot {snapshot} already")


def is_protected(name: str, snapshot: str) -> Conflict:
    return Conflict(
        f"snapshot {snapshot} of volume {name} is protected",
        hint="pvc storage volume snapshot protect --off",
    )
