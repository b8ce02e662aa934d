"""Filters on three real nodes: what is listed is what the primary's kernel does to packets of guests.

The guests are network namespaces of nodes, on the bridges that VMs are on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab.labs import RunningLab
from tests.lab.vms import Cluster
from tests.support import eventually

HOST_TABLE = "table inet mine { chain forward { type filter hook forward priority 0; counter accept; }; }"


@dataclass(frozen=True, slots=True)
class Guest:
    name: str
    node: str
    vni: int
    address: str
    gateway: str

    @property
    def commands(self) -> str:
        inside = f"ip -n {self.name}"
        return "\n".join(
            (
                f"set -e; ip netns add {self.name}",
                f"ip link add g{self.vni} type veth peer name eth0 netns {self.name}",
                f"ip link set g{self.vni} mtu 1400 master br{self.vni} up",
                f"{inside} link set lo up; {inside} link set eth0 mtu 1400 up",
                f"{inside} address add {self.address}/24 dev eth0",
                f"{inside} route add default via {self.gateway}",
            )
        )


SHOP = Guest("shop", "n2", 101, "172.21.1.10", "172.21.1.1")
BACK = Guest("back", "n3", 102, "172.21.2.10", "172.21.2.1")


class Site(Cluster):
    def pings(self, guest: Guest, address: str) -> bool:
        argv = ("ip", "netns", "exec", guest.name, "ping", "-n", "-c1", "-W1", address)
        return self.run(guest.node, *argv, check=False).code == 0

    def reaches(self, guest: Guest, address: str) -> None:
        eventually(lambda: self.pings(guest, address), within=30)

    def is_kept_from(self, guest: Guest, address: str) -> None:
        eventually(lambda: not self.pings(guest, address), within=30)

    def rules(self, network: str) -> list[dict[str, Any]]:
        found = self.json("network", "acl", "list", network)
        assert isinstance(found, list)
        return found

    def enforced(self, network: str) -> list[dict[str, Any]]:
        """Wait until all that is listed is."""

        def all_are() -> list[dict[str, Any]]:
            found = self.rules(network)
            return found if all(row["enforced"] == "yes" for row in found) else []

        return eventually(all_are, within=30)

    def primary(self) -> str:
        (name,) = (one["name"] for one in self.json("node", "list") if one["coordinator_state"] == "primary")
        return str(name)

    def table(self, node: str) -> str:
        return self.run(node, "nft", "list", "table", "inet", "pvc", check=False).stdout

    def comments(self, node: str, chain: str) -> list[str]:
        said = self.run(node, "nft", "-j", "list", "chain", "inet", "pvc", chain).stdout
        return [one["rule"]["comment"] for one in json.loads(said)["nftables"] if "rule" in one]


@pytest.fixture(scope="module")
def site(lab: RunningLab) -> Iterator[Site]:
    found = Site(lab)
    with ExitStack() as stack:
        for guest in (SHOP, BACK):
            prefix = guest.gateway.rpartition(".")[0] + ".0/24"
            options = ("-d", guest.name, "-p", "managed", "-i", prefix, "-g", guest.gateway, "--wait")
            found.pvc("network", "add", str(guest.vni), *options)
            stack.callback(found.pvc, "network", "remove", str(guest.vni), "--yes", check=False)
            found.run(guest.node, "sh", "-c", guest.commands)
            stack.callback(found.run, guest.node, "ip", "netns", "del", guest.name, check=False)
        for guest in (SHOP, BACK):
            found.reaches(guest, guest.gateway)
        yield found


def test_a_filter_blocks_and_counts_and_listed_is_what_is_enforced(site: Site) -> None:
    node = site.primary()
    site.run(node, "nft", HOST_TABLE)
    hosts = site.run(node, "nft", "-s", "list", "table", "inet", "mine").stdout
    assert not site.pings(SHOP, BACK.address), "managed networks are isolated"
    for network in site.lab.layout.nodes[0], site.lab.layout.nodes[2]:
        assert not site.pings(SHOP, site.lab.layout.address(network)), "so is the cluster network"

    add = ("network", "acl", "add", "back", "--in")
    site.pvc(*add, "-d", "ping", "--proto", "icmp", "--from", "172.21.1.0/24", "--accept")
    site.reaches(SHOP, BACK.address)
    (row,) = site.enforced("back")
    assert (row["direction"], row["order"], row["rule"]) == (
        "in",
        1,
        "ip saddr 172.21.1.0/24 meta l4proto { icmp, ipv6-icmp } accept",
    )
    assert row["packets"] >= 1
    accepted = row["packets"]

    site.pvc(*add, "-d", "not that one", "-r", f"ip saddr {SHOP.address} drop", "--order", "1")
    site.is_kept_from(SHOP, BACK.address)
    first, second = site.enforced("back")
    assert [first["description"], second["description"]] == ["not that one", "ping"]
    assert site.comments(node, "in102") == ["2", "1"]
    assert not site.pings(SHOP, BACK.address)
    later, counted = site.enforced("back")
    assert later["packets"] > first["packets"] - 1 >= 0
    assert counted["packets"] >= accepted, "it goes on where it was"

    bad = site.pvc(*add, "-d", "bad", "-r", "tcp dport nonsense drop", check=False)
    assert bad.code == 2
    assert "at nonsense" in bad.stderr
    assert len(site.enforced("back")) == 2

    site.run(node, "nft", "flush", "table", "inet", "pvc")
    eventually(lambda: site.comments(node, "in102") == ["2", "1"], within=30)
    assert site.run(node, "nft", "-s", "list", "table", "inet", "mine").stdout == hosts


def test_filters_go_with_the_role_and_leave_nothing_behind(site: Site) -> None:
    before = site.primary()
    other = next(one for one in ("n1", "n2", "n3") if one != before)
    site.pvc(
        "network", "acl", "add", "shop", "--out", "-d", "mail", "--proto", "tcp", "--port", "25", "--reject"
    )
    site.enforced("shop")
    site.pvc("node", "primary", other, "--wait")
    eventually(lambda: not site.table(before), within=30)
    (row,) = site.enforced("shop")
    assert row["direction"] == "out"
    assert site.comments(other, "out101")
    site.reaches(SHOP, SHOP.gateway)
    assert not site.pings(SHOP, BACK.address)
