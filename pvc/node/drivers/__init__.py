"""What a node's daemon needs of the world: protocols over plain values, and drivers that fulfil them."""

from __future__ import annotations

from typing import Protocol

from pvc.errors import Failed


class DriverError(Failed):
    """The other side said no. `retryable`: the same request may succeed later, unchanged."""

    def __init__(self, message: str, *, hint: str = "", retryable: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable


class NoAnswer(DriverError):
    """QEMU, libvirt itself or an agent in a guest hangs: what was asked for may still happen."""


class Watchdog(Protocol):
    """Resets this machine when it has not been fed for so long. Every call may raise DriverError, soon.

    It outlives whoever armed it: only `disarm` ends it.
    """

    @property
    def name(self) -> str: ...

    def arm(self, seconds: int) -> float:
        """Feeds it, too. Returns the seconds that it granted."""
        ...

    def feed(self) -> None: ...

    def disarm(self) -> None:
        """Done already when it is not armed."""
        ...
