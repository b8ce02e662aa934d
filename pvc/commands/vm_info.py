"""What users see of a VM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from pvc.cluster.vm import (
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


@dataclass(frozen=True, slots=True)
class DiskInfo:
    device: str
    source: str
    format: str
    size_bytes: int | None = None
    """Of one that pvc makes."""


class NicState(StrEnum):
    """How an interface of the definition is in QEMU, or one of QEMU in the definition."""

    LIVE = "live"
    LATER = "from its next start"
    UNTIL = "until its next start"
    OTHER = "changes with its next start"
    COMES = "being attached"
    GOES = "being detached"


@dataclass(frozen=True, slots=True)
class NicInfo:
    mac: str
    network: str
    """Its number in the cluster, or what else it is on."""
    model: str
    bridge: str
    """On its node."""
    state: NicState
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
        facts = domainxml.parse(spec.definition)
        digest = domainxml.digest(spec.definition)
    except Invalid as error:
        reason = "; ".join(
            part for part in (reason, f"its definition is unreadable: {error.message}") if part
        )
    else:
        sizes = {new.path: new.size_bytes for new in spec.new_disks}
        disks = tuple(
            DiskInfo(disk.target, disk.source, disk.format, sizes.get(disk.source)) for disk in facts.disks
        )
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
        f"interface {one.mac} {'cannot come' if one.digest else 'stays'} until its next start: {one.why}"
        for one in status.refused
        if one.change in spec.live and not one.change.is_made(status.interfaces)
    )


def nics_of(spec: VMSpec, status: VMStatus) -> tuple[NicInfo, ...]:
    """Of its definition and of QEMU. Raises Invalid when the definition is unreadable."""
    from pvc.cluster import domainxml

    nics, wanted = domainxml.parse(spec.definition).nics, domainxml.shape(spec.definition)
    running = status.interfaces if status.owner is not None else ()
    if not running and status.digest == wanted.digest:
        running = wanted.interfaces if status.owner is not None else ()  # of a node that does not say
    has = {one.mac: one for one in running}
    digests = {one.mac: one.digest for one in wanted.interfaces}
    moving = {one.mac for one in under_way(spec, status)}
    why = {one.mac: one.why for one in status.refused if one.change in spec.live and running}

    def state(mac: str) -> NicState:
        if mac in has and has[mac].digest in (digests.get(mac), "") and mac in digests:
            return NicState.LIVE
        if mac in moving:
            return NicState.COMES if mac in digests and mac not in has else NicState.GOES
        if mac in has:
            return NicState.OTHER if mac in digests else NicState.UNTIL
        return NicState.LATER

    gone = [one for one in running if one.mac not in digests]
    return (
        *(
            NicInfo(one.mac, one.network, one.model, one.bridge, state(one.mac), why.get(one.mac, ""))
            for one in nics
        ),
        *(
            NicInfo(one.mac, one.network, one.model, one.bridge, state(one.mac), why.get(one.mac, ""))
            for one in gone
        ),
    )


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
        return ", ".join(f"{'attaching' if one.digest else 'detaching'} {one.mac}" for one in changes)
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
