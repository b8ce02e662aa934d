"""OSDs: what tasks do with disks and with Ceph, and what is left when they end in the middle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pvc.clock import SystemClock
from pvc.cluster.tasks import TaskSpec, TaskState
from pvc.errors import Conflict, Failed, NotFound, PVCError, Unavailable
from pvc.node.drivers import DriverError
from pvc.node.osds import OSDs, works
from pvc.node.tasks import Progress, Stopped
from tests.fakes.osds import FakeCeph, FakeDisks, disk

ADD: dict[str, Any] = {
    "device": "/dev/sdb",
    "wipe": False,
    "split": 1,
    "tier": "",
    "db_bytes": 0,
    "weight": None,
}
REMOVE: dict[str, Any] = {"osd": 0, "here": True, "force": False}
REPLACE: dict[str, Any] = {**ADD, **REMOVE, "device": "/dev/sdc"}


class Node:
    def __init__(self, tmp_path: Path) -> None:
        self.ceph = FakeCeph()
        self.disks = FakeDisks(self.ceph, {path: disk(path) for path in ("/dev/sda", "/dev/sdb", "/dev/sdc")})
        self.notes = tmp_path / "osds"
        self.pauses = 0
        self.at_pause: dict[int, Any] = {}
        """What happens while it waits."""
        self.progress = Progress(lambda fraction, words: None, SystemClock())
        made = OSDs("n1", self.disks, str(self.notes), connect=lambda: self.ceph, pause=self._pause)
        self.works = works(made)

    def _pause(self, seconds: float) -> None:
        self.pauses += 1
        assert self.pauses < 50, "it waits for ever"
        if happens := self.at_pause.get(self.pauses):
            happens()

    def do(self, kind: str, given: dict[str, Any]) -> Any:
        return self.works[f"storage.osd-{kind}"].do(self.task(kind, given), self.progress)

    def undo(self, kind: str, given: dict[str, Any]) -> None:
        """Twice: it may be done again."""
        for _ in range(2):
            self.works[f"storage.osd-{kind}"].undo(self.task(kind, given))
        assert list(self.notes.glob("*")) == []

    def task(self, kind: str, given: dict[str, Any]) -> TaskSpec:
        return TaskSpec("0000000a", f"storage.osd-{kind}", "", "n1", "tester", 0.0, given)

    def cancel(self) -> None:
        self.progress.stopped = TaskState.CANCELLED

    @property
    def picture(self) -> Any:
        used = {path: [one.osd for one in found] for path, found in self.disks.osds.items() if found}
        return used, sorted(self.ceph.osds), sorted(self.disks.running)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def with_osd(node: Node) -> Node:
    """OSD 0 is on /dev/sdb."""
    node.do("add", ADD)
    return node


def test_a_disk_becomes_an_osd(node: Node) -> None:
    assert node.do("add", {**ADD, "weight": 2.0}) == {"osds": [0], "device": "/dev/sdb"}
    assert node.picture == ({"/dev/sdb": [0]}, [0], [0])
    assert "osd crush create-or-move 0 2.0 ['host=n1', 'root=default']" in node.ceph.said
    assert node.disks.key == "secret"
    assert list(node.notes.iterdir()) == []


def test_a_disk_that_holds_data_is_left_alone(node: Node) -> None:
    node.disks.there["/dev/sdb"] = disk("/dev/sdb", filesystem="ext4")
    with pytest.raises(Conflict, match=r"/dev/sdb holds data: it has a file system \(ext4\)"):
        node.do("add", ADD)
    node.undo("add", ADD)
    assert node.disks.there["/dev/sdb"].filesystem == "ext4"
    assert node.ceph.said == []
    node.do("add", {**ADD, "wipe": True})
    assert node.picture == ({"/dev/sdb": [0]}, [0], [0])


def test_the_disk_of_an_osd_is_not_wiped_whatever_is_forced(with_osd: Node) -> None:
    with pytest.raises(Conflict, match="/dev/sdb has data or the database of OSD 0"):
        with_osd.do("add", {**ADD, "wipe": True})
    with_osd.undo("add", {**ADD, "wipe": True})
    assert with_osd.picture == ({"/dev/sdb": [0]}, [0], [0])


@pytest.mark.parametrize("kind", ["add", "create-db-vg"])
def test_the_databases_of_osds_are_not_wiped_whatever_is_forced(with_osd: Node, kind: str) -> None:
    with_osd.disks.databases["/dev/sdc"] = {with_osd.ceph.osds[0]["uuid"], "of another Ceph"}
    with_osd.disks.there["/dev/sdc"] = disk("/dev/sdc", filesystem="LVM2_member")
    with pytest.raises(Conflict, match="/dev/sdc has data or the database of OSD 0"):
        with_osd.do(kind, {**ADD, "device": "/dev/sdc", "wipe": True})
    with_osd.undo(kind, {**ADD, "device": "/dev/sdc"})
    assert with_osd.disks.there["/dev/sdc"].filesystem == "LVM2_member"


@pytest.mark.parametrize("broken", ["prepare", "start"])
def test_an_osd_that_could_not_be_made_leaves_nothing(node: Node, broken: str) -> None:
    node.disks.broken = {broken}
    with pytest.raises(DriverError, match=f"{broken} failed"):
        node.do("add", ADD)
    node.undo("add", ADD)
    assert node.picture == ({}, [], [])
    assert node.disks.there["/dev/sdb"].filesystem == ""


@pytest.mark.parametrize("at", ["osd destroy-actual", "auth get-or-create"])
def test_an_id_that_was_reserved_by_a_daemon_that_died_goes(node: Node, at: str) -> None:
    node.ceph.failing = at
    with pytest.raises(DriverError):
        node.do("add", ADD)
    assert list(node.ceph.osds) == [0]
    node.ceph.failing = ""
    node.undo("add", ADD)
    assert node.ceph.osds == {}


def test_what_is_to_be_undone_waits_for_ceph(node: Node) -> None:
    node.disks.broken = {"start"}
    with pytest.raises(DriverError):
        node.do("add", ADD)
    node.ceph.failing = "status"
    with pytest.raises(Unavailable, match="Ceph does not answer"):
        node.undo("add", ADD)
    node.ceph.failing = ""
    node.undo("add", ADD)
    assert node.pauses == 0, "a task holds up no others meanwhile"
    assert node.picture == ({}, [], [])


def test_an_osd_that_has_joined_is_not_taken_away(node: Node) -> None:
    def dies() -> None:
        raise KeyboardInterrupt

    node.disks.before_start = lambda: None
    start = node.disks.start

    def start_and_die(one: Any) -> None:
        start(one)
        dies()

    node.disks.start = start_and_die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        node.do("add", ADD)
    node.undo("add", ADD)
    assert node.picture == ({"/dev/sdb": [0]}, [0], [0])


def test_a_split_that_is_not_possible_leaves_nothing(node: Node) -> None:
    with pytest.raises(Conflict, match="no LVM"):
        node.do("add", {**ADD, "split": 2})
    node.undo("add", {**ADD, "split": 2})
    assert node.picture == ({}, [], [])


# Removal


def test_an_osd_goes_when_ceph_says_that_it_can(with_osd: Node) -> None:
    with_osd.at_pause[20] = lambda: with_osd.ceph.safe.add(0)
    with_osd.do("remove", REMOVE)
    assert with_osd.pauses == 20, "however long it takes"
    assert with_osd.picture == ({}, [], [])
    assert with_osd.ceph.said[-3:] == ["osd out ['0']", "osd down ['0']", "osd purge-actual 0 True"]
    assert with_osd.disks.there["/dev/sdb"].filesystem == ""


def test_that_ceph_does_not_know_yet_is_no_yes(with_osd: Node) -> None:
    with_osd.ceph.failing = "osd safe-to-destroy"
    with_osd.ceph.safe = {0}
    with_osd.at_pause[10] = with_osd.cancel
    with pytest.raises(Stopped):
        with_osd.do("remove", REMOVE)
    assert with_osd.disks.running == {0}


def test_that_others_could_go_is_no_yes(with_osd: Node) -> None:
    with_osd.ceph.safe = {1}
    with_osd.at_pause[3] = with_osd.cancel
    with pytest.raises(Stopped):
        with_osd.do("remove", REMOVE)


def test_an_osd_whose_removal_is_cancelled_comes_back(with_osd: Node) -> None:
    with_osd.at_pause[3] = with_osd.cancel
    with pytest.raises(Stopped):
        with_osd.do("remove", REMOVE)
    assert with_osd.ceph.osds[0]["in"] == 0
    with_osd.undo("remove", REMOVE)
    assert with_osd.ceph.osds[0]["in"] == 1
    assert with_osd.picture == ({"/dev/sdb": [0]}, [0], [0])


def test_an_osd_whose_disk_nobody_knows_comes_back_all_the_same(with_osd: Node) -> None:
    with_osd.disks.osds.clear()
    with_osd.ceph.safe = {0}
    with_osd.ceph.failing = "osd purge-actual"
    with pytest.raises(DriverError):
        with_osd.do("remove", REMOVE)
    with_osd.undo("remove", REMOVE)
    assert with_osd.disks.running == {0}
    assert with_osd.ceph.osds[0]["in"] == 1


def test_an_osd_that_was_out_stays_out_when_its_removal_is_cancelled(with_osd: Node) -> None:
    with_osd.ceph.osds[0]["in"] = 0
    with_osd.at_pause[1] = with_osd.cancel
    with pytest.raises(Stopped):
        with_osd.do("remove", REMOVE)
    with_osd.undo("remove", REMOVE)
    # Its daemon was told to go on, and in this Ceph who begins is in.
    assert "osd in ['0']" not in with_osd.ceph.said


def test_a_removal_that_ends_before_the_purge_is_undone_and_after_it_finished(with_osd: Node) -> None:
    with_osd.ceph.safe = {0}
    with_osd.ceph.failing = "osd purge-actual"
    with pytest.raises(DriverError):
        with_osd.do("remove", REMOVE)
    assert with_osd.disks.running == set()
    with_osd.undo("remove", REMOVE)
    assert with_osd.picture == ({"/dev/sdb": [0]}, [0], [0])
    with_osd.ceph.failing = ""
    with_osd.disks.broken = {"zap"}
    assert with_osd.do("remove", REMOVE) == {"osd": 0, "left": "its disk: zap failed"}
    assert with_osd.picture == ({"/dev/sdb": [0]}, [], [])


def test_a_new_osd_of_the_same_number_is_not_taken_for_the_one_that_went(with_osd: Node) -> None:
    with_osd.ceph.safe = {0}
    with_osd.ceph.failing = "osd purge-actual"
    with pytest.raises(DriverError):
        with_osd.do("remove", REMOVE)
    with_osd.ceph.failing = ""
    with_osd.ceph.join(0, "of another node")
    with_osd.undo("remove", REMOVE)
    assert with_osd.ceph.osds[0]["uuid"] == "of another node"
    assert with_osd.picture == ({}, [0], [])


def test_an_osd_of_a_node_that_is_gone_is_removed_from_elsewhere(with_osd: Node) -> None:
    with_osd.ceph.safe = {0}
    with_osd.disks.broken = {"stop", "zap"}
    with_osd.do("remove", {**REMOVE, "here": False})
    assert with_osd.ceph.osds == {}


def test_a_forced_removal_does_not_wait(with_osd: Node) -> None:
    with_osd.do("remove", {**REMOVE, "force": True})
    assert with_osd.pauses == 0
    assert with_osd.picture == ({}, [], [])


def test_an_osd_that_is_not_there_is_not_removed(node: Node) -> None:
    with pytest.raises(NotFound, match="no OSD 0"):
        node.do("remove", REMOVE)
    node.undo("remove", REMOVE)


# Replacing, refreshing, steering


def test_an_osd_keeps_its_number_on_another_disk(with_osd: Node) -> None:
    with_osd.ceph.safe = {0}
    with_osd.do("replace", REPLACE)
    assert with_osd.picture == ({"/dev/sdc": [0]}, [0], [0])
    assert with_osd.disks.there["/dev/sdb"].filesystem == ""


def test_an_osd_is_made_anew_on_its_own_disk(with_osd: Node) -> None:
    with_osd.ceph.safe = {0}
    with_osd.do("replace", {**REPLACE, "device": "/dev/sdb"})
    assert with_osd.picture == ({"/dev/sdb": [0]}, [0], [0])


def test_a_new_disk_with_data_is_refused_before_the_old_one_is_touched(with_osd: Node) -> None:
    with_osd.disks.there["/dev/sdc"] = disk("/dev/sdc", filesystem="xfs")
    before = list(with_osd.ceph.said)
    with pytest.raises(Conflict, match="/dev/sdc holds data"):
        with_osd.do("replace", REPLACE)
    assert with_osd.ceph.said == before
    with_osd.undo("replace", REPLACE)


def test_what_has_no_room_for_a_database_is_refused_before_the_old_disk_is_touched(with_osd: Node) -> None:
    before = list(with_osd.ceph.said)
    with pytest.raises(Conflict, match="no LVM"):
        with_osd.do("replace", {**REPLACE, "db_bytes": 1})
    with pytest.raises(Conflict, match="no LVM"):
        with_osd.do("add", {**ADD, "device": "/dev/sdc", "db_bytes": 1})
    assert with_osd.ceph.said == before
    with_osd.undo("replace", REPLACE)


def test_an_osd_is_not_made_anew_on_a_disk_that_it_shares(with_osd: Node) -> None:
    with_osd.disks.databases["/dev/sdb"] = {"other"}
    with_osd.ceph.osds[1] = {"uuid": "other", "up": 1, "in": 1, "up_from": 1, "state": ["up"]}
    before = list(with_osd.ceph.said)
    with pytest.raises(Conflict, match="/dev/sdb has data or the database of OSD 1"):
        with_osd.do("replace", {**REPLACE, "device": "/dev/sdb"})
    assert with_osd.ceph.said == before


def test_an_osd_whose_replacing_is_cancelled_comes_back(with_osd: Node) -> None:
    with_osd.at_pause[2] = with_osd.cancel
    with pytest.raises(Stopped):
        with_osd.do("replace", REPLACE)
    with_osd.undo("replace", REPLACE)
    assert with_osd.picture == ({"/dev/sdb": [0]}, [0], [0])
    assert with_osd.ceph.osds[0]["in"] == 1


@pytest.mark.parametrize("is_id_taken_back", [False, True])
def test_an_osd_without_a_disk_waits_for_another_one(with_osd: Node, is_id_taken_back: bool) -> None:
    with_osd.ceph.safe = {0}
    with_osd.disks.broken = {"prepare"}
    with pytest.raises(DriverError):
        with_osd.do("replace", REPLACE)
    if is_id_taken_back:
        del with_osd.ceph.osds[0]
    with_osd.works["storage.osd-replace"].undo(with_osd.task("replace", REPLACE))
    assert with_osd.ceph.osds[0]["state"] == ["destroyed"]
    with_osd.disks.broken = set()
    with_osd.do("replace", REPLACE)
    assert with_osd.picture == ({"/dev/sdc": [0]}, [0], [0])


def test_an_osd_is_taken_up_again(with_osd: Node) -> None:
    with_osd.disks.stop(0)
    assert with_osd.do("refresh", {"osd": 0, "device": "/dev/sdb"}) == {"osds": [0], "device": "/dev/sdb"}
    assert with_osd.disks.running == {0}
    with pytest.raises(Conflict, match="OSD 0 is not on /dev/sdc, but no OSD at all"):
        with_osd.do("refresh", {"osd": 0, "device": "/dev/sdc"})


def test_flags_and_in_and_out_go_to_ceph(with_osd: Node) -> None:
    for verb, about in (("out", "0"), ("in", "0"), ("set", "noout"), ("unset", "noout")):
        with_osd.do(verb, {"about": about})
    told = ["osd out ['0']", "osd in ['0']", "osd set noout", "osd unset noout"]
    assert with_osd.ceph.said[-4:] == told
    with pytest.raises(NotFound, match="no OSD 7"):
        with_osd.do("in", {"about": "7"})


def test_notes_that_are_damaged_are_told(node: Node) -> None:
    node.notes.mkdir()
    (node.notes / "0000000a.json").write_text("{")
    with pytest.raises(Failed, match="notes of task 0000000a"):
        node.works["storage.osd-add"].undo(node.task("add", ADD))


def test_without_lvm_there_is_no_place_for_databases(node: Node) -> None:
    with pytest.raises(PVCError, match="no LVM"):
        node.do("create-db-vg", {"device": "/dev/sdb", "wipe": False})
