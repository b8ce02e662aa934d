"""The primary's DHCP and DNS: who is started with what, and what the store learns of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from pvc.cluster import paths
from pvc.cluster.clients import Lease, Member, Reservation
from pvc.cluster.codec import dumps, loads
from pvc.cluster.network import NetworkSpec
from pvc.cluster.node import NetworkProblem
from pvc.cluster.store import Create, Delete, Op, Put
from pvc.errors import Unavailable
from pvc.node.dhcp import DHCP, LIVES_S
from pvc.node.drivers.networks import GatewayDevice
from pvc.node.plan_dhcp import LEASE_S, SLACK_S
from pvc.node.services import Commit, Service, Services
from tests.fakes.names import FakeNameServers
from tests.unit.commands.world import World, a_world
from tests.unit.node.test_services import take

NOW = 1_763_840_000.0
WEB, DB = "52:54:00:00:00:01", "52:54:00:00:00:02"


class ManualClock:
    def __init__(self) -> None:
        self.passed = 0.0

    def advance(self, seconds: float) -> None:
        self.passed += seconds

    def monotonic(self) -> float:
        return self.passed

    def wall(self) -> float:
        return NOW + self.passed


class Bench:
    """A primary with the service, over a store in memory."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or a_world()
        self.store = self.world.cluster.connect()
        self.clock = ManualClock()
        self.servers = FakeNameServers()
        self.problems: tuple[NetworkProblem, ...] = ()
        self.committed = 0
        self.is_store_out = False
        self.begin()

    def begin(self) -> None:
        """A life of the daemon."""
        self.services = Services("n1", self.store, self._services, self._publish, lambda: None)

    def _services(self, commit: Commit) -> Sequence[Service]:
        def counted(*ops: Op) -> None:
            if self.is_store_out:
                raise Unavailable("the store does not answer")
            self.committed += 1
            commit(*ops)

        return (DHCP(self.servers, counted, self.clock),)

    def _publish(self, problems: tuple[NetworkProblem, ...]) -> None:
        self.problems = problems

    def take(self) -> Bench:
        take(self.store, "n1")
        return self

    def add(self, vni: int, **options: Any) -> None:
        """A network with its gateway on this node."""
        given = {"ipnet": f"10.{vni}.0.0/24", "gateway": f"10.{vni}.0.1", "dhcp": True, **options}
        self.world.call("network.add", vni=vni, description=f"net{vni}", kind="managed", **given)
        self.servers.found[f"gw{vni}"] = GatewayDevice(f"gw{vni}", vni, 1500)

    def round(self) -> list[str]:
        self.services.step()
        self.services.step()
        return self.servers.taken()

    def look(self) -> list[str]:
        """A round in which it asks who runs."""
        self.clock.advance(LIVES_S)
        return self.round()

    def settle(self) -> list[str]:
        """Until it is sure of what is gone."""
        calls = self.round()
        self.clock.advance(2.0)
        return calls + self.round()

    def leases(self, vni: int) -> dict[str, Lease]:
        names = self.store.children(paths.network_leases(vni))
        stored = self.store.get_many([paths.network_lease(vni, name) for name in names])
        return {one.path.rpartition("/")[2]: loads(Lease, one.data) for one in stored if one}

    def line(self, address: str, mac: str = WEB, after_s: float = LEASE_S, name: str = "*") -> str:
        return f"{round(self.clock.wall() + after_s)} {mac} {address} {name} 01:{mac}"


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.add(101)
    bench.take()
    assert bench.round() == ["write 101", "start 101"]
    return bench


def test_a_round_in_which_nothing_changed_does_nothing(bench: Bench) -> None:
    bench.servers.lease(101, bench.line("10.101.0.130"))
    bench.round()
    committed = bench.committed
    assert bench.round() == []
    assert bench.committed == committed
    assert not bench.problems


def test_a_network_without_a_gateway_has_none(bench: Bench) -> None:
    bench.world.call("network.add", vni=7, description="quiet", kind="managed")
    assert bench.round() == []


def test_it_waits_for_the_gateway(bench: Bench) -> None:
    bench.add(102)
    device = bench.servers.found.pop("gw102")
    assert bench.round() == []
    bench.servers.found["gw102"] = device
    assert bench.round() == ["write 102", "start 102"]


def test_what_was_given_is_in_the_store_and_what_ended_is_not(bench: Bench) -> None:
    bench.servers.lease(101, bench.line("10.101.0.130", name="web"))
    bench.round()
    until = round(bench.clock.wall() + LEASE_S)
    assert bench.leases(101) == {
        "10.101.0.130": Lease("10.101.0.130", WEB, "web", f"01:{WEB}", until=until),
    }
    bench.servers.memory[101] = ""
    bench.servers.say(101)
    bench.settle()
    assert bench.leases(101) == {}


