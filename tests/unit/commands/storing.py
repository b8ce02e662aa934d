"""A cluster with pools, for tests: nodes that do their tasks when told to, on volumes in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pvc.clock import SystemClock
from pvc.cluster import domainxml, exports, paths
from pvc.cluster.ceph_pools import CephFacts
from pvc.cluster.codec import to_json
from pvc.cluster.storage import Driver, PoolSpec
from pvc.cluster.view import VM, View
from pvc.cluster.vm import Owner
from pvc.commands.context import Context, invoke
from pvc.commands.registry import find
from pvc.errors import PVCError, Unavailable
from pvc.node import vm_disks, vm_export, vm_snapshots, vm_upload
from pvc.node.drivers.storage import Snapshot
from pvc.node.storage import Pools, new_pool_ops, works
from pvc.node.tasks import Tasks
from pvc.node.transfer import Transfers
from pvc.node.vm_snapshots import Stillness
from tests.fakes.hypervisor import FakeHypervisor, FakeWorld
from tests.fakes.lanes import Lanes
from tests.fakes.pool import FakePool
from tests.unit.commands.world import World, a_world

NODES = ("n1", "n2", "n3")


class Storing:
    def __init__(self) -> None:
        self.world: World = a_world()
        self.pool = FakePool()
        """What every node reaches, as whatever pool."""
        self.hosts = FakeWorld(when_snapshot=self._snapshot_inside)
        self.hypervisors = {name: self.hosts.add(name) for name in NODES}
        self.host = self.hypervisors["n1"]
        self.transfers = Transfers()
        """Of whichever node does a task."""
        self.asked: list[str] = []
        self.silent: set[str] = set()
        """Addresses of nodes that do not answer."""
        for number, name in enumerate(NODES, 1):
            self.world.edit(paths.node(name), address=f"10.0.0.{number}")
        self.notes = TemporaryDirectory()
        """What outlives daemons; no two VMs run in one test on different nodes."""
        self.pools = {name: self._pools(name) for name in NODES}
        self.stillness: dict[str, Stillness] = {}
        self.tasks = {name: self._tasks(name, 1) for name in NODES}

    def _tasks(self, name: str, incarnation: int) -> Tasks:
        pools, clock = self.pools[name], SystemClock()
        self.stillness[name] = Stillness(self.hypervisors[name], Path(self.notes.name, name))
        known = {
            **works(pools),
            **vm_disks.works(pools, self.host),
            **vm_export.works(pools),
            **vm_upload.works(pools, self.transfers),
            **vm_snapshots.works(pools, self.stillness[name], clock),
        }
        me = Owner(name, incarnation)
        return Tasks(me, self.world.store, known, clock, lambda: None, lanes=Lanes)

    def restart(self, name: str) -> None:
        """Its daemon was killed, and another one is there."""
        incarnation = self.tasks[name].me.incarnation + 1
        for path in (paths.node_status(name), paths.alive(name)):
            self.world.edit(path, incarnation=incarnation)
        self.tasks[name] = self._tasks(name, incarnation)

    def _snapshot_inside(self, file: str, name: str, is_there: bool) -> None:
        """By a QEMU, in a volume that it has open."""
        volume = file.split("/")[-2]
        kept = self.pool.kept[volume]
        if is_there:
            made = Snapshot(name[1:], 1.0, kept.volume.size_bytes)
            kept.snapshots[name[1:]] = made, kept.content
        else:
            del kept.snapshots[name[1:]]

    def _pools(self, name: str) -> Pools:
        def publish(problems: Any) -> None:
            self.world.edit(paths.node_status(name), pool_problems=problems)

        return Pools(name, self.world.store, publish, open_pool=lambda spec: self.pool)

    def add_pool(self, name: str = "vms", node: str = "", path: str = "/srv/vms") -> None:
        """Prepared already."""
        spec = PoolSpec(name, f"id-{name}", path=path, node=node)
        self.world.store.commit(*new_pool_ops(spec, ()))

    def add_ceph_pool(self, name: str) -> None:
        """Prepared already, and every node reaches it."""
        self.pool.ceph = CephFacts("default", 3, 2, 32, 32, is_autoscaled=True, health="ok")
        spec = PoolSpec(name, f"id-{name}", Driver.RBD, ceph_pool=name)
        self.world.store.commit(*new_pool_ops(spec, ()))

    def work(self) -> None:
        """All that nodes are to do."""
        for tasks in self.tasks.values():
            tasks.step()
            assert isinstance(tasks.lanes, Lanes)
            tasks.lanes.run()

    @contextmanager
    def bringing(self, task: str, content: bytes, piece_bytes: int = 999) -> Iterator[None]:
        """By a client, until all of it is there or the task has ended."""

        def bring() -> None:
            place = 0
            with suppress(PVCError):
                while place < len(content):
                    query, piece = {"offset": str(place)}, content[place : place + piece_bytes]
                    told = self.transfers.carry(task, "piece", query, piece)
                    assert isinstance(told, dict)
                    place = int(str(told["next"]))

        client = threading.Thread(target=bring)
        client.start()
        try:
            yield
        finally:
            client.join()

    def again(self) -> None:
        """Somewhat later: what could not be undone is tried once more."""
        for tasks in self.tasks.values():
            tasks.undoing = {task: replace(one, next=0.0) for task, one in tasks.undoing.items()}
        self.work()

    def vms(self) -> list[VM]:
        return list(View(self.world.store).vms().values())

    def look(self) -> None:
        for pools in self.pools.values():
            pools.step()

    def context(self, *, planning: bool = False) -> Context:
        context = self.world.context(planning=planning)
        context.ask = self.ask
        return context

    def ask(self, address: str, port: int, path: str) -> Any:
        self.asked.append(f"{address} {path}")
        if address in self.silent:
            raise Unavailable(f"{address} does not answer")
        node = NODES[int(address.rpartition(".")[2]) - 1]
        path, _, query = path.partition("?")
        _, name, *volume = path.split("/")
        how = {word: query == f"{word}=1" for word in ("brief", "whole")}
        return self.pools[node].tell(name, volume[0] if volume else "", **how)

    def call(self, operation: str, /, **given: Any) -> Any:
        return to_json(invoke(find(operation), self.context(), given))

    def done(self, operation: str, /, **given: Any) -> dict[str, Any]:
        """Begin a task, let nodes do it, and how it ended."""
        begun = self.call(operation, **given)
        self.work()
        found = self.call("task.info", task=begun["name"])
        assert isinstance(found, dict)
        return found


def announced(where: Path, *places: str) -> list[str]:
    """The manifests of exports in directories, as whoever brings them says them first."""
    return [(where / place / exports.MANIFEST).read_text() for place in places]


def stream(where: Path, *places: str) -> bytes:
    """What is then brought."""
    documents = [one.encode() for one in announced(where, *places)]
    chain = tuple(exports.read(one, "") for one in documents)
    files = [where / places[number] / disk.file for number, disk in exports.needed(chain)]
    return b"".join([*documents, *(file.read_bytes() for file in files)])


def storing() -> Storing:
    """With a shared pool vms, in which there is golden with a snapshot s1."""
    made = Storing()
    made.add_pool()
    made.done("storage.volume-add", pool="vms", volume="golden", size="10G")
    made.done("storage.volume-snapshot-add", pool="vms", volume="golden", snapshot="s1")
    return made


def with_disks(*volumes: str) -> Storing:
    """VM web1 on n1, stopped, with those volumes of the pool vms as its disks."""
    made = Storing()
    made.add_pool()
    for name in volumes:
        made.done("storage.volume-add", pool="vms", volume=name, size="10G")
    made.world.call("vm.create", name="web1", disk=[made.pool.location(one) for one in volumes], target="n1")
    return made


def runs(made: Storing, vm: str = "web1", node: str = "n1") -> FakeHypervisor:
    """Its node has started it."""
    made.world.call("vm.start", vm=vm)
    spec = made.world.spec(vm)
    xml = domainxml.render(spec.definition, emulation="qemu", emulator="/qemu", console_log="/log")
    made.hypervisors[node].start(xml)
    made.world.runs(vm, node)
    made.pool.open |= {disk.source.split("/")[-2] for disk in domainxml.parse(spec.definition).disks}
    return made.hypervisors[node]


def stops(made: Storing, vm: str = "web1", node: str = "n1") -> None:
    made.world.call("vm.stop", vm=vm)
    made.hypervisors[node].destroy(made.world.spec(vm).uuid)
    made.world.ended(vm)
    made.pool.open.clear()


def a_directory(tmp_path: Path) -> str:
    where = tmp_path / "pool"
    where.mkdir()
    return str(where)
