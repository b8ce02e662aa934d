"""VMs of exports in files of the client."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

from pvc.commands.context import LocalContext
from pvc.commands.registry import Arg, local
from pvc.commands.storage_image import Calling, IsDone, Meter, cancelled, ended, told
from pvc.commands.storage_transfer import PIECE_BYTES
from pvc.commands.types import NewName
from pvc.commands.vm_import import Force, IntoPool, Retain, SameIdentity
from pvc.errors import Failed, Invalid, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator
    from zipfile import ZipFile

    from pvc.cluster.exports import Manifest


@local(noun="vm", verb="snapshot upload")
def upload(
    ctx: LocalContext,
    name: NewName,
    file: Annotated[
        tuple[str, ...],
        Arg("the zip file of the export, after those that it differs from", metavar="FILE", complete="file"),
    ],
    *,
    pool: IntoPool | None = None,
    same_identity: SameIdentity = False,
    retain: Retain = True,
    force: Force = False,
) -> Any:
    """Make a new VM of files that `snapshot download` wrote here. It is stopped.

    The oldest first: the one with all of a snapshot, what differs from that, and so on. What comes goes
    straight onto its disks. An upload that was cut off goes on where it was when it is asked for again
    within a minute. Ctrl-C ends it and takes away what has come.
    """
    if not file:
        raise Invalid("there is no FILE to make it of")
    with ExitStack() as stack:
        zipped = [stack.enter_context(opened(one)) for one in file]
        sending = Sending(zipped)
        begun = ctx.call(
            "vm.snapshot-upload-begin",
            name=name,
            manifest=[one.text for one in zipped],
            pool=pool,
            same_identity=same_identity,
            retain=retain,
            force=force,
        )
        with cancelled(ctx, begun["name"]):
            with suppress(IsDone):
                _send(ctx, begun["name"], name, sending)
            done = ended(ctx, begun["name"])
    return told(ctx, done, f"{name} is a new VM, stopped: pvc vm start {name}")


class Zipped:
    """An export in a zip file. Raises Invalid for what is none."""

    def __init__(self, name: str, archive: ZipFile) -> None:
        from pvc.cluster import exports

        self.name = name
        self.archive = archive
        found = [one for one in archive.infolist() if one.filename.rpartition("/")[2] == exports.MANIFEST]
        if len(found) != 1:
            raise Invalid(f"{name} is no export: it has {len(found)} files {exports.MANIFEST} instead of 1")
        if found[0].file_size > exports.MANIFESTS_BYTES:
            raise Invalid(f"{name} is no export: its {exports.MANIFEST} is too large")
        self.within = found[0].filename.removesuffix(exports.MANIFEST)
        self.document = archive.read(found[0])
        self.text = self.document.decode()
        self.manifest: Manifest = exports.read(self.document, f"{exports.MANIFEST} in {name}")
        for disk in self.manifest.disks:
            self._check(disk.file, disk.file_bytes)

    def _check(self, file: str, expected: int) -> None:
        try:
            size = self.archive.getinfo(self.within + file).file_size
        except KeyError:
            raise Invalid(f"{self.name} is not a whole export: {file} is missing") from None
        if size != expected:
            raise Invalid(
                f"{self.name} is not a whole export: {file} has {size} bytes, and should have {expected}"
            )

    def content(self, file: str) -> Iterator[bytes]:
        """In pieces; the library compares a checksum at its end."""
        with _readable(self.name), self.archive.open(self.within + file) as source:
            while piece := source.read(PIECE_BYTES):
                yield piece


@contextmanager
def opened(file: str) -> Iterator[Zipped]:
    from zipfile import ZipFile

    with ExitStack() as stack:
        with _readable(file):
            found = Zipped(file, stack.enter_context(ZipFile(file)))
        yield found


@contextmanager
def _readable(file: str) -> Iterator[None]:
    """What the library says of a file, in our words."""
    import struct
    import zlib
    from zipfile import BadZipFile

    damage = (BadZipFile, EOFError, zlib.error, struct.error, ValueError, RuntimeError)

    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"no file {file}") from None
    except OSError as error:
        raise Failed(f"cannot read {file}: {error.strerror}") from None
    except damage as error:
        raise Invalid(
            f"{file} is not a whole zip file of an export: {error}", hint="was it cut off? fetch it again"
        ) from None


class Sending:
    """The manifests, and the files that are needed of those that they name. Raises Invalid, NotFound."""

    def __init__(self, zipped: list[Zipped]) -> None:
        from pvc.cluster import exports

        chain = tuple(one.manifest for one in zipped)
        exports.check_order(chain)
        self.zipped = zipped
        self.files = exports.needed(chain)
        documents = sum(len(one.document) for one in zipped)
        self.size_bytes = documents + sum(disk.file_bytes for _, disk in self.files)

    def pieces(self) -> Iterator[bytes]:
        """In order, each of at most 4 MiB."""
        for one in self.zipped:
            yield one.document
        for number, disk in self.files:
            yield from self.zipped[number].content(disk.file)


def _send(ctx: LocalContext, task: str, name: str, sending: Sending) -> None:
    """From where the node wants it. A piece that it had no room for comes again."""
    call, meter, end = Calling(ctx), Meter(name, sending.size_bytes), 0

    def put(offset: int, piece: bytes) -> int:
        return int(call(task, "vm.snapshot-upload-piece", offset=offset, piece=piece)["next"])

    wanted = put(0, b"")
    meter.begin(wanted)
    for piece in sending.pieces():
        begin, end = end, end + len(piece)
        while wanted < end:
            wanted = put(wanted, piece[wanted - begin :])
        meter.tell(wanted)
