"""Interfaces that come and go while a VM runs: what a node plans, and what a daemon makes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from pvc.cluster import domainxml, paths
from pvc.cluster.codec import dumps
from pvc.cluster.domainxml import NewDisk, NewNic, Shape
from pvc.cluster.store import Put
from pvc.cluster.view import VM
from pvc.cluster.vm import Change, Drive, Interface, Owner, Refusal, VMSpec, settled, under_way
from pvc.errors import Conflict
from pvc.node.actions import Commit
from pvc.node.drivers import DriverError, NoAnswer
from pvc.node.drivers.hypervisor import DomainState
from pvc.node.plan import ASK_AGAIN_S, GIVE_UP_S, Note, plan, remember
from tests.unit.node import test_daemon
from tests.unit.node.pictures import NOW, OTHER, UUID, domain, picture, spec, status, told, vm
from tests.unit.node.test_daemon import Bench

bench = test_daemon.bench

MACS = tuple(f"52:54:00:00:00:0{number}" for number in (1, 2, 3))


def definition(*macs: str, memory_mib: int = 512) -> str:
    nics = [NewNic("br0", mac=mac) for mac in macs]
    return domainxml.create("web1", UUID, memory_mib=memory_mib, vcpus=1, nics=nics)


FIRST = definition(*MACS[:2])
ONE, TWO, THREE = domainxml.shape(definition(*MACS)).interfaces
REST = domainxml.shape(FIRST).rest
COMES, GOES = Change(THREE.mac, THREE.digest), Change(ONE.mac)
WANTED = definition(*MACS)
LESS = definition(MACS[1])


def running(*has: Interface, digest: str = domainxml.digest(FIRST), **changes: Any) -> Any:
    return domain(digest=digest, rest=REST, interfaces=has, **changes)


def known(*has: Interface, **changes: Any) -> Any:
    return status(**{"digest": domainxml.digest(FIRST), "interfaces": has, **changes})


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    spec: VMSpec
    status: Any
    domain: Any
    note: Note | None = None
    bridges: frozenset[str] = frozenset({"br0"})
    then: str = ""


MORE = spec(definition=WANTED, live=(COMES,))
FEWER = spec(definition=LESS, live=(GOES,))
BOTH = known(ONE, TWO)
HAS = running(ONE, TWO)
ASKED = Note(unplugging=ONE.mac, unplug_first=NOW - 5, unplug_last=NOW - 5)
KEPT = Refusal(ONE.mac, "", "it keeps it")

ROWS = [
    Row("nothing is wanted", spec(definition=FIRST), BOTH, HAS),
    Row("one more, not before a start", spec(definition=WANTED), BOTH, HAS),
    Row("one more", MORE, BOTH, HAS, then=f"attach {THREE.mac}"),
    Row("one more, its bridge is not there", MORE, BOTH, HAS, bridges=frozenset()),
    Row("one more, and it is there", MORE, BOTH, running(ONE, TWO, THREE), then="mark"),
    Row(
        "one more, of a paused one",
        MORE,
        known(ONE, TWO, reason="paused by QEMU: ioerror"),
        running(ONE, TWO, state=DomainState.PAUSED, reason="ioerror"),
    ),
    Row("one more, of a silent one", MORE, BOTH, running(ONE, TWO, silent=True)),
    Row("one more, of one that is stopped", replace(MORE, node="n2"), BOTH, HAS),
    Row("one less", FEWER, BOTH, HAS, then=f"detach {ONE.mac}"),
    Row("one less, asked", FEWER, BOTH, HAS, ASKED),
    Row(
        "one less, asked for long enough to ask again",
        FEWER,
        BOTH,
        HAS,
        replace(ASKED, unplug_last=NOW - ASK_AGAIN_S),
        then=f"detach {ONE.mac}",
    ),
    Row(
        "one less, and the guest does not let it go",
        FEWER,
        BOTH,
        HAS,
        replace(ASKED, unplug_first=NOW - GIVE_UP_S),
        then="commit start owner=me",
    ),
    Row("one less, refused", FEWER, known(ONE, TWO, refused=(KEPT,)), HAS),
    Row("one less, and it is gone", FEWER, BOTH, running(TWO), then="mark"),
    Row(
        "another change waits for a start: the same digest",
        spec(definition=definition(*MACS, memory_mib=768), live=(COMES,)),
        BOTH,
        running(ONE, TWO, THREE),
        then="commit start owner=me",
    ),
    Row(
        "another one of the same address",
        spec(definition=FIRST, live=(Change(ONE.mac, ONE.digest),)),
        known(replace(ONE, digest="older"), TWO),
        running(replace(ONE, digest="older"), TWO),
        then=f"detach {ONE.mac}",
    ),
    Row("a domain that is not ours", MORE, known(), domain(digest="")),
    Row("published as it is", spec(definition=FIRST), known(), HAS, then="commit start owner=me"),
]


# Disks, in the same way


def with_disks(*names: str) -> str:
    disks = [NewDisk(f"/srv/{name}.raw", "raw") for name in names]
    return domainxml.create("web1", UUID, memory_mib=512, vcpus=1, disks=disks)


BOOT, DATA = domainxml.shape(with_disks("boot", "data")).drives
NEWER = domainxml.shape(with_disks("boot", "newer")).drives[1]
ADDS, TAKES = Change(DATA.device, DATA.digest), Change(DATA.device)
SWAPS = (TAKES, Change(NEWER.device, NEWER.digest))


def drives(*has: Drive, of: str = "boot", **changes: Any) -> Any:
    xml = with_disks(of)
    return domain(digest=domainxml.digest(xml), rest=domainxml.shape(xml).rest, drives=has, **changes)


def told_of(*has: Drive, **changes: Any) -> Any:
    return status(**{"digest": domainxml.digest(with_disks("boot")), "drives": has, **changes})


TWO_DISKS, ONE_DISK = with_disks("boot", "data"), with_disks("boot")
OTHER_DISK = with_disks("boot", "newer")
ROWS += [
    Row(
        "a disk",
        spec(definition=TWO_DISKS, live=(ADDS,)),
        told_of(BOOT),
        drives(BOOT),
        then=f"attach {DATA.device}",
    ),
    Row("a disk, not before a start", spec(definition=TWO_DISKS), told_of(BOOT), drives(BOOT)),
    Row(
        "a disk, and it is there",
        spec(definition=TWO_DISKS, live=(ADDS,)),
        told_of(BOOT),
        drives(BOOT, DATA),
        then="mark",
    ),
    Row(
        "a disk less",
        spec(definition=ONE_DISK, live=(TAKES,)),
        told_of(BOOT, DATA),
        drives(BOOT, DATA),
        then=f"detach {DATA.device}",
    ),
    Row(
        "another disk of the same name",
        spec(definition=OTHER_DISK, live=SWAPS[::-1]),
        told_of(BOOT, DATA),
        drives(BOOT, DATA),
        then=f"detach {DATA.device}",
    ),
    Row(
        "another disk, its name is free",
        spec(definition=OTHER_DISK, live=SWAPS),
        told_of(BOOT),
        drives(BOOT),
        then=f"attach {NEWER.device}",
    ),
    Row(
        "disks are published as they are",
        spec(definition=ONE_DISK),
        told_of(),
        drives(BOOT),
        then="commit start owner=me",
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(row: Row) -> None:
    seen = picture(vm(row.spec, row.status), row.domain, row.note, bridges=row.bridges)
    seen = replace(seen, notes=remember(seen))
    actions = [told(action) for action in plan(seen).actions]
    assert actions == ([row.then] if row.then else [])


def test_what_was_refused_is_told_until_it_is_not_wanted_any_more() -> None:
    seen = picture(vm(FEWER, BOTH), HAS, replace(ASKED, unplug_first=NOW - GIVE_UP_S))
    (gave_up,) = plan(replace(seen, notes=remember(seen))).actions
    assert isinstance(gave_up, Commit)
    assert gave_up.status is not None
    assert [one.change for one in gave_up.status.refused] == [GOES]
    assert "30 s" in gave_up.status.refused[0].why
    assert not under_way(FEWER, gave_up.status)
    (forgotten,) = plan(picture(vm(spec(definition=FIRST), gave_up.status), HAS)).actions
    assert isinstance(forgotten, Commit)
    assert forgotten.status is not None
    assert forgotten.status.refused == ()


def test_a_guest_that_was_asked_is_asked_again_and_then_not_any_more() -> None:
    seen = picture(vm(FEWER, BOTH), HAS, ASKED)
    assert plan(seen).wake_at == NOW - 5 + ASK_AGAIN_S


def test_it_is_forgotten_that_a_guest_was_asked_when_it_has_obeyed() -> None:
    """Else the next request would be given up at once."""
    seen = picture(vm(FEWER, BOTH), running(TWO), ASKED)
    assert remember(seen)[UUID].unplugging == ""
    seen = picture(vm(spec(definition=FIRST), BOTH), HAS, ASKED)
    assert remember(seen)[UUID].unplugging == "", "or when it is not wanted any more"


def test_a_vm_is_not_taken_where_the_bridge_of_what_it_has_still_is_missing() -> None:
    """Its definition does not have it any more."""
    old = replace(TWO, bridge="br7")
    there = known(ONE, old, owner=OTHER)
    for bridges, answer in ((frozenset({"br0", "br7"}), "yes"), (frozenset({"br0"}), "it has no bridge br7")):
        seen = picture(vm(spec(definition=definition(MACS[0])), there), bridges=bridges)
        assert [told(action) for action in plan(seen).actions] == [f"answer {answer}"]


# A daemon


def change(bench: Bench, xml: str, *live: Change) -> None:
    found = bench.vm
    new = replace(found.spec, definition=xml, live=live)
    bench.store.commit(Put(paths.vm(UUID), dumps(new), found.spec_version))


@pytest.fixture
def started(bench: Bench) -> Bench:
    bench.add(spec(definition=FIRST, attempts=1))
    bench.rounds(3)
    bench.lanes[-1].seen.clear()
    return bench


def macs(bench: Bench) -> list[str]:
    return [one.mac for one in bench.host.machines[UUID].domain.interfaces]


def rests(bench: Bench, xml: str) -> None:
    """Nothing is going on or pending, and nothing more is done."""
    bench.rounds(6)
    found: VM = bench.vm
    assert settled(found.spec, found.status)
    assert found.status.digest == domainxml.digest(xml)
    assert found.status.interfaces == bench.host.machines[UUID].domain.interfaces
    assert {*found.status.interfaces} == {*domainxml.shape(xml).interfaces}
    calls = list(bench.host.calls)
    bench.rounds(2)
    assert bench.host.calls == calls


def test_what_it_was_started_with_is_published_with_the_start(started: Bench) -> None:
    assert started.vm.status.interfaces == (ONE, TWO)
    started.rounds(2)
    assert started.lanes[-1].seen == [], "and needs no commit of its own"


def test_one_that_is_wanted_live_comes_and_nothing_is_pending(started: Bench) -> None:
    change(started, WANTED, COMES)
    rests(started, WANTED)
    assert macs(started) == list(MACS)


def test_exactly_the_one_that_is_meant_goes(started: Bench) -> None:
    """Client line 11."""
    started.host.world.guest(UUID).keeps_devices = False
    change(started, LESS, GOES)
    rests(started, LESS)
    assert macs(started) == [MACS[1]]


def test_a_guest_may_take_its_time(started: Bench) -> None:
    change(started, LESS, GOES)
    started.rounds(4)
    assert not settled(started.vm.spec, started.vm.status)
    assert started.host.calls.count(("detach", UUID)) == 1
    started.host.give_up(UUID, MACS[0])
    rests(started, LESS)


@pytest.mark.parametrize("after", ["mark", "attach"])
def test_a_daemon_that_dies_in_the_middle_is_followed_by_one_that_goes_on(
    started: Bench, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when what it had asked for has happened."""
    real = getattr(type(started.host), after)

    def dies(self: object, *arguments: object) -> None:
        real(self, *arguments)
        raise RuntimeError("killed")

    change(started, WANTED, COMES)
    with monkeypatch.context() as patched:
        patched.setattr(type(started.host), after, dies)
        with pytest.raises(RuntimeError):
            started.rounds(2)
    started.daemon = started.begin()
    rests(started, WANTED)
    assert macs(started) == list(MACS), "and has come once"


