"""One real cluster of three nodes on this machine, for every test of this layer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.labs import DIRECTORY, PVC, RunningLab, run_lab


@pytest.fixture(scope="session")
def lab() -> Iterator[RunningLab]:
    """A test that breaks it repairs it (lab.repair())."""
    assert PVC.exists(), "dist/pvc is missing: ./build.py zipapp"
    run_lab(DIRECTORY, "down")
    run_lab(DIRECTORY, "up", "--nodes", "3")
    try:
        yield RunningLab(DIRECTORY)
    finally:
        run_lab(DIRECTORY, "down")
