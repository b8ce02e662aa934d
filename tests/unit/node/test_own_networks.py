"""A node's own networks over boots, lives of the daemon and changes: what is kept, and what is taken back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pvc.config import parse
from pvc.errors import Failed, Invalid, PVCError, Unavailable
from pvc.node.drivers import DriverError
from pvc.node.drivers.host_state import AddAddress, Device, DeviceAddress, HostStep
from pvc.node.own_networks import (
    CHANGED,
    LOOK_S,
    RETRY_S,
    SHORT_TRIAL_S,
    TRIAL_S,
    Answer,
    FileMemory,
    Lasting,
    Now,
    OwnNetworks,
    Site,
    site_of,
)
from tests.fakes.host_networks import FakeHost

CLUSTER = {"device": "eth1", "address": "10.0.1.1/24"}
UPSTREAM = {"device": "eth0", "address": "10.0.0.1/24", "gateway": "10.0.0.254"}
WRONG = {"device": "eth1", "address": "10.9.9.1/24"}
NOT_REACHED = "the cluster was not reached with it"


def site(address: str = "10.0.1.1", **sections: Any) -> Site:
    return site_of(parse({"node": {"address": address}, "network": sections}))


GOOD = site(cluster=CLUSTER, upstream=UPSTREAM)
BAD = site("10.9.9.1", cluster=WRONG, upstream=UPSTREAM)


@dataclass
class Memory:
    """What survives a boot, and what does not."""

    runs: Now | None = None
    lasts: Lasting = field(default_factory=Lasting)
    asked: str = "first"
    answers: list[Answer] = field(default_factory=list)
    fails: bool = False

    def now(self) -> Now | None:
        return self.runs

    def lasting(self) -> Lasting:
        return self.lasts

    def remember(self, known: Now | Lasting) -> None:
        if self.fails:
            raise Failed("/var/lib/pvc/networks.json cannot be written: No space left on device")
        if isinstance(known, Now):
            self.runs = known
        else:
            self.lasts = known

    def request(self) -> str:
        return self.asked

    def answer(self, answer: Answer) -> None:
        self.answers.append(answer)


@dataclass
class ManualClock:
    now: float = 100.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 0.0


class Machine:
    """Boots, and runs daemons one after the other."""

    def __init__(self, configured: Site = GOOD) -> None:
        self.configured: Site | PVCError = configured
        self.memory = Memory()
        self.clock = ManualClock()
        self.published: list[tuple[str, ...]] = []
        self.reached: Callable[[], bool] = lambda: "10.0.1.1/24" in self.addresses()
        """Whether the store answers."""
        self.armed = False
        self.host = FakeHost()
        self.power_on()

    def power_on(self) -> None:
        self.memory.runs = None
        self.host = FakeHost({name: Device(name, mtu=1500, up=False) for name in ("eth0", "eth1", "eth2")})

    def boot(self) -> tuple[str, ...]:
        self.power_on()
        return self.process().up()

    def process(self) -> OwnNetworks:
        own = OwnNetworks(
            self.host, self.memory, self._configured, "10.0.1.1", ["10.0.1.2"], self.clock, spawn=self._spawn
        )
        own.contact = self._contact
        own.may_be_cut_off = lambda: not self.armed
        own.publish = self.published.append
        return own

    def daemon(self) -> OwnNetworks:
        own = self.process()
        own.begin()
        return own

    def apply(self, own: OwnNetworks, configured: Site) -> float:
        """The round that begins with it."""
        self.configured = configured
        own.ask()
        return own.step()

    def _configured(self) -> Site:
        if isinstance(self.configured, PVCError):
            raise self.configured
        return self.configured

    def _spawn(self, act: Callable[[], None]) -> None:
        act()

    def _contact(self) -> bool:
        if not self.reached():
            raise Unavailable("the store does not answer")
        return True

    def addresses(self) -> set[str]:
        return {one.value for one in self.host.addresses}

    def run(self, own: OwnNetworks, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now += max(0.05, min(own.step(), end - self.clock.now))
        own.step()


@pytest.fixture
def machine() -> Machine:
    return Machine()


# Boots


def test_at_boot_it_is_as_described(machine: Machine) -> None:
    assert machine.boot() == ()
    assert machine.addresses() == {"10.0.1.1/24", "10.0.0.1/24"}
    machine.host.taken.clear()
    own = machine.daemon()
    own.step()
    assert machine.host.taken == []
    assert machine.published == []


def test_at_boot_another_description_is_believed(machine: Machine) -> None:
    machine.boot()
    machine.configured = site(cluster={**CLUSTER, "device": "eth2"}, upstream=UPSTREAM)
    machine.boot()
    assert DeviceAddress("10.0.1.1/24", "eth2", 0x71) in machine.host.addresses


def test_without_sections_nothing_is_touched(machine: Machine) -> None:
    machine.configured = Site()
    assert machine.boot() == ()
    own = machine.daemon()
    looks = machine.host.looks
    machine.run(own, 3 * LOOK_S)
    assert machine.host.taken == []
    assert machine.host.looks == looks, "there is nothing to look at"


def test_what_is_not_described_any_more_goes_when_that_is_applied(machine: Machine) -> None:
    machine.boot()
    own = machine.daemon()
    machine.reached = lambda: True
    machine.apply(own, Site())
    machine.run(own, 2)
    assert [one.outcome for one in machine.memory.answers] == ["kept"]
    assert machine.addresses() == set()


def test_bring_up_again_in_the_same_boot_changes_only_what_differs(machine: Machine) -> None:
    machine.boot()
    machine.configured = BAD
    machine.host.addresses.clear()
    assert machine.process().up() == (CHANGED,)
    assert machine.addresses() == {"10.0.1.1/24", "10.0.0.1/24"}


# A daemon


def test_a_daemon_never_applies_by_itself(machine: Machine) -> None:
    machine.boot()
    machine.configured = BAD
    own = machine.daemon()
    machine.run(own, 2 * LOOK_S)
    assert machine.addresses() == {"10.0.1.1/24", "10.0.0.1/24"}
    assert machine.published == [(CHANGED,)]


def test_a_daemon_without_the_service_brings_up_only_what_was_good_before(machine: Machine) -> None:
    machine.daemon()
    assert machine.addresses() == set()
    machine.boot()
    machine.power_on()
    machine.daemon()
    assert machine.addresses() == {"10.0.1.1/24", "10.0.0.1/24"}


def test_what_somebody_else_changes_is_corrected(machine: Machine) -> None:
    machine.boot()
    own = machine.daemon()
    own.step()
    machine.host.addresses.clear()
    machine.run(own, LOOK_S)
    assert machine.addresses() == {"10.0.1.1/24", "10.0.0.1/24"}
    assert machine.published == []


def test_a_device_that_is_missing_is_a_problem_until_it_is_there(machine: Machine) -> None:
    machine.power_on()
    gone = machine.host.devices.pop("eth0")
    machine.process().up()
    own = machine.daemon()
    own.step()
    assert machine.published == [("there is no device eth0, which network.upstream.device names",)]
    assert machine.addresses() == {"10.0.1.1/24"}
    machine.host.devices["eth0"] = gone
    machine.run(own, RETRY_S)
    assert machine.published[-1] == ()
    assert machine.addresses() == {"10.0.1.1/24", "10.0.0.1/24"}


def test_a_pvc_toml_that_cannot_be_read_is_a_problem_and_changes_nothing(machine: Machine) -> None:
    machine.boot()
    machine.configured = Invalid("pvc.toml: unknown key network.clutser")
    own = machine.daemon()
    own.step()
    assert machine.published == [("pvc.toml: unknown key network.clutser",)]
    own.ask()
    own.step()
    assert machine.memory.answers == [Answer("first", "refused", "pvc.toml: unknown key network.clutser")]
    assert machine.addresses() == {"10.0.1.1/24", "10.0.0.1/24"}


# Trials


def test_a_change_with_which_the_cluster_is_reached_is_kept(machine: Machine) -> None:
    machine.boot()
    own = machine.daemon()
    after = site(cluster=CLUSTER, storage={"device": "eth2", "address": "10.0.2.1/24"})
    machine.apply(own, after)
    machine.run(own, 2)
    assert machine.memory.answers == [Answer("first", "kept")]
    assert machine.addresses() == {"10.0.1.1/24", "10.0.2.1/24"}
    assert (machine.memory.runs, machine.memory.lasts) == (Now(after), Lasting(after))
    assert not machine.host.routes


def test_a_change_that_loses_the_cluster_is_rolled_back(machine: Machine) -> None:
    machine.boot()
    before = machine.host.state()
    own = machine.daemon()
    machine.apply(own, BAD)
    machine.run(own, TRIAL_S - 1)
    assert machine.addresses() == {"10.9.9.1/24", "10.0.0.1/24"}
    assert machine.memory.answers == []
    machine.run(own, 2)
    assert {*machine.host.state().addresses} == {*before.addresses}
    assert {*machine.host.state().routes} == {*before.routes}
    assert machine.memory.answers == [Answer("first", "back", NOT_REACHED)]
    assert machine.published == [(f"what pvc.toml describes was rolled back: {NOT_REACHED}",)]


def test_contact_just_before_the_end_is_enough(machine: Machine) -> None:
    machine.boot()
    own = machine.daemon()
    machine.reached = lambda: machine.clock.now > 100 + TRIAL_S - 2
    machine.apply(own, BAD)
    machine.run(own, TRIAL_S + 5)
    assert [one.outcome for one in machine.memory.answers] == ["kept"]
    assert machine.memory.answers[0].why == "node.address is another: systemctl restart pvc-node"


def test_contact_of_before_the_change_does_not_count(machine: Machine) -> None:
    """Nor that of an instant after it, which may be an answer that was on its way."""
    machine.boot()
    own = machine.daemon()
    machine.reached = lambda: machine.clock.now < 100.5
    machine.apply(own, BAD)
    machine.run(own, TRIAL_S + 1)
    assert [one.outcome for one in machine.memory.answers] == ["back"]


def test_a_question_that_hangs_does_not_hold_up_the_way_back(machine: Machine) -> None:
    machine.boot()
    own = machine.daemon()
    own.spawn = lambda act: None
    machine.apply(own, BAD)
    machine.run(own, TRIAL_S + 1)
    assert machine.addresses() == {"10.0.1.1/24", "10.0.0.1/24"}


def test_a_late_answer_to_an_earlier_trial_keeps_nothing(machine: Machine) -> None:
    machine.boot()
    own = machine.daemon()
    asked: list[Callable[[], None]] = []
    own.spawn = asked.append
    machine.apply(own, BAD)
    machine.run(own, TRIAL_S + 1)
    machine.reached = lambda: True
    asked[0]()
    machine.reached = lambda: False
    machine.apply(own, BAD)
    machine.run(own, TRIAL_S + 1)
    assert [one.outcome for one in machine.memory.answers] == ["back", "back"]


def test_a_step_that_fails_is_rolled_back_at_once(machine: Machine) -> None:
    machine.boot()
    machine.host.lacks = {"vlan"}
    own = machine.daemon()
    machine.apply(own, site(cluster={**CLUSTER, "vlan": 7}, upstream=UPSTREAM))
    said = "the kernel has no vlan devices: is its module loaded?"
    assert [one.outcome for one in machine.memory.answers] == ["back"]
    assert said in machine.memory.answers[0].why
    assert machine.addresses() == {"10.0.1.1/24", "10.0.0.1/24"}


def test_what_is_not_possible_changes_nothing(machine: Machine) -> None:
    machine.boot()
    own = machine.daemon()
    machine.host.taken.clear()
    machine.apply(own, site(cluster={**CLUSTER, "device": "eth7"}))
    assert machine.host.taken == []
    assert machine.memory.answers == [
        Answer("first", "refused", "there is no device eth7, which network.cluster.device names")
    ]


def test_a_record_that_cannot_be_written_changes_nothing(machine: Machine) -> None:
    machine.boot()
    own = machine.daemon()
    machine.host.taken.clear()
    machine.memory.fails = True
    machine.apply(own, BAD)
    assert machine.host.taken == []
    assert [one.outcome for one in machine.memory.answers] == ["refused"]
    assert own.trial is None


# Where VMs would end


def test_an_armed_node_refuses_to_change_what_carries_the_cluster(machine: Machine) -> None:
    machine.boot()
    machine.armed = True
    own = machine.daemon()
    machine.host.taken.clear()
    machine.apply(own, BAD)
    assert machine.host.taken == []
    assert machine.memory.answers[0].outcome == "refused"
    assert "pvc cluster maintenance on" in machine.memory.answers[0].why


def test_what_carries_the_cluster_is_known_where_pvc_toml_had_another_address(machine: Machine) -> None:
    machine.boot()
    machine.armed = True
    own = machine.daemon()
    own.address = "10.9.9.1"
    machine.apply(own, BAD)
    assert [one.outcome for one in machine.memory.answers] == ["refused"]
    assert "eth1, by which this node reaches the cluster" in machine.memory.answers[0].why


def test_an_armed_node_refuses_where_it_is_not_known_what_carries_the_cluster(machine: Machine) -> None:
    machine.configured = Site()
    machine.boot()
    machine.armed = True
    own = machine.daemon()
    machine.apply(own, GOOD)
    assert [one.outcome for one in machine.memory.answers] == ["refused"]
    assert "it is not known through which device" in machine.memory.answers[0].why


def test_an_armed_node_may_change_the_others_for_a_short_time(machine: Machine) -> None:
    machine.boot()
    machine.armed = True
    own = machine.daemon()
    machine.reached = lambda: False
    machine.apply(own, site(cluster=CLUSTER, upstream={**UPSTREAM, "address": "10.0.0.2/24"}))
    assert machine.addresses() == {"10.0.1.1/24", "10.0.0.2/24"}
    machine.run(own, SHORT_TRIAL_S + 0.1)
    assert machine.addresses() == {"10.0.1.1/24", "10.0.0.1/24"}
    assert [one.outcome for one in machine.memory.answers] == ["back"]


# Crashes


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", range(4))
def test_a_daemon_killed_at_any_step_of_a_change_is_followed_by_one_that_rolls_back(
    machine: Machine, at: int
) -> None:
    machine.boot()
    before = machine.host.state()
    own = machine.daemon()
    steps = iter(range(100))

    def die(step: HostStep) -> None:
        if next(steps) == at:
            raise Killed

    machine.host.meanwhile = die
    machine.configured = site(
        "10.9.9.1", cluster=WRONG, upstream={"device": "eth2", "address": "10.0.0.1/24"}
    )
    own.ask()
    with pytest.raises(Killed):
        own.step()
    machine.host.meanwhile = lambda step: None
    after = machine.daemon()
    state = machine.host.state()
    assert {*state.addresses} == {*before.addresses}
    assert {*state.routes} == {*before.routes}
    assert {*state.devices} == {*before.devices}
    assert after.trial is None
    assert [one.outcome for one in machine.memory.answers] == ["back"]


def test_a_daemon_killed_while_it_rolls_back_is_followed_by_one_that_goes_on(machine: Machine) -> None:
    machine.boot()
    own = machine.daemon()
    machine.apply(own, BAD)
    machine.clock.now += TRIAL_S + 1

    def die(step: HostStep) -> None:
        if isinstance(step, AddAddress):
            raise Killed

    machine.host.meanwhile = die
    with pytest.raises(Killed):
        own.step()
    machine.host.meanwhile = lambda step: None
    machine.daemon()
    assert machine.addresses() == {"10.0.1.1/24", "10.0.0.1/24"}


def test_a_machine_that_dies_in_a_trial_comes_back_without_it(machine: Machine) -> None:
    machine.boot()
    own = machine.daemon()
    machine.apply(own, BAD)
    machine.run(own, 5)
    (problem,) = machine.boot()
    assert problem == CHANGED
    assert machine.addresses() == {"10.0.1.1/24", "10.0.0.1/24"}


def test_what_was_rolled_back_is_not_tried_at_boot_but_something_else_is(machine: Machine) -> None:
    machine.boot()
    own = machine.daemon()
    machine.apply(own, BAD)
    machine.run(own, TRIAL_S + 1)
    (problem,) = machine.boot()
    assert problem.startswith("what pvc.toml describes was rolled back")
    assert machine.addresses() == {"10.0.1.1/24", "10.0.0.1/24"}
    machine.configured = site(cluster=CLUSTER)
    assert machine.boot() == ()
    assert machine.addresses() == {"10.0.1.1/24"}


def test_the_first_description_of_a_node_is_tried_too(machine: Machine) -> None:
    machine.configured = Site()
    machine.boot()
    machine.host.devices["eth1"] = Device("eth1", mtu=1500)
    machine.host.addresses.append(DeviceAddress("10.0.1.1/24", "eth1"))
    before = machine.host.state()
    own = machine.daemon()
    machine.apply(own, BAD)
    assert "10.9.9.1/24" in machine.addresses()
    machine.reached = lambda: False
    machine.run(own, TRIAL_S + 1)
    assert {*machine.host.state().addresses} == {*before.addresses}
    assert {*machine.host.state().devices} == {*before.devices}
    machine.boot()
    assert machine.addresses() == set()


def test_a_daemon_uses_the_address_that_the_node_has(machine: Machine) -> None:
    machine.boot()
    written = parse({"node": {"name": "n1", "address": "10.9.9.1"}})
    assert machine.daemon().in_force(written).node.address == "10.0.1.1"
    machine.configured = Site()
    machine.boot()
    assert machine.daemon().in_force(written) is written


# On disk


def test_what_is_remembered_comes_back(tmp_path: Path) -> None:
    memory = FileMemory(str(tmp_path / "lib"), str(tmp_path / "run"))
    assert (memory.now(), memory.lasting(), memory.request()) == (None, Lasting(), "")
    machine = Machine()
    machine.boot()
    own = machine.daemon()
    machine.apply(own, BAD)
    assert machine.memory.runs is not None
    memory.remember(machine.memory.runs)
    memory.remember(machine.memory.lasts)
    assert memory.now() == machine.memory.runs
    assert memory.lasting() == Lasting(GOOD, BAD)
    memory.ask("again")
    assert memory.request() == "again"
    memory.answer(Answer("again", "kept"))
    assert memory.answered("again") == Answer("again", "kept")
    assert memory.answered("first") is None


def test_a_damaged_record_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    memory = FileMemory(str(tmp_path), str(tmp_path))
    (tmp_path / "networks.json").write_text("{")
    assert (memory.now(), memory.lasting()) == (None, Lasting())


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failed, match="cannot be written"):
        FileMemory(str(tmp_path / "file"), str(tmp_path)).remember(Lasting())


def test_what_is_undone_by_somebody_else_is_said(machine: Machine) -> None:
    def undo(step: HostStep) -> None:
        for name in {"eth1", "eth2"} - {step.device}:
            machine.host.devices[name] = Device(name, mtu=1500, up=False)

    machine.configured = site(cluster=CLUSTER, storage={"device": "eth2", "address": "10.0.2.1/24"})
    machine.host.meanwhile = undo
    assert "is undone by somebody else" in machine.process().up()[0]


def test_a_step_that_fails_does_not_keep_the_others(machine: Machine) -> None:
    def refuse(step: HostStep) -> None:
        if step.device == "eth0":
            raise DriverError("the kernel refuses a change of eth0: EBUSY")

    machine.host.meanwhile = refuse
    assert machine.process().up()[0] == "the kernel refuses a change of eth0: EBUSY"
    assert machine.addresses() == {"10.0.1.1/24"}
