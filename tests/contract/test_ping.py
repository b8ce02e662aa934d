"""The system's ping through a switch that carries less than its two ends."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from pvc.lab.network import inside
from pvc.node.drivers.ping import ping

NAMES = ("pvc-ping-a", "pvc-ping-b", "pvc-ping-s")
ADDRESSES = {"4": ("10.77.1.1", "10.77.1.2"), "6": ("fd77::1", "fd77::2")}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module", autouse=True)
def _two_hosts() -> Iterator[None]:
    """Each with an MTU of 9000, on a bridge whose port to the second one carries 1500."""
    one, two, switch = NAMES
    for name in NAMES:
        ip("netns", "add", name)
    try:
        ip("-n", switch, "link", "add", "sw0", "mtu", "9000", "type", "bridge")
        for number, name in enumerate((one, two)):
            peer = ("peer", "name", "eth", "netns", name, "mtu", "9000")
            mtu = "9000" if name == one else "1500"
            ip("-n", switch, "link", "add", f"p{number}", "mtu", mtu, "type", "veth", *peer)
            ip("-n", switch, "link", "set", f"p{number}", "master", "sw0", "up")
            for family, addresses in ADDRESSES.items():
                prefix = "24" if family == "4" else "64"
                more = () if family == "4" else ("nodad",)
                ip("-n", name, "address", "add", f"{addresses[number]}/{prefix}", "dev", "eth", *more)
            ip("-n", name, "link", "set", "eth", "up")
        ip("-n", switch, "link", "set", "sw0", "up")
        yield
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], check=False)


@pytest.mark.parametrize("family", ADDRESSES)
def test_only_what_fits_everywhere_arrives(family: str) -> None:
    headers = 28 if family == "4" else 48
    there = ADDRESSES[family][1]
    assert inside(NAMES[0], lambda: ping(there, 1500 - headers))
    assert not inside(NAMES[0], lambda: ping(there, 1501 - headers))
    assert not inside(NAMES[0], lambda: ping(there, 9000 - headers))


def test_who_is_not_there_does_not_answer() -> None:
    assert not inside(NAMES[0], lambda: ping("10.77.1.9", 0))
