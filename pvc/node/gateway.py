"""The primary as gateway of managed networks: its addresses there, and what it passes on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from pvc.clock import Clock
from pvc.cluster.addresses import parse_router
from pvc.cluster.network import NetworkSpec
from pvc.cluster.node import NetworkProblem
from pvc.node.drivers.networks import Gateway, HostGateways
from pvc.node.services import Scene

log = logging.getLogger(__name__)

LOOK_S = 30.0
"""Between two looks at links that somebody else may have changed."""
ANNOUNCE_AFTER_S = (0.0, 0.2, 1.0)
"""Guests may miss one announcement, and bridges may still be learning."""
IDLE_S = 3600.0
ROUTER = "fe80::1/64"
"""By which guests know a router of IPv6: the same on every node, like its MAC address."""


@dataclass(frozen=True, slots=True)
class Plan:
    take: tuple[int, ...]
    give: tuple[Gateway, ...]


def plan(specs: Iterable[NetworkSpec], bridges: Mapping[int, int], found: Mapping[int, Gateway]) -> Plan:
    """Nothing where all is as it should be.

    Each has the MTU of its bridge. Of a network whose bridge is not there, or not to be used, what is there
    stays and what is missing has to wait.
    """
    routed = {spec.vni: spec for spec in specs if spec.gateways}
    wanted = (
        Gateway(vni, bridges[vni], _addresses(spec)) for vni, spec in sorted(routed.items()) if vni in bridges
    )
    leaving = tuple(sorted(found.keys() - routed.keys()))
    return Plan(leaving, tuple(one for one in wanted if found.get(one.vni) != one))


def _addresses(spec: NetworkSpec) -> tuple[str, ...]:
    found = []
    if spec.ipv4.gateway:
        found.append(f"{spec.ipv4.gateway}/{ip_network(spec.ipv4.network).prefixlen}")
    if spec.ipv6.gateway:
        found += [f"{spec.ipv6.gateway}/{ip_network(spec.ipv6.network).prefixlen}", ROUTER]
    return tuple(sorted(found))


class Gateways:
    """A Service. Links are looked at when a network or its bridge changed, and now and then.

    A gateway is the same on every node that has it, down to its MAC address, so for a moment two may have it.
    What is new is announced, on a thread of its own: `announce`.
    """

    def __init__(
        self,
        host: HostGateways,
        bridges: Callable[[], Mapping[int, int]],
        guards: Callable[[int], bool],
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        self.host = host
        self.bridges = bridges
        self.guards = guards
        """Whether the node is kept from a network's guests: before that, they get no way to it."""
        self.clock = clock
        self.wake = wake
        self.specs: list[NetworkSpec] = []
        self.usable: Mapping[int, int] = {}
        self.towards: tuple[str, ...] = ()
        self.due = 0.0
        self.problems: tuple[NetworkProblem, ...] = ()
        self.lock = threading.Lock()
        self._announce_at: dict[int, list[float]] = {}

    def serve(self, scene: Scene) -> Sequence[NetworkProblem]:
        specs = [one.spec for one in scene.networks.values()]
        # Whoever makes bridges, or guards, says why not.
        bridges = {vni: mtu for vni, mtu in self.bridges().items() if self.guards(vni)}
        towards = outside(scene)
        now = self.clock.monotonic()
        is_same = (specs, bridges, towards) == (self.specs, self.usable, self.towards)
        if is_same and now < self.due:
            return self.problems
        self.due = 0.0  # should this fail, the next round tries again
        problems = self._correct(specs, bridges)
        routed = [spec for spec in specs if spec.gateways and spec.vni in bridges]
        has_ipv6 = any(spec.ipv6.gateway for spec in routed)
        if routed and self.host.forward(towards, ipv6=has_ipv6):
            log.info("packets are passed on between gateways and outside")
        self.specs, self.usable, self.towards, self.problems = specs, bridges, towards, problems
        self.due = 0.0 if problems else now + LOOK_S
        return problems

    def rest(self) -> None:
        with self.lock:
            self._announce_at.clear()
        self.due = 0.0
        self.specs = []
        found = self.host.gateways()
        if found:
            self.host.take(found)
            log.info("gave up %d gateways", len(found))
        self.host.end_forwarding()

    def announce(self) -> float:
        """Those that are due. Seconds until the next is."""
        now = self.clock.monotonic()
        with self.lock:
            ready = [vni for vni, times in self._announce_at.items() if times[0] <= now]
            left = {vni: [at for at in times if at > now] for vni, times in self._announce_at.items()}
            self._announce_at = {vni: times for vni, times in left.items() if times}
            due = min((times[0] for times in self._announce_at.values()), default=now + IDLE_S)
        if ready:
            self.host.announce(ready)
        return due - now

    def _correct(
        self, specs: Iterable[NetworkSpec], bridges: Mapping[int, int]
    ) -> tuple[NetworkProblem, ...]:
        found = self.host.gateways()
        planned = plan(specs, bridges, found)
        if planned.take:
            self.host.take(planned.take)
            log.info("gave up the gateways of networks %s", ", ".join(map(str, planned.take)))
        failed = self.host.give(planned.give) if planned.give else {}
        made = [one for one in planned.give if one.vni not in failed]
        for gateway in made:
            log.info("%s gw%d with %s", _done(gateway, found), gateway.vni, ", ".join(gateway.addresses))
        with self.lock:
            now = self.clock.monotonic()
            for gateway in made:
                self._announce_at[gateway.vni] = [now + after for after in ANNOUNCE_AFTER_S]
        if made:
            self.wake()
        return tuple(NetworkProblem(vni, why) for vni, why in failed.items())


def _done(gateway: Gateway, found: Mapping[int, Gateway]) -> str:
    return "corrected" if gateway.vni in found else "made"


def outside(scene: Scene) -> tuple[str, ...]:
    """Addresses in the networks outside, between which and the gateways packets pass."""
    routers = (parse_router(text).address for text in scene.cluster.routers)
    return tuple(one for one in (scene.cluster.upstream_address, *routers) if one)
