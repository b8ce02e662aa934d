"""Asking real ZooKeeper servers beside their protocol: who refuses, and who only may."""

from __future__ import annotations

import socket
from pathlib import Path

from pvc.node.drivers.fourletter import refuses, settings
from tests.support import eventually
from tests.zookeeper import free_ports, zookeeper


def test_server_refuses_when_it_is_down_or_without_a_quorum(tmp_path: Path) -> None:
    with zookeeper(tmp_path, 3) as ensemble:
        left, *others = ensemble.servers
        host, _, port = left.address.rpartition(":")
        assert settings(host, int(port))["tickTime"].isdigit()
        assert settings(host, int(port))["syncLimit"].isdigit()
        assert not refuses(host, int(port))
        left.pause()
        assert not refuses(host, int(port)), "it may serve and be slow"
        left.resume()
        for server in others:
            server.kill()
        eventually(lambda: refuses(host, int(port)), within=20)
        ensemble.heal()
        assert not refuses(host, int(port))
        left.kill()
        assert refuses(host, int(port))


def test_silence_is_no_refusal() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not refuses("127.0.0.1", silent.getsockname()[1])
        assert settings("127.0.0.1", silent.getsockname()[1]) == {}
    assert refuses("127.0.0.1", free_ports(1)[0])
