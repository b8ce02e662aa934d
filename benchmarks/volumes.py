"""A list of many volumes in Ceph, and one of them, against `rbd ls -l` and `rbd info` on the same Ceph.

python -m benchmarks.volumes [--volumes 1000]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pvc.cluster.storage import Format
from pvc.node.drivers import ceph as client
from pvc.node.drivers.rbd import RBDPool
from tests.ceph import ceph

ROUNDS = 7
SIZE_BYTES = 10 * 1024**3


def median_ms(do: Callable[[], object]) -> float:
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        do()
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken)


def compared(what: str, ours: Callable[[], object], words: str, theirs: Callable[[], object]) -> None:
    """Turn and turn about, so that both meet the same machine."""
    pairs = [(median_ms(ours), median_ms(theirs)) for _ in range(3)]
    mine, other = (statistics.median(pair[place] for pair in pairs) for place in (0, 1))
    print(f"  {what:<28} {mine:8.1f} ms   {words:<12} {other:8.1f} ms   {other / mine:5.1f} times as long")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=1000)
    count = parser.parse_args().volumes
    with tempfile.TemporaryDirectory() as root, ceph(Path(root)) as cluster:
        cluster.add_pool("vms")
        pool = RBDPool("vms", client.Ceph(cluster.conf, "admin"))
        began = time.perf_counter()
        with ThreadPoolExecutor(4) as many:
            list(many.map(lambda n: pool.add(f"v{n:04}", SIZE_BYTES, Format.RAW, f"t{n}"), range(count)))
        print(f"{count} volumes made in {time.perf_counter() - began:.1f} s; {ROUNDS} rounds, medians")
        assert len(pool.volumes()) == count

        def rbd(*words: str) -> None:
            cluster.run("rbd", "--id", "admin", "--pool", "vms", *words)

        compared("all, with their sizes", pool.volumes, "rbd ls -l", lambda: rbd("ls", "-l"))
        compared("one, with what it uses", lambda: pool.volume("v0001"), "rbd du", lambda: rbd("du", "v0001"))
        compared("who has it open", lambda: pool.users("v0001"), "rbd status", lambda: rbd("status", "v0001"))


if __name__ == "__main__":
    main()
