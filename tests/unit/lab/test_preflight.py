"""Each thing a lab needs is named when it is missing, with the way to get it."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from pvc.errors import NotFound, NotPermitted, Unavailable
from pvc.lab import preflight


def test_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotPermitted, match="needs root"):
        preflight.need_root()


def test_missing_packages_are_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="systemd-container") as caught:
        preflight.need_commands(str(tmp_path))
    assert caught.value.hint == "apt-get install iproute2 mount openipmi procps systemd-container util-linux"


def test_no_image(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no node image") as caught:
        preflight.find_image(tmp_path / "node.sqfs")
    assert caught.value.hint == "./build.py image"


def test_image_is_the_file_behind_the_link(tmp_path: Path) -> None:
    (tmp_path / "node-1.sqfs").touch()
    (tmp_path / "node.sqfs").symlink_to("node-1.sqfs")
    assert preflight.find_image(tmp_path / "node.sqfs") == tmp_path / "node-1.sqfs"


def test_program_from_source_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "__main__.py"
    script.write_text("")
    with pytest.raises(Unavailable, match="runs from source") as caught:
        preflight.find_program(str(script))
    assert "./build.py zipapp" in caught.value.hint


def test_packed_program(tmp_path: Path) -> None:
    packed = tmp_path / "pvc"
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("__main__.py", "")
    assert preflight.find_program(str(packed)) == packed
