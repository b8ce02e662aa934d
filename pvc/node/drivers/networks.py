"""Networks of VMs on a host: links, addresses, gateways, routing, filters and name servers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pvc.cluster.addresses import Router
from pvc.cluster.filters import Key, Number, Transit
from pvc.cluster.sriov import VFSettings, VirtualFunction
from pvc.cluster.zones import Zone
from pvc.node.drivers import DriverError


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


class GatewayTunnels(Protocol):
    """Where this host sends what is for gateways on other nodes. Every call may raise DriverError."""

    def vteps(self, vnis: Iterable[int]) -> Mapping[int, str]:
        """The address of the node to which it goes, by VNI, where a way is known."""
        ...

    def lead(self, vni: int, vtep: str) -> None:
        """From now on to that one. Nothing where no way is known any more: it is asked for again."""
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
