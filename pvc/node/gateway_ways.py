"""Where this node sends what is for gateways, which are on the primary.

Routing tells, and may be wrong for ever. Of two places of a MAC address FRRouting's zebra keeps the one with
the higher sequence number (its issue 10468, open in 2026), and a gateway's may fall: a primary that knows the
gateway at another node takes it with the next number, and one that has heard that the other let go takes it
with 0. A third node that hears of the two in the other order then sends to the node that had it, where nobody
takes it. So each node looks, a moment after each move and now and then.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from pvc.clock import Clock
from pvc.errors import PVCError
from pvc.node.drivers.networks import GatewayTunnels

log = logging.getLogger(__name__)

AFTER_S = (1.0, 3.0)
"""A move: routing is to be first, for it knows when a gateway is really there."""
LOOK_S = 30.0


class GatewayWays:
    def __init__(self, tunnels: GatewayTunnels, clock: Clock) -> None:
        self.tunnels = tunnels
        self.clock = clock
        self._due: list[float] = [clock.monotonic()]

    def moved(self) -> None:
        now = self.clock.monotonic()
        self._due = [now + after for after in AFTER_S]

    def see_to(self, vnis: Collection[int], primary: str) -> float:
        """Of networks whose gateways are at another node, with that address.

        Seconds until the next look is due.
        """
        now = self.clock.monotonic()
        if self._due[0] <= now:
            self._due = [at for at in self._due if at > now] or [now + LOOK_S]
            if vnis:
                self._correct(vnis, primary)
        return self._due[0] - now

    def _correct(self, vnis: Collection[int], primary: str) -> None:
        """What cannot be looked at now is at the next look."""
        try:
            for vni, vtep in self.tunnels.vteps(vnis).items():
                if vtep != primary:
                    self.tunnels.lead(vni, primary)
                    log.warning("the gateway of network %d is at %s: routing led to %s", vni, primary, vtep)
        except PVCError as error:
            log.warning("where gateways are is not looked at: %s", error.message)
