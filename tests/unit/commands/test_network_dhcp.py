"""Addresses of a managed network as operations see them: reserved, leased, and whose."""

from __future__ import annotations

from typing import Any

import pytest

from pvc.cluster import paths
from pvc.cluster.clients import Lease, Member, Reservation
from pvc.cluster.codec import dumps, loads
from pvc.cluster.store import Create, Put
from pvc.errors import Conflict
from tests.unit.commands.test_every_operation import PRINTER, SCANNER, announced, reserved, routed
from tests.unit.commands.world import Interrupted, World

WEB = "52:54:00:00:00:01"


def listed(world: World, **given: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = world.call("network.dhcp-list", network="101", **given)
    return found


def lease(world: World, address: str, mac: str, hostname: str = "") -> None:
    given = Lease(address, mac, hostname, until=1_763_840_000.0)
    world.store.commit(Create(paths.network_lease(101, address), dumps(given)))


def test_a_reservation_is_stored_in_the_one_way_in_which_it_is_written() -> None:
    world = routed()
    mac = "52:54:00:00:00:9A"
    row = world.call("network.dhcp-add", network="net101", address="10.1.0.9", hostname="Printer", mac=mac)
    assert (row["hostname"], row["mac"], row["state"]) == ("printer", mac.lower(), "reserved")
    stored = world.store.get(paths.network_reservation(101, mac.lower()))
    assert stored is not None
    assert loads(Reservation, stored.data) == Reservation(mac.lower(), "10.1.0.9", "printer")
    world.call("network.dhcp-remove", network="101", mac=mac)
    assert listed(world) == []


def test_an_address_of_ipv6_where_dhcpv6_gives_them() -> None:
    world = announced()
    world.call("network.modify", network="101", dhcp6=True)
    given: dict[str, Any] = {**SCANNER, "address": "FD00:1:0::8"}
    assert world.call("network.dhcp-add", **given)["address"] == "fd00:1::8"


def test_the_list_tells_what_is_reserved_what_is_leased_and_whose_it_is() -> None:
    world = reserved()
    uuid = world.store.children(paths.network_vms(101))[0]
    world.store.commit(Put(paths.network_vm(101, uuid), dumps(Member("web1", (WEB,)))))
    lease(world, "10.1.0.130", WEB, "web1")
    lease(world, "10.1.0.20", "52:54:00:00:00:77")
    world.call("network.dhcp-add", **{**SCANNER, "address": "10.1.0.20"})
    rows = {row["address"]: (row["hostname"], row["vm"], row["state"]) for row in listed(world)}
    assert [*rows] == ["10.1.0.9", "10.1.0.20", "10.1.0.130"], "in the order of numbers"
    assert rows == {
        "10.1.0.9": ("printer", "", "reserved"),
        "10.1.0.20": ("scanner", "", "reserved, leased"),
        "10.1.0.130": ("web1", "web1", "leased"),
    }
    assert [row["address"] for row in listed(world, static=True)] == ["10.1.0.9", "10.1.0.20"]
    assert listed(world)[1]["mac"] == "52:54:00:00:00:77", "who has it now"


def test_an_address_that_another_has_now_is_said_to_be_so() -> None:
    world = routed()
    lease(world, "10.1.0.8", WEB)
    assert f"leased to {WEB} now" in str(world.plan("network.dhcp-add", **SCANNER))


def test_of_two_that_reserve_at_the_same_moment_one_sees_the_other() -> None:
    world = reserved()
    other = {**SCANNER, "mac": "52:54:00:00:00:97", "hostname": "fax"}

    def meanwhile() -> None:
        world.call("network.dhcp-add", **other)

    interrupted = Interrupted(world.store, paths.network_reservations(101), meanwhile)
    with pytest.raises(Conflict, match=r"10.1.0.8 is reserved for 52:54:00:00:00:97 already"):
        world.call("network.dhcp-add", reader=interrupted, **SCANNER)


def test_a_network_does_not_move_away_from_what_is_reserved() -> None:
    world = reserved()
    moved: dict[str, Any] = {"ipnet": "10.9.0.0/24", "gateway": "10.9.0.1", "dhcp": True}
    with pytest.raises(Conflict, match=f"10.1.0.9 is reserved for {PRINTER['mac']}"):
        world.call("network.modify", network="101", **moved)


def test_servers_of_the_time_are_set_shown_and_cleared() -> None:
    world = routed()
    world.call("network.modify", network="101", ntp_server=["192.0.2.123", "2001:DB8::123"])
    assert world.call("network.info", network="101")["ntp_servers"] == ["192.0.2.123", "2001:db8::123"]
    world.call("network.modify", network="101", mtu=1400)
    assert len(world.call("network.info", network="101")["ntp_servers"]) == 2
    world.call("network.modify", network="101", ntp_server=[""])
    assert world.call("network.info", network="101")["ntp_servers"] == []
