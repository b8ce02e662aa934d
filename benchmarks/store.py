"""What the store costs with 10, 1,000 and 10,000 VMs: python3 -m benchmarks.store

A real ZooKeeper server on loopback, with the disk synchronised as in production.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pvc.cluster.mirror import Follow, Mirror
from pvc.cluster.store import Check, Create, Put
from pvc.cluster.zookeeper import ZooKeeperStore
from tests.zookeeper import zookeeper

SIZES = (10, 1_000, 10_000)
DOCUMENT = b"x" * 600
ROWS = (
    "read all, one by one",
    "read all, pipelined",
    "mirror: first sync",
    "mirror: sync after one change",
    "mirror: sync after one new VM",
    "mirror: read all",
    "read one VM",
    "commit one document",
    "commit two documents and a check",
)


def seconds(action: Callable[[], object], times: int = 1) -> float:
    """The median of that many runs."""
    taken = []
    for _ in range(times):
        start = time.monotonic()
        action()
        taken.append(time.monotonic() - start)
    return statistics.median(taken)


def expand(path: str, names: tuple[str, ...]) -> Iterable[Follow]:
    return [Follow(f"{path}/{name}{below}") for name in names for below in ("", "/status")]


def vm(root: str, number: int) -> tuple[Create, Create]:
    path = f"{root}/00000000-0000-4000-8000-{number:012}"
    return Create(path, DOCUMENT), Create(f"{path}/status", DOCUMENT)


def measure(store: ZooKeeperStore, count: int) -> list[float]:
    root = f"/vms{count}"
    store.commit(Create(root))
    for start in range(0, count, 400):
        many = [vm(root, number) for number in range(start, min(start + 400, count))]
        store.commit(*(op for pair in many for op in pair))
    paths = [f"{root}/{name}{below}" for name in store.children(root) for below in ("", "/status")]
    mirror = Mirror(store, [Follow(root, True)], expand, lambda: None)
    first = seconds(mirror.sync)

    def sync_after(*ops: Create | Put) -> float:
        store.commit(*ops)
        while not mirror.stale:  # until the watch fires
            store.get(root)
        return seconds(mirror.sync)

    def one_by_one() -> None:
        for path in paths:
            store.get(path)

    return [
        seconds(one_by_one),
        seconds(lambda: store.get_many(paths), 3),
        first,
        statistics.median(sync_after(Put(paths[0], DOCUMENT)) for _ in range(20)),
        statistics.median(sync_after(*vm(root, count + number)) for number in range(5)),
        seconds(lambda: mirror.get_many(paths), 3),
        seconds(lambda: store.get_many(paths[:2]), 50),
        seconds(lambda: store.commit(Put(paths[0], DOCUMENT)), 50),
        seconds(lambda: store.commit(*(Put(path, DOCUMENT) for path in paths[:2]), Check(root, 0)), 50),
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, zookeeper(Path(directory), force_sync=True) as ensemble:
        store = ZooKeeperStore(ensemble.addresses, secret="benchmark")
        store.connect(10.0)
        measure(store, 100)  # warms the server
        columns = [measure(store, count) for count in SIZES]
        store.close()
    print(f"{'milliseconds':36}" + "".join(f"{count:>10,} VMs" for count in SIZES) + f"{'last/first':>12}")
    for row, *figures in zip(ROWS, *columns, strict=True):
        print(
            f"{row:36}"
            + "".join(f"{figure * 1000:14.2f}" for figure in figures)
            + f"{figures[-1] / figures[0]:11.1f}×"
        )
    pipelined, single = columns[-1][1], columns[-1][0]
    print(f"\npipelined against one by one, {SIZES[-1]:,} VMs: {single / pipelined:.1f}× faster")


if __name__ == "__main__":
    main()