def test_one_that_is_seen_writing_has_forgotten_nothing(bench: Bench) -> None:
    bench.servers.lease(101, bench.line("10.101.0.130"))
    bench.round()
    memory, bench.servers.memory[101] = bench.servers.memory[101], ""
    bench.servers.say(101)
    bench.round()
    bench.servers.memory[101] = memory
    bench.settle()
    assert bench.leases(101).keys() == {"10.101.0.130"}
    assert bench.committed == 1


def test_what_the_store_did_not_take_is_stored_when_it_answers_again(bench: Bench) -> None:
    bench.add(102)
    bench.servers.lease(101, bench.line("10.101.0.129"))
    bench.round()
    bench.is_store_out = True
    bench.servers.lease(101, bench.line("10.101.0.130", DB))
    bench.servers.lease(102, bench.line("10.102.0.130"))
    bench.round()
    assert [one.why for one in bench.problems] == ["the store does not answer"]
    bench.is_store_out = False
    bench.round()
    assert bench.leases(101).keys() == {"10.101.0.129", "10.101.0.130"}
    assert bench.leases(102).keys() == {"10.102.0.130"}
    assert not bench.problems


def test_a_network_that_cannot_be_told_something_keeps_no_lease_from_the_store(bench: Bench) -> None:
    bench.add(102)
    bench.round()
    bench.servers.refuses = {102}
    bench.world.call("network.modify", network="102", domain="other.example")
    bench.servers.lease(101, bench.line("10.101.0.130"))
    bench.round()
    assert "10.101.0.130" in bench.leases(101)
    assert bench.problems


def test_it_is_not_asked_who_runs_as_often_as_guests_like(bench: Bench) -> None:
    bench.look()
    asked = bench.servers.asked
    for last in range(130, 140):
        bench.servers.lease(101, bench.line(f"10.101.0.{last}", f"52:54:00:00:01:{last - 100}"))
        bench.round()
    assert (len(bench.leases(101)), bench.servers.asked) == (10, asked)
    bench.look()
    assert bench.servers.asked == asked + 1


def test_all_that_one_says_is_one_transaction(bench: Bench) -> None:
    for last in range(130, 140):
        bench.servers.lease(101, bench.line(f"10.101.0.{last}", f"52:54:00:00:01:{last - 100}"))
    bench.round()
    assert (bench.committed, len(bench.leases(101))) == (1, 10)


def test_the_store_is_not_told_each_renewal(bench: Bench) -> None:
    bench.servers.lease(101, bench.line("10.101.0.130"))
    bench.round()
    for _ in range(20):
        bench.clock.advance(LEASE_S / 20)
        bench.servers.lease(101, bench.line("10.101.0.130"))
        bench.round()
        promised = bench.leases(101)["10.101.0.130"].until + SLACK_S
        assert promised >= bench.clock.wall() + LEASE_S - 1
    assert 2 <= bench.committed <= 10


def test_another_primary_goes_on_with_what_the_store_knows(bench: Bench) -> None:
    bench.servers.lease(101, bench.line("10.101.0.130", name="web"))
    bench.servers.lease(101, bench.line("10.101.0.131", DB, after_s=-2 * SLACK_S))
    bench.round()
    stored = bench.leases(101)
    bench.store.commit(Delete(paths.PRIMARY))
    other = Bench(bench.world)
    other.servers.found = bench.servers.found
    other.take()
    assert other.settle() == ["write 101", "start 101"]
    until = round(stored["10.101.0.130"].until + SLACK_S)
    assert other.servers.memory[101].splitlines()[0] == f"{until} {WEB} 10.101.0.130 web 01:{WEB}"
    assert "10.101.0.131" not in other.servers.memory[101], "its time is over"
    assert other.leases(101) == {"10.101.0.130": stored["10.101.0.130"]}


def test_who_is_not_primary_any_more_ends_and_forgets_all(bench: Bench) -> None:
    bench.store.commit(Delete(paths.PRIMARY))
    take(bench.world.cluster.connect(), "n2")
    assert bench.round() == ["stop 101"]
    assert not bench.servers.running
    assert not bench.servers.memory


def test_a_new_life_of_the_daemon_restarts_nothing_and_hears_what_was_missed(bench: Bench) -> None:
    bench.servers.listens = False
    bench.servers.lease(101, bench.line("10.101.0.130"))
    bench.begin()
    assert bench.round() == []
    assert "10.101.0.130" in bench.leases(101)
    assert bench.round() == []


def test_a_new_life_does_not_believe_a_memory_older_than_the_store(bench: Bench) -> None:
    bench.servers.lease(101, bench.line("10.101.0.130"))
    bench.round()
    given = Lease("10.101.0.140", DB, until=bench.clock.wall() + LEASE_S)
    bench.store.commit(Create(paths.network_lease(101, given.address), dumps(given)))
    bench.begin()
    assert bench.round() == ["stop 101", "write 101", "start 101"]
    assert bench.leases(101).keys() == {"10.101.0.130", "10.101.0.140"}
    assert "10.101.0.140" in bench.servers.memory[101]
    assert bench.round() == []


