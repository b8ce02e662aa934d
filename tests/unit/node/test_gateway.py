"""The primary as gateway: which it makes, what it leaves alone, what it tells guests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from pvc.cluster.clients import Clients
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.network import DHCPRange, IPv4, IPv6, Kind, NetworkSpec
from pvc.cluster.node import NetworkProblem
from pvc.node.drivers.networks import Gateway
from pvc.node.gateway import ANNOUNCE_AFTER_S, LOOK_S, Gateways, Plan, plan
from pvc.node.services import Scene
from tests.fakes.gateways import FakeGateways
from tests.unit.node.test_network import ManualClock

SHOP = NetworkSpec(101, "shop", Kind.MANAGED, ipv4=IPv4("10.1.0.0/24", "10.1.0.1"))
BOTH = replace(SHOP, vni=102, ipv4=IPv4("10.2.0.0/16", "10.2.0.1"), ipv6=IPv6("fd00:2::/64", "fd00:2::1"))
BARE = NetworkSpec(103, "bare", Kind.MANAGED, ipv4=IPv4("10.3.0.0/24"))
BRIDGES = {101: 8950, 102: 1400, 103: 8950}
SHOP_GATEWAY = Gateway(101, 8950, ("10.1.0.1/24",))
BOTH_GATEWAY = Gateway(102, 1400, ("10.2.0.1/16", "fd00:2::1/64", "fe80::1/64"))
MADE = {101: SHOP_GATEWAY, 102: BOTH_GATEWAY}

# The plan


def test_each_network_with_a_gateway_gets_one() -> None:
    assert plan([BARE, BOTH, SHOP], BRIDGES, {}) == Plan((), (SHOP_GATEWAY, BOTH_GATEWAY))


def test_what_is_as_wanted_needs_nothing() -> None:
    assert plan([SHOP, BOTH, BARE], BRIDGES, MADE) == Plan((), ())


def test_one_of_ipv6_only_has_the_address_of_a_router() -> None:
    spec = replace(BOTH, ipv4=IPv4())
    (found,) = plan([spec], BRIDGES, {}).give
    assert found.addresses == ("fd00:2::1/64", "fe80::1/64")


@pytest.mark.parametrize(
    "found",
    [
        replace(SHOP_GATEWAY, mtu=1500),
        replace(SHOP_GATEWAY, is_well=False),
        replace(SHOP_GATEWAY, addresses=()),
    ],
)
def test_what_differs_is_corrected(found: Gateway) -> None:
    assert plan([SHOP], BRIDGES, {101: found}) == Plan((), (SHOP_GATEWAY,))


def test_what_nobody_wants_goes() -> None:
    assert plan([replace(SHOP, ipv4=IPv4()), BARE], BRIDGES, MADE) == Plan((101, 102), ())


def test_without_its_bridge_it_waits_and_what_is_there_stays() -> None:
    assert plan([SHOP, BOTH], {}, {101: SHOP_GATEWAY}) == Plan((), ())


# The service


@dataclass
class Bench:
    host: FakeGateways = field(default_factory=lambda: FakeGateways(bridges={101, 102}))
    clock: ManualClock = field(default_factory=ManualClock)
    bridges: Mapping[int, int] = field(default_factory=lambda: BRIDGES)
    specs: tuple[NetworkSpec, ...] = (SHOP, BOTH)
    cluster: ClusterSpec = field(default_factory=lambda: ClusterSpec("test", upstream_address="192.0.2.9/24"))
    woken: int = 0
    unguarded: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self.gateways = Gateways(
            self.host, lambda: self.bridges, lambda vni: vni not in self.unguarded, self.clock, self._wake
        )

    def _wake(self) -> None:
        self.woken += 1

    def serve(self) -> tuple[NetworkProblem, ...]:
        networks = {spec.vni: Clients(spec) for spec in self.specs}
        return tuple(self.gateways.serve(Scene(self.cluster, {}, networks)))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_gateways_come_and_packets_are_passed_on(bench: Bench) -> None:
    assert bench.serve() == ()
    assert bench.host.found == MADE
    assert bench.host.forwarding == (("192.0.2.9/24",), True)


def test_packets_are_passed_on_towards_routers(bench: Bench) -> None:
    bench.cluster = ClusterSpec("test", routers=("192.0.2.1@64512", "fd00:9::1@64512"))
    bench.serve()
    assert bench.host.forwarding == (("192.0.2.1", "fd00:9::1"), True)


def test_rounds_in_which_nothing_changed_do_not_even_look(bench: Bench) -> None:
    bench.serve()
    bench.host.calls.clear()
    bench.host.fails = "nobody was to look"
    bench.serve()
    bench.host.fails = ""
    bench.clock.now += LOOK_S
    bench.serve()
    assert bench.host.calls == []


def test_what_somebody_took_away_comes_back(bench: Bench) -> None:
    bench.serve()
    bench.host.found.clear()
    bench.serve()
    assert not bench.host.found
    bench.clock.now += LOOK_S
    bench.serve()
    assert bench.host.found == MADE


def test_a_change_is_made_at_once(bench: Bench) -> None:
    bench.serve()
    bench.specs = (replace(SHOP, ipv4=IPv4("10.1.0.0/24", "10.1.0.9", DHCPRange("10.1.0.20", "10.1.0.30"))),)
    bench.serve()
    assert bench.host.found == {101: replace(SHOP_GATEWAY, addresses=("10.1.0.9/24",))}


def test_a_gateway_comes_with_its_bridge(bench: Bench) -> None:
    bench.bridges = {101: 8950}
    assert bench.serve() == (), "whoever makes bridges says why there is none"
    assert bench.host.found == {101: SHOP_GATEWAY}
    bench.bridges = BRIDGES
    bench.serve()
    assert bench.host.found == MADE


def test_one_that_cannot_be_is_told_and_tried_again_and_holds_up_no_other(bench: Bench) -> None:
    bench.host.foreign.add(101)
    problem = NetworkProblem(101, "gw101 is a device of the host's own")
    assert bench.serve() == (problem,)
    assert bench.host.found == {102: BOTH_GATEWAY}
    bench.host.foreign.clear()
    assert bench.serve() == ()
    assert bench.host.found == MADE


def test_who_is_not_kept_from_the_node_gets_no_way_to_it(bench: Bench) -> None:
    bench.unguarded = frozenset({101})
    assert bench.serve() == ()
    assert bench.host.found == {102: BOTH_GATEWAY}
    bench.unguarded = frozenset()
    bench.serve()
    assert bench.host.found == MADE


def test_without_a_gateway_nothing_is_passed_on(bench: Bench) -> None:
    bench.specs = (BARE,)
    bench.serve()
    assert bench.host.forwarding == ((), False)


def test_at_rest_all_are_gone_whoever_made_them(bench: Bench) -> None:
    bench.host.found = dict(MADE)
    bench.gateways.rest()
    assert bench.host.found == {}
    assert bench.host.calls == ["take [101, 102]", "end forwarding"]
    bench.serve()
    assert bench.host.found == MADE


def test_a_new_one_is_announced_three_times_and_one_that_was_there_never(bench: Bench) -> None:
    bench.host.found = {102: BOTH_GATEWAY}
    bench.serve()
    assert bench.woken
    for after in ANNOUNCE_AFTER_S:
        bench.clock.now = 1000.0 + after
        wait = bench.gateways.announce()
    assert bench.host.announced == [101, 101, 101]
    assert wait > LOOK_S


def test_who_is_not_primary_any_more_announces_nothing(bench: Bench) -> None:
    bench.serve()
    bench.gateways.rest()
    bench.gateways.announce()
    assert bench.host.announced == []
