"""What the filters do to packets: guests of two networks, a router upstream, and the primary between them.

All in network namespaces, with the real kernel; the gateways' addresses are made here, by hand.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pvc.cluster.clients import AccessList, Direction, Rule
from pvc.cluster.filters import Filtered, Hidden, Key, Number, Transit, render
from pvc.cluster.network import GATEWAY_GROUP, LINK_GROUP
from pvc.node.drivers.gateways import NetlinkGateways
from tests.contract.test_addresses import ip
from tests.contract.test_packet_filter import Inside
from tests.unit.node.test_filters import OFFICE, SHOP

HIDE = Hidden(("clu",), ("10.0.0.0/24",))
ROUTER = Transit(ipv4=True, ipv6=True)
ANSWER_S = "1"


@dataclass
class Site:
    """`node` is the primary; `shop` a guest of 101, `office` one of 102, `world` upstream, `peer` a node."""

    names: dict[str, str] = field(
        default_factory=lambda: {
            name: f"pvc-{os.getpid()}-{name}" for name in ("node", "shop", "office", "world", "peer")
        }
    )

    def make(self) -> None:
        for name in self.names.values():
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            self._sysctl(name, "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
        self._sysctl(self.names["node"], "net.ipv4.conf.all.rp_filter=0")
        self.be_router(True)
        self._cable("shop", "gw101", "10.1.0.1/24", "10.1.0.10/24", "fd00:1::1/64", "fd00:1::10/64")
        self._cable("office", "gw102", "10.2.0.1/24", "10.2.0.10/24")
        self._cable("world", "front", "192.0.2.1/24", "192.0.2.10/24", "fd00:f::1/64", "fd00:f::10/64")
        self._cable("peer", "clu", "10.0.0.1/24", "10.0.0.2/24", "fd00:9::1/64", "fd00:9::2/64")
        for gateway in ("gw101", "gw102"):
            ip("-n", self.names["node"], "link", "set", gateway, "group", str(GATEWAY_GROUP))
        self.ip("node", "address add 169.254.169.254/32 dev lo")
        self.inside = Inside(self.names["node"])
        self.load()

    def _sysctl(self, name: str, *settings: str) -> None:
        subprocess.run(
            ["ip", "netns", "exec", name, "sysctl", "-qw", *settings], check=True, capture_output=True
        )

    def be_router(self, is_router: bool) -> None:
        """As its administrator says."""
        value = int(is_router)
        settings = (f"net.ipv4.ip_forward={value}", f"net.ipv6.conf.all.forwarding={value}")
        self._sysctl(self.names["node"], *settings)

    def set_forwarding(self, *devices: str) -> None:
        self._sysctl(self.names["node"], *(f"net.ipv4.conf.{device}.forwarding=1" for device in devices))

    def _cable(self, name: str, device: str, *addresses: str) -> None:
        node, there = self.names["node"], self.names[name]
        ip("link", "add", device, "netns", node, "type", "veth", "peer", "name", "eth0", "netns", there)
        for address in addresses[::2]:
            ip("-n", node, "address", "add", address, "dev", device)
        for address in addresses[1::2]:
            ip("-n", there, "address", "add", address, "dev", "eth0")
        ip("-n", node, "link", "set", device, "up")
        ip("-n", there, "link", "set", "eth0", "up")
        for gateway in addresses[::2]:
            family = "-6" if ":" in gateway else "-4"
            ip("-n", there, family, "route", "add", "default", "via", gateway.partition("/")[0])

    def clean(self) -> None:
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def ip(self, name: str, words: str) -> None:
        ip("-n", self.names[name], *words.split())

    def run(self, name: str, script: str, *words: str) -> subprocess.CompletedProcess[str]:
        argv = ["ip", "netns", "exec", self.names[name], "/usr/bin/python3", "-c", script, *words]
        return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=30)

    def load(
        self,
        *rules: tuple[str, str],
        hide: Hidden = HIDE,
        transit: Transit = ROUTER,
        keep: bool = False,
    ) -> None:
        """Rules of 101, in order: direction and rule."""
        access = AccessList(
            tuple(Rule(Direction(way), text, text, n) for n, (way, text) in enumerate(rules, 1))
        )
        counts = self.counts() if keep else {}
        networks = [Filtered(SHOP, access), Filtered(OFFICE, AccessList())]
        self.inside.load(render(networks, hide, counts, transit=transit).text)

    def counts(self) -> dict[Key, Number]:
        return dict(self.inside.counts() or {})

    def packets(self, chain: str, comment: str) -> int:
        return self.counts()[chain, comment][0]

    def pings(self, name: str, address: str, source: str = "") -> bool:
        bound = ["-I", source] if source else []
        argv = ["ip", "netns", "exec", self.names[name], "ping", "-n", "-c1", "-W", ANSWER_S, *bound, address]
        return subprocess.run(argv, check=False, capture_output=True).returncode == 0

    def udp(self, name: str, address: str, port: int, to: str = "node") -> bool:
        """Whether a datagram arrives at somebody who listens there."""
        listener = subprocess.Popen(
            ["ip", "netns", "exec", self.names[to], "/usr/bin/python3", "-c", LISTEN, address, str(port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
        self.run(name, SEND, address, str(port))
        return listener.stdout.readline() == "came\n" and listener.wait() == 0

    def tcp(self, name: str, address: str, port: int, to: str) -> str:
        """open, refused, or lost."""
        server = subprocess.Popen(
            ["ip", "netns", "exec", self.names[to], "/usr/bin/python3", "-c", SERVE, address, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        found = self.run(name, CONNECT, address, str(port)).stdout.strip()
        server.communicate()
        return found


LISTEN = """
import socket, sys
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
s.settimeout(1)
try:
    s.recv(10)
    print("came", flush=True)