def test_a_daemon_that_dies_while_the_guest_thinks_is_followed_by_one_that_asks_again(started: Bench) -> None:
    change(started, LESS, GOES)
    started.rounds(2)
    started.daemon = started.begin()
    started.host.world.guest(UUID).keeps_devices = False
    rests(started, LESS)


def test_what_libvirt_refuses_waits_for_the_next_start_and_says_why(started: Bench) -> None:
    started.host.refuses["attach"] = "No more available PCI slots"
    change(started, WANTED, COMES)
    with pytest.raises(DriverError, match="PCI slots"):
        started.rounds(2)
    started.rounds(3)
    (refused,) = started.vm.status.refused
    assert (refused.change, refused.why) == (COMES, "No more available PCI slots")
    assert started.host.calls.count(("attach", UUID)) == 1
    assert settled(started.vm.spec, started.vm.status)
    assert started.vm.status.digest != domainxml.digest(WANTED), "it is pending"


def test_no_answer_is_no_refusal(started: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    change(started, WANTED, COMES)

    def hangs(*_: object) -> None:
        raise NoAnswer("no answer within 10 s", retryable=True)

    with monkeypatch.context() as patched:
        patched.setattr(type(started.host), "attach", hangs)
        with pytest.raises(NoAnswer):
            started.rounds(2)
    assert started.vm.status.refused == ()
    rests(started, WANTED)


def test_a_change_of_the_spec_on_the_way_is_looked_at_again(started: Bench) -> None:
    change(started, WANTED, COMES)
    started.host.after_listing = lambda: change(started, FIRST)
    with pytest.raises(Conflict):
        started.rounds()
    started.host.after_listing = lambda: None
    rests(started, FIRST)
    assert macs(started) == list(MACS[:2])


def test_another_pending_change_stays_pending(started: Bench) -> None:
    change(started, definition(*MACS, memory_mib=768), COMES)
    started.rounds(4)
    assert macs(started) == list(MACS)
    assert settled(started.vm.spec, started.vm.status)
    assert started.vm.status.digest == domainxml.digest(FIRST)
    change(started, WANTED, COMES)
    rests(started, WANTED)


def test_a_stop_and_a_start_bring_what_was_pending(started: Bench) -> None:
    change(started, WANTED)
    started.rounds(3)
    assert macs(started) == list(MACS[:2])
    started.host.crash(UUID)
    found = started.vm
    bumped = replace(found.spec, attempts=found.spec.attempts + 1)
    started.store.commit(Put(paths.vm(UUID), dumps(bumped), found.spec_version))
    rests(started, WANTED)


def test_a_domain_of_an_older_daemon_is_published_and_gets_and_loses_interfaces(started: Bench) -> None:
    """It carries nothing of its interfaces."""
    digest = domainxml.digest(FIRST)
    started.host.mark(UUID, Shape(digest))
    started.daemon = started.begin()
    started.rounds(3)
    assert [(one.mac, one.digest) for one in started.vm.status.interfaces] == [(mac, "") for mac in MACS[:2]]
    started.host.world.guest(UUID).keeps_devices = False
    change(started, definition(*MACS[1:]), GOES, COMES)
    started.rounds(6)
    assert macs(started) == list(MACS[1:])
    assert settled(started.vm.spec, started.vm.status)


def test_one_that_moves_changes_where_it_arrives_and_what_was_refused_is_tried_there(bench: Bench) -> None:
    test_daemon.depart(bench, 1)
    found = bench.vm
    new = replace(found.spec, definition=WANTED, live=(COMES,))
    refused = replace(found.status, refused=(Refusal(COMES.device, COMES.digest, "no port is free"),))
    bench.store.commit(
        Put(paths.vm(UUID), dumps(new), found.spec_version),
        Put(paths.vm_status(UUID), dumps(refused), found.status_version or 0),
    )
    bench.rounds()
    assert bench.vm.status.owner == Owner("n2", 1)
    assert ("attach", UUID) not in bench.host.calls
    assert under_way(bench.vm.spec, bench.vm.status) == (COMES,)
