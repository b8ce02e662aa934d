"""Pools in Ceph as a whole: operations, tasks on real threads, a node that is asked, a real Ceph."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import rbd

from pvc.cluster import paths
from pvc.errors import Conflict, Invalid, NotFound
from pvc.node.drivers import ceph as client
from tests.ceph import Ceph, ceph
from tests.contract.test_storage_tasks import OneNode, one_node
from tests.support import eventually

ONE = {"replcfg": "copies=1,mincopies=1", "force": True}
"""There is one OSD."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    with ceph(tmp_path_factory.mktemp("ceph"), may_delete=False) as made:
        yield made


@pytest.fixture
def node(cluster: Ceph, tmp_path: Path) -> Iterator[OneNode]:
    """With a Ceph without pools."""
    with one_node(tmp_path, lambda: client.Ceph(cluster.conf, "admin")) as made:
        yield made
    cluster.command("config set", who="mon", name="mon_allow_pool_delete", value="true")
    for name in cluster.command("osd pool ls"):
        cluster.command("osd pool delete", pool=name, pool2=name, yes_i_really_really_mean_it=True)
    cluster.command("config rm", who="mon", name="mon_allow_pool_delete")


def made(node: OneNode, name: str = "vms", **more: Any) -> None:
    found = node.done("storage.pool-add", pool=name, pgs=8, **{**ONE, **more})
    assert found["reason"] == ""


def in_ceph(cluster: Ceph) -> dict[str, Any]:
    return {one["pool_name"]: one for one in cluster.command("osd pool ls", detail="detail")}


def test_a_pool_from_beginning_to_end(node: OneNode, cluster: Ceph) -> None:
    made(node)
    found = in_ceph(cluster)["vms"]
    assert (found["size"], found["min_size"], found["pg_num"], found["pg_placement_num"]) == (1, 1, 8, 8)
    assert found["pg_autoscale_mode"] == "off"
    shown = node.call("storage.pool-info", pool="vms")
    assert (shown["driver"], shown["state"], shown["volumes"], shown["path"]) == ("rbd", "up", 0, "")
    assert (shown["ceph"]["tier"], shown["ceph"]["copies"], shown["ceph"]["pgs"]) == ("default", 1, 8)
    eventually(lambda: node.call("storage.pool-info", pool="vms")["health"] == "ok", within=30)
    (row,) = node.call("storage.pool-list")
    assert (row["pgs"], row["copies"], row["state"]) == (8, 1, "up")
    assert row["total_bytes"] > row["used_bytes"] >= 0
    with pytest.raises(Conflict, match="there is a pool vms already"):
        node.call("storage.pool-add", pool="vms", **ONE)
    assert node.done("storage.pool-remove", pool="vms")["reason"] == ""
    assert in_ceph(cluster) == {}
    assert node.call("storage.pool-list") == []
    assert cluster.command("config dump") == [], "what was allowed for it is not any more"


@contextmanager
def full(cluster: Ceph) -> Iterator[None]:
    """What it holds is more than it takes."""
    with client.Ceph(cluster.conf, "admin").opened("vms", client.ASK_TIMES) as io:
        for piece in range(16):
            io.write("large", bytes(4 * 1024**2), piece * 4 * 1024**2)
    ratios = {"nearfull": 0.85, "backfillfull": 0.90, "full": 0.95}
    for at, ratio in enumerate(ratios):
        cluster.command(f"osd set-{ratio}-ratio", ratio=0.003 + 0.001 * at)
    try:
        yield
    finally:
        for ratio, usual in reversed(ratios.items()):
            cluster.command(f"osd set-{ratio}-ratio", ratio=usual)


def test_nobody_waits_in_a_full_ceph(node: OneNode, cluster: Ceph) -> None:
    """Its clients do, in every change, also in one that removes."""
    made(node)
    assert node.done("storage.volume-add", pool="vms", volume="web1", size="8M")["reason"] == ""
    before = node.call("storage.volume-info", pool="vms", volume="web1")
    with full(cluster):
        eventually(lambda: "full" in in_ceph(cluster)["vms"]["flags_names"].split(","), within=60)
        for operation, given in (
            ("volume-add", {"volume": "web2", "size": "8M"}),
            ("volume-add", {"volume": "web2", "size": "8M", "force": True}),
            ("volume-clone", {"volume": "web1", "new": "web2", "force": True}),
            ("volume-resize", {"volume": "web1", "size": "16M", "force": True}),
            ("volume-rename", {"volume": "web1", "new": "web2"}),
            ("volume-remove", {"volume": "web1"}),
            ("volume-snapshot-add", {"volume": "web1", "snapshot": "tue"}),
        ):
            ended = node.done(f"storage.{operation}", pool="vms", **given)
            assert ended["state"] == "failed", operation
            assert "full" in ended["reason"], operation
    eventually(lambda: "full" not in in_ceph(cluster)["vms"]["flags_names"].split(","), within=60)
    cluster.command("osd pool set-quota", pool="vms", field="max_bytes", val="1")
    eventually(lambda: "full_quota" in in_ceph(cluster)["vms"]["flags_names"].split(","), within=60)
    assert "quota" in node.done("storage.volume-remove", pool="vms", volume="web1")["reason"]
    cluster.command("osd pool set-quota", pool="vms", field="max_bytes", val="0")
    eventually(lambda: "full" not in in_ceph(cluster)["vms"]["flags_names"].split(","), within=60)
    assert node.call("storage.volume-info", pool="vms", volume="web1") == before
    assert node.done("storage.volume-remove", pool="vms", volume="web1")["reason"] == ""
    assert node.call("storage.volume-list") == []


