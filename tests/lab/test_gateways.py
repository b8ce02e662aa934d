"""The primary as gateway of managed networks, a real router upstream; guests are namespaces of nodes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise

import pytest

from pvc.cluster.network import GATEWAY_MAC
from pvc.lab.layout import CLUSTER, UPSTREAM
from tests.lab.dying import make_primary, primary, secondary
from tests.lab.labs import RunningLab
from tests.lab.upstream import AS_NUMBER, OUTSIDE, OUTSIDE6, PORT, Router, router
from tests.lab.vms import Cluster
from tests.support import eventually

EVERY_S = 0.2
REPLY = re.compile(r"icmp_seq=(\d+) .*time=")
NETWORKS = {
    101: ("-d", "shop", "-i", "10.1.0.0/24", "-g", "10.1.0.1"),
    102: (
        *("-d", "back", "-i", "10.2.0.0/24", "-g", "10.2.0.1"),
        *("-i6", "fd00:2::/64", "-g6", "fd00:2::1"),
    ),
    103: ("-d", "alone", "-i", "10.3.0.0/24"),
}


@dataclass(frozen=True, slots=True)
class Guest:
    """What a VM is to the network: somebody on a port of the bridge."""

    node: str
    vni: int
    end: int

    @property
    def name(self) -> str:
        return f"guest{self.vni}-{self.end}"

    @property
    def address(self) -> str:
        return f"10.{self.vni - 100}.0.{self.end}"

    @property
    def script(self) -> str:
        port, number = f"tap{self.vni}-{self.end}", self.vni - 100
        return f"""set -e
            ip netns add {self.name}
            ip link add {port} mtu 1500 type veth peer name eth0 netns {self.name}
            ip link set {port} master br{self.vni} up
            ip -n {self.name} link set eth0 up
            ip -n {self.name} address add {self.address}/24 dev eth0
            ip -n {self.name} address add fd00:{number}::{self.end}/64 dev eth0 nodad
            ip -n {self.name} route add default via 10.{number}.0.1
            ip -n {self.name} route add default via fe80::1 dev eth0 || true"""


SHOP, BACK = Guest("n1", 101, 11), Guest("n3", 102, 13)
SHOPS = (SHOP, Guest("n2", 101, 12), Guest("n3", 101, 13))


@dataclass(frozen=True, slots=True)
class Bench:
    cluster: Cluster
    upstream: Router

    def inside(self, guest: Guest, *command: str, check: bool = True) -> str:
        words = ("ip", "netns", "exec", guest.name, *command)
        return self.cluster.run(guest.node, *words, check=check).stdout

    def reaches(self, guest: Guest, address: str) -> bool:
        return " 0% packet loss" in self.inside(guest, "ping", "-nc1", "-W1", address, check=False)

    def begin_pings(self, guest: Guest, address: str) -> None:
        ping = f"ip netns exec {guest.name} ping -n -i {EVERY_S} {address}"
        self.cluster.lab.sh(guest.node, f"setsid -f {ping} >/tmp/{guest.name}.pings 2>&1")
        eventually(lambda: len(self.replies(guest)) > 5, within=10.0)

    def replies(self, guest: Guest) -> list[int]:
        text = self.cluster.run(guest.node, "cat", f"/tmp/{guest.name}.pings").stdout
        return [int(number) for number in REPLY.findall(text)]

    def end_pings(self, guest: Guest) -> list[int]:
        """Once there are answers again; to which ones of the pings there were any."""
        last = max(self.replies(guest))
        eventually(
            lambda: len([one for one in self.replies(guest) if one > last]) > 10, within=60.0, every=0.5
        )
        self.cluster.lab.sh(guest.node, f"ip netns pids {guest.name} | xargs -r kill")
        return sorted(self.replies(guest))

    def start_daemon_again(self, node: str, how: str) -> None:
        """`restart` or `kill`; until its new life is in the cluster."""
        other = next(name for name in self.cluster.lab.nodes if name != node)

        def life() -> int:
            """0: not in the cluster."""
            said = json.loads(self.cluster.run(other, "pvc", "node", "info", node, "-f", "json").stdout)
            return int(said["incarnation"]) if said["daemon_state"] == "run" else 0

        before = life()
        if how == "kill":
            self.cluster.lab.lab("kill", node, "pvc-node")
        else:
            self.cluster.run(node, "systemctl", "restart", "pvc-node")
        eventually(lambda: life() > before, within=60.0, every=0.5)
        self.cluster.lab.settle()

    def make_primary(self, node: str) -> str:
        """Until routers know it."""
        make_primary(self.cluster, node)
        told = {prefix: {self.primary_address()} for prefix in ("10.1.0.0/24", "10.2.0.0/24")}
        eventually(lambda: self.upstream.told() == told, within=60.0, every=0.5)
        return node

    def primary_address(self) -> str:
        layout = self.cluster.lab.layout
        return layout.address(layout.node(primary(self.cluster)), UPSTREAM)


def lost(answered: list[int]) -> list[int]:
    return sorted({*range(answered[0], answered[-1])} - {*answered})


def silence(answered: list[int]) -> str:
    """The longest, for people."""
    pings = max(after - before for before, after in pairwise(answered)) - 1
    return f"{pings} pings of {EVERY_S} s in a row without an answer"


@pytest.fixture(scope="module")
def bench(lab: RunningLab) -> Iterator[Bench]:
    """Networks with and without gateways, a guest in two of them, and a router."""
    cluster = Cluster(lab)
    with ExitStack() as stack:
        upstream = stack.enter_context(router(lab.layout))
        for node in lab.nodes:
            # The lab's nodes have no address of IPv6 there, not even a link-local one, which BGP needs.
            for address in (upstream.node_address6(node), f"fe80::{lab.layout.node(node).number}"):
                lab.sh(node, f"ip address add {address}/64 dev br0 nodad")
        routers = (f"{upstream.address}@{AS_NUMBER}", f"{upstream.address6}@{AS_NUMBER}")
        cluster.pvc("cluster", "set", *(word for one in routers for word in ("--router", one)))
        stack.callback(cluster.pvc, "cluster", "set", "--router", "none", check=False)
        for vni, options in NETWORKS.items():
            cluster.pvc("network", "add", str(vni), "-p", "managed", *options, "--wait", "--timeout", "60")
            stack.callback(cluster.pvc, "network", "remove", str(vni), "--yes", check=False)
        for guest in (*SHOPS, BACK):
            lab.sh(guest.node, guest.script)
            stack.callback(lab.sh, guest.node, f"ip netns del {guest.name}", check=False)
        yield Bench(cluster, upstream)


def test_guests_reach_outside_and_are_reached(bench: Bench) -> None:
    for guest in (SHOP, BACK):
        eventually(lambda guest=guest: bench.reaches(guest, OUTSIDE), within=30.0, every=0.5)  # type: ignore[misc]
        eventually(lambda guest=guest: bench.upstream.reaches(guest.address), within=10.0)  # type: ignore[misc]
    eventually(lambda: bench.reaches(BACK, OUTSIDE6), within=10.0, every=0.5)
    eventually(lambda: bench.upstream.reaches("fd00:2::13"), within=10.0)


def test_only_the_primary_tells_and_only_of_networks_behind_gateways(bench: Bench) -> None:
    layout = bench.cluster.lab.layout
    speaking = {layout.address(node, UPSTREAM) for node in layout.nodes}
    speaking |= {bench.upstream.node_address6(node.name) for node in layout.nodes}
    eventually(lambda: bench.upstream.sessions() == speaking, within=20.0)
    told = {prefix: {bench.primary_address()} for prefix in ("10.1.0.0/24", "10.2.0.0/24")}
    eventually(lambda: bench.upstream.told() == told, within=60.0)
    assert set(bench.upstream.told(6)) == {"fd00:2::/64"}
    bench.cluster.pvc("network", "modify", "103", "--gateway", "10.3.0.1")
    eventually(lambda: "10.3.0.0/24" in bench.upstream.told(), within=20.0)
    bench.cluster.pvc("network", "modify", "103", "--gateway", "")
    eventually(lambda: bench.upstream.told() == told, within=60.0)


def test_a_node_s_own_default_route_stays(bench: Bench) -> None:
    node = secondary(bench.cluster)
    routes = bench.cluster.lab.sh(node, "ip route show default")
    assert f"via {bench.upstream.address}" in routes, "it had none of its own"
    other = bench.upstream.address.rpartition(".")[0] + ".254"
    bench.cluster.lab.sh(node, f"ip route add default via {other}")
    try:
        eventually(
            lambda: bench.cluster.lab.sh(node, "ip route show default").split()[2:3] == [other], within=10.0
        )
    finally:
        bench.cluster.lab.sh(node, f"ip route del default via {other}")


def test_a_gateway_moves_with_the_role(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = bench.cluster
    for number in range(2):
        bench.begin_pings(SHOP, OUTSIDE)
        old, new = primary(cluster), secondary(cluster)
        cluster.pvc("node", "primary", new, "--wait", "--timeout", "60")
        answered = bench.end_pings(SHOP)
        with capsys.disabled():
            print(f"\n  role moved from {old} to {new} ({number + 1}): {silence(answered)}")
        assert "gw101" not in cluster.lab.sh(old, "ip -br link")
        told = {prefix: {bench.primary_address()} for prefix in ("10.1.0.0/24", "10.2.0.0/24")}
        eventually(lambda told=told: bench.upstream.told() == told, within=60.0)  # type: ignore[misc]


def test_a_way_that_routing_kept_is_corrected(bench: Bench) -> None:
    """Of two places of a gateway FRR keeps the old one now and then (pvc.node.gateway_ways): here by hand."""
    bench.make_primary("n2")
    eventually(lambda: bench.reaches(SHOP, "10.1.0.1"), within=10.0)
    layout = bench.cluster.lab.layout
    wrong, right = (layout.address(layout.node(name), CLUSTER) for name in ("n3", "n2"))

    def said() -> int:
        journal = bench.cluster.run("n1", "journalctl", "-u", "pvc-node", "-b").stdout
        return journal.count(f"gateways of networks 101 are sought at {right}: routing led to {wrong}")

    before = said()
    way = ("bridge", "fdb", "replace", GATEWAY_MAC, "dev", "vx101", "dst", wrong)
    bench.cluster.run("n1", *way, "self", "dynamic", "extern_learn")
    bench.start_daemon_again("n1", "restart")
    eventually(lambda: bench.reaches(SHOP, "10.1.0.1"), within=10.0)
    assert said() == before + 1


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_guests_lose_nothing_of_each_other_when_a_daemon_starts_again(bench: Bench, how: str) -> None:
    """Any node's, first the primary's, which moves the role if it ends in good order."""
    pairs = list(zip(SHOPS, (*SHOPS[1:], SHOPS[0]), strict=True))
    for guest, other in pairs:
        bench.begin_pings(guest, other.address)
    first = primary(bench.cluster)
    for node in sorted(bench.cluster.lab.nodes, key=lambda name: name != first):
        bench.start_daemon_again(node, how)
    found = {guest.name: lost(bench.end_pings(guest)) for guest, _ in pairs}
    assert found == {guest.name: [] for guest in SHOPS}


def links(bench: Bench, node: str) -> str:
    """Others if one was made anew."""
    return bench.cluster.lab.sh(node, "cd /sys/class/net; grep . gw*/ifindex br10*/ifindex vx10*/ifindex")


def test_a_primary_whose_daemon_was_killed_stays_gateway(bench: Bench) -> None:
    node = bench.make_primary("n2")
    eventually(lambda: bench.reaches(BACK, OUTSIDE), within=30.0, every=0.5)
    before = links(bench, node)
    bench.begin_pings(SHOP, "10.1.0.1")
    bench.begin_pings(BACK, OUTSIDE)
    bench.start_daemon_again(node, "kill")
    eventually(lambda: primary(bench.cluster) == node, within=30.0, every=0.5)
    assert [lost(bench.end_pings(guest)) for guest in (SHOP, BACK)] == [[], []]
    assert links(bench, node) == before


def test_a_primary_whose_daemon_starts_again_leaves_the_gateway_to_another(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    node = bench.make_primary("n1")
    eventually(lambda: bench.reaches(BACK, OUTSIDE), within=30.0, every=0.5)
    bench.begin_pings(BACK, OUTSIDE)
    bench.cluster.run(node, "systemctl", "stop", "pvc-node")
    assert "gw102" not in bench.cluster.lab.sh(node, "ip -br link")
    bench.cluster.run(node, "systemctl", "start", "pvc-node")
    bench.cluster.lab.settle()
    answered = bench.end_pings(BACK)
    with capsys.disabled():
        print(f"\n  clean restart of the primary's daemon: {silence(answered)}")


def test_a_connection_to_outside_survives_live_migrations(bench: Bench) -> None:
    """Onto the gateway's node and away from it."""
    cluster, place = bench.cluster, bench.make_primary("n2")
    words = f"pvc.ip=10.1.0.21/24 pvc.gateway=10.1.0.1 pvc.stream={OUTSIDE}:{PORT}"
    away = [node for node in cluster.lab.nodes if node != place]
    with (
        bench.upstream.hearing() as heard,
        cluster.vm("caller", "--target", away[0], "--network", "shop", cmdline=words),
    ):
        eventually(lambda: len(heard()) > 5, within=90.0)
        for target in (place, away[1]):
            cluster.pvc("vm", "move", "caller", "--target", target, "--wait", "--timeout", "60")
            assert cluster.info("caller")["node"] == target
            already = len(heard())
            eventually(lambda already=already: len(heard()) > already + 25, within=60.0)  # type: ignore[misc]
        numbers = heard()
        assert numbers == list(range(1, len(numbers) + 1))


def test_a_power_cut_of_the_primary(armed: Cluster, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    dying = "n2"
    if primary(armed) != dying:
        armed.pvc("node", "primary", dying, "--wait", "--timeout", "60")
    eventually(lambda: bench.reaches(SHOP, OUTSIDE), within=30.0, every=0.5)
    bench.begin_pings(SHOP, OUTSIDE)
    armed.lab.power(dying, "off")
    answered = bench.end_pings(SHOP)
    with capsys.disabled():
        print(f"\n  power cut of the primary: {silence(answered)}")
