"""Gives this node the cluster's networks, on a thread of its own: VMs wait for none of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pvc.clock import Clock
from pvc.cluster import paths
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.codec import Unreadable
from pvc.cluster.filters import Route
from pvc.cluster.membership import Primary
from pvc.cluster.mirror import Follow, Mirror
from pvc.cluster.network import Kind, NetworkSpec
from pvc.cluster.node import NetworkProblem, NodeSpec
from pvc.cluster.store import SessionState, Store
from pvc.cluster.view import View
from pvc.errors import PVCError
from pvc.node import routing
from pvc.node.drivers.networks import HostLinks, Speaker
from pvc.node.gateway_ways import GatewayWays
from pvc.node.path_mtu import PathMTU, Paths
from pvc.node.plan_network import Add, Change, Host, Remove, Step, plan, vni_of

log = logging.getLogger(__name__)

LOOK_S = 30.0
"""Between two looks at links that somebody else may have changed."""
RETRY_S = 5.0
"""While something is not as it should be."""
UNAVAILABLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Found:
    """How the networks are on this node; published when it changes."""

    managed_mtu: int
    bridged_mtu: int
    problems: tuple[NetworkProblem, ...]


class Networks:
    """`step` does one round: compare what is wanted with what is, and take what steps there are.

    Links are looked at when a network changed and now and then. They wait neither for routing nor for paths.
    """

    def __init__(
        self,
        address: str,
        bridge_device: str,
        store: Store,
        links: HostLinks,
        speaking: routing.Speaking,
        clock: Clock,
        publish: Callable[[Found], None],
        wake: Callable[[], None],
        paths: PathMTU,
        ways: GatewayWays,
        routes: Callable[[], Iterable[Route]] = tuple,
    ) -> None:
        self.address = address
        self.bridge_device = bridge_device
        self.store = store
        self.links = links
        self.clock = clock
        self.speaking = speaking
        self.publish = publish
        self.path_mtu = paths
        self.ways = ways
        self.routes = routes
        self.own: tuple[str, ...] = ()
        """Networks of the node itself."""
        self.mirror = Mirror(store, _FOLLOWED, _expand, wake)
        self.view = View(self.mirror)
        self.published: Found | None = None
        self.linked = threading.Event()
        """The links have been seen to: VMs can start, though routing may need a moment more."""
        self.links_due = clock.monotonic()
        self.mtus = (0, 0)
        self.said: tuple[NetworkProblem, ...] = ()
        self.link_problems: tuple[NetworkProblem, ...] = ()
        self.bridges: Mapping[int, int] = {}
        """Of the managed networks that are here, each with its MTU. Replaced when it is another."""
        self.bridges_changed: Callable[[], None] = lambda: None

    def step(self) -> float:
        """Seconds until the next round is due. Nothing is decided while the store does not answer."""
        if self.store.session.state is not SessionState.CONNECTED:
            return UNAVAILABLE_S
        changed = self.mirror.sync()
        if paths.PRIMARY in changed:
            self.ways.moved()
        specs, unreadable = self._wanted()
        # While the mirror is new: links may take their time, and another node be primary then.
        ways_due = self.ways.see_to(*self._gateways_elsewhere(specs))
        if changed - {paths.PRIMARY} or self.clock.monotonic() >= self.links_due:
            self._see_to_links(specs, unreadable)
        self.linked.set()
        is_managed = any(spec.kind is Kind.MANAGED for spec in specs)
        self.speaking.speak(self._speaker(specs) if is_managed else None)
        self._publish()
        return max(0.0, min(ways_due, self.links_due) - self.clock.monotonic())

    def _gateways_elsewhere(self, specs: Iterable[NetworkSpec]) -> tuple[list[int], str]:
        """The networks of those that another node has as primary, and its address."""
        vnis = [spec.vni for spec in specs if spec.gateways]
        address = self._primary_address() if vnis else ""
        return (vnis, address) if address not in ("", self.address) else ([], "")

    def _primary_address(self) -> str:
        """Empty: nobody is, or it cannot be read who."""
        try:
            stored = self.mirror.get(paths.PRIMARY)
            name = self.view.decode(Primary, stored).node if stored else ""
            found = self.mirror.get(paths.node(name)) if name else None
            return self.view.decode(NodeSpec, found).address if found else ""
        except Unreadable:
            return ""

    def _speaker(self, specs: Iterable[NetworkSpec]) -> Speaker:
        stored = self.mirror.get(paths.CLUSTER)
        cluster = self.view.decode(ClusterSpec, stored) if stored else ClusterSpec("")
        return routing.speaker(self.address, self._nodes(), cluster, specs, self.own)

    def _see_to_links(self, specs: list[NetworkSpec], unreadable: dict[int, str]) -> None:
        host = self._host()
        planned = plan(specs, host, unreadable)
        failed = self._take(planned.steps)
        if planned.steps:
            self.published = None  # the node's list of bridges may be another
        self.mtus = (host.managed_mtu, host.bridged_mtu)
        self.own = routing.own_networks(self.routes())
        is_managed = any(spec.kind is Kind.MANAGED for spec in specs)
        self.path_mtu.look_at(self._paths(host) if is_managed else Paths(0))
        self.link_problems = (*planned.problems, *failed)
        missing = {problem.vni for problem in failed}
        self._bridges_are({vni: mtu for vni, mtu in planned.bridges.items() if vni not in missing})
        self.links_due = self.clock.monotonic() + (RETRY_S if self.link_problems else LOOK_S)

    def _bridges_are(self, bridges: Mapping[int, int]) -> None:
        if bridges != self.bridges:
            self.bridges = bridges
            self.bridges_changed()

    def _publish(self) -> None:
        said = (*self.link_problems, *self.speaking.problems, *self.path_mtu.problems)
        problems = sorted(said, key=lambda one: one.vni)
        found = Found(*self.mtus, tuple(problems))
        if found != self.published:
            self.publish(found)
            self._say(found)
            self.published = found

    def _paths(self, host: Host) -> Paths:
        below = host.links.get(host.cluster_device)
        peers = sorted((node.name, node.address) for node in self._nodes() if node.address != self.address)
        return Paths(below.mtu if below else 0, tuple(peers))

    def _nodes(self) -> list[NodeSpec]:
        stored = self.mirror.get_many([paths.node(name) for name in self.mirror.children(paths.NODES)])
        return [self.view.decode(NodeSpec, one) for one in stored if one is not None]

    def _wanted(self) -> tuple[list[NetworkSpec], dict[int, str]]:
        """A document that is damaged freezes its own network and no other."""
        specs, unreadable = [], {}
        for vni in (int(name) for name in self.mirror.children(paths.NETWORKS)):
            try:
                specs += [one.spec for one in self.view.networks([vni]).values()]
            except Unreadable as error:
                unreadable[vni] = error.message
        return specs, unreadable

    def _host(self) -> Host:
        return Host(
            address=self.address,
            cluster_device=self.links.device_of(self.address),
            bridge_device=self.bridge_device,
            links=self.links.links(),
        )

    def _take(self, steps: Iterable[Step]) -> list[NetworkProblem]:
        """Of a network of which one step fails, the others have to wait."""
        failed: dict[int, NetworkProblem] = {}
        for step in steps:
            vni = vni_of(step.link) or 0
            if vni in failed:
                continue
            try:
                self._take_one(step)
            except PVCError as error:
                failed[vni] = NetworkProblem(vni, error.message)
        return list(failed.values())

    def _take_one(self, step: Step) -> None:
        match step:
            case Add(link):
                self.links.add(link)
                log.info("made %s", link.name)
            case Change(link):
                self.links.change(link)
                log.info("corrected %s", link.name)
            case Remove(link):
                self.links.remove(link.name)
                log.info("removed %s", link.name)

    def _say(self, found: Found) -> None:
        for problem in found.problems:
            if problem not in self.said:
                log.warning("network %s: %s", problem.vni or "routing", problem.why)
        self.said = found.problems


_FOLLOWED = (
    Follow(paths.CLUSTER),
    Follow(paths.PRIMARY),
    Follow(paths.NETWORKS, children=True),
    Follow(paths.NODES, children=True),
)


def _expand(listing: str, names: tuple[str, ...]) -> Iterable[Follow]:
    where = paths.network if listing == paths.NETWORKS else paths.node
    return (Follow(where(name)) for name in names)
