"""The guest for demo and tests: Debian's cloud kernel; an initrd of busybox, a few modules and one script.

Another initrd, three times as large, also has QEMU's guest agent, and what makes a file system.
"""

from __future__ import annotations

import gzip
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# In load order of need; what they depend on is added in front of each. A module that is built in is left out.
MODULES = (
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "virtio_scsi",
    "virtio_console",
    "virtio-rng",
    "button",
    "evdev",
    "pvpanic-mmio",
    "pvpanic-pci",
)

LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = "ld-linux-x86-64.so.2"


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of the archive; data is the content of a file or the target of a link."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def load_order(wanted: Iterable[str], modules_dep: str) -> tuple[str, ...]:
    """Paths of the modules and of all they need, each after what it needs (from depmod's modules.dep)."""
    needs: dict[str, list[str]] = {}
    path_of: dict[str, str] = {}
    for line in modules_dep.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
        path_of[module_name(path)] = path
    order: list[str] = []
    for name in wanted:
        path = path_of.get(module_name(name), "")
        for item in [*reversed(needs.get(path, [])), path]:
            if item and item not in order:
                order.append(item)
    return tuple(order)


def module_name(path: str) -> str:
    return Path(path).name.split(".ko")[0].replace("-", "_")


def newc(entries: Sequence[Entry]) -> bytes:
    """A cpio archive as the kernel reads it, the same bytes for the same entries."""
    out = bytearray()

    def member(number: int, entry: Entry) -> None:
        name = entry.name.encode() + b"\0"
        major, minor = entry.device
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
        out.extend(b"070701" + b"".join(b"%08X" % field for field in fields) + name)
        out.extend(b"\0" * (-len(out) % 4))
        out.extend(entry.data)
        out.extend(b"\0" * (-len(out) % 4))

    for number, entry in enumerate(entries, start=1):
        member(number, entry)
    member(0, Entry("TRAILER!!!", 0))
    return bytes(out)


def build_initrd(busybox: bytes, init: bytes, modules: Sequence[tuple[str, bytes]]) -> bytes:
    """The compressed initrd; modules are (file name, content) in load order."""
    folder, program, text = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755, stat.S_IFREG | 0o644
    order = "".join(f"{name}\n" for name, _ in modules).encode()
    entries = [
        Entry("bin", folder),
        Entry("bin/busybox", program, busybox),
        Entry("dev", folder),
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry("init", program, init),
        Entry("modules", folder),
        Entry("modules/order", text, order),
        *(Entry(f"modules/{name}", text, data) for name, data in modules),
    ]
    return gzip.compress(newc(entries), compresslevel=9, mtime=0)


def build_programs(programs: Mapping[str, bytes], libraries: Mapping[str, bytes]) -> bytes:
    """A compressed archive to follow an initrd: programs, and the libraries that they load."""
    folder, program = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755
    entries = [
        *(Entry(name, folder) for name in ("sbin", "lib", "lib64")),
        *(Entry(f"sbin/{name}", program, data) for name, data in sorted(programs.items())),
        *(
            Entry(f"{'lib64' if name == LOADER else 'lib'}/{name}", program, data)
            for name, data in sorted(libraries.items())
        ),
    ]
    return gzip.compress(newc(entries), compresslevel=9, mtime=0)


def loaded(listing: str) -> set[str]:
    """Names of the libraries that a program loads, as the loader lists them."""
    names = {Path(line.split()[0]).name for line in listing.splitlines() if line.strip()}
    return {name for name in names if not name.startswith("linux-vdso")}


def build_guest(
    packages: Path, tree: Path, init: Path, target: Path, run: Callable[[Sequence[str]], str]
) -> None:
    """Write vmlinuz, initrd and initrd-agent to `target`.

    From the unpacked packages of kernel, busybox and guest agent; what these load is in the tree of the node.
    """
    kernel = next(packages.glob("boot/vmlinuz-*"))
    release = kernel.name.removeprefix("vmlinuz-")
    run(["depmod", "-b", str(packages), release])
    modules_tree = packages / "lib/modules" / release
    order = load_order(MODULES, (modules_tree / "modules.dep").read_text())
    modules = [(Path(path).name, (modules_tree / path).read_bytes()) for path in order]
    target.mkdir(parents=True, exist_ok=True)
    (target / "vmlinuz").write_bytes(kernel.read_bytes())
    busybox = (packages / "bin/busybox").read_bytes()
    initrd = build_initrd(busybox, init.read_bytes(), modules)
    (target / "initrd").write_bytes(initrd)
    programs = [packages / "usr/sbin/qemu-ga", tree / "usr/sbin/mke2fs"]
    (target / "initrd-agent").write_bytes(initrd + _with_libraries(programs, tree / LIBRARIES, run))


def _with_libraries(programs: Sequence[Path], libraries: Path, run: Callable[[Sequence[str]], str]) -> bytes:
    loader = [str(libraries / LOADER), "--inhibit-cache", "--library-path", str(libraries), "--list"]
    names = set[str]().union(*(loaded(run([*loader, str(program)])) for program in programs))
    return build_programs(
        {program.name: program.read_bytes() for program in programs},
        {name: (libraries / name).read_bytes() for name in names},
    )
