"""A cluster in memory for the tests of operations: nodes, VMs, and what a daemon would write."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pvc.clock import SystemClock
from pvc.cluster import domainxml, paths
from pvc.cluster.clients import Member
from pvc.cluster.cluster import Authority
from pvc.cluster.codec import dumps, to_json
from pvc.cluster.membership import Primary
from pvc.cluster.node import Alive, DaemonState, Load, NodeSpec, NodeStatus
from pvc.cluster.records import volumes
from pvc.cluster.storage import Volume
from pvc.cluster.store import Create, Delete, Put, Reader, Stored
from pvc.cluster.verification import Verification, Verified
from pvc.cluster.view import VM, View
from pvc.cluster.vm import Owner, State, VMSpec, index_nodes, index_ops, vnis_of
from pvc.commands.context import Caller, Context, FetchText, invoke
from pvc.commands.registry import Role, find
from tests.fakes.filters import FakeFilter
from tests.fakes.store import MemoryCluster, MemoryStore

UUID = "6b29fc40-ca47-1067-b31d-00dd010662da"
OTHER = "7b29fc40-ca47-1067-b31d-00dd010662da"


def xml_of(
    name: str = "web1", uuid: str = UUID, memory_mib: int = 512, bridge: str = "br0", vni: int = 0
) -> str:
    nics = [domainxml.NewNic(bridge)] if bridge else []
    nics += [domainxml.NewNic(vni=vni)] if vni else []
    return domainxml.create(name, uuid, memory_mib=memory_mib, vcpus=1, nics=nics)


@dataclass
class World:
    cluster: MemoryCluster = field(default_factory=MemoryCluster)

    def __post_init__(self) -> None:
        self.store: MemoryStore = self.cluster.connect()

    # Operations

    def context(self, *, planning: bool = False, reader: Reader | None = None) -> Context:
        return Context(
            self.store,
            reader or self.store,
            Caller("tester", Role.ADMIN),
            planning=planning,
            new_authority=lambda: Authority("certificate", "key"),
            seal=lambda text, about: f"sealed:{text[::-1]}:{about}",
            check_filters=FakeFilter().check,
        )

    def call(self, operation: str, /, *, reader: Reader | None = None, **given: Any) -> Any:
        """The JSON that a client gets."""
        return to_json(invoke(find(operation), self.context(reader=reader), given))

    def plan(self, operation: str, /, **given: Any) -> dict[str, list[str]]:
        plain = to_json(invoke(find(operation), self.context(planning=True), given))
        assert isinstance(plain, dict)
        return plain

    def call_with_console(self, console: FetchText, operation: str, /, **given: Any) -> Any:
        context = self.context()
        context.console = console
        return to_json(invoke(find(operation), context, given))

    # What daemons do

    def add_node(
        self,
        name: str,
        *,
        free_mib: int = 7000,
        cpus: int = 4,
        bridges: tuple[str, ...] = ("br0",),
        version: str = "1.0",
    ) -> None:
        status = NodeStatus(
            1,
            DaemonState.RUN,
            version,
            1,
            cpus,
            8192,
            bridges=bridges,
            managed_mtu=8950,
            bridged_mtu=1500,
            console_port=7371,
        )
        self.store.commit(
            Create(paths.node(name), dumps(NodeSpec(name, "10.0.0.1", "10.0.0.1"))),
            Create(paths.node_status(name), dumps(status)),
            Create(paths.node_vms(name)),
            Create(paths.node_tasks(name)),
            Create(paths.alive(name), dumps(Alive(1))),
            Create(paths.load(name), dumps(Load(memory_free_mib=free_mib))),
        )

    def kill_node(self, name: str) -> None:
        self.store.commit(Delete(paths.alive(name)))

    def status_is(self, vm: str, **fields: Any) -> None:
        """Write the status as its owner would, with the index."""
        found = View(self.store).vm(vm)
        status = replace(found.status, **fields)
        before, after = (index_nodes(found.spec, one.owner) for one in (found.status, status))
        put = Put(paths.vm_status(found.spec.uuid), dumps(status))
        self.store.commit(put, *index_ops(found.spec.uuid, before, after))

    def runs(self, vm: str, node: str | None = None, **fields: Any) -> None:
        """Its node has started it."""
        spec = View(self.store).vm(vm).spec
        owner = Owner(node or spec.node or "", 1)
        shape = domainxml.shape(spec.definition)
        now = {
            "digest": shape.digest,
            "interfaces": shape.interfaces,
            "drives": shape.drives,
            "state": State.START,
        }
        done = {"attempts": spec.attempts, "restarts": spec.restarts, **now}
        self.status_is(vm, **{"owner": owner, **done, **fields})

    def ended(self, vm: str, **fields: Any) -> None:
        gone = {"owner": None, "state": State.STOP, "digest": "", "interfaces": (), "drives": ()}
        self.status_is(vm, **{**gone, **fields})

    # Looking

    def vm(self, vm: str) -> VM:
        return View(self.store).vm(vm)

    def spec(self, vm: str) -> VMSpec:
        return self.vm(vm).spec

    def documents(self) -> dict[str, bytes]:
        """Everything there is."""
        found: dict[str, bytes] = {}
        waiting = [paths.ROOT]
        while waiting:
            path = waiting.pop()
            stored = self.store.get(path)
            if stored is not None:
                found[path] = stored.data
                waiting += [f"{path}/{child}" for child in self.store.children(path)]
        return found

    def plain(self, path: str) -> dict[str, Any]:
        stored = self.store.get(path)
        assert stored is not None, path
        value = json.loads(stored.data)
        assert isinstance(value, dict)
        return value

    def member(self, vni: int, uuid: str) -> Member:
        stored = self.store.get(paths.network_vm(vni, uuid))
        assert stored is not None, (vni, uuid)
        return View(self.store).decode(Member, stored)

    def volumes_in_use(self) -> dict[Volume, str]:
        """As the index says."""
        found = {}
        for pool in self.store.children(paths.POOLS):
            for name in self.store.children(paths.pool_vms(pool)):
                stored = self.store.get(paths.pool_vm(pool, name))
                assert stored is not None
                found[Volume(pool, name)] = stored.data.decode()
        return found

    def edit(self, path: str, **fields: Any) -> None:
        """As if a newer version had written the document."""
        self.store.commit(Put(path, json.dumps({**self.plain(path), **fields}).encode()))

    def check_invariants(self) -> None:
        """The index names exactly the nodes a VM concerns; names and VMs belong to each other."""
        view = View(self.store)
        vms = view.vms()
        for node in view.nodes():
            concerned = {uuid for uuid, vm in vms.items() if node in index_nodes(vm.spec, vm.status.owner)}
            assert set(self.store.children(paths.node_vms(node))) == concerned, node
        names = {name: view.resolve_vm(name) for name in self.store.children(paths.VM_NAMES)}
        assert names == {vm.spec.name: uuid for uuid, vm in vms.items()}
        for vni in view.networks():
            members = {uuid: _member(vm.spec, vni) for uuid, vm in vms.items() if vni in vnis_of(vm.spec)}
            found = {uuid: self.member(vni, uuid) for uuid in self.store.children(paths.network_vms(vni))}
            assert found == members, vni
        called = {one: view.resolve_network(one) for one in self.store.children(paths.NETWORK_NAMES)}
        assert called == {one.spec.description: vni for vni, one in view.networks().items()}
        used = {volume: uuid for uuid, vm in vms.items() for volume in volumes(view, vm.spec).values()}
        assert self.volumes_in_use() == used
        for uuid, vm in vms.items():
            facts = domainxml.parse(vm.spec.definition)
            assert (facts.uuid, facts.name) == (uuid, vm.spec.name)
            assert (facts.memory_mib, facts.vcpus) == (vm.spec.memory_mib, vm.spec.vcpus)


def _member(spec: VMSpec, vni: int) -> Member:
    nics = domainxml.parse(spec.definition).nics
    return Member(spec.name, tuple(nic.mac for nic in nics if nic.vni == vni))


def a_world(nodes: int = 3) -> World:
    world = World()
    world.call("cluster.init", name="test")
    for number in range(1, nodes + 1):
        # The first has most memory free: what is chosen is always the same.
        world.add_node(f"n{number}", free_mib=7000 - number * 100)
    return world


def with_vm(power: str = "stopped", node: str | None = "n1", **given: Any) -> World:
    """A world with web1: stopped, or running on a node."""
    world = a_world()
    world.call("vm.define", **{"xml": xml_of(), "target": node, **given})
    if power == "running":
        world.call("vm.start", vm="web1")
        world.runs("web1")
    return world


def well() -> World:
    """Three coordinators, each of which can switch the others off."""
    world = with_vm("running")
    names = ("n1", "n2", "n3")
    world.store.commit(Create(paths.PRIMARY, dumps(Primary("n1", 1, 0)), ephemeral=True))
    for name in names:
        world.edit(paths.node(name), role="coordinator")
        world.call("node.bmc", node=name, address=f"bmc-{name}", user="admin", password="secret1")
    for name in names:
        found = tuple(Verified(other, "", SystemClock().wall()) for other in names if other != name)
        world.store.commit(Create(paths.verified(name), dumps(Verification(0, found))))
    return world


@dataclass
class Interrupted:
    """A reader after whose first look at a document something else happens: what was read is old by then."""

    store: MemoryStore
    path: str
    meanwhile: Callable[[], None]
    times: int = 1

    def get(self, path: str) -> Stored | None:
        return self.get_many([path])[0]

    def get_many(self, wanted: Sequence[str]) -> tuple[Stored | None, ...]:
        found = self.store.get_many(wanted)
        if self.path in wanted and self.times > 0:
            self.times -= 1
            self.meanwhile()
        return found

    def children(self, path: str) -> tuple[str, ...]:
        return self.store.children(path)


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {path for path in {*before, *after} if before.get(path) != after.get(path)}
