"""Typed reading: the nouns as a reader (the store, or a mirror of it) has them now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pvc.cluster import paths
from pvc.cluster.cluster import LAYOUT_VERSION, ClusterSpec
from pvc.cluster.codec import loads
from pvc.cluster.membership import Block, Evidence, Fence, FenceState, Primary
from pvc.cluster.mirror import Follow
from pvc.cluster.network import NetworkSpec
from pvc.cluster.node import Alive, DaemonState, Load, NodeSpec, NodeStatus, daemon_state, domain_state
from pvc.cluster.storage import PoolSpec
from pvc.cluster.store import Reader, Stored
from pvc.cluster.tasks import TaskSpec, TaskStatus
from pvc.cluster.verification import Verification, Wish
from pvc.cluster.vm import Target, VMSpec, VMStatus, shown_state
from pvc.errors import NotFound, Unavailable

T = TypeVar("T")

UUID_LENGTH = 36
OVER = (DaemonState.DEAD, DaemonState.STOP)


@dataclass(frozen=True, slots=True)
class VM:
    """A VM as read, with the versions that a commit checks.

    `status_version` is None before the first status.
    """

    spec: VMSpec
    spec_version: int
    status: VMStatus
    status_version: int | None

    @property
    def shown_state(self) -> str:
        return shown_state(self.spec, self.status)

    @property
    def place(self) -> str | None:
        """Where it runs; where it would start, if it does not."""
        return self.status.owner.node if self.status.owner else self.spec.node

    @property
    def version(self) -> str:
        """Changes with every change of the VM; for waiting clients."""
        status = -1 if self.status_version is None else self.status_version
        return f"{self.spec_version}.{status}"


@dataclass(frozen=True, slots=True)
class Node:
    spec: NodeSpec
    spec_version: int
    status: NodeStatus
    status_version: int | None
    alive: Alive | None
    load: Load
    load_version: int | None
    is_primary: bool = False
    role_moves: bool = False
    """It is to get the primary role, or to lose it to one who lives."""
    awaits_addresses: bool = False
    """It is primary, and does not answer for all floating addresses yet."""
    fence: Fence | None = None
    """Of this life of its daemon."""
    fence_version: int | None = None

    @property
    def daemon_state(self) -> DaemonState:
        state = daemon_state(self.status, self.alive)
        is_fenced = self.fence is not None and self.fence.state is FenceState.FENCED
        return DaemonState.FENCED if is_fenced and state in OVER else state

    @property
    def domain_state(self) -> str:
        return domain_state(self.spec, self.status, self.load)

    @property
    def is_running(self) -> bool:
        return self.daemon_state is DaemonState.RUN

    @property
    def version(self) -> str:
        alive = self.alive.incarnation if self.alive else 0
        role = int(self.is_primary)
        known = f"{self.spec_version}.{self.status_version}.{alive}.{self.load_version}"
        return f"{known}.{self.fence_version}.{role}"


@dataclass(frozen=True, slots=True)
class Network:
    spec: NetworkSpec
    spec_version: int


@dataclass(frozen=True, slots=True)
class Pool:
    spec: PoolSpec
    spec_version: int


@dataclass(frozen=True, slots=True)
class Task:
    spec: TaskSpec
    spec_version: int
    status: TaskStatus
    status_version: int | None

    @property
    def version(self) -> str:
        return f"{self.spec_version}.{-1 if self.status_version is None else self.status_version}"


class View:
    """Decodes each document once: for one that has not changed, the same object comes back."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._decoded: dict[str, tuple[Stored, object]] = {}

    def decode(self, kind: type[T], stored: Stored) -> T:
        known = self._decoded.get(stored.path)
        if known is not None and known[0] is stored:
            return known[1]  # type: ignore[return-value]
        value = loads(kind, stored.data, stored.path)
        self._decoded[stored.path] = (stored, value)
        return value

    def forget_missing(self) -> None:
        """Drop decoded documents that are gone; called now and then by whoever keeps a view for long."""
        known = list(self._decoded)
        for path, stored in zip(known, self.reader.get_many(known), strict=True):
            if stored is None:
                self._decoded.pop(path, None)

    # Cluster

    def cluster(self) -> ClusterSpec:
        """Raises Unavailable before `pvc cluster init`, and when the cluster has gone ahead of this pvc."""
        return self.cluster_document()[0]

    def cluster_document(self) -> tuple[ClusterSpec, int]:
        """With its version. Raises as `cluster` does."""
        stored = self.reader.get(paths.CLUSTER)
        if stored is None:
            raise Unavailable("this cluster is not initialised", hint="pvc --direct cluster init --name NAME")
        spec = self.decode(ClusterSpec, stored)
        if spec.layout > LAYOUT_VERSION:
            raise Unavailable(
                f"the documents of {spec.name} are in layout {spec.layout}, this pvc knows {LAYOUT_VERSION}",
                hint="install the newer pvc here",
            )
        return spec, stored.version

    # VMs

    def resolve_vm(self, name_or_uuid: str) -> str:
        """The UUID. One lookup, whatever the number of VMs. Raises NotFound."""
        if len(name_or_uuid) == UUID_LENGTH and name_or_uuid.count("-") == 4:
            return name_or_uuid.lower()
        named = self.reader.get(paths.vm_name(name_or_uuid)) if "/" not in name_or_uuid else None
        if named is None:
            raise NotFound(f"no VM named {name_or_uuid}", hint="pvc vm list shows them")
        return named.data.decode()

    def vm(self, name_or_uuid: str) -> VM:
        uuid = self.resolve_vm(name_or_uuid)
        found = self.vms([uuid]).get(uuid)
        if found is None:
            raise NotFound(f"no VM {name_or_uuid}", hint="pvc vm list shows them")
        return found

    def vms(self, uuids: Iterable[str] | None = None) -> dict[str, VM]:
        """By UUID; every VM unless told which. Those that do not exist are left out."""
        wanted = list(self.reader.children(paths.VMS) if uuids is None else uuids)
        documents = self.reader.get_many(
            [paths.vm(uuid) for uuid in wanted] + [paths.vm_status(u) for u in wanted]
        )
        found = {}
        for uuid, spec, status in zip(wanted, documents, documents[len(wanted) :], strict=False):
            if spec is not None:
                found[uuid] = self._vm(spec, status)
        return found

    def _vm(self, spec: Stored, status: Stored | None) -> VM:
        return VM(
            self.decode(VMSpec, spec),
            spec.version,
            self.decode(VMStatus, status) if status else VMStatus(),
            status.version if status else None,
        )

    def target(self, uuid: str) -> tuple[Target, int] | None:
        stored = self.reader.get(paths.vm_target(uuid))
        return (self.decode(Target, stored), stored.version) if stored else None

    # Networks

    def resolve_network(self, number_or_description: str) -> int:
        """The VNI. One lookup, whatever the number of networks. Raises NotFound."""
        if number_or_description.isdigit():
            return int(number_or_description)
        path = paths.network_name(number_or_description)
        named = self.reader.get(path) if "/" not in number_or_description else None
        if named is None:
            raise NotFound(
                f"no network described as {number_or_description}", hint="pvc network list shows them"
            )
        return int(named.data)

    def network(self, number_or_description: str) -> Network:
        vni = self.resolve_network(number_or_description)
        found = self.networks([vni]).get(vni)
        if found is None:
            raise NotFound(f"no network {number_or_description}", hint="pvc network list shows them")
        return found

    def networks(self, vnis: Iterable[int] | None = None) -> dict[int, Network]:
        """By VNI; every network unless told which. Those that do not exist are left out."""
        names = self.reader.children(paths.NETWORKS) if vnis is None else vnis
        stored = self.reader.get_many([paths.network(name) for name in names])
        found = (Network(self.decode(NetworkSpec, one), one.version) for one in stored if one is not None)
        return {one.spec.vni: one for one in found}

    # Nodes

    def node(self, name: str) -> Node:
        found = self.nodes([name]).get(name)
        if found is None:
            raise NotFound(f"no node named {name}", hint="pvc node list shows them")
        return found

    def node_spec(self, name: str) -> NodeSpec | None:
        stored = self.reader.get(paths.node(name))
        return self.decode(NodeSpec, stored) if stored else None

    def nodes(self, names: Sequence[str] | None = None) -> dict[str, Node]:
        wanted = self.reader.children(paths.NODES) if names is None else names
        asked = [paths.PRIMARY, paths.CLUSTER]
        for name in wanted:  # the status before the session: a judge counts from what was read in this order
            asked += paths.node(name), paths.node_status(name), paths.alive(name), paths.load(name)
        role, stored, *documents = self.reader.get_many(asked)
        primary = self.decode(Primary, role).node if role else None
        cluster = self.decode(ClusterSpec, stored) if stored else ClusterSpec("")
        moving = self._role_moves(primary, cluster.primary)
        found = {}
        for index, name in enumerate(wanted):
            spec, status, alive, load = documents[4 * index : 4 * index + 4]
            if spec is not None:
                known = self.decode(Load, load) if load else Load()
                missing = {*cluster.floating_addresses}.difference(known.addresses)
                found[name] = Node(
                    self.decode(NodeSpec, spec),
                    spec.version,
                    self.decode(NodeStatus, status) if status else NodeStatus(),
                    status.version if status else None,
                    self.decode(Alive, alive) if alive else None,
                    known,
                    load.version if load else None,
                    is_primary=name == primary,
                    role_moves=name in moving,
                    awaits_addresses=name == primary and bool(missing) and not known.address_problem,
                )
        return found | self._with_fences({name: node for name, node in found.items() if node.alive is None})

    def _role_moves(self, primary: str | None, wanted: str) -> tuple[str | None, ...]:
        """From whom and to whom the primary role is about to go."""
        if wanted in ("", primary) or self.reader.get(paths.alive(wanted)) is None:
            return ()
        return primary, wanted

    def _with_fences(self, gone: dict[str, Node]) -> dict[str, Node]:
        """Of the nodes that are gone, with one more round trip only where there are any."""
        if not gone:
            return {}
        known = {f"{paths.FENCES}/{name}" for name in self.reader.children(paths.FENCES)}
        by_path = {paths.fence(name, node.status.incarnation): node for name, node in gone.items()}
        wanted = [path for path in by_path if path in known]
        blocks = self.blocks() if wanted else {}
        return {
            by_path[path].spec.name: replace(
                by_path[path],
                fence=with_block(self.decode(Fence, fence), blocks),
                fence_version=fence.version,
            )
            for path, fence in zip(wanted, self.reader.get_many(wanted), strict=True)
            if fence is not None
        }

    # Fences

    def fences(self) -> dict[str, tuple[Fence, int]]:
        """Each with its version, by the name of its document."""
        names = self.reader.children(paths.FENCES)
        stored = self.reader.get_many([f"{paths.FENCES}/{name}" for name in names])
        return {
            name: (self.decode(Fence, one), one.version)
            for name, one in zip(names, stored, strict=True)
            if one is not None
        }

    def shown_fences(self) -> list[Fence]:
        """As users see them."""
        blocks = self.blocks()
        return [with_block(one, blocks) for one, _ in self.fences().values()]

    def blocks(self) -> dict[str, tuple[Block, int]]:
        """Each with its version, by node."""
        names = self.reader.children(paths.BLOCKS)
        stored = self.reader.get_many([paths.block(name) for name in names])
        return {
            name: (self.decode(Block, one), one.version)
            for name, one in zip(names, stored, strict=True)
            if one is not None
        }

    # Pools

    def pool(self, name: str) -> Pool:
        found = self.pools([name]).get(name)
        if found is None:
            raise NotFound(f"no pool {name}", hint="pvc storage pool list shows them")
        return found

    def pools(self, names: Iterable[str] | None = None) -> dict[str, Pool]:
        """By name; every pool unless told which. Those that do not exist are left out."""
        wanted = self.reader.children(paths.POOLS) if names is None else names
        stored = self.reader.get_many([paths.pool(name) for name in wanted])
        found = (Pool(self.decode(PoolSpec, one), one.version) for one in stored if one is not None)
        return {one.spec.name: one for one in found}

    # Tasks

    def task(self, identity: str) -> Task:
        found = self.tasks([identity]).get(identity)
        if found is None:
            raise NotFound(f"no task {identity}", hint="pvc task list shows those of the last days")
        return found

    def tasks(self, identities: Iterable[str] | None = None) -> dict[str, Task]:
        """By identity; all there are unless told which. Those that do not exist are left out."""
        wanted = list(self.reader.children(paths.TASKS) if identities is None else identities)
        documents = self.reader.get_many([where(one) for where in _OF_A_TASK for one in wanted])
        found = {}
        for identity, spec, status in zip(wanted, documents, documents[len(wanted) :], strict=False):
            if spec is not None:
                found[identity] = Task(
                    self.decode(TaskSpec, spec),
                    spec.version,
                    self.decode(TaskStatus, status) if status else TaskStatus(),
                    status.version if status else None,
                )
        return found

    # Whether nodes could be fenced

    def verifications(self) -> dict[str, Verification]:
        """By the coordinator that looked."""
        names = self.reader.children(paths.VERIFIED)
        stored = self.reader.get_many([paths.verified(name) for name in names])
        return {
            name: self.decode(Verification, one)
            for name, one in zip(names, stored, strict=True)
            if one is not None
        }

    def wish(self) -> Wish:
        """The newest one to verify nodes now."""
        stored = self.reader.get(paths.VERIFIED)
        return self.decode(Wish, stored) if stored is not None and stored.data else Wish()