except TimeoutError:
    print("nothing", flush=True)
"""
SEND = """
import socket, sys
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(b"x", (sys.argv[1], int(sys.argv[2])))
"""
SERVE = """
import socket, sys
s = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
sys.stdin.read()
"""
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1)
    print("open")
except TimeoutError:
    print("lost")
except OSError:
    print("refused")
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    made = Site()
    try:
        made.make()
        yield made
    finally:
        made.clean()


@pytest.fixture(autouse=True)
def unfiltered(site: Site) -> None:
    site.load()


def test_without_rules_guests_reach_the_world_and_are_reached(site: Site) -> None:
    assert site.pings("shop", "192.0.2.10")
    assert site.pings("world", "10.1.0.10")
    assert site.pings("shop", "fd00:f::10")
    assert site.pings("world", "fd00:1::10")
    assert site.tcp("shop", "192.0.2.10", 80, "world") == "open"
    assert site.tcp("world", "10.1.0.10", 22, "shop") == "open"


def test_managed_networks_are_isolated_unless_a_rule_of_the_destination_accepts(site: Site) -> None:
    before = site.packets("towards", "isolated")
    assert not site.pings("office", "10.1.0.10")
    assert not site.pings("shop", "10.2.0.10")
    assert site.packets("towards", "isolated") == before + 2
    site.load(("in", "tcp dport 22 accept"))
    assert site.tcp("office", "10.1.0.10", 22, "shop") == "open"
    assert site.tcp("office", "10.1.0.10", 23, "shop") == "lost"
    assert site.tcp("shop", "10.2.0.10", 22, "office") == "lost", "that is the other one's to accept"


def test_what_out_accepts_in_still_sees(site: Site) -> None:
    site.load(("out", "accept"))
    assert not site.pings("shop", "10.2.0.10")
    site.load(("out", "accept"), ("in", "drop"))
    assert site.pings("shop", "192.0.2.10")
    assert not site.pings("world", "10.1.0.10")


def test_out_blocks_what_guests_send_and_in_what_comes(site: Site) -> None:
    site.load(("out", "tcp dport 25 drop"), ("out", "tcp dport 26 reject with tcp reset"))
    assert site.tcp("shop", "192.0.2.10", 25, "world") == "lost"
    assert site.tcp("shop", "192.0.2.10", 26, "world") == "refused"
    assert site.tcp("shop", "192.0.2.10", 80, "world") == "open"
    assert site.tcp("world", "10.1.0.10", 25, "shop") == "open", "out is not in"
    site.load(("in", "tcp dport 25 drop"))
    assert site.tcp("world", "10.1.0.10", 25, "shop") == "lost"
    assert site.tcp("shop", "192.0.2.10", 25, "world") == "open", "in is not out"


def test_the_first_rule_that_decides_decides(site: Site) -> None:
    site.load(("in", "ip saddr 192.0.2.10 accept"), ("in", "drop"))
    assert site.pings("world", "10.1.0.10")
    site.load(("in", "drop"), ("in", "ip saddr 192.0.2.10 accept"))
    assert not site.pings("world", "10.1.0.10")


def test_answers_pass_what_would_not_begin(site: Site) -> None:
    site.load(("in", "drop"))
    assert site.pings("shop", "192.0.2.10")
    assert site.tcp("shop", "192.0.2.10", 80, "world") == "open"
    assert site.pings("shop", "fd00:f::10")
    assert not site.pings("world", "fd00:1::10")


def test_counters_count_and_go_on_over_a_reload(site: Site) -> None:
    site.load(("in", "icmp type echo-request drop"), ("in", "udp dport 9 drop"))
    for _ in range(3):
        assert not site.pings("world", "10.1.0.10")
    packets, size = site.counts()["in101", "1"]
    assert (packets, size) == (3, 3 * 84)
    assert site.packets("in101", "2") == 0
    site.load(("in", "icmp type echo-request drop"), keep=True)
    assert not site.pings("world", "10.1.0.10")
    assert site.packets("in101", "1") == 4


def test_nobody_reaches_the_nodes_own_networks_whatever_is_accepted(site: Site) -> None:
    site.load(("out", "accept"))
    assert not site.pings("shop", "10.0.0.2")
    assert site.packets("guest", "hidden") > 0
    site.load(("out", "accept"), hide=Hidden((), HIDE.prefixes))
    assert not site.pings("shop", "10.0.0.2")
    assert site.packets("guest", "hidden4") > 0
    site.load(hide=Hidden())
    assert site.pings("shop", "10.0.0.2"), "it is the filters that keep them away"


def test_a_guest_reaches_of_the_node_only_the_services_of_its_gateway(site: Site) -> None:
    assert site.pings("shop", "10.1.0.1")
    assert site.pings("shop", "fd00:1::1")
    for port in (53, 67, 123, 547):
        assert site.udp("shop", "10.1.0.1", port), port
    assert site.udp("shop", "fd00:1::1", 53)
    assert site.tcp("shop", "10.1.0.1", 53, "node") == "open"
    assert site.tcp("shop", "169.254.169.254", 80, "node") == "open"
    before = site.packets("node", "node")
    assert not site.udp("shop", "10.1.0.1", 161)
    assert not site.udp("shop", "fd00:1::1", 161)
    assert site.tcp("shop", "10.1.0.1", 22, "node") == "lost"
    assert site.tcp("shop", "169.254.169.254", 22, "node") == "lost"
    for other in ("10.0.0.1", "192.0.2.1", "10.2.0.1"):
        assert not site.pings("shop", other), other
        assert not site.udp("shop", other, 53), other
        assert site.tcp("shop", other, 22, "node") == "lost", other
    assert site.packets("node", "node") > before
    assert site.pings("node", "10.1.0.10"), "the node itself may ask, and is answered"


def test_others_reach_the_node_as_before(site: Site) -> None:
    assert site.pings("world", "192.0.2.1")
    assert site.tcp("world", "192.0.2.1", 22, "node") == "open"
    assert site.tcp("peer", "10.0.0.1", 2181, "node") == "open"


def test_a_guest_speaks_only_for_its_own_network(site: Site) -> None:
    site.ip("shop", "address add 10.2.0.99/32 dev eth0")
    site.ip("shop", "address add fd00:f::99/128 dev eth0 nodad")
    site.load(("in", "accept"), ("out", "accept"))
    before = site.packets("guest", "spoofed4"), site.packets("guest", "spoofed6")
    assert not site.pings("shop", "192.0.2.10", "10.2.0.99")
    assert not site.pings("shop", "fd00:f::10", "fd00:f::99")
    assert site.packets("guest", "spoofed4") == before[0] + 1
    assert site.packets("guest", "spoofed6") == before[1] + 1
    assert not site.pings("shop", "10.1.0.1", "10.2.0.99")
    assert site.packets("node", "spoofed4") == 1


def test_a_guest_is_no_router_for_the_node(site: Site) -> None:
    before = site.packets("node", "router6")
    site.run("shop", ADVERTISE)
    assert site.packets("node", "router6") == before + 1


ADVERTISE = """
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.sendto(bytes([134, 0, 0, 0, 64, 0, 7, 8]) + bytes(8), ("ff02::1", 0, 0, socket.if_nametoindex("eth0")))
"""


def test_what_ipv6_needs_on_the_link_reaches_the_gateway(site: Site) -> None:
    """Solicitations of neighbours and routers, groups of multicast, DHCPv6: from link-local addresses."""
    found = site.run("node", LINK_LOCAL, "gw101").stdout.strip()
    assert site.pings("shop", f"{found}%eth0")
    site.run("shop", SOLICIT)
    counts = site.counts()
    assert counts["node", "node"] == counts["node", "spoofed6"] == (0, 0)


LINK_LOCAL = """
import sys
for line in open("/proc/net/if_inet6"):
    words = line.split()
    if words[5] == sys.argv[1] and words[3] == "20":
        print(":".join(words[0][n:n + 4] for n in range(0, 32, 4)))
