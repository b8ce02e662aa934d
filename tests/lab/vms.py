"""What the lab tests ask of a cluster: VMs by the product's own command line, guests by their ticks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.lab.labs import Ended, RunningLab
from tests.support import eventually

KERNEL, INITRD = "/usr/share/pvc/guest/vmlinuz", "/usr/share/pvc/guest/initrd"
WITH_AGENT = "/usr/share/pvc/guest/initrd-agent"
CMDLINE = "console=ttyS0 quiet no_timer_check"
"""An emulated guest on a busy machine gets its timer interrupts late, and panics where it checks them."""
TICK = re.compile(r"^tick (\d+) (\d+\.\d+)", re.MULTILINE)
WROTE = re.compile(r"^wrote (\d+)", re.MULTILINE)
KEPT = re.compile(r"^kept (\d+)", re.MULTILINE)
DISKS = re.compile(r"^disks(.*)$", re.MULTILINE)
HEARD = re.compile(r"^heard (\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Tick:
    number: int
    uptime_s: float


@dataclass(slots=True)
class Cluster:
    """`pvc` on the first node that is asked, with its JSON."""

    lab: RunningLab
    asked: str = "n1"

    def run(self, node: str, *command: str, check: bool = True) -> Ended:
        """A command inside a node."""
        return self.lab.run(node, *command, check=check)

    def pvc(self, *words: str, check: bool = True) -> Ended:
        return self.run(self.asked, "pvc", *words, check=check)

    def json(self, *words: str) -> Any:
        return json.loads(self.pvc(*words, "-f", "json").stdout)

    def create(
        self,
        name: str,
        *options: str,
        cmdline: str = "",
        memory: str = "96M",
        initrd: str = INITRD,
        start: bool = True,
    ) -> Any:
        """A ticking guest, and started unless told not to."""
        self.pvc(
            *("vm", "create", name, "--memory", memory, "--vcpus", "1", *options),
            *("--kernel", KERNEL, "--initrd", initrd, "--cmdline", f"{CMDLINE} {cmdline}".strip()),
        )
        if start:
            self.pvc("vm", "start", name, "--wait", "--timeout", "60")
        return self.info(name)

    def info(self, name: str) -> Any:
        return self.json("vm", "info", name)

    def ticks(self, name: str, node: str) -> list[Tick]:
        """Of the VM's console on one node, oldest first; of every run of the guest there."""
        return self._ticks(self.info(name)["uuid"], node)

    def _ticks(self, uuid: str, node: str) -> list[Tick]:
        return [
            Tick(int(number), float(uptime)) for number, uptime in TICK.findall(self._console(uuid, node))
        ]

    def console(self, name: str, node: str) -> str:
        """What the guest has said on that node, in every run."""
        return self._console(self.info(name)["uuid"], node)

    def _console(self, uuid: str, node: str) -> str:
        """From the node's disk, which needs no program to run in it."""
        layout = self.lab.layout
        log = layout.upper(layout.node(node)) / f"var/log/pvc/console/{uuid}.log"
        return log.read_text(errors="replace").replace("\r", "") if log.exists() else ""

    def ticking(self, name: str, node: str, *, more_than: int = 0, within: float = 90) -> list[Tick]:
        """Wait until the guest has ticked on that node."""
        uuid = self.info(name)["uuid"]

        def has_ticked() -> list[Tick]:
            ticks = self._ticks(uuid, node)
            return ticks if ticks and ticks[-1].number > more_than else []

        return eventually(has_ticked, within=within)

    def hearing(self, name: str, *nodes: str, more_than: int = 0) -> list[int]:
        """Wait until the guest has heard of more numbers of a stream; all, in the order of those nodes."""
        uuid = self.info(name)["uuid"]

        def heard() -> list[int]:
            text = "".join(self._console(uuid, node) for node in nodes)
            numbers = [int(number) for number in HEARD.findall(text)]
            return numbers if len(numbers) > more_than else []

        return eventually(heard, within=90)

    def wrote(self, name: str, node: str) -> int:
        """The last number that the guest was told is on its disk (pvc.write=…), on that node."""
        return max(map(int, WROTE.findall(self.console(name, node))), default=0)

    def writing(self, name: str, node: str, *, more_than: int = 0, within: float = 90) -> int:
        """Wait until the guest has written a higher number on that node."""
        return eventually(
            lambda: number if (number := self.wrote(name, node)) > more_than else 0, within=within
        )

    def kept(self, name: str, node: str) -> list[int]:
        """What was on the disk each time that the guest booted on that node."""
        return list(map(int, KEPT.findall(self.console(name, node))))

    def disks(self, name: str, node: str) -> dict[str, int]:
        """Disks that the guest sees, with their size in bytes, in its own words."""
        said = DISKS.findall(self.console(name, node))
        pairs = (word.split("=") for word in (said[-1].split() if said else []))
        return {disk: int(size) for disk, size in pairs}

    def qemus(self, name: str) -> list[str]:
        """Nodes on which a QEMU of that VM is alive, as their process tables say."""
        return [node for node in self.lab.nodes if self.qemu_pid(name, node)]

    def qemu_pid(self, name: str, node: str) -> int:
        found = self.run(node, "pgrep", "-f", f"qemu-system.*guest={name},", check=False).stdout.split()
        return int(found[0]) if found else 0

    def gone(self, name: str, node: str, pid: int) -> None:
        """Wait until that QEMU is no more."""
        eventually(lambda: self.qemu_pid(name, node) != pid, within=10)

    def remove(self, name: str) -> None:
        """Off and gone with its disks, whatever state it is in."""
        if self.pvc("vm", "info", name, check=False).code != 0:
            return
        self.pvc("vm", "stop", name, "--yes", "--wait", "--timeout", "60", check=False)
        self.pvc("vm", "remove", name, "--yes")

    @contextmanager
    def vm(
        self, name: str, *options: str, cmdline: str = "", initrd: str = INITRD, start: bool = True
    ) -> Iterator[Any]:
        self.remove(name)
        try:
            yield self.create(name, *options, cmdline=cmdline, initrd=initrd, start=start)
        finally:
            self.remove(name)
