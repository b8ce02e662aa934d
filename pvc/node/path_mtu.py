"""Whether packets as long as this node's MTU reach the other nodes: a switch between them may carry less."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pvc.clock import Clock
from pvc.cluster.node import NetworkProblem
from pvc.node.drivers.networks import Ping

log = logging.getLogger(__name__)

LOOK_S = 3600.0
RETRY_S = 60.0
"""While some do not get them."""
HEADERS, HEADERS_IPV6 = 28, 48
"""IP and ICMP."""


@dataclass(frozen=True, slots=True)
class Paths:
    """From this node to all others."""

    mtu: int
    """Of the device on the cluster network; 0: nothing is to be looked at."""
    peers: tuple[tuple[str, str], ...] = ()
    """Name and address."""


class PathMTU:
    """Told what to look at by the thread of the networks; on its own, since who is dead does not answer."""

    def __init__(
        self, ping: Ping, clock: Clock, wake: Callable[[], None], changed: Callable[[], None]
    ) -> None:
        self.ping = ping
        self.clock = clock
        self.wake = wake
        self.changed = changed
        self.wanted = self.looked_at = Paths(0)
        self.due = 0.0
        self.problems: tuple[NetworkProblem, ...] = ()

    def look_at(self, paths: Paths) -> None:
        if paths != self.wanted:
            self.wanted = paths
            self.wake()

    def step(self) -> float:
        """Seconds until the next look is due."""
        now = self.clock.monotonic()
        wanted = self.wanted
        if wanted != self.looked_at or now >= self.due:
            found = _problems(wanted, self._who_gets_less(wanted))
            self.looked_at, self.due = wanted, now + (RETRY_S if found else LOOK_S)
            if found != self.problems:
                self.problems = found
                self.changed()
        return max(0.0, self.due - self.clock.monotonic())

    def _who_gets_less(self, paths: Paths) -> list[str]:
        if not paths.mtu:
            return []
        return [name for name, address in paths.peers if self._gets_less(address, paths.mtu)]

    def _gets_less(self, address: str, mtu: int) -> bool:
        """One that does not answer at all says nothing about its path."""
        greatest = mtu - (HEADERS_IPV6 if ":" in address else HEADERS)
        return not self.ping(address, greatest) and self.ping(address, 0) and not self.ping(address, greatest)


def _problems(paths: Paths, names: Iterable[str]) -> tuple[NetworkProblem, ...]:
    less = ", ".join(names)
    if not less:
        return ()
    why = f"packets of {paths.mtu} bytes, this node's MTU on the cluster network, do not reach {less}"
    return (NetworkProblem(0, f"{why}: something between carries less"),)
