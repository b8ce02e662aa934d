"""Pools and volumes as operations see them: what is asked of nodes, what is refused, what is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pvc.cluster import paths
from pvc.cluster.ceph import Traffic
from pvc.cluster.codec import dumps, from_json
from pvc.cluster.store import Create, Put
from pvc.cluster.view import View
from pvc.commands.types import volume_bytes
from pvc.errors import Conflict, Invalid, NotFound, Unavailable
from tests.unit.commands.storing import Storing, a_directory, storing
from tests.unit.commands.world import World

GIB = 1024**3


def vm_with(world: World, disk: str, name: str = "web1") -> None:
    world.call("vm.create", name=name, disk=[disk], target="n1")


# Pools


def test_a_pool_is_there_when_it_has_been_prepared(tmp_path: Path) -> None:
    cluster, where = Storing(), a_directory(tmp_path)
    begun = cluster.call("storage.pool-add", pool="vms", path=f"{where}/")
    assert begun["goal"] == {"state": "done"}
    assert cluster.call("storage.pool-list") == []
    cluster.work()
    assert cluster.call("task.info", task=begun["name"])["state"] == "done"
    (row,) = cluster.call("storage.pool-list")
    assert row == {
        "name": "vms",
        "driver": "dir",
        "path": where,
        "tier": "",
        "copies": None,
        "pgs": None,
        "total_bytes": cluster.pool.total_bytes,
        "used_bytes": 0,
        "reach": "all nodes",
        "state": "up",
        "health": "ok",
    }
    with pytest.raises(Conflict, match="there is a pool vms already"):
        cluster.call("storage.pool-add", pool="vms", path="/srv/other")
    with pytest.raises(Conflict, match="is pool vms already"):
        cluster.call("storage.pool-add", pool="other", path=where)


def test_a_directory_that_is_not_there_makes_no_pool(tmp_path: Path) -> None:
    cluster = Storing()
    found = cluster.done("storage.pool-add", pool="vms", path=str(tmp_path / "absent"), node="n2")
    assert (found["state"], found["node"], found["error"]["code"]) == ("failed", "n2", "not-found")
    assert cluster.call("storage.pool-list") == []


def test_two_who_make_the_same_pool_make_one(tmp_path: Path) -> None:
    cluster, where = Storing(), a_directory(tmp_path)
    first = cluster.call("storage.pool-add", pool="vms", path=where)
    second = cluster.call("storage.pool-add", pool="vms", path=where)
    cluster.work()
    states = [cluster.call("task.info", task=one["name"])["state"] for one in (first, second)]
    assert states == ["done", "failed"]
    (marker,) = list(Path(where).iterdir())
    assert marker.read_text() == View(cluster.world.store).pool("vms").spec.id


def test_a_pool_with_volumes_stays(tmp_path: Path) -> None:
    cluster, where = Storing(), a_directory(tmp_path)
    cluster.done("storage.pool-add", pool="vms", path=where)
    cluster.done("storage.volume-add", pool="vms", volume="web1", size="1G")
    found = cluster.done("storage.pool-remove", pool="vms")
    assert found["reason"] == "pool vms has 1 volumes: web1"
    assert cluster.call("storage.pool-list")[0]["state"] == "up"
    cluster.done("storage.volume-remove", pool="vms", volume="web1")
    assert cluster.done("storage.pool-remove", pool="vms")["state"] == "done"
    assert cluster.call("storage.pool-list") == []
    assert list(Path(where).iterdir()) == []


def test_nothing_begins_in_a_pool_that_is_being_removed() -> None:
    cluster = storing()
    cluster.call("storage.pool-remove", pool="vms")
    assert cluster.call("storage.pool-list")[0]["state"] == "leaving"
    with pytest.raises(Conflict, match="pool vms is being removed"):
        cluster.call("storage.volume-add", pool="vms", volume="web1", size="1G")


def test_a_pool_in_which_something_goes_on_stays() -> None:
    cluster = storing()
    spec = View(cluster.world.store).pool("vms").spec
    cluster.pool.kept.clear()
    cluster.world.store.commit(Create(paths.pool_claim("vms", "web1"), b"0000000a"))
    found = cluster.done("storage.pool-remove", pool="vms")
    assert found["reason"] == "volume web1 of pool vms is being changed"
    assert View(cluster.world.store).pool("vms").spec == spec


def test_a_pool_that_nobody_reaches_any_more_can_be_forgotten() -> None:
    cluster = Storing()
    cluster.add_pool("local", node="n2")
    cluster.call("storage.volume-add", pool="local", volume="web1", size="1G")
    cluster.world.kill_node("n2")
    with pytest.raises(Unavailable, match="no node reaches pool local"):
        cluster.call("storage.pool-remove", pool="local")
    begun = cluster.call("storage.pool-remove", pool="local", force=True)
    assert begun["node"] == "n1"
    del cluster.tasks["n2"]
    cluster.work()
    assert cluster.call("task.info", task=begun["name"])["reason"] == ""
    assert cluster.call("storage.pool-list") == []
    cluster.world.call("node.remove", node="n2")


def test_info_tells_what_is_in_it_and_how_it_is_on_each_node() -> None:
    cluster = storing()
    cluster.pool.used_bytes = 30 * GIB
    cluster.world.kill_node("n3")
    cluster.world.edit(paths.node_status("n2"), pool_problems={"vms": "is it mounted?"})
    found = cluster.call("storage.pool-info", pool="vms")
    assert (found["used_percent"], found["volumes"], found["provisioned_bytes"]) == (30, 1, 10 * GIB)
    assert found["nodes"] == {"n1": "up", "n2": "is it mounted?", "n3": "its daemon is dead"}
    assert (found["state"], found["ceph"], found["each_second"]) == ("incomplete", None, None)


def test_info_of_a_pool_in_ceph_tells_what_goes_on_by_one_question() -> None:
    cluster = storing()
    cluster.add_ceph_pool("ssds")
    cluster.pool.goes_on = Traffic(read_bytes=1, write_bytes=2, reads=3, writes=4, recovery_bytes=5)
    found = cluster.call("storage.pool-info", pool="ssds")
    assert from_json(Traffic, found["each_second"]) == cluster.pool.goes_on
    assert (found["ceph"]["copies"], found["volumes"]) == (3, 1)
    assert cluster.asked == ["10.0.0.1 storage/ssds?whole=1"]


def test_nodes_publish_which_pools_they_do_not_reach() -> None:
    cluster = storing()
    cluster.add_pool("local", node="n2", path="/srv/local")
    cluster.look()
    assert cluster.world.plain(paths.node_status("n1"))["pool_problems"] == {}
    cluster.pool.is_mounted = False
    cluster.look()
    assert cluster.world.plain(paths.node_status("n1"))["pool_problems"] == {"vms": "the pool is not here"}
    assert set(cluster.world.plain(paths.node_status("n2"))["pool_problems"]) == {"vms", "local"}
    assert "node n2: pool local: the pool is not here" in cluster.call("cluster.status")["problems"]
    with pytest.raises(Unavailable, match="no node reaches pool vms now: n1: the pool is not here"):
        cluster.call("storage.volume-add", pool="vms", volume="web1", size="1G")


def test_a_node_that_does_not_answer_is_not_the_only_one_asked() -> None:
    cluster = storing()
    cluster.silent = {"10.0.0.1"}
    assert [row["name"] for row in cluster.call("storage.volume-list")] == ["golden"]
    assert cluster.asked == ["10.0.0.1 storage/vms", "10.0.0.2 storage/vms"]
    cluster.silent = {"10.0.0.1", "10.0.0.2", "10.0.0.3"}
    with pytest.raises(Unavailable, match=r"10\.0\.0\.2 does not answer"):
        cluster.call("storage.volume-list")


# Volumes


def test_a_pool_of_one_node_is_changed_and_read_there() -> None:
    cluster = Storing()
    cluster.add_pool("local", node="n2")
    found = cluster.done("storage.volume-add", pool="local", volume="web1", size="1.5G", format="raw")
    assert (found["node"], found["state"]) == ("n2", "done")
    assert found["result"]["volume"]["size_bytes"] == 3 * GIB // 2
    shown = cluster.call("storage.volume-info", pool="local", volume="web1")
    assert (shown["size_bytes"], shown["format"], shown["is_open"], shown["vm"]) == (
        3 * GIB // 2,
        "raw",
        False,
        None,
    )
    assert cluster.asked == ["10.0.0.2 storage/local/web1"]
    cluster.world.kill_node("n2")
    with pytest.raises(Unavailable, match="no node reaches pool local now: n2: its daemon is dead"):
        cluster.call("storage.volume-list")


def test_a_life_of_a_volume() -> None:
    cluster = storing()
    for operation, given in (
        ("volume-resize", {"volume": "golden", "size": "12G"}),
        ("volume-clone", {"volume": "golden", "new": "web1"}),
        ("volume-rename", {"volume": "web1", "new": "web2"}),
        ("volume-snapshot-rename", {"volume": "golden", "snapshot": "s1", "new": "s2"}),
        ("volume-snapshot-rollback", {"volume": "golden", "snapshot": "s2"}),
        ("volume-snapshot-protect", {"volume": "golden", "snapshot": "s2"}),
    ):
        assert cluster.done(f"storage.{operation}", pool="vms", **given)["reason"] == ""
    rows = cluster.call("storage.volume-list", pool="vms")
    assert [(row["name"], row["size_bytes"]) for row in rows] == [("golden", 10 * GIB), ("web2", 12 * GIB)]
    (kept,) = cluster.call("storage.volume-snapshot-list", pool="vms", volume="golden")
    assert (kept["name"], kept["is_protected"], kept["size_bytes"]) == ("s2", True, 10 * GIB)
    found = cluster.done("storage.volume-remove", pool="vms", volume="golden")
    assert found["error"]["code"] == "conflict"
    assert "is protected" in found["reason"]
    cluster.done("storage.volume-snapshot-protect", pool="vms", volume="golden", snapshot="s2", off=True)
    cluster.done("storage.volume-snapshot-remove", pool="vms", volume="golden", snapshot="s2")
    cluster.done("storage.volume-remove", pool="vms", volume="golden")
    assert [row["name"] for row in cluster.call("storage.volume-list", limit="^.")] == ["web2"]
    assert cluster.world.store.children(paths.pool_claims("vms")) == ()


def test_one_task_at_a_time_changes_a_volume() -> None:
    cluster = storing()
    first = cluster.call("storage.volume-resize", pool="vms", volume="golden", size="12G")
    with pytest.raises(Conflict, match=f"golden is being changed by task {first['name']}"):
        cluster.call("storage.volume-remove", pool="vms", volume="golden")
    with pytest.raises(Conflict, match="golden is being changed"):
        cluster.call("storage.volume-rename", pool="vms", volume="web9", new="golden")
    for number in range(3):
        cluster.call("storage.volume-clone", pool="vms", volume="golden", new=f"web{number}")
    cluster.work()
    assert len(cluster.call("storage.volume-list")) == 4


def test_the_guard_counts_what_is_new_and_says_by_how_much_it_is_too_much() -> None:
    cluster = storing()
    cluster.pool.used_bytes = 75 * GIB
    found = cluster.done("storage.volume-add", pool="vms", volume="web1", size="10G")
    assert found["reason"] == "10 GiB more would fill pool vms to 85 %, 5 GiB above its limit of 80 %"
    assert found["error"]["code"] == "conflict"
    assert cluster.done("storage.volume-add", pool="vms", volume="web1", size="5G")["state"] == "done"
    grown = cluster.done("storage.volume-resize", pool="vms", volume="golden", size="15G")
    assert grown["state"] == "done", "only the 5 GiB that are new count"
    assert cluster.done("storage.volume-resize", pool="vms", volume="golden", size="21G")["state"] == "failed"
    forced = cluster.done("storage.volume-add", pool="vms", volume="web2", size="10G", force=True)
    assert forced["state"] == "done"


def test_a_clone_counts_with_all_that_it_may_become() -> None:
    cluster = storing()
    cluster.pool.used_bytes = 75 * GIB
    clone = {"pool": "vms", "volume": "golden", "new": "web1"}
    found = cluster.done("storage.volume-clone", **clone)
    assert found["reason"] == "10 GiB more would fill pool vms to 85 %, 5 GiB above its limit of 80 %"
    assert cluster.done("storage.volume-clone", **clone, force=True, flatten=True)["reason"] == ""


def test_clones_of_what_is_removed_do_not_fill_the_pool() -> None:
    cluster = storing()
    cluster.pool.used_bytes = 75 * GIB
    cluster.pool.shared_bytes["golden"] = 10 * GIB
    golden = {"pool": "vms", "volume": "golden"}
    found = cluster.done("storage.volume-remove", **golden)
    assert found["reason"].startswith("clones of it get blocks of their own before: 10 GiB more would fill")
    assert "golden" in cluster.pool.kept
    assert cluster.done("storage.volume-remove", **golden, force=True)["reason"] == ""
    assert "golden" not in cluster.pool.kept


@pytest.mark.parametrize("flatten", [False, True])
def test_what_is_copied_is_claimed_and_what_is_shared_is_not(*, flatten: bool) -> None:
    cluster = storing()
    clone = {"pool": "vms", "volume": "golden", "flatten": flatten}
    cluster.call("storage.volume-clone", **clone, new="web1")
    if not flatten:
        cluster.call("storage.volume-clone", **clone, new="web2")
        return
    for verb, more in (("remove", {}), ("rename", {"new": "other"}), ("clone", {"new": "web2"})):
        with pytest.raises(Conflict, match="golden"):
            cluster.call(
                f"storage.volume-{verb}",
                **(clone if verb == "clone" else {"pool": "vms", "volume": "golden"}),
                **more,
            )


def test_a_pool_of_which_nobody_knows_how_much_it_holds_is_not_filled() -> None:
    cluster = storing()
    cluster.pool.total_bytes = 0
    found = cluster.done("storage.volume-add", pool="vms", volume="web1", size="1G")
    assert found["reason"] == "pool vms has no space that anybody knows of"


@pytest.mark.parametrize(
    ("total", "used", "said"),
    [
        (4096, 0, "1 GiB more do not fit into pool vms: 0 B of its 4 KiB are used"),
        (10 * GIB, 9.5 * GIB, "pool vms is full: 9.5 GiB of its 10 GiB are used, and its limit is 80 %"),
        (GIB, GIB, "pool vms is full: 1 GiB of its 1 GiB are used, and its limit is 80 %"),
    ],
)
def test_a_pool_that_is_full_or_too_small_is_called_that(total: int, used: float, said: str) -> None:
    cluster = storing()
    cluster.pool.total_bytes, cluster.pool.used_bytes = total, int(used)
    assert cluster.done("storage.volume-add", pool="vms", volume="web1", size="1G")["reason"] == said


def test_who_has_a_volume_open_is_told() -> None:
    cluster = storing()
    cluster.pool.open.add("golden")
    (user,) = cluster.call("storage.volume-info", pool="vms", volume="golden")["users"]
    assert user == {"address": "10.0.0.9:0/1", "client": "client.7", "has_lock": True}


def test_a_pool_that_nobody_reaches_is_in_the_list_and_says_why() -> None:
    cluster = storing()
    cluster.add_ceph_pool("ssds")
    for name in ("n1", "n2", "n3"):
        cluster.world.edit(paths.node_status(name), pool_problems={"vms": "is it mounted?"})
    ceph, directory = cluster.call("storage.pool-list")
    assert (ceph["name"], ceph["health"], ceph["copies"], ceph["pgs"]) == ("ssds", "ok", 3, 32)
    assert (directory["state"], directory["total_bytes"]) == ("down", None)
    assert directory["health"].startswith("no node reaches pool vms now: n1: is it mounted?")


def test_a_pool_in_ceph_is_made_by_a_node_that_reaches_it() -> None:
    cluster = Storing()
    assert cluster.call("storage.pool-add", pool="ssds")["node"] == "n1"
    cluster.world.edit(paths.node_status("n3"), ceph={"fsid": "f", "osds": [], "problems": []})
    cluster.world.edit(paths.node_status("n2"), ceph={"fsid": "", "osds": [], "problems": ["no key"]})
    assert cluster.call("storage.pool-add", pool="ssds")["node"] == "n3"


def test_nothing_is_cut_off_unless_told_so() -> None:
    cluster = storing()
    found = cluster.done("storage.volume-resize", pool="vms", volume="golden", size="9G")
    assert "would be cut off" in found["reason"]
    found = cluster.done("storage.volume-resize", pool="vms", volume="golden", size="9G", force=True)
    assert "would be cut off" in found["reason"], "that is about how full the pool gets"
    cluster.pool.used_bytes = 99 * GIB
    found = cluster.done("storage.volume-resize", pool="vms", volume="golden", size="9G", shrink=True)
    assert found["result"]["volume"]["size_bytes"] == 9 * GIB


def test_what_a_vm_has_is_neither_removed_nor_renamed() -> None:
    cluster = storing()
    vm_with(cluster.world, "/srv/vms/golden/disk.qcow2")
    vm_with(cluster.world, "/srv/vms/golden2/disk.qcow2", "other")
    assert cluster.call("storage.volume-info", pool="vms", volume="golden")["vm"] == "web1"
    attempts: list[tuple[str, dict[str, Any]]] = [("remove", {}), ("rename", {"new": "silver"})]
    for verb, given in attempts:
        with pytest.raises(Conflict, match="volume golden of pool vms is a disk of web1"):
            cluster.call(f"storage.volume-{verb}", pool="vms", volume="golden", **given)
    rollback = {"pool": "vms", "volume": "golden", "snapshot": "s1"}
    assert cluster.done("storage.volume-snapshot-rollback", **rollback)["state"] == "done"
    cluster.world.call("vm.start", vm="web1")
    with pytest.raises(Conflict, match="is a disk of web1, which runs or is to run"):
        cluster.call("storage.volume-snapshot-rollback", **rollback)
    with pytest.raises(Conflict, match="which runs or is to run"):
        cluster.call("storage.volume-resize", pool="vms", volume="golden", size="5G", shrink=True)


def test_what_is_open_is_left_alone_whatever_definitions_say() -> None:
    cluster = storing()
    cluster.pool.open.add("golden")
    found = cluster.done("storage.volume-remove", pool="vms", volume="golden")
    assert found["reason"] == "volume golden is in use"
    assert cluster.call("storage.volume-info", pool="vms", volume="golden")["is_open"]
    assert cluster.call("storage.volume-snapshot-list", pool="vms", volume="golden")


def test_what_is_not_there() -> None:
    cluster = storing()
    with pytest.raises(NotFound, match="no pool backup"):
        cluster.call("storage.volume-list", pool="backup")
    with pytest.raises(NotFound, match="no volume web9"):
        cluster.call("storage.volume-info", pool="vms", volume="web9")
    found = cluster.done("storage.volume-remove", pool="vms", volume="web9")
    assert found["error"]["code"] == "not-found"


def test_a_pool_that_begins_to_leave_meanwhile_is_noticed() -> None:
    cluster = storing()
    found = View(cluster.world.store).pool("vms")
    leaving = Put(paths.pool("vms"), dumps(replace(found.spec, leaving=True)), found.spec_version)
    context = cluster.context()
    decided = context.store.commit
    once = [leaving]

    class Racing:
        """The store, where somebody is faster."""

        def __getattr__(self, name: str) -> Any:
            return getattr(cluster.world.store, name)

        def commit(self, *ops: Any) -> None:
            if once:
                cluster.world.store.commit(once.pop())
            decided(*ops)

    from pvc.commands.context import invoke
    from pvc.commands.registry import find

    context.store = Racing()
    with pytest.raises(Conflict, match="pool vms is being removed"):
        invoke(find("storage.volume-add"), context, {"pool": "vms", "volume": "web1", "size": "1G"})


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("10G", 10 * GIB), ("1.5 GiB", 3 * GIB // 2), ("0.001M", 1536), ("1T", 1024 * GIB)],
)
def test_sizes_are_whole_sectors(text: str, size: int) -> None:
    assert volume_bytes(text) == size


@pytest.mark.parametrize("text", ["0", "511", "513", "2000T", "1025"])
def test_sizes_no_disk_has(text: str) -> None:
    with pytest.raises(Invalid):
        volume_bytes(text)


# Who does it


def test_tasks_are_of_all_nodes_that_reach_the_pool() -> None:
    cluster = storing()
    cluster.add_pool("local", node="n2")
    numbers = range(30)
    nodes = [
        cluster.call("storage.volume-add", pool="vms", volume=f"v{n}", size="1G")["node"] for n in numbers
    ]
    assert {name for name in nodes if nodes.count(name) >= 5} == {"n1", "n2", "n3"}
    cluster.work()
    again = [cluster.call("storage.volume-remove", pool="vms", volume=f"v{n}")["node"] for n in numbers]
    assert again == nodes, "the same for the same"
    own = {
        cluster.call("storage.volume-add", pool="local", volume=f"v{n}", size="1G")["node"] for n in numbers
    }
    assert own == {"n2"}


def test_tasks_of_a_vm_that_is_stopped_are_of_the_node_where_it_will_run() -> None:
    cluster = storing()
    nodes = {cluster.call("vm.create", name=f"web{n}", disk=["1G"], target="n2")["node"] for n in range(10)}
    assert nodes == {"n1", "n2", "n3"}
    cluster.work()
    for n in range(10):
        assert cluster.call("vm.snapshot-create", vm=f"web{n}", snapshot="daily")["node"] == "n2"
