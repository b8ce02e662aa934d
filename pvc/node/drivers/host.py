"""What this host is, without libvirt: its load, and whether KVM really works."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from pathlib import Path

from pvc.errors import TimedOut, Unavailable
from pvc.node.drivers.hypervisor import Emulation, HostLoad
from pvc.proc import run

log = logging.getLogger(__name__)

BOOT_ID = "/proc/sys/kernel/random/boot_id"
EMULATOR = "/usr/bin/qemu-system-x86_64"
PROBE_TIMEOUT_S = 2.0
EXIT_PORT_VALUE = 0x10
EXIT_CODE = EXIT_PORT_VALUE << 1 | 1  # what isa-debug-exit makes of it

# mov dx, 0xf4; mov al, 0x10; out dx, al; hlt
BOOT_SECTOR = bytes([0xBA, 0xF4, 0x00, 0xB0, EXIT_PORT_VALUE, 0xEE, 0xF4]).ljust(510, b"\0") + b"\x55\xaa"


def boot_id(file: str = BOOT_ID) -> str:
    return Path(file).read_text(encoding="ascii").strip()


def emulation(
    emulator: str = EMULATOR, *, device: str = "/dev/kvm", cache: str = "/run/pvc/emulation"
) -> Emulation:
    """KVM if a machine under it boots; remembered until the host boots (`cache` is in /run)."""
    remembered = _remembered(Path(cache))
    if remembered is not None:
        return remembered
    if not os.path.exists(device):
        return Emulation.QEMU  # nothing to remember: the module may be loaded later
    found = Emulation.KVM if boots(emulator, "kvm") else Emulation.QEMU
    if found is Emulation.QEMU:
        log.warning(
            "%s is there, but no guest boots with it: using software emulation (noted in %s)", device, cache
        )
    Path(cache).parent.mkdir(parents=True, exist_ok=True)
    Path(cache).write_text(found + "\n", encoding="ascii")
    return found


def _remembered(cache: Path) -> Emulation | None:
    try:
        return Emulation(cache.read_text(encoding="ascii").strip())
    except (FileNotFoundError, ValueError):
        return None


def boots(emulator: str, accelerator: str) -> bool:
    """Run BIOS and a boot sector that ends QEMU with a code of its own.

    A boot, because some hosts offer a KVM that opens and runs a few instructions, but hangs in the BIOS.
    """
    with tempfile.NamedTemporaryFile(suffix=".img") as image:
        image.write(BOOT_SECTOR)
        image.flush()
        machine = ["-machine", "q35", "-accel", accelerator, "-m", "16", "-nodefaults", "-no-user-config"]
        devices = ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        disk = ["-drive", f"file={image.name},format=raw,if=floppy,readonly=on"]
        try:
            done = run(
                [emulator, *machine, "-display", "none", *devices, *disk],
                check=False,
                timeout_s=PROBE_TIMEOUT_S,
            )
        except (TimedOut, Unavailable):
            return False
    return done.code == EXIT_CODE


def load(proc: str = "/proc") -> HostLoad:
    sizes = memory_kib(proc)
    free = sizes["MemAvailable"]
    with open(f"{proc}/loadavg", encoding="ascii") as file:
        averages = [float(word) for word in file.read().split()[:3]]
    return HostLoad((sizes["MemTotal"] - free) // 1024, free // 1024, *averages)


def memory_kib(proc: str = "/proc") -> dict[str, int]:
    with open(f"{proc}/meminfo", encoding="ascii") as file:
        return {
            key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB$", file.read(), re.MULTILINE)
        }


def cpu_model(proc: str = "/proc") -> str:
    with open(f"{proc}/cpuinfo", encoding="utf-8", errors="replace") as file:
        found = re.search(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE)
    return found[1].strip() if found else ""
