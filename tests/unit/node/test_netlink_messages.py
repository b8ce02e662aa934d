"""What lab kernels cannot do (bonds, VLANs) at the netlink boundary: our messages are those of iproute2.

Recorded with strace from iproute2 6.1: `ip link add bond0 mtu 9000 group 7370340 type bond mode 802.3ad
miimon 100 xmit_hash_policy layer3+4`, `ip link add link eth1 name eth1.10 mtu 1400 group 7370340 type vlan
id 10`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from pyroute2 import IPBatch
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from pvc.node.drivers.host_networks import device_of, made_of
from pvc.node.drivers.host_state import Device
from pvc.node.drivers.networks import Vlan

BOND = """
    64 00 00 00 10 00 05 06 16 ed 01 6b 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
    08 00 04 00 28 23 00 00 08 00 1b 00 64 76 70 00 0a 00 03 00 62 6f 6e 64 30 00 00 00 28 00 12 00
    08 00 01 00 62 6f 6e 64 1c 00 02 00 05 00 01 00 04 00 00 00 08 00 03 00 64 00 00 00 05 00 0e 00
    01 00 00 00
"""
VLAN = """
    5c 00 00 00 10 00 05 06 16 ed 01 6b 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
    08 00 04 00 78 05 00 00 08 00 1b 00 64 76 70 00 08 00 05 00 03 00 00 00 0c 00 03 00 65 74 68 31
    2e 31 30 00 18 00 12 00 08 00 01 00 76 6c 61 6e 0c 00 02 00 06 00 01 00 0a 00 00 00
"""
DEVICES = {
    "bond": (Device("bond0", "bond", 9000, mode="802.3ad", is_ours=True), BOND),
    "vlan": (Device("eth1.10", "vlan", 1400, vlan=Vlan(10, "eth1"), is_ours=True), VLAN),
}
NESTED = ((18,), (18, 2), (22,), (22, 1))
"""IFLA_LINKINFO and IFLA_INFO_DATA in it; IFLA_VFINFO_LIST and IFLA_VF_INFO in it."""
UP = 0x1


def attributes(data: bytes, where: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Each with the types that it is in."""
    while data:
        length, kind = struct.unpack_from("=HH", data)
        here, value = (*where, kind & 0x3FFF), data[4:length]
        if here in NESTED:
            yield from attributes(value, here)
        else:
            yield here, value.rstrip(b"\0")
        data = data[(length + 3) & ~3 :]


def message(data: bytes) -> tuple[int, int, dict[tuple[int, ...], bytes]]:
    length, kind, flags = struct.unpack_from("=IHH", data)
    return kind, flags, dict(attributes(data[32:length]))


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_is_made_as_iproute2_would(name: str) -> None:
    device, recorded = DEVICES[name]
    with IPBatch() as batch:
        batch.link("add", **made_of(device, {"eth1": 3}.__getitem__))
        assert message(batch.batch) == message(bytes.fromhex(recorded))


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_is_read_as_it_is_told(name: str) -> None:
    device, recorded = DEVICES[name]
    (told,) = MarshalRtnl().parse(bytes.fromhex(recorded))
    assert device_of(UP, dict(told["attrs"]), {3: "eth1"}) == device
