"""What of a lab exists right now, found by name in /proc: right even after a crash left no record."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pvc.errors import TimedOut
from pvc.lab.layout import Lab, Node
from pvc.lab.network import NAMESPACES

PROC = Path("/proc")
CEPH = ("ceph-mon", "ceph-mgr", "ceph-osd")


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    argv: tuple[str, ...]


def processes() -> Iterator[Process]:
    """Every process of this machine that is alive: zombies have no command line."""
    for entry in os.scandir(PROC):
        if entry.name.isdigit() and (argv := command_line(int(entry.name))):
            yield Process(int(entry.name), argv)


def command_line(pid: int) -> tuple[str, ...]:
    try:
        text = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return ()
    return tuple(part.decode(errors="replace") for part in text.split(b"\0")[:-1])


def container_option(lab: Lab, node: Node) -> str:
    """Only this node's nspawn has it in its command line."""
    return f"--directory={lab.root(node)}"


def nspawn(lab: Lab, node: Node) -> int:
    """The container's manager, 0 if the node is off."""
    return _first(one for one in processes() if _is_nspawn(one, lab, node))


def _is_nspawn(process: Process, lab: Lab, node: Node) -> bool:
    return process.argv[0].endswith("systemd-nspawn") and container_option(lab, node) in process.argv


def supervisor(lab: Lab, node: Node) -> int:
    return _first(one for one in processes() if is_ours(one, lab, "supervise", node.name))


def is_ours(process: Process, lab: Lab, *words: str) -> bool:
    """A process of this lab (pvc.lab.inner) that was started with these words."""
    program = str(lab.program)
    return program in process.argv and process.argv[process.argv.index(program) + 1 :][: len(words)] == words


def bmc(lab: Lab, node: Node) -> int:
    """What answers IPMI for the node, 0 where nothing does."""
    return _first(one for one in processes() if _is_bmc(one, lab, node))


def rubbish(lab: Lab, node: Node) -> int:
    """What answers nonsense in place of its BMC."""
    return _first(one for one in processes() if is_ours(one, lab, "rubbish", node.name))


def _is_bmc(process: Process, lab: Lab, node: Node) -> bool:
    return process.argv[0].endswith("ipmi_sim") and str(bmc_configuration(lab, node)) in process.argv


def bmc_configuration(lab: Lab, node: Node) -> Path:
    return lab.directory / "bmc" / f"{node.name}.conf"


def _first(found: Iterator[Process]) -> int:
    return next((process.pid for process in found), 0)


def leader(lab: Lab, node: Node) -> int:
    """PID 1 of the node as seen from here, 0 if the node is off."""
    manager = nspawn(lab, node)
    if not manager:
        return 0
    try:
        children = (PROC / str(manager) / "task" / str(manager) / "children").read_text().split()
    except OSError:
        return 0
    return next((int(child) for child in children if command_line(int(child))), 0)


def in_namespace(name: str) -> frozenset[int]:
    """Processes of a network namespace that still has its name."""
    try:
        wanted = os.stat(NAMESPACES / name)
    except OSError:
        return frozenset()
    return frozenset(pid for pid in _pids() if _is_in(pid, wanted.st_dev, wanted.st_ino))


def ceph_daemons(lab: Lab, node: Node) -> tuple[str, ...]:
    """Kinds of Ceph's daemons that run in the node: mgr, mon, osd."""
    names = {
        os.path.basename(argv[0]) for pid in in_namespace(lab.namespace(node)) if (argv := command_line(pid))
    }
    return tuple(sorted(name.removeprefix("ceph-") for name in names if name in CEPH))


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in os.scandir(PROC) if entry.name.isdigit())


def _is_in(pid: int, device: int, inode: int) -> bool:
    try:
        found = os.stat(PROC / str(pid) / "ns" / "net")
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (device, inode)


def mounts_below(directory: Path) -> tuple[str, ...]:
    """Deepest first, with the kernel's escapes undone."""
    lines = (PROC / "self" / "mountinfo").read_text().splitlines()
    points = (line.split()[4].encode().decode("unicode_escape") for line in lines)
    return tuple(sorted((point for point in points if point.startswith(f"{directory}/")), reverse=True))


def kill_and_wait(
    pids: Iterable[int], *, within_s: float = 10.0, signal_number: int = signal.SIGKILL
) -> None:
    """Kill, and return once they are gone (a zombie is gone). Raises TimedOut naming what did not die."""
    handles: dict[int, int] = {}
    for pid in pids:
        if pid in (0, 1, os.getpid()):
            continue
        try:
            handles[os.pidfd_open(pid)] = pid
        except ProcessLookupError:
            continue
    try:
        for handle in handles:
            _send(handle, signal_number)
        _wait_gone(handles, within_s)
    finally:
        for handle in handles:
            os.close(handle)


def _send(handle: int, signal_number: int) -> None:
    try:
        signal.pidfd_send_signal(handle, signal_number)
    except ProcessLookupError:
        pass


def _wait_gone(handles: dict[int, int], within_s: float) -> None:
    end = time.monotonic() + within_s
    waiting = select.poll()
    for handle in handles:
        waiting.register(handle, select.POLLIN)
    left = set(handles)
    while left:
        ready = waiting.poll(max(0.0, end - time.monotonic()) * 1000)
        if not ready:
            names = ", ".join(str(handles[handle]) for handle in sorted(left))
            raise TimedOut(f"processes did not end within {within_s:g} s: {names}")
        for handle, _ in ready:
            waiting.unregister(handle)
            left.discard(handle)
