"""OSDs and the use of Ceph as operations see them: who is asked, who does it, what is told."""

from __future__ import annotations

from typing import Any

import pytest

from pvc.cluster import ceph, paths
from pvc.cluster.ceph import ALL, Growth
from pvc.cluster.codec import to_json
from pvc.commands.context import invoke
from pvc.commands.registry import Role, find
from pvc.errors import Conflict, Unavailable
from tests.unit.commands.test_every_operation import with_ceph
from tests.unit.commands.world import World
from tests.unit.test_ceph import GIB, known, told


class Asked:
    """A world whose nodes answer for Ceph."""

    def __init__(self) -> None:
        self.world: World = with_ceph()
        for number, name in enumerate(("n1", "n2", "n3"), 1):
            self.world.edit(paths.node(name), address=f"10.0.0.{number}")
        self.asked: list[str] = []
        self.silent: set[str] = set()

    def call(self, operation: str, /, planning: bool = False, **given: Any) -> Any:
        context = self.world.context(planning=planning)
        context.ask = self._ask
        return to_json(invoke(find(operation), context, given))

    def _ask(self, address: str, port: int, path: str) -> Any:
        self.asked.append(f"{address} {path}")
        if address in self.silent:
            raise Unavailable(f"{address} does not answer")
        if path == "ceph/osd/1":
            return to_json(known(1))
        growth = {ALL: Growth(GIB, 12.0), "vms": Growth(None, None)}
        return {"figures": to_json(ceph.figures(**told())), "growth": to_json(growth)}


def test_osds_are_listed_with_their_figures() -> None:
    asked = Asked()
    rows = asked.call("storage.osd-list")
    assert [row["id"] for row in rows] == [0, 1, 2, 7]
    assert rows[1] == {
        "id": 1,
        "node": "n2",
        "tier": "ssd",
        "state": "down,in",
        "weight": 0.00975,
        "size_bytes": 10 * GIB,
        "used_bytes": 1024**2,
        "used_percent": 0,
        "pgs": 8,
    }
    assert [row["id"] for row in asked.call("storage.osd-list", node="n1")] == [0, 2]
    assert asked.asked[0] == "10.0.0.1 ceph"


def test_one_osd_is_asked_for_by_its_number() -> None:
    asked = Asked()
    found = asked.call("storage.osd-info", osd=1)
    assert (found["id"], found["node"], found["is_safe_to_remove"]) == (1, "n2", True)
    assert asked.asked == ["10.0.0.1 ceph/osd/1"]


def test_another_node_is_asked_when_one_does_not_answer() -> None:
    asked = Asked()
    asked.silent = {"10.0.0.1"}
    assert asked.call("storage.status")["health"] == "HEALTH_WARN"
    assert asked.asked == ["10.0.0.1 ceph", "10.0.0.2 ceph"]
    asked.silent = {"10.0.0.1", "10.0.0.2"}
    with pytest.raises(Unavailable, match=r"10.0.0.2 does not answer"):
        asked.call("storage.status")


def test_a_node_that_has_lost_ceph_is_not_asked() -> None:
    asked = Asked()
    problem = "node n1: Ceph is not reached from here"
    asked.world.edit(paths.node_status("n1"), ceph={"fsid": "", "osds": [0], "problems": [problem]})
    asked.call("storage.status")
    assert asked.asked == ["10.0.0.2 ceph"]
    assert problem in asked.world.call("cluster.status")["problems"]
    asked.world.edit(paths.node_status("n2"), ceph={"fsid": "", "osds": [], "problems": []})
    with pytest.raises(Unavailable, match=problem):
        asked.call("storage.status")


def test_status_counts_and_names() -> None:
    found = Asked().call("storage.status")
    assert next(iter(found)) == "health"
    assert found["osds"] == {"total": 4, "destroyed": 1, "down,in": 1, "down,out": 1, "up,in": 1}
    assert "OSD_NEARFULL: 1 nearfull osd(s)" in found["checks"]
    assert (found["flags"], found["quorum"], found["degraded"]) == (["noout"], ["n1", "n2"], 2)
    assert found["each_second"] == {
        "read_bytes": 0,
        "write_bytes": 100,
        "reads": 0,
        "writes": 3,
        "recovery_bytes": 0,
    }
    assert found["available_bytes"] == int(30 * GIB * 0.95) - 3 * GIB


def test_use_says_when_it_is_full() -> None:
    found = Asked().call("storage.util")
    assert (found["days_to_full"], found["forecast"]) == (12.0, "full in 12 days, at this rate")
    (pool,) = found["pools"]
    assert (pool["name"], pool["stored_bytes"], pool["used_percent"]) == ("vms", GIB, 11)
    assert (pool["daily_growth_bytes"], pool["days_to_full"]) == (None, None)
    assert len(found["osds"]) == 4


def test_whoever_has_the_disk_does_it() -> None:
    asked = Asked()
    assert asked.call("storage.osd-remove", osd=1)["node"] == "n2"
    with pytest.raises(Conflict, match=r"osd.1 is being changed by task"):
        asked.call("storage.osd-out", osd=1)
    assert asked.call("storage.osd-out", osd=0)["node"] == "n1"


def test_an_osd_of_a_dead_node_is_removed_by_another_and_its_disk_stays() -> None:
    asked = Asked()
    asked.world.kill_node("n2")
    begun = asked.call("storage.osd-remove", osd=1)
    assert begun["node"] == "n1"
    asked_for = asked.world.plain(paths.task(begun["name"]))["arguments"]
    assert asked_for == {"osd": 1, "here": False, "force": False}
    with pytest.raises(Unavailable, match="n2 is to do it, and its daemon is dead"):
        asked.call("storage.osd-replace", osd=1, device="/dev/sdb")


def test_that_it_is_forced_is_told_and_only_then_so() -> None:
    asked = Asked()
    plans = [asked.call("storage.osd-remove", True, osd=1, force=force)["plan"] for force in (False, True)]
    assert "n2 waits, however long, until Ceph says that OSD 1 can go" in plans[0]
    assert "nobody waits for copies of what is on OSD 1: what has no other copy is lost" in plans[1]
    assert "on OSD 1 are 8 PGs, 1 MiB; of all objects 2 copies are missing already" in plans[1]
    asked.silent = {"10.0.0.1", "10.0.0.2"}
    told = asked.call("storage.osd-remove", True, osd=1, force=True)["plan"]
    assert "how much that is, nobody says: 10.0.0.2 does not answer" in told
    for given, force in ((False, False), ("false", False), ("true", True)):
        other = Asked()
        begun = other.call("storage.osd-remove", osd=1, force=given)
        assert other.world.plain(paths.task(begun["name"]))["arguments"]["force"] is force


def test_what_a_disk_is_to_be_goes_with_the_task() -> None:
    asked = Asked()
    begun = asked.call("storage.osd-add", node="n1", device="/dev/sdb", db_size="4G", tier="hdd", weight=2.5)
    assert asked.world.plain(paths.task(begun["name"]))["arguments"] == {
        "device": "/dev/sdb",
        "weight": 2.5,
        "tier": "hdd",
        "db_bytes": 4 * GIB,
        "wipe": False,
        "split": 1,
    }


@pytest.mark.parametrize("verb", ["set", "unset"])
def test_flags_are_for_administrators_as_one_of_them_stops_all_guests(verb: str) -> None:
    assert find(f"storage.osd-{verb}").role is Role.ADMIN