def test_one_that_was_killed_goes_on_and_it_is_said(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.servers.lease(101, bench.line("10.101.0.130"))
    bench.round()
    bench.servers.kill(101)
    assert bench.look() == []
    said = [one.message for one in caplog.records if "ended by itself" in one.message]
    assert said == ["the dnsmasq of network 101 ended by itself and was started again"]


def test_one_that_was_killed_while_it_wrote_gets_its_memory_back(bench: Bench) -> None:
    bench.servers.lease(101, bench.line("10.101.0.130"))
    bench.round()
    bench.servers.memory[101] = ""
    bench.servers.kill(101)
    bench.servers.say(101)
    bench.round()
    assert bench.look() == ["stop 101", "write 101", "start 101"]
    assert "10.101.0.130" in bench.servers.memory[101]
    assert "10.101.0.130" in bench.leases(101)


def test_one_that_does_not_run_is_a_problem_until_it_does(bench: Bench) -> None:
    bench.servers.running[101] = 0
    assert bench.look() == []
    assert [(one.vni, "does not run" in one.why) for one in bench.problems] == [(101, True)]
    bench.servers.kill(101)
    assert bench.look() == []
    assert not bench.problems


def test_one_that_somebody_stopped_is_started_again(bench: Bench) -> None:
    bench.servers.running.clear()
    assert bench.look() == ["write 101", "start 101"]


def test_a_gateway_that_was_made_anew_needs_a_new_start(bench: Bench) -> None:
    bench.servers.lease(101, bench.line("10.101.0.130"))
    bench.round()
    memory = bench.servers.memory[101]
    bench.servers.found["gw101"] = GatewayDevice("gw101", 999, 1500)
    assert bench.round() == ["stop 101", "write 101", "start 101"]
    assert bench.servers.memory[101].splitlines()[0].split()[1:] == memory.splitlines()[0].split()[1:]


CHANGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "description": ({"description": "store"}, []),
    "domain": ({"domain": "shop.example"}, ["stop 101", "write 101", "start 101"]),
    "dns": ({"dns_server": ["192.0.2.53"]}, ["stop 101", "write 101", "start 101"]),
    "range": ({"dhcp_start": "10.101.0.200"}, ["stop 101", "write 101", "start 101"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_needs_it_starts_anything_and_only_in_its_own_network(bench: Bench, change: str) -> None:
    bench.add(102)
    bench.round()
    options, expected = CHANGES[change]
    bench.world.call("network.modify", network="101", **options)
    assert bench.round() == expected


def test_who_comes_and_goes_restarts_nothing(bench: Bench) -> None:
    member, renamed = (dumps(Member(name, (WEB,))) for name in ("web", "shop"))
    bench.store.commit(Create(paths.network_vm(101, "u1"), member))
    assert bench.round() == ["write 101"]
    bench.store.commit(Put(paths.network_vm(101, "u1"), renamed))
    assert bench.round() == ["write 101", "look 101"]
    bench.store.commit(Delete(paths.network_vm(101, "u1")))
    assert bench.round() == []
    reserved = Reservation(DB, "10.101.0.9", "db")
    bench.store.commit(Create(paths.network_reservation(101, DB), dumps(reserved)))
    assert bench.round() == ["write 101"]
    bench.store.commit(Delete(paths.network_reservation(101, DB)))
    assert bench.round() == ["write 101", "look 101"]


def test_leases_outside_a_changed_network_go(bench: Bench) -> None:
    bench.servers.lease(101, bench.line("10.101.0.130"))
    bench.round()
    stored = bench.store.get(paths.network(101))
    assert stored is not None
    spec = loads(NetworkSpec, stored.data)
    moved = replace(spec.ipv4, network="10.9.0.0/24", gateway="10.9.0.1", dhcp=None)
    bench.store.commit(Put(paths.network(101), dumps(replace(spec, ipv4=moved))))
    bench.settle()
    assert bench.leases(101) == {}
    assert "10.101.0.130" not in bench.servers.memory[101]


def test_a_removed_network_ends_its_own_and_no_other(bench: Bench) -> None:
    bench.add(102)
    bench.round()
    bench.servers.lease(101, bench.line("10.101.0.130"))
    bench.round()
    bench.world.call("network.remove", network="101")
    assert bench.round() == ["stop 101"]
    assert bench.servers.running.keys() == {102}


def test_a_store_that_changed_meanwhile_is_asked_again(bench: Bench) -> None:
    bench.servers.lease(101, bench.line("10.101.0.130"))
    bench.services.step()
    stranger = Lease("10.101.0.131", DB)
    bench.store.commit(Create(paths.network_lease(101, stranger.address), dumps(stranger)))
    bench.servers.lease(101, bench.line("10.101.0.131", DB))
    bench.round()
    bench.servers.say(101)
    bench.round()
    assert bench.leases(101)["10.101.0.131"].until > bench.clock.wall()
    assert not bench.problems


def test_a_driver_that_fails_is_a_problem(bench: Bench) -> None:
    bench.servers.fails = "dnsmasq: systemctl is missing"
    bench.look()
    assert [one.why for one in bench.problems] == ["dnsmasq: systemctl is missing"]
