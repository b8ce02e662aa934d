"""How soon a machine boots from a clone of a volume, against a full copy by `qemu-img`.

python3 -m benchmarks.boot [--data 1024] [--directory /srv/pool]

On a directory, and on a real Ceph in memory where build/ceph is: turn and turn about, so that both ways meet
the same machine. A directory shares blocks on XFS and Btrfs; elsewhere its clone is a copy as well.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pvc.cluster.storage import Format
from pvc.node.drivers import ceph as client
from pvc.node.drivers.directory import Directory, prepare
from pvc.node.drivers.rbd import RBDPool
from pvc.node.drivers.storage import Pool
from tests.ceph import UNPACKED, ceph

MIB = 1024**2
ROUNDS = 5
PATIENCE_S = 60
SAYS = b"booted from an image"
AT = 0x7C00
"""Where firmware puts the first sector of a disk."""
BEFORE, AFTER = bytes.fromhex("31c0 8ed8 fc be"), bytes.fromhex("ac 84c0 7406 baf803 ee ebf5 f4 ebfd")
"""Between them the address of a text: each byte of it to the first serial port, up to a zero; then rest."""
MACHINE = ["-accel", "tcg", "-nodefaults", "-display", "none", "-serial", "stdio", "-m", "64"]
"""Emulated, as KVM is slow where the processor is itself emulated, and this guest computes nothing."""


def sector() -> bytes:
    text = AT + len(BEFORE) + 2 + len(AFTER)
    code = BEFORE + text.to_bytes(2, "little") + AFTER + SAYS + b"\r\n\0"
    return code.ljust(510, b"\0") + b"\x55\xaa"


def timed(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def nothing(fraction: float) -> None:
    """Told nobody."""


def boot(place: str, format: Format) -> None:
    """Until its first sector says so."""
    drive = f"file={place},format={format},if=virtio"
    words = ["timeout", str(PATIENCE_S), "qemu-system-x86_64", *MACHINE, "-drive", drive]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as machine:
        assert machine.stdout
        assert machine.stderr
        said = any(SAYS in line for line in machine.stdout)
        machine.terminate()
        assert said, machine.stderr.read().decode()


def measure(name: str, pool: Pool, format: Format, data_mib: int, place: Callable[[str], str]) -> None:
    """`place`: what QEMU calls a volume."""
    with pool.filled("golden", 2 * data_mib * MIB, format, "t") as filling:
        filling.write(0, sector())
        for at in range(1, data_mib):
            filling.write(at * MIB, bytes([1 + at % 250]) * MIB)

    def clone() -> None:
        pool.clone("golden", "web", "t", nothing)

    def copy() -> None:
        if isinstance(pool, Directory):
            (pool.path / "copied").mkdir()
        words = ["-f", str(format), "-O", str(format), place("golden"), place("copied")]
        subprocess.run(["qemu-img", "convert", *words], check=True)
        if isinstance(pool, Directory):
            subprocess.run(["sync", place("copied")], check=True)  # as the clone is on the disk, too

    taken: dict[str, list[tuple[float, float]]] = {"web": [], "copied": []}
    for _ in range(ROUNDS):
        for volume, make in (("web", clone), ("copied", copy)):
            made_s = timed(make)
            taken[volume].append((made_s, timed(partial(boot, place(volume), format))))
            pool.remove(volume, "t")
    told = {
        volume: [statistics.median(one) for one in zip(*rounds, strict=True)]
        for volume, rounds in taken.items()
    }
    ours, theirs = (statistics.median(sum(one) for one in taken[volume]) for volume in taken)
    cloned, copied = (f"{told[volume][0]:.2f} + {told[volume][1]:.2f} s" for volume in taken)
    print(f"{name}: clone and boot {cloned}, full copy and boot {copied}: {theirs / ours:.1f} times as long")


def of_directory(where: Path, data_mib: int) -> None:
    prepare(str(where), "p1")
    pool = Directory(str(where), "p1")
    name = f"directory on {subprocess.getoutput(f'stat -f -c %T {where}')}"
    measure(name, pool, Format.QCOW2, data_mib, lambda volume: f"{where / volume}/disk.qcow2")


def of_ceph(where: Path, data_mib: int) -> None:
    with ceph(where) as cluster:
        cluster.add_pool("vms")
        pool = RBDPool("vms", client.Ceph(cluster.conf, "admin"))
        place = f"rbd:vms/{{}}:id=admin:conf={cluster.conf}".format
        measure("Ceph", pool, Format.RAW, data_mib, place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=int, default=1024, metavar="MIB", help="in a volume of twice the size")
    parser.add_argument("--directory", default=tempfile.gettempdir(), help="the pool is made in it")
    asked = parser.parse_args()
    print(f"a volume with {asked.data} MiB of data; {ROUNDS} rounds, medians")
    with tempfile.TemporaryDirectory(dir=asked.directory) as root:
        of_directory(Path(root), asked.data)
    if UNPACKED.is_dir():
        with tempfile.TemporaryDirectory() as root:
            of_ceph(Path(root), asked.data)


if __name__ == "__main__":
    main()
