"""One suite for every Watchdog: a device with a kernel in memory, and the socket of a lab's machine."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pvc.errors import Invalid
from pvc.lab.watchdog import Board
from pvc.node.drivers import DriverError, Watchdog
from pvc.node.drivers import watchdog as drivers
from pvc.node.drivers.watchdog import DeviceWatchdog, SocketWatchdog, find
from tests.support import eventually


@dataclass
class Machine:
    """With a clock that the test moves on."""

    now: float = 0.0
    resets: int = 0

    def reset(self) -> None:
        self.resets += 1


@dataclass
class Kernel:
    """A watchdog device as Documentation/watchdog/watchdog-api.rst has it."""

    machine: Machine
    longest: int = 60
    timeout: int = 60
    ends: float = float("inf")
    opened: int = 0
    is_magic: bool = False
    broken: bool = False
    refuses: dict[int, int] = field(default_factory=dict)
    """Requests, and the error of each."""
    is_stuck: bool = False
    """It cannot be written to."""
    features: int = drivers.MAGICCLOSE

    def options(self) -> int:
        return self.features

    def open(self, path: str) -> Kernel:
        if self.opened:
            raise OSError(errno.EBUSY, "Device or resource busy")
        self.opened = 1
        self.is_magic = False
        self._ping()
        return self

    def _ping(self) -> None:
        self.ends = self.machine.now + self.timeout

    def ioctl(self, request: int, value: int) -> int:
        if self.broken:
            raise OSError(errno.EIO, "Input/output error")
        if request in self.refuses:
            raise OSError(self.refuses[request], "refused")
        if request == drivers.SETTIMEOUT:
            self.timeout = min(value, self.longest)
            self._ping()
        elif request == drivers.KEEPALIVE:
            self._ping()
        else:
            assert request == drivers.GETTIMEOUT
        return self.timeout

    def write(self, data: bytes) -> None:
        if self.is_stuck:
            raise OSError(errno.EIO, "Input/output error")
        self.is_magic = data == b"V"
        self._ping()

    def close(self) -> None:
        self.opened = 0
        if self.is_magic or not self.features & drivers.MAGICCLOSE:
            self.ends = float("inf")

    def tick(self) -> None:
        if self.machine.now >= self.ends:
            self.ends = float("inf")
            self.machine.reset()


@dataclass
class Bench:
    machine: Machine
    make: Callable[[], Watchdog]
    """The driver of another life of the daemon."""
    tick: Callable[[], None] = lambda: None
    left: Callable[[Watchdog], None] = lambda watchdog: None
    """A life ends without a word."""
    made: list[Watchdog] = field(default_factory=list)

    def life(self) -> Watchdog:
        for old in self.made:
            self.left(old)
        self.made.append(self.make())
        return self.made[-1]

    def after(self, seconds: float) -> None:
        self.machine.now += seconds
        self.tick()


def _device_bench(tmp_path: Path) -> Bench:
    machine = Machine()
    kernel = Kernel(machine)

    def left(watchdog: Watchdog) -> None:
        assert isinstance(watchdog, DeviceWatchdog)
        if watchdog._device is not None:
            kernel.close()

    return Bench(machine, lambda: DeviceWatchdog("/dev/watchdog0", kernel.open), kernel.tick, left)


def _socket_bench(tmp_path: Path) -> Bench:
    machine = Machine()
    board = Board(tmp_path / "watchdog", machine.reset, lambda: machine.now)
    board.start()

    def left(watchdog: Watchdog) -> None:
        assert isinstance(watchdog, SocketWatchdog)
        watchdog._hang_up()

    return Bench(machine, lambda: SocketWatchdog(str(tmp_path / "watchdog")), left=left)


@pytest.fixture(params=[_device_bench, _socket_bench], ids=["device", "lab"], name="bench")
def _bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made: Bench = request.param(tmp_path)
    yield made
    for one in made.made:
        made.left(one)


def test_machine_is_reset_when_nobody_feeds_it(bench: Bench) -> None:
    assert bench.life().arm(8) == 8
    bench.after(7.9)
    assert not bench.machine.resets
    bench.after(0.2)
    eventually(lambda: bench.machine.resets == 1, within=5)


def test_who_feeds_lives(bench: Bench) -> None:
    watchdog = bench.life()
    watchdog.arm(8)
    for _ in range(5):
        bench.after(7)
        watchdog.feed()
    assert not bench.machine.resets


def test_to_arm_is_to_feed(bench: Bench) -> None:
    watchdog = bench.life()
    watchdog.arm(8)
    bench.after(7)
    watchdog.arm(8)
    bench.after(7)
    watchdog.feed()
    assert not bench.machine.resets


def test_disarmed_it_rests(bench: Bench) -> None:
    watchdog = bench.life()
    watchdog.disarm()
    watchdog.arm(8)
    watchdog.disarm()
    watchdog.disarm()
    bench.after(100)
    watchdog.arm(8)  # an answer: it has looked at the clock since
    assert not bench.machine.resets


def test_it_outlives_who_armed_it(bench: Bench) -> None:
    bench.life().arm(8)
    bench.after(5)
    bench.life()
    bench.after(5)
    eventually(lambda: bench.machine.resets == 1, within=5)


def test_next_life_takes_it_over(bench: Bench) -> None:
    bench.life().arm(8)
    bench.after(5)
    after = bench.life()
    after.arm(8)
    bench.after(5)
    after.feed()
    assert not bench.machine.resets
    after.disarm()
    bench.after(100)
    after.arm(8)
    assert not bench.machine.resets


def test_feeding_what_is_not_armed_is_an_error(bench: Bench) -> None:
    with pytest.raises(DriverError, match="watchdog"):
        bench.life().feed()


def test_device_says_what_it_grants() -> None:
    kernel = Kernel(Machine(), longest=5)
    assert DeviceWatchdog("/dev/watchdog0", kernel.open).arm(8) == 5


def test_device_that_fails_is_named() -> None:
    kernel = Kernel(Machine())
    watchdog = DeviceWatchdog("/dev/watchdog0", kernel.open)
    watchdog.arm(8)
    kernel.broken = True
    with pytest.raises(DriverError, match="/dev/watchdog0 cannot be fed: Input/output error"):
        watchdog.feed()
    with pytest.raises(DriverError, match="cannot be armed: Device or resource busy"):
        DeviceWatchdog("/dev/watchdog0", kernel.open).arm(8)


@pytest.mark.parametrize("request_", [drivers.SETTIMEOUT, drivers.GETTIMEOUT, drivers.KEEPALIVE])
def test_device_that_was_opened_in_vain_is_disarmed(request_: int) -> None:
    """Opening has started it."""
    kernel = Kernel(Machine(), refuses={request_: errno.EINVAL})
    watchdog = DeviceWatchdog("/dev/watchdog0", kernel.open)
    with pytest.raises(DriverError, match="cannot be armed"):
        watchdog.arm(8)
    watchdog.disarm()
    kernel.machine.now += 1000
    kernel.tick()
    assert not kernel.machine.resets
    assert not kernel.opened


def test_device_that_cannot_be_told_how_long_says_how_long_it_is() -> None:
    kernel = Kernel(Machine(), timeout=30, refuses={drivers.SETTIMEOUT: errno.EOPNOTSUPP})
    assert DeviceWatchdog("/dev/watchdog0", kernel.open).arm(8) == 30


def test_device_that_could_not_be_disarmed_is_armed_and_disarmed_later() -> None:
    kernel = Kernel(Machine())
    watchdog = DeviceWatchdog("/dev/watchdog0", kernel.open)
    watchdog.arm(8)
    kernel.is_stuck = True
    with pytest.raises(DriverError, match="cannot be disarmed"):
        watchdog.disarm()
    watchdog.feed()
    kernel.is_stuck = False
    watchdog.disarm()
    kernel.machine.now += 1000
    kernel.tick()
    assert not kernel.machine.resets


def test_device_that_rests_when_its_daemon_is_killed_is_none() -> None:
    kernel = Kernel(Machine(), features=0)
    with pytest.raises(DriverError, match="stops when its daemon is killed"):
        DeviceWatchdog("/dev/watchdog0", kernel.open).arm(8)


def test_device_that_cannot_be_disarmed_is_refused(tmp_path: Path) -> None:
    for name, nowayout in (("watchdog0", "1"), ("watchdog1", "0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "identity").write_text("iTCO_wdt\n")
        (tmp_path / name / "nowayout").write_text(f"{nowayout}\n")
    for named in ("/dev/watchdog0", "/dev/watchdog"):
        found, why = find(named, tmp_path)
        assert found is None
        assert "nowayout" in why
    other, _ = find("auto", tmp_path)
    assert other is not None
    assert other.name == "/dev/watchdog1"
    (tmp_path / "watchdog1/nowayout").write_text("1\n")
    assert "nowayout" in find("auto", tmp_path)[1]


def test_socket_without_anybody_behind_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="does not answer: No such file"):
        SocketWatchdog(str(tmp_path / "none")).arm(8)


def test_hardware_is_found_and_software_only_when_named(tmp_path: Path) -> None:
    assert find("auto", tmp_path)[0] is None
    (tmp_path / "watchdog0").mkdir()
    (tmp_path / "watchdog0/identity").write_text("Software Watchdog\n")
    none, why = find("auto", tmp_path)
    assert none is None
    assert why
    (tmp_path / "watchdog1").mkdir()
    (tmp_path / "watchdog1/identity").write_text("iTCO_wdt\n")
    found, _ = find("auto", tmp_path)
    assert found is not None
    assert found.name == "/dev/watchdog1"
    named, _ = find("/dev/watchdog0", tmp_path)
    assert named is not None
    assert find("none", tmp_path)[0] is None
    with pytest.raises(Invalid, match=r"daemon\.watchdog"):
        find("yes", tmp_path)
