"""Hosts in memory: QEMU domains that start, end, crash and migrate on a clock that the test owns. No threads.

It keeps the promises of the real driver (tests/contract/test_hypervisor.py) and can be told to break them.
"""

from __future__ import annotations

import itertools
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from pvc.cluster import domainxml
from pvc.cluster.domainxml import Shape
from pvc.errors import Invalid, NotFound, PVCError, TimedOut
from pvc.node.drivers import DriverError, NoAnswer
from pvc.node.drivers.hypervisor import (
    Cancelled,
    Capabilities,
    Domain,
    DomainEvent,
    DomainState,
    Emulation,
    Ended,
    EventKind,
    HostLoad,
    MigrationResult,
    MigrationSettings,
    MigrationTarget,
    NoSuchDomain,
    Progress,
)

ET.register_namespace("pvc", domainxml.NAMESPACE)

STEP_S = 0.2
MIB_PER_S_OF_BANDWIDTH = 400  # an idle guest's memory is mostly empty pages


def with_aliases(xml: str) -> str:
    """As libvirt shows a domain that runs: each device has one."""
    root = ET.fromstring(xml)
    for kind in ("interface", "disk"):
        for number, device in enumerate(root.findall(f"devices/{kind}")):
            if device.find("alias") is None:
                ET.SubElement(device, "alias", name=f"{kind}{number}")
    return _text(root)


def with_device(xml: str, device: str) -> str:
    root = ET.fromstring(xml)
    devices = root.find("devices")
    assert devices is not None
    devices.append(ET.fromstring(device))
    return _text(root)


def marked(xml: str, shape: Shape) -> str:
    """The element gets its namespace from libvirt."""
    root = ET.fromstring(xml)
    metadata = root.find("metadata")
    assert metadata is not None
    for own in metadata.findall(f"{{{domainxml.NAMESPACE}}}vm"):
        metadata.remove(own)
    own = ET.fromstring(domainxml.mark(shape))
    own.tag = f"{{{domainxml.NAMESPACE}}}vm"
    metadata.append(own)
    return _text(root)


def unmarked(xml: str) -> str:
    root = ET.fromstring(xml)
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    return _text(root)


def _text(root: ET.Element) -> str:
    """libvirt declares our prefix where it is used."""
    declared = f' xmlns:pvc="{domainxml.NAMESPACE}"'
    return (
        ET.tostring(root, encoding="unicode").replace(declared, "").replace("<pvc:vm", f"<pvc:vm{declared}")
    )


@dataclass(slots=True)
class Guest:
    """What runs inside, wherever it runs."""

    ignores_acpi: bool = False
    keeps_devices: bool = True  # no system runs in it that gives one up
    shutdown_takes_s: float = 0.0
    has_agent: bool = False
    is_frozen: bool = False
    is_slow: bool = False  # its agent, to freeze
    ends: Ended | None = None  # right after its start: it panics, or powers itself off


@dataclass(slots=True)
class _Machine:
    domain: Domain
    xml: str
    off_at: float | None = None  # the guest is shutting down


@dataclass(slots=True)
class FakeWorld:
    """Hosts that see each other, and the guests."""

    now: Callable[[], float] = time.monotonic
    migration_s: float = 0.6
    during_migration: Callable[[str], None] = lambda _uuid: (
        None
    )  # called at every step: the place for accidents
    snapshots: dict[str, list[str]] = field(default_factory=dict)  # by file
    when_snapshot: Callable[[str, str, bool], None] = lambda _file, _name, _is_there: None
    hosts: dict[str, FakeHypervisor] = field(default_factory=dict)
    guests: dict[str, Guest] = field(default_factory=dict)
    runs: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def add(self, name: str, *, memory_mib: int = 16384, cpus: int = 8) -> FakeHypervisor:
        host = self.hosts[name] = FakeHypervisor(self, name, memory_mib, cpus)
        return host

    def guest(self, uuid: str) -> Guest:
        return self.guests.setdefault(uuid, Guest())

    def target(self, name: str) -> MigrationTarget:
        return MigrationTarget(f"qemu+tls://{name}/system", f"tcp://{name}")

    def find(self, uri: str) -> FakeHypervisor:
        """By what a migration would connect to. Raises DriverError when nobody is there."""
        name = uri.partition("://")[2].partition("/")[0]
        host = self.hosts.get(name)
        if host is None or not host.powered or host.deaf:
            raise DriverError(f"unable to connect to server at '{name}:16514': No route to host")
        return host

    def running_on(self, uuid: str) -> tuple[str, ...]:
        """Where the guest executes: more than one, and the disk is lost. An arriving one does not execute."""
        return tuple(
            name
            for name, host in self.hosts.items()
            if host.powered
            and uuid in host.machines
            and host.machines[uuid].domain.state is not DomainState.INCOMING
        )


