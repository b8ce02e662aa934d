"""The networks of a node: what a round does, publishes and survives."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Any

import pytest

from pvc.cluster import paths
from pvc.cluster.addresses import Router
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.codec import dumps
from pvc.cluster.filters import Route
from pvc.cluster.membership import Primary
from pvc.cluster.network import IPv4, IPv6, Kind, NetworkSpec
from pvc.cluster.node import NetworkProblem, NodeRole, NodeSpec
from pvc.cluster.store import Create, Delete, Put
from pvc.node import routing
from pvc.node.drivers import DriverError
from pvc.node.drivers.networks import Link, Speaker, Upstream
from pvc.node.gateway_ways import AFTER_S, GatewayWays
from pvc.node.network import LOOK_S, RETRY_S, UNAVAILABLE_S, Found, Networks
from pvc.node.path_mtu import PathMTU
from pvc.node.routing import Speaking, speaker
from tests.fakes.links import FakeLinks
from tests.fakes.routing import FakeRouting
from tests.fakes.store import MemoryStore
from tests.fakes.tunnels import FakeTunnels
from tests.unit.commands.world import World, a_world


@dataclass
class ManualClock:
    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


@dataclass
class Bench:
    world: World = field(default_factory=a_world)
    published: list[Found] = field(default_factory=list)
    routing: FakeRouting = field(default_factory=FakeRouting)
    clock: ManualClock = field(default_factory=ManualClock)
    tunnels: FakeTunnels = field(default_factory=FakeTunnels)
    woken: int = 0

    def __post_init__(self) -> None:
        self.links = FakeLinks({"clu": Link("clu", "", 9000)}, {"10.0.0.1": "clu"})
        self.networks = self.new()

    def new(self) -> Networks:
        """As after a restart of the daemon."""
        self.store = self.world.cluster.connect()
        return self.networks_of(self.store, self._wake)

    def networks_of(self, store: MemoryStore, wake: Callable[[], None]) -> Networks:
        self.speaking = Speaking(self.routing, self._wake, wake)
        self.path_mtu = PathMTU(lambda address, payload: payload < 8000, self.clock, self._wake, wake)
        return Networks(
            "10.0.0.1",
            "",
            store,
            self.links,
            self.speaking,
            self.clock,
            self.published.append,
            wake,
            self.path_mtu,
            GatewayWays(self.tunnels, self.clock),
        )

    def round(self) -> None:
        """With what is done on threads beside."""
        self.networks.step()
        self.speaking.step()
        self.networks.step()

    def _wake(self) -> None:
        self.woken += 1

    def add(self, vni: int, **given: Any) -> None:
        self.world.call("network.add", vni=vni, description=f"net{vni}", kind="managed", **given)

    def primary_is(self, node: str) -> None:
        if self.store.get(paths.PRIMARY):
            self.store.commit(Delete(paths.PRIMARY))
        self.store.commit(Create(paths.PRIMARY, dumps(Primary(node, 1, 0)), ephemeral=True))

    def problems(self) -> tuple[NetworkProblem, ...]:
        return self.published[-1].problems

    def ours(self) -> set[str]:
        return {name for name, link in self.links.found.items() if link.is_ours}


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_networks_come_and_go_as_they_are_wanted(bench: Bench) -> None:
    assert bench.networks.step() == LOOK_S
    assert bench.published == [Found(8950, 0, ())]
    bench.add(101)
    bench.add(102)
    assert bench.woken
    bench.networks.step()
    assert bench.ours() == {"br101", "vx101", "br102", "vx102"}
    bench.world.call("network.remove", network="101")
    bench.networks.step()
    assert bench.ours() == {"br102", "vx102"}
    assert len(bench.published) == 3, "said each time, for the node's list of bridges is another"


def test_who_needs_the_bridges_is_told_when_they_are_others(bench: Bench) -> None:
    told: list[dict[int, int]] = []
    bench.networks.bridges_changed = lambda: told.append(dict(bench.networks.bridges))
    bench.add(101)
    bench.networks.step()
    bench.add(102, mtu=1400)
    bench.networks.step()
    bench.clock.now += LOOK_S
    bench.networks.step()
    assert told == [{101: 8950}, {101: 8950, 102: 1400}]


def test_a_bridge_that_could_not_be_made_is_none(bench: Bench) -> None:
    bench.links.lacks.add("vxlan")
    bench.add(101)
    bench.networks.step()
    assert bench.networks.bridges == {}


def test_a_round_that_finds_nothing_changes_and_publishes_nothing(bench: Bench) -> None:
    bench.add(101)
    bench.networks.step()
    calls, published = list(bench.links.calls), list(bench.published)
    bench.clock.now += LOOK_S
    bench.networks.step()
    assert (bench.links.calls, bench.published) == (calls, published)


def test_a_restart_changes_nothing_and_says_once_how_it_is(bench: Bench) -> None:
    bench.add(101)
    bench.networks.step()
    calls = list(bench.links.calls)
    again = bench.new()
    again.step()
    again.step()
    assert bench.links.calls == calls
    assert bench.published[1:] == [Found(8950, 0, ())]


def test_what_somebody_changed_is_corrected(bench: Bench) -> None:
    bench.add(101)
    bench.networks.step()
    bench.links.found["vx101"] = replace(bench.links.found["vx101"], up=False)
    bench.clock.now += LOOK_S
    bench.networks.step()
    assert bench.links.calls[-1] == "change vx101"


def test_one_network_that_cannot_be_made_leaves_the_others(bench: Bench) -> None:
    bench.add(101)
    bench.add(102)
    bench.links.found["br101"] = Link("br101", "bridge", 1500)
    assert bench.networks.step() == RETRY_S
    bench.clock.now += RETRY_S
    assert bench.published == [Found(8950, 0, (NetworkProblem(101, "br101 is a device of the host's own"),))]
    assert bench.ours() == {"br102", "vx102"}
    del bench.links.found["br101"]
    bench.networks.step()
    assert bench.published[-1] == Found(8950, 0, ())


def test_a_step_that_fails_is_a_problem_until_it_succeeds(bench: Bench) -> None:
    bench.add(101)
    bench.links.lacks.add("vxlan")
    bench.networks.step()
    (problem,) = bench.published[-1].problems
    assert (problem.vni, "EOPNOTSUPP" in problem.why) == (101, True)
    bench.links.lacks.clear()
    bench.clock.now += RETRY_S
    bench.networks.step()
    assert bench.problems() == ()
    assert bench.ours() == {"br101", "vx101"}


def test_a_bridge_that_cannot_be_made_gets_no_port(bench: Bench) -> None:
    bench.add(101)
    bench.links.lacks.add("bridge")
    bench.networks.step()
    assert bench.links.calls == ["add br101"]


def test_a_damaged_document_freezes_its_own_network(bench: Bench) -> None:
    bench.add(101)
    bench.add(102)
    bench.networks.step()
    bench.world.store.commit(Put(paths.network(101), b"{"))
    bench.world.call("network.remove", network="102")
    bench.networks.step()
    assert bench.ours() == {"br101", "vx101"}
    assert [problem.vni for problem in bench.published[-1].problems] == [101]


def test_without_the_store_nothing_is_done(bench: Bench) -> None:
    bench.add(101)
    bench.networks.step()
    calls = list(bench.links.calls)
    bench.world.cluster.suspend(bench.store)
    del bench.links.found["vx101"]
    bench.clock.now += LOOK_S
    assert bench.networks.step() == UNAVAILABLE_S
    assert bench.links.calls == calls


# Routing


def test_routing_is_wanted_while_a_managed_network_is(bench: Bench) -> None:
    bench.round()
    assert bench.routing.speaker is None
    bench.add(101)
    bench.round()
    assert bench.routing.speaker is not None
    bench.world.call("network.remove", network="101")
    bench.round()
    assert bench.routing.speaker is None


def test_a_bridged_network_needs_no_routing(bench: Bench) -> None:
    bench.world.call("network.add", vni=7, description="dmz", kind="bridged")
    bench.round()
    assert bench.routing.speaker is None


def test_bridges_are_ready_before_routing_is_begun_with(bench: Bench) -> None:
    bench.add(101)
    bench.speaking.step()
    assert bench.routing.speaker is None, "it is not known yet what is wanted"
    bench.networks.step()
    assert bench.networks.linked.is_set()
    assert bench.ours() == {"br101", "vx101"}
    assert bench.routing.speaker is None, "routing waits for its own thread"


def test_a_new_bridge_does_not_wait_for_routing(bench: Bench) -> None:
    """With very many networks its daemons take minutes for a change."""
    bench.add(101)
    bench.networks.step()
    began, may_end = threading.Event(), threading.Event()

    def take_long() -> None:
        began.set()
        assert may_end.wait(30)

    bench.routing.asked = take_long
    busy = threading.Thread(target=bench.speaking.step)
    busy.start()
    try:
        assert began.wait(30)
        bench.add(102)
        bench.networks.step()
        assert bench.ours() == {"br101", "vx101", "br102", "vx102"}
    finally:
        may_end.set()
        busy.join()


def test_whom_a_node_speaks_with_follows_the_nodes(bench: Bench) -> None:
    for number, role in ((1, "coordinator"), (2, "coordinator"), (3, "hypervisor")):
        bench.world.edit(paths.node(f"n{number}"), role=role, address=f"10.0.0.{number}")
    bench.add(101)
    bench.round()
    assert bench.routing.speaker == Speaker("10.0.0.1", True, ("10.0.0.2",), ("10.0.0.3",))
    bench.world.kill_node("n3")
    bench.world.call("node.remove", node="n3")
    bench.round()
    assert bench.routing.speaker == Speaker("10.0.0.1", True, ("10.0.0.2",), ())


def test_hypervisors_speak_with_coordinators_only() -> None:
    nodes = [
        NodeSpec("n1", "10.0.0.1", "", NodeRole.COORDINATOR),
        NodeSpec("n2", "10.0.0.2", "", NodeRole.COORDINATOR),
        NodeSpec("n3", "10.0.0.3", ""),
        NodeSpec("n4", "10.0.0.4", ""),
    ]
    assert speaker("10.0.0.3", nodes) == Speaker("10.0.0.3", False, ("10.0.0.1", "10.0.0.2"))
    assert speaker("10.0.0.2", nodes) == Speaker("10.0.0.2", True, ("10.0.0.1",), ("10.0.0.3", "10.0.0.4"))


def test_routing_that_fails_is_a_problem_and_links_are_made_all_the_same(bench: Bench) -> None:
    bench.add(101)
    bench.routing.fails = "FRR: no such unit"
    bench.round()
    assert bench.ours() == {"br101", "vx101"}
    assert bench.problems() == (NetworkProblem(0, "FRR: no such unit"),)
    bench.routing.fails = ""
    bench.clock.now += routing.LOOK_S
    bench.round()
    assert bench.problems() == ()


def test_a_daemon_of_routing_that_died_is_reported(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.add(101)
    bench.round()
    bench.routing.found["bgpd"] = 0
    bench.round()
    assert bench.problems() == (NetworkProblem(0, "bgpd of FRR does not run"),)
    assert "bgpd of FRR ended by itself and does not run" in caplog.text
    bench.routing.found["bgpd"] = 77
    bench.round()
    assert bench.problems() == ()


def test_a_daemon_of_routing_that_is_back_already_is_reported_too(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.add(101)
    bench.round()
    bench.routing.found["zebra"] += 1
    bench.round()
    assert "zebra of FRR ended by itself and was started again" in caplog.text
    caplog.clear()
    bench.round()
    assert not caplog.text


def test_paths_that_carry_less_are_published_with_the_rest(bench: Bench) -> None:
    for number in (2, 3):
        spec = NodeSpec(f"n{number}", f"10.0.0.{number}", f"10.0.0.{number}")
        bench.store.commit(Put(paths.node(spec.name), dumps(spec)))
    bench.round()
    bench.path_mtu.step()
    bench.round()
    assert not bench.problems(), "no managed network, so nobody minds"
    bench.add(101)
    bench.round()
    bench.path_mtu.step()
    bench.round()
    (problem,) = bench.problems()
    assert problem.vni == 0
    assert "packets of 9000 bytes" in problem.why
    assert "n2, n3" in problem.why


def test_coordinators_speak_with_routers_of_what_is_behind_gateways() -> None:
    nodes = [
        NodeSpec("n1", "10.0.0.1", "", NodeRole.COORDINATOR),
        NodeSpec("n2", "10.0.0.2", "", NodeRole.HYPERVISOR),
    ]
    networks = [
        NetworkSpec(101, "a", Kind.MANAGED, ipv4=IPv4("10.1.0.0/24", "10.1.0.1"), ipv6=IPv6("fd00:1::/64")),
        NetworkSpec(102, "b", Kind.MANAGED, ipv4=IPv4("10.2.0.0/24")),
        NetworkSpec(103, "c", Kind.MANAGED, ipv6=IPv6("fd00:3::/64", "fd00:3::1")),
    ]
    cluster = ClusterSpec("test", as_number=64600, routers=("192.0.2.1@64512",))
    announced = {101: ("10.1.0.0/24",), 103: ("fd00:3::/64",)}
    found = speaker("10.0.0.1", nodes, cluster, networks, ("10.0.0.0/24",))
    assert found.upstream == Upstream((Router("192.0.2.1", 64512),), announced, ("10.0.0.0/24",))
    assert found.as_number == 64600
    hypervisor = speaker("10.0.0.2", nodes, cluster, networks)
    assert (hypervisor.upstream, hypervisor.as_number) == (None, 64600)
    assert speaker("10.0.0.1", nodes, replace(cluster, routers=()), networks).upstream is None


def test_a_node_s_own_networks_are_those_on_its_devices() -> None:
    def route(device: str, prefix: str, *, is_direct: bool = True) -> Route:
        return Route(device, ip_network(prefix), is_direct)

    routes = [
        route("ups", "0.0.0.0/0", is_direct=False),
        route("ups", "203.0.113.0/24", is_direct=False),
        route("ups", "10.0.0.0/24"),
        route("clu", "fd00:1::/64"),
        route("clu", "fe80::/64"),
        route("clu", "ff00::/8"),
        route("clu", "fd00:1::7/128"),
        route("gw101", "10.1.0.0/24"),
    ]
    assert routing.own_networks(routes) == ("10.0.0.0/24", "fd00:1::/64")


def test_a_router_that_is_named_is_spoken_with(bench: Bench) -> None:
    bench.world.edit(paths.node("n1"), role="coordinator", address="10.0.0.1")
    for name in ("n2", "n3"):
        bench.world.edit(paths.node(name), address=f"10.0.0.{name[1]}")
    bench.add(101, ipnet="10.1.0.0/24", gateway="10.1.0.1")
    bench.round()
    bench.world.call("cluster.set", router=["192.0.2.1@64512"])
    bench.round()
    assert bench.routing.speaker is not None
    assert bench.routing.speaker.upstream == Upstream((Router("192.0.2.1", 64512),), {101: ("10.1.0.0/24",)})


def test_gateways_are_looked_for_at_the_primary(bench: Bench) -> None:
    """Not in networks without one, and not by the primary itself."""
    other = NodeSpec("n9", "10.0.0.9", "10.0.0.9", role=NodeRole.COORDINATOR)
    bench.store.commit(Create(paths.node("n9"), dumps(other)))
    bench.add(101, ipnet="10.101.0.0/24", gateway="10.101.0.1")
    bench.add(102)
    bench.primary_is("n1")
    bench.networks.step()
    bench.tunnels.known = {101: "10.0.0.8", 102: "10.0.0.8"}
    bench.clock.now += LOOK_S
    bench.networks.step()
    assert bench.tunnels.known == {101: "10.0.0.8", 102: "10.0.0.8"}
    due = bench.networks.links_due
    bench.primary_is("n9")
    assert bench.networks.step() <= AFTER_S[0]
    bench.clock.now += AFTER_S[0]
    bench.networks.step()
    assert bench.tunnels.known == {101: "10.0.0.9", 102: "10.0.0.8"}
    assert bench.networks.links_due == due, "no reason to look at links"


def test_a_primary_that_cannot_be_read_is_nobody(bench: Bench) -> None:
    bench.add(101, ipnet="10.101.0.0/24", gateway="10.101.0.1")
    bench.store.commit(Create(paths.PRIMARY, b"{", ephemeral=True))
    bench.tunnels.known = {101: "10.0.0.8"}
    for _ in range(2):
        assert bench.networks.step() > 0
        bench.clock.now += LOOK_S
    assert bench.tunnels.known == {101: "10.0.0.8"}


def test_a_move_is_looked_after_though_its_round_fails(bench: Bench) -> None:
    bench.networks.step()
    bench.primary_is("n1")
    bench.add(101)
    bench.links.fails = "no netlink: busy"
    with pytest.raises(DriverError):
        bench.networks.step()
    bench.links.fails = ""
    assert bench.networks.step() <= AFTER_S[0]
