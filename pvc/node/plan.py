"""What a node does next: pure, level-triggered, convergent.

The safety of the whole product is in three lines of this file and one of execute.py:

- Start is planned only for a VM that nobody owns, and begins with a transaction that makes this node own it;
- ownership is given up (_ended) only when libvirt does not list the domain any more, and never to nobody
  while the domain may have been moved instead of ended;
- a domain of ours that somebody else owns is ended, unless its owner has written that it is migrating here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from sys import maxsize

from pvc.cluster import domainxml
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.node import NodeSpec, Wanted
from pvc.cluster.view import VM
from pvc.cluster.vm import (
    Change,
    Method,
    Migration,
    Owner,
    Power,
    Refusal,
    State,
    Target,
    VMStatus,
    move,
    start_order,
    under_way,
)
from pvc.errors import Invalid
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
from pvc.node.drivers.hypervisor import Domain, DomainState, Ended

EVENT_GRACE_S = 1.0
"""How long after a domain has gone its libvirt event may still come and say why."""
ASK_AGAIN_S = 10.0
"""A guest that is still booting loses the first power button event."""
ANSWER_TIMEOUT_S = 20.0
"""For a target to say whether it is prepared."""
GOOD_RUN_S = 300.0
"""After so long a run, the failures before it are forgotten."""
RETRY_S = 10.0
"""Between two tries to bring a VM away from a node that is flushed."""
NOT_LOOKED = "it has not looked yet whether Ceph takes writes from here"
"""The problem with Ceph (Picture) of a daemon that has just begun: it knows more in a moment."""
LONGEST_BACKOFF_S = 60.0
LOOK_AGAIN_S = 1.0
ON_REQUEST = "user"
"""libvirt's word for a pause that it was asked for, by us or others."""
PAUSE_S = 3.0
"""A guest stands still for less when a snapshot is taken of it: nobody hears of that."""
GIVE_UP_S = 30.0
"""For a guest to let an interface go: one that boots, or has no driver for it, never does."""


@dataclass(frozen=True, slots=True)
class Note:
    """What this daemon remembers of a VM: times on its own monotonic clock, gone with it."""

    running_since: float | None = None
    paused_since: float | None = None
    gone_since: float | None = None
    ended: Ended | None = None
    cut_off: bool = False
    """This node ended it, having lost contact to the cluster."""
    ended_at: float = 0.0
    asked_first: float | None = None
    asked_last: float | None = None
    waiting_since: float | None = None
    waiting_for: int = -1
    """The move (VMSpec.moves) that `waiting_since` belongs to."""
    failures: int = 0
    """As last seen in the status; when they grow, `not_before` moves on."""
    not_before: float = 0.0
    stay_until: float = 0.0
    """It was to leave and did not: a flush lets it rest that long."""
    unplugging: str = ""
    """The device that its guest was asked to give up."""
    unplug_first: float = 0.0
    unplug_last: float = 0.0


@dataclass(frozen=True, slots=True)
class Picture:
    """All that a decision is made from."""

    me: Owner
    cluster: ClusterSpec
    node: NodeSpec
    vms: Mapping[str, VM]
    targets: Mapping[str, tuple[Target, int]]
    domains: Mapping[str, Domain]
    notes: Mapping[str, Note]
    busy: Mapping[str, Action | NodeAction]
    now: float
    memory_free_mib: int
    bridges: frozenset[str] = frozenset()
    flushed: bool = False
    """As this node has published it."""
    ceph_problem: str = ""
    """Why no VM that uses Ceph may begin here. Nothing is tried while there is one: whoever takes this node
    off Ceph's block list waits until no lane is busy."""

    def note(self, uuid: str) -> Note:
        return self.notes.get(uuid, Note())


@dataclass(slots=True)
class Plan:
    actions: list[Action | NodeAction] = field(default_factory=list)
    wake_at: float = float("inf")
    """When to plan again though nothing changed."""
    problem: str = ""
    """Why a return does not get on."""

    def wake(self, at: float) -> None:
        self.wake_at = min(self.wake_at, at)


def backoff_s(failures: int) -> float:
    """Before the next start, after so many bad ends in a row."""
    return min(LONGEST_BACKOFF_S, 2.0 ** (failures - 1)) if failures > 0 else 0.0


