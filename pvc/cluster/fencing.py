"""What the primary does about nodes that are gone: pure, level-triggered, convergent.

Power is switched off only for a node that is gone, after a grace; VMs are released only by a receipt, or,
where all their disks are in Ceph, by proof that the node cannot write there any more; and the power comes
back only when nothing is owned by that life of the node any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pvc.cluster import domainxml, timeline
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.membership import Block, Fence, FenceState, StepKind, is_gone, is_suspect
from pvc.cluster.node import DaemonState, NodeSpec
from pvc.cluster.placement import Placement, explained
from pvc.cluster.view import VM, Node
from pvc.cluster.vm import Owner, Power, State, VMSpec, VMStatus, move, shown_state, start_order
from pvc.errors import Invalid

SETTLE_S = 3.0
"""After the store came back, for the other nodes to find it again too."""
LOOK_AGAIN_S = 0.5
"""For a power that takes its time to go off."""
LONGEST_BACKOFF_S = 30.0
KEPT = 100
"""Fences of the whole cluster; older ones are forgotten."""
DRILL_S = 60.0
"""Until the session of a node whose power was cut has ended."""
LOOK_STOPPED_S = 30.0
"""Between two looks at the power of a node that left cleanly."""
BLOCK_AGAIN_S = 1.0
"""While some OSD that is up does not know the block list yet, or does not answer."""
VERIFY_S = 30.0
"""Between two looks whether who is shut out still is."""
ASKED_TRIES = 3
"""Of a fence that somebody asked for, while the node lives."""


@dataclass(frozen=True, slots=True)
class Note:
    """What this judge remembers of one life of a node, on its own monotonic clock."""

    gone_since: float | None = None
    unseen_since: float | None = None
    """Read in this order: its status with `unseen_version`, then no session."""
    unseen_version: int | None = None
    last_try: float | None = None
    zero: float | None = None
    """Where the timeline of its fence begins."""
    on_failed: float | None = None
    """When its BMC last did not switch it on again."""
    block_try: float | None = None
    block_failed: str = ""
    blocking: Blocking | None = None
    marked_down: frozenset[int] = frozenset()
    """OSDs of it: once each, since one that lives stops when it is told so too often."""


@dataclass(frozen=True, slots=True)
class Blocking:
    """A map of Ceph that lists a node's addresses: it is proven when every OSD that is up in it knows it.

    Not an older one that lists them as well: where an OSD of the node is down since, those that do not know
    that yet would still carry out for it what it takes from a QEMU beside it.
    """

    version: int
    """Of the block's document."""
    epoch: int
    up: frozenset[int]


@dataclass(frozen=True, slots=True)
class Shoot:
    """Get evidence that this life of the node is over."""

    node: str
    fence: Fence
    version: int | None
    """None: there is no document yet."""
    only_looks: bool = False
    """Nobody switches it off, and nothing is said until there is evidence."""


@dataclass(frozen=True, slots=True)
class Isolate:
    """Put its addresses on Ceph's block list, or look whether every OSD knows by now."""

    node: str
    fence: Fence


@dataclass(frozen=True, slots=True)
class Verify:
    """Look whether its addresses are on Ceph's block list still."""

    node: str
    fence: Fence
    version: int
    """Of the block that says so."""


@dataclass(frozen=True, slots=True)
class Release:
    """Write what becomes of a VM of a node that is fenced, with the receipt checked."""

    vm: VM
    spec: VMSpec
    status: VMStatus
    node: Node
    fence: Fence
    version: int
    block: int | None = None
    """The version of the block that is checked instead of a receipt."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing is owned by it any more: switch on again what this cluster wants on, and close the receipt."""

    fence: Fence
    version: int
    bmc_of: NodeSpec | None
    """Whose power comes back; None: it stays as it is."""


@dataclass(frozen=True, slots=True)
class Excuse:
    """Nobody shoots, or not any more."""

    fence: Fence
    version: int
    why: str
    state: FenceState = FenceState.RETURNED


