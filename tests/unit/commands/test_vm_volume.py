"""VMs with their disks: made, given, taken, renamed and removed together, or not at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pvc.cluster import domainxml, paths
from pvc.cluster.codec import dumps
from pvc.cluster.storage import Driver, Format, PoolSpec, Volume
from pvc.cluster.store import Create, Delete, Op, Put
from pvc.cluster.view import View
from pvc.cluster.vm import Change
from pvc.errors import Conflict, NotFound, Unavailable
from pvc.node.drivers import DriverError
from pvc.node.storage import new_pool_ops
from tests.unit.commands.storing import Storing, storing

GIB = 1024**3
WEB = ("web1-vda", "web1-vdb")


def with_disks() -> Storing:
    """web1, stopped, with two new volumes."""
    made = storing()
    done = made.done("vm.create", name="web1", disk=["2G", "vms/3G"], target="n2")
    assert done["state"] == "done", done["reason"]
    return made


def sources(cluster: Storing, vm: str = "web1") -> dict[str, str]:
    facts = domainxml.parse(cluster.world.spec(vm).definition)
    return {disk.target: disk.source for disk in facts.disks}


def breaks(cluster: Storing, monkeypatch: pytest.MonkeyPatch, method: str, at: int) -> None:
    """The call of that method of the pool with that number fails, once."""
    real, calls = getattr(cluster.pool, method), [0]

    def broken(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise DriverError("the disk array has gone")
        return real(*given, **named)

    monkeypatch.setattr(cluster.pool, method, broken)


# Made with the VM


def test_a_vm_is_made_with_its_disks() -> None:
    cluster = with_disks()
    made = cluster.pool
    assert [made.kept[name].volume.size_bytes for name in WEB] == [2 * GIB, 3 * GIB]
    assert sources(cluster) == {
        "vda": "/srv/vms/web1-vda/disk.qcow2",
        "vdb": "/srv/vms/web1-vdb/disk.qcow2",
    }
    assert cluster.world.spec("web1").node == "n2"
    rows = cluster.call("vm.volume-get", vm="web1")
    assert [(row["device"], row["volume"], row["bus"], row["format"]) for row in rows] == [
        ("vda", "vms/web1-vda", "virtio", "qcow2"),
        ("vdb", "vms/web1-vdb", "virtio", "qcow2"),
    ]
    assert cluster.world.store.children(paths.pool_claims("vms")) == ()
    cluster.world.check_invariants()


@pytest.mark.parametrize("at", [1, 2])
def test_nothing_is_left_of_a_vm_whose_disks_cannot_be_made(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = storing()
    breaks(cluster, monkeypatch, "add", at)
    failed = cluster.done("vm.create", name="web1", disk=["2G", "3G"])
    assert (failed["state"], failed["reason"]) == ("failed", "the disk array has gone")
    assert sorted(cluster.pool.kept) == ["golden"]
    assert cluster.call("vm.list") == []
    assert cluster.world.volumes_in_use() == {}
    monkeypatch.undo()
    assert cluster.done("vm.create", name="web1", disk=["2G", "3G"])["state"] == "done"


def test_a_volume_that_was_there_is_not_taken_for_a_new_one() -> None:
    cluster = storing()
    cluster.done("storage.volume-add", pool="vms", volume="web1-vdb", size="5G")
    failed = cluster.done("vm.create", name="web1", disk=["2G", "3G"])
    assert failed["reason"] == "there is a volume web1-vdb in pool vms already"
    assert cluster.pool.kept["web1-vdb"].volume.size_bytes == 5 * GIB
    assert sorted(cluster.pool.kept) == ["golden", "web1-vdb"]


def test_a_name_that_is_taken_meanwhile_leaves_no_volume() -> None:
    cluster = storing()
    begun = cluster.call("vm.create", name="web1", disk=["2G"])
    cluster.call("vm.create", name="web1")
    cluster.work()
    assert cluster.call("task.info", task=begun["name"])["reason"] == "there is a VM named web1 already"
    assert sorted(cluster.pool.kept) == ["golden"]
    cluster.world.check_invariants()


def test_what_its_guest_is_told_comes_with_it() -> None:
    cluster = storing()
    cluster.done("vm.create", name="web1", disk=["2G"], user_data="#cloud-config\n")
    assert cluster.call("vm.user-data-get", vm="web1") == "#cloud-config\n"


def test_all_new_disks_together_fill_the_pool() -> None:
    cluster = storing()
    failed = cluster.done("vm.create", name="web1", disk=["50G", "40G"])
    assert "would fill pool vms to 90 %" in failed["reason"]
    assert cluster.done("vm.create", name="web1", disk=["50G", "40G"], force=True)["state"] == "done"


def test_a_volume_that_is_there_comes_as_it_is_in_one_vm_only() -> None:
    cluster = storing()
    assert cluster.done("vm.create", name="web1", disk=["vms/golden"])["state"] == "done"
    assert sources(cluster) == {"vda": "/srv/vms/golden/disk.qcow2"}
    with pytest.raises(Conflict, match="volume vms/golden is a disk of web1"):
        cluster.call("vm.create", name="web2", disk=["vms/golden"])
    missing = cluster.done("vm.create", name="web2", disk=["vms/silver"])
    assert missing["error"]["code"] == "not-found"
    cluster.world.check_invariants()


def test_two_that_get_the_same_volume_in_the_same_moment() -> None:
    cluster = storing()
    first = cluster.call("vm.create", name="web1", disk=["vms/golden"])
    with pytest.raises(Conflict, match=f"golden is being changed by task {first['name']}"):
        cluster.call("vm.create", name="web2", disk=["vms/golden"])
    xml = domainxml.create(
        "web3",
        "7b29fc40-ca47-1067-b31d-00dd010662da",
        memory_mib=64,
        vcpus=1,
        disks=[domainxml.NewDisk("/srv/vms/golden/disk.qcow2")],
    )
    with pytest.raises(Conflict, match="vms/golden is being changed by task"):
        cluster.call("vm.define", xml=xml)


def test_a_volume_that_is_filled_for_a_vm_is_no_other_s_with_its_uuid() -> None:
    """An import with the same identity has its volumes noted as that VM's before there is the VM."""
    cluster = storing()
    uuid = "7b29fc40-ca47-1067-b31d-00dd010662da"
    begun = cluster.call("vm.create", name="web1", disk=["vms/golden"])
    cluster.world.store.commit(Create(paths.pool_vm("vms", "golden"), uuid.encode()))
    disks = [domainxml.NewDisk("/srv/vms/golden/disk.qcow2")]
    xml = domainxml.create("web3", uuid, memory_mib=64, vcpus=1, disks=disks)
    with pytest.raises(Conflict, match=f"vms/golden is being changed by task {begun['name']}"):
        cluster.call("vm.define", xml=xml)


