"""Who asks: only the one VM to which an address was given, and whose MAC address answers for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pvc.cluster.clients import Clients, Lease, Member, Reservation
from pvc.cluster.guests import Guests, Nic, Unknown
from pvc.cluster.network import IPv4, Kind, NetworkSpec

WEB, DB = "6b29fc40-ca47-1067-b31d-00dd010662da", "7b29fc40-ca47-1067-b31d-00dd010662da"
WEB_MAC, WEB_MAC_2, DB_MAC, STRANGE = (f"02:00:00:00:00:0{number}" for number in (1, 2, 3, 9))

SHOP = Clients(
    NetworkSpec(101, "shop", Kind.MANAGED, domain="shop.example", ipv4=IPv4("10.1.0.0/24", "10.1.0.1")),
    members={WEB: Member("Web_1", (WEB_MAC,)), DB: Member("db1", (DB_MAC,))},
    reservations={DB_MAC: Reservation(DB_MAC, "10.1.0.20", "database")},
    leases={"10.1.0.10": Lease("10.1.0.10", WEB_MAC)},
)
BACK = Clients(
    NetworkSpec(102, "back", Kind.MANAGED, ipv4=IPv4("10.2.0.0/16", "10.2.0.1")),
    members={WEB: Member("Web_1", (WEB_MAC_2.upper(),))},
    leases={"10.2.7.7": Lease("10.2.7.7", WEB_MAC_2.upper())},
)
BARE = Clients(NetworkSpec(103, "bare", Kind.MANAGED), members={DB: Member("db1", (STRANGE,))})
NETWORKS = {101: SHOP, 102: BACK, 103: BARE}


def asked(address: str, mac: str, networks: dict[int, Clients] | None = None) -> tuple[str, str, str]:
    found = Guests(networks or NETWORKS).identify(address, lambda vni, asked: mac)
    return found.uuid, found.name, found.hostname


def test_known_by_its_lease() -> None:
    assert asked("10.1.0.10", WEB_MAC) == (WEB, "Web_1", "web-1.shop.example")


def test_known_by_its_reservation() -> None:
    assert asked("10.1.0.20", DB_MAC) == (DB, "db1", "database.shop.example")


def test_letters_of_a_mac_address_are_of_any_case() -> None:
    assert asked("10.2.7.7", WEB_MAC_2) == (WEB, "Web_1", "web-1")


def test_the_gateway_of_its_own_network_is_asked() -> None:
    seen: list[tuple[int, str]] = []

    def mac_at(vni: int, address: str) -> str:
        seen.append((vni, address))
        return WEB_MAC_2

    Guests(NETWORKS).identify("10.2.7.7", mac_at)
    assert seen == [(102, "10.2.7.7")]


def test_all_its_interfaces_are_known_the_asking_one_first() -> None:
    nics = Guests(NETWORKS).identify("10.2.7.7", lambda *_: WEB_MAC_2).nics
    assert nics == (Nic(BACK.spec, WEB_MAC_2, "10.2.7.7"), Nic(SHOP.spec, WEB_MAC, "10.1.0.10"))


@pytest.mark.parametrize(
    ("address", "mac", "says"),
    [
        ("192.0.2.1", WEB_MAC, "in no managed network"),
        ("10.3.0.1", WEB_MAC, "in no managed network"),
        ("fd00::1", WEB_MAC, "no IPv4 address"),
        ("", WEB_MAC, "no IPv4 address"),
        ("10.1.0.10", "", "knows nobody with it"),
        ("10.1.0.10", DB_MAC, f"{DB_MAC} uses it in network 101, to whom it was not given"),
        ("10.1.0.10", STRANGE, "to whom it was not given"),
        ("10.1.0.20", WEB_MAC, "to whom it was not given"),
        ("10.1.0.99", WEB_MAC, "to whom it was not given"),
        ("10.2.7.7", WEB_MAC, "to whom it was not given"),
    ],
)
def test_refused(address: str, mac: str, says: str) -> None:
    with pytest.raises(Unknown, match=says):
        asked(address, mac)


def test_a_lease_of_what_is_no_vm() -> None:
    """As of a bridge inside of a guest, or of somebody else on the wire."""
    leases = {"10.1.0.30": Lease("10.1.0.30", STRANGE)}
    with pytest.raises(Unknown, match="is of no VM there"):
        asked("10.1.0.30", STRANGE, {101: replace(SHOP, leases=leases)})


def test_a_vm_of_another_network_is_none_of_this_one() -> None:
    with pytest.raises(Unknown, match="is of no VM there"):
        asked(
            "10.1.0.30",
            WEB_MAC_2,
            {**NETWORKS, 101: replace(SHOP, leases={"10.1.0.30": Lease("10.1.0.30", WEB_MAC_2)})},
        )


def test_two_vms_with_one_mac_address_are_neither() -> None:
    members = {WEB: Member("a", (WEB_MAC,)), DB: Member("b", (WEB_MAC,))}
    with pytest.raises(Unknown, match="more than one VM"):
        asked("10.1.0.10", WEB_MAC, {101: replace(SHOP, members=members)})


def test_an_address_that_went_from_one_vm_to_another() -> None:
    """Neither the old one, which may still use it, nor the new one where the gateway still knows the old."""
    before = Guests(NETWORKS)
    assert before.identify("10.1.0.10", lambda *_: WEB_MAC).uuid == WEB
    moved = replace(SHOP, leases={"10.1.0.10": Lease("10.1.0.10", DB_MAC)})
    after = Guests({**NETWORKS, 101: moved}, before)
    assert after.identify("10.1.0.10", lambda *_: DB_MAC).uuid == DB
    with pytest.raises(Unknown):
        after.identify("10.1.0.10", lambda *_: WEB_MAC)
    with pytest.raises(Unknown):
        before.identify("10.1.0.10", lambda *_: DB_MAC)


def test_a_network_that_did_not_change_is_not_looked_at_again() -> None:
    before = Guests(NETWORKS)
    before.identify("10.1.0.10", lambda *_: WEB_MAC)
    before.identify("10.2.7.7", lambda *_: WEB_MAC_2)
    after = Guests({101: SHOP, 102: replace(BACK, leases={})}, before)
    assert after._indexes == {101: before._indexes[101]}


@pytest.mark.parametrize(
    ("address", "is_known"),
    [("10.1.0.10", True), ("10.1.0.20", True), ("10.1.0.99", False), ("192.0.2.1", False), ("x", False)],
)
def test_addresses_that_were_given_to_somebody(address: str, is_known: bool) -> None:
    assert Guests(NETWORKS).has(address) is is_known
