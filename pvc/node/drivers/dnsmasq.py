"""dnsmasq as services of systemd, one for each network, by files in /run."""

from __future__ import annotations

import fcntl
import os
import pwd
import select
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pvc.errors import PVCError
from pvc.node.drivers import DriverError
from pvc.node.drivers.networks import GatewayDevice, Place, Settings
from pvc.proc import Completed, Run, run

RUN = "/run/pvc/dnsmasq"
SCRIPT = "/usr/lib/pvc/dhcp-changed"
"""Not in /run, from which nothing is executed."""
USER = "dnsmasq"
UNIT = "pvc-dnsmasq@"
CALL_S = 20.0
SIOCGIFMTU = 0x8921
READ_AT_MOST = 100
"""Times, until nobody wrote meanwhile."""
RUNS = ("active", "activating", "reloading")
HEAR_S = 1.0
AT_ONCE = 20
"""So many changes of a network are heard in the moment they come, and then one in HEAR_S: guests that boot
together do not wait, and one that asks for addresses in a loop keeps nobody busy."""


def _unit(vni: int) -> str:
    return f"{UNIT}{vni}.service"


@dataclass(slots=True)
class Pace:
    """When who said something is heard: all that was said until then is one."""

    _waiting: set[int] = field(default_factory=set)
    _spent_until: dict[int, float] = field(default_factory=dict)
    """When it would be through if it had been heard once in HEAR_S."""

    def say(self, vnis: Collection[int]) -> None:
        self._waiting |= set(vnis)

    def wait_s(self, now: float) -> float | None:
        """Until the next one is due; None: nobody waits."""
        return max(0.0, min(map(self._due_at, self._waiting)) - now) if self._waiting else None

    def due(self, now: float) -> set[int]:
        due = {vni for vni in self._waiting if self._due_at(vni) <= now}
        self._waiting -= due
        self._spent_until |= {vni: max(now, self._spent_until.get(vni, now)) + HEAR_S for vni in due}
        return due

    def _due_at(self, vni: int) -> float:
        return self._spent_until.get(vni, 0.0) - (AT_ONCE - 1) * HEAR_S


