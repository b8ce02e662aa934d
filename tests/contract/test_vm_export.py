"""A VM that goes from a directory into Ceph and back as exports, with real pools: byte for byte."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pvc.cluster import domainxml, paths, records
from pvc.cluster.codec import dumps
from pvc.cluster.snapshots import Quiesced, SnapshotDisk, VMSnapshot, known_ops, on_volumes
from pvc.cluster.store import Put
from pvc.cluster.view import View
from pvc.node.drivers.directory import Directory
from pvc.node.drivers.storage import Pool
from tests.ceph import Ceph, ceph
from tests.contract.test_content import SIZE, Bench, _ceph, _directory, change
from tests.unit.commands.storing import Storing, announced, stream
from tests.unit.commands.world import UUID


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    with ceph(tmp_path_factory.mktemp("ceph")) as made:
        yield made


def keep(storing: Storing, benches: dict[str, Bench], vm: str, snapshot: str, at: float) -> bytes:
    """As a task of snapshots does; with what is on the disk."""
    store = storing.world.store
    spec = storing.world.spec(vm)
    name = on_volumes(spec.uuid, snapshot)
    ((target, volume),) = records.volumes(View(store), spec).items()
    bench = benches[volume.pool]
    content = bench.read(volume.name)
    bench.pool.add_snapshot(volume.name, name)
    disks = (SnapshotDisk(target, volume.pool, volume.name, len(content)),)
    made = VMSnapshot(snapshot, at, spec.definition, disks, Quiesced.STOPPED)
    put = Put(paths.vm(spec.uuid), dumps(replace(spec, snapshots=(*spec.snapshots, snapshot))))
    store.commit(put, *known_ops(spec, snapshot, dumps(made)))
    return content


def test_a_vm_goes_into_ceph_and_back(cluster: Ceph, tmp_path: Path) -> None:
    benches = {"vms": _directory(tmp_path), "fast": _ceph(cluster, "fast")}
    directory = benches["vms"].pool
    assert isinstance(directory, Directory)
    pools: dict[str, Pool] = {name: bench.pool for name, bench in benches.items()}
    storing, where, chance = Storing(), tmp_path / "exports", random.Random(3)
    where.mkdir()
    for made in storing.pools.values():
        made.open_pool = lambda spec: pools[spec.name]
    storing.add_pool("vms", path=str(directory.path))
    storing.add_ceph_pool("fast")
    directory.add("web1_disk0", SIZE, benches["vms"].format, "t1")
    disk = domainxml.NewDisk(directory.location("web1_disk0"))
    xml = domainxml.create("web1", UUID, memory_mib=512, vcpus=1, disks=[disk])
    storing.world.call("vm.define", xml=xml, target="n1")

    def export(vm: str, snapshot: str, parent: str | None) -> None:
        given = {"vm": vm, "snapshot": snapshot, "path": str(where), "parent": parent, "node": "n1"}
        done = storing.done("vm.snapshot-export", **given)
        assert (done["state"], done["reason"]) == ("done", "")

    def imported(vm: str, place: str, pool: str) -> None:
        given = {"name": vm, "path": str(where / place), "pool": pool, "node": "n1"}
        done = storing.done("vm.snapshot-import", **given)
        assert (done["state"], done["reason"]) == ("done", "")

    def uploaded(vm: str, pool: str, *places: str) -> None:
        given = {"name": vm, "pool": pool, "manifest": announced(where, *places)}
        begun = storing.call("vm.snapshot-upload-begin", **given)
        with storing.bringing(begun["name"], stream(where, *places), 4 * 1024**2):
            storing.work()
        assert storing.call("task.info", task=begun["name"])["reason"] == ""

    parent: str | None = None
    for number in range(3):
        change(benches["vms"], "web1_disk0", chance)
        content = keep(storing, benches, "web1", f"s.{number}", float(number))
        export("web1", f"s.{number}", parent)
        parent = f"s.{number}"
    imported("web2", "web1-s.2", "fast")
    for pool in ("fast", "vms"):
        uploaded(f"in-{pool}", pool, "web1-s.0", "web1-s.1", "web1-s.2")
        assert benches[pool].read(f"in-{pool}_disk0") == content
    assert benches["fast"].read("web2_disk0") == content
    spec = storing.world.spec("web2")
    (found,) = domainxml.parse(spec.definition).disks
    expected = domainxml.replace_disk(xml, domainxml.NewDisk("fast/web2_disk0", "raw", True), "vda")
    assert (found.type, found.source, found.format) == ("network", "fast/web2_disk0", "raw")
    assert domainxml.shape(expected).drives[0].digest == domainxml.shape(spec.definition).drives[0].digest

    change(benches["fast"], "web2_disk0", chance)
    content = keep(storing, benches, "web2", "back", 10.0)
    export("web2", "s.2", None)
    export("web2", "back", "s.2")
    imported("web3", "web2-back", "vms")
    assert benches["vms"].read("web3_disk0") == content
    (found,) = domainxml.parse(storing.world.spec("web3").definition).disks
    assert (found.type, found.source) == ("file", directory.location("web3_disk0"))
