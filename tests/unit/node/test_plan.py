"""The planner, row by row: what a node does about a VM in each situation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from pvc.cluster import domainxml
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.node import Wanted
from pvc.cluster.view import VM
from pvc.cluster.vm import Change, Method, Migration, Owner, Power, State, Target, VMSpec, VMStatus
from pvc.node import plan as planner
from pvc.node.actions import Answer, Commit, Evacuate, FetchBack, Migrate, Shutdown, Start
from pvc.node.drivers.hypervisor import Domain, DomainState, Ended
from pvc.node.plan import Note, Picture, plan, remember
from tests.unit.node.pictures import (
    EARLIER_ME,
    ME,
    NOW,
    OTHER,
    UUID,
    domain,
    picture,
    spec,
    status,
    told,
    vm,
)

YES = Target("n2", 0, 7)
NO = Target("n2", 0, 7, refused="it is full")
GONE = Note(gone_since=NOW - 5)
TO_N2 = status(state=State.MIGRATE, migration=Migration("n2"))
STOPPED = spec(power=Power.STOPPED)
AWAY = spec(node="n2")


@dataclass(frozen=True)
class Row:
    name: str
    spec: VMSpec | None = field(default_factory=spec)
    status: VMStatus = field(default_factory=status)
    domain: Domain | None = None
    note: Note | None = None
    target: Target | None = None
    wanted: Wanted = Wanted.READY
    then: str = ""
    """The actions, in the words of `told`."""

    def picture(self) -> Picture:
        known = vm(self.spec, self.status) if self.spec else None
        return picture(known, self.domain, self.note, self.target, wanted=self.wanted)


RUNS = domain()
FREE = status(owner=None, state=State.STARTING)
OTHERS = status(owner=OTHER)

ROWS = [
    # nobody owns it, no domain
    Row("wanted here: start", status=FREE, then="start"),
    Row("wanted elsewhere", AWAY, FREE),
    Row("assigned nowhere", spec(node=None), FREE),
    Row("stopped", STOPPED, status(None, State.STOP)),
    Row("disabled", spec(power=Power.DISABLED), status(None, State.STOP)),
    Row("failed", status=status(None, State.FAIL)),
    Row("failed, asked again", spec(attempts=1), status(None, State.FAIL), then="start"),
    Row("backs off", status=FREE, note=Note(not_before=NOW + 3)),
    Row("backed off", status=FREE, note=Note(not_before=NOW), then="start"),
    Row("backs off, asked again", spec(attempts=1), FREE, note=Note(not_before=NOW + 3), then="start"),
    Row(
        "stopped at home",
        spec(home="n1", power=Power.STOPPED),
        status(None, State.STOP),
        then="commit power=stopped node=n1",
    ),
    # nobody owns it, and a domain is here
    Row("runs already: adopt", status=FREE, domain=RUNS, then="commit start owner=me"),
    Row("runs and is not wanted", STOPPED, status(None, State.STOP), RUNS, then="stray"),
    Row("runs and is wanted elsewhere", AWAY, FREE, RUNS, then="stray"),
    Row("arrives", status=FREE, domain=domain(DomainState.INCOMING, migrating=True)),
    # unknown
    Row("no such VM", None, domain=RUNS, then="stray"),
    Row("no such VM, arriving", None, domain=domain(DomainState.INCOMING)),
    Row("a QEMU that is not ours", None, domain=domain(digest="")),
    # ours, and runs
    Row("steady", domain=RUNS),
    Row("steady, of an earlier daemon", status=status(EARLIER_ME), domain=RUNS, then="commit start owner=me"),
    Row(
        "started, not said yet",
        status=status(state=State.STARTING),
        domain=RUNS,
        then="commit start owner=me",
    ),
    Row("start asked again", spec(attempts=1), domain=RUNS, then="commit start owner=me"),
    Row("crashed", domain=domain(DomainState.CRASHED), then="destroy start"),
    Row("hangs", domain=domain(silent=True)),
    Row(
        "hangs, of an earlier daemon",
        status=replace(TO_N2, owner=EARLIER_ME),
        domain=domain(silent=True),
        then="commit migrate owner=me migration=n2",
    ),
    Row("hangs and may be migrating", AWAY, TO_N2, domain(silent=True), target=YES),
    Row(
        "hangs, may be migrating and is to stop",
        replace(STOPPED, force=True),
        TO_N2,
        domain(silent=True),
        then="destroy shutdown",
    ),
    Row("paused", domain=domain(DomainState.PAUSED), then="commit start owner=me"),
    Row(
        "paused for the instant of a snapshot",
        domain=domain(DomainState.PAUSED, reason="user"),
        note=Note(NOW - 99, paused_since=NOW - 2),
    ),
    Row(
        "paused on request for longer",
        domain=domain(DomainState.PAUSED, reason="user"),
        note=Note(NOW - 99, paused_since=NOW - 3),
        then="commit start owner=me",
    ),
    Row(
        "long good run",
        status=status(failures=2),
        domain=RUNS,
        note=Note(NOW - 301),
        then="commit start owner=me",
    ),
    Row("short good run", status=status(failures=2), domain=RUNS, note=Note(NOW - 299, failures=2)),
    Row("at home again", spec(home="n1"), domain=RUNS, then="commit power=started node=n1"),
    Row("away from home", spec(home="n2"), domain=RUNS),
    # ours, runs, and is to end
    Row("ask", STOPPED, domain=RUNS, then="ask shutdown"),
    Row("ask, disabled", spec(power=Power.DISABLED), domain=RUNS, then="ask shutdown"),
    Row("asked a moment ago", STOPPED, domain=RUNS, note=Note(asked_first=NOW - 9, asked_last=NOW - 9)),
    Row(
        "ask again",
        STOPPED,
        domain=RUNS,
        note=Note(asked_first=NOW - 10, asked_last=NOW - 10),
        then="ask shutdown",
    ),
    Row(
        "timeout",
        STOPPED,
        domain=RUNS,
        note=Note(asked_first=NOW - 180, asked_last=NOW - 2),
        then="destroy shutdown",
    ),
    Row(
        "its own timeout",
        spec(power=Power.STOPPED, shutdown_timeout_s=30),
        domain=RUNS,
        note=Note(asked_first=NOW - 30, asked_last=NOW - 2),
        then="destroy shutdown",
    ),
    Row("force", spec(power=Power.STOPPED, force=True), domain=RUNS, then="destroy shutdown"),
    Row("force is of a stop only", spec(force=True), domain=RUNS),
    Row("restart", spec(restarts=1), domain=RUNS, then="ask restart"),
    Row(
        "restart of a hung guest",
        spec(restarts=1),
        domain=RUNS,
        note=Note(asked_first=NOW - 181, asked_last=NOW - 2),
        then="destroy restart",
    ),
    Row("asked, then started again", status=status(state=State.SHUTDOWN), domain=RUNS, then="ask restart"),
    Row("asked, then called back", status=status(state=State.MIGRATE), domain=RUNS, then="ask restart"),
    Row("ends while migrating", STOPPED, TO_N2, domain(migrating=True), then="abort"),
    # ours, runs, and is to leave
    Row("no answer yet", AWAY, domain=RUNS, note=Note(waiting_since=NOW - 19, waiting_for=0)),
    Row(
        "no answer",
        AWAY,
        domain=RUNS,
        note=Note(waiting_since=NOW - 20, waiting_for=0),
        then="commit start owner=me power=started node=n1",
    ),
    Row("refused", AWAY, domain=RUNS, target=NO, then="commit start owner=me power=started node=n1"),
    Row("answered", AWAY, domain=RUNS, target=YES, then="migrate n2"),
    Row("answered another move", spec(node="n2", moves=1), domain=RUNS, target=YES),
    Row("answer of another node", spec(node="n3"), domain=RUNS, target=YES),
    Row(
        "by shutdown",
        spec(node="n2", move_method=Method.SHUTDOWN),
        domain=RUNS,
        target=YES,
        then="ask migrate",
    ),
    Row(
        "by shutdown, no answer",
        spec(node="n2", move_method=Method.SHUTDOWN),
        domain=RUNS,
        note=Note(waiting_since=NOW, waiting_for=0),
    ),
    Row(
        "by shutdown, asked, now refused",
        spec(node="n2", move_method=Method.SHUTDOWN),
        status(state=State.MIGRATE),
        RUNS,
        target=NO,
        then="ask migrate",
    ),
    Row(
        "stop wins over leaving",
        spec(node="n2", power=Power.STOPPED),
        domain=RUNS,
        target=YES,
        then="ask shutdown",
    ),
    Row("a dead daemon's migration", AWAY, TO_N2, domain(migrating=True), then="abort"),
    Row(
        "a dead daemon's migration: adopt first",
        AWAY,
        replace(TO_N2, owner=EARLIER_ME),
        domain(migrating=True),
        then="commit migrate owner=me migration=n2",
    ),
    Row(
        "a dead daemon's migration that failed",
        AWAY,
        replace(TO_N2, owner=EARLIER_ME),
        RUNS,
        then="commit start owner=me",
    ),
    Row("left to us while it arrives", status=status(), domain=domain(DomainState.INCOMING, migrating=True)),
    Row(
        "runs, migration not yet forgotten",
        status=replace(TO_N2, state=State.START),
        domain=RUNS,
        then="commit start owner=me",
    ),
    Row(
        "refused while it should migrate",
        AWAY,
        replace(TO_N2, state=State.START),
        RUNS,
        target=NO,
        then="commit start owner=me power=started node=n1",
    ),
    # ours, and gone
    Row("just gone", STOPPED, note=Note(gone_since=NOW - 0.5)),
    Row(
        "gone, told how",
        STOPPED,
        note=Note(gone_since=NOW, ended=Ended.SHUTDOWN),
        then="commit stop owner=none",
    ),
    Row("stopped", STOPPED, note=GONE, then="commit stop owner=none"),
    Row("restarts", spec(restarts=1), note=GONE, then="commit starting owner=none"),
    Row("left by shutdown", AWAY, note=GONE, then="commit starting owner=none"),
    Row(
        "start interrupted",
        status=status(EARLIER_ME, State.STARTING),
        note=GONE,
        then="commit starting owner=none",
    ),
    Row(
        "powered itself off",
        note=Note(gone_since=NOW, ended=Ended.SHUTDOWN),
        then="commit stop owner=none power=stopped node=n1",
    ),
    Row(
        "powered off by us, wanted again",
        status=status(state=State.SHUTDOWN),
        note=Note(gone_since=NOW, ended=Ended.SHUTDOWN),
        then="commit starting owner=none",
    ),
    Row(
        "powered itself off, start asked",
        spec(attempts=1),
        note=Note(gone_since=NOW, ended=Ended.SHUTDOWN),
        then="commit starting owner=none",
    ),
    Row(
        "crashed and gone", note=Note(gone_since=NOW, ended=Ended.CRASHED), then="commit starting owner=none"
    ),
    Row("nobody saw how", note=GONE, then="commit starting owner=none"),
    Row("crashed too often", status=status(failures=4), note=GONE, then="commit fail owner=none"),
    Row("moved from outside", note=Note(gone_since=NOW, ended=Ended.MIGRATED), then="commit fail owner=none"),
    Row("power cut, back", status=status(EARLIER_ME), note=GONE, then="commit starting owner=none"),
    Row("gone while migrating", AWAY, TO_N2, note=GONE, then="commit start owner=n2"),
    Row("gone while migrating, called back", spec(moves=1), TO_N2, note=GONE, then="commit start owner=n2"),
    Row("gone while migrating, stopped", STOPPED, TO_N2, note=GONE, then="commit start owner=n2"),
    Row(
        "migrated, not handed over",
        AWAY,
        TO_N2,
        note=Note(gone_since=NOW, ended=Ended.MIGRATED),
        then="commit start owner=n2",
    ),
    Row(
        "panicked while migrating",
        AWAY,
        TO_N2,
        note=Note(gone_since=NOW, ended=Ended.CRASHED),
        then="commit starting owner=none",
    ),
    Row(
        "QEMU died while migrating: it may run there",
        AWAY,
        TO_N2,
        note=Note(gone_since=NOW, ended=Ended.FAILED),
        then="commit start owner=n2",
    ),
    Row(
        "ended while migrating, by who had lost contact: it may run there",
        AWAY,
        TO_N2,
        note=Note(gone_since=NOW, ended=Ended.DESTROYED, cut_off=True),
        then="commit start owner=n2",
    ),
    # another node's
    Row("elsewhere", AWAY, OTHERS),
    Row("stray", AWAY, OTHERS, RUNS, then="stray"),
    Row("stray, though assigned here", status=OTHERS, domain=RUNS, then="stray"),
    Row("arriving", status=OTHERS, domain=domain(DomainState.INCOMING)),
    Row("arrived, not handed over", status=replace(OTHERS, migration=Migration("n1")), domain=RUNS),
    Row("arrived, called back, not handed over", AWAY, replace(OTHERS, migration=Migration("n1")), RUNS),
    Row("arrived, to stop, not handed over", STOPPED, replace(OTHERS, migration=Migration("n1")), RUNS),
    Row("expected: answer", status=OTHERS, then="answer yes"),
    Row("expected: answered", status=OTHERS, target=Target("n1", 0, ME.incarnation)),
    Row(
        "expected: answered by an earlier daemon", status=OTHERS, target=Target("n1", 0, 2), then="answer yes"
    ),
    Row(
        "expected: answered an older move",
        spec(moves=1),
        OTHERS,
        target=Target("n1", 0, 3),
        then="answer yes",
    ),
    Row(
        "expected: too big",
        spec(memory_mib=5000),
        OTHERS,
        then="answer 5000 MiB do not fit its free 4096 MiB",
    ),
    Row("expected, to stop", STOPPED, OTHERS),
    Row("expected by a flushed node", status=OTHERS, wanted=Wanted.FLUSHED, then="answer it is flushed"),
    # flushed and ready again
    Row("flushed: leave", domain=RUNS, wanted=Wanted.FLUSHED, then="evacuate 1"),
    Row("flushed: not started here", status=FREE, wanted=Wanted.FLUSHED, then="evacuate 1"),
    Row("flushed: stopped ones stay", STOPPED, status(None, State.STOP), wanted=Wanted.FLUSHED),
    Row("flushed: leaving", AWAY, domain=RUNS, target=YES, wanted=Wanted.FLUSHED, then="migrate n2"),
    Row("flushed: rests after a failure", domain=RUNS, note=Note(stay_until=NOW + 1), wanted=Wanted.FLUSHED),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(row: Row) -> None:
    assert [told(action) for action in plan(row.picture()).actions] == ([row.then] if row.then else [])


def test_plan_waits_only_with_a_time_to_wake() -> None:
    """A situation that time alone resolves names that time: nothing hangs until something else happens."""
    for name in ("backs off", "asked a moment ago", "no answer yet", "just gone", "short good run"):
        row = next(row for row in ROWS if row.name == name)
        assert NOW < plan(row.picture()).wake_at < NOW + 300, name


def test_lane_that_is_busy_is_left_alone() -> None:
    free = vm(spec(), FREE)
    assert plan(picture(free, busy={UUID: Start(free)})).actions == []


def test_a_pause_on_request_is_looked_at_again_and_forgotten_when_it_is_over() -> None:
    still = picture(vm(spec(), status()), domain(DomainState.PAUSED, reason="user"), Note(NOW - 99))
    (known,) = [note for uuid, note in remember(still).items() if uuid == UUID]
    assert known.paused_since == NOW
    assert plan(replace(still, notes={UUID: known})).wake_at == NOW + 3
    again = replace(still, domains={UUID: domain()}, notes={UUID: known})
    assert remember(again)[UUID].paused_since is None


def test_starts_and_migrations_are_limited() -> None:
    vms = {f"{number:036d}": vm(spec(uuid=f"{number:036d}"), FREE) for number in range(6)}
    assert len(plan(picture(vms=vms)).actions) == ClusterSpec("").starts_at_once
    leaving = {uuid: vm(replace(AWAY, uuid=uuid), status()) for uuid in vms}
    targets = dict.fromkeys(vms, (YES, 1))
    seen = picture(vms=leaving, domains={uuid: domain(uuid=uuid) for uuid in vms}, targets=targets)
    assert len(plan(seen).actions) == ClusterSpec("").migrations_at_once
    going_on = {uuid: Migrate(leaving[uuid], YES) for uuid in sorted(vms)[:2]}
    assert len(plan(replace(seen, busy=going_on)).actions) == ClusterSpec("").migrations_at_once - 2


def test_promised_memory_is_not_promised_twice() -> None:
    first, second = spec(memory_mib=3000), spec(uuid="2" * 36, memory_mib=3000, name="web2")
    seen = picture(vms={UUID: vm(first, OTHERS), second.uuid: vm(second, OTHERS)})
    seen = replace(seen, targets={UUID: (Target("n1", 0, 3), 1)})
    assert [told(action) for action in plan(seen).actions] == ["answer 3000 MiB do not fit its free 1096 MiB"]


def test_memory_is_not_promised_twice_in_one_round_either() -> None:
    first, second = spec(memory_mib=3000), spec(uuid="2" * 36, memory_mib=3000, name="web2")
    seen = picture(vms={UUID: vm(first, OTHERS), second.uuid: vm(second, OTHERS)})
    answers = plan(seen).actions
    assert [told(action) for action in answers] == [
        "answer yes",
        "answer 3000 MiB do not fit its free 1096 MiB",
    ]
    being_told = {UUID: answers[0]}
    assert [told(action) for action in plan(replace(seen, busy=being_told)).actions] == [told(answers[1])]


def test_missing_bridge_is_refused() -> None:
    seen = picture(vm(spec(), OTHERS), bridges=frozenset())
    assert [told(action) for action in plan(seen).actions] == ["answer it has no bridge br0"]


def test_flush_lets_only_so_many_leave_at_once() -> None:
    vms = {f"{number:036d}": vm(spec(uuid=f"{number:036d}"), status()) for number in range(5)}
    seen = picture(vms=vms, domains={uuid: domain(uuid=uuid) for uuid in vms}, wanted=Wanted.FLUSHED)
    (evacuate,) = plan(seen).actions
    assert isinstance(evacuate, Evacuate)
    assert len(evacuate.vms) == ClusterSpec("").migrations_at_once


def test_flush_says_first_that_it_has_begun() -> None:
    seen = picture(vm(spec(), status()), domain(), wanted=Wanted.FLUSHED, flushed=False)
    assert plan(seen).actions == [Evacuate(())]


def test_backoff_grows_to_a_limit() -> None:
    pauses = [planner.backoff_s(failures) for failures in range(9)]
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 60, 60]


# What is remembered


def after(seen: Picture) -> Note:
    return remember(seen)[UUID]


def test_failure_seen_pushes_the_next_start_back_once() -> None:
    seen = picture(vm(spec(), replace(FREE, failures=3)))
    note = after(seen)
    assert note.not_before == NOW + 4
    assert after(replace(seen, notes={UUID: note}, now=NOW + 2)).not_before == NOW + 4


def test_event_newer_than_the_list_is_kept() -> None:
    """The list was fetched, then the guest powered itself off, its event came, then the list is used."""
    note = Note(running_since=1.0, ended=Ended.SHUTDOWN, ended_at=NOW + 0.01)
    assert after(picture(vm(spec(), status()), domain(), note)).ended is Ended.SHUTDOWN


def test_event_of_an_earlier_run_is_forgotten() -> None:
    note = Note(ended=Ended.SHUTDOWN, ended_at=NOW - 1)
    assert after(picture(vm(spec(), status()), domain(), note)).ended is None
    assert after(picture(vm(AWAY, OTHERS), None, note)).ended is None


def test_gone_counts_only_while_ours_and_idle() -> None:
    mine = vm(spec(), status())
    assert after(picture(mine)).gone_since == NOW
    assert after(picture(mine, None, GONE)).gone_since == GONE.gone_since
    assert after(picture(mine, None, GONE, busy={UUID: Start(mine)})).gone_since is None
    assert after(picture(vm(spec(), OTHERS), None, GONE)).gone_since is None
    assert after(picture(mine, domain(), GONE)).gone_since is None


def test_run_begins_when_it_is_first_seen_and_ends_when_it_is_not() -> None:
    mine = vm(spec(), status())
    begun = after(picture(mine, domain()))
    assert begun.running_since == NOW
    going_on = after(picture(mine, domain(), begun, now=NOW + 7))
    assert going_on.running_since == NOW
    assert after(picture(mine, None, going_on)).running_since is None
    assert after(picture(vm(AWAY, OTHERS), None, going_on)).running_since is None
    assert after(picture(mine, None, going_on, busy={UUID: Start(mine)})).running_since is None


def test_end_of_a_vm_that_is_expected_is_kept_until_it_is_handed_over() -> None:
    """It powered itself off right after it arrived: not a failure, once it is ours."""
    note = Note(ended=Ended.SHUTDOWN, ended_at=NOW)
    assert after(picture(vm(spec(), OTHERS), None, note)).ended is Ended.SHUTDOWN


def test_what_was_asked_and_awaited_is_forgotten_with_the_vm() -> None:
    old = Note(asked_first=NOW - 5, asked_last=NOW - 4, waiting_since=NOW - 3, waiting_for=0)
    seen = after(picture(vm(AWAY, OTHERS), None, old))
    assert (seen.asked_first, seen.asked_last, seen.waiting_since, seen.waiting_for) == (None, None, None, -1)
    seen = after(picture(vm(spec(), status()), domain(), old))
    assert (seen.asked_first, seen.asked_last, seen.waiting_since, seen.waiting_for) == (None, None, None, -1)


def test_shutdown_that_is_withdrawn_before_it_was_asked_is_forgotten() -> None:
    asked = Note(asked_first=NOW - 5, asked_last=NOW - 5)
    assert after(picture(vm(STOPPED, status()), domain(), asked)).asked_first == NOW - 5
    assert after(picture(vm(spec(), status()), domain(), asked)).asked_first is None


def test_waiting_begins_anew_with_each_move() -> None:
    note = after(picture(vm(AWAY, status()), domain()))
    assert (note.waiting_since, note.waiting_for) == (NOW, 0)
    again = after(picture(vm(replace(AWAY, moves=1), status()), domain(), note, now=NOW + 9))
    assert (again.waiting_since, again.waiting_for) == (NOW + 9, 1)


def test_vm_that_could_not_leave_rests_before_the_flush_tries_again() -> None:
    leaving = Note(waiting_since=NOW - 20, waiting_for=1)
    assert after(picture(vm(spec(moves=2), status()), domain(), leaving)).stay_until == NOW + planner.RETRY_S


# Lines of failures.md, 14.2


@pytest.mark.parametrize(
    ("retryable", "before", "state"),
    [(True, 0, State.STARTING), (True, 3, State.STARTING), (True, 4, State.FAIL), (False, 0, State.FAIL)],
)
def test_start_that_failed(retryable: bool, before: int, state: State) -> None:
    claimed = vm(spec(), status(state=State.STARTING, failures=before))
    failed = planner.start_failed(ClusterSpec(""), claimed, "no such disk", retryable=retryable)
    assert (failed.owner, failed.state, failed.failures) == (None, state, before + 1)
    assert failed.reason == "cannot start: no such disk"


def test_reason_counts_failures_in_a_row() -> None:
    reasons = []
    for failures in (0, 1):
        (failed,) = plan(picture(vm(spec(), status(failures=failures)), None, GONE)).actions
        assert isinstance(failed, Commit)
        assert failed.status is not None
        reasons.append(failed.status.reason)
    assert reasons == ["it ended while nobody looked", "it ended while nobody looked (2 times in a row)"]


def test_target_is_given_the_vm_in_the_life_that_answered() -> None:
    for target, owner in ((YES, OTHER), (Target("n2", 5, 7), Owner("n2", 0)), (None, Owner("n2", 0))):
        (left,) = plan(picture(vm(AWAY, TO_N2), None, GONE, target)).actions
        assert isinstance(left, Commit)
        assert left.status is not None
        assert left.status.owner == owner
        assert left.status.migration is None


@pytest.mark.parametrize(("home", "kept"), [(None, None), ("n1", None), ("n3", "n3")])
def test_intent_taken_back_leaves_the_home_of_one_that_is_away(home: str | None, kept: str | None) -> None:
    back = planner.take_back(ME, vm(spec(node="n2", home=home), TO_N2), "no")
    assert back.spec is not None
    assert back.spec.home == kept
    assert back.status is not None
    assert back.status.migration is None


def test_flush_counts_those_that_are_leaving_and_waits_after_a_failure() -> None:
    uuids = [f"{number:036d}" for number in range(5)]
    vms = {uuid: vm(spec(uuid=uuid, node="n2" if uuid in uuids[:2] else "n1"), status()) for uuid in uuids}
    seen = picture(vms=vms, domains={uuid: domain(uuid=uuid) for uuid in uuids}, wanted=Wanted.FLUSHED)
    (evacuate,) = plan(seen).actions
    assert isinstance(evacuate, Evacuate)
    assert len(evacuate.vms) == ClusterSpec("").migrations_at_once - 2
    full = replace(seen, cluster=replace(seen.cluster, migrations_at_once=2))
    assert plan(full).actions == []
    waiting = plan(replace(seen, notes={"node": Note(not_before=NOW + 3)}))
    assert (waiting.actions, waiting.wake_at) == ([], NOW + 3)


def test_refused_answer_promises_nothing() -> None:
    first, second = spec(memory_mib=3000), spec(uuid="2" * 36, memory_mib=3000, name="web2")
    seen = picture(vms={UUID: vm(first, OTHERS), second.uuid: vm(second, OTHERS)})
    for other in (Target("n1", 0, 3, refused="no"), Target("n2", 0, 3)):
        seen = replace(seen, targets={UUID: (other, 1)}, busy={UUID: Start(vm(first, OTHERS))})
        assert [told(action) for action in plan(seen).actions] == ["answer yes"]


def test_14_2_1_target_starts_nothing_before_the_source_is_gone_and_released() -> None:
    """Fallback by shutdown, guest ignores ACPI: whatever the state says, the owner is who counts."""
    moved = replace(AWAY, node="n1", move_method=Method.SHUTDOWN)  # seen from the target, n1
    for state in State:
        seen = picture(vm(moved, status(OTHER, state)), target=Target("n1", 0, 3))
        assert not any(isinstance(action, Start) for action in plan(seen).actions), state


def test_14_2_1_source_keeps_ownership_while_the_guest_ignores_acpi() -> None:
    leaving = vm(replace(AWAY, move_method=Method.SHUTDOWN), status(state=State.MIGRATE))
    for asked in (NOW - 5, NOW - 15, NOW - 179, NOW - 181, NOW - 1000):
        seen = picture(leaving, domain(), Note(asked_first=asked, asked_last=asked), YES)
        assert not [action for action in plan(seen).actions if isinstance(action, Commit)], asked


def test_14_2_2_migration_that_failed_holds_nothing() -> None:
    """Nothing is locked: an answer counts for one request, and the next request gets a new one."""
    stale = Target("n1", 0, 3)
    again = replace(spec(), moves=1)  # seen from the target, n1
    (answer,) = plan(picture(vm(again, OTHERS), target=stale)).actions
    assert isinstance(answer, Answer)
    assert (answer.target.moves, answer.target.refused) == (1, "")


def test_14_2_3_target_that_never_answers_holds_nothing_up() -> None:
    """The intent is taken back with the reason, and the VM can be moved again at once."""
    seen = picture(vm(AWAY, status()), domain(), Note(waiting_since=NOW - 21, waiting_for=0))
    (back,) = plan(seen).actions
    assert isinstance(back, Commit)
    assert back.spec is not None
    assert back.status is not None
    assert back.status.reason == "not moved to n2: n2 does not answer"
    again = vm(replace(back.spec, node="n3", moves=back.spec.moves + 1), back.status)
    assert plan(picture(again, domain(), target=Target("n3", 2, 1))).actions == [
        Migrate(again, Target("n3", 2, 1))
    ]


@pytest.mark.parametrize("event", [None, Ended.SHUTDOWN])
def test_14_2_4_lost_events_change_no_decision_that_was_wanted(event: Ended | None) -> None:
    wanted = [
        (STOPPED, State.STOP),
        (spec(restarts=1), State.STARTING),
        (replace(AWAY, move_method=Method.SHUTDOWN), State.STARTING),
    ]
    for the_spec, state in wanted:
        (release,) = plan(
            picture(vm(the_spec, status()), None, Note(gone_since=NOW - 2, ended=event))
        ).actions
        assert isinstance(release, Commit)
        assert release.status is not None
        assert (release.status.state, release.status.owner) == (state, None)


def test_14_2_5_source_restarted_mid_migration_looks_at_its_own_qemu() -> None:
    """Its daemon died: the old migration is ended first, and what it left running is never started twice."""
    found = vm(AWAY, replace(TO_N2, owner=EARLIER_ME))
    (adopt,) = plan(picture(found, domain(migrating=True))).actions
    assert isinstance(adopt, Commit)
    assert adopt.status is not None
    assert adopt.status.migration == Migration("n2")
    (left,) = plan(picture(vm(replace(AWAY, node="n1", moves=1), adopt.status), None, GONE)).actions
    assert isinstance(left, Commit)
    assert left.status is not None
    assert left.status.owner == Owner("n2", 0)


def test_14_2_6_restart_kills_a_hung_guest() -> None:
    hung = Note(asked_first=NOW - 180, asked_last=NOW - 1)
    assert told(plan(picture(vm(spec(restarts=1), status()), domain(), hung)).actions[0]) == "destroy restart"


def test_who_starts_first_is_a_matter_of_priority() -> None:
    """14.2.12: not all at once, and the important ones first."""
    vms = {
        f"{number:036d}": vm(spec(uuid=f"{number:036d}", start_priority=number), FREE) for number in range(6)
    }
    begun = plan(picture(vms=vms)).actions
    assert [action.vm.spec.start_priority for action in begun if isinstance(action, Start)] == [5, 4, 3, 2]


def test_14_2_7_nothing_is_shut_down_for_a_target_that_did_not_answer() -> None:
    for method in Method:
        leaving = vm(replace(AWAY, move_method=method), status())
        for waited in (0.0, 10.0, 30.0):
            seen = picture(leaving, domain(), Note(waiting_since=NOW - waited, waiting_for=0))
            assert not any(isinstance(action, Shutdown | Migrate) for action in plan(seen).actions)


@pytest.mark.parametrize("power", [Power.STOPPED, Power.DISABLED])
def test_14_2_9_ready_starts_no_disabled_vm(power: Power) -> None:
    kept = vm(spec(power=power, autostart=True), status(None, State.STOP))
    seen = picture(kept, flushed=True)
    assert plan(seen).actions == [FetchBack((kept,) if power is Power.STOPPED else ())]


def test_ready_brings_home_what_was_away() -> None:
    away = vm(spec(node="n2", home="n1"), OTHERS)
    assert plan(picture(away, flushed=True)).actions == [FetchBack((away,))]


LISTED = "Ceph takes no writes from it"


def on_ceph(spec: VMSpec) -> VMSpec:
    disk = domainxml.NewDisk("vms/web1", "raw", is_rbd=True)
    xml = domainxml.create("web1", UUID, memory_mib=512, vcpus=1, disks=[disk])
    return replace(spec, definition=xml)


def told_with(problem: str, the_vm: VM, runs: Domain | None = None, *, flushed: bool = False) -> list[str]:
    seen = picture(the_vm, runs, ceph_problem=problem, flushed=flushed)
    return [told(action) for action in plan(seen).actions]


def test_vm_on_ceph_waits_while_there_is_a_problem_with_ceph_and_says_so_once() -> None:
    waiting = vm(on_ceph(spec()), FREE)
    (said,) = plan(picture(waiting, ceph_problem=LISTED)).actions
    assert isinstance(said, Commit)
    assert said.spec is None
    assert said.status == replace(FREE, reason=f"waits: {LISTED}")
    assert told_with(LISTED, vm(waiting.spec, said.status)) == []
    assert told_with(planner.NOT_LOOKED, waiting) == []
    assert told_with("", vm(waiting.spec, said.status)) == ["start"]
    assert told_with(LISTED, vm(spec(), FREE)) == ["start"]


def test_vm_on_ceph_may_not_come_while_there_is_a_problem_with_ceph() -> None:
    coming = vm(on_ceph(spec()), OTHERS)
    assert told_with(LISTED, coming) == [f"answer {LISTED}"]
    assert told_with(planner.NOT_LOOKED, coming) == []
    assert told_with("", coming) == ["answer yes"]
    assert told_with(LISTED, vm(spec(), OTHERS)) == ["answer yes"]


def test_vm_on_ceph_is_fetched_home_when_there_is_no_problem_with_ceph_any_more() -> None:
    away = vm(spec(node="n2", home="n1"), OTHERS)
    on = vm(on_ceph(away.spec), OTHERS)
    assert told_with(LISTED, on, flushed=True) == []
    assert told_with("", on, flushed=True) == ["fetch 1"]
    seen = replace(picture(ceph_problem=LISTED, flushed=True), vms={UUID: on, "other": away})
    assert plan(seen).actions == [FetchBack((away,), is_all=False)]
    assert LISTED in plan(seen).problem


def test_no_disk_is_given_while_there_is_a_problem_with_ceph() -> None:
    wanted = on_ceph(spec())
    shape = domainxml.shape(wanted.definition)
    (drive,) = shape.drives
    getting = vm(replace(wanted, live=(Change(drive.device, drive.digest),)), status(digest=shape.digest))
    runs = domain(digest=shape.digest, rest=shape.rest)
    assert told_with(LISTED, getting, runs) == []
    assert told_with("", getting, runs) == [f"attach {drive.device}"]
