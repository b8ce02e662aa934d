"""What a node does in the background with disks: tasks, pools, Ceph. No loop waits for another."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pvc.clock import Clock
from pvc.cluster.store import Store
from pvc.node.daemon import Daemon
from pvc.node.drivers.hypervisor import Snapshotter
from pvc.node.loop import Loop

if TYPE_CHECKING:
    from pvc.node.drivers.blocklist import Blocklist
    from pvc.node.drivers.ceph import Ceph
    from pvc.node.drivers.storage import Locked
    from pvc.node.peer import PeerServer


class Disks:
    """Of Ceph: a loop that looks how it is, and the tasks that concern its disks here."""

    def __init__(
        self, daemon: Daemon, store: Store, clock: Clock, connect: Callable[[], Ceph] | None = None
    ) -> None:
        from pvc.node import monitors, osds
        from pvc.node.ceph_watch import CephWatch
        from pvc.node.drivers.ceph_volume import CephVolume

        to_monitors = connect or monitors.connect
        self.loop, state = Loop("watch of Ceph", clock), daemon.config.paths.state
        self.watch = CephWatch(
            daemon.name, store, daemon.ceph_is, clock, f"{state}/ceph-use.json", to_monitors
        )
        self.works = osds.works(
            osds.OSDs(daemon.name, CephVolume(), f"{state}/osds", self.loop.wake, to_monitors)
        )
        self.loop.start(self.watch.step)

    def close(self) -> None:
        self.loop.close()


class Working:
    """Pools and tasks, each with a loop of its own: a file system that hangs holds up no VM."""

    def __init__(
        self,
        daemon: Daemon,
        store: Store,
        clock: Clock,
        hypervisor: Snapshotter,
        connect: Callable[[], Ceph] | None = None,
    ) -> None:
        from pvc.node import (
            benchmark,
            locks,
            storage,
            transfer,
            vm_disks,
            vm_download,
            vm_export,
            vm_snapshots,
            vm_upload,
        )
        from pvc.node.blocked import Blocked
        from pvc.node.storage import Pools
        from pvc.node.storage import connect as to_ceph
        from pvc.node.tasks import Tasks

        self.looking, self.doing = Loop("pools", clock), Loop("tasks", clock)
        self.pools = Pools(
            daemon.name,
            store,
            daemon.pools_are,
            self.looking.wake,
            connect=connect or to_ceph,
            keep_secret=hypervisor.keep_secret,
        )
        self.shut_out = Loop("block list", clock)
        listed = blocklist(connect)
        self.blocked = Blocked(
            daemon.me,
            store,
            daemon.hypervisor.domains,
            listed,
            publish=daemon.ceph_knows,
            is_idle=daemon.is_idle,
            is_ours=daemon.guard.is_ours,
            end=daemon.guard.end_one,
            changed=self._shut_out_changed,
            wake=self.shut_out.wake,
        )
        self.pools.blocked = daemon.ceph_problem = lambda: self.blocked.problem
        self.wake_vms = daemon.wake
        held = locks.Locks(
            store,
            images(connect or to_ceph),
            listed,
            clock,
            time.sleep,
            daemon.guard.may_start,
        )
        daemon.executor.free_disks = held.free
        self.disks = Disks(daemon, store, clock, connect)
        stillness = vm_snapshots.Stillness(hypervisor, Path(daemon.config.paths.state))
        daemon.executor.stands_still = stillness.lasts
        self.standing_still = Loop("guests that stand still", clock)
        self.transfers = transfer.Transfers(clock)
        daemon.executor.ceph = self.pools.ceph
        carrying = {
            **transfer.works(self.pools, self.transfers),
            **vm_download.works(self.pools, self.transfers),
            **vm_upload.works(self.pools, self.transfers),
        }
        every = {
            **storage.works(self.pools),
            **vm_disks.works(self.pools, daemon.hypervisor),
            **carrying,
            **benchmark.works(self.pools),
            **vm_export.works(self.pools),
            **locks.works(held),
            **self.disks.works,
            **vm_snapshots.works(self.pools, stillness, clock),
        }
        waiting = {*carrying, "storage.osd-remove", "storage.osd-replace"}
        self.tasks = Tasks(daemon.me, store, every, clock, self.doing.wake, waiting=waiting)
        self.looking.start(self.pools.step)
        self.shut_out.start(self.blocked.step)
        self.doing.start(self.tasks.step)
        self.standing_still.start(stillness.step)

    def _shut_out_changed(self) -> None:
        self.looking.wake()
        self.wake_vms()

    def end(self) -> None:
        """Tell what goes on to end."""
        self.tasks.close()

    def is_busy(self) -> bool:
        return self.tasks.is_busy()

    def close(self) -> None:
        self.end()
        for loop in (self.doing, self.standing_still, self.shut_out, self.looking, self.disks):
            loop.close()


def blocklist(connect: Callable[[], Ceph] | None = None) -> Blocklist | None:
    """None where this node has no client of Ceph."""
    try:
        from pvc.node.drivers.ceph import Ceph, CephBlocklist
    except ImportError:
        return None
    return CephBlocklist(connect() if connect else Ceph())


def images(connect: Callable[[], Ceph]) -> Callable[[str], Locked]:
    """By the name that Ceph has for a pool."""

    def of(pool: str) -> Locked:
        ceph = connect()  # it says where there is no client of Ceph
        from pvc.node.drivers.rbd import RBDPool

        return RBDPool(pool, ceph)

    return of


def work(daemon: Daemon, store: Store, clock: Clock, hypervisor: Snapshotter, peers: PeerServer) -> Working:
    working = Working(daemon, store, clock, hypervisor)
    peers.tell_of_storage(working.pools.tell)
    peers.tell_of_ceph(working.disks.watch.tell)
    peers.carry_for(working.transfers.carry)
    return working
