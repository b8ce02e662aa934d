"""What the primary does for managed networks: gateways, filters, addresses, names. On a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from pvc.cluster import paths
from pvc.cluster.client_view import ClientsView, expand_networks, followed_networks
from pvc.cluster.clients import Clients
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.membership import Primary
from pvc.cluster.mirror import Follow, Mirror
from pvc.cluster.node import NetworkProblem, NodeRole, NodeSpec
from pvc.cluster.store import Check, Op, SessionState, Store
from pvc.cluster.view import View
from pvc.errors import Conflict, PVCError

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""Between two looks at services, which may have died."""
UNAVAILABLE_S = 1.0

Commit = Callable[..., None]
"""Of operations, as primary: see `Services.commit`."""


@dataclass(frozen=True)
class Scene:
    """What services are made from. What did not change is the same object as in the scene before."""

    cluster: ClusterSpec
    nodes: Mapping[str, NodeSpec]
    networks: Mapping[int, Clients]
    """Those that are managed."""


class Service(Protocol):
    """One kind of service of all networks. Called by one thread at a time; any call may raise PVCError."""

    def serve(self, scene: Scene) -> Sequence[NetworkProblem]:
        """Have it be so: make what is missing, leave what is right. Called each round, mostly for nothing."""
        ...

    def rest(self) -> None:
        """End and remove all of it here, also what an earlier life of the daemon has left."""
        ...


class Services:
    """`step` does one round. Whether this node is primary, the store says."""

    def __init__(
        self,
        node: str,
        store: Store,
        services: Callable[[Commit], Sequence[Service]],
        publish: Callable[[tuple[NetworkProblem, ...]], None],
        wake: Callable[[], None],
    ) -> None:
        self.node = node
        self.store = store
        self.publish = publish
        self.mirror = Mirror(store, _FOLLOWED, _expand, wake)
        self.view = View(self.mirror)
        self.services = services(self.commit)
        """In the order in which they begin; they end in the opposite one."""
        self.clients = ClientsView(self.view)
        self.is_serving: bool | None = None
        """None: it is not known what an earlier life has left."""
        self.lock = threading.Lock()
        """Over a round, and over the end: neither begins anew what the other ends."""
        self.ending = False
        self.published: tuple[NetworkProblem, ...] | None = None

    def step(self) -> float:
        """Seconds until the next round is due.

        What is served goes on until another node is primary: while the store does not answer, while nobody
        is, and where an earlier life of this daemon was. Another primary may serve besides for a moment: an
        identical gateway with the same addresses, which decides nothing for the cluster.
        """
        with self.lock:
            if self.ending:
                return LOOK_S
            if self.store.session.state is not SessionState.CONNECTED:
                return UNAVAILABLE_S
            self._round()
            return LOOK_S

    def _round(self) -> None:
        changed = self.mirror.sync()
        self.clients.update(changed)
        stored = self.mirror.get(paths.PRIMARY)
        if stored is not None and stored.session == self.store.session.id:
            self._serve()
        elif stored is not None and self.view.decode(Primary, stored).node != self.node:
            self.rest()
            self._publish(())

    def commit(self, *ops: Op) -> None:
        """As primary. Raises Conflict when somebody else is, or what the operations check has changed."""
        stored = self.mirror.get(paths.PRIMARY)
        if stored is None or stored.session != self.store.session.id:
            raise Conflict(f"{self.node} is not primary any more")
        term = self.view.decode(Primary, stored).term
        self.store.commit(Check(paths.PRIMARY, stored.version), Check(paths.TERM, term), *ops)

    def scene(self) -> Scene:
        stored = self.mirror.get(paths.CLUSTER)
        cluster = self.view.decode(ClusterSpec, stored) if stored else ClusterSpec("")
        specs = {name: self._node(name) for name in self.mirror.children(paths.NODES)}
        nodes = {name: spec for name, spec in specs.items() if spec is not None}
        return Scene(cluster, nodes, dict(self.clients.networks))

    def rest(self) -> None:
        if self.is_serving is False:
            return
        if self.is_serving:
            log.info("ending the services of networks")
        failed = [why for service in reversed(self.services) if (why := _failure(service.rest))]
        for why in failed:
            log.error("%s", why)
        self.is_serving = None if failed else False

    def close(self) -> None:
        """When the daemon ends: others serve from now on. Where there are none, what is served goes on."""
        self.ending = True
        with self.lock:
            if self._has_others():
                self.rest()

    def _has_others(self) -> bool:
        """Coordinators, or nodes of which nobody can say."""
        try:
            names = self.mirror.children(paths.NODES)
        except PVCError as error:
            log.warning("the services of networks go on: %s", error.message)
            return False
        others = [self._node(name) for name in names if name != self.node]
        return any(spec is None or spec.role is NodeRole.COORDINATOR for spec in others)

    def _node(self, name: str) -> NodeSpec | None:
        """None: it cannot be read. It may be of a newer pvc."""
        try:
            return self.view.node_spec(name)
        except PVCError as error:
            log.warning("%s", error.message)
            return None

    def _serve(self) -> None:
        if not self.is_serving:
            log.info("serving the networks")
        self.is_serving = True
        scene = self.scene()
        problems = [NetworkProblem(vni, why) for vni, why in self.clients.unreadable.items()]
        for service in self.services:
            if self.ending:
                return
            if why := _failure(partial(_ask, service, scene, problems)):
                problems.append(NetworkProblem(0, why))
        self._publish(tuple(sorted(problems, key=lambda one: (one.vni, one.why))))

    def _publish(self, problems: tuple[NetworkProblem, ...]) -> None:
        if problems == self.published:
            return
        for problem in problems:
            if problem not in (self.published or ()):
                log.warning("network %s: %s", problem.vni or "services", problem.why)
        self.publish(problems)
        self.published = problems


def _ask(service: Service, scene: Scene, problems: list[NetworkProblem]) -> None:
    problems += service.serve(scene)


def _failure(act: Callable[[], None]) -> str:
    """Why it failed; empty: it did not. What one service cannot do keeps no other from what it can."""
    try:
        act()
    except PVCError as error:
        return error.message
    except Exception as error:
        log.exception("a service of networks failed: a bug in pvc")
        return f"a bug in pvc: {error!r}"
    return ""


_FOLLOWED = (
    Follow(paths.CLUSTER),
    Follow(paths.PRIMARY),
    Follow(paths.NODES, children=True),
    *followed_networks(),
)


def _expand(listing: str, names: tuple[str, ...]) -> Iterable[Follow]:
    if listing == paths.NODES:
        return [Follow(paths.node(name)) for name in names]
    return expand_networks(listing, names)