def test_all_that_is_known_of_an_osd(node: OneNode, cluster: Ceph) -> None:
    made(node)
    node.world.edit(paths.node_status("n1"), ceph={"fsid": "f", "osds": [0], "problems": []})
    (row,) = node.call("storage.osd-list")
    found = node.call("storage.osd-info", osd=0)
    shared = row.keys() - {"used_bytes", "used_percent", "pgs"}
    assert {name: found[name] for name in shared} == {name: row[name] for name in shared}
    assert found["version"].startswith("16.2.")
    assert (found["store"], found["reweight"]) == ("memstore", 1.0)
    assert 0 < found["created_at"] < found["since"] < time.time()
    assert (found["commit_latency_ms"], found["devices"]) == (0.0, [])
    assert (found["is_safe_to_stop"], found["is_safe_to_remove"]) == (False, False)
    stop, remove = found["objections"]
    assert "would become offline" in stop
    assert remove == "remove: placement groups are on it"
    with pytest.raises(NotFound, match="there is no OSD 7"):
        node.call("storage.osd-info", osd=7)


def test_placement_groups_become_more_and_fewer(node: OneNode, cluster: Ceph) -> None:
    made(node)
    for pgs in (16, 4):
        found = node.done("storage.pool-set-pgs", pool="vms", pgs=pgs)
        assert (found["reason"], found["result"]["ceph"]["pgs_wanted"]) == ("", pgs)
        now = in_ceph(cluster)["vms"]
        assert (now["pg_num_target"], now["pg_placement_num_target"]) == (pgs, pgs)
    node.done("storage.pool-set-pgs", pool="vms")
    assert in_ceph(cluster)["vms"]["pg_autoscale_mode"] == "on"
    assert node.call("storage.pool-info", pool="vms")["ceph"]["is_autoscaled"]
    found = node.done("storage.pool-set-pgs", pool="vms", pgs=65536)
    assert (found["state"], "exceeds max" in found["reason"]) == ("failed", True)
    assert in_ceph(cluster)["vms"]["pg_autoscale_mode"] == "on", "as it was"


def test_a_pool_of_others_is_neither_taken_nor_removed(node: OneNode, cluster: Ceph) -> None:
    cluster.add_pool("images")
    found = node.done("storage.pool-add", pool="images", **ONE)
    assert found["reason"] == "Ceph has a pool images already, that is not of pvc"
    made(node)
    cluster.command("osd pool application set", pool="vms", app="rbd", key="pvc", value="another")
    node.working.looking.wake()
    why = "the pool vms of the Ceph that is reached from here is not that of this cluster"
    eventually(lambda: node.call("storage.pool-list")[0]["state"] == "down", within=10)
    assert node.call("storage.pool-list")[0]["health"].endswith(why)
    assert node.done("storage.pool-remove", pool="vms", force=True)["reason"] == ""
    assert set(in_ceph(cluster)) == {"images", "vms"}
    found = node.done("storage.pool-add", pool="vms", **ONE)
    assert found["reason"] == "Ceph has a pool vms already, of another cluster of pvc"


def test_a_pool_that_is_not_empty_stays(node: OneNode, cluster: Ceph) -> None:
    made(node)
    assert node.done("storage.volume-add", pool="vms", volume="web1", size="8M")["reason"] == ""
    found = node.done("storage.pool-remove", pool="vms")
    assert found["reason"] == "pool vms has 1 volumes: web1"
    assert node.done("storage.volume-remove", pool="vms", volume="web1")["reason"] == ""
    connected = cluster.connect()
    io = connected.open_ioctx("vms")
    rbd.RBD().create(io, ".hidden", 4096, old_format=False)
    found = node.done("storage.pool-remove", pool="vms")
    assert found["reason"].startswith("there is more in pool vms of Ceph than volumes: an object rbd_")
    rbd.RBD().trash_move(io, ".hidden")
    found = node.done("storage.pool-remove", pool="vms")
    assert found["reason"].startswith("there is more in pool vms of Ceph than volumes: an object rbd_")
    assert node.call("storage.pool-list")[0]["state"] == "up"
    assert node.done("storage.pool-remove", pool="vms", force=True)["reason"] == ""
    assert in_ceph(cluster)["vms"]["application_metadata"] == {"rbd": {}}
    connected.shutdown()


