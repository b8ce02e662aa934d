"""`./build.py lab`, as a newcomer runs it, and again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.labs import DIRECTORY, ROOT, run_lab

ELSEWHERE = DIRECTORY.with_name(f"{DIRECTORY.name}-demo")


@pytest.fixture
def directory() -> Iterator[Path]:
    run_lab(ELSEWHERE, "down")
    yield ELSEWHERE
    run_lab(ELSEWHERE, "down")


def build_lab(directory: Path) -> str:
    argv = [sys.executable, str(ROOT / "build.py"), "lab"]
    env = {**os.environ, "PVC_LAB_DIR": str(directory)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    return done.stdout


def test_the_main_job_once_and_again(directory: Path) -> None:
    first = build_lab(directory)
    assert "pvc vm create demo" in first
    assert "pvc vm migrate demo" in first
    assert re.search(r"a VM at work after [\d.]+ s, moved while it ran", first)
    assert "Type next" in first
    second = build_lab(directory)
    assert "pvc vm create demo" not in second
    assert "pvc vm unmigrate demo" in second
    assert re.search(r"a VM at work after [\d.]+ s, moved while it ran", second)
