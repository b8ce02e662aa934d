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
SAID = 10
"""Networks that are named in the log."""


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

        Returns the monotonic time at which the next look is due.
        """
        now = self.clock.monotonic()
        if self._due[0] <= now:
            self._due = [at for at in self._due if at > now] or [now + LOOK_S]
            if vnis:
                self._correct(vnis, primary)
        return self._due[0]

    def _correct(self, vnis: Collection[int], primary: str) -> None:
        """What cannot be done now is at the next look."""
        try:
            found = self.tunnels.vteps(vnis)
        except PVCError as error:
            log.warning("where gateways are is not looked at: %s", error.message)
            return
        wrong = sorted(vni for vni, vtep in found.items() if vtep != primary)
        for vni in wrong:
            try:
                self.tunnels.lead(vni, primary)
            except PVCError as error:
                log.warning("network %d: %s", vni, error.message)
        if wrong:
            said = ", ".join(map(str, wrong[:SAID])) + (", …" if len(wrong) > SAID else "")
            led = ", ".join(sorted({found[vni] for vni in wrong}))
            log.warning("gateways of networks %s are sought at %s: routing led to %s", said, primary, led)
