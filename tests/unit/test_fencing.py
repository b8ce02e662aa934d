"""What a judge decides, line by line of what goes wrong elsewhere: values in, values out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pvc.cluster import domainxml, election, fencing, timeline
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.election import Move
from pvc.cluster.fencing import (
    Amend,
    Duties,
    Excuse,
    Finish,
    Forget,
    Isolate,
    Note,
    Release,
    Scene,
    Shoot,
    Verify,
    duties,
    remember,
)
from pvc.cluster.membership import Block, Evidence, Fence, FenceState, Step, StepKind
from pvc.cluster.node import BMC, Alive, BMCDriver, DaemonState, Load, NodeSpec, NodeStatus
from pvc.cluster.view import VM, Node
from pvc.cluster.vm import Drive, Migration, Owner, Power, Recovery, State, VMStatus
from tests.unit.node.pictures import UUID, spec, status

NOW = 100.0
RESULTS = ("state", "migration", "attempts", "recovery")
DEAD = Owner("n3", 4)
RECEIPT = Fence("n3", 4, FenceState.FENCED, Evidence.POWER_OFF)


def node(name: str, *, alive: bool = True, state: DaemonState = DaemonState.RUN, free: int = 4000) -> Node:
    told = NodeStatus(4, state, cpus=4, memory_mib=8192, bridges=("br0",))
    live = Alive(4) if alive else None
    return Node(NodeSpec(name, "a", "a"), 1, told, 7, live, Load(memory_free_mib=free), 1)


def scene(
    *,
    vms: tuple[VM, ...] = (),
    fence: Fence | None = None,
    gone: str = "n3",
    gone_for: float = 60.0,
    state: DaemonState = DaemonState.RUN,
    **changes: Any,
) -> Scene:
    """n1 judges, n2 lives, n3 is gone."""
    nodes = {name: node(name, alive=name not in gone) for name in ("n1", "n2", "n3")}
    nodes["n3"] = node("n3", alive="n3" not in gone, state=state)
    given: dict[str, Any] = {
        "me": "n1",
        "cluster": ClusterSpec("test"),
        "nodes": nodes,
        "fences": {} if fence is None else {f"n3-{fence.incarnation}": (fence, 2)},
        "vms": {vm.spec.uuid: vm for vm in vms},
        "notes": {
            f"{name}-4": Note(gone_since=NOW - gone_for) for name in ("n1", "n2", "n3") if name in gone
        },
        "busy": {},
        "now": NOW,
        "believed_from": 0.0,
    }
    return Scene(**{**given, **changes})


def vm(number: int = 0, owner: Owner | None = DEAD, **fields: Any) -> VM:
    told = {key: fields.pop(key) for key in RESULTS if key in fields}
    uuid = f"{number:08d}{UUID[8:]}"
    return VM(spec(uuid=uuid, name=f"vm{number}", **{"node": "n3", **fields}), 5, status(owner, **told), 9)


def shots(found: Duties) -> list[str]:
    return [duty.node for duty in found.todo if isinstance(duty, Shoot)]


def released(found: Duties) -> list[Release]:
    return [duty for duty in found.todo if isinstance(duty, Release)]


# Who is fenced


def test_node_that_is_gone_is_fenced_after_the_grace() -> None:
    found = duties(scene(gone_for=1.0))
    assert (found.todo, found.wake_at) == ([], NOW + 1.0)
    assert shots(duties(scene(gone_for=2.0))) == ["n3"]


def with_bmc(**changes: Any) -> Scene:
    found = scene(**changes)
    bmc = BMC(BMCDriver.IPMI, "10.0.0.203", "admin", "sealed")
    gone = replace(found.nodes["n3"], spec=replace(found.nodes["n3"].spec, bmc=bmc))
    return replace(found, nodes={**found.nodes, "n3": gone})


def test_its_power_is_looked_at_once_while_it_has_its_grace() -> None:
    (first,) = duties(with_bmc(gone_for=0.0)).todo
    assert isinstance(first, Shoot)
    assert first.only_looks
    looked = {"n3-4": Note(gone_since=NOW - 1.0, last_try=NOW - 0.9)}
    found = duties(with_bmc(notes=looked))
    assert (found.todo, found.wake_at) == ([], NOW + 1.0)
    (then,) = duties(with_bmc(notes=looked, now=NOW + 1.0)).todo
    assert isinstance(then, Shoot)
    assert not then.only_looks
    assert duties(with_bmc(gone_for=2.0)).todo == [then], "whose grace is over is not only looked at"


def test_its_power_is_not_looked_at_before_its_absence_is_believed_nor_in_maintenance() -> None:
    found = duties(with_bmc(gone_for=1.0, believed_from=NOW + 0.5))
    assert (found.todo, found.wake_at) == ([], NOW + 0.5)
    assert duties(with_bmc(cluster=ClusterSpec("test", maintenance=True))).todo == []


@pytest.mark.parametrize("state", [DaemonState.INIT, DaemonState.RUN, DaemonState.SHUTDOWN])
def test_node_that_dies_while_it_starts_or_ends_is_fenced(state: DaemonState) -> None:
    """14.1.13"""
    assert shots(duties(scene(state=state))) == ["n3"]


def test_node_that_left_cleanly_is_not_fenced() -> None:
    assert duties(scene(state=DaemonState.STOP)).todo == []


def test_several_nodes_are_fenced_at_once() -> None:
    """14.1.6"""
    assert shots(duties(scene(gone="n2 n3"))) == ["n2", "n3"]


def test_maintenance_disarms() -> None:
    """14.1.14: and only while it is on."""
    assert duties(scene(cluster=ClusterSpec("test", maintenance=True))).todo == []


def test_judge_does_not_fence_itself() -> None:
    assert shots(duties(scene(gone="n1"))) == []


def test_who_is_gone_counts_anew_after_the_store_was_away() -> None:
    found = duties(scene(believed_from=NOW + 3.0))
    assert (found.todo, found.wake_at) == ([], NOW + 5.0)


def test_time_is_the_judge_s_own() -> None:
    """14.1.8: nothing that another host has written is compared with a clock."""
    begun = remember(scene(notes={}))
    assert begun["n3-4"].gone_since == NOW
    back = remember(scene(gone="", notes={"n3-4": Note(gone_since=3.0)}))
    assert back["n3-4"].gone_since is None


def test_failed_fence_is_tried_again_with_back_off_and_releases_nothing() -> None:
    """14.1.1, 14.1.2, 14.1.4, 14.1.5"""
    failed = Fence("n3", 4, FenceState.FAILED, attempts=3)
    tried = {"n3-4": Note(gone_since=0.0, last_try=NOW - 3.0)}
    found = duties(scene(fence=failed, vms=(vm(),), notes=tried))
    assert (found.todo, found.wake_at) == ([], NOW + 1.0)
    found = duties(scene(fence=failed, vms=(vm(),), notes=tried, now=NOW + 1.0))
    assert (shots(found), released(found)) == (["n3"], [])
    assert fencing.backoff_s(99) == fencing.LONGEST_BACKOFF_S


def test_another_judge_goes_on_with_what_one_left() -> None:
    """14.1.5: a fence under way is nobody's property."""
    assert shots(duties(scene(fence=Fence("n3", 4, FenceState.FENCING, judge="n2")))) == ["n3"]


