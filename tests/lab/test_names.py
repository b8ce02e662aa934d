"""The names of a real cluster, asked at its floating address: with dig in the nodes, and from outside."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest

from pvc.lab.layout import CLUSTER, UPSTREAM
from tests.lab.dying import primary
from tests.lab.labs import RunningLab
from tests.lab.vms import Cluster
from tests.support import eventually

SOON_S = 60.0
EVERY_S = 0.05


def question(name: str, kind: int, number: int) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", number, 0, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)


def name_in(message: bytes) -> str:
    labels, at = [], 12
    while message[at]:
        labels.append(message[at + 1 : at + 1 + message[at]].decode())
        at += 1 + message[at]
    return ".".join(labels)


@dataclass
class Asker:
    """Asks many times a second for a name, and remembers when it was answered."""

    server: str
    name: str
    answered: list[float] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        number = 0
        while not self.ended.wait(EVERY_S):
            number = number % 60_000 + 1
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(EVERY_S)
                with suppress(OSError):
                    client.sendto(question(self.name, 1, number), (self.server, 53))
                    answer = client.recv(512)
                    if answer[:2] == number.to_bytes(2) and answer[7]:
                        self.answered.append(time.monotonic())

    def is_answered(self) -> bool:
        return bool(self.answered) and time.monotonic() - self.answered[-1] < 5 * EVERY_S

    @property
    def longest_gap_s(self) -> float:
        return max(after - before for before, after in zip(self.answered, self.answered[1:], strict=False))


@dataclass
class Secondary:
    """Hears what changed, and copies nothing."""

    address: str
    heard: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind((self.address, 53))
            server.settimeout(0.2)
            while not self.ended.is_set():
                with suppress(TimeoutError):
                    said, who = server.recvfrom(4096)
                    if said[2] >> 3 & 15 == 4:
                        self.heard.append(f"{name_in(said)} from {who[0]}")
                    server.sendto(said[:2] + bytes([said[2] | 0x84, 0]) + said[4:], who)


@contextmanager
def running(what: Asker | Secondary) -> Iterator[None]:
    thread = threading.Thread(target=what.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        what.ended.set()
        thread.join()


@dataclass
class Named:
    """A cluster with a domain, a secondary on this machine, and a network with a VM that has an address."""

    cluster: Cluster
    upstream: str
    inside: str
    secondary: Secondary

    def dig(self, *words: str, node: str = "", at: str = "") -> str:
        node = node or self.cluster.asked
        return self.cluster.run(
            node, "dig", f"@{at or self.inside}", "+time=2", "+tries=1", *words, check=False
        ).stdout

    def ask(self, *words: str) -> list[str]:
        return sorted(self.dig("+short", *words).splitlines())

    def serial(self, zone: str) -> int:
        found = eventually(lambda: self.ask(zone, "SOA"), within=SOON_S)
        return int(found[0].split()[2])


@pytest.fixture(scope="module")
def named(lab: RunningLab) -> Iterator[Named]:
    cluster = Cluster(lab)
    upstream, inside = (lab.layout.floating_address(one).partition("/")[0] for one in (UPSTREAM, CLUSTER))
    secondary = Secondary(f"{lab.layout.subnet(UPSTREAM)}.254")
    given = ("--dns-domain", "pvc.test", "--dns-secondary", secondary.address)
    cluster.pvc("cluster", "set", *given, "--dns-transfer", f"{lab.layout.subnet(CLUSTER)}.0/24")
    network = ("--domain", "shop.test", "--ipnet", "10.101.0.0/24", "--gateway", "10.101.0.1", "--dhcp")
    cluster.pvc("network", "add", "101", "-d", "shop", "-p", "managed", *network, "--wait")
    try:
        with running(secondary), cluster.vm("Web1", "--network", "shop", start=False):
            mac = cluster.pvc("vm", "dump", "Web1").stdout.partition("mac address=")[2][1:18]
            cluster.pvc("network", "dhcp", "add", "shop", "10.101.0.9", "www", mac)
            made = Named(cluster, upstream, inside, secondary)
            eventually(lambda: made.ask("web1.shop.test", "A") == ["10.101.0.9"], within=SOON_S)
            yield made
    finally:
        cluster.pvc("network", "remove", "shop", "--yes")
        cluster.pvc(
            "cluster", "set", "--dns-domain", "none", "--dns-secondary", "none", "--dns-transfer", "none"
        )


def test_names_forward_and_reverse(named: Named) -> None:
    assert named.ask("www.shop.test", "A") == ["10.101.0.9"]
    assert named.ask("gateway.shop.test", "A") == ["10.101.0.1"]
    assert named.ask("-x", "10.101.0.9") == ["web1.shop.test."]
    for node in named.cluster.lab.layout.nodes:
        assert named.ask(f"{node.name}.pvc.test", "A") == [named.cluster.lab.layout.address(node)]
    assert named.ask("ns.pvc.test", "A") == sorted([named.inside, named.upstream])
    assert named.ask("shop.test", "NS") == ["ns.pvc.test."]
    assert "status: NXDOMAIN" in named.dig("nobody.shop.test", "A")
    assert "status: REFUSED" in named.dig("example.org", "A")


def test_zones_are_copied_only_by_those_who_may(named: Named) -> None:
    other = next(node for node in named.cluster.lab.nodes if node != primary(named.cluster))
    copied = named.dig("+short", "shop.test", "AXFR", node=other)
    assert "10.101.0.9" in copied.splitlines()
    refused = named.dig("shop.test", "AXFR", node=other, at=named.upstream)
    assert "Transfer failed" in refused
    assert "10.101.0.9" not in refused


def test_a_change_is_there_at_once_and_secondaries_are_told(named: Named) -> None:
    before, others = named.serial("shop.test"), named.serial("pvc.test")
    named.secondary.heard.clear()
    named.cluster.pvc("network", "dhcp", "add", "shop", "10.101.0.99", "late", "52:54:00:99:00:01")
    eventually(lambda: named.ask("late.shop.test", "A") == ["10.101.0.99"], within=SOON_S)
    assert named.serial("shop.test") > before
    assert named.serial("pvc.test") == others
    eventually(lambda: f"shop.test from {named.upstream}" in named.secondary.heard, within=SOON_S)


def test_it_answers_where_it_should_and_nowhere_else(named: Named) -> None:
    """dnsmasq has the port on the gateways, and other addresses of the node are the administrator's."""
    said = named.cluster.run(primary(named.cluster), "ss", "-Hlntup").stdout
    sockets = [line.split()[4] for line in said.splitlines() if "pdns_server" in line]
    assert {f"{named.upstream}:53", f"{named.inside}:53"} == {one for one in sockets if one.endswith(":53")}
    for node in named.cluster.lab.nodes:
        if node != primary(named.cluster):
            assert "pdns_server" not in named.cluster.run(node, "ps", "-A").stdout


