"""The rules of filters as text: what is refused whatever nft thinks of it, and what is made of options."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from pvc.cluster.clients import AccessList, Direction, Rule
from pvc.cluster.filters import (
    Filtered,
    Hidden,
    Protocol,
    Route,
    Verdict,
    check_rule,
    compose,
    hidden,
    render,
)
from pvc.cluster.network import IPv4, Kind, NetworkSpec
from pvc.errors import Invalid

SPEC = NetworkSpec(101, "shop", Kind.MANAGED, ipv4=IPv4("10.1.0.0/24", "10.1.0.1"))

HOSTILE = (
    "",
    " ",
    "drop\n}\ndelete table inet filter",
    "drop\r",
    "drop;flush ruleset",
    "drop } chain x {",
    "} drop {",
    "{ drop",
    "tcp dport { 22, { 23 } } drop",
    "drop # and the comment that counts",
    "drop \\",
    "$x drop",
    'include "/etc/shadow"',
    "define x = 1",
    "jump out102",
    "goto services",
    "tcp dport vmap { 22 : jump node }",
    "add @gateways { iifname } accept",
    "add rule inet pvc node accept",
    "flush ruleset",
    "ip saddr @hidden4 accept",
    "meta mark set 1",
    "tcp dport 22 redirect to 23",
    "queue num 1",
    "counter name x drop",
    "quota over 1 mbytes drop",
    'drop comment "1"',
    'log prefix "x drop',
    "log prefix 'x' drop",
    "ip saddr example.com drop",
    "ip saddr localhost drop",
    "ip saddr != cafe.de drop",
    "ip saddr { 10.0.0.1, web } drop",
    "ip saddr . tcp dport { web . 22 } drop",
    "ip6 daddr face drop",
    "accept" + " " * 1000,
    "ip saddr 10.0.0.1 dröp",
    "drop\0",
    "tcp dport (80)notrack",
    "meta mark(1)notrack accept",
    "tcp dport 80notrack",
    "meta mark 0x1notrack accept",
    "tcp dport 22-80notrack",
    "tcp dport (80)jump in102",
    "ip saddr(localhost) drop",
    "ip saddr ((localhost)) drop",
    "ip saddr & (255.0.0.0) == localhost drop",
    "ip saddr (127.0.0.1) | localhost drop",
    "ip saddr!=localhost drop",
    "ip saddr==localhost drop",
    "ip saddr<localhost drop",
    "ip saddr{localhost} drop",
)

GOOD = (
    "drop",
    "tcp dport 22 accept",
    "tcp dport { 22, 80-90 } counter reject with tcp reset",
    'tcp dport ssh log prefix "ssh: " level warn',
    "ip saddr 10.0.0.0/8 ip daddr != 10.1.0.3 udp dport 53 accept",
    "ip saddr . tcp dport { 10.0.0.1 . 22, 10.0.0.2 . 80 } accept",
    "ip saddr & 0.0.0.255 == 0.0.0.1 drop",
    "ip saddr 10.0.0.1-10.0.0.9 return",
    "ip6 daddr { fd00::1, fd00:2::/64 } drop",
    "ether saddr 52:54:00:00:00:01 drop",
    'iifname "gw102" accept',
    "icmpv6 type echo-request limit rate 5/second accept",
    "tcp flags & (syn|ack) == syn ct count over 10 reject",
    "tcp flags&(syn|ack)==syn accept",
    "ip saddr&255.0.0.0==10.0.0.0 drop",
    "ip6 saddr fd00:add::1 drop",
    "ip6 saddr fd00::1add drop",
    "tcp dport(80)accept",
    "fib saddr . iif oif missing drop",
    "fib daddr type local drop",
    "meta l4proto { tcp, udp } th dport 53 reject with icmpx type port-unreachable",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_could_leave_its_chain_or_is_not_one_rule_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_rule(text)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("text", GOOD)
def test_a_rule_of_nftables_is_taken(text: str) -> None:
    check_rule(text)


@pytest.mark.parametrize("text", GOOD)
def test_a_rule_stays_one_line_that_is_counted_before_its_verdict(text: str) -> None:
    lines = render([Filtered(SPEC, AccessList((Rule(Direction.IN, "x", text, 7),)))]).text.split("\n")
    (line,) = (line for line in lines if line.endswith('comment "7"'))
    assert line.count("counter packets 0 bytes 0") == line.count("counter") == 1
    before, _, after = line.partition("counter packets 0 bytes 0")
    for verdict in ("accept", "drop", "reject", "return"):
        if verdict in text.split():
            assert verdict in after.split()
            assert verdict not in before.split()


@pytest.mark.parametrize(
    ("source", "destination", "proto", "ports", "verdict", "text"),
    [
        ("", "", None, "", Verdict.DROP, "drop"),
        ("10.0.0.0/8", "", None, "", Verdict.ACCEPT, "ip saddr 10.0.0.0/8 accept"),
        ("10.0.0.9", "10.1.0.3/32", None, "", Verdict.DROP, "ip saddr 10.0.0.9 ip daddr 10.1.0.3 drop"),
        ("", "fd00::/64", Protocol.TCP, "22", Verdict.DROP, "ip6 daddr fd00::/64 tcp dport 22 drop"),
        ("", "", Protocol.UDP, "80-90", Verdict.ACCEPT, "udp dport 80-90 accept"),
        ("", "", None, "80,443", Verdict.ACCEPT, "meta l4proto { tcp, udp } th dport { 80, 443 } accept"),
        ("", "", Protocol.TCP, "", Verdict.REJECT, "meta l4proto tcp reject with tcp reset"),
        ("", "", Protocol.UDP, "053", Verdict.REJECT, "udp dport 53 reject with icmpx type admin-prohibited"),
        ("", "", Protocol.ICMP, "", Verdict.DROP, "meta l4proto { icmp, ipv6-icmp } drop"),
        ("", "", Protocol.GRE, "", Verdict.DROP, "meta l4proto gre drop"),
    ],
)
def test_options_make_a_rule(
    source: str, destination: str, proto: Protocol | None, ports: str, verdict: Verdict, text: str
) -> None:
    made = compose(source, destination, proto, ports, verdict)
    assert made == text
    check_rule(made)


def test_options_that_no_packet_fits_are_refused() -> None:
    with pytest.raises(Invalid, match="no packet is from IPv4 to IPv6"):
        compose("10.0.0.0/8", "fd00::/64", None, "", Verdict.DROP)
    with pytest.raises(Invalid, match="end before they begin"):
        compose("", "", None, "80-80", Verdict.DROP)


# What guests never reach


def route(device: str, prefix: str, is_direct: bool = True) -> Route:
    return Route(device, ip_network(prefix), is_direct)


ROUTES = (
    route("up", "0.0.0.0/0", False),
    route("up", "192.0.2.0/24"),
    route("clu", "10.0.0.0/24"),
    route("clu", "fd00:9::/64"),
    route("sto", "10.0.1.0/24"),
    route("gw101", "10.1.0.0/24"),
)


def test_devices_of_cluster_and_storage_are_hidden() -> None:
    assert hidden(ROUTES, ["10.0.0.1", "10.0.1.1"]) == Hidden(("clu", "sto"), ("10.0.0.0/23",))
    assert hidden(ROUTES, ["fd00:9::1", ""]) == Hidden(("clu",), ("fd00:9::/64",))


def test_a_device_that_also_leads_outside_stays_open_but_for_the_cluster_network() -> None:
    one = (route("up", "0.0.0.0/0", False), route("up", "10.0.0.0/24"))
    assert hidden(one, ["10.0.0.1", "10.0.0.1"]) == Hidden((), ("10.0.0.0/24",))


def test_where_nothing_is_known_nothing_is_hidden() -> None:
    assert hidden((), ["10.0.0.1"]) == Hidden()
