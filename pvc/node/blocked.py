"""Ceph's block list as the node itself sees to it: by which addresses it is known there, and its return.

A primary that cannot switch a node off may list it, so that no QEMU there writes any more. Only the node
takes itself off again, when it has no QEMU that uses Ceph and begins none before that is done: an order of
somebody else could be carried out late, when the node has been listed once more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from pvc.cluster import domainxml, paths
from pvc.cluster.codec import dumps, loads
from pvc.cluster.membership import Block
from pvc.cluster.storage import Driver
from pvc.cluster.store import Put, SessionState, Store
from pvc.cluster.view import View
from pvc.cluster.vm import Owner
from pvc.errors import Invalid, PVCError
from pvc.node.drivers.blocklist import Blocklist, as_listed
from pvc.node.drivers.hypervisor import Domain
from pvc.node.plan import NOT_LOOKED

log = logging.getLogger(__name__)

LOOK_S = 30.0
IDLE_S = 10.0
"""While no pool is in Ceph."""
AGAIN_S = 1.0
"""While it is listed, or Ceph does not answer."""


class Blocked:
    """`step` looks, and takes the node off the list when it may."""

    def __init__(
        self,
        me: Owner,
        store: Store,
        domains: Callable[[], Mapping[str, Domain]],
        blocklist: Blocklist | None,
        *,
        publish: Callable[[Iterable[str]], None],
        is_idle: Callable[[], bool],
        is_ours: Callable[[Domain], bool],
        end: Callable[[Domain], None],
        changed: Callable[[], None] = lambda: None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        store.on_session(lambda _: wake())  # while it was away somebody may have listed it
        self.me = me
        self.store = store
        self.domains = domains
        self.blocklist = blocklist
        self.publish = publish
        """Addresses, to be added to those that this node has said already."""
        self.is_idle = is_idle
        """Nothing can begin to run here."""
        self.is_ours = is_ours
        self.end = end
        self.changed = changed
        self.problem = NOT_LOOKED
        """Why no VM that uses Ceph may begin here; asked by each start, on a lane that is busy by then."""

    def step(self) -> float:
        """Seconds until the next round is due."""
        if self.store.session.state is not SessionState.CONNECTED:
            return AGAIN_S
        try:
            if self.blocklist is None or not self._is_concerned():
                self._say("")
                return IDLE_S
            return self._look(self.blocklist)
        except PVCError as error:
            self._say(self.problem or error.message)
            return AGAIN_S

    def _is_concerned(self) -> bool:
        """Without a pool in Ceph no VM uses it."""
        return any(pool.spec.driver is Driver.RBD for pool in View(self.store).pools().values())

    def _say(self, problem: str) -> None:
        was, self.problem = self.problem, problem
        if problem != was:
            if problem:
                log.warning("%s", problem)
            self.changed()

    def _look(self, blocklist: Blocklist) -> float:
        self.publish(blocklist.addresses())
        known = blocklist.map().listed
        # Read after the map: who lists this node says so before.
        stored = self.store.get(paths.block(self.me.node))
        block = None if stored is None else loads(Block, stored.data, stored.path)
        listed = sorted(known & self._own(block))
        if stored is None or block is None:
            self._say(f"somebody has put it on Ceph's block list: {', '.join(listed)}" if listed else "")
            return LOOK_S
        if listed:
            self._say(f"Ceph takes no writes from it since it was fenced in its life {block.incarnation}")
            if not self._is_free():
                return AGAIN_S
            for address in listed:
                blocklist.remove(address)
            log.warning("off the block list of Ceph: %s", ", ".join(listed))
        if not block.lifted:
            self.store.commit(Put(stored.path, dumps(replace(block, lifted=True)), stored.version))
        self._say("")
        return LOOK_S

    def _own(self, block: Block | None) -> set[str]:
        """What it has now, and what whoever listed it took for its own."""
        node = View(self.store).node(self.me.node)
        now = {*node.status.ceph_addresses, *map(as_listed, (node.spec.address, node.spec.storage_address))}
        if block is None:
            return now
        before = set(block.addresses) - now
        if block.lifted and before:  # a late order may list them again, and another node may have them by now
            before -= self._of_others()
        return now | before

    def _of_others(self) -> set[str]:
        nodes = [node for name, node in View(self.store).nodes().items() if name != self.me.node]
        specs = {as_listed(one) for node in nodes for one in (node.spec.address, node.spec.storage_address)}
        return specs.union(*(node.status.ceph_addresses for node in nodes))

    def _is_free(self) -> bool:
        """No QEMU here uses Ceph, and none begins to: in this order, after `problem` was said. Those that it
        has can read and write nothing, now or ever: they are ended, and start anew where they belong."""
        is_idle = self.is_idle()
        using = [one for one in self.domains().values() if self._uses(one)]
        for domain in using:
            log.error("ending %s: Ceph takes nothing from it any more", domain.name)
            self.end(domain)
        return is_idle and not using

    def _uses(self, domain: Domain) -> bool:
        """Believed to, unless it runs as a definition says that does not, or is no VM of the cluster: what
        has the UUID of one is, also when that was released, and the metadata is gone."""
        vm = View(self.store).vms([domain.uuid]).get(domain.uuid)
        if vm is None:
            return self.is_ours(domain)
        try:
            defined = domainxml.shape(vm.spec.definition)
            is_as_defined = domain.digest == defined.digest and set(domain.drives) <= set(defined.drives)
            return not is_as_defined or domainxml.uses_ceph(vm.spec.definition)
        except Invalid:
            return True