def test_in_which_pool_has_to_be_said_where_there_are_several() -> None:
    cluster = storing()
    cluster.add_pool("fast", path="/srv/fast")
    with pytest.raises(Conflict, match=r"in which pool is the disk to be: fast, vms\?"):
        cluster.call("vm.create", name="web1", disk=["1G"])
    assert cluster.done("vm.create", name="web1", disk=["fast/1G"])["state"] == "done"
    assert sources(cluster) == {"vda": "/srv/fast/web1-vda/disk.qcow2"}


def test_a_pool_of_one_node_keeps_its_vm_there() -> None:
    cluster = Storing()
    cluster.add_pool("local", node="n2", path="/srv/local")
    assert cluster.done("vm.create", name="web1", disk=["1G"])["node"] == "n2"
    spec = cluster.world.spec("web1")
    assert (spec.node, spec.node_limit) == ("n2", ("n2",))
    with pytest.raises(Conflict, match="pool local is on n2 only"):
        cluster.call("vm.create", name="web2", disk=["1G"], target="n1")


def test_a_disk_in_ceph_is_raw_and_named_without_hosts() -> None:
    cluster = Storing()
    spec = PoolSpec("ceph", "id", Driver.RBD, ceph_pool="pvc-ceph")
    cluster.world.store.commit(*new_pool_ops(spec, ()))
    assert cluster.done("vm.create", name="web1", disk=["1G"])["state"] == "done"
    (disk,) = domainxml.parse(cluster.world.spec("web1").definition).disks
    assert (disk.type, disk.protocol, disk.source, disk.format) == (
        "network",
        "rbd",
        "pvc-ceph/web1-vda",
        "raw",
    )
    assert cluster.pool.kept["web1-vda"].volume.format is Format.RAW
    assert cluster.world.volumes_in_use() == {Volume("ceph", "web1-vda"): cluster.world.spec("web1").uuid}


