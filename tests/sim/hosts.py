"""Hosts of the simulation: libvirt and QEMU as they go on by themselves, whatever becomes of daemons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from pvc.cluster import domainxml
from pvc.cluster.domainxml import Shape
from pvc.cluster.vm import Interface
from pvc.errors import TimedOut
from pvc.node.drivers import DriverError
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
from pvc.node.drivers.power import BMCAccess, PowerState
from tests.sim.addresses import Kernel
from tests.sim.network import bmc_of

if TYPE_CHECKING:
    from tests.sim.world import Life, World

MEMORY_MIB = 8192
FREEZES_AT_FEED = 0.002
HANGS_S = 35.0
"""libvirt at a start, now and then: longer than a lease."""
CONNECTS_S = 127.0
"""A connection to a machine that is off may be answered when it is on again."""
DOWN = "libvirt does not answer"


@dataclass(eq=False)
class Job:
    """A live migration: libvirt's own, so it goes on when the daemon that began it has died."""

    uuid: str
    source: Host
    target: Host
    fails: bool
    ended: str = ""
    """Empty while it goes on; then `done`, or why not."""
    switched: bool = False
    """The target runs it: there is no way back."""


class BMCFault(StrEnum):
    NONE = "none"
    SILENT = "silent"
    SLOW = "slow"
    LATE = "late"
    DEAF = "deaf"


