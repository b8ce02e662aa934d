"""One suite for every HostGateways: the fake, and netlink in a network namespace that the test makes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest

from pvc.cluster.filters import Transit
from pvc.cluster.network import GATEWAY_MAC
from pvc.node.drivers.gateways import NetlinkGateways
from pvc.node.drivers.networks import Gateway, HostGateways
from tests.contract.test_addresses import enter, ip
from tests.fakes.gateways import FakeGateways

T = TypeVar("T")

HERE = f"pvc-{os.getpid()}-gateways"
FOUR = Gateway(101, 1400, ("10.1.0.1/24",))
BOTH = Gateway(102, 1400, ("10.2.0.1/24", "fd00:2::1/64", "fe80::1/64"))


@dataclass(frozen=True, slots=True)
class Bench:
    host: HostGateways
    foreign: Callable[[str], None]
    """Make a device as somebody else would."""


class Inside:
    """Calls of the driver in a network namespace, on a thread that has entered it."""

    def __init__(self, namespace: str, before: Path) -> None:
        self.threads = ThreadPoolExecutor(1, initializer=enter, initargs=(namespace,))
        self.driver = NetlinkGateways(str(before))

    def call(self, act: Callable[[], T]) -> T:
        return self.threads.submit(act).result(timeout=30)

    def gateways(self) -> Mapping[int, Gateway]:
        return self.call(self.driver.gateways)

    def give(self, gateways: Iterable[Gateway]) -> Mapping[int, str]:
        return self.call(lambda: self.driver.give(gateways))

    def take(self, vnis: Iterable[int]) -> None:
        self.call(lambda: self.driver.take(vnis))

    def announce(self, vnis: Iterable[int]) -> None:
        self.call(lambda: self.driver.announce(vnis))

    def forward(self, towards: Iterable[str], *, ipv6: bool) -> bool:
        return self.call(lambda: self.driver.forward(towards, ipv6=ipv6))

    def end_forwarding(self) -> None:
        self.call(self.driver.end_forwarding)

    def transit(self) -> Transit:
        return self.call(self.driver.transit)

    def is_left(self) -> bool:
        return self.call(self.driver.is_left)


@contextmanager
def fake(where: Path) -> Iterator[Bench]:
    host = FakeGateways(bridges={101, 102})

    def foreign(name: str) -> None:
        host.foreign.add(int(name.removeprefix("gw")))

    yield Bench(host, foreign)


@contextmanager
def netlink(where: Path) -> Iterator[Bench]:
    """A host with two bridges, one device outside, and one that is nobody's concern."""
    try:
        ip("netns", "add", HERE)
        for name in ("br101", "br102"):
            ip("-n", HERE, "link", "add", name, "mtu", "1400", "type", "bridge", "forward_delay", "0")
            ip("-n", HERE, "link", "set", name, "up")
        for name, address in (("ups", "198.51.100.1/24"), ("clu", "10.9.0.1/24")):
            ip("-n", HERE, "link", "add", name, "type", "veth", "peer", "name", f"{name}-peer")
            ip("-n", HERE, "link", "set", name, "up")
            ip("-n", HERE, "address", "add", address, "dev", name)
        yield Bench(Inside(HERE, where / "before.json"), lambda name: made(name))
    finally:
        subprocess.run(["ip", "netns", "del", HERE], check=False, capture_output=True)


def made(name: str) -> None:
    ip("-n", HERE, "link", "add", name, "type", "bridge")


@pytest.fixture(params=[fake, netlink], ids=lambda made: made.__name__)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with request.param(tmp_path) as made:
        yield made


@pytest.fixture
def host(bench: Bench) -> HostGateways:
    return bench.host


def give(host: HostGateways, *gateways: Gateway) -> None:
    assert host.give(gateways) == {}


# What every driver keeps


def test_gateways_are_as_they_were_asked_for(host: HostGateways) -> None:
    assert host.gateways() == {}
    give(host, FOUR)
    give(host, BOTH)
    assert host.gateways() == {101: FOUR, 102: BOTH}


