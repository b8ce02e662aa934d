"""VMs that are made of exports while those come from a client: straight onto their disks, none is kept here.

What comes is the manifests and then the files that they name, as `exports.needed` says, one after the other.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pvc.cluster import exports
from pvc.cluster.exports import MANIFEST, ExportedDisk
from pvc.cluster.tasks import TaskSpec
from pvc.errors import Failed, Invalid
from pvc.node import diffs
from pvc.node.storage import Pools, Result
from pvc.node.tasks import Progress, Work
from pvc.node.transfer import Answer, Query, Transfers, number
from pvc.node.vm_download import PIECE_S, WAITING_BYTES
from pvc.node.vm_export import Import


def works(pools: Pools, transfers: Transfers) -> dict[str, Work]:
    return {"vm.snapshot-upload": Upload(pools, transfers)}


class Pipe:
    """A Session, and the file that is read from it. Pieces come in order, no faster than they are read."""

    def __init__(
        self, size_bytes: int, wait: Callable[[Callable[[], bool]], None], piece_s: float = PIECE_S
    ) -> None:
        """`wait` returns once what it is given is true, or raises."""
        self.size_bytes = size_bytes
        self.wait = wait
        self.piece_s = piece_s
        self.changed = threading.Condition()
        self.waiting = bytearray()
        self.next = 0
        self.is_closed = False

    # Who brings it

    def carry(self, what: str, query: Query, piece: bytes | None) -> Answer:
        if what != "piece" or piece is None:
            raise Invalid(f"an export that comes has no {what}")
        offset = number(query, "offset")
        with self.changed:
            if piece and offset == self.next:
                self._take(piece)
            return {"next": self.next, "size_bytes": self.size_bytes}

    def _take(self, piece: bytes) -> None:
        if self.next + len(piece) > self.size_bytes:
            raise Failed(f"more came than the {self.size_bytes} bytes that were announced")
        self.changed.wait_for(lambda: self.is_closed or self._has_room(), self.piece_s)
        if self._has_room() and not self.is_closed:
            self.waiting += piece
            self.next += len(piece)

    def _has_room(self) -> bool:
        return len(self.waiting) < WAITING_BYTES

    # Who reads it

    def read(self, count: int) -> bytes:
        self.wait(lambda: len(self.waiting) >= count)
        with self.changed:
            data = bytes(self.waiting[:count])
            del self.waiting[:count]
            self.changed.notify_all()
        return data

    def close(self) -> None:
        """Nobody reads any more: whoever waits for room goes."""
        with self.changed:
            self.is_closed = True
            self.changed.notify_all()


class Part:
    """One file of what comes."""

    def __init__(self, pipe: Pipe, size_bytes: int) -> None:
        self.pipe = pipe
        self.left = size_bytes

    def read(self, count: int, /) -> bytes:
        count = min(count, self.left)
        self.left -= count
        return self.pipe.read(count)


class Coming:
    """A Chain."""

    def __init__(self, task: TaskSpec, pipe: Pipe) -> None:
        self.pipe = pipe
        documents = [pipe.read(size) for size in task.arguments["manifests"]]
        if hashlib.sha256(b"".join(documents)).hexdigest() != task.arguments["sha256"]:
            raise Invalid("the manifests that came are not those that were announced", hint="begin again")
        self.manifests = tuple(exports.read(one, f"what came as {MANIFEST}") for one in documents)

    @contextmanager
    def opened(self, number: int, disk: ExportedDisk) -> Iterator[diffs.Read]:
        name = f"{disk.file} of snapshot {self.manifests[number].snapshot}"
        yield diffs.Read(name, Part(self.pipe, disk.file_bytes), disk.file_bytes)


class Upload:
    """A Work."""

    def __init__(self, pools: Pools, transfers: Transfers) -> None:
        self.importing = Import(pools)
        self.transfers = transfers

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        def wait(is_true: Callable[[], bool]) -> None:
            self.transfers.wait(made, is_true, progress.check)

        with self.transfers.expected(task.id):
            pipe = Pipe(task.arguments["size_bytes"], wait)
            with self.transfers.opened(task.id, pipe) as made:
                try:
                    return self.importing.make(task, Coming(task, pipe), progress)
                finally:
                    pipe.close()

    def undo(self, task: TaskSpec) -> None:
        self.importing.undo(task)