@dataclass(frozen=True, slots=True)
class Amend:
    """Write into a receipt what has become of its VMs since."""

    fence: Fence
    version: int


@dataclass(frozen=True, slots=True)
class Forget:
    """An old fence, of which nothing follows any more."""

    fence: Fence
    version: int


Duty = Shoot | Isolate | Verify | Release | Finish | Excuse | Amend | Forget


def lane(duty: Duty) -> str:
    """At most one duty of a node, and of a VM, at a time."""
    match duty:
        case Release():
            return duty.vm.spec.uuid
        case Isolate() | Verify():
            return f"block {duty.node}"  # not behind a BMC that is silent, nor the other way round
        case _:
            return f"fence {duty.fence.node}"


@dataclass(frozen=True, slots=True)
class Scene:
    """All that the judge decides from."""

    me: str
    cluster: ClusterSpec
    nodes: Mapping[str, Node]
    fences: Mapping[str, tuple[Fence, int]]
    vms: Mapping[str, VM]
    notes: Mapping[str, Note]
    busy: Mapping[str, Duty]
    now: float
    believed_from: float
    """Who is gone may be believed from then on: the store was away, and others may not be back yet."""
    wall: float = 0.0
    """Only to tell people."""
    blocks: Mapping[str, tuple[Block, int]] = field(default_factory=dict)

    def note(self, node: str, incarnation: int) -> Note:
        return self.notes.get(name_of(node, incarnation), Note())


@dataclass(slots=True)
class Duties:
    todo: list[Duty] = field(default_factory=list)
    wake_at: float = float("inf")

    def wake(self, at: float) -> None:
        self.wake_at = min(self.wake_at, at)


def name_of(node: str, incarnation: int) -> str:
    return f"{node}-{incarnation}"


def backoff_s(attempts: int) -> float:
    return min(LONGEST_BACKOFF_S, 2.0 ** (attempts - 1)) if attempts > 0 else 0.0


def remember(scene: Scene) -> dict[str, Note]:
    """The notes brought up to date: since when each node is gone."""
    known = {name_of(name, node.status.incarnation) for name, node in scene.nodes.items()}
    notes = {key: note for key, note in scene.notes.items() if key in known or key in scene.fences}
    for name, node in scene.nodes.items():
        key = name_of(name, node.status.incarnation)
        note = notes.get(key, Note())
        if not is_gone(node.status, node.alive):
            known_fence = scene.fences.get(key)
            is_asked = known_fence is not None and known_fence[0].state is not FenceState.RETURNED
            seen = replace(note, gone_since=None, unseen_since=None)
            notes[key] = seen if is_asked else Note()
        elif note.gone_since is None:
            notes[key] = replace(note, gone_since=scene.now)
    for key, (fence, _) in scene.fences.items():
        note = notes.get(key, Note())
        if fence.timeline and note.zero is None:
            notes[key] = replace(note, zero=timeline.taken_up(fence, scene.now, scene.wall))
    return notes


def is_counting(note: Note, node: Node, connected_since: float) -> bool:
    """A count of how long it was away goes on: neither it nor the judge's connection was back meanwhile."""
    since = note.unseen_since
    return since is not None and note.unseen_version == node.status_version and since >= connected_since


def quiet_at(note: Note, node: Node) -> float:
    """From when on nothing of it runs, on the judge's clock, if the count goes on until then."""
    promised = node.status.quiet_after_s
    if promised <= 0 or note.unseen_since is None:
        return float("inf")
    return note.unseen_since + promised


def is_quiet(note: Note, node: Node, connected_since: float, at: float) -> bool:
    """Proven by its promise. `at` is before a commit that succeeded: pvc.cluster.timing, part A."""
    return (
        is_gone(node.status, node.alive)
        and is_counting(note, node, connected_since)
        and at >= quiet_at(note, node)
    )


