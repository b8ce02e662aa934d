"""One suite for every HostLinks: the fake, and netlink in a network namespace that the test makes."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest

from pvc.node.drivers import DriverError
from pvc.node.drivers.links import NetlinkLinks
from pvc.node.drivers.networks import HostLinks, Link, Vlan, Vxlan
from tests.contract.test_addresses import enter, ip
from tests.fakes.links import FakeLinks

T = TypeVar("T")

HERE = f"pvc-{os.getpid()}-links"
BRIDGE = Link("br101", "bridge", 1400, is_quiet=True, is_ours=True)
TUNNEL = Link(
    "vx101",
    "vxlan",
    1400,
    master="br101",
    learning=False,
    vxlan=Vxlan(101, "10.9.0.1"),
    is_quiet=True,
    is_ours=True,
)
VLAN = Link("vl7", "vlan", 1400, master="br7", vlan=Vlan(7, "front"), is_quiet=True, is_ours=True)


@dataclass(frozen=True, slots=True)
class Bench:
    host: HostLinks
    foreign: Callable[[Link], None]
    """Make a bridge or a port as somebody else would."""


class _Inside:
    """Calls of the driver in a network namespace, on a thread that has entered it."""

    def __init__(self, namespace: str) -> None:
        self.threads = ThreadPoolExecutor(1, initializer=enter, initargs=(namespace,))
        self.driver = NetlinkLinks()

    def call(self, act: Callable[[], T]) -> T:
        return self.threads.submit(act).result(timeout=30)

    def links(self) -> Mapping[str, Link]:
        return self.call(self.driver.links)

    def device_of(self, address: str) -> str:
        return self.call(lambda: self.driver.device_of(address))

    def add(self, link: Link) -> None:
        self.call(lambda: self.driver.add(link))

    def change(self, link: Link) -> None:
        self.call(lambda: self.driver.change(link))

    def remove(self, name: str) -> None:
        self.call(lambda: self.driver.remove(name))


@contextmanager
def fake() -> Iterator[Bench]:
    front = Link("front", "veth", 1500)
    host = FakeLinks({"front": front}, {"10.9.0.1": "front", "fd00:9::1": "front"})

    def foreign(link: Link) -> None:
        host.found[link.name] = link

    yield Bench(host, foreign)


@contextmanager
def netlink() -> Iterator[Bench]:
    def foreign(link: Link) -> None:
        peer = ["peer", "name", f"{link.name}-peer"] if link.kind == "veth" else []
        master = ["master", link.master] if link.master else []
        mtu = ["mtu", str(link.mtu)]
        ip("-n", HERE, "link", "add", link.name, *mtu, *master, "type", link.kind, *peer)
        ip("-n", HERE, "link", "set", link.name, "up" if link.up else "down")

    try:
        ip("netns", "add", HERE)
        foreign(Link("front", "veth", 1500))
        ip("-n", HERE, "address", "add", "10.9.0.1/24", "dev", "front")
        ip("-n", HERE, "address", "add", "fd00:9::1/64", "dev", "front", "nodad")
        yield Bench(_Inside(HERE), foreign)
    finally:
        subprocess.run(["ip", "netns", "del", HERE], check=False, capture_output=True)


@pytest.fixture(params=[fake, netlink], ids=lambda made: made.__name__)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with request.param() as made:
        yield made


@pytest.fixture
def host(bench: Bench) -> HostLinks:
    return bench.host


def ours(host: HostLinks) -> dict[str, Link]:
    return {name: link for name, link in host.links().items() if link.is_ours}


# What every driver keeps


def test_links_are_as_they_were_asked_for(host: HostLinks) -> None:
    host.add(BRIDGE)
    host.add(TUNNEL)
    assert ours(host) == {"br101": BRIDGE, "vx101": TUNNEL}


def test_a_tunnel_over_ipv6(host: HostLinks) -> None:
    tunnel = replace(TUNNEL, vxlan=Vxlan(101, "fd00:9::1"))
    host.add(BRIDGE)
    host.add(tunnel)
    assert ours(host)["vx101"] == tunnel


def test_links_of_the_host_are_seen_and_left_alone(bench: Bench) -> None:
    host = bench.host
    bench.foreign(Link("br0", "bridge", 1500))
    bench.foreign(Link("tap0", "veth", 1500, master="br0"))
    before = host.links()
    assert before["br0"] == Link("br0", "bridge", 1500)
    assert before["tap0"] == Link("tap0", "veth", 1500, master="br0")
    for link in (Link("br0", "bridge", 1400, is_ours=True), Link("tap0", "veth", 1400, is_ours=True)):
        with pytest.raises(DriverError, match=f"{link.name} is a device of the host's own"):
            host.change(link)
        with pytest.raises(DriverError, match=f"{link.name} is a device of the host's own"):
            host.remove(link.name)
    host.add(BRIDGE)
    host.remove("br101")
    assert host.links() == before


def test_what_differs_is_changed(host: HostLinks) -> None:
    host.add(BRIDGE)
    host.add(replace(TUNNEL, mtu=1300, up=False, learning=True))
    assert ours(host)["vx101"] != TUNNEL
    host.change(TUNNEL)
    assert ours(host) == {"br101": BRIDGE, "vx101": TUNNEL}


def test_a_port_may_leave_its_bridge(host: HostLinks) -> None:
    host.add(BRIDGE)
    host.add(TUNNEL)
    host.remove("br101")
    alone = ours(host)["vx101"]
    assert alone.master == ""
    host.add(BRIDGE)
    host.change(TUNNEL)
    assert ours(host) == {"br101": BRIDGE, "vx101": TUNNEL}


def test_removing_what_is_not_there_is_done_already(host: HostLinks) -> None:
    host.remove("br101")
    host.add(BRIDGE)
    host.remove("br101")
    host.remove("br101")
    assert ours(host) == {}


def test_what_cannot_be_made_is_refused(bench: Bench) -> None:
    host = bench.host
    host.add(BRIDGE)
    for link in (
        BRIDGE,
        replace(TUNNEL, master="br9"),
        replace(VLAN, master="br101", vlan=Vlan(7, "nothing")),
    ):
        with pytest.raises(DriverError, match=(link.master and r"br9|nothing") or "br101"):
            host.add(link)
    with pytest.raises(DriverError, match="no device br9"):
        host.change(replace(BRIDGE, name="br9"))


def test_the_device_of_an_address(host: HostLinks) -> None:
    found = [host.device_of(one) for one in ("10.9.0.1", "fd00:9::1", "fd00:9:0:0::1", "10.9.0.2")]
    assert found[:2] == ["front", "front"]
    assert found[3] == ""


# What only the kernel can show


@pytest.fixture
def kernel() -> Iterator[Bench]:
    with netlink() as made:
        yield made


def test_vlans(kernel: Bench) -> None:
    host = kernel.host
    bridge = replace(BRIDGE, name="br7")
    host.add(bridge)
    try:
        host.add(VLAN)
    except DriverError as error:
        if "the kernel has no vlan devices" in error.message:
            pytest.skip("kernel lacks 802.1q (CONFIG_VLAN_8021Q)")
        raise
    assert ours(host) == {"br7": bridge, "vl7": VLAN}


PORT = 7371


def test_the_host_neither_speaks_nor_listens_on_a_quiet_bridge(kernel: Bench) -> None:
    """A guest that knows the node's address and the MAC of its bridge reaches nothing."""
    kernel.host.add(BRIDGE)
    guest = f"{HERE}-guest"
    try:
        ip("netns", "add", guest)
        ip("-n", HERE, "link", "add", "tap0", "type", "veth", "peer", "eth0", "netns", guest)
        ip("-n", HERE, "link", "set", "tap0", "master", "br101", "up")
        ip("-n", guest, "link", "set", "eth0", "up")
        ip("-n", guest, "address", "add", "10.9.0.2/24", "dev", "eth0")
        mac = ip("-n", HERE, "link", "show", "br101").split("link/ether ")[1].split()[0]
        ip("-n", guest, "neigh", "replace", "10.9.0.1", "lladdr", mac, "dev", "eth0", "nud", "permanent")
        assert "inet6" not in ip("-n", HERE, "address", "show", "br101")
        assert not hears(HERE, guest)
        with inside(HERE) as here:
            here(lambda: Path("/proc/sys/net/ipv4/conf/br101/rp_filter").write_text("0"))
        assert hears(HERE, guest), "that setting is what keeps it out"
    finally:
        subprocess.run(["ip", "netns", "del", guest], check=False, capture_output=True)


@contextmanager
def inside(namespace: str) -> Iterator[Callable[[Callable[[], T]], T]]:
    with ThreadPoolExecutor(1, initializer=enter, initargs=(namespace,)) as threads:
        yield lambda act: threads.submit(act).result(timeout=30)


def hears(host: str, guest: str) -> bool:
    """Whether a datagram of the guest to the host's own address reaches a server there."""
    with (
        inside(host) as here,
        inside(guest) as there,
        here(lambda: socket.socket(type=socket.SOCK_DGRAM)) as server,
        there(lambda: socket.socket(type=socket.SOCK_DGRAM)) as client,
    ):
        server.bind(("10.9.0.1", PORT))
        server.settimeout(0.5)
        client.sendto(b"hello", ("10.9.0.1", PORT))
        try:
            return server.recv(16) == b"hello"
        except TimeoutError:
            return False
