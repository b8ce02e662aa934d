"""Names and zones: who is called what, and what no guest can talk itself into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_network

import pytest

from pvc.cluster import zones as made
from pvc.cluster.clients import Clients, Lease, Member, Reservation
from pvc.cluster.network import DHCPRange, IPv4, IPv6, Kind, NetworkSpec
from pvc.cluster.node import NodeSpec
from pvc.cluster.zones import (
    Record,
    Server,
    Zone,
    cuts_in,
    hosts,
    joined,
    later,
    of_cluster,
    reverse_zones,
)

A, B, C, D = (f"52:54:00:00:00:0{number}" for number in range(1, 5))
SERVER = Server("pvc.example", ("10.0.0.250",))
ALONE = Server("", ("10.0.0.1", "fd00::1"))
SPEC = NetworkSpec(
    101,
    "shop",
    Kind.MANAGED,
    domain="shop.example",
    ipv4=IPv4("10.1.0.0/24", "10.1.0.1", DHCPRange("10.1.0.100", "10.1.0.200")),
    ipv6=IPv6("fd00:1::/64", "fd00:1::1", dhcp=True),
)
MEMBERS = {"u1": Member("Web1", (A,)), "u2": Member("db", (B,)), "u3": Member("off", (C,))}


def shop(
    *leases: Lease, members: dict[str, Member] = MEMBERS, reservations: tuple[Reservation, ...] = ()
) -> Clients:
    return Clients(
        SPEC, members, {one.mac: one for one in reservations}, {lease.address: lease for lease in leases}
    )


def of_network(clients: Clients, server: Server, cuts: Sequence[str] = ()) -> dict[str, Zone]:
    return made.of_network(clients.spec, hosts(clients), server, cuts)


def lines(zone: Zone) -> list[str]:
    return sorted(f"{one.name} {one.type} {one.content}" for one in zone.records)


def test_a_vm_is_called_by_its_name_forward_and_reverse() -> None:
    clients = shop(
        Lease("10.1.0.100", A, "whatever"), Lease("fd00:1::100", A, "web1"), Lease("10.1.0.101", B)
    )
    zones = of_network(clients, SERVER)
    assert list(zones) == ["shop.example", "0.1.10.in-addr.arpa", f"{'0.' * 8}1.0.0.0.0.0.d.f.ip6.arpa"]
    forward, four, six = zones.values()
    assert lines(forward) == [
        "db.shop.example A 10.1.0.101",
        "gateway.shop.example A 10.1.0.1",
        "gateway.shop.example AAAA fd00:1::1",
        "shop.example NS ns.pvc.example",
        "web1.shop.example A 10.1.0.100",
        "web1.shop.example AAAA fd00:1::100",
    ]
    assert lines(four) == [
        "0.1.10.in-addr.arpa NS ns.pvc.example",
        "1.0.1.10.in-addr.arpa PTR gateway.shop.example",
        "100.0.1.10.in-addr.arpa PTR web1.shop.example",
        "101.0.1.10.in-addr.arpa PTR db.shop.example",
    ]
    assert [one.content for one in six.records if one.name.startswith("0.0.1.0.")] == ["web1.shop.example"]


def test_without_a_domain_there_are_no_names() -> None:
    assert of_network(replace(shop(), spec=replace(SPEC, domain="")), SERVER) == {}
    assert of_cluster({"n1": NodeSpec("n1", "10.0.0.1", "10.0.0.1")}, {}, ALONE) == {}


def test_without_a_domain_of_the_cluster_each_domain_has_its_name_server() -> None:
    zones = of_network(shop(), ALONE)
    assert {zone.server for zone in zones.values()} == {"ns.shop.example"}
    assert {"ns.shop.example A 10.0.0.1", "ns.shop.example AAAA fd00::1"} <= {*lines(zones["shop.example"])}


def test_a_reservation_names_who_has_no_lease_and_gives_a_second_name() -> None:
    clients = shop(
        Lease("10.1.0.150", B),
        reservations=(
            Reservation(A, "10.1.0.10", "www"),
            Reservation(B, "10.1.0.11"),
            Reservation(D, "10.1.0.12", "printer"),
        ),
    )
    known = hosts(clients)
    assert known.addresses == {
        "web1": ("10.1.0.10",),
        "www": ("10.1.0.10",),
        "db": ("10.1.0.150",),
        "printer": ("10.1.0.12",),
    }
    assert known.names["10.1.0.10"] == "web1", "and one name is enough for a reverse zone"


@pytest.mark.parametrize(
    "said",
    [
        *(
            "web1",
            "WEB1",
            "off",
            "www",
            "gateway",
            "ns",
            "a.web1",
            "db",
            "-x",
            "x-",
            "a_b",
            "*",
            "",
            "a..b",
        ),
        *("x" * 64, "é", "x\n", "x y", "shop.example.", "@", "\0"),
    ],
)
def test_a_hostile_guest_gets_no_name(said: str) -> None:
    honest = (Lease("10.1.0.100", A),)
    reservations = (Reservation(C, "10.1.0.10", "www"),)
    known = hosts(shop(*honest, Lease("10.1.0.166", D, said), reservations=reservations))
    assert known == hosts(shop(*honest, reservations=reservations))


def test_a_guest_that_says_a_name_of_its_own_has_it_unless_two_say_the_same() -> None:
    one, other = Lease("10.1.0.110", D, "Nested"), Lease("10.1.0.111", "52:54:00:00:00:05", "nested")
    assert hosts(shop(one)).addresses == {"nested": ("10.1.0.110",)}
    assert hosts(shop(one, other)).addresses == {}


def test_a_client_is_not_taken_for_a_mac_address() -> None:
    assert hosts(shop(Lease("fd00:1::66", "", "", client_id=A))).addresses == {}


@pytest.mark.parametrize("said", ["", "db", "other", "web1.shop.example"])
def test_a_guest_that_puts_the_mac_address_of_a_vm_into_its_duid_gets_nothing_of_it(said: str) -> None:
    """DHCP gives a name by where the packet came from: here that was not the VM's interface."""
    known = hosts(shop(Lease("10.1.0.100", A), Lease("fd00:1::66", A, said, client_id="00:03:00:01:" + A)))
    assert known.addresses["web1"] == ("10.1.0.100",)
    assert known.names.get("fd00:1::66") != "web1"