def duties(scene: Scene) -> Duties:
    """Every duty that is due and whose lane is free."""
    result = Duties()
    receipts: list[Receipt] = []
    for name, node in sorted(scene.nodes.items()):
        found = scene.fences.get(name_of(name, node.status.incarnation))
        _begin(scene, _of_node(scene, node, found, result), result)
        if found is None or not is_gone(node.status, node.alive):
            continue
        fence, version = found
        block = scene.blocks.get(name)
        if fence.state is FenceState.FENCED:
            receipts.append(Receipt(node, fence, version))
        elif block is not None and block[0].proves(fence.incarnation):
            receipts.append(Receipt(node, fence, version, block[1]))
            _begin(scene, _verified(scene, fence, block[1], result), result)
        else:
            _begin(scene, _isolated(scene, node, fence, result), result)
    if receipts:
        _recover(scene, receipts, result)
    for fence, version in scene.fences.values():
        _begin(scene, _of_the_past(scene, fence, version), result)
    _amend(scene, result)
    _sweep(scene, result)
    return result


@dataclass(frozen=True, slots=True)
class Receipt:
    """Why VMs of a node may go."""

    node: Node
    fence: Fence
    version: int
    block: int | None = None
    """The version of the block that is all there is: it holds for VMs that are in Ceph only."""

    def is_for(self, vm: VM) -> bool:
        return self.block is None or is_in_ceph_only(vm)


def is_in_ceph_only(vm: VM) -> bool:
    """Also as it runs: it may have been started with other disks than its definition has now. And nobody
    moves it."""
    try:
        defined = domainxml.shape(vm.spec.definition)
        runs = vm.status.digest, {one.device for one in vm.status.drives}
        is_as_defined = vm.status.owner is None or runs == (
            defined.digest,
            {one.device for one in defined.drives},
        )
        return is_as_defined and vm.status.migration is None and domainxml.is_all_in_ceph(vm.spec.definition)
    except Invalid:
        return False


def _isolated(scene: Scene, node: Node, fence: Fence, result: Duties) -> Isolate | None:
    """An attempt has come to its end and nothing better is known: it would have been shot by now. Whoever is
    switched off at once is never listed."""
    is_tried = fence.state in (FenceState.FENCING, FenceState.FAILED) and bool(fence.reason)
    if not is_tried or not is_suspect(node.status, node.alive) or node.spec.name == scene.me:
        return None
    if scene.cluster.maintenance and not (fence.asked_by or fence.drill):
        return None
    if not node.status.ceph_addresses or not any(
        _is_owned_by(vm, fence) and is_in_ceph_only(vm) for vm in scene.vms.values()
    ):
        return None
    note = scene.note(fence.node, fence.incarnation)
    since = max(scene.now if note.gone_since is None else note.gone_since, scene.believed_from)
    due = since + scene.cluster.fence_grace_s
    if note.block_try is not None:
        due = max(due, note.block_try + BLOCK_AGAIN_S)
    if scene.now < due:
        result.wake(due)
        return None
    return Isolate(node.spec.name, fence)


def _verified(scene: Scene, fence: Fence, version: int, result: Duties) -> Verify | None:
    """While VMs may go by it, or come to where they may."""
    if not any(_is_owned_by(vm, fence) for vm in scene.vms.values()):
        return None
    tried = scene.note(fence.node, fence.incarnation).block_try
    if tried is not None and scene.now < tried + VERIFY_S:
        result.wake(tried + VERIFY_S)
        return None
    return Verify(fence.node, fence, version)


def _begin(scene: Scene, duty: Duty | None, result: Duties) -> None:
    """A node's fences share its lane: the others have their turn when this one is done."""
    if duty is not None and lane(duty) not in {*scene.busy, *map(lane, result.todo)}:
        result.todo.append(duty)


