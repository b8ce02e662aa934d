"""A node's own networks: what is made, corrected, removed, left alone; and the way back."""

from __future__ import annotations

from typing import Any

import pytest

from pvc.config import parse
from pvc.hostnetworks import HostNetworks
from pvc.node.drivers.host_state import Device, DeviceAddress, HostState, Route
from pvc.node.drivers.networks import Vlan
from pvc.node.plan_host_network import OURS, as_before, carries, touched, towards, wanted
from tests.fakes.host_networks import FakeHost

CLUSTER = {"device": "eth1", "address": "10.0.1.1/24", "mtu": 9000}
UPSTREAM = {"device": "eth0", "address": ["10.0.0.1/24", "fd00::1/64"], "gateway": ["10.0.0.254", "fe80::fe"]}
BONDED = {
    "device": "bond0",
    "vlan": 10,
    "address": "10.0.1.1/24",
    "mtu": 9000,
    "bond": {"members": ["eth1", "eth2"], "mode": "802.3ad"},
}
STATIC = 4


def networks(**sections: Any) -> HostNetworks:
    return parse({"network": sections}).network


def a_host() -> FakeHost:
    """As a machine is after its boot, with one device that somebody else configured."""
    host = FakeHost({name: Device(name, mtu=1500, up=False) for name in ("eth0", "eth1", "eth2")})
    host.devices["eth9"] = Device("eth9", mtu=1500)
    host.addresses.append(DeviceAddress("192.0.2.1/24", "eth9"))
    host.routes.append(Route("198.51.100.0/24", "192.0.2.2", "eth9", STATIC, 0))
    return host


def bring(host: FakeHost, found: HostNetworks, bridge_device: str = "") -> tuple[str, ...]:
    """Until nothing is left to do; the problems that stay."""
    for _ in range(4):
        goal = wanted(found, bridge_device, host.state())
        steps = towards(goal, host.state())
        if not steps:
            return goal.problems
        for step in steps:
            host.take(step)
    raise AssertionError(f"there is always something left to do: {steps}")


def ours(host: FakeHost) -> dict[str, str]:
    return {one.value: one.device for one in host.addresses if one.protocol == OURS}


def test_without_sections_nothing_is_touched() -> None:
    host = a_host()
    assert bring(host, networks()) == ()
    assert host.taken == []


def test_devices_addresses_and_routes_are_as_described() -> None:
    host = a_host()
    assert bring(host, networks(upstream=UPSTREAM, cluster=CLUSTER)) == ()
    assert ours(host) == {"10.0.0.1/24": "eth0", "fd00::1/64": "eth0", "10.0.1.1/24": "eth1"}
    assert host.devices["eth1"] == Device("eth1", mtu=9000)
    assert host.devices["eth0"] == Device("eth0", mtu=1500)
    assert Route("0.0.0.0/0", "10.0.0.254", "eth0", OURS, 0) in host.routes
    assert Route("::/0", "fe80::fe", "eth0", OURS, 512) in host.routes
    assert not host.devices["eth2"].up


def test_the_second_pass_does_nothing() -> None:
    host = a_host()
    described = networks(upstream=UPSTREAM, cluster=BONDED)
    bring(host, described)
    host.taken.clear()
    bring(host, described)
    assert host.taken == []


def test_a_vlan_on_a_bond() -> None:
    host = a_host()
    assert bring(host, networks(cluster=BONDED)) == ()
    assert host.devices["bond0"] == Device("bond0", "bond", 9000, mode="802.3ad", is_ours=True)
    assert host.devices["bond0.10"] == Device("bond0.10", "vlan", 9000, vlan=Vlan(10, "bond0"), is_ours=True)
    assert {name for name, one in host.devices.items() if one.master == "bond0"} == {"eth1", "eth2"}
    assert ours(host) == {"10.0.1.1/24": "bond0.10"}


def test_the_device_of_bridged_networks_is_brought_up() -> None:
    host = a_host()
    bring(host, networks(cluster=CLUSTER), bridge_device="eth2")
    assert host.devices["eth2"].up