"""
SOLICIT = """
import socket
index = socket.if_nametoindex("eth0")
raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
raw.sendto(bytes([133, 0, 0, 0, 0, 0, 0, 0]), ("ff02::2", 0, 0, index))
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(("::", 546))
udp.sendto(b"x", ("ff02::1:2", 547, 0, index))
"""


def test_who_has_no_address_yet_can_ask_for_one(site: Site) -> None:
    site.ip("shop", "address flush dev eth0 scope global")
    try:
        site.run("shop", DISCOVER)
        assert site.packets("node", "spoofed4") == 0
        assert site.packets("node", "node") == 0
    finally:
        for address in ("10.1.0.10/24", "fd00:1::10/64"):
            site.ip("shop", f"address add {address} dev eth0")
        site.ip("shop", "route replace default via 10.1.0.1")
        site.ip("shop", "-6 route replace default via fd00:1::1")


DISCOVER = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
s.bind(("", 68))
s.sendto(b"x", ("255.255.255.255", 67))
"""


def test_a_gateway_without_filters_lets_nothing_pass(site: Site) -> None:
    """It is of a network that has just come, or is about to go."""
    site.inside.load(render([Filtered(OFFICE, AccessList())], HIDE, transit=ROUTER).text)
    assert not site.pings("shop", "10.1.0.1")
    assert not site.pings("shop", "192.0.2.10")
    assert not site.pings("world", "10.1.0.10")
    assert site.packets("input", "unfiltered") > 0
    assert site.packets("leaving", "unfiltered") > 0
    assert site.packets("arriving", "unfiltered") > 0
    assert site.pings("world", "10.2.0.10")


