"""Who really runs: QEMU processes of a lab as this machine's kernel has them, seen many times a second."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

EVERY_S = 0.1
GUEST = re.compile(r"\S*qemu-system\S* -name guest=([A-Za-z0-9._-]+),")


@dataclass(slots=True)
class Run:
    """One QEMU process."""

    pid: int
    first_s: float
    last_s: float


@dataclass(slots=True)
class Witness:
    """By VM, its runs in the order they were first seen; on the monotonic clock."""

    prefix: str
    """Of the lab, which is in the control group of each of its processes."""
    runs: dict[str, list[Run]] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)
    """What must never be: VMs with two processes at one moment."""
    ended: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        while not self.ended.wait(EVERY_S):
            self.look()

    def look(self) -> None:
        now = time.monotonic()
        seen: dict[str, list[int]] = {}
        for pid, name in qemus(self.prefix):
            seen.setdefault(name, []).append(pid)
        for name, pids in seen.items():
            # One that ends while we look is not another one beside it.
            if len(pids) > 1 and len(still := [pid for pid in pids if is_alive(pid)]) > 1:
                self.twice.append(f"{name} runs as {still}")
            for pid in pids:
                self._note(name, pid, now)

    def _note(self, name: str, pid: int, now: float) -> None:
        runs = self.runs.setdefault(name, [])
        if not runs or runs[-1].pid != pid:
            runs.append(Run(pid, now, now))
        runs[-1].last_s = now

    def gap_s(self, name: str) -> float:
        """How long the VM did not run between its last run and the one before."""
        before, after = self.runs[name][-2:]
        return after.first_s - before.last_s

    def has_run(self, name: str, times: int) -> bool:
        return len(self.runs.get(name, [])) >= times


def qemus(prefix: str) -> Iterator[tuple[int, str]]:
    """PID and VM of each QEMU in the lab, whatever container it is in."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found = GUEST.match(command)
            if found and is_of((entry / "cgroup").read_text(), prefix):
                yield int(entry.name), found[1]


def is_of(group: str, prefix: str) -> bool:
    return f"/{prefix}/" in group or f"-{prefix}-" in group


def is_alive(pid: int) -> bool:
    """A process that was killed and that nobody has waited for is dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


@contextlib.contextmanager
def watching(prefix: str) -> Iterator[Witness]:
    witness = Witness(prefix)
    thread = threading.Thread(target=witness.watch, daemon=True)
    thread.start()
    try:
        yield witness
    finally:
        witness.ended.set()
        thread.join()
    assert not witness.twice, "; ".join(witness.twice)
