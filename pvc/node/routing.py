"""Where guests are, as the nodes tell each other: who speaks with whom, and whether the speakers live."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from pvc.cluster.node import NetworkProblem, NodeRole, NodeSpec
from pvc.errors import PVCError
from pvc.node.drivers import Routing, Speaker

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""Between two looks at the daemons."""


def speaker(me: str, nodes: Iterable[NodeSpec]) -> Speaker:
    """Coordinators reflect what they hear from hypervisors; these speak with coordinators only."""
    others = {node.address: node.role for node in nodes if node.address != me}
    roles = {node.address: node.role for node in nodes}
    is_reflector = roles.get(me) is NodeRole.COORDINATOR
    reflectors = {address for address, role in others.items() if role is NodeRole.COORDINATOR}
    clients = others.keys() - reflectors if is_reflector else set()
    return Speaker(me, is_reflector, tuple(sorted(reflectors)), tuple(sorted(clients)))


class Speaking:
    """Keeps the routing daemons of this node as they are wanted; says what is wrong with them."""

    def __init__(self, routing: Routing) -> None:
        self.routing = routing
        self._lives: Mapping[str, int] = {}

    def step(self, wanted: Speaker | None) -> tuple[NetworkProblem, ...]:
        """None: no network needs them."""
        try:
            if wanted is None:
                if self.routing.stop():
                    log.info("routing stopped: no network needs it")
                self._lives = {}
                return ()
            self._say_who_died()
            if self.routing.serve(wanted):
                log.info("routing serves %s", wanted)
            self._lives = self.routing.lives()
        except PVCError as error:
            return (NetworkProblem(0, error.message),)
        dead = [name for name, life in self._lives.items() if not life]
        return tuple(NetworkProblem(0, f"{name} of FRR does not run") for name in dead)

    def _say_who_died(self) -> None:
        """One that was killed is back soon; that it died is worth knowing all the same."""
        now = self.routing.lives()
        for name, life in self._lives.items():
            if life and now.get(name) != life:
                how = "was started again" if now.get(name) else "does not run"
                log.error("%s of FRR ended by itself and %s", name, how)
