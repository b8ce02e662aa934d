"""dist/pvc, the one file: reproducible, whole, and at home wherever it is copied."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PVC = ROOT / "dist/pvc"
LOCK = ROOT / "requirements.lock"
NOBODY = 65534
SOURCES = ("build.py", "pyproject.toml", "requirements.lock", "requirements-dev.lock")


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    assert PVC.exists(), "dist/pvc is missing: ./build.py zipapp"


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty directory that anybody may write to; where a program that leaves files would leave them."""
    directory = tmp_path_factory.mktemp("home")
    for path in (directory, *directory.parents[:2]):
        path.chmod(path.stat().st_mode | 0o011)
    directory.chmod(0o777)
    return directory


def run(
    argv: Sequence[str | Path], cwd: Path, env: Mapping[str, str] | None = None, user: int | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        env=dict(env or {}),
        user=user,
        group=user,
        capture_output=True,
        text=True,
        check=False,
    )


def copy_tree(target: Path) -> Path:
    """A tree to build from, with the tools of this one."""
    (target / "build").mkdir(parents=True)
    for name in SOURCES:
        shutil.copy(ROOT / name, target)
    shutil.copytree(ROOT / "pvc", target / "pvc", ignore=shutil.ignore_patterns("__pycache__"))
    (target / "build/venv").symlink_to(ROOT / "build/venv")
    return target