# Given and taken


def test_one_that_runs_gets_a_new_disk_at_once_by_its_own_node() -> None:
    cluster = with_disks()
    cluster.call("vm.start", vm="web1")
    cluster.world.runs("web1")
    done = cluster.done("vm.volume-add", vm="web1", volume="vms/4G")
    assert (done["state"], done["node"], done["result"]) == ("done", "n2", {"device": "vdc"})
    spec = cluster.world.spec("web1")
    drive = domainxml.shape(spec.definition).drives[-1]
    assert spec.live == (Change("vdc=/srv/vms/web1-vdc/disk.qcow2", drive.digest),)
    rows = cluster.call("vm.volume-get", vm="web1")
    assert [row["state"] for row in rows] == ["live", "live", "being attached"]
    why = str(cluster.call("why.vm", vm="web1"))
    assert "disk vdc (/srv/vms/web1-vdc/disk.qcow2) is being attached" in why
    cluster.world.runs("web1")
    assert cluster.call("vm.info", vm="web1")["settled"]
    cluster.world.check_invariants()


def test_one_that_is_to_wait_waits() -> None:
    cluster = with_disks()
    cluster.call("vm.start", vm="web1")
    cluster.world.runs("web1")
    assert cluster.done("vm.volume-add", vm="web1", volume="vms/golden", live=False)["state"] == "done"
    assert cluster.world.spec("web1").live == ()
    assert cluster.call("vm.volume-get", vm="web1")[-1]["state"] == "from its next start"
    assert cluster.call("vm.info", vm="web1")["pending_restart"]


def test_what_somebody_has_open_is_given_to_nobody() -> None:
    cluster = with_disks()
    cluster.pool.open.add("golden")
    assert "in use" in cluster.done("vm.volume-add", vm="web1", volume="vms/golden")["reason"]
    assert sources(cluster).keys() == {"vda", "vdb"}
    cluster.world.check_invariants()


def test_exactly_one_disk_goes_and_its_volume_stays() -> None:
    cluster = with_disks()
    cluster.call("vm.start", vm="web1")
    cluster.world.runs("web1")
    told = cluster.call("vm.volume-remove", vm="web1", volume="vms/web1-vdb")
    assert told["goal"] == {"state": "start", "refused": ""}
    assert [disk["state"] for disk in told["disks"]] == ["live", "being detached"]
    assert cluster.world.spec("web1").live == (Change("vdb=/srv/vms/web1-vdb/disk.qcow2"),)
    assert sources(cluster) == {"vda": "/srv/vms/web1-vda/disk.qcow2"}
    assert "web1-vdb" in cluster.pool.kept
    assert cluster.world.volumes_in_use().keys() == {Volume("vms", "web1-vda")}


# Resized


