"""ruff and mypy have nothing to say, and the house rules that they cannot check hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
CHECKED = [name for name in ("pvc", "installer", "tests", "benchmarks", "build.py") if (ROOT / name).exists()]
PRODUCT = sorted([*(ROOT / "pvc").rglob("*.py"), *(ROOT / "installer").rglob("*.py"), ROOT / "build.py"])
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# Where anything that goes wrong becomes a sentence instead of the end of the process.
BOUNDARIES = {
    "pvc/__main__.py": "the program",
    "pvc/http/app.py": "a request",
    "pvc/http/serve.py": "a turn of the API server's mirror",
    "pvc/metadata/app.py": "a request of a guest",
    "pvc/node/process.py": "a cycle of the daemon",
    "pvc/node/peer.py": "a request of another node",
    "pvc/node/loop.py": "a round beside the daemon's own",
    "pvc/node/lanes.py": "an action of the daemon",
    "pvc/node/services.py": "one of several services",
    "pvc/node/tasks.py": "a task",
}

# A wait ends when its condition holds. These are the loops that look whether it does.
POLLING = ("build.py", "pvc/lab/up.py", "pvc/node/drivers/ceph_pools.py", "tests/support.py")

REGISTRIES = r"https?://(?:deb|security|pypi|files|registry)\."
"""Whose mirror is used is the business of the machine that builds."""


def lines_with(pattern: str, files: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if re.search(pattern, line)
    ]


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "--quiet"), ("ruff", "format", "--check", "--quiet"), ("mypy", "--strict")],
    ids=" ".join,
)
def test_tools(command: tuple[str, ...]) -> None:
    argv = [str(TOOLS / command[0]), *command[1:], *CHECKED]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr or f"{' '.join(command)}: files need formatting"


def test_nothing_sleeps_to_synchronise() -> None:
    found = lines_with(r"\btime\.sleep\(|from time import .*\bsleep\b", [*PRODUCT, *TESTS])
    assert not [line for line in found if not line.startswith(POLLING) and "test_style.py" not in line]


def broad_handlers(path: Path) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or {"Exception", "BaseException"} & names_in(node.type))
        and not reraises(node)
    ]


def names_in(node: ast.expr) -> set[str]:
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}


def reraises(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None


def test_broad_handlers_only_at_the_boundaries() -> None:
    found = {str(path.relative_to(ROOT)): lines for path in PRODUCT if (lines := broad_handlers(path))}
    assert not set(found) - set(BOUNDARIES), found


def test_no_patches_of_our_own_modules() -> None:
    found = lines_with(
        r"mock\.patch|(from|import) unittest\.mock|monkeypatch\.setattr\(\s*[\"']?pvc\b", TESTS
    )
    assert not [line for line in found if "test_style.py" not in line]


def project_files() -> list[Path]:
    """Every file of the project, whether the tree is a clone or a source archive."""
    places = (path for path in ROOT.iterdir() if path.name not in ("build", "dist"))
    kept = (path for path in places if not path.name.startswith(".") or path.name in (".ci", ".gitignore"))
    files = (file for place in kept for file in (place.rglob("*") if place.is_dir() else [place]))
    return [file for file in files if file.is_file() and "__pycache__" not in file.parts]


def test_no_registry_and_no_path_of_the_builder() -> None:
    files = [path for path in project_files() if path.name != "LICENSE"]
    assert not lines_with(f"{re.escape(str(ROOT))}\\b|{REGISTRIES}", files)


def test_nothing_is_left_for_later() -> None:
    found = lines_with(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", [*PRODUCT, *TESTS])
    assert not [line for line in found if "test_style.py" not in line]


def test_no_file_paths_of_modules_in_the_zip() -> None:
    """In the packaged file a module has no path; resources come through importlib.resources."""
    packaged = sorted((ROOT / "pvc").rglob("*.py"))
    assert not lines_with(r"\b__file__\b", packaged)
