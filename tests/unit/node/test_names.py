"""Names for the world: what is told when, with which serial, by whichever node is primary."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import pytest

from pvc.cluster import paths
from pvc.cluster.clients import Clients, Lease, Member
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.codec import dumps
from pvc.cluster.network import IPv4, Kind, NetworkSpec
from pvc.cluster.node import NodeRole, NodeSpec
from pvc.cluster.store import Create, Delete, Op, Put
from pvc.errors import Conflict
from pvc.node import names
from pvc.node.drivers.networks import Answering
from pvc.node.names import Names, answering, server
from pvc.node.services import Scene, Services
from tests.fakes.nameserver import FakeNameServer
from tests.fakes.store import MemoryStore
from tests.unit.commands.world import a_world
from tests.unit.node.test_services import take

A = "52:54:00:00:00:01"
CLUSTER = ClusterSpec("test", dns_domain="pvc.example", upstream_address="192.0.2.250/24")
NODES = {
    name: NodeSpec(name, f"10.0.0.{number}", f"10.9.0.{number}", NodeRole.COORDINATOR)
    for number, name in enumerate(("n1", "n2"), 1)
} | {"n3": NodeSpec("n3", "10.0.0.3", "10.9.0.3")}
SHOP = Clients(
    NetworkSpec(101, "shop", Kind.MANAGED, domain="shop.example", ipv4=IPv4("10.1.0.0/24", "10.1.0.1")),
    {"u1": Member("web1", (A,))},
)
SCENE = Scene(CLUSTER, NODES, {101: SHOP})
LEASE = Lease("10.1.0.9", A)


def with_lease(clients: Clients = SHOP, *leases: Lease) -> Clients:
    return replace(clients, leases={one.address: one for one in leases or (LEASE,)})


@dataclass
class Bench:
    store: MemoryStore = field(default_factory=lambda: a_world().store)
    now: float = 1_700_000_000.0
    commits: list[tuple[Op, ...]] = field(default_factory=list)
    fails: bool = False

    def __post_init__(self) -> None:
        self.machine = FakeNameServer()
        self.names = self.another()

    def another(self) -> Names:
        """Of another node, which is primary now."""
        self.machine = FakeNameServer()
        self.names = Names("n1", self.store, self.commit, self.machine, lambda: self.now)
        return self.names

    def commit(self, *ops: Op) -> None:
        if self.fails:
            raise Conflict("n1 is not primary any more")
        self.store.commit(*ops)
        self.commits.append(ops)

    def serials(self) -> dict[str, int]:
        return {name: zone.serial for name, zone in self.machine.zones.items()}


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_zones_are_told_at_the_floating_addresses(bench: Bench) -> None:
    assert bench.names.serve(SCENE) == ()
    assert bench.machine.zones.keys() == {"pvc.example", "shop.example", "0.1.10.in-addr.arpa"}
    assert set(bench.serials().values()) == {1_700_000_000}
    assert bench.machine.wanted is not None
    assert bench.machine.wanted.addresses == ("192.0.2.250",)


def test_a_round_in_which_nothing_changed_does_nothing(bench: Bench) -> None:
    bench.names.serve(SCENE)
    told, commits = list(bench.machine.published), list(bench.commits)
    bench.names.serve(Scene(CLUSTER, dict(NODES), {101: SHOP}))
    assert (bench.machine.published, bench.commits) == (told, commits)
    assert bench.machine.lives == 1


def test_only_zones_that_changed_get_a_new_serial(bench: Bench) -> None:
    bench.names.serve(SCENE)
    bench.now += 60
    bench.names.serve(replace(SCENE, networks={101: with_lease()}))
    assert bench.serials() == {
        "pvc.example": 1_700_000_000,
        "shop.example": 1_700_000_060,
        "0.1.10.in-addr.arpa": 1_700_000_060,
    }
    assert [len(ops) for ops in bench.commits] == [3, 2]
    bench.names.serve(replace(SCENE, networks={101: replace(with_lease(), access=SHOP.access)}))
    assert len(bench.commits) == 2, "who reads them sees nothing new"


def test_serials_grow_while_clocks_go_backwards_and_the_role_moves(bench: Bench) -> None:
    bench.names.serve(SCENE)
    bench.now = 5.0
    bench.another().serve(SCENE)
    assert set(bench.serials().values()) == {1_700_000_000}, "the same zones have the same serials"
    bench.names.serve(replace(SCENE, networks={101: with_lease()}))
    bench.another().serve(SCENE)
    assert bench.serials()["shop.example"] == 1_700_000_002
    assert bench.serials()["pvc.example"] == 1_700_000_000


def test_a_zone_that_comes_again_goes_on_after_the_serial_it_had(bench: Bench) -> None:
    bench.names.serve(SCENE)
    bench.names.serve(replace(SCENE, networks={}))
    assert bench.machine.zones.keys() == {"pvc.example"}
    assert bench.store.children(paths.ZONES) == ("pvc.example",)
    bench.now = 5.0
    bench.another().serve(SCENE)
    assert bench.serials()["shop.example"] == 1_700_000_001


def test_nothing_is_told_with_a_serial_that_is_not_in_the_store(bench: Bench) -> None:
    bench.names.serve(SCENE)
    told = bench.serials()
    bench.fails = True
    for _ in range(2):
        with pytest.raises(Conflict):
            bench.names.serve(replace(SCENE, networks={101: with_lease()}))
    assert bench.serials() == told
    bench.fails = False
    bench.names.serve(replace(SCENE, networks={101: with_lease()}))
    assert bench.serials()["shop.example"] == told["shop.example"] + 1


def test_what_somebody_else_told_meanwhile_is_known_again(bench: Bench) -> None:
    mine = bench.names
    mine.serve(SCENE)
    mine.rest()
    bench.another().serve(replace(SCENE, networks={101: with_lease()}))
    mine.serve(SCENE)
    shop = mine.name_server.zones["shop.example"]  # type: ignore[attr-defined]
    assert shop.serial == bench.serials()["shop.example"] + 1


def test_a_serial_that_cannot_be_read_begins_anew(bench: Bench) -> None:
    bench.names.serve(SCENE)
    bench.store.commit(Put(paths.zone("shop.example"), b"{"))
    bench.now += 9
    bench.another().serve(SCENE)
    assert bench.serials()["shop.example"] == 1_700_000_009


def test_many_zones_go_into_the_store_in_pieces(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "OPS_AT_ONCE", 4)
    networks = {
        vni: Clients(NetworkSpec(vni, f"d{vni}", Kind.MANAGED, domain=f"d{vni}.example"))
        for vni in range(1, 10)
    }
    bench.names.serve(replace(SCENE, networks=networks))
    assert [len(ops) for ops in bench.commits] == [4, 4, 2]
    bench.names.serve(replace(SCENE, networks={}))
    assert bench.store.children(paths.ZONES) == ("pvc.example",)


def test_where_there_are_no_names_nothing_runs(bench: Bench) -> None:
    bench.names.serve(SCENE)
    bench.names.serve(Scene(replace(CLUSTER, dns_domain=""), NODES, {}))
    assert bench.machine.wanted is None
    assert bench.machine.life() == 0
    assert bench.store.children(paths.ZONES) == ()


def test_a_node_that_is_removed_and_has_no_address_to_answer_at_does_not_answer(bench: Bench) -> None:
    bench.names.serve(Scene(ClusterSpec("test", dns_domain="pvc.example"), {"n2": NODES["n2"]}, {}))
    assert bench.machine.wanted is None


def test_it_ends_with_the_role_and_begins_anew(bench: Bench) -> None:
    bench.names.serve(SCENE)
    bench.names.rest()
    assert bench.machine.wanted is None
    bench.names.serve(SCENE)
    assert bench.machine.life()
    assert bench.machine.zones.keys() == {"pvc.example", "shop.example", "0.1.10.in-addr.arpa"}


def test_one_that_was_killed_is_back_and_it_is_told(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.names.serve(SCENE)
    bench.machine.lives += 1  # by systemd
    with caplog.at_level(logging.ERROR):
        bench.names.serve(SCENE)
    assert caplog.messages == ["PowerDNS ended by itself and was started again"]
    bench.machine.is_dead = True
    bench.names.serve(SCENE)
    assert caplog.messages[1:] == ["PowerDNS ended by itself and does not run"]
    assert bench.machine.life(), "started by the service"
    bench.names.serve(SCENE)
    assert len(caplog.messages) == 2


def test_a_domain_of_two_is_that_of_the_first_and_the_second_is_told(bench: Bench) -> None:
    second = replace(SHOP, spec=replace(SHOP.spec, vni=102, ipv4=IPv4("10.2.0.0/24", "10.2.0.1")))
    third = replace(SHOP, spec=replace(SHOP.spec, vni=103, ipv4=IPv4(), domain="pvc.example"))
    problems = bench.names.serve(replace(SCENE, networks={101: SHOP, 102: second, 103: third}))
    assert [(one.vni, one.why) for one in problems] == [
        (102, "its names are not told: shop.example is taken already"),
        (103, "its names are not told: pvc.example is taken already"),
    ]
    assert bench.machine.zones.keys() == {"pvc.example", "shop.example", "0.1.10.in-addr.arpa"}
    assert bench.names.serve(replace(SCENE, networks={101: SHOP, 102: second, 103: third})) == problems


def test_vms_that_cannot_have_their_names_are_a_problem(bench: Bench) -> None:
    members = {"u1": Member("web1"), "u2": Member("WEB1")}
    problems = bench.names.serve(replace(SCENE, networks={101: replace(SHOP, members=members)}))
    assert [one.why for one in problems] == ["no VM can be called web1 here"]


def test_zones_below_others_are_found(bench: Bench) -> None:
    below = replace(SHOP, spec=replace(SHOP.spec, domain="shop.pvc.example"))
    bench.names.serve(replace(SCENE, networks={101: below}))
    told = {(one.name, one.type, one.content) for one in bench.machine.zones["pvc.example"].records}
    assert ("shop.pvc.example", "NS", "ns.pvc.example") in told


def test_where_it_answers_and_who_may_copy() -> None:
    both = replace(CLUSTER, cluster_address="10.0.0.250/24", dns_secondaries=("192.0.2.53",))
    nodes = ("10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32")
    usual = ("192.0.2.0/24", "10.0.0.0/24", *nodes, "192.0.2.53/32")
    assert answering("n1", both, NODES) == Answering(("192.0.2.250", "10.0.0.250"), usual, ("192.0.2.53",))
    chosen = replace(both, dns_transfers=("198.51.100.0/24",))
    assert answering("n1", chosen, NODES).copied_by == ("198.51.100.0/24", "192.0.2.53/32")
    assert answering("n2", ClusterSpec("test"), NODES) == Answering(("10.0.0.2",), nodes)
    assert server(ClusterSpec("test"), NODES).addresses == ("10.0.0.1", "10.0.0.2")


def test_from_the_store_to_the_name_server() -> None:
    """With the services as the daemon runs them."""
    world = a_world()
    machine = FakeNameServer()
    services = Services(
        "n1",
        world.store,
        lambda commit: (Names("n1", world.store, commit, machine, lambda: 7.0),),
        lambda problems: None,
        lambda: None,
    )
    world.call("cluster.set", dns_domain="pvc.example")
    take(world.store, "n1")
    world.call(
        "network.add", vni=101, description="shop", kind="managed", domain="shop.example", ipnet="10.1.0.0/24"
    )
    services.step()
    told = len(machine.published)
    services.step()
    assert len(machine.published) == told
    lease = Create(paths.network_lease(101, LEASE.address), dumps(replace(LEASE, hostname="db")))
    world.store.commit(lease)
    services.step()
    found = {(one.name, one.content) for one in machine.zones["shop.example"].records if one.type == "A"}
    assert ("db.shop.example", "10.1.0.9") in found
    world.store.commit(Delete(paths.PRIMARY))
    take(world.cluster.connect(), "n2")
    services.step()
    assert machine.life() == 0