def with_block(fence: Fence, blocks: Mapping[str, tuple[Block, int]]) -> Fence:
    """What else is known of it, where there is no receipt. To be shown, not to be written."""
    block = blocks.get(fence.node)
    is_blocked = block is not None and block[0].proves(fence.incarnation)
    is_open = fence.state in (FenceState.FENCING, FenceState.FAILED)
    return replace(fence, evidence=Evidence.BLOCKLIST) if is_blocked and is_open else fence


_OF_A_TASK = (paths.task, paths.task_status)

# What a mirror follows


def whole_cluster() -> tuple[Follow, ...]:
    """Roots of the API's mirror."""
    single = (paths.CLUSTER, paths.AUTHORITY, paths.PRIMARY, paths.VERIFIED, paths.NETWORKS)
    listed = (
        *(paths.NODES, paths.ALIVE, paths.LOAD, paths.VMS, paths.VM_NAMES),
        *(paths.NETWORKS, paths.NETWORK_NAMES, paths.TOKENS, paths.FENCES, paths.VERIFIED),
        *(paths.TASKS, paths.POOLS, paths.BLOCKS),
    )
    return (*(Follow(path) for path in single), *(Follow(path, children=True) for path in listed))


def expand_whole_cluster(listing: str, names: tuple[str, ...]) -> Iterable[Follow]:
    if listing == paths.FENCES:
        return (Follow(f"{paths.FENCES}/{name}") for name in names)
    followed = {
        paths.NODES: (paths.node, paths.node_status),
        paths.ALIVE: (paths.alive,),
        paths.LOAD: (paths.load,),
        paths.VMS: (paths.vm, paths.vm_status),
        paths.VM_NAMES: (paths.vm_name,),
        paths.NETWORKS: (paths.network,),
        paths.NETWORK_NAMES: (paths.network_name,),
        paths.TOKENS: (paths.token,),
        paths.VERIFIED: (paths.verified,),
        paths.TASKS: _OF_A_TASK,
        paths.POOLS: (paths.pool,),
        paths.BLOCKS: (paths.block,),
    }[listing]
    return (Follow(where(name)) for name in names for where in followed)


def one_node(name: str) -> tuple[Follow, ...]:
    """Roots of a node's mirror: the cluster's settings, which nodes there are, and the VMs its index names.

    Never every VM.
    """
    listed = (paths.NODES, paths.node_vms(name))
    roots = (Follow(paths.CLUSTER), Follow(paths.node(name)))
    return (*roots, *(Follow(path, children=True) for path in listed))


def expand_one_node(listing: str, names: tuple[str, ...]) -> Iterable[Follow]:
    if listing == paths.NODES:
        return (Follow(paths.node(name)) for name in names)
    return (Follow(where(uuid)) for uuid in names for where in (paths.vm, paths.vm_status, paths.vm_target))


def tasks_of(node: str) -> tuple[Follow, ...]:
    """Roots of the mirror of whoever does the tasks of a node."""
    return (Follow(paths.node_tasks(node), children=True),)


def expand_tasks(listing: str, names: tuple[str, ...]) -> Iterable[Follow]:
    return (Follow(where(name)) for name in names for where in _OF_A_TASK)
