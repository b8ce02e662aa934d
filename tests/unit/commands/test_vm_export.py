"""Exports of VMs' snapshots and what is made of them: on real files, with volumes in memory."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pvc.cluster import domainxml, exports, paths
from pvc.cluster.codec import dumps
from pvc.cluster.exports import MANIFEST
from pvc.cluster.snapshots import Quiesced, SnapshotDisk, VMSnapshot, known_ops, on_volumes
from pvc.cluster.storage import Format
from pvc.cluster.store import Create, Delete, Put
from pvc.cluster.tasks import TaskState
from pvc.cluster.view import View
from pvc.cluster.vm import VMSpec
from pvc.errors import Conflict, Failed, Invalid, NotFound, Unavailable
from tests.fakes.lanes import Lanes
from tests.fakes.pool import FakeContent, FakeFilling
from tests.unit.commands.storing import Storing, announced, stream
from tests.unit.commands.world import UUID

SIZE = 64 * 1024


@dataclass
class Exporting:
    """web1 has two disks in pool vms; exports go to a directory."""

    storing: Storing
    where: Path

    @property
    def spec(self) -> VMSpec:
        return self.storing.world.spec("web1")

    def write(self, **contents: bytes) -> None:
        for volume, content in contents.items():
            self.storing.pool.kept[f"web1-{volume}"].content = content.ljust(SIZE, b"\0")

    def keep(self, snapshot: str) -> None:
        """As a task of snapshots does."""
        spec, name = self.spec, on_volumes(UUID, snapshot)
        disks = []
        for target, volume in (("vda", "web1-disk0"), ("vdb", "web1-disk1")):
            self.storing.pool.add_snapshot(volume, name)
            disks.append(SnapshotDisk(target, "vms", volume, SIZE))
        at = 1000.0 + sum(len(kept.snapshots) for kept in self.storing.pool.kept.values())
        made = VMSnapshot(snapshot, at, spec.definition, tuple(disks), Quiesced.AGENT)
        put = Put(paths.vm(UUID), dumps(replace(spec, snapshots=(*spec.snapshots, snapshot))))
        self.storing.world.store.commit(put, *known_ops(spec, snapshot, dumps(made)))

    def export(self, snapshot: str, **given: Any) -> dict[str, Any]:
        return self.storing.done(
            "vm.snapshot-export", vm="web1", snapshot=snapshot, path=str(self.where), **given
        )

    def imported(self, place: str, name: str = "web2", **given: Any) -> dict[str, Any]:
        given = {"node": "n1", "name": name, "path": str(self.where / place), **given}
        return self.storing.done("vm.snapshot-import", **given)

    def brought(self, *places: str, **given: Any) -> dict[str, Any]:
        """As by a client that has them in files."""
        begun = self.storing.call("vm.snapshot-upload-begin", name="web2", **self.announced(*places), **given)
        with self.storing.bringing(begun["name"], self.stream(*places)):
            self.storing.work()
        found = self.storing.call("task.info", task=begun["name"])
        assert isinstance(found, dict)
        return found

    def announced(self, *places: str) -> dict[str, Any]:
        return {"manifest": announced(self.where, *places)}

    def stream(self, *places: str) -> bytes:
        return stream(self.where, *places)

    def content(self, volume: str) -> bytes:
        return self.storing.pool.kept[volume].content

    def there(self) -> list[str]:
        return sorted(one.name for one in self.where.iterdir())

    def untouched(self) -> bool:
        """No VM, no volume, nothing claimed, nothing half done."""
        store = self.storing.world.store
        return (
            {vm.spec.name for vm in View(store).vms().values()} == {"web1"}
            and set(self.storing.pool.kept) == {"web1-disk0", "web1-disk1"}
            and not store.children(paths.pool_claims("vms"))
            and set(store.children(paths.pool_vms("vms"))) == {"web1-disk0", "web1-disk1"}
            and not self.storing.pool.half_done
        )


@pytest.fixture
def made(tmp_path: Path) -> Exporting:
    storing, where = Storing(), tmp_path / "exports"
    where.mkdir()
    storing.add_pool()
    for number in range(2):
        storing.pool.add(f"web1-disk{number}", SIZE, Format.QCOW2, "t")
    disks = [domainxml.NewDisk(f"/srv/vms/web1-disk{number}/disk.qcow2") for number in range(2)]
    xml = domainxml.create("web1", UUID, memory_mib=512, vcpus=1, disks=disks, nics=[domainxml.NewNic("br0")])
    storing.world.call("vm.define", xml=xml, target="n1", tag=["blue"], start_priority=7)
    found = Exporting(storing, where)
    found.write(disk0=b"a" * 5000, disk1=b"one")
    found.keep("mon.1")
    return found


@pytest.fixture
def chain(made: Exporting) -> Exporting:
    """Three exports, each of what differs from the one before; disk1 is all zeros in the end."""
    made.export("mon.1")
    made.write(disk0=b"a" * 5000 + b"b" * 5000, disk1=b"two")
    made.keep("tue")
    assert made.export("tue", parent="mon.1")["state"] == "done"
    made.write(disk0=b"c" * 100, disk1=b"")
    made.keep("wed")
    assert made.export("wed", parent="tue")["state"] == "done"
    return made


def test_an_export_is_a_vm_again(made: Exporting) -> None:
    found = made.export("mon.1")
    assert found["state"] == "done"
    assert found["result"]["path"] == str(made.where / "web1-mon.1")
    assert made.there() == ["web1-mon.1"]
    place = made.where / "web1-mon.1"
    assert sorted(one.name for one in place.iterdir()) == [MANIFEST, "vda.rbddiff", "vdb.rbddiff"]
    assert {one.stat().st_mode & 0o777 for one in place.iterdir()} == {0o600}
    done = made.imported("web1-mon.1")
    assert (done["state"], done["reason"]) == ("done", "")
    vm, before = made.storing.world.vm("web2"), made.spec
    assert vm.shown_state == "stop"
    assert vm.spec.uuid == done["result"]["uuid"] != UUID
    assert [one.name for one in vm.spec.tags] == ["blue"]
    assert vm.spec.start_priority == 7
    facts, others = domainxml.parse(vm.spec.definition), domainxml.parse(before.definition)
    assert [one.source for one in facts.disks] == [
        "/srv/vms/web2-disk0/disk.qcow2",
        "/srv/vms/web2-disk1/disk.qcow2",
    ]
    assert {one.mac for one in facts.nics}.isdisjoint({one.mac for one in others.nics})
    for number in range(2):
        assert made.content(f"web2-disk{number}") == made.content(f"web1-disk{number}")
        assert [one.name for one in made.storing.pool.snapshots(f"web2-disk{number}")] == [
            on_volumes(vm.spec.uuid, "mon.1")
        ]
    assert vm.spec.snapshots == ("mon.1",)
    store = made.storing.world.store
    assert store.children(paths.pool_claims("vms")) == ()
    index = store.get(paths.pool_vm("vms", "web2-disk1"))
    assert index is not None
    assert index.data.decode() == vm.spec.uuid


def test_what_differs_is_put_on_what_it_differs_from(chain: Exporting) -> None:
    sizes = [(chain.where / f"web1-{one}" / "vda.rbddiff").stat().st_size for one in ("mon.1", "tue")]
    assert sizes[1] < sizes[0] + 200
    for snapshot, disk0, disk1 in (
        ("mon.1", b"a" * 5000, b"one"),
        ("tue", b"a" * 5000 + b"b" * 5000, b"two"),
        ("wed", b"c" * 100, b""),
    ):
        name = f"from-{snapshot}"
        done = chain.imported(f"web1-{snapshot}", name, retain=False)
        assert (done["state"], done["reason"]) == ("done", "")
        assert chain.content(f"{name}-disk0") == disk0.ljust(SIZE, b"\0")
        assert chain.content(f"{name}-disk1") == disk1.ljust(SIZE, b"\0")
        assert chain.storing.pool.snapshots(f"{name}-disk0") == ()
        assert chain.storing.world.spec(name).snapshots == ()


def test_a_disk_that_came_later_is_exported_whole(made: Exporting) -> None:
    made.export("mon.1")
    stored = made.storing.world.store.get(paths.vm_snapshot(UUID, "mon.1"))
    assert stored is not None
    kept = View(made.storing.world.store).decode(VMSnapshot, stored)
    before = dumps(replace(kept, disks=kept.disks[:1]))
    made.storing.world.store.commit(Put(stored.path, before))
    made.keep("tue")
    assert made.export("tue", parent="mon.1")["state"] == "done"
    disks = json.loads((made.where / "web1-tue" / MANIFEST).read_text())["disks"]
    assert [one["since"] for one in disks] == ["vda", ""]
    assert made.imported("web1-tue")["state"] == "done"
    assert made.content("web2-disk1") == made.content("web1-disk1")


def test_any_export_of_the_older_snapshot_will_do(chain: Exporting) -> None:
    """One that is whole in the place of one that is not: what is in a snapshot does not change."""
    shutil.rmtree(chain.where / "web1-tue")
    assert chain.export("tue")["state"] == "done"
    shutil.rmtree(chain.where / "web1-mon.1")
    assert chain.imported("web1-wed")["state"] == "done"
    assert chain.content("web2-disk0") == (b"c" * 100).ljust(SIZE, b"\0")


def test_with_the_same_identity_it_is_the_vm_that_was_lost(made: Exporting) -> None:
    made.export("mon.1")
    definition = made.spec.definition
    refused = made.imported("web1-mon.1", same_identity=True)
    assert refused["reason"] == f"web1 has the UUID {UUID}"
    assert made.untouched()
    spec = made.spec
    lost(made)
    done = made.imported("web1-mon.1", "web1", same_identity=True)
    assert (done["state"], done["reason"]) == ("done", "")
    assert made.spec.uuid == UUID
    assert domainxml.digest(made.spec.definition) == domainxml.digest(definition)
    assert made.spec.tags == spec.tags
    made.write(disk0=b"new")
    made.keep("tue")
    assert made.export("tue", parent="mon.1", node="n1")["state"] == "done"  # it is the very snapshot


def test_into_another_pool(made: Exporting) -> None:
    made.storing.add_pool("fast", path="/srv/fast")
    made.storing.add_pool("gone", path="/srv/gone")
    made.export("mon.1")
    manifest = made.where / "web1-mon.1" / MANIFEST
    said = exports.read(manifest.read_bytes(), "")
    manifest.write_bytes(
        exports.written(replace(said, disks=tuple(replace(one, pool="lost") for one in said.disks)))
    )
    refused = made.imported("web1-mon.1")
    assert refused["error"]["message"] == "there is no pool lost, in which disk vda was"
    assert made.imported("web1-mon.1", pool="fast")["state"] == "done"
    facts = domainxml.parse(made.storing.world.spec("web2").definition)
    assert facts.disks[0].source == "/srv/fast/web2-disk0/disk.qcow2"


def test_what_a_client_brings_is_a_vm(chain: Exporting) -> None:
    done = chain.brought("web1-mon.1", "web1-tue", "web1-wed")
    assert (done["state"], done["reason"]) == ("done", "")
    spec = chain.storing.world.spec("web2")
    assert done["result"] == {"vm": "web2", "uuid": spec.uuid, "snapshot": "wed"}
    assert spec.snapshots == ("wed",)
    assert chain.content("web2-disk0") == (b"c" * 100).ljust(SIZE, b"\0")
    assert chain.content("web2-disk1") == bytes(SIZE)
    assert chain.storing.world.store.children(paths.pool_claims("vms")) == ()
    with pytest.raises(Conflict, match="a VM named web2 already"):
        chain.brought("web1-mon.1")


def test_the_same_upload_goes_on(chain: Exporting) -> None:
    given = {"name": "web2", **chain.announced("web1-mon.1")}
    begun = chain.storing.call("vm.snapshot-upload-begin", **given)
    assert chain.storing.call("vm.snapshot-upload-begin", **given)["name"] == begun["name"]
    for other in ({**given, "retain": False}, {**given, **chain.announced("web1-mon.1", "web1-tue")}):
        with pytest.raises(Conflict, match="web2-disk0 is being changed by task"):
            chain.storing.call("vm.snapshot-upload-begin", **other)
    with chain.storing.bringing(begun["name"], chain.stream("web1-mon.1")):
        chain.storing.work()
    assert chain.content("web2-disk0") == (b"a" * 5000).ljust(SIZE, b"\0")


def test_what_a_client_brings_is_what_it_announced(chain: Exporting) -> None:
    """Checked on its way, wherever it is wrong; and nothing is left."""
    whole = chain.stream("web1-mon.1", "web1-tue")
    manifests = len("".join(chain.announced("web1-mon.1", "web1-tue")["manifest"]).encode())
    for place, said in (
        (10, "are not those that were announced"),
        (manifests, "is not of the format"),
        (manifests + 3000, "vda.rbddiff of snapshot mon.1 is damaged"),
        (len(whole) - 1, "vdb.rbddiff of snapshot tue has an unknown record"),
    ):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        given = {"name": "web2", **chain.announced("web1-mon.1", "web1-tue")}
        begun = chain.storing.call("vm.snapshot-upload-begin", **given)
        with chain.storing.bringing(begun["name"], bytes(damaged)):
            chain.storing.work()
        found = chain.storing.call("task.info", task=begun["name"])
        assert (found["state"], said in found["reason"]) == ("failed", True), found["reason"]
        assert chain.untouched()


def test_what_a_client_brings_needs_room_and_a_place(made: Exporting) -> None:
    made.export("mon.1")
    made.storing.pool.total_bytes = SIZE
    assert "more do not fit into pool vms" in made.brought("web1-mon.1")["reason"]
    made.storing.pool.total_bytes = 100 * 1024**3
    made.storing.pool.add("web2-disk1", SIZE, Format.QCOW2, "t")
    assert made.brought("web1-mon.1")["reason"] == "there is a volume web2-disk1 in pool vms already"
    del made.storing.pool.kept["web2-disk1"]
    assert made.untouched()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"definition": "<domain/>"}, "is not a QEMU machine"),
        ({"disks": "elsewhere"}, "has no disk vdx"),
    ],
)
def test_an_export_that_makes_no_vm_is_refused(made: Exporting, change: dict[str, Any], said: str) -> None:
    """Its checksums are right."""
    made.export("mon.1")
    where = made.where / "web1-mon.1" / MANIFEST
    found = exports.read(where.read_bytes(), "")
    if "disks" in change:
        change = {"disks": (replace(found.disks[0], target="vdx"), found.disks[1])}
    where.write_bytes(exports.written(replace(found, **change)))
    for failed in (made.brought("web1-mon.1"), made.imported("web1-mon.1")):
        assert (failed["state"], said in failed["reason"]) == ("failed", True), failed["reason"]
        assert made.untouched()


def test_how_no_vm_can_be_treated_is_refused(made: Exporting) -> None:
    """Before anything is sent, when a client has it."""
    made.export("mon.1")
    where = made.where / "web1-mon.1" / MANIFEST
    found = exports.read(where.read_bytes(), "")
    where.write_bytes(exports.written(replace(found, settings={"max_downtime_ms": -5})))
    with pytest.raises(Invalid, match="greatest downtime in ms is not between 10 and 60000"):
        made.brought("web1-mon.1")
    failed = made.imported("web1-mon.1")
    assert (failed["state"], "greatest downtime" in failed["reason"]) == ("failed", True), failed["reason"]
    assert made.untouched()


def test_a_directory_is_of_the_node_that_is_named_or_of_the_only_one_it_can_be(made: Exporting) -> None:
    made.export("mon.1")
    made.storing.add_pool("local", node="n2", path="/srv/local")
    with pytest.raises(Invalid, match="it could be any of n1, n2, n3"):
        made.imported("web1-mon.1", node=None)
    done = made.imported("web1-mon.1", node=None, pool="local")
    assert (done["state"], done["node"]) == ("done", "n2")
    with pytest.raises(Unavailable, match="n1 does not reach local now"):
        made.imported("web1-mon.1", "web3", node="n1", pool="local")


# What is refused


def test_what_has_no_export_is_no_parent(made: Exporting) -> None:
    made.keep("tue")
    said = made.export("tue", parent="mon.1")
    assert said["error"]["code"] == "not-found"
    assert "no whole export of snapshot mon.1 of web1" in said["reason"]
    assert made.there() == []
    with pytest.raises(Conflict, match="tue of web1 is not older than mon"):
        made.export("mon.1", parent="tue")


@pytest.mark.parametrize("damage", ["manifest", "file", "cut"])
def test_what_is_not_whole_is_no_parent(made: Exporting, damage: str) -> None:
    """Neither one whose manifest is missing, nor one of whose files is, nor one that was cut off."""
    made.export("mon.1")
    place = made.where / "web1-mon.1"
    if damage == "cut":
        (place / "vda.rbddiff").write_bytes(b"rbd")
    else:
        (place / (MANIFEST if damage == "manifest" else "vdb.rbddiff")).unlink()
    made.keep("tue")
    assert "no whole export" in made.export("tue", parent="mon.1")["reason"]
    assert made.there() == ["web1-mon.1"]


def test_a_snapshot_that_was_taken_anew_is_not_its_namesake(made: Exporting) -> None:
    made.export("mon.1")
    store = made.storing.world.store
    stored = store.get(paths.vm_snapshot(UUID, "mon.1"))
    assert stored is not None
    kept = View(store).decode(VMSnapshot, stored)
    store.commit(Put(stored.path, dumps(replace(kept, at=kept.at + 1))))
    made.keep("tue")
    assert "no whole export" in made.export("tue", parent="mon.1")["reason"]


def test_an_export_is_not_written_over(made: Exporting) -> None:
    made.export("mon.1")
    before = (made.where / "web1-mon.1" / MANIFEST).read_bytes()
    assert made.export("mon.1")["error"]["code"] == "conflict"
    assert (made.where / "web1-mon.1" / MANIFEST).read_bytes() == before
    assert made.there() == ["web1-mon.1"]


def test_a_directory_that_is_not_there_is_said(made: Exporting) -> None:
    made.where.rmdir()
    assert made.export("mon.1")["reason"] == f"n1 has no directory {made.where}"
    there = made.where / "web1-mon.1"
    missing = made.imported("web1-mon.1")
    assert missing["reason"] == f"n1 has no directory {there}"
    assert missing["error"]["hint"] == "--node says which node has it"
    there.mkdir(parents=True)
    assert made.imported("web1-mon.1")["reason"].startswith(f"on n1, {there} is no export")


def test_what_is_being_removed_is_not_exported(made: Exporting) -> None:
    with pytest.raises(NotFound, match="no snapshot sun"):
        made.export("sun")
    store = made.storing.world.store
    stored = store.get(paths.vm_snapshot(UUID, "mon.1"))
    assert stored is not None
    store.commit(Put(stored.path, dumps(replace(View(store).decode(VMSnapshot, stored), leaving=True))))
    assert made.export("mon.1")["reason"] == "snapshot mon.1 of web1 is being removed"
    made.storing.world.kill_node("n3")
    with pytest.raises(Unavailable, match="n3"):
        made.export("mon.1", node="n3")
    made.storing.world.edit(paths.vm(UUID), node="n3")
    with pytest.raises(Unavailable, match="n3 does not reach vms now"):
        made.export("mon.1")
    made.storing.world.edit(paths.vm(UUID), node=None)
    with pytest.raises(Invalid, match="it could be any of n1, n2, n3"):
        made.export("mon.1")


@pytest.mark.parametrize("damage", range(5))
def test_a_damaged_export_makes_nothing(chain: Exporting, damage: int) -> None:
    """One bit of any file, wherever it is in the chain; a manifest that was changed; one that is missing."""
    match damage:
        case 0 | 1:
            file = chain.where / ("web1-mon.1", "web1-wed")[damage] / "vda.rbddiff"
            data = bytearray(file.read_bytes())
            data[-60] ^= 1
            file.write_bytes(data)
            said = "is damaged: its checksum"
        case 2:
            manifest = chain.where / "web1-tue" / MANIFEST
            before = exports.read(manifest.read_bytes(), "")
            manifest.write_bytes(exports.written(replace(before, at=before.at + 1)))
            said = "is not the export that"
        case 3:
            (chain.where / "web1-mon.1").rename(chain.where / "away")
            said = "needs the export of snapshot mon.1"
        case _:
            (chain.where / "web1-wed" / "vdb.rbddiff").unlink()
            said = "is missing"
    done = chain.imported("web1-wed")
    assert done["state"] == "failed"
    assert said in done["reason"]
    assert chain.untouched()


def test_volumes_that_are_there_stay_what_they_are(made: Exporting) -> None:
    """Also when the second of them is what is in the way."""
    made.export("mon.1")
    made.storing.pool.add("web2-disk1", SIZE, Format.QCOW2, "t")
    made.storing.pool.kept["web2-disk1"].content = b"somebody's"
    assert made.imported("web1-mon.1")["reason"] == "there is a volume web2-disk1 in pool vms already"
    assert made.content("web2-disk1") == b"somebody's"
    assert "web2-disk0" not in made.storing.pool.kept
    assert made.storing.world.store.children(paths.pool_claims("vms")) == ()
    with pytest.raises(Conflict, match="there is a VM named web1 already"):
        made.imported("web1-mon.1", "web1")


def test_what_somebody_else_has_is_left_to_them(made: Exporting) -> None:
    made.export("mon.1")
    store = made.storing.world.store
    store.commit(Create(paths.pool_claim("vms", "web2-disk1"), b"0000000b"))
    done = made.imported("web1-mon.1")
    assert done["reason"] == "volume web2-disk1 of pool vms is being changed by task 0000000b"
    assert store.children(paths.pool_claims("vms")) == ("web2-disk1",)
    store.commit(Delete(paths.pool_claim("vms", "web2-disk1")))
    store.commit(Create(paths.pool_vm("vms", "web2-disk0"), UUID.encode()))
    assert made.imported("web1-mon.1")["reason"] == "volume web2-disk0 of pool vms is a disk of web1"
    assert store.get(paths.pool_vm("vms", "web2-disk0")) is not None


def lost(made: Exporting) -> None:
    """The VM, with its disks: it can be made again with its identity."""
    store = made.storing.world.store
    store.commit(Delete(paths.vm_snapshot(UUID, "mon.1")), Delete(paths.vm_snapshots(UUID)))
    made.storing.world.edit(paths.vm(UUID), snapshots=())
    made.storing.call("vm.undefine", vm="web1")
    made.storing.pool.kept.clear()


def test_of_two_that_are_made_with_one_identity_one_is(
    made: Exporting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of the other, and the one keeps its disks."""
    made.export("mon.1")
    lost(made)
    store, told, other = made.storing.world.store, made.storing.pool.add_snapshot, made.storing.tasks["n2"]
    given: dict[str, Any] = {"path": str(made.where / "web1-mon.1"), "same_identity": True}

    def add_snapshot(name: str, snapshot: str) -> None:
        told(name, snapshot)
        if name == "web2-disk1":
            made.storing.call("vm.snapshot-import", name="web3", node="n2", **given)
            other.step()
            assert isinstance(other.lanes, Lanes)
            other.lanes.run()

    monkeypatch.setattr(made.storing.pool, "add_snapshot", add_snapshot)
    assert carried_out(made, "vm.snapshot-import", name="web2", node="n1", **given) == "failed"
    assert {vm.spec.name for vm in View(store).vms().values()} == {"web3"}
    assert set(made.storing.pool.kept) == {"web3-disk0", "web3-disk1"}
    assert set(store.children(paths.pool_vms("vms"))) == {"web3-disk0", "web3-disk1"}
    assert not store.children(paths.pool_claims("vms"))


