"""One suite for every OwnAddresses: the fake, and netlink in a network namespace that the test makes."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from pvc.node.drivers import DriverError
from pvc.node.drivers.loopback import NetlinkLoopback, is_served
from pvc.node.drivers.netlink import NetlinkAddresses
from pvc.node.drivers.networks import OwnAddresses
from tests.contract.test_addresses import enter, ip
from tests.fakes.own_addresses import FakeOwnAddresses

ADDRESS, OF_OTHERS = "169.254.169.254", "10.9.0.1"
HERE = f"pvc-{os.getpid()}-own"


@dataclass(frozen=True, slots=True)
class Bench:
    host: OwnAddresses
    held: Callable[[], set[str]]
    """All addresses of the host but 127.0.0.1."""


@contextmanager
def fake() -> Iterator[Bench]:
    host = FakeOwnAddresses(others={OF_OTHERS: "front"})
    yield Bench(host, lambda: host.ours | host.others.keys())


class _Inside:
    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, initializer=enter, initargs=(HERE,))
        self.driver = NetlinkLoopback()

    def hold(self, address: str) -> bool:
        return self.thread.submit(self.driver.hold, address).result(30)

    def drop(self, address: str) -> bool:
        return self.thread.submit(self.driver.drop, address).result(30)


@contextmanager
def netlink() -> Iterator[Bench]:
    def held() -> set[str]:
        lines = ip("-n", HERE, "-4", "-o", "address", "show").splitlines()
        return {line.split()[3].partition("/")[0] for line in lines} - {"127.0.0.1"}

    try:
        ip("netns", "add", HERE)
        ip("-n", HERE, "link", "set", "lo", "up")
        ip("-n", HERE, "link", "add", "front", "type", "bridge")
        ip("-n", HERE, "address", "add", f"{OF_OTHERS}/24", "dev", "front")
        yield Bench(_Inside(), held)
    finally:
        subprocess.run(["ip", "netns", "del", HERE], check=False, capture_output=True)


@pytest.fixture(params=[fake, netlink], ids=lambda made: made.__name__)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with request.param() as made:
        yield made


def test_is_held_until_it_is_dropped(bench: Bench) -> None:
    assert bench.host.hold(ADDRESS)
    assert not bench.host.hold(ADDRESS), "it was held already"
    assert bench.held() == {ADDRESS, OF_OTHERS}
    assert bench.host.drop(ADDRESS)
    assert not bench.host.drop(ADDRESS)
    assert bench.held() == {OF_OTHERS}


def test_what_others_gave_stays_theirs(bench: Bench) -> None:
    with pytest.raises(DriverError, match=r"10\.9\.0\.1 is an address of this node's front already"):
        bench.host.hold(OF_OTHERS)
    assert not bench.host.drop(OF_OTHERS)
    assert bench.held() == {OF_OTHERS}


def test_a_start_of_the_daemon_does_not_drop_it() -> None:
    """As it does with floating addresses, which have to be confirmed."""
    with netlink() as bench:
        bench.host.hold(ADDRESS)
        assert isinstance(bench.host, _Inside)
        assert bench.host.thread.submit(NetlinkAddresses().held).result(30) == {}
        assert not _Inside().hold(ADDRESS), "another life knows it as ours"


def test_whether_somebody_takes_connections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert is_served("127.0.0.1", port)
    assert not is_served("127.0.0.1", port)
