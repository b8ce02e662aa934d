"""Locks that dead QEMUs have left on images of Ceph, seen to before a VM starts.

Whoever starts a VM owns it: its former owner has seen it gone, or there is a receipt. Without this Ceph would
find out by itself that the holder is dead, and have the guest wait for half a minute.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pvc.clock import Clock
from pvc.cluster import domainxml, paths
from pvc.cluster.codec import loads
from pvc.cluster.membership import Fence, FenceState
from pvc.cluster.store import Store
from pvc.cluster.tasks import TaskSpec
from pvc.cluster.view import VM, View
from pvc.errors import Conflict, NotFound, PVCError, Unavailable
from pvc.node.drivers import DriverError
from pvc.node.drivers.blocklist import Blocklist
from pvc.node.drivers.storage import Holder, Locked
from pvc.node.lease import cut_off
from pvc.node.tasks import Progress, Work

log = logging.getLogger(__name__)

DIES_S = 40.0
"""Ceph believes that a client is there for so long after its death, and some more."""
AGAIN_S = 1.0


def works(locks: Locks) -> dict[str, Work]:
    """By the operation that asks for them."""
    return {"vm.flush-locks": Flush(locks)}


class Held(DriverError):
    """By a client that is alive, or that Ceph takes for alive still: after an outage it counts anew."""

    def __init__(self, vm: VM, image: str, holder: Holder) -> None:
        super().__init__(
            f"{image} is held by a client at {holder.address}, which is alive",
            hint=f"end it there; pvc vm flush-locks {vm.spec.name} --force shuts it out",
            retryable=True,
        )


class Locks:
    def __init__(
        self,
        store: Store,
        pool: Callable[[str], Locked],
        blocklist: Blocklist | None,
        clock: Clock,
        pause: Callable[[float], object],
        may_start: Callable[[], bool],
    ) -> None:
        self.store = store
        self.pool = pool
        self.blocklist = blocklist
        self.clock = clock
        self.pause = pause
        self.may_start = may_start

    def free(self, vm: VM) -> None:
        """Break the locks of the dead. Raises Held; cut_off, as soon as this node may start nothing any more.

        Where Ceph cannot be asked QEMU will find out.
        """
        if self.blocklist is None or not domainxml.uses_ceph(vm.spec.definition):
            return
        until = self.clock.monotonic() + DIES_S
        while why := self._not_free(vm):
            if not self.may_start():
                raise cut_off()
            if self.clock.monotonic() > until:
                if isinstance(why, Held):
                    raise why
                return
            self.pause(AGAIN_S)

    def flush(self, vm: VM, *, force: bool) -> list[str]:
        """Break all locks on its disks; whose they were. Raises Conflict where one lives, and breaks none."""
        found = list(self._holders(vm))
        for image, holder in found:
            if not force and not self._is_dead(vm, holder):
                raise Conflict(
                    f"{image} is held by a client at {holder.address}, which is alive",
                    hint="end it there; --force breaks its lock, and what it has not written yet is lost",
                )
        for image, holder in found:
            self._break(image, holder)
        return [f"{image}: {holder.address}" for image, holder in found]

    def _not_free(self, vm: VM) -> PVCError | None:
        """Why to ask once more: who holds a disk and may be alive, or nobody can say yet. The locks of all
        others are broken."""
        held: Held | None = None
        try:
            for image, holder in self._holders(vm):
                if self._is_dead(vm, holder):
                    self._break(image, holder)
                else:
                    held = held or Held(vm, image, holder)
        except PVCError as error:
            log.warning("who holds the disks of %s: %s", vm.spec.name, error.message)
            is_soon = isinstance(error, DriverError | Unavailable) and getattr(error, "retryable", True)
            return error if is_soon else None
        return held

    def _break(self, image: str, holder: Holder) -> None:
        pool, _, name = image.partition("/")
        log.warning("breaking the lock of %s at %s", image, holder.address)
        self.pool(pool).break_lock(name, holder)

    def _holders(self, vm: VM) -> Iterator[tuple[str, Holder]]:
        for image in domainxml.in_ceph(vm.spec.definition):
            pool, _, name = image.partition("/")
            for holder in self.pool(pool).holders(name):
                yield image, holder

    def _is_dead(self, vm: VM, holder: Holder) -> bool:
        if not holder.is_there or holder.host in self._fenced(vm):
            return True
        return self.blocklist is not None and holder.host in self.blocklist.map().listed

    def _fenced(self, vm: VM) -> set[str]:
        """Addresses of the node it was taken from, if there is a receipt for the newest life of that."""
        if vm.status.recovery is None:
            return set()
        stored = self.store.get(f"{paths.FENCES}/{vm.status.recovery.fence}")
        if stored is None:
            return set()
        fence = loads(Fence, stored.data, stored.path)
        try:
            node = View(self.store).node(fence.node)
        except NotFound:
            return set()
        if fence.state is not FenceState.FENCED or node.status.incarnation != fence.incarnation:
            return set()
        return set(node.status.ceph_addresses)


class Flush:
    """Break what locks there are on the disks of a VM that nobody runs."""

    def __init__(self, locks: Locks) -> None:
        self.locks = locks

    def do(self, task: TaskSpec, progress: Progress) -> Mapping[str, Any]:
        vm = View(self.locks.store).vm(task.arguments["vm"])
        return {"broken": self.locks.flush(vm, force=task.arguments["force"])}

    def undo(self, task: TaskSpec) -> None:
        """A lock that is broken stays so, and nobody misses it."""
