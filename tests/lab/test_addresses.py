"""The floating addresses go with the primary role, and never two nodes answer for one at the same time."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from pvc.lab.layout import CLUSTER, UPSTREAM
from tests.lab.dying import primary
from tests.lab.labs import RunningLab
from tests.lab.probe import Probe, probing
from tests.lab.vms import Cluster
from tests.support import eventually

SOON_S = 60.0
"""Also where the primary was the leader of ZooKeeper, too."""
DEVICES = {UPSTREAM.name: "br0", CLUSTER.name: CLUSTER.name}


@pytest.fixture
def cluster(lab: RunningLab) -> Iterator[Cluster]:
    """In maintenance: nobody is shot, so that who was primary may live on and hold what it has."""
    cluster = Cluster(lab)
    try:
        yield cluster
    finally:
        lab.repair()


def holder(cluster: Cluster) -> str:
    """The primary, when it answers for its addresses."""
    return eventually(lambda: primary(cluster), within=SOON_S)


def other(cluster: Cluster, than: str) -> str:
    """A node that will live, through which the cluster is asked from now on."""
    cluster.asked = next(name for name in cluster.lab.nodes if name != than)
    return cluster.asked


def mac_of(cluster: Cluster, node: str, network: str = UPSTREAM.name) -> str:
    return cluster.run(node, "cat", f"/sys/class/net/{DEVICES[network]}/address").stdout.strip()


def answered_by(probe: Probe, mac: str) -> None:
    eventually(lambda: probe.holder == mac, within=SOON_S)


def left(probe: Probe, mac: str) -> str:
    """Wait until another one answers; its MAC."""
    eventually(lambda: probe.holder not in ("", mac), within=SOON_S)
    return probe.holder


def keep(cluster: Cluster) -> None:
    """Who has the role now is wanted: else it goes back to one that was wanted before and returns."""
    cluster.pvc("node", "primary", holder(cluster))


def for_a_while(seconds: float) -> None:
    until = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > until, within=2 * seconds)


def held_on(cluster: Cluster, node: str) -> bool:
    address = cluster.lab.layout.floating_address(UPSTREAM)
    return address in cluster.run(node, "ip", "-o", "address", "show").stdout


# A client


@dataclass(slots=True)
class Client:
    """Asks the API again and again, each time over a new connection; when it was answered, and when not."""

    address: str
    token: str
    ask: Callable[[Client, int], None]
    good: list[float] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        number = 0
        while not self.ended.wait(0.05):
            number += 1
            try:
                self.ask(self, number)
                self.good.append(time.monotonic())
            except (OSError, ValueError) as error:
                self.bad.append(f"{self.address}: {error}")

    def call(self, method: str, path: str, **body: object) -> None:
        request = urllib.request.Request(
            f"http://{self.address}:7370/api/v1{path}",
            method=method,
            data=json.dumps(body).encode() if body else None,
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=1.0) as answer:
            json.load(answer)

    def longest_silence_s(self) -> float:
        return max(after - before for before, after in zip(self.good, self.good[1:], strict=False))


def reads(client: Client, _number: int) -> None:
    client.call("GET", "/node")


def writes(client: Client, number: int) -> None:
    client.call("PATCH", "/cluster", migrations_at_once=3 + number % 2)


@contextmanager
def running(clients: list[Client]) -> Iterator[None]:
    threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: all(len(client.good) > 3 for client in clients), within=SOON_S)
        yield
    finally:
        for client in clients:
            client.ended.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def token(cluster: Cluster) -> Iterator[str]:
    yield str(cluster.json("api", "token", "add", "follower", "--role", "admin")["token"])
    cluster.pvc("api", "token", "remove", "follower", "--yes")
    cluster.pvc("cluster", "set", "--migrations-at-once", "3")


def test_a_planned_move(cluster: Cluster, token: str) -> None:
    """Reads never stop, and a client of the floating address soon writes again without being told of it."""
    first = holder(cluster)
    second = other(cluster, first)
    layout = cluster.lab.layout
    follower = Client(layout.floating_address(UPSTREAM).partition("/")[0], token, writes)
    readers = [Client(layout.address(node, UPSTREAM), token, reads) for node in layout.nodes]
    with probing(layout, UPSTREAM) as up, probing(layout, CLUSTER) as inner:
        answered_by(up, mac_of(cluster, first))
        answered_by(inner, mac_of(cluster, first, CLUSTER.name))
        with running([follower, *readers]):
            written = len(follower.good)
            cluster.pvc("node", "primary", second, "--wait")
            answered_by(up, mac_of(cluster, second))
            answered_by(inner, mac_of(cluster, second, CLUSTER.name))
            eventually(lambda: len(follower.good) > written + 10, within=SOON_S)
            for_a_while(1.0)
    print(f"nobody answered for {up.gap_s():.2f} s; no writes for {follower.longest_silence_s():.2f} s")
    assert [bad for reader in readers for bad in reader.bad] == []
    assert cluster.json("cluster", "status")["addresses"] == {
        "upstream": {"address": layout.floating_address(UPSTREAM), "node": second},
        "cluster": {"address": layout.floating_address(CLUSTER), "node": second},
    }
    assert not held_on(cluster, first)


def test_the_primary_loses_power(cluster: Cluster) -> None:
    first = holder(cluster)
    other(cluster, first)
    with probing(cluster.lab.layout, UPSTREAM) as probe:
        mac = mac_of(cluster, first)
        answered_by(probe, mac)
        cluster.lab.power(first, "off")
        left(probe, mac)
        print(f"power cut: nobody answered for {probe.gap_s():.2f} s")
        keep(cluster)
        cluster.lab.power(first, "on")
        cluster.lab.settle(within=90)
        assert probe.holder not in ("", mac)


def test_the_daemon_of_the_primary_stands_still(cluster: Cluster) -> None:
    """The kernel takes the addresses from it; when it goes on, it does not take them back."""
    first = holder(cluster)
    other(cluster, first)
    with probing(cluster.lab.layout, UPSTREAM) as probe:
        mac = mac_of(cluster, first)
        answered_by(probe, mac)
        cluster.lab.lab("kill", first, "pvc-node", "--stop")
        began = time.monotonic()
        new = left(probe, mac)
        print(f"SIGSTOP: nobody answered for {probe.gap_s():.2f} s")
        keep(cluster)
        for_a_while(max(1.0, began + 20 - time.monotonic()))
        cluster.lab.lab("kill", first, "pvc-node", "--cont")
        for_a_while(5.0)
        assert probe.holder == new
        assert not held_on(cluster, first)
        cluster.lab.settle()


def test_the_primary_is_cut_off_from_the_others(cluster: Cluster) -> None:
    """Its upstream network is whole: there both would be heard."""
    first = holder(cluster)
    other(cluster, first)
    with probing(cluster.lab.layout, UPSTREAM) as probe:
        mac = mac_of(cluster, first)
        answered_by(probe, mac)
        cluster.lab.lab("cut", first, "--network", CLUSTER.name)
        new = left(probe, mac)
        print(f"cut off: nobody answered for {probe.gap_s():.2f} s")
        keep(cluster)
        for_a_while(5.0)
        cluster.lab.lab("heal", first)
        for_a_while(5.0)
        assert probe.holder == new
        cluster.lab.settle()


def test_the_daemon_of_the_primary_is_killed(cluster: Cluster) -> None:
    """Its next life drops what was left, and nobody needs to know who has the role then."""
    first = holder(cluster)
    other(cluster, first)
    with probing(cluster.lab.layout, UPSTREAM) as probe:
        answered_by(probe, mac_of(cluster, first))
        cluster.lab.lab("kill", first, "pvc-node")
        for_a_while(2.0)
        cluster.lab.settle()
        now = holder(cluster)
        answered_by(probe, mac_of(cluster, now))


def test_the_daemon_of_the_primary_is_stopped(cluster: Cluster) -> None:
    """As for an upgrade: the role goes first, and nobody waits for the end of a session."""
    first = holder(cluster)
    other(cluster, first)
    with probing(cluster.lab.layout, UPSTREAM) as probe:
        mac = mac_of(cluster, first)
        answered_by(probe, mac)
        cluster.run(first, "systemctl", "stop", "pvc-node")
        try:
            left(probe, mac)
            print(f"systemctl stop: nobody answered for {probe.gap_s():.2f} s")
            assert not held_on(cluster, first)
        finally:
            cluster.run(first, "systemctl", "start", "pvc-node")
        cluster.lab.settle()
