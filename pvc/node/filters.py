"""Keeps the filters of managed networks in the primary's kernel, before anything of a network is up there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from pvc.clock import Clock
from pvc.cluster.clients import Direction
from pvc.cluster.filters import (
    Filtered,
    Hidden,
    Refused,
    Rendered,
    Route,
    Transit,
    hidden,
    render,
)
from pvc.cluster.node import NetworkProblem
from pvc.errors import Failed
from pvc.node.drivers.networks import HostGateways, PacketFilter
from pvc.node.services import Scene

log = logging.getLogger(__name__)

LOOK_S = 60.0
"""Between two looks at where this node's own networks are."""


class Filters:
    """A Service. A network that it does not guard must not get a gateway: its guests would reach the node."""

    def __init__(
        self,
        host: PacketFilter,
        addresses: Sequence[str],
        routes: Callable[[], Iterable[Route]],
        gateways: HostGateways,
        clock: Clock,
    ) -> None:
        self.host = host
        self.addresses = addresses
        """Of this node, in its cluster and its storage network."""
        self.routes = routes
        self.gateways = gateways
        """Only asked."""
        self.clock = clock
        self.look_due = 0.0
        self.around = Hidden(), Transit()
        self.loaded: dict[int, Filtered] = {}
        self.loaded_around: tuple[Hidden, Transit] | None = None
        """None: nothing is loaded, as far as this life of the daemon knows."""
        self.problems: tuple[NetworkProblem, ...] = ()

    def serve(self, scene: Scene) -> Sequence[NetworkProblem]:
        if self.clock.monotonic() >= self.look_due:
            self.around = hidden(self.routes(), self.addresses), self.gateways.transit()
            self.look_due = self.clock.monotonic() + LOOK_S
        wanted = {
            vni: Filtered(one.spec, one.access) for vni, one in scene.networks.items() if one.spec.gateways
        }
        if self.around != self.loaded_around or wanted != self.loaded:
            self._load(wanted)
        elif not self.host.is_as_loaded():
            log.warning("somebody else changed the filters: loading them again")
            self._load(wanted)
        return self.problems

    def rest(self) -> None:
        if self.gateways.is_left():
            raise Failed("the filters stay: gateways are still there, or packets still passed on")
        self.loaded, self.loaded_around, self.problems, self.look_due = {}, None, (), 0.0
        self.host.remove()

    def guards(self, vni: int) -> bool:
        return vni in self.loaded

    def _load(self, wanted: Mapping[int, Filtered]) -> None:
        """Raises Failed, or what the driver raises; then what was loaded before goes on.

        A rule that this kernel does not take closes its own network and no other.
        """
        counts = self.host.counts() or {}
        closed: dict[tuple[int, Direction], NetworkProblem] = {}
        while True:
            hide, transit = self.around
            rendered = render(wanted.values(), hide, counts, frozenset(closed), transit)
            try:
                self.host.load(rendered.text)
                break
            except Refused as refused:
                found = _closing(rendered, refused)
                if not found:
                    raise Failed(f"no network can be filtered here: {refused.message}") from refused
                closed |= found
        self.loaded, self.loaded_around = dict(wanted), self.around
        self.problems = tuple(closed.values())
        log.info("loaded the filters of %d networks", len(wanted))


def _closing(rendered: Rendered, refused: Refused) -> dict[tuple[int, Direction], NetworkProblem]:
    places = [
        (rendered.places[fault.line], fault) for fault in refused.faults if fault.line in rendered.places
    ]
    return {
        (place.vni, place.rule.direction): NetworkProblem(
            place.vni,
            f"nothing new passes {place.rule.direction}: nft does not take the rule"
            f" {place.rule.description} here: {fault.message}",
        )
        for place, fault in places
    }