@pytest.mark.parametrize(
    "after",
    [
        {"cluster": {**CLUSTER, "address": "10.0.1.2/24"}},
        {"cluster": {**CLUSTER, "address": "10.0.1.1/16"}},
        {"cluster": {**CLUSTER, "device": "eth2"}},
        {"cluster": {**CLUSTER, "vlan": 7}},
        {"cluster": BONDED},
        {"cluster": {**BONDED, "bond": {"members": ["eth1"], "mode": "802.3ad"}}},
        {"cluster": {**BONDED, "bond": {"members": ["eth1", "eth2"], "mode": "active-backup"}}},
        {"cluster": {**BONDED, "vlan": 0}},
        {"upstream": {**UPSTREAM, "gateway": "10.0.0.253"}},
        {"upstream": {**UPSTREAM, "device": "eth2", "mtu": 1400}},
        {"storage": {"device": "eth1", "vlan": 7, "mtu": 4000, "address": "10.0.2.1/24"}},
    ],
)
@pytest.mark.parametrize("before", [{"upstream": UPSTREAM, "cluster": CLUSTER}, {"cluster": BONDED}, {}])
def test_from_one_description_to_another_and_back(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Whatever was ours and is not described any more goes; what was as it was described comes back."""
    fresh = a_host()
    bring(fresh, networks(**after))
    host = a_host()
    bring(host, networks(**before))
    was = host.state()
    steps = towards(wanted(networks(**after), "", was), was)
    bring(host, networks(**after))
    assert ours(host) == ours(fresh)
    assert set(host.routes) == set(fresh.routes)
    made = {one for one in host.devices.values() if one.is_ours}
    assert made == {one for one in fresh.devices.values() if one.is_ours}
    names = touched(steps, was, host.state())
    while back := towards(as_before(was, names), host.state()):
        for step in back:
            host.take(step)
    assert unordered(host.state()) == unordered(was)


def unordered(state: HostState) -> tuple[object, ...]:
    return {*state.devices}, {*state.addresses}, {*state.routes}


def test_what_others_gave_serves_and_stays() -> None:
    host = a_host()
    host.devices["eth1"] = Device("eth1", mtu=9000)
    host.addresses.append(DeviceAddress("10.0.1.1/24", "eth1"))
    host.routes.append(Route("0.0.0.0/0", "10.0.1.254", "eth1", STATIC, 100))
    was = host.state()
    assert bring(host, networks(cluster={**CLUSTER, "gateway": "10.0.1.254"})) == ()
    assert host.state() == was
    assert bring(host, networks()) == ()
    assert host.state() == was


def test_what_corrects_itself() -> None:
    host = a_host()
    described = networks(upstream=UPSTREAM, cluster=BONDED)
    bring(host, described)
    was = host.state()
    host.devices["eth0"] = Device("eth0", mtu=1500, up=False)
    host.devices["eth1"] = Device("eth1", mtu=9000)
    host.devices["bond0"] = Device("bond0", "bond", 1500, mode="802.3ad", is_ours=True)
    host.addresses.clear()
    host.routes.clear()
    bring(host, described)
    assert host.devices == {one.name: one for one in was.devices}
    assert set(ours(host)) == {"10.0.0.1/24", "fd00::1/64", "10.0.1.1/24"}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"cluster": {**CLUSTER, "device": "eth7"}},
            "there is no device eth7, which network.cluster.device names",
        ),
        ({"cluster": {**BONDED, "bond": {"members": ["eth1", "eth7"]}}}, "there is no device eth7, a member"),
        ({"cluster": {**CLUSTER, "device": "br0", "bond": {"members": ["eth1"]}}}, "br0 is a device of the"),
        ({"cluster": {**BONDED, "bond": {"members": ["port"]}}}, "port, a member of bond0, is a port of br0"),
        ({"cluster": {**CLUSTER, "device": "eth9", "vlan": 5}}, "eth9.5 is a device of the host's own, and"),
        ({"cluster": {**CLUSTER, "address": "192.0.2.1/24"}}, "192.0.2.1/24 is an address of eth9 already"),
        (
            {"cluster": {**CLUSTER, "gateway": "10.0.1.254"}},
            "the default route through 192.0.2.254 is not ours, and comes before 10.0.1.254",
        ),
    ],
)
def test_what_cannot_be_is_said_and_left(sections: dict[str, Any], said: str) -> None:
    host = a_host()
    host.devices["br0"] = Device("br0", "bridge", 1500)
    host.devices["port"] = Device("port", mtu=1500, master="br0")
    host.devices["eth9.5"] = Device("eth9.5", "vlan", 1500, vlan=Vlan(6, "eth9"))
    host.routes.append(Route("0.0.0.0/0", "192.0.2.254", "eth9", STATIC, 0))
    foreign = [host.devices[name] for name in ("br0", "port", "eth9.5", "eth9")]
    (problem,) = bring(host, networks(**sections))
    assert problem.startswith(said)
    assert [host.devices[name] for name in ("br0", "port", "eth9.5")] == foreign[:3]
    assert DeviceAddress("192.0.2.1/24", "eth9") in host.addresses
    assert not any(one.device in ("br0", "eth9.5") for one in host.addresses)


def test_what_carries_an_address() -> None:
    host = a_host()
    bring(host, networks(upstream=UPSTREAM, cluster=BONDED))
    below = {"bond0.10", "bond0", "eth1", "eth2"}
    assert carries(host.state(), "10.0.1.1", ["10.0.1.2"]) == below
    assert carries(host.state(), "10.0.1.1", ["10.0.1.2", "10.7.0.1"]) == {*below, "eth0"}
    assert carries(host.state(), "10.0.1.1", ["n2"]) == {*below, "eth0", "eth9"}