def remember(picture: Picture) -> dict[str, Note]:
    """The notes brought up to date with what is seen now; forgets VMs that are neither here nor ours."""
    notes = {
        uuid: _remembered(picture, uuid, picture.note(uuid)) for uuid in {*picture.vms, *picture.domains}
    }
    return {**notes, "node": picture.note("node")}


def _remembered(picture: Picture, uuid: str, note: Note) -> Note:
    now, vm = picture.now, picture.vms.get(uuid)
    note = _seen(picture, uuid, vm, note)
    if vm is not None and vm.status.failures != note.failures:
        failures = vm.status.failures
        pause = backoff_s(failures) if failures > note.failures else 0.0
        note = replace(note, failures=failures, not_before=now + pause)
    if vm is None or not _is_mine(vm, picture.me):
        return replace(note, asked_first=None, asked_last=None, waiting_since=None, waiting_for=-1)
    note = _still_unplugging(vm, picture.domains.get(uuid), note)
    if _wanted_end(vm, picture.me) is None and not _leaves_by_shutdown(vm, picture.me):
        note = replace(note, asked_first=None, asked_last=None)
    if vm.spec.node in (None, picture.me.node):
        stay_until = now + RETRY_S if note.waiting_for >= 0 else note.stay_until
        return replace(note, waiting_since=None, waiting_for=-1, stay_until=stay_until)
    if note.waiting_since is None or note.waiting_for != vm.spec.moves:
        return replace(note, waiting_since=now, waiting_for=vm.spec.moves)
    return note


def _still_unplugging(vm: VM, domain: Domain | None, note: Note) -> Note:
    has = {one.device for one in domain.devices} if domain is not None else set()
    changing = {one.device for one in under_way(vm.spec, vm.status)}
    if not note.unplugging or note.unplugging in has & changing:
        return note
    return replace(note, unplugging="")


def _seen(picture: Picture, uuid: str, vm: VM | None, note: Note) -> Note:
    """Since when the domain is here, or ours and gone; and how it ended, as long as that can be of use."""
    now = picture.now
    if uuid in picture.domains:
        since = note.running_since if note.running_since is not None else now
        # An event of this very round is newer than the list of domains.
        ended = note.ended if note.ended_at >= now else None
        paused = _paused_since(picture.domains[uuid], note, now)
        return replace(
            note, running_since=since, paused_since=paused, gone_since=None, ended=ended, cut_off=False
        )
    if vm is None or not _is_mine(vm, picture.me):
        is_expected = vm is not None and vm.spec.node == picture.me.node
        return replace(note, running_since=None, gone_since=None, ended=note.ended if is_expected else None)
    if uuid in picture.busy:
        return replace(note, running_since=None, gone_since=None)
    return replace(note, running_since=None, gone_since=now if note.gone_since is None else note.gone_since)


def _paused_since(domain: Domain, note: Note, now: float) -> float | None:
    if domain.state is not DomainState.PAUSED:
        return None
    return now if note.paused_since is None else note.paused_since


def plan(picture: Picture) -> Plan:
    """Every action that is due and whose lane is free."""
    result = Plan()
    for uuid in sorted({*picture.vms, *picture.domains}, key=lambda uuid: _order(picture, uuid)):
        if uuid in picture.busy:
            continue
        action = _plan_vm(picture, uuid, result)
        if action is not None and not _over_limit(picture, action, result):
            result.actions.append(action)
    node_action = None if "node" in picture.busy else _plan_node(picture, result)
    if node_action:
        result.actions.append(node_action)
    return result


def _order(picture: Picture, uuid: str) -> tuple[int, str]:
    """Who starts first where not all may at once; domains of which nothing is known before all."""
    vm = picture.vms.get(uuid)
    return start_order(vm.spec) if vm is not None else (-maxsize, uuid)


def _over_limit(picture: Picture, action: Action, result: Plan) -> bool:
    """Only so many starts and migrations at once; the next plan, when one of them is done, has the rest."""
    limits = {Migrate: picture.cluster.migrations_at_once, Start: picture.cluster.starts_at_once}
    limit = limits.get(type(action))
    if limit is None:
        return False
    going_on = [*picture.busy.values(), *result.actions]
    return sum(type(other) is type(action) for other in going_on) >= limit


def _is_mine(vm: VM, me: Owner) -> bool:
    return vm.status.owner is not None and vm.status.owner.node == me.node


