"""What a coordinator does for the whole cluster: stand for primary, and as primary fence and recover."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from pvc.clock import Clock
from pvc.cluster import election, fencing, paths
from pvc.cluster.cluster import FencePolicy
from pvc.cluster.codec import Unreadable, dumps
from pvc.cluster.fencing import Duties, Duty, Excuse, Finish, Note, Release, Scene, Shoot, name_of
from pvc.cluster.membership import Evidence, Fence, FenceState, Primary, is_gone
from pvc.cluster.mirror import Mirror
from pvc.cluster.node import BMC, NodeRole, NodeSpec
from pvc.cluster.store import Check, Create, Delete, Op, Put, Session, SessionState, Store, Stored
from pvc.cluster.view import VM, Node, View, expand_whole_cluster, whole_cluster
from pvc.cluster.vm import Owner, index_nodes, index_ops
from pvc.errors import Conflict, Failed, PVCError, Unavailable
from pvc.node.drivers.power import BMCAccess, Power, PowerState, open_bmc
from pvc.node.lanes import Lanes, ThreadLanes

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 5.0
BEHIND_S = 2.0
"""An order to switch off must follow the look at who is alive within this time, or look again."""


FORGET_S = 600.0


class NotPrimary(Conflict):
    """The role went while this was decided."""


def thread_lanes(carry_out: Callable[[Duty], None], done: Callable[[], None]) -> Lanes[Duty]:
    return ThreadLanes(carry_out, done, fencing.lane)


class Coordinator:
    """`step` does one round and says when the next is due."""

    def __init__(
        self,
        me: Owner,
        store: Store,
        power: Power,
        clock: Clock,
        secret: str,
        *,
        lanes: Callable[[Callable[[Duty], None], Callable[[], None]], Lanes[Duty]] = thread_lanes,
        wake: Callable[[], None] = lambda: None,
        judge: Callable[[Scene], Duties] = fencing.duties,
        access: Callable[[BMC, str], BMCAccess] = open_bmc,
    ) -> None:
        self.me = me
        self.store = store
        self.power = power
        self.clock = clock
        self.secret = secret
        self.wake = wake
        self.judge = judge
        self.access = access
        self.mirror = Mirror(store, whole_cluster(), expand_whole_cluster, wake)
        self.view = View(self.mirror)
        self.notes: dict[str, Note] = {}
        self.notes_lock = threading.Lock()
        self.free_since: float | None = None
        self.believed_from = clock.monotonic() + fencing.SETTLE_S
        self.is_primary = False
        self.forgot_at = clock.monotonic()
        store.on_session(self._session_changed)
        self.lanes = lanes(self.carry_out, wake)

    def _session_changed(self, session: Session) -> None:
        if session.state is SessionState.CONNECTED:
            self.believed_from = self.clock.monotonic() + fencing.SETTLE_S
        self.wake()

    # One round

    def step(self) -> float:
        """Stand for primary; as primary, see to those who are gone. Seconds until the next round is due."""
        if self.store.session.state is not SessionState.CONNECTED:
            return LONGEST_WAIT_S  # decisions freeze; a change of the session wakes the loop
        busy = self.lanes.busy
        self.mirror.sync()
        now = self.clock.monotonic()
        if now > self.forgot_at + FORGET_S:
            self.forgot_at = now
            self.view.forget_missing()
        nodes = self.view.nodes()
        wait = self._stand(nodes, now)
        if self._authority() is None:
            with self.notes_lock:
                self.notes = {}
            return wait
        return min(wait, self._see_to(nodes, busy, now))

    def _see_to(self, nodes: Mapping[str, Node], busy: Mapping[str, Duty], now: float) -> float:
        scene = Scene(
            me=self.me.node,
            cluster=self.view.cluster(),
            nodes=nodes,
            fences=self.view.fences(),
            vms=self._vms(),
            notes={},
            busy=busy,
            now=now,
            believed_from=self.believed_from,
        )
        with self.notes_lock:
            self.notes = fencing.remember(replace(scene, notes=self.notes))
            scene = replace(scene, notes=dict(self.notes))
        found = self.judge(scene)
        for duty in found.todo:
            self.lanes.submit(duty)
        return max(0.0, min(found.wake_at - now, LONGEST_WAIT_S))

    def _vms(self) -> dict[str, VM]:
        """A document that is damaged keeps its own VM from being recovered, not the others."""
        try:
            return self.view.vms()
        except Unreadable:
            pass
        found: dict[str, VM] = {}
        for uuid in self.mirror.children(paths.VMS):
            try:
                found |= self.view.vms([uuid])
            except Unreadable as error:
                log.error("%s", error.message)
        return found

    # The role

    def _stand(self, nodes: Mapping[str, Node], now: float) -> float:
        stored = self.mirror.get(paths.PRIMARY)
        holder = self._holder(stored)
        self.free_since = None if holder else now if self.free_since is None else self.free_since
        move = election.decide(
            self.me.node,
            holder=holder,
            wanted=self.view.cluster().primary,
            live=[
                name
                for name, node in nodes.items()
                if node.is_running and node.spec.role is NodeRole.COORDINATOR
            ],
            free_for=0.0 if self.free_since is None else now - self.free_since,
        )
        if move is election.Move.TAKE:
            self._take(stored)
        elif move is election.Move.RESIGN and stored is not None:
            log.info("leaving the primary role to %s", self.view.cluster().primary)
            self._commit_and_look([Delete(stored.path, stored.version)])
        is_primary = self._authority() is not None
        if is_primary != self.is_primary:
            self.is_primary = is_primary
            log.info("%s is %s", self.me.node, "primary" if is_primary else "secondary")
        return LONGEST_WAIT_S if holder or is_primary else election.PATIENCE_S / 2

    def _holder(self, stored: Stored | None) -> str | None:
        """None also where an ended session of ours holds it: there is no other daemon of this node."""
        if stored is None:
            return None
        known = self.view.decode(Primary, stored)
        is_old = known.node == self.me.node and stored.session != self.store.session.id
        return None if is_old else known.node

    def _take(self, old: Stored | None) -> None:
        term = self.store.get(paths.TERM)
        ops: list[Op] = [Delete(old.path, old.version)] if old is not None else []
        new = 0 if term is None else term.version + 1
        ops.append(Create(paths.TERM) if term is None else Put(paths.TERM, b"", term.version))
        if self.store.get(paths.FENCES) is None:
            ops.append(Create(paths.FENCES))
        mine = Primary(self.me.node, self.me.incarnation, new)
        self._commit_and_look([*ops, Create(paths.PRIMARY, dumps(mine), ephemeral=True)])

    def _commit_and_look(self, ops: list[Op]) -> None:
        try:
            self.store.commit(*ops)
        finally:
            with suppress(Unavailable):
                self.mirror.refresh([op.path for op in ops])

    def _authority(self) -> tuple[Op, ...] | None:
        """What a commit as primary checks; None for one who is not."""
        stored = self.mirror.get(paths.PRIMARY)
        if stored is None or stored.session != self.store.session.id:
            return None
        term = self.view.decode(Primary, stored).term
        return Check(paths.PRIMARY, stored.version), Check(paths.TERM, term)

    def commit(self, *ops: Op) -> None:
        """As primary. Raises Conflict when somebody else is, or anything has changed."""
        authority = self._authority()
        if authority is None:
            raise NotPrimary(f"{self.me.node} is not primary any more")
        self._commit_and_look([*authority, *ops])

    # Duties, on lanes

    def carry_out(self, duty: Duty) -> None:
        match duty:
            case Shoot():
                self._shoot(duty)
            case Release():
                self._release(duty)
            case Finish():
                self._finish(duty)
            case Excuse():
                self._excuse(duty)

    def _note(self, fence: Fence, change: Callable[[Note], Note]) -> Note:
        key = name_of(fence.node, fence.incarnation)
        with self.notes_lock:
            self.notes[key] = change(self.notes.get(key, Note()))
            return self.notes[key]

    def _write(self, fence: Fence, version: int | None, *checks: Op) -> int:
        """Returns the version it has now."""
        path, data = paths.fence(fence.node, fence.incarnation), dumps(fence)
        op: Op = Create(path, data) if version is None else Put(path, data, version)
        self.commit(*checks, op)
        return 0 if version is None else version + 1

    def _shoot(self, duty: Shoot) -> None:
        """Announce, look once more, switch off, read back; only what was read back is evidence."""
        now = self.clock.monotonic()
        note = self._note(
            duty.fence,
            lambda note: replace(
                note, last_try=now, first_try=now if note.first_try is None else note.first_try
            ),
        )
        began = note.first_try or now
        fence = replace(
            duty.fence,
            state=FenceState.FENCING,
            judge=self.me.node,
            attempts=duty.fence.attempts + 1,
            since=duty.fence.since or self.clock.wall(),
            suspect_s=round(began - (began if note.gone_since is None else note.gone_since), 3),
        )
        version = self._write(fence, duty.version)
        try:
            evidence = self._evidence(fence)
        except PVCError as error:
            if isinstance(error, Unavailable | Conflict):
                raise
            self._failed(fence, version, error.message)
            return
        finally:
            ended = self.clock.monotonic()
            self._note(fence, lambda note: replace(note, last_try=ended))
        node = View(self.store).node(fence.node)
        if evidence is Evidence.NONE or not is_gone(node.status, node.alive):
            self._unproven(fence, version, node, evidence)
            return
        took = round(ended - began, 3)
        receipt = replace(
            fence,
            state=FenceState.FENCED,
            evidence=evidence,
            reason="",
            fence_s=took,
            fenced_at=self.clock.wall(),
        )
        # Its status is written by each new life of its daemon: it has not been switched on meanwhile.
        self._write(receipt, version, Check(paths.node_status(fence.node), node.status_version or 0))
        self._note(fence, lambda note: replace(note, fenced_at=ended))
        log.warning("fenced %s after %.1f s, evidence: %s", fence.node, took, evidence)

    def _evidence(self, fence: Fence) -> Evidence:
        """Raises DriverError and others where there is none. NONE: not yet, or it came back."""
        node, looked_at = self._look(fence)
        if fence.confirmed:
            return Evidence.OPERATOR
        if node is None:
            return Evidence.NONE
        if node.bmc is None:
            raise Failed(f"{fence.node} has no BMC")
        access = self.access(node.bmc, self.secret)
        if self.power.state(access) is PowerState.OFF:
            return Evidence.POWER_OFF
        if self.clock.monotonic() > looked_at + BEHIND_S:
            node, looked_at = self._look(fence)
            if node is None:
                return Evidence.NONE
        log.warning("switching off %s", fence.node)
        self.power.off(access)
        return Evidence.POWER_OFF if self.power.state(access) is PowerState.OFF else Evidence.NONE

    def _look(self, fence: Fence) -> tuple[NodeSpec | None, float]:
        """The node, if it is still to be shot. A read after a commit of this session is never older."""
        at = self.clock.monotonic()
        authority = self._authority()
        if authority is None:
            raise NotPrimary(f"{self.me.node} is not primary any more")
        self.store.commit(*authority)
        node = View(self.store).node(fence.node)
        is_same = node.status.incarnation == fence.incarnation
        wanted = is_same and (bool(fence.asked_by) or is_gone(node.status, node.alive))
        return (node.spec if wanted else None), at

    def _unproven(self, fence: Fence, version: int, node: Node, evidence: Evidence) -> None:
        if node.status.incarnation != fence.incarnation or (not fence.asked_by and node.alive is not None):
            self._write(replace(fence, state=FenceState.RETURNED, reason="it came back"), version)
            log.info("%s came back and is not fenced", fence.node)
        elif evidence is Evidence.NONE:
            self._write(replace(fence, reason="its power is not off yet"), version)
        else:
            self._failed(fence, version, f"by {evidence} it is off, yet its daemon has a session")

    def _failed(self, fence: Fence, version: int, why: str) -> None:
        log.warning("cannot fence %s: %s", fence.node, why)
        self._write(replace(fence, state=FenceState.FAILED, reason=why), version)

    def _excuse(self, duty: Excuse) -> None:
        self._write(replace(duty.fence, state=duty.state, reason=duty.why), duty.version)

    def _release(self, duty: Release) -> None:
        """Owner, spec and index of a VM in one transaction that holds only with the receipt."""
        vm, uuid = duty.vm, duty.vm.spec.uuid
        status = replace(duty.status, since=self.clock.wall())
        before, after = index_nodes(vm.spec, vm.status.owner), index_nodes(duty.spec, status.owner)
        ops: list[Op] = [
            Check(paths.fence(duty.fence.node, duty.fence.incarnation), duty.version),
            Check(paths.node_status(duty.fence.node), duty.node.status_version or 0),
            Put(paths.vm(uuid), dumps(duty.spec), vm.spec_version),
            Put(paths.vm_status(uuid), dumps(status), vm.status_version or 0),
            *index_ops(uuid, before, after),
        ]
        target = self.store.get(paths.vm_target(uuid))
        if target is not None:
            ops.append(Delete(target.path, target.version))
        self.commit(*ops)
        place = status.owner.node if status.owner else duty.spec.node
        went = place if place != duty.fence.node else "nowhere"
        told = f"{vm.spec.name} -> {went}" if vm.spec.power == "started" else f"{vm.spec.name} stopped"
        self._note(duty.fence, lambda note: replace(note, recovered=(*note.recovered, told)))
        log.warning("released %s from %s: %s", vm.spec.name, duty.fence.node, status.reason)

    def _finish(self, duty: Finish) -> None:
        bmc = duty.bmc_of.bmc if duty.bmc_of else None
        was_shot = duty.fence.evidence is Evidence.POWER_OFF
        if bmc is not None and was_shot and self.view.cluster().fence_policy is FencePolicy.POWER_CYCLE:
            self.commit()
            self.power.on(self.access(bmc, self.secret))
            log.warning("switched %s on again", duty.fence.node)
        self._write(duty.fence, duty.version)


class Loop:
    """A coordinator on a thread of its own: neither waits for the node's VMs nor they for it."""

    def __init__(self, make: Callable[[Callable[[], None]], Coordinator]) -> None:
        self._woken = threading.Event()
        self._ending = threading.Event()
        self._coordinator = make(self._woken.set)
        self._thread = threading.Thread(target=self._run, name="coordinator", daemon=True)
        self.beat = self._coordinator.clock.monotonic()
        """When its newest round began."""

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._woken.set()
        self._thread.join(LONGEST_WAIT_S)
        self._coordinator.lanes.close()

    def _run(self) -> None:
        while not self._ending.is_set():
            self.beat = self._coordinator.clock.monotonic()
            self._woken.wait(self._round())
            self._woken.clear()

    def _round(self) -> float:
        try:
            return self._coordinator.step()
        except Conflict as error:
            log.info("%s; looking again", error.message)
            return 0.1
        except PVCError as error:
            log.warning("coordinator: %s", error.message)
            return 1.0
        except Exception:  # the boundary: one mistake must not end the cluster's only judge
            log.exception("a round of the coordinator failed: a bug in pvc")
            return 1.0