def test_one_that_is_killed_is_back_and_it_is_reported(named: Named) -> None:
    node = primary(named.cluster)
    named.cluster.lab.lab("kill", node, "pdns_server")
    eventually(lambda: named.ask("web1.shop.test", "A") == ["10.101.0.9"], within=SOON_S)
    journal = ("journalctl", "-u", "pvc-node", "-g", "PowerDNS ended by itself", "-o", "cat")
    eventually(lambda: named.cluster.run(node, *journal, check=False).stdout, within=SOON_S)


@pytest.mark.parametrize("how", ["move", "power cut"])
def test_names_answer_again_when_the_role_has_moved(
    named: Named, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = named.cluster
    first = primary(cluster)
    second = cluster.asked = next(node for node in cluster.lab.nodes if node != first)
    before = {zone: named.serial(zone) for zone in ("shop.test", "pvc.test", "0.101.10.in-addr.arpa")}
    asker = Asker(named.upstream, "web1.shop.test")
    try:
        with running(asker):
            eventually(asker.is_answered, within=SOON_S)
            if how == "move":
                cluster.pvc("node", "primary", second, "--wait")
            else:
                cluster.lab.power(first, "off")
                eventually(lambda: not asker.is_answered(), within=SOON_S)
            eventually(lambda: primary(cluster) not in ("", first), within=SOON_S)
            eventually(asker.is_answered, within=SOON_S)
            eventually(lambda: named.ask("-x", "10.101.0.9") == ["web1.shop.test."], within=SOON_S)
        after = {zone: named.serial(zone) for zone in before}
        assert all(after[zone] >= before[zone] for zone in before)
        with capsys.disabled():
            print(f"\n  {how} of the primary: names were silent for {asker.longest_gap_s:.1f} s")
    finally:
        cluster.lab.repair()
