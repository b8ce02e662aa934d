"""What ceph-volume and LVM are told on machines that have LVM, which those of the tests have not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pvc.errors import Conflict
from pvc.node.devices import Device
from pvc.node.drivers import DriverError
from pvc.node.drivers.ceph_volume import CephVolume, Prepared, _said
from pvc.proc import WITH_US, CommandFailed, Completed
from tests.fakes.osds import disk

LVM_LIST = {
    "3": [
        {
            "type": "block",
            "path": "/dev/vg/data",
            "devices": ["/dev/sdb"],
            "tags": {"ceph.osd_fsid": "u3", "ceph.cluster_fsid": "f"},
        },
        {
            "type": "db",
            "path": "/dev/osd-db/db-3",
            "devices": ["/dev/nvme0n1"],
            "tags": {"ceph.osd_fsid": "u3", "ceph.cluster_fsid": "f"},
        },
        {"type": "wal", "path": "/dev/sdc1", "tags": {"PARTUUID": "a partition"}},
    ]
}
FAILED = """\
Running command: /usr/bin/ceph-authtool --gen-print-key
 stderr: /usr/bin/chown:
 stderr: invalid group: 'ceph:ceph'
--> Was unable to complete a new OSD, will rollback changes
 stderr: purged osd.1
-->  RuntimeError: Unable to find any LV for zapping OSD: 1
"""


class Machine:
    def __init__(self, tmp_path: Path, *, lvm: bool = True) -> None:
        self.said: list[str] = []
        self.raw: dict[str, dict[str, str]] = {}
        self.reports: dict[str, list[dict[str, str]]] = {"pvs": [], "lvs": [], "vgs": []}
        self.codes = {"vgs osd-db": 5, "systemctl is-active --quiet ceph-osd@3.service": 3}
        if lvm:
            (tmp_path / "dev/mapper").mkdir(parents=True)
            (tmp_path / "dev/mapper/control").touch()
        self.disks = CephVolume(self.run, str(tmp_path))

    def run(self, argv: list[str], /, *, check: bool = True, timeout_s: float = 60.0) -> Completed:
        if "ceph-volume" in argv:
            assert (*argv[: len(WITH_US)],) == WITH_US, "it would outlive the daemon, beside its undoing"
            argv = argv[len(WITH_US) :]
        line = " ".join(argv)
        if line != "lvm version":
            self.said.append(line)
        out = ""
        if argv[1:3] == ["lvm", "list"]:
            out = json.dumps(LVM_LIST)
        if argv[0] in self.reports and "json" in argv:
            out = json.dumps({"report": [{argv[0][:-1]: self.reports[argv[0]]}]})
        if argv[1:3] == ["raw", "list"]:
            out = json.dumps(self.raw)
        found = Completed(self.codes.get(line, 0), out, FAILED)
        if check and found.code:
            raise CommandFailed(argv, found)
        return found


def test_one_osd_gets_a_logical_volume(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.disks.prepare("/dev/sdb", [3], tier="ssd")
    assert machine.said == [
        "ceph-volume lvm prepare --bluestore --data /dev/sdb --osd-id 3 --crush-device-class ssd"
    ]


def test_a_database_is_a_logical_volume_of_its_group(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.disks.prepare("/dev/sdb", [3], db_bytes=4096)
    assert machine.said == [
        "lvremove --yes osd-db/db-3",
        "lvcreate --yes --addtag pvc --name db-3 --size 4096b osd-db",
        "ceph-volume lvm prepare --bluestore --data /dev/sdb --osd-id 3 --block.db osd-db/db-3",
    ]


def test_a_database_needs_its_group_and_room_in_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.disks.check_room(0)
    with pytest.raises(Conflict, match="no volume group osd-db"):
        machine.disks.check_room(1)
    machine.reports["vgs"] = [{"vg_name": "osd-db", "vg_free": "1000"}, {"vg_name": "other", "vg_free": "9"}]
    machine.reports["lvs"] = [
        {"vg_name": "osd-db", "lv_name": "db-3", "lv_size": "500"},
        {"vg_name": "other", "lv_name": "db-3", "lv_size": "500"},
    ]
    machine.disks.check_room(1000)
    machine.disks.check_room(1500, replaced=3)
    for replaced in (None, 4):
        with pytest.raises(Conflict, match="osd-db has only 1000 B left"):
            machine.disks.check_room(1001, replaced)


def test_a_database_of_an_osd_that_could_not_be_made_goes(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.codes["ceph-volume lvm prepare --bluestore --data /dev/sdb --osd-id 3 --block.db osd-db/db-3"] = 1
    with pytest.raises(DriverError, match=r"ceph-volume lvm prepare: invalid group: 'ceph:ceph'"):
        machine.disks.prepare("/dev/sdb", [3], db_bytes=4096)
    assert machine.said[-1] == "lvremove --yes osd-db/db-3"


def test_a_device_is_split(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.disks.prepare("/dev/sdb", [3, 4])
    assert machine.said == [
        "ceph-volume lvm batch --bluestore --yes --prepare --no-systemd --osds-per-device 2 /dev/sdb "
        "--osd-ids 3 4"
    ]
    with pytest.raises(Conflict, match="no databases elsewhere"):
        machine.disks.prepare("/dev/sdb", [3, 4], db_bytes=4096)


def test_osds_on_logical_volumes_are_found_by_their_disk(tmp_path: Path) -> None:
    disks = Machine(tmp_path).disks
    assert disks.prepared() == (Prepared(3, "u3", "f", "/dev/sdb", is_lvm=True),)
    assert disks.prepared("/dev/sdb") == disks.prepared()
    assert disks.prepared("/dev/nvme0n1") == ()


def device(path: str, *holders: Device, kind: str = "disk") -> Device:
    return replace(disk(path), kind=kind, holders=holders)


@pytest.mark.parametrize(
    "there",
    [
        device("/dev/sdb"),
        device("/dev/nvme0n1"),
        device("/dev/nvme0n1", device("/dev/mapper/osd--db-db--3", kind="lvm")),
        device("/dev/osd-db/db-3", kind="lvm"),
        device("/dev/sdc", device("/dev/sdc1", kind="part")),
    ],
)
def test_a_device_with_the_database_of_an_osd_is_no_free_one(tmp_path: Path, there: Device) -> None:
    machine = Machine(tmp_path)
    assert machine.disks.identities(there) == {"u3"}
    assert machine.disks.identities(device("/dev/sdd")) == frozenset()


def test_a_database_without_lvm_is_found_as_well(tmp_path: Path) -> None:
    machine = Machine(tmp_path, lvm=False)
    machine.raw = {"u4": {"osd_uuid": "u4", "device_db": "/dev/sdc1"}}
    assert machine.disks.identities(device("/dev/sdc", device("/dev/sdc1", kind="part"))) == {"u4"}
    assert machine.said == ["ceph-volume raw list /dev/sdc /dev/sdc1 --format json"]


def test_an_osd_on_a_logical_volume_is_started_stopped_and_zapped(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (one,) = machine.disks.prepared()
    machine.said.clear()
    machine.disks.start(one)
    machine.disks.stop(3)
    machine.disks.zap("/dev/sdb", [one])
    assert machine.said == [
        "ceph-volume lvm activate --bluestore 3 u3",
        "systemctl disable --quiet --runtime ceph-osd@3.service",
        "systemctl disable --quiet --now ceph-osd@3.service",
        "systemctl is-active --quiet ceph-osd@3.service",
        "ceph-volume lvm zap --destroy --osd-id 3 --osd-fsid u3",
        "systemctl disable --quiet ceph-volume@lvm-3-u3.service",
        "umount --quiet /var/lib/ceph/osd/ceph-3",
        "rm -rf --one-file-system /var/lib/ceph/osd/ceph-3",
    ]


def test_a_daemon_that_does_not_end_is_told(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.codes.clear()
    with pytest.raises(DriverError, match="the daemon of OSD 3 does not end"):
        machine.disks.stop(3)


def test_a_place_for_databases_is_a_volume_group(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.disks.make_db_group("/dev/nvme0n1")
    assert machine.said[1:] == [
        "vgcreate --yes --addtag pvc osd-db /dev/nvme0n1",
        "lvcreate --yes --name keep --extents 1 osd-db",
    ]
    machine.codes["vgs osd-db"] = 0
    with pytest.raises(Conflict, match="there is a volume group osd-db already"):
        machine.disks.make_db_group("/dev/nvme0n1")


def test_what_was_cut_off_is_swept_up_and_nothing_else(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    done = "ceph.osd_fsid=u3,ceph.type=block"
    machine.reports["lvs"] = [
        {"lv_name": name, "vg_name": group, "lv_tags": tags}
        for name, group, tags in (
            ("osd-block-u3", "ceph-1", done),
            ("osd-block-u4", "ceph-2", "ceph.type=block"),
            ("osd-block-u6", "ceph-3", ""),
            ("osd-block-u5", "mine", ""),
            ("db-3", "osd-db", f"{done},pvc"),
            ("db-4", "osd-db", "pvc"),
            ("db-of-mine", "osd-db", ""),
            ("keep", "osd-db", ""),
        )
    ]
    machine.reports["pvs"] = [
        {"pv_name": path, "vg_name": group, "lv_count": count, "vg_tags": tags}
        for path, group, count, tags in (
            ("/dev/sdb", "ceph-1", "1", ""),
            ("/dev/sdc", "ceph-2", "0", ""),
            ("/dev/sdd", "osd-db", "0", ""),
            ("/dev/sde", "osd-db", "0", "pvc"),
            ("/dev/sdf", "", "", ""),
            ("/dev/sdg", "mine", "0", ""),
            ("/dev/sdh", "ceph-3", "0", ""),
        )
    ]
    machine.disks.devices = lambda: (device("/dev/sdc"), device("/dev/sdh"))  # type: ignore[method-assign]
    machine.disks.sweep("/dev/sdc")
    assert [line for line in machine.said if line.split()[0] not in ("lvs", "pvs")] == [
        "lvremove --yes ceph-2/osd-block-u4",
        "lvremove --yes osd-db/db-4",
        "vgremove --yes --force ceph-2",
        "pvremove --yes /dev/sdc",
        "vgremove --yes --force osd-db",
        "pvremove --yes /dev/sde",
    ]


def test_one_of_several_disks_of_a_volume_group_is_refused_whatever_is_forced(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.reports["pvs"] = [{"pv_name": "/dev/sdb1", "vg_name": "two", "pv_count": "2"}]
    there = device("/dev/sdb", device("/dev/sdb1", kind="part"))
    with pytest.raises(Conflict, match="/dev/sdb1 is one of 2 disks of the volume group two"):
        machine.disks.check_free(there, force=True)


def test_without_lvm_the_disk_is_given_to_ceph_whenever_the_machine_starts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, lvm=False)
    drop_in = tmp_path / "etc/systemd/system/ceph-osd@3.service.d/pvc.conf"
    one = Prepared(3, "u3", "f", "/dev/loop9", is_lvm=False)
    machine.disks.start(one)
    assert "ExecStartPre=+/bin/chown ceph:ceph /var/lib/ceph/osd/ceph-%i/block" in drop_in.read_text()
    machine.disks._forget(one)
    assert not drop_in.parent.exists()


def test_the_key_of_new_osds_is_for_root_alone(tmp_path: Path) -> None:
    disks = Machine(tmp_path).disks
    keyring = tmp_path / "var/lib/ceph/bootstrap-osd/ceph.keyring"
    for key in ("a", "b", "b"):
        disks.bootstrap(key)
        assert keyring.read_text() == f"[client.bootstrap-osd]\n\tkey = {key}\n"
        assert keyring.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        (FAILED, "invalid group: 'ceph:ceph'"),
        (
            "-->  RuntimeError: did not find any matching OSD to activate\n",
            "RuntimeError: did not find any matching OSD to activate",
        ),
        ("usage: ceph-volume\nceph-volume: bad option\n", "ceph-volume: bad option"),
        ("", "no output"),
    ],
)
def test_what_is_told_of_a_failure_is_its_reason(stderr: str, said: str) -> None:
    assert _said(stderr) == said
