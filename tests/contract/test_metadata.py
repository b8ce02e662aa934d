"""The metadata service in network namespaces: a node with the bridge of a network, and guests in it."""

from __future__ import annotations

import functools
import http.client
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import pytest

from pvc.cluster import paths
from pvc.cluster.clients import Lease, Member
from pvc.cluster.codec import dumps
from pvc.cluster.guests import ADDRESS
from pvc.cluster.network import IPv4, Kind, NetworkSpec, gateway_name
from pvc.cluster.store import Create, Delete, Put, Store
from pvc.http.serve import tcp_socket
from pvc.metadata.neighbours import mac_at
from pvc.metadata.serve import CONNECTIONS_EACH, Site
from pvc.node.drivers.loopback import NetlinkLoopback
from tests.contract.test_addresses import enter, ip
from tests.fakes.store import MemoryCluster
from tests.support import eventually

T = TypeVar("T")

PREFIX = f"pvc-{os.getpid()}"
NODE = f"{PREFIX}-node"
UUIDS = {"web1": "6b29fc40-ca47-1067-b31d-00dd010662da", "db1": "7b29fc40-ca47-1067-b31d-00dd010662da"}
MACS = {"web1": "02:00:00:00:00:01", "db1": "02:00:00:00:00:02"}
AT = {"web1": "10.1.0.10", "db1": "10.1.0.20"}
SPEC = NetworkSpec(101, "shop", Kind.MANAGED, domain="shop.example", ipv4=IPv4("10.1.0.0/24", "10.1.0.1"))


class Inside:
    """Calls in a network namespace, on a thread that has entered it."""

    def __init__(self, namespace: str) -> None:
        self.threads = ThreadPoolExecutor(1, initializer=enter, initargs=(namespace,))

    def call(self, act: Callable[[], T]) -> T:
        return self.threads.submit(act).result(timeout=30)


@dataclass
class Bench:
    """The service on a node, over a store in memory, and two guests with their leases."""

    cluster: MemoryCluster = field(default_factory=MemoryCluster)

    def __post_init__(self) -> None:
        self.store = self.cluster.connect()
        self.store.commit(*(Create(path) for path in ("/pvc", paths.VMS, paths.NETWORKS)))
        fill(self.store)
        self.node = Inside(NODE)
        self.node.call(lambda: NetlinkLoopback().hold(ADDRESS))
        self.site: Site = self.node.call(self._site)
        # Its threads are made by one that has entered the namespace, as theirs are then.
        self.thread = self.node.call(lambda: _started(self.site.run))
        self.guests = {name: Inside(f"{PREFIX}-{name}") for name in UUIDS}

    def _site(self) -> Site:
        at_gateway = lambda vni, address: mac_at(gateway_name(vni), address)  # noqa: E731
        return Site(self.store, [tcp_socket(f"{ADDRESS}:80")], at_gateway)

    def close(self) -> None:
        self.site.server.stop()
        self.thread.join(10)

    def ask(self, guest: str, path: str = "/latest/meta-data/instance-id") -> tuple[int, str]:
        return self.guests[guest].call(lambda: get(path))


def fill(store: Store, user_data: str = "#cloud-config\n# of {}\n") -> None:
    """The network and the guests, as operations and DHCP write them."""
    store.commit(Create(paths.network(101), dumps(SPEC)))
    lists = (paths.network_vms, paths.network_reservations, paths.network_leases)
    store.commit(*(Create(where(101)) for where in lists))
    for name, uuid in UUIDS.items():
        member, lease = Member(name, (MACS[name],)), Lease(AT[name], MACS[name])
        store.commit(
            Create(paths.vm(uuid)),
            Create(paths.vm_user_data(uuid), user_data.format(name).encode()),
            Create(paths.network_vm(101, uuid), dumps(member)),
            Create(paths.network_lease(101, lease.address), dumps(lease)),
        )