def _plan_vm(picture: Picture, uuid: str, result: Plan) -> Action | None:
    vm, domain = picture.vms.get(uuid), picture.domains.get(uuid)
    if vm is None:
        if domain is not None and domain.digest and domain.state is not DomainState.INCOMING:
            return StopStray(uuid, None, "no such VM is known")
        return None
    if _is_mine(vm, picture.me):
        return _plan_running(picture, vm, domain, result) if domain else _ended(picture, vm, result)
    if domain is not None:
        return _plan_foreign(picture, vm, domain)
    if vm.status.owner is not None:
        return _plan_arrival(picture, vm, result)
    return _plan_idle(picture, vm, result)


# A domain that is here and ours


def _plan_running(picture: Picture, vm: VM, domain: Domain, result: Plan) -> Action | None:
    if vm.status.owner != picture.me:
        return Commit(vm, None, _adopted(picture.me, vm, domain), "adopted")
    if domain.state is DomainState.INCOMING:
        result.wake(picture.now + LOOK_AGAIN_S)  # its source is gone: libvirt ends it, or it runs
        return None
    if domain.migrating:
        return AbortJob(vm)
    if domain.silent and vm.status.migration is not None and vm.spec.power is Power.STARTED:
        result.wake(picture.now + LOOK_AGAIN_S)  # it may be migrating still
        return None
    if domain.state is DomainState.CRASHED:
        return Destroy(vm, vm.status.state, "the guest crashed")
    ending = _wanted_end(vm, picture.me)
    if ending:
        return _plan_end(picture, vm, ending, result)
    if _is_to_leave(vm, picture.me):
        return _plan_departure(picture, vm, result)
    return _plan_steady(picture, vm, domain, result)


def _adopted(me: Owner, vm: VM, domain: Domain) -> VMStatus:
    """In this life of the daemon. A migration that still goes on stays written down: it may succeed yet."""
    status = replace(vm.status, owner=me)
    if status.migration is None or domain.migrating or domain.silent:
        return status
    return replace(status, state=State.START, migration=None)


def _is_to_leave(vm: VM, me: Owner) -> bool:
    return vm.spec.node not in (None, me.node)


def _wanted_end(vm: VM, me: Owner) -> State | None:
    """Why the guest is to be shut down. Once it has been asked to, the only way back is a new start."""
    if vm.spec.power is not Power.STARTED:
        return State.SHUTDOWN
    if vm.spec.restarts > vm.status.restarts:
        return State.RESTART
    if _was_asked(vm.status):
        return State.MIGRATE if _is_to_leave(vm, me) else State.RESTART
    return None


def _was_asked(status: VMStatus) -> bool:
    if status.state is State.MIGRATE:
        return status.migration is None
    return status.state in (State.SHUTDOWN, State.RESTART)


def _plan_end(picture: Picture, vm: VM, state: State, result: Plan) -> Action | None:
    """Ask the guest, ask it again, and after the timeout do not ask any more."""
    note, now = picture.note(vm.spec.uuid), picture.now
    if vm.spec.force and vm.spec.power is not Power.STARTED:
        return Destroy(vm, state, "it is to stop at once")
    if note.asked_first is None or note.asked_last is None:
        return Shutdown(vm, state)
    deadline = note.asked_first + (vm.spec.shutdown_timeout_s or picture.cluster.shutdown_timeout_s)
    if now >= deadline:
        return Destroy(vm, state, "the guest did not shut down in time")
    if now >= note.asked_last + ASK_AGAIN_S:
        return Shutdown(vm, state)
    result.wake(min(deadline, note.asked_last + ASK_AGAIN_S))
    return None


def _plan_steady(picture: Picture, vm: VM, domain: Domain, result: Plan) -> Action | None:
    """It runs where it should: publish what differs."""
    status, note = vm.status, picture.note(vm.spec.uuid)
    reason = _why_paused(picture, domain, note, result)
    if status.state is State.START and status.reason.startswith("paused") != bool(reason):
        return Commit(vm, None, replace(status, reason=reason), reason or "the guest goes on")
    if status.state is not State.START or status.attempts < vm.spec.attempts or status.migration is not None:
        running = replace(status, state=State.START, attempts=vm.spec.attempts, migration=None)
        return Commit(vm, None, running, "it runs")
    is_known = domain.digest not in ("", domainxml.UNREADABLE)
    if is_known and (change := _plan_devices(picture, vm, domain, result)):
        return change
    if status.failures and note.running_since is not None:
        if picture.now >= note.running_since + GOOD_RUN_S:
            return Commit(
                vm, None, replace(status, failures=0), "it has run long enough to forget its failures"
            )
        result.wake(note.running_since + GOOD_RUN_S)
    return _came_home(vm, picture.me)


