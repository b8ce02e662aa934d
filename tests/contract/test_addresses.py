"""One suite for every HostAddresses: the fake, and netlink in network namespaces that the test makes."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import pytest

from pvc.clock import SystemClock
from pvc.node.drivers import DriverError
from pvc.node.drivers.netlink import NetlinkAddresses
from pvc.node.drivers.networks import HostAddresses, TooLate
from tests.fakes.addresses import FakeAddresses
from tests.support import eventually

T = TypeVar("T")

OWN = {"10.9.0.1/24": "front", "fd00:9::1/64": "front", "10.9.0.1/16": "back", "10.8.0.1/24": "back"}
V4, V6, BACK, NOWHERE = "10.9.0.250/24", "fd00:9::250/64", "10.8.0.250/24", "192.0.2.250/24"
LONG_S = 60.0
HERE, THERE = f"pvc-{os.getpid()}-here", f"pvc-{os.getpid()}-there"


@dataclass(frozen=True, slots=True)
class Bench:
    host: HostAddresses
    announced: Callable[[Callable[[], object]], list[str]]
    """The addresses that neighbours are told of while something is done."""

    def now(self) -> float:
        return time.monotonic()


class _Inside:
    """Calls of a driver in a network namespace, on a thread that has entered it."""

    def __init__(self, namespace: str) -> None:
        self.threads = ThreadPoolExecutor(1, initializer=enter, initargs=(namespace,))
        self.driver = NetlinkAddresses()

    def call(self, act: Callable[[], T]) -> T:
        return self.threads.submit(act).result(timeout=30)

    def hold(self, address: str, until: float) -> bool:
        return self.call(lambda: self.driver.hold(address, until))

    def drop(self, address: str) -> None:
        self.call(lambda: self.driver.drop(address))

    def held(self) -> dict[str, str]:
        return self.call(self.driver.held)

    def announce(self, address: str) -> None:
        self.call(lambda: self.driver.announce(address))


def enter(namespace: str) -> None:
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        assert ctypes.CDLL(None, use_errno=True).setns(descriptor, 0) == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(descriptor)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@contextmanager
def fake() -> Iterator[Bench]:
    host = FakeAddresses(SystemClock(), OWN)

    def announced(act: Callable[[], object]) -> list[str]:
        host.announced.clear()
        act()
        return [address.partition("/")[0] for address in host.announced]

    yield Bench(host, announced)


@contextmanager
def netlink() -> Iterator[Bench]:
    """Two hosts, and two cables between them."""
    try:
        for namespace in (HERE, THERE):
            ip("netns", "add", namespace)
        for device in ("front", "back"):
            ip("-n", HERE, "link", "add", device, "type", "veth", "peer", "name", device, "netns", THERE)
            for namespace in (HERE, THERE):
                ip("-n", namespace, "link", "set", device, "up")
        for address, device in OWN.items():
            no_wait = ["nodad"] if ":" in address else []
            ip("-n", HERE, "address", "add", address, "dev", device, *no_wait)
        inside, watcher = _Inside(HERE), _Inside(THERE)
        yield Bench(inside, lambda act: watcher.call(lambda: overheard(act)))
    finally:
        for namespace in (HERE, THERE):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


def overheard(act: Callable[[], object]) -> list[str]:
    """What the other end of the cable is told while something is done."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as wire:
        wire.bind(("front", 3))
        wire.settimeout(0.5)
        act()
        found = []
        try:
            while True:
                found += list(told(wire.recv(2048)))
        except TimeoutError:
            return found


def told(frame: bytes) -> Iterator[str]:
    """The address that a frame announces for whoever sends it."""
    sender, kind, packet = frame[6:12], frame[12:14], frame[14:]
    if kind == b"\x08\x06":
        assert frame[:6] == b"\xff" * 6
        assert packet[8:14] == sender
        if packet[14:18] == packet[24:28]:
            yield socket.inet_ntop(socket.AF_INET, packet[14:18])
    elif kind == b"\x86\xdd" and packet[6] == 58 and packet[40] == 136:
        assert packet[7] == 255, "a hop limit of less is no neighbour's"
        assert checksum(packet) == 0
        assert struct.unpack("!I", packet[44:48])[0] & 0x20000000, "it must override"
        assert packet[64:66] + packet[66:72] == b"\x02\x01" + sender
        yield socket.inet_ntop(socket.AF_INET6, packet[48:64])


def checksum(packet: bytes) -> int:
    """Of ICMPv6: 0 where it is right."""
    body = packet[40:]
    pseudo = packet[8:40] + struct.pack("!II", len(body), 58)
    total: int = sum(struct.unpack(f"!{(len(pseudo) + len(body)) // 2}H", pseudo + body))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@pytest.fixture(params=[fake, netlink], ids=lambda made: made.__name__)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with request.param() as made:
        yield made


@pytest.fixture
def host(bench: Bench) -> HostAddresses:
    return bench.host


def within(seconds: float) -> float:
    return time.monotonic() + seconds


# What every driver keeps


@pytest.mark.parametrize("address", [V4, V6])
def test_is_held_until_it_is_dropped(host: HostAddresses, address: str) -> None:
    assert host.held() == {}
    assert host.hold(address, within(LONG_S))
    assert host.held() == {address: "front"}
    assert not host.hold(address, within(LONG_S)), "it is renewed"
    assert host.held() == {address: "front"}
    host.drop(address)
    assert host.held() == {}
    host.drop(address)


def test_each_goes_to_the_device_of_its_network(host: HostAddresses) -> None:
    """Also where another network has it too, but is larger."""
    for address in (V4, V6, BACK):
        host.hold(address, within(LONG_S))
    assert host.held() == {V4: "front", V6: "front", BACK: "back"}
    host.drop(V4)
    assert host.held() == {V6: "front", BACK: "back"}


