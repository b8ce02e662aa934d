"""The node's configuration: what is wrong is named, and servers come in a good order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pvc.config import Config, load, parse
from pvc.errors import Invalid, NotFound
from pvc.hostnetworks import Bond, HostNetworks

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


# The node's own networks

CLUSTER = {"device": "eth1", "address": "10.0.1.1/24", "mtu": 9000}
UPSTREAM = {"device": "eth0", "address": ["10.0.0.1/24", "fd00::1/64"], "gateway": ["10.0.0.254", "fe80::1"]}
BOND = {"members": ["eth2", "eth3"], "mode": "802.3ad"}


def networks(**sections: Any) -> HostNetworks:
    return parse({"network": sections}).network


def test_networks_of_the_node() -> None:
    found = networks(
        upstream=UPSTREAM,
        cluster={"device": "bond0", "vlan": 10, "address": "10.0.1.1/24", "bond": BOND},
        storage={"device": "bond0", "vlan": 20, "mtu": 9000, "address": "fd00:2::1/64"},
    )
    assert found.upstream is not None
    assert found.upstream.address == ("10.0.0.1/24", "fd00::1/64")
    assert found.cluster is not None
    assert found.cluster.address == ("10.0.1.1/24",)
    assert [one.link for one in found.sections().values()] == ["eth0", "bond0.10", "bond0.20"]
    assert found.bonds() == {"bond0": Bond(("eth2", "eth3"), "802.3ad")}


def test_the_address_of_a_node_need_not_be_said_twice() -> None:
    assert parse({"network": {"cluster": CLUSTER}}).node.address == "10.0.1.1"
    both = {"node": {"address": "10.0.1.1"}, "network": {"cluster": CLUSTER}}
    assert parse(both).node.address == "10.0.1.1"
    assert parse({"network": {"upstream": UPSTREAM}}).node.address == "127.0.0.1"
    storage = {"device": "eth2", "address": ["10.0.2.1/24", "fd00:2::1/64"]}
    described = parse({"network": {"cluster": CLUSTER, "storage": storage}})
    assert described.node.storage_address == "10.0.2.1"
    assert parse({"network": {"cluster": CLUSTER}}).node.storage_address == ""


def test_addresses_among_nodes_are_all_that_are_told_or_described() -> None:
    storage = {"device": "eth2", "address": ["10.0.2.1/24", "fd00:2::1/64"]}
    described = parse({"network": {"upstream": UPSTREAM, "cluster": CLUSTER, "storage": storage}})
    assert described.among_nodes() == ("10.0.1.1", "10.0.2.1", "fd00:2::1")
    told = parse({"node": {"address": "10.0.1.1", "storage_address": "10.0.2.1"}})
    assert told.among_nodes() == ("10.0.1.1", "10.0.2.1")


def test_a_node_whose_networks_somebody_else_configures() -> None:
    assert networks().sections() == {}
    assert set(networks(cluster=CLUSTER).sections()) == {"cluster"}


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"cluste": CLUSTER}, "unknown key network.cluste"),
        ({"cluster": {**CLUSTER, "adress": "1"}}, "unknown key network.cluster.adress"),
        ({"cluster": {"address": "10.0.1.1/24"}}, "network.cluster.device is missing"),
        ({"cluster": {"device": "a/b"}}, "network.cluster.device 'a/b' is not a device's name"),
        ({"cluster": {"device": ".."}}, "network.cluster.device '..' is not a device's name"),
        ({"cluster": {"device": "br101"}}, "network.cluster.device cannot be br101"),
        (
            {"cluster": {**CLUSTER, "address": "10.0.1.1"}},
            "network.cluster.address = '10.0.1.1' is no address",
        ),
        ({"cluster": {**CLUSTER, "address": "10.0.1.256/24"}}, "network.cluster.address"),
        ({"cluster": {**CLUSTER, "address": "10.0.1.0/24"}}, "is the address of the network 10.0.1.0/24"),
        ({"cluster": {**CLUSTER, "address": "10.0.1.255/24"}}, "is the address of the network 10.0.1.0/24"),
        ({"cluster": {**CLUSTER, "address": "127.0.0.1/8"}}, "cannot be the address of a node"),
        ({"cluster": {**CLUSTER, "address": 7}}, "network.cluster.address must be a list of texts"),
        ({"cluster": {**CLUSTER, "mtu": 100}}, "network.cluster.mtu 100 is not between 576"),
        ({"cluster": {**CLUSTER, "mtu": -1}}, "network.cluster.mtu -1"),
        ({"cluster": {**CLUSTER, "mtu": 70000}}, "network.cluster.mtu 70000"),
        ({"upstream": {**UPSTREAM, "mtu": 1000}}, "network.upstream.mtu 1000 is not between 1280"),
        ({"cluster": {**CLUSTER, "vlan": 4095}}, "network.cluster.vlan 4095"),
        ({"cluster": {**CLUSTER, "device": "enp130s0f1np1", "vlan": 100}}, "more than 15 characters"),
        ({"cluster": {**CLUSTER, "gateway": "10.0.2.1"}}, "network.cluster.gateway 10.0.2.1 is in none"),
        ({"cluster": {**CLUSTER, "gateway": "router"}}, "network.cluster.gateway = 'router' is not an IP"),
        ({"upstream": {**UPSTREAM, "gateway": "fe80::1%eth0"}}, "'fe80::1%eth0' is not an IP address"),
        ({"cluster": {**CLUSTER, "gateway": "10.0.1.1"}}, "10.0.1.1 is this node's own address"),
        (
            {"upstream": {**UPSTREAM, "gateway": ["10.0.0.253", "10.0.0.254"]}},
            "network.upstream.gateway names two of one kind",
        ),
        (
            {"upstream": UPSTREAM, "cluster": {**CLUSTER, "gateway": "10.0.1.254"}},
            "network.cluster.gateway is a second default route, beside network.upstream's",
        ),
        (
            {"cluster": CLUSTER, "storage": {"device": "eth2", "address": "10.0.1.1/32"}},
            "network.storage.address 10.0.1.1 is that of network.cluster too",
        ),
        (
            {"cluster": CLUSTER, "storage": {"device": "eth2", "address": "10.0.1.9/16"}},
            "network.storage.address 10.0.1.9/16 overlaps with 10.0.1.1/24 of network.cluster",
        ),
        (
            {"upstream": {**UPSTREAM, "device": "eth1", "mtu": 1500}, "cluster": CLUSTER},
            "network.upstream.mtu 1500 is not that of network.cluster, 9000",
        ),
        (
            {"upstream": {**UPSTREAM, "mtu": 1500}, "cluster": {**CLUSTER, "device": "eth0", "vlan": 9}},
            "network.cluster.mtu 9000 is more than the 1500 of eth0",
        ),
        ({"cluster": {**CLUSTER, "bond": {}}}, "network.cluster.bond.members is empty"),
        ({"cluster": {**CLUSTER, "bond": {**BOND, "mode": "fast"}}}, "network.cluster.bond.mode cannot be"),
        ({"cluster": {**CLUSTER, "bond": {"members": ["eth1", "eth2"]}}}, "or the bond itself"),
        ({"cluster": {**CLUSTER, "bond": {"members": ["eth2", "eth2"]}}}, "names a device twice"),
        (
            {"cluster": {**CLUSTER, "bond": BOND}, "upstream": {**UPSTREAM, "device": "eth2"}},
            "network.upstream.device eth2 is a member of eth1",
        ),
        (
            {"cluster": {**CLUSTER, "bond": BOND}, "upstream": {**UPSTREAM, "bond": BOND}},
            "eth2 is a member of eth0 already",
        ),
        (
            {
                "cluster": {**CLUSTER, "bond": BOND},
                "storage": {"device": "eth1", "bond": {**BOND, "mode": "broadcast"}},
            },
            "network.storage.bond differs from network.cluster.bond",
        ),
        (
            {"cluster": {**CLUSTER, "vlan": 7}, "storage": {"device": "eth1.7", "address": "10.0.2.1/24"}},
            "network.storage.device eth1.7 is the VLAN of another network",
        ),
    ],
)
def test_what_is_wrong_with_a_network_is_named(plain: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid) as error:
        parse({"network": plain}, "pvc.toml")
    assert said in error.value.message
    assert error.value.message.startswith("pvc.toml: ")


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"address": "10.0.1.2"}, "node.address 10.0.1.2 is not among network.cluster.address (10.0.1.1/24)"),
        ({"storage_address": "10.0.2.2"}, "node.storage_address 10.0.2.2 is not among network.storage"),
        ({"bridge_device": "eth2"}, "node.bridge_device eth2 is a member of bond0"),
        ({"sriov_devices": {"eth4": -1}}, "node.sriov_devices must be a table of whole numbers"),
        ({"sriov_devices": ["eth4"]}, "node.sriov_devices must be a table of whole numbers"),
    ],
)
def test_networks_agree_with_the_rest(node: dict[str, Any], said: str) -> None:
    storage = {"device": "bond0", "address": "10.0.2.1/24", "bond": BOND}
    with pytest.raises(Invalid) as error:
        parse({"node": node, "network": {"cluster": CLUSTER, "storage": storage}})
    assert said in error.value.message
