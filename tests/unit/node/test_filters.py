"""The filters on the primary: what is loaded when, what goes on counting, and what a bad rule costs."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from pvc.cluster.clients import AccessList, Clients, Direction, Rule
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.filters import Filtered, Hidden, Rendered, Route, Transit, Verdict, compose, render
from pvc.cluster.filters import Protocol as Proto
from pvc.cluster.network import IPv4, IPv6, Kind, NetworkSpec
from pvc.errors import Failed
from pvc.node.drivers import DriverError
from pvc.node.drivers.networks import Gateway
from pvc.node.filters import LOOK_S, Filters
from pvc.node.services import Scene
from tests.fakes.filters import FEATURE, FakeFilter
from tests.fakes.gateways import FakeGateways
from tests.unit.node.test_network import ManualClock

GOLDEN = Path(__file__).parent / "golden"

SHOP = NetworkSpec(
    101,
    "shop",
    Kind.MANAGED,
    ipv4=IPv4("10.1.0.0/24", "10.1.0.1"),
    ipv6=IPv6("fd00:1::/64", "fd00:1::1"),
)
OFFICE = NetworkSpec(102, "office", Kind.MANAGED, ipv4=IPv4("10.2.0.0/24", "10.2.0.1"))
ALONE = NetworkSpec(103, "alone", Kind.MANAGED)
HIDE = Hidden(("clu", "sto"), ("10.0.0.0/23", "fd00:9::/64"))

SSH = Rule(Direction.IN, "ssh", "tcp dport 22 accept", 1)
REST = Rule(Direction.IN, "rest", "drop", 4)
MAIL = Rule(Direction.OUT, "mail", compose("", "", Proto.TCP, "25", Verdict.REJECT), 2)
LOGGED = Rule(Direction.OUT, "far", 'ip daddr 203.0.113.0/24 counter log prefix "far: "', 3)
ACCESS = AccessList((SSH, MAIL, LOGGED, REST), 4)


def rendered(*networks: tuple[NetworkSpec, AccessList], hide: Hidden = HIDE) -> Rendered:
    return render([Filtered(*one) for one in networks], hide)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("none", rendered(hide=Hidden())),
        ("unfiltered", rendered((OFFICE, AccessList()), (SHOP, AccessList()), (ALONE, AccessList()))),
        ("filtered", rendered((SHOP, ACCESS), (OFFICE, AccessList((SSH,), 1)), (ALONE, ACCESS))),
    ],
)
def test_rendered_as_in_the_golden_file(name: str, made: Rendered) -> None:
    assert made.text == (GOLDEN / f"filters-{name}.nft").read_text()


def chains(text: str) -> dict[str, list[str]]:
    """Rules by chain."""
    found: dict[str, list[str]] = {}
    here = ""
    for line in text.split("\n"):
        if line.startswith("\tchain "):
            here = line.split()[1]
            found[here] = []
        elif line.startswith("\t\t") and here:
            found[here].append(line.strip())
        elif line == "\t}":
            here = ""
    return found


def test_each_rule_is_in_the_chain_of_its_direction_in_its_order() -> None:
    found = chains(rendered((SHOP, ACCESS)).text)
    assert [rule.rpartition(" ")[2] for rule in found["in101"]] == ['"1"', '"4"']
    assert [rule.rpartition(" ")[2] for rule in found["out101"]] == ['"2"', '"3"']


def test_more_than_ten_rules_stay_in_their_order() -> None:
    many = AccessList(tuple(Rule(Direction.IN, f"r{n}", f"tcp dport {n} drop", n) for n in range(1, 31)))
    found = chains(rendered((SHOP, many)).text)
    assert [int(rule.split()[2]) for rule in found["in101"]] == list(range(1, 31))


def test_a_thousand_networks_are_looked_up_and_not_tried_one_after_the_other() -> None:
    networks = [(replace(OFFICE, vni=vni), AccessList((SSH,))) for vni in range(1000, 2000)]
    found = chains(rendered(*networks).text)
    few = chains(rendered((SHOP, ACCESS)).text)
    for chain in ("input", "node", "leaving", "guest", "arriving", "towards"):
        assert found[chain] == few[chain]


def test_where_each_rule_is_can_be_told() -> None:
    made = rendered((SHOP, ACCESS), (OFFICE, AccessList((SSH,))))
    lines = made.text.split("\n")
    for number, place in made.places.items():
        assert lines[number - 1].endswith(f'comment "{place.rule.number}"')
    assert sorted((place.vni, place.rule.number) for place in made.places.values()) == [
        *((101, number) for number in (1, 2, 3, 4)),
        (102, 1),
    ]


# The service


class Bench:
    def __init__(self) -> None:
        self.host = FakeFilter()
        self.clock = ManualClock()
        self.routes = [Route("clu", ip_network("10.0.0.0/24"), True)]
        self.gateways = FakeGateways(bridges={101})
        self.networks = {101: Clients(SHOP, access=ACCESS), 103: Clients(ALONE, access=ACCESS)}
        self.filters = self.again()

    def again(self) -> Filters:
        return Filters(self.host, ("10.0.0.1", ""), lambda: self.routes, self.gateways, self.clock)

    def serve(self) -> list[str]:
        scene = Scene(ClusterSpec("test"), {}, dict(self.networks))
        return [f"{one.vni}: {one.why}" for one in self.filters.serve(scene)]

    @property
    def loads(self) -> int:
        return len(self.host.loads)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_an_unchanged_round_loads_nothing(bench: Bench) -> None:
    for _ in range(5):
        assert bench.serve() == []
    assert bench.loads == 1
    assert bench.filters.guards(101)
    assert not bench.filters.guards(103), "it has no gateway that could be guarded"


def test_a_lease_loads_nothing_and_a_rule_does(bench: Bench) -> None:
    bench.serve()
    bench.networks[101] = Clients(SHOP, access=AccessList(ACCESS.rules, 4))
    bench.serve()
    assert bench.loads == 1
    bench.networks[101] = Clients(SHOP, access=AccessList(ACCESS.rules[1:], 4))
    bench.serve()
    assert bench.loads == 2
    assert "tcp dport 22" not in bench.host.loads[-1]


def test_filters_that_somebody_flushed_are_loaded_again(bench: Bench) -> None:
    bench.serve()
    bench.host.is_touched = True
    bench.serve()
    bench.serve()
    assert bench.loads == 2


def test_counters_of_rules_that_stay_go_on(bench: Bench) -> None:
    bench.serve()
    bench.host.counted = {("in101", "4"): (7, 700), ("in101", "1"): (2, 80), ("node", "node"): (5, 500)}
    first = Rule(Direction.IN, "first", "udp dport 9 drop", 5)
    bench.networks[101] = Clients(SHOP, access=AccessList((first, REST, MAIL), 5))
    bench.serve()
    counts = bench.host.counts("in101")
    assert counts == {("in101", "5"): (0, 0), ("in101", "4"): (7, 700)}
    assert (bench.host.counts("node") or {})["node", "node"] == (5, 500)


def test_another_life_of_the_daemon_goes_on_counting(bench: Bench) -> None:
    bench.serve()
    bench.host.counted = {("in101", "1"): (2, 80)}
    bench.filters = bench.again()
    bench.serve()
    assert (bench.host.counts("in101") or {})["in101", "1"] == (2, 80)


def test_another_cluster_network_is_noticed(bench: Bench) -> None:
    bench.serve()
    assert '"clu"' in bench.host.loads[-1]
    bench.routes = [Route("bond0", ip_network("10.0.0.0/24"), True)]
    bench.serve()
    assert bench.loads == 1
    bench.clock.now += LOOK_S
    bench.serve()
    assert '"bond0"' in bench.host.loads[-1]


def test_a_host_that_became_a_router_is_left_one(bench: Bench) -> None:
    bench.serve()
    assert 'comment "transit4"' in bench.host.loads[-1]
    assert 'comment "transit6"' in bench.host.loads[-1]
    bench.gateways.passes = Transit(ipv4=True, ipv6=True, bridges=("docker0",))
    bench.clock.now += LOOK_S
    bench.serve()
    assert "transit4" not in bench.host.loads[-1]
    assert "transit6" not in bench.host.loads[-1]
    assert '"docker0" . "docker0"' in bench.host.loads[-1]


def test_filters_stay_while_there_is_anything_to_guard(bench: Bench) -> None:
    bench.serve()
    bench.gateways.give([Gateway(101, 1400, ("10.1.0.1/24",))])
    with pytest.raises(Failed, match="gateways are still there"):
        bench.filters.rest()
    bench.gateways.fails = "no netlink"
    with pytest.raises(DriverError):
        bench.filters.rest()
    bench.gateways.fails = ""
    bench.gateways.take([101])
    bench.gateways.forward(["192.0.2.1/24"], ipv6=False)
    with pytest.raises(Failed, match="packets still passed on"):
        bench.filters.rest()
    assert bench.host.counts() is not None
    assert bench.filters.guards(101)
    bench.gateways.end_forwarding()
    bench.filters.rest()
    assert bench.host.counts() is None


def test_a_rule_that_this_kernel_does_not_take_closes_its_own_network_only(bench: Bench) -> None:
    odd = Rule(Direction.OUT, "odd", f"{FEATURE} accept", 5)
    bench.networks[101] = Clients(SHOP, access=AccessList((*ACCESS.rules, odd), 5))
    bench.networks[102] = Clients(OFFICE, access=AccessList((SSH,), 1))
    (problem,) = bench.serve()
    assert problem == (
        "101: nothing new passes out: nft does not take the rule odd here:"
        f" syntax error, unexpected string, at {FEATURE}"
    )
    found = chains(bench.host.loads[-1])
    assert found["out101"] == ['counter packets 0 bytes 0 drop comment "broken"']
    assert len(found["in101"]) == 2
    assert len(found["in102"]) == 1
    loads = bench.loads
    assert bench.serve() == [problem], "it stays told"
    assert bench.loads == loads
    bench.networks[101] = Clients(SHOP, access=ACCESS)
    assert bench.serve() == []


def test_a_kernel_that_lacks_what_all_need_says_so_and_guards_nothing(bench: Bench) -> None:
    bench.host.unknown = ("fib",)
    with pytest.raises(Failed, match=r"no network can be filtered here: .*at fib"):
        bench.serve()
    assert not bench.filters.guards(101)
    bench.host.unknown = ()
    assert bench.serve() == []
    assert bench.filters.guards(101)


def test_at_rest_nothing_is_left(bench: Bench) -> None:
    bench.serve()
    bench.filters.rest()
    assert bench.host.counts() is None
    assert not bench.filters.guards(101)
    bench.serve()
    assert bench.filters.guards(101)
