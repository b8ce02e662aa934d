"""A node in the cluster: it joins, then wakes, observes, plans, acts and publishes, round after round."""

from __future__ import annotations

import logging
import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pvc import __version__
from pvc.clock import Clock
from pvc.cluster import paths
from pvc.cluster.cluster import LAYOUT_VERSION
from pvc.cluster.codec import Unreadable, dumps, loads
from pvc.cluster.membership import Block, Fence, FenceState
from pvc.cluster.mirror import Mirror
from pvc.cluster.node import (
    Alive,
    CephSeen,
    DaemonState,
    Load,
    NetworkProblem,
    NodeRole,
    NodeSpec,
    NodeStatus,
)
from pvc.cluster.placement import RESERVED_MIB
from pvc.cluster.store import Check, Create, Delete, Op, Put, Session, SessionState, Store
from pvc.cluster.timing import Timing
from pvc.cluster.view import VM, Node, View, expand_one_node, one_node
from pvc.cluster.vm import Owner, Power, State, Target, VMSpec
from pvc.config import Config
from pvc.errors import Failed, NotFound, PVCError, Unavailable
from pvc.node.actions import Action, Answer, NodeAction
from pvc.node.drivers import DriverError
from pvc.node.drivers.hypervisor import Domain, DomainEvent, EventKind, Hypervisor
from pvc.node.execute import Executor
from pvc.node.lanes import Lanes, ThreadLanes
from pvc.node.lease import ContactFile, Guard
from pvc.node.outage import doubt
from pvc.node.plan import Note, Picture, Plan, plan, remember

if TYPE_CHECKING:
    from pvc.cluster.sriov import PhysicalFunction
    from pvc.node.network import Found

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 5.0
NOT_JUDGED = "not armed: nobody could judge the only coordinator of a cluster"