@pytest.mark.parametrize("state", [FenceState.FENCING, FenceState.FAILED])
def test_node_that_returns_is_excused(state: FenceState) -> None:
    (excuse,) = duties(scene(gone="", fence=Fence("n3", 4, state))).todo
    assert isinstance(excuse, Excuse)
    (excuse,) = duties(scene(fence=Fence("n3", 3, state), gone="")).todo
    assert isinstance(excuse, Excuse), "and so is an earlier life of it"


def test_fence_by_hand_needs_no_suspicion_and_gives_up_on_a_node_that_lives() -> None:
    asked = Fence("n3", 4, asked_by="admin")
    assert shots(duties(scene(gone="", fence=asked))) == ["n3"]
    (excuse,) = duties(scene(gone="", fence=replace(asked, attempts=3))).todo
    assert isinstance(excuse, Excuse)
    assert excuse.state is FenceState.FAILED
    (excuse,) = duties(scene(me="n3", gone="", fence=asked)).todo
    assert isinstance(excuse, Excuse)
    assert excuse.why == "it is the primary itself"


def test_drill_leaves_the_rest_to_the_usual_course() -> None:
    """Its power is cut; its session lives for a while, and the grace counts from its end."""
    cut = Fence("n3", 4, drill="admin")
    lives = scene(gone="", fence=cut, notes={"n3-4": Note(last_try=NOW - 3.0)})
    assert duties(lives).todo == []
    (excuse,) = duties(replace(lives, now=NOW + fencing.DRILL_S)).todo
    assert isinstance(excuse, Excuse)
    assert "its daemon lives" in excuse.why
    died = scene(fence=cut, gone_for=1.0)
    assert (duties(died).todo, duties(died).wake_at) == ([], NOW + 1.0)
    maintenance = ClusterSpec("test", maintenance=True)
    (shoot,) = duties(scene(fence=cut, cluster=maintenance)).todo
    assert isinstance(shoot, Shoot), "what was begun is ended"
    assert shoot.fence.drill == "admin"


