"""A node: what is wanted of it, what it says of itself, and what users see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pvc.cluster.sriov import PhysicalFunction


class NodeRole(StrEnum):
    COORDINATOR = "coordinator"
    HYPERVISOR = "hypervisor"


class Wanted(StrEnum):
    READY = "ready"
    FLUSHED = "flushed"


class DaemonState(StrEnum):
    INIT = "init"
    RUN = "run"
    SHUTDOWN = "shutdown"
    STOP = "stop"
    DEAD = "dead"
    FENCED = "fenced"
    """Dead, and there is evidence that nothing of it runs."""


class BMCDriver(StrEnum):
    IPMI = "ipmi"
    REDFISH = "redfish"


@dataclass(frozen=True, slots=True)
class BMC:
    """The controller that switches a node's power while the node itself is dead."""

    driver: BMCDriver
    address: str
    user: str
    password: str
    """Encrypted with the cluster key."""
    certificate: str = ""
    """Of Redfish: "" one that this machine's authorities vouch for, "any", or its SHA-256 in hexadecimal."""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def good_for(self) -> str:
        """Signed with the password, which must never be sent to another address than it was given for."""
        return " ".join((self.driver, self.address, self.user, self.certificate))


@dataclass(frozen=True, slots=True)
class NodeSpec:
    name: str
    address: str
    storage_address: str
    role: NodeRole = NodeRole.HYPERVISOR
    wanted: Wanted = Wanted.READY
    bmc: BMC | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NetworkProblem:
    """Why a network is not as it should be on a node."""

    vni: int
    """0: all that are managed."""
    why: str


@dataclass(frozen=True, slots=True)
class Stray:
    """A VM that ran where it did not belong, and was ended there: it may have run twice."""

    vm: str
    why: str
    at: float
    """By the wall clock of the node, to show to people."""


@dataclass(frozen=True, slots=True)
class CephSeen:
    """What a node that has been told of a Ceph sees of it. No figures."""

    fsid: str = ""
    """Which it reaches; empty: it does not."""
    osds: tuple[int, ...] = ()
    """Those on its own disks."""
    problems: tuple[str, ...] = ()
    """That it does not reach it; and what is wrong with it all, as the primary sees it."""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """Written by the node when something of it changes, not periodically."""

    incarnation: int = 0
    state: DaemonState = DaemonState.INIT
    version: str = ""
    layout: int = 0
    cpus: int = 0
    memory_mib: int = 0
    emulation: str = ""
    libvirt: str = ""
    qemu: str = ""
    kernel: str = ""
    bridges: tuple[str, ...] = ()
    managed_mtu: int = 0
    """The greatest that a managed network can have here; 0: not known."""
    bridged_mtu: int = 0
    """The greatest that a bridged network can have here; 0: it can have none."""
    network_problems: tuple[NetworkProblem, ...] = ()
    service_problems: tuple[NetworkProblem, ...] = ()
    """Of what the primary does for managed networks."""
    host_network_problems: tuple[str, ...] = ()
    """What of its own networks is not as its pvc.toml describes it."""
    pool_problems: Mapping[str, str] = field(default_factory=dict)
    """Pools that this node should reach and does not, and why."""
    ceph: CephSeen | None = None
    """None: it has been told of none."""
    sriov: tuple[PhysicalFunction, ...] = ()
    """The network devices that it splits into virtual functions."""
    console_port: int = 0
    flushed: bool = False
    """It was told to flush, and has not yet fetched its VMs back."""
    watchdog: str = ""
    """The watchdog that this life of the daemon has armed, or why there is none."""
    quiet_after_s: float = 0.0
    """So long after its session was seen gone nothing of it runs any more; 0: it promises nothing."""
    nothing_runs: bool = False
    """With state `stop`: when it left it had ended all its VMs."""
    boot: str = ""
    """Of its kernel."""
    ceph_addresses: tuple[str, ...] = ()
    """That its clients of Ceph have, or have had since its boot; said before a VM there uses Ceph."""
    strays: tuple[Stray, ...] = ()
    """The newest VMs that were found running here while they belonged elsewhere."""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Alive:
    incarnation: int


@dataclass(frozen=True, slots=True)
class Load:
    """One small write per keepalive."""

    memory_used_mib: int = 0
    memory_free_mib: int = 0
    memory_allocated_mib: int = 0
    """Of VMs that run here, or are about to."""
    memory_provisioned_mib: int = 0
    """Of VMs assigned here, running or not."""
    vcpus_allocated: int = 0
    load: float = 0.0
    vms: int = 0
    arriving: int = 0
    """VMs that are on their way to it."""
    problem: str = ""
    """Why a flush or a return does not get on."""
    addresses: tuple[str, ...] = ()
    """The floating ones that it answers for."""
    address_problem: str = ""
    """Why it does not answer for one, as primary."""
    extra: Mapping[str, Any] = field(default_factory=dict)


def daemon_state(status: NodeStatus, alive: Alive | None) -> DaemonState:
    """As users see it: a node that said `run` and has no live session is dead."""
    if alive is not None and alive.incarnation == status.incarnation:
        return status.state
    return DaemonState.STOP if status.state is DaemonState.STOP else DaemonState.DEAD


def domain_state(spec: NodeSpec, status: NodeStatus, load: Load) -> str:
    if spec.wanted is Wanted.FLUSHED:
        return "flush" if load.vms or not status.flushed else "flushed"
    return "unflush" if status.flushed or load.arriving else "ready"
