"""Networks as operations see them: what they write, who uses them, how they are on the nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pvc.cluster import domainxml, paths
from pvc.cluster.clients import Lease, Member, Reservation
from pvc.cluster.codec import dumps
from pvc.cluster.membership import Primary
from pvc.cluster.mirror import Mirror
from pvc.cluster.network import DHCPRange, IPv4, IPv6, NetworkSpec
from pvc.cluster.store import Create, Delete, Put
from pvc.cluster.view import View, expand_whole_cluster, whole_cluster
from pvc.commands.context import invoke
from pvc.commands.registry import find
from pvc.errors import Conflict, Invalid, NotFound
from tests.unit.commands.world import OTHER, UUID, Interrupted, World, a_world, xml_of


def a_network(vni: int = 101, description: str = "shop", kind: str = "managed", **given: Any) -> World:
    world = a_world()
    world.call("network.add", vni=vni, description=description, kind=kind, **given)
    return world


def spec_of(world: World, network: str = "101") -> NetworkSpec:
    return View(world.store).network(network).spec


def routed(**given: Any) -> World:
    """A network that has all that one can have."""
    full = {
        "domain": "shop.example",
        "dns_server": ["9.9.9.9", "2620:fe::fe"],
        "ipnet": "10.1.0.0/24",
        "gateway": "10.1.0.1",
        "ipnet6": "fd00:1::/64",
        "gateway6": "fd00:1::1",
        "dhcp": True,
        "dhcp6": True,
    }
    return a_network(**{**full, **given})


def nodes_have(world: World, *bridges: str, problems: list[dict[str, Any]] | None = None) -> None:
    for node in ("n1", "n2", "n3"):
        path = paths.node_status(node)
        world.edit(path, bridges=["br0", *bridges], network_problems=problems or [])


def test_a_network_is_on_its_way_until_every_node_has_it() -> None:
    world = a_network()
    found = world.call("network.info", network="shop")
    assert (found["state"], found["settled"], found["bridge"]) == ("incomplete", False, "br101")
    assert found["nodes"] == dict.fromkeys(("n1", "n2", "n3"), "not made yet")
    assert found["activity"] == "not made yet on n1, n2, n3"
    nodes_have(world, "br101")
    later = world.call("network.info", network="101")
    assert (later["state"], later["settled"], later["reason"]) == ("up", True, "")
    assert later["activity"] == ""
    assert later["version"] != found["version"], "whoever waits is told"


def test_a_node_that_cannot_make_it_says_why_and_nobody_waits_for_it() -> None:
    world = a_network()
    nodes_have(world, "br101")
    broken = [{"vni": 101, "why": "br101 is somebody else's"}]
    world.edit(paths.node_status("n2"), bridges=["br0"], network_problems=broken)
    found = world.call("network.info", network="101")
    assert (found["state"], found["settled"]) == ("incomplete", True)
    assert found["reason"] == "n2: br101 is somebody else's"
    assert "node n2: network 101: br101 is somebody else's" in world.call("cluster.status")["problems"]
    assert "n2: br101 is somebody else's" in world.call("why.network", network="101")["because"]


def test_a_dead_node_is_not_waited_for() -> None:
    world = a_network()
    nodes_have(world, "br101")
    world.edit(paths.node_status("n3"), bridges=["br0"])
    world.kill_node("n3")
    found = world.call("network.info", network="101")
    assert (found["state"], found["nodes"]["n3"]) == ("up", "its daemon is dead")


def test_routing_that_fails_concerns_every_managed_network_and_no_bridged_one() -> None:
    world = a_network()
    world.call("network.add", vni=7, description="dmz", kind="bridged")
    nodes_have(world, "br101", "br7", problems=[{"vni": 0, "why": "FRR does not run"}])
    states = {row["vni"]: row["state"] for row in world.call("network.list")}
    assert states == {7: "up", 101: "incomplete"}
    assert world.call("network.info", network="7")["state"] == "up"
    assert world.call("network.info", network="101")["reason"].startswith("n1: FRR does not run")
    assert "node n1: FRR does not run" in world.call("cluster.status")["problems"]


def test_the_list_counts_vms_and_can_be_narrowed() -> None:
    world = a_network()
    world.call("network.add", vni=7, description="dmz", kind="bridged", mtu=1400)
    world.call("vm.create", name="web1", network=["shop", "101", "bridge:br0"])
    world.call("vm.create", name="web2", network=["dmz"])
    rows = world.call("network.list")
    assert [(row["vni"], row["description"], row["kind"], row["mtu"], row["vms"]) for row in rows] == [
        (7, "dmz", "bridged", 1400, 1),
        (101, "shop", "managed", 0, 1),
    ]
    assert [row["vni"] for row in world.call("network.list", limit="^d")] == [7]
    assert [row["vni"] for row in world.call("network.list", kind="managed")] == [101]


def test_a_vm_is_in_a_network_by_its_number() -> None:
    world = a_network()
    world.call("vm.create", name="web1", network=["shop", "bridge:br0"])
    spec = world.spec("web1")
    assert spec.networks == ("101", "br0")
    facts = domainxml.parse(spec.definition)
    assert [(nic.type, nic.source, nic.vni) for nic in facts.nics] == [
        ("network", "101", 101),
        ("bridge", "br0", None),
    ]
    assert facts.bridges == ("br0", "br101")
    assert world.call("network.info", network="101")["vms"] == ["web1"]
    world.check_invariants()


def test_a_bridge_whose_name_is_a_number_is_no_network() -> None:
    world = a_network()
    world.call("vm.define", xml=xml_of(bridge="101"))
    assert world.spec("web1").networks == ("bridge:101",)
    assert world.call("network.info", network="101")["vms"] == []


def test_the_index_follows_the_definition() -> None:
    world = a_network()
    world.call("network.add", vni=102, description="back", kind="managed")
    world.call("vm.define", xml=xml_of(bridge="", vni=101))
    world.check_invariants()
    world.call("vm.set-definition", vm="web1", xml=xml_of(bridge="", vni=102))
    world.check_invariants()
    assert [world.call("network.info", network=one)["vms"] for one in ("101", "102")] == [[], ["web1"]]
    world.call("vm.rename", vm="web1", new="web2")
    assert world.call("network.info", network="102")["vms"] == ["web2"]
    world.call("vm.undefine", vm="web2")
    world.check_invariants()
    world.call("network.remove", network="102")
    assert world.store.get(paths.network_vms(102)) is None


def test_the_index_says_what_a_vm_is_called_there_and_by_which_addresses_it_is_known() -> None:
    world = a_network()
    world.call("vm.define", xml=xml_of(bridge="br0", vni=101))
    outside, inside = domainxml.parse(world.spec("web1").definition).nics
    assert world.member(101, UUID) == Member("web1", (inside.mac,)), "and none of another network"
    world.call("vm.rename", vm="web1", new="web2")
    assert world.member(101, UUID) == Member("web2", (inside.mac,))
    moved = world.spec("web2").definition.replace(inside.mac, "52:54:00:00:00:09")
    world.call("vm.set-definition", vm="web2", xml=moved)
    assert world.member(101, UUID) == Member("web2", ("52:54:00:00:00:09",))
    assert outside.mac in moved
    world.check_invariants()


def test_a_change_that_concerns_no_network_writes_nothing_to_one() -> None:
    world = a_network()
    world.call("vm.define", xml=xml_of(bridge="br0", vni=101))
    path = paths.network_vm(101, UUID)
    before = world.store.get(path)
    world.call("vm.memory-set", vm="web1", memory="1G")
    world.call("vm.meta", vm="web1", selector="vms")
    assert world.store.get(path) == before


def test_what_a_newer_version_has_written_of_a_member_stays() -> None:
    world = a_network()
    world.call("vm.define", xml=xml_of(bridge="br0", vni=101))
    world.edit(paths.network_vm(101, UUID), colour="red")
    world.call("vm.rename", vm="web1", new="web2")
    assert world.member(101, UUID).extra == {"colour": "red"}
    assert world.member(101, UUID).vm == "web2"


def test_a_damaged_definition_can_be_replaced_and_the_index_follows() -> None:
    world = a_network()
    world.call("vm.define", xml=xml_of(bridge="br0", vni=101))
    whole = world.spec("web1").definition
    world.edit(paths.vm(UUID), definition="<domain")
    world.call("vm.set-definition", vm="web1", xml=whole)
    world.check_invariants()


def test_a_used_network_stays_and_says_who_uses_it() -> None:
    world = a_network()
    for number in range(12):
        world.call("vm.create", name=f"web{number:02}", network=["101"])
    with pytest.raises(Conflict, match=r"used by web00, web01, .* web09 and 2 more"):
        world.call("network.remove", network="101")


def test_a_vm_that_comes_while_its_network_goes_does_not_come() -> None:
    world = a_network()

    def meanwhile() -> None:
        world.call("network.remove", network="101")

    reader = Interrupted(world.store, paths.network(101), meanwhile)
    with pytest.raises(NotFound, match="no network 101"):
        world.call("vm.define", reader=reader, xml=xml_of(bridge="", vni=101))
    assert world.store.get(paths.vm(UUID)) is None


def test_a_network_that_gets_a_vm_while_it_goes_stays() -> None:
    world = a_network()

    def meanwhile() -> None:
        world.call("vm.define", xml=xml_of(bridge="", vni=101))

    reader = Interrupted(world.store, paths.network(101), meanwhile)
    with pytest.raises(Conflict, match="used by web1"):
        world.call("network.remove", reader=reader, network="101")
    world.check_invariants()


def test_a_change_keeps_what_is_not_given() -> None:
    world = a_network(mtu=1400)
    world.call("network.modify", network="101", description="store")
    spec = View(world.store).network("store").spec
    assert (spec.vni, spec.mtu, spec.description) == (101, 1400, "store")
    world.call("network.modify", network="store", mtu=0)
    assert View(world.store).network("101").spec.mtu == 0
    with pytest.raises(NotFound, match="described as shop"):
        world.call("network.info", network="shop")
    world.check_invariants()


def test_a_change_to_what_it_is_writes_nothing() -> None:
    world = a_network(mtu=1400)
    before = world.documents()
    world.call("network.modify", network="101", mtu=1400, description="shop")
    assert world.documents() == before


def test_a_network_changed_meanwhile_is_looked_at_again() -> None:
    world = a_network()
    path = paths.network(101)

    def meanwhile() -> None:
        stored = world.store.get(path)
        assert stored is not None
        world.store.commit(Put(path, stored.data, stored.version))

    reader = Interrupted(world.store, path, meanwhile)
    world.call("network.modify", reader=reader, network="101", mtu=1400)
    assert View(world.store).network("101").spec.mtu == 1400


def test_a_vm_is_not_placed_where_its_network_is_missing_and_says_why() -> None:
    world = a_network()
    nodes_have(world, "br101")
    broken = [{"vni": 101, "why": "the kernel has no VXLAN"}]
    world.edit(paths.node_status("n1"), bridges=["br0"], network_problems=broken)
    world.call("vm.create", name="web1", network=["101"])
    assert world.plan("vm.start", vm="web1")["plan"][1] == (
        "not n1: it has no bridge br101: the kernel has no VXLAN"
    )
    world.call("vm.start", vm="web1")
    assert world.spec("web1").node == "n2"
    because = world.call("why.vm", vm="web1")["because"]
    assert "n1 cannot take it: it has no bridge br101: the kernel has no VXLAN" in because


def test_the_mtu_of_the_node_with_the_least_counts() -> None:
    world = a_network()
    world.edit(paths.node_status("n2"), managed_mtu=1450)
    said = world.call("why.network", network="101")["because"]
    assert "its MTU is 1450, what the nodes can give it" in said
    assert "the nodes differ in the MTU they can give it: n1 8950, n2 1450, n3 8950" in said
    assert any("guests use 1500 unless told" in one for one in said)


def test_two_vms_are_two_users() -> None:
    world = a_network()
    world.call("vm.define", xml=xml_of(bridge="", vni=101))
    world.call("vm.define", xml=xml_of("web2", OTHER, bridge="", vni=101))
    assert world.call("network.info", network="101")["vms"] == ["web1", "web2"]
    world.store.commit(Delete(paths.network_vm(101, OTHER)))
    assert world.call("network.info", network="101")["vms"] == ["web1"]


# Addresses and names


def test_a_network_has_what_it_was_told() -> None:
    spec = spec_of(routed(dhcp_start="10.1.0.50"))
    assert (spec.domain, spec.dns_servers) == ("shop.example", ("9.9.9.9", "2620:fe::fe"))
    assert spec.ipv4 == IPv4("10.1.0.0/24", "10.1.0.1", DHCPRange("10.1.0.50", "10.1.0.254"))
    assert spec.ipv6 == IPv6("fd00:1::/64", "fd00:1::1", dhcp=True)


def test_addresses_and_names_are_kept_as_they_are_written_commonly() -> None:
    spec = spec_of(routed(ipnet6="FD00:0001::/64", gateway6="fd00:1:0::0001", domain="Shop.Example"))
    assert (spec.ipv6.network, spec.ipv6.gateway, spec.domain) == ("fd00:1::/64", "fd00:1::1", "shop.example")


def test_one_dns_server_is_one_and_no_change_of_something_else_takes_it_away() -> None:
    """As the existing PVC did: "8,.,8,." of one, and none after any modify."""
    world = routed(dns_server=["8.8.8.8"])
    assert spec_of(world).dns_servers == ("8.8.8.8",)
    for change in (
        {"mtu": 1400},
        {"description": "store"},
        {"gateway": "10.1.0.2"},
        {"dhcp": False},
        {"domain": "store.example"},
        {"gateway6": "fd00:1::2"},
    ):
        before = spec_of(world)
        world.call("network.modify", network="101", **change)
        assert spec_of(world) != before
        assert spec_of(world).dns_servers == ("8.8.8.8",)


CLEARED = [
    ({"domain": ""}, {"domain": ""}),
    ({"dns_server": [""]}, {"dns_servers": ()}),
    ({"dns_server": []}, {"dns_servers": ()}),
    ({"dhcp": False}, {"ipv4": IPv4("10.1.0.0/24", "10.1.0.1")}),
    ({"dhcp": False, "gateway": ""}, {"ipv4": IPv4("10.1.0.0/24")}),
    ({"dhcp": False, "gateway": "", "ipnet": ""}, {"ipv4": IPv4()}),
    ({"dhcp6": False}, {"ipv6": IPv6("fd00:1::/64", "fd00:1::1")}),
    ({"dhcp6": False, "gateway6": "", "ipnet6": ""}, {"ipv6": IPv6()}),
]


@pytest.mark.parametrize(("given", "changes"), CLEARED)
def test_what_is_given_empty_is_cleared_and_nothing_else(
    given: dict[str, Any], changes: dict[str, Any]
) -> None:
    world = routed()
    before = spec_of(world)
    world.call("network.modify", network="101", **given)
    assert spec_of(world) == replace(before, **changes)


def test_a_range_stays_where_it_was_put() -> None:
    world = routed(dhcp_start="10.1.0.50", dhcp_end="10.1.0.60")
    world.call("network.modify", network="101", dhcp=True, gateway="10.1.0.2")
    assert spec_of(world).ipv4.dhcp == DHCPRange("10.1.0.50", "10.1.0.60")
    world.call("network.modify", network="101", dhcp_end="10.1.0.70")
    assert spec_of(world).ipv4.dhcp == DHCPRange("10.1.0.50", "10.1.0.70")
    world.call("network.modify", network="101", dhcp=True, ipnet="10.2.0.0/24", gateway="10.2.0.1")
    assert spec_of(world).ipv4.dhcp == DHCPRange("10.2.0.128", "10.2.0.254")


def test_a_plan_names_what_would_be_another() -> None:
    world = routed()
    plan = world.plan("network.modify", network="101", gateway="10.1.0.2", dhcp=False, mtu=0)["plan"]
    assert plan == [
        "gateway of network 101: 10.1.0.1 → 10.1.0.2",
        "dhcp of network 101: 10.1.0.128 to 10.1.0.254 → none",
    ]
    new = {
        "vni": 102,
        "description": "back",
        "kind": "managed",
        "ipnet": "10.2.0.0/24",
        "gateway": "10.2.0.1",
    }
    assert world.plan("network.add", **new)["plan"][1:] == [
        "ipnet of network 102: 10.2.0.0/24",
        "gateway of network 102: 10.2.0.1",
    ]


def test_a_reserved_address_stays_possible() -> None:
    world = routed()
    promised = Reservation("52:54:00:00:00:01", "10.1.0.9", "web1")
    world.store.commit(Create(paths.network_reservation(101, promised.mac), dumps(promised)))
    move: dict[str, Any] = {"network": "101", "ipnet": "10.2.0.0/24", "gateway": "10.2.0.1", "dhcp": True}
    with pytest.raises(Conflict, match=r"10\.1\.0\.9 is reserved for 52:54:00:00:00:01"):
        world.call("network.modify", **move)
    with pytest.raises(Conflict, match=r"10\.1\.0\.9 is reserved"):
        world.call("network.modify", network="101", gateway="10.1.0.9")
    world.call("network.modify", network="101", gateway="10.1.0.2")
    world.store.commit(Delete(paths.network_reservation(101, promised.mac)))
    world.call("network.modify", **move)


def test_the_node_that_serves_a_network_is_shown_and_what_it_cannot_do() -> None:
    world = routed()
    nodes_have(world, "br101")
    world.store.commit(
        Create(paths.PRIMARY, dumps(Primary("n2", 1, 0)), ephemeral=True),
        Create(paths.network_lease(101, "10.1.0.130"), dumps(Lease("10.1.0.130", "52:54:00:00:00:01"))),
    )
    found = world.call("network.info", network="101")
    assert (found["gateway_node"], found["leases"], found["state"]) == ("n2", 1, "up")
    assert found["gateway"] == "10.1.0.1"
    broken = {"vni": 101, "why": "dnsmasq does not run"}
    for node in ("n2", "n3"):
        world.edit(paths.node_status(node), service_problems=[broken])
    later = world.call("network.info", network="101")
    assert (later["state"], later["reason"]) == ("incomplete", "n2, which serves it: dnsmasq does not run")
    assert later["version"] != found["version"], "whoever waits is told"
    assert [row["state"] for row in world.call("network.list")] == ["incomplete"]
    assert "node n2: network 101: dnsmasq does not run" in world.call("cluster.status")["problems"]
    assert not [one for one in world.call("cluster.status")["problems"] if "n3: network" in one]
    because = world.call("why.network", network="101")["because"]
    assert "n2, the primary, has its gateway 10.1.0.1 and fd00:1::1" in because
    assert "DHCP gives 10.1.0.128 to 10.1.0.254; 1 lease" in because
    assert "n2 cannot serve it: dnsmasq does not run" in because


def test_what_the_primary_cannot_do_concerns_no_network_without_a_gateway() -> None:
    world = a_network()
    nodes_have(world, "br101")
    world.store.commit(Create(paths.PRIMARY, dumps(Primary("n2", 1, 0)), ephemeral=True))
    world.edit(paths.node_status("n2"), service_problems=[{"vni": 0, "why": "no nft"}])
    assert world.call("network.info", network="101")["state"] == "up"
    assert [row["state"] for row in world.call("network.list")] == ["up"]
    assert "it has no gateway" in "".join(world.call("why.network", network="101")["because"])


@pytest.mark.parametrize("given", [{"ipnet": "10.1.0.0/16"}, {"domain": "shop.example.com"}])
def test_two_that_get_the_same_at_the_same_moment_do_not_both_get_it(given: dict[str, Any]) -> None:
    """A server whose copy is a moment old finds that the other one came first, and looks again."""
    world = a_world()
    old = Mirror(world.cluster.connect(), whole_cluster(), expand_whole_cluster, lambda: None)
    old.sync()
    world.call("network.add", vni=101, description="one", kind="managed", **given)
    context = world.context(reader=old)
    context.refresh = old.refresh
    with pytest.raises(Invalid, match="of network 101"):
        invoke(find("network.add"), context, {"vni": 102, "description": "two", "kind": "managed", **given})
