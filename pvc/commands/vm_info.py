"""What users see of a VM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from pvc.cluster.vm import (
    Drive,
    Interface,
    Method,
    Migration,
    Power,
    Selector,
    State,
    Tag,
    VMSpec,
    VMStatus,
    settled,
    under_way,
)
from pvc.errors import Invalid

if TYPE_CHECKING:
    from pvc.cluster.view import VM

Goal = Mapping[str, str | int]
"""Fields of the object that have these values when what was asked for is so."""


class DeviceState(StrEnum):
    """How an interface or disk of the definition is in QEMU, or one of QEMU in the definition."""

    LIVE = "live"
    LATER = "from its next start"
    UNTIL = "until its next start"
    OTHER = "changes with its next start"
    COMES = "being attached"
    GOES = "being detached"


@dataclass(frozen=True, slots=True)
class DiskInfo:
    device: str
    """Its name, as the guest mostly calls it."""
    source: str
    """A path, or what Ceph calls pool and image."""
    format: str
    bus: str
    state: DeviceState
    why: str = ""
    """It is not live, where that was wanted."""


@dataclass(frozen=True, slots=True)
class NicInfo:
    mac: str
    network: str
    """Its number in the cluster, or what else it is on."""
    model: str
    bridge: str
    """On its node."""
    state: DeviceState
    why: str = ""
    """It is not live, where that was wanted."""


@dataclass(frozen=True, slots=True)
class VMInfo:
    name: str
    uuid: str
    state: str
    activity: str
    """What is going on, in words; empty when nothing is."""
    percent: int | None
    """Of a migration that is under way."""
    reason: str
    node: str | None
    """Where it runs; where it would start, if it does not."""
    moving_to: str | None
    migrated_from: str | None
    """Its home, while it is away from there for now."""
    power: Power
    since: float
    """When the state began, seconds since the epoch."""
    memory_mib: int
    vcpus: int
    pending_restart: bool
    """It runs with another definition than it has now."""
    tags: tuple[Tag, ...]
    selector: Selector
    node_limit: tuple[str, ...]
    method: Method
    max_downtime_ms: int
    migration_timeout_s: int
    shutdown_timeout_s: int
    autostart: bool
    start_priority: int
    disks: tuple[DiskInfo, ...]
    networks: tuple[NicInfo, ...]
    snapshots: tuple[str, ...]
    """The oldest first."""
    profile: str
    restarts: int
    failures: int
    last_migration: str
    refused: str
    """Why a change that was to be made while it runs waits for its next start."""
    digest: str
    """Of the definition, to modify no other than the one that was read."""
    version: str
    settled: bool
    goal: Goal | None = None
    """What to wait for after a change."""


def is_moving(vm: VM) -> bool:
    owner = vm.status.owner
    return owner is not None and vm.spec.power is Power.STARTED and vm.spec.node not in (None, owner.node)


def describe(vm: VM, goal: Goal | None = None) -> VMInfo:
    """A definition that cannot be read hides no VM: its devices are missing, and the reason says so."""
    from pvc.cluster import domainxml

    spec, status = vm.spec, vm.status
    reason, digest, refused = status.reason, "", "; ".join(refusals(spec, status))
    disks: tuple[DiskInfo, ...] = ()
    nics: tuple[NicInfo, ...] = ()
    try:
        domainxml.parse(spec.definition)
        digest = domainxml.digest(spec.definition)
    except Invalid as error:
        reason = "; ".join(
            part for part in (reason, f"its definition is unreadable: {error.message}") if part
        )
    else:
        disks = disks_of(spec, status)
        nics = nics_of(spec, status)
    return VMInfo(
        name=spec.name,
        uuid=spec.uuid,
        state=vm.shown_state,
        activity=activity(spec, status),
        percent=status.migration.percent if status.migration else None,
        reason="; ".join(filter(None, (reason, refused))),
        node=vm.place,
        moving_to=spec.node if is_moving(vm) else None,
        migrated_from=spec.home,
        power=spec.power,
        since=status.since,
        memory_mib=spec.memory_mib,
        vcpus=spec.vcpus,
        pending_restart=is_pending(status, digest),
        tags=spec.tags,
        selector=spec.selector,
        node_limit=spec.node_limit,
        method=spec.method,
        max_downtime_ms=spec.max_downtime_ms,
        migration_timeout_s=spec.migration_timeout_s,
        shutdown_timeout_s=spec.shutdown_timeout_s,
        autostart=spec.autostart,
        start_priority=spec.start_priority,
        disks=disks,
        networks=nics,
        snapshots=spec.snapshots,
        profile=spec.profile,
        restarts=status.restarts,
        failures=status.failures,
        last_migration=status.last_migration,
        refused=refused,
        digest=digest,
        version=vm.version,
        settled=settled(spec, status),
        goal=goal,
    )


def refusals(spec: VMSpec, status: VMStatus) -> tuple[str, ...]:
    """Of changes that are still wanted, as sentences."""
    if status.owner is None:
        return ()
    return tuple(
        f"{_named(one.device)} {'cannot come' if one.digest else 'stays'} until its next start: {one.why}"
        for one in status.refused
        if one.change in spec.live and not one.change.is_made(status.devices)
    )


def _named(device: str) -> str:
    target, is_disk, source = device.partition("=")
    return f"disk {target} ({source})" if is_disk else f"interface {device}"


class _States:
    """How each device of a VM is, by its name. Raises Invalid when the definition is unreadable."""

    def __init__(self, spec: VMSpec, status: VMStatus) -> None:
        from pvc.cluster import domainxml

        self.wanted = domainxml.shape(spec.definition)
        self.running = status.devices if status.owner is not None else ()
        if not self.running and status.digest == self.wanted.digest and status.owner is not None:
            self.running = self.wanted.devices  # of a node that does not say
        self.has = {one.device: one.digest for one in self.running}
        self.digests = {one.device: one.digest for one in self.wanted.devices}
        self.moving = {one.device for one in under_way(spec, status)}
        self.why = {one.device: one.why for one in status.refused if one.change in spec.live and self.running}

    @property
    def gone(self) -> tuple[Interface | Drive, ...]:
        """From the definition."""
        return tuple(one for one in self.running if one.device not in self.digests)

    def of(self, device: str) -> DeviceState:
        has, wanted = self.has.get(device), self.digests.get(device)
        if has is not None and wanted is not None and has in (wanted, ""):
            return DeviceState.LIVE
        if device in self.moving:
            return DeviceState.COMES if wanted is not None and has is None else DeviceState.GOES
        if has is not None:
            return DeviceState.OTHER if wanted is not None else DeviceState.UNTIL
        return DeviceState.LATER


def nics_of(spec: VMSpec, status: VMStatus) -> tuple[NicInfo, ...]:
    """Of its definition and of QEMU. Raises Invalid when the definition is unreadable."""
    from pvc.cluster import domainxml

    states = _States(spec, status)
    found: list[domainxml.Nic | Interface] = [*domainxml.parse(spec.definition).nics]
    found += [one for one in states.gone if isinstance(one, Interface)]
    return tuple(
        NicInfo(one.mac, one.network, one.model, one.bridge, states.of(one.mac), states.why.get(one.mac, ""))
        for one in found
    )


def disks_of(spec: VMSpec, status: VMStatus) -> tuple[DiskInfo, ...]:
    """As nics_of."""
    from pvc.cluster import domainxml

    states = _States(spec, status)
    found = []
    for disk in domainxml.parse(spec.definition).disks:
        device = Drive(disk.target, disk.source, "").device
        # What may not come and go is there as long as the VM runs.
        is_other = device not in states.digests
        state = DeviceState.LIVE if is_other and status.owner is not None else states.of(device)
        why = states.why.get(device, "")
        found.append(DiskInfo(disk.target, disk.source, disk.format, disk.bus, state, why))
    for one in states.gone:
        if isinstance(one, Drive):
            state, why = states.of(one.device), states.why.get(one.device, "")
            found.append(DiskInfo(one.target, one.source, "", "", state, why))
    return tuple(found)


def is_pending(status: VMStatus, digest: str) -> bool:
    return status.owner is not None and status.digest not in ("", digest)


def activity(spec: VMSpec, status: VMStatus) -> str:
    """What is going on, in words."""
    if settled(spec, status):
        return ""
    if status.owner is None:
        return _activity_idle(spec, status)
    if spec.power is not Power.STARTED:
        return "being stopped" if spec.force else "shutting down"
    if spec.restarts > status.restarts:
        return "restarting"
    if spec.node not in (None, status.owner.node):
        return _activity_moving(spec, status, status.migration)
    if status.state is State.START and (changes := under_way(spec, status)):
        return ", ".join(
            f"{'attaching' if one.digest else 'detaching'} {_named(one.device)}" for one in changes
        )
    return {
        State.STARTING: f"starting on {status.owner.node}",
        State.MIGRATE: "staying where it is",
        State.SHUTDOWN: "the guest was asked to shut down before it was to run again",
    }.get(status.state, f"settling on {status.owner.node}")


def _activity_idle(spec: VMSpec, status: VMStatus) -> str:
    if spec.node is None:
        return "waiting for a place"
    if _waits_for_room(spec, status):
        return f"waiting for room: {spec.node} was fenced"
    if status.failures and status.attempts >= spec.attempts:
        return f"to be started again on {spec.node} after {_times(status.failures)}"
    return f"starting on {spec.node}"


def _waits_for_room(spec: VMSpec, status: VMStatus) -> bool:
    """It was taken from a dead node and given to no other."""
    if status.recovery is None or status.state is not State.STARTING or status.attempts < spec.attempts:
        return False
    return status.recovery.fence.rpartition("-")[0] == spec.node


def _times(failures: int) -> str:
    return "a failure" if failures == 1 else f"{failures} failures"


def _activity_moving(spec: VMSpec, status: VMStatus, migration: Migration | None) -> str:
    if status.state is not State.MIGRATE:
        return f"waiting for {spec.node} to prepare"
    if migration is not None:
        return f"migrating to {migration.target}, {migration.percent} %"
    if spec.move_method is Method.SHUTDOWN:
        return f"shutting down to start on {spec.node}"
    return f"migrating to {spec.node}"


def bridges_of(spec: VMSpec, status: VMStatus) -> tuple[str, ...]:
    """What a node must have; raises Invalid when the definition is unreadable."""
    from pvc.cluster import domainxml

    return domainxml.bridges(spec.definition, status.interfaces)