def _why_paused(picture: Picture, domain: Domain, note: Note, result: Plan) -> str:
    """Worth telling; empty: it runs, or is about to again."""
    if domain.state is not DomainState.PAUSED:
        return ""
    since = picture.now if note.paused_since is None else note.paused_since
    if domain.reason == ON_REQUEST and picture.now < since + PAUSE_S:
        result.wake(since + PAUSE_S)
        return ""
    return f"paused by QEMU: {domain.reason}"


def _still_refused(vm: VM, domain: Domain) -> tuple[Refusal, ...]:
    """As long as it is wanted, and has not come about by itself."""
    return vm.status.refused and tuple(
        one
        for one in vm.status.refused
        if one.change in vm.spec.live and not one.change.is_made(domain.devices)
    )


def _named(domain: Domain) -> str:
    said = ", ".join(f"{one.mac} in {one.network}" for one in domain.interfaces)
    drives = "".join(f", the disk {one.source} as {one.target}" for one in domain.drives)
    return (f"the interfaces {said}" if said else "no interface") + drives


def _plan_devices(picture: Picture, vm: VM, domain: Domain, result: Plan) -> Action | None:
    """Publish which it has, and change what need not wait for the next start.

    Not while it is paused; one that moves does it there. What it is known as comes before what is published
    of it: that nothing waits for a start is said together with the change that made it so.
    """
    wanted = _wanted_now(vm, domain)
    if wanted is not None and domain.digest != wanted.digest and _is_as_wanted(domain, wanted):
        return Mark(vm)
    refused = _still_refused(vm, domain)
    known = replace(
        vm.status,
        digest=domain.digest,
        interfaces=domain.interfaces,
        drives=domain.drives,
        refused=refused,
    )
    if known != vm.status:
        return Commit(vm, None, known, f"it has {_named(domain)}")
    if wanted is None:
        return None
    has = {one.device for one in domain.devices}
    for change in under_way(vm.spec, vm.status):
        if change.device in has:
            if action := _plan_detach(picture, vm, change, result):
                return action
        elif _can_come(picture, domain, wanted, change) and not _without_ceph(picture, vm):
            return Attach(vm, domain, change.device)
    return None


def _can_come(picture: Picture, domain: Domain, wanted: domainxml.Shape, change: Change) -> bool:
    """Its bridge is there; or the disk that had its name has gone."""
    taken = {one.target for one in domain.drives}
    return any(
        one.device == change.device and one.bridge in picture.bridges for one in wanted.interfaces
    ) or any(one.device == change.device and one.target not in taken for one in wanted.drives)


def _wanted_now(vm: VM, domain: Domain) -> domainxml.Shape | None:
    if not vm.spec.live or domain.silent or domain.state is not DomainState.RUNNING:
        return None
    try:
        return domainxml.shape(vm.spec.definition)
    except Invalid:
        return None


def _is_as_wanted(domain: Domain, wanted: domainxml.Shape) -> bool:
    return domain.rest == wanted.rest and {*domain.devices} == {*wanted.devices}


def _plan_detach(picture: Picture, vm: VM, change: Change, result: Plan) -> Action | None:
    """Ask the guest, ask it again, and after a while do not ask any more; one device after the other."""
    note, now = picture.note(vm.spec.uuid), picture.now
    if not note.unplugging:
        return Detach(vm, change.device)
    if note.unplugging != change.device:
        return None
    if now >= note.unplug_first + GIVE_UP_S:
        return refuse(vm, change, f"its guest has not given it up within {GIVE_UP_S:g} s")
    if now >= note.unplug_last + ASK_AGAIN_S:
        return Detach(vm, change.device)
    result.wake(min(note.unplug_first + GIVE_UP_S, note.unplug_last + ASK_AGAIN_S))
    return None


def refuse(vm: VM, change: Change, why: str) -> Commit:
    """It waits for the next start."""
    others = tuple(one for one in vm.status.refused if one.device != change.device)
    refused = (*others, Refusal(change.device, change.digest, why))
    return Commit(vm, None, replace(vm.status, refused=refused), f"{change.device}: {why}")


