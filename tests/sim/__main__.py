"""python -m tests.sim --seeds N --start S simulates histories; PVC_SIM_SEED=… replays one with its log."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.sim.world import Mutant, Violation, World

BATCH = 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, metavar="N", help="how many histories")
    parser.add_argument("--start", type=int, default=0, metavar="S", help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="J", help="processes")
    given = parser.parse_args()
    logging.disable()
    if "PVC_SIM_SEED" in os.environ:
        return replay(int(os.environ["PVC_SIM_SEED"]))
    return many(range(given.start, given.start + given.seeds), given.jobs)


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


def many(seeds: range, jobs: int) -> int:
    begun = time.monotonic()
    failed: list[int] = []
    with ProcessPoolExecutor(jobs) as pool:
        batches = [list(seeds[at : at + BATCH]) for at in range(0, len(seeds), BATCH)]
        for violations in pool.map(batch, batches):
            for seed, why in violations:
                failed.append(seed)
                print(f"FAILED {why}\n  replay: PVC_SIM_SEED={seed} python -m tests.sim", flush=True)
    seconds = time.monotonic() - begun
    print(
        f"{len(seeds)} histories from seed {seeds.start} in {seconds:.1f} s, {len(seeds) / seconds:.1f}/s, "
        f"{len(failed)} failed{': ' + ' '.join(map(str, failed)) if failed else ''}"
    )
    return 1 if failed else 0


def batch(seeds: list[int]) -> list[tuple[int, str]]:
    logging.disable()
    found = []
    for seed in seeds:
        try:
            World(seed).run()
        except Violation as violation:
            found.append((seed, str(violation)))
    return found


if __name__ == "__main__":
    sys.exit(main())
