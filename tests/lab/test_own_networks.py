"""A node whose cluster and storage networks PVC brings up itself, and which survives a wrong description."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator

import pytest

from pvc.lab.layout import CLUSTER, STORAGE
from tests.lab import dying
from tests.lab.labs import RunningLab
from tests.lab.vms import Cluster
from tests.support import eventually

NODE = "n3"
WRONG = "10.99.99.3"
TOML = "/etc/pvc/pvc.toml"
APPLY = ("pvc", "node", "network", "apply")


@pytest.fixture(scope="module")
def cluster(lab: RunningLab) -> Cluster:
    """One node leaves two of its networks to us, from its boot on."""
    found = Cluster(lab)
    layout = lab.layout
    node = layout.node(NODE)
    sections = "".join(
        f'\n[network.{name}]\ndevice = "{on.name}"\nmtu = 9000\naddress = "{layout.address(node, on)}/24"\n'
        for name, on in (("cluster", CLUSTER), ("storage", STORAGE))
    )
    lab.run(NODE, "sh", "-c", f"cat >> {TOML}", stdin=sections)
    lab.sh(NODE, "rm /etc/systemd/network/10-clu.network /etc/systemd/network/10-sto.network")
    lab.power(NODE, "reset")
    lab.settle()
    lab.sh(NODE, f"cp {TOML} {TOML}.good")
    return found


@pytest.fixture
def described(cluster: Cluster) -> Iterator[Cluster]:
    """Whatever a test does to the description is undone."""
    yield cluster
    cluster.lab.sh(NODE, f"cp {TOML}.good {TOML}")
    cluster.run(NODE, *APPLY)
    cluster.lab.settle()


def change(cluster: Cluster, before: str, after: str) -> None:
    cluster.lab.sh(NODE, f"sed -i 's#{before}#{after}#' {TOML}")


def own(cluster: Cluster) -> str:
    layout = cluster.lab.layout
    return layout.address(layout.node(NODE), CLUSTER)


def addresses(cluster: Cluster) -> dict[str, list[str]]:
    said = json.loads(cluster.run(NODE, "ip", "-j", "-4", "address", "show").stdout)
    found = {one["ifname"]: [address["local"] for address in one["addr_info"]] for one in said}
    return defaultdict(list, found)


def why(cluster: Cluster) -> list[str]:
    return [one for one in cluster.json("why", "node", NODE)["because"] if one.startswith("its own networks")]


def test_the_node_boots_with_its_networks_brought_up_before_zookeeper(cluster: Cluster) -> None:
    assert own(cluster) in addresses(cluster)["clu"]
    assert "unmanaged" in cluster.lab.sh(NODE, "networkctl list clu --no-legend")
    link = cluster.lab.sh(NODE, "ip link show clu")
    assert "mtu 9000" in link
    order = cluster.lab.sh(
        NODE,
        "for unit in pvc-networks zookeeper; do systemctl show -P ActiveEnterTimestampMonotonic $unit; done",
    )
    networks, zookeeper = map(int, order.split())
    assert 0 < networks <= zookeeper
    assert why(cluster) == []
    again = cluster.run(NODE, "pvc", "node", "network", "up")
    assert "as described" in again.stderr


def test_what_somebody_else_takes_away_comes_back(cluster: Cluster) -> None:
    layout = cluster.lab.layout
    storage = layout.address(layout.node(NODE), STORAGE)
    cluster.run(NODE, "ip", "address", "del", f"{storage}/24", "dev", "sto")
    eventually(lambda: storage in addresses(cluster)["sto"], within=40, every=1)


def test_a_change_that_works_is_kept(described: Cluster) -> None:
    change(described, "mtu = 9000", "mtu = 8000")
    said = described.run(NODE, *APPLY).stderr
    assert "the networks are kept" in said
    assert "mtu 8000" in described.lab.sh(NODE, "ip link show clu")


def test_a_wrong_address_is_taken_back_and_no_vm_notices(described: Cluster) -> None:
    """For a minute the node is out of the cluster."""
    with described.vm("calm", "--target", NODE):
        ticks = described.ticking("calm", NODE)
        pid = described.qemu_pid("calm", NODE)
        change(described, f'address = "{own(described)}', f'address = "{WRONG}')
        ended = described.run(NODE, *APPLY, check=False)
        assert (ended.code, WRONG in str(addresses(described))) == (1, False)
        assert "all is as it was before: the cluster was not reached with it" in ended.stderr
        assert own(described) in addresses(described)["clu"]
        described.lab.settle(within=20)  # ZooKeeper, left alone, would take most of a minute
        assert described.qemu_pid("calm", NODE) == pid
        later = described.ticking("calm", NODE, more_than=len(ticks))
        assert [one.number for one in later] == list(range(later[0].number, later[-1].number + 1))
        assert later[-1].uptime_s - ticks[-1].uptime_s > 55
        eventually(lambda: any("was rolled back" in one for one in why(described)), within=30, every=1)


def test_a_vlan_that_cannot_be_made_is_taken_back(described: Cluster) -> None:
    change(described, 'device = "clu"', 'device = "clu"\\nvlan = 7')
    ended = described.run(NODE, *APPLY, check=False)
    assert ended.code == 1
    assert re.search("the kernel has no vlan devices|the cluster was not reached", ended.stderr)
    assert own(described) in addresses(described)["clu"]


def test_a_daemon_that_is_killed_on_trial_takes_the_change_back(described: Cluster) -> None:
    change(described, f'address = "{own(described)}', f'address = "{WRONG}')
    described.lab.sh(NODE, f"{' '.join(APPLY)} >/dev/null 2>&1 &")
    eventually(lambda: WRONG in addresses(described)["clu"], within=20, every=0.2)
    described.lab.lab("kill", NODE, "pvc-node")
    eventually(lambda: own(described) in addresses(described)["clu"], within=20, every=0.5)
    assert WRONG not in addresses(described)["clu"]


def test_an_armed_node_refuses_what_could_end_its_vms(described: Cluster) -> None:
    with dying.armed(described.lab) as armed:
        eventually(lambda: "watchdog" in armed.json("node", "info", NODE)["fenced_by"], within=60, every=1)
        change(described, f'address = "{own(described)}', f'address = "{WRONG}')
        ended = armed.run(NODE, *APPLY, check=False)
        assert ended.code == 4
        assert "pvc cluster maintenance on" in ended.stderr
        assert own(armed) in addresses(armed)["clu"]


def test_what_is_wrong_in_it_is_said_before_anything_is_tried(described: Cluster) -> None:
    change(described, f"{own(described)}/24", own(described))
    ended = described.run(NODE, *APPLY, check=False)
    assert ended.code == 2
    assert "network.cluster.address" in ended.stderr