class Daemon:
    """One node's loop. `step` does one round and says when the next is due; `run` only waits in between."""

    def __init__(
        self,
        config: Config,
        store: Store,
        hypervisor: Hypervisor,
        clock: Clock,
        *,
        lanes: Callable[
            [Callable[[Action | NodeAction], None], Callable[[], None]], Lanes[Action | NodeAction]
        ] = ThreadLanes,
        wake: Callable[[], None] = lambda: None,
        bridges: Callable[[], frozenset[str]] = lambda: frozenset(),
        planner: Callable[[Picture], Plan] = plan,
        executor: type[Executor] = Executor,
        guard: Guard | None = None,
        boot: str = "",
    ) -> None:
        self.config = config
        self.name = config.node.name
        self.store = store
        self.hypervisor = hypervisor
        self.clock = clock
        self.wake = wake
        self.bridges = bridges
        self.planner = planner
        self.capabilities = hypervisor.capabilities()
        self.notes: dict[str, Note] = {}
        self.notes_lock = threading.Lock()
        self.status_lock = threading.Lock()
        self.problem = self.waits = ""
        self.trouble = ""
        """Why this node does nothing else: libvirt is silent, or its VMs are being ended."""
        self.boot = boot
        self.ceph_problem: Callable[[], str] = lambda: ""
        """Why no VM that uses Ceph may begin here."""
        self.floating: Callable[[], tuple[tuple[str, ...], str]] = lambda: ((), "")
        """The floating addresses that are here, and what is wrong with one that is not."""
        self.published = Load()
        self.load_due = 0.0
        self.session_id = 0
        self.promised: tuple[float, str] = (0.0, "")
        self.wrong_ticks = ""
        """What ZooKeeper's servers have otherwise than this node believes."""
        self.arriving: frozenset[str] | None = None
        """VMs that another node has been told it may send here; None until the answers of earlier lives are
        known."""
        self.is_ready = False
        """Said so in the cluster, with this life's first round."""
        timing = Timing.of(config)
        self.guard = guard or Guard(timing, clock, hypervisor, None, ContactFile(), why_none="nobody asked")
        self.me = Owner(self.name, self._register())
        self.mirror = Mirror(store, one_node(self.name), expand_one_node, wake)
        self.view = View(self.mirror)
        self.executor = executor(
            me=self.me,
            store=store,
            mirror=self.mirror,
            hypervisor=hypervisor,
            capabilities=self.capabilities,
            config=config,
            clock=clock,
            note=self._change_note,
            refresh=self.mirror.refresh,
            publish=self._change_status,
            problem=self._set_problem,
            may_start=self.guard.may_start,
            ceph_problem=lambda: self.ceph_problem(),
        )
        self.lanes = lanes(self.executor.carry_out, wake)
        self.guard.contact, self.guard.is_idle = self.has_contact, self.is_idle
        self.guard.ends = lambda uuid: self._change_note(uuid, lambda note: replace(note, cut_off=True))
        store.on_session(self._session_changed)
        hypervisor.watch(self._domain_event)

    # Joining and leaving

    def _register(self) -> int:
        """This node's documents, new or known; returns the incarnation of this life of the daemon.

        Its ephemeral is made in the same transaction: who sees this life sees it alive.
        """
        at, session = self.clock.monotonic(), self.store.session.id
        known = View(self.store).nodes([self.name]).get(self.name)
        incarnation, ops = (1, self._new()) if known is None else self._known(known)
        self.store.commit(*ops, *self._alive(incarnation))
        if known is None:
            log.info("registered %s, new in this cluster", self.name)
        self.guard.joined(at)
        self.session_id = session
        return incarnation

    def _new(self) -> list[Op]:
        return [
            Create(paths.node(self.name), dumps(self._spec())),
            Create(paths.node_vms(self.name)),
            Create(paths.node_status(self.name), dumps(self._status(1, NodeStatus()))),
            Create(paths.load(self.name), dumps(Load())),
        ]

    def _known(self, known: Node) -> tuple[int, list[Op]]:
        incarnation = known.status.incarnation + 1
        status = self._status(incarnation, known.status)
        if _was_fenced(known) and View(self.store).cluster().autoready:
            status = replace(status, flushed=True)  # what was recovered from it comes home
        own = self._spec()
        spec = replace(known.spec, address=own.address, storage_address=own.storage_address, role=own.role)
        ops: list[Op] = [Put(paths.node_status(self.name), dumps(status), known.status_version or 0)]
        if spec != known.spec:
            ops.append(Put(paths.node(self.name), dumps(spec), known.spec_version))
        return incarnation, ops

    def _alive(self, incarnation: int) -> list[Op]:
        """The ephemeral of this life and session. One that a killed daemon of ours left behind goes."""
        path, data = paths.alive(self.name), dumps(Alive(incarnation))
        older = self.store.get(path)
        if older is not None and older.session == self.store.session.id and older.data == data:
            return [Check(path, older.version)]  # it is there: the reply to its making was lost
        ops: list[Op] = [] if older is None else [Delete(path, older.version)]
        return [*ops, Create(path, data, ephemeral=True)]

    def _spec(self) -> NodeSpec:
        own = self.config.node
        return NodeSpec(
            name=self.name,
            address=own.address,
            storage_address=own.storage_address or own.address,
            role=self.role,
        )

    @property
    def role(self) -> NodeRole:
        is_listed = self.config.node.address in listed_coordinators(self.config)
        return NodeRole.COORDINATOR if is_listed else NodeRole.HYPERVISOR

    def _status(self, incarnation: int, known: NodeStatus) -> NodeStatus:
        can = self.capabilities
        return replace(
            known,
            incarnation=incarnation,
            state=DaemonState.INIT,
            version=__version__,
            layout=LAYOUT_VERSION,
            cpus=can.cpus,
            memory_mib=can.memory_mib,
            emulation=str(can.emulation),
            libvirt=can.libvirt_version,
            qemu=can.qemu_version,
            kernel=platform.release(),
            bridges=tuple(sorted(self.bridges())),
            console_port=self.config.daemon.console_port,
            watchdog="",
            quiet_after_s=0.0,
            nothing_runs=False,
            boot=self.boot,
            ceph_addresses=known.ceph_addresses if known.boot == self.boot else (),
        )

    def join(self) -> None:
        """Be alive in this session, and take part.

        The status is written in the same transaction, and every receipt writes it too: of a receipt for this
        life and its return exactly one happens.
        """
        at = self.clock.monotonic()
        self._change_status(self._returned, *self._alive(self.me.incarnation))
        self.guard.joined(at)

    def _returned(self, status: NodeStatus) -> NodeStatus:
        """Asked after the status was read, so that a receipt of which we do not know here is newer."""
        receipt, block = self.store.get_many(
            [paths.fence(self.name, self.me.incarnation), paths.block(self.name)]
        )
        is_fenced = receipt is not None and (
            loads(Fence, receipt.data, receipt.path).state is FenceState.FENCED
        )
        if is_fenced or (
            block is not None and loads(Block, block.data, block.path).proves(self.me.incarnation)
        ):
            self.guard.retire()
            raise Failed(f"incarnation {self.me.incarnation} of {self.name} was fenced: it has to begin anew")
        is_leaving = status.state is DaemonState.SHUTDOWN
        return status if is_leaving else replace(status, state=DaemonState.RUN)

    def begin_to_leave(self) -> None:
        """Others are given no more VMs here, nor wait for this one as primary."""
        with suppress(PVCError):
            self._change_status(lambda status: replace(status, state=DaemonState.SHUTDOWN))

    def stay(self) -> None:
        """While it leaves: in the cluster, though its session may have ended."""
        if self.store.session.state is SessionState.CONNECTED:
            self.rejoin()

    def leave(self) -> None:
        """Leave cleanly: VMs go on, and nobody takes this node for dead. Then nothing watches it any more."""
        self.lanes.close()
        nothing_runs = self._runs_nothing()
        try:
            self._change_status(
                lambda status: replace(
                    status, state=DaemonState.STOP, quiet_after_s=0.0, nothing_runs=nothing_runs
                )
            )
            self.guard.disarm()
        except PVCError as error:
            log.warning("not left cleanly: %s", error.message)
            if nothing_runs:  # and nothing will, so the promise is kept
                with suppress(DriverError):
                    self.guard.disarm()

    def _runs_nothing(self) -> bool:
        """In this order: what a lane has begun is in libvirt's list when the lane is done."""
        is_idle = self.is_idle()
        try:
            return is_idle and not any(map(self.guard.is_ours, self.hypervisor.domains().values()))
        except DriverError:
            return False

    # The promise that nothing runs here when others have not seen this node for long

    def has_contact(self) -> bool:
        """A commit that cannot succeed without the ephemeral of this life."""
        session = self.store.session
        if session.state is not SessionState.CONNECTED or session.id != self.session_id:
            return False
        self.store.commit(Check(paths.alive(self.name), 0))
        return True

    def is_idle(self) -> bool:
        """Nothing can begin to run here now: neither by a lane nor by another node. Asks nobody."""
        is_known = bool(self.session_id) and self.arriving is not None
        return is_known and not self.lanes.busy and not self.arriving

    def _keep_promise(self, maintenance: bool) -> None:
        """Armed before it is published, disarmed after it was taken back."""
        is_judged = self._is_judged()
        if is_armed := is_judged and not maintenance:
            self.guard.arm()
        told = self.guard.doubt or self.guard.told if is_judged else NOT_JUDGED
        promised = (self.guard.promise if is_armed else 0.0, told)
        if promised != self.promised:
            quiet_after_s, told = promised
            self._change_status(lambda status: replace(status, quiet_after_s=quiet_after_s, watchdog=told))
            self.promised = promised
        if not is_armed:
            self.guard.disarm()

    def _is_judged(self) -> bool:
        """Another coordinator may judge this node. On the way it sees whether it knows all of them."""
        try:
            specs = [self.view.node_spec(name) for name in self.mirror.children(paths.NODES)]
        except Unreadable as error:
            self.guard.doubt = error.message
            return True
        coordinators = {one.name: one.address for one in specs if one and one.role is NodeRole.COORDINATOR}
        known = doubt(listed_coordinators(self.config), coordinators.values())
        self.guard.doubt = self.wrong_ticks or known
        return coordinators.keys() != {self.name}

    def _change_status(self, change: Callable[[NodeStatus], NodeStatus], *ops: Op) -> None:
        """This node's own document: nobody else changes it, so two lanes of ours are all that can race."""
        with self.status_lock:
            stored = self.store.get(paths.node_status(self.name))
            if stored is None:
                raise NotFound(f"{paths.node_status(self.name)} is gone", hint="was this node removed?")
            before = View(self.store).decode(NodeStatus, stored)
            if before.incarnation != self.me.incarnation:
                raise Failed(f"another daemon runs as {self.name}, incarnation {before.incarnation}")
            after = change(before)
            if ops or after != before:
                self.store.commit(*ops, Put(stored.path, dumps(after), stored.version))
        with suppress(Unavailable):
            self.mirror.refresh([paths.node_status(self.name)])

    def networks_are(self, found: Found) -> None:
        """Called on the thread that makes them."""
        self._change_status(
            lambda status: replace(
                status,
                bridges=tuple(sorted(self.bridges())),
                managed_mtu=found.managed_mtu,
                bridged_mtu=found.bridged_mtu,
                network_problems=found.problems,
            )
        )
        self.wake()

    def pools_are(self, problems: Mapping[str, str]) -> None:
        """Called on the thread that looks after them."""
        self._change_status(lambda status: replace(status, pool_problems=problems))

    def ceph_knows(self, addresses: Iterable[str]) -> None:
        """Called on the thread that looks whether Ceph takes writes from here."""
        self._change_status(
            lambda status: replace(status, ceph_addresses=tuple(sorted({*status.ceph_addresses, *addresses})))
        )

    def ceph_is(self, seen: CephSeen | None) -> None:
        """Called on the thread that looks at it."""
        self._change_status(lambda status: replace(status, ceph=seen))

    def services_are(self, problems: tuple[NetworkProblem, ...]) -> None:
        """Called on the thread that serves."""
        self._change_status(lambda status: replace(status, service_problems=problems))

    def own_networks_are(self, problems: tuple[str, ...]) -> None:
        """Called on the thread that keeps them."""
        self._change_status(lambda status: replace(status, host_network_problems=problems))

    def functions_are(self, devices: tuple[PhysicalFunction, ...]) -> None:
        """Called on the thread that splits them."""
        self._change_status(lambda status: replace(status, sriov=devices))

    # Being woken, on threads of the store and of libvirt

    def _session_changed(self, session: Session) -> None:
        log.info("session %x is %s", session.id, session.state)
        self.wake()

    def _domain_event(self, event: DomainEvent) -> None:
        if event.kind is EventKind.ENDED and event.ended is not None:
            ended, now = event.ended, self.clock.monotonic()
            self._change_note(event.uuid, lambda note: replace(note, ended=ended, ended_at=now))
        self.wake()

    def _change_note(self, uuid: str, change: Callable[[Note], Note]) -> None:
        with self.notes_lock:
            self.notes[uuid] = change(self.notes.get(uuid, Note()))

    def _set_problem(self, problem: str) -> None:
        self.problem = problem

    # One round

    def step(self) -> float:
        """Observe, plan, begin what is due, publish. Returns the seconds until the next round is due."""
        now = self.clock.monotonic()
        if self.store.session.state is not SessionState.CONNECTED:
            return LONGEST_WAIT_S  # decisions freeze; a change of the session wakes the loop
        self.rejoin()
        # In this order: what a lane has finished is in the mirror and in libvirt's list, and that is never
        # older than what is read of the mirror, so that an owned domain that is not listed is really gone.
        busy = self.lanes.busy
        self.mirror.sync()
        picture = self._picture(busy, now)
        self.guard.known = frozenset(self.mirror.children(paths.node_vms(self.name)))
        self._keep_promise(picture.cluster.maintenance)  # also while libvirt is silent
        picture = self._with_domains(picture)
        if self.guard.lease.over:
            return self._publish_end(picture, now)
        with self.notes_lock:
            self.notes = remember(replace(picture, notes=self.notes))
            picture = replace(picture, notes=self.notes)
        planned = self.planner(picture)
        self.waits = planned.problem
        self.arriving = frozenset(_arriving(picture, planned))
        for action in planned.actions:
            self.lanes.submit(action)
        self._publish_load(picture, now)
        return self._next(planned, now)

    def _with_domains(self, picture: Picture) -> Picture:
        try:
            domains = self.hypervisor.domains()
            free_mib = self._memory_free_mib(domains)
        except DriverError as error:
            self._complain(error.message)
            raise
        self.trouble = ""
        return replace(picture, domains=domains, memory_free_mib=free_mib)

    def _complain(self, trouble: str) -> None:
        """The rest of the load stays as it was: nobody knows better."""
        stored = self.store.get(paths.load(self.name))
        if stored is None or self.trouble == trouble:
            return
        load = replace(self.view.decode(Load, stored), problem=self._told(trouble))
        self.store.commit(Put(stored.path, dumps(load)))
        self.published, self.trouble = load, trouble

    def _publish_end(self, picture: Picture, now: float) -> float:
        """Nothing else is done before all that runs here has ended."""
        names = sorted(domain.name for domain in picture.domains.values() if self.guard.is_ours(domain))
        self.trouble = f"it had lost contact to the cluster, and ends {', '.join(names)}" if names else ""
        self._publish_load(picture, now)
        return 1.0

    def _told(self, trouble: str) -> str:
        return "; ".join(filter(None, (trouble, self.problem or self.waits or self.guard.doubt)))

    def _next(self, planned: Plan, now: float) -> float:
        return max(0.0, min(planned.wake_at - now, self.load_due - now, LONGEST_WAIT_S))

    def rejoin(self) -> None:
        session = self.store.session.id
        if session == self.session_id and self.is_ready:
            return
        if session != self.session_id:
            self.mirror.reset()
        self.join()
        self.session_id, self.is_ready = session, True  # last: what failed before is done again
        log.info("%s is in the cluster, incarnation %d", self.name, self.me.incarnation)

    def _picture(self, busy: Mapping[str, Action | NodeAction], now: float) -> Picture:
        """What the store says: read before libvirt is asked, and not again after."""
        view = self.view
        vms = self._vms(self.mirror.children(paths.node_vms(self.name)))
        stored = self.mirror.get(paths.node(self.name))
        if stored is None:
            raise NotFound(f"{self.name} was removed from the cluster")
        status = self.mirror.get(paths.node_status(self.name))
        return Picture(
            me=self.me,
            cluster=view.cluster(),
            node=view.decode(NodeSpec, stored),
            vms=vms,
            targets=self._targets(vms),
            domains={},
            notes={},
            busy=busy,
            now=now,
            memory_free_mib=0,
            bridges=self.bridges(),
            flushed=view.decode(NodeStatus, status).flushed if status else False,
            ceph_problem=self.ceph_problem(),
        )

    def _vms(self, uuids: Sequence[str]) -> dict[str, VM]:
        """A document that is damaged freezes its own VM, not the node."""
        try:
            return self.view.vms(uuids)
        except Unreadable:
            pass
        found: dict[str, VM] = {}
        for uuid in uuids:
            try:
                found |= self.view.vms([uuid])
            except Unreadable as error:
                log.error("%s", error.message)
        return found

    def _targets(self, uuids: Iterable[str]) -> dict[str, tuple[Target, int]]:
        targets = {}
        for uuid in uuids:
            with suppress(Unreadable):
                if found := self.view.target(uuid):
                    targets[uuid] = found
        return targets

    def _memory_free_mib(self, domains: Mapping[str, Domain]) -> int:
        allocated = sum(domain.memory_mib for domain in domains.values())
        left = self.capabilities.memory_mib - RESERVED_MIB - allocated
        return min(left, self.hypervisor.load().memory_free_mib)

    # Publishing

    def _publish_load(self, picture: Picture, now: float) -> None:
        """One small write per keepalive, and at once when a VM came or went."""
        load = self._load(picture)
        if now < self.load_due and _that_matters(load) == _that_matters(self.published):
            return
        self.store.commit(Put(paths.load(self.name), dumps(load)))
        self.published = load
        self.load_due = now + self.config.daemon.keepalive_s

    def _load(self, picture: Picture) -> Load:
        host, here = self.hypervisor.load(), picture.domains
        addresses, address_problem = self.floating()
        coming = [
            vm.spec for uuid, vm in picture.vms.items() if uuid not in here and _is_coming(vm, self.name)
        ]
        taking: list[Domain | VMSpec] = [*here.values(), *coming]
        return Load(
            memory_used_mib=host.memory_used_mib,
            memory_free_mib=host.memory_free_mib,
            memory_allocated_mib=sum(one.memory_mib for one in taking),
            memory_provisioned_mib=sum(
                vm.spec.memory_mib for vm in picture.vms.values() if vm.spec.node == self.name
            ),
            vcpus_allocated=sum(one.vcpus for one in taking),
            load=host.load_1,
            vms=sum(_is_here(vm, self.name) for vm in picture.vms.values()),
            arriving=sum(_is_arriving(vm, self.name) for vm in picture.vms.values()),
            problem=self._told(self.trouble),
            addresses=addresses,
            address_problem=address_problem,
        )


