"""Where guests are, as the nodes tell each other: who speaks with whom, and whether the speakers live."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping

from pvc.cluster.addresses import parse_router
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.filters import Route
from pvc.cluster.network import NetworkSpec
from pvc.cluster.node import NetworkProblem, NodeRole, NodeSpec
from pvc.errors import PVCError
from pvc.node.drivers.networks import Routing, Speaker, Upstream

log = logging.getLogger(__name__)

OF_VMS = re.compile(r"(gw|gp|br|vx|vl)[0-9]+")
"""Devices of networks of VMs."""
LOOK_S = 5.0
"""Between two looks at the daemons."""
IDLE_S = 30.0
"""The same while no network needs them."""


def speaker(
    me: str,
    nodes: Iterable[NodeSpec],
    cluster: ClusterSpec = ClusterSpec(""),  # noqa: B008  frozen
    networks: Iterable[NetworkSpec] = (),
    own: tuple[str, ...] = (),
) -> Speaker:
    """Coordinators reflect what they hear from hypervisors; these speak with coordinators only.

    Coordinators speak with routers upstream too, each as if it were primary: who is has something to tell.
    """
    every = list(nodes)
    others = {node.address: node.role for node in every if node.address != me}
    roles = {node.address: node.role for node in every}
    is_reflector = roles.get(me) is NodeRole.COORDINATOR
    reflectors = {address for address, role in others.items() if role is NodeRole.COORDINATOR}
    clients = others.keys() - reflectors if is_reflector else set()
    upstream = None
    if is_reflector and cluster.routers:
        announced = {spec.vni: _behind(spec) for spec in networks if spec.gateways}
        upstream = Upstream(tuple(map(parse_router, cluster.routers)), announced, own)
    return Speaker(
        me,
        is_reflector,
        tuple(sorted(reflectors)),
        tuple(sorted(clients)),
        cluster.as_number,
        upstream,
    )


def _behind(spec: NetworkSpec) -> tuple[str, ...]:
    """What is routed through its gateways."""
    families = (spec.ipv4, spec.ipv6)
    return tuple(one.network for one in families if one.gateway)


def own_networks(routes: Iterable[Route]) -> tuple[str, ...]:
    """Of the node, as its routes tell: those on its devices that are not of networks of VMs."""
    found = {
        route.prefix
        for route in routes
        if route.is_direct
        and 0 < route.prefix.prefixlen < route.prefix.max_prefixlen
        and not (route.prefix.is_link_local or route.prefix.is_multicast)
        and not OF_VMS.fullmatch(route.device)
    }
    return tuple(str(one) for one in sorted(found, key=lambda one: (one.version, one)))


class Speaking:
    """Keeps the routing daemons of this node as they are wanted; says what is wrong with them.

    Told what is wanted by the thread of the networks; on its own, since these daemons may take minutes.
    """

    def __init__(self, routing: Routing, wake: Callable[[], None], changed: Callable[[], None]) -> None:
        self.routing = routing
        self.wake = wake
        self.changed = changed
        self.problems: tuple[NetworkProblem, ...] = ()
        self._wanted: Speaker | None = None
        self._is_told = False
        self._lives: Mapping[str, int] = {}

    def speak(self, wanted: Speaker | None) -> None:
        """None: no network needs them."""
        if self._is_told and wanted == self._wanted:
            return
        self._wanted = wanted
        self._is_told = True
        self.wake()

    def step(self) -> float:
        """Seconds until the next look is due. Nothing is touched before it is known what is wanted."""
        if not self._is_told:
            return IDLE_S
        wanted = self._wanted
        found = self._see_to(wanted)
        if found != self.problems:
            self.problems = found
            self.changed()
        return IDLE_S if wanted is None else LOOK_S

    def _see_to(self, wanted: Speaker | None) -> tuple[NetworkProblem, ...]:
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