# Recovery


def test_all_that_is_owned_is_recovered_from_specs_and_owners() -> None:
    """14.1.7: those that had just started, in the middle of a start or a restart too."""
    states = (State.START, State.STARTING, State.RESTART)
    found = released(
        duties(scene(fence=RECEIPT, vms=tuple(vm(n, state=state) for n, state in enumerate(states))))
    )
    assert len(found) == 3
    assert {duty.status.owner for duty in found} == {None}
    assert {duty.status.state for duty in found} == {State.STARTING}
    assert {duty.spec.home for duty in found} == {"n3"}


def test_vms_that_were_to_stop_are_not_resurrected() -> None:
    """14.1.7"""
    (duty,) = released(duties(scene(fence=RECEIPT, vms=(vm(power=Power.STOPPED, state=State.SHUTDOWN),))))
    assert (duty.status.owner, duty.status.state, duty.spec.node) == (None, State.STOP, "n3")


def test_each_recovery_reserves_its_room() -> None:
    """14.1.10"""
    vms = tuple(vm(number, memory_mib=3000) for number in range(3))
    found = released(duties(scene(fence=RECEIPT, vms=vms)))
    assert sorted(str(duty.spec.node) for duty in found) == ["n1", "n2", "n3"]
    (left,) = [duty for duty in found if duty.spec.node == "n3"]
    assert "fits nowhere else" in left.status.reason
    assert left.status.owner is None, "it starts when room comes, wherever"


def test_room_goes_to_the_important_first_whatever_node_it_was_on() -> None:
    dead = scene(gone="n2 n3", vms=(vm(1, Owner("n2", 4), memory_mib=3000, node="n2"),))
    important = vm(2, memory_mib=3000, start_priority=200)
    receipts = {f"{name}-4": (replace(RECEIPT, node=name), 2) for name in ("n2", "n3")}
    (first, second) = released(
        duties(replace(dead, vms={**dead.vms, important.spec.uuid: important}, fences=receipts))
    )
    assert (first.spec.name, first.spec.node) == ("vm2", "n1")
    assert (second.spec.name, second.spec.node) == ("vm1", "n2"), "it has to wait"


def test_no_grace_is_no_wait() -> None:
    """14.1.12"""
    at_once = ClusterSpec("test", fence_grace_s=0.0)
    assert shots(duties(scene(gone_for=0.0, cluster=at_once))) == ["n3"]


def test_vm_without_room_stays_wanted_and_goes_when_there_is_some() -> None:
    """14.1.9, 14.1.11"""
    waiting = vm(owner=None, memory_mib=5000, state=State.STARTING)
    assert released(duties(scene(fence=RECEIPT, vms=(waiting,)))) == []
    there_is = scene(fence=RECEIPT, vms=(waiting,))
    roomy = {**there_is.nodes, "n2": node("n2", free=6000)}
    (duty,) = released(duties(replace(there_is, nodes=roomy)))
    assert (duty.spec.node, duty.spec.home) == ("n2", "n3")


