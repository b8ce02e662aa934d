"""What a node's daemon needs of the world: protocols over plain values; the drivers beside it fulfil them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from pvc.cluster.addresses import Router
from pvc.cluster.filters import Key, Number, Transit
from pvc.cluster.sriov import VFSettings, VirtualFunction
from pvc.cluster.zones import Zone
from pvc.errors import Failed

if TYPE_CHECKING:
    from pvc.cluster.domainxml import Shape
    from pvc.cluster.vm import Drive, Interface


class DriverError(Failed):
    """The hypervisor said no. `retryable`: the same request may succeed later, unchanged."""

    def __init__(self, message: str, *, hint: str = "", retryable: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable


class NoSuchDomain(DriverError):
    """The domain is not on this host (any more)."""


class NoAnswer(DriverError):
    """QEMU, libvirt itself or an agent in a guest hangs: what was asked for may still happen."""


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


class TooLate(DriverError):
    """What was to be done until a moment would take effect after it."""


class HostAddresses(Protocol):
    """The floating addresses on this host's devices, as "10.0.0.250/24". Every call may raise DriverError.

    Safe to call from several threads. Addresses that others gave to a device are never touched.
    """

    def hold(self, address: str, until: float) -> bool:
        """Have the device in whose network it is answer for the address, until that monotonic time.

        Then the kernel takes it away, whatever has become of us. True where it was not held before.
        Raises TooLate where less than a second is left.
        """
        ...

    def drop(self, address: str) -> None:
        """At once; done already when it is not held."""
        ...

    def held(self) -> Mapping[str, str]:
        """Each floating address that is held now, by whatever life of a daemon, and its device."""
        ...

    def announce(self, address: str) -> None:
        """Tell the neighbours on its network who answers for it now. Nothing, when it is not held."""
        ...


class OwnAddresses(Protocol):
    """IPv4 addresses that this host answers for on whatever network. Every call may raise DriverError."""

    def hold(self, address: str) -> bool:
        """True where it was not held before, by whatever life of the daemon. Refused where others gave it."""
        ...

    def drop(self, address: str) -> bool:
        """True where it was held; one that others gave stays."""
        ...


@dataclass(frozen=True, slots=True)
class Vxlan:
    """A tunnel between nodes; where a guest is, routing says and not what is overheard."""

    vni: int
    local: str
    port: int = 4789
    learning: bool = False


@dataclass(frozen=True, slots=True)
class Vlan:
    number: int
    device: str


@dataclass(frozen=True, slots=True)
class Link:
    """A network device of this host, as it is or is wanted."""

    name: str
    kind: str
    """bridge, vxlan, vlan; others as the kernel calls them, empty for a real one."""
    mtu: int
    up: bool = True
    master: str = ""
    """The bridge of which it is a port."""
    learning: bool = True
    """As a port: the bridge learns who is behind it from what comes out of it."""
    vxlan: Vxlan | None = None
    vlan: Vlan | None = None
    is_quiet: bool = False
    """The host itself takes nothing from it and says nothing into it: it only passes what others say."""
    is_ours: bool = False
    """Made by us, in whatever life of the daemon."""


class HostLinks(Protocol):
    """The network devices of this host. Every call may raise DriverError. For one thread at a time."""

    def links(self) -> Mapping[str, Link]:
        """All there are, by name. Whether one is quiet is said only of ours."""
        ...

    def device_of(self, address: str) -> str:
        """The name of the device with this address of the host; empty where none has it."""
        ...

    def add(self, link: Link) -> None:
        """Make it, ours from the first moment, and as it is wanted when this returns."""
        ...

    def change(self, link: Link) -> None:
        """Give one of ours the MTU, the state, the bridge and the learning that are wanted."""
        ...

    def remove(self, name: str) -> None:
        """Done already where there is none. Raises DriverError for one that is not ours."""
        ...


@dataclass(frozen=True, slots=True)
class Gateway:
    """This host in a managed network: a device with its addresses, whose other end is on the bridge."""

    vni: int
    mtu: int
    addresses: tuple[str, ...]
    """With the lengths of their networks, in order."""
    is_well: bool = True
    """Up, on its bridge, and as careful with what comes out of it as a router has to be."""


class HostGateways(Protocol):
    """Gateways of this host, and what passes through it. Every call may raise DriverError.

    All have the same MAC address, on all hosts: for guests nothing changes when another host has theirs. One
    thread gives and takes; announcing is for any.
    """

    def gateways(self) -> Mapping[int, Gateway]:
        """Those that are ours, in whatever life of the daemon."""
        ...

    def give(self, gateways: Iterable[Gateway]) -> Mapping[int, str]:
        """Have them be so. Those that cannot be, each with the reason: no bridge, or a name that is taken."""
        ...

    def take(self, vnis: Iterable[int]) -> None:
        """Done already for those that are not there."""
        ...

    def announce(self, vnis: Iterable[int]) -> None:
        """Tell all in those networks whose the addresses are. Nothing where there is no such gateway."""
        ...

    def forward(self, towards: Iterable[str], *, ipv6: bool) -> bool:
        """Pass packets on between gateways and the networks of those addresses, and the default route.

        True where something had to be done for that. The kernel asks only by which device a packet came, and
        for IPv6 nothing: filters see to it that nothing else passes.
        """
        ...

    def end_forwarding(self) -> None:
        """As it was before `forward`."""
        ...

    def transit(self) -> Transit:
        """What the host passes on without `forward`, also while that holds."""
        ...

    def is_left(self) -> bool:
        """Whether there is a gateway, or `forward` holds: what filters are needed for."""
        ...


@dataclass(frozen=True, slots=True)
class Upstream:
    """What a coordinator exchanges with routers upstream."""

    routers: tuple[Router, ...]
    announced: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """By network, what is behind its gateway: told by who has it, and nothing but these."""
    own: tuple[str, ...] = ()
    """Networks of the node's own, about which it believes nobody else."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """A node as it exchanges with others where guests are."""

    address: str
    is_reflector: bool
    """It passes on what it hears from one client to all others."""
    reflectors: tuple[str, ...]
    """The others."""
    clients: tuple[str, ...] = ()
    as_number: int = 65000
    upstream: Upstream | None = None


