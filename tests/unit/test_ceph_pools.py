"""Pools in Ceph as rules: what is asked for, whether it can be, and what Ceph's words mean."""

from __future__ import annotations

from typing import Any

import pytest

from pvc.cluster import ceph_pools
from pvc.cluster.ceph_pools import CephPlan, Tier
from pvc.errors import Conflict


def tree(*hosts: str) -> list[dict[str, Any]]:
    """Each host by the classes of its OSDs: "hdd ssd"."""
    number, nodes = 0, []
    for place, classes in enumerate(hosts, 1):
        osds = []
        for kind in classes.split():
            osds.append({"id": number, "type": "osd", "name": f"osd.{number}", "device_class": kind})
            number += 1
        children = [one["id"] for one in osds]
        nodes += [{"id": -place, "type": "host", "name": f"n{place}", "children": children}, *osds]
    return [{"id": -99, "type": "root", "name": "default", "children": [-1]}, *nodes]


@pytest.mark.parametrize(
    ("hosts", "tier", "copies", "words"),
    [
        (("hdd", "hdd", "hdd"), "default", 3, ""),
        (("hdd ssd", "ssd", "hdd ssd"), "ssd", 3, ""),
        (("hdd ssd", "hdd", "hdd ssd"), "ssd", 2, ""),
        (("hdd", "ssd", ""), "default", 3, "3 copies need as many hosts .* there are 2: n1, n2"),
        (("hdd ssd", "hdd", "hdd ssd"), "ssd", 3, "tier ssd, and there are 2: n1, n3"),
        (("hdd hdd hdd",), "default", 3, "there is 1: n1"),
        (("hdd", "ssd"), "nvme", 1, "no OSD is of tier nvme; there are those of hdd, ssd"),
        (("",), "default", 1, "Ceph has no OSD"),
    ],
)
def test_copies_are_on_hosts_of_their_own(hosts: tuple[str, ...], tier: str, copies: int, words: str) -> None:
    plan = CephPlan(8, Tier(tier), copies, 1)
    if not words:
        assert ceph_pools.check_places(tree(*hosts), plan, force=False) >= copies
        return
    with pytest.raises(Conflict, match=words):
        ceph_pools.check_places(tree(*hosts), plan, force=False)


def test_with_force_hosts_may_come_later_but_not_devices() -> None:
    assert ceph_pools.check_places(tree("ssd"), CephPlan(8, Tier.SSD), force=True) == 1
    with pytest.raises(Conflict, match="no OSD is of tier nvme"):
        ceph_pools.check_places(tree("ssd"), CephPlan(8, Tier.NVME), force=True)


@pytest.mark.parametrize(
    ("states", "flags", "words"),
    [
        (["active+clean"] * 8, [""], "ok"),
        (["active+clean", "active+clean+scrubbing+deep"], [""], "ok"),
        (
            ["active+clean", "unknown"],
            [""],
            "1 of 2 placement groups are not active (unknown)",
        ),
        (["active+undersized+degraded"] * 2, [""], "2 of 2 placement groups have fewer copies than wanted"),
        (["active+clean+inconsistent"], [""], "1 of 1 placement groups have copies that differ"),
        (["active+remapped+backfilling"], [""], "1 of 1 placement groups are being moved"),
        (["active+clean"], ["hashpspool", "nearfull"], "nearly full"),
        (["peering"], ["full"], "full: nothing can be written"),
    ],
)
def test_the_worst_is_told(states: list[str], flags: list[str], words: str) -> None:
    assert ceph_pools.health(states, flags).startswith(words)
