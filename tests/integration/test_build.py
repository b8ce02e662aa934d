"""build.py says what it would do, names what is missing, and survives being interrupted and doubled."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.integration.test_file import NOBODY, ROOT, copy_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = copy_tree(tmp_path / "tree")
    shutil.copytree(ROOT / "installer", tree / "installer", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "packaging").mkdir()
    shutil.copytree(ROOT / "packaging/systemd", tree / "packaging/systemd")
    return tree


def start(tree: Path, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    argv = [sys.executable, str(tree / "build.py"), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **(env or {})})


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out + err


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"build.py ended without saying {text!r}: {said}")


def without_pycache(tree: Path) -> set[Path]:
    return {path for path in tree.rglob("*") if "__pycache__" not in path.parts}


def test_help_names_every_verb(tree: Path) -> None:
    code, said = finish(start(tree, "--help"))
    assert code == 0
    for verb in ("lab", "test", "sim", "zipapp", "image", "docs", "lock", "clean"):
        assert re.search(rf"^  {verb} ", said, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("zipapp", "--fast"), ("zipapp", "--", "x"), ()], ids=str
)
def test_wrong_usage(tree: Path, arguments: tuple[str, ...]) -> None:
    code, said = finish(start(tree, *arguments))
    assert code == 2
    assert "usage: build.py" in said


@pytest.mark.parametrize("option", ["--plan", "--list"])
def test_plan_says_everything_and_does_nothing(tree: Path, option: str) -> None:
    before = without_pycache(tree)
    code, said = finish(start(tree, option, "test"))
    assert code == 0
    assert [line.split()[0] for line in said.splitlines()] == [
        "packages",
        "tools",
        "ceph",
        "zipapp",
        "image",
        "test",
    ]
    assert "build dist/pvc with bottle" in said
    assert without_pycache(tree) == before


def test_a_plan_names_the_packages_it_would_install(tree: Path) -> None:
    source = (tree / "build.py").read_text()
    (tree / "build.py").write_text(source.replace('"python3-venv"', '"python3-venv", "pvc-no-such-package"'))
    code, said = finish(start(tree, "--plan", "zipapp"))
    assert code == 0
    assert "apt-get install 1 packages: pvc-no-such-package" in said


def call(code: str, env: Mapping[str, str], user: int | None = None) -> str:
    """What the BuildError of this code says."""
    probe = f"import build\ntry: {code}\nexcept build.BuildError as error: print(error)"
    argv = [sys.executable, "-B", "-c", probe]
    done = subprocess.run(
        argv, cwd=ROOT, env=dict(env), user=user, capture_output=True, text=True, check=True
    )
    return done.stdout


INSTALL = "build.install_packages(['pvc-no-such-package'])"


def test_only_root_installs_packages_and_is_told_how(tmp_path: Path) -> None:
    """Run by Debian's Python: nobody may not enter wherever the developer's own is installed."""
    probe = f"import build\ntry: {INSTALL}\nexcept build.BuildError as error: print(error)"
    shutil.copy(ROOT / "build.py", tmp_path)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(path.stat().st_mode | 0o055)
    argv = ["/usr/bin/python3", "-B", "-c", probe]
    done = subprocess.run(argv, cwd=tmp_path, user=NOBODY, capture_output=True, text=True, check=True)
    assert "as root: apt-get install --no-install-recommends pvc-no-such-package" in done.stdout


def test_another_system_than_debian_is_named() -> None:
    assert "dpkg-query is missing" in call(INSTALL, {"PATH": "/nonexistent"})


def test_a_missing_command_is_named() -> None:
    assert "the command pvc-no-such-command is missing" in call(
        "build.run(['pvc-no-such-command'])", os.environ
    )


def test_a_failed_command_shows_what_it_said() -> None:
    said = call("build.run(['sh', '-c', 'echo the reason; exit 3'])", os.environ)
    assert "ended with code 3" in said
    assert "the reason" in said


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_and_run_again(tree: Path, how: signal.Signals) -> None:
    process = start(tree, "zipapp")
    read_until(process, "zipapp: build")
    process.send_signal(how)
    code, said = finish(process)
    assert not (tree / "dist/pvc").exists()
    if how is not signal.SIGKILL:
        assert code == 130
        assert "run it again" in said
    code, said = finish(start(tree, "zipapp"))
    assert code == 0, said
    assert (tree / "dist/pvc").exists()


def test_two_at_once_take_turns(tree: Path) -> None:
    first = start(tree, "zipapp")
    read_until(first, "zipapp: build")
    second = start(tree, "zipapp")
    code, said = finish(second)
    assert code == 0
    assert "another build.py works in this tree" in said
    assert "zipapp: nothing to do" in said
    assert finish(first)[0] == 0


def test_clean_removes_what_was_built(tree: Path) -> None:
    finish(start(tree, "zipapp"))
    assert finish(start(tree, "clean"))[0] == 0
    assert not (tree / "dist").exists()
    assert not (tree / "build").exists()
    assert (ROOT / "build/venv").exists(), "it followed a link out of the tree"
