"""One small function per action. A failed one is not remembered: what it wrote, and the next look, decide."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pvc.clock import Clock
from pvc.cluster import domainxml, paths
from pvc.cluster.codec import dumps
from pvc.cluster.domainxml import Shape
from pvc.cluster.membership import is_gone
from pvc.cluster.node import NodeStatus, Stray
from pvc.cluster.placement import Placement, explained
from pvc.cluster.storage import CephAccess
from pvc.cluster.store import Check, Create, Delete, Op, Put, Reader, Store
from pvc.cluster.view import VM, Node, View
from pvc.cluster.vm import (
    Change,
    Drive,
    Interface,
    Method,
    Migration,
    Owner,
    Power,
    State,
    Target,
    VMSpec,
    VMStatus,
    index_nodes,
    index_ops,
    move,
)
from pvc.config import Config
from pvc.errors import Conflict, Failed, Invalid, NotFound, PVCError, TimedOut, Unavailable
from pvc.node.actions import (
    AbortJob,
    Action,
    Answer,
    Attach,
    Commit,
    Destroy,
    Detach,
    Evacuate,
    FetchBack,
    Mark,
    Migrate,
    NodeAction,
    Shutdown,
    Start,
    StopStray,
)
from pvc.node.drivers import DriverError
from pvc.node.drivers.hypervisor import (
    Cancelled,
    Capabilities,
    Domain,
    Hypervisor,
    MigrationResult,
    MigrationSettings,
    MigrationTarget,
    NoSuchDomain,
    Progress,
)
from pvc.node.lease import cut_off
from pvc.node.plan import RETRY_S, Note, refuse, start_failed, stray, take_back

log = logging.getLogger(__name__)

STRAYS_KEPT = 10
TRIES = 16
"""To hand a VM over, while operations change it at the same time."""


@dataclass(slots=True)
class Executor:
    """Carries out actions; called from many lanes at once."""

    me: Owner
    store: Store
    mirror: Reader
    hypervisor: Hypervisor
    capabilities: Capabilities
    config: Config
    clock: Clock
    note: Callable[[str, Callable[[Note], Note]], None]
    """Change what the daemon remembers of a VM."""
    refresh: Callable[[list[str]], None]
    publish: Callable[[Callable[[NodeStatus], NodeStatus]], None]
    """Change what this node says of itself."""
    problem: Callable[[str], None]
    """Say why a flush or a return does not get on."""
    may_start: Callable[[], bool] = lambda: True
    """This node is in contact with the cluster, or has promised nothing."""
    ceph_problem: Callable[[], str] = lambda: ""
    """Why no VM that uses Ceph may begin here."""
    free_disks: Callable[[VM], None] = lambda vm: None
    """Of locks that dead nodes have left."""
    stands_still: Callable[[str], bool] = lambda uuid: False
    """Its guest, here, for a snapshot: elsewhere nobody would tell it to go on. Raises DriverError."""
    ceph: Callable[[], CephAccess] = domainxml.no_ceph
    """How QEMU here reaches the cluster's Ceph. Raises Unavailable."""

    def carry_out(self, action: Action | NodeAction) -> None:
        match action:
            case Commit():
                self.commit(action)
            case Answer():
                self.answer(action)
            case Start():
                self.start(action.vm)
            case Shutdown():
                self.shutdown(action)
            case Destroy():
                self.destroy(action)
            case Migrate():
                self.migrate(action)
            case AbortJob():
                self.hypervisor.abort_job(action.vm.spec.uuid)
            case Attach():
                self.attach(action)
            case Detach():
                self.detach(action)
            case Mark():
                self.confirm(action.vm)
                self.hypervisor.mark(action.vm.spec.uuid, domainxml.shape(action.vm.spec.definition))
            case StopStray():
                self.stop_stray(action)
            case Evacuate():
                self.evacuate(action.vms)
            case FetchBack():
                self.fetch_back(action)

    # The store

    def write(self, vm: VM, spec: VMSpec | None, status: VMStatus | None, *checks: Op) -> None:
        """Spec, status and index of a VM in one transaction. Raises Conflict when anything of it moved."""
        uuid = vm.spec.uuid
        new_spec, new_status = spec or vm.spec, status or vm.status
        if new_status.state is not vm.status.state or new_status.owner != vm.status.owner:
            new_status = replace(new_status, since=self.clock.wall())
        # Both versions are checked even when one is not written: the index follows from both.
        ops: list[Op] = [
            Put(paths.vm(uuid), dumps(spec), vm.spec_version)
            if spec
            else Check(paths.vm(uuid), vm.spec_version),
            _status_op(vm, new_status)
            if status or vm.status_version is None
            else _status_check(vm, vm.status_version),
        ]
        before = index_nodes(vm.spec, vm.status.owner)
        ops += index_ops(uuid, before, index_nodes(new_spec, new_status.owner))
        target = self.mirror.get(paths.vm_target(uuid))
        if target is not None and new_status.owner != vm.status.owner:
            ops.append(Delete(paths.vm_target(uuid), target.version))
        self.put([*checks, *ops])

    def put(self, ops: list[Op]) -> None:
        try:
            self.store.commit(*ops)
        finally:
            # Whether it happened, did not, or nobody knows: look again.
            with suppress(Unavailable):
                self.refresh([op.path for op in ops])

    def confirm(self, vm: VM) -> None:
        """The decision was made from what is still so. Raises Conflict if not."""
        ops: list[Op] = [Check(paths.vm(vm.spec.uuid), vm.spec_version)]
        if vm.status_version is not None:
            ops.append(_status_check(vm, vm.status_version))
        self.put(ops)

    def commit(self, action: Commit) -> None:
        self.write(action.vm, action.spec, action.status)
        log.info("%s: %s", action.vm.spec.name, action.why)

    def answer(self, action: Answer) -> None:
        target = action.target
        if not target.refused and (why := self._without_ceph(action.vm)):
            target = replace(target, refused=why)
        path, data = paths.vm_target(action.vm.spec.uuid), dumps(target)
        older = action.version
        op: Op = Create(path, data) if older is None else Put(path, data, older)
        self.put([Check(paths.vm(action.vm.spec.uuid), action.vm.spec_version), op])
        log.info(
            "%s may come here%s",
            action.vm.spec.name,
            f": no, {target.refused}" if target.refused else "",
        )

    # A VM's life here

    def start(self, vm: VM) -> None:
        """Own it, then run it: in this order, whatever happens."""
        if not self.may_start():
            raise cut_off()
        self._check_ceph(vm)
        if claim := self.store.get(paths.vm_claim(vm.spec.uuid)):  # it was made with a change of the spec
            raise Conflict(f"task {claim.data.decode()} is at {vm.spec.name}")
        self.write(vm, None, self._claimed(vm))
        forget = partial(
            replace, running_since=None, gone_since=None, ended=None, cut_off=False, unplugging=""
        )
        self.note(vm.spec.uuid, forget)  # of an earlier run
        try:
            self.free_disks(vm)
            self._start_domain(vm.spec)
        except PVCError as error:
            retryable = isinstance(error, DriverError | TimedOut | Unavailable) and getattr(
                error, "retryable", True
            )
            self._start_failed(vm, error, retryable=retryable)
            raise
        vm = self._fresh(vm.spec.uuid)
        self.write(vm, None, replace(vm.status, state=State.START))
        log.info("started %s", vm.spec.name)

    def _check_ceph(self, vm: VM) -> None:
        if why := self._without_ceph(vm):
            raise Unavailable(f"{vm.spec.name} waits: {why}")

    def _without_ceph(self, vm: VM) -> str:
        """Asked when this lane is busy: whoever sees that none is has said before that nothing may begin."""
        return self.ceph_problem() if domainxml.uses_ceph(vm.spec.definition) else ""

    def _claimed(self, vm: VM) -> VMStatus:
        """A start is all that earlier requests to restart wanted; a new request forgives old failures."""
        is_new = vm.spec.attempts > vm.status.attempts
        shape = domainxml.shape(vm.spec.definition)
        return replace(
            vm.status,
            owner=self.me,
            state=State.STARTING,
            reason="",
            migration=None,
            restarts=vm.spec.restarts,
            attempts=vm.spec.attempts,
            failures=0 if is_new else vm.status.failures,
            digest=shape.digest,
            interfaces=shape.interfaces,
            drives=shape.drives,
            refused=(),
        )

    def _start_domain(self, spec: VMSpec) -> None:
        console = Path(self.config.paths.console, f"{spec.uuid}.log")
        try:
            console.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Failed(f"{error.filename or 'its files'}: {error.strerror}") from error
        xml = domainxml.render(
            spec.definition,
            emulation=str(self.capabilities.emulation),
            emulator=self.capabilities.emulator,
            console_log=str(console),
            ceph=self.ceph,
        )
        if not self.may_start():  # immediately before: it may have taken long to come here
            raise cut_off()
        self.hypervisor.start(xml)

    def _start_failed(self, vm: VM, error: PVCError, *, retryable: bool) -> None:
        """Give ownership up again, unless QEMU is there after all."""
        if vm.spec.uuid in self.hypervisor.domains():
            return
        fresh = self._fresh(vm.spec.uuid)
        cluster = View(self.mirror).cluster()
        self.write(fresh, None, start_failed(cluster, fresh, error.message, retryable=retryable))

    def _fresh(self, uuid: str) -> VM:
        """As it is now, still ours. Raises Conflict if not."""
        vm = View(self.store).vm(uuid)
        if vm.status.owner != self.me:
            raise Conflict(f"{vm.spec.name} belongs to somebody else now")
        return vm

    def shutdown(self, action: Shutdown) -> None:
        self._announce(action.vm, action.state)
        now = self.clock.monotonic()
        self.note(
            action.vm.spec.uuid,
            lambda note: replace(
                note, asked_last=now, asked_first=now if note.asked_first is None else note.asked_first
            ),
        )
        with suppress(NoSuchDomain):
            self.hypervisor.shutdown(action.vm.spec.uuid)
        log.info("asked %s to shut down", action.vm.spec.name)

    def destroy(self, action: Destroy) -> None:
        self._announce(action.vm, action.state)
        self.hypervisor.destroy(action.vm.spec.uuid)
        log.info("ended %s: %s", action.vm.spec.name, action.why)

    def _announce(self, vm: VM, state: State) -> None:
        """Publish the state, or at least make sure that nothing has changed."""
        announced = replace(vm.status, state=state, migration=None)
        if announced == vm.status:
            self.confirm(vm)
        else:
            self.write(vm, None, announced)

    def stop_stray(self, action: StopStray) -> None:
        why = action.why
        vm = action.vm or View(self.store).vms([action.uuid]).get(action.uuid)
        if vm is not None:
            why = stray(self.me, vm)
            if not why:
                raise Conflict(f"{vm.spec.name} is just arriving")
            self.confirm(vm)
        log.error("ending a stray QEMU of %s: %s", action.uuid, why)
        self.hypervisor.destroy(action.uuid)
        found = Stray(vm.spec.name if vm is not None else action.uuid, why, self.clock.wall())
        self.publish(lambda status: replace(status, strays=(*status.strays, found)[-STRAYS_KEPT:]))

    # Interfaces and disks

    def attach(self, action: Attach) -> None:
        """Noted before it is there: a daemon that finds it knows from what it was made."""
        vm, domain, uuid, device = action.vm, action.domain, action.vm.spec.uuid, action.device
        definition = vm.spec.definition
        wanted = next(one for one in domainxml.shape(definition).devices if one.device == device)
        self._check_ceph(vm)
        self.confirm(vm)
        try:
            self.hypervisor.mark(uuid, _with(domain, wanted))
            self.hypervisor.attach(uuid, device, domainxml.device(definition, device, self.ceph))
        except DriverError as error:
            self._not_changed(vm, Change(device, wanted.digest), error)
            raise
        log.info("%s has %s", vm.spec.name, device)

    def detach(self, action: Detach) -> None:
        vm, device, now = action.vm, action.device, self.clock.monotonic()
        self.confirm(vm)

        def asked(note: Note) -> Note:
            first = note.unplug_first if note.unplugging == device else now
            return replace(note, unplugging=device, unplug_first=first, unplug_last=now)

        self.note(vm.spec.uuid, asked)
        try:
            self.hypervisor.detach(vm.spec.uuid, device)
        except DriverError as error:
            change = next(one for one in vm.spec.live if one.device == device)
            self._not_changed(vm, change, error)
            raise
        log.info("asked the guest of %s to give up %s", vm.spec.name, device)

    def _not_changed(self, vm: VM, change: Change, error: DriverError) -> None:
        """What may yet succeed is tried again; what does not, at the next start."""
        if not error.retryable and not isinstance(error, NoSuchDomain):
            self.commit(refuse(vm, change, error.message))

    # Migration

    def migrate(self, action: Migrate) -> None:
        vm, target = action.vm, action.target
        uuid, name = vm.spec.uuid, vm.spec.name
        self._believe_answer(vm, target)
        if why := self._needed_here(vm):
            self.commit(take_back(self.me, vm, why))
            return
        self.write(
            vm, None, replace(vm.status, state=State.MIGRATE, migration=Migration(target.node), reason="")
        )
        try:
            result = self._move_domain(uuid, action)
        except NoSuchDomain:
            raise
        except (DriverError, TimedOut) as error:
            self._not_migrated(uuid, error)
            raise
        log.info(
            "migrated %s to %s in %.2f s, downtime %s ms",
            name,
            target.node,
            result.elapsed_s,
            result.downtime_ms,
        )
        self._hand_over(uuid, action, result)

    def _needed_here(self, vm: VM) -> str:
        """In this order: a guest that a task has left standing still is noted when the claim goes."""
        if claim := self.store.get(paths.vm_claim(vm.spec.uuid)):  # it was made with a change of the spec
            return f"task {claim.data.decode()} is at it"
        if self.stands_still(vm.spec.uuid):
            way_out = f"pvc vm restart {vm.spec.name}, if it does not"
            return f"its guest stands still for a snapshot, and is told to go on: {way_out}"
        return ""

    def _believe_answer(self, vm: VM, target: Target) -> None:
        """Only of a life that goes on. Another answer is taken away: the next life gives its own."""
        if _is_alive(View(self.store).node(target.node), target):
            return
        found = View(self.store).target(vm.spec.uuid)
        if found is not None and found[0] == target:
            check = Check(paths.vm(vm.spec.uuid), vm.spec_version)
            self.put([check, Delete(paths.vm_target(vm.spec.uuid), found[1])])
        raise Conflict(f"{vm.spec.name}: the {target.node} that would take it is not there any more")

    def _move_domain(self, uuid: str, action: Migrate) -> MigrationResult:
        node = View(self.store).node(action.target.node)
        if not _is_alive(node, action.target):  # immediately before libvirt is asked
            raise DriverError(f"{action.target.node} is not in the cluster any more")
        where = MigrationTarget(
            uri=f"qemu+tls://{node.spec.address}/system",
            data_uri=f"tcp://{node.spec.storage_address or node.spec.address}",
        )
        settings = MigrationSettings(
            max_downtime_ms=action.vm.spec.max_downtime_ms,
            timeout_s=float(action.vm.spec.migration_timeout_s),
        )
        return self.hypervisor.migrate(
            uuid,
            where,
            settings,
            progress=_ProgressWriter(self, uuid, action.target.node),
            cancelled=lambda: self._is_cancelled(uuid, action),
        )

    def _is_cancelled(self, uuid: str, action: Migrate) -> bool:
        vm = View(self.mirror).vms([uuid]).get(uuid)
        if vm is None:
            return False
        return vm.spec.moves != action.vm.spec.moves or (vm.spec.force and vm.spec.power is not Power.STARTED)

    def _not_migrated(self, uuid: str, error: PVCError) -> None:
        """It still runs here: take the intent back, or go on with the fallback."""
        domain = self.hypervisor.domains().get(uuid)
        if domain is None or domain.migrating:
            return  # libvirt may be at it yet, or done: the status must go on saying where it may be
        vm = self._fresh(uuid)
        stays = replace(vm.status, state=State.START, migration=None)
        if isinstance(error, Cancelled) or vm.spec.node == self.me.node:
            self.write(vm, None, replace(stays, reason="the migration was cancelled"))
        elif vm.spec.move_method is Method.NONE and vm.spec.node is not None:
            reason = f"live migration failed, shutting down instead: {error.message}"
            # As a new move: the target has to say once more that it is there.
            spec = move(vm.spec, vm.spec.node, home=vm.spec.home, method=Method.SHUTDOWN)
            self.write(vm, spec, replace(stays, reason=reason))
        else:
            back = take_back(self.me, vm, error.message)
            self.write(back.vm, back.spec, back.status)

    def _hand_over(self, uuid: str, action: Migrate, result: MigrationResult) -> None:
        """libvirt says it runs there: it belongs to that node now. The spec may have changed: read again.

        To the life of that node that is the newest, checked in the same transaction: only a life that has
        joined is given VMs, so of an earlier one it is not any more.
        """
        told = f"to {action.target.node} in {result.elapsed_s:.2f} s"
        if result.downtime_ms is not None:
            told += f", downtime {result.downtime_ms} ms"
        for tried in range(1, TRIES + 1):
            vm = self._fresh(uuid)
            node = View(self.store).node(action.target.node)
            owner = Owner(node.spec.name, node.status.incarnation)
            status = replace(
                vm.status,
                owner=owner,
                state=State.START,
                migration=None,
                reason="",
                last_migration=told,
                refused=(),
            )
            try:
                self.write(vm, None, status, Check(paths.node_status(owner.node), node.status_version or 0))
                return
            except (Conflict, NotFound):
                if tried == TRIES:
                    raise  # the planner does it, from what is then

    # The node

    def evacuate(self, vms: tuple[VM, ...]) -> None:
        """A place for each, chosen in one round so that they do not all choose the same."""
        self.publish(lambda status: replace(status, flushed=True))
        if not vms:
            return
        view = View(self.store)
        placement = Placement(view.nodes(), view.cluster().selector)
        problems = []
        for vm in vms:
            try:
                bridges = domainxml.bridges(vm.spec.definition, vm.status.interfaces)
            except Invalid as error:
                problems.append(f"{vm.spec.name} has an unreadable definition: {error.message}")
                continue
            choice = placement.choose(vm.spec, avoid=[self.me.node], bridges=bridges)
            if choice.node is None:
                problems.append(f"{vm.spec.name} fits nowhere: {explained(choice)}")
                continue
            with suppress(Conflict, NotFound):
                spec = move(vm.spec, choice.node, home=vm.spec.home or self.me.node, method=vm.spec.method)
                self.write(vm, spec, None)
                log.info("%s goes to %s, %s", vm.spec.name, choice.node, choice.because)
        self.problem("; ".join(problems))
        if problems:
            later = self.clock.monotonic() + RETRY_S
            self.note("node", lambda note: replace(note, not_before=later))

    def fetch_back(self, action: FetchBack) -> None:
        """All of them, before the node says that it is done: a conflict begins anew with what is left."""
        self.problem("")
        for vm in action.vms:
            self.write(vm, self._fetched(vm), None)
        if action.is_all:
            self.publish(lambda status: replace(status, flushed=False))

    def _fetched(self, vm: VM) -> VMSpec:
        if vm.spec.node == self.me.node:
            return replace(vm.spec, power=Power.STARTED, attempts=vm.spec.attempts + 1)
        # One that runs forgets its home when it has come there: if it cannot, it is away still.
        home = self.me.node if vm.status.owner is not None else None
        return move(vm.spec, self.me.node, home=home, method=vm.spec.method)


