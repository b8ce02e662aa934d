"""Writing into an image file of any format, through qemu-nbd, which ends with its one client."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pvc.cluster.storage import Format
from pvc.node.drivers import DriverError
from pvc.proc import start

HELLO, OPTION = b"NBDMAGICIHAVEOPT", b"IHAVEOPT"
FIXED_NEWSTYLE, NO_ZEROES = 1, 2
EXPORT_NAME = 1
REQUEST, REPLY = struct.Struct(">IHHQQI"), struct.Struct(">IIQ")
ASKED, ANSWERED = 0x25609513, 0x67446698
WRITE, END, FLUSH, ZERO = 1, 2, 3, 6
AT_ONCE, ZERO_AT_ONCE = 4 * 1024**2, 1024**3
BEGIN_S = 0.02
"""Between two looks whether it answers yet."""
END_S = 60.0
SILENT_S = 120.0


@contextmanager
def opened(file: Path, format: Format) -> Iterator[Export]:
    """Its content is with the file system when the block has ended well."""
    with tempfile.TemporaryDirectory(prefix="pvc-nbd-") as where:
        place, said = os.path.join(where, "socket"), Path(where, "said")
        server = start(["qemu-nbd", "-f", format, "-k", place, str(file)], log_file=said)
        try:
            with _connected(server, place, said) as channel:
                export = Export(channel)
                yield export
                export.end()
            if server.wait(END_S) != 0:
                raise DriverError(_last(said))
        except subprocess.TimeoutExpired:
            raise DriverError(f"qemu-nbd does not end with {file}") from None
        finally:
            server.kill()
            server.wait()


@contextmanager
def _connected(server: subprocess.Popen[bytes], place: str, said: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(SILENT_S)
        while True:
            with suppress(FileNotFoundError, ConnectionRefusedError):
                channel.connect(place)
                break
            with suppress(subprocess.TimeoutExpired):
                server.wait(BEGIN_S)
                raise DriverError(_last(said) or "qemu-nbd ended at once")
        yield channel


def _last(said: Path) -> str:
    words = said.read_text(errors="replace").strip().splitlines()
    return words[-1].removeprefix("qemu-nbd: ") if words else ""


class Export:
    """The Filling of a new volume; each request waits for its answer."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        if not self._receive(18).startswith(HELLO):
            raise DriverError("qemu-nbd does not say what it should")
        self._send(struct.pack(">I8sII", FIXED_NEWSTYLE | NO_ZEROES, OPTION, EXPORT_NAME, 0))
        self._receive(10)

    def write(self, offset: int, data: bytes) -> None:
        for into in range(0, len(data), AT_ONCE):
            piece = data[into : into + AT_ONCE]
            self._ask(WRITE, offset + into, len(piece), piece)

    def zero(self, offset: int, length: int) -> None:
        for into in range(0, length, ZERO_AT_ONCE):
            self._ask(ZERO, offset + into, min(ZERO_AT_ONCE, length - into))

    def end(self) -> None:
        self._ask(FLUSH)
        self._send(REQUEST.pack(ASKED, 0, END, 0, 0, 0))

    def _ask(self, what: int, offset: int = 0, length: int = 0, data: bytes = b"") -> None:
        self._send(REQUEST.pack(ASKED, 0, what, 0, offset, length) + data)
        magic, error, _ = REPLY.unpack(self._receive(REPLY.size))
        if magic != ANSWERED:
            raise DriverError("qemu-nbd does not say what it should")
        if error:
            raise DriverError(f"the image cannot be written: {os.strerror(error)}")

    def _send(self, data: bytes) -> None:
        try:
            self.channel.sendall(data)
        except OSError as error:
            raise _silent(error) from None

    def _receive(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            try:
                more = self.channel.recv(count - len(found))
            except OSError as error:
                raise _silent(error) from None
            if not more:
                raise DriverError("qemu-nbd ended in the middle")
            found += more
        return found


def _silent(error: OSError) -> DriverError:
    return DriverError(f"qemu-nbd does not answer: {error.strerror or error}")
