"""OSDs: what becomes of disks, by ceph-volume and in memory; and tasks with a real Ceph."""

from __future__ import annotations

import struct
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pvc.clock import SystemClock
from pvc.cluster.ceph import problems
from pvc.cluster.tasks import TaskSpec, TaskState
from pvc.errors import Conflict, NotFound
from pvc.node import devices
from pvc.node.ceph_watch import look, look_at_osd
from pvc.node.drivers import DriverError
from pvc.node.drivers.ceph import ASK_TIMES
from pvc.node.drivers.ceph import Ceph as Client
from pvc.node.drivers.ceph_volume import CephVolume, OSDDisks
from pvc.node.monitors import Monitors
from pvc.node.osds import OSDs, works
from pvc.node.tasks import Progress, Stopped
from tests.ceph import Ceph, ceph
from tests.fakes.osds import FakeCeph, FakeDisks, disk
from tests.osd_host import OSDHost, osd_host
from tests.support import eventually

HOST = "vm"
MAKING: dict[str, Any] = {"wipe": False, "split": 1, "tier": "", "db_bytes": 0, "weight": None}


@dataclass
class Bench:
    disks: OSDDisks
    monitors: Monitors
    add_disk: Callable[[], str]
    put_file_system: Callable[[str], None]
    add_osd: Callable[[], int]
    """Ready to be prepared."""
    notes: str

    def osds(self) -> OSDs:
        return OSDs(HOST, self.disks, self.notes, connect=lambda: self.monitors)

    def device(self, path: str) -> devices.Device:
        return devices.choose(path, self.disks.devices())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    with ceph(tmp_path_factory.mktemp("ceph")) as made:
        made.add_pool("vms")
        yield made


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, cluster: Ceph) -> Iterator[OSDHost]:
    with osd_host(tmp_path_factory.mktemp("host"), cluster) as made:
        yield made


def _reserved(osds: OSDs) -> int:
    osd = osds.reserve(str(uuid.uuid4()))
    osds.destroy(osd)
    return osd


def _fake(tmp_path: Path) -> Bench:
    made = FakeCeph({0: {"uuid": "first", "up": 1, "in": 1, "up_from": 1, "state": ["up"]}})
    disks = FakeDisks(made)

    def add_disk() -> str:
        path = f"/dev/loop{len(disks.there)}"
        disks.there[path] = disk(path)
        return path

    def put_file_system(path: str) -> None:
        disks.there[path] = disk(path, filesystem="ext4")

    def add_osd() -> int:
        return _reserved(OSDs(HOST, disks, "", connect=lambda: made))

    return Bench(disks, made, add_disk, put_file_system, add_osd, str(tmp_path / "notes"))


def _real(tmp_path: Path, host: OSDHost) -> Bench:
    monitors = Client(host.ceph.conf, "admin")
    disks = CephVolume(host.run, host.root)
    disks.bootstrap(monitors.command("auth get", entity="client.bootstrap-osd")[0]["key"])

    def put_file_system(path: str) -> None:
        subprocess.run(["mkfs.ext4", "-q", path, "16M"], check=True)

    def add_osd() -> int:
        return _reserved(OSDs(HOST, disks, "", connect=lambda: monitors))

    return Bench(disks, monitors, host.add_disk, put_file_system, add_osd, str(tmp_path / "notes"))