def test_what_is_a_disk_of_another_vm_stays_one(made: Exporting) -> None:
    """Also below a claim of the task that is undone."""
    made.export("mon.1")
    store, pool = made.storing.world.store, made.storing.pool
    manifest = made.announced("web1-mon.1")
    store.commit(Create(paths.pool_vm("vms", "web2-disk1"), UUID.encode()))
    with pytest.raises(Conflict, match="volume vms/web2-disk1 is a disk of web1"):
        made.storing.call("vm.snapshot-upload-begin", name="web2", **manifest)
    store.commit(Delete(paths.pool_vm("vms", "web2-disk1")))
    begun = made.storing.call("vm.snapshot-upload-begin", name="web2", **manifest)
    store.commit(Create(paths.pool_claim("vms", "web1-disk1"), begun["name"].encode()))
    spec = View(store).tasks([begun["name"]])[begun["name"]].spec
    made.storing.tasks["n1"].works["vm.snapshot-upload"].undo(spec)
    assert made.content("web1-disk1") == b"one".ljust(SIZE, b"\0")
    index = store.get(paths.pool_vm("vms", "web1-disk1"))
    assert index is not None
    assert index.data.decode() == UUID
    assert not store.children(paths.pool_claims("vms"))
    assert set(pool.kept) == {"web1-disk0", "web1-disk1"}


