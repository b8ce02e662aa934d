"""One suite for every HostNetworking: the fake, and netlink in a network namespace that the test makes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from pvc.cluster.network import GATEWAY_GROUP, LINK_GROUP
from pvc.cluster.sriov import VFSettings
from pvc.config import parse
from pvc.hostnetworks import HostNetworks
from pvc.node.drivers import DriverError
from pvc.node.drivers.host_networks import NetlinkHostNetworking
from pvc.node.drivers.host_state import (
    AddRoute,
    Device,
    DeviceAddress,
    DropAddress,
    DropRoute,
    HostNetworking,
    HostState,
    HostStep,
    RemoveDevice,
    Route,
    SetMTU,
    SetUp,
)
from pvc.node.drivers.sriov import KernelVirtualFunctions
from pvc.node.plan_host_network import OURS, as_before, touched, towards, wanted
from tests.contract.test_addresses import enter, ip
from tests.fakes.host_networks import FakeHost

T = TypeVar("T")

HERE = f"pvc-{os.getpid()}-hostnet"
STATIC = 4
UPSTREAM = {"device": "eth0", "address": ["10.0.0.1/24", "fd00::1/64"], "gateway": ["10.0.0.254", "fe80::fe"]}
CLUSTER = {"device": "eth1", "address": "10.0.1.1/24", "mtu": 9000}
MISSING = {"vlan": "802.1q (CONFIG_VLAN_8021Q)", "bond": "bonding (CONFIG_BONDING)"}


class _Inside:
    """Calls of the driver in a network namespace, on a thread that has entered it."""

    def __init__(self, namespace: str) -> None:
        self.threads = ThreadPoolExecutor(1, initializer=enter, initargs=(namespace,))
        self.driver = NetlinkHostNetworking()

    def call(self, act: Callable[[], T]) -> T:
        return self.threads.submit(act).result(timeout=30)

    def state(self) -> HostState:
        return self.call(self.driver.state)

    def take(self, step: HostStep) -> None:
        self.call(lambda: self.driver.take(step))


@contextmanager
def fake() -> Iterator[HostNetworking]:
    devices = {name: Device(name, "veth", 1500, up=False) for name in ("eth0", "eth1", "eth2")}
    address = DeviceAddress("192.0.2.1/24", "eth9")
    route = Route("198.51.100.0/24", "192.0.2.2", "eth9", STATIC, 0)
    yield FakeHost({**devices, "eth9": Device("eth9", "veth", 1500)}, [address], [route])


@contextmanager
def netlink() -> Iterator[HostNetworking]:
    there = f"{HERE}-there"
    try:
        for namespace in (HERE, there):
            ip("netns", "add", namespace)
        for name in ("eth0", "eth1", "eth2", "eth9"):
            ip("-n", HERE, "link", "add", name, "type", "veth", "peer", name, "netns", there)
            ip("-n", there, "link", "set", name, "mtu", "9000", "up")
        ip("-n", HERE, "link", "set", "eth9", "up")
        ip("-n", HERE, "link", "set", "lo", "up")
        ip("-n", HERE, "address", "add", "192.0.2.1/24", "dev", "eth9")
        ip("-n", HERE, "route", "add", "198.51.100.0/24", "via", "192.0.2.2", "proto", "static")
        yield _Inside(HERE)
    finally:
        for namespace in (HERE, there):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


@pytest.fixture(params=[fake, netlink], ids=lambda made: made.__name__)
def host(request: pytest.FixtureRequest) -> Iterator[HostNetworking]:
    with request.param() as made:
        yield made


def networks(**sections: Any) -> HostNetworks:
    return parse({"network": sections}).network


def bring(host: HostNetworking, described: HostNetworks) -> tuple[HostStep, ...]:
    taken: list[HostStep] = []
    for _ in range(4):
        found = host.state()
        steps = towards(wanted(described, "", found), found)
        if not steps:
            return tuple(taken)
        for step in steps:
            host.take(step)
            taken.append(step)
    raise AssertionError(f"there is always something left to do: {steps}")


def unordered(state: HostState) -> tuple[object, ...]:
    return {*state.devices}, {*state.addresses}, {*state.routes}


# What every driver keeps


def test_networks_are_as_described_and_nothing_is_left_to_do(host: HostNetworking) -> None:
    before = host.state()
    bring(host, networks(upstream=UPSTREAM, cluster=CLUSTER))
    found = host.state()
    assert {one for one in found.addresses if one.protocol == OURS} == {
        DeviceAddress("10.0.0.1/24", "eth0", OURS),
        DeviceAddress("fd00::1/64", "eth0", OURS),
        DeviceAddress("10.0.1.1/24", "eth1", OURS),
    }
    assert {one for one in found.routes if one.protocol == OURS} == {
        Route("0.0.0.0/0", "10.0.0.254", "eth0", OURS, 0),
        Route("::/0", "fe80::fe", "eth0", OURS, 512),
    }
    devices = {one.name: one for one in found.devices}
    assert devices["eth1"] == Device("eth1", "veth", 9000)
    assert {*before.addresses} <= {*found.addresses}
    assert {*before.routes} <= {*found.routes}
    assert bring(host, networks(upstream=UPSTREAM, cluster=CLUSTER)) == ()


def test_what_is_not_described_any_more_goes(host: HostNetworking) -> None:
    before = host.state()
    bring(host, networks(upstream=UPSTREAM, cluster=CLUSTER))
    bring(host, networks())
    after = host.state()
    assert {*after.addresses} == {*before.addresses}
    assert {*after.routes} == {*before.routes}


@pytest.mark.parametrize("length", [16, 25])
def test_the_length_of_a_network_is_changed(host: HostNetworking, length: int) -> None:
    bring(host, networks(upstream=UPSTREAM))
    longer = {**UPSTREAM, "address": [f"10.0.0.1/{length}", "fd00::1/60"], "gateway": ["10.0.0.2"]}
    bring(host, networks(upstream=longer))
    found = {one.value for one in host.state().addresses if one.protocol == OURS}
    assert found == {f"10.0.0.1/{length}", "fd00::1/60"}


def test_another_address_of_the_same_network_stays_when_the_first_goes(host: HostNetworking) -> None:
    bring(host, networks(cluster=CLUSTER))
    bring(host, networks(cluster={**CLUSTER, "address": "10.0.1.2/24"}))
    assert [one.value for one in host.state().addresses if one.protocol == OURS] == ["10.0.1.2/24"]


def test_the_way_back(host: HostNetworking) -> None:
    """Also of what others gave to a device that was put down."""
    bring(host, networks(upstream=UPSTREAM, cluster=CLUSTER))
    before = host.state()
    taken = bring(host, networks(cluster={**CLUSTER, "address": "10.7.0.1/16", "mtu": 1400}))
    down = SetUp("eth9", False)
    host.take(down)
    names = touched((*taken, down), before, host.state())
    while steps := towards(as_before(before, names), host.state()):
        for step in steps:
            host.take(step)
    assert unordered(host.state()) == unordered(before)


def test_what_is_so_already_is_done(host: HostNetworking) -> None:
    host.take(DropAddress(DeviceAddress("10.0.0.1/24", "eth9", OURS)))
    host.take(DropRoute(Route("0.0.0.0/0", "192.0.2.2", "eth9", OURS, 0)))
    host.take(RemoveDevice("eth7"))


def test_what_cannot_be_is_refused(host: HostNetworking) -> None:
    with pytest.raises(DriverError, match="there is no device eth7"):
        host.take(SetMTU("eth7", 1500))
    with pytest.raises(DriverError, match="eth9 is a device of the host's own"):
        host.take(RemoveDevice("eth9"))
    with pytest.raises(DriverError, match="the kernel refuses a change of eth9: ENETUNREACH"):
        host.take(AddRoute(Route("0.0.0.0/0", "203.0.113.1", "eth9", OURS, 0)))


# What only the kernel can show


@pytest.fixture
def kernel() -> Iterator[HostNetworking]:
    with netlink() as made:
        yield made


BOND = {"members": ["eth1", "eth2"], "mode": "active-backup"}


@pytest.mark.parametrize(
    "described",
    [
        {**CLUSTER, "vlan": 10},
        {**CLUSTER, "device": "bond0", "bond": BOND},
        {**CLUSTER, "device": "bond0", "vlan": 10, "bond": BOND},
    ],
)
def test_vlans_and_bonds(kernel: HostNetworking, described: dict[str, Any]) -> None:
    before = kernel.state()
    try:
        taken = bring(kernel, networks(cluster=described))
    except DriverError as error:
        for kind, feature in MISSING.items():
            if error.message.startswith(f"the kernel has no {kind} devices"):
                pytest.skip(f"kernel lacks {feature}")
        raise
    assert "10.0.1.1/24" in {one.value for one in kernel.state().addresses}
    assert bring(kernel, networks(cluster=described)) == ()
    names = touched(taken, before, kernel.state())
    while steps := towards(as_before(before, names), kernel.state()):
        for step in steps:
            kernel.take(step)
    assert unordered(kernel.state()) == unordered(before)


def test_a_floating_address_and_what_routers_say_are_not_the_hosts_own(kernel: HostNetworking) -> None:
    before = kernel.state()
    ip("-n", HERE, "addr", "add", "192.0.2.250/24", "dev", "eth9", "valid_lft", "60", "preferred_lft", "0")
    ip("-n", HERE, "route", "add", "default", "via", "192.0.2.9", "proto", "bgp")
    assert kernel.state() == before


@pytest.mark.parametrize("group", [LINK_GROUP, GATEWAY_GROUP])
def test_what_is_made_for_vms_is_not_the_hosts_own(kernel: HostNetworking, group: int) -> None:
    before = kernel.state()
    ip("-n", HERE, "link", "add", "br101", "group", str(group), "type", "bridge")
    ip("-n", HERE, "link", "set", "br101", "up")
    ip("-n", HERE, "link", "add", "vnet0", "master", "br101", "type", "veth", "peer", "guest")
    ip("-n", HERE, "link", "set", "guest", "master", "br101")
    ip("-n", HERE, "address", "add", "10.1.0.1/24", "dev", "br101")
    assert kernel.state() == before


def test_a_device_without_functions_is_asked_and_refuses(kernel: HostNetworking) -> None:
    """The questions that SR-IOV puts to the kernel are ones that it understands."""
    functions = KernelVirtualFunctions()
    assert isinstance(kernel, _Inside)
    assert kernel.call(lambda: functions.told("eth1")) == {}
    with pytest.raises(DriverError, match="the driver of eth1 knows no trust"):
        kernel.call(lambda: functions.set("eth1", 0, VFSettings(trust=True), ("trust",)))
