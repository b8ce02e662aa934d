"""The hypervisor of this host: libvirt and QEMU. The only importer of libvirt."""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, TypeVar
from xml.etree import ElementTree

import libvirt
import libvirt_qemu

from pvc.cluster import domainxml
from pvc.cluster.domainxml import Shape
from pvc.errors import Invalid, NotFound, PVCError, TimedOut
from pvc.node.drivers import DriverError, NoAnswer, host
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

log = logging.getLogger(__name__)

KEEPALIVE_S, KEEPALIVE_MISSES = 5, 3
POLL_S = 0.2
CONNECT_WITHIN_S = 5.0
ANSWER_WITHIN_S = 3.0  # by QEMU, to a request of ours
FREEZE_STATUS = '{"execute": "guest-fsfreeze-status"}'
AGENT_WITHIN_S = 5  # in a guest
FREEZE_WITHIN_S = 60  # it writes first what it holds back, and programs in there may have to as well
SNAPSHOTS_WITHIN_S = 30.0
CHANGES_WITHIN_S = 10.0  # a device: the host's part of it takes time, too
UNPLUGGING = ("already in the process of unplug", "no device found with alias")
LIST_WITHIN_S = 0.3  # by each QEMU that has to be asked for a list of domains
STATISTICS_WITHIN_S = 0.5  # a migration's last statistics come as an event of their own
MIB = 1024 * 1024

RUNNING_REASONS = (
    *("unknown", "booted", "migrated", "restored", "from-snapshot", "unpaused", "migration-cancelled"),
    *("save-cancelled", "wakeup", "crashed", "post-copy", "post-copy-failed"),
)
PAUSED_REASONS = (
    *(
        "unknown",
        "user",
        "migration",
        "save",
        "dump",
        "ioerror",
        "watchdog",
        "from-snapshot",
        "shutting-down",
    ),
    *("snapshot", "crashed", "starting-up", "post-copy", "post-copy-failed", "api-error"),
)
REASONS = {libvirt.VIR_DOMAIN_RUNNING: RUNNING_REASONS, libvirt.VIR_DOMAIN_PAUSED: PAUSED_REASONS}
STATES = {
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.SHUTTING_DOWN,
    libvirt.VIR_DOMAIN_CRASHED: DomainState.CRASHED,
}
OUTGOING = libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT
EVENTS = {
    libvirt.VIR_DOMAIN_EVENT_STARTED: EventKind.STARTED,
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: EventKind.PAUSED,
    libvirt.VIR_DOMAIN_EVENT_RESUMED: EventKind.RESUMED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED: EventKind.ENDED,
}
ENDINGS = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: Ended.SHUTDOWN,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: Ended.DESTROYED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: Ended.CRASHED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED: Ended.MIGRATED,
}


@dataclass(frozen=True, slots=True)
class _Started:
    """What changes while a QEMU runs only with an event that tells of it."""

    run: int  # libvirt's number of this run of the domain
    change: int  # the last one that had been told of when this was read
    name: str
    shape: Shape
    memory_mib: int
    vcpus: int


@dataclass(slots=True)
class _Migration:
    """A migration of ours, in progress: what its thread and libvirt's events bring."""

    done: threading.Event = field(default_factory=threading.Event)
    error: libvirt.libvirtError | None = None
    counted: threading.Event = field(default_factory=threading.Event)
    statistics: Mapping[str, Any] = field(default_factory=dict)


T = TypeVar("T")


