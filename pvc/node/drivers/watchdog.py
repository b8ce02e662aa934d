"""Watchdogs: what resets this machine unless it is fed. Linux devices, and the lab's stand-in on a socket."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from pvc.errors import Invalid
from pvc.node.drivers import DriverError, Watchdog

SYSFS = Path("/sys/class/watchdog")
SOFTWARE = "Software Watchdog"
"""Of a kernel that hangs it hangs too: it is taken only where somebody names it."""

_INT = struct.Struct("i")
_INFO = struct.Struct("II32s")
GETSUPPORT = 0x80285700
SETTIMEOUT = 0xC0045706
GETTIMEOUT = 0x80045707
KEEPALIVE = 0x80045705
MAGIC_CLOSE = b"V"
"""A device that is closed without it goes on, and resets the machine: so does one whose daemon is killed."""
MAGICCLOSE = 0x0100
"""Of its options. A device without it rests whenever it is closed: it would not outlive its daemon."""


class Device(Protocol):
    """An open device file, or what stands for it in tests."""

    def options(self) -> int: ...
    def ioctl(self, request: int, value: int) -> int: ...
    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class _File:
    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def options(self) -> int:
        answer = fcntl.ioctl(self._descriptor, GETSUPPORT, bytes(_INFO.size))
        return int(_INFO.unpack(answer)[0])

    def ioctl(self, request: int, value: int) -> int:
        answer = fcntl.ioctl(self._descriptor, request, _INT.pack(value))
        return int(_INT.unpack(answer)[0])

    def write(self, data: bytes) -> None:
        os.write(self._descriptor, data)

    def close(self) -> None:
        os.close(self._descriptor)


class DeviceWatchdog:
    """A watchdog of the kernel, by its device. Opening it feeds and starts it: `disarm` after an error."""

    def __init__(self, path: str, opened: Callable[[str], Device] = _File) -> None:
        self.name = path
        self._opened = opened
        self._device: Device | None = None

    def arm(self, seconds: int) -> float:
        try:
            if self._device is None:
                self._device = self._opened(self.name)
            if not self._device.options() & MAGICCLOSE:
                raise DriverError(
                    f"the watchdog {self.name} stops when its daemon is killed: it has no magic close"
                )
            granted = _set_timeout(self._device, seconds)
            self._device.ioctl(KEEPALIVE, 0)
        except OSError as error:
            raise self._failed("armed", error) from error
        return float(granted)

    def feed(self) -> None:
        if self._device is None:
            raise DriverError(f"the watchdog {self.name} is not armed")
        try:
            self._device.ioctl(KEEPALIVE, 0)
        except OSError as error:
            raise self._failed("fed", error) from error

    def disarm(self) -> None:
        """What fails is tried again by the next one: until then it is armed, and has to be fed."""
        if self._device is None:
            return
        try:
            self._device.write(MAGIC_CLOSE)
        except OSError as error:
            raise self._failed("disarmed", error) from error
        device, self._device = self._device, None
        with suppress(OSError):
            device.close()  # Linux has closed it, whatever it says

    def _failed(self, what: str, error: OSError) -> DriverError:
        return DriverError(f"the watchdog {self.name} cannot be {what}: {error.strerror}", retryable=True)


def _set_timeout(device: Device, seconds: int) -> int:
    """What it grants. Some cannot be told."""
    try:
        device.ioctl(SETTIMEOUT, seconds)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    return device.ioctl(GETTIMEOUT, 0)


class SocketWatchdog:
    """A watchdog behind a unix socket, as in the lab: a line each to arm, feed and disarm, and one in answer.

    One that loses its connection goes on, as a device does.
    """

    ANSWER_S = 1.0

    def __init__(self, path: str) -> None:
        self.name = f"unix:{path}"
        self._path = path
        self._socket: socket.socket | None = None
        self._is_armed = False

    def arm(self, seconds: int) -> float:
        self._is_armed = True
        answer = self._ask(f"arm {seconds}")
        try:
            return float(answer)
        except ValueError:
            raise DriverError(f"the watchdog {self.name} answers {answer!r}") from None

    def feed(self) -> None:
        self._ask("feed")

    def disarm(self) -> None:
        if self._is_armed:
            self._ask("disarm")
            self._is_armed = False
            self._hang_up()

    def _ask(self, line: str) -> str:
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
                self._socket.settimeout(self.ANSWER_S)
                self._socket.connect(self._path)
            self._socket.sendall(f"{line}\n".encode())
            answer = self._socket.recv(64).decode(errors="replace").strip()
        except OSError as error:
            self._hang_up()
            why = error.strerror or str(error)
            raise DriverError(f"the watchdog {self.name} does not answer: {why}", retryable=True) from error
        if not answer or answer == "no":
            self._hang_up()
            raise DriverError(f"the watchdog {self.name} refuses to {line}", retryable=True)
        return answer

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def find(named: str, sysfs: Path = SYSFS) -> tuple[Watchdog | None, str]:
    """The watchdog that the configuration means, or why there is none. Raises Invalid."""
    if named == "none":
        return None, "none is wanted (daemon.watchdog)"
    if named == "auto":
        found = sorted(one.name for one in sysfs.glob("watchdog*") if _is_hardware(one))
        if not found:
            return None, "this machine has none (daemon.watchdog)"
        rests = [name for name in found if not _is_for_ever(sysfs / name)]
        return _device(f"/dev/{(rests or found)[0]}", sysfs)
    if named.startswith("unix:/"):
        return SocketWatchdog(named.removeprefix("unix:")), ""
    if named.startswith("/"):
        return _device(named, sysfs)
    raise Invalid(
        f"daemon.watchdog = {named!r} is no watchdog", hint='"auto", "none", /dev/watchdogN or unix:/SOCKET'
    )


def _device(path: str, sysfs: Path) -> tuple[Watchdog | None, str]:
    name = Path(path).resolve().name
    if _is_for_ever(sysfs / ("watchdog0" if name == "watchdog" else name)):
        return None, f"{path} cannot be disarmed again (nowayout): maintenance would reset this machine"
    return DeviceWatchdog(path), ""


def _is_for_ever(folder: Path) -> bool:
    try:
        return (folder / "nowayout").read_text().strip() == "1"
    except OSError:
        return False


def _is_hardware(folder: Path) -> bool:
    try:
        return (folder / "identity").read_text().strip() != SOFTWARE
    except OSError:
        return False
