"""What a network can never be, and what it is called."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest

from pvc.cluster import network
from pvc.cluster.codec import dumps, loads
from pvc.cluster.network import DHCPRange, IPv4, IPv6, Kind, NetworkSpec
from pvc.errors import Invalid

PLAIN = NetworkSpec(101, "shop", Kind.MANAGED)
FOUR = IPv4("10.1.0.0/24", "10.1.0.1", DHCPRange("10.1.0.100", "10.1.0.199"))
SIX = IPv6("fd00:1::/64", "fd00:1::1", dhcp=True)
FULL = replace(
    PLAIN, mtu=1400, domain="shop.example", dns_servers=("9.9.9.9", "2620:fe::fe"), ipv4=FOUR, ipv6=SIX
)


def four(network: str = "10.1.0.0/24", gateway: str = "", start: str = "", end: str = "") -> NetworkSpec:
    return replace(PLAIN, ipv4=IPv4(network, gateway, DHCPRange(start, end) if start else None))


def six(network: str, gateway: str = "") -> NetworkSpec:
    return replace(PLAIN, ipv6=IPv6(network, gateway))


@pytest.mark.parametrize(
    "spec",
    [
        PLAIN,
        FULL,
        replace(PLAIN, vni=1),
        replace(PLAIN, vni=2**24 - 1),
        NetworkSpec(4094, "dmz", Kind.BRIDGED, mtu=9000),
        four("10.0.0.0/8", "10.255.255.254"),
        replace(PLAIN, domain="a." * 126 + "a"),
        replace(PLAIN, domain="shop"),
        four("192.0.2.0/30", "192.0.2.1", "192.0.2.2", "192.0.2.2"),
    ],
)
def test_possible(spec: NetworkSpec) -> None:
    network.check(spec, [spec], carries=9000)
    assert loads(NetworkSpec, dumps(spec)) == spec


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (replace(PLAIN, vni=0), "0 is not between 1 and 16777215"),
        (replace(PLAIN, vni=2**24), "is not between"),
        (NetworkSpec(4095, "dmz", Kind.BRIDGED), "4095 is no VLAN"),
        (NetworkSpec(7, "dmz", Kind.BRIDGED, ipv4=FOUR), "7 is bridged"),
        (NetworkSpec(7, "dmz", Kind.BRIDGED, domain="x"), "7 is bridged"),
        (replace(PLAIN, mtu=575), "575 is below 576"),
        (replace(PLAIN, mtu=1279, ipv6=SIX), "1279 is below 1280, the least of a network with IPv6"),
        (replace(PLAIN, mtu=65_536), "above 65535"),
        (replace(PLAIN, mtu=8951), "8951 is more than a managed network can have on every node: 8950"),
        (NetworkSpec(7, "dmz", Kind.BRIDGED, mtu=8951), "than a bridged network can have"),
        (four("10.1.0.5/24"), "is an address in the network 10.1.0.0/24"),
        (four("10.1.0.0"), "has no prefix length"),
        (four("ten/24"), "is not a network"),
        (four("10.1.0.0/33"), "is not a network"),
        (four("fd00::/64"), "is not an IPv4 network"),
        (four("10.1.0.0/31"), "/8 to /30"),
        (four("0.0.0.0/8"), "reserved"),
        (four("127.0.0.0/8"), "reserved"),
        (four("169.254.0.0/16"), "reserved"),
        (four("224.0.0.0/8"), "reserved"),
        (four("", "10.1.0.1"), "no IPv4 network they could be in"),
        (four(gateway="10.2.0.1"), "outside its network 10.1.0.0/24"),
        (four(gateway="10.1.0.0"), "is no host's address"),
        (four(gateway="10.1.0.255"), "is no host's address"),
        (four(gateway="fd00::1"), "outside its network"),
        (four(gateway="gw"), "is not an address"),
        (four(start="10.1.0.10", end="10.1.0.20"), "DHCP and no gateway"),
        (
            four(gateway="10.1.0.1", start="10.1.0.10", end="10.1.1.10"),
            "end of the DHCP range of network 101, is outside",
        ),
        (
            four(gateway="10.1.0.1", start="10.0.0.10", end="10.1.0.10"),
            "start of the DHCP range of network 101, is outside",
        ),
        (four(gateway="10.1.0.1", start="10.1.0.20", end="10.1.0.10"), "ends at 10.1.0.10, before its start"),
        (four(gateway="10.1.0.20", start="10.1.0.10", end="10.1.0.30"), "inside its DHCP range"),
        (six("fd00:1::/48"), "is not a /64"),
        (six("10.0.0.0/8"), "is not an IPv6 network"),
        (six("fd00:1::1/64"), "is an address in the network"),
        (six("fe80::/64"), "reserved"),
        (six("ff02::/64"), "reserved"),
        (six("", "fd00:1::1"), "no IPv6 network"),
        (six("fd00:1::/64", "fd00:2::1"), "outside its network"),
        (replace(PLAIN, ipv6=IPv6("fd00:1::/64", dhcp=True)), "DHCPv6 and no IPv6 gateway"),
        (replace(PLAIN, ipv6=IPv6(dhcp=True)), "no IPv6 network"),
        (replace(PLAIN, dns_servers=("9.9.9.9", "dns.example")), "'dns.example', the DNS server"),
        (replace(PLAIN, dns_servers=("127.0.0.53",)), "no server that others could ask"),
        (NetworkSpec(7, "dmz", Kind.BRIDGED, dns_servers=("9.9.9.9",)), "7 is bridged"),
        *(
            (replace(PLAIN, domain=domain), "no name of the DNS")
            for domain in ("-a", "a-", "a..b", "a.", ".a", "a b", "A.example", "a" * 64, "a." * 126 + "aa")
        ),
        (replace(PLAIN, domain="1.10.in-addr.arpa"), "for the names of addresses"),
    ],
)
def test_impossible(spec: NetworkSpec, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        network.check(spec, carries=8950)


def test_an_mtu_nobody_knows_to_be_too_large_is_possible() -> None:
    network.check(replace(PLAIN, mtu=9000), carries=0)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (IPv4("10.1.0.0/24"), "10.1.0.0/24 of network 101 overlaps 10.1.0.0/24 of network 102"),
        (IPv4("10.0.0.0/8"), "overlaps 10.0.0.0/8"),
        (IPv4("10.1.0.128/25"), "overlaps 10.1.0.128/25"),
    ],
)
def test_overlaps(other: IPv4, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        network.check(FULL, [PLAIN, replace(PLAIN, vni=102, ipv4=other)])


def test_a_domain_is_that_of_one_network() -> None:
    with pytest.raises(Invalid, match=r"shop\.example is the domain of network 102 already"):
        network.check(FULL, [PLAIN, replace(PLAIN, vni=102, domain="shop.example")])


@pytest.mark.parametrize("prefix", ["10.1.0.7/32", "10.0.0.0/8", "fd00:1::/48", "fd00:1::7/128"])
def test_what_the_nodes_have_is_none_of_the_vms(prefix: str) -> None:
    with pytest.raises(Invalid, match=rf"overlaps {prefix}, an address of n1"):
        network.check(FULL, [PLAIN], taken={ip_network(prefix): "an address of n1"})


@pytest.mark.parametrize(
    ("prefix", "gateway", "start", "end"),
    [
        ("10.1.0.0/24", "10.1.0.1", "10.1.0.128", "10.1.0.254"),
        ("10.1.0.0/24", "10.1.0.254", "10.1.0.128", "10.1.0.253"),
        ("10.1.0.0/24", "10.1.0.128", "10.1.0.129", "10.1.0.254"),
        ("10.1.0.0/24", "10.1.0.200", "10.1.0.1", "10.1.0.127"),
        ("10.0.0.0/8", "10.0.0.1", "10.128.0.0", "10.255.255.254"),
        ("10.1.0.0/29", "10.1.0.1", "10.1.0.4", "10.1.0.6"),
        ("10.1.0.0/30", "10.1.0.1", "10.1.0.2", "10.1.0.2"),
        ("10.1.0.0/30", "10.1.0.2", "10.1.0.1", "10.1.0.1"),
    ],
)
def test_a_range_that_nobody_chose(prefix: str, gateway: str, start: str, end: str) -> None:
    chosen = network.dhcp_range(prefix, gateway)
    assert chosen == DHCPRange(start, end)
    network.check(replace(PLAIN, ipv4=IPv4(prefix, gateway, chosen)))


@pytest.mark.parametrize("given", [("", ""), ("10.1.0.0", "10.1.0.1"), ("10.1.0.0/24", ""), ("x", "y")])
def test_no_range_is_possible_where_there_is_no_network(given: tuple[str, str]) -> None:
    with pytest.raises(Invalid):
        network.check(replace(PLAIN, ipv4=IPv4(*given, network.dhcp_range(*given))))


def test_networks_beside_each_other() -> None:
    network.check(FULL, [replace(PLAIN, vni=102, ipv4=IPv4("10.1.1.0/24"), ipv6=IPv6("fd00:2::/64"))])


@pytest.mark.parametrize(
    "name",
    [
        *(network.bridge_name, network.vxlan_name, network.vlan_name),
        *(network.gateway_name, network.gateway_port_name),
    ],
)
def test_the_kernel_takes_the_names(name: object) -> None:
    assert callable(name)
    assert len(name(2**24 - 1)) <= 15


def test_groups_of_links_are_distinct() -> None:
    """Gateways are removed by the group: a bond of the node's own must not be in it."""
    from pvc.cluster.network import GATEWAY_GROUP, HOST_GROUP, LINK_GROUP

    assert len({GATEWAY_GROUP, HOST_GROUP, LINK_GROUP}) == 3
