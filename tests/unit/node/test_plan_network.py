"""Wanted networks and the host's links as they are: the steps between them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from pvc.cluster.network import Kind, NetworkSpec
from pvc.cluster.node import NetworkProblem
from pvc.node.drivers.networks import Link, Vlan, Vxlan
from pvc.node.plan_network import Add, Change, Host, NetworkPlan, Remove, Step, plan

SHOP = NetworkSpec(101, "shop", Kind.MANAGED)
DMZ = NetworkSpec(7, "dmz", Kind.BRIDGED)
OWN = {
    one.name: one
    for one in (
        Link("lo", "", 65536),
        Link("clu", "", 9000),
        Link("lan", "", 1500),
        Link("br0", "bridge", 1500),
        Link("tap9", "tun", 1500, master="br0"),
    )
}
SHOP_BRIDGE = Link("br101", "bridge", 8950, is_quiet=True, is_ours=True)
SHOP_TUNNEL = Link(
    "vx101",
    "vxlan",
    8950,
    master="br101",
    learning=False,
    vxlan=Vxlan(101, "10.251.1.1"),
    is_quiet=True,
    is_ours=True,
)
DMZ_BRIDGE = Link("br7", "bridge", 1500, is_quiet=True, is_ours=True)
DMZ_VLAN = Link("vl7", "vlan", 1500, master="br7", vlan=Vlan(7, "lan"), is_quiet=True, is_ours=True)
MADE = {one.name: one for one in (SHOP_BRIDGE, SHOP_TUNNEL, DMZ_BRIDGE, DMZ_VLAN)}
GUEST = Link("vnet0", "tun", 8950, master="br101")


def host(
    links: Mapping[str, Link] = OWN,
    *,
    address: str = "10.251.1.1",
    cluster_device: str = "clu",
    bridge_device: str = "lan",
) -> Host:
    return Host(address, cluster_device, bridge_device, links)


def with_links(*links: Link) -> Host:
    return host(OWN | {link.name: link for link in links})


def planned(
    specs: Iterable[NetworkSpec], where: Host, unreadable: Mapping[int, str] | None = None
) -> NetworkPlan:
    return plan(specs, where, unreadable or {})


def after(links: Mapping[str, Link], steps: Iterable[Step]) -> dict[str, Link]:
    """What the kernel makes of it."""
    result = dict(links)
    for step in steps:
        if not isinstance(step, Remove):
            assert (step.link.name in result) is isinstance(step, Change)
            assert not step.link.master or step.link.master in result, "a port needs its bridge"
            result[step.link.name] = step.link
            continue
        del result[step.link.name]
        for port in list(result.values()):
            if port.master == step.link.name:
                result[port.name] = replace(port, master="", learning=True)
    return result


def test_what_is_missing_is_made_bridge_first() -> None:
    found = planned([SHOP, DMZ], host())
    assert found.steps == (Add(DMZ_BRIDGE), Add(DMZ_VLAN), Add(SHOP_BRIDGE), Add(SHOP_TUNNEL))
    assert not found.problems


def test_nothing_is_done_where_all_is_well() -> None:
    assert planned([SHOP, DMZ], with_links(*MADE.values(), GUEST)) == NetworkPlan((), (), {101: 8950})


@pytest.mark.parametrize(
    "differs",
    [
        {"mtu": 1400},
        {"up": False},
        {"master": ""},
        {"master": "br0"},
        {"learning": True},
        {"is_quiet": False},
    ],
    ids=lambda differs: str(next(iter(differs))),
)
def test_what_differs_is_corrected(differs: dict[str, object]) -> None:
    found = planned([SHOP], with_links(SHOP_BRIDGE, replace(SHOP_TUNNEL, **differs)))  # type: ignore[arg-type]
    assert found.steps == (Change(SHOP_TUNNEL),)


@pytest.mark.parametrize(
    "tunnel",
    [
        Vxlan(102, "10.251.1.1"),
        Vxlan(101, "10.251.1.9"),
        Vxlan(101, "10.251.1.1", port=8472),
        Vxlan(101, "10.251.1.1", learning=True),
    ],
)
def test_what_cannot_be_corrected_is_made_anew(tunnel: Vxlan) -> None:
    wrong = replace(SHOP_TUNNEL, vxlan=tunnel)
    found = planned([SHOP], with_links(SHOP_BRIDGE, wrong))
    assert found.steps == (Remove(wrong), Add(SHOP_TUNNEL))


def test_a_vlan_of_another_device_is_made_anew() -> None:
    wrong = replace(DMZ_VLAN, vlan=Vlan(7, "clu"))
    assert planned([DMZ], with_links(DMZ_BRIDGE, wrong)).steps == (Remove(wrong), Add(DMZ_VLAN))


def test_what_is_unwanted_goes_ports_first() -> None:
    found = planned([], with_links(*MADE.values()))
    assert found.steps == tuple(Remove(MADE[name]) for name in ("vl7", "vx101", "br101", "br7"))
    assert not found.problems


def test_what_is_the_host_s_own_is_left_alone() -> None:
    foreign = (Link("br102", "bridge", 1500), Link("vx102", "vxlan", 1450, vxlan=Vxlan(102, "10.0.0.1")))
    assert planned([], with_links(*foreign)) == NetworkPlan((), ())


def test_gateways_are_left_to_who_makes_them() -> None:
    gateway = (
        Link("gw101", "veth", 8950, is_ours=True),
        Link("gp101", "veth", 8950, master="br101", is_ours=True),
    )
    assert planned([], with_links(*gateway)) == NetworkPlan((), ())
    found = planned([], with_links(SHOP_BRIDGE, SHOP_TUNNEL, *gateway))
    assert found.steps == (Remove(SHOP_TUNNEL), Remove(SHOP_BRIDGE)), "they hold no bridge"


def test_the_bridges_of_managed_networks_are_told() -> None:
    assert planned([SHOP, DMZ], with_links()).bridges == {101: SHOP_BRIDGE.mtu}
    assert planned([replace(SHOP, mtu=9000)], with_links()).bridges == {}


def test_a_bridge_that_is_the_host_s_own_is_not_taken() -> None:
    found = planned([SHOP, DMZ], with_links(Link("br101", "bridge", 1500)))
    assert found.problems == (NetworkProblem(101, "br101 is a device of the host's own"),)
    assert found.steps == (Add(DMZ_BRIDGE), Add(DMZ_VLAN))


def test_a_removed_network_that_somebody_is_in_stays() -> None:
    found = planned([], with_links(SHOP_BRIDGE, SHOP_TUNNEL, GUEST))
    assert found.steps == ()
    assert found.problems == (NetworkProblem(101, "it was removed, and br101 is still used by vnet0"),)


def test_a_network_that_cannot_be_as_wanted_stays_as_it_is() -> None:
    found = planned([replace(SHOP, mtu=9000)], with_links(SHOP_BRIDGE, SHOP_TUNNEL))
    assert found.steps == ()
    assert found.problems == (
        NetworkProblem(101, "its MTU of 9000 is more than the 8950 that clu leaves it here"),
    )


def test_a_network_whose_document_is_damaged_stays_as_it_is() -> None:
    found = planned([], with_links(SHOP_BRIDGE, SHOP_TUNNEL), {101: "cannot read it"})
    assert found == NetworkPlan((), (NetworkProblem(101, "cannot read it"),))


@pytest.mark.parametrize(
    ("where", "says"),
    [
        (host(cluster_device=""), "no device has 10.251.1.1"),
        (host(cluster_device="gone"), "no device has 10.251.1.1"),
    ],
)
def test_without_a_cluster_network_there_are_no_managed_ones(where: Host, says: str) -> None:
    found = planned([SHOP, DMZ], where)
    assert [problem.vni for problem in found.problems] == [101]
    assert says in found.problems[0].why
    assert found.steps == (Add(DMZ_BRIDGE), Add(DMZ_VLAN))


@pytest.mark.parametrize(
    ("device", "says"), [("", "names no node.bridge_device"), ("eth9", "there is no device eth9")]
)
def test_without_a_device_there_are_no_bridged_networks(device: str, says: str) -> None:
    found = planned([SHOP, DMZ], host(bridge_device=device))
    assert [problem.vni for problem in found.problems] == [7]
    assert says in found.problems[0].why


@pytest.mark.parametrize(("address", "mtu"), [("10.251.1.1", 8950), ("fd00::1", 8930)])
def test_the_mtu_is_what_the_cluster_network_leaves(address: str, mtu: int) -> None:
    where = host(address=address)
    assert where.managed_mtu == mtu
    made = [step.link for step in planned([SHOP], where).steps]
    assert [link.mtu for link in made] == [mtu, mtu]
    assert [link.mtu for link in after({}, planned([replace(SHOP, mtu=1400)], where).steps).values()] == [
        1400
    ] * 2


@pytest.mark.parametrize("seed", range(300))
def test_the_steps_lead_there_and_touch_nothing_else(seed: int) -> None:
    """From any state: after the steps nothing is left to do, and what was not ours is as it was."""
    chance = random.Random(seed)
    numbers = range(100, 106)
    links = dict(OWN)
    for vni in numbers:
        for made in _any_links(chance, vni):
            links[made.name] = made
    specs = [
        replace(SHOP, vni=vni, mtu=chance.choice([0, 1400, 9500])) for vni in numbers if chance.random() < 0.6
    ]
    first = planned(specs, host(links))
    then = after(links, first.steps)
    # What was a port of a bridge that had to be made anew finds its way in the second round.
    last = after(then, planned(specs, host(then)).steps)
    assert planned(specs, host(last)).steps == ()
    for name, link in links.items():
        if not link.is_ours:
            assert replace(last[name], master="") == replace(link, master="")
    troubled = {problem.vni for problem in first.problems}
    for spec in specs:
        if spec.vni not in troubled:
            assert last[f"vx{spec.vni}"].master == f"br{spec.vni}"


def _any_links(chance: random.Random, vni: int) -> Iterable[Link]:
    is_ours = chance.random() < 0.8
    if chance.random() < 0.6:
        kind = chance.choice(["bridge", "bridge", "vlan"])
        vlan = Vlan(vni, "lan") if kind == "vlan" else None
        yield Link(
            f"br{vni}", kind, chance.choice([1400, 8950]), vlan=vlan, is_quiet=is_ours, is_ours=is_ours
        )
        if kind == "bridge" and chance.random() < 0.2:
            yield Link(f"vnet{vni}", "tun", 1400, master=f"br{vni}")
    if chance.random() < 0.6:
        tunnel = Vxlan(chance.choice([vni, vni + 100]), "10.251.1.1")
        yield Link(f"vx{vni}", "vxlan", 1400, vxlan=tunnel, is_quiet=is_ours, is_ours=is_ours)