def _came_home(vm: VM, me: Owner) -> Commit | None:
    """A home is written down only for one that is away."""
    if vm.spec.home != me.node or vm.spec.node != me.node:
        return None
    return Commit(vm, replace(vm.spec, home=None), None, "it is at home again")


def _leaves_by_shutdown(vm: VM, me: Owner) -> bool:
    return _is_to_leave(vm, me) and vm.spec.move_method is Method.SHUTDOWN


def _plan_departure(picture: Picture, vm: VM, result: Plan) -> Action | None:
    """It runs here and is to run elsewhere: not before the other node has said that it can."""
    note = picture.note(vm.spec.uuid)
    target = _answer_to(picture, vm)
    if target is None:
        since = note.waiting_since if note.waiting_since is not None else picture.now
        if picture.now >= since + ANSWER_TIMEOUT_S:
            return take_back(picture.me, vm, f"{vm.spec.node} does not answer")
        result.wake(since + ANSWER_TIMEOUT_S)
        return None
    if target.refused:
        return take_back(picture.me, vm, f"{target.node} refused: {target.refused}")
    if _leaves_by_shutdown(vm, picture.me):
        return _plan_end(picture, vm, State.MIGRATE, result)
    return Migrate(vm, target)


def _answer_to(picture: Picture, vm: VM) -> Target | None:
    found = picture.targets.get(vm.spec.uuid)
    if found and found[0].node == vm.spec.node and found[0].moves == vm.spec.moves:
        return found[0]
    return None


def take_back(me: Owner, vm: VM, why: str) -> Commit:
    """The VM stays where it runs; the intent to move it is withdrawn, with the reason."""
    home = None if vm.spec.home == me.node else vm.spec.home
    spec = move(vm.spec, me.node, home=home)
    reason = f"not moved to {vm.spec.node}: {why}"
    return Commit(vm, spec, replace(vm.status, state=State.START, migration=None, reason=reason), reason)


# A domain that is gone


def _ended(picture: Picture, vm: VM, result: Plan) -> Action | None:
    """Ours, and libvirt does not list it: give up ownership and say why it ended."""
    note = picture.note(vm.spec.uuid)
    if note.ended is None:
        due = (note.gone_since if note.gone_since is not None else picture.now) + EVENT_GRACE_S
        if picture.now < due:
            result.wake(due)
            return None
    return release(picture, vm, note.ended)


def release(picture: Picture, vm: VM, ended: Ended | None) -> Commit:
    """The transaction after a domain has been seen gone."""
    if vm.status.migration is not None and ended in MAY_HAVE_LEFT:
        return _left_to_target(picture, vm, vm.status.migration)
    spec, status = (
        vm.spec,
        replace(vm.status, owner=None, migration=None, interfaces=(), drives=(), refused=()),
    )
    if spec.power is not Power.STARTED:
        return Commit(
            vm, None, replace(status, state=State.STOP, reason="", failures=0, digest=""), "it has stopped"
        )
    again = replace(status, state=State.STARTING, reason="")
    if spec.restarts > status.restarts or spec.attempts > status.attempts or _was_asked(vm.status):
        return Commit(vm, None, again, "it has stopped to start again")
    if _is_to_leave(vm, picture.me):
        return Commit(vm, None, again, f"it has stopped to start on {spec.node}")
    if vm.status.state is State.STARTING:
        return Commit(vm, None, again, "its start was interrupted")
    if picture.note(spec.uuid).cut_off:
        return Commit(vm, None, replace(again, reason=CUT_OFF), CUT_OFF)
    if ended is Ended.SHUTDOWN:
        stopped = replace(
            status, state=State.STOP, reason="the guest powered itself off", failures=0, digest=""
        )
        return Commit(vm, replace(spec, power=Power.STOPPED), stopped, stopped.reason)
    return _failed(picture, vm, ENDED_WORDS[ended], for_good=ended is Ended.MIGRATED)


def _left_to_target(picture: Picture, vm: VM, migration: Migration) -> Commit:
    """It went while it was migrating, nobody here knows how: only the target can tell if it runs there."""
    answer = _answer_to(picture, vm)
    known = answer is not None and answer.node == migration.target
    owner = Owner(migration.target, answer.incarnation if answer is not None and known else 0)
    status = replace(vm.status, owner=owner, state=State.START, migration=None, reason="")
    return Commit(vm, None, status, f"it left for {migration.target}")