def test_vm_that_was_migrating_belongs_to_the_one_who_can_tell() -> None:
    moving = vm(node="n2", state=State.MIGRATE, migration=Migration("n2"))
    (duty,) = released(duties(scene(fence=RECEIPT, vms=(moving,))))
    assert duty.status.owner == Owner("n2", 4)
    assert duty.status.migration is None


def test_limits_hold() -> None:
    (duty,) = released(duties(scene(fence=RECEIPT, vms=(vm(node_limit=("n1", "n3")),))))
    assert duty.spec.node == "n1"


@pytest.mark.parametrize(
    "other",
    [
        scene(fence=RECEIPT, vms=(vm(owner=Owner("n3", 5)),)),
        scene(fence=replace(RECEIPT, incarnation=3), vms=(vm(),)),
        scene(fence=RECEIPT, vms=(vm(),), gone=""),
        scene(fence=RECEIPT, vms=(vm(owner=Owner("n2", 1)),)),
    ],
    ids=["a later life", "an earlier receipt", "it lives", "another node's"],
)
def test_receipt_is_good_for_its_own_life_only(other: Scene) -> None:
    assert released(duties(other)) == []


def test_power_comes_back_only_when_nothing_is_owned() -> None:
    found = duties(scene(fence=RECEIPT, vms=(vm(),)))
    assert not [duty for duty in found.todo if isinstance(duty, Finish)]
    (finish,) = duties(scene(fence=RECEIPT)).todo
    assert isinstance(finish, Finish)
    assert finish.fence.finished
    assert finish.bmc_of is not None
    assert duties(scene(fence=finish.fence)).todo == []


# What is told of it


def told_of(*vms: VM, elapsed_s: float = 9.0) -> Fence:
    """What the judge closes the receipt with, so long after the last contact."""
    fence = timeline.once(RECEIPT, StepKind.FENCED, 8.5)
    notes = {"n3-4": Note(gone_since=0.0, zero=NOW - elapsed_s)}
    (finish,) = duties(scene(fence=fence, vms=vms, notes=notes)).todo
    assert isinstance(finish, Finish)
    return finish.fence


def test_receipt_names_each_vm_from_the_mark_that_its_release_left() -> None:
    """Whoever is judge by then: nothing depends on what one of them remembers."""
    moved = vm(1, owner=None, node="n2", recovery=Recovery("n3-4", 8.6))
    stays = vm(2, owner=None, node="n3", memory_mib=9000, recovery=Recovery("n3-4", 8.7))
    ended = vm(3, owner=None, power=Power.STOPPED, recovery=Recovery("n3-4", 8.8))
    of_another = vm(4, owner=None, node="n2", recovery=Recovery("n3-2", 1.0))
    closed = told_of(moved, stays, ended, of_another)
    assert closed.recovered == ("vm1 -> n2", "vm2 -> nowhere", "vm3 stopped")
    assert closed.recovery_s == 0.5
    assert [(step.at_s, str(step.what), step.vm, step.node) for step in closed.timeline] == [
        (8.5, "fenced", "", ""),
        (8.6, "released", "vm1", "n2"),
        (8.7, "released", "vm2", ""),
        (8.8, "stopped", "vm3", ""),
    ]


def test_receipt_that_is_closed_goes_on_with_when_each_vm_ran() -> None:
    closed = told_of(vm(1, owner=None, node="n2", recovery=Recovery("n3-4", 8.6)))
    up = vm(1, owner=Owner("n2", 1), node="n2", state=State.START, recovery=Recovery("n3-4", 8.6))
    seen = scene(fence=closed, vms=(up,), notes={"n3-4": Note(gone_since=0.0, zero=NOW - 9.7)})
    (amend,) = duties(seen).todo
    assert isinstance(amend, Amend)
    assert amend.fence.timeline[-1] == Step(9.7, StepKind.RUNNING, "vm1", "n2")
    assert duties(replace(seen, fences={"n3-4": (amend.fence, 3)})).todo == [], "once is enough"