class _Errands:
    """Calls that may never be answered: libvirt waits for a QEMU that hangs as long as it takes.

    Each is on a thread of its own, which is left behind when the answer takes too long. What is still out is
    not asked again, so that what hangs holds one thread, and one of libvirt's few, instead of all of them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._out: set[str] = set()

    def send(self, what: str, call: Callable[[], T], within_s: float) -> T:
        """What the call returns or raises. Raises NoAnswer."""
        with self._lock:
            if what in self._out:
                raise NoAnswer(f"no answer yet: {what}", retryable=True)
            self._out.add(what)
        done = threading.Event()
        answers: list[T] = []
        errors: list[libvirt.libvirtError] = []

        def go() -> None:
            try:
                answers.append(call())
            except libvirt.libvirtError as error:
                errors.append(error)
            finally:
                with self._lock:
                    self._out.discard(what)
                done.set()

        threading.Thread(target=go, name=what, daemon=True).start()
        if not done.wait(within_s):
            raise NoAnswer(f"no answer within {within_s:g} s: {what}", retryable=True)
        if errors:
            raise errors[0]
        return answers[0]


class LibvirtHypervisor:
    """Connects when first used, and again after libvirtd was restarted."""

    def __init__(
        self,
        uri: str = "qemu:///system",
        *,
        emulation: Callable[[], Emulation] = host.emulation,
    ) -> None:
        self._uri = uri
        self._emulation = emulation
        self._boot = host.boot_id()
        self._lock = threading.Lock()
        self._open: libvirt.virConnect | None = None
        self._closed = False
        self._callbacks: list[Callable[[DomainEvent], None]] = []
        self._started: dict[str, _Started] = {}
        self._changes: dict[str, int] = {}  # UUID → number of the last change of it
        self._change_numbers = itertools.count(1)
        self._quiet: dict[str, int] = {}  # UUID → run that is known to be in no migration
        self._told_to_end: set[str] = set()  # QEMU got a signal: not the guest's wish
        self._migrations: dict[str, _Migration] = {}
        self._errands = _Errands()
        self._secrets: dict[str, tuple[str, bytes]] = {}
        """As we gave them to libvirt, which does not tell them."""

    # The host

    def capabilities(self) -> Capabilities:
        emulation = self._emulation()
        with self._talk() as connection:
            try:
                xml = connection.getDomainCapabilities(None, "x86_64", "q35", emulation)
            except libvirt.libvirtError as error:
                if emulation is Emulation.QEMU:
                    raise
                log.warning("libvirt cannot use KVM: %s", error.get_error_message())
                emulation = Emulation.QEMU
                xml = connection.getDomainCapabilities(None, "x86_64", "q35", emulation)
            # Not getInfo()[1]: inside a container libvirt adds up NUMA cells that it sees only in part.
            return Capabilities(
                cpus=connection.getInfo()[2],
                memory_mib=host.memory_kib()["MemTotal"] // 1024,
                emulation=emulation,
                emulator=ElementTree.fromstring(xml).findtext("path", host.EMULATOR),
                cpu_model=host.cpu_model(),
                libvirt_version=_version(connection.getLibVersion()),
                qemu_version=_version(connection.getVersion()),
            )

    def load(self) -> HostLoad:
        return host.load()

    # Domains

    def domains(self) -> Mapping[str, Domain]:
        flags = (
            libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
            | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        )
        found: dict[str, Domain] = {}
        with self._talk() as connection:
            for domain, numbers in connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, flags):
                try:
                    seen = self._look_at(domain, numbers["state.state"], numbers["state.reason"])
                except libvirt.libvirtError as error:
                    if not _is_gone(error):
                        raise
                else:
                    found[seen.uuid] = seen
        for uuid in self._started.keys() - found.keys():
            for known in (self._started, self._changes, self._quiet):
                known.pop(uuid, None)
        return found

    def _read_again(self, uuid: str) -> None:
        """What was read is kept until then: a run of ours stays ours."""
        self._changes[uuid] = next(self._change_numbers)

    def start(self, xml: str) -> None:
        with self._talk(alone=True) as connection:
            connection.createXML(xml)

    def shutdown(self, uuid: str) -> None:
        button = libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN
        self._request(uuid, "shut down", lambda domain: domain.shutdownFlags(button))

    def destroy(self, uuid: str) -> None:
        try:
            with self._domain(uuid, alone=True) as domain:
                domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_DEFAULT)
        except NoSuchDomain:
            return

    def resume(self, uuid: str) -> None:
        self._request(uuid, "resume", lambda domain: domain.resume())

    def suspend(self, uuid: str) -> None:
        self._request(uuid, "suspend", lambda domain: domain.suspend(), SNAPSHOTS_WITHIN_S)

    # Snapshots

    def can_freeze(self, uuid: str) -> bool:
        try:
            return self._ask(uuid, "say whether it is frozen", _is_thawed, 3.0 * AGENT_WITHIN_S)
        except libvirt.libvirtError as error:
            log.info("no agent in %s that could freeze it: %s", uuid, error.get_error_message())
            return False

    def freeze(self, uuid: str) -> bool:
        def ask(domain: libvirt.virDomain) -> bool:
            domain.agentSetResponseTimeout(FREEZE_WITHIN_S)
            try:
                domain.fsFreeze()
            except libvirt.libvirtError as error:
                if _is_unanswered(error):
                    raise
                log.warning("the agent in %s does not freeze it: %s", uuid, error.get_error_message())
                _thaw(domain)
                return False
            return True

        try:
            return self._ask(uuid, "freeze file systems", ask, 2.0 * FREEZE_WITHIN_S)
        except libvirt.libvirtError as error:
            raise _error(error) from error

    def thaw(self, uuid: str) -> None:
        self._request(uuid, "thaw file systems", _thaw, 5.0 * AGENT_WITHIN_S)

    def add_snapshots(self, uuid: str, snapshots: Mapping[str, str]) -> None:
        nodes = self._block_nodes(uuid)
        self._order(
            uuid,
            "transaction",
            actions=[
                {
                    "type": "blockdev-snapshot-internal-sync",
                    "data": {"device": _node_of(nodes, file), "name": name},
                }
                for file, name in snapshots.items()
            ],
        )

    def remove_snapshot(self, uuid: str, file: str, name: str) -> None:
        node = _node_of(self._block_nodes(uuid), file)
        try:
            self._order(uuid, "blockdev-snapshot-delete-internal-sync", device=node, name=name)
        except DriverError as error:
            if "not found" in error.message or "does not exist" in error.message:
                raise NotFound(f"{file} has no snapshot {name}") from None
            raise

    def _block_nodes(self, uuid: str) -> dict[str, str]:
        """What QEMU calls each of its disks, by its file."""
        found = (one["inserted"] for one in self._order(uuid, "query-block") if one.get("inserted"))
        return {one["image"]["filename"]: one["node-name"] for one in found}

    def _order(self, uuid: str, command: str, **arguments: Any) -> Any:
        """A command that libvirt has no call for. Raises DriverError."""
        text = json.dumps({"execute": command, "arguments": arguments} if arguments else {"execute": command})
        try:
            said = self._ask(
                uuid,
                f"do {command}",
                lambda domain: libvirt_qemu.qemuMonitorCommand(domain, text, 0),
                SNAPSHOTS_WITHIN_S,
            )
        except libvirt.libvirtError as error:
            raise _error(error) from error
        answer = json.loads(said)
        if "error" in answer:
            raise DriverError(str(answer["error"].get("desc", answer["error"])))
        return answer.get("return")

    # Devices that come and go

    def mark(self, uuid: str, shape: Shape) -> None:
        kind, live = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE
        text = domainxml.mark(shape)
        self._change(
            uuid,
            "take a note",
            lambda domain: domain.setMetadata(kind, text, "pvc", domainxml.NAMESPACE, live),
        )

    def attach(self, uuid: str, device: str, xml: str) -> None:
        def add(domain: libvirt.virDomain) -> None:
            if not domainxml.alias(domain.XMLDesc(), device):
                domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)

        self._change(uuid, f"take {device}", add)

    def detach(self, uuid: str, device: str) -> None:
        def ask(domain: libvirt.virDomain) -> None:
            alias = domainxml.alias(domain.XMLDesc(), device)
            if not alias:
                return
            try:
                domain.detachDeviceAlias(alias, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            except libvirt.libvirtError as error:
                if not any(words in (error.get_error_message() or "") for words in UNPLUGGING):
                    raise

        self._change(uuid, f"give up {device}", ask)

    def resize_disk(self, uuid: str, target: str, size_bytes: int) -> None:
        def resize(domain: libvirt.virDomain) -> None:
            if domain.blockInfo(target)[0] != size_bytes:
                domain.blockResize(target, size_bytes, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)

        self._change(uuid, f"resize {target}", resize)

    def _change(self, uuid: str, what: str, call: Callable[[libvirt.virDomain], object]) -> None:
        try:
            self._request(uuid, what, call, CHANGES_WITHIN_S)
        finally:
            self._read_again(uuid)  # its event may come later than the next look

    def _look_at(self, domain: libvirt.virDomain, state: int, reason: int) -> Domain:
        uuid, run = domain.UUIDString(), domain.ID()
        started = self._started_as(domain, uuid, run)
        silent, moving = False, None
        try:
            moving = self._moving(uuid, run, state)
        except NoAnswer:
            silent = True
        names = REASONS.get(state, ())
        shown = STATES.get(state, DomainState.RUNNING)
        return Domain(
            uuid=uuid,
            name=started.name,
            # While it moves, a paused domain waits for, or has handed over to, the other side.
            state=moving if moving is not None and shown is DomainState.PAUSED else shown,
            reason=names[reason] if reason < len(names) else str(reason),
            migrating=moving is not None,
            digest=started.shape.digest,
            memory_mib=started.memory_mib,
            vcpus=started.vcpus,
            silent=silent,
            rest=started.shape.rest,
            interfaces=started.shape.interfaces,
            drives=started.shape.drives,
            run=f"{self._boot}.{run}",  # libvirt begins to count anew when the host has booted
        )

    def _started_as(self, domain: libvirt.virDomain, uuid: str, run: int) -> _Started:
        """As it was last read, where it cannot be read now; and ours whatever has become of its metadata."""
        known, change = self._started.get(uuid), self._changes.get(uuid, 0)
        if known is not None and known.run != run:
            known = None
        if known is not None and known.change == change:
            return known
        try:
            now = _read_started(domain, run, change)
        except libvirt.libvirtError as error:
            if known is None or _is_gone(error):
                raise
            log.warning("domain %s cannot be read: %s", known.name, error.get_error_message())
            return known
        if known is not None:
            now = replace(now, shape=domainxml.keep(known.shape, now.shape))
        self._started[uuid] = now
        return now

    def _moving(self, uuid: str, run: int, state: int) -> DomainState | None:
        """Ask for a job only where there can be one that is not ours: in new runs and in paused ones."""
        if uuid in self._migrations:
            return DomainState.OUTGOING
        if self._quiet.get(uuid) == run and state != libvirt.VIR_DOMAIN_PAUSED:
            return None
        moves = self._ask(uuid, "say what it does", _moves, LIST_WITHIN_S)
        if moves is None:
            self._quiet[uuid] = run
        return moves

    # Migration

    def migrate(
        self,
        uuid: str,
        target: MigrationTarget,
        settings: MigrationSettings,
        *,
        progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> MigrationResult:
        begin = time.monotonic()
        migration = _Migration()
        self._request(
            uuid,
            "set its downtime",
            lambda domain: _try(partial(domain.migrateSetMaxDowntime, settings.max_downtime_ms)),
        )
        with self._domain(uuid) as domain:
            if self._migrations.setdefault(uuid, migration) is not migration:
                raise DriverError(f"{domain.name()} is being migrated already")
            try:
                stopped = self._watch_migration(domain, target, settings, migration, progress, cancelled)
            finally:
                # Whatever the callbacks raise, the other thread is not left behind.
                self._end_migration(domain, uuid, migration)
        elapsed_s = time.monotonic() - begin
        if migration.error is None:
            return MigrationResult(elapsed_s, migration.statistics.get("downtime"))
        raise self._migration_failed(uuid, migration.error, stopped) from migration.error

    def _watch_migration(
        self,
        domain: libvirt.virDomain,
        target: MigrationTarget,
        settings: MigrationSettings,
        migration: _Migration,
        progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> Cancelled | TimedOut | None:
        """Until it is over; returns why we aborted it, if we did."""
        begin = time.monotonic()
        name = f"migration of {domain.name()}"
        threading.Thread(
            target=_migrate,
            args=(self._uri, domain.UUIDString(), target, settings, migration),
            name=name,
            daemon=True,
        ).start()
        stopped: Cancelled | TimedOut | None = None
        post_copy = False
        while not migration.done.wait(POLL_S):
            elapsed_s = time.monotonic() - begin
            wish = None if post_copy or stopped else _wish(name, elapsed_s, settings.timeout_s, cancelled)
            if wish is not None:
                stopped = wish if _try(domain.abortJob) else None  # else too early, or too late: look again
            elif (job := _job(domain)) is not None:
                _report(progress, _progress(job, elapsed_s))
                if settings.post_copy and not post_copy and job.get("memory_iteration", 0) > 1:
                    post_copy = _try(domain.migrateStartPostCopy)
        return stopped

    def _end_migration(self, domain: libvirt.virDomain, uuid: str, migration: _Migration) -> None:
        while not migration.done.wait(POLL_S):
            _try(domain.abortJob)
        if migration.error is None:
            migration.counted.wait(STATISTICS_WITHIN_S)
        del self._migrations[uuid]

    def _migration_failed(
        self, uuid: str, error: libvirt.libvirtError, stopped: Cancelled | TimedOut | None
    ) -> Exception:
        with self._domain(uuid) as domain:  # raises NoSuchDomain when it ended meanwhile
            if not domain.isActive():
                return NoSuchDomain(f"{domain.name()} ended while it was migrated")
        return stopped or _error(error)

    def abort_job(self, uuid: str) -> None:
        try:
            self._request(uuid, "end its migration", lambda domain: domain.abortJob())
        except NoSuchDomain:
            return
        except DriverError as error:
            cause = error.__cause__
            if not isinstance(cause, libvirt.libvirtError):
                raise
            if cause.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:  # that is: no job
                raise

    # Secrets

    def keep_secret(self, uuid: str, usage: str, value: bytes) -> None:
        with self._talk() as connection:
            try:
                known = connection.secretLookupByUUIDString(uuid)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_SECRET:
                    raise
            else:
                if self._secrets.get(uuid) == (usage, value) == (known.usageID(), value):
                    return
            connection.secretDefineXML(_secret(uuid, usage)).setValue(value)
            self._secrets[uuid] = usage, value
            log.info("libvirt has the key of %s", usage)

    # Events

    def watch(self, callback: Callable[[DomainEvent], None]) -> None:
        self._callbacks.append(callback)

    def _tell(self, event: DomainEvent) -> None:
        for callback in tuple(self._callbacks):
            callback(event)

    def _lifecycle(self, _: object, domain: libvirt.virDomain, event: int, detail: int, *__: object) -> None:
        uuid = domain.UUIDString()
        if event == libvirt.VIR_DOMAIN_EVENT_SHUTDOWN and detail == libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_HOST:
            self._told_to_end.add(uuid)
        kind = EVENTS.get(event)
        if kind is None:
            return
        ended = None
        if kind is EventKind.ENDED:
            ended = ENDINGS.get(detail, Ended.FAILED)
            if uuid in self._told_to_end and ended is Ended.SHUTDOWN:
                ended = Ended.DESTROYED  # e.g. the host goes down and ends QEMU: not the guest's wish
            self._told_to_end.discard(uuid)
        self._tell(DomainEvent(kind, uuid, ended))

    def _changed(self, _: object, domain: libvirt.virDomain, *__: object) -> None:
        uuid = domain.UUIDString()
        self._read_again(uuid)
        self._tell(DomainEvent(EventKind.CHANGED, uuid))

    def _job_completed(
        self, _: object, domain: libvirt.virDomain, statistics: Mapping[str, Any], *__: object
    ) -> None:
        migration = self._migrations.get(domain.UUIDString())
        if migration is not None:
            migration.statistics = dict(statistics)
            migration.counted.set()

    def _connection_closed(self, connection: libvirt.virConnect, *_: object) -> None:
        with self._lock:
            if self._open is connection:
                self._open = None
        log.warning("libvirt closed the connection")
        self._tell(DomainEvent(EventKind.DISCONNECTED))

    # The connection

    def close(self) -> None:
        self._callbacks.clear()
        with self._lock:
            connection, self._open, self._closed = self._open, None, True
        if connection is not None:
            _try(connection.close)

    def _connection(self) -> libvirt.virConnect:
        with self._lock:
            if self._closed:
                raise DriverError("the connection to libvirt was closed")
            if self._open is not None and self._open.isAlive():
                return self._open
            self._open = connection = self._connect()
        self._quiet.clear()
        for uuid in tuple(self._started):
            self._read_again(uuid)
        log.info("connected to libvirt at %s", self._uri)
        self._tell(DomainEvent(EventKind.CONNECTED))
        return connection

    def _connect(self) -> libvirt.virConnect:
        connection = self._errands.send(
            f"libvirt, to connect to {self._uri}", lambda: _connect(self._uri), CONNECT_WITHIN_S
        )
        connection.registerCloseCallback(self._connection_closed, None)
        for event, callback in (
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle),
            (libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, self._job_completed),
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, self._changed),
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, self._changed),
            (libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, self._changed),
        ):
            connection.domainEventRegisterAny(None, event, callback, None)
        return connection

    @contextmanager
    def _talk(self, *, alone: bool = False) -> Iterator[libvirt.virConnect]:
        """A connection; what libvirt says in the block becomes a DriverError.

        `alone`: for calls that last. On a shared connection one can hold up all others until it is answered.
        """
        try:
            connection = self._connection()
            yield _connect(self._uri) if alone else connection
        except libvirt.libvirtError as error:
            raise _error(error) from error

    @contextmanager
    def _domain(self, uuid: str, *, alone: bool = False) -> Iterator[libvirt.virDomain]:
        with self._talk(alone=alone) as connection:
            yield connection.lookupByUUIDString(uuid)

    def _ask(self, uuid: str, what: str, question: Callable[[libvirt.virDomain], T], within_s: float) -> T:
        """What QEMU itself must answer, on a connection that nobody else waits for. Raises NoAnswer."""
        return self._errands.send(
            f"QEMU of {uuid}, to {what}",
            lambda: question(_connect(self._uri).lookupByUUIDString(uuid)),
            within_s,
        )

    def _request(
        self,
        uuid: str,
        what: str,
        call: Callable[[libvirt.virDomain], object],
        within_s: float = ANSWER_WITHIN_S,
    ) -> None:
        try:
            self._ask(uuid, what, call, within_s)
        except libvirt.libvirtError as error:
            raise _error(error) from error


@cache
def _event_loop() -> threading.Thread:
    """libvirt has one event loop per process; it must be there before the first connection."""
    libvirt.registerErrorHandler(lambda *_: None, None)  # errors are raised; libvirt would print them as well
    libvirt.virEventRegisterDefaultImpl()
    thread = threading.Thread(target=_run_events, name="libvirt events", daemon=True)
    thread.start()
    return thread


def _connect(uri: str) -> libvirt.virConnect:
    _event_loop()
    connection = libvirt.open(uri)
    connection.setKeepAlive(KEEPALIVE_S, KEEPALIVE_MISSES)
    return connection


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _error(error: libvirt.libvirtError) -> DriverError:
    message = " ".join((error.get_error_message() or str(error)).split())  # QEMU speaks in lines
    if _is_gone(error):
        return NoSuchDomain(message)
    if _is_unanswered(error):
        return NoAnswer(message, retryable=True)
    lost = error.get_error_domain() == libvirt.VIR_FROM_RPC or error.get_error_code() == libvirt.VIR_ERR_RPC
    if lost:
        return DriverError(
            f"libvirt does not answer: {message}", hint="systemctl status libvirtd", retryable=True
        )
    return DriverError(message, retryable=error.get_error_code() == libvirt.VIR_ERR_OPERATION_TIMEOUT)


def _is_unanswered(error: libvirt.libvirtError) -> bool:
    """By an agent; also where there is none."""
    return error.get_error_code() == libvirt.VIR_ERR_AGENT_UNRESPONSIVE


def _is_thawed(domain: libvirt.virDomain) -> bool:
    said = libvirt_qemu.qemuAgentCommand(domain, FREEZE_STATUS, AGENT_WITHIN_S, 0)
    return bool(json.loads(said)["return"] == "thawed")


def _thaw(domain: libvirt.virDomain) -> None:
    """A program in the guest that is to be told of it may fail, or be missing, and all is thawed."""
    domain.agentSetResponseTimeout(AGENT_WITHIN_S)
    try:
        domain.fsThaw()
    except libvirt.libvirtError as error:
        if _is_unanswered(error) or not _is_thawed(domain):
            raise


def _secret(uuid: str, usage: str) -> str:
    root = ElementTree.Element("secret", ephemeral="no", private="yes")
    ElementTree.SubElement(root, "uuid").text = uuid
    use = ElementTree.SubElement(root, "usage", type="ceph")
    ElementTree.SubElement(use, "name").text = usage
    return ElementTree.tostring(root, encoding="unicode")


def _node_of(nodes: Mapping[str, str], file: str) -> str:
    if file not in nodes:
        raise DriverError(f"QEMU does not have {file} open")
    return nodes[file]


def _is_gone(error: libvirt.libvirtError) -> bool:
    return error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN


def _try(call: Callable[[], object]) -> bool:
    try:
        call()
    except libvirt.libvirtError as error:
        log.debug("libvirt: %s", error.get_error_message())
        return False
    return True


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _read_started(domain: libvirt.virDomain, run: int, change: int) -> _Started:
    """Ours is what carries our metadata, even where somebody has made of it what we would not start."""
    xml, name = domain.XMLDesc(), domain.name()
    shape = domainxml.running(xml)
    try:
        facts = domainxml.parse(xml)
    except Invalid as error:
        log.warning("domain %s: %s", name, error.message)
        return _Started(run, change, name, shape, domain.maxMemory() // 1024, domain.maxVcpus())
    return _Started(run, change, facts.name, shape, facts.memory_mib, facts.vcpus)


def _migrate(
    uri: str, uuid: str, target: MigrationTarget, settings: MigrationSettings, migration: _Migration
) -> None:
    flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
    for wanted, flag in (
        (target.tls, libvirt.VIR_MIGRATE_TLS),
        (settings.auto_converge, libvirt.VIR_MIGRATE_AUTO_CONVERGE),
        (settings.post_copy, libvirt.VIR_MIGRATE_POSTCOPY),
        (settings.shared_files, libvirt.VIR_MIGRATE_UNSAFE),
    ):
        flags |= flag if wanted else 0
    parameters: dict[str, str | int] = {libvirt.VIR_MIGRATE_PARAM_URI: target.data_uri}
    if settings.bandwidth_mib_s:
        parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = settings.bandwidth_mib_s
    if target.tls and target.name:
        parameters[libvirt.VIR_MIGRATE_PARAM_TLS_DESTINATION] = target.name
    try:
        _connect(uri).lookupByUUIDString(uuid).migrateToURI3(target.uri, parameters, flags)
    except libvirt.libvirtError as error:
        migration.error = error
    finally:
        migration.done.set()


def _job(domain: libvirt.virDomain) -> Mapping[str, Any] | None:
    """Statistics of the migration; None before it has begun and when it is over."""
    try:
        job = domain.jobStats()
    except libvirt.libvirtError as error:
        log.debug("libvirt: %s", error.get_error_message())
        return None
    return job if job.get("operation") == OUTGOING else None


def _moves(domain: libvirt.virDomain) -> DomainState | None:
    """The direction in which a domain migrates, if it does."""
    try:
        job = domain.jobStats()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
            raise
        return DomainState.INCOMING  # the receiving side has a job, but no statistics
    return DomainState.OUTGOING if job.get("operation") == OUTGOING else None


def _wish(
    name: str, elapsed_s: float, timeout_s: float, cancelled: Callable[[], bool]
) -> Cancelled | TimedOut | None:
    if elapsed_s > timeout_s:
        return TimedOut(f"the {name} did not end within {timeout_s:g} s")
    try:
        return Cancelled(f"the {name} was cancelled") if cancelled() else None
    except PVCError as error:
        log.warning("cannot know whether the %s is still wanted: %s", name, error.message)
        return None


def _report(progress: Callable[[Progress], None], done: Progress) -> None:
    """A store that is away for a moment does not stop a migration."""
    try:
        progress(done)
    except PVCError as error:
        log.warning("cannot report a migration's progress: %s", error.message)


def _progress(job: Mapping[str, Any], elapsed_s: float) -> Progress:
    return Progress(
        elapsed_s=elapsed_s,
        total_mib=job.get("memory_total", 0) // MIB,
        remaining_mib=job.get("memory_remaining", 0) // MIB,
        iteration=job.get("memory_iteration", 0),
    )