def _was_fenced(node: Node) -> bool:
    return node.fence is not None and node.fence.state is FenceState.FENCED


def _arriving(picture: Picture, planned: Plan) -> Iterator[str]:
    """What others may send: they have been told so, or are about to be."""
    for uuid, (target, _) in picture.targets.items():
        vm = picture.vms[uuid]
        is_foreign = vm.status.owner is not None and vm.status.owner.node != picture.me.node
        if target.node == vm.spec.node == picture.me.node and is_foreign and not target.refused:
            yield uuid
    for action in (*picture.busy.values(), *planned.actions):
        if isinstance(action, Answer) and not action.target.refused:
            yield action.vm.spec.uuid


def _that_matters(load: Load) -> tuple[object, ...]:
    """What placement and waiting clients should not see late."""
    addresses = load.addresses, load.address_problem
    return load.vms, load.arriving, load.memory_allocated_mib, load.problem, addresses


def _is_here(vm: VM, name: str) -> bool:
    """Runs here, or is to: what a flush has to bring away."""
    if vm.status.owner is not None:
        return vm.status.owner.node == name
    return vm.spec.node == name and vm.spec.power is Power.STARTED


def _is_arriving(vm: VM, name: str) -> bool:
    return vm.spec.node == name and vm.status.owner is not None and vm.status.owner.node != name


def _is_coming(vm: VM, name: str) -> bool:
    """It takes memory here in a moment: said at once, so that the next VM is placed with that in mind."""
    if vm.status.owner is not None:
        return _is_arriving(vm, name) or (vm.status.owner.node == name and vm.status.state is State.STARTING)
    # Not one that waits for its next try: it would be in its own way when it is asked to start again.
    is_asked = vm.spec.power is Power.STARTED and vm.spec.attempts > vm.status.attempts
    return is_asked and vm.spec.node == name


def host_bridges() -> frozenset[str]:
    return frozenset(path.parent.name for path in Path("/sys/class/net").glob("*/bridge"))


def listed_coordinators(config: Config) -> tuple[str, ...]:
    """Their addresses, this node's own first."""
    return tuple(server.rpartition(":")[0] for server in config.servers())
