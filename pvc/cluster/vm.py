"""A VM: what is wanted (spec), what is (status), and what users see of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from pvc.cluster import paths
from pvc.cluster.store import Create, Delete, Op


class Power(StrEnum):
    STARTED = "started"
    STOPPED = "stopped"
    DISABLED = "disabled"


class Method(StrEnum):
    """How a running VM changes nodes."""

    NONE = "none"
    """Live, and when that fails by shutting down and starting there."""
    LIVE = "live"
    """Only live: when that fails, the VM stays where it is."""
    SHUTDOWN = "shutdown"


class Selector(StrEnum):
    """By what the node of a VM is chosen."""

    MEM = "mem"
    MEMPROV = "memprov"
    VCPUS = "vcpus"
    LOAD = "load"
    VMS = "vms"
    NONE = "none"
    """The cluster's default."""


class State(StrEnum):
    """Of a VM's life, as its owner reports it."""

    STOP = "stop"
    STARTING = "starting"
    START = "start"
    SHUTDOWN = "shutdown"
    RESTART = "restart"
    MIGRATE = "migrate"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Tag:
    name: str
    protected: bool = False


@dataclass(frozen=True, slots=True)
class Interface:
    """Of a definition, or of a QEMU as the definition had it when it came there."""

    mac: str
    network: str
    """As in VMSpec.networks."""
    model: str
    bridge: str
    """What its node must have for it; empty: nothing that pvc knows of."""
    digest: str
    """Of the whole element; empty: it did not come from a definition."""

    @property
    def device(self) -> str:
        return self.mac


@dataclass(frozen=True, slots=True)
class Drive:
    """A disk of a definition, or of a QEMU as the definition had it when it came there."""

    target: str
    source: str
    """A path, or what Ceph calls pool and image."""
    digest: str
    """As of an interface."""

    @property
    def device(self) -> str:
        """Both: another content below the same name is another disk."""
        return f"{self.target}={self.source}"


@dataclass(frozen=True, slots=True)
class Change:
    """An interface or a disk that is to come, or to go, while the VM runs."""

    device: str
    """By what it is known: the MAC address, or Drive.device."""
    digest: str = ""
    """As it is to be; empty: it is to go."""

    def is_made(self, devices: Iterable[Interface | Drive]) -> bool:
        found = next((one.digest for one in devices if one.device == self.device), None)
        return found is None if not self.digest else found == self.digest


@dataclass(frozen=True, slots=True)
class Refusal:
    """A change that was tried and cannot be made before the next start."""

    device: str
    digest: str
    why: str

    @property
    def change(self) -> Change:
        return Change(self.device, self.digest)


@dataclass(frozen=True, slots=True)
class VMSpec:
    """Written by operations (and by the owner when it takes an intent back)."""

    uuid: str
    name: str
    definition: str
    """libvirt domain XML as its administrator wrote it; rendered for a node when it starts."""
    memory_mib: int
    vcpus: int
    power: Power = Power.STOPPED
    force: bool = False
    """Stop at once instead of asking the guest."""
    node: str | None = None
    home: str | None = None
    """Where it belongs while it is migrated away for now."""
    moves: int = 0
    """Counts changes of `node`, so that an answer to an older one is not mistaken."""
    move_method: Method = Method.NONE
    """Of the move that is under way."""
    restarts: int = 0
    """Counts requests to restart."""
    attempts: int = 0
    """Counts requests to start: a failure belongs to one of them."""
    selector: Selector = Selector.NONE
    node_limit: tuple[str, ...] = ()
    method: Method = Method.NONE
    max_downtime_ms: int = 300
    migration_timeout_s: int = 600
    shutdown_timeout_s: int = 0
    """0: the cluster's."""
    autostart: bool = False
    start_priority: int = 100
    """Among VMs that are to start: the greater goes first, and gets its place first."""
    tags: tuple[Tag, ...] = ()
    networks: tuple[str, ...] = ()
    """Of the definition, as memory and vCPUs are: lists do not read XML. A number is one of the cluster's."""
    live: tuple[Change, ...] = ()
    """What of the definition's interfaces and disks need not wait for the next start."""
    leaving: bool = False
    """It is being removed, with its disks."""
    profile: str = ""
    snapshots: tuple[str, ...] = ()
    """The oldest first; each has a document of its own."""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Owner:
    """The one node whose QEMU may run the VM, in that life of its daemon."""

    node: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Migration:
    target: str
    percent: int = 0
    remaining_mib: int = 0