MAY_HAVE_LEFT = (None, Ended.MIGRATED, Ended.DESTROYED, Ended.FAILED)
"""While it migrated. What is left here of a VM that runs elsewhere already can still be ended or fail, as by
who has lost contact; a guest that powers itself off or panics runs here."""
CUT_OFF = "its node had lost contact to the cluster and ended it"
ENDED_WORDS: dict[Ended | None, str] = {
    None: "it ended while nobody looked",
    Ended.CRASHED: "the guest crashed",
    Ended.FAILED: "QEMU failed",
    Ended.DESTROYED: "QEMU was ended from outside",
    Ended.MIGRATED: "it was moved from outside",
    Ended.SHUTDOWN: "the guest powered itself off",
}


def _failed(picture: Picture, vm: VM, why: str, *, for_good: bool = False) -> Commit:
    failures = vm.status.failures + 1
    given_up = for_good or failures >= picture.cluster.restart_limit
    reason = f"{why} ({failures} times in a row)" if failures > 1 else why
    status = replace(
        vm.status,
        state=State.FAIL if given_up else State.STARTING,
        owner=None,
        migration=None,
        interfaces=(),
        drives=(),
        refused=(),
        reason=reason,
        failures=failures,
    )
    return Commit(vm, None, status, reason)


def start_failed(cluster: ClusterSpec, vm: VM, why: str, *, retryable: bool) -> VMStatus:
    """The status after a start that did not succeed, QEMU being gone."""
    failures = vm.status.failures + 1
    given_up = not retryable or failures >= cluster.restart_limit
    return replace(
        vm.status,
        state=State.FAIL if given_up else State.STARTING,
        owner=None,
        interfaces=(),
        drives=(),
        reason=f"cannot start: {why}",
        failures=failures,
    )


# A domain that is here and not ours


def _plan_foreign(picture: Picture, vm: VM, domain: Domain) -> Action | None:
    if domain.state is DomainState.INCOMING:
        return None
    if vm.status.owner is None and _is_wanted_here(vm, picture.me):
        status = replace(vm.status, owner=picture.me, state=State.START, reason="", migration=None)
        return Commit(vm, None, status, "it runs already")
    why = stray(picture.me, vm)
    return StopStray(vm.spec.uuid, vm, why) if why else None


def _is_wanted_here(vm: VM, me: Owner) -> bool:
    return vm.spec.node == me.node and vm.spec.power is Power.STARTED


def stray(me: Owner, vm: VM) -> str:
    """Why a domain of this VM that runs here must be ended; empty if it may be here."""
    owner, migration = vm.status.owner, vm.status.migration
    if owner is None:
        return "" if _is_wanted_here(vm, me) else "it is owned by nobody"
    if owner.node == me.node or (migration is not None and migration.target == me.node):
        return ""
    return f"it is owned by {owner.node}"


# A VM that is expected here


def _plan_arrival(picture: Picture, vm: VM, result: Plan) -> Action | None:
    """Somebody else runs it and it is to come here: say whether it can."""
    if not _is_wanted_here(vm, picture.me):
        return None
    found = picture.targets.get(vm.spec.uuid)
    wanted = (picture.me.node, vm.spec.moves, picture.me.incarnation)
    if found and (found[0].node, found[0].moves, found[0].incarnation) == wanted:
        return None
    if _without_ceph(picture, vm) == NOT_LOOKED:
        return None  # a refusal would be final for this move; its owner waits a while for an answer
    answer = Target(*wanted, refused=refusal(picture, vm, result))
    return Answer(vm, answer, found[1] if found else None)


def refusal(picture: Picture, vm: VM, result: Plan) -> str:
    """Why this node cannot take the VM, which runs elsewhere, now; empty if it can."""
    spec = vm.spec
    if picture.node.wanted is not Wanted.READY:
        return "it is flushed"
    if why := _without_ceph(picture, vm):
        return why
    answered = {
        action.vm.spec.uuid
        for action in (*picture.busy.values(), *result.actions)
        if isinstance(action, Answer) and not action.target.refused
    }
    promised = sum(
        other.spec.memory_mib
        for uuid, other in picture.vms.items()
        if uuid != spec.uuid and _is_promised(picture, uuid, other, answered)
    )
    free = picture.memory_free_mib - promised
    if spec.memory_mib > free:
        return f"{spec.memory_mib} MiB do not fit its free {free} MiB"
    return missing_bridge(vm, picture.bridges)