# Who is no guest

CLUSTER = ("10.0.0.2", "fd00:9::2")
OUTSIDE = "192.0.2.1/24"


class Passing:
    """What the primary passes on, by the real driver. Another one knows what it knows: as after a restart."""

    def __init__(self, site: Site, before: Path) -> None:
        self.site = site
        self.before = str(before / "before.json")

    def driver(self) -> NetlinkGateways:
        return NetlinkGateways(self.before)

    def transit(self) -> Transit:
        return self.site.inside.call(self.driver().transit)

    def begin(self) -> None:
        """Filters first, as the primary does."""
        self.site.load(transit=self.transit())
        self.site.inside.call(lambda: self.driver().forward([OUTSIDE], ipv6=True))

    def end(self) -> None:
        self.site.inside.call(self.driver().end_forwarding)

    def arrives(self, address: str) -> bool:
        """From upstream at a node in the cluster network, whether or not its answer finds the way back."""
        return self.site.udp("world", address, 2181, "peer")


@pytest.fixture
def passing(site: Site, tmp_path: Path) -> Iterator[Passing]:
    made = Passing(site, tmp_path)
    site.be_router(False)
    site.set_forwarding("gw101", "gw102")
    try:
        yield made
    finally:
        made.end()
        site.be_router(True)


def test_nobody_passes_the_primary_but_from_and_to_gateways(site: Site, passing: Passing) -> None:
    passing.begin()
    for _ in range(2):
        for address in CLUSTER:
            assert not passing.arrives(address), address
        assert not site.pings("peer", "fd00:f::10")
        assert site.packets("others", "transit4") == 1
        assert site.packets("others", "transit6") == 2
        for name, address in (("shop", "192.0.2.10"), ("shop", "fd00:f::10")):
            assert site.pings(name, address), address
        for address in ("10.1.0.10", "fd00:1::10"):
            assert site.pings("world", address), address
        assert passing.transit() == Transit(), "what we pass on is not the host's own"
        site.load(transit=passing.transit())
    site.inside.remove()
    for address in CLUSTER:
        assert passing.arrives(address), f"{address}: it is the filters that keep them away"


