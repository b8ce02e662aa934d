"""What the primary does to nodes that are gone: asks their BMCs, writes receipts, releases their VMs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from pvc.clock import Clock
from pvc.cluster import fencing, heirs, paths, timeline
from pvc.cluster.cluster import FencePolicy
from pvc.cluster.codec import Unreadable, dumps, loads
from pvc.cluster.fencing import (
    Amend,
    Blocking,
    Duties,
    Duty,
    Excuse,
    Finish,
    Forget,
    Isolate,
    Note,
    Release,
    Scene,
    Shoot,
    Verify,
    name_of,
)
from pvc.cluster.membership import Block, Evidence, Fence, FenceState, StepKind, is_gone
from pvc.cluster.mirror import Mirror
from pvc.cluster.node import BMC, DaemonState
from pvc.cluster.store import Check, Create, Delete, Op, Put, Session, SessionState, Store
from pvc.cluster.tasks import hand_over_ops
from pvc.cluster.view import VM, Node, View
from pvc.cluster.vm import Owner, index_nodes, index_ops
from pvc.errors import Conflict, Failed, PVCError, Unavailable
from pvc.node.drivers import DriverError
from pvc.node.drivers.blocklist import Blocklist, OSDMap, as_listed
from pvc.node.drivers.power import BMCAccess, Power, PowerState
from pvc.node.lanes import Lanes
from pvc.node.role import Role

log = logging.getLogger(__name__)

BEHIND_S = 2.0
"""An order to switch off must follow the look at who is alive within this time, or look again."""


@dataclass(frozen=True, slots=True)
class Look:
    """At who is to be shot: as it was at that time, or later."""

    node: Node
    at: float


class Judge:
    """`see_to` finds what is due, as primary; lanes carry it out."""

    def __init__(
        self,
        me: Owner,
        store: Store,
        mirror: Mirror,
        view: View,
        role: Role,
        power: Power,
        clock: Clock,
        secret: str,
        *,
        lanes: Callable[[Callable[[Duty], None]], Lanes[Duty]],
        decide: Callable[[Scene], Duties],
        access: Callable[[BMC, str], BMCAccess],
        blocklist: Blocklist | None,
        session_timeout_s: float,
    ) -> None:
        self.connected_since = clock.monotonic()
        """Without interruption; infinity while it is not."""
        store.on_session(self._session_changed)
        self.kinds: tuple[Callable[[Fence, Look], Evidence], ...] = (self._by_promise, self._by_power)
        """Of evidence, cheapest first."""
        self.me = me
        self.store = store
        self.mirror = mirror
        self.view = view
        self.role = role
        self.power = power
        self.clock = clock
        self.secret = secret
        self.decide = decide
        self.access = access
        self.blocklist = blocklist
        self.session_timeout_s = session_timeout_s
        self.notes: dict[str, Note] = {}
        self.notes_lock = threading.Lock()
        self.taken: dict[str, tuple[BMC, int]] = {}
        """Nodes that this one has switched off and not on again, and the incarnation that was."""
        self.lanes = lanes(self.carry_out)

    def _session_changed(self, session: Session) -> None:
        is_connected = session.state is SessionState.CONNECTED
        self.connected_since = self.clock.monotonic() if is_connected else float("inf")

    def forget(self) -> None:
        """Somebody else is primary: what this one remembers would be old when it is again."""
        with self.notes_lock:
            self.notes = {}
        self.taken.clear()

    def see_to(
        self, nodes: Mapping[str, Node], busy: Mapping[str, Duty], now: float, believed_from: float
    ) -> float:
        """Begin what is due. When more will be, on the monotonic clock."""
        for name, (_, incarnation) in list(self.taken.items()):
            if _is_over(nodes.get(name), incarnation):
                self.taken.pop(name, None)
        scene = Scene(
            me=self.me.node,
            cluster=self.view.cluster(),
            nodes=nodes,
            fences=self.view.fences(),
            vms=self._vms(),
            notes={},
            busy=busy,
            now=now,
            believed_from=believed_from,
            wall=self.clock.wall(),
            blocks=self.view.blocks(),
        )
        with self.notes_lock:
            self.notes = fencing.remember(replace(scene, notes=self.notes))
        self._count(nodes)
        with self.notes_lock:
            scene = replace(scene, notes=dict(self.notes))
        found = self.decide(scene)
        for duty in found.todo:
            self.lanes.submit(duty)
        return found.wake_at

    def _count(self, nodes: Mapping[str, Node]) -> None:
        """Begin to count how long those who are gone were away: from a read that tells status and session in
        this order. A mirror may have the status of a later return, and an older answer of the session."""
        gone = {name: node for name, node in nodes.items() if is_gone(node.status, node.alive)}
        new = [
            name
            for name, node in gone.items()
            if not fencing.is_counting(self._noted(node), node, self.connected_since)
        ]
        if not new:
            return
        found = View(self.store).nodes(new)
        at = self.clock.monotonic()
        for node in found.values():
            counts = is_gone(node.status, node.alive)
            if counts and fencing.is_counting(self._noted(node), node, self.connected_since):
                continue  # the mirror did not have the version that this judge has written
            begun = partial(replace, unseen_since=at if counts else None, unseen_version=node.status_version)
            self._note(Fence(node.spec.name, node.status.incarnation), begun)

    def _noted(self, node: Node) -> Note:
        with self.notes_lock:
            return self.notes.get(name_of(node.spec.name, node.status.incarnation), Note())

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

    def give_back(self) -> None:
        """With those who were switched off the store may have lost its majority: then nobody can write a
        receipt, nor come to the end of a fence. What they ran has ended with their power, with a receipt or
        without, so they may as well begin anew."""
        if not self.taken or self.view.cluster().fence_policy is not FencePolicy.POWER_CYCLE:
            return
        for name, (bmc, _) in list(self.taken.items()):
            access = self.access(bmc, self.secret)
            try:
                if self.power.state(access) is PowerState.OFF:
                    self.power.on(access)
                    log.warning("switched %s on again: without it the store may have no majority", name)
                self.taken.pop(name, None)
            except PVCError as error:
                log.warning("cannot switch %s on again: %s", name, error.message)

    # Duties, on lanes

    def carry_out(self, duty: Duty) -> None:
        match duty:
            case Shoot():
                self._shoot(duty)
            case Isolate():
                self._isolate(duty.fence)
            case Verify():
                self._verify(duty)
            case Release():
                self._release(duty)
            case Finish():
                self._finish(duty)
            case Excuse():
                self._excuse(duty)
            case Amend():
                self._write(duty.fence, duty.version)
            case Forget():
                path = paths.fence(duty.fence.node, duty.fence.incarnation)
                self.role.commit(Delete(path, duty.version))

    def _note(self, fence: Fence, change: Callable[[Note], Note]) -> Note:
        key = name_of(fence.node, fence.incarnation)
        with self.notes_lock:
            self.notes[key] = change(self.notes.get(key, Note()))
            return self.notes[key]

    def _write(self, fence: Fence, version: int | None, *checks: Op) -> int:
        """Returns the version it has now."""
        path, data = paths.fence(fence.node, fence.incarnation), dumps(fence)
        op: Op = Create(path, data) if version is None else Put(path, data, version)
        self.role.commit(*checks, op)
        return 0 if version is None else version + 1

    def _shoot(self, duty: Shoot) -> None:
        """Announce, look once more, get evidence."""
        fence = self._tried(duty.fence)
        if duty.only_looks:
            self._only_look(fence, duty.version)
            return
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
        if evidence is Evidence.WATCHDOG and node.status_version != self._noted(node).unseen_version:
            evidence = Evidence.NONE  # it was back since it was looked at
        if evidence is Evidence.NONE or not is_gone(node.status, node.alive):
            self._unproven(fence, version, node, evidence)
            return
        self._receipt(fence, version, node, evidence)

    def _receipt(self, fence: Fence, version: int | None, node: Node, evidence: Evidence) -> None:
        fence = timeline.once(fence, StepKind.FENCED, self._elapsed_s(fence))
        receipt = replace(
            fence,
            state=FenceState.FENCED,
            evidence=evidence,
            reason="",
            fence_s=timeline.between(fence, StepKind.FENCING, StepKind.FENCED),
            fenced_at=self.clock.wall(),
        )
        self._write(receipt, version, _not_returned(node))
        log.warning("fenced %s after %.1f s, evidence: %s", fence.node, receipt.fence_s, evidence)
        if evidence in (Evidence.POWER_OFF, Evidence.OPERATOR):
            self._end_osds(node)

    def _end_osds(self, node: Node) -> None:
        """Who writes to them waits until Ceph believes that they are down. By a promise it does by then, and
        who left cleanly may have left them running."""
        if self.blocklist is None or not node.status.ceph_addresses:
            return
        try:
            if osds := self.blocklist.map().at(_addresses(node)):
                self.blocklist.mark_down(osds)
                log.warning("told Ceph that OSDs of %s are down: %s", node.spec.name, sorted(osds))
        except DriverError as error:
            log.warning("cannot tell Ceph that OSDs of %s are down: %s", node.spec.name, error.message)

    def _tried(self, fence: Fence) -> Fence:
        """As it is announced."""
        now = self.clock.monotonic()
        note = self._note(
            fence,
            lambda note: replace(note, last_try=now, zero=self._zero(note, now)),
        )
        assert note.zero is not None
        fence = timeline.tried(fence, note.zero, note.gone_since, self.session_timeout_s, now)
        return replace(
            fence,
            state=FenceState.FENCING,
            judge=self.me.node,
            attempts=fence.attempts + 1,
            since=fence.since or self.clock.wall(),
            suspect_s=timeline.between(fence, StepKind.GONE, StepKind.FENCING),
        )

    def _zero(self, note: Note, now: float) -> float:
        if note.zero is not None:
            return note.zero
        return now if note.gone_since is None else note.gone_since - self.session_timeout_s

    def _elapsed_s(self, fence: Fence) -> float:
        zero = self._note(fence, lambda note: note).zero
        return 0.0 if zero is None else self.clock.monotonic() - zero

    def _evidence(self, fence: Fence) -> Evidence:
        """Of any kind. Raises what is wrong where there is none; NONE: not yet, or it came back."""
        look = self._look(fence)
        if fence.confirmed:
            return Evidence.OPERATOR
        if look is None:
            return Evidence.NONE
        problems: list[PVCError] = []
        for kind in self.kinds:
            try:
                found = kind(fence, look)
            except (Unavailable, Conflict):
                raise
            except PVCError as error:
                problems.append(error)
                continue
            if found is not Evidence.NONE:
                return found
        if problems:
            raise Failed("; ".join([error.message for error in problems] + self._promised(look.node)))
        return Evidence.NONE

    def _by_promise(self, fence: Fence, look: Look) -> Evidence:
        """It was away for as long as it had promised to need, when the look began."""
        note = self._noted(look.node)
        is_quiet = fencing.is_quiet(note, look.node, self.connected_since, look.at)
        return Evidence.WATCHDOG if is_quiet else Evidence.NONE

    def _promised(self, node: Node) -> list[str]:
        left = fencing.quiet_at(self._noted(node), node) - self.clock.monotonic()
        if left == float("inf"):
            return ["it had promised no watchdog"]
        return [f"its watchdog ends it within {max(0.0, left):.0f} s"]

    def _by_power(self, fence: Fence, look: Look) -> Evidence:
        """Only off as read back counts; an order that was given does not."""
        bmc = look.node.spec.bmc
        if bmc is None:
            raise Failed(f"{fence.node} has no BMC")
        access = self.access(bmc, self.secret)
        if self.power.state(access) is PowerState.OFF:
            return Evidence.POWER_OFF
        if self.clock.monotonic() > look.at + BEHIND_S and self._look(fence) is None:
            return Evidence.NONE
        log.warning("switching off %s", fence.node)
        self.taken[fence.node] = bmc, fence.incarnation
        self.power.off(access)
        return Evidence.POWER_OFF if self.power.state(access) is PowerState.OFF else Evidence.NONE

    def _only_look(self, fence: Fence, version: int | None) -> None:
        """Its own word when it left, or its power as it is; it is never switched off."""
        try:
            look = self._look(fence)
            evidence = Evidence.NONE if look is None else self._seen(fence, look.node)
        except PVCError as error:
            if isinstance(error, Unavailable | Conflict):
                raise
            log.info("%s is gone, and nobody can see whether it is off: %s", fence.node, error.message)
            return
        finally:
            ended = self.clock.monotonic()
            self._note(fence, lambda note: replace(note, last_try=ended))
        if look is not None and evidence is not Evidence.NONE:
            self._receipt(fence, version, look.node, evidence)

    def _seen(self, fence: Fence, node: Node) -> Evidence:
        if (node.status.state is DaemonState.STOP) is not fence.stopped:
            return Evidence.NONE
        if fence.stopped and node.status.nothing_runs:
            return Evidence.STOPPED
        if node.spec.bmc is None:
            return Evidence.NONE
        state = self.power.state(self.access(node.spec.bmc, self.secret))
        return Evidence.POWER_OFF if state is PowerState.OFF else Evidence.NONE

    def _look(self, fence: Fence) -> Look | None:
        """The node, if it is still to be shot. A read after a commit of this session is never older."""
        at = self.clock.monotonic()
        self.role.confirm()
        node = View(self.store).node(fence.node)
        is_same = node.status.incarnation == fence.incarnation
        is_wanted = is_same and (bool(fence.asked_by) or is_gone(node.status, node.alive))
        return Look(node, at) if is_wanted else None

    def _unproven(self, fence: Fence, version: int, node: Node, evidence: Evidence) -> None:
        if fence.drill and evidence is Evidence.POWER_OFF and node.status.incarnation == fence.incarnation:
            log.warning("cut the power of %s for a drill", fence.node)
            self._write(replace(fence, state=FenceState.SUSPECT, asked_by="", attempts=0), version)
            return
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

    # Ceph's block list

    def _isolate(self, fence: Fence) -> None:
        """List it; then, when every OSD that is up knows it, prove it.

        The status of before is written with the proof: who has returned since, in whatever life, finds none.
        """
        try:
            why = self._isolate_or_why_not(fence)
        except (Unavailable, Conflict):
            raise
        except DriverError as error:
            why = error.message
        finally:
            ended = self.clock.monotonic()
            self._note(fence, lambda note: replace(note, block_try=ended))
        if why:
            log.info("%s is not shut out of Ceph yet: %s", fence.node, why)
        self._note(fence, lambda note: replace(note, block_failed=why))

    def _verify(self, duty: Verify) -> None:
        """Somebody may have taken it off by hand: then it is to be proven anew."""
        try:
            listed = self.blocklist.map().listed if self.blocklist is not None else None
        except DriverError as error:
            log.info("cannot look whether %s is shut out of Ceph: %s", duty.node, error.message)
            return
        finally:
            ended = self.clock.monotonic()
            self._note(duty.fence, lambda note: replace(note, block_try=ended))
        stored = self.store.get(paths.block(duty.node))
        if listed is None or stored is None or stored.version != duty.version:
            return
        block = loads(Block, stored.data, stored.path)
        if not listed.issuperset(block.addresses):
            self.role.commit(Put(stored.path, dumps(replace(block, epoch=0)), stored.version))
            log.error("somebody has taken %s off Ceph's block list", duty.node)

    def _isolate_or_why_not(self, fence: Fence) -> str:
        """Raises DriverError."""
        if self.blocklist is None:
            return "this coordinator has no client of Ceph (python3-rados)"
        look = self._look(fence)
        if look is None or not is_gone(look.node.status, look.node.alive):
            return "it is back"
        block, blocking = self._listed(self.blocklist, fence, look.node)
        known = self.blocklist.map()
        if not known.listed.issuperset(block.addresses):
            self._note(fence, lambda note: replace(note, blocking=None))
            return "somebody has taken it off the block list"
        if not blocking.up <= known.up:
            # Not for every new map: where they come often some OSD is always behind.
            blocking = self._blocking(fence, blocking.version, known)
        for osd in sorted(blocking.up):
            try:
                if self.blocklist.epoch_of(osd) < blocking.epoch:
                    return f"osd.{osd} does not know it yet"
            except DriverError:
                self._end_silent(self.blocklist, fence, known.at(block.addresses) & {osd})
                raise
        proven = Put(paths.block(fence.node), dumps(replace(block, epoch=blocking.epoch)), blocking.version)
        before = self._noted(look.node)
        self.role.commit(proven, _not_returned(look.node))
        self._note(fence, partial(_counted_on, before, look.node.status_version or 0))
        log.warning("%s is shut out of Ceph: every OSD knows epoch %d", fence.node, blocking.epoch)
        return ""

    def _end_silent(self, blocklist: Blocklist, fence: Fence, osds: frozenset[int]) -> None:
        """OSDs of the node itself, of which Ceph would learn later."""
        marked = self._note(fence, lambda note: note).marked_down
        if osds <= marked:
            return
        self._note(fence, lambda note: replace(note, marked_down=marked | osds))
        blocklist.mark_down(osds)
        log.warning("told Ceph that OSDs of %s are down: %s", fence.node, sorted(osds))

    def _blocking(self, fence: Fence, version: int, known: OSDMap) -> Blocking:
        blocking = Blocking(version, known.epoch, known.up)
        self._note(fence, lambda note: replace(note, blocking=blocking))
        return blocking

    def _listed(self, blocklist: Blocklist, fence: Fence, node: Node) -> tuple[Block, Blocking]:
        """Its block, and a map with its addresses: announced before it is done."""
        addresses = tuple(sorted(_addresses(node)))
        wanted = Block(fence.node, fence.incarnation, addresses, since=self.clock.wall())
        path = paths.block(fence.node)
        stored = self.store.get(path)
        blocking = self._noted(node).blocking
        if stored is not None and blocking is not None and blocking.version == stored.version:
            known = loads(Block, stored.data, path)
            if set(addresses) <= set(known.addresses):
                return known, blocking
        data = dumps(wanted)
        self.role.commit(Create(path, data) if stored is None else Put(path, data, stored.version))
        version = 0 if stored is None else stored.version + 1
        for address in addresses:
            blocklist.add(address)
        return wanted, self._blocking(fence, version, blocklist.map())

    def _release(self, duty: Release) -> None:
        """Owner, spec and index of a VM in one transaction that holds only with the receipt."""
        vm, uuid = duty.vm, duty.vm.spec.uuid
        mark = timeline.marked(name_of(duty.fence.node, duty.fence.incarnation), self._elapsed_s(duty.fence))
        status = replace(duty.status, since=self.clock.wall(), recovery=mark)
        before, after = index_nodes(vm.spec, vm.status.owner), index_nodes(duty.spec, status.owner)
        receipt = Check(paths.fence(duty.fence.node, duty.fence.incarnation), duty.version)
        ops: list[Op] = [
            receipt if duty.block is None else Check(paths.block(duty.fence.node), duty.block),
            Check(paths.node_status(duty.fence.node), duty.node.status_version or 0),
            Put(paths.vm(uuid), dumps(duty.spec), vm.spec_version),
            Put(paths.vm_status(uuid), dumps(status), vm.status_version or 0),
            *index_ops(uuid, before, after),
        ]
        target = self.store.get(paths.vm_target(uuid))
        if target is not None:
            ops.append(Delete(target.path, target.version))
        ops += self._handed_over(duty)
        self.role.commit(*ops)
        log.warning("released %s from %s: %s", vm.spec.name, duty.fence.node, status.reason)

    def _handed_over(self, duty: Release) -> tuple[Op, ...]:
        """The task that has the VM for itself: nobody starts it before that is ended where it starts."""
        new, old = duty.spec.node, duty.fence.node
        claim = self.store.get(paths.vm_claim(duty.vm.spec.uuid))
        if claim is None or new is None or new == old or self.store.get(paths.node_tasks(new)) is None:
            return ()
        try:
            task = View(self.store).tasks([claim.data.decode()]).get(claim.data.decode())
        except Unreadable as error:
            log.error("%s", error.message)
            return ()
        if task is None or task.spec.node != old or task.status.state.is_over:
            return ()
        log.warning("task %s goes on to %s: %s", task.spec.id, new, task.spec.about)
        return hand_over_ops(task.spec, task.spec_version, task.status, task.status_version, new)

    def _hand_over_tasks(self, fence: Fence, version: int) -> None:
        """Those that another can end: it takes away what was begun, though the node may never be back.

        Not by a promise alone: that says nothing of what else than VMs goes on there. None of them keeps the
        fence from its end.
        """
        view = View(self.store)
        node = view.nodes([fence.node]).get(fence.node)
        if fence.evidence not in (Evidence.POWER_OFF, Evidence.OPERATOR) or node is None:
            return
        if node.status.incarnation != fence.incarnation:
            return  # it is back, and sees to them itself
        checks = (
            Check(paths.fence(fence.node, fence.incarnation), version),
            Check(paths.node_status(fence.node), node.status_version or 0),
        )
        try:
            tasks = view.tasks(self.store.children(paths.node_tasks(fence.node))).values()
            going_on = [task for task in tasks if not task.status.state.is_over]
            claims = heirs.claims(self.store) if going_on else {}
            for task in going_on:
                pools = {pool for pool, _, _ in claims.get(task.spec.id, [])}
                if heir := heirs.heir(self.store, task, pools):
                    ops = hand_over_ops(task.spec, task.spec_version, task.status, task.status_version, heir)
                    self.role.commit(*checks, *ops)
                    log.warning("task %s goes on to %s: %s", task.spec.id, heir, task.spec.about)
        except (Unreadable, Conflict) as error:
            log.error("tasks of %s wait until it is back: %s", fence.node, error.message)

    def _finish(self, duty: Finish) -> None:
        self._hand_over_tasks(duty.fence, duty.version)
        bmc = duty.bmc_of.bmc if duty.bmc_of else None
        was_shot = duty.fence.evidence is Evidence.POWER_OFF and not duty.fence.stopped
        is_cycled = self.view.cluster().fence_policy is FencePolicy.POWER_CYCLE or duty.fence.drill
        if bmc is not None and was_shot and is_cycled:
            self.role.commit()
            self._switch_on(duty.fence, bmc)
        self.taken.pop(duty.fence.node, None)
        self._write(duty.fence, duty.version)

    def _switch_on(self, fence: Fence, bmc: BMC) -> None:
        try:
            self.power.on(self.access(bmc, self.secret))
        except PVCError:
            failed = self.clock.monotonic()
            self._note(fence, lambda note: replace(note, on_failed=failed))
            raise
        log.warning("switched %s on again", fence.node)


def _is_over(node: Node | None, incarnation: int) -> bool:
    """That life has a successor, or its fence has come to its end, with which it got its power back."""
    if node is None or node.status.incarnation != incarnation:
        return True
    return node.fence is not None and node.fence.finished


def _addresses(node: Node) -> set[str]:
    """By which it may be known to Ceph, also though it has not said so."""
    told = {as_listed(one) for one in (node.spec.address, node.spec.storage_address) if one}
    return told.union(node.status.ceph_addresses)


def _counted_on(before: Note, version: int, note: Note) -> Note:
    """When its status has been written as it was, at that version: no join lay between, so what was counted
    up to then counts, also where it has been begun anew meanwhile."""
    if before.unseen_version != version or note.unseen_version not in (version, version + 1):
        return note
    if before.unseen_since is None or note.unseen_since is None:
        return note
    return replace(note, unseen_since=before.unseen_since, unseen_version=version + 1)


def _not_returned(node: Node) -> Op:
    """Its status, as it is. A life of its daemon that begins or returns writes it in one transaction with its
    ephemeral: if it did, there will be no receipt, and if it was about to, it finds another version now."""
    return Put(paths.node_status(node.spec.name), dumps(node.status), node.status_version or 0)
