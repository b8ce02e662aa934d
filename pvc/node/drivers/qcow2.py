"""qcow2 files, read without QEMU: their snapshots, and what is in those.

What belongs to a snapshot is never written to again: QEMU writes elsewhere as long as the snapshot is there.
So it is read safely while a VM has the file open; and where two snapshots name the same cluster of the file,
they have the same content: what differs between them is known from their tables alone.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import BinaryIO

from pvc.errors import NotFound
from pvc.node.drivers import DriverError
from pvc.node.drivers.storage import Extent

MAGIC = b"QFI\xfb"
HEADER = struct.Struct(">4sIQIIQIIQQIIQQ")
"""Magic, version, where and how long the name of the backing file is, cluster bits, size of the disk,
encryption, L1 entries and table, refcounts and their clusters, how many snapshots and where, features."""
SNAPSHOT = struct.Struct(">QIHHIIQII")
"""L1 table and its entries, length of identity and name, seconds, nanoseconds, clock, state, more."""
BEARABLE = 0b1
"""Of the features that one must know: it was not closed, which concerns who counts references."""
ELSEWHERE = 0b100
"""Of these: its data is in another file."""
COPIED, COMPRESSED, ZERO = 1 << 63, 1 << 62, 1
PLACE = 0x00FF_FFFF_FFFF_FE00
"""Where a table or a cluster is in the file."""
DEFLATE = -12
"""Of compressed clusters."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A snapshot inside of a file."""

    name: str
    at: float
    size_bytes: int
    table: int
    """Where its L1 table is, of so many entries."""
    entries: int


@dataclass(frozen=True, slots=True)
class _Header:
    cluster_bits: int
    size_bytes: int
    snapshots: int
    table: int
    names_others: bool
    """Files that have the rest."""
    is_whole: bool
    """All of it is in this file, in ways that we know."""


def size(disk: BinaryIO) -> int:
    """Of the disk that a guest sees. Raises DriverError."""
    return _header(disk).size_bytes


def names_others(disk: BinaryIO) -> bool:
    """Files that have the rest of it. Raises DriverError."""
    return _header(disk).names_others