def _without_ceph(picture: Picture, vm: VM) -> str:
    """Why this VM cannot begin here, as one that uses Ceph; empty if it can."""
    if not picture.ceph_problem:
        return ""
    try:
        return picture.ceph_problem if domainxml.uses_ceph(vm.spec.definition) else ""
    except Invalid:
        return ""  # its start says so


def _is_promised(picture: Picture, uuid: str, vm: VM, answered: set[str]) -> bool:
    """It was told, or is being told right now, that it may come."""
    found = picture.targets.get(uuid)
    coming = vm.spec.node == picture.me.node and vm.status.owner is not None and not _is_mine(vm, picture.me)
    told = found is not None and found[0].node == picture.me.node and not found[0].refused
    return coming and (told or uuid in answered)


def missing_bridge(vm: VM, bridges: frozenset[str]) -> str:
    try:
        needed = domainxml.bridges(vm.spec.definition, vm.status.interfaces)
    except Invalid as error:
        return f"its definition is unreadable: {error}"
    missing = [bridge for bridge in needed if bridge not in bridges]
    return f"it has no bridge {missing[0]}" if missing else ""


def _plan_idle(picture: Picture, vm: VM, result: Plan) -> Action | None:
    """Nobody runs it."""
    spec, status, note = vm.spec, vm.status, picture.note(vm.spec.uuid)
    if came_home := _came_home(vm, picture.me):
        return came_home
    if not _is_wanted_here(vm, picture.me) or picture.node.wanted is not Wanted.READY or spec.leaving:
        return None  # of a node that is flushed it is evacuated instead
    if status.state is State.FAIL and status.attempts == spec.attempts:
        return None
    if status.attempts == spec.attempts and picture.now < note.not_before:
        result.wake(note.not_before)
        return None
    if why := _without_ceph(picture, vm):
        return _waits(vm, why)
    return Start(vm)


def _waits(vm: VM, why: str) -> Commit | None:
    """Said once: whoever knows that the problem has changed has the node plan again."""
    reason = f"waits: {why}"
    if why == NOT_LOOKED or vm.status.reason == reason:
        return None
    return Commit(vm, None, replace(vm.status, reason=reason), reason)


# The node itself


def _plan_node(picture: Picture, result: Plan) -> NodeAction | None:
    if picture.node.wanted is Wanted.FLUSHED:
        return _plan_flush(picture, result)
    if not picture.flushed:
        return None
    away = [vm for vm in picture.vms.values() if _is_to_fetch(picture, vm)]
    away.sort(key=lambda vm: start_order(vm.spec))
    ready = tuple(vm for vm in away if not _without_ceph(picture, vm))
    if len(ready) == len(away):
        return FetchBack(ready)
    result.problem = f"not all of its VMs are fetched home yet: {picture.ceph_problem}"
    return FetchBack(ready, is_all=False) if ready else None


def _is_to_fetch(picture: Picture, vm: VM) -> bool:
    here = picture.me.node
    at_home_here = vm.spec.home == here and vm.spec.node != here
    if vm.spec.leaving:
        return False
    to_autostart = vm.spec.autostart and vm.spec.node == here and vm.spec.power is Power.STOPPED
    return at_home_here or to_autostart


def _plan_flush(picture: Picture, result: Plan) -> NodeAction | None:
    """Running VMs whose place is still here; as many as may move at once. Stopped ones may stay."""
    to_leave, leaving = [], 0
    for uuid, vm in sorted(picture.vms.items()):
        if (
            vm.spec.node == picture.me.node
            and vm.spec.power is Power.STARTED
            and vm.status.owner in (None, picture.me)
        ):
            to_leave.append((uuid, vm))
        elif _is_mine(vm, picture.me):
            leaving += 1
    room = picture.cluster.migrations_at_once - leaving
    if not picture.flushed:
        return Evacuate(())
    if not to_leave or room <= 0:
        return None
    due = picture.note("node").not_before
    if picture.now < due:
        result.wake(due)
        return None
    ready = []
    for uuid, vm in to_leave:
        rests_until = picture.note(uuid).stay_until
        if picture.now < rests_until:
            result.wake(rests_until)
        elif uuid not in picture.busy:
            ready.append(vm)
    return Evacuate(tuple(ready[:room])) if ready else None
