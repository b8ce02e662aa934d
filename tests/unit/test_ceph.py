"""What is made of what Ceph tells: figures, problems, and when it will be full."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pvc.cluster import ceph
from pvc.cluster.ceph import ALL, DAY_S, Check, Growth, Sample, growth, growths, problems, slope
from pvc.cluster.codec import from_json, to_json

GIB = 1024**3


def osd(number: int, *, up: int = 1, is_in: int = 1, state: str = "exists") -> dict[str, Any]:
    return {
        "osd": number,
        "uuid": str(number),
        "up": up,
        "in": is_in,
        "weight": is_in,
        "up_from": 5 if up else 0,
        "down_at": 0 if up else 6,
        "state": [state],
        "public_addrs": {"addrvec": [{"addr": f"10.0.0.{number + 1}:6800"}] if up else []},
    }


def node(number: int, kb_used: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "osd",
        "device_class": "ssd",
        "crush_weight": 0.0097503662109375,
        "kb": 10485760,
        "kb_used": kb_used,
        "pgs": 8,
    }


def told() -> dict[str, Any]:
    """As Ceph 16.2 does, but shorter."""
    return {
        "status": {
            "fsid": "f",
            "monmap": {"num_mons": 3},
            "quorum_names": ["n1", "n2"],
            "mgrmap": {"available": True},
            "pgmap": {
                "pgs_by_state": [{"state_name": "active+clean", "count": 8}],
                "num_objects": 7,
                "degraded_objects": 2,
                "write_bytes_sec": 100,
                "write_op_per_sec": 3,
            },
        },
        "health": {
            "status": "HEALTH_WARN",
            "checks": {
                "OSD_DOWN": {"severity": "HEALTH_WARN", "summary": {"message": "1 osds down"}},
                "OSD_NEARFULL": {
                    "severity": "HEALTH_WARN",
                    "summary": {"message": "1 nearfull osd(s)"},
                    "detail": [{"message": "osd.1 is near full"}],
                },
                "MGR_MODULE_DEPENDENCY": {"severity": "HEALTH_WARN", "summary": {"message": "10 modules"}},
                "PG_DEGRADED": {"severity": "HEALTH_WARN", "summary": {"message": "2 objects"}},
                "POOL_FULL": {"severity": "HEALTH_ERR", "summary": {"message": "full"}, "muted": True},
            },
        },
        "df": {
            "stats": {"total_bytes": 30 * GIB, "total_used_raw_bytes": 3 * GIB},
            "pools": [
                {
                    "name": "vms",
                    "stats": {"stored": GIB, "bytes_used": 3 * GIB, "max_avail": 8 * GIB, "objects": 7},
                }
            ],
        },
        "tree": {
            "nodes": [
                {"id": -1, "name": "default", "type": "root", "children": [-2, -3]},
                {"id": -2, "name": "n1", "type": "host", "children": [0, 2]},
                {"id": -3, "name": "n2", "type": "host", "children": [1]},
                *(node(number, 1024 * number) for number in range(3)),
            ],
            "stray": [],
        },
        "dump": {
            "flags_set": ["noout", "sortbitwise", "pglog_hardlimit"],
            "full_ratio": 0.949999988079071,
            "osds": [osd(1, up=0), osd(0), osd(2, up=0, is_in=0), osd(7, up=0, is_in=0, state="destroyed")],
        },
    }


def test_what_ceph_does_not_say_of_traffic_is_nothing() -> None:
    rates = {"read_bytes_sec": 1, "read_op_per_sec": 2}
    assert ceph.traffic(rates, {"recovering_bytes_per_sec": 3}) == ceph.Traffic(1, 0, 2, 0, 3)


def test_figures_are_what_ceph_tells() -> None:
    found = ceph.figures(**told())
    assert [(one.id, one.node, one.state) for one in found.osds] == [
        (0, "n1", "up,in"),
        (1, "n2", "down,in"),
        (2, "n1", "down,out"),
        (7, "", "destroyed"),
    ]
    assert (found.osds[1].used_bytes, found.osds[1].size_bytes) == (1024**2, 10 * GIB)
    assert (found.flags, found.full_ratio, found.degraded, found.misplaced) == (("noout",), 0.95, 2, 0)
    assert found.pools == (ceph.PoolUse("vms", GIB, 3 * GIB, 8 * GIB, 7),)
    assert ceph.osds_of("n1", found) == (0, 2)
    assert from_json(ceph.Figures, to_json(found)) == found


PERF = {"osdstats": {"osd_perf_infos": [{"id": 0, "perf_stats": {"commit_latency_ns": 1_234_567}}]}}
METADATA = {
    "osd_objectstore": "bluestore",
    "bluestore_bdev_devices": "sdb",
    "bluefs_db_devices": "nvme0n1",
    "device_ids": "sdb=INTEL_1,nvme0n1=SAMSUNG_2",
    "ceph_version_short": "16.2.15",
    "created_at": "2026-11-22T02:25:33.985784Z",
}


def known(number: int, **other: Any) -> ceph.OSDInfo:
    answers: dict[str, Any] = {
        "changed": {},
        "metadata": METADATA,
        "perf": PERF,
        "stop": {"ok_to_stop": True},
    }
    answers |= {"removal": {"safe_to_destroy": [number]}, **other}
    return ceph.osd_info(number, told()["tree"], told()["dump"], **answers)


def test_all_that_is_known_of_an_osd() -> None:
    found = known(0, changed={"modified": "2026-11-22T02:31:23.215946+0000"})
    assert (found.devices, found.db_devices) == (("/dev/sdb",), ("/dev/nvme0n1",))
    assert found.serials == ("sdb=INTEL_1", "nvme0n1=SAMSUNG_2")
    assert (found.commit_latency_ms, found.apply_latency_ms, found.address) == (1.23, None, "10.0.0.1:6800")
    assert (found.created_at, found.since) == (1795314333.985784, 1795314683.215946)
    assert (found.is_safe_to_stop, found.is_safe_to_remove, found.objections) == (True, True, ())
    assert from_json(ceph.OSDInfo, to_json(found)) == found
    down = known(1, metadata={})
    assert (down.state, down.commit_latency_ms, down.devices, down.version) == ("down,in", None, (), "")
    assert (down.created_at, down.since) == (None, None)


@pytest.mark.parametrize(
    ("answers", "objections"),
    [
        ({"stop": {"refused": "8 PGs would be offline"}}, ("stop: 8 PGs would be offline",)),
        ({"stop": {}}, ("stop: Ceph does not know",)),
        ({"removal": {"safe_to_destroy": [1]}}, ("remove: Ceph does not know",)),
        ({"removal": {"safe_to_destroy": [], "active": [0]}}, ("remove: placement groups are on it",)),
        ({"removal": {"stored_pgs": [0]}}, ("remove: it has what is not whole elsewhere",)),
        ({"removal": {"refused": "no stats"}}, ("remove: no stats",)),
    ],
)
def test_an_osd_that_ceph_does_not_call_safe_is_not(
    answers: dict[str, Any], objections: tuple[str, ...]
) -> None:
    found = known(0, **answers)
    assert found.objections == objections
    assert found.is_safe_to_stop is ("stop" not in answers)
    assert found.is_safe_to_remove is ("removal" not in answers)


def test_problems_are_what_somebody_has_to_look_at() -> None:
    assert list(problems(ceph.figures(**told()))) == [
        "OSD 1 on n2 is down",
        "OSD 2 on n1 is down, and its data has gone to others",
        "Ceph: 1 nearfull osd(s): osd.1 is near full",
    ]


def test_whatever_is_an_error_is_a_problem() -> None:
    found = replace(ceph.figures(**told()), osds=(), checks=(Check("NEW", "HEALTH_ERR", "it burns", ()),))
    assert list(problems(found)) == ["Ceph: it burns"]


def line(days: float, bytes_a_day: int, *, noise: int = 0, count: int = 20) -> list[tuple[float, int]]:
    began = 1_700_000_000.0
    return [
        (
            began + days * DAY_S * number / (count - 1),
            int(GIB + bytes_a_day * days * number / (count - 1)) + noise * (-1) ** number,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("points", "available", "days"),
    [
        ([], GIB, None),
        (line(0.2, GIB), GIB, None),
        (line(1, GIB, count=3), GIB, None),
        (line(1, GIB), 10 * GIB, 10.0),
        (line(7, GIB // 8), 10 * GIB, 80.0),
        (line(7, 0), GIB, None),
        (line(7, -GIB // 100), GIB, None),
        (line(7, 1024), 100 * GIB, None),
        (line(1, GIB), -5, 0.0),
    ],
)
def test_when_it_will_be_full(points: list[tuple[float, int]], available: int, days: float | None) -> None:
    assert growth(points, available).days_to_full == days


def test_growth_is_not_known_from_a_moment_and_is_zero_where_nothing_grows() -> None:
    assert growth(line(0.1, GIB), GIB) == Growth(None, None)
    assert growth(line(2, 0), GIB) == Growth(0, None)


def test_what_is_written_and_removed_again_is_no_growth() -> None:
    found = growth(line(7, GIB // 8, noise=GIB // 4), 100 * GIB)
    assert found.bytes_a_day is not None
    assert abs(found.bytes_a_day - GIB // 8) < GIB // 40


def test_samples_of_one_moment_have_no_slope() -> None:
    assert slope([(5.0, 1), (5.0, 9)]) == 0.0


def test_each_pool_has_its_own_growth_and_a_new_one_none_yet() -> None:
    found = ceph.figures(**told())
    history = [Sample(at, {ALL: 3 * used, "old": used}) for at, used in line(1, GIB)]
    made = growths(found, history)
    assert made["vms"] == Growth(None, None)
    assert made[ALL].bytes_a_day == 3 * GIB
    assert set(made) == {ALL, "vms"}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Growth(None, None), "not known yet: it takes a quarter of a day to tell"),
        (Growth(0, None), "not within ten years, at this rate"),
        (Growth(5, 12.4), "full in 12 days, at this rate"),
    ],
)
def test_a_forecast_in_words(found: Growth, words: str) -> None:
    assert ceph.forecast(found) == words
