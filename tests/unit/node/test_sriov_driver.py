"""SR-IOV where no such hardware is: a recorded tree of sysfs, and the netlink messages of iproute2 6.1.

Recorded with strace from `ip link set dev eth1 vf 3 …`; the kernel answers with attributes of the same form.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPBatch
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from pvc.cluster.sriov import LinkState, VFSettings
from pvc.node.drivers import DriverError
from pvc.node.drivers.sriov import KernelVirtualFunctions, asked_for, told_of
from tests.unit.node.test_netlink_messages import message

HEADER = "10 00 05 00 86 f1 01 6b 00 00 00 00 00 00 00 00 03 00 00 00 00 00 00 00 00 00 00 00"
WANTED = VFSettings(100, 5, 100, 900, LinkState.DISABLE, spoof_check=False, trust=True, query_rss=True)
RECORDED = {
    ("vlan", "qos"): "18 00 16 00 14 00 01 00 10 00 02 00 03 00 00 00 64 00 00 00 05 00 00 00",
    ("tx_rate_min", "tx_rate_max"): "18 00 16 00 14 00 01 00 10 00 06 00 03 00 00 00 64 00 00 00 84 03 00 00",
    ("spoof_check",): "14 00 16 00 10 00 01 00 0c 00 04 00 03 00 00 00 00 00 00 00",
    ("link_state",): "14 00 16 00 10 00 01 00 0c 00 05 00 03 00 00 00 02 00 00 00",
    ("trust",): "14 00 16 00 10 00 01 00 0c 00 09 00 03 00 00 00 01 00 00 00",
    ("query_rss",): "14 00 16 00 10 00 01 00 0c 00 07 00 03 00 00 00 01 00 00 00",
}


def recorded(names: tuple[str, ...]) -> bytes:
    """With the length before it."""
    rest = bytes.fromhex(HEADER + RECORDED[names])
    return (len(rest) + 4).to_bytes(4, "little") + rest


@pytest.mark.parametrize("names", RECORDED)
def test_a_function_is_set_as_iproute2_would(names: tuple[str, ...]) -> None:
    with IPBatch() as batch:
        batch.link("set", index=3, vf=asked_for(3, WANTED, names))
        kind, _, attributes = message(batch.batch)
        expected_kind, _, expected = message(recorded(names))
        assert (kind, attributes) == (expected_kind, expected)


@pytest.mark.parametrize("names", RECORDED)
def test_a_function_is_read_as_it_is_told(names: tuple[str, ...]) -> None:
    (told,) = MarshalRtnl().parse(recorded(names))
    found = told_of(dict(told["attrs"]))
    assert found == {3: {name: getattr(WANTED, name) for name in names}}


def test_what_a_driver_does_not_know_is_not_told() -> None:
    unknown = bytes.fromhex(HEADER + RECORDED[("trust",)])[:-4] + b"\xff" * 4
    (told,) = MarshalRtnl().parse((len(unknown) + 4).to_bytes(4, "little") + unknown)
    assert told_of(dict(told["attrs"])).get(3, {}) == {}


class Told(KernelVirtualFunctions):
    """With what the kernel of such a machine says."""

    def told(self, device: str) -> Mapping[int, Mapping[str, Any]]:
        return {0: {"mac": "02:00:00:00:00:01", "vlan": 7, "qos": 0}, 1: {"mac": "02:00:00:00:00:02"}}


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """As of an Intel X520 with two functions, of which a guest has the second."""
    pci = tmp_path / "devices/pci0000:00/0000:00:03.0"
    for place in ("0000:03:00.0", "0000:03:10.0", "0000:03:10.2"):
        (pci / place).mkdir(parents=True)
    (pci / "0000:03:10.0/net/eth2v0").mkdir(parents=True)
    (pci / "0000:03:00.0/sriov_totalvfs").write_text("63\n")
    (pci / "0000:03:00.0/sriov_numvfs").write_text("2\n")
    for number, place in enumerate(("0000:03:10.0", "0000:03:10.2")):
        (pci / f"0000:03:00.0/virtfn{number}").symlink_to(f"../{place}")
    (tmp_path / "class/net/eth2").mkdir(parents=True)
    (tmp_path / "class/net/eth2/device").symlink_to(pci / "0000:03:00.0")
    (tmp_path / "class/net/bond0").mkdir()
    return tmp_path / "class/net"


def test_a_device_is_found_with_its_functions(sysfs: Path) -> None:
    found = Told(sysfs).look("eth2")
    assert found is not None
    assert (found.pci, found.total) == ("0000:03:00.0", 63)
    first, second = found.functions
    assert (first.number, first.pci, first.mac, first.device) == (
        0,
        "0000:03:10.0",
        "02:00:00:00:00:01",
        "eth2v0",
    )
    assert (first.settings, first.supported) == (VFSettings(vlan=7), ("qos", "vlan"))
    assert (second.number, second.pci, second.device) == (1, "0000:03:10.2", "")


def test_a_device_that_cannot_be_split_and_one_that_is_not_there(sysfs: Path) -> None:
    found = Told(sysfs).look("bond0")
    assert found is not None
    assert (found.total, found.functions) == (0, ())
    assert Told(sysfs).look("eth7") is None


def test_splitting_is_one_write(sysfs: Path) -> None:
    Told(sysfs).split("eth2", 8)
    assert (sysfs / "eth2/device/sriov_numvfs").read_text() == "8"
    with pytest.raises(DriverError, match="bond0 cannot be split into 8 virtual functions"):
        Told(sysfs).split("bond0", 8)
