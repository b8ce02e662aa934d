"""Running domains: what every hypervisor does, libvirt or a fake."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from pvc.node.drivers import DriverError

if TYPE_CHECKING:
    from pvc.cluster.domainxml import Shape
    from pvc.cluster.vm import Drive, Interface


class NoSuchDomain(DriverError):
    """The domain is not on this host (any more)."""


class Cancelled(DriverError):
    """A migration ended because its `cancelled` callback asked for it; the VM runs where it ran."""


class DomainState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    SHUTTING_DOWN = "shutting-down"  # the guest has powered off, QEMU is about to go
    INCOMING = "incoming"  # a live migration to this host has begun; the VM still belongs to the source
    OUTGOING = "outgoing"  # paused for the last step of a live migration away from this host
    CRASHED = "crashed"


class Ended(StrEnum):
    """How a domain left this host."""

    SHUTDOWN = "shutdown"  # the guest powered itself off, by ACPI request or on its own
    DESTROYED = "destroyed"  # we, or an administrator, forced it off
    CRASHED = "crashed"  # the guest panicked
    MIGRATED = "migrated"
    FAILED = "failed"  # QEMU died, or could not start


class EventKind(StrEnum):
    STARTED = "started"  # also: arrived by migration
    PAUSED = "paused"
    RESUMED = "resumed"
    CHANGED = "changed"  # a device came or went
    ENDED = "ended"
    CONNECTED = "connected"  # to libvirt, first or again: look at everything
    DISCONNECTED = "disconnected"


class Emulation(StrEnum):
    """The domain type that works on this host."""

    KVM = "kvm"
    QEMU = "qemu"  # software emulation: KVM is missing or does not work


@dataclass(frozen=True, slots=True)
class Domain:
    """An active domain of this host. One that is not listed does not run here: libvirt keeps nothing else."""

    uuid: str
    name: str
    state: DomainState
    reason: str  # libvirt's word: booted, migrated, ioerror, …
    migrating: bool  # a live migration, in or out, is going on
    digest: str  # of the definition QEMU was started with, or has become; "" when the domain is not ours
    memory_mib: int
    vcpus: int
    silent: bool = False  # libvirt cannot say whether it migrates: QEMU starts, or hangs
    rest: str = ""  # of that definition without its interfaces and disks
    interfaces: tuple[Interface, ...] = ()  # that it has now
    drives: tuple[Drive, ...] = ()  # that it has now
    run: str = ""  # this run of its QEMU on this host: no other one, of whatever domain, is called so

    @property
    def devices(self) -> tuple[Interface | Drive, ...]:
        return (*self.interfaces, *self.drives)


@dataclass(frozen=True, slots=True)
class DomainEvent:
    """A hint to look again; `ended` is the one thing that looking again cannot tell."""

    kind: EventKind
    uuid: str = ""  # empty for CONNECTED and DISCONNECTED
    ended: Ended | None = None


@dataclass(frozen=True, slots=True)
class MigrationTarget:
    """`uri` is the libvirt of the other node (qemu+tls://n2/system), `data_uri` where memory goes (tcp://10.251.2.2)."""

    uri: str
    data_uri: str
    tls: bool = True
    name: str = ""  # the other node's name as in its certificate, if data_uri is an address it does not carry


@dataclass(frozen=True, slots=True)
class MigrationSettings:
    max_downtime_ms: int = 300
    timeout_s: float = 600.0  # then the migration is aborted and the VM stays
    bandwidth_mib_s: int = 0  # 0: what the network gives
    auto_converge: bool = True
    post_copy: bool = False  # allow it: switched to when a first pass did not suffice
    shared_files: bool = True  # disks are files on a directory the nodes share, whatever libvirt thinks of it


@dataclass(frozen=True, slots=True)
class Progress:
    elapsed_s: float
    total_mib: int
    remaining_mib: int
    iteration: int = 0

    @property
    def percent(self) -> int:
        """Of memory still to copy now; a busy guest can make it fall again."""
        if self.total_mib <= 0:
            return 0
        return max(0, min(100, 100 - 100 * self.remaining_mib // self.total_mib))


@dataclass(frozen=True, slots=True)
class MigrationResult:
    elapsed_s: float
    downtime_ms: int | None  # None when libvirt did not say


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Of the host; constant while it is up."""

    cpus: int
    memory_mib: int
    emulation: Emulation
    emulator: str  # path of the QEMU binary
    cpu_model: str
    libvirt_version: str
    qemu_version: str


@dataclass(frozen=True, slots=True)
class HostLoad:
    memory_used_mib: int
    memory_free_mib: int  # what new VMs could have: the kernel's MemAvailable
    load_1: float
    load_5: float
    load_15: float


class Hypervisor(Protocol):
    """The QEMU domains of this host. Every call may raise DriverError; calls on one domain NoSuchDomain.

    Safe to call from several threads. Domains are transient: when QEMU ends nothing of them stays.
    """

    def capabilities(self) -> Capabilities: ...

    def load(self) -> HostLoad: ...

    def domains(self) -> Mapping[str, Domain]:
        """Active domains by UUID; soon, also when one of them hangs.

        One that has been listed with a digest has one until it ends, whatever others make of it meanwhile.
        """
        ...

    def watch(self, callback: Callable[[DomainEvent], None]) -> None:
        """Call back on each event, from another thread, until close(). The callback must not block."""
        ...

    def start(self, xml: str) -> None:
        """Start a domain from rendered XML (domainxml.render); returns when it runs."""
        ...

    def shutdown(self, uuid: str) -> None:
        """Ask the guest to power off (ACPI); returns at once. Raises NoAnswer when QEMU hangs."""
        ...

    def destroy(self, uuid: str) -> None:
        """Force off; returns when QEMU is gone. Done already when there is no such domain."""
        ...

    def resume(self, uuid: str) -> None: ...

    def mark(self, uuid: str, shape: Shape) -> None:
        """Write into a running domain what it is to be known as: digests, and of each device that it has
        or is about to get, how the definition has it."""
        ...

    def attach(self, uuid: str, device: str, xml: str) -> None:
        """Give a running domain an interface or a disk (domainxml.device); returns when it has it.

        Done already when it has it.
        """
        ...

    def detach(self, uuid: str, device: str) -> None:
        """Ask the guest to give up exactly that interface or disk; returns at once, and an event tells when
        it has.

        Done already when it has no such one, and while the guest is at it.
        """
        ...

    def resize_disk(self, uuid: str, target: str, size_bytes: int) -> None:
        """Have QEMU make a disk of a running domain larger, to exactly that; its guest is told."""
        ...

    def migrate(
        self,
        uuid: str,
        target: MigrationTarget,
        settings: MigrationSettings,
        *,
        progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> MigrationResult:
        """Move a running domain; returns when it runs there and is gone here. Blocks: call it from a lane.

        `progress` and `cancelled` are called in the caller's thread, a few times a second. Cancelled,
        TimedOut and DriverError mean that the domain still runs here; NoSuchDomain, that it ended meanwhile.
        """
        ...

    def keep_secret(self, uuid: str, usage: str, value: bytes) -> None:
        """Have libvirt know it, also after a restart; it tells nobody but QEMU. Done already where it does.

        `usage` is of one secret only.
        """
        ...

    def abort_job(self, uuid: str) -> None:
        """Abort a migration that e.g. a daemon now dead had begun. Done already when there is none."""
        ...

    def close(self) -> None: ...


class Snapshotter(Hypervisor, Protocol):
    """One that can have its guests stand still, and take snapshots of what they have open."""

    def suspend(self, uuid: str) -> None:
        """Its guest stands still from then on, until `resume`, and what it wrote is on its disks."""
        ...

    def can_freeze(self, uuid: str) -> bool:
        """An agent in the guest answers, and holds nothing still for somebody else."""
        ...

    def freeze(self, uuid: str) -> bool:
        """Have the agent in the guest write what file systems hold back, and hold them still until `thaw`.

        False where it does not: then nothing is held still. Raises NoAnswer: it may be at it yet.
        """
        ...

    def thaw(self, uuid: str) -> None:
        """Done already where nothing is frozen. Raises NoAnswer where no agent answers."""
        ...

    def add_snapshots(self, uuid: str, snapshots: Mapping[str, str]) -> None:
        """Inside of disks that a running domain has open, at one moment: by the file, what each is called.

        Of all of them or, when that cannot be, of none.
        """
        ...

    def remove_snapshot(self, uuid: str, file: str, name: str) -> None:
        """Of a disk that a running domain has open. Raises NotFound where there is no such snapshot."""
        ...
