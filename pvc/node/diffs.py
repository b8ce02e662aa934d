"""What a disk holds, or what differs from an earlier state of it, as a file.

In version 1 of the format of `rbd export-diff`, which `rbd import-diff` and `rbd merge-diff` read.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from pvc.errors import Failed, Invalid
from pvc.node.drivers.storage import Content, Filling

HEADER = b"rbd diff v1\n"
FROM, TO, SIZE, DATA, ZERO, END = b"f", b"t", b"s", b"w", b"z", b"e"
NUMBER, RANGE, LENGTH = struct.Struct("<Q"), struct.Struct("<QQ"), struct.Struct("<I")
AT_ONCE = 4 * 1024**2
NAME_BYTES = 4096

Told = Callable[[float], None]
"""Called with how much is done, from 0 to 1; may raise."""


class Written:
    """A file, and what it should be when it is read again."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.bytes = 0
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self.file.write(data)
        self.bytes += len(data)


def write(out: Written, content: Content, snapshot: str, since: str, told: Told) -> None:
    """All data of a snapshot; `since` another one, all that differs."""
    out.write(HEADER)
    if since:
        out.write(FROM + _text(since))
    out.write(TO + _text(snapshot) + SIZE + NUMBER.pack(content.size_bytes))
    for extent in content.extents(since):
        if not extent.is_data:
            if since:
                out.write(ZERO + RANGE.pack(extent.offset, extent.length))
            told(extent.offset / content.size_bytes)
            continue
        for into in range(0, extent.length, AT_ONCE):
            offset = extent.offset + into
            data = content.read(offset, min(AT_ONCE, extent.length - into))
            told(offset / content.size_bytes)
            if data != bytes(len(data)):
                out.write(DATA + RANGE.pack(offset, len(data)))
                out.write(data)
            elif since:
                out.write(ZERO + RANGE.pack(offset, len(data)))
    out.write(END)


def _text(text: str) -> bytes:
    data = text.encode()
    return LENGTH.pack(len(data)) + data


def check(path: Path, sha256: str, told: Told) -> None:
    """Read from the disk, not from memory. Raises Failed."""
    found, size = hashlib.sha256(), max(path.stat().st_size, 1)
    done = 0
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while data := file.read(AT_ONCE):
            found.update(data)
            done += len(data)
            told(min(done / size, 1))
    if found.hexdigest() != sha256:
        raise Failed(f"{path} is not what it should be: its checksum is another one")


class Readable(Protocol):
    def read(self, count: int, /) -> bytes:
        """As much as is asked for; less only at its end."""
        ...


class Read:
    """A file of which each byte is read once. Raises Invalid where it is no such one."""

    def __init__(self, name: str, file: Readable, size_bytes: int) -> None:
        self.name = name
        self.file = file
        self.size = max(size_bytes, 1)
        self.done = 0
        self._hash = hashlib.sha256()

    def take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            raise Invalid(f"{self.name} is cut off")
        self._hash.update(data)
        self.done += count
        return data

    def number(self, layout: struct.Struct) -> int:
        return int(layout.unpack(self.take(layout.size))[0])

    def end(self, sha256: str) -> None:
        if self.file.read(1):
            raise Invalid(f"{self.name} goes on behind its end")
        if self._hash.hexdigest() != sha256:
            raise Invalid(f"{self.name} is damaged: its checksum is not the one in the manifest")


@contextmanager
def opened(path: Path) -> Iterator[Read]:
    with path.open("rb") as file:
        yield Read(str(path), file, path.stat().st_size)


def apply(source: Read, sha256: str, filling: Filling, size_bytes: int, before_bytes: int, told: Told) -> int:
    """To a volume of `size_bytes`, which has been `before_bytes` long up to now: nothing is behind that.

    Returns how long it is now. The volume is to be thrown away when this raises: Failed, Invalid.
    """
    if source.take(len(HEADER)) != HEADER:
        raise Invalid(f"{source.name} is not of the format of rbd export-diff")
    now_bytes = _apply(source, filling, size_bytes, before_bytes, told)
    source.end(sha256)
    return now_bytes


def _apply(source: Read, filling: Filling, size_bytes: int, before_bytes: int, told: Told) -> int:
    now_bytes = -1
    while (kind := source.take(1)) != END:
        match kind:
            case b"f" | b"t":
                source.take(min(source.number(LENGTH), NAME_BYTES))
            case b"s":
                now_bytes = source.number(NUMBER)
                last = min(before_bytes, size_bytes)
                if now_bytes < last:
                    filling.zero(now_bytes, last - now_bytes)
            case b"w" | b"z":
                offset, length = RANGE.unpack(source.take(RANGE.size))
                if offset + length > now_bytes:
                    raise Invalid(f"{source.name} tells of what is behind the end of the disk")
                _take(source, filling, size_bytes, offset, length, is_data=kind == DATA)
                told(min(source.done / source.size, 1))
            case _:
                raise Invalid(f"{source.name} has an unknown record {kind!r}")
    if now_bytes < 0:
        raise Invalid(f"{source.name} does not say how large the disk is")
    return now_bytes


def _take(
    source: Read, filling: Filling, size_bytes: int, offset: int, length: int, *, is_data: bool
) -> None:
    """What is behind the end of the volume is left out: it was cut off later."""
    if not is_data:
        if offset < size_bytes:
            filling.zero(offset, min(length, size_bytes - offset))
        return
    while length:
        data = source.take(min(length, AT_ONCE))
        if offset < size_bytes:
            filling.write(offset, data[: size_bytes - offset])
        offset, length = offset + len(data), length - len(data)