def test_receipt_is_not_written_while_releases_check_it() -> None:
    going_on = vm(2)
    (release,) = released(duties(scene(fence=RECEIPT, vms=(going_on,))))
    up = vm(1, owner=Owner("n2", 1), node="n2", recovery=Recovery("n3-4", 8.6))
    closed = replace(RECEIPT, finished=True)
    busy = {going_on.spec.uuid: release}
    assert duties(scene(fence=closed, vms=(up, going_on), busy=busy)).todo == []


def test_another_judge_takes_up_the_count_by_the_wall_clock() -> None:
    begun = Fence("n3", 4, since=1000.0, timeline=(Step(0.0, StepKind.CONTACT), Step(8.0, StepKind.FENCING)))
    assert timeline.taken_up(begun, now=50.0, wall=1002.0) == 40.0, "8 s and 2 s ago"
    assert timeline.taken_up(begun, now=50.0, wall=0.0) == 42.0, "never before what is told already"


# What is kept


def kept(*fences: Fence, more: int = fencing.KEPT) -> list[str]:
    """What is forgotten when there are so many more of another node, newer than these."""
    others = [Fence("n9", n, FenceState.FENCED, since=1000.0 + n, finished=True) for n in range(more)]
    every = {fencing.name_of(one.node, one.incarnation): (one, 1) for one in (*fences, *others)}
    found = duties(scene(gone="", fences=every))
    return [fencing.name_of(d.fence.node, d.fence.incarnation) for d in found.todo if isinstance(d, Forget)]


def test_old_fences_are_forgotten_but_none_from_which_something_follows() -> None:
    done = replace(RECEIPT, finished=True)
    assert kept(replace(done, incarnation=3, since=5.0)) == ["n3-3"]
    assert kept(Fence("n3", 2, FenceState.RETURNED)) == ["n3-2"]
    assert kept(replace(done, incarnation=3, since=5.0), more=fencing.KEPT - 1) == []
    assert kept(done) == ["n9-0"], "it says that nothing of the node's last life runs"
    assert kept(replace(done, incarnation=3, finished=False)) == ["n9-0"]


# The primary


@pytest.mark.parametrize(
    ("holder", "wanted", "live", "free_for", "move"),
    [
        (None, "", ("n1", "n2"), 0.0, Move.TAKE),
        ("n2", "", ("n1", "n2"), 0.0, Move.NONE),
        ("n1", "", ("n1", "n2"), 0.0, Move.NONE),
        ("n1", "n2", ("n1", "n2"), 0.0, Move.RESIGN),
        ("n1", "n2", ("n1",), 0.0, Move.NONE),
        (None, "n2", ("n1", "n2"), 1.0, Move.NONE),
        (None, "n2", ("n1", "n2"), 3.0, Move.TAKE),
        (None, "n2", ("n1",), 0.0, Move.TAKE),
        (None, "n1", ("n1", "n2"), 0.0, Move.TAKE),
        ("n2", "n1", ("n1", "n2"), 0.0, Move.NONE),
        (None, "", ("n2",), 9.0, Move.NONE),
    ],
)
def test_election(
    holder: str | None, wanted: str, live: tuple[str, ...], free_for: float, move: Move
) -> None:
    """14.3.1, 14.3.2: no lock is waited for, and nobody waits for ever for one who does not come."""
    assert election.decide("n1", holder=holder, wanted=wanted, live=live, free_for=free_for) is move


# Ceph's block list

IN_CEPH = """<domain type="kvm"><name>vm</name><memory>1024</memory><vcpu>1</vcpu><os><type>hvm</type></os>
<devices><disk type="network"><source protocol="rbd" name="vms/a"/><target dev="vda"/></disk>{more}</devices>
</domain>"""
FAILED = Fence("n3", 4, FenceState.FAILED, attempts=1, reason="the BMC does not answer")
BLOCK = Block("n3", 4, ("10.0.0.3",), epoch=17)


def on_ceph(number: int = 0, more: str = "", **fields: Any) -> VM:
    definition = IN_CEPH.format(more=more)
    found = vm(number, definition=definition, **fields)
    return replace(found, status=running_as(definition, found.status))


