"""Thousands of lines of log per second tell nothing; a seed replayed by `./build.py sim` says all."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.sim.speed import hastened


@pytest.fixture(autouse=True)
def _quick_and_quiet() -> Iterator[None]:
    logging.disable()
    try:
        with hastened():
            yield
    finally:
        logging.disable(logging.NOTSET)