@dataclass(frozen=True, slots=True)
class Recovery:
    """By which receipt it was taken from a dead node, in the very transaction that did it."""

    fence: str
    """Name of the receipt."""
    at_s: float
    """In the timeline of that fence."""


@dataclass(frozen=True, slots=True)
class VMStatus:
    """Written by the owner; by the assigned node when there is none."""

    state: State = State.STOP
    owner: Owner | None = None
    reason: str = ""
    since: float = 0.0
    """Wall clock of the writer, to show to people."""
    restarts: int = 0
    """The newest request to restart that was carried out."""
    attempts: int = 0
    """The newest request to start that was seen."""
    failures: int = 0
    """Starts and runs that ended badly, in a row."""
    digest: str = ""
    """Of the definition that QEMU runs."""
    interfaces: tuple[Interface, ...] = ()
    """That QEMU has."""
    drives: tuple[Drive, ...] = ()
    """That QEMU has."""
    refused: tuple[Refusal, ...] = ()
    migration: Migration | None = None
    last_migration: str = ""
    recovery: Recovery | None = None
    """The newest."""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def devices(self) -> tuple[Interface | Drive, ...]:
        """That QEMU has, and that may come and go."""
        return (*self.interfaces, *self.drives)


@dataclass(frozen=True, slots=True)
class Target:
    """The answer of a node that a VM is to move to."""

    node: str
    moves: int
    incarnation: int
    refused: str = ""


def shown_state(spec: VMSpec, status: VMStatus) -> str:
    """The one word users see."""
    if spec.leaving:
        return "remove"
    if status.owner is None:
        if spec.power is Power.DISABLED:
            return "disable"
        if spec.power is Power.STOPPED:
            return State.STOP
        failed = status.state is State.FAIL and status.attempts == spec.attempts
        return State.FAIL if failed else State.STARTING
    return status.state


def settled(spec: VMSpec, status: VMStatus) -> bool:
    """Nothing is going on: what is wanted is so, or has failed."""
    if spec.power is not Power.STARTED:
        return status.owner is None
    if status.owner is None:
        return status.state is State.FAIL and status.attempts == spec.attempts
    return (
        status.state is State.START
        and status.owner.node == spec.node
        and status.restarts >= spec.restarts
        and status.attempts >= spec.attempts
        and not under_way(spec, status)
    )


def under_way(spec: VMSpec, status: VMStatus) -> tuple[Change, ...]:
    """Changes of devices that are wanted while it runs, and neither made nor refused."""
    if status.owner is None:
        return ()
    refused = {one.change for one in status.refused}
    return tuple(one for one in spec.live if one not in refused and not one.is_made(status.devices))


def move(spec: VMSpec, to: str | None, *, home: str | None, method: Method = Method.NONE) -> VMSpec:
    return replace(spec, node=to, home=home, moves=spec.moves + 1, move_method=method)


def start_order(spec: VMSpec) -> tuple[int, str]:
    """To sort by: the greater priority first, equal ones always in the same order."""
    return -spec.start_priority, spec.uuid


def vnis_of(spec: VMSpec | None) -> frozenset[int]:
    """Networks of the cluster in which it has an interface."""
    return frozenset(int(name) for name in spec.networks if name.isdigit()) if spec else frozenset()


def index_nodes(spec: VMSpec | None, owner: Owner | None) -> frozenset[str]:
    """Nodes that must know of the VM."""
    concerned = {owner.node if owner else None}
    if spec:
        concerned |= {spec.node, spec.home}
    return frozenset(name for name in concerned if name)


def index_ops(uuid: str, before: frozenset[str], after: frozenset[str]) -> tuple[Op, ...]:
    """What a transaction that changes assignment, owner or home must do to the index."""
    added = tuple(Create(paths.node_vm(name, uuid)) for name in sorted(after - before))
    return added + tuple(Delete(paths.node_vm(name, uuid)) for name in sorted(before - after))
