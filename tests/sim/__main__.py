"""Simulate histories and say which broke a rule. PVC_SIM_SEED=SEED replays one, with its log."""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice

from tests.sim.speed import hastened
from tests.sim.world import Mutant, Violation, World

BATCH = 20
REPORT_S = 15.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, metavar="N", help="how many histories")
    parser.add_argument("--start", metavar="S", default="0", help="the first seed, or `random`")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="J", help="processes")
    parser.add_argument("--within", type=float, default=None, metavar="SECONDS", help="begin none later")
    parser.add_argument("--replay", type=int, metavar="SEED", help="one history, with its log")
    given = parser.parse_args(argv)
    logging.disable()
    if "PVC_SIM_SEED" in os.environ:
        return replay(int(os.environ["PVC_SIM_SEED"]))
    if given.replay is not None:
        return replay(given.replay)
    start = random.SystemRandom().randrange(10**9) if given.start == "random" else int(given.start)
    found = search(range(start, start + given.seeds), given.jobs or 1, given.within)
    print(found.summary(), flush=True)
    return 1 if found.failed else 130 if found.is_interrupted else 0


def replay(seed: int) -> int:
    world = World(seed, Mutant(), keep_log=True)
    try:
        world.run()
    except Violation as violation:
        print(*world.log, violation, sep="\n")
        if violation.__cause__ is not None:
            raise violation.__cause__ from None
        return 1
    print(*world.log, f"seed {seed} keeps every rule (fingerprint {world.fingerprint:08x})", sep="\n")
    return 0


@dataclass
class Found:
    """What a search has come to so far."""

    seeds: range
    begun: float = field(default_factory=time.monotonic)
    done: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    is_interrupted: bool = False

    def add(self, seeds: Sequence[int], violations: Sequence[tuple[int, str]]) -> None:
        self.done += len(seeds)
        for seed, why in violations:
            self.failed[seed] = why
            print(f"FAILED {why}\n  replay: ./build.py sim --replay {seed}", flush=True)

    def summary(self) -> str:
        seconds = time.monotonic() - self.begun
        rest = f"; interrupted, go on with --start {self.seeds.start + self.done}"
        which = f": {' '.join(map(str, sorted(self.failed)))}" if self.failed else ""
        return (
            f"{self.done} of {len(self.seeds)} histories from seed {self.seeds.start} in {seconds:.1f} s, "
            f"{self.done / seconds:.1f}/s, {len(self.failed)} failed{which}"
            f"{rest if self.is_interrupted else ''}"
        )


def search(seeds: range, jobs: int, within: float | None = None) -> Found:
    """Histories in that many processes; an interruption, or the end of the time, ends it early."""
    found = Found(seeds)
    batches = iter([seeds[at : at + BATCH] for at in range(0, len(seeds), BATCH)])
    until = None if within is None else found.begun + within
    pool = ProcessPoolExecutor(jobs, initializer=_ignore_interrupts)
    try:
        for batch, future in _carried_out(pool, batches, jobs, until, found):
            found.add(batch, future.result())
    except (KeyboardInterrupt, BrokenProcessPool) as error:
        found.is_interrupted = True
        print(f"interrupted: {str(error) or 'by a signal'}", flush=True)
        for process in pool._processes.values():
            process.terminate()
    finally:
        pool.shutdown(wait=not found.is_interrupted, cancel_futures=True)
    return found


def _carried_out(
    pool: ProcessPoolExecutor, batches: Iterator[range], jobs: int, until: float | None, found: Found
) -> Iterator[tuple[range, Future[list[tuple[int, str]]]]]:
    """In the order in which they were begun, so that an interruption leaves no gap; never many at once."""
    waiting = [(batch, pool.submit(simulate_all, batch)) for batch in islice(batches, 2 * jobs)]
    reported = found.begun
    while waiting:
        wait([waiting[0][1]], REPORT_S, FIRST_COMPLETED)
        now = time.monotonic()
        if now > reported + REPORT_S:
            reported = now
            print(f"  {found.summary()}", flush=True)
        if not waiting[0][1].done():
            continue
        yield waiting.pop(0)
        if until is None or now < until:
            waiting += [(batch, pool.submit(simulate_all, batch)) for batch in islice(batches, 1)]


def _ignore_interrupts() -> None:
    """The one who began them ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def simulate_all(seeds: Sequence[int]) -> list[tuple[int, str]]:
    """What broke, by seed."""
    logging.disable()
    broken = []
    with hastened():
        for seed in seeds:
            try:
                World(seed).run()
            except Violation as violation:
                broken.append((seed, str(violation)))
    return broken


if __name__ == "__main__":
    sys.exit(main())
