"""The watchdog of a lab's machine: a socket that its node sees, and a reset when it is not fed in time.

It is a thread of the node's supervisor, so it lives and dies with the machine's power.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

POLL_S = 0.05
MOST_BYTES = 256


class Timer:
    """What it does with what it is told. A node that hangs up, or dies, leaves it going."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._ends = float("inf")

    def told(self, line: str, now: float) -> str:
        match line.split():
            case ["arm", seconds] if seconds.isdigit() and int(seconds) > 0:
                self._seconds = float(seconds)
            case ["feed"] if self._seconds:
                pass
            case ["disarm"]:
                self._seconds, self._ends = 0.0, float("inf")
                return "disarmed"
            case _:
                return "no"
        self._ends = now + self._seconds
        return f"{self._seconds:g}"

    def is_due(self, now: float) -> bool:
        return now >= self._ends


class Board:
    """Serves it at a path, on a thread of its own, until it is closed or has reset the machine."""

    def __init__(
        self, path: Path, reset: Callable[[], None], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._reset = reset
        self._monotonic = monotonic
        self._timer = Timer()
        self._ending = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)

    def start(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._server.bind(str(self._path))
        self._server.listen()
        self._server.setblocking(False)
        self._selector.register(self._server, selectors.EVENT_READ)
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def close(self) -> None:
        self._ending.set()

    def _run(self) -> None:
        while not self._ending.is_set():
            for key, _ in self._selector.select(POLL_S):
                if key.fileobj is self._server:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._answer(key.fileobj)
            if self._timer.is_due(self._monotonic()):
                self._reset()
                break
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()

    def _accept(self) -> None:
        connection, _ = self._server.accept()
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ)

    def _answer(self, connection: socket.socket) -> None:
        try:
            told = connection.recv(MOST_BYTES).decode(errors="replace")
            for line in told.splitlines():
                connection.sendall(f"{self._timer.told(line, self._monotonic())}\n".encode())
        except OSError:
            told = ""
        if not told:
            self._selector.unregister(connection)
            connection.close()
