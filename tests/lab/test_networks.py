"""Managed networks on three real nodes: real bridges, VXLAN, FRR, and guests that ping each other."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pvc.proc import run
from tests.lab.labs import RunningLab
from tests.lab.vms import Cluster
from tests.support import eventually

GOLDEN = Path(__file__).parents[1] / "unit/node/golden"
PING = re.compile(r"^(pong|lost) (\d+)", re.MULTILINE)
NETWORKS = {101: "shop", 102: "back"}
GUESTS = {
    "shop-a": ("n1", 101, "10.1.0.1", "10.1.0.2"),
    "shop-b": ("n2", 101, "10.1.0.2", "10.1.0.1"),
    # The same addresses in the other network, and nobody is confused.
    "back-a": ("n3", 102, "10.1.0.1", "10.1.0.2"),
    "back-b": ("n1", 102, "10.1.0.2", "10.1.0.1"),
}
"""Node, network, its address and the one it pings."""


@pytest.fixture(scope="module")
def cluster(lab: RunningLab) -> Cluster:
    return Cluster(lab)


def links(cluster: Cluster, node: str) -> dict[str, dict[str, Any]]:
    """What the kernel of the node says, by name."""
    said = cluster.run(node, "ip", "-j", "-d", "link", "show").stdout
    return {one["ifname"]: one for one in json.loads(said)}


@pytest.fixture(scope="module")
def before(cluster: Cluster) -> dict[str, set[str]]:
    return {node: set(links(cluster, node)) for node in cluster.lab.nodes}


@pytest.fixture(scope="module")
def guests(cluster: Cluster, before: dict[str, set[str]]) -> Iterator[Cluster]:
    """Two networks with two guests in each, which ping each other."""
    with ExitStack() as stack:
        for vni, description in NETWORKS.items():
            added = cluster.pvc("network", "add", str(vni), "-d", description, "-p", "managed", "--wait")
            stack.callback(cluster.pvc, "network", "remove", str(vni), "--yes", check=False)
            assert added.code == 0
        for name, (node, vni, own, other) in GUESTS.items():
            options = ("--target", node, "--network", NETWORKS[vni])
            stack.enter_context(cluster.vm(name, *options, cmdline=f"pvc.ip={own}/24 pvc.ping={other}"))
        yield cluster


def pings(cluster: Cluster, name: str, *nodes: str) -> dict[int, bool]:
    """By number, in the order of the nodes where it ran: whether an answer came."""
    uuid = cluster.info(name)["uuid"]
    found: dict[int, bool] = {}
    for node in nodes:
        text = cluster.run(node, "cat", f"/var/log/pvc/console/{uuid}.log", check=False).stdout
        found |= {int(number): word == "pong" for word, number in PING.findall(text.replace("\r", ""))}
    return found


def answers(cluster: Cluster, name: str, node: str, *, after: int = 0, within: float = 120.0) -> int:
    """Wait until the guest has had five answers after that number; the number of the last."""

    def has_answers() -> int:
        told = [number for number, ok in sorted(pings(cluster, name, node).items()) if ok and number > after]
        return told[-1] if len(told) >= 5 else 0

    return eventually(has_answers, within=within, every=0.5)


def silence(cluster: Cluster, name: str, node: str, *, after: int) -> None:
    """Wait until the guest has had no answer five times in a row after that number."""

    def is_silent() -> bool:
        told = [(number, ok) for number, ok in sorted(pings(cluster, name, node).items()) if number > after]
        return len(told) >= 5 and not any(ok for _, ok in told[-5:])

    eventually(is_silent, within=30.0, every=0.5)


def test_frr_takes_what_pvc_writes(cluster: Cluster) -> None:
    for golden in sorted(GOLDEN.glob("frr-*.conf")):
        cluster.lab.run("n1", "sh", "-c", "cat >/tmp/golden.conf", stdin=golden.read_text())
        checked = cluster.run("n1", "vtysh", "-C", "-f", "/tmp/golden.conf", check=False)
        assert checked.code == 0, f"{golden.name}: {checked.stdout}{checked.stderr}"


def test_every_node_has_the_networks(guests: Cluster) -> None:
    for vni in NETWORKS:
        found = guests.json("network", "info", str(vni))
        assert (found["state"], set(found["nodes"].values())) == ("up", {"up"})
        assert len(found["vms"]) == 2
    for node in guests.lab.nodes:
        known = links(guests, node)
        for vni in NETWORKS:
            bridge, tunnel = known[f"br{vni}"], known[f"vx{vni}"]
            data = tunnel["linkinfo"]["info_data"]
            assert (bridge["mtu"], tunnel["mtu"], tunnel["master"]) == (8950, 8950, f"br{vni}")
            assert (data["id"], data["learning"]) == (vni, False)
            assert data["local"] == guests.lab.layout.address(guests.lab.layout.node(node))
            assert "inet" not in guests.run(node, "ip", "address", "show", f"br{vni}").stdout
    listed = guests.json("network", "list")
    assert [(row["vni"], row["description"], row["vms"]) for row in listed] == [
        (101, "shop", 2),
        (102, "back", 2),
    ]


def test_guests_on_different_nodes_reach_each_other(guests: Cluster) -> None:
    for name, (node, *_) in GUESTS.items():
        answers(guests, name, node)


def test_a_network_hears_nothing_of_another(guests: Cluster) -> None:
    """back-a pings the address of back-b, which shop-b has too: when back-b is off, nobody answers."""
    last = answers(guests, "back-a", "n3")
    guests.pvc("vm", "stop", "back-b", "--yes", "--wait", "--timeout", "60")
    silence(guests, "back-a", "n3", after=last)
    answers(guests, "shop-a", "n1", after=max(pings(guests, "shop-a", "n1")))
    guests.pvc("vm", "start", "back-b", "--wait", "--timeout", "60")
    answers(guests, "back-a", "n3", after=max(pings(guests, "back-a", "n3")))


def test_the_node_itself_is_not_in_the_network(guests: Cluster) -> None:
    for node in guests.lab.nodes:
        assert "br101" not in guests.run(node, "ip", "route").stdout
        rp_filter = guests.run(node, "cat", "/proc/sys/net/ipv4/conf/br101/rp_filter").stdout
        disabled = guests.run(node, "cat", "/proc/sys/net/ipv6/conf/br101/disable_ipv6").stdout
        assert (rp_filter.strip(), disabled.strip()) == ("1", "1")


def test_a_live_migration_loses_hardly_a_ping(guests: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    first = answers(guests, "shop-a", "n1")
    guests.pvc("vm", "migrate", "shop-b", "--target", "n3", "--wait", "--timeout", "60")
    last = answers(guests, "shop-a", "n1", after=max(pings(guests, "shop-a", "n1")))
    report(capsys, "live migration", guests, first, last)
    answers(guests, "shop-b", "n3")
    guests.pvc("vm", "unmigrate", "shop-b", "--wait", "--timeout", "60")
    answers(guests, "shop-a", "n1", after=max(pings(guests, "shop-a", "n1")))


def test_a_tcp_connection_survives_that_either_end_migrates(guests: Cluster) -> None:
    """Over a new connection the numbers would begin from 1 again."""
    options, serve = ("--network", "shop"), "pvc.ip=10.1.0.11/24 pvc.serve=7000"
    stream = "pvc.ip=10.1.0.12/24 pvc.stream=10.1.0.11:7000"
    with (
        guests.vm("hearer", "--target", "n2", *options, cmdline=serve),
        guests.vm("teller", "--target", "n1", *options, cmdline=stream),
    ):
        heard = guests.hearing("hearer", "n2", more_than=5)
        for name, target in (("teller", "n3"), ("hearer", "n1")):
            guests.pvc("vm", "move", name, "--target", target, "--wait", "--timeout", "60")
            assert guests.info(name)["node"] == target
            assert "downtime" in guests.info(name)["last_migration"], "it was not live"
            heard = guests.hearing("hearer", "n2", "n1", more_than=len(heard) + 25)
        assert heard == list(range(1, len(heard) + 1))


def identity(cluster: Cluster, node: str) -> str:
    """Another if a link was made anew or lost its carrier for a moment, or FRR was started again."""
    links_of = (
        "cd /sys/class/net; grep . br101/ifindex vx101/ifindex br101/carrier_changes vx101/carrier_changes"
    )
    return cluster.lab.sh(node, f"{links_of}; cat /run/frr/*.pid; cat /etc/frr/frr.conf")


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_links_and_routing_do_not_notice_that_a_daemon_starts_again(
    guests: Cluster, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, before = answers(guests, "shop-a", "n1"), identity(guests, "n1")
    if how == "kill":
        guests.lab.lab("kill", "n1", "pvc-node")
    else:
        guests.run("n1", "systemctl", "restart", "pvc-node")
    guests.lab.settle()
    last = answers(guests, "shop-a", "n1", after=max(pings(guests, "shop-a", "n1")))
    assert identity(guests, "n1") == before
    report(capsys, f"daemon, {how}", guests, first, last)


def report(capsys: pytest.CaptureFixture[str], what: str, guests: Cluster, first: int, last: int) -> None:
    """Of the pings of shop-a. How many are lost is for people: a busy machine loses some by itself."""
    between = {number: ok for number, ok in pings(guests, "shop-a", "n1").items() if first < number < last}
    with capsys.disabled():
        print(
            f"\n    {what}: {len(between) - sum(between.values())} of {len(between)} pings lost (0.2 s each)"
        )


def test_a_link_that_somebody_took_down_comes_back(guests: Cluster) -> None:
    guests.run("n2", "ip", "link", "set", "vx101", "down")
    guests.run("n2", "systemctl", "restart", "pvc-node")
    eventually(lambda: "UP" in links(guests, "n2")["vx101"]["flags"], within=30.0, every=0.5)
    answers(guests, "shop-b", "n2", after=max(pings(guests, "shop-b", "n2")))


def test_frr_killed_comes_back_and_is_reported(guests: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    first = answers(guests, "shop-a", "n1")
    pid = guests.lab.sh("n2", "cat /run/frr/bgpd.pid").strip()
    guests.run("n2", "kill", "-9", pid)
    eventually(
        lambda: guests.lab.sh("n2", "pidof bgpd", check=False).strip() not in ("", pid),
        within=60.0,
        every=0.5,
    )
    said = "journalctl -u pvc-node | grep 'bgpd of FRR'"
    eventually(lambda: guests.lab.sh("n2", said, check=False), within=30.0, every=0.5)
    eventually(lambda: guests.json("network", "info", "101")["state"] == "up", within=60.0, every=0.5)
    last = answers(guests, "shop-a", "n1", after=max(pings(guests, "shop-a", "n1")))
    report(capsys, "bgpd killed with -9", guests, first, last)


def test_a_used_network_stays(guests: Cluster) -> None:
    refused = guests.pvc("network", "remove", "shop", "--yes", check=False)
    assert refused.code == 4
    assert "network 101 is used by shop-a, shop-b" in refused.stderr


def test_what_was_removed_is_gone_and_the_host_s_own_is_as_it_was(
    cluster: Cluster, before: dict[str, set[str]]
) -> None:
    cluster.pvc("network", "add", "103", "-d", "short-lived", "-p", "managed", "--wait")
    assert all("br103" in links(cluster, node) for node in cluster.lab.nodes)
    cluster.pvc("network", "remove", "short-lived", "--yes")
    for node in cluster.lab.nodes:
        eventually(functools.partial(has_not, cluster, node, "br103", "vx103"), within=30.0, every=0.5)
        assert before[node] <= set(links(cluster, node))


def test_a_network_that_nodes_cannot_have_says_so(cluster: Cluster) -> None:
    """The lab's nodes have no device for bridged networks: its kernel may lack VLANs."""
    added = cluster.pvc("network", "add", "7", "-d", "dmz", "-p", "bridged", "--wait", check=False)
    try:
        assert added.code == 1
        assert "n1: this node's pvc.toml names no node.bridge_device" in added.stderr
        problems = cluster.json("cluster", "status")["problems"]
        assert "node n2: network 7: this node's pvc.toml names no node.bridge_device" in problems
        assert cluster.json("network", "info", "dmz")["state"] == "incomplete"
        with cluster.vm("nowhere", "--network", "dmz", start=False):
            started = cluster.pvc("vm", "start", "nowhere", check=False)
            assert started.code == 4
            assert (
                "n3: it has no bridge br7: this node's pvc.toml names no node.bridge_device" in started.stderr
            )
    finally:
        cluster.pvc("network", "remove", "dmz", "--yes")


def has_not(cluster: Cluster, node: str, *names: str) -> bool:
    return not {*names} & set(links(cluster, node))


def test_a_switch_that_carries_less_is_named(cluster: Cluster) -> None:
    """A daemon looks when it starts: nobody waits for the hour to be over."""
    switch, port = cluster.lab.layout.switch, "n3clu"
    set_mtu = ("ip", "-n", switch, "link", "set", port, "mtu")
    cluster.pvc("network", "add", "105", "-d", "narrow", "-p", "managed", "--wait")
    try:
        run([*set_mtu, "1500"])
        cluster.run("n1", "systemctl", "restart", "pvc-node")
        told = "packets of 9000 bytes, this node's MTU on the cluster network, do not reach n3"
        eventually(lambda: told in cluster.pvc("why", "network", "105").stdout, within=60, every=1.0)
        run([*set_mtu, "9000"])
        cluster.run("n1", "systemctl", "restart", "pvc-node")
        eventually(lambda: told not in cluster.pvc("why", "network", "105").stdout, within=60, every=1.0)
    finally:
        run([*set_mtu, "9000"])
        cluster.pvc("network", "remove", "105", "--yes")