@pytest.mark.parametrize("address", ["10.2.0.5", "fd00:2::5", "169.254.169.254", "nonsense", ""])
def test_an_address_outside_of_the_network_is_nobody_s(address: str) -> None:
    assert hosts(shop(Lease(address, A))).addresses == {}


def test_vms_that_would_be_called_alike_are_not_and_it_is_told() -> None:
    members = {"u1": Member("web1", (A,)), "u2": Member("WEB1", (B,)), "u3": Member("Gateway", (C,))}
    known = hosts(shop(*(Lease(f"10.1.0.10{n}", mac) for n, mac in enumerate((A, B, C))), members=members))
    assert (known.addresses, known.doubtful) == ({}, ("gateway", "web1"))


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("10.0.0.0/8", ["10.in-addr.arpa"]),
        ("10.1.0.0/16", ["1.10.in-addr.arpa"]),
        ("10.1.2.0/24", ["2.1.10.in-addr.arpa"]),
        ("10.1.4.0/22", [f"{octet}.1.10.in-addr.arpa" for octet in (4, 5, 6, 7)]),
        ("10.2.0.0/15", ["2.10.in-addr.arpa", "3.10.in-addr.arpa"]),
        ("10.1.2.128/25", ["2.1.10.in-addr.arpa"]),
        ("10.1.2.4/30", ["2.1.10.in-addr.arpa"]),
        ("fd00:1::/64", [f"{'0.' * 8}1.0.0.0.0.0.d.f.ip6.arpa"]),
        ("2001:db8::/32", ["8.b.d.0.1.0.0.2.ip6.arpa"]),
    ],
)
def test_reverse_zones(prefix: str, expected: list[str]) -> None:
    assert list(reverse_zones(ip_network(prefix))) == expected


def test_networks_smaller_than_an_octet_share_its_zone() -> None:
    both = []
    for number, gateway in ((0, 1), (128, 129)):
        ipv4 = IPv4(f"10.1.0.{number}/25", f"10.1.0.{gateway}")
        spec = NetworkSpec(number + 1, "x", Kind.MANAGED, domain=f"d{number}.example", ipv4=ipv4)
        both.append(of_network(Clients(spec), SERVER))
    zones = joined(both)
    assert lines(zones["0.1.10.in-addr.arpa"]) == [
        "0.1.10.in-addr.arpa NS ns.pvc.example",
        "1.0.1.10.in-addr.arpa PTR gateway.d0.example",
        "129.0.1.10.in-addr.arpa PTR gateway.d128.example",
    ]


