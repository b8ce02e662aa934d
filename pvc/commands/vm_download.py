"""Snapshots of VMs into files of the client."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

from pvc import output, sizes
from pvc.commands.context import LocalContext
from pvc.commands.registry import Arg, local
from pvc.commands.storage_image import Calling, Meter, cancelled, ended, part_of, told
from pvc.commands.types import VMName, VMSnapshotName
from pvc.errors import Failed, Invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from zipfile import ZipFile

    from pvc.cluster.exports import ExportedDisk

AT_ONCE = 4 * 1024**2
DAMAGED = "what came is not a whole export"


@local(noun="vm", verb="snapshot download")
def download(
    ctx: LocalContext,
    vm: VMName,
    snapshot: VMSnapshotName,
    file: Annotated[str, Arg("where to; - is standard output", metavar="FILE", complete="file")],
    *,
    parent: Annotated[
        VMSnapshotName, Arg("only what differs from that snapshot, which you have already", short="-i")
    ]
    | None = None,
    force: Annotated[bool, Arg("also over a file that is there")] = False,
) -> Any:
    """Write an export of a snapshot of a VM into a file here: a zip file of what `snapshot export` makes.

    Its checksums are compared before the file gets its name. It is what `snapshot upload` takes, after those
    that it needs; and `snapshot import`, unpacked on a node beside those.
    """

    def fetch(write: Callable[[bytes], object]) -> dict[str, Any]:
        begun = ctx.call("vm.snapshot-download-begin", vm=vm, snapshot=snapshot, parent=parent)
        with cancelled(ctx, begun["name"]):
            return _fetch(ctx, begun["name"], f"{vm}@{snapshot}", write)

    if file == "-":
        fetch(output.emit_bytes)
        return None
    with part_of(file, force) as part:
        done = fetch(part.write)
        _check(part, done["result"]["directory"])
    size = sizes.show(done["result"]["bytes"])
    return told(ctx, done, f"snapshot {snapshot} of {vm} is in {file} ({size})")


def _fetch(ctx: LocalContext, task: str, what: str, write: Callable[[bytes], object]) -> dict[str, Any]:
    """All of it, in order; how the task ended."""
    import hashlib

    call, meter, digest, place = Calling(ctx), Meter(what, 0), hashlib.sha256(), 0
    meter.begin(0)
    while True:
        piece = call(task, "vm.snapshot-download-piece", offset=place)
        if not piece and call(task, "vm.snapshot-download-end", offset=place)["is_whole"]:
            break
        write(piece)
        digest.update(piece)
        place += len(piece)
        meter.tell(place)
    done = ended(ctx, task)
    if (place, digest.hexdigest()) != (done["result"]["bytes"], done["result"]["sha256"]):
        raise Failed("what came is not what was sent: its sha256 is another one", hint="begin again")
    return done


def _check(part: BinaryIO, where: str) -> None:
    """What is on the disk is what the manifest in it says. Raises Failed."""
    import zipfile

    from pvc.cluster import exports

    part.flush()
    os.fsync(part.fileno())
    os.posix_fadvise(part.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with _as_damage(), zipfile.ZipFile(part) as archive:
        manifest = exports.read(archive.read(f"{where}/{exports.MANIFEST}"), exports.MANIFEST)
        files = [*(disk.file for disk in manifest.disks), exports.MANIFEST]
        if archive.namelist() != [f"{where}/{name}" for name in files]:
            raise Failed(f"{DAMAGED}: it has {', '.join(archive.namelist())}")
        for disk in manifest.disks:
            _check_file(archive, where, disk)


@contextmanager
def _as_damage() -> Iterator[None]:
    from zipfile import BadZipFile

    try:
        yield
    except (BadZipFile, EOFError, KeyError) as error:
        raise Failed(f"{DAMAGED}: {error}", hint="begin again") from None
    except Invalid as error:
        raise Failed(f"{DAMAGED}: {error.message}", hint="begin again") from None


def _check_file(archive: ZipFile, where: str, disk: ExportedDisk) -> None:
    import hashlib

    found, size = hashlib.sha256(), 0
    with archive.open(f"{where}/{disk.file}") as file:
        while data := file.read(AT_ONCE):
            found.update(data)
            size += len(data)
    if (size, found.hexdigest()) != (disk.file_bytes, disk.sha256):
        raise Failed(
            f"{DAMAGED}: the checksum of {disk.file} is not the one in the manifest", hint="begin again"
        )
