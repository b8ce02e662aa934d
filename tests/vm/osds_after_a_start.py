"""Tests that run in the machine when it has started again: what osds_on_lvm.py has left."""

from __future__ import annotations

from pvc.node.osds import OSDs
from tests.support import eventually
from tests.vm.osds import do, empty, info, is_up, links, on, osds, paths, volumes
from tests.vm.osds_on_lvm import DATABASES, OTHER, SLOW

__all__ = ["osds"]


def test_osds_are_there_again_whatever_their_disks_are_called_now(osds: OSDs) -> None:
    eventually(lambda: is_up(osds, 0, 1, 2, 3), within=600, every=2)
    assert on(osds, OTHER) == [1]
    assert (info(osds, 1).devices, info(osds, 1).db_devices) == paths(osds, OTHER, DATABASES)
    assert sorted(on(osds, SLOW)) == [2, 3]


def test_the_database_of_an_osd_goes_with_it(osds: OSDs) -> None:
    assert do(osds, "remove", osd=1)["left"] == ""
    empty(osds, OTHER)
    assert volumes("osd-db") == ["keep"]


def test_the_place_for_databases_becomes_an_osd_when_that_is_forced(osds: OSDs) -> None:
    assert do(osds, "add", device=DATABASES, wipe=True)["osds"] == [1]
    assert not volumes("osd-db")


def test_all_go_and_leave_nothing(osds: OSDs) -> None:
    for osd in (1, 2, 3):
        assert do(osds, "remove", osd=osd)["left"] == ""
    assert sorted(osds.known()) == [0]
    for device in (OTHER, SLOW, DATABASES):
        empty(osds, device)
    assert not links()