def _of_the_past(scene: Scene, fence: Fence, version: int) -> Duty | None:
    """Fences of an earlier life of the node, or of a node that was removed."""
    node = scene.nodes.get(fence.node)
    if node is not None and node.status.incarnation == fence.incarnation:
        return None
    if fence.state is FenceState.FENCED:
        return None if fence.finished else Finish(_closed(scene, fence), version, None)
    if fence.state is FenceState.RETURNED:
        return None
    return Excuse(fence, version, "its daemon has started again" if node else "the node was removed")


def _of_node(scene: Scene, node: Node, found: tuple[Fence, int] | None, result: Duties) -> Duty | None:
    if found is None:
        suspect = Fence(node.spec.name, node.status.incarnation)
        return _suspected(scene, node, suspect, None, result) or _stopped(scene, node, suspect, None, result)
    fence, version = found
    if fence.state is FenceState.FENCED:
        return _fenced(scene, node, fence, version, result)
    if fence.asked_by and fence.state is not FenceState.RETURNED:
        return _asked(scene, node, fence, version, result)
    if fence.drill and fence.state is FenceState.SUSPECT and not is_suspect(node.status, node.alive):
        return _drilled(scene, fence, version, result)
    if fence.state is not FenceState.RETURNED and not is_suspect(node.status, node.alive):
        return Excuse(fence, version, "it is alive again")
    return _suspected(scene, node, fence, version, result) or _stopped(scene, node, fence, version, result)


def _suspected(scene: Scene, node: Node, fence: Fence, version: int | None, result: Duties) -> Shoot | None:
    """Gone, and for long enough."""
    if node.status_version is None or not is_suspect(node.status, node.alive):
        return None
    if (scene.cluster.maintenance and not fence.drill) or node.spec.name == scene.me:
        return None
    note = scene.note(fence.node, fence.incarnation)
    since = max(scene.now if note.gone_since is None else note.gone_since, scene.believed_from)
    if fence.state is FenceState.RETURNED:
        fence = Fence(fence.node, fence.incarnation)
    shoot, due = Shoot(node.spec.name, fence, version), since + scene.cluster.fence_grace_s
    if scene.now < due and _is_to_be_looked_at(node, fence, note, since):
        # A machine that is off comes back from nothing: the grace is for those that are on.
        if scene.now >= since:
            return replace(shoot, only_looks=True)
        result.wake(since)
    return _shot(scene, shoot, due, result)


def _is_to_be_looked_at(node: Node, fence: Fence, note: Note, since: float) -> bool:
    has_been = note.last_try is not None and note.last_try >= since
    return node.spec.bmc is not None and fence.attempts == 0 and not has_been


def _stopped(scene: Scene, node: Node, fence: Fence, version: int | None, result: Duties) -> Shoot | None:
    """It left cleanly, and VMs are still its own: is it off by now?"""
    if node.status.state is not DaemonState.STOP or not is_gone(node.status, node.alive):
        return None
    fence = Fence(fence.node, fence.incarnation, stopped=True)
    if scene.cluster.maintenance or not any(_is_owned_by(vm, fence) for vm in scene.vms.values()):
        return None
    note = scene.note(fence.node, fence.incarnation)
    since = max(scene.now if note.gone_since is None else note.gone_since, scene.believed_from)
    due = since + scene.cluster.fence_grace_s if note.last_try is None else note.last_try + LOOK_STOPPED_S
    if scene.now < due:
        result.wake(due)
        return None
    return Shoot(node.spec.name, fence, version, only_looks=True)


def _asked(scene: Scene, node: Node, fence: Fence, version: int, result: Duties) -> Duty | None:
    """A person's decision needs no suspicion; to go on for ever against a node that lives it is no reason."""
    gives_up = ""
    if node.spec.name == scene.me:
        gives_up = "it is the primary itself"
    elif fence.attempts >= ASKED_TRIES and not is_gone(node.status, node.alive):
        gives_up = f"{ASKED_TRIES} tries did not end it: {fence.reason}"
    if gives_up:
        is_said = fence.state is FenceState.FAILED
        return None if is_said else Excuse(fence, version, gives_up, FenceState.FAILED)
    return _shot(scene, Shoot(node.spec.name, fence, version), scene.now, result)