class Routing(Protocol):
    """The routing daemons of this host. Every call may raise DriverError. For one thread at a time."""

    def serve(self, speaker: Speaker) -> bool:
        """Have them run so; True where something had to be done for that. What did not change goes on."""
        ...

    def stop(self) -> bool:
        """Have them run no more; True where they did. Done already where they never ran for us."""
        ...

    def lives(self) -> Mapping[str, int]:
        """Each daemon that should run, with a number that is another after it was started again; 0: it does
        not run."""


class Ping(Protocol):
    def __call__(self, address: str, payload: int, /) -> bool:
        """An echo of so many bytes comes back from there within a second, in one piece both ways."""
        ...


class PacketFilter(Protocol):
    """One nftables table of ours on this host; others are never touched.

    Every call may raise DriverError. For one thread at a time, but for `counts`.
    """

    def check(self, text: str) -> None:
        """Whether it could be loaded; changes nothing. Raises Refused with what is wrong in which line."""
        ...

    def load(self, text: str) -> None:
        """All of it at once, in place of what there was. Raises Refused; then what there was goes on."""
        ...

    def is_as_loaded(self) -> bool:
        """False also where that is not known: at first, and when others have changed filters meanwhile."""
        ...

    def counts(self, chain: str = "") -> Mapping[Key, Number] | None:
        """Of the rules with a comment, as they are in the kernel and in their order; None: nothing is loaded.

        Of all chains unless told which.
        """
        ...

    def remove(self) -> None:
        """Done already when it is not there."""


@dataclass(frozen=True, slots=True)
class Answering:
    """Where a name server answers, who may copy its zones, and who is told of their changes."""

    addresses: tuple[str, ...]
    """It need not be there yet: it answers as soon as it is. Others hear of changes from the first ones."""
    copied_by: tuple[str, ...] = ()
    """Networks."""
    told: tuple[str, ...] = ()


class NameServer(Protocol):
    """Of the cluster's names, on this host. Every call may raise DriverError. For one thread at a time."""

    def publish(self, zones: Mapping[str, Zone]) -> tuple[str, ...]:
        """Answer for exactly these, each by its name, at once; the names of those that changed."""
        ...

    def serve(self, wanted: Answering) -> bool:
        """Have it run so, with what was published; True where something had to be done for that.

        Whoever is to be told of changes is told of those that nobody was told of yet.
        """
        ...

    def stop(self) -> bool:
        """Have it run no more, and forget the zones; True where it did. Done already where it never ran."""
        ...

    def life(self) -> int:
        """A number that is another after it was started again; 0: it does not run."""
        ...


@dataclass(frozen=True, slots=True)
class GatewayDevice:
    """A gateway as the kernel has it now: one that was made anew is another, also by the same name."""

    name: str
    index: int
    mtu: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server of one network is told, by files."""

    config: str
    """Is read when it starts."""
    hosts: Mapping[str, str] = field(default_factory=dict)
    """By file. One that is new is read at once, one that changed or is gone when it is told to look."""
    names: Mapping[str, str] = field(default_factory=dict)
    """The same, of the names that are not from leases."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the files of one server are."""

    hosts: str
    names: str
    leases: str
    script: str


