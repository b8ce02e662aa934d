"""The rules of tests/conftest.py hold: a skip fails, and a unit test that leaves its process fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def outcome(tmp_path: Path, body: str, layer: str = "unit") -> str:
    """Last lines of a pytest that runs `body` in a tree with our configuration."""
    directory = tmp_path / "tests" / layer
    directory.mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "tests/conftest.py", tmp_path / "tests")
    (directory / "test_it.py").write_text(f"import pytest, socket, subprocess\n{body}\n")
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(directory)]
    return subprocess.run(
        argv, cwd=tmp_path, capture_output=True, text=True, check=False
    ).stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("def test(): pytest.skip('no time')", "1 failed"),
        ("def test(): pytest.skip('kernel lacks vxlan')", "1 skipped"),
        ("@pytest.mark.skip(reason='no')\ndef test(): pass", "1 error"),
        ("@pytest.mark.xfail\ndef test(): assert False", "1 failed"),
        ("pytest.skip('no', allow_module_level=True)", "1 error"),
        ("pytest.importorskip('nothing_of_that_name')", "1 error"),
        ("def test(): subprocess.run(['true'])", "1 failed"),
        ("def test(): socket.create_connection(('127.0.0.1', 9))", "1 failed"),
        ("@pytest.mark.processes\ndef test(): subprocess.run(['true'])", "1 passed"),
    ],
)
def test_unit_tests_are_held_to_the_rules(tmp_path: Path, body: str, expected: str) -> None:
    assert outcome(tmp_path, body).startswith(expected)


def test_higher_layers_may_start_processes(tmp_path: Path) -> None:
    assert outcome(tmp_path, "def test(): subprocess.run(['true'])", "integration").startswith("1 passed")