def test_a_volume_of_a_vm_that_runs_is_resized_by_its_qemu() -> None:
    cluster = with_disks()
    uuid = cluster.world.spec("web1").uuid
    cluster.call("vm.start", vm="web1")
    cluster.world.runs("web1")
    cluster.host.start(rendered(cluster))

    def grow(target: str, size_bytes: int) -> None:
        kept = cluster.pool.kept[WEB[("vda", "vdb").index(target)]]
        kept.volume = replace(kept.volume, size_bytes=size_bytes)

    cluster.host.resized = grow
    asked = {"pool": "vms", "volume": "web1-vdb"}
    done = cluster.done("storage.volume-resize", **asked, size="3500000256")
    assert (done["reason"], done["node"]) == ("", "n2")
    assert cluster.host.sizes == {(uuid, "vdb"): 3500000256}
    smaller = cluster.done("storage.volume-resize", **asked, size="1G", shrink=True)
    assert "which runs: it cannot be made smaller" in smaller["reason"]


def test_one_that_qemu_does_not_have_yet_is_resized_by_its_pool() -> None:
    cluster = with_disks()
    cluster.call("vm.start", vm="web1")
    cluster.world.runs("web1")
    cluster.done("vm.volume-add", vm="web1", volume="vms/golden", live=False)
    done = cluster.done("storage.volume-resize", pool="vms", volume="golden", size="11G")
    assert (done["reason"], cluster.host.sizes) == ("", {})
    assert cluster.pool.kept["golden"].volume.size_bytes == 11 * GIB


def rendered(cluster: Storing) -> str:
    xml = cluster.world.spec("web1").definition
    return domainxml.render(xml, emulation="qemu", emulator="/q", console_log="/l")


# Renamed


def test_volumes_that_are_named_after_it_are_renamed_with_it() -> None:
    cluster = with_disks()
    cluster.done("vm.volume-add", vm="web1", volume="vms/golden")
    assert cluster.done("vm.rename", vm="web1", new="shop")["state"] == "done"
    assert sorted(cluster.pool.kept) == ["golden", "shop-vda", "shop-vdb"]
    assert sources(cluster, "shop") == {
        "vda": "/srv/vms/shop-vda/disk.qcow2",
        "vdb": "/srv/vms/shop-vdb/disk.qcow2",
        "vdc": "/srv/vms/golden/disk.qcow2",
    }
    cluster.world.check_invariants()


def test_a_name_that_is_a_part_of_other_words_changes_nothing_else() -> None:
    """Client line 13: nothing is replaced in the text of the definition."""
    cluster = storing()
    cluster.done("vm.create", name="disk", disk=["1G"])
    assert cluster.done("vm.rename", vm="disk", new="devices")["state"] == "done"
    assert sources(cluster, "devices") == {"vda": "/srv/vms/devices-vda/disk.qcow2"}