def test_a_host_that_was_a_router_stays_one(site: Site, passing: Passing) -> None:
    site.be_router(True)
    passing.begin()
    assert passing.transit() == ROUTER
    for address in CLUSTER:
        assert site.pings("world", address), address


def test_a_host_that_passed_on_from_some_devices_goes_on(site: Site, passing: Passing) -> None:
    site.set_forwarding("clu", "front")
    passing.begin()
    assert passing.transit() == Transit(devices=("clu", "front"))
    assert site.pings("world", "10.0.0.2")
    assert not passing.arrives("fd00:9::2")


def test_a_host_that_becomes_a_router_is_one(site: Site, passing: Passing) -> None:
    passing.begin()
    site.be_router(True)
    assert passing.transit().ipv4
    site.load(transit=passing.transit())
    assert site.pings("world", "10.0.0.2")
    assert not passing.arrives("fd00:9::2"), "whether all of IPv6 is meant by us or by others nobody can see"


@pytest.mark.parametrize(("bridge", "group"), [("br103", LINK_GROUP), ("br0", 0)])
def test_what_only_passes_a_bridge_passes(site: Site, passing: Passing, bridge: str, group: int) -> None:
    """Where the host shows filters that, too (br_netfilter)."""
    site.ip("node", f"link add {bridge} group {group} type bridge forward_delay 0")
    try:
        site.ip("node", f"link set {bridge} up")
        for n, name in enumerate(("shop", "world"), 1):
            there = site.names[name]
            site.ip("node", f"link add port{n} type veth peer name eth1 netns {there}")
            site.ip("node", f"link set port{n} master {bridge} up")
            site.ip(name, "link set eth1 up")
            site.ip(name, f"address add 10.7.0.{n}/24 dev eth1")
            site.ip(name, f"address add fd00:7::{n}/64 dev eth1 nodad")
        passing.begin()
        assert site.pings("shop", "10.7.0.2")
        assert site.pings("shop", "fd00:7::2")
    finally:
        for device in (bridge, "port1", "port2"):
            site.ip("node", f"link del {device}")
