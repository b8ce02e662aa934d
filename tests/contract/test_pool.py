"""One suite for every driver of pools: what volumes and snapshots are, and what never happens to them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import rbd

from pvc.cluster.images import ImageFormat
from pvc.cluster.storage import Format
from pvc.cluster.tasks import TaskSpec
from pvc.errors import Conflict, Invalid, NotFound, PVCError, Unavailable
from pvc.node.drivers import DriverError
from pvc.node.drivers import ceph as client
from pvc.node.drivers import images as disk_files
from pvc.node.drivers.directory import Directory, prepare, retire
from pvc.node.drivers.rbd import RBDPool
from pvc.node.drivers.storage import Holder, Image, Pool
from pvc.node.storage import Pools
from pvc.node.transfer import Download, Transfers
from pvc.proc import run
from tests.ceph import Ceph, ceph
from tests.fakes.pool import FakePool
from tests.support import eventually
from tests.zookeeper import free_ports

MIB = 1024**2
SIZE = 64 * MIB
BAD_NAMES = ("", "a/b", "../a", "-a", ".a", "a@b", "a b", "a\n", "x" * 128)


def nothing(fraction: float) -> None:
    """Told nobody."""


Check = Callable[[int], None]


@dataclass
class Bench:
    pool: Pool
    write: Callable[[str, bytes], None]
    """Content into the beginning of a volume."""
    read: Callable[[str, int], bytes]
    opened: Callable[[str], AbstractContextManager[None]]
    """As a VM opens it."""
    gone: Callable[[], None]
    """The node does not reach it any more."""
    leftovers: Callable[[], list[str]]
    formats: tuple[Format, ...] = tuple(Format)
    with_snapshots: Format = Format.QCOW2
    names_users: bool = True
    changes_while_open: bool = False
    """Snapshots, clones and growth are possible then."""


def _fake() -> Bench:
    pool = FakePool()

    @contextmanager
    def opened(name: str) -> Iterator[None]:
        pool.open.add(name)
        yield
        pool.open.discard(name)

    def write(name: str, content: bytes) -> None:
        pool.kept[name].content = content

    def gone() -> None:
        pool.is_mounted = False

    def read(name: str, count: int) -> bytes:
        return pool.kept[name].content[:count]

    return Bench(pool, write, read, opened, gone, lambda: sorted(pool.half_done))


def test_an_osd_that_is_silent_holds_up_whoever_frees_an_image_for_a_while_only(
    images: Bench, cluster: Ceph, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = images.pool
    assert isinstance(pool, RBDPool)
    pool.add("web1", SIZE, Format.RAW, "t1")
    holder = Holder("client.1", "auto 1", "127.0.0.1:0/1", is_there=False)
    asked: tuple[Callable[[], object], ...] = (
        lambda: pool.holders("web1"),
        lambda: pool.break_lock("web1", holder),
    )
    monkeypatch.setitem(client.ASK_TIMES, "rados_osd_op_timeout", "1")
    osd = cluster.processes[-1]
    osd.send_signal(signal.SIGSTOP)
    try:
        for ask in asked:
            with pytest.raises(DriverError) as found:
                ask()
            assert found.value.retryable
    finally:
        osd.send_signal(signal.SIGCONT)


def qemu_io(file: str, format: str, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(
        ["qemu-io", "-f", format, *words, file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def open_in_qemu(file: str, format: str) -> Iterator[None]:
    """By a process with QEMU's locks of an image."""
    process = subprocess.Popen(
        ["qemu-io", "-f", format, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write("length\n")
    process.stdin.flush()
    process.stdout.readline()  # it answers: it has opened the file
    yield
    process.stdin.write("quit\n")
    process.communicate()


def _directory(tmp_path: Path) -> Bench:
    where = tmp_path / "pool"
    where.mkdir()
    prepare(str(where), "p1")
    pool = Directory(str(where), "p1")

    def format_of(name: str) -> str:
        return str(pool.volume(name).format)

    def write(name: str, content: bytes) -> None:
        piece = tmp_path / "piece"
        piece.write_bytes(content.ljust(512, b"\0"))
        qemu_io(pool.location(name), format_of(name), f"write -s {piece} 0 512")

    def read(name: str, count: int) -> bytes:
        copy = tmp_path / "copy"
        subprocess.run(
            ["qemu-img", "convert", "-U", "-f", format_of(name), "-O", "raw", pool.location(name), copy],
            check=True,
        )
        with copy.open("rb") as file:
            return file.read(count)

    def leftovers() -> list[str]:
        return sorted(path.name for path in where.iterdir() if path.name.startswith(".task"))

    return Bench(
        pool,
        write,
        read,
        lambda name: open_in_qemu(pool.location(name), format_of(name)),
        lambda: retire(str(where), "p1"),
        leftovers,
        names_users=False,
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    with ceph(tmp_path_factory.mktemp("ceph")) as made:
        made.add_pool("vms")
        yield made


def _ceph(cluster: Ceph) -> Bench:
    """One pool for all tests, empty for each."""
    pool = RBDPool("vms", client.Ceph(cluster.conf, "admin"))
    connected = cluster.connect()
    io = connected.open_ioctx("vms")
    every = [one["name"] for one in rbd.RBD().list2(io)]
    for name in every:
        pool._part(io, name)
    for name in every:
        rbd.RBD().rename(io, name, ".task-old")
        with rbd.Image(io, ".task-old") as image:
            for one in image.list_snaps():
                if image.is_protected_snap(one["name"]):
                    image.unprotect_snap(one["name"])
        pool.discard("old")

    def write(name: str, content: bytes) -> None:
        with rbd.Image(io, name) as image:
            image.write(content, 0)

    def read(name: str, count: int) -> bytes:
        with rbd.Image(io, name, read_only=True) as image:
            return image.read(0, count)

    @contextmanager
    def opened(name: str) -> Iterator[None]:
        with rbd.Image(io, name) as image:
            image.write(b"running", 0)
            yield

    def gone() -> None:
        pool.pool = "absent"

    def leftovers() -> list[str]:
        return [one["name"] for one in rbd.RBD().list2(io) if one["name"].startswith(".")]

    return Bench(
        pool,
        write,
        read,
        opened,
        gone,
        leftovers,
        formats=(Format.RAW,),
        with_snapshots=Format.RAW,
        changes_while_open=True,
    )


@pytest.fixture(params=["fake", "dir", "ceph"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    if request.param == "fake":
        return _fake()
    if request.param == "dir":
        return _directory(tmp_path)
    return _ceph(request.getfixturevalue("cluster"))


EVERY_FORMAT = pytest.mark.parametrize(
    ("bench", "format"),
    [
        *(("fake", format) for format in Format),
        *(("dir", format) for format in Format),
        ("ceph", Format.RAW),
    ],
    indirect=["bench"],
)


@pytest.fixture
def pool(bench: Bench) -> Pool:
    return bench.pool


@EVERY_FORMAT
def test_a_volume_is_there_with_exactly_its_size(bench: Bench, format: Format) -> None:
    pool = bench.pool
    pool.add("web1", SIZE + 512, format, "t1")
    found = pool.volume("web1")
    assert (found.name, found.size_bytes, found.format) == ("web1", SIZE + 512, format)
    assert found.used_bytes is not None
    assert found.used_bytes < SIZE
    (listed,) = pool.volumes()
    assert listed in (found, replace(found, used_bytes=None))
    assert not pool.is_open("web1")


def test_volumes_are_listed_by_name(bench: Bench) -> None:
    pool = bench.pool
    for name in ("b", "a", "c.d_e-f"):
        pool.add(name, SIZE, bench.with_snapshots, name)
    assert [one.name for one in pool.volumes()] == ["a", "b", "c.d_e-f"]


def test_a_name_is_taken_once(bench: Bench) -> None:
    pool = bench.pool
    pool.add("web1", SIZE, bench.with_snapshots, "t1")
    pool.add("web2", SIZE, Format.RAW, "t2")
    bench.write("web1", b"mine")
    for format in bench.formats:
        with pytest.raises(Conflict, match="web1 already"):
            pool.add("web1", 2 * SIZE, format, "t3")
    with pytest.raises(Conflict, match="web1 already"):
        pool.rename("web2", "web1")
    with pytest.raises(Conflict, match="web1 already"):
        pool.clone("web2", "web1", "t4", nothing)
    assert bench.read("web1", 4) == b"mine"
    assert bench.leftovers() == []


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_mean_something_else_are_refused(bench: Bench, name: str) -> None:
    pool = bench.pool
    pool.add("web1", SIZE, bench.with_snapshots, "t1")
    attempts: list[Callable[[], object]] = [
        lambda: pool.add(name, SIZE, Format.RAW, "t2"),
        lambda: pool.volume(name),
        lambda: pool.remove(name, "t2"),
        lambda: pool.rename("web1", name),
        lambda: pool.rename(name, "web2"),
        lambda: pool.clone("web1", name, "t2", nothing),
        lambda: pool.add_snapshot("web1", name),
    ]
    for attempt in attempts:
        with pytest.raises(Invalid, match="is no name"):
            attempt()
    assert [one.name for one in pool.volumes()] == ["web1"]


def test_what_is_not_there_is_not_found(bench: Bench) -> None:
    pool = bench.pool
    pool.add("web1", SIZE, bench.with_snapshots, "t1")
    attempts: list[Callable[[], object]] = [
        lambda: pool.volume("web9"),
        lambda: pool.is_open("web9"),
        lambda: pool.location("web9"),
        lambda: pool.remove("web9", "t2"),
        lambda: pool.resize("web9", SIZE),
        lambda: pool.rename("web9", "web8"),
        lambda: pool.clone("web9", "web8", "t2", nothing),
        lambda: pool.snapshots("web9"),
        lambda: pool.add_snapshot("web9", "s"),
        lambda: pool.remove_snapshot("web1", "s"),
        lambda: pool.rename_snapshot("web1", "s", "t"),
        lambda: pool.roll_back("web1", "s"),
        lambda: pool.protect("web1", "s", on=True),
    ]
    for attempt in attempts:
        with pytest.raises(NotFound):
            attempt()


@EVERY_FORMAT
def test_resizing_keeps_what_is_in_it(bench: Bench, format: Format) -> None:
    pool = bench.pool
    pool.add("web1", SIZE, format, "t1")
    bench.write("web1", b"content")
    pool.resize("web1", 2 * SIZE)
    assert pool.volume("web1").size_bytes == 2 * SIZE
    with pytest.raises(Conflict, match=f"the last {SIZE} would be cut off"):
        pool.resize("web1", SIZE)
    pool.resize("web1", SIZE, shrink=True)
    assert pool.volume("web1").size_bytes == SIZE
    assert bench.read("web1", 7) == b"content"


def test_a_renamed_volume_keeps_all_it_has(bench: Bench) -> None:
    pool = bench.pool
    pool.add("web1", SIZE, bench.with_snapshots, "t1")
    bench.write("web1", b"content")
    pool.add_snapshot("web1", "s1")
    pool.rename("web1", "web2")
    assert [one.name for one in pool.volumes()] == ["web2"]
    assert [one.name for one in pool.snapshots("web2")] == ["s1"]
    assert bench.read("web2", 7) == b"content"


@EVERY_FORMAT
def test_a_clone_has_the_content_and_a_life_of_its_own(bench: Bench, format: Format) -> None:
    pool = bench.pool
    pool.add("golden", SIZE, format, "t1")
    bench.write("golden", b"content")
    if format is bench.with_snapshots:
        pool.add_snapshot("golden", "s1")
    pool.clone("golden", "web1", "t2", nothing)
    assert (pool.volume("web1").size_bytes, pool.volume("web1").format) == (SIZE, format)
    assert pool.snapshots("web1") == ()
    assert len(pool.snapshots("golden")) == (format is bench.with_snapshots)
    bench.write("golden", b"another")
    assert bench.read("web1", 7) == b"content"
    pool.remove("golden", "t3")
    assert bench.read("web1", 7) == b"content"


@EVERY_FORMAT
def test_a_full_copy_shares_nothing(bench: Bench, format: Format) -> None:
    pool = bench.pool
    pool.add("golden", SIZE, format, "t1")
    bench.write("golden", b"content")
    pool.clone("golden", "web1", "t2", nothing)
    pool.clone("web1", "web2", "t3", nothing, flatten=True)
    if format is bench.with_snapshots:
        assert pool.snapshots("web1") == pool.snapshots("web2") == ()
    bench.write("web1", b"another")
    pool.remove("golden", "t4")
    pool.remove("web1", "t5")
    assert bench.read("web2", 7) == b"content"
    assert pool.volume("web2").size_bytes == SIZE
    assert bench.leftovers() == []


def test_who_uses_it_is_told_where_that_can_be(bench: Bench) -> None:
    bench.pool.add("web1", SIZE, bench.with_snapshots, "t1")
    assert bench.pool.users("web1") == ()
    with bench.opened("web1"):
        found = bench.pool.users("web1")
    if bench.names_users:
        ((address, client, has_lock),) = [(one.address, one.client, one.has_lock) for one in found]
        assert (client.startswith("client."), has_lock) == (True, True)
        assert address
    with pytest.raises(NotFound):
        bench.pool.users("web9")


def test_a_clone_that_is_ended_leaves_nothing(bench: Bench) -> None:
    pool = bench.pool
    pool.add("golden", SIZE, Format.RAW, "t1")
    bench.write("golden", b"content")

    class Ended(PVCError):
        """As a task is."""

    def end(fraction: float) -> None:
        raise Ended("cancelled")

    try:
        pool.clone("golden", "web1", "t2", end)
    except Ended:
        pool.discard("t2")
        assert [one.name for one in pool.volumes()] == ["golden"]
    assert bench.leftovers() == []
    pool.discard("t2")


# Images that come, content that goes


def anything(size_bytes: int) -> None:
    """Whatever size is fine."""


def an_image(where: Path, format: ImageFormat, content: bytes) -> bytes:
    raw, made = where / "content", where / f"image.{format}"
    raw.write_bytes(content)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", format, raw, made], check=True)
    return made.read_bytes()


def pieces(content: bytes, size: int = 3 * MIB + 512) -> Iterator[tuple[int, bytes]]:
    for offset in range(0, len(content), size):
        yield offset, content[offset : offset + size]


def take(
    bench: Bench, name: str, content: bytes, format: ImageFormat, made: Format, check: Check = anything
) -> None:
    image = Image(format, len(content))
    with bench.pool.incoming(name, image, made, f"t-{name}") as incoming:
        for offset, piece in pieces(content):
            incoming.write(offset, piece)
        incoming.finish(check, nothing)


def content_of(bench: Bench, name: str) -> bytes:
    """As it is told: what is left out is zeros."""
    with bench.pool.reading(name, "r1") as reading:
        found = bytearray(reading.size_bytes)
        for first, count in reading.extents(0, reading.size_bytes):
            found[first : first + count] = reading.read(first, count)
        return bytes(found)


CONTENT = b"".join([b"boot", bytes(5 * MIB), b"middle" * 100_000, bytes(9 * MIB)]).ljust(16 * MIB, b"\0")


@EVERY_FORMAT
@pytest.mark.parametrize("image", ImageFormat)
def test_an_image_becomes_a_volume(bench: Bench, format: Format, image: ImageFormat, tmp_path: Path) -> None:
    take(bench, "web1", an_image(tmp_path, image, CONTENT), image, format)
    found = bench.pool.volume("web1")
    assert found.format is format
    assert content_of(bench, "web1").rstrip(b"\0") == CONTENT.rstrip(b"\0")
    assert found.size_bytes == len(CONTENT) or image is ImageFormat.VPC  # whose sizes are of cylinders
    assert found.used_bytes is not None
    assert found.used_bytes < len(CONTENT) - MIB, "zeros take no space"
    bench.write("web1", b"mine")
    assert bench.read("web1", 4) == b"mine"
    assert bench.leftovers() == []


def test_an_image_that_is_not_finished_is_no_volume(bench: Bench) -> None:
    pool = bench.pool
    image = Image(ImageFormat.RAW, len(CONTENT))

    class Ended(PVCError):
        """As a task is."""

    def bring(token: str, error: PVCError | None) -> None:
        with pool.incoming("web1", image, Format.RAW, token) as incoming:
            incoming.write(0, CONTENT[:MIB])
            assert pool.volumes() == ()
            if error is not None:
                raise error

    with pytest.raises(Ended):
        bring("t1", Ended("cancelled"))
    pool.discard("t1")
    with pytest.raises(DriverError, match="web1 was not finished"):
        bring("t2", None)
    pool.discard("t2")
    assert pool.volumes() == ()
    assert bench.leftovers() == []


def test_an_image_is_what_it_is_said_to_be(bench: Bench, tmp_path: Path) -> None:
    pool = bench.pool
    made = Format.RAW
    whole = an_image(tmp_path, ImageFormat.QCOW2, CONTENT)
    cut = whole[: len(whole) // 2]
    wrong = {
        "not vmdk": (whole, ImageFormat.VMDK),
        "not qcow2": (CONTENT, ImageFormat.QCOW2),
        "damaged": (cut[:200].ljust(len(cut), b"x"), ImageFormat.QCOW2),
        "its end is missing": (cut, ImageFormat.QCOW2),
    }
    for format in (ImageFormat.VDI, ImageFormat.VMDK, ImageFormat.VPC):
        content = an_image(tmp_path, format, CONTENT)
        wrong[f"not {format}|its end is missing"] = content[:-MIB], format
    for words, (content, format) in wrong.items():
        with pytest.raises(Invalid, match=words):
            take(bench, "web1", content, format, made)
        pool.discard("t-web1")

    def too_large(size_bytes: int) -> None:
        raise Conflict(f"{size_bytes} are too many")

    with pytest.raises(Conflict, match=f"{len(CONTENT)} are too many"):
        take(bench, "web1", whole, ImageFormat.QCOW2, made, too_large)
    pool.discard("t-web1")
    assert pool.volumes() == ()
    assert bench.leftovers() == []


def test_its_size_is_asked_about_before_a_large_image_is_looked_at(bench: Bench, tmp_path: Path) -> None:
    def too_large(size_bytes: int) -> None:
        raise Conflict(f"{size_bytes} are too many")

    content = an_image(tmp_path, ImageFormat.VDI, CONTENT)[:-MIB]  # which a look at all of it would find
    with pytest.raises(Conflict, match="are too many"):
        take(bench, "web1", content, ImageFormat.VDI, Format.RAW, too_large)
    bench.pool.discard("t-web1")


def scattered_vdi(where: Path, blocks: int) -> int:
    """Of which every other block is there."""
    made = ["qemu-img", "create", "-q", "-f", "vdi", str(where), f"{blocks}M"]
    subprocess.run(made, check=True)
    with where.open("rb+") as file:
        file.seek(0x184)
        file.write((1).to_bytes(4, "little"))
        file.seek(512)
        file.write((b"\0\0\0\0" + b"\xff" * 4) * (blocks // 2))
        file.seek(0x158)
        data = int.from_bytes(file.read(4), "little")
        file.truncate(data + MIB)
        return data + MIB


def test_a_small_file_of_a_large_disk_takes_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = scattered_vdi(file := tmp_path / "disk.vdi", 100_000)
    where = disk_files.of_file(file)
    tracemalloc.start()
    try:
        assert disk_files.look(where, ImageFormat.VDI, size, anything) == 100_000 * MIB
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 4 * MIB
    with pytest.raises(Invalid, match="its end is missing"):
        disk_files.look(where, ImageFormat.VDI, size - 1, anything)
    monkeypatch.setattr(disk_files, "MOST_PARTS", 99_000)
    with pytest.raises(Invalid, match="more than 99000 parts"):
        disk_files.look(where, ImageFormat.VDI, size, anything)


def test_a_raw_file_is_whole_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "disk.raw"
    file.write_bytes(b"content".ljust(MIB))
    monkeypatch.setattr(disk_files, "_check_parts", None)
    assert disk_files.look(disk_files.of_file(file), ImageFormat.RAW, MIB, anything) == MIB


def test_a_file_with_many_snapshots_does_not_say_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(file), "1M"], check=True)
    assert disk_files.look(disk_files.of_file(file), ImageFormat.QCOW2, 0, anything) == MIB
    monkeypatch.setattr(disk_files, "MOST_WORDS", 100)
    with pytest.raises(Invalid, match="says more of itself"):
        disk_files.look(disk_files.of_file(file), ImageFormat.QCOW2, 0, anything)


def test_an_image_that_names_other_files_opens_none(bench: Bench, tmp_path: Path) -> None:
    """It would show whoever uploads it the files of the node."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"of the node".ljust(MIB, b"\0"))
    image = tmp_path / "overlay"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", image], check=True)
    with pytest.raises(Invalid, match="names other files"):
        take(bench, "web1", image.read_bytes(), ImageFormat.QCOW2, Format.RAW)
    bench.pool.discard("t-web1")
    assert bench.pool.volumes() == ()


def test_content_is_as_it_was_when_reading_began_or_is_not_given(bench: Bench) -> None:
    pool = bench.pool
    take(bench, "web1", CONTENT, ImageFormat.RAW, Format.RAW)
    with pool.reading("web1", "r1") as reading:
        assert reading.size_bytes == len(CONTENT)
        assert reading.read(len(CONTENT) - 10, 10) == bytes(10)
        assert reading.extents(5 * MIB, MIB) != []
        if bench.changes_while_open:
            bench.write("web1", b"another")
        assert reading.read(0, 4) == b"boot"
    with bench.opened("web1"):
        if bench.changes_while_open:
            with pool.reading("web1", "r2") as reading:
                assert reading.read(0, 7) == b"running"
        else:
            with pytest.raises(Conflict, match="web1 is in use"), pool.reading("web1", "r2"):
                pass
    with pytest.raises(NotFound), pool.reading("web9", "r3"):
        pass
    assert bench.leftovers() == []
    pool.remove("web1", "t9")


def test_what_is_measured_is_no_volume_and_goes(bench: Bench) -> None:
    pool = bench.pool
    with pool.scratch(8 * MIB, "t1") as scratch:
        fio = ["fio", "--name=x", "--thread", "--rw=write", "--bs=1M", "--size=8M", *scratch.options]
        environment = {**os.environ, **scratch.environment}
        done = subprocess.run(fio, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert pool.volumes() == ()
        assert len(bench.leftovers()) == 1
    assert bench.leftovers() == []


def test_a_conversion_that_is_ended_leaves_nothing(bench: Bench, tmp_path: Path) -> None:
    """Whoever had the disk open was killed."""

    class Ended(PVCError):
        """As a task is."""

    def end(fraction: float) -> None:
        raise Ended("cancelled")

    content = an_image(tmp_path, ImageFormat.QCOW2, CONTENT)
    image = Image(ImageFormat.QCOW2, len(content))

    def bring() -> None:
        with bench.pool.incoming("web1", image, Format.RAW, "t1") as incoming:
            incoming.write(0, content)
            incoming.finish(anything, end)

    with pytest.raises(Ended):
        bring()
    bench.pool.discard("t1")
    assert bench.pool.volumes() == ()
    assert bench.leftovers() == []


# In use


def test_who_has_it_open_is_seen(bench: Bench) -> None:
    bench.pool.add("web1", SIZE, bench.with_snapshots, "t1")
    with bench.opened("web1"):
        assert bench.pool.is_open("web1")
        assert bench.pool.volume("web1").size_bytes == SIZE
        assert bench.pool.snapshots("web1") == ()
    assert not bench.pool.is_open("web1")


@EVERY_FORMAT
def test_nothing_happens_to_a_volume_in_use(bench: Bench, format: Format) -> None:
    pool = bench.pool
    pool.add("web1", SIZE, format, "t1")
    changes: list[Callable[[], object]] = [
        lambda: pool.remove("web1", "t2"),
        lambda: pool.rename("web1", "web2"),
        lambda: pool.resize("web1", SIZE // 2, shrink=True),
    ]
    if not bench.changes_while_open:
        changes += [
            lambda: pool.resize("web1", 2 * SIZE),
            lambda: pool.clone("web1", "web3", "t3", nothing),
        ]
    if format is bench.with_snapshots:
        pool.add_snapshot("web1", "s1")
        changes.append(lambda: pool.roll_back("web1", "s1"))
    if format is bench.with_snapshots and not bench.changes_while_open:
        changes += [
            lambda: pool.remove_snapshot("web1", "s1"),
            lambda: pool.add_snapshot("web1", "s2"),
        ]
    with bench.opened("web1"):
        before = pool.volume("web1"), pool.snapshots("web1")
        for change in changes:
            with pytest.raises(Conflict, match="web1 is in use"):
                change()
        after = pool.volume("web1"), pool.snapshots("web1")
        assert after == before
    pool.discard("t3")
    assert [one.name for one in pool.volumes()] == ["web1"]
    assert bench.leftovers() == []


# Snapshots


def test_what_is_set_aside_is_nobodys_and_comes_back_whole_or_goes(bench: Bench) -> None:
    pool = bench.pool
    for name in ("web1", "web2"):
        pool.add(name, SIZE, bench.with_snapshots, name)
        bench.write(name, b"mine")
        pool.add_snapshot(name, "s1")
        pool.protect(name, "s1", on=name == "web1")
        pool.set_aside(name, f"of-{name}")
    assert pool.volumes() == ()
    pool.put_back("web1", "of-web1")
    pool.put_back("web1", "of-web1")
    assert (bench.read("web1", 4), [one.name for one in pool.snapshots("web1")]) == (b"mine", ["s1"])
    pool.discard("of-web2")
    pool.put_back("web2", "of-web2")
    assert [one.name for one in pool.volumes()] == ["web1"]
    assert bench.leftovers() == []
    with bench.opened("web1"), pytest.raises(Conflict, match="in use"):
        pool.set_aside("web1", "t3")
    pool.protect("web1", "s1", on=False)


def test_snapshots_have_names_ages_and_sizes(bench: Bench) -> None:
    pool = bench.pool
    pool.add("web1", SIZE, bench.with_snapshots, "t1")
    for name in ("1", "before.update", "1-2"):
        pool.add_snapshot("web1", name)
    pool.resize("web1", 2 * SIZE)
    pool.add_snapshot("web1", "large")
    found = pool.snapshots("web1")
    assert [(one.name, one.size_bytes) for one in found] == [
        ("1", SIZE),
        ("before.update", SIZE),
        ("1-2", SIZE),
        ("large", 2 * SIZE),
    ]
    assert all(one.at > 1_600_000_000 for one in found)
    with pytest.raises(Conflict, match="has a snapshot 1 already"):
        pool.add_snapshot("web1", "1")
    pool.remove_snapshot("web1", "1")
    assert [one.name for one in pool.snapshots("web1")] == ["before.update", "1-2", "large"]


def test_rolling_back_brings_content_and_size_of_that_time(bench: Bench) -> None:
    pool = bench.pool
    pool.add("web1", SIZE, bench.with_snapshots, "t1")
    bench.write("web1", b"old")
    pool.add_snapshot("web1", "2")
    bench.write("web1", b"mid")
    pool.add_snapshot("web1", "1")
    pool.resize("web1", 2 * SIZE)
    bench.write("web1", b"new")
    pool.roll_back("web1", "2")
    assert bench.read("web1", 3) == b"old"
    assert pool.volume("web1").size_bytes == SIZE
    pool.roll_back("web1", "1")
    assert bench.read("web1", 3) == b"mid"
    assert [one.name for one in pool.snapshots("web1")] == ["2", "1"]


def test_a_renamed_snapshot_is_known_by_its_new_name_only(bench: Bench) -> None:
    pool = bench.pool
    pool.add("web1", SIZE, bench.with_snapshots, "t1")
    bench.write("web1", b"one")
    pool.add_snapshot("web1", "a")
    pool.rename_snapshot("web1", "a", "b")
    bench.write("web1", b"two")
    pool.add_snapshot("web1", "a")
    bench.write("web1", b"now")
    assert [one.name for one in pool.snapshots("web1")] == ["b", "a"]
    with pytest.raises(Conflict, match="has a snapshot b already"):
        pool.rename_snapshot("web1", "a", "b")
    pool.roll_back("web1", "b")
    assert bench.read("web1", 3) == b"one"
    pool.roll_back("web1", "a")
    assert bench.read("web1", 3) == b"two"
    pool.remove_snapshot("web1", "b")
    assert [one.name for one in pool.snapshots("web1")] == ["a"]


def test_what_is_protected_stays(bench: Bench) -> None:
    pool = bench.pool
    pool.add("web1", SIZE, bench.with_snapshots, "t1")
    pool.add_snapshot("web1", "s1")
    pool.protect("web1", "s1", on=True)
    pool.rename_snapshot("web1", "s1", "s2")
    assert [(one.name, one.is_protected) for one in pool.snapshots("web1")] == [("s2", True)]
    with pytest.raises(Conflict, match="s2 of volume web1 is protected"):
        pool.remove_snapshot("web1", "s2")
    with pytest.raises(Conflict, match="s2 of volume web1 is protected"):
        pool.remove("web1", "t2")
    pool.protect("web1", "s2", on=False)
    pool.remove_snapshot("web1", "s2")
    assert pool.snapshots("web1") == ()


@pytest.mark.parametrize("bench", ["fake", "dir"], indirect=True)
def test_raw_volumes_of_a_directory_have_no_snapshots(bench: Bench) -> None:
    bench.pool.add("web1", SIZE, Format.RAW, "t1")
    with pytest.raises(Conflict, match="web1 is raw"):
        bench.pool.add_snapshot("web1", "s1")


# The pool


def test_capacity_is_of_the_whole_pool(pool: Pool) -> None:
    found = pool.capacity()
    assert 0 <= found.used_bytes < found.total_bytes


def test_what_goes_on_is_counted_in_ceph(bench: Bench) -> None:
    pool = bench.pool
    if not isinstance(pool, RBDPool):
        assert pool.traffic() is None
        return
    pool.add("web1", SIZE, Format.RAW, "t1")

    def written() -> bool:
        bench.write("web1", os.urandom(MIB))
        found = pool.traffic()
        assert found is not None
        return found.write_bytes > 0 and found.writes > 0

    eventually(written, within=60)


def test_a_pool_that_is_not_here_is_not_touched(bench: Bench) -> None:
    pool = bench.pool
    pool.add("web1", SIZE, bench.with_snapshots, "t1")
    bench.gone()
    attempts: list[Callable[[], object]] = [
        pool.capacity,
        pool.volumes,
        lambda: pool.volume("web1"),
        lambda: pool.is_open("web1"),
        lambda: pool.add("web2", SIZE, Format.RAW, "t2"),
        lambda: pool.remove("web1", "t2"),
        lambda: pool.resize("web1", 2 * SIZE),
        lambda: pool.rename("web1", "web2"),
        lambda: pool.clone("web1", "web2", "t2", nothing),
        lambda: pool.snapshots("web1"),
        lambda: pool.add_snapshot("web1", "s1"),
        lambda: pool.discard("t2"),
    ]
    for attempt in attempts:
        with pytest.raises(Unavailable, match="here"):
            attempt()


def test_fifty_volumes_at_once(bench: Bench) -> None:
    pool = bench.pool
    with ThreadPoolExecutor(8) as many:
        list(many.map(lambda n: pool.add(f"v{n:02}", SIZE, bench.with_snapshots, f"t{n}"), range(50)))
    assert [one.name for one in pool.volumes()] == [f"v{n:02}" for n in range(50)]


# Of Ceph only


@pytest.fixture
def images(cluster: Ceph) -> Bench:
    return _ceph(cluster)


def test_a_clone_shares_blocks_until_it_has_to_have_its_own(images: Bench) -> None:
    pool = images.pool
    pool.add("golden", SIZE, Format.RAW, "t1")
    images.write("golden", b"content")
    pool.clone("golden", "web1", "t2", nothing)
    assert pool.volume("web1").used_bytes == 0
    assert pool.snapshots("golden") == (), "what holds the blocks concerns nobody"
    pool.clone("web1", "web2", "t3", nothing)
    pool.remove("golden", "t4")
    assert pool.volume("web1").used_bytes
    assert images.read("web2", 7) == b"content"
    pool.remove("web1", "t5")
    assert images.read("web2", 7) == b"content"
    assert images.leftovers() == []


def test_what_clones_are_to_have_of_their_own_is_known_before(images: Bench) -> None:
    pool = images.pool
    pool.add("golden", SIZE, Format.RAW, "t1")
    images.write("golden", b"content")
    assert pool.clones_bytes("golden") == 0
    pool.clone("golden", "web1", "t2", nothing)
    pool.clone("golden", "web2", "t3", nothing)
    assert pool.clones_bytes("golden") == 2 * 4 * MIB, "what there is of it, by objects"
    pool.clone("web1", "web3", "t4", nothing)
    assert pool.clones_bytes("web1") == 4 * MIB, "which web1 itself has of golden"

    class Ended(PVCError):
        """As a task is."""

    def end(fraction: float) -> None:
        if fraction:
            raise Ended("cancelled")

    with pytest.raises(Ended):
        pool.remove("golden", "t5", end)
    pool.discard("t5", "golden")
    assert [one.name for one in pool.volumes()] == ["golden", "web1", "web2", "web3"]
    assert pool.clones_bytes("golden") == 4 * MIB, "one has its own already"
    assert images.read("web3", 7) == b"content"
    told: list[float] = []
    pool.remove("golden", "t6", told.append)
    assert told == [0]
    assert images.read("web2", 7) == b"content"


def test_what_held_the_blocks_of_a_clone_goes_with_it(images: Bench, cluster: Ceph) -> None:
    pool = images.pool
    pool.add("golden", SIZE, Format.RAW, "t1")
    pool.clone("golden", "web1", "t2", nothing)
    pool.remove("web1", "t3")
    connected = cluster.connect()
    with rbd.Image(connected.open_ioctx("vms"), "golden", read_only=True) as image:
        assert list(image.list_snaps()) == []


def test_a_volume_in_ceph_is_changed_while_it_is_open(images: Bench) -> None:
    pool = images.pool
    pool.add("web1", SIZE, Format.RAW, "t1")
    with images.opened("web1"):
        pool.add_snapshot("web1", "s1")
        pool.resize("web1", 2 * SIZE)
        pool.clone("web1", "web2", "t2", nothing)
        assert images.read("web2", 7) == b"running"
        pool.remove_snapshot("web1", "s1")
    assert pool.volume("web1").size_bytes == 2 * SIZE


def test_volumes_in_ceph_are_raw(images: Bench) -> None:
    with pytest.raises(Invalid, match="are raw, not qcow2"):
        images.pool.add("web1", SIZE, Format.QCOW2, "t1")


def test_a_ceph_that_is_not_there_is_said_soon(tmp_path: Path) -> None:
    conf = tmp_path / "ceph.conf"
    (port,) = free_ports(1)
    conf.write_text(f"[global]\nmon host = [v2:127.0.0.1:{port}]\nauth client required = none\n")
    with pytest.raises(Unavailable, match="Ceph is not reached from here"):
        RBDPool("vms", client.Ceph(str(conf))).check()


@pytest.mark.parametrize("flatten", [False, True])
def test_a_copy_that_is_ended_leaves_nothing_on_its_source(
    images: Bench, cluster: Ceph, *, flatten: bool
) -> None:
    images.pool.add("golden", SIZE, Format.RAW, "t1")
    images.write("golden", b"content")

    class Ended(PVCError):
        """As a task is."""

    def end(fraction: float) -> None:
        raise Ended("cancelled")

    with pytest.raises(Ended):
        images.pool.clone("golden", "web1", "t2", end, flatten=flatten)
    images.pool.discard("t2", "golden")
    images.pool.discard("t2", "golden")
    connected = cluster.connect()
    with rbd.Image(connected.open_ioctx("vms"), "golden", read_only=True) as image:
        assert list(image.list_snaps()) == []
    assert images.leftovers() == []


def test_a_copy_of_what_goes_meanwhile_is_none(images: Bench, cluster: Ceph) -> None:
    """By other means than ours: Ceph does not mind whoever only reads."""
    images.pool.add("golden", SIZE, Format.RAW, "t1")
    images.write("golden", b"content")
    io = cluster.connect().open_ioctx("vms")

    def goes(fraction: float) -> None:
        with suppress(NotFound), rbd.Image(io, "golden") as image:
            image.remove_snap(".clone-t2")
        images.pool.rename("golden", "gone")

    with pytest.raises(Conflict, match="golden was removed or renamed while"):
        images.pool.clone("golden", "web1", "t2", goes, flatten=True)
    images.pool.discard("t2", "golden")
    assert [one.name for one in images.pool.volumes()] == ["gone"]
    assert images.leftovers() == []


def test_what_somebody_died_over_while_removing_it_goes(images: Bench, cluster: Ceph) -> None:
    """Its header went before its name."""
    io = cluster.connect().open_ioctx("vms")
    rbd.RBD().create(io, ".task-t9", MIB, old_format=False)
    (identity,) = (one["id"] for one in rbd.RBD().list2(io) if one["name"] == ".task-t9")
    io.remove_object(f"rbd_header.{identity}")
    images.pool.discard("t9")
    assert ".task-t9" not in {one["name"] for one in rbd.RBD().list2(io)}
    images.pool.discard("t9")


def test_what_somebody_died_over_before_there_was_a_clone_goes(images: Bench, cluster: Ceph) -> None:
    images.pool.add("golden", SIZE, Format.RAW, "t1")
    images.pool.clone("golden", "web1", "t2", nothing)
    connected = cluster.connect()
    with rbd.Image(connected.open_ioctx("vms"), "golden") as image:
        image.create_snap(".clone-t3")
        image.protect_snap(".clone-t3")
        images.pool.discard("t3", "golden")
        images.pool.discard("t2", "golden")  # which is done: its clone stays
        assert [one["name"] for one in image.list_snaps()] == [".clone-t2"]
    assert images.pool.volume("web1").used_bytes == 0


def test_a_reading_that_fails_before_there_was_a_clone_leaves_nothing(images: Bench, cluster: Ceph) -> None:
    pool = images.pool
    pool.add("golden", SIZE, Format.RAW, "t1")
    io = cluster.connect().open_ioctx("vms")
    rbd.RBD().create(io, ".task-t2", SIZE)  # in the way of the clone
    with pytest.raises(DriverError), pool.reading("golden", "t2"):
        pass
    with rbd.Image(io, "golden", read_only=True) as image:
        assert list(image.list_snaps()) == []
    assert images.leftovers() == []


def test_what_a_download_died_over_goes(images: Bench, cluster: Ceph) -> None:
    images.pool.add("golden", SIZE, Format.RAW, "t1")
    io = cluster.connect().open_ioctx("vms")
    with rbd.Image(io, "golden") as image:
        image.create_snap(".clone-t2")
        image.protect_snap(".clone-t2")
        pools = cast(Pools, SimpleNamespace(open=lambda name: images.pool))
        arguments = {"pool": "vms", "volume": "golden"}
        task = TaskSpec("t2", "storage.volume-download", "", "n1", "root", 0.0, arguments)
        Download(pools, Transfers()).undo(task)
        assert list(image.list_snaps()) == []


def test_a_damaged_volume_is_in_the_list_beside_the_others(images: Bench, cluster: Ceph) -> None:
    for name in ("a", "b"):
        images.pool.add(name, SIZE, Format.RAW, name)
    connected = cluster.connect()
    io = connected.open_ioctx("vms")
    identity = {one["name"]: one["id"] for one in rbd.RBD().list2(io)}["a"]
    io.remove_object(f"rbd_header.{identity}")
    found = images.pool.volumes()
    assert [(one.name, one.problem) for one in found] == [("a", "its header is missing"), ("b", "")]
    images.pool.remove("a", "t1")
    assert [one.name for one in images.pool.volumes()] == ["b"]


# Of directories only


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    where = tmp_path / "pool"
    where.mkdir()
    prepare(str(where), "p1")
    return Directory(str(where), "p1")


def test_a_directory_is_one_pool(tmp_path: Path) -> None:
    prepare(str(tmp_path), "p1")
    prepare(str(tmp_path), "p1")
    with pytest.raises(Conflict, match="of another pool"):
        prepare(str(tmp_path), "p2")
    retire(str(tmp_path), "p2")
    with pytest.raises(Conflict, match="of another pool"):
        prepare(str(tmp_path), "p2")
    retire(str(tmp_path), "p1")
    prepare(str(tmp_path), "p2")
    with pytest.raises(NotFound, match="no directory"):
        prepare(str(tmp_path / "absent"), "p1")


def test_qemu_may_open_what_is_made_whoever_it_is_on_a_node(directory: Directory) -> None:
    directory.add("golden", SIZE, Format.QCOW2, "t1")
    directory.clone("golden", "web1", "t2", nothing)
    for name in ("golden", "web1"):
        file = Path(directory.location(name))
        assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o666, 0o755)


def test_what_a_crash_leaves_is_no_volume_and_goes(directory: Directory) -> None:
    half = directory.path / ".task-t1"
    half.mkdir()
    (half / "disk.qcow2").write_bytes(b"half")
    (directory.path / "lost+found").mkdir()
    (directory.path / "note").write_text("not ours")
    assert directory.volumes() == ()
    directory.discard("t1")
    assert not half.exists()


def test_a_damaged_file_is_in_the_list_beside_the_others(directory: Directory) -> None:
    for name in ("a", "b"):
        directory.add(name, SIZE, Format.QCOW2, name)
    Path(directory.location("a")).write_bytes(b"not a disk")
    found = directory.volumes()
    assert [(one.name, one.size_bytes) for one in found] == [("a", 0), ("b", SIZE)]
    assert "is no qcow2 file" in found[0].problem
    directory.remove("a", "t3")


def test_a_copy_that_fails_says_why_and_leaves_nothing(directory: Directory) -> None:
    directory.add("web1", SIZE, Format.QCOW2, "t1")
    disk = Path(directory.location("web1"))
    damaged = bytearray(disk.read_bytes())
    damaged[40:48] = b"\xff" * 8  # where its tables are
    disk.write_bytes(damaged)
    with pytest.raises(DriverError, match=r"web1|L1"):
        directory.clone("web1", "web2", "t2", nothing)
    directory.discard("t2")
    assert [one.name for one in directory.volumes()] == ["web1"]


def _with_backing_file(disk: Path, other: Path) -> None:
    rebase = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", str(other), str(disk)]
    subprocess.run(rebase, check=True)


def _with_data_file(disk: Path, other: Path) -> None:
    with disk.open("rb+") as file:
        file.seek(79)
        file.write(b"\x04")  # of the features that one must know


@pytest.mark.parametrize("rewrite", [_with_backing_file, _with_data_file])
def test_a_file_that_names_others_is_not_read(
    directory: Directory, tmp_path: Path, rewrite: Callable[[Path, Path], None]
) -> None:
    """A QEMU that its guest has taken over could write the name of any file of the node into it."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"of the node".ljust(MIB, b"\0"))
    directory.add("web1", MIB, Format.QCOW2, "t1")
    rewrite(Path(directory.location("web1")), secret)
    for flatten in (False, True):
        with pytest.raises(DriverError, match="backing file, or its data in another"):
            directory.clone("web1", "web2", "t2", nothing, flatten=flatten)
    names_others = pytest.raises(DriverError, match="backing file, or its data in another")
    with names_others, directory.reading("web1", "t3"):
        pass
    assert [one.name for one in directory.volumes()] == ["web1"]
    directory.remove("web1", "t4")


def test_qemu_waits_for_nobody_while_a_volume_is_taken_away(directory: Directory) -> None:
    """A VM that begins while it is being removed does not get the disk."""
    directory.add("web1", SIZE, Format.RAW, "t1")
    with directory._locked("web1"):
        done = subprocess.run(
            ["qemu-io", "-f", "raw", "-c", "length", directory.location("web1")],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode != 0
    assert "lock" in done.stderr


def test_a_copy_where_blocks_cannot_be_shared_tells_how_far_it_is(directory: Directory) -> None:
    directory.add("golden", 256 * MIB, Format.RAW, "t1")
    qemu_io(directory.location("golden"), "raw", "write -P 7 0 200M")
    told: list[float] = []
    going = threading.Event()

    def progress(fraction: float) -> None:
        told.append(fraction)
        going.set()

    directory.clone("golden", "web1", "t2", progress)
    assert told == sorted(told)
    assert qemu_io(directory.location("web1"), "raw", "read -P 7 0 200M")
    eventually(lambda: not directory.is_open("golden"), within=5)


def test_what_is_measured_is_in_the_pool_whatever_its_path(tmp_path: Path) -> None:
    where = tmp_path / "a:b"
    where.mkdir()
    prepare(str(where), "p1")
    with Directory(str(where), "p1").scratch(MIB, "t1") as scratch:
        fio = ["fio", "--name=x", "--thread", "--rw=write", "--bs=1M", "--size=1M", *scratch.options]
        subprocess.run(fio, capture_output=True, check=True, cwd=tmp_path)
        assert (where / ".task-t1" / "scratch").stat().st_size == MIB
    assert [one.name for one in tmp_path.iterdir()] == ["a:b"]


def test_a_reader_is_no_reason_not_to_copy_and_one_not_to_remove(directory: Directory) -> None:
    directory.add("golden", SIZE, Format.QCOW2, "t1")
    reader = subprocess.Popen(
        ["qemu-io", "-r", "-f", "qcow2", directory.location("golden")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdin
    assert reader.stdout
    reader.stdin.write("length\n")
    reader.stdin.flush()
    reader.stdout.readline()
    directory.clone("golden", "web1", "t2", nothing)
    with pytest.raises(Conflict, match="golden is in use"):
        directory.remove("golden", "t3")
    reader.communicate("quit\n")
    directory.remove("golden", "t3")
    assert [one.name for one in directory.volumes()] == ["web1"]


def test_a_snapshot_of_what_is_open_is_taken_by_the_pool_or_inside_by_qemu(bench: Bench) -> None:
    bench.pool.add("a", SIZE, bench.with_snapshots, "t1")
    inside = bench.pool.name_in_qemu("vm.a")
    assert bool(inside) is not bench.changes_while_open
    with bench.opened("a"):
        if inside:
            with pytest.raises(Conflict, match="is in use"):
                bench.pool.add_snapshot("a", "vm.a")
        else:
            bench.pool.add_snapshot("a", "vm.a")
    assert [one.name for one in bench.pool.snapshots("a")] == ([] if inside else ["vm.a"])


def test_what_qemu_has_taken_inside_is_a_snapshot_of_the_volume(directory: Directory) -> None:
    directory.add("a", SIZE, Format.QCOW2, "t1")
    run(["qemu-img", "snapshot", "-c", directory.name_in_qemu("vm.a"), directory.location("a")])
    assert [one.name for one in directory.snapshots("a")] == ["vm.a"]
    directory.roll_back("a", "vm.a")
    directory.remove_snapshot("a", "vm.a")
    assert directory.snapshots("a") == ()


def test_a_lock_names_who_writes_and_is_broken_for_good(images: Bench, cluster: Ceph) -> None:
    pool = images.pool
    assert isinstance(pool, RBDPool)
    pool.add("web1", SIZE, Format.RAW, "t1")
    assert pool.holders("web1") == ()
    connected = cluster.connect()
    io = connected.open_ioctx("vms")
    with suppress(rbd.Error), rbd.Image(io, "web1") as image:
        image.write(b"old", 0)
        (holder,) = pool.holders("web1")
        assert (holder.host, holder.is_there) == ("127.0.0.1", True)
        pool.break_lock("web1", holder)
        pool.break_lock("web1", holder)
        assert pool.holders("web1") == ()
        images.write("web1", b"new")
        with pytest.raises(rbd.Error):
            image.write(b"old", 0)
    assert images.read("web1", 3) == b"new"
    with pytest.raises(NotFound):
        pool.holders("web2")