def test_a_network_of_several_octets_tells_each_address_in_its_own_zone() -> None:
    spec = replace(SPEC, ipv4=IPv4("10.1.4.0/22", "10.1.4.1"), ipv6=IPv6())
    zones = of_network(replace(shop(Lease("10.1.7.9", A)), spec=spec), SERVER)
    assert "9.7.1.10.in-addr.arpa PTR web1.shop.example" in lines(zones["7.1.10.in-addr.arpa"])
    assert lines(zones["6.1.10.in-addr.arpa"]) == ["6.1.10.in-addr.arpa NS ns.pvc.example"]


def test_a_zone_shows_the_way_to_those_below_it_and_says_nothing_in_their_place() -> None:
    members = {"u1": Member("web1", (A,)), "u2": Member("sub", (B,)), "u3": Member("subway", (C,))}
    leases = (Lease(f"10.1.0.10{n}", mac) for n, mac in enumerate((A, B, C)))
    zones = of_network(shop(*leases, members=members), ALONE, ["sub.shop.example"])
    told = lines(zones["shop.example"])
    assert [line for line in told if "sub" in line] == [
        "ns.sub.shop.example A 10.0.0.1",
        "ns.sub.shop.example AAAA fd00::1",
        "sub.shop.example NS ns.sub.shop.example",
        "subway.shop.example A 10.1.0.102",
    ]
    assert not [line for line in lines(zones["0.1.10.in-addr.arpa"]) if line.endswith("sub.shop.example")]


def test_only_the_next_zone_below_is_shown_the_way_to() -> None:
    found = cuts_in({"example", "shop.example", "a.b.shop.example", "other"})
    assert found == {
        "example": ("shop.example",),
        "shop.example": ("a.b.shop.example",),
        "a.b.shop.example": (),
        "other": (),
    }


def test_nodes_and_floating_addresses_have_names() -> None:
    nodes = {
        name: NodeSpec(name, f"10.0.0.{n}", "10.9.0.1") for n, name in enumerate(("n1", "ns", "cluster"), 1)
    }
    zones = of_cluster(
        nodes, {"cluster": "10.0.0.250", "upstream": "192.0.2.9"}, SERVER, ["shop.pvc.example"]
    )
    assert lines(zones["pvc.example"]) == [
        "cluster.pvc.example A 10.0.0.250",
        "n1.pvc.example A 10.0.0.1",
        "ns.pvc.example A 10.0.0.250",
        "pvc.example NS ns.pvc.example",
        "shop.pvc.example NS ns.pvc.example",
        "upstream.pvc.example A 192.0.2.9",
    ]


def test_names_that_are_too_long_are_left_out() -> None:
    long = ".".join(["a" * 60] * 4)
    clients = shop(Lease("10.1.0.100", A))
    zones = of_network(replace(clients, spec=replace(SPEC, domain=long)), SERVER)
    assert f"web1.{long} A 10.1.0.100" in lines(zones[long])
    longer = replace(clients, members={"u1": Member("b" * 20, (A,))}, spec=replace(SPEC, domain=long))
    told = of_network(longer, SERVER)
    assert not any("bbb" in line for zone in told.values() for line in lines(zone))


@pytest.mark.parametrize(
    ("serial", "now", "expected"),
    [
        (0, 1_700_000_000, 1_700_000_000),
        (1_700_000_000, 1_700_000_100.7, 1_700_000_100),
        (1_700_000_000, 1_700_000_000, 1_700_000_001),
        (1_700_000_000, 5, 1_700_000_001),
        (5, 4_200_000_000, 5 + 2**31 - 1),
        (2**32 - 1, 5, 0),
    ],
)
def test_a_serial_only_grows(serial: int, now: float, expected: int) -> None:
    assert later(serial, now) == expected


def test_a_digest_is_of_the_content_and_not_of_the_serial() -> None:
    zone = Zone("x", "ns.x", frozenset({Record("a.x", "A", "10.0.0.1")}))
    assert replace(zone, serial=7).digest == zone.digest
    assert replace(zone, records=frozenset()).digest != zone.digest
    assert replace(zone, server="ns.y").digest != zone.digest
    assert replace(zone, serial=7).soa == "ns.x hostmaster.x 7 900 60 604800 60"
