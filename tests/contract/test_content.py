"""What is in a snapshot, and what differs between two, as every driver of pools tells it: to the byte."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import pytest
import rbd

from pvc.cluster.storage import Format
from pvc.errors import Conflict, Invalid, NotFound
from pvc.node.diffs import Written, apply, opened, write
from pvc.node.drivers import DriverError
from pvc.node.drivers import ceph as client
from pvc.node.drivers.directory import Directory, prepare
from pvc.node.drivers.rbd import RBDPool
from pvc.node.drivers.storage import Content, Filling, Pool
from tests.ceph import Ceph, ceph
from tests.contract.test_pool import nothing, open_in_qemu, qemu_io
from tests.fakes.pool import FakePool

MIB = 1024**2
SIZE = 20 * MIB + 3 * 512


@dataclass
class Bench:
    pool: Pool
    format: Format
    write: Callable[[str, int, int, int], None]
    """Into a volume, from an offset, so many bytes, of that value."""
    discard: Callable[[str, int, int], None]
    """As a guest does; how much of it becomes zero is the driver's matter."""
    zero: Callable[[str, int, int], None]
    read: Callable[[str], bytes]


def _fake() -> Bench:
    pool = FakePool()

    def write(name: str, offset: int, length: int, value: int) -> None:
        kept = pool.kept[name]
        content = bytearray(kept.content.ljust(kept.volume.size_bytes, b"\0"))
        content[offset : offset + length] = bytes([value]) * length
        kept.content = bytes(content)

    def zero(name: str, offset: int, length: int) -> None:
        write(name, offset, length, 0)

    def read(name: str) -> bytes:
        kept = pool.kept[name]
        return kept.content.ljust(kept.volume.size_bytes, b"\0")

    return Bench(pool, Format.QCOW2, write, zero, zero, read)


