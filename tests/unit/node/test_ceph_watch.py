"""What a node publishes of Ceph, and what it keeps of its use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pvc.clock import SystemClock
from pvc.cluster import paths
from pvc.cluster.ceph import ALL, Sample
from pvc.cluster.codec import dumps
from pvc.cluster.membership import Primary
from pvc.cluster.node import CephSeen
from pvc.cluster.store import Create
from pvc.errors import NotFound, Unavailable
from pvc.node.ceph_watch import MOST_SAMPLES, PRIMARY_LOOK_S, SAMPLE_S, CephWatch, History
from pvc.node.drivers import DriverError
from tests.unit.commands.world import a_world
from tests.unit.test_ceph import GIB, PERF, told

COMMANDS = {"status": "status", "health": "health", "df": "df", "osd df": "tree", "osd dump": "dump"}


class Monitors:
    def __init__(self) -> None:
        self.told: dict[str, Any] = told()
        self.is_silent = False

    def command(self, prefix: str, data: bytes = b"", **arguments: Any) -> Any:
        if self.is_silent:
            raise Unavailable("Ceph is not reached from here: timed out")
        if arguments.get("epoch") == 5:
            return {"modified": "2026-11-22T02:31:23.215946+0000"}
        if prefix in ("osd metadata", "osd ok-to-stop") or "epoch" in arguments:
            raise DriverError(f"Ceph says to {prefix}: no")
        if prefix == "osd safe-to-destroy":
            return {"safe_to_destroy": [int(one) for one in arguments["ids"]]}
        return PERF if prefix == "osd perf" else self.told[COMMANDS[prefix]]


class Watch:
    def __init__(self, tmp_path: Path) -> None:
        self.world = a_world()
        self.monitors = Monitors()
        self.conf = tmp_path / "ceph.conf"
        self.conf.touch()
        self.published: list[CephSeen | None] = []
        self.watch = CephWatch(
            "n1",
            self.world.store,
            self.published.append,
            SystemClock(),
            str(tmp_path / "use.json"),
            connect=lambda: self.monitors,
            conf=str(self.conf),
        )


def test_a_node_says_which_ceph_it_reaches_and_which_disks_it_has(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    watch.watch.step()
    watch.watch.step()
    assert watch.published == [CephSeen("f", (0, 2), ())], "written when it changes"


def test_only_the_primary_tells_what_is_wrong_with_it_all(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    watch.world.edit(paths.node("n1"), role="coordinator")
    watch.world.store.commit(Create(paths.PRIMARY, dumps(Primary("n1", 1, 0)), ephemeral=True))
    assert watch.watch.step() == PRIMARY_LOOK_S
    (seen,) = watch.published
    assert seen is not None
    assert "OSD 1 on n2 is down" in seen.problems
    watch.world.edit(paths.node_status("n1"), ceph={"fsid": "f", "osds": [], "problems": list(seen.problems)})
    assert "OSD 1 on n2 is down" in watch.world.call("cluster.status")["problems"]


def test_a_node_that_loses_ceph_says_so_and_still_knows_its_disks(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    watch.watch.step()
    watch.monitors.is_silent = True
    watch.watch.step()
    assert watch.published[-1] == CephSeen("", (0, 2), ("node n1: Ceph is not reached from here: timed out",))


def test_a_node_without_ceph_says_nothing_but_takes_back_what_it_said(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    watch.conf.unlink()
    watch.watch.step()
    watch.watch.step()
    assert watch.published == [None]


def test_figures_are_told_with_growth(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    now = SystemClock().wall()
    for hours in range(24, -1, -1):
        watch.watch.history.note(Sample(now - hours * 3600, {ALL: 3 * GIB - hours * GIB // 24}))
    answer: Any = watch.watch.tell()
    assert answer["figures"]["fsid"] == "f"
    assert round(answer["growth"][ALL]["bytes_a_day"] / GIB, 2) == 1.0


def test_one_osd_is_told_of_also_where_ceph_refuses_some_of_it(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    answer = watch.watch.tell(0)
    assert (answer["node"], answer["commit_latency_ms"], answer["version"]) == ("n1", 1.23, "")
    assert (answer["is_safe_to_stop"], answer["is_safe_to_remove"]) == (False, True)
    assert (answer["since"], watch.watch.tell(1)["since"]) == (1795314683.215946, None)
    assert answer["objections"] == ["stop: Ceph says to osd ok-to-stop: no"]
    with pytest.raises(NotFound, match="there is no OSD 9"):
        watch.watch.tell(9)
    watch.monitors.is_silent = True
    with pytest.raises(Unavailable):
        watch.watch.tell(0)


def test_a_history_has_a_sample_each_quarter_of_an_hour_and_at_most_a_week(tmp_path: Path) -> None:
    history = History(str(tmp_path / "use.json"))
    for number in range(12):
        history.note(Sample(number * SAMPLE_S / 3, {ALL: number}))
    assert [one.used[ALL] for one in history.samples()] == [0, 3, 6, 9]
    (tmp_path / "use.json").write_bytes(dumps([Sample(at * SAMPLE_S, {}) for at in range(MOST_SAMPLES)]))
    history.note(Sample(MOST_SAMPLES * SAMPLE_S, {}))
    assert len(history.samples()) == MOST_SAMPLES
    assert history.samples()[0].at == SAMPLE_S


def test_a_clock_that_was_set_back_leaves_out_the_future(tmp_path: Path) -> None:
    history = History(str(tmp_path / "use.json"))
    for at in (1e9, 2e9, 1e9 + SAMPLE_S):
        history.note(Sample(at, {}))
    assert [one.at for one in history.samples()] == [1e9, 1e9 + SAMPLE_S]


def test_a_history_that_cannot_be_read_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "use.json").write_text("{")
    history = History(str(tmp_path / "use.json"))
    history.note(Sample(5.0, {ALL: 1}))
    assert history.samples() == [Sample(5.0, {ALL: 1})]