@dataclass(eq=False)
class Host:
    world: World
    name: str
    rate: float = 1.0
    """Of its monotonic clock."""
    is_up: bool = True
    boots: int = 0
    paused_until: float = 0.0
    """The whole machine stands still: its daemon, its QEMUs and what libvirt does."""
    has_libvirt: bool = True
    bmc: BMCFault = BMCFault.NONE
    pending_off: int = 0
    """Of a BMC that obeys late: how many orders wait."""
    domains: dict[str, Domain] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    """Outgoing."""
    takes_migrations: bool = False
    """libvirt listens to other nodes: not after a boot, until the daemon has joined."""
    watchers: dict[Life, Callable[[DomainEvent], None]] = field(default_factory=dict)
    deaf: set[str] = field(default_factory=set)
    """VMs whose guest ignores ACPI."""
    noted: dict[str, dict[str, Interface]] = field(default_factory=dict)
    """In a domain: as what an interface is known if it is there, by its MAC address."""
    by_hand: set[str] = field(default_factory=set)
    """Domains that an administrator started behind the cluster's back."""

    contact: float | None = None
    """What a daemon there keeps for its next life, until the machine loses its power."""
    has_watchdog: bool = True
    watchdog_s: float = 0.0
    """0: it is not armed."""
    resets_at: float = 0.0
    is_ticking: bool = False

    def feed(self, seconds: float = 0.0) -> None:
        self.watchdog_s = seconds or self.watchdog_s
        self.resets_at = self.world.now + self.watchdog_s
        if not self.is_ticking:
            self.is_ticking = True
            self.world.later(self.watchdog_s, self._tick)

    def _tick(self) -> None:
        """Its clock is its own: it goes on while the machine stands still."""
        left = self.resets_at - self.world.now
        self.is_ticking = self.watchdog_s > 0 and left > 0
        if self.is_ticking:
            self.world.later(left, self._tick)
        elif self.watchdog_s > 0 and self.is_up:
            self.world.trace(f"{self.name}: its watchdog resets it")
            self.world.reset(self.name)

    def __post_init__(self) -> None:
        self.kernel = Kernel(self)

    def local(self, now: float) -> float:
        """A time as its monotonic clock counts it."""
        return now * self.rate

    def later(self, delay: float, event: Callable[[], None]) -> None:
        """Something that the machine itself does: not while it is paused, and not without power."""

        def happen() -> None:
            if self.world.now < self.paused_until:
                self.world.later(self.paused_until - self.world.now, happen)
            else:
                event()

        self.world.later(delay, happen)

    # What happens to domains

    def put(self, domain: Domain, event: EventKind | None = None) -> None:
        self.domains[domain.uuid] = domain
        self.world.check_copies(domain.uuid)
        if event:
            self.tell(DomainEvent(event, domain.uuid))

    def change(self, uuid: str, state: DomainState, *, migrating: bool = False) -> None:
        if uuid in self.domains:
            self.put(replace(self.domains[uuid], state=state, migrating=migrating), EventKind.RESUMED)

    def end(self, uuid: str, how: Ended) -> None:
        if self.domains.pop(uuid, None) is None:
            return
        self.by_hand.discard(uuid)
        self.world.check_copies(uuid)
        self.world.trace(f"{self.name}: {uuid[:2]} ended, {how}")
        self.tell(DomainEvent(EventKind.ENDED, uuid, how))
        job = self.jobs.pop(uuid, None)
        if job is not None and not job.ended:
            job.ended = "the domain ended"
            if not job.switched:
                self.world.later(self.world.rng.random(), lambda: job.target.drop_incoming(uuid))

    def has(self, uuid: str, interfaces: tuple[Interface, ...], known: Shape | None = None) -> None:
        """Its interfaces come and go."""
        domain = self.domains.get(uuid)
        if domain is not None:
            of = known or Shape(domain.digest, domain.rest)
            self.put(
                replace(domain, digest=of.digest, rest=of.rest, interfaces=interfaces), EventKind.CHANGED
            )

    def drop_incoming(self, uuid: str) -> None:
        domain = self.domains.get(uuid)
        if domain is not None and domain.state is DomainState.INCOMING:
            self.end(uuid, Ended.FAILED)

    def tell(self, event: DomainEvent) -> None:
        """The event reaches who watches, a little later; nobody when libvirt or the watcher is away."""
        for life, callback in list(self.watchers.items()):

            def deliver(life: Life = life, callback: Callable[[DomainEvent], None] = callback) -> None:
                if not life.dead and self.has_libvirt:
                    callback(event)

            self.later(self.world.rng.choice((0.0, 0.0, 0.01, 0.4)), deliver)

    # Faults

    def power_cut(self) -> None:
        self.is_up = self.takes_migrations = False
        self.world.asleep[self.name] = None
        self.kernel.until.clear()
        self.contact, self.watchdog_s = None, 0.0
        gone = list(self.domains)
        self.domains.clear()
        self.by_hand.clear()
        for uuid in gone:
            self.world.check_copies(uuid)
        self.watchers.clear()
        for job in list(self.jobs.values()):
            self._break(job)
        self.jobs.clear()
        for host in self.world.hosts.values():
            for job in [job for job in host.jobs.values() if job.target is self and not job.ended]:
                host.fail(job, "the target does not answer")

    def _break(self, job: Job) -> None:
        if not job.ended:
            job.ended = "the source is gone"
            if not job.switched:
                self.world.later(1 + 4 * self.world.rng.random(), lambda: job.target.drop_incoming(job.uuid))

    def libvirt_down(self) -> None:
        self.has_libvirt = False
        for job in [job for job in self.jobs.values() if not job.ended]:
            self.fail(job, "libvirt was restarted")

    def libvirt_up(self) -> None:
        self.has_libvirt = True
        self.tell(DomainEvent(EventKind.CONNECTED))

    # Migration

    def migrate(self, uuid: str, target: Host, *, fails: bool, seconds: float) -> Job:
        domain = self._domain(uuid)
        if uuid in self.jobs or domain.state is not DomainState.RUNNING:
            raise DriverError(f"{uuid} cannot be migrated now")
        if not target.answers(self):
            raise DriverError(f"{target.name} does not answer", retryable=True)
        if uuid in target.domains:
            raise DriverError(f"{target.name} has such a domain already")
        job = Job(uuid, self, target, fails)
        self.jobs[uuid] = job
        target.put(replace(domain, state=DomainState.INCOMING, migrating=True, reason="migrated"))
        self.put(replace(domain, migrating=True))
        self.later(seconds, lambda: self._pause_for_switch(job))
        return job

    def answers(self, other: Host) -> bool:
        """It lets another node's libvirt in."""
        is_listening = self.takes_migrations or (self.is_up and self.world.mutant.open_from_boot)
        return is_listening and self.has_libvirt and self.world.network.talks(other.name, self.name)

    def _pause_for_switch(self, job: Job) -> None:
        if job.ended:
            return
        if job.fails or not self.world.network.talks(self.name, job.target.name):
            self.fail(job, "the migration failed")
            return
        self.change(job.uuid, DomainState.OUTGOING, migrating=True)
        self.later(0.1, lambda: self._switch(job))

    def _switch(self, job: Job) -> None:
        if job.ended:
            return
        job.switched = True
        job.target.change(job.uuid, DomainState.RUNNING)
        self.world.trace(f"{self.name}: {job.uuid[:2]} runs on {job.target.name}")
        self.later(self.world.rng.choice((0.0, 0.1, 0.5)), lambda: self._leave(job))

    def _leave(self, job: Job) -> None:
        if not job.ended:
            job.ended = "done"
            self.jobs.pop(job.uuid, None)
            self.end(job.uuid, Ended.MIGRATED)

    def fail(self, job: Job, why: str) -> None:
        if job.ended:
            return
        if job.switched:
            self._leave(job)
            return
        job.ended = why
        self.jobs.pop(job.uuid, None)
        job.target.drop_incoming(job.uuid)
        self.change(job.uuid, DomainState.RUNNING)

    def _domain(self, uuid: str) -> Domain:
        domain = self.domains.get(uuid)
        if domain is None:
            raise NoSuchDomain(f"no domain {uuid} on {self.name}")
        return domain


