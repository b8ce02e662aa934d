"""A cluster with pools, for tests: nodes that do their tasks when told to, on volumes in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pvc.clock import SystemClock
from pvc.cluster import paths
from pvc.cluster.ceph_pools import CephFacts
from pvc.cluster.codec import to_json
from pvc.cluster.storage import Driver, PoolSpec
from pvc.cluster.view import VM, View
from pvc.cluster.vm import Owner
from pvc.commands.context import Context, invoke
from pvc.commands.registry import find
from pvc.errors import Unavailable
from pvc.node import vm_disks
from pvc.node.storage import Pools, new_pool_ops, works
from pvc.node.tasks import Tasks
from tests.fakes.hypervisor import FakeWorld
from tests.fakes.lanes import Lanes
from tests.fakes.pool import FakePool
from tests.unit.commands.world import World, a_world

NODES = ("n1", "n2", "n3")


class Storing:
    def __init__(self) -> None:
        self.world: World = a_world()
        self.pool = FakePool()
        """What every node reaches, as whatever pool."""
        self.host = FakeWorld().add("n1")
        """The hypervisor of every node."""
        self.asked: list[str] = []
        self.silent: set[str] = set()
        """Addresses of nodes that do not answer."""
        for number, name in enumerate(NODES, 1):
            self.world.edit(paths.node(name), address=f"10.0.0.{number}")
        self.pools = {name: self._pools(name) for name in NODES}
        self.tasks = {
            name: Tasks(
                Owner(name, 1),
                self.world.store,
                {**works(self.pools[name]), **vm_disks.works(self.pools[name], self.host)},
                SystemClock(),
                lambda: None,
                lanes=Lanes,
            )
            for name in NODES
        }

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

    def vms(self) -> list[VM]:
        return list(View(self.world.store).vms().values())

    def look(self) -> None:
        for pools in self.pools.values():
            pools.step()

    def context(self, *, planning: bool = False) -> Context:
        context = self.world.context(planning=planning)
        context.ask = self._ask
        return context

    def _ask(self, address: str, port: int, path: str) -> Any:
        self.asked.append(f"{address} {path}")
        if address in self.silent:
            raise Unavailable(f"{address} does not answer")
        node = NODES[int(address.rpartition(".")[2]) - 1]
        path, _, query = path.partition("?")
        _, name, *volume = path.split("/")
        return self.pools[node].tell(name, volume[0] if volume else "", brief=query == "brief=1")

    def call(self, operation: str, /, **given: Any) -> Any:
        return to_json(invoke(find(operation), self.context(), given))

    def done(self, operation: str, /, **given: Any) -> dict[str, Any]:
        """Begin a task, let nodes do it, and how it ended."""
        begun = self.call(operation, **given)
        self.work()
        found = self.call("task.info", task=begun["name"])
        assert isinstance(found, dict)
        return found


def storing() -> Storing:
    """With a shared pool vms, in which there is golden with a snapshot s1."""
    made = Storing()
    made.add_pool()
    made.done("storage.volume-add", pool="vms", volume="golden", size="10G")
    made.done("storage.volume-snapshot-add", pool="vms", volume="golden", snapshot="s1")
    return made


def a_directory(tmp_path: Path) -> str:
    where = tmp_path / "pool"
    where.mkdir()
    return str(where)
