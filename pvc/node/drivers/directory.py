"""Pools that are directories: each volume a directory of its own in there, with disk.qcow2 or disk.raw.

A volume appears and disappears by one rename of its directory, so that nobody ever sees half of one. What is
half done is in a directory whose name begins with a dot.

Whether a disk is open is asked by QEMU's own locks of the image (open file description locks), which qemu-img
takes too: they hold between nodes where the file system passes them on (NFSv4, CephFS, GFS2, OCFS2), and
nowhere with `nolock` or `local_lock` among the options of an NFS mount.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pvc import names
from pvc.cluster.ceph import Traffic
from pvc.cluster.ceph_pools import CephFacts
from pvc.cluster.images import ImageFormat, written
from pvc.cluster.storage import Format
from pvc.errors import Conflict, NotFound, PVCError, Unavailable
from pvc.node.drivers import DriverError, images, nbd, qcow2
from pvc.node.drivers.storage import (
    Capacity,
    Content,
    Filling,
    Image,
    Incoming,
    Progress,
    Reading,
    Scratch,
    Snapshot,
    User,
    Volume,
    check_name,
    cut_off,
    in_use,
    is_protected,
    no_volume,
    snapshot_exists,
    unheard,
    volume_exists,
)
from pvc.proc import WITH_US, Completed, run, start

MARKER = ".pvc-pool"
HALF_DONE = ".task-"
KEPT = "snapshots.json"
"""What a qcow2 file cannot say of its snapshots: other names than they were made with, and protection."""

LOCKED_FROM, LOCKED_BYTES = 100, 200
"""The bytes of an image file that QEMU locks while it has it open (block/file-posix.c): from 100 on what it
does, from 200 on what nobody else may do."""
READS, NOBODY_WRITES, NOBODY_RESIZES = 100, 201, 203
WRITES, RESIZES, NOBODY_READS = 101, 103, 200
FLOCK = "hhqqi4x"
FICLONE = 0x40049409
"""Of linux/fs.h: share the blocks of another file."""
NO_SHARING = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)

LONG_S = 3600.0
LOOK_S = 0.25
STRETCH_BYTES = 1024**3


def prepare(path: str, identity: str) -> None:
    """Make a directory that exists a pool. Done already where it is this one."""
    directory = Path(path)
    try:
        if not directory.is_dir():
            raise NotFound(f"no directory {path}", hint="make it, or mount what it is to be")
        file = os.open(directory / MARKER, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        if _identity(directory) != identity:
            raise Conflict(f"{path} is the directory of another pool", hint=f"see {path}/{MARKER}") from None
        return
    except OSError as error:
        raise DriverError(f"{path} cannot be used: {error.strerror}") from None
    with os.fdopen(file, "w") as marker:
        marker.write(identity)
        marker.flush()
        os.fsync(marker.fileno())
    sync(directory)


def retire(path: str, identity: str) -> None:
    """The directory is no pool any more. Done already where it is not this one."""
    if _identity(Path(path)) == identity:
        Path(path, MARKER).unlink(missing_ok=True)


def _identity(directory: Path) -> str:
    try:
        return (directory / MARKER).read_text().strip()
    except OSError:
        return ""


class Directory:
    """A Pool."""

    def __init__(self, path: str, identity: str, call: Callable[..., Completed] = run) -> None:
        self.path = Path(path)
        self.identity = identity
        self.call = call

    # Looking

    def check(self) -> None:
        if _identity(self.path) != self.identity:
            raise Unavailable(f"{self.path} is not the directory of the pool here", hint="is it mounted?")

    def capacity(self) -> Capacity:
        self.check()
        found = os.statvfs(self.path)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        return Capacity(used + found.f_bavail * found.f_frsize, used)

    def ceph_facts(self) -> CephFacts | None:
        return None

    def traffic(self) -> Traffic | None:
        return None

    def volumes(self) -> tuple[Volume, ...]:
        self.check()
        found = []
        for name in sorted(os.listdir(self.path)):
            if not re.fullmatch(names.VOLUME, name):
                continue
            with suppress(NotFound):  # it has just gone, or is somebody else's directory
                try:
                    found.append(self._volume(name))
                except DriverError as error:
                    found.append(Volume(name, 0, None, self._disk(name)[1], error.message))
        return tuple(found)

    def volume(self, name: str) -> Volume:
        self.check()
        return self._volume(name)

    def _volume(self, name: str) -> Volume:
        file, format = self._disk(name)
        try:
            with file.open("rb") as disk:
                status = os.fstat(disk.fileno())
                size = status.st_size if format is Format.RAW else qcow2.size(disk)
        except FileNotFoundError:
            raise no_volume(name) from None
        except OSError as error:
            raise DriverError(f"{file} cannot be read: {error.strerror}") from None
        return Volume(name, size, status.st_blocks * 512, format)

    def _disk(self, name: str) -> tuple[Path, Format]:
        where = self._directory(name)
        for format in Format:
            file = where / f"disk.{format}"
            if file.exists():
                return file, format
        raise no_volume(name)

    def _directory(self, name: str) -> Path:
        check_name(name, names.VOLUME, "volume")
        return self.path / name

    def location(self, name: str) -> str:
        return str(self._disk(name)[0])

    def is_open(self, name: str) -> bool:
        self.check()
        with self._disk(name)[0].open("rb") as disk:
            return _is_locked(disk.fileno(), LOCKED_FROM, LOCKED_BYTES)

    def users(self, name: str) -> tuple[User, ...]:
        self._disk(name)
        return ()

    # Volumes

    def add(self, name: str, size_bytes: int, format: Format, token: str) -> None:
        with self._made(name, token) as half:
            self._image("create", "-q", "-f", format, str(half / f"disk.{format}"), str(size_bytes))

    def remove(self, name: str, token: str, progress: Progress = unheard) -> None:
        self.check()
        if protected := self._protected(name):
            raise is_protected(name, protected[0])
        self.set_aside(name, token, progress)
        self.discard(token)

    def set_aside(self, name: str, token: str, progress: Progress = unheard) -> None:
        self.check()
        with self._locked(name):
            os.rename(self._directory(name), self._half_done(token))
            sync(self.path)

    def clones_bytes(self, name: str) -> int:
        return 0  # each has its own, as far as anybody is told

    def put_back(self, name: str, token: str) -> None:
        self.check()
        if self._half_done(token).exists():
            self._check_free(name)
            self._rename(self._half_done(token), name)

    def resize(self, name: str, size_bytes: int, *, shrink: bool = False) -> None:
        before = self.volume(name)
        if size_bytes < before.size_bytes and not shrink:
            raise cut_off(name, before.size_bytes, size_bytes)
        cut = ["--shrink"] if size_bytes < before.size_bytes else []
        self._change(name, "resize", "-q", "-f", before.format, *cut, then=[str(size_bytes)])

    def rename(self, name: str, new: str) -> None:
        self.check()
        self._check_free(new)
        with self._locked(name):
            self._rename(self._directory(name), new)

    def clone(self, name: str, new: str, token: str, progress: Progress, *, flatten: bool = False) -> None:
        self.check()
        source, format = self._disk(name)
        _check_alone(source, format)
        with self._made(new, token) as half:
            copy = half / source.name
            if flatten or not self._shared(name, source, copy):
                self._copied(name, source, copy, format, progress)
            if format is Format.QCOW2:
                for tag in self._tags(copy):
                    self._image("snapshot", "-q", "-d", tag.name, str(copy))

    def _shared(self, name: str, source: Path, copy: Path) -> bool:
        """At once and without space, where the file system can."""
        with self._held(name) as disk, copy.open("wb") as made:
            try:
                fcntl.ioctl(made.fileno(), FICLONE, disk)
            except OSError as error:
                if error.errno in NO_SHARING:
                    return False
                raise DriverError(f"cannot copy {source}: {error.strerror}") from None
            return True

    def _copied(self, name: str, source: Path, copy: Path, format: Format, progress: Progress) -> None:
        copy.unlink(missing_ok=True)
        words = ["qemu-img", "convert", "-f", format, "-O", format, str(source), str(copy)]
        said = copy.with_name("said")
        whole = max(source.stat().st_blocks, 1)
        process = start([*WITH_US, *words], log_file=said)
        try:
            while _goes_on(process):
                done = copy.stat().st_blocks if copy.exists() else 0
                progress(min(done / whole, 0.99))
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            words = said.read_text(errors="replace").strip().splitlines()
            raise self._refused(name, words[-1] if words else f"code {process.returncode}")
        said.unlink()

    @contextmanager
    def incoming(self, name: str, image: Image, format: Format, token: str) -> Iterator[Incoming]:
        with self._made(name, token) as half, _Incoming(half, image, format) as taken:
            yield taken
            if not taken.is_whole:
                raise DriverError(f"volume {name} was not finished")

    @contextmanager
    def reading(self, name: str, token: str) -> Iterator[Reading]:
        found = self.volume(name)
        with self._held(name) as file:
            _check_alone(*self._disk(name))
            yield _Reading(file, self._disk(name)[0], found)

    @contextmanager
    def scratch(self, size_bytes: int, token: str) -> Iterator[Scratch]:
        self.check()
        half = self._half_done(token)
        try:
            half.mkdir(mode=0o755)
        except OSError as error:
            raise DriverError(f"{half} cannot be made: {error.strerror}") from None
        file = str(half / "scratch").replace(":", r"\:")  # of several files, to fio
        yield Scratch((f"--filename={file}", "--ioengine=libaio", "--direct=1"), {})
        self.discard(token)

    # Snapshots

    def snapshots(self, name: str) -> tuple[Snapshot, ...]:
        self.check()
        file, format = self._disk(name)
        if format is not Format.QCOW2:
            return ()
        kept = self._kept(name)
        return tuple(
            Snapshot(
                name=_shown(tag.name, kept),
                at=tag.at,
                size_bytes=tag.size_bytes,
                is_protected=bool(kept.get(tag.name, {}).get("protected")),
            )
            for tag in self._tags(file)
        )

    def _protected(self, name: str) -> list[str]:
        """Also of a file that is damaged."""
        try:
            return [one.name for one in self.snapshots(name) if one.is_protected]
        except DriverError:
            kept = self._kept(name)
            return [_shown(tag, kept) for tag, of in kept.items() if of.get("protected")]

    def add_snapshot(self, name: str, snapshot: str) -> None:
        check_name(snapshot, names.SNAPSHOT, "snapshot")
        if self.volume(name).format is not Format.QCOW2:
            raise Conflict(
                f"volume {name} is raw: in a directory only qcow2 has snapshots",
                hint="pvc storage volume clone makes a copy",
            )
        if snapshot in {one.name for one in self.snapshots(name)}:
            raise snapshot_exists(name, snapshot)
        known = {tag.name for tag in self._tags(self._disk(name)[0])}
        tag = f"@{snapshot}"  # never a number, which qemu-img would take for an identity
        while tag in known:
            tag += "'"
        if tag != f"@{snapshot}":
            self._keep(name, tag, {"name": snapshot})
        self._change(name, "snapshot", "-q", "-c", tag)

    def name_in_qemu(self, snapshot: str) -> str:
        return f"@{snapshot}"

    def remove_snapshot(self, name: str, snapshot: str) -> None:
        tag = self._tag(name, snapshot)
        if self._kept(name).get(tag, {}).get("protected"):
            raise is_protected(name, snapshot)
        self._change(name, "snapshot", "-q", "-d", tag)
        self._keep(name, tag, {})

    def rename_snapshot(self, name: str, snapshot: str, new: str) -> None:
        check_name(new, names.SNAPSHOT, "snapshot")
        tag = self._tag(name, snapshot)
        if new in {one.name for one in self.snapshots(name)}:
            raise snapshot_exists(name, new)
        self._keep(name, tag, self._kept(name).get(tag, {}) | {"name": new})

    def roll_back(self, name: str, snapshot: str) -> None:
        self._change(name, "snapshot", "-q", "-a", self._tag(name, snapshot))

    def protect(self, name: str, snapshot: str, *, on: bool) -> None:
        tag = self._tag(name, snapshot)
        self._keep(name, tag, self._kept(name).get(tag, {}) | {"protected": on})

    def _tag(self, name: str, snapshot: str) -> str:
        self.check()
        kept = self._kept(name)
        file, format = self._disk(name)
        tags = self._tags(file) if format is Format.QCOW2 else []
        for tag in tags:
            if _shown(tag.name, kept) == snapshot:
                return tag.name
        raise NotFound(f"volume {name} has no snapshot {snapshot}")

    def _tags(self, file: Path) -> list[qcow2.Tag]:
        """As the file itself says; also while a VM has it open."""
        try:
            with file.open("rb") as disk:
                return qcow2.tags(disk)
        except (OSError, struct.error, UnicodeDecodeError) as error:
            raise DriverError(f"the snapshots in {file} cannot be read: {error}") from None

    def _kept(self, name: str) -> dict[str, dict[str, Any]]:
        try:
            kept = json.loads((self._directory(name) / KEPT).read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise DriverError(f"{self._directory(name) / KEPT} cannot be read: {error}") from None
        return kept if isinstance(kept, dict) else {}

    def _keep(self, name: str, tag: str, said: dict[str, Any]) -> None:
        kept = {one: of for one, of in self._kept(name).items() if one != tag} | ({tag: said} if said else {})
        file = self._directory(name) / KEPT
        new = file.with_suffix(".new")
        new.write_text(json.dumps(kept))
        os.replace(new, file)

    # Content

    @contextmanager
    def content(self, name: str, snapshot: str) -> Iterator[Content]:
        self._tag(name, snapshot)
        file, kept = self._disk(name)[0], self._kept(name)
        tags = {_shown(tag.name, kept): tag for tag in self._tags(file)}
        try:
            disk = file.open("rb")
        except OSError as error:
            raise DriverError(f"{file} cannot be read: {error.strerror}") from None
        with disk:
            yield qcow2.Content(disk, tags[snapshot], tags)

    @contextmanager
    def filled(self, name: str, size_bytes: int, format: Format, token: str) -> Iterator[Filling]:
        with self._made(name, token) as half:
            disk = half / f"disk.{format}"
            self._image("create", "-q", "-f", format, str(disk), str(size_bytes))
            with nbd.opened(disk, format) as filling:
                yield filling

    # Half done

    def discard(self, token: str, of: str = "") -> None:
        self.check()
        shutil.rmtree(self._half_done(token), ignore_errors=True)
        if self._half_done(token).exists():
            raise DriverError(f"{self._half_done(token)} cannot be removed")

    def _half_done(self, token: str) -> Path:
        return self.path / f"{HALF_DONE}{token}"

    @contextmanager
    def _made(self, name: str, token: str) -> Iterator[Path]:
        """A directory to make a volume in; its name appears with all of it."""
        self.check()
        self._check_free(name)
        half = self._half_done(token)
        try:
            half.mkdir(mode=0o755)
            yield half
            for file in half.iterdir():
                file.chmod(0o666)  # QEMU runs as another user on each node
                sync(file)
            sync(half)
            self._rename(half, name)
        except OSError as error:
            raise DriverError(f"cannot make volume {name}: {error.strerror}") from error

    def _rename(self, what: Path, name: str) -> None:
        try:
            os.rename(what, self._directory(name))
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise volume_exists(name) from None
            raise
        sync(self.path)

    def _check_free(self, name: str) -> None:
        if self._directory(name).exists():
            raise volume_exists(name)

    # qemu-img and its locks

    @contextmanager
    def _locked(self, name: str) -> Iterator[int]:
        """As if QEMU had it open for itself alone. Raises Conflict when somebody has it open."""
        with self._disk(name)[0].open("rb+") as disk:
            if not _lock(disk.fileno(), fcntl.F_WRLCK, LOCKED_FROM, LOCKED_BYTES):
                raise in_use(name)
            yield disk.fileno()

    @contextmanager
    def _held(self, name: str) -> Iterator[int]:
        """As if QEMU read it, beside others who do. Raises Conflict when somebody may write."""
        with self._disk(name)[0].open("rb") as disk:
            file = disk.fileno()
            mine = all(_lock(file, fcntl.F_RDLCK, one) for one in (READS, NOBODY_WRITES, NOBODY_RESIZES))
            if not mine or any(_is_locked(file, one) for one in (WRITES, RESIZES, NOBODY_READS)):
                raise in_use(name)
            yield file

    def _change(self, name: str, *words: str, then: Sequence[str] = ()) -> None:
        """By qemu-img, which takes the locks of the image itself."""
        self.check()
        if self.is_open(name):
            raise in_use(name)
        try:
            self._image(*words, str(self._disk(name)[0]), *then)
        except DriverError as error:
            raise self._refused(name, error.message) from None

    def _refused(self, name: str, words: str) -> PVCError:
        """Why qemu-img failed: somebody may have opened it meanwhile."""
        return in_use(name) if self.is_open(name) else DriverError(words)

    def _image(self, *words: str) -> Completed:
        done = self.call([*WITH_US, "qemu-img", *words], timeout_s=LONG_S, check=False)
        if done.code != 0:
            said = (done.stderr or done.stdout).strip().splitlines() or [f"code {done.code}"]
            raise DriverError(said[-1].removeprefix("qemu-img: "))
        return done


class _Incoming:
    """What is raw comes to where it stays, unless the volume is to be another kind of file."""

    def __init__(self, half: Path, image: Image, format: Format) -> None:
        self.image = image
        self.format = format
        self.disk = half / f"disk.{format}"
        self.is_direct = image.format is ImageFormat.RAW and format is Format.RAW
        self.came = self.disk if self.is_direct else half / "came"
        self.file = os.open(self.came, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(self.file, image.size_bytes)
        self.is_whole = False

    def __enter__(self) -> _Incoming:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)

    def write(self, offset: int, piece: bytes) -> None:
        try:
            for at, data in written(offset, piece):
                view = memoryview(data)
                while view:
                    count = os.pwrite(self.file, view, at)
                    view, at = view[count:], at + count
        except OSError as error:
            raise DriverError(f"it cannot be written: {error.strerror}") from None

    def finish(self, check: Callable[[int], None], progress: Progress) -> None:
        if self.is_direct:
            check(self.image.size_bytes)
        else:
            self._convert(check, progress)
        self.is_whole = True

    def _convert(self, check: Callable[[int], None], progress: Progress) -> None:
        came = images.of_file(self.came)
        size = images.look(came, self.image.format, self.image.size_bytes, check)
        run(["qemu-img", "create", "-q", "-f", self.format, str(self.disk), str(size)])
        whole = max(os.fstat(self.file).st_blocks, 1)

        def fraction() -> float:
            return min(self.disk.stat().st_blocks / whole, 0.99)

        to = images.of_file(self.disk)
        images.convert(came, self.image.format, to, self.format, progress, fraction)
        self.came.unlink()


class _Reading:
    """Where there is something in the file is asked for one stretch after the other."""

    def __init__(self, file: int, path: Path, volume: Volume) -> None:
        self.file = file
        self.where = images.of_file(path)
        self.format = volume.format
        self.size_bytes = volume.size_bytes
        self.known: tuple[int, list[tuple[int, int, int]]] = (-1, [])

    def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        return [(first, count) for first, count, _ in self._parts(offset, length)]

    def read(self, offset: int, length: int) -> bytes:
        found = bytearray(length)
        for first, count, at in self._parts(offset, length):
            data = os.pread(self.file, count, at)  # shorter only where a raw file ends
            found[first - offset : first - offset + len(data)] = data
        return bytes(found)

    def _parts(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        end = min(offset + length, self.size_bytes)
        for stretch in range(offset - offset % STRETCH_BYTES, end, STRETCH_BYTES):
            if self.known[0] != stretch:
                self.known = stretch, images.parts(self.where, self.format, stretch, STRETCH_BYTES)
            for begin, count, at in self.known[1]:
                first, last = max(begin, offset), min(begin + count, end)
                if first < last:
                    yield first, last - first, at + first - begin


def _lock(file: int, kind: int, first: int, count: int = 1) -> bool:
    """Until the file is closed; False when somebody else has a lock that excludes it."""
    wanted = struct.pack(FLOCK, kind, os.SEEK_SET, first, count, 0)
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, wanted)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise DriverError(
            f"the disk cannot be locked: {error.strerror}", hint="mount it with locks"
        ) from None
    return True


def _is_locked(file: int, first: int, count: int = 1) -> bool:
    """By somebody else, in whatever way."""
    asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, first, count, 0)
    found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked)
    return bool(struct.unpack(FLOCK, found)[0] != fcntl.F_UNLCK)


def _goes_on(process: subprocess.Popen[bytes]) -> bool:
    """After a moment."""
    try:
        process.wait(LOOK_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _check_alone(file: Path, format: Format) -> None:
    """Whoever can write to a file could have qemu-img, which is root here, read any other one for it."""
    if format is not Format.QCOW2:
        return
    try:
        with file.open("rb") as disk:
            names_others = qcow2.names_others(disk)
    except OSError as error:
        raise DriverError(f"{file} cannot be read: {error.strerror}") from None
    if names_others:
        raise DriverError(
            f"{file} has a backing file, or its data in another file",
            hint="qemu-img convert -O qcow2 makes one file of all",
        )


def _shown(tag: str, kept: dict[str, dict[str, Any]]) -> str:
    return str(kept.get(tag, {}).get("name") or tag.removeprefix("@"))


def sync(path: Path) -> None:
    """To the disk, with a directory's names."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