class SimPower:
    """The BMCs as one life of a coordinator reaches them; the power is the host's own."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.world = life.world

    def state(self, bmc: BMCAccess) -> PowerState:
        host = self._reach(bmc)
        return PowerState.ON if host.is_up else PowerState.OFF

    def off(self, bmc: BMCAccess) -> None:
        host = self._host(bmc)
        if not host.is_up or host.bmc is BMCFault.DEAF:
            return
        # No pause before: what lies between a look and the order is the coordinator's own.
        self.world.trace(f"{self.life.name}: orders {host.name} off")
        self.world.shot(host.name)
        if host.bmc is not BMCFault.LATE:
            self.world.power_cut(host.name)
        else:
            host.pending_off += 1
            self.world.later(self.world.rng.choice((1.0, 5.0, 20.0)), lambda: self._late(host))
        self._reach(bmc)

    def _late(self, host: Host) -> None:
        if host.pending_off and host.is_up:
            host.pending_off = 0
            self.world.power_cut(host.name)

    def on(self, bmc: BMCAccess) -> None:
        host = self._reach(bmc)
        if not host.is_up and host.bmc is not BMCFault.DEAF:
            self.world.trace(f"{self.life.name}: switches {host.name} on")
            self.world.power_on(host.name)
        self._reach(bmc)

    def check(self, bmc: BMCAccess) -> PowerState:
        return self.state(bmc)

    def _host(self, bmc: BMCAccess) -> Host:
        host = self.world.hosts[bmc.address]
        is_cut = not self.world.network.talks(self.life.name, bmc_of(host.name))
        if host.bmc is BMCFault.SILENT or is_cut:
            raise DriverError(f"the BMC of {host.name} does not answer", retryable=True)
        return host

    def _reach(self, bmc: BMCAccess) -> Host:
        self.life.point(3.0 if self.world.hosts[bmc.address].bmc is BMCFault.SLOW else None)
        return self._host(bmc)


class SimWatchdog:
    """A host's watchdog as one life of a daemon reaches it. It may stand still just before it feeds."""

    name = "sim"

    def __init__(self, life: Life) -> None:
        self.life = life
        self.host = life.host

    def arm(self, seconds: int) -> float:
        self._feed(float(seconds))
        return float(seconds)

    def feed(self) -> None:
        self._feed(0.0)

    def _feed(self, seconds: float) -> None:
        world, host = self.life.world, self.host
        if host.watchdog_s and world.faulty and world.rng.random() < FREEZES_AT_FEED:
            self._late(seconds)
        else:
            host.feed(seconds)

    def _late(self, seconds: float) -> None:
        world, host, life = self.life.world, self.host, self.life
        delay = world.rng.choice((0.5, 0.99)) * (host.resets_at - world.now)
        world.trace(f"{host.name}: frozen for {delay:.1f} s at a feed")
        world.zookeeper.before_change()
        world.disturb(host.name, delay + 5.0)
        life.frozen_until = max(life.frozen_until, world.now + delay)

        def goes_on() -> None:
            if not life.dead and host.watchdog_s:
                host.feed(seconds)

        world.later(delay, goes_on)

    def disarm(self) -> None:
        self.host.watchdog_s = 0.0