def build(tree: Path, umask: int, seed: str) -> bytes:
    env = {**os.environ, "PYTHONHASHSEED": seed}
    argv = [sys.executable, str(tree / "build.py"), "zipapp"]
    done = subprocess.run(argv, env=env, umask=umask, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return (tree / "dist/pvc").read_bytes()


def test_two_builds_are_the_same_to_the_byte(tmp_path: Path) -> None:
    first = build(copy_tree(tmp_path / "a"), 0o022, "1")
    second = build(copy_tree(tmp_path / "another/place"), 0o077, "2")
    assert first == second
    names = set(zipfile.ZipFile(tmp_path / "a/dist/pvc").namelist())
    assert names == set(zipfile.ZipFile(PVC).namelist()), "dist/pvc is not of this tree: ./build.py zipapp"


def test_a_second_build_does_nothing_and_a_change_builds_again(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    build(tree, 0o022, "0")
    before = (tree / "dist/pvc").stat().st_mtime_ns
    build(tree, 0o022, "0")
    assert (tree / "dist/pvc").stat().st_mtime_ns == before
    with (tree / "pvc/__init__.py").open("a") as file:
        file.write("\n# changed\n")
    build(tree, 0o022, "0")
    assert (tree / "dist/pvc").stat().st_mtime_ns != before


def test_a_build_that_failed_leaves_the_old_file(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    good = build(tree, 0o022, "0")
    (tree / "pvc/__main__.py").write_text("raise SystemExit('does not even start')\n")
    argv = [sys.executable, str(tree / "build.py"), "zipapp"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "does not even start" in done.stderr
    assert (tree / "dist/pvc").read_bytes() == good


def test_compiled_code_is_refused(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT))
    import build as builder

    (tmp_path / "package").mkdir()
    (tmp_path / "package/fast.cpython-311-x86_64-linux-gnu.so").touch()
    with pytest.raises(builder.BuildError, match=r"only pure Python.*package/fast"):
        builder.normalise(tmp_path)


def test_shebang_mode_and_contents() -> None:
    assert PVC.read_bytes().startswith(b"#!/usr/bin/python3 -I\n")
    assert stat.S_IMODE(PVC.stat().st_mode) == 0o755
    entries = zipfile.ZipFile(PVC).infolist()
    names = [entry.filename for entry in entries]
    assert names == sorted(names)
    assert len({entry.date_time for entry in entries}) == 1
    assert {entry.external_attr >> 16 for entry in entries} == {0o100644}
    assert not [name for name in names if name.endswith(".so") or name.startswith("_bootstrap/")]
    sources = [name for name in names if name.startswith("site-packages/pvc/") and name.endswith(".py")]
    assert sources
    assert not [name for name in sources if f"{name}c" not in names], "a module is not compiled"


def test_shiv_can_read_it() -> None:
    info = run([ROOT / "build/venv/bin/shiv-info", "--json", PVC], ROOT, {"LANG": "C.UTF-8"})
    assert info.returncode == 0, info.stderr
    assert json.loads(info.stdout)["entry_point"] == "pvc.__main__:main"


def test_version_names_commit_and_bundled_packages(home: Path) -> None:
    said = run([PVC, "--version", "--verbose"], home).stdout
    pins = dict(re.findall(r"^(\S+)==(\S+)", LOCK.read_text(), re.MULTILINE))
    assert set(pins) >= {"kazoo", "bottle", "waitress", "pyroute2"}
    for name, version in pins.items():
        assert f"{name} {version}" in said
    assert re.search(r"[0-9a-f]{40}|unknown", said)


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("vm", "list", "--help")], ids=" ".join)
@pytest.mark.parametrize("user", [None, NOBODY], ids=["root", "nobody"])
def test_a_copy_works_anywhere_and_writes_nothing(
    home: Path, arguments: tuple[str, ...], user: int | None
) -> None:
    """In an empty directory, with an empty environment, as anybody, and next to nothing."""
    place = home.parent / f"copy{os.getpid()}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o755)
    copy = Path(shutil.copy(PVC, place))
    done = run([copy, *arguments], home, {}, user)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(("pvc", "usage"))
    in_home = run([copy, *arguments], home, {"HOME": str(home), "TMPDIR": str(home)}, user)
    assert in_home.stdout == done.stdout
    assert list(home.iterdir()) == []
    assert list(place.iterdir()) == [copy]


def test_nothing_of_the_user_is_imported(home: Path) -> None:
    """Root may run it in a directory, and with an environment, that somebody else prepared."""
    trap = "open('/dev/stdout', 'w').write('planted\\n')\n"
    for name in ("kazoo.py", "json.py", "sitecustomize.py", "usercustomize.py"):
        (home / name).write_text(trap)
    (home / "pvc").mkdir()
    (home / "pvc/__init__.py").write_text(trap)
    environment = {
        "PYTHONPATH": str(home),
        "PYTHONSTARTUP": str(home / "kazoo.py"),
        "HOME": str(home),
        "SHIV_ROOT": str(home),
        "SHIV_ENTRY_POINT": "kazoo:main",
        "SHIV_INTERPRETER": "1",
    }
    done = run([PVC, "--version"], home, environment)
    assert done.returncode == 0
    assert "planted" not in done.stdout


FROM_THE_FILE = f"import sys; sys.path.insert(0, {str(PVC / 'site-packages')!r})\n"


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Debian's Python, as isolated as pvc is, with the file's own modules."""
    return run(["/usr/bin/python3", "-I", "-c", FROM_THE_FILE + code], cwd)


def test_bundled_packages_run_from_the_file_and_win_over_debians(home: Path) -> None:
    bundled = "bottle, kazoo.client, waitress, pyroute2"
    done = python(f"import {bundled}\nprint(*(module.__file__ for module in ({bundled})))", home)
    assert done.returncode == 0, done.stderr
    assert all(path.startswith(str(PVC)) and path.endswith(".pyc") for path in done.stdout.split())


def test_the_debian_module_of_libvirt_is_found(home: Path) -> None:
    assert int(python("import libvirt\nprint(libvirt.getVersion())", home).stdout) > 0


def test_a_traceback_shows_source_lines(home: Path) -> None:
    """Out of a zip file Python shows none by itself; a bug report without them is worth little."""
    code = (
        "from pvc import proc\nimport traceback\n"
        "try: proc.run(['false'])\nexcept Exception: traceback.print_exc()"
    )
    assert "raise CommandFailed(argv, result)" in python(code, home).stderr
