"""Random histories: whatever fails, no VM runs twice and nothing that was asked for is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sim.world import simulate

BLOCKS, BLOCK = 6, 25
"""`build.py test` runs thousands more, in parallel: python -m tests.sim."""


def known_seeds() -> Iterator[int]:
    text = Path(__file__).with_name("seeds.txt").read_text()
    for line in text.splitlines():
        seed = line.partition("#")[0].strip()
        if seed:
            yield int(seed)


@pytest.mark.parametrize("seed", list(known_seeds()))
def test_history_that_once_went_wrong(seed: int) -> None:
    simulate(seed)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_histories(block: int) -> None:
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        simulate(seed)


def test_seed_decides_everything() -> None:
    assert simulate(7).fingerprint == simulate(7).fingerprint
