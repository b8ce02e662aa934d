"""What bringing a lab up and taking it down have in common: the lock, the stages, the lab that exists."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pvc.errors import Conflict, NotFound
from pvc.lab import preflight
from pvc.lab.layout import Lab, directory_of_environment, load

Say = Callable[[str], None]


class Stages:
    """Tells each stage with the seconds since the start."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._began = time.monotonic()

    def done(self, what: str) -> None:
        self._say(f"{time.monotonic() - self._began:6.2f} s  {what}")


def existing() -> Lab:
    """The lab that was started. Raises NotFound."""
    preflight.need_root()
    lab = load(directory_of_environment())
    if lab is None:
        raise NotFound("there is no lab", hint="pvc lab up")
    return lab


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One `up` or `down` at a time. The lock is on the directory itself, so that none is left behind."""
    while True:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(
                    "another pvc lab up or down is running", hint="wait for it, or stop it"
                ) from None
            if directory.exists() and os.fstat(descriptor).st_ino == directory.stat().st_ino:
                yield
                return
            directory.mkdir(parents=True, exist_ok=True)
        finally:
            os.close(descriptor)
