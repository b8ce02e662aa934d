"""Gives this node the cluster's networks, on a thread of its own: VMs wait for none of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pvc.cluster import paths
from pvc.cluster.codec import Unreadable
from pvc.cluster.mirror import Follow, Mirror
from pvc.cluster.network import NetworkSpec
from pvc.cluster.node import NetworkProblem
from pvc.cluster.store import SessionState, Store
from pvc.cluster.view import View
from pvc.errors import PVCError
from pvc.node.drivers import HostLinks
from pvc.node.plan_network import Add, Change, Host, Remove, Step, plan, vni_of

log = logging.getLogger(__name__)

LOOK_S = 30.0
"""Between two looks at links that somebody else may have changed."""
RETRY_S = 5.0
"""While something is not as it should be."""
UNAVAILABLE_S = 1.0
CLOSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Found:
    """How the networks are on this node; published when it changes."""

    managed_mtu: int
    bridged_mtu: int
    problems: tuple[NetworkProblem, ...]


class Networks:
    """`step` does one round: compare what is wanted with what is, and take what steps there are."""

    def __init__(
        self,
        address: str,
        bridge_device: str,
        store: Store,
        links: HostLinks,
        publish: Callable[[Found], None],
        wake: Callable[[], None],
    ) -> None:
        self.address = address
        self.bridge_device = bridge_device
        self.store = store
        self.links = links
        self.publish = publish
        self.mirror = Mirror(store, (Follow(paths.NETWORKS, children=True),), _expand, wake)
        self.view = View(self.mirror)
        self.published: Found | None = None

    def step(self) -> float:
        """Seconds until the next round is due. Nothing is decided while the store does not answer."""
        if self.store.session.state is not SessionState.CONNECTED:
            return UNAVAILABLE_S
        self.mirror.sync()
        specs, unreadable = self._wanted()
        host = self._host()
        planned = plan(specs, host, unreadable)
        failed = self._take(planned.steps)
        problems = sorted((*planned.problems, *failed), key=lambda one: one.vni)
        found = Found(host.managed_mtu, host.bridged_mtu, tuple(problems))
        if planned.steps or found != self.published:
            self._say(found)
            self.publish(found)
            self.published = found
        return RETRY_S if problems else LOOK_S

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
        known = self.published.problems if self.published else ()
        for problem in found.problems:
            if problem not in known:
                log.warning("network %d: %s", problem.vni, problem.why)


def _expand(listing: str, names: tuple[str, ...]) -> Iterable[Follow]:
    return (Follow(paths.network(name)) for name in names)


class Loop:
    """Networks on a thread of its own."""

    def __init__(self, make: Callable[[Callable[[], None]], Networks]) -> None:
        self._woken = threading.Event()
        self._ending = threading.Event()
        self._first = threading.Event()
        self._networks = make(self._woken.set)
        self._thread = threading.Thread(target=self._run, name="networks", daemon=True)

    def start(self, within_s: float) -> None:
        """Returns after the first round, so that VMs find their networks; or after that time without it."""
        self._thread.start()
        if not self._first.wait(within_s):
            log.warning("the networks are not ready after %g s; VMs that need them wait", within_s)

    def close(self) -> None:
        """Links stay as they are: VMs go on."""
        self._ending.set()
        self._woken.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while not self._ending.is_set():
            self._woken.clear()
            wait_s = self._round()
            self._first.set()
            self._woken.wait(wait_s)

    def _round(self) -> float:
        try:
            return self._networks.step()
        except PVCError as error:
            log.warning("networks: %s", error.message)
            return UNAVAILABLE_S
        except Exception:  # the boundary: one mistake must not end all care for networks
            log.exception("a round of the networks failed: a bug in pvc")
            return RETRY_S