def _started(run: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def get(path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(ADDRESS, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@contextmanager
def wired() -> Iterator[None]:
    """A bridge on the node with its gateway, and a guest at each of two other ports."""
    namespaces = [NODE, *(f"{PREFIX}-{name}" for name in UUIDS)]
    try:
        for namespace in namespaces:
            ip("netns", "add", namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
        ip("-n", NODE, "link", "add", "br101", "type", "bridge", "forward_delay", "0")
        ip("-n", NODE, "link", "add", "gw101", "type", "veth", "peer", "name", "gp101")
        for name, mac in MACS.items():
            there = ["peer", "name", "eth0", "address", mac, "netns", f"{PREFIX}-{name}"]
            ip("-n", NODE, "link", "add", name, "type", "veth", *there)
        for port in ("gp101", *MACS):
            ip("-n", NODE, "link", "set", port, "master", "br101", "up")
        for link in ("br101", "gw101"):
            ip("-n", NODE, "link", "set", link, "up")
        ip("-n", NODE, "address", "add", "10.1.0.1/24", "dev", "gw101")
        for name, address in AT.items():
            has(name, address)
        yield
    finally:
        for namespace in namespaces:
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


def has(guest: str, *addresses: str) -> None:
    """That it gives itself, whatever it was given."""
    namespace = f"{PREFIX}-{guest}"
    ip("-n", namespace, "address", "flush", "dev", "eth0")
    ip("-n", namespace, "link", "set", "eth0", "up")
    for address in addresses:
        ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
    if addresses:
        ip("-n", namespace, "route", "replace", "default", "via", "10.1.0.1")


@pytest.fixture
def bench() -> Iterator[Bench]:
    with wired():
        made = Bench()
        yield made
        made.close()


def test_each_guest_is_known(bench: Bench) -> None:
    for name, uuid in UUIDS.items():
        assert bench.ask(name) == (200, uuid)
        assert bench.ask(name, "/latest/user-data") == (200, f"#cloud-config\n# of {name}\n")
        assert bench.ask(name, "/latest/meta-data/local-hostname") == (200, f"{name}.shop.example")


def test_a_guest_that_takes_the_address_of_another(bench: Bench) -> None:
    """Of one that is off, so that nobody else answers for it."""
    assert bench.ask("web1") == (200, UUIDS["web1"])
    has("web1")
    has("db1", AT["web1"])
    # The gateway believes the first second of an entry: until then the answer goes to whom it belongs.
    assert eventually(lambda: answered(bench, "db1"), within=20) == (404, "Not Found\n")
    assert bench.ask("db1", "/latest/user-data")[0] == 404


def answered(bench: Bench, guest: str) -> tuple[int, str] | None:
    try:
        return bench.ask(guest)
    except OSError:
        return None


def test_an_address_that_nobody_gave(bench: Bench) -> None:
    has("db1", "10.1.0.99")
    assert bench.ask("db1") == (404, "Not Found\n")


def test_a_lease_that_moves_to_another_guest(bench: Bench) -> None:
    assert bench.ask("web1") == (200, UUIDS["web1"])
    has("web1")
    has("db1", AT["web1"])
    lease = paths.network_lease(101, AT["web1"])
    bench.store.commit(Put(lease, dumps(Lease(AT["web1"], MACS["db1"]))))
    eventually(lambda: answered(bench, "db1") == (200, UUIDS["db1"]), within=20)
    has("db1", AT["db1"])
    has("web1", AT["web1"])
    eventually(lambda: answered(bench, "web1") == (404, "Not Found\n"), within=20)


def test_a_guest_that_is_no_member_any_more(bench: Bench) -> None:
    assert bench.ask("web1") == (200, UUIDS["web1"])
    bench.store.commit(Delete(paths.network_vm(101, UUIDS["web1"])))
    eventually(lambda: bench.ask("web1")[0] == 404, within=10)


def test_a_guest_that_opens_many_connections_keeps_nobody_out(bench: Bench) -> None:
    def flood() -> list[socket.socket]:
        return [socket.create_connection((ADDRESS, 80), timeout=10) for _ in range(CONNECTIONS_EACH + 4)]

    opened = bench.guests["web1"].call(flood)
    for one in opened[-4:]:
        assert is_closed(one), "it has enough of them"
    assert bench.ask("db1") == (200, UUIDS["db1"])
    for one in opened:
        one.close()
    eventually(lambda: answered_or_reset(bench) == (200, UUIDS["web1"]), within=10)


def test_a_connection_ends_whatever_a_guest_does_with_it(bench: Bench) -> None:
    server = bench.site.server
    server.limits = replace(server.limits, lifetime_s=0.2)

    def dawdle() -> socket.socket:
        opened = socket.create_connection((ADDRESS, 80), timeout=20)
        opened.sendall(b"GET /latest/user-data HTTP/1.1\r\nHost: ")
        return opened

    with bench.guests["web1"].call(dawdle) as opened:
        assert is_closed(opened)


def is_closed(one: socket.socket) -> bool:
    try:
        return one.recv(1) == b""
    except ConnectionResetError:
        return True


def answered_or_reset(bench: Bench) -> tuple[int, str] | None:
    try:
        return bench.ask("web1")
    except (OSError, http.client.HTTPException):
        return None


def test_the_simplest_client_is_answered(bench: Bench) -> None:
    """As busybox's nc: it closes its side when it has asked."""

    def ask() -> bytes:
        with socket.create_connection((ADDRESS, 80), timeout=10) as client:
            client.sendall(b"GET /latest/meta-data/instance-id HTTP/1.0\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            return b"".join(iter(functools.partial(client.recv, 4096), b""))

    answers = {bench.guests["web1"].call(ask).rpartition(b"\r\n")[2] for _ in range(50)}
    assert answers == {UUIDS["web1"].encode()}


def test_an_asker_through_no_gateway(bench: Bench) -> None:
    """As from the node itself, or from a network outside."""
    assert bench.node.call(lambda: get("/latest/user-data"))[0] == 404