def _is_alive(node: Node, target: Target) -> bool:
    """The life that has answered is the one that goes on, and is in the cluster."""
    return not is_gone(node.status, node.alive) and node.status.incarnation == target.incarnation


def _with(domain: Domain, device: Interface | Drive) -> Shape:
    """What a domain is known as that is about to get a device."""
    if isinstance(device, Interface):
        return Shape(domain.digest, domain.rest, (*domain.interfaces, device), domain.drives)
    return Shape(domain.digest, domain.rest, domain.interfaces, (*domain.drives, device))


def _status_check(vm: VM, version: int) -> Op:
    return Check(paths.vm_status(vm.spec.uuid), version)


def _status_op(vm: VM, status: VMStatus) -> Op:
    path = paths.vm_status(vm.spec.uuid)
    if vm.status_version is None:
        return Create(path, dumps(status))
    return Put(path, dumps(status), vm.status_version)


@dataclass(slots=True)
class _ProgressWriter:
    """Publishes how far a migration is: once a second at most, and only what changed."""

    executor: Executor
    uuid: str
    target: str
    written_at: float = 0.0

    def __call__(self, progress: Progress) -> None:
        if progress.elapsed_s < self.written_at + 1.0:
            return
        self.written_at = progress.elapsed_s
        migration = Migration(self.target, progress.percent, progress.remaining_mib)
        vm = View(self.executor.mirror).vms([self.uuid]).get(self.uuid)
        if vm is None or vm.status.migration == migration:
            return
        with suppress(PVCError):
            self.executor.put([_status_op(vm, replace(vm.status, migration=migration))])
