"""DHCP and DNS on three real nodes: guests on different nodes get their addresses at boot, and keep them.

Real guests, whose busybox asks a real dnsmasq on the primary through VXLAN.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import pytest

from tests.lab.labs import RunningLab
from tests.lab.vms import TICK, Cluster
from tests.support import eventually

LEASE = re.compile(r"^lease (bound|renew) ([0-9.]+)/24", re.MULTILINE)
PONG = re.compile(r"^pong (\d+)", re.MULTILINE)
NETWORKS = {101: ("shop", "172.22.1"), 102: ("back", "172.22.2")}
GUESTS = {
    "web": ("n2", "shop", "pvc.dhcp pvc.renew=1 pvc.name=db pvc.ping=db"),
    "db": ("n3", "shop", "pvc.dhcp pvc.renew=1 pvc.ping=web.shop.example"),
    "other": ("n2", "back", "pvc.dhcp pvc.ping=web.shop.example"),
}
"""Node, network, and what it does; web calls itself db, and nobody believes it."""
EMPTY = "n1"
"""The node without guests."""


class Site(Cluster):
    def said(self, name: str) -> str:
        uuid, node = (self.info(name)[key] for key in ("uuid", "node"))
        return self.run(node, "cat", f"/var/log/pvc/console/{uuid}.log", check=False).stdout.replace("\r", "")

    def told(self, name: str) -> list[tuple[str, str]]:
        """What the guest said of its leases, oldest first."""
        return LEASE.findall(self.said(name))

    def bound(self, name: str) -> str:
        """Wait for its first lease; the address."""
        found = eventually(lambda: self.told(name), within=120, every=0.5)
        return str(found[0][1])

    def renewals(self, name: str) -> list[float]:
        """When it got or renewed its lease, in seconds of its own uptime."""
        found, uptime = [], 0.0
        for line in self.said(name).splitlines():
            if tick := TICK.match(line):
                uptime = float(tick[2])
            elif LEASE.match(line):
                found.append(uptime)
        return found

    def silence(self, name: str, after: int) -> float:
        """The longest time between two renewals, after so many."""
        times = self.renewals(name)[after - 1 :]
        return max(later - earlier for earlier, later in pairwise(times))

    def renews(self, name: str) -> list[str]:
        """Wait until it has renewed three times more; the addresses that it had so far."""
        before = len(self.told(name))
        eventually(lambda: len(self.told(name)) >= before + 3, within=60, every=0.5)
        return [address for _, address in self.told(name)]

    def hears(self, name: str) -> None:
        """Wait for five answers more to its pings."""
        before = len(PONG.findall(self.said(name)))
        eventually(lambda: len(PONG.findall(self.said(name))) >= before + 5, within=60, every=0.5)

    def leases(self, network: str) -> dict[str, dict[str, Any]]:
        return {row["vm"]: row for row in self.json("network", "dhcp", "list", network)}

    def lease(self, name: str, network: str) -> dict[str, Any]:
        """Wait until the store has one for the VM."""
        return eventually(lambda: self.leases(network).get(name), within=20) or {}

    def primary(self) -> str:
        """Empty: none."""
        found = (one["name"] for one in self.json("node", "list") if one["coordinator_state"] == "primary")
        return str(next(found, ""))

    def pid(self, node: str, vni: int) -> int:
        unit = f"pvc-dnsmasq@{vni}.service"
        said = self.run(node, "systemctl", "show", "--property=MainPID", "--value", unit, check=False).stdout
        return int(said or 0)


@pytest.fixture(scope="module")
def site(lab: RunningLab) -> Iterator[Site]:
    site = Site(lab)
    with ExitStack() as stack:
        for vni, (name, prefix) in NETWORKS.items():
            options = ("-i", f"{prefix}.0/24", "-g", f"{prefix}.1", "--dhcp", "-n", f"{name}.example")
            site.pvc("network", "add", str(vni), "-d", name, "-p", "managed", *options, "--wait")
            stack.callback(site.pvc, "network", "remove", str(vni), "--yes", check=False)
        for name, (node, network, cmdline) in GUESTS.items():
            stack.enter_context(site.vm(name, "--target", node, "--network", network, cmdline=cmdline))
        yield site


def test_guests_on_different_nodes_get_addresses_of_their_networks_and_names(site: Site) -> None:
    addresses = {name: site.bound(name) for name in GUESTS}
    for name, (_, network, _) in GUESTS.items():
        row = site.lease(name, network)
        assert (row["address"], row["hostname"], row["state"]) == (addresses[name], name, "leased")
        prefix = dict(NETWORKS.values())[network]
        assert row["address"].startswith(f"{prefix}.")
    assert len(set(addresses.values())) == len(GUESTS)
    for name in ("web", "db"):
        site.hears(name)
    assert not PONG.search(site.said("other")), "names of one network are not told in another"


def test_one_that_is_killed_is_back_by_itself_and_it_is_said(site: Site) -> None:
    address, primary = site.bound("web"), site.primary()
    pid = site.pid(primary, 101)
    other = site.pid(primary, 102)
    site.run(primary, "kill", "-9", str(pid))
    eventually(lambda: site.pid(primary, 101) not in (0, pid), within=20)
    assert set(site.renews("web")) == {address}
    site.hears("web")
    assert site.pid(primary, 102) == other
    journal = ("journalctl", "-u", "pvc-node", "-b", "--no-pager", "--grep", "dnsmasq of network 101 ended")
    eventually(lambda: site.run(primary, *journal, check=False).stdout, within=20)


def test_a_reservation_is_kept_and_named_without_a_restart(site: Site) -> None:
    primary = site.primary()
    pid = site.pid(primary, 101)
    mac = "52:54:00:00:0f:01"
    site.pvc("network", "dhcp", "add", "shop", "172.22.1.9", "printer", mac)
    try:
        ask = ("dig", "+short", "+time=1", "+tries=1", "@172.22.1.1", "printer.shop.example")
        eventually(lambda: site.run(primary, *ask, check=False).stdout.split() == ["172.22.1.9"], within=20)
    finally:
        site.pvc("network", "dhcp", "remove", "shop", mac, "--yes", check=False)
    assert site.pid(primary, 101) == pid


@pytest.mark.parametrize("how", ["move", "power cut"])
def test_guests_keep_their_addresses_when_the_primary_role_moves(
    site: Site, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    addresses = {name: site.bound(name) for name in ("web", "db")}
    if site.primary() != EMPTY:
        site.pvc("node", "primary", EMPTY, "--wait")
    for name in addresses:
        site.renews(name)
    before = {name: len(site.renewals(name)) for name in addresses}
    site.asked = new = "n2"
    try:
        if how == "move":
            site.pvc("node", "primary", new, "--wait")
        else:
            site.lab.power(EMPTY, "off")
        eventually(lambda: site.primary() not in ("", EMPTY), within=60)
        new = site.primary()
        eventually(lambda: site.pid(new, 101), within=60)
        for name, address in addresses.items():
            assert set(site.renews(name)) == {address}
            site.hears(name)
        assert {name: site.leases("shop")[name]["address"] for name in addresses} == addresses
        silent = max(site.silence(name, count) for name, count in before.items())
        with capsys.disabled():
            print(f"\n  {how} of the primary: no renewal for {silent:.1f} s; one is asked for each second")
        if how == "move":
            eventually(lambda: not site.pid(EMPTY, 101) and not site.pid(EMPTY, 102), within=20)
            assert site.run(EMPTY, "ls", "/run/pvc/dnsmasq").stdout.split() in ([], ["changed"])
    finally:
        site.asked = "n1"
        site.lab.repair()
