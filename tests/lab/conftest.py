"""One real cluster of three nodes on this machine, for every test of this layer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.labs import DIRECTORY, PVC, RunningLab, run_lab


@pytest.fixture(scope="session")
def lab() -> Iterator[RunningLab]:
    """A test that breaks it repairs it (lab.repair()).

    In maintenance, so that what a test switches off stays off: only test_failover.py arms fencing.
    """
    assert PVC.exists(), "dist/pvc is missing: ./build.py zipapp"
    run_lab(DIRECTORY, "down")
    run_lab(DIRECTORY, "up", "--nodes", "3")
    try:
        running = RunningLab(DIRECTORY)
        running.run("n1", "pvc", "cluster", "maintenance", "on")
        yield running
    finally:
        run_lab(DIRECTORY, "down")
