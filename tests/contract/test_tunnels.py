"""One suite for every GatewayTunnels: the fake, and the kernel's. What routing tells it, the test does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from pvc.cluster.network import GATEWAY_MAC
from pvc.node.drivers.networks import GatewayTunnels
from pvc.node.drivers.tunnels import NetlinkTunnels
from tests.contract.test_addresses import enter, ip
from tests.fakes.tunnels import FakeTunnels

HERE = f"pvc-{os.getpid()}-tunnels"
OTHER_MAC = "02:00:00:00:00:09"


@dataclass(frozen=True, slots=True)
class Bench:
    host: GatewayTunnels
    told: Callable[[int, str], None]
    """As routing does it: the gateway of the network is at the node with that address."""


class _Inside:
    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(1, initializer=enter, initargs=(HERE,))
        self.driver = NetlinkTunnels()

    def vteps(self, vnis: Iterable[int]) -> Mapping[int, str]:
        return self.threads.submit(self.driver.vteps, vnis).result(timeout=30)

    def lead(self, vni: int, vtep: str) -> None:
        self.threads.submit(self.driver.lead, vni, vtep).result(timeout=30)


@contextmanager
def fake() -> Iterator[Bench]:
    host = FakeTunnels()
    yield Bench(host, host.known.__setitem__)


@contextmanager
def netlink() -> Iterator[Bench]:
    try:
        ip("netns", "add", HERE)
        for vni in (101, 102):
            made = ("type", "vxlan", "id", str(vni), "local", "10.9.0.1", "dstport", "4789", "nolearning")
            ip("-n", HERE, "link", "add", f"br{vni}", "type", "bridge")
            ip("-n", HERE, "link", "add", f"vx{vni}", "master", f"br{vni}", *made)
            fdb("append", "00:00:00:00:00:00", vni, "10.9.0.3")
            fdb("replace", OTHER_MAC, vni, "10.9.0.3")
        yield Bench(_Inside(), lambda vni, vtep: fdb("replace", GATEWAY_MAC, vni, vtep))
    finally:
        subprocess.run(["ip", "netns", "del", HERE], check=False, capture_output=True)


def fdb(verb: str, mac: str, vni: int, vtep: str) -> None:
    words = ["bridge", "-n", HERE, "fdb", verb, mac, "dev", f"vx{vni}", "dst", vtep]
    subprocess.run([*words, "self", "dynamic", "extern_learn"], check=True)


def shown(mac: str) -> list[str]:
    """The lines about it, of both networks."""
    done = subprocess.run(["bridge", "-n", HERE, "fdb", "show"], check=True, capture_output=True, text=True)
    return sorted(line.strip() for line in done.stdout.splitlines() if line.startswith(mac))


@pytest.fixture(params=[fake, netlink], ids=lambda made: made.__name__)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with request.param() as made:
        yield made


def test_where_gateways_are_is_what_routing_told(bench: Bench) -> None:
    assert bench.host.vteps([101, 102]) == {}
    bench.told(101, "10.9.0.2")
    bench.told(102, "10.9.0.3")
    assert bench.host.vteps([101, 102]) == {101: "10.9.0.2", 102: "10.9.0.3"}
    assert bench.host.vteps([102, 999]) == {102: "10.9.0.3"}


def test_one_is_led_to_another_node(bench: Bench) -> None:
    bench.told(101, "10.9.0.2")
    bench.told(102, "10.9.0.2")
    bench.host.lead(101, "10.9.0.4")
    assert bench.host.vteps([101, 102]) == {101: "10.9.0.4", 102: "10.9.0.2"}
    bench.told(101, "10.9.0.3")
    assert bench.host.vteps([101]) == {101: "10.9.0.3"}, "routing has the last word"


def test_a_way_that_nobody_knows_is_not_made(bench: Bench) -> None:
    bench.host.lead(101, "10.9.0.4")
    bench.host.lead(999, "10.9.0.4")
    assert bench.host.vteps([101, 999]) == {}


def test_other_addresses_stay_where_they_are() -> None:
    with netlink() as bench:
        bench.told(101, "10.9.0.2")
        before = shown(OTHER_MAC)
        bench.host.lead(101, "10.9.0.4")
        assert shown(OTHER_MAC) == before
        assert shown(GATEWAY_MAC) == [f"{GATEWAY_MAC} dev vx101 dst 10.9.0.4 self extern_learn"]
