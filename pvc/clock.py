"""Time as a value that is passed in, so that decisions can be simulated."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds that never jump; only comparable within this process."""
        ...

    def wall(self) -> float:
        """Seconds since the epoch, to show to people; never compared between hosts."""
        ...


class SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()
