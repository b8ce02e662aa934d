"""What coordinators say to each other of their ZooKeeper servers: real ones, over real mutual TLS."""

from __future__ import annotations

import hashlib
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from pvc import pki
from pvc.cluster.store import Check, Create
from pvc.cluster.zookeeper import ZooKeeperStore
from pvc.config import Config, parse
from pvc.errors import Unavailable
from pvc.node.drivers.fourletter import refuses
from pvc.node.peer import PeerServer
from pvc.peerclient import ask
from tests.support import eventually
from tests.zookeeper import Server, free_ports, zookeeper


def refused(server: Server) -> bool:
    host, _, port = server.address.rpartition(":")
    return refuses(host, int(port))


def test_server_refuses_exactly_while_it_is_in_no_quorum(tmp_path: Path) -> None:
    with zookeeper(tmp_path, servers=3) as ensemble:
        first, second, third = ensemble.servers
        eventually(lambda: not any(map(refused, ensemble.servers)), within=30)
        second.kill()
        assert refused(second)
        third.kill()
        eventually(lambda: refused(first), within=30)
        second.start()
        eventually(lambda: not refused(first), within=30)


def test_server_that_does_not_answer_may_serve(tmp_path: Path) -> None:
    with zookeeper(tmp_path) as ensemble:
        (server,) = ensemble.servers
        server.pause()
        assert not refused(server)
        server.resume()


def config_of(tmp_path: Path, cluster: str) -> Config:
    """Of n1 in a cluster, with a certificate of its own authority."""
    key = tmp_path / f"{cluster}.key"
    key.write_text(hashlib.sha256(cluster.encode()).hexdigest())
    certificate = pki.issue(*pki.create_ca(str(key)), str(key), "n1", ["127.0.0.1"])
    tls = tmp_path / cluster
    tls.mkdir()
    for name in ("ca", "cert", "key"):
        (tls / f"{name}.pem").write_text(getattr(certificate, name))
    (port,) = free_ports(1)
    return parse(
        {
            "node": {"name": "n1"},
            "paths": {"tls": str(tls), "console": str(tmp_path)},
            "daemon": {"console_port": port},
        }
    )


@pytest.mark.processes
def test_only_the_cluster_is_told(tmp_path: Path) -> None:
    """Who has no certificate of its authority could talk a node into keeping its VMs."""
    configs = {cluster: config_of(tmp_path, cluster) for cluster in ("ours", "theirs")}
    port = configs["ours"].daemon.console_port
    server = PeerServer(configs["ours"], lambda: 7.5)
    server.start()
    server.start()
    try:
        assert ask(configs["ours"], "127.0.0.1", port, "quorum") == {"without_quorum_s": 7.5}
        with pytest.raises(Unavailable):
            ask(configs["theirs"], "127.0.0.1", port, "quorum")
        with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
            plain.sendall(b"GET /quorum HTTP/1.1\r\n\r\n")
            with suppress(ConnectionResetError):
                assert b"without_quorum_s" not in plain.recv(4096)
    finally:
        server.close()


def test_commit_of_checks_alone_needs_a_majority(tmp_path: Path) -> None:
    """What a node calls contact: a server that has just lost the others answers reads, and not this."""
    with zookeeper(tmp_path, servers=3) as ensemble:
        for server in ensemble.in_mode("follower"):
            store = ZooKeeperStore([server.address], secret=None)
            store.connect(20)
            if store.get("/here") is None:
                store.commit(Create("/here"))
            store.commit(Check("/here", 0))
            others = [other for other in ensemble.servers if other is not server]
            for other in others:
                other.pause()
            assert store.get("/here") is not None
            with pytest.raises(Unavailable):
                store.commit(Check("/here", 0))
            for other in others:
                other.resume()
            eventually(lambda store=store: proves(store), within=30)  # type: ignore[misc]
            store.close()


def proves(store: ZooKeeperStore) -> bool:
    try:
        store.commit(Check("/here", 0))
    except Unavailable:
        return False
    return True
