"""The planner on random pictures: it is deterministic, keeps the rules of safety, and comes to rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from pvc.cluster import domainxml
from pvc.cluster.node import Wanted
from pvc.cluster.view import VM
from pvc.cluster.vm import (
    Change,
    Interface,
    Method,
    Migration,
    Owner,
    Power,
    State,
    Target,
    VMSpec,
    VMStatus,
    move,
    settled,
    under_way,
)
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
from pvc.node.plan import Note, Picture, plan, remember, start_failed, take_back
from tests.unit.node.pictures import EARLIER_ME, ME, NOW, OTHER, XML, domain, picture, spec, vm

UUIDS = [f"{number:08d}-0000-4000-8000-000000000000" for number in range(3)]
(DEFINED,) = domainxml.shape(XML).interfaces
OLD = Interface("52:54:00:00:00:01", "br0", "virtio", "br0", "old")
ROUNDS = 150
"""More than any chain of back-offs, refusals and fallbacks needs."""


@dataclass(frozen=True)
class World:
    """What the pure model does when it is acted upon."""

    starts: bool
    obeys: bool
    """The guest, when it is asked to shut down."""
    migrates: bool
    answer: str | None
    """Of every other node: nothing, yes (empty), or why not."""


owners = st.sampled_from([None, ME, EARLIER_ME, OTHER])
targets = st.builds(
    Target,
    st.sampled_from(["n1", "n2"]),
    st.integers(0, 2),
    st.integers(1, 8),
    st.sampled_from(["", "it is full"]),
)
times = st.one_of(st.none(), st.floats(NOW - 400, NOW))


def specs(uuid: str) -> st.SearchStrategy[VMSpec]:
    return st.builds(
        lambda **given: spec(uuid=uuid, name=f"vm{uuid[7]}", **given),
        power=st.sampled_from(Power),
        force=st.booleans(),
        node=st.sampled_from([None, "n1", "n1", "n2", "n3"]),
        home=st.sampled_from([None, "n1", "n2"]),
        moves=st.integers(0, 2),
        move_method=st.sampled_from(Method),
        restarts=st.integers(0, 2),
        attempts=st.integers(0, 2),
        autostart=st.booleans(),
        live=st.lists(
            st.sampled_from([Change(DEFINED.mac, DEFINED.digest), Change(OLD.mac)]), max_size=2, unique=True
        ).map(tuple),
    )


statuses = st.builds(
    VMStatus,
    state=st.sampled_from(State),
    owner=owners,
    restarts=st.integers(0, 2),
    attempts=st.integers(0, 2),
    failures=st.integers(0, 5),
    migration=st.sampled_from([None, None, Migration("n1"), Migration("n2")]),
)


def domains(uuid: str) -> st.SearchStrategy[Domain]:
    return st.builds(
        lambda state, migrating, digest, has: domain(
            state, uuid=uuid, migrating=migrating, digest=digest, interfaces=has
        ),
        st.sampled_from(DomainState),
        st.booleans(),
        st.sampled_from(["d", "d", ""]),
        st.sampled_from([(), (DEFINED,), (OLD,), (DEFINED, OLD), (replace(DEFINED, digest="older"),)]),
    )


notes = st.builds(
    Note,
    running_since=times,
    gone_since=times,
    ended=st.one_of(st.none(), st.sampled_from(Ended)),
    ended_at=st.floats(NOW - 400, NOW),
    asked_first=times,
    asked_last=times,
    waiting_since=times,
    waiting_for=st.integers(-1, 2),
    failures=st.integers(0, 5),
    not_before=st.floats(NOW - 60, NOW + 60),
)


@st.composite
def pictures(draw: st.DrawFn) -> Picture:
    vms = {
        uuid: vm(draw(specs(uuid)), draw(statuses))
        for uuid in UUIDS
        if draw(st.sampled_from([True, True, False]))
    }
    return picture(
        vms=vms,
        domains={uuid: draw(domains(uuid)) for uuid in UUIDS if draw(st.booleans())},
        notes={uuid: draw(notes) for uuid in UUIDS if draw(st.booleans())},
        targets={uuid: (draw(targets), 1) for uuid in vms if draw(st.booleans())},
        wanted=draw(st.sampled_from(Wanted)),
        flushed=draw(st.booleans()),
    )


worlds = st.builds(
    World, st.booleans(), st.booleans(), st.booleans(), st.sampled_from([None, "", "", "it is full"])
)


def check_safe(seen: Picture, actions: list[Action | NodeAction]) -> None:
    for action in actions:
        match action:
            case Start(found):
                assert found.status.owner is None
                assert found.spec.uuid not in seen.domains
                assert found.spec.node == ME.node
                assert found.spec.power is Power.STARTED
            case Commit(found, _, new) if new is not None:
                here = found.spec.uuid in seen.domains
                was, is_now = found.status.owner, new.owner
                if was is None:
                    assert is_now is None or (is_now == ME and here)
                else:
                    assert was.node == ME.node
                    assert is_now is not None or not here
                    if is_now is None:
                        ended = seen.note(found.spec.uuid).ended
                        assert found.status.migration is None or ended not in (None, Ended.MIGRATED)
                    elif is_now.node != ME.node:
                        assert found.status.migration == Migration(is_now.node)
            case Attach(found) | Detach(found) | Mark(found):
                assert found.status.owner == ME
                assert found.spec.node in (None, ME.node)
                assert found.spec.power is Power.STARTED
                here_now = seen.domains[found.spec.uuid]
                assert (here_now.state, here_now.migrating) == (DomainState.RUNNING, False)
                if isinstance(action, Attach):
                    assert action.device not in {one.device for one in here_now.interfaces}
            case StopStray(uuid, found, _) if found is not None:
                assert found.status.owner is None or found.status.owner.node != ME.node
                assert seen.domains[uuid].state is not DomainState.INCOMING


@settings(max_examples=400, deadline=None)
@given(pictures())
def test_plan_is_deterministic_and_safe(seen: Picture) -> None:
    seen = replace(seen, notes=remember(seen))
    first, second = plan(seen), plan(replace(seen, vms=dict(reversed(list(seen.vms.items())))))
    assert first == second
    check_safe(seen, first.actions)
    assert first.wake_at > seen.now


@settings(max_examples=400, deadline=None)
@given(pictures(), worlds)
def test_plan_comes_to_rest(seen: Picture, world: World) -> None:
    can_be_flushed = world.answer == "" and (world.migrates or world.obeys)
    for _ in range(ROUNDS):
        seen = replace(seen, notes=remember(seen))
        planned = plan(seen)
        check_safe(seen, planned.actions)
        assert planned.wake_at > seen.now
        for action in planned.actions:
            seen = acted(seen, world, action)
        before, seen = seen, answered(arrived(seen, world), world)
        if not planned.actions and seen == before:
            if planned.wake_at == float("inf"):
                break
            seen = replace(seen, now=planned.wake_at)
    else:
        # A flush that cannot succeed tries again for ever, at long intervals.
        assert seen.node.wanted is Wanted.FLUSHED
        assert not can_be_flushed or any(
            _only_live(found) and not world.migrates for found in seen.vms.values()
        )
        return
    for found in seen.vms.values():
        check_rest(seen, world, found)


def _only_live(found: VM) -> bool:
    return Method.LIVE in (found.spec.move_method, found.spec.method)


def check_rest(seen: Picture, world: World, found: VM) -> None:
    """Nothing that this node could do is left."""
    here = seen.domains.get(found.spec.uuid)
    owner = found.status.owner
    if owner is None or owner.node == ME.node:
        assert found.spec.node != ME.node or found.spec.home != ME.node
    if owner is not None and owner.node == ME.node:
        assert here is not None
        assert found.spec.node in (None, ME.node)
        assert found.spec.power is Power.STARTED
        can_change = here.state is DomainState.RUNNING and here.digest
        waits = not can_change and under_way(found.spec, found.status)
        assert found.spec.node is None or waits or settled(found.spec, found.status)
    elif owner is None:
        assert here is None or here.state is DomainState.INCOMING
        wanted = found.spec.node == ME.node and found.spec.power is Power.STARTED
        assert not wanted or settled(found.spec, found.status) or seen.node.wanted is Wanted.FLUSHED


# The pure model


def acted(seen: Picture, world: World, action: Action | NodeAction) -> Picture:
    match action:
        case Commit(found, new_spec, new_status):
            return with_vm(seen, found, new_spec, new_status)
        case Answer(found, target):
            return replace(seen, targets={**seen.targets, found.spec.uuid: (target, 1)})
        case Start(found):
            return started(seen, world, found)
        case Shutdown(found, state):
            return asked(seen, world, found, state)
        case Destroy(found, state):
            seen = with_vm(seen, found, None, replace(found.status, state=state, migration=None))
            return without(seen, found.spec.uuid, Ended.DESTROYED)
        case StopStray(uuid):
            return without(seen, uuid, Ended.DESTROYED)
        case AbortJob(found):
            uuid = found.spec.uuid
            return replace(seen, domains={**seen.domains, uuid: replace(seen.domains[uuid], migrating=False)})
        case Attach(found, _, mac):
            return has(seen, found, lambda now: (*now, *(one for one in wanted(found) if one.mac == mac)))
        case Detach(found, mac):
            note = replace(seen.note(found.spec.uuid), unplugging=mac, unplug_last=seen.now)
            if seen.note(found.spec.uuid).unplugging != mac:
                note = replace(note, unplug_first=seen.now)
            seen = replace(seen, notes={**seen.notes, found.spec.uuid: note})
            gone = world.obeys
            return has(seen, found, lambda now: tuple(one for one in now if one.mac != mac or not gone))
        case Mark(found):
            return has(seen, found, lambda _: wanted(found))
        case Migrate(found, target):
            return migrated(seen, world, found, target)
        case Evacuate(found_vms):
            for found in found_vms:
                seen = with_vm(seen, found, move(found.spec, "n2", home="n1", method=found.spec.method), None)
            return replace(seen, flushed=True)
        case FetchBack(found_vms):
            for found in found_vms:
                seen = with_vm(seen, found, fetched(found.spec), None)
            return replace(seen, flushed=False)


def wanted(found: VM) -> tuple[Interface, ...]:
    return domainxml.shape(found.spec.definition).interfaces


def has(
    seen: Picture, found: VM, change: Callable[[tuple[Interface, ...]], tuple[Interface, ...]]
) -> Picture:
    uuid = found.spec.uuid
    now = change(seen.domains[uuid].interfaces)
    digest = domainxml.digest(found.spec.definition) if now == wanted(found) else seen.domains[uuid].digest
    changed = replace(seen.domains[uuid], interfaces=now, digest=digest)
    return replace(seen, domains={**seen.domains, uuid: changed})


def fetched(wanted: VMSpec) -> VMSpec:
    if wanted.node == ME.node:
        return replace(wanted, power=Power.STARTED, attempts=wanted.attempts + 1)
    return move(wanted, ME.node, home=ME.node)


def with_vm(seen: Picture, found: VM, new_spec: VMSpec | None, new_status: VMStatus | None) -> Picture:
    uuid = found.spec.uuid
    now = replace(
        found,
        spec=new_spec or found.spec,
        spec_version=found.spec_version + 1,
        status=new_status or found.status,
    )
    kept = now.status.owner == found.status.owner
    targets = seen.targets if kept else {key: value for key, value in seen.targets.items() if key != uuid}
    return replace(seen, vms={**seen.vms, uuid: now}, targets=targets)


def without(seen: Picture, uuid: str, ended: Ended) -> Picture:
    left = {key: value for key, value in seen.domains.items() if key != uuid}
    note = replace(seen.note(uuid), ended=ended, ended_at=seen.now)
    return replace(seen, domains=left, notes={**seen.notes, uuid: note})


def started(seen: Picture, world: World, found: VM) -> Picture:
    claimed = replace(
        found.status,
        owner=ME,
        state=State.START,
        restarts=found.spec.restarts,
        attempts=found.spec.attempts,
        migration=None,
    )
    claimed_vm = replace(found, status=claimed)
    if not world.starts:
        failed = start_failed(seen.cluster, claimed_vm, "no", retryable=True)
        return with_vm(seen, claimed_vm, None, failed)
    seen = with_vm(seen, found, None, claimed)
    return replace(seen, domains={**seen.domains, found.spec.uuid: domain(uuid=found.spec.uuid)})


def asked(seen: Picture, world: World, found: VM, state: State) -> Picture:
    uuid = found.spec.uuid
    seen = with_vm(seen, found, None, replace(found.status, state=state, migration=None))
    note = seen.note(uuid)
    first = seen.now if note.asked_first is None else note.asked_first
    seen = replace(seen, notes={**seen.notes, uuid: replace(note, asked_first=first, asked_last=seen.now)})
    return without(seen, uuid, Ended.SHUTDOWN) if world.obeys else seen


def migrated(seen: Picture, world: World, found: VM, target: Target) -> Picture:
    uuid = found.spec.uuid
    if world.migrates:
        owner = Owner(target.node, target.incarnation)
        seen = with_vm(
            seen, found, None, replace(found.status, owner=owner, state=State.START, migration=None)
        )
        return without(seen, uuid, Ended.MIGRATED)
    if found.spec.move_method is Method.NONE:
        wanted = move(found.spec, found.spec.node, home=found.spec.home, method=Method.SHUTDOWN)
        return with_vm(seen, found, wanted, replace(found.status, state=State.START, migration=None))
    back = take_back(ME, found, "no")
    return with_vm(seen, found, back.spec, back.status)


def arrived(seen: Picture, world: World) -> Picture:
    """Migrations to here end, one way or the other."""
    for uuid, one in seen.domains.items():
        if one.state is DomainState.INCOMING:
            if not world.migrates:
                return without(seen, uuid, Ended.FAILED)
            running = replace(one, state=DomainState.RUNNING, migrating=False)
            return replace(seen, domains={**seen.domains, uuid: running})
    return seen


def answered(seen: Picture, world: World) -> Picture:
    """Other nodes say whether VMs of ours may come."""
    if world.answer is None:
        return seen
    answers = {
        uuid: (Target(found.spec.node, found.spec.moves, 7, world.answer), 1)
        for uuid, found in seen.vms.items()
        if found.spec.node not in (None, ME.node) and found.spec.node is not None
    }
    return replace(seen, targets={**seen.targets, **answers})