def test_a_pool_is_not_filled_by_it(made: Exporting) -> None:
    made.export("mon.1")
    made.storing.pool.total_bytes = SIZE
    assert "more do not fit into pool vms" in made.imported("web1-mon.1")["reason"]
    assert made.untouched()
    assert made.imported("web1-mon.1", force=True)["state"] == "done"


# What ends in the middle


class Ending(Exception):
    """As when the daemon is killed."""


@pytest.fixture(params=["fails", "is cancelled", "is killed"])
def ending(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def end(made: Exporting, ending: str) -> None:
    if ending == "fails":
        raise Failed("the disk is gone")
    if ending == "is killed":
        raise KeyboardInterrupt
    (job,) = (job for tasks in made.storing.tasks.values() for job in tasks.lanes.busy.values())
    job.progress.stopped = TaskState.CANCELLED
    job.progress.check()


def carried_out(made: Exporting, operation: str, brought: bytes = b"", **given: Any) -> str:
    """Up to its end, by another life of the daemon where one was killed. Its state."""
    begun = made.storing.call(operation, **given)
    try:
        with made.storing.bringing(begun["name"], brought):
            made.storing.work()
    except KeyboardInterrupt:
        made.storing.restart(begun["node"])
        made.storing.work()
    return str(made.storing.call("task.info", task=begun["name"])["state"])


STATES = {"fails": "failed", "is cancelled": "cancelled", "is killed": "lost"}


def test_half_an_export_is_none(made: Exporting, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = FakeContent.read

    def read(content: FakeContent, offset: int, length: int) -> bytes:
        if content.kept.volume.name == "web1-disk1":
            assert len(made.there()) == 1  # something is there, and goes
            end(made, ending)
        return real(content, offset, length)

    monkeypatch.setattr(FakeContent, "read", read)
    given: dict[str, Any] = {"vm": "web1", "snapshot": "mon.1", "path": str(made.where)}
    assert carried_out(made, "vm.snapshot-export", **given) == STATES[ending]
    assert made.there() == []
    assert made.untouched()
    monkeypatch.undo()
    made.keep("tue")
    assert "no whole export" in made.export("tue", parent="mon.1")["reason"]


@pytest.mark.parametrize("comes", ["of a directory", "of a client"])
@pytest.mark.parametrize("at", ["first disk", "second disk", "known"])
def test_half_a_vm_is_none(
    made: Exporting, ending: str, at: str, comes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.export("mon.1")
    real, told = FakeFilling.write, made.storing.pool.add_snapshot
    count = 0

    def write(filling: FakeFilling, offset: int, data: bytes) -> None:
        nonlocal count
        count += 1
        if count == {"first disk": 1, "second disk": 3}.get(at, 0):
            end(made, ending)
        real(filling, offset, data)

    def add_snapshot(name: str, snapshot: str) -> None:
        told(name, snapshot)
        if at == "known" and name == "web2-disk1":
            end(made, ending)

    monkeypatch.setattr(FakeFilling, "write", write)
    monkeypatch.setattr(made.storing.pool, "add_snapshot", add_snapshot)
    if comes == "of a directory":
        given: dict[str, Any] = {"name": "web2", "path": str(made.where / "web1-mon.1"), "node": "n1"}
        assert carried_out(made, "vm.snapshot-import", **given) == STATES[ending]
    else:
        sent = {"name": "web2", **made.announced("web1-mon.1")}
        brought = made.stream("web1-mon.1")
        assert carried_out(made, "vm.snapshot-upload-begin", brought, **sent) == STATES[ending]
    assert made.untouched()
    monkeypatch.undo()
    assert made.imported("web1-mon.1")["state"] == "done"


def test_half_a_vm_in_a_pool_that_goes_away_is_none_when_it_is_back(
    made: Exporting, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.export("mon.1")
    pool = made.storing.pool

    def write(filling: FakeFilling, offset: int, data: bytes) -> None:
        pool.is_mounted = False
        pool.check()

    monkeypatch.setattr(FakeFilling, "write", write)
    found = made.imported("web1-mon.1")
    assert (found["state"], "undoing: the pool is not here" in found["activity"]) == ("running", True)
    monkeypatch.undo()
    pool.is_mounted = True
    made.storing.again()
    assert made.storing.call("task.info", task=found["name"])["state"] == "failed"
    assert made.untouched()


def test_a_vm_that_is_there_is_not_undone(made: Exporting) -> None:
    """The commit that made it was not answered, and the task is undone as if it had failed."""
    made.export("mon.1")
    done = made.imported("web1-mon.1")
    spec = View(made.storing.world.store).tasks([done["name"]])[done["name"]].spec
    made.storing.tasks["n1"].works["vm.snapshot-import"].undo(spec)
    assert made.storing.world.vm("web2").spec.name == "web2"
    assert "web2-disk0" in made.storing.pool.kept
