"""What systemd is told, and that a systemd that does not listen stops nobody."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pvc.systemd import notify


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(tmp_path / "notify"))
    sock.settimeout(5)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return sock


def test_states_arrive_in_one_message(listener: socket.socket) -> None:
    assert notify("READY=1", "STATUS=serving")
    assert listener.recv(4096) == b"READY=1\nSTATUS=serving"
    listener.close()


def test_listener_that_reads_nothing_does_not_block(listener: socket.socket) -> None:
    assert not all(notify("WATCHDOG=1") for _ in range(10_000))
    listener.close()


def test_without_systemd_nothing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify("READY=1")