@dataclass(slots=True)
class FakeHypervisor:
    world: FakeWorld
    name: str
    memory_mib: int
    cpus: int
    machines: dict[str, _Machine] = field(default_factory=dict)
    callbacks: list[Callable[[DomainEvent], None]] = field(default_factory=list)
    refuses: dict[str, str] = field(default_factory=dict)  # method → libvirt's words
    calls: list[tuple[str, str]] = field(default_factory=list)  # method, UUID: what was done to domains
    powered: bool = True
    deaf: bool = False  # libvirt does not answer
    kills: BaseException | None = None  # whoever calls is killed
    connected: bool = False
    abort: set[str] = field(default_factory=set)
    secrets: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    sizes: dict[tuple[str, str], int] = field(default_factory=dict)  # of disks that were resized, by target
    resized: Callable[[str, int], object] = lambda _target, _size: None

    def executes(self, uuid: str) -> bool:
        machine = self.machines.get(uuid)
        return machine is not None and machine.domain.state is not DomainState.INCOMING

    # Faults

    def crash(self, uuid: str) -> None:
        """The guest panics."""
        self._end(uuid, Ended.CRASHED)

    def kill(self, uuid: str) -> None:
        """QEMU dies."""
        self._end(uuid, Ended.FAILED)

    def terminate(self, uuid: str) -> None:
        """QEMU is told to end by somebody else, as when the host shuts down."""
        self._end(uuid, Ended.DESTROYED)

    def leave(self, uuid: str) -> None:
        """The guest powers itself off."""
        self._end(uuid, Ended.SHUTDOWN)

    def restart_libvirt(self) -> None:
        self.connected = False
        self._tell(DomainEvent(EventKind.DISCONNECTED))

    def lose_power(self) -> None:
        self.powered = self.connected = False
        self.machines.clear()
        self.callbacks.clear()

    def gain_power(self) -> None:
        self.powered = True

    def plug_in(self, uuid: str, device: str) -> None:
        """Somebody gives it one with virsh."""
        self._change(uuid, with_device(self._machine(uuid).xml, device))

    def lose_metadata(self, uuid: str) -> None:
        """Somebody removes it with virsh."""
        self._change(uuid, unmarked(self._machine(uuid).xml))

    # The protocol

    def capabilities(self) -> Capabilities:
        self._connect("capabilities")
        return Capabilities(
            self.cpus,
            self.memory_mib,
            Emulation.QEMU,
            "/usr/bin/qemu-system-x86_64",
            "Fake CPU",
            "9.0.0",
            "7.2.22",
        )

    def load(self) -> HostLoad:
        used = sum(machine.domain.memory_mib for machine in self.machines.values())
        return HostLoad(used, max(0, self.memory_mib - used), 0.0, 0.0, 0.0)

    def domains(self) -> Mapping[str, Domain]:
        self._connect("domains")
        self.settle()
        return {uuid: machine.domain for uuid, machine in self.machines.items()}

    def keep_secret(self, uuid: str, usage: str, value: bytes) -> None:
        self._connect("keep_secret")
        if any(known == usage and of != uuid for of, (known, _) in self.secrets.items()):
            raise DriverError(f"there is a secret already for {usage}")
        self.secrets[uuid] = usage, value

    def watch(self, callback: Callable[[DomainEvent], None]) -> None:
        self.callbacks.append(callback)

    def start(self, xml: str) -> None:
        try:
            facts = domainxml.parse(xml)
        except Invalid as error:
            raise DriverError(f"XML error: {error.message}") from error
        self._connect("start", facts.uuid)
        if facts.uuid in self.machines:
            raise DriverError(f"domain '{facts.name}' is already active")
        shape = domainxml.running(xml)
        self.machines[facts.uuid] = _Machine(
            Domain(
                uuid=facts.uuid,
                name=facts.name,
                state=DomainState.RUNNING,
                reason="booted",
                migrating=False,
                digest=shape.digest,
                memory_mib=facts.memory_mib,
                vcpus=facts.vcpus,
                rest=shape.rest,
                interfaces=shape.interfaces,
                drives=shape.drives,
                run=str(next(self.world.runs)),
            ),
            with_aliases(xml),
        )
        self._tell(DomainEvent(EventKind.STARTED, facts.uuid))
        ends = self.world.guest(facts.uuid).ends
        if ends is not None:
            self._end(facts.uuid, ends)

    def shutdown(self, uuid: str) -> None:
        self._connect("shutdown", uuid)
        machine, guest = self._machine(uuid), self.world.guest(uuid)
        if not guest.ignores_acpi and machine.off_at is None:
            machine.off_at = self.world.now() + guest.shutdown_takes_s
        self.settle()

    def destroy(self, uuid: str) -> None:
        self._connect("destroy", uuid)
        if uuid in self.machines:
            self._end(uuid, Ended.DESTROYED)

    def resume(self, uuid: str) -> None:
        self._connect("resume", uuid)
        machine = self._machine(uuid)
        machine.domain = replace(machine.domain, state=DomainState.RUNNING, reason="unpaused")
        self._tell(DomainEvent(EventKind.RESUMED, uuid))

    def suspend(self, uuid: str) -> None:
        self._connect("suspend", uuid)
        machine = self._machine(uuid)
        machine.domain = replace(machine.domain, state=DomainState.PAUSED, reason="user")
        self._tell(DomainEvent(EventKind.PAUSED, uuid))

    def can_freeze(self, uuid: str) -> bool:
        self._connect("can_freeze", uuid)
        self._machine(uuid)
        guest = self.world.guest(uuid)
        return guest.has_agent and not guest.is_frozen

    def freeze(self, uuid: str) -> bool:
        self._connect("freeze", uuid)
        self._ask_agent(uuid)
        guest = self.world.guest(uuid)
        guest.is_frozen = not guest.is_slow
        if guest.is_slow:
            raise NoAnswer("Guest agent is not responding: Guest agent not available for now", retryable=True)
        return True

    def thaw(self, uuid: str) -> None:
        self._connect("thaw", uuid)
        self._ask_agent(uuid)
        self.world.guest(uuid).is_frozen = False

    def _ask_agent(self, uuid: str) -> None:
        self._machine(uuid)
        if not self.world.guest(uuid).has_agent:
            raise NoAnswer("Guest agent is not responding: QEMU guest agent is not connected", retryable=True)

    def add_snapshots(self, uuid: str, snapshots: Mapping[str, str]) -> None:
        self._connect("add_snapshots", uuid)
        for file, name in snapshots.items():
            self._has_open(uuid, file)
            if name in self.world.snapshots.get(file, []):
                raise DriverError(f"Snapshot with name '{name}' already exists on device")
        for file, name in snapshots.items():
            self.world.snapshots.setdefault(file, []).append(name)
            self.world.when_snapshot(file, name, True)

    def remove_snapshot(self, uuid: str, file: str, name: str) -> None:
        self._connect("remove_snapshot", uuid)
        self._has_open(uuid, file)
        if name not in self.world.snapshots.get(file, []):
            raise NotFound(f"{file} has no snapshot {name}")
        self.world.snapshots[file].remove(name)
        self.world.when_snapshot(file, name, False)

    def _has_open(self, uuid: str, file: str) -> None:
        if file not in {disk.source for disk in domainxml.parse(self._machine(uuid).xml).disks}:
            raise DriverError(f"QEMU does not have {file} open")

    def mark(self, uuid: str, shape: Shape) -> None:
        self._connect("mark", uuid)
        self._change(uuid, marked(self._machine(uuid).xml, shape))

    def attach(self, uuid: str, device: str, xml: str) -> None:
        self._connect("attach", uuid)
        now = self._machine(uuid).xml
        if "nonsense" in xml:
            raise DriverError("unsupported configuration: unknown interface type nonsense")
        if not domainxml.alias(now, device):
            self._change(uuid, with_aliases(with_device(now, xml)))

    def detach(self, uuid: str, device: str) -> None:
        self._connect("detach", uuid)
        self._machine(uuid)
        if not self.world.guest(uuid).keeps_devices:
            self.give_up(uuid, device)

    def give_up(self, uuid: str, device: str) -> None:
        """The guest lets an interface or a disk go."""
        xml = self._machine(uuid).xml
        if domainxml.alias(xml, device):
            target, is_disk, _ = device.partition("=")
            remove = domainxml.remove_disk if is_disk else domainxml.remove_nic
            self._change(uuid, remove(xml, target))

    def resize_disk(self, uuid: str, target: str, size_bytes: int) -> None:
        self._connect("resize_disk", uuid)
        if target not in {one.target for one in self._machine(uuid).domain.drives}:
            raise DriverError(f"invalid argument: disk '{target}' was not found in the domain config")
        self.sizes[(uuid, target)] = size_bytes
        self.resized(target, size_bytes)

    def _change(self, uuid: str, xml: str) -> None:
        machine = self._machine(uuid)
        domain = machine.domain
        known = Shape(domain.digest, domain.rest, domain.interfaces, domain.drives)
        shape = domainxml.keep(known, domainxml.running(xml))
        machine.xml = xml
        machine.domain = replace(
            domain,
            digest=shape.digest,
            rest=shape.rest,
            interfaces=shape.interfaces,
            drives=shape.drives,
        )
        self._tell(DomainEvent(EventKind.CHANGED, uuid))

    def migrate(
        self,
        uuid: str,
        target: MigrationTarget,
        settings: MigrationSettings,
        *,
        progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> MigrationResult:
        self._connect("migrate", uuid)
        machine = self._machine(uuid)
        if machine.domain.migrating:
            raise DriverError(f"{machine.domain.name} is being migrated already")
        other = self.world.find(target.uri)
        if uuid in other.machines:
            raise DriverError(f"domain '{machine.domain.name}' is already active")
        self._begin_move(machine, other)
        try:
            elapsed_s = self._send_memory(uuid, machine, other, settings, progress, cancelled)
        except BaseException:
            self._take_back(uuid, other)
            raise
        incoming = other.machines[uuid].domain
        other.machines[uuid].domain = replace(
            machine.domain, state=DomainState.RUNNING, reason="migrated", migrating=False, run=incoming.run
        )
        other._tell(DomainEvent(EventKind.RESUMED, uuid))
        self._end(uuid, Ended.MIGRATED)
        return MigrationResult(elapsed_s, settings.max_downtime_ms // 2)

    def abort_job(self, uuid: str) -> None:
        self._connect("abort_job", uuid)
        machine = self.machines.get(uuid)
        if machine is not None and machine.domain.migrating:
            self.abort.add(uuid)

    def close(self) -> None:
        self.callbacks.clear()

    def settle(self) -> None:
        """Let happen what is due by now."""
        now = self.world.now()
        due = [
            uuid
            for uuid, machine in self.machines.items()
            if machine.off_at is not None and machine.off_at <= now
        ]
        for uuid in due:
            self._end(uuid, Ended.SHUTDOWN)

    # Inside

    def _connect(self, call: str, uuid: str = "") -> None:
        if self.kills is not None:
            raise self.kills
        if not self.powered or self.deaf:
            raise DriverError("libvirt does not answer: connection refused", retryable=True)
        if uuid:
            self.calls.append((call, uuid))
        if not self.connected:
            self.connected = True
            self._tell(DomainEvent(EventKind.CONNECTED))
        if message := self.refuses.get(call):
            raise DriverError(message)

    def _machine(self, uuid: str) -> _Machine:
        self.settle()
        try:
            return self.machines[uuid]
        except KeyError:
            raise NoSuchDomain(f"no domain with matching uuid '{uuid}'") from None

    def _end(self, uuid: str, ended: Ended) -> None:
        del self.machines[uuid]
        self._tell(DomainEvent(EventKind.ENDED, uuid, ended))

    def _tell(self, event: DomainEvent) -> None:
        for callback in tuple(self.callbacks):
            callback(event)

    def _begin_move(self, machine: _Machine, other: FakeHypervisor) -> None:
        run = str(next(self.world.runs))
        incoming = replace(
            machine.domain, state=DomainState.INCOMING, reason="migration", migrating=True, run=run
        )
        machine.domain = replace(machine.domain, migrating=True)
        other.machines[machine.domain.uuid] = _Machine(incoming, machine.xml)
        other._tell(DomainEvent(EventKind.STARTED, machine.domain.uuid))

    def _take_back(self, uuid: str, other: FakeHypervisor) -> None:
        machine = self.machines.get(uuid)
        if machine is not None:
            machine.domain = replace(machine.domain, migrating=False)
        self.abort.discard(uuid)
        if uuid in other.machines:
            other._end(uuid, Ended.FAILED)

    def _send_memory(
        self,
        uuid: str,
        machine: _Machine,
        other: FakeHypervisor,
        settings: MigrationSettings,
        progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> float:
        memory_mib, name = machine.domain.memory_mib, machine.domain.name
        speed = settings.bandwidth_mib_s * MIB_PER_S_OF_BANDWIDTH
        duration_s = memory_mib / speed if speed else self.world.migration_s
        elapsed_s = 0.0
        while elapsed_s < duration_s:
            elapsed_s = min(elapsed_s + STEP_S, duration_s)
            self.world.during_migration(uuid)
            remaining = int(memory_mib * (1 - elapsed_s / duration_s))
            _quietly(partial(progress, Progress(elapsed_s, memory_mib, remaining, 1)))
            self.settle()
            if uuid not in self.machines:
                raise NoSuchDomain(f"{name} ended while it was migrated")
            if message := self.refuses.get("migrate-later"):
                raise DriverError(message)
            if uuid in self.abort:
                raise DriverError("operation aborted: migration out: canceled by client")
            if not other.powered or uuid not in other.machines:
                raise DriverError("operation failed: migration out: lost the other side")
            if elapsed_s > settings.timeout_s:
                raise TimedOut(f"the migration of {name} did not end within {settings.timeout_s:g} s")
            if _quietly(cancelled):
                raise Cancelled(f"the migration of {name} was cancelled")
        return elapsed_s


def _quietly(call: Callable[[], object]) -> bool:
    """The store may be away; a migration does not mind."""
    try:
        return bool(call())
    except PVCError:
        return False
