"""Snapshots of VMs, as a node takes them: all disks at one moment, while the guest stands still."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pvc.clock import Clock
from pvc.cluster import paths, records
from pvc.cluster.codec import dumps, from_json
from pvc.cluster.snapshots import (
    Quiesced,
    SnapshotDisk,
    VMSnapshot,
    disks_of,
    forget_ops,
    known_ops,
    on_volumes,
    restored,
)
from pvc.cluster.store import Check, Op, Put
from pvc.cluster.tasks import TaskSpec
from pvc.cluster.view import VM, View
from pvc.cluster.vm import State, VMSpec
from pvc.errors import Conflict, NotFound, PVCError
from pvc.node.drivers import DriverError, NoAnswer
from pvc.node.drivers.hypervisor import Domain, DomainState, NoSuchDomain, Snapshotter
from pvc.node.drivers.storage import Pool
from pvc.node.storage import Pools, Result
from pvc.node.tasks import Progress, Work, still_its

log = logging.getLogger(__name__)

TRIES = 16
"""To write what is done, while operations change the VM at the same time."""
AGAIN_S = 5.0
"""Between two tries to have a guest go on."""
NOTE = "still-"


def works(pools: Pools, stillness: Stillness, clock: Clock) -> dict[str, Work]:
    """By the operation that asks for them."""
    host = Host(pools, stillness.hypervisor, stillness, clock)
    return {
        "vm.snapshot-create": Take(host),
        "vm.snapshot-remove": Remove(host),
        "vm.snapshot-rollback": RollBack(host),
    }


class Stillness:
    """Guests that stand still for a moment. Noted in a file before: whatever happens, `step` ends it."""

    def __init__(self, hypervisor: Snapshotter, notes: Path) -> None:
        """`notes`: a directory that outlives the daemon."""
        self.hypervisor = hypervisor
        self.notes = notes
        self._busy: set[str] = set()
        self._freed = threading.Condition()
        self._late: set[str] = set()

    @contextmanager
    def of(self, uuid: str, domain: Domain | None) -> Iterator[Quiesced]:
        """While nothing is written to its disks. One that was paused already stays so. Raises DriverError."""
        if domain is None:
            yield Quiesced.STOPPED
            return
        with self._alone(uuid):
            self._end(uuid)  # one from before, if it still lasts
            try:
                yield self._begin(uuid)
            finally:
                self._end(uuid)

    @contextmanager
    def _alone(self, uuid: str) -> Iterator[None]:
        with self._freed:
            self._freed.wait_for(lambda: uuid not in self._busy)
            self._busy.add(uuid)
        try:
            yield
        finally:
            with self._freed:
                self._busy.discard(uuid)
                self._freed.notify_all()

    def _begin(self, uuid: str) -> Quiesced:
        domain = self.hypervisor.domains().get(uuid)
        if domain is None:
            raise NoSuchDomain("it does not run any more")
        if domain.state is DomainState.PAUSED:  # by somebody else
            return Quiesced.PAUSED
        if self.hypervisor.can_freeze(uuid):
            self._note(domain, Quiesced.AGENT)
            try:
                if self.hypervisor.freeze(uuid):
                    return Quiesced.AGENT
            except NoAnswer as error:
                log.warning("%s: %s", uuid, error.message)
                self._end(uuid)
        self._note(domain, Quiesced.PAUSED)
        self.hypervisor.suspend(uuid)
        return Quiesced.PAUSED

    def end(self, uuid: str) -> bool:
        """False where it lasts, until `step` ends it. Done already where nothing stands still."""
        with self._alone(uuid):
            try:
                self._end(uuid)
            except DriverError as error:
                if uuid not in self._late:
                    log.warning("%s: %s", uuid, error.message)
                    self._late.add(uuid)
                return False
        if uuid in self._late:
            log.info("%s: its guest goes on, or has ended", uuid)
            self._late.discard(uuid)
        return True

    def lasts(self, uuid: str) -> bool:
        """What is noted, of the QEMU that runs, has not ended yet, as far as is known. Raises DriverError."""
        _, run = self._noted(uuid)
        return bool(run) and self._domain_of(uuid, run) is not None

    def step(self) -> float:
        """End what has not ended, in this life of the daemon or an earlier one, as soon as that can be."""
        noted = {note.name.removeprefix(NOTE) for note in self.notes.glob(f"{NOTE}*")}
        # An agent that does not answer takes its time, and others need not wait for it.
        for uuid in sorted(noted, key=lambda one: (self._noted(one)[0] == Quiesced.AGENT, one)):
            if uuid not in self._busy:
                self.end(uuid)
        return AGAIN_S

    def _end(self, uuid: str) -> None:
        how, run = self._noted(uuid)
        try:
            if how:
                self._go_on(uuid, how, run)
        except NoSuchDomain:
            log.info("%s has ended while it stood still", uuid)
        except DriverError as error:
            raise DriverError(
                f"its guest does not go on, and is told again: {error.message}",
                hint="pvc vm restart, if that does not help",
                retryable=True,
            ) from error
        with suppress(FileNotFoundError, NotADirectoryError):
            self._file(uuid).unlink()

    def _go_on(self, uuid: str, how: str, run: str) -> None:
        domain = self._domain_of(uuid, run)
        if domain is None:
            raise NoSuchDomain("the QEMU that stood still does not run any more")
        if how == Quiesced.AGENT:
            self.hypervisor.thaw(uuid)
        elif domain.state is DomainState.PAUSED:
            self.hypervisor.resume(uuid)

    def _domain_of(self, uuid: str, run: str) -> Domain | None:
        """A later run of it has nothing that is frozen, and no agent yet, or none at all."""
        found = self.hypervisor.domains().get(uuid)
        return found if found is not None and found.run == run else None

    def _file(self, uuid: str) -> Path:
        return self.notes / f"{NOTE}{uuid}"

    def _noted(self, uuid: str) -> tuple[str, str]:
        """How it stands still, and which run of its QEMU; empty where nothing is noted, or not all of it."""
        try:
            how, _, run = self._file(uuid).read_text().partition(" ")
        except (FileNotFoundError, NotADirectoryError):
            return "", ""
        return how, run

    def _note(self, domain: Domain, how: str) -> None:
        try:
            self.notes.mkdir(parents=True, exist_ok=True)
            with self._file(domain.uuid).open("w") as file:
                file.write(f"{how} {domain.run}")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DriverError(f"{self.notes} takes no note of who stands still: {error.strerror}") from None


@dataclass(frozen=True, slots=True)
class Host:
    """What all of them need of this node."""

    pools: Pools
    hypervisor: Snapshotter
    stillness: Stillness
    clock: Clock

    def vm(self, uuid: str) -> VM:
        return View(self.pools.store).vm(uuid)

    def touch(self, uuid: str) -> None:
        """Then what is to be undone cannot come true any more."""
        records.touch(self.pools.store, paths.vm(uuid))

    def document(self, uuid: str, name: str) -> tuple[VMSnapshot, int] | None:
        """With its version."""
        stored = self.pools.store.get(paths.vm_snapshot(uuid, name))
        return (View(self.pools.store).decode(VMSnapshot, stored), stored.version) if stored else None

    def domain(self, vm: VM) -> Domain | None:
        """Of a VM that runs here; None of one that runs nowhere. Raises Conflict for all others."""
        name, owner = vm.spec.name, vm.status.owner
        if owner is None:
            return None
        found = self.hypervisor.domains().get(vm.spec.uuid) if owner.node == self.pools.node else None
        if found is None:
            raise Conflict(f"{name} does not run on {self.pools.node} any more", hint="try again")
        if found.migrating or vm.status.state is State.MIGRATE:
            raise Conflict(f"{name} is being moved", hint="try again when it has arrived")
        return found

    def has_open(self, uuid: str, disk: SnapshotDisk) -> bool:
        """Its QEMU here, and so nobody else could change the volume."""
        is_open = self.pools.open(disk.pool).is_open(disk.volume)
        return is_open and uuid in self.hypervisor.domains()

    def check_unprotected(self, disks: Iterable[SnapshotDisk], snapshot: str) -> None:
        """Before any part goes: QEMU would not mind. Nobody protects one meanwhile. Raises Conflict."""
        each(disks, lambda disk: self._check_unprotected(disk, snapshot))

    def _check_unprotected(self, disk: SnapshotDisk, snapshot: str) -> None:
        for one in self.pools.open(disk.pool).snapshots(disk.volume):
            if one.name == snapshot and one.is_protected:
                where = f"{disk.pool} {disk.volume} {snapshot}"
                raise Conflict(
                    f"its part of volume {disk.volume} of pool {disk.pool} is protected",
                    hint=f"pvc storage volume snapshot protect {where} --off",
                )

    def drop(self, uuid: str, disks: Iterable[SnapshotDisk], snapshot: str) -> None:
        """Of all volumes that have it."""
        each(disks, lambda disk: self._drop(uuid, disk, snapshot))

    def _drop(self, uuid: str, disk: SnapshotDisk, snapshot: str) -> None:
        pool = self.pools.open(disk.pool)
        if not _has(pool, disk, snapshot):
            return
        inside = pool.name_in_qemu(snapshot)
        if inside and self.has_open(uuid, disk):
            self.hypervisor.remove_snapshot(uuid, pool.location(disk.volume), inside)
        else:
            pool.remove_snapshot(disk.volume, snapshot)

    def write(self, vm: VM, spec: VMSpec, task: TaskSpec, *ops: Op) -> None:
        """Of a VM as it still is, also with regard to who owns it. Raises Conflict."""
        store, uuid = self.pools.store, vm.spec.uuid
        checks = () if vm.status_version is None else (Check(paths.vm_status(uuid), vm.status_version),)
        store.commit(still_its(task), *records.change(View(store), vm, spec, task.id), *checks, *ops)


def each(disks: Iterable[SnapshotDisk], do: Callable[[SnapshotDisk], None]) -> None:
    """Also where one of them cannot be reached, or is gone. Raises the first PVCError then."""
    problems: list[PVCError] = []
    for disk in disks:
        try:
            do(disk)
        except NotFound as error:
            log.info("pool %s: %s", disk.pool, error.message)
        except PVCError as error:
            problems.append(error)
    if problems:
        raise problems[0]


def _has(pool: Pool, disk: SnapshotDisk, snapshot: str) -> bool:
    return snapshot in {one.name for one in pool.snapshots(disk.volume)}


def _disks(task: TaskSpec) -> tuple[SnapshotDisk, ...]:
    return tuple(from_json(SnapshotDisk, one) for one in task.arguments["disks"])


class Take:
    """All disks at one moment; then it is written down, and before that nobody knows of it."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        asked = task.arguments
        vm = self.host.vm(asked["vm"])
        disks, kept = _disks(task), on_volumes(vm.spec.uuid, asked["snapshot"])
        self._check_disks(vm, disks)
        domain = self.host.domain(vm)
        progress.check()
        with self.host.stillness.of(vm.spec.uuid, domain) as quiesced:
            at = self.host.clock.wall()
            if domain is None:
                self._keep_at_rest(disks, kept)
            else:
                self._keep_running(vm.spec.uuid, disks, kept)
        progress.check()
        made = VMSnapshot(asked["snapshot"], at, vm.spec.definition, self._sized(disks), quiesced)
        self._make_known(task, vm, made)
        return {"vm": vm.spec.name, "snapshot": made.name, "quiesced": str(quiesced)}

    def _check_disks(self, vm: VM, disks: tuple[SnapshotDisk, ...]) -> None:
        pools = {name: one.spec for name, one in View(self.host.pools.store).pools().items()}
        now = disks_of(vm.spec.name, vm.spec.definition, pools, [self.host.pools.node])
        if now != disks:
            raise Conflict(f"the disks of {vm.spec.name} were changed meanwhile", hint="try again")

    def _keep_at_rest(self, disks: Iterable[SnapshotDisk], kept: str) -> None:
        for disk in disks:
            self.host.pools.open(disk.pool).add_snapshot(disk.volume, kept)

    def _keep_running(self, uuid: str, disks: Iterable[SnapshotDisk], kept: str) -> None:
        inside: dict[str, str] = {}
        for disk in disks:
            pool = self.host.pools.open(disk.pool)
            if name := pool.name_in_qemu(kept):
                inside[pool.location(disk.volume)] = name
            else:
                pool.add_snapshot(disk.volume, kept)
        if inside:
            self.host.hypervisor.add_snapshots(uuid, inside)

    def _sized(self, disks: Iterable[SnapshotDisk]) -> tuple[SnapshotDisk, ...]:
        return tuple(
            replace(disk, size_bytes=self.host.pools.open(disk.pool).volume(disk.volume).size_bytes)
            for disk in disks
        )

    def _make_known(self, task: TaskSpec, before: VM, made: VMSnapshot) -> None:
        """The VM may change meanwhile, in what has nothing to do with it."""
        uuid = before.spec.uuid
        for left in reversed(range(TRIES)):
            vm = self.host.vm(uuid)
            if vm.spec.definition != before.spec.definition or vm.status.owner != before.status.owner:
                raise Conflict(f"{vm.spec.name} was changed meanwhile", hint="try again")
            spec = replace(vm.spec, snapshots=(*vm.spec.snapshots, made.name))
            try:
                self.host.write(vm, spec, task, *known_ops(vm.spec, made.name, dumps(made)))
            except Conflict:
                if not left:
                    raise
            else:
                return

    def undo(self, task: TaskSpec) -> None:
        uuid, name = task.arguments["vm"], task.arguments["snapshot"]
        self.host.stillness.end(uuid)
        self.host.touch(uuid)
        if self.host.document(uuid, name) is None:
            self.host.drop(uuid, _disks(task), on_volumes(uuid, name))