def running_as(definition: str, status: VMStatus) -> VMStatus:
    shape = domainxml.shape(definition)
    return replace(status, digest=shape.digest, drives=shape.drives)


def with_ceph(*vms: VM, block: Block | None = None, **changes: Any) -> Scene:
    found = scene(**{"vms": vms, "fence": FAILED, **changes})
    gone = found.nodes["n3"]
    gone = replace(gone, status=replace(gone.status, ceph_addresses=("10.0.0.3",)))
    blocks = {} if block is None else {"n3": (block, 6)}
    return replace(found, nodes={**found.nodes, "n3": gone}, blocks=blocks)


def isolated(found: Duties) -> list[str]:
    return [duty.node for duty in found.todo if isinstance(duty, Isolate)]


def test_node_that_cannot_be_switched_off_is_shut_out_of_ceph() -> None:
    assert isolated(duties(with_ceph(on_ceph()))) == ["n3"]


@pytest.mark.parametrize(
    "found",
    [
        with_ceph(on_ceph(), fence=None),
        with_ceph(on_ceph(), fence=replace(FAILED, state=FenceState.FENCING, reason="")),
        with_ceph(on_ceph(), fence=RECEIPT),
        with_ceph(on_ceph(), fence=replace(FAILED, state=FenceState.RETURNED)),
        with_ceph(on_ceph(), gone=""),
        with_ceph(on_ceph(), state=DaemonState.STOP),
        with_ceph(on_ceph(), cluster=ClusterSpec("test", maintenance=True)),
        with_ceph(on_ceph(), gone_for=1.0),
        with_ceph(on_ceph(), believed_from=NOW + 1),
        with_ceph(on_ceph(), me="n3"),
        with_ceph(on_ceph(), block=BLOCK),
        with_ceph(on_ceph(), notes={"n3-4": Note(gone_since=NOW - 60, block_try=NOW - 0.5)}),
        with_ceph(vm()),
        with_ceph(on_ceph(owner=Owner("n2", 4))),
        scene(vms=(on_ceph(),), fence=FAILED),
    ],
    ids=(
        "not tried",
        "being tried",
        "fenced",
        "returned",
        "alive",
        "left cleanly",
        "maintenance",
        "grace",
        "store was away",
        "primary itself",
        "proven",
        "just tried",
        "no VM in Ceph",
        "no VM of its own",
        "no address is known",
    ),
)
def test_who_is_not_listed(found: Scene) -> None:
    assert isolated(duties(found)) == []


def test_block_of_an_earlier_life_or_one_not_proven_is_made_anew() -> None:
    for block in (replace(BLOCK, incarnation=3), replace(BLOCK, epoch=0), replace(BLOCK, lifted=True)):
        found = duties(with_ceph(on_ceph(), block=block))
        assert (isolated(found), released(found)) == (["n3"], [])


def test_block_releases_a_vm_in_ceph() -> None:
    (release,) = released(duties(with_ceph(on_ceph(), block=BLOCK)))
    assert (release.block, release.spec.node, release.status.owner) == (6, "n1", None)


def test_block_is_looked_at_again_while_vms_are_there() -> None:
    def is_looked_at(*vms: VM, ago: float | None) -> bool:
        note = Note(gone_since=NOW - 60, block_try=None if ago is None else NOW - ago)
        found = duties(with_ceph(*vms, block=BLOCK, notes={"n3-4": note}))
        return any(isinstance(duty, Verify) for duty in found.todo)

    on_both = on_ceph(0, FILE)
    assert is_looked_at(on_both, ago=None)
    assert is_looked_at(on_both, ago=30.0)
    assert not is_looked_at(on_both, ago=29.0)
    assert not is_looked_at(on_ceph(owner=Owner("n2", 4)), ago=None)


FILE = '<disk type="file"><source file="/x"/><target dev="vdb"/></disk>'
OTHER_CEPH = """<disk type="network"><source protocol="rbd" name="vms/b"><host name="10.9.9.9"/></source>
<target dev="vdb"/></disk>"""
SHARE = '<filesystem><source dir="/srv"/><target dir="x"/></filesystem>'
SLICE = "<hostdev mode='subsystem' type='scsi'/>"


