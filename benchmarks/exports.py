"""What exporting a snapshot costs, all of it and only what differs: python3 -m benchmarks.exports

Volumes of 4 GiB with 1 GiB of data on a directory and on a real Ceph in memory; since the older snapshot 64
pieces of 64 KiB were written and 16 MiB discarded. `rbd export` and `rbd export-diff` write the same.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import rbd

from pvc.cluster.storage import Format
from pvc.node.diffs import Written, apply, check, opened, write
from pvc.node.drivers import ceph as client
from pvc.node.drivers.directory import Directory, prepare
from pvc.node.drivers.rbd import RBDPool
from pvc.node.drivers.storage import Pool
from tests.ceph import Ceph, ceph

MIB = 1024**2
SIZE, DATA = 4096 * MIB, 1024 * MIB
PIECES, PIECE, DISCARDED = 64, 65536, 16 * MIB


def timed(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def places() -> list[int]:
    chance = random.Random(1)
    return [chance.randrange(DATA // PIECE) * PIECE for _ in range(PIECES)]


def nothing(fraction: float) -> None:
    """Told nobody."""


def export(pool: Pool, snapshot: str, since: str, file: Path) -> tuple[int, str]:
    with file.open("wb") as out, pool.content("web1", snapshot) as content:
        written = Written(out)
        write(written, content, snapshot, since, nothing)
    return written.bytes, written.sha256


def fill(pool: Pool, format: Format, files: list[tuple[Path, str]]) -> None:
    size = 0
    with pool.filled("web2", SIZE, format, "t2") as filling:
        for file, sha256 in files:
            with opened(file) as source:
                size = apply(source, sha256, filling, SIZE, size, nothing)
    pool.remove("web2", "t3")


def measure(name: str, pool: Pool, format: Format, where: Path) -> None:
    full, diff = where / "full", where / "diff"
    sums: dict[Path, tuple[int, str]] = {}
    all_s = timed(lambda: sums.update({full: export(pool, "b", "", full)}))
    diff_s = timed(lambda: sums.update({diff: export(pool, "b", "a", diff)}))
    again_s = timed(lambda: check(full, sums[full][1], nothing))
    import_s = timed(lambda: fill(pool, format, [(full, sums[full][1])]))
    size = sums[full][0] / MIB
    print(
        f"{name}: all {all_s:.2f} s, {size:.0f} MiB ({size / all_s:.0f} MiB/s); "
        f"what differs {diff_s:.3f} s, {sums[diff][0] / MIB:.1f} MiB: {all_s / diff_s:.0f} times as quick; "
        f"read again {again_s:.2f} s; imported {import_s:.2f} s ({DATA / MIB / import_s:.0f} MiB/s)"
    )


def of_directory(where: Path) -> None:
    pool_in = where / "pool"
    pool_in.mkdir()
    prepare(str(pool_in), "p1")
    pool = Directory(str(pool_in), "p1")
    pool.add("web1", SIZE, Format.QCOW2, "t1")

    def io(*commands: str) -> None:
        words = [word for command in commands for word in ("-c", command)]
        done = ["qemu-io", "-f", "qcow2", *words, pool.location("web1")]
        subprocess.run(done, check=True, stdout=subprocess.DEVNULL)

    io(*(f"write -P {1 + n % 250} {n}M 16M" for n in range(0, DATA // MIB, 16)))
    pool.add_snapshot("web1", "a")
    io(*(f"write -P 7 {at} {PIECE}" for at in places()), f"discard 0 {DISCARDED}")
    pool.add_snapshot("web1", "b")
    measure("dir", pool, Format.QCOW2, where)


@contextmanager
def images(cluster: Ceph) -> Iterator[RBDPool]:
    cluster.add_pool("vms")
    pool = RBDPool("vms", client.Ceph(cluster.conf, "admin"))
    pool.add("web1", SIZE, Format.RAW, "t1")
    with client.Ceph(cluster.conf, "admin").opened("vms") as io, rbd.Image(io, "web1") as image:
        for at in range(0, DATA, 4 * MIB):
            image.write(bytes([1 + at // MIB % 250]) * 4 * MIB, at)
        image.create_snap("a")
        for at in places():
            image.write(b"\7" * PIECE, at)
        image.discard(0, DISCARDED)
        image.create_snap("b")
    yield pool


def of_ceph(where: Path) -> None:
    with ceph(where / "ceph") as cluster, images(cluster) as pool:
        measure("rbd", pool, Format.RAW, where)
        all_s = timed(lambda: cluster.run("rbd", "export", "vms/web1@b", str(where / "all")))
        diff_s = timed(
            lambda: cluster.run("rbd", "export-diff", "--from-snap", "a", "vms/web1@b", str(where / "their"))
        )
        print(f"`rbd export` {all_s:.2f} s; `rbd export-diff` {diff_s:.3f} s")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="pvc-bench-") as place:
        where = Path(place)
        (where / "ceph").mkdir()
        of_directory(where)
        of_ceph(where)


if __name__ == "__main__":
    main()
