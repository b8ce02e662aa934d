"""One real cluster of three nodes on this machine, for every test of this layer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import dying
from tests.lab.labs import CEPH, DIRECTORY, PVC, RunningLab, run_lab
from tests.lab.vms import Cluster


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[RunningLab]:
    """A test that breaks it repairs it (lab.repair()).

    In maintenance, so that what a test switches off stays off, except where `armed` is asked for. Another
    number of nodes is asked for with parametrize("lab", [5], indirect=True), Ceph with `with_ceph` (labs.py).
    """
    assert PVC.exists(), "dist/pvc is missing: ./build.py zipapp"
    run_lab(DIRECTORY, "down")
    asked = getattr(request, "param", 3)
    run_lab(DIRECTORY, "up", *(["--ceph"] if asked == CEPH else ["--nodes", str(asked)]))
    try:
        running = RunningLab(DIRECTORY)
        running.run("n1", "pvc", "cluster", "maintenance", "on")
        yield running
    finally:
        run_lab(DIRECTORY, "down")


@pytest.fixture
def armed(lab: RunningLab) -> Iterator[Cluster]:
    """Its cluster with fencing armed, as it is in every cluster that is not in maintenance."""
    with dying.armed(lab) as cluster:
        yield cluster