def _drilled(scene: Scene, fence: Fence, version: int, result: Duties) -> Excuse | None:
    """Its power was cut, and its session lives for a while."""
    cut_at = scene.note(fence.node, fence.incarnation).last_try
    if cut_at is None or scene.now < cut_at + DRILL_S:
        result.wake((scene.now if cut_at is None else cut_at) + DRILL_S)
        return None
    return Excuse(fence, version, "its power was cut, and its daemon lives: the BMC of another machine?")


def _shot(scene: Scene, shoot: Shoot, due: float, result: Duties) -> Shoot | None:
    note = scene.note(shoot.fence.node, shoot.fence.incarnation)
    if note.last_try is not None:
        is_failed = shoot.fence.state is FenceState.FAILED
        pause = backoff_s(shoot.fence.attempts) if is_failed else LOOK_AGAIN_S
        proven = quiet_at(note, scene.nodes[shoot.node])
        again = note.last_try + pause
        due = max(due, min(again, proven) if note.last_try < proven else again)
    if scene.now < due:
        result.wake(due)
        return None
    return shoot


def _fenced(scene: Scene, node: Node, fence: Fence, version: int, result: Duties) -> Finish | None:
    if fence.finished or any(_is_owned_by(vm, fence) for vm in scene.vms.values()):
        return None
    failed = scene.note(fence.node, fence.incarnation).on_failed
    if failed is not None and scene.now < failed + LOOK_STOPPED_S:
        result.wake(failed + LOOK_STOPPED_S)
        return None
    return Finish(_closed(scene, fence), version, node.spec)


def _closed(scene: Scene, fence: Fence) -> Fence:
    fenced_s, now_s = timeline.at(fence, StepKind.FENCED), _elapsed_s(scene, fence)
    took = 0.0 if fenced_s is None else round(max(0.0, now_s - fenced_s), 3)
    name = name_of(fence.node, fence.incarnation)
    return replace(timeline.told(fence, name, scene.vms.values(), now_s), finished=True, recovery_s=took)


def _elapsed_s(scene: Scene, fence: Fence) -> float:
    zero = scene.note(fence.node, fence.incarnation).zero
    return 0.0 if zero is None else scene.now - zero


def _amend(scene: Scene, result: Duties) -> None:
    """When nothing moves any more: each release checks the receipt, and must not find another one."""
    by_receipt: dict[str, list[VM]] = {}
    for vm in scene.vms.values():
        if vm.status.recovery is not None and vm.status.recovery.fence in scene.fences:
            by_receipt.setdefault(vm.status.recovery.fence, []).append(vm)
    moving = {duty.fence.node for duty in (*result.todo, *scene.busy.values()) if isinstance(duty, Release)}
    for name, vms in by_receipt.items():
        fence, version = scene.fences[name]
        if not fence.finished or fence.node in moving:
            continue
        amended = timeline.told(fence, name, vms, _elapsed_s(scene, fence))
        if amended != fence:
            _begin(scene, Amend(amended, version), result)


def _is_owned_by(vm: VM, fence: Fence) -> bool:
    """By that life of the node, or an earlier one of which nothing can run any more either."""
    owner = vm.status.owner
    return owner is not None and owner.node == fence.node and owner.incarnation <= fence.incarnation


def _sweep(scene: Scene, result: Duties) -> None:
    """The oldest go; one of what may be the last life of its node stays: it says that nothing of it runs."""
    too_many = len(scene.fences) - KEPT
    if too_many <= 0:
        return
    over = [
        (fence, version)
        for fence, version in scene.fences.values()
        if (fence.finished or fence.state is FenceState.RETURNED) and not _is_newest(scene, fence)
    ]
    over.sort(key=lambda one: (one[0].since, one[0].node, one[0].incarnation))
    for fence, version in over[:too_many]:
        _begin(scene, Forget(fence, version), result)


