"""Files of images into volumes, and volumes into files: what the client does with pieces."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Protocol

from pvc import output, sizes
from pvc.clock import Clock, SystemClock
from pvc.cluster import images
from pvc.cluster.images import ImageFormat
from pvc.cluster.storage import Format
from pvc.commands.context import LocalContext
from pvc.commands.registry import Arg, local
from pvc.commands.storage_transfer import PIECE_BYTES, Force, NewVolume, Raw
from pvc.commands.types import PoolName, VolumeName
from pvc.errors import EXIT_INTERRUPTED, Conflict, Failed, Invalid, NotFound, PVCError, Unavailable, from_code

if TYPE_CHECKING:
    from hashlib import _Hash

OUTAGE_S = 50.0
"""So long an API that does not answer is asked again: shorter than the node waits for the next piece."""
PAUSE_S = 0.5
TELL_S, TELL_LOG_S = 0.5, 10.0
"""Between two lines of progress: on a terminal, and where each stays."""
SAMPLE_BYTES = 1024**2
PART = ".part"


class IsDone(Conflict):
    """The task to which something was to be brought needs no more."""


class Interrupted(PVCError):
    """By the user, while something came or went."""

    exit_code = EXIT_INTERRUPTED


ImageFile = Annotated[str, Arg("the file of the image", metavar="FILE", complete="file")]


@local(noun="storage", verb="volume upload")
def upload(
    ctx: LocalContext,
    pool: PoolName,
    volume: NewVolume,
    file: ImageFile,
    *,
    format: Annotated[
        ImageFormat, Arg("what kind of file it is; found out unless given", short="-f", long="image-format")
    ]
    | None = None,
    raw: Raw = False,
    force: Force = False,
) -> Any:
    """Make a volume of the file of an image: raw, qcow2, vmdk, vdi or vpc.

    An upload that was cut off goes on where it was when it is asked for again within a minute. Ctrl-C ends it
    and takes away what has come.
    """
    with _opened(file) as source:
        sender = Sender(ctx, source, f"{pool}/{volume}")
        head, tail = sender.sample(0, images.HEAD_BYTES), sender.sample(-images.TAIL_BYTES)
        kind = format or images.detect(head, tail)
        images.check(kind, head)
        begun = ctx.call(
            "storage.volume-upload-begin",
            pool=pool,
            volume=volume,
            size=sender.size_bytes,
            format=kind,
            fingerprint=sender.fingerprint(),
            raw=raw,
            force=force,
        )
        with cancelled(ctx, begun["name"]):
            with suppress(IsDone):  # the answer to the last piece may have been lost
                sender.send(begun["name"])
            done = ended(ctx, begun["name"])
    return told(ctx, done, f"volume {volume} in pool {pool} is there")


@local(noun="storage", verb="volume download")
def download(
    ctx: LocalContext,
    pool: PoolName,
    volume: VolumeName,
    file: Annotated[str, Arg("where to; - is standard output", metavar="FILE", complete="file")],
    *,
    format: Annotated[Format, Arg("what kind of file to write", short="-f", long="image-format")] = (
        Format.RAW
    ),
    force: Annotated[bool, Arg("also over a file that is there")] = False,
) -> Any:
    """Write what is on a volume into a file, without the parts that are only zeros.

    In a directory a volume in use is refused; in Ceph the file has what is on it at the beginning.
    """
    if file == "-" and format is not Format.RAW:
        raise Invalid("only raw can be written to standard output", hint="name a file")
    with _target(file, format, force) as sink:
        begun = ctx.call("storage.volume-download-begin", pool=pool, volume=volume)
        with cancelled(ctx, begun["name"]):
            Receiver(ctx, sink, f"{pool}/{volume}").receive(begun["name"])
            ctx.call("storage.volume-download-end", task=begun["name"])
            done = ended(ctx, begun["name"])
            sink.finish()
    if file == "-":
        return None
    return told(ctx, done, f"volume {volume} of pool {pool} is in {file}")


# Both


@contextmanager
def cancelled(ctx: LocalContext, task: str) -> Iterator[None]:
    """Whatever goes wrong here ends the task on its node."""
    try:
        yield
    except (KeyboardInterrupt, PVCError, OSError) as error:
        _cancel(ctx, task)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted("interrupted: what had come is taken away") from None
        raise


def _cancel(ctx: LocalContext, task: str) -> None:
    with suppress(PVCError):
        ctx.call("task.cancel", task=task)


def ended(ctx: LocalContext, task: str) -> dict[str, Any]:
    from pvc.waiting import wait

    again = f"pvc task info {task} --watch"
    return wait(ctx.connect(), "task.info", {"task": task}, {"state": "done"}, again=again)


def told(ctx: LocalContext, done: dict[str, Any], words: str) -> Any:
    if ctx.options.get("format") not in ("table", "pretty", None):
        return done
    output.emit(words)
    return None


@dataclass(slots=True)
class Calling:
    """Calls that are made again while the API does not answer."""

    ctx: LocalContext
    clock: Clock = field(default_factory=SystemClock)

    def __call__(self, task: str, operation: str, **arguments: Any) -> Any:
        """Raises what the task has ended with, or Unavailable."""
        from pvc.waiting import pause

        end = self.clock.monotonic() + OUTAGE_S
        while True:
            try:
                return self.ctx.call(operation, task=task, **arguments)
            except (Unavailable, Conflict) as error:
                self._check_goes_on(task)
                if isinstance(error, Conflict) or self.clock.monotonic() > end:
                    raise
                output.progress(f"{error.message}; asking again")
                pause(PAUSE_S)

    def _check_goes_on(self, task: str) -> None:
        try:
            found = self.ctx.call("task.info", task=task)
        except Unavailable:
            return
        if found["settled"]:
            if error := found["error"]:
                raise from_code(error["code"], error["message"], error["hint"])
            kind = IsDone if found["state"] == "done" else Conflict
            raise kind(f"task {task} is over: {found['state']}", hint="begin again")


@dataclass(slots=True)
class Meter:
    """How far it is, how fast, and how long it still takes."""

    what: str
    size_bytes: int
    """0: that is not known."""
    clock: Clock = field(default_factory=SystemClock)
    began: float = 0.0
    began_bytes: int = 0
    told: float = 0.0

    def begin(self, done: int) -> None:
        self.began, self.began_bytes = self.clock.monotonic(), done

    def tell(self, done: int) -> None:
        now = self.clock.monotonic()
        if now - self.told < (TELL_S if sys.stderr.isatty() else TELL_LOG_S):
            return
        self.told = now
        rate = (done - self.began_bytes) / max(now - self.began, 0.001)
        percent, of, left = "", sizes.show(done), ""
        if self.size_bytes:
            percent = f"{done * 100 // self.size_bytes} %, "
            of += f" of {sizes.show(self.size_bytes)}"
            left = f", {(self.size_bytes - done) / rate:.0f} s left" if rate else ""
        output.progress(f"{self.what}: {percent}{of}, {sizes.show(rate)}/s{left}")


# Sending


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    try:
        source = open(file, "rb")  # noqa: SIM115 (closed below: what comes meanwhile has errors of its own)
    except FileNotFoundError:
        raise NotFound(f"no file {file}") from None
    except OSError as error:
        raise Failed(f"cannot read {file}: {error.strerror}") from None
    with source:
        mode = os.fstat(source.fileno()).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise Invalid(f"{file} is neither a file nor a disk", hint="an image whose size is known")
        yield source


class Sender:
    """Reads a file in order, once, and sends it from where the node wants it."""

    def __init__(self, ctx: LocalContext, source: BinaryIO, what: str) -> None:
        import hashlib

        self.call = Calling(ctx)
        self.source = source
        self.size_bytes = source.seek(0, os.SEEK_END)
        if not self.size_bytes:
            raise Invalid("the file is empty")
        self.digest: _Hash = hashlib.sha256()
        self.hashed = 0
        self.meter = Meter(what, self.size_bytes)

    def sample(self, place: int, length: int = -1) -> bytes:
        """Of its beginning, or (negative) its end."""
        self.source.seek(max(place, -self.size_bytes), os.SEEK_END if place < 0 else os.SEEK_SET)
        return self.source.read(length)

    def fingerprint(self) -> str:
        """Enough to know that it is the same file; that it is the same content is seen at the end."""
        import hashlib

        known = hashlib.sha256(str(self.size_bytes).encode())
        known.update(self.sample(0, SAMPLE_BYTES))
        known.update(self.sample(-SAMPLE_BYTES))
        return known.hexdigest()

    def send(self, task: str) -> None:
        place = self._put(task, 0, b"")
        if place:
            output.note(f"going on at {sizes.show(place)}: so much of it has come before")
        self._hash_upto(place)
        self.meter.begin(place)
        while True:
            piece = self._read(place, PIECE_BYTES)
            if place == self.hashed:
                self._hash(piece)
            place = self._put(task, place, piece)
            self._hash_upto(place)
            self.meter.tell(place)
            if place == self.size_bytes == self.hashed:
                return

    def _put(self, task: str, offset: int, piece: bytes) -> int:
        last = offset + len(piece) == self.size_bytes == self.hashed
        claim = {"sha256": self.digest.hexdigest()} if last else {}
        answer = self.call(task, "storage.volume-upload-piece", offset=offset, piece=piece, **claim)
        return int(answer["next"])

    def _hash_upto(self, place: int) -> None:
        while self.hashed < place:
            self._hash(self._read(self.hashed, min(PIECE_BYTES, place - self.hashed)))

    def _hash(self, piece: bytes) -> None:
        self.digest.update(piece)
        self.hashed += len(piece)

    def _read(self, place: int, length: int) -> bytes:
        try:
            self.source.seek(place)
            piece = self.source.read(min(length, self.size_bytes - place))
        except OSError as error:
            raise Failed(f"the file cannot be read: {error.strerror}") from None
        if len(piece) < min(length, self.size_bytes - place):
            raise Failed("the file has become shorter while it was read")
        return piece


# Receiving


class Sink(Protocol):
    """Where the content goes, in order."""

    def begin(self, size_bytes: int) -> None: ...

    def write(self, offset: int, data: bytes) -> None: ...

    def finish(self) -> None: ...


class Receiver:
    def __init__(self, ctx: LocalContext, sink: Sink, what: str) -> None:
        self.call = Calling(ctx)
        self.sink = sink
        self.what = what

    def receive(self, task: str) -> None:
        found = self.call(task, "storage.volume-download-map", offset=0)
        size = found["size_bytes"]
        self.sink.begin(size)
        meter = Meter(self.what, size)
        meter.begin(0)
        while True:
            for first, count in found["extents"]:
                self._extent(task, first, count, meter.tell)
            meter.tell(found["until"])
            if found["until"] >= size:
                return
            found = self.call(task, "storage.volume-download-map", offset=found["until"])

    def _extent(self, task: str, first: int, count: int, tell: Callable[[int], None]) -> None:
        for offset in range(first, first + count, PIECE_BYTES):
            length = min(PIECE_BYTES, first + count - offset)
            data = self.call(task, "storage.volume-download-piece", offset=offset, length=length)
            if len(data) != length:
                raise Failed(f"the node gave {len(data)} bytes instead of {length} at {offset}")
            self.sink.write(offset, data)
            tell(offset + length)


@contextmanager
def _target(file: str, format: Format, force: bool) -> Iterator[Sink]:
    if file == "-":
        yield Pipe()
        return
    with part_of(file, force) as target:
        yield _sink(format, target)


@contextmanager
def part_of(file: str, force: bool) -> Iterator[BinaryIO]:
    """What is to be the file: it gets its name at the end of this, and goes when that fails."""
    if os.path.exists(file) and not force:
        raise Conflict(f"{file} is there already", hint="another name, or --force")
    part = file + PART
    try:
        with open(part, "w+b") as target:
            yield target
            target.flush()
            os.fsync(target.fileno())
        os.replace(part, file)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(part)
        if isinstance(error, OSError):
            raise Failed(f"cannot write {file}: {error.strerror}") from None
        raise


def _sink(format: Format, target: BinaryIO) -> Sink:
    if format is Format.RAW:
        return RawFile(target)
    from pvc.qcow2 import Qcow2File

    return Qcow2File(target)


@dataclass(slots=True)
class RawFile:
    """A Sink, with holes."""

    target: BinaryIO

    def begin(self, size_bytes: int) -> None:
        self.target.truncate(size_bytes)

    def write(self, offset: int, data: bytes) -> None:
        for at, run in images.written(offset, data):
            self.target.seek(at)
            self.target.write(run)

    def finish(self) -> None:
        """It is whole."""


@dataclass(slots=True)
class Pipe:
    """A Sink of standard output: zeros are written too."""

    size_bytes: int = 0
    place: int = 0

    def begin(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes

    def write(self, offset: int, data: bytes) -> None:
        self._zeros(offset)
        output.emit_bytes(data)
        self.place = offset + len(data)

    def finish(self) -> None:
        self._zeros(self.size_bytes)

    def _zeros(self, upto: int) -> None:
        while self.place < upto:
            count = min(PIECE_BYTES, upto - self.place)
            output.emit_bytes(bytes(count))
            self.place += count
