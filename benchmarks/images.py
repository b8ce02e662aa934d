#!/usr/bin/env python3
"""What an upload takes against `qemu-img convert` and `rbd import` of the same file, and how much memory.

The whole way: client, API server, node over TLS, its task; a directory, and a Ceph of one OSD in memory.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pvc import cli
from pvc.commands.registry import every_operation
from pvc.http.client import HttpTransport
from pvc.http.serve import Texts
from pvc.node.drivers import ceph as client
from pvc.peerclient import ask, carry, fetch
from tests.ceph import LIBRARIES, UNPACKED, Ceph, ceph
from tests.contract.test_storage_tasks import one_node
from tests.fakes.serving import serving

MIB = 1024**2
SIZE_MIB = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
ROUNDS = 3


def memory_mib() -> int:
    """Of this process, which is client, API server and node at once."""
    words = Path("/proc/self/statm").read_text().split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") // MIB


@contextlib.contextmanager
def watched() -> Iterator[list[int]]:
    """The greatest memory meanwhile, above what it was before."""
    before, found, ended = memory_mib(), [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            found[0] = max(found[0], memory_mib() - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def timed(do: Callable[[], object]) -> float:
    began = time.monotonic()
    do()
    return time.monotonic() - began


def run(*argv: object, **environment: str) -> None:
    words = [str(word) for word in argv]
    subprocess.run(words, check=True, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)


class Cluster:
    def __init__(self, path: str) -> None:
        self.path = path

    def pvc(self, *argv: str) -> None:
        code = cli.run(["-q", "-s", *argv], lambda options: HttpTransport(self.path))
        assert code == 0, argv


def main() -> None:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        where = Path(name)
        (where / "ceph").mkdir()
        (where / "node").mkdir()
        made = stack.enter_context(ceph(where / "ceph"))
        node = stack.enter_context(one_node(where / "node", lambda: client.Ceph(made.conf, "admin")))
        config = node.config
        ways = (
            functools.partial(fetch, config),
            functools.partial(ask, config),
            functools.partial(carry, config),
        )
        served = stack.enter_context(
            serving(where / "node", node.world.cluster, list(every_operation()), Texts(*ways))
        )
        cluster = Cluster(served.path)
        raw, qcow2 = where / "image.raw", where / "image.qcow2"
        with raw.open("wb") as file:
            for _ in range(SIZE_MIB):
                file.write(os.urandom(MIB))
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
        directory(cluster, where, raw, qcow2)
        in_ceph(cluster, made, where, raw, qcow2)
        node.working.close()


def directory(cluster: Cluster, where: Path, raw: Path, qcow2: Path) -> None:
    pool = where / "pool"
    pool.mkdir()
    cluster.pvc("storage", "pool", "add", "files", "--path", str(pool))
    copy = where / "copy"

    def convert(source: Path, made: str) -> Callable[[], None]:
        return lambda: run("qemu-img", "convert", "-t", "writeback", "-O", made, source, copy)

    compare(
        cluster,
        "files",
        "raw, directory",
        raw,
        ["--raw"],
        "qemu-img convert",
        convert(raw, "raw"),
        copy.unlink,
    )
    compare(
        cluster,
        "files",
        "qcow2, directory",
        qcow2,
        [],
        "qemu-img convert",
        convert(qcow2, "qcow2"),
        copy.unlink,
    )


def in_ceph(cluster: Cluster, made: Ceph, where: Path, raw: Path, qcow2: Path) -> None:
    cluster.pvc(
        "storage", "pool", "add", "disks", "--driver", "rbd", "--replcfg", "copies=1,mincopies=1", "--force"
    )
    rbd = UNPACKED / "usr/bin/rbd"
    environment = {"CEPH_CONF": made.conf, "LD_LIBRARY_PATH": f"{LIBRARIES}:{LIBRARIES}/ceph"}

    def load(source: Path) -> Callable[[], None]:
        return lambda: run(rbd, "import", "--no-progress", source, "disks/copy", **environment)

    def convert(source: Path) -> Callable[[], None]:
        return lambda: run(
            "qemu-img", "convert", "-O", "raw", source, f"rbd:disks/copy:id=admin:conf={made.conf}"
        )

    def remove() -> None:
        run(rbd, "rm", "--no-progress", "disks/copy", **environment)

    compare(cluster, "disks", "raw, Ceph", raw, [], "rbd import", load(raw), remove)
    compare(cluster, "disks", "qcow2, Ceph", qcow2, [], "qemu-img convert", convert(qcow2), remove)


def compare(
    cluster: Cluster,
    pool: str,
    what: str,
    file: Path,
    options: list[str],
    other: str,
    do: Callable[[], Any],
    undo: Callable[[], Any],
) -> None:
    ours, theirs, most = [], [], 0
    for _ in range(ROUNDS):
        theirs.append(timed(do))
        undo()
        with watched() as memory:
            ours.append(
                timed(lambda: cluster.pvc("storage", "volume", "upload", pool, "web1", str(file), *options))
            )
        most = max(most, memory[0])
        cluster.pvc("storage", "volume", "remove", pool, "web1", "--yes")
    best, reference = min(ours), min(theirs)
    print(
        f"{what:18} upload {best:6.2f} s, {SIZE_MIB / best:5.0f} MiB/s; {other} {reference:6.2f} s; "
        f"ratio {best / reference:4.1f}; {most} MiB more memory",
        flush=True,
    )


if __name__ == "__main__":
    main()