MEMORY = '<memory model="nvdimm"><source><path>/shared/x</path></source></memory>'
RAM = '<memory model="dimm"><target><size unit="MiB">512</size></target></memory>'
SHARED_RAM = '<shmem name="x"/>'
TPM = '<tpm model="tpm-crb"><backend type="emulator"><source type="dir" path="/shared"/></backend></tpm>'
OWN_TPM = '<tpm model="tpm-crb"><backend type="emulator"/></tpm>'


@pytest.mark.parametrize("more", [FILE, OTHER_CEPH, SHARE, SLICE, MEMORY, SHARED_RAM, TPM])
def test_vm_that_writes_elsewhere_too_waits_for_a_receipt(more: str) -> None:
    other = on_ceph(1, more)
    (release,) = released(duties(with_ceph(on_ceph(), other, block=BLOCK)))
    assert release.vm.spec.name == "vm0"
    everything = released(duties(with_ceph(on_ceph(), other, block=BLOCK, fence=RECEIPT)))
    assert [(one.vm.spec.name, one.block) for one in everything] == [("vm0", None), ("vm1", None)]


COMMAND = '<{0}commandline><{0}arg value="-drive"/><{0}arg value="file=/shared/x"/></{0}commandline>'
OVERRIDE = '<qemu:override><qemu:device alias="x"/></qemu:override>'
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"


@pytest.mark.parametrize(
    ("is_all", "beside", "of_os"),
    [
        (False, COMMAND.format("qemu:"), ""),
        (False, COMMAND.format("q:"), ""),
        (False, OVERRIDE, ""),
        (False, "", "<nvram>/shared/nv.fd</nvram>"),
        (False, "", '<nvram type="file"><source file="/shared/nv.fd"/></nvram>'),
        (False, "", '<loader type="pflash">/shared/code.fd</loader>'),
        (True, "<!-- commandline -->", '<loader readonly="yes" type="pflash">/usr/code.fd</loader>'),
        (True, "", '<nvram template="/usr/vars.fd"/>'),
    ],
)
def test_what_qemu_has_besides_disks_is_not_in_ceph(is_all: bool, beside: str, of_os: str) -> None:
    definition = (
        IN_CEPH.format(more=RAM + OWN_TPM)
        .replace('type="kvm"', f'type="kvm" xmlns:qemu="{QEMU}" xmlns:q="{QEMU}"')
        .replace("<os>", f"<os>{of_os}")
        .replace("</domain>", f"{beside}</domain>")
    )
    assert domainxml.is_all_in_ceph(definition) is is_all


def test_vm_without_disks_or_that_runs_otherwise_than_defined_waits() -> None:
    edited = on_ceph()
    edited = replace(edited, status=replace(edited.status, digest="of another definition"))
    moving = on_ceph(1, migration=Migration("n2"))
    leaving = on_ceph(3)
    disk = Drive("vdb", "/x", "d")
    leaving = replace(leaving, status=replace(leaving.status, drives=(*leaving.status.drives, disk)))
    assert released(duties(with_ceph(edited, moving, vm(2), leaving, block=BLOCK))) == []


def test_empty_drive_is_no_disk() -> None:
    empty = on_ceph(0, '<disk type="file" device="cdrom"><target dev="sda"/></disk>')
    assert len(released(duties(with_ceph(empty, block=BLOCK)))) == 1


def test_block_says_nothing_of_another_life_nor_of_who_is_back() -> None:
    for found in (
        with_ceph(on_ceph(), block=replace(BLOCK, incarnation=3)),
        with_ceph(on_ceph(), block=BLOCK, gone=""),
        with_ceph(on_ceph(), block=replace(BLOCK, epoch=0)),
        with_ceph(on_ceph(), block=replace(BLOCK, lifted=True)),
    ):
        assert released(duties(found)) == []


def test_search_for_a_receipt_goes_on_beside_the_block() -> None:
    assert shots(duties(with_ceph(on_ceph(), block=BLOCK))) == ["n3"]
    assert fencing.lane(Isolate("n3", FAILED)) != fencing.lane(Shoot("n3", FAILED, 2))