def test_what_is_so_already_is_no_change(host: HostGateways) -> None:
    give(host, BOTH)
    give(host, BOTH)
    assert host.gateways() == {102: BOTH}


@pytest.mark.parametrize(
    "other",
    [
        replace(BOTH, mtu=1300),
        replace(BOTH, addresses=("10.2.0.254/24", "fd00:2::1/64", "fe80::1/64")),
        replace(BOTH, addresses=("10.2.0.1/24",)),
        replace(BOTH, addresses=("fd00:2::2/64", "fe80::1/64")),
    ],
)
def test_one_that_is_to_be_another_becomes_so_and_back(host: HostGateways, other: Gateway) -> None:
    give(host, BOTH)
    give(host, other)
    assert host.gateways() == {102: other}
    give(host, BOTH)
    assert host.gateways() == {102: BOTH}


def test_taken_ones_are_gone_and_the_others_stay(host: HostGateways) -> None:
    give(host, FOUR)
    give(host, BOTH)
    host.take([101])
    assert host.gateways() == {102: BOTH}
    host.take([101])
    host.take([101, 102])
    assert host.gateways() == {}
    host.take([102])


def test_without_its_bridge_there_is_none(host: HostGateways) -> None:
    assert host.give([replace(FOUR, vni=103)]) == {103: "there is no device br103"}
    assert host.gateways() == {}


def test_a_name_that_is_taken_stays_whose_it_is(bench: Bench) -> None:
    bench.foreign("gw101")
    assert bench.host.give([FOUR, BOTH]) == {101: "gw101 is a device of the host's own"}
    assert bench.host.gateways() == {102: BOTH}


def test_packets_are_passed_on_once_it_is_said(host: HostGateways) -> None:
    assert host.forward(["198.51.100.1/24"], ipv6=True)
    assert not host.forward(["198.51.100.1/24"], ipv6=True)
    host.end_forwarding()
    host.end_forwarding()
    assert host.forward(["198.51.100.1/24"], ipv6=True)


def test_what_filters_are_needed_for_is_left_until_it_is_gone(host: HostGateways) -> None:
    assert not host.is_left()
    give(host, FOUR)
    assert host.is_left()
    host.take([101])
    assert not host.is_left()
    host.forward(["198.51.100.1/24"], ipv6=False)
    assert host.is_left()
    host.end_forwarding()
    assert not host.is_left()


def test_what_is_passed_on_for_gateways_is_not_the_hosts_own(host: HostGateways) -> None:
    before = host.transit()
    give(host, BOTH)
    host.forward(["198.51.100.1/24"], ipv6=True)
    assert host.transit() == before


def test_who_is_not_there_is_not_announced(host: HostGateways) -> None:
    host.announce([101])
    give(host, BOTH)
    host.announce([101, 102])


# What only a kernel has


@pytest.fixture
def real(tmp_path: Path) -> Iterator[HostGateways]:
    with netlink(tmp_path) as made:
        yield made.host


def setting(name: str) -> str:
    file = f"/proc/sys/net/{name}"
    return subprocess.run(
        ["ip", "netns", "exec", HERE, "cat", file], check=True, capture_output=True, text=True
    ).stdout.strip()


def set_to(name: str, value: str) -> None:
    command = f"echo {value} > /proc/sys/net/{name}"
    subprocess.run(["ip", "netns", "exec", HERE, "sh", "-c", command], check=True)


def link(name: str) -> dict[str, object]:
    found = json.loads(ip("-n", HERE, "-j", "link", "show", name))[0]
    assert isinstance(found, dict)
    return found