def _directory(tmp_path: Path) -> Bench:
    where = tmp_path / "pool"
    where.mkdir()
    prepare(str(where), "p1")
    pool = Directory(str(where), "p1")

    def io(name: str, *commands: str) -> None:
        qemu_io(pool.location(name), str(pool.volume(name).format), *commands)

    def read(name: str) -> bytes:
        copy = tmp_path / "copy"
        subprocess.run(
            ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", pool.location(name), copy], check=True
        )
        return copy.read_bytes()

    return Bench(
        pool,
        Format.QCOW2,
        lambda name, offset, length, value: io(name, f"write -P {value} {offset} {length}"),
        lambda name, offset, length: io(name, f"discard {offset} {length}"),
        lambda name, offset, length: io(name, f"write -z -u {offset} {length}"),
        read,
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    with ceph(tmp_path_factory.mktemp("ceph")) as made:
        yield made


def _ceph(cluster: Ceph, pool: str) -> Bench:
    cluster.add_pool(pool)
    io = cluster.connect().open_ioctx(pool)

    def write(name: str, offset: int, length: int, value: int) -> None:
        with rbd.Image(io, name) as image:
            image.write(bytes([value]) * length, offset)

    def discard(name: str, offset: int, length: int) -> None:
        with rbd.Image(io, name) as image:
            image.discard(offset, length)

    def zero(name: str, offset: int, length: int) -> None:
        with rbd.Image(io, name) as image:
            image.write_zeroes(offset, length)

    def read(name: str) -> bytes:
        with rbd.Image(io, name, read_only=True) as image:
            return image.read(0, image.size())

    return Bench(RBDPool(pool, client.Ceph(cluster.conf, "admin")), Format.RAW, write, discard, zero, read)


@pytest.fixture(params=["fake", "dir", "ceph"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    if request.param == "fake":
        return _fake()
    if request.param == "dir":
        return _directory(tmp_path)
    return _ceph(request.getfixturevalue("cluster"), f"p{abs(hash(request.node.name)) % 10**8}")


def change(bench: Bench, name: str, random: random.Random) -> None:
    """As guests do it: pieces of sectors, of clusters and of whole objects; sometimes the volume gets another
    size."""
    size = bench.pool.volume(name).size_bytes
    for _ in range(random.randint(1, 8)):
        unit = random.choice((512, 4096, 65536, 4 * MIB))
        offset = random.randrange(size // unit) * unit
        length = min(random.randint(1, 4) * unit, size - offset)
        match random.choice(("write", "write", "discard", "zero")):
            case "write":
                bench.write(name, offset, length, random.randint(1, 255))
            case "discard":
                bench.discard(name, offset, length)
            case "zero":
                bench.zero(name, offset, length)


def resize(pool: Pool, name: str, random: random.Random) -> None:
    """Also smaller and larger again: what was cut off does not come back. qcow2 with snapshots only grows."""
    size = random.randrange(SIZE // 512, 2 * SIZE // 512) * 512
    if pool.volume(name).format is Format.QCOW2:
        size = max(size, pool.volume(name).size_bytes)
    pool.resize(name, size, shrink=True)


def applied(content: Content, since: str, before: bytes) -> bytes:
    """What the other one has, with what differs."""
    made = bytearray(before[: content.size_bytes].ljust(content.size_bytes, b"\0"))
    end = 0
    for extent in content.extents(since):
        assert extent.offset >= end
        end = extent.offset + extent.length
        assert extent.length > 0
        assert end <= content.size_bytes
        found = content.read(extent.offset, extent.length)
        assert extent.is_data or not any(found)
        made[extent.offset : end] = found
    return bytes(made)


@pytest.mark.parametrize("seed", range(2))
def test_a_snapshot_and_what_differs_make_the_other_one(bench: Bench, seed: int) -> None:
    pool, chance = bench.pool, random.Random(seed)
    pool.add("golden", SIZE, bench.format, "t1")
    change(bench, "golden", chance)
    pool.clone("golden", "web1", "t2", nothing)  # in Ceph it gets blocks of its own when it is written to
    truth: dict[str, bytes] = {}
    for number in range(4):
        if number > 1:
            resize(pool, "web1", chance)
        change(bench, "web1", chance)
        truth[f"s{number}"] = bench.read("web1")
        pool.add_snapshot("web1", f"s{number}")
    change(bench, "web1", chance)
    for name, expected in truth.items():
        with pool.content("web1", name) as content:
            assert content.size_bytes == len(expected)
            assert content.read(0, content.size_bytes) == expected
            assert applied(content, "", b"") == expected
            assert list(content.extents(name)) == []
    for before, after in combinations(truth, 2):
        with pool.content("web1", after) as content:
            assert applied(content, before, truth[before]) == truth[after], (before, after)


def test_little_is_told_where_little_was_written(bench: Bench) -> None:
    bench.pool.add("web1", 64 * MIB, bench.format, "t1")
    bench.write("web1", 0, 32 * MIB, 7)
    bench.pool.add_snapshot("web1", "a")
    bench.write("web1", 8 * MIB, 4096, 8)
    bench.zero("web1", 20 * MIB, 4 * MIB)
    bench.pool.add_snapshot("web1", "b")
    with bench.pool.content("web1", "b") as content:
        told = list(content.extents("a"))
        assert sum(one.length for one in told if one.is_data) <= 65536
        assert sum(one.length for one in told if not one.is_data) == 4 * MIB
        assert sum(one.length for one in content.extents()) <= 33 * MIB
    with bench.pool.content("web1", "a") as content:
        assert content.read(8 * MIB, 4096) == b"\7" * 4096


def test_only_snapshots_have_a_content_that_stays(bench: Bench) -> None:
    bench.pool.add("web1", SIZE, bench.format, "t1")
    bench.pool.add_snapshot("web1", "a")
    with pytest.raises(NotFound, match="no snapshot b"), bench.pool.content("web1", "b"):
        pass
    with (
        bench.pool.content("web1", "a") as content,
        pytest.raises(NotFound, match="no snapshot b"),
    ):
        list(content.extents("b"))


def fill(filling: Filling) -> None:
    filling.write(4096, b"a" * 8192)
    filling.write(8 * MIB - 512, b"b" * 9 * MIB)
    filling.zero(8192, 512)
    filling.zero(9 * MIB, 3 * MIB)
    filling.write(SIZE - 512, b"c" * 512)


def test_a_volume_is_filled_before_it_is_there(bench: Bench) -> None:
    pool = bench.pool
    with pool.filled("web1", SIZE, bench.format, "t1") as filling:
        fill(filling)
        assert pool.volumes() == ()
    expected = bytearray(SIZE)
    expected[4096:12288] = b"a" * 8192
    expected[8192:8704] = bytes(512)
    expected[8 * MIB - 512 : 17 * MIB - 512] = b"b" * 9 * MIB
    expected[9 * MIB : 12 * MIB] = bytes(3 * MIB)
    expected[-512:] = b"c" * 512
    assert bench.read("web1") == bytes(expected)
    found = pool.volume("web1")
    assert (found.size_bytes, found.format) == (SIZE, bench.format)
    pool.add_snapshot("web1", "a")
    with pytest.raises(Conflict, match="web1 already"), pool.filled("web1", SIZE, bench.format, "t2"):
        pass
    with pytest.raises(Invalid, match="no name"), pool.filled("a/b", SIZE, bench.format, "t3"):
        pass


def test_a_volume_that_is_not_filled_to_its_end_is_none(bench: Bench) -> None:
    pool = bench.pool

    def fill_half() -> None:
        with pool.filled("web1", SIZE, bench.format, "t1") as filling:
            filling.write(0, b"half")
            raise DriverError("enough")

    with pytest.raises(DriverError, match="enough"):
        fill_half()
    assert pool.volumes() == ()
    pool.discard("t1")
    with pool.filled("web1", SIZE, bench.format, "t1") as filling:
        filling.write(0, b"whole")
    assert bench.read("web1")[:5] == b"whole"


# Of qcow2 files


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    pool = _directory(tmp_path).pool
    assert isinstance(pool, Directory)
    return pool


def test_a_snapshot_stays_what_it_is_while_a_vm_writes(directory: Directory) -> None:
    directory.add("web1", SIZE, Format.QCOW2, "t1")
    file = directory.location("web1")
    qemu_io(file, "qcow2", "write -P 1 0 16M")
    directory.add_snapshot("web1", "a")
    process = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", file], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stdin
    with directory.content("web1", "a") as content:
        for value in range(2, 40):
            process.stdin.write(f"write -P {value} {value % 8}M 8M\ndiscard 0 1M\n")
            process.stdin.flush()
            assert content.read(0, 16 * MIB) == b"\1" * 16 * MIB
            assert [one.length for one in content.extents()] == [16 * MIB]
        process.communicate("quit\n")
        assert content.read(0, 16 * MIB) == b"\1" * 16 * MIB


def test_a_snapshot_is_read_while_somebody_has_the_lock(directory: Directory) -> None:
    directory.add("web1", SIZE, Format.QCOW2, "t1")
    directory.add_snapshot("web1", "a")
    with open_in_qemu(directory.location("web1"), "qcow2"), directory.content("web1", "a") as content:
        assert list(content.extents()) == []


def test_compressed_clusters_are_read(directory: Directory, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    expected = b"".join(bytes([value]) * 40_000 for value in range(1, 100)).ljust(4 * MIB, b"\0")
    raw.write_bytes(expected)
    directory.add("web1", SIZE, Format.QCOW2, "t1")
    file = directory.location("web1")
    subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, file], check=True)
    directory.add_snapshot("web1", "a")
    with directory.content("web1", "a") as content:
        assert content.read(0, 4 * MIB) == expected
        assert applied(content, "", b"") == expected


@pytest.mark.parametrize("options", ["compression_type=zstd", "extended_l2=on"])
def test_what_cannot_be_read_is_refused(directory: Directory, options: str) -> None:
    directory.add("web1", SIZE, Format.QCOW2, "t1")
    file = directory.location("web1")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, file, "8M"], check=True)
    directory.add_snapshot("web1", "a")
    with pytest.raises(DriverError, match="a feature of qcow2"), directory.content("web1", "a"):
        pass


def test_a_disk_that_is_full_ends_the_filling(directory: Directory, tmp_path: Path) -> None:
    """qemu-nbd says no; nothing of it is a volume."""
    with (
        pytest.raises(DriverError, match="cannot be written"),
        directory.filled("web1", SIZE, Format.RAW, "t1") as filling,
    ):
        filling.write(SIZE, b"behind the end")
    assert directory.volumes() == ()
    directory.discard("t1")


def test_dirty_counts_of_references_do_not_matter(directory: Directory) -> None:
    directory.add("web1", SIZE, Format.QCOW2, "t1")
    directory.add_snapshot("web1", "a")
    file = Path(directory.location("web1"))
    with file.open("rb+") as disk:
        disk.seek(72)
        disk.write((1).to_bytes(8, "big"))
    with directory.content("web1", "a") as content:
        assert replace(directory.volume("web1")).size_bytes == content.size_bytes


# As files


def test_rbd_reads_what_is_written_and_what_it_writes_is_read(
    cluster: Ceph, directory: Directory, tmp_path: Path
) -> None:
    """Of a qcow2 file by `rbd import-diff`, and the other way by `rbd export-diff`."""
    images = _ceph(cluster, "tools")
    chance = random.Random(5)
    (tmp_path / "other").mkdir()
    bench = _directory(tmp_path / "other")
    bench.pool.add("web1", SIZE, Format.QCOW2, "t1")
    images.pool.add("web1", SIZE, Format.RAW, "t2")
    sums, since = [], ""
    for snapshot in ("a", "b"):
        change(bench, "web1", chance)
        expected = bench.read("web1")
        bench.pool.add_snapshot("web1", snapshot)
        file = tmp_path / snapshot
        exported(bench.pool, "web1", snapshot, since, file)
        cluster.run("rbd", "import-diff", str(file), "tools/web1")
        assert images.read("web1") == expected
        words = ["--from-snap", since] if since else []
        file.unlink()
        cluster.run("rbd", "export-diff", *words, f"tools/web1@{snapshot}", str(file))
        sums.append((file, hashlib.sha256(file.read_bytes()).hexdigest()))
        since = snapshot
    size = 0
    with directory.filled("web1", SIZE, Format.QCOW2, "t3") as filling:
        for file, sha256 in sums:
            with opened(file) as source:
                size = apply(source, sha256, filling, SIZE, size, nothing)
    directory.add_snapshot("web1", "a")
    with directory.content("web1", "a") as content:
        assert content.read(0, SIZE) == expected


def exported(pool: Pool, name: str, snapshot: str, since: str, file: Path) -> str:
    with file.open("wb") as out, pool.content(name, snapshot) as content:
        written = Written(out)
        write(written, content, snapshot, since, nothing)
    return written.sha256


class Emulator:
    """A QEMU that has a file open and no machine; it writes when it is told to."""

    def __init__(self, file: str) -> None:
        disk = {
            "driver": "qcow2",
            "node-name": "disk",
            "discard": "unmap",
            "file": {"driver": "file", "filename": file, "discard": "unmap"},
        }
        words = ["-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"]
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", *words, "-blockdev", json.dumps(disk)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.call("qmp_capabilities")

    def call(self, command: str, **arguments: object) -> object:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            assert "failed" not in line, line
            if not line.startswith("{"):
                continue  # what `qemu-io` says of itself
            said = json.loads(line)
            assert "error" not in said, said
            if "return" in said:
                return said["return"]
        raise AssertionError("QEMU ended")

    def io(self, words: str) -> None:
        self.call("human-monitor-command", **{"command-line": f'qemu-io disk "{words}"'})


def test_a_snapshot_that_a_running_qemu_took_is_read_beside_it(directory: Directory) -> None:
    """Its tables and what they name are in the file as soon as it says so, and stay."""
    directory.add("web1", SIZE, Format.QCOW2, "t1")
    emulator = Emulator(directory.location("web1"))
    try:
        expected: dict[str, bytes] = {}
        for value, name in ((1, "a"), (2, "b"), (3, "c")):
            emulator.io(f"write -P {value} {value}M {value}M")
            emulator.io(f"write -P {value + 10} 16M 4k")
            emulator.io(f"discard {value - 1}M 1M")
            emulator.call("blockdev-snapshot-internal-sync", device="disk", name=f"@{name}")
            content = bytearray(expected[chr(ord(name) - 1)] if name > "a" else bytes(SIZE))
            content[value * MIB : 2 * value * MIB] = bytes([value]) * value * MIB
            content[16 * MIB : 16 * MIB + 4096] = bytes([value + 10]) * 4096
            content[(value - 1) * MIB : value * MIB] = bytes(MIB)
            expected[name] = bytes(content)
            for one, then in expected.items():
                with directory.content("web1", one) as kept:
                    assert kept.read(0, SIZE) == then
            if name > "a":
                before = chr(ord(name) - 1)
                with directory.content("web1", name) as kept:
                    assert applied(kept, before, expected[before]) == expected[name]
        assert directory.is_open("web1")
    finally:
        emulator.process.kill()
        emulator.process.communicate()
