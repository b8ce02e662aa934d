#!/usr/bin/env python3
"""Requests per second of one API server on a real ZooKeeper, also beside clients that wait."""

from __future__ import annotations

import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pvc.http.client import HttpTransport
from tests.api_process import ApiServer, configure
from tests.zookeeper import zookeeper

VMS = 1000
SECONDS = 4.0
WAITING = 80
CLIENTS = (1, 8)


@dataclass(frozen=True, slots=True)
class Load:
    what: str
    clients: int
    per_s: float
    median_ms: float
    worst_ms: float


def main() -> int:
    with tempfile.TemporaryDirectory() as directory, zookeeper(Path(directory) / "zookeeper") as ensemble:
        api = configure(Path(directory), ensemble.addresses)
        made = api.pvc("--direct", "cluster", "init", "--name", "bench")
        if made.returncode:
            print(made.stderr, file=sys.stderr)
            return made.returncode
        api.start()
        try:
            fill(api)
            show(measured(api))
        finally:
            api.stop()
    return 0


def fill(api: ApiServer) -> None:
    transport = HttpTransport(api.address)
    for number in range(VMS):
        transport.call("vm.create", {"name": f"vm{number}", "memory": "512"})
    transport.close()


def measured(api: ApiServer) -> Iterator[Load]:
    for clients in CLIENTS:
        yield load(api, "/healthz", clients, "healthz")
        yield load(api, "/api/v1/vm/vm7", clients, "vm info")
        yield load(api, "/api/v1/vm?limit=^vm7$", clients, "vm list of 1")
        yield load(api, "/api/v1/vm", clients, f"vm list of {VMS}")
    with waiting(api, WAITING):
        yield load(api, "/api/v1/vm/vm7", 8, f"vm info beside {WAITING} that wait")


def load(api: ApiServer, target: str, clients: int, what: str) -> Load:
    """Each client on a connection it keeps, one request after the other."""
    took: list[float] = []
    end = time.monotonic() + SECONDS
    request = f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode()

    def ask() -> None:
        mine: list[float] = []
        with connect(api) as sock:
            while time.monotonic() < end:
                began = time.monotonic()
                sock.sendall(request)
                answer(sock)
                mine.append(time.monotonic() - began)
        took.extend(mine)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load(what, clients, len(took) / SECONDS, statistics.median(took) * 1000, max(took) * 1000)


def connect(api: ApiServer) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(api.address)
    return sock


def answer(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise AssertionError(head.decode())
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    parts, have = [body], len(body)
    while have < length:
        parts.append(sock.recv(1 << 20))
        assert parts[-1], "the server hung up"
        have += len(parts[-1])
    return b"".join(parts)


@contextmanager
def waiting(api: ApiServer, count: int) -> Iterator[None]:
    with connect(api) as sock:
        sock.sendall(b"GET /api/v1/vm/vm9 HTTP/1.1\r\nHost: a\r\n\r\n")
        version = json.loads(answer(sock))["version"]
    request = f"GET /api/v1/vm/vm9?after={version}&within=60 HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    socks = [connect(api) for _ in range(count)]
    for sock in socks:
        sock.sendall(request)
    try:
        yield
    finally:
        for sock in socks:
            sock.close()


def show(loads: Iterator[Load]) -> None:
    figures = f"{'per second':>11} {'median ms':>10} {'worst ms':>9} {'to healthz':>11}"
    print(f"{'request':<30} {'clients':>7} {figures}")
    bare: dict[int, float] = {}
    for one in loads:
        bare.setdefault(one.clients, one.per_s)
        ratio = bare[one.clients] / one.per_s
        print(
            f"{one.what:<30} {one.clients:>7} {one.per_s:>11.0f} {one.median_ms:>10.2f} {one.worst_ms:>9.1f}"
            f" {ratio:>10.1f}×",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
