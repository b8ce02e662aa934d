"""Servers of DHCP and DNS in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from pvc.node.drivers import DriverError
from pvc.node.drivers.networks import GatewayDevice, Place, Settings


@dataclass(slots=True)
class FakeNameServers:
    found: dict[str, GatewayDevice] = field(default_factory=dict)
    running: dict[int, int] = field(default_factory=dict)
    files: dict[int, Settings] = field(default_factory=dict)
    memory: dict[int, str] = field(default_factory=dict)
    said: set[int] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    listens: bool = False
    fails: str = ""
    refuses: set[int] = field(default_factory=set)
    """Whose files cannot be written."""
    asked: int = 0
    _lives: count[int] = field(default_factory=lambda: count(100))

    # What the tests do

    def lease(self, vni: int, line: str) -> None:
        """It gives a lease, or renews one."""
        address = line.split()[2]
        kept = [one for one in self.memory[vni].splitlines() if address not in one.split()]
        self.memory[vni] = "".join(f"{one}\n" for one in (line, *kept))
        self.say(vni)

    def say(self, vni: int) -> None:
        if self.listens:
            self.said.add(vni)

    def kill(self, vni: int) -> None:
        """It is there again with what it remembers."""
        self.running[vni] = next(self._lives)

    def taken(self) -> list[str]:
        calls, self.calls = self.calls, []
        return calls

    # What it does

    def devices(self, names: Sequence[str]) -> Mapping[str, GatewayDevice]:
        return {name: self.found[name] for name in names if name in self.found}

    def lives(self) -> Mapping[int, int]:
        self.asked += 1
        if self.fails:
            raise DriverError(self.fails, retryable=True)
        return dict(self.running)

    def place(self, vni: int) -> Place:
        return Place(f"/run/{vni}/hosts", f"/run/{vni}/names", f"/run/{vni}/leases", "/script")

    def known(self, vni: int) -> Settings | None:
        return self.files.get(vni)

    def write(self, vni: int, settings: Settings, before: Settings | None) -> None:
        if vni in self.refuses:
            raise DriverError(
                f"the files of dnsmasq of network {vni}: No space left on device", retryable=True
            )
        self.calls.append(f"write {vni}")
        self.files[vni] = settings

    def look(self, vni: int) -> None:
        self.calls.append(f"look {vni}")

    def start(self, vnis: Collection[int]) -> None:
        for vni in sorted(vnis):
            assert vni in self.files
            self.calls.append(f"start {vni}")
            self.running.setdefault(vni, next(self._lives))

    def stop(self, vnis: Collection[int]) -> None:
        for vni in sorted(vnis):
            self.calls.append(f"stop {vni}")
            self.running.pop(vni, None)

    def forget(self) -> None:
        assert not self.running
        self.files.clear()
        self.memory.clear()

    def leases(self, vni: int) -> str | None:
        return self.memory.get(vni)

    def remember(self, vni: int, text: str) -> None:
        assert vni not in self.running, "it would overwrite this"
        self.memory[vni] = text

    def listen(self) -> None:
        self.listens = True

    def changed(self) -> set[int]:
        said, self.said = self.said, set()
        return said
