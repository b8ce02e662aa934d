"""A qcow2 file (version 3) written in one go: clusters in the order they come, then their tables."""

from __future__ import annotations

import struct
from array import array
from typing import BinaryIO

CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
ZEROS = bytes(CLUSTER)
PER_TABLE = CLUSTER // 8
REFCOUNTS_PER_BLOCK = CLUSTER // 2
COPIED = 1 << 63
"""In a table: nothing else uses this cluster."""
HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")


class Qcow2File:
    """What is written is in order; zeros need not be."""

    def __init__(self, target: BinaryIO) -> None:
        self.target = target
        self.size_bytes = 0
        self.next = 1
        """Cluster that is free; the header has the first."""
        self.tables: dict[int, array[int]] = {}
        """By place in the first table: where each cluster of a stretch of the disk is."""
        self.begun: tuple[int, bytearray] | None = None
        """A cluster of the disk of which not all has come."""

    def begin(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes

    def write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            cluster, inside = divmod(offset, CLUSTER)
            count = min(CLUSTER - inside, len(view))
            if self.begun is None or self.begun[0] != cluster:
                self._end_cluster()
                self.begun = cluster, bytearray(CLUSTER)
            self.begun[1][inside : inside + count] = view[:count]
            view, offset = view[count:], offset + count

    def finish(self) -> None:
        self._end_cluster()
        tables = -(-self.size_bytes // (CLUSTER * PER_TABLE))
        first = array("Q", bytes(8 * max(tables, 1)))
        for place in sorted(self.tables):
            first[place] = self._add(_big(self.tables[place])) | COPIED
        l1_at = self._add(_big(first))
        counts_at, blocks = self._add_refcounts()
        self.target.seek(0)
        self.target.write(
            HEADER.pack(
                *(b"QFI\xfb", 3, 0, 0, CLUSTER_BITS, self.size_bytes, 0, len(first), l1_at),
                *(counts_at, blocks, 0, 0, 0, 0, 0, 4, HEADER.size),
            ).ljust(CLUSTER, b"\0")
        )

    def _end_cluster(self) -> None:
        if self.begun is None:
            return
        cluster, content = self.begun
        self.begun = None
        if content == ZEROS:
            return
        place, inside = divmod(cluster, PER_TABLE)
        table = self.tables.setdefault(place, array("Q", bytes(CLUSTER)))
        table[inside] = self._add(content) | COPIED

    def _add(self, content: bytes | bytearray) -> int:
        """Where it is: on clusters of its own at the end."""
        at = self.next * CLUSTER
        self.target.seek(at)
        clusters = -(-len(content) // CLUSTER)
        self.target.write(content)
        self.target.write(bytes(clusters * CLUSTER - len(content)))
        self.next += clusters
        return at

    def _add_refcounts(self) -> tuple[int, int]:
        """Every cluster is used once, these included."""
        blocks, table = 0, 0
        while True:
            used = self.next + blocks + table
            wanted = -(-used // REFCOUNTS_PER_BLOCK)
            wanted_table = -(-wanted * 8 // CLUSTER)
            if (wanted, wanted_table) == (blocks, table):
                break
            blocks, table = wanted, wanted_table
        counts = array("H", [1] * used)
        counts.byteswap()
        blocks_at = self._add(counts.tobytes().ljust(blocks * CLUSTER, b"\0"))
        addresses = array("Q", [blocks_at + number * CLUSTER for number in range(blocks)])
        return self._add(_big(addresses)), table


def _big(numbers: array[int]) -> bytes:
    """As they are in the file, whose numbers begin with the greatest byte."""
    swapped = array("Q", numbers)
    swapped.byteswap()
    return swapped.tobytes()
