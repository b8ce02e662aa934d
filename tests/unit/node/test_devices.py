"""Which device is meant, and what is on it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pvc.errors import Conflict, Invalid, NotFound
from pvc.node.devices import Device, check_free, choose, content, devices, leaves, parse_detect

GB = 1000**3


def plain(path: str, size: int = 800 * GB, **other: Any) -> dict[str, Any]:
    given = {"vendor": None, "model": None, "fstype": None, "mountpoints": [None], "ro": False, "rota": True}
    return {"name": path[5:], "path": path, "type": "disk", "size": size, "tran": None, **given, **other}


def found(*one: dict[str, Any]) -> tuple[Device, ...]:
    return devices(json.dumps({"blockdevices": list(one)}))


SYSTEM = plain(
    "/dev/sda",
    256 * GB,
    model="Samsung SSD 870",
    children=[
        plain("/dev/sda1", GB, type="part", fstype="ext4", mountpoints=["/boot"]),
        plain("/dev/sda2", 8 * GB, type="part", fstype="swap", mountpoints=["[SWAP]"]),
    ],
)
INTEL = [
    plain(f"/dev/sd{letter}", size, vendor="ATA     ", model="INTEL SSDSC2KB")
    for letter, size in (("b", 800_166_076_416), ("aa", 800_166_076_416), ("c", 1_600 * GB))
]
HERE = found(SYSTEM, *INTEL, plain("/dev/nvme0n1", 1_920 * GB, model="SAMSUNG MZQL21T9"))


@pytest.mark.parametrize(
    ("wanted", "path"),
    [
        ("/dev/sdb", "/dev/sdb"),
        ("/dev/sda1", "/dev/sda1"),
        ("detect:INTEL:800GB:0", "/dev/sdb"),
        ("detect:intel:800G:1", "/dev/sdaa"),
        ("detect:SSDSC2KB:1.6T:0", "/dev/sdc"),
        ("detect:MZQL:1.92TB:0", "/dev/nvme0n1"),
        ("detect:ATA INTEL:0.79T:0", "/dev/sdb"),
    ],
)
def test_a_device_is_found(wanted: str, path: str) -> None:
    assert choose(wanted, HERE).path == path


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("/dev/sdx", "there is no device /dev/sdx"),
        ("detect:INTEL:800GB:2", "2 devices match detect:INTEL:800GB:2, whose last number counts from 0"),
        ("detect:INTEL:850GB:0", "no device matches"),
        ("detect:Seagate:800GB:0", "no device matches"),
    ],
)
def test_a_device_that_is_not_there_is_told_with_those_that_are(wanted: str, told: str) -> None:
    with pytest.raises(NotFound, match=told) as error:
        choose(wanted, HERE)
    assert "/dev/sdb (ATA INTEL SSDSC2KB, 745.2 GiB)" in error.value.hint


def test_without_devices_that_is_told() -> None:
    with pytest.raises(NotFound) as error:
        choose("/dev/sdb", ())
    assert error.value.hint == "there is no device at all"


@pytest.mark.parametrize("text", ["detect:", "detect:a:b:c", "detect:a:10G", "detect:a:-1G:0", "detect::1G:"])
def test_what_is_no_detect_string(text: str) -> None:
    with pytest.raises(Invalid, match="is not detect:NAME:SIZE:N"):
        parse_detect(text)


def of(**fields: Any) -> Device:
    (made,) = found(plain("/dev/sdb"))
    return replace(made, **fields)


@pytest.mark.parametrize(
    ("device", "signatures", "told"),
    [
        (HERE[0], (), "/dev/sda is in use: /dev/sda1 is mounted at /boot, /dev/sda2 is used as swap"),
        (of(filesystem="xfs"), (), r"holds data: it has a file system \(xfs\)"),
        (of(), ("LVM2_member",), "holds data: it has LVM"),
        (of(filesystem="ceph_bluestore"), ("ceph_bluestore",), "holds data: it has an OSD of Ceph$"),
        (of(), ("gpt", "PMBR"), r"a partition table \(gpt\)"),
        (of(holders=found(plain("/dev/sdb1", type="part"))), (), r"it has a partition \(/dev/sdb1\)"),
        (
            of(holders=found(plain("/dev/mapper/x", type="crypt", fstype="ext4"))),
            (),
            r"a crypt \(/dev/mapper/x\) with a file system \(ext4\)",
        ),
        (of(is_read_only=True), (), "can only be read"),
        (of(size_bytes=4096), (), "has only 4 KiB"),
    ],
)
def test_what_is_not_free_says_why(device: Device, signatures: tuple[str, ...], told: str) -> None:
    with pytest.raises(Conflict, match=told):
        check_free(device, signatures, is_held=False, force=False)


def test_force_is_for_what_is_on_it_and_not_for_what_is_in_use() -> None:
    check_free(of(filesystem="xfs"), ("gpt",), is_held=False, force=True)
    check_free(of(), ("LVM2_member",), is_held=False, force=True)
    for device in (HERE[0], of(is_read_only=True)):
        with pytest.raises(Conflict):
            check_free(device, (), is_held=False, force=True)
    with pytest.raises(Conflict, match="open by something else"):
        check_free(of(filesystem="xfs"), (), is_held=True, force=True)


def test_who_could_hold_a_disk_is_what_is_made_of_it() -> None:
    assert [one.path for one in leaves(HERE[0])] == ["/dev/sda1", "/dev/sda2"]
    assert [one.path for one in leaves(HERE[1])] == ["/dev/sdb"]


def test_a_free_device_has_nothing() -> None:
    assert content(of()) == []
    check_free(of(), (), is_held=False, force=False)