@pytest.fixture(params=["fake", "ceph-volume"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    if request.param == "fake":
        return _fake(tmp_path)
    return _real(tmp_path, request.getfixturevalue("host"))


@pytest.fixture
def real(tmp_path: Path, host: OSDHost) -> Bench:
    return _real(tmp_path, host)


# Disks


def test_a_disk_is_prepared_started_stopped_and_empty_again(bench: Bench) -> None:
    path, osd = bench.add_disk(), bench.add_osd()
    bench.disks.check_free(bench.device(path), force=False)
    assert bench.disks.prepared(path) == ()
    bench.disks.prepare(path, [osd])
    (made,) = bench.disks.prepared(path)
    assert (made.osd, made.device, made.is_lvm) == (osd, path, False)
    assert made in bench.disks.prepared()
    assert bench.osds().known()[osd]["uuid"] == made.uuid
    with pytest.raises(Conflict, match="holds data: it has an OSD of Ceph"):
        bench.disks.check_free(bench.device(path), force=False)
    bench.disks.start(made)
    eventually(lambda: bench.osds().known()[osd]["up"], within=30)
    bench.disks.stop(osd)
    bench.disks.stop(osd)
    bench.monitors.command("osd down", ids=[str(osd)])
    bench.disks.zap(path, [made])
    assert bench.disks.prepared(path) == ()
    bench.disks.check_free(bench.device(path), force=False)
    bench.osds().purge(osd)
    bench.osds().purge(osd)


def test_a_disk_with_data_is_named_and_wiped_only_by_force(bench: Bench) -> None:
    path = bench.add_disk()
    bench.put_file_system(path)
    with pytest.raises(Conflict, match=r"holds data: it has a file system \(ext4\)"):
        bench.disks.check_free(bench.device(path), force=False)
    bench.disks.check_free(bench.device(path), force=True)
    bench.disks.zap(path, ())
    bench.disks.check_free(bench.device(path), force=False)


def test_a_disk_with_partitions_is_refused_and_has_none_when_it_was_wiped(real: Bench) -> None:
    path = real.add_disk()
    entry = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", 2048, 1048576)
    with Path(path).open("r+b") as file:
        file.seek(446)
        file.write(entry.ljust(64, b"\0") + b"\x55\xaa")
    subprocess.run(["partx", "--update", path], check=True)
    with pytest.raises(Conflict, match=rf"a partition \({path}p1\).* a partition table \(dos\)"):
        real.disks.check_free(real.device(path), force=False)
    assert real.device(f"{path}p1").kind == "part"
    real.disks.zap(path, ())
    assert real.device(path).holders == ()
    real.disks.check_free(real.device(path), force=False)


def test_what_needs_lvm_is_refused_where_there_is_none(bench: Bench) -> None:
    path = bench.add_disk()
    assert not bench.disks.has_lvm()
    with pytest.raises(Conflict, match="no LVM"):
        bench.disks.prepare(path, [5, 6])
    with pytest.raises(Conflict, match="no LVM"):
        bench.disks.make_db_group(path)
    bench.disks.check_room(0)
    with pytest.raises(Conflict, match="no LVM"):
        bench.disks.check_room(1)


def test_a_device_that_is_not_there_is_told_with_those_that_are(bench: Bench) -> None:
    path = bench.add_disk()
    with pytest.raises(NotFound, match="no device /dev/sdzz") as told:
        bench.device("/dev/sdzz")
    assert path in told.value.hint


def test_a_disk_that_is_mounted_is_in_use_whatever_is_forced(real: Bench, tmp_path: Path) -> None:
    path = real.add_disk()
    real.put_file_system(path)
    subprocess.run(["mount", path, tmp_path], check=True)
    try:
        held = OSDs(HOST, CephVolume(), "", connect=lambda: real.monitors)
        with pytest.raises(Conflict, match=f"{path} is in use: {path} is mounted at {tmp_path}"):
            held.disks.check_free(devices.choose(path, held.disks.devices()), force=True)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# Tasks with a real Ceph


def task(kind: str, **given: Any) -> TaskSpec:
    return TaskSpec("0000000a", f"storage.osd-{kind}", "", HOST, "tester", 0.0, given)


def telling(said: list[str]) -> Progress:
    progress = Progress(lambda fraction, words: said.append(words), SystemClock())
    progress._next = 0.0
    return progress


def test_a_disk_that_gets_full_is_a_problem(real: Bench, cluster: Ceph) -> None:
    """Before any OSD goes by force: with it go PGs, of which there is one copy here, and who writes waits."""
    eventually(cluster._is_clean, within=60)
    with Client(cluster.conf, "admin").opened("vms", ASK_TIMES) as io:
        for piece in range(16):  # of which a slow disk takes each in time
            io.write("large", bytes(4 * 1024**2), piece * 4 * 1024**2)
    real.monitors.command("osd set-nearfull-ratio", ratio=0.005)
    try:
        eventually(lambda: [one for one in problems(look(real.monitors)) if "nearfull" in one], within=60)
    finally:
        real.monitors.command("osd set-nearfull-ratio", ratio=0.85)
        with Client(cluster.conf, "admin").opened("vms", ASK_TIMES) as io:
            io.remove_object("large")


def test_an_osd_is_added_and_removed(real: Bench, cluster: Ceph) -> None:
    path, kinds = real.add_disk(), works(real.osds())
    added = kinds["storage.osd-add"].do(task("add", **MAKING, device=path), telling([]))
    (osd,) = added["osds"]
    found = look(real.monitors)
    assert {one.id: one.state for one in found.osds} == {0: "up,in", osd: "up,in"}
    assert [one.tier for one in found.osds] == ["hdd", "hdd"]
    assert not [one for one in problems(found) if "OSD" in one]
    known = look_at_osd(real.monitors, osd)
    assert (known.devices, known.db_devices, known.store) == ((path,), (), "bluestore")
    assert (known.node, known.tier, known.state) == (HOST, "hdd", "up,in")
    with pytest.raises(Conflict, match=f"{path} has data or the database of OSD {osd}"):
        kinds["storage.osd-add"].do(task("add", **{**MAKING, "wipe": True}, device=path), telling([]))
    kinds["storage.osd-remove"].do(task("remove", osd=osd, here=True, force=False), telling([]))
    assert sorted(real.osds().known()) == [0]
    assert real.disks.prepared(path) == ()
    eventually(cluster._is_clean, within=30)


def test_the_only_osd_with_data_never_goes_and_comes_back_when_that_is_cancelled(real: Bench) -> None:
    """Ceph has nobody to give it to."""
    said: list[str] = []
    osds = real.osds()
    progress = telling(said)

    def pause(seconds: float) -> None:
        said.append("paused")
        if len(said) > 4:
            progress.stopped = TaskState.CANCELLED

    osds.pause = pause
    removal, asked = works(osds)["storage.osd-remove"], task("remove", osd=0, here=False, force=False)
    with pytest.raises(Stopped):
        removal.do(asked, progress)
    assert not osds.get(0)["in"]
    removal.undo(asked)
    assert osds.get(0)["in"]
    assert osds.get(0)["up"]


def test_what_could_not_be_prepared_leaves_no_osd(real: Bench, host: OSDHost) -> None:
    path, kinds = real.add_disk(), works(real.osds())
    asked = task("add", **MAKING, device=path)
    keyring = Path(host.root, "var/lib/ceph/bootstrap-osd/ceph.keyring")
    bootstrap, real.disks.bootstrap = real.disks.bootstrap, lambda key: None  # type: ignore[method-assign]
    keyring.unlink()
    with pytest.raises(DriverError, match="ceph-volume raw prepare"):
        kinds["storage.osd-add"].do(asked, telling([]))
    kinds["storage.osd-add"].undo(asked)
    real.disks.bootstrap = bootstrap  # type: ignore[method-assign]
    assert sorted(real.osds().known()) == [0]
    assert real.disks.prepared(path) == ()


def test_an_osd_gets_another_disk_and_keeps_its_number(real: Bench) -> None:
    old, new, kinds = real.add_disk(), real.add_disk(), works(real.osds())
    (osd,) = kinds["storage.osd-add"].do(task("add", **MAKING, device=old), telling([]))["osds"]
    asked = task("replace", **MAKING, osd=osd, device=new, here=True, force=False)
    kinds["storage.osd-replace"].do(asked, telling([]))
    assert [one.osd for one in real.disks.prepared(new)] == [osd]
    assert real.disks.prepared(old) == ()
    assert {one.id: one.state for one in look(real.monitors).osds}[osd] == "up,in"
    kinds["storage.osd-remove"].do(task("remove", osd=osd, here=True, force=True), telling([]))
    assert sorted(real.osds().known()) == [0]


def test_flags_of_all_osds_are_set_and_taken_back(real: Bench) -> None:
    kinds = works(real.osds())
    kinds["storage.osd-set"].do(task("set", about="noout"), telling([]))
    assert look(real.monitors).flags == ("noout",)
    kinds["storage.osd-unset"].do(task("unset", about="noout"), telling([]))
    assert look(real.monitors).flags == ()