def tags(disk: BinaryIO) -> list[Tag]:
    """In the order of the file: the oldest first."""
    header, found = _header(disk), []
    place = header.table
    for _ in range(header.snapshots):
        disk.seek(place)
        table, entries, id_length, name_length, seconds, nanoseconds, _, _, extra_length = SNAPSHOT.unpack(
            disk.read(SNAPSHOT.size)
        )
        extra = disk.read(extra_length)
        disk.read(id_length)
        name = disk.read(name_length).decode()
        size_then = struct.unpack(">Q", extra[8:16])[0] if extra_length >= 16 else header.size_bytes
        found.append(Tag(name, seconds + nanoseconds / 1e9, size_then, table, entries))
        place += -(-(SNAPSHOT.size + extra_length + id_length + name_length) // 8) * 8
    return found


def _header(disk: BinaryIO) -> _Header:
    disk.seek(0)
    read = disk.read(HEADER.size)
    if len(read) < 72 or not read.startswith(MAGIC):
        raise DriverError(f"{disk.name} is no qcow2 file")
    _, version, backing, _, bits, size_bytes, encryption, *_, count, table, features = HEADER.unpack(
        read.ljust(HEADER.size, b"\0")
    )
    features = features if version > 2 else 0
    return _Header(
        *(bits, size_bytes, count, table),
        names_others=bool(backing or features & ELSEWHERE),
        is_whole=not (backing or encryption or features & ~BEARABLE),
    )


class Content:
    """Of one snapshot."""

    def __init__(self, disk: BinaryIO, tag: Tag, others: Mapping[str, Tag]) -> None:
        header = _header(disk)
        if not header.is_whole:
            raise DriverError(f"{disk.name} has a backing file, or a feature of qcow2 that pvc cannot read")
        self.disk = disk
        self.size_bytes = tag.size_bytes
        self.others = others
        self.cluster_bits = header.cluster_bits
        self.cluster_bytes = 1 << header.cluster_bits
        self.in_table = self.cluster_bytes // 8
        self.tables = self._tables(tag)
        self._known = -1, (0,) * self.in_table

    def extents(self, since: str = "") -> Iterator[Extent]:
        offset = length = 0
        is_data = False
        for index, entry in self._changed(since):
            at, kind = index << self.cluster_bits, entry != 0
            if length and (at != offset + length or kind != is_data):
                yield Extent(offset, length, is_data)
                length = 0
            if not length:
                offset, is_data = at, kind
            length += min(self.cluster_bytes, self.size_bytes - at)
        if length:
            yield Extent(offset, length, is_data)

    def read(self, offset: int, length: int) -> bytes:
        pieces, end = [], offset + length
        while offset < end:
            index, into = offset >> self.cluster_bits, offset & (self.cluster_bytes - 1)
            count = min(self.cluster_bytes - into, end - offset)
            pieces.append(self._read(self._entry(index), into, count))
            offset += count
        return b"".join(pieces)

    # Tables

    def _tables(self, tag: Tag) -> tuple[int, ...]:
        """Where the L2 tables are; 0: there is none, and all that it would tell of is zero."""
        needed = -(-tag.size_bytes // (self.cluster_bytes * self.in_table))
        count = min(tag.entries, needed)  # behind the disk there may be the memory of a machine
        read = self._table(8 * count, tag.table)
        return tuple(entry & PLACE for entry in struct.unpack(f">{count}Q", read))

    def _entries(self, table: int) -> tuple[int, ...]:
        """0: that cluster is zero."""
        if not table:
            return (0,) * self.in_table
        read = self._table(self.cluster_bytes, table)
        return tuple(_where(entry) for entry in struct.unpack(f">{self.in_table}Q", read))

    def _table(self, count: int, place: int) -> bytes:
        read = self._pread(count, place)
        if len(read) != count:
            raise DriverError(f"{self.disk.name} is cut off")
        return read

    def _changed(self, since: str) -> Iterator[tuple[int, int]]:
        """Clusters that differ, and where each is now."""
        clusters = -(-self.size_bytes // self.cluster_bytes)
        before, cut = self._before(since)
        for number, (new, old) in enumerate(zip_longest(self.tables, before, fillvalue=0)):
            first = number * self.in_table
            if first >= clusters:
                return
            if new == old and not first <= cut < first + self.in_table:
                continue
            pairs = zip(self._entries(new), self._entries(old), strict=True)
            for index, (entry, earlier) in enumerate(pairs, start=first):
                if index < clusters and (entry != earlier or (index == cut and entry)):
                    yield index, entry

    def _before(self, since: str) -> tuple[tuple[int, ...], int]:
        """Tables of the other snapshot, and the cluster at which its disk ended in the middle, or -1."""
        if not since:
            return (), -1
        if since not in self.others:
            raise NotFound(f"the volume has no snapshot {since}")
        other = self.others[since]
        is_whole = other.size_bytes % self.cluster_bytes == 0 or other.size_bytes == self.size_bytes
        return self._tables(other), -1 if is_whole else other.size_bytes >> self.cluster_bits

    def _entry(self, index: int) -> int:
        number, place = divmod(index, self.in_table)
        if self._known[0] != number:
            table = self.tables[number] if number < len(self.tables) else 0
            self._known = number, self._entries(table)
        return self._known[1][place]

    # Clusters

    def _read(self, entry: int, into: int, count: int) -> bytes:
        if not entry:
            return bytes(count)
        if entry & COMPRESSED:
            return self._unpacked(entry)[into : into + count]
        return self._pread(count, entry + into).ljust(count, b"\0")

    def _unpacked(self, entry: int) -> bytes:
        bits = 62 - (self.cluster_bits - 8)
        place, sectors = entry & ((1 << bits) - 1), (entry & (COMPRESSED - 1)) >> bits
        packed = self._pread((sectors + 1) * 512 - place % 512, place)
        try:
            found = zlib.decompressobj(DEFLATE).decompress(packed, self.cluster_bytes)
        except zlib.error as error:
            raise DriverError(f"{self.disk.name} has a damaged cluster: {error}") from None
        return found.ljust(self.cluster_bytes, b"\0")

    def _pread(self, count: int, place: int) -> bytes:
        try:
            return os.pread(self.disk.fileno(), count, place)
        except OSError as error:
            raise DriverError(f"{self.disk.name} cannot be read: {error.strerror}") from None


def _where(entry: int) -> int:
    if entry & COMPRESSED:
        return entry & ~COPIED
    return 0 if entry & ZERO else entry & PLACE