def _is_newest(scene: Scene, fence: Fence) -> bool:
    node = scene.nodes.get(fence.node)
    return node is not None and node.status.incarnation <= fence.incarnation


# Recovery


def _placement(scene: Scene) -> Placement:
    """With room taken off for VMs that are on their way and in no node's figures yet."""
    placement = Placement(scene.nodes, scene.cluster.selector)
    for uuid, duty in scene.busy.items():
        if isinstance(duty, Release) and duty.spec.node in placement.room and uuid in scene.vms:
            placement.reserve(duty.spec.node, duty.spec)
    for uuid, vm in scene.vms.items():
        is_coming = vm.spec.power is Power.STARTED and vm.status.state is State.STARTING
        if is_coming and uuid not in scene.busy and vm.spec.node in placement.room:
            placement.reserve(vm.spec.node, vm.spec)
    return placement


def _recover(scene: Scene, receipts: Sequence[Receipt], result: Duties) -> None:
    """In start order over all nodes that are fenced: where room is short, the important get it."""
    placement = _placement(scene)
    for vm in sorted(scene.vms.values(), key=lambda vm: start_order(vm.spec)):
        if vm.spec.uuid in scene.busy:
            continue
        for one in receipts:
            if not one.is_for(vm):
                continue
            for spec, status in _recovered(scene, vm, one.fence, placement):
                result.todo.append(Release(vm, spec, status, one.node, one.fence, one.version, one.block))


def _recovered(scene: Scene, vm: VM, fence: Fence, placement: Placement) -> Iterator[tuple[VMSpec, VMStatus]]:
    """What becomes of the VM: nothing where it does not concern that node, or still fits nowhere."""
    if not _is_owned_by(vm, fence):
        waits = vm.status.owner is None and vm.spec.node == fence.node and vm.spec.power is Power.STARTED
        if waits and shown_state(vm.spec, vm.status) != State.FAIL:
            spec, why = placed(vm, fence.node, placement)
            if spec.node != fence.node:
                yield spec, replace(vm.status, reason=why)
        return
    released = replace(
        vm.status, owner=None, state=State.STARTING, migration=None, interfaces=(), drives=(), refused=()
    )
    migration = vm.status.migration
    if migration is not None and migration.target != fence.node and migration.target in scene.nodes:
        # It may run there already: whoever can tell has to own it.
        heir = Owner(migration.target, scene.nodes[migration.target].status.incarnation)
        yield vm.spec, replace(released, owner=heir, reason=f"left by {fence.node}, which was fenced")
    elif vm.spec.power is not Power.STARTED:
        yield vm.spec, replace(released, state=State.STOP, reason=f"{fence.node} was fenced", digest="")
    else:
        spec, why = placed(vm, fence.node, placement)
        yield spec, replace(released, reason=why)


def placed(vm: VM, gone: str, placement: Placement) -> tuple[VMSpec, str]:
    """With a node that can take it, if there is one, and why."""
    try:
        bridges = domainxml.parse(vm.spec.definition).bridges
    except Invalid as error:
        return vm.spec, f"{gone} was fenced; its definition is unreadable: {error.message}"
    planned = vm.spec.node or ""
    if planned in placement.nodes and not placement.refusal(planned, vm.spec, [gone], bridges):
        placement.reserve(planned, vm.spec)
        return vm.spec, f"recovered from {gone}"
    choice = placement.choose(vm.spec, avoid=[gone], bridges=bridges)
    if choice.node is None:
        return vm.spec, f"{gone} was fenced; it fits nowhere else: {explained(choice)}"
    home = vm.spec.home or gone
    return (
        move(vm.spec, choice.node, home=None if home == choice.node else home),
        f"recovered from {gone}: {choice.node} has the {choice.because}",
    )