class Remove:
    """First it is marked: one that is gone in part is not rolled back to."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        uuid, name = task.arguments["vm"], task.arguments["snapshot"]
        vm, (document, version) = self.host.vm(uuid), self._found(uuid, name)
        self.host.domain(vm)
        self.host.check_unprotected(document.disks, on_volumes(uuid, name))
        leaving = dumps(replace(document, leaving=True))
        self.host.pools.store.commit(still_its(task), Put(paths.vm_snapshot(uuid, name), leaving, version))
        self.host.drop(uuid, document.disks, on_volumes(uuid, name))
        self._forget(task, uuid, name)
        return {"vm": vm.spec.name, "snapshot": name}

    def _found(self, uuid: str, name: str) -> tuple[VMSnapshot, int]:
        found = self.host.document(uuid, name)
        if found is None:
            raise NotFound(f"no snapshot {name} any more")
        return found

    def _forget(self, task: TaskSpec, uuid: str, name: str) -> None:
        for left in reversed(range(TRIES)):
            vm = self.host.vm(uuid)
            spec = replace(vm.spec, snapshots=tuple(one for one in vm.spec.snapshots if one != name))
            try:
                self.host.write(vm, spec, task, *forget_ops(vm.spec, [name]))
            except Conflict:
                if not left:
                    raise
            else:
                return

    def undo(self, task: TaskSpec) -> None:
        """What is gone is gone: it stays marked, to be removed once more."""


class RollBack:
    """What was there is kept until all of it has been brought back."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        uuid, name = task.arguments["vm"], task.arguments["snapshot"]
        vm, before = self.host.vm(uuid), _before(task)
        if vm.status.owner is not None:
            raise Conflict(f"{vm.spec.name} runs", hint=f"pvc vm shutdown {vm.spec.name}")
        disks = _disks(task)
        for disk in disks:
            self.host.pools.open(disk.pool).add_snapshot(disk.volume, before)
        for number, disk in enumerate(disks):
            progress(number / len(disks), f"disk {disk.target}")
            self.host.pools.open(disk.pool).roll_back(disk.volume, on_volumes(uuid, name))
        self._make_known(task, self.host.vm(uuid))
        self.host.drop(uuid, disks, before)
        return {"vm": vm.spec.name, "snapshot": name}

    def _make_known(self, task: TaskSpec, vm: VM) -> None:
        """The definition comes back in the same transaction that says that the disks have."""
        uuid, name = vm.spec.uuid, task.arguments["snapshot"]
        found = self.host.document(uuid, name)
        if found is None:
            raise Conflict(f"snapshot {name} of {vm.spec.name} is gone")
        document, version = found
        noted = Put(paths.vm_snapshot(uuid, name), dumps(replace(document, restored_by=task.id)), version)
        self.host.write(vm, restored(vm.spec, document), task, noted)

    def undo(self, task: TaskSpec) -> None:
        uuid, name = task.arguments["vm"], task.arguments["snapshot"]
        self.host.touch(uuid)
        found = self.host.document(uuid, name)
        if found is None or found[0].restored_by != task.id:
            each(_disks(task), lambda disk: self._bring_back(disk, _before(task)))
        self.host.drop(uuid, _disks(task), _before(task))

    def _bring_back(self, disk: SnapshotDisk, before: str) -> None:
        pool = self.host.pools.open(disk.pool)
        if _has(pool, disk, before):
            pool.roll_back(disk.volume, before)


def _before(task: TaskSpec) -> str:
    """What the volumes were, under the name of the task."""
    return f"task.{task.id}"
