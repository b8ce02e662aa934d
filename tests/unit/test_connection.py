"""The clusters a user knows: the file, its keys, and which one is chosen."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from pvc.__main__ import main
from pvc.commands import connection
from pvc.errors import Invalid, NotFound
from pvc.http.client import HttpTransport

KEY = "pvc_Admin-KEY_" + "aB" * 32


@pytest.fixture(autouse=True)
def _own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVC_CLIENT_DIR", str(tmp_path / "client"))
    monkeypatch.setenv("PVC_CONFIG", str(tmp_path / "pvc.toml"))
    for name in ("PVC_CONNECTION", "PVC_UNSAFE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())


def pvc(*argv: str) -> int:
    return main(list(argv))


def add(name: str = "prod", *more: str) -> None:
    assert pvc("connection", "add", name, "-a", "203.0.113.1", "-k", KEY, *more) == 0


def on_a_node(tmp_path: Path) -> None:
    (tmp_path / "pvc.toml").write_text(f'[api]\nsocket = "{tmp_path}/api.sock"\n')


def picked(name: str = "") -> HttpTransport:
    found = connection.pick(name)
    assert isinstance(found, HttpTransport)
    return found


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    capsys.readouterr()
    assert pvc("connection", *argv, "-f", "json") == 0
    return json.loads(capsys.readouterr().out)


def test_file_is_the_owners_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        add()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "client/pvc.json").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "client").iterdir()] == ["pvc.json"]


def test_keys_are_shown_only_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    add()
    assert KEY not in capsys.readouterr().out
    (row,) = shown(capsys, "list")
    assert not set(row["key"]) - {"*"}
    (row,) = shown(capsys, "list", "-k")
    assert row["key"] == KEY
    assert KEY not in repr(connection.load())


def test_tls_is_the_default_but_on_this_machine() -> None:
    add("far")
    add("plain", "-S", "-p", "80")
    assert pvc("connection", "add", "near", "-a", "localhost", "-k", KEY) == 0
    assert pvc("connection", "add", "six", "-a", "2001:db8::1", "-k", KEY, "-s") == 0
    addresses = {name: found.address for name, found in connection.load().connections.items()}
    assert addresses == {
        "far": "https://203.0.113.1:7370",
        "plain": "http://203.0.113.1:80",
        "near": "http://localhost:7370",
        "six": "https://[2001:db8::1]:7370",
    }


def test_key_comes_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{KEY}\n"))
    assert pvc("connection", "add", "prod", "-a", "203.0.113.1") == 0
    assert connection.load().connections["prod"].key == KEY


def test_each_key_goes_to_its_own_cluster() -> None:
    add("one")
    assert pvc("connection", "add", "two", "-a", "203.0.113.2", "-k", "pvc_two_x") == 0
    assert (picked("one").key, picked("two").key) == (KEY, "pvc_two_x")
    assert picked("two").address == "https://203.0.113.2:7370"


BAD = [
    ("no key", ["add", "a", "-a", "h"], 2),
    ("empty key", ["add", "a", "-a", "h", "-k", ""], 2),
    ("key of two lines", ["add", "a", "-a", "h", "-k", "a\r\nX: y"], 2),
    ("reserved", ["add", "local", "-a", "h", "-k", "k"], 2),
    ("name", ["add", "a b", "-a", "h", "-k", "k"], 2),
    ("path as name", ["add", "../a", "-a", "h", "-k", "k"], 2),
    ("host", ["add", "a", "-a", "h/../x", "-k", "k"], 2),
    ("user in host", ["add", "a", "-a", "u@h", "-k", "k"], 2),
    ("no host", ["add", "a", "-k", "k"], 2),
    ("port", ["add", "a", "-a", "h", "-p", "0", "-k", "k"], 2),
    ("port too", ["add", "a", "-a", "h", "-p", "65536", "-k", "k"], 2),
    ("certificate", ["add", "a", "-a", "h", "-k", "k", "--ca", "/dev/null"], 0),
    ("no certificate", ["add", "a", "-a", "h", "-k", "k", "--ca", "/nonexistent"], 3),
    ("unknown", ["remove", "a", "-y"], 3),
    ("remove unasked", ["remove", "a"], 2),
    ("default", ["default", "a"], 3),
    ("default local elsewhere", ["default", "local"], 3),
]


@pytest.mark.parametrize(("argv", "code"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input(argv: list[str], code: int) -> None:
    assert pvc("connection", *argv) == code
    assert (not connection.load().connections) == (code != 0)


def test_file_of_ca_must_be_a_certificate(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    assert pvc("connection", "add", "a", "-a", "h", "-k", "k", "--ca", str(tmp_path / "ca.pem")) == 2


def test_which_is_chosen(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no cluster is known"):
        connection.pick()
    add("one")
    assert picked().address == "https://203.0.113.1:7370"
    add("two", "-p", "1")
    assert picked().address.endswith(":7370")  # the first one is the default
    assert pvc("connection", "default", "two") == 0
    assert picked().address.endswith(":1")
    assert picked("one").address.endswith(":7370")
    assert pvc("connection", "remove", "two", "-y") == 0
    assert picked().address.endswith(":7370")  # the only one
    with pytest.raises(NotFound, match="no connection two"):
        connection.pick("two")
    add("two")
    with pytest.raises(Invalid, match="which cluster"):
        connection.pick()


def test_node_talks_to_its_own_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    on_a_node(tmp_path)
    assert picked().address == f"{tmp_path}/api.sock"
    assert picked("local").key == ""
    add("other")
    assert pvc("connection", "default", "local") == 0
    assert picked().address == f"{tmp_path}/api.sock"
    assert [(row["name"], row["default"]) for row in shown(capsys, "list")] == [
        ("local", True),
        ("other", False),
    ]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"connections": {"a": {"hots": "x"}}}', '{"connections": 1}']
)
def test_damaged_file_is_named_and_not_overwritten(tmp_path: Path, text: str) -> None:
    (tmp_path / "client").mkdir()
    file = tmp_path / "client/pvc.json"
    file.write_text(text)
    assert pvc("connection", "list") == 2
    assert pvc("connection", "add", "prod", "-a", "h", "-k", "k") == 2
    assert file.read_text() == text


def test_list_of_nothing_is_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "list") == []
    assert shown(capsys, "detail") == []