class Dnsmasq:
    """`root`, `script` and `user` are others in tests."""

    def __init__(
        self,
        wake: Callable[[], None],
        root: str = RUN,
        call: Run = run,
        *,
        script: str = SCRIPT,
        user: str = USER,
    ) -> None:
        self._root = Path(root)
        self._wake = wake
        self._call = call
        self._script = script
        self._user = user
        self._changed: set[int] = set()
        self._lock = threading.Lock()
        self._is_listening = False

    # Devices and services

    def devices(self, names: Sequence[str]) -> Mapping[str, GatewayDevice]:
        wanted = set(names)
        with _guarded("the devices"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            found = [(index, name) for index, name in socket.if_nameindex() if name in wanted]
            return {name: GatewayDevice(name, index, _mtu(sock, name)) for index, name in found}

    def lives(self) -> Mapping[int, int]:
        said = self._systemctl("show", "--property=Id,MainPID,ActiveState", f"{UNIT}*.service").stdout
        units = (dict(line.split("=", 1) for line in block.splitlines()) for block in said.split("\n\n"))
        return {
            int(unit["Id"].removeprefix(UNIT).removesuffix(".service")): int(unit["MainPID"])
            for unit in units
            if unit.get("ActiveState") in RUNS
        }

    def start(self, vnis: Collection[int]) -> None:
        if vnis:
            self._systemctl("start", *map(_unit, sorted(vnis)))

    def stop(self, vnis: Collection[int]) -> None:
        if vnis:
            self._systemctl("stop", *map(_unit, sorted(vnis)))

    def look(self, vni: int) -> None:
        self._systemctl("kill", "--kill-who=main", "--signal=HUP", _unit(vni))

    def _systemctl(self, *words: str) -> Completed:
        try:
            return self._call(["systemctl", *words], timeout_s=CALL_S)
        except PVCError as error:
            raise DriverError(f"dnsmasq: {error.message}", retryable=True) from None

    # Files. Only the one with the leases is dnsmasq's own; in the directories it can make none.

    def place(self, vni: int) -> Place:
        own = self._root / str(vni)
        return Place(str(own / "hosts"), str(own / "names"), str(own / "leases"), self._script)

    def known(self, vni: int) -> Settings | None:
        own = self._root / str(vni)
        try:
            config = (own / "config").read_text()
            return Settings(config, dict(_files(own / "hosts")), dict(_files(own / "names")))
        except OSError:
            return None

    def write(self, vni: int, settings: Settings, before: Settings | None) -> None:
        own = self._root / str(vni)
        known = before or self.known(vni) or Settings("")
        with _guarded(f"the files of dnsmasq in {own}"):
            for folder in (own / "hosts", own / "names"):
                folder.mkdir(parents=True, exist_ok=True)
            _replace(own, {"config": known.config}, {"config": settings.config})
            _replace(own / "hosts", known.hosts, settings.hosts)
            _replace(own / "names", known.names, settings.names)

    def forget(self) -> None:
        with _guarded(f"the files of dnsmasq in {self._root}"):
            for own in self._root.glob("[0-9]*"):
                shutil.rmtree(own)

    def leases(self, vni: int) -> str | None:
        """It writes them over the old ones: a half of that is not taken for the whole."""
        file = self._root / str(vni) / "leases"
        with _guarded(str(file)):
            try:
                for _ in range(READ_AT_MOST):
                    before = file.stat()
                    text = file.read_text(errors="replace")
                    after = file.stat()
                    if (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, len(text.encode())):
                        break
            except FileNotFoundError:
                return None
        return text[: text.rfind("\n") + 1]

    def remember(self, vni: int, text: str) -> None:
        file = self._root / str(vni) / "leases"
        with _guarded(str(file)):
            new = file.with_name("leases.new")
            new.write_text(text)
            new.chmod(0o640)
            self._give(new)
            new.replace(file)

    def _give(self, file: Path) -> None:
        try:
            os.chown(file, pwd.getpwnam(self._user).pw_uid, -1)
        except KeyError:
            raise DriverError(
                f"there is no user {self._user}", hint="install the Debian package dnsmasq-base"
            ) from None

    # Hearing of changes

    def listen(self) -> None:
        if self._is_listening:
            return
        fifo = self._root / "changed"
        with _guarded(str(fifo)):
            self._root.mkdir(parents=True, exist_ok=True)
            if not fifo.is_fifo():
                fifo.unlink(missing_ok=True)
                os.mkfifo(fifo, 0o600)
            self._give(fifo)
            # For writing too: so it never ends, and nobody who writes finds that nobody reads.
            opened = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)
        threading.Thread(target=self._hear, args=(opened,), name="leases", daemon=True).start()
        self._is_listening = True

    def _hear(self, opened: int) -> None:
        pace = Pace()
        while True:
            if select.select([opened], [], [], pace.wait_s(time.monotonic()))[0]:
                pace.say([int(word) for word in os.read(opened, 65536).split() if word.isdigit()])
            if due := pace.due(time.monotonic()):
                with self._lock:
                    self._changed |= due
                self._wake()

    def changed(self) -> set[int]:
        with self._lock:
            said, self._changed = self._changed, set()
        return said


def _mtu(sock: socket.socket, name: str) -> int:
    answer = fcntl.ioctl(sock, SIOCGIFMTU, struct.pack("16si12x", name.encode(), 0))
    return int(struct.unpack("16si12x", answer)[1])


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    return ((file.name, file.read_text()) for file in sorted(folder.iterdir()))


def _replace(folder: Path, before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """dnsmasq reads a file when it is closed or moved there; names with a dot first it does not see."""
    for name in before.keys() - after.keys():
        with suppress(FileNotFoundError):
            (folder / name).unlink()
    for name, text in after.items():
        if before.get(name) != text:
            half = folder / f".{name}"
            half.write_text(text)
            half.replace(folder / name)


@contextmanager
def _guarded(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DriverError(f"{what}: {error.strerror}", retryable=True) from None