@pytest.mark.parametrize("at", [1, 2])
def test_a_rename_that_fails_gives_every_name_back(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = with_disks()
    breaks(cluster, monkeypatch, "rename", at)
    assert cluster.done("vm.rename", vm="web1", new="shop")["state"] == "failed"
    assert sorted(cluster.pool.kept) == ["golden", *WEB]
    assert sources(cluster).keys() == {"vda", "vdb"}
    cluster.world.check_invariants()


def test_a_volume_that_has_the_new_name_already_is_left_alone() -> None:
    cluster = with_disks()
    cluster.done("storage.volume-add", pool="vms", volume="shop-vdb", size="5G")
    assert cluster.done("vm.rename", vm="web1", new="shop")["state"] == "failed"
    assert sorted(cluster.pool.kept) == ["golden", "shop-vdb", *WEB]
    assert cluster.pool.kept["shop-vdb"].volume.size_bytes == 5 * GIB


# Removed


def test_a_vm_goes_with_its_disks_and_their_snapshots() -> None:
    cluster = with_disks()
    cluster.done("storage.volume-snapshot-add", pool="vms", volume="web1-vda", snapshot="s1")
    begun = cluster.call("vm.remove", vm="web1")
    assert cluster.call("vm.info", vm="web1")["state"] == "remove"
    for verb, given in (("start", {}), ("undefine", {}), ("memory-set", {"memory": "2G"}), ("remove", {})):
        with pytest.raises(Conflict, match=r"task [0-9a-f]{8} is at web1|is being removed"):
            cluster.call(f"vm.{verb}", vm="web1", **given)
    cluster.work()
    assert cluster.call("task.info", task=begun["name"])["reason"] == ""
    assert sorted(cluster.pool.kept) == ["golden"]
    assert not cluster.pool.half_done
    assert cluster.call("vm.list") == []
    assert cluster.world.volumes_in_use() == {}
    assert not [path for path in cluster.world.documents() if path.startswith(f"{paths.VMS}/")]


@pytest.mark.parametrize("why", ["protected", "open"])
def test_what_keeps_one_disk_keeps_all_before_anything_is_touched(why: str) -> None:
    """Client line 18."""
    cluster = with_disks()
    asked = {"pool": "vms", "volume": "web1-vdb", "snapshot": "s1"}
    cluster.done("storage.volume-snapshot-add", **asked)
    if why == "open":
        cluster.pool.open.add("web1-vdb")
    else:
        cluster.done("storage.volume-snapshot-protect", **asked)
    failed = cluster.done("vm.remove", vm="web1")
    assert (failed["state"], failed["error"]["code"]) == ("failed", "conflict")
    assert why in failed["reason"]
    assert sorted(cluster.pool.kept) == ["golden", *WEB]
    assert "s1" in cluster.pool.kept["web1-vdb"].snapshots
    assert cluster.call("vm.info", vm="web1")["state"] == "stop"
    cluster.world.check_invariants()


def test_clones_of_its_disks_do_not_fill_the_pool_when_it_goes() -> None:
    cluster = with_disks()
    cluster.pool.shared_bytes = dict.fromkeys(WEB, cluster.pool.total_bytes // 2)
    failed = cluster.done("vm.remove", vm="web1")
    assert failed["reason"].startswith("clones of it get blocks of their own before: ")
    assert sorted(cluster.pool.kept) == ["golden", *WEB]
    assert cluster.call("vm.info", vm="web1")["state"] == "stop"
    assert cluster.done("vm.remove", vm="web1", force=True)["state"] == "done"


def test_a_removal_that_fails_in_the_middle_brings_all_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = with_disks()
    breaks(cluster, monkeypatch, "set_aside", 2)
    assert cluster.done("vm.remove", vm="web1")["state"] == "failed"
    assert sorted(cluster.pool.kept) == ["golden", *WEB]
    assert cluster.call("vm.info", vm="web1")["state"] == "stop"
    monkeypatch.undo()
    assert cluster.done("vm.remove", vm="web1")["state"] == "done"


def test_a_vm_that_has_gone_does_not_come_back_when_its_disks_are_slow_to_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = with_disks()
    breaks(cluster, monkeypatch, "discard", 1)
    assert cluster.done("vm.remove", vm="web1")["state"] == "failed"
    assert cluster.call("vm.list") == []
    assert (sorted(cluster.pool.kept), cluster.pool.half_done) == (["golden"], set())


def test_a_removal_that_can_be_neither_ended_nor_undone_is_gone_on_with_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = with_disks()
    breaks(cluster, monkeypatch, "set_aside", 2)
    breaks(cluster, monkeypatch, "put_back", 1)
    failed = cluster.done("vm.remove", vm="web1")
    assert "could not be taken away: the disk array has gone" in failed["reason"]
    assert cluster.call("vm.info", vm="web1")["state"] == "remove"
    for verb, given in (
        ("rename", {"new": "shop"}),
        ("start", {}),
        ("undefine", {}),
        ("memory-set", {"memory": 2}),
    ):
        with pytest.raises(Conflict, match="web1 is being removed"):
            cluster.call(f"vm.{verb}", vm="web1", **given)
    monkeypatch.undo()
    assert cluster.done("vm.remove", vm="web1")["state"] == "done"
    assert (sorted(cluster.pool.kept), cluster.pool.half_done) == (["golden"], set())


def test_a_volume_that_has_gone_already_keeps_no_vm() -> None:
    cluster = with_disks()
    del cluster.pool.kept["web1-vda"]
    assert cluster.done("vm.remove", vm="web1")["state"] == "done"
    assert sorted(cluster.pool.kept) == ["golden"]


def test_disks_of_a_vm_that_is_forgotten_stay_and_are_nobodys() -> None:
    cluster = with_disks()
    cluster.call("vm.undefine", vm="web1")
    assert cluster.world.volumes_in_use() == {}
    assert sorted(cluster.pool.kept) == ["golden", *WEB]
    assert cluster.done("storage.volume-remove", pool="vms", volume="web1-vda")["state"] == "done"


# The index


def test_a_pool_that_is_made_of_a_directory_knows_whose_disks_are_in_it() -> None:
    cluster = Storing()
    cluster.call("vm.create", name="web1", disk=["/srv/vms/web1/disk.qcow2"])
    spec = PoolSpec("vms", "id", path="/srv/vms")
    cluster.world.store.commit(*new_pool_ops(spec, cluster.vms()))
    assert cluster.world.volumes_in_use() == {Volume("vms", "web1"): cluster.world.spec("web1").uuid}
    cluster.call("vm.undefine", vm="web1")
    assert cluster.world.volumes_in_use() == {}


def test_a_vm_is_not_started_nor_moved_while_a_task_is_at_it() -> None:
    cluster = with_disks()
    vm = cluster.world.vm("web1")
    claim = Create(paths.vm_claim(vm.spec.uuid), b"0000000a")
    cluster.world.store.commit(claim, Put(paths.vm(vm.spec.uuid), dumps(vm.spec), vm.spec_version))
    for verb, given in (("start", {}), ("move", {"target": "n3"}), ("rename", {"new": "x"}), ("remove", {})):
        with pytest.raises(Conflict, match="task 0000000a is at web1"):
            cluster.call(f"vm.{verb}", vm="web1", **given)


@pytest.mark.parametrize(
    ("operation", "given"),
    [
        ("vm.create", {"name": "web2", "disk": ["2G", "vms/golden"]}),
        ("vm.volume-add", {"vm": "web1", "volume": "vms/4G"}),
        ("vm.rename", {"vm": "web1", "new": "shop"}),
        ("vm.remove", {"vm": "web1"}),
        ("storage.volume-resize", {"pool": "vms", "volume": "web1-vda", "size": "5G"}),
    ],
)
def test_a_daemon_that_dies_after_all_is_done_has_nothing_undone(
    operation: str, given: dict[str, Any]
) -> None:
    """Its task is lost, as nobody wrote that it was done; and its next life undoes what is lost."""
    cluster = with_disks()
    begun = cluster.call(operation, **given)
    cluster.work()
    task = View(cluster.world.store).task(begun["name"]).spec
    documents, kept = cluster.world.documents(), dict(cluster.pool.kept)
    for _ in range(2):
        cluster.tasks[task.node].works[operation].undo(task)
    assert cluster.world.documents() == documents
    assert cluster.pool.kept == kept
    assert not cluster.pool.half_done


@pytest.mark.parametrize(
    ("operation", "given"),
    [
        ("vm.create", {"name": "web2", "disk": ["2G", "vms/golden"]}),
        ("vm.create", {"name": "web2", "disk": ["vms/golden"]}),
        ("vm.volume-add", {"vm": "web1", "volume": "vms/4G"}),
        ("vm.volume-add", {"vm": "web1", "volume": "vms/golden"}),
        ("vm.rename", {"vm": "web1", "new": "shop"}),
        ("vm.remove", {"vm": "web1"}),
        ("vm.snapshot-create", {"vm": "web1", "snapshot": "daily"}),
        ("vm.snapshot-rollback", {"vm": "web1", "snapshot": "old"}),
    ],
)
def test_a_commit_that_arrives_after_its_task_was_undone_is_too_late(
    operation: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = with_disks()
    cluster.done("vm.snapshot-create", vm="web1", snapshot="old")
    cluster.world.call("vm.memory-set", vm="web1", memory="2G")
    begun = cluster.call(operation, **given)
    there = cluster.world.documents().keys()
    store, late = cluster.world.store, list[tuple[Op, ...]]()
    commit = store.commit

    def hold_back(*ops: Op) -> None:
        if not late and any(isinstance(op, Put | Create | Delete) and is_vm(op.path) for op in ops):
            late.append(ops)
            raise Unavailable("no answer")
        commit(*ops)

    monkeypatch.setattr(store, "commit", hold_back)
    cluster.work()
    monkeypatch.undo()
    assert cluster.call("task.info", task=begun["name"])["state"] == "failed"
    kept = dict(cluster.pool.kept)
    with pytest.raises((Conflict, NotFound)):
        commit(*late[0])
    assert cluster.pool.kept == kept
    left = cluster.world.documents().keys() - there
    assert not {path for path in left if not path.startswith(paths.TASKS)}
    cluster.world.check_invariants()


def is_vm(path: str) -> bool:
    """What a VM is to be."""
    return path.startswith(f"{paths.VMS}/") and path.count("/") == paths.VMS.count("/") + 1


# Its node never comes back


class Gone(BaseException):
    """With all that it was at."""


def dies_making(cluster: Storing, disk: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """web2, whose second volume is never made: the task, and the node that was at it."""
    add, count = cluster.pool.add, [0]

    def die(*given: Any) -> None:
        count[0] += 1
        if count[0] == 2:
            raise Gone
        add(*given)

    for tasks in cluster.tasks.values():
        tasks.step()
    monkeypatch.setattr(cluster.pool, "add", die)
    begun = cluster.call("vm.create", name="web2", disk=[disk, disk])
    with pytest.raises(Gone):
        cluster.work()
    monkeypatch.undo()
    del cluster.tasks[begun["node"]]
    cluster.world.kill_node(begun["node"])
    cluster.world.edit(paths.node_status(begun["node"]), state="stop")
    return begun["name"], begun["node"]


def test_what_a_node_was_at_that_is_removed_is_undone_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = storing()
    task, gone = dies_making(cluster, "vms/2G", monkeypatch)
    assert sorted(cluster.pool.kept) == ["golden", "web2-vda"]
    cluster.call("node.remove", node=gone)
    found = cluster.call("task.info", task=task)
    assert (found["state"], found["node"] in cluster.tasks) == ("lost", True)
    with pytest.raises(Conflict, match="belongs to a VM that is being made"):
        cluster.call("vm.create", name="web3", disk=["vms/web2-vda"])
    cluster.work()
    assert cluster.call("task.info", task=task)["reason"] == f"the daemon of {gone} ended while it was at it"
    assert sorted(cluster.pool.kept) == ["golden"]
    assert cluster.world.volumes_in_use() == {}
    assert cluster.world.store.children(paths.pool_claims("vms")) == ()
    assert cluster.done("vm.create", name="web2", disk=["vms/2G"])["state"] == "done"


def test_what_nobody_else_can_undo_is_forgotten_with_whose_it_was_to_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = storing()
    cluster.add_pool("local", node="n3", path="/srv/local")
    task, gone = dies_making(cluster, "local/2G", monkeypatch)
    assert gone == "n3"
    assert len(cluster.world.volumes_in_use()) == 2
    cluster.call("node.remove", node="n3")
    with pytest.raises(NotFound):
        cluster.call("task.info", task=task)
    assert cluster.world.volumes_in_use() == {}
    assert cluster.world.store.children(paths.pool_claims("local")) == ()
