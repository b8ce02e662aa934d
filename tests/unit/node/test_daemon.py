"""One node's daemon over a store and a host in memory: what happens between the steps of a round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pvc.clock import SystemClock
from pvc.cluster import paths
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.codec import dumps
from pvc.cluster.store import Create
from pvc.cluster.view import VM, Node, View
from pvc.cluster.vm import Power, State, VMSpec, VMStatus
from pvc.config import Config, NodeConfig, PathsConfig
from pvc.node.actions import Action, NodeAction
from pvc.node.daemon import Daemon
from pvc.node.drivers import Domain
from tests.fakes.hypervisor import FakeHypervisor, FakeWorld
from tests.fakes.store import MemoryCluster, MemoryStore
from tests.unit.node.pictures import UUID, spec


@dataclass(slots=True)
class Host(FakeHypervisor):
    after_listing: Callable[[], object] = lambda: None

    def domains(self) -> Mapping[str, Domain]:
        listed = FakeHypervisor.domains(self)
        self.after_listing()
        return listed


@dataclass(slots=True)
class Inline:
    """Lanes without threads; `held` keeps actions from beginning."""

    carry_out: Callable[[Action | NodeAction], None]
    held: bool = False
    seen: list[Action | NodeAction] = field(default_factory=list)

    @property
    def busy(self) -> Mapping[str, Action | NodeAction]:
        return {}

    def submit(self, action: Action | NodeAction) -> None:
        self.seen.append(action)
        if not self.held:
            self.carry_out(action)

    def close(self) -> None:
        self.held = True


@dataclass(slots=True)
class Bench:
    cluster: MemoryCluster
    store: MemoryStore
    host: Host
    daemon: Daemon
    lanes: list[Inline]

    def add(self, new: VMSpec) -> None:
        self.store.commit(
            Create(paths.vm(new.uuid), dumps(new)),
            Create(paths.vm_status(new.uuid), dumps(VMStatus())),
            Create(paths.node_vm("n1", new.uuid)),
        )

    def rounds(self, count: int = 1) -> None:
        for _ in range(count):
            self.cluster.deliver()
            self.daemon.step()

    @property
    def vm(self) -> VM:
        return View(self.store).vm(UUID)

    @property
    def node(self) -> Node:
        return View(self.store).node("n1")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    cluster = MemoryCluster()
    store = cluster.connect()
    store.commit(*(Create(path) for path in paths.LAYOUT), Create(paths.CLUSTER, dumps(ClusterSpec("c"))))
    host = Host(FakeWorld(), "n1", 16384, 8)
    config = Config(node=NodeConfig("n1"), paths=PathsConfig(console=str(tmp_path)))
    lanes: list[Inline] = []

    def make(carry_out: Callable[[Action | NodeAction], None], done: Callable[[], None]) -> Inline:
        lanes.append(Inline(carry_out))
        return lanes[0]

    daemon = Daemon(config, store, host, SystemClock(), lanes=make, bridges=lambda: frozenset({"br0"}))
    yield Bench(cluster, store, host, daemon, lanes)
    store.close()


def test_end_that_is_told_after_the_domains_were_listed_is_not_forgotten(bench: Bench) -> None:
    bench.add(spec())
    bench.rounds(2)
    assert bench.vm.status.state is State.START

    def leave() -> None:
        if UUID in bench.host.machines:
            bench.host.leave(UUID)

    bench.host.after_listing = leave
    bench.rounds(2)
    assert bench.vm.status.reason == "the guest powered itself off"
    assert (bench.vm.spec.power, bench.vm.status.owner) == (Power.STOPPED, None)