class SimMemory:
    def __init__(self, host: Host) -> None:
        self.host = host

    def load(self) -> float | None:
        return self.host.contact

    def save(self, contact: float) -> None:
        self.host.contact = contact

    def clear(self) -> None:
        self.host.contact = None


class SimHypervisor:
    """A host's libvirt as one life of a daemon reaches it."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.host = life.host
        self.world = life.world
        self._before: dict[str, Domain] = {}

    def _reach(self, *, least: float | None = None) -> None:
        self.life.point(least)
        if not self.host.has_libvirt:
            raise DriverError(DOWN, retryable=True)

    def capabilities(self) -> Capabilities:
        return Capabilities(8, MEMORY_MIB, Emulation.QEMU, "/usr/bin/qemu-system-x86_64", "max", "9.0", "7.2")

    def load(self) -> HostLoad:
        used = sum(domain.memory_mib for domain in self.host.domains.values())
        return HostLoad(used, MEMORY_MIB - used, 0.0, 0.0, 0.0)

    def domains(self) -> Mapping[str, Domain]:
        if self.world.mutant.old_lists:  # of before the store was read
            listed, self._before = self._before, dict(self.host.domains)
            self._reach()
            return listed
        self._reach()
        return dict(self.host.domains)

    def watch(self, callback: Callable[[DomainEvent], None]) -> None:
        self.host.watchers[self.life] = callback

    def start(self, xml: str) -> None:
        rng = self.world.rng
        hangs = self.world.faulty and rng.random() < 0.03
        self._reach(least=HANGS_S if hangs else rng.choice((0.0, 0.2, 2.0)))
        facts = domainxml.parse(xml)
        if self.world.faulty and rng.random() < 0.05:
            raise DriverError("QEMU did not start", retryable=rng.random() < 0.7)
        if facts.uuid in self.host.domains:
            raise DriverError(f"{facts.name} runs already")
        shape = domainxml.running(xml)
        self.world.trace(f"{self.host.name}: {facts.uuid[:2]} started")
        self.host.put(
            Domain(
                facts.uuid,
                facts.name,
                DomainState.RUNNING,
                "booted",
                migrating=False,
                digest=shape.digest,
                memory_mib=facts.memory_mib,
                vcpus=facts.vcpus,
                rest=shape.rest,
                interfaces=shape.interfaces,
                drives=shape.drives,
            ),
            EventKind.STARTED,
        )
        self._reach()  # the answer may not come back

    def shutdown(self, uuid: str) -> None:
        self._reach()
        if uuid not in self.host.domains:
            raise NoSuchDomain(f"no domain {uuid} on {self.host.name}")
        if uuid in self.host.deaf:
            return
        domain = self.host.domains[uuid]

        def off() -> None:
            if self.host.domains.get(uuid) is domain:
                self.host.end(uuid, Ended.SHUTDOWN)

        self.host.later(self.world.rng.choice((0.1, 2.0, 15.0)), off)

    def destroy(self, uuid: str) -> None:
        self._reach(least=self.world.rng.choice((0.0, 0.3)))
        self.host.end(uuid, Ended.DESTROYED)
        self._reach()

    def resume(self, uuid: str) -> None:
        self._reach()

    def mark(self, uuid: str, shape: Shape) -> None:
        self._reach()
        domain = self.host._domain(uuid)
        noted = self.host.noted[uuid] = {one.mac: one for one in shape.interfaces}
        self.host.has(uuid, tuple(noted.get(one.mac, one) for one in domain.interfaces), shape)
        self._reach()

    def attach(self, uuid: str, device: str, xml: str) -> None:
        self._reach(least=self.world.rng.choice((0.0, 0.3, 3.0)))
        domain = self.host._domain(uuid)
        if self.world.faulty and self.world.rng.random() < 0.05:
            raise DriverError("no device now", retryable=True)
        if all(one.mac != device for one in domain.interfaces):
            self.host.has(uuid, (*domain.interfaces, self.host.noted[uuid][device]))
        self._reach()

    def resize_disk(self, uuid: str, target: str, size_bytes: int) -> None:
        """Guests have no disks here."""
        self._reach()
        raise DriverError(f"disk '{target}' was not found in the domain config")

    def detach(self, uuid: str, device: str) -> None:
        self._reach()
        run = self.host._domain(uuid).interfaces

        def goes() -> None:
            now = self.host.domains.get(uuid)
            if now is not None and uuid not in self.host.jobs and device in {one.mac for one in run}:
                self.host.has(uuid, tuple(one for one in now.interfaces if one.mac != device))

        if uuid not in self.host.deaf:
            self.host.later(self.world.rng.choice((0.1, 2.0, 15.0)), goes)
        self._reach()

    def migrate(
        self,
        uuid: str,
        target: MigrationTarget,
        settings: MigrationSettings,
        *,
        progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> MigrationResult:
        self._reach()
        world = self.world
        fails = world.faulty and world.rng.random() < 0.3
        seconds = world.rng.choice((0.5, 3.0, 20.0, 1000.0) if world.faulty else (0.5, 3.0))
        other = world.hosts[target.uri.split("//")[1].split("/")[0].replace("10.0.0.", "n")]
        until = world.now + world.rng.choice((0.0, CONNECTS_S))
        while world.now < until and not other.answers(self.host):
            self._reach(least=1.0)  # the kernel asks again and again for a connection
        begun = world.now
        job = self.host.migrate(uuid, other, fails=fails, seconds=seconds)
        asked_for: type[DriverError] | type[TimedOut] | None = None
        while not job.ended:
            self._reach(least=0.5)
            progress(Progress(world.now - begun, 512, 100))
            if cancelled():
                asked_for = Cancelled
            elif world.now - begun > settings.timeout_s:
                asked_for = TimedOut
            if asked_for and not job.switched:
                self.host.fail(job, "aborted")
        if job.ended == "done":
            return MigrationResult(world.now - begun, 10)
        if uuid not in self.host.domains:
            raise NoSuchDomain(f"{uuid} ended while it migrated")
        raise (asked_for or DriverError)(job.ended)

    def keep_secret(self, uuid: str, usage: str, value: bytes) -> None:
        """Nothing here is in Ceph."""
        self._reach()

    def abort_job(self, uuid: str) -> None:
        self._reach()
        job = self.host.jobs.get(uuid)
        if job is not None and not job.switched:
            self.host.fail(job, "aborted")

    def close(self) -> None:
        self.host.watchers.pop(self.life, None)
