"""systemd's notification and what the host says of itself: small drivers, tested with files of our own."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pvc.node.drivers import host, systemd
from pvc.node.drivers.hypervisor import Emulation
from pvc.proc import Completed
from pvc.systemd import notify

QEMU = """#!/bin/sh
exit {code}
"""


def fake_qemu(directory: Path, code: int) -> str:
    file = directory / "qemu"
    file.write_text(QEMU.format(code=code))
    file.chmod(0o755)
    return str(file)


@pytest.mark.sockets
@pytest.mark.parametrize("abstract", [False, True])
def test_notify_tells_systemd(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"@pvc-test-{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(5)
        receiver.bind("\0" + name[1:] if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1", "STATUS=in the cluster")
        assert receiver.recv(100) == b"READY=1\nSTATUS=in the cluster"


def test_notify_without_systemd_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify("READY=1")


@pytest.mark.processes
@pytest.mark.parametrize(
    ("code", "expected"), [(host.EXIT_CODE, Emulation.KVM), (0, Emulation.QEMU), (1, Emulation.QEMU)]
)
def test_kvm_counts_only_when_a_machine_boots_with_it(code: int, expected: Emulation, tmp_path: Path) -> None:
    cache = str(tmp_path / "run" / "emulation")
    assert host.emulation(fake_qemu(tmp_path, code), device="/dev/null", cache=cache) is expected
    # Remembered: the other answer would be found now.
    other = fake_qemu(tmp_path, 0 if code else host.EXIT_CODE)
    assert host.emulation(other, device="/dev/null", cache=cache) is expected


@pytest.mark.processes
def test_without_the_device_nothing_is_tried_nor_remembered(tmp_path: Path) -> None:
    qemu, cache = fake_qemu(tmp_path, host.EXIT_CODE), tmp_path / "emulation"
    assert host.emulation(qemu, device=str(tmp_path / "kvm"), cache=str(cache)) is Emulation.QEMU
    assert not cache.exists()


@pytest.mark.processes
def test_the_probe_boots_a_real_machine() -> None:
    assert host.boots(host.EMULATOR, "tcg")
    assert not host.boots(host.EMULATOR, "nonsense")
    assert not host.boots("/nowhere/qemu", "tcg")


def test_load_is_what_the_kernel_says(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(
        "MemTotal:  4096000 kB\nMemFree: 1 kB\nMemAvailable:   1024000 kB\nHugePages_Total: 0\n"
    )
    (tmp_path / "loadavg").write_text("0.50 1.25 2.00 1/200 4711\n")
    found = host.load(str(tmp_path))
    assert (found.memory_used_mib, found.memory_free_mib) == (3000, 1000)
    assert (found.load_1, found.load_5, found.load_15) == (0.5, 1.25, 2.0)


def test_libvirt_takes_migrations_until_the_machine_boots_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that is enabled would listen before the daemon has joined."""
    told: list[tuple[str, ...]] = []
    enabled = {systemd.TLS_SOCKET}
    active: set[str] = set()

    def systemctl(argv: list[str], *, check: bool = True) -> Completed:
        verb, *units = [word for word in argv[1:] if word != "--quiet"]
        told.append((verb, *units))
        among = {"is-enabled": enabled, "is-active": active}.get(verb)
        if verb == "disable":
            enabled.difference_update(units)
        elif verb in ("start", "stop"):
            (active.update if verb == "start" else active.difference_update)(units)
        return Completed(0 if among is None or units[0] in among else 1, "", "")

    monkeypatch.setattr(systemd, "run", systemctl)
    systemd.serve_libvirt_over_tls("10.0.0.1", certificates_changed=True, root=str(tmp_path))
    assert systemd.TLS_SOCKET in active
    assert not enabled, "by an older pvc"
    active.clear()  # a boot
    systemd.serve_libvirt_over_tls("10.0.0.1", certificates_changed=False, root=str(tmp_path))
    assert systemd.TLS_SOCKET in active
    assert not enabled
    assert "enable" not in {verb for verb, *_ in told}