class NameServers(Protocol):
    """Servers of DHCP and DNS on this host, one for each network. Every call may raise DriverError.

    For one thread at a time. Each lives on when its daemon ends, and again by itself when it was killed.
    """

    def devices(self, names: Sequence[str]) -> Mapping[str, GatewayDevice]:
        """Those that there are."""
        ...

    def lives(self) -> Mapping[int, int]:
        """Each that was started, by whatever life of the daemon, with a number that is another after it was
        started again; 0: it does not run."""
        ...

    def place(self, vni: int) -> Place: ...

    def known(self, vni: int) -> Settings | None:
        """What is in its files; None: there are none."""
        ...

    def write(self, vni: int, settings: Settings, before: Settings | None) -> None:
        """Have its files be so; `before` is what is in them, as far as that is known."""
        ...

    def look(self, vni: int) -> None:
        """Have it read the files of hosts and names again."""
        ...

    def start(self, vnis: Collection[int]) -> None: ...

    def stop(self, vnis: Collection[int]) -> None:
        """They have ended when this returns, and do not come back."""
        ...

    def forget(self) -> None:
        """Remove all files; of servers that do not run."""
        ...

    def leases(self, vni: int) -> str | None:
        """What it remembers, in whole lines; None: it has no memory."""
        ...

    def remember(self, vni: int, text: str) -> None:
        """Give it a memory to begin with; only while it does not run."""
        ...

    def listen(self) -> None:
        """From now on notice those that say that their leases changed."""
        ...

    def changed(self) -> set[int]:
        """Those that said so since the last call."""
        ...


class Watchdog(Protocol):
    """Resets this machine when it has not been fed for so long. Every call may raise DriverError, soon.

    It outlives whoever armed it: only `disarm` ends it.
    """

    @property
    def name(self) -> str: ...

    def arm(self, seconds: int) -> float:
        """Feeds it, too. Returns the seconds that it granted."""
        ...

    def feed(self) -> None: ...

    def disarm(self) -> None:
        """Done already when it is not armed."""
        ...


@dataclass(frozen=True, slots=True)
class Split:
    """A network device of this host, and what it is split into."""

    pci: str
    total: int
    """Virtual functions that it can have; 0: it cannot be split."""
    functions: tuple[VirtualFunction, ...]


class VirtualFunctions(Protocol):
    """SR-IOV of this host's network devices. Every call may raise DriverError. For one thread at a time."""

    def look(self, device: str) -> Split | None:
        """None where there is no such device."""
        ...

    def split(self, device: str, count: int) -> None:
        """Give it so many virtual functions, where it has none."""
        ...

    def set(self, device: str, number: int, settings: VFSettings, names: tuple[str, ...]) -> None:
        """Of a virtual function, what these say: a VLAN with its priority, both rates, or one other."""
        ...


@dataclass(frozen=True, slots=True)
class Device:
    """A network device that the node's own networks could be on, as it is or is wanted."""

    name: str
    kind: str = ""
    """bond, vlan; others as the kernel calls them, empty for a real one."""
    mtu: int = 0
    """Of one that is wanted, 0: as the kernel makes it."""
    up: bool = True
    master: str = ""
    mode: str = ""
    """Of a bond."""
    vlan: Vlan | None = None
    is_ours: bool = False
    """Made by us for a network of the node itself, in whatever life of the daemon."""


@dataclass(frozen=True, slots=True)
class DeviceAddress:
    value: str
    """With the length of its network."""
    device: str
    protocol: int = 0
    """The kernel's word for who gave it."""


@dataclass(frozen=True, slots=True)
class Route:
    to: str
    gateway: str
    device: str
    protocol: int
    metric: int


@dataclass(frozen=True, slots=True)
class HostState:
    """Devices, permanent addresses and static routes of a host, without what is made for VMs."""

    devices: tuple[Device, ...] = ()
    addresses: tuple[DeviceAddress, ...] = ()
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True, slots=True)
class RemoveDevice:
    device: str


@dataclass(frozen=True, slots=True)
class MakeDevice:
    wanted: Device

    @property
    def device(self) -> str:
        return self.wanted.name


@dataclass(frozen=True, slots=True)
class SetMaster:
    device: str
    master: str
    """A bond; empty: none any more."""


@dataclass(frozen=True, slots=True)
class SetMTU:
    device: str
    mtu: int


@dataclass(frozen=True, slots=True)
class SetUp:
    device: str
    up: bool


@dataclass(frozen=True, slots=True)
class AddAddress:
    address: DeviceAddress

    @property
    def device(self) -> str:
        return self.address.device


@dataclass(frozen=True, slots=True)
class DropAddress:
    address: DeviceAddress

    @property
    def device(self) -> str:
        return self.address.device


@dataclass(frozen=True, slots=True)
class AddRoute:
    route: Route

    @property
    def device(self) -> str:
        return self.route.device


@dataclass(frozen=True, slots=True)
class DropRoute:
    route: Route

    @property
    def device(self) -> str:
        return self.route.device


HostStep = (
    RemoveDevice | MakeDevice | SetMaster | SetMTU | SetUp | AddAddress | DropAddress | AddRoute | DropRoute
)


class HostNetworking(Protocol):
    """The networks of this host itself. Every call may raise DriverError. For one thread at a time."""

    def state(self) -> HostState: ...

    def take(self, step: HostStep) -> None:
        """What is so already is done. A device that somebody else made is never removed."""
        ...
