"""What a dnsmasq is told, which of it needs a new start, and what its leases are for the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pvc.cluster.clients import Clients, Lease, Member, Reservation, hostnames, label
from pvc.cluster.network import DHCPRange, IPv4, IPv6, Kind, NetworkSpec
from pvc.node.drivers.networks import GatewayDevice, Place, Settings
from pvc.node.plan_dhcp import (
    SLACK_S,
    Differences,
    differences,
    in_place,
    is_lease_of,
    later,
    lease_file,
    parse,
    promised,
    reverse_zones,
    settings,
)

GOLDEN = Path(__file__).parent / "golden"
WEB, DB, OLD = "52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:03"
AT = "/run/pvc/dnsmasq/101"
PLACE = Place(f"{AT}/hosts", f"{AT}/names", f"{AT}/leases", "/usr/lib/pvc/dhcp-changed")
DEVICE = GatewayDevice("gw101", 17, 8950)
V4 = IPv4("10.1.0.0/24", "10.1.0.1", DHCPRange("10.1.0.100", "10.1.0.199"))
V6 = IPv6("fd00:1::/64", "fd00:1::1")
SHOP = NetworkSpec(101, "shop", Kind.MANAGED, domain="shop.example", ipv4=V4)
BOTH = replace(
    SHOP,
    mtu=1400,
    dns_servers=("192.0.2.53", "2001:db8::53"),
    ntp_servers=("192.0.2.123", "2001:db8::123"),
    ipv6=replace(V6, dhcp=True),
)
SLAAC = NetworkSpec(101, "six", Kind.MANAGED, ipv6=V6)
NO_DHCP = replace(SHOP, ipv4=replace(V4, dhcp=None))
CLIENTS = Clients(
    BOTH,
    {"u1": Member("web1", (WEB,)), "u2": Member("DB", (DB,))},
    {OLD: Reservation(OLD, "10.1.0.9", "printer"), DB: Reservation(DB, "fd00:1::9", "db")},
)


def told(clients: Clients, device: GatewayDevice = DEVICE) -> Settings:
    return settings(clients, device, PLACE)


@pytest.mark.parametrize(
    ("name", "spec"), [("ipv4", SHOP), ("both", BOTH), ("slaac", SLAAC), ("names-only", NO_DHCP)]
)
def test_rendered_as_in_the_golden_file(name: str, spec: NetworkSpec) -> None:
    assert told(Clients(spec)).config == (GOLDEN / f"dnsmasq-{name}.conf").read_text()


def test_a_host_is_a_file_with_its_address_and_its_name() -> None:
    made = told(CLIENTS)
    assert made.hosts == {
        "525400000001": f"{WEB},web1\n",
        "525400000002": f"{DB},[fd00:1::9],db\n",
        "525400000003": f"{OLD},10.1.0.9,printer\n",
    }
    assert made.names == {
        "525400000002": "fd00:1::9 db.shop.example db\n",
        "525400000003": "10.1.0.9 printer.shop.example printer\n",
    }


NEEDS_A_NEW_START: Mapping[str, Clients] = {
    "mtu": replace(CLIENTS, spec=replace(BOTH, mtu=1300)),
    "domain": replace(CLIENTS, spec=replace(BOTH, domain="other.example")),
    "dns_servers": replace(CLIENTS, spec=replace(BOTH, dns_servers=())),
    "ntp_servers": replace(CLIENTS, spec=replace(BOTH, ntp_servers=())),
    "range": replace(
        CLIENTS, spec=replace(BOTH, ipv4=replace(V4, dhcp=DHCPRange("10.1.0.100", "10.1.0.150")))
    ),
    "dhcp6": replace(CLIENTS, spec=replace(BOTH, ipv6=V6)),
}
NEEDS_NONE: Mapping[str, Clients] = {
    "description": replace(CLIENTS, spec=replace(BOTH, description="store")),
    "leases": replace(CLIENTS, leases={"10.1.0.100": Lease("10.1.0.100", WEB)}),
    "members": replace(CLIENTS, members={}),
    "reservations": replace(CLIENTS, reservations={}),
}


@pytest.mark.parametrize("field", NEEDS_A_NEW_START)
def test_what_needs_a_new_start(field: str) -> None:
    assert told(NEEDS_A_NEW_START[field]).config != told(CLIENTS).config


@pytest.mark.parametrize("field", NEEDS_NONE)
def test_what_needs_none(field: str) -> None:
    assert told(NEEDS_NONE[field]).config == told(CLIENTS).config


def test_another_device_needs_a_new_start_even_by_the_same_name() -> None:
    assert told(CLIENTS, replace(DEVICE, index=18)).config != told(CLIENTS).config


@pytest.mark.parametrize(
    ("of_network", "of_device", "option"),
    [(0, 8950, ""), (0, 1450, "1450"), (8000, 8950, "8000"), (1400, 8950, "1400"), (9000, 1450, "1450")],
)
def test_the_mtu_is_told_where_guests_would_take_another_for_granted(
    of_network: int, of_device: int, option: str
) -> None:
    config = told(Clients(replace(SHOP, mtu=of_network)), replace(DEVICE, mtu=of_device)).config
    said = [line for line in config.splitlines() if "option:mtu" in line]
    assert said == ([f"dhcp-option=option:mtu,{option}"] if option else [])


@pytest.mark.parametrize(
    ("network", "zones"),
    [
        ("10.0.0.0/8", ["10.in-addr.arpa"]),
        ("10.1.0.0/24", ["0.1.10.in-addr.arpa"]),
        ("10.1.2.0/23", ["2.1.10.in-addr.arpa", "3.1.10.in-addr.arpa"]),
        ("10.1.0.8/30", [f"{last}.0.1.10.in-addr.arpa" for last in (8, 9, 10, 11)]),
        ("fd00:1::/64", ["0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa"]),
        ("", []),
    ],
)
def test_reverse_zones_cover_the_network_and_nothing_else(network: str, zones: list[str]) -> None:
    assert reverse_zones(network) == zones


# What changes while it runs


@pytest.mark.parametrize(
    ("there", "wanted", "kept", "must_look"),
    [
        ({}, {"a": f"{WEB},web\n"}, {"a": f"{WEB},web\n"}, False),
        ({"a": f"{WEB},web\n"}, {"a": f"{WEB},web\n"}, {"a": f"{WEB},web\n"}, False),
        ({"a": f"{WEB},web\n"}, {"a": f"{WEB},shop\n"}, {"a": f"{WEB},shop\n"}, True),
        ({"a": f"{WEB},web\n"}, {}, {"a": f"{WEB},web\n"}, False),
        ({"a": f"{WEB},10.1.0.9\n"}, {}, {}, True),
        ({"a": f"{WEB},[fd00:1::9],web\n"}, {}, {}, True),
        ({"a": f"{WEB},web\n", "b": f"{DB},10.1.0.9,db\n"}, {}, {}, True),
    ],
)
def test_a_running_one_is_told_to_look_again_when_something_changed_or_an_address_is_free(
    there: dict[str, str], wanted: dict[str, str], kept: dict[str, str], must_look: bool
) -> None:
    assert in_place(Settings("", there), Settings("", wanted)) == (Settings("", kept), must_look)


def test_a_name_of_a_reservation_that_is_gone_is_looked_at_again() -> None:
    assert in_place(Settings("", {}, {"a": "fd00::9 db\n"}), Settings("")) == (Settings(""), True)


# Names


@pytest.mark.parametrize("vm", ["web_1", "web.example.com", "a-", "gateway", "ns"])
def test_a_vm_whose_name_cannot_be_one_of_the_dns_has_none(vm: str) -> None:
    assert hostnames(Clients(SHOP, {"u1": Member(vm, (WEB,))})) == {}


@pytest.mark.parametrize(
    ("vm", "name"),
    [("web1", "web1"), ("Web_1", "web-1"), ("web.example.com", "web-example-com"), ("a-", "a")],
)
def test_what_a_vm_can_call_itself(vm: str, name: str) -> None:
    assert label(vm) == name
    assert len(label("x" * 62 + "_y")) <= 63


def test_of_two_vms_that_would_have_the_same_name_none_has_it() -> None:
    members = {"u1": Member("Web-1", (DB,)), "u2": Member("web-1", (WEB,)), "u3": Member("shop", (OLD,))}
    assert hostnames(Clients(SHOP, members)) == {OLD: "shop"}


def test_a_reservation_takes_the_name_of_no_other_vm() -> None:
    members = {"u1": Member("web", (WEB,))}
    assert hostnames(Clients(SHOP, members, {DB: Reservation(DB, "10.1.0.9", "web")})) == {WEB: "web"}
    assert hostnames(Clients(SHOP, members, {WEB: Reservation(WEB, "10.1.0.9", "web")})) == {WEB: "web"}


def test_of_several_interfaces_one_has_the_name_of_the_vm() -> None:
    members = {"u1": Member("web", (WEB, DB))}
    assert hostnames(Clients(SHOP, members)) == {WEB: "web"}
    mgmt = Reservation(WEB, "10.1.0.9", "web-mgmt")
    assert hostnames(Clients(SHOP, members, {WEB: mgmt})) == {WEB: "web-mgmt", DB: "web"}


# Leases

FILE = f"""1763840000 {WEB} 10.1.0.100 web1 01:{WEB}
1763840100 {DB} 10.1.0.101 * *
duid 00:03:00:01:02:00:5e:00:01:01
1763840200 7340033 fd00:1::1:2 web1 00:01:00:01:30:00:00:00:{WEB}
1763840300 T5 fd00:1::1:3 web1 00:02:00:00:ab:11:01
1763840300 6 fd00:1::1:4 * 00:02:00:00:ab:11:02
"""
LEASES = {
    "10.1.0.100": Lease("10.1.0.100", WEB, "web1", f"01:{WEB}", until=1763840000.0),
    "10.1.0.101": Lease("10.1.0.101", DB, until=1763840100.0),
    "fd00:1::1:2": Lease(
        "fd00:1::1:2", WEB, "web1", f"00:01:00:01:30:00:00:00:{WEB}", "7340033", 1763840200.0
    ),
    "fd00:1::1:3": Lease("fd00:1::1:3", WEB, "web1", "00:02:00:00:ab:11:01", "T5", 1763840300.0),
    "fd00:1::1:4": Lease("fd00:1::1:4", "", "", "00:02:00:00:ab:11:02", "6", 1763840300.0),
}


def test_leases_are_read_and_written_as_dnsmasq_does() -> None:
    assert parse(FILE, {"web1": WEB}) == LEASES
    assert lease_file(LEASES) == FILE


def test_a_duid_with_the_mac_address_of_another_is_not_believed() -> None:
    text = f"1763840200 7 fd00:1::1:2 * 00:03:00:01:{WEB}\n"
    assert parse(text, {"web1": WEB})["fd00:1::1:2"].mac == ""
    assert parse(text, {"db": DB})["fd00:1::1:2"].mac == WEB


@pytest.mark.parametrize("text", ["", "duid\n", "17638400", "x y z\n1 2 3 4\n", "a b 10.1.0.1 c d\n"])
def test_what_is_no_lease_is_passed_over(text: str) -> None:
    assert parse(text, {}) == {}


def test_a_dnsmasq_that_begins_from_the_store_has_nothing_to_tell_it() -> None:
    assert not differences(LEASES, parse(lease_file(promised(LEASES)), {"web1": WEB}))


LEASE = Lease("10.1.0.100", WEB, "web1", until=1000.0)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (replace(LEASE, until=1000.0 + SLACK_S), Differences()),
        (
            replace(LEASE, until=1002.0 + SLACK_S),
            Differences(changed=(replace(LEASE, until=1002.0 + SLACK_S),)),
        ),
        (replace(LEASE, hostname=""), Differences(changed=(replace(LEASE, hostname=""),))),
        (replace(LEASE, mac=DB), Differences(changed=(replace(LEASE, mac=DB),))),
        (None, Differences(gone=("10.1.0.100",))),
    ],
)
def test_the_store_learns_what_is_worth_it(found: Lease | None, wanted: Differences) -> None:
    assert differences({LEASE.address: LEASE}, {found.address: found} if found else {}) == wanted


def test_the_store_learns_a_new_lease() -> None:
    assert differences({}, {LEASE.address: LEASE}) == Differences(made=(LEASE,))


def test_of_two_memories_the_later_is_kept() -> None:
    other = Lease("10.1.0.101", DB, until=5.0)
    renewed = replace(LEASE, until=2000.0)
    assert later({LEASE.address: LEASE}, {LEASE.address: renewed, other.address: other}) == {
        LEASE.address: renewed,
        other.address: other,
    }
    assert later({LEASE.address: renewed}, {LEASE.address: LEASE}) == {LEASE.address: renewed}


def test_a_lease_belongs_to_the_network_as_it_is_now() -> None:
    assert is_lease_of(BOTH, "10.1.0.100")
    assert is_lease_of(BOTH, "fd00:1::5")
    assert not is_lease_of(BOTH, "10.2.0.100")
    assert not is_lease_of(SHOP, "fd00:1::5")
