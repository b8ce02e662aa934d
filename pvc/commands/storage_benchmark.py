"""Benchmarks of pools: what a VM can expect of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pvc.cluster import paths
from pvc.cluster.benchmark import BenchmarkDoc, Figure
from pvc.cluster.codec import loads
from pvc.cluster.store import Check
from pvc.commands import task, types
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.storage_pool import reaching
from pvc.commands.storage_transfer import Force
from pvc.commands.task import TaskInfo
from pvc.commands.types import PoolName, TaskName, VolumeSize
from pvc.errors import Conflict, NotFound

LEAST_BYTES = 64 * 1024**2
CLAIM = ".benchmark"
"""In place of a volume's name: one at a time, or they measure each other."""


@dataclass(frozen=True, slots=True)
class BenchmarkInfo:
    name: str
    pool: str
    driver: str
    node: str
    """Where it ran."""
    at: float
    seconds: int
    size_bytes: int
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class BenchmarkRow:
    name: str
    pool: str
    node: str
    asked_at: float
    read_bytes: int
    """A second, one after the other."""
    write_bytes: int
    read_iops: float
    """Of 4 KiB anywhere, many at once."""
    write_iops: float


@operation(
    "POST",
    "/storage/pool/{pool}/benchmark",
    noun="storage",
    verb="benchmark run",
    role=Role.OPERATE,
    confirm="Measure pool {pool}? VMs with disks there are slow meanwhile.",
    waits="task.info",
    done="pool {pool} is measured: pvc storage benchmark info {name}",
)
def run(
    ctx: Context,
    pool: PoolName,
    *,
    size: VolumeSize = "4G",
    seconds: Annotated[int, Arg("of each of the six patterns", metavar="N", minimum=1, maximum=600)] = 30,
    force: Force = False,
) -> TaskInfo:
    """Measure a pool with fio from one node: Ceph through librbd, as QEMU does, a directory by a file."""
    size_bytes = types.volume_bytes(size)
    if size_bytes < LEAST_BYTES:
        raise Conflict("less than 64 MiB say nothing of a pool", hint="--size 4G")
    found = ctx.view.pool(pool)
    if found.spec.leaving:
        raise Conflict(f"pool {pool} is being removed", hint="pvc task list")
    return task.begin(
        ctx,
        "storage.benchmark-run",
        f"measuring pool {pool}",
        reaching(ctx, found.spec)[0].spec.name,
        arguments={"pool": pool, "size_bytes": size_bytes, "seconds": seconds, "force": force},
        claims=[paths.pool_claim(pool, CLAIM)],
        ops=[Check(paths.pool(pool), found.spec_version)],
    )


@operation("GET", "/storage/benchmark/{benchmark}", noun="storage", verb="benchmark info")
def info(
    ctx: Context, benchmark: Annotated[TaskName, Arg("its name", metavar="BENCHMARK", complete="none")]
) -> BenchmarkInfo:
    """Show what a benchmark found."""
    found = _kept(ctx).get(benchmark)
    if found is None:
        raise NotFound(f"no benchmark {benchmark}", hint="pvc storage benchmark list")
    return BenchmarkInfo(
        benchmark,
        *(found.pool, found.driver, found.node, found.at, found.seconds, found.size_bytes, found.figures),
    )


@operation("GET", "/storage/benchmark", noun="storage", verb="benchmark list")
def list_(
    ctx: Context,
    *,
    pool: Annotated[types.PoolName, Arg("only those of that pool", short="-p")] | None = None,
) -> tuple[BenchmarkRow, ...]:
    """List the last 20 benchmarks, the newest first."""
    found = [(name, one) for name, one in _kept(ctx).items() if pool in (None, one.pool)]
    return tuple(_row(name, one) for name, one in sorted(found, key=lambda of: of[1].at, reverse=True))


def _row(name: str, doc: BenchmarkDoc) -> BenchmarkRow:
    of = {one.pattern: one for one in doc.figures}
    return BenchmarkRow(
        *(name, doc.pool, doc.node, doc.at),
        *(of["sequential read"].rate_bytes, of["sequential write"].rate_bytes),
        *(of["random read"].iops, of["random write"].iops),
    )


def _kept(ctx: Context) -> dict[str, BenchmarkDoc]:
    """From the store itself: so seldom looked at that no mirror keeps them."""
    if ctx.store.get(paths.BENCHMARKS) is None:
        return {}
    names = ctx.store.children(paths.BENCHMARKS)
    stored = ctx.store.get_many([paths.benchmark(name) for name in names])
    return {
        name: loads(BenchmarkDoc, one.data, one.path)
        for name, one in zip(names, stored, strict=True)
        if one is not None
    }
