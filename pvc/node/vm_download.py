"""Exports of snapshots of VMs that are fetched while they are made, as a zip file: nothing stays here.

Whoever fetches it asks for what comes at an offset, and has got what is before it. No more is made than is
fetched. The manifest comes last.
"""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pvc.cluster import exports
from pvc.cluster.tasks import TaskSpec
from pvc.errors import Conflict, Invalid
from pvc.node.storage import Pools, Result
from pvc.node.tasks import Progress, Work
from pvc.node.transfer import MOST_BYTES, Answer, Query, Transfers, number
from pvc.node.vm_export import Source

WAITING_BYTES = 4 * MOST_BYTES
"""Of what is made and not yet fetched."""
PIECE_S = 5.0
"""So long a piece is waited for; one that is not full comes then."""


def works(pools: Pools, transfers: Transfers) -> dict[str, Work]:
    return {"vm.snapshot-download": Download(pools, transfers)}


class Pipe:
    """A Session, and the file that the zip is written to."""

    def __init__(self, make_room: Callable[[], None], piece_s: float = PIECE_S) -> None:
        self.make_room = make_room
        self.piece_s = piece_s
        self.changed = threading.Condition()
        self.waiting = bytearray()
        self.base = 0
        """Offset of what waits."""
        self.is_closed = False
        self.is_fetched = False
        self.is_broken = False
        self.digest = hashlib.sha256()

    @property
    def size(self) -> int:
        return self.base + len(self.waiting)

    @property
    def has_room(self) -> bool:
        return len(self.waiting) < WAITING_BYTES

    # Who writes

    def write(self, data: bytes) -> int:
        if self.is_broken:
            return len(data)
        self.make_room()
        self.digest.update(data)
        with self.changed:
            self.waiting += data
            self.changed.notify_all()
        return len(data)

    def flush(self) -> None:
        """What is written is there."""

    def close(self) -> None:
        with self.changed:
            self.is_closed = True
            self.changed.notify_all()

    @contextmanager
    def unbroken(self) -> Iterator[None]:
        """What fails in here ends what is written: nothing behind it makes it look whole."""
        try:
            yield
        except BaseException:
            self.is_broken = True
            raise

    # Who fetches

    def carry(self, what: str, query: Query, piece: bytes | None) -> Answer:
        offset = number(query, "offset")
        if what == "end":
            with self.changed:
                self.is_fetched = self.is_closed and offset == self.size
            return {"is_whole": self.is_fetched}
        if what != "piece" or piece is not None:
            raise Invalid(f"an export has no {what}")
        with self.changed:
            if not self.base <= offset <= self.size:
                raise Conflict(f"what comes at {offset} is not here (any more)", hint="begin again")
            del self.waiting[: offset - self.base]
            self.base = offset
            self.changed.wait_for(lambda: len(self.waiting) >= MOST_BYTES or self.is_closed, self.piece_s)
            return bytes(self.waiting[:MOST_BYTES])


class Download:
    """A Work."""

    def __init__(self, pools: Pools, transfers: Transfers) -> None:
        self.pools = pools
        self.transfers = transfers

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        with self.transfers.expected(task.id):
            source = Source(self.pools, task)
            told = (0.0, "waiting to be fetched")

            def tell() -> None:
                progress(*told)

            def at(fraction: float, words: str) -> None:
                nonlocal told
                told = (fraction, words)
                tell()

            def make_room() -> None:
                if not pipe.has_room:
                    self.transfers.wait(made, lambda: pipe.has_room, tell)

            pipe = Pipe(make_room)
            where = exports.directory_of(source.vm.name, source.snapshot.name)
            with self.transfers.opened(task.id, pipe) as made:
                _write(source, where, pipe, at)
                self.transfers.wait(made, lambda: pipe.is_fetched, tell)
            return {"directory": where, "bytes": pipe.size, "sha256": pipe.digest.hexdigest()}

    def undo(self, task: TaskSpec) -> None:
        """Nothing is kept here."""


def _write(source: Source, where: str, pipe: Pipe, told: Callable[[float, str], None]) -> None:
    with zipfile.ZipFile(pipe, "w") as archive, pipe.unbroken():
        manifest = source.write(lambda name: archive.open(f"{where}/{name}", "w", force_zip64=True), told)
        archive.writestr(f"{where}/{exports.MANIFEST}", exports.written(manifest))
    pipe.close()
