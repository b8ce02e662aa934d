"""Measures a pool with fio, as a task: on a disk that is no volume and goes at the end."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pvc.cluster import benchmark, paths
from pvc.cluster.benchmark import PATTERNS, BenchmarkDoc, Figure, Pattern
from pvc.cluster.codec import dumps, loads, to_json
from pvc.cluster.store import Create, Delete, Op
from pvc.cluster.tasks import TaskSpec
from pvc.cluster.view import View
from pvc.errors import Failed
from pvc.node.drivers.storage import Scratch
from pvc.node.storage import Pools, Result, guard
from pvc.node.tasks import Progress, Work
from pvc.proc import WITH_US, start

LOOK_S = 0.5
END_S = 10.0
"""So long fio may take to end when it is told to: then nobody has the disk open any more."""
FILL = Pattern("filling it", "write", 4 * 1024**2, 16)
"""First: what was never written is read faster than any disk can."""


class Benchmark:
    """A Work."""

    def __init__(self, pools: Pools) -> None:
        self.pools = pools
        self.store = pools.store

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        asked = task.arguments
        pool = self.pools.open(asked["pool"])
        guard(asked["pool"], pool, asked["size_bytes"], force=asked["force"])
        spec = View(self.store).pool(asked["pool"]).spec
        doc = BenchmarkDoc(
            *(asked["pool"], str(spec.driver), task.node, task.at), asked["seconds"], asked["size_bytes"]
        )
        with pool.scratch(asked["size_bytes"], task.id) as scratch:
            _fio(scratch, FILL, asked["size_bytes"], 0, lambda done: progress(0, FILL.name))
            figures = tuple(
                self._measured(scratch, asked["size_bytes"], asked["seconds"], number, pattern, progress)
                for number, pattern in enumerate(PATTERNS)
            )
        doc = replace(doc, figures=figures)
        self._keep(task.id, doc)
        return {"benchmark": task.id, "figures": to_json(figures)}

    def _measured(
        self, scratch: Scratch, size: int, seconds: int, number: int, pattern: Pattern, progress: Progress
    ) -> Figure:
        def told(done: float) -> None:
            progress((number + done) / len(PATTERNS), pattern.name)

        return benchmark.figure(pattern, _fio(scratch, pattern, size, seconds, told))

    def _keep(self, identity: str, doc: BenchmarkDoc) -> None:
        names = self.store.children(paths.BENCHMARKS) if self.store.get(paths.BENCHMARKS) else None
        ops: list[Op] = [Create(paths.BENCHMARKS)] if names is None else []
        kept = self.store.get_many([paths.benchmark(name) for name in names or ()])
        known = {one.path: loads(BenchmarkDoc, one.data, one.path).at for one in kept if one is not None}
        ops += [Delete(path) for path in benchmark.outdated({**known, "": doc.at}) if path]
        self.store.commit(*ops, Create(paths.benchmark(identity), dumps(doc)))

    def undo(self, task: TaskSpec) -> None:
        self.pools.open(task.arguments["pool"]).discard(task.id)


def works(pools: Pools) -> dict[str, Work]:
    return {"storage.benchmark-run": Benchmark(pools)}


def _fio(
    scratch: Scratch, pattern: Pattern, size: int, seconds: int, told: Callable[[float], None]
) -> Mapping[str, Any]:
    """What fio says; with no seconds until all is written. Raises Failed, and what `told` raises."""
    with tempfile.TemporaryDirectory() as where:
        output, said = Path(where, "output"), Path(where, "said")
        timed = [f"--runtime={seconds}", "--time_based"] if seconds else []
        argv = [
            *(*WITH_US, "fio", "--name=pvc", "--output-format=json", f"--output={output}", "--thread"),
            *(f"--rw={pattern.kind}", f"--bs={pattern.block_bytes}", f"--iodepth={pattern.depth}"),
            *(f"--size={size}", "--randrepeat=0", "--norandommap", *timed, *scratch.options),
        ]
        process = start(argv, log_file=said, env=scratch.environment)
        try:
            _follow(process, seconds, told)
        finally:
            _end(process)
        if process.returncode != 0:
            words = said.read_text(errors="replace").strip().splitlines() or ["no word of it"]
            raise Failed(f"fio ended with code {process.returncode}: {words[-1]}")
        found = json.loads(output.read_text()[output.read_text().index("{") :])
        assert isinstance(found, dict)
        return found


def _follow(process: subprocess.Popen[bytes], seconds: int, told: Callable[[float], None]) -> None:
    began = time.monotonic()
    while process.poll() is None:
        told(min((time.monotonic() - began) / max(seconds, 1), 0.99))
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Not by force, if it can be: it is to let go of the disk."""
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
