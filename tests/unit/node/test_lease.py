"""A node's promise: what proves contact, when the watchdog is fed, and what ends when the lease does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from pvc.cluster import domainxml
from pvc.cluster.timing import Timing
from pvc.errors import Unavailable
from pvc.node.drivers import DriverError
from pvc.node.drivers.hypervisor import DomainState
from pvc.node.lease import ContactFile, Guard, Lease
from tests.fakes.hypervisor import FakeHypervisor, FakeWorld
from tests.unit.node.pictures import UUID, XML

L = Timing().lease_s


@dataclass
class Clock:
    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 0.0


@dataclass
class Dog:
    name: str = "dog"
    granted: float = 8.0
    fed: int = 0
    is_armed: bool = False
    broken: str = ""
    grants_nothing: bool = False
    """It starts, and then it does not say for how long."""

    def arm(self, seconds: int) -> float:
        if self.broken:
            raise DriverError(self.broken)
        self.is_armed = True
        if self.grants_nothing:
            raise DriverError("invalid argument")
        self.fed += 1
        return self.granted

    def feed(self) -> None:
        if self.broken:
            raise DriverError(self.broken)
        assert self.is_armed
        self.fed += 1

    def disarm(self) -> None:
        self.is_armed = False


@dataclass
class Memory:
    kept: float | None = None
    full: bool = False

    def load(self) -> float | None:
        return self.kept

    def save(self, contact: float) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.kept = contact

    def clear(self) -> None:
        self.kept = None


@dataclass
class Bench:
    clock: Clock = field(default_factory=Clock)
    dog: Dog = field(default_factory=Dog)
    has_dog: bool = True
    memory: Memory = field(default_factory=Memory)
    host: FakeHypervisor = field(default_factory=lambda: FakeHypervisor(FakeWorld(), "n1", 16384, 8))
    in_contact: bool = True
    idle: bool = True
    out: bool = False
    ended: list[str] = field(default_factory=list)
    waiting: list[Callable[[], None]] = field(default_factory=list)
    """Destroys that have not been carried out; None is kept when `slow` is not set."""
    slow: bool = False

    def life(self, *, joined: bool = True) -> Guard:
        dog = self.dog if self.has_dog else None
        guard = Guard(Timing(), self.clock, self.host, dog, self.memory, spawn=self.spawn)
        guard.begin()
        if joined:
            guard.contact, guard.is_idle = self.contact, lambda: self.idle
        guard.is_out, guard.ends = lambda: self.out, self.ended.append
        return guard

    def spawn(self, function: Callable[[], None]) -> None:
        if self.slow:
            self.waiting.append(function)
        else:
            function()

    def contact(self) -> bool:
        if not self.in_contact:
            raise Unavailable("no server answers")
        return True

    def armed(self) -> Guard:
        guard = self.life()
        guard.arm()
        return guard

    def after(self, seconds: float) -> None:
        self.clock.now += seconds

    def run(self) -> None:
        self.host.start(domainxml.render(XML, emulation="qemu", emulator="/qemu", console_log="/log"))


def feeds(bench: Bench, guard: Guard) -> bool:
    before = bench.dog.fed
    guard.feed()
    return bench.dog.fed > before


def test_nothing_is_promised_before_the_watchdog_is_armed() -> None:
    bench = Bench()
    guard = bench.life()
    assert guard.promise == 0
    assert not feeds(bench, guard)
    assert guard.may_start()
    guard.arm()
    assert guard.promise == Timing().quiet_after_s(8)
    assert bench.memory.kept == 1000


def test_promise_follows_from_what_the_device_grants() -> None:
    bench = Bench(dog=Dog(granted=30))
    assert bench.armed().promise == Timing().quiet_after_s(30)


def test_nothing_holds_before_the_first_contact() -> None:
    bench = Bench(in_contact=False)
    guard = bench.life()
    with pytest.raises(Unavailable):
        guard.arm()
    assert (guard.promise, guard.lease.armed, bench.dog.is_armed) == (0, False, False)


@pytest.mark.parametrize("spoil", ["device", "memory"])
def test_what_cannot_be_kept_is_not_promised(spoil: str) -> None:
    """Until it can be."""
    bench = Bench()
    bench.dog.broken = "no such device" if spoil == "device" else ""
    bench.memory.full = spoil == "memory"
    guard = bench.armed()
    assert (guard.promise, bench.dog.is_armed, bench.memory.kept) == (0, False, None)
    assert guard.lease.armed
    bench.dog.broken, bench.memory.full = "", False
    guard.feed()
    assert guard.promise
    assert bench.memory.kept == 1000


def test_watchdog_that_starts_and_cannot_be_used_is_disarmed_unless_somebody_relies_on_it() -> None:
    bench = Bench(dog=Dog(grants_nothing=True))
    guard = bench.armed()
    assert (guard.promise, guard.told, bench.dog.is_armed) == (0, "invalid argument", False)
    bench = Bench()
    bench.armed()
    bench.dog.grants_nothing = True
    bench.life(joined=False)
    assert bench.dog.is_armed, "an earlier life has promised it"


@pytest.mark.parametrize("granted", [2.0, 600.0])
def test_watchdog_that_grants_too_little_or_too_much_is_not_used(granted: float) -> None:
    bench = Bench(dog=Dog(granted=granted))
    guard = bench.armed()
    assert f"grants {granted:g} s" in guard.told
    assert (guard.promise, bench.dog.is_armed, bench.memory.kept) == (0, False, None)


def test_lease_ends_vms_where_there_is_no_watchdog_too() -> None:
    """Though nothing is promised."""
    bench = Bench(has_dog=False)
    guard = bench.armed()
    bench.run()
    bench.after(1)
    guard.prove()
    assert guard.promise == 0
    bench.in_contact = False
    bench.after(L)
    guard.feed()
    guard.prove()
    assert not guard.may_start()
    guard.end()
    assert bench.ended == [UUID]


def killed_without_a_watchdog() -> Bench:
    """Its daemon, which was in contact; a VM runs on."""
    bench = Bench(has_dog=False)
    guard = bench.armed()
    bench.run()
    bench.after(1)
    guard.prove()
    return bench


def test_next_life_without_a_watchdog_ends_vms_too_when_it_finds_no_contact() -> None:
    bench = killed_without_a_watchdog()
    bench.in_contact = False
    guard = bench.life()
    bench.after(L - 0.1)
    guard.prove()
    guard.end()
    assert not bench.ended
    bench.after(0.1)
    guard.end()
    assert bench.ended == [UUID]


def test_daemon_without_a_watchdog_that_was_away_for_long_has_time_to_find_contact() -> None:
    bench = killed_without_a_watchdog()
    bench.after(10_000)
    guard = bench.life()
    guard.end()
    bench.after(5)
    guard.prove()
    bench.after(L - 1)
    guard.end()
    assert not bench.ended


def test_life_without_a_watchdog_that_left_cleanly_leaves_nothing_to_the_next_one() -> None:
    bench = killed_without_a_watchdog()
    bench.life().disarm()
    bench.in_contact = False
    guard = bench.life()
    bench.after(1000)
    guard.end()
    assert not bench.ended


def test_contact_is_the_moment_before_the_commit() -> None:
    bench = Bench()
    guard = bench.armed()

    def slow_commit() -> bool:
        bench.after(3)
        return True

    guard.contact = slow_commit
    guard.prove()
    assert guard.lease.contact == 1000
    guard.prove()
    assert guard.lease.contact == bench.memory.kept == 1003


def test_time_that_asking_takes_is_no_pause() -> None:
    """The proof counts on a question each second, whether they are answered or not."""
    bench = Bench()
    guard = bench.armed()
    assert guard.prove() == 1.0
    bench.in_contact = False
    bench.after(3)

    def slow() -> bool:
        bench.after(0.7)
        return False

    guard.is_out = slow
    assert guard.prove() == pytest.approx(0.3)


def test_watchdog_is_fed_as_long_as_the_lease_holds() -> None:
    bench = Bench()
    guard = bench.armed()
    bench.run()
    bench.in_contact = False
    bench.after(L - 0.1)
    guard.prove()
    assert feeds(bench, guard)
    bench.after(0.1)
    assert not feeds(bench, guard)
    assert not guard.may_start()


def test_end_of_the_lease_ends_what_runs() -> None:
    bench = Bench(slow=True)
    guard = bench.armed()
    bench.run()
    guard.end()
    assert not bench.waiting
    bench.after(L)
    guard.end()
    guard.end()
    assert bench.ended == [UUID], "once"
    assert not feeds(bench, guard)
    bench.waiting.pop()()
    guard.end()
    assert not bench.host.domains()
    assert feeds(bench, guard), "nothing of it runs: no reason to reset it"
    bench.after(5)
    assert not feeds(bench, guard), "that was long ago"


def test_while_anything_can_begin_to_run_it_is_not_fed() -> None:
    bench = Bench(idle=False)
    guard = bench.armed()
    bench.after(L)
    guard.end()
    assert not feeds(bench, guard)
    bench.idle = True
    guard.end()
    assert feeds(bench, guard)
    bench.run()  # what a lane had begun after all
    guard.end()
    assert not bench.host.domains()


def test_vm_that_is_on_its_way_here_is_ended_too() -> None:
    bench = Bench()
    guard = bench.armed()
    bench.run()
    machine = bench.host.machines[UUID]
    bench.host.machines[UUID] = replace(
        machine, domain=replace(machine.domain, state=DomainState.INCOMING, digest="")
    )
    bench.after(L)
    guard.end()
    assert bench.ended == [UUID]


def test_domain_of_somebody_else_is_left_alone() -> None:
    bench = Bench()
    guard = bench.armed()
    bench.run()
    machine = bench.host.machines[UUID]
    bench.host.machines[UUID] = replace(machine, domain=replace(machine.domain, digest=""))
    bench.after(L)
    guard.end()
    assert bench.ended == []


def test_vm_that_has_lost_our_metadata_before_this_life_is_ended_too() -> None:
    bench = Bench()
    guard = bench.armed()
    bench.run()
    machine = bench.host.machines[UUID]
    bench.host.machines[UUID] = replace(machine, domain=replace(machine.domain, digest=""))
    guard.known = {UUID}
    bench.after(L)
    guard.end()
    assert bench.ended == [UUID]


@pytest.mark.parametrize("accident", ["lose_metadata", "plug_in"])
def test_vm_that_somebody_has_changed_is_ended_too(accident: str) -> None:
    bench = Bench()
    guard = bench.armed()
    bench.run()
    if accident == "lose_metadata":
        bench.host.lose_metadata(UUID)
    else:
        for _ in range(2):
            bench.host.plug_in(
                UUID, '<interface type="bridge"><mac address="52:54:00:00:00:01"/></interface>'
            )
    bench.after(L)
    guard.end()
    assert bench.ended == [UUID]


def test_what_is_over_ends_even_if_contact_is_back_meanwhile() -> None:
    bench = Bench(slow=True)
    guard = bench.armed()
    bench.run()
    bench.after(L)
    guard.end()
    guard.prove()
    assert not guard.may_start()
    guard.end()
    assert guard.lease.over
    bench.waiting.pop()()
    guard.end()
    assert guard.may_start()


def test_outage_of_the_whole_store_extends_the_lease() -> None:
    bench = Bench(out=True)
    guard = bench.armed()
    bench.run()
    bench.in_contact = False
    for _ in range(60):
        bench.after(1)
        guard.prove()
        guard.end()
        assert feeds(bench, guard)
    assert not bench.ended
    bench.out = False
    bench.after(L)
    guard.prove()
    guard.end()
    assert bench.ended


def test_outage_does_not_bring_back_what_is_over() -> None:
    """Frozen for long, and then everybody says that the store is out: this lease had ended before."""
    bench = Bench(out=True)
    guard = bench.armed()
    bench.in_contact = False
    bench.after(L)
    guard.prove()
    assert not feeds(bench, guard)
    guard.end()
    guard.prove()
    assert guard.lease.over


def test_answer_that_comes_late_counts_from_the_question() -> None:
    bench = Bench()
    guard = bench.armed()
    bench.in_contact = False
    bench.after(5)

    def slow() -> bool:
        bench.after(4)
        return True

    guard.is_out = slow
    guard.prove()
    assert guard.lease.contact == 1005


def test_next_life_goes_on_from_the_contact_of_the_last_one() -> None:
    bench = Bench()
    bench.armed()
    bench.after(5)
    guard = bench.life(joined=False)
    assert guard.lease.contact == 1000
    assert guard.promise
    assert bench.dog.fed == 2
    bench.after(L - 5)
    assert not feeds(bench, guard)


def test_next_life_that_comes_too_late_does_not_open_the_watchdog() -> None:
    bench = Bench()
    bench.armed()
    bench.run()
    bench.after(L)
    guard = bench.life(joined=False)
    assert bench.dog.fed == 1
    guard.end()
    guard.end()
    assert bench.ended == [UUID]
    assert not feeds(bench, guard), "what the last life has begun nobody knows"


def test_next_life_in_contact_feeds_again() -> None:
    bench = Bench()
    bench.armed()
    bench.after(L)
    guard = bench.life()
    guard.end()
    guard.prove()
    assert feeds(bench, guard)
    guard.end()
    assert guard.may_start()
    assert guard.promise


def test_disarmed_nothing_holds() -> None:
    bench = Bench()
    guard = bench.armed()
    guard.disarm()
    assert (guard.promise, bench.dog.is_armed, bench.memory.kept) == (0, False, None)
    bench.run()
    bench.after(1000)
    guard.end()
    assert not feeds(bench, guard)
    assert not bench.ended
    assert guard.may_start()


def test_contact_that_is_confirmed_late_does_not_arm_the_next_life() -> None:
    """A commit is on its way while the promise is taken back."""
    bench = Bench()
    guard = bench.armed()

    def slow_commit() -> bool:
        guard.disarm()
        return True

    guard.contact = slow_commit
    guard.prove()
    assert bench.memory.kept is None


def test_life_that_was_fenced_leaves_no_watchdog_to_the_next_one() -> None:
    bench = Bench()
    guard = bench.armed()
    guard.retire()
    assert bench.dog.is_armed, "it may run something"
    bench.after(L)
    guard.end()
    guard.retire()
    assert not bench.dog.is_armed
    assert bench.memory.kept is None


def test_full_tmpfs_keeps_what_it_had() -> None:
    bench = Bench()
    guard = bench.armed()
    bench.memory.full = True
    bench.after(5)
    guard.prove()
    assert guard.lease.contact == 1005
    assert bench.memory.kept == 1000


def test_watchdog_that_fails_is_said_and_tried_again() -> None:
    bench = Bench()
    guard = bench.armed()
    bench.dog.broken = "it burns"
    guard.feed()
    bench.dog.broken = ""
    assert feeds(bench, guard)


def test_lease_as_a_value() -> None:
    lease = Lease(12, contact=100, armed=True)
    assert lease.feeds(111.9)
    assert not lease.feeds(112)
    assert not replace(lease, over=True).may_start(101)
    assert replace(lease, quiet_at=200).feeds(202)
    assert not replace(lease, quiet_at=200).feeds(203)
    assert not Lease(12).feeds(0)


def test_file_of_another_boot_says_nothing(tmp_path: Path) -> None:
    boot = tmp_path / "boot_id"
    boot.write_text("one\n")
    ContactFile(str(tmp_path / "run/contact"), str(boot)).save(5.0)
    assert ContactFile(str(tmp_path / "run/contact"), str(boot)).load() == 5.0
    boot.write_text("two\n")
    assert ContactFile(str(tmp_path / "run/contact"), str(boot)).load() is None


def test_list_of_coordinators_that_changed_between_two_lives_is_doubted(tmp_path: Path) -> None:
    boot, file = tmp_path / "boot_id", str(tmp_path / "contact")
    boot.write_text("one")
    first = ContactFile(file, str(boot), ["a", "b"])
    assert not first.doubt()
    first.save(5.0)
    assert not ContactFile(file, str(boot), ["b", "a"]).doubt()
    assert "has changed" in ContactFile(file, str(boot), ["a"]).doubt()


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"boot": "one"}', '{"contact": null, "boot": "one"}'])
def test_file_that_cannot_be_read_means_that_the_lease_is_over(tmp_path: Path, torn: str) -> None:
    boot = tmp_path / "boot_id"
    boot.write_text("one")
    (tmp_path / "contact").write_text(torn)
    memory = ContactFile(str(tmp_path / "contact"), str(boot))
    assert memory.load() == float("-inf")
    memory.clear()
    memory.clear()
    assert memory.load() is None
