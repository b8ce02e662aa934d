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
    hidden,
    render,
)
from pvc.cluster.node import NetworkProblem
from pvc.errors import Failed
from pvc.node.drivers import PacketFilter
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
        clock: Clock,
    ) -> None:
        self.host = host
        self.addresses = addresses
        """Of this node, in its cluster and its storage network."""
        self.routes = routes
        self.clock = clock
        self.look_due = 0.0
        self.hide = Hidden()
        self.loaded: dict[int, Filtered] = {}
        self.loaded_hide: Hidden | None = None
        """None: nothing is loaded, as far as this life of the daemon knows."""
        self.problems: tuple[NetworkProblem, ...] = ()

    def serve(self, scene: Scene) -> Sequence[NetworkProblem]:
        if self.clock.monotonic() >= self.look_due:
            self.hide = hidden(self.routes(), self.addresses)
            self.look_due = self.clock.monotonic() + LOOK_S
        wanted = {
            vni: Filtered(one.spec, one.access) for vni, one in scene.networks.items() if one.spec.gateways
        }
        if self.hide != self.loaded_hide or wanted != self.loaded:
            self._load(wanted)
        elif not self.host.is_as_loaded():
            log.warning("somebody else changed the filters: loading them again")
            self._load(wanted)
        return self.problems

    def rest(self) -> None:
        self.loaded, self.loaded_hide, self.problems = {}, None, ()
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
            rendered = render(wanted.values(), self.hide, counts, frozenset(closed))
            try:
                self.host.load(rendered.text)
                break
            except Refused as refused:
                found = _closing(rendered, refused)
                if not found:
                    raise Failed(f"no network can be filtered here: {refused.message}") from refused
                closed |= found
        self.loaded, self.loaded_hide = dict(wanted), self.hide
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
