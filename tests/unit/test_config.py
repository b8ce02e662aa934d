"""The node's configuration: what is wrong is named, and servers come in a good order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pvc.config import Config, load, parse
from pvc.errors import Invalid, NotFound

COORDINATORS = ["10.0.0.1", "10.0.0.2:2182", "10.0.0.3"]
SERVERS = ("10.0.0.1:2181", "10.0.0.2:2182", "10.0.0.3:2181")


def node(name: str, address: str) -> Config:
    return parse({"node": {"name": name, "address": address}, "cluster": {"coordinators": COORDINATORS}})


def test_coordinator_asks_its_own_server_first() -> None:
    assert node("n2", "10.0.0.2").servers()[0] == "10.0.0.2:2182"


def test_hypervisors_spread_over_the_servers() -> None:
    orders = {node(f"n{number}", f"10.0.1.{number}").servers() for number in range(1, 20)}
    assert {order[0] for order in orders} == set(SERVERS)
    assert all(sorted(order) == sorted(SERVERS) for order in orders)
    assert node("n9", "10.0.1.9").servers() == node("n9", "10.0.1.9").servers()


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"node": {"nam": "n1"}}, "unknown key node.nam"),
        ({"nodes": {}}, "unknown key nodes"),
        ({"node": "n1"}, "node must be a table"),
        ({"node": {"name": 1}}, "node.name must be a text, not 1"),
        ({"node": {"name": "N 1"}}, "'N 1' is not a short host name"),
        ({"node": {"name": "n1", "address": "n1"}}, "node.address = 'n1' is not an IP address"),
        ({"node": {"name": "n1"}, "cluster": {"coordinators": []}}, "cluster.coordinators is empty"),
        ({"cluster": {"coordinators": "10.0.0.1"}}, "cluster.coordinators must be a list of texts"),
        ({"daemon": {"keepalive_s": 0}}, "daemon.keepalive_s must be greater than 0"),
        ({"daemon": {"console_port": True}}, "daemon.console_port must be a whole number, not True"),
    ],
)
def test_what_is_wrong_is_named(plain: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid) as error:
        parse(plain, "pvc.toml")
    assert said in error.value.message


def test_file_that_is_missing_or_no_toml(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no node configuration"):
        load(str(tmp_path / "pvc.toml"))
    (tmp_path / "pvc.toml").write_text("[node")
    with pytest.raises(Invalid, match=r"pvc\.toml"):
        load(str(tmp_path / "pvc.toml"))


@pytest.mark.parametrize("text", ["", "0123", "Z" * 64])
def test_key_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    key = tmp_path / "cluster.key"
    config = parse({"node": {"name": "n1"}, "cluster": {"key_file": str(key)}})
    with pytest.raises(NotFound, match="no cluster key"):
        config.secret()
    key.write_text(text)
    with pytest.raises(Invalid, match="64 hexadecimal digits"):
        config.secret()
