"""Tests that run in the machine of machine.py, one after the other: OSDs on logical volumes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pvc.cluster.codec import dumps
from pvc.errors import Conflict, PVCError
from pvc.node.osds import OSDs
from tests.support import eventually
from tests.vm.osds import GIB, do, empty, info, is_up, links, new_task, on, osds, paths, undo, volumes

__all__ = ["osds"]

FAST, DATABASES, SLOW, OTHER = (f"detect:SCRATCH{number}:6.44GB:0" for number in range(4))


def test_a_device_is_split(osds: OSDs) -> None:
    assert do(osds, "add", device=FAST, split=2)["osds"] == [1, 2]
    assert is_up(osds, 0, 1, 2)
    assert sorted(on(osds, FAST)) == [1, 2]
    with pytest.raises(Conflict, match="has data or the database of OSD 1, OSD 2"):
        do(osds, "add", device=FAST, wipe=True)
    with pytest.raises(Conflict, match="has data or the database of OSD 1, OSD 2"):
        do(osds, "create-db-vg", device=FAST, wipe=True)


def test_one_of_two_on_a_device_goes_and_the_other_stays(osds: OSDs) -> None:
    assert do(osds, "remove", osd=1)["left"] == ""
    assert is_up(osds, 0, 2)
    assert on(osds, FAST) == [2]
    with pytest.raises(Conflict, match="has data or the database of OSD 2"):
        do(osds, "add", device=FAST, wipe=True)
    assert do(osds, "remove", osd=2)["left"] == ""
    assert sorted(osds.known()) == [0]
    empty(osds, FAST)
    assert not links()


def test_an_osd_has_its_database_on_another_device(osds: OSDs) -> None:
    with pytest.raises(Conflict, match="no volume group osd-db"):
        do(osds, "add", device=SLOW, db_bytes=GIB)
    do(osds, "create-db-vg", device=DATABASES, wipe=False)
    with pytest.raises(Conflict, match="osd-db has only"):
        do(osds, "add", device=SLOW, db_bytes=7 * GIB)
    with pytest.raises(Conflict, match="volume group osd-db already"):
        do(osds, "create-db-vg", device=OTHER, wipe=False)
    assert do(osds, "add", device=SLOW, db_bytes=GIB)["osds"] == [1]
    assert is_up(osds, 1)
    assert (info(osds, 1).devices, info(osds, 1).db_devices) == paths(osds, SLOW, DATABASES)
    assert on(osds, SLOW) == [1]
    assert on(osds, DATABASES) == []
    with pytest.raises(Conflict, match="has data or the database of OSD 1"):
        do(osds, "add", device=DATABASES, wipe=True)


def test_an_osd_is_taken_up_from_its_disk(osds: OSDs) -> None:
    """As after its node was installed anew."""
    osds.disks.stop(1)
    osds.connect().command("osd down", ids=["1"])
    subprocess.run(["umount", "/var/lib/ceph/osd/ceph-1"], check=True)
    Path("/var/lib/ceph/osd/ceph-1").rmdir()
    with pytest.raises(Conflict, match=r"OSD 1 is not on /dev/sd., but no OSD at all"):
        do(osds, "refresh", osd=1, device=DATABASES)
    do(osds, "refresh", osd=1, device=SLOW)
    assert is_up(osds, 1)


def test_an_osd_gets_another_disk_and_another_database(osds: OSDs) -> None:
    with pytest.raises(Conflict, match="osd-db has only"):
        do(osds, "replace", osd=1, device=OTHER, db_bytes=7 * GIB)
    assert is_up(osds, 1)
    assert do(osds, "replace", osd=1, device=OTHER, db_bytes=GIB)["osds"] == [1]
    assert is_up(osds, 1)
    assert (info(osds, 1).devices, info(osds, 1).db_devices) == paths(osds, OTHER, DATABASES)
    assert on(osds, OTHER) == [1]
    assert volumes("osd-db") == ["db-1", "keep"]
    empty(osds, SLOW)
    assert len(links()) == 2, "of ceph-volume and of its daemon"


@contextmanager
def instead_of(program: str, script: str) -> Iterator[None]:
    """Of Debian's, which is found later."""
    instead = Path("/usr/local/sbin", program)
    instead.write_text(f"#!/bin/sh\n{script}\n")
    instead.chmod(0o755)
    try:
        yield
    finally:
        instead.unlink()


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("ceph-osd", "ceph-volume lvm prepare"),
        ("lvchange", "is not on /dev/sd. after it was prepared"),  # ceph-volume does not look
    ],
)
def test_what_could_not_be_prepared_leaves_nothing(osds: OSDs, program: str, told: str) -> None:
    with instead_of(program, "echo it fails >&2; exit 5"), pytest.raises(PVCError, match=told):
        do(osds, "add", device=SLOW, db_bytes=GIB)
    assert sorted(osds.known()) == [0, 1]
    assert volumes("osd-db") == ["db-1", "keep"]
    empty(osds, SLOW)


def test_a_preparation_whose_daemon_dies_leaves_nothing(osds: OSDs) -> None:
    task = new_task("add", device=SLOW, db_bytes=GIB)
    reached = Path("/run/reached")
    with instead_of("lvchange", f"echo >{reached}; exec sleep 60"):
        daemon = subprocess.Popen(["python3", "-m", "tests.vm.osds", dumps(task)])
        eventually(reached.exists, within=600, every=0.2)
        daemon.kill()
        daemon.wait()
    with pytest.raises(Conflict, match="holds data: it has a logical volume"):
        osds.disks.check_free(osds.choose(SLOW), force=False)
    undo(osds, task)
    assert sorted(osds.known()) == [0, 1]
    assert volumes("osd-db") == ["db-1", "keep"]
    empty(osds, SLOW)


def test_no_disk_of_a_larger_volume_group_is_taken(osds: OSDs) -> None:
    """What is on the others would go with it."""
    disks = [osds.choose(one).path for one in (FAST, SLOW)]
    subprocess.run(["vgcreate", "--yes", "two", *disks], check=True)
    with pytest.raises(Conflict, match="is one of 2 disks of the volume group two"):
        do(osds, "add", device=FAST, wipe=True)
    subprocess.run(["vgremove", "--yes", "two"], check=True)
    subprocess.run(["pvremove", "--yes", *disks], check=True)


def test_a_volume_in_use_is_not_taken_whatever_is_forced(osds: OSDs) -> None:
    path = osds.choose(SLOW).path
    subprocess.run(["sgdisk", "--new=1:0:+2G", path], check=True)
    subprocess.run(["udevadm", "settle"], check=True)
    subprocess.run(["vgcreate", "--yes", "mine", f"{path}1"], check=True)
    subprocess.run(["lvcreate", "--yes", "--name", "data", "--size", "100M", "mine"], check=True)
    subprocess.run(["mke2fs", "-q", "/dev/mine/data"], check=True)
    with pytest.raises(Conflict, match=r"holds data: it has a partition .* a partition table"):
        do(osds, "add", device=SLOW)
    subprocess.run(["mount", "/dev/mine/data", "/mnt"], check=True)
    with pytest.raises(Conflict, match="is mounted at /mnt"):
        do(osds, "add", device=SLOW, wipe=True)
    subprocess.run(["umount", "/mnt"], check=True)


def test_what_is_on_a_device_goes_when_that_is_forced(osds: OSDs) -> None:
    assert do(osds, "add", device=SLOW, wipe=True, split=2)["osds"] == [2, 3]
    assert is_up(osds, 0, 1, 2, 3)
    assert not volumes("mine")
