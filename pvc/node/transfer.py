"""Images that come to volumes of this node's pools and content that goes out, piece by piece.

A task holds the volume for as long as that takes; pieces come over HTTP, on threads of the server of this
node, and meet the task here. Whoever brings or fetches them may be silent for a minute.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from pvc.clock import Clock, SystemClock
from pvc.cluster import images
from pvc.cluster.codec import to_json
from pvc.cluster.images import ImageFormat
from pvc.cluster.storage import Format, check_size
from pvc.cluster.tasks import TaskSpec
from pvc.errors import Conflict, Failed, Invalid, PVCError, Unavailable
from pvc.node.drivers.storage import Image, Incoming, Reading
from pvc.node.storage import Pools, Result, guard
from pvc.node.tasks import Progress, Work

SILENCE_S = 60.0
OPEN_S = 10.0
"""So long a piece waits for its task to begin."""
LOOK_S = 0.5
REMEMBERED = 100
MOST_BYTES = 4 * 1024**2
STRETCH_BYTES = 1024**3
"""Of which it is told at once where there is something."""

Query = Mapping[str, str]
Answer = bytes | dict[str, object]


class Session(Protocol):
    """What a task takes in or hands out; called by one thread at a time."""

    def carry(self, what: str, query: Query, piece: bytes | None) -> Answer: ...


@dataclass(slots=True)
class Open:
    """A session while its task goes on."""

    session: Session
    at: float
    """When somebody has come last."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_over: bool = False
    problem: PVCError | None = None


class Transfers:
    """The sessions of this node, by task."""

    def __init__(self, clock: Clock | None = None, silence_s: float = SILENCE_S) -> None:
        self.clock = clock or SystemClock()
        self.silence_s = silence_s
        self.open: dict[str, Open] = {}
        self.over: deque[str] = deque(maxlen=REMEMBERED)
        self.changed = threading.Condition()

    def carry(self, task: str, what: str, query: Query, piece: bytes | None) -> Answer:
        """Raises Unavailable for a task that is not at it (yet, or any more)."""
        found = self._found(task)
        with found.lock:
            if found.is_over:
                raise Unavailable(f"task {task} takes no more", hint=f"pvc task info {task}")
            found.at = self.clock.monotonic()
            try:
                return found.session.carry(what, query, piece)
            except (Conflict, Invalid, Unavailable):
                raise
            except PVCError as error:
                found.problem = error
                raise
            finally:
                found.at = self.clock.monotonic()
                with self.changed:
                    self.changed.notify_all()

    def _found(self, task: str) -> Open:
        with self.changed:
            self.changed.wait_for(lambda: task in self.open or task in self.over, OPEN_S)
            if task not in self.open:
                raise Unavailable(f"task {task} is not at it here", hint=f"pvc task info {task}")
            return self.open[task]

    @contextmanager
    def expected(self, task: str) -> Iterator[None]:
        """Around all that a task does: who waits for it to begin learns when it never will."""
        try:
            yield
        finally:
            with self.changed:
                self.over.append(task)
                self.changed.notify_all()

    @contextmanager
    def opened(self, task: str, session: Session) -> Iterator[Open]:
        """Pieces are taken or given as long as this lasts, and none is at it when it ends."""
        made = Open(session, self.clock.monotonic())
        with self.changed:
            self.open[task] = made
            self.changed.notify_all()
        try:
            yield made
        finally:
            with self.changed:
                del self.open[task]
            with made.lock:
                made.is_over = True

    def wait(self, made: Open, is_done: Callable[[], bool], progress: Callable[[], None]) -> None:
        """Raises what went wrong, Stopped, or Failed when nobody came any more."""
        while not is_done():
            progress()
            if made.problem is not None:
                raise made.problem
            if self.clock.monotonic() - made.at > self.silence_s:
                raise Failed(f"nobody came for {self.silence_s:g} s", hint="begin again")
            with self.changed:
                self.changed.wait(LOOK_S)


# What comes