def test_it_is_a_careful_port_with_the_one_mac_address(real: HostGateways) -> None:
    give(real, BOTH)
    assert link("gw102")["address"] == GATEWAY_MAC
    assert link("gp102")["master"] == "br102"
    wanted = {
        "ipv4/conf/gw102/forwarding": "1",
        "ipv4/conf/gw102/rp_filter": "1",
        "ipv4/conf/gw102/arp_ignore": "1",
        "ipv4/conf/gw102/accept_source_route": "0",
        "ipv6/conf/gw102/accept_ra": "0",
        "ipv6/conf/gp102/disable_ipv6": "1",
    }
    assert {name: setting(name) for name in wanted} == wanted
    addresses = json.loads(ip("-n", HERE, "-j", "address", "show", "gp102"))[0]["addr_info"]
    assert addresses == [], "the port itself is nobody in the network"


@pytest.mark.parametrize(
    "meddle",
    [
        ("link", "set", "gp102", "nomaster"),
        ("link", "set", "gp102", "down"),
        ("link", "set", "gw102", "address", "02:00:00:00:00:07"),
        ("link", "set", "gp102", "mtu", "1300"),
        ("address", "add", "10.2.0.9/24", "dev", "gw102"),
        ("address", "del", "fd00:2::1/64", "dev", "gw102"),
    ],
)
def test_what_somebody_changed_is_seen_and_corrected(real: HostGateways, meddle: tuple[str, ...]) -> None:
    give(real, BOTH)
    ip("-n", HERE, *meddle)
    assert real.gateways() != {102: BOTH}
    give(real, BOTH)
    assert real.gateways() == {102: BOTH}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ipv4/conf/gw102/forwarding", "0"),
        ("ipv4/conf/gw102/rp_filter", "0"),
        ("ipv4/conf/gw102/arp_ignore", "0"),
        ("ipv4/conf/gw102/accept_redirects", "1"),
        ("ipv4/conf/gw102/accept_source_route", "1"),
        ("ipv6/conf/gw102/accept_ra", "1"),
        ("ipv6/conf/gp102/disable_ipv6", "0"),
    ],
)
def test_a_setting_that_somebody_changed_is_seen_and_corrected(
    real: HostGateways, name: str, value: str
) -> None:
    give(real, BOTH)
    set_to(name, value)
    assert not real.gateways()[102].is_well
    give(real, BOTH)
    assert real.gateways() == {102: BOTH}


def test_the_host_passes_on_where_it_was_told_and_is_then_as_it_was(real: HostGateways) -> None:
    set_to("ipv6/conf/ups/accept_ra", "1")
    set_to("ipv6/conf/clu/accept_ra", "0")
    names = [f"ipv4/conf/{device}/forwarding" for device in ("ups", "clu", "all")]
    names += ["ipv6/conf/all/forwarding", "ipv6/conf/ups/accept_ra", "ipv6/conf/clu/accept_ra"]
    before = {name: setting(name) for name in names}
    real.forward(["198.51.100.250/24"], ipv6=False)
    assert {name: setting(name) for name in names} == {**before, "ipv4/conf/ups/forwarding": "1"}
    real.forward(["198.51.100.250/24"], ipv6=True)
    assert setting("ipv6/conf/all/forwarding") == "1"
    assert setting("ipv6/conf/ups/accept_ra") == "2", "or the host would forget its own routes"
    assert setting("ipv6/conf/clu/accept_ra") == "0"
    real.end_forwarding()
    assert {name: setting(name) for name in names} == before


def test_what_the_host_passed_on_anyway_it_goes_on_to(real: HostGateways) -> None:
    set_to("ipv4/conf/ups/forwarding", "1")
    assert not real.forward(["198.51.100.250/24"], ipv6=False)
    real.end_forwarding()
    assert setting("ipv4/conf/ups/forwarding") == "1"


def test_the_default_route_leads_outside_too(real: HostGateways) -> None:
    ip("-n", HERE, "route", "add", "default", "via", "10.9.0.254")
    real.forward([], ipv6=False)
    assert (setting("ipv4/conf/clu/forwarding"), setting("ipv4/conf/ups/forwarding")) == ("1", "0")