@pytest.mark.parametrize("address", [V4, V6])
def test_the_kernel_takes_it_away(host: HostAddresses, address: str) -> None:
    """Without anybody's doing, and not before its time."""
    until = within(2.9)
    host.hold(address, until)
    assert host.held() == {address: "front"}
    eventually(lambda: host.held() == {}, within=20)
    assert time.monotonic() > until - 1.5


def test_renewed_lives_longer(host: HostAddresses) -> None:
    host.hold(V4, within(2.0))
    host.hold(V6, within(2.0))
    host.hold(V4, within(LONG_S))
    eventually(lambda: V6 not in host.held(), within=20)
    assert host.held() == {V4: "front"}


def test_shortened_lives_shorter(host: HostAddresses) -> None:
    host.hold(V4, within(LONG_S))
    host.hold(V4, within(1.5))
    eventually(lambda: host.held() == {}, within=20)


@pytest.mark.parametrize("left_s", [-20.0, 0.0, 0.9])
def test_too_late_is_not_held(host: HostAddresses, left_s: float) -> None:
    with pytest.raises(TooLate):
        host.hold(V4, within(left_s))
    assert host.held() == {}


def test_no_device_is_in_its_network(host: HostAddresses) -> None:
    with pytest.raises(DriverError, match="no network device of this node has an address in the network of"):
        host.hold(NOWHERE, within(LONG_S))
    assert host.held() == {}


def test_a_floating_address_brings_no_other_with_it(host: HostAddresses) -> None:
    """A network in which only a floating one of ours is, is none of the host's."""
    host.hold("10.9.0.250/8", within(LONG_S))
    with pytest.raises(DriverError):
        host.hold("10.77.0.250/8", within(LONG_S))


@pytest.mark.parametrize("address", ["10.9.0.1/24", "fd00:9::1/64"])
def test_an_address_of_the_host_itself(host: HostAddresses, address: str) -> None:
    with pytest.raises(DriverError, match="is an address of front already"):
        host.hold(address, within(LONG_S))
    host.drop(address)
    assert host.held() == {}


def test_another_length_replaces_it(host: HostAddresses) -> None:
    host.hold("10.9.0.250/24", within(LONG_S))
    host.hold("10.9.0.250/25", within(LONG_S))
    assert host.held() == {"10.9.0.250/25": "front"}


@pytest.mark.parametrize("address", [V4, V6])
def test_announced(bench: Bench, address: str) -> None:
    bench.host.hold(address, within(LONG_S))
    assert address.partition("/")[0] in bench.announced(lambda: bench.host.announce(address))


def test_what_is_not_held_is_not_announced(bench: Bench) -> None:
    assert V4.partition("/")[0] not in bench.announced(lambda: bench.host.announce(V4))


# What only a kernel shows


@pytest.fixture
def real() -> Iterator[HostAddresses]:
    with netlink() as made:
        yield made.host


def own_addresses() -> set[str]:
    lines = ip("-n", HERE, "-o", "address", "show", "scope", "global").splitlines()
    return {line.split()[3] for line in lines}


def test_the_hosts_own_stay(real: HostAddresses) -> None:
    for address in (V4, V6, BACK):
        real.hold(address, within(LONG_S))
    assert own_addresses() == {*OWN, V4, V6, BACK}
    for address in (V4, V6, BACK):
        real.drop(address)
    assert own_addresses() == set(OWN)


@pytest.mark.parametrize(("target", "source"), [("10.9.0.77", "10.9.0.1"), ("fd00:9::77", "fd00:9::1")])
def test_the_host_goes_on_speaking_as_itself(real: HostAddresses, target: str, source: str) -> None:
    for address in (V4, V6):
        real.hold(address, within(LONG_S))
    assert f" src {source} " in ip("-n", HERE, "route", "get", target)


def test_leftovers_of_another_life_are_known(real: HostAddresses) -> None:
    """By what the kernel keeps with the address: what people or others have added is not ours."""
    ip("-n", HERE, "address", "add", "10.9.0.99/24", "dev", "front")
    real.hold(V4, within(LONG_S))
    again = _Inside(HERE)
    assert again.held() == {V4: "front"}


def test_a_device_that_is_down(real: HostAddresses) -> None:
    ip("-n", HERE, "link", "set", "front", "down")
    with pytest.raises(DriverError, match="no network device"):
        real.hold(V6, within(LONG_S))


@pytest.mark.parametrize(("address", "word"), [(V4, "arp"), (V6, "ndp")])
def test_neighbours_are_answered_at_once(real: HostAddresses, address: str, word: str) -> None:
    """No second is lost to the search for another holder, which there cannot be."""
    other = "10.9.0.77/24" if word == "arp" else "fd00:9::77/64"
    no_wait = ["nodad"] if word == "ndp" else []
    ip("-n", THERE, "address", "add", other, "dev", "front", *no_wait)
    real.hold(address, within(LONG_S))
    asker = _Inside(THERE)
    with pytest.raises(ConnectionRefusedError):
        asker.call(lambda: socket.create_connection((address.partition("/")[0], 9), timeout=10))


class StandsStill(SystemClock):
    """As if halted for a long time after the second look at the clock."""

    def __init__(self) -> None:
        self.looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return super().monotonic() + (20.0 if self.looks == 2 else 0.0)


def test_halted_on_the_way_to_the_kernel() -> None:
    with netlink():
        inside = _Inside(HERE)
        inside.driver = NetlinkAddresses(StandsStill())
        with pytest.raises(TooLate, match="stood still"):
            inside.hold(V4, within(5.0))
        assert inside.held() == {}