def test_where_there_is_no_place_for_copies_nothing_is_made(node: OneNode, cluster: Ceph) -> None:
    (name,) = [one["name"] for one in cluster.command("osd tree")["nodes"] if one["type"] == "host"]
    found = node.done("storage.pool-add", pool="vms")
    assert found["reason"] == (
        f"3 copies need as many hosts with OSDs of tier default, and there is 1: {name}"
    )
    found = node.done("storage.pool-add", pool="vms", tier="nvme", **ONE)
    assert found["reason"] == "no OSD is of tier nvme; there are those of hdd"
    assert in_ceph(cluster) == {}
    made(node, tier="hdd")
    assert node.call("storage.pool-info", pool="vms")["ceph"]["tier"] == "hdd"


def test_volumes_from_beginning_to_end(node: OneNode) -> None:
    made(node)
    added = node.done("storage.volume-add", pool="vms", volume="golden", size="64M")
    assert added["result"]["volume"] == {
        "name": "golden",
        "size_bytes": 64 * 1024**2,
        "used_bytes": 0,
        "format": "raw",
        "problem": "",
    }
    for operation, given in (
        ("volume-snapshot-add", {"volume": "golden", "snapshot": "s1"}),
        ("volume-resize", {"volume": "golden", "size": "96M"}),
        ("volume-clone", {"volume": "golden", "new": "web1"}),
        ("volume-rename", {"volume": "web1", "new": "web2"}),
        ("volume-snapshot-rename", {"volume": "golden", "snapshot": "s1", "new": "s2"}),
        ("volume-snapshot-rollback", {"volume": "golden", "snapshot": "s2"}),
        ("volume-snapshot-protect", {"volume": "golden", "snapshot": "s2"}),
    ):
        assert node.done(f"storage.{operation}", pool="vms", **given)["reason"] == ""
    rows = node.call("storage.volume-list", pool="vms")
    assert [(row["name"], row["size_bytes"]) for row in rows] == [
        ("golden", 64 * 1024**2),
        ("web2", 96 * 1024**2),
    ]
    shown = node.call("storage.volume-info", pool="vms", volume="golden")
    assert (shown["location"], shown["is_open"]) == ("vms/golden", False)
    assert [(one["name"], one["is_protected"]) for one in shown["snapshots"]] == [("s2", True)]
    assert json.loads(json.dumps(shown)) == shown
    full = node.done("storage.volume-clone", pool="vms", volume="web2", new="web3", flatten=True)
    assert full["reason"] == ""
    assert node.done("storage.volume-remove", pool="vms", volume="web3")["reason"] == ""
    found = node.done("storage.volume-remove", pool="vms", volume="golden")
    assert found["reason"] == "snapshot s2 of volume golden is protected"
    with pytest.raises(Invalid, match="volumes in Ceph are raw, not qcow2"):
        node.call("storage.volume-add", pool="vms", volume="web1", size="8M", format="qcow2")
    found = node.done("storage.volume-add", pool="vms", volume="web1", size="1T")
    assert "more do not fit into pool vms" in found["reason"]
    smaller = node.done("storage.volume-resize", pool="vms", volume="web2", size="8M")
    assert "would be cut off" in smaller["reason"]
    assert node.done("storage.volume-remove", pool="vms", volume="web9")["error"]["code"] == "not-found"
    assert node.world.store.children(paths.pool_claims("vms")) == ()


def test_who_has_it_open_is_told_and_keeps_it(node: OneNode, cluster: Ceph) -> None:
    made(node)
    node.done("storage.volume-add", pool="vms", volume="web1", size="8M")
    connected = cluster.connect()
    with rbd.Image(connected.open_ioctx("vms"), "web1") as image:
        image.write(b"running", 0)
        shown = node.call("storage.volume-info", pool="vms", volume="web1")
        ((user,), is_open) = shown["users"], shown["is_open"]
        assert (user["has_lock"], user["address"].startswith("127.0.0.1:"), is_open) == (True, True, True)
        found = node.done("storage.volume-remove", pool="vms", volume="web1")
        assert found["reason"].startswith("volume web1 is in use")
    connected.shutdown()
    assert node.call("storage.volume-info", pool="vms", volume="web1")["users"] == []
    assert node.done("storage.volume-remove", pool="vms", volume="web1")["reason"] == ""
