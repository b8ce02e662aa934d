"""What the primary does for managed networks: gateways, filters, addresses, names. On a thread of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
        self.published: tuple[NetworkProblem, ...] | None = None

    def step(self) -> float:
        """Seconds until the next round is due.

        While the store does not answer, what is served goes on, as VMs do. Another primary may serve besides:
        an identical gateway with the same addresses, which decides nothing for the cluster.
        """
        state = self.store.session.state
        if state is SessionState.LOST:
            self.rest()
        if state is not SessionState.CONNECTED:
            return UNAVAILABLE_S
        changed = self.mirror.sync()
        self.clients.update(changed)
        if not self.is_primary():
            self.rest()
            self._publish(())
            return LOOK_S
        self._serve()
        return LOOK_S

    def is_primary(self) -> bool:
        stored = self.mirror.get(paths.PRIMARY)
        return stored is not None and stored.session == self.store.session.id

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
        specs = {name: self.view.node_spec(name) for name in self.mirror.children(paths.NODES)}
        nodes = {name: spec for name, spec in specs.items() if spec is not None}
        return Scene(cluster, nodes, dict(self.clients.networks))

    def rest(self) -> None:
        if self.is_serving is False:
            return
        if self.is_serving:
            log.info("ending the services of networks")
        failed = False
        for service in reversed(self.services):
            try:
                service.rest()
            except PVCError as error:
                failed = True
                log.error("%s", error.message)
        self.is_serving = None if failed else False

    def close(self) -> None:
        """When the daemon ends: others serve from now on. Where there are none, what is served goes on."""
        others = [spec for name, spec in self.scene().nodes.items() if name != self.node]
        if any(spec.role is NodeRole.COORDINATOR for spec in others):
            self.rest()

    def _serve(self) -> None:
        if not self.is_serving:
            log.info("serving the networks")
        self.is_serving = True
        scene = self.scene()
        problems = [NetworkProblem(vni, why) for vni, why in self.clients.unreadable.items()]
        for service in self.services:
            try:
                problems += service.serve(scene)
            except PVCError as error:
                problems.append(NetworkProblem(0, error.message))
        self._publish(tuple(sorted(problems, key=lambda one: (one.vni, one.why))))

    def _publish(self, problems: tuple[NetworkProblem, ...]) -> None:
        if problems == self.published:
            return
        for problem in problems:
            if problem not in (self.published or ()):
                log.warning("network %s: %s", problem.vni or "services", problem.why)
        self.publish(problems)
        self.published = problems


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
