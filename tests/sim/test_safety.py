"""Random histories: whatever fails, no VM runs twice and nothing that was asked for is lost."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sim.__main__ import search
from tests.sim.ceph import SEEDS as CEPH
from tests.sim.world import simulate

FRESH = 2000
WITHIN_S = 50.0
"""On a slow machine there are fewer of them: `./build.py sim --seeds 1000000` takes its time."""


def known_seeds() -> Iterator[int]:
    text = Path(__file__).with_name("seeds.txt").read_text()
    for line in text.splitlines():
        seed = line.partition("#")[0].strip()
        if seed:
            yield int(seed)


@pytest.mark.parametrize("seed", list(known_seeds()))
def test_history_that_once_went_wrong(seed: int) -> None:
    simulate(seed)


@pytest.mark.parametrize("first", [0, CEPH], ids=["", "with Ceph"])
def test_fresh_histories(first: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Others with every run: what fails names its seed, and is replayed by `./build.py sim --replay SEED`."""
    start = first + random.SystemRandom().randrange(CEPH - FRESH)
    found = search(range(start, start + FRESH), os.cpu_count() or 1, WITHIN_S)
    with capfd.disabled():
        print(f"\n  {found.summary()}")
    assert not found.failed, "\n".join(found.failed.values())
    assert found.done, f"none within {WITHIN_S:g} s"


def test_seed_decides_everything() -> None:
    assert simulate(7).fingerprint == simulate(7).fingerprint