class Taking:
    """A Session. Pieces come in order; one that came already may come again."""

    def __init__(self, incoming: Incoming, image: Image) -> None:
        self.incoming = incoming
        self.image = image
        self.next = 0
        self.head, self.tail = b"", b""
        self.digest = hashlib.sha256()
        self.claimed = ""
        """By whoever brings it: of the whole file."""

    @property
    def is_whole(self) -> bool:
        return self.next == self.image.size_bytes and bool(self.claimed)

    def carry(self, what: str, query: Query, piece: bytes | None) -> Answer:
        if what != "piece" or piece is None:
            raise Invalid(f"an upload has no {what}")
        offset, claimed = number(query, "offset"), query.get("sha256", "")
        if offset == self.next and piece:
            self._take(piece)
        if claimed and offset + len(piece) == self.image.size_bytes == self.next:
            self._end(claimed)
        return {"next": self.next, "size_bytes": self.image.size_bytes}

    def _take(self, piece: bytes) -> None:
        if self.next + len(piece) > self.image.size_bytes:
            raise Failed(f"more came than the {self.image.size_bytes} bytes that were announced")
        self._look(piece)
        self.incoming.write(self.next, piece)
        self.digest.update(piece)
        self.next += len(piece)

    def _look(self, piece: bytes) -> None:
        """At its beginning, before the rest has come for nothing."""
        before = len(self.head)
        wanted = min(images.HEAD_BYTES, self.image.size_bytes)
        self.head += piece[: images.HEAD_BYTES - before]
        self.tail = (self.tail + piece[-images.TAIL_BYTES :])[-images.TAIL_BYTES :]
        if before < wanted <= len(self.head):
            with wrong_file():
                images.check(self.image.format, self.head)

    def _end(self, claimed: str) -> None:
        if claimed != self.digest.hexdigest():
            raise Failed(
                f"what came is not what was sent: its sha256 is {self.digest.hexdigest()}, not {claimed}",
                hint="did the file change meanwhile? begin again",
            )
        with wrong_file():
            images.check_tail(self.image.format, self.head, self.tail)
        self.claimed = claimed


@contextmanager
def wrong_file() -> Iterator[None]:
    """What is invalid about the file ends the task; what is invalid about a request does not."""
    try:
        yield
    except Invalid as error:
        raise Failed(error.message, hint=error.hint) from None


class Upload:
    """A Work."""

    def __init__(self, pools: Pools, transfers: Transfers) -> None:
        self.pools = pools
        self.transfers = transfers

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        asked = task.arguments
        pool = self.pools.open(asked["pool"])
        image = Image(ImageFormat(asked["image_format"]), asked["size_bytes"])
        is_raw = image.format is ImageFormat.RAW
        guard(asked["pool"], pool, image.size_bytes, force=asked["force"])
        share = 1.0 if is_raw else 0.7

        def check(size_bytes: int) -> None:
            check_size(size_bytes)
            if not is_raw:
                guard(asked["pool"], pool, size_bytes, force=asked["force"])

        with (
            self.transfers.expected(task.id),
            pool.incoming(asked["volume"], image, Format(asked["format"]), task.id) as incoming,
        ):
            taking = Taking(incoming, image)

            def told() -> None:
                progress(share * taking.next / image.size_bytes, "taking it in")

            with self.transfers.opened(task.id, taking) as made:
                self.transfers.wait(made, lambda: taking.is_whole, told)
            incoming.finish(
                check, lambda done: progress(share + (1 - share) * done, f"reading {image.format}")
            )
        volume = pool.volume(asked["volume"])
        return {"pool": asked["pool"], "volume": to_json(volume), "sha256": taking.claimed}

    def undo(self, task: TaskSpec) -> None:
        self.pools.open(task.arguments["pool"]).discard(task.id)


# What goes


class Giving:
    """A Session."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.upto = 0
        self.is_done = False

    def carry(self, what: str, query: Query, piece: bytes | None) -> Answer:
        if what == "end":
            self.is_done = True
            return {}
        offset = number(query, "offset")
        if offset > self.reading.size_bytes:
            raise Invalid(f"offset {offset} is beyond its end at {self.reading.size_bytes}")
        self.upto = max(self.upto, offset)
        if what == "map":
            return self._map(offset)
        if what == "piece" and piece is None:
            length = min(number(query, "length"), MOST_BYTES, self.reading.size_bytes - offset)
            return self.reading.read(offset, length)
        raise Invalid(f"a download has no {what}")

    def _map(self, offset: int) -> dict[str, object]:
        length = min(STRETCH_BYTES - offset % STRETCH_BYTES, self.reading.size_bytes - offset)
        found = self.reading.extents(offset, length) if length else []
        size = self.reading.size_bytes
        return {"extents": [list(one) for one in found], "until": offset + length, "size_bytes": size}


class Download:
    """A Work."""

    def __init__(self, pools: Pools, transfers: Transfers) -> None:
        self.pools = pools
        self.transfers = transfers

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        asked = task.arguments
        pool = self.pools.open(asked["pool"])
        with self.transfers.expected(task.id), pool.reading(asked["volume"], task.id) as reading:
            giving = Giving(reading)

            def told() -> None:
                progress(giving.upto / max(reading.size_bytes, 1), "handing it out")

            with self.transfers.opened(task.id, giving) as made:
                self.transfers.wait(made, lambda: giving.is_done, told)
            return {"pool": asked["pool"], "size_bytes": reading.size_bytes}

    def undo(self, task: TaskSpec) -> None:
        self.pools.open(task.arguments["pool"]).discard(task.id, task.arguments["volume"])


def works(pools: Pools, transfers: Transfers) -> dict[str, Work]:
    return {
        "storage.volume-upload": Upload(pools, transfers),
        "storage.volume-download": Download(pools, transfers),
    }


def number(query: Query, name: str) -> int:
    text = query.get(name, "")
    if not re.fullmatch(r"\d{1,16}", text):
        raise Invalid(f"{name} must be a whole number, not {text!r}")
    return int(text)
