"""Times that do not fit together are refused by the name of the key; those that do keep the proof."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from pvc.cluster.timing import CONTACT_S, DRIFT, FEED_S, KERNEL_S, Timing
from pvc.config import parse
from pvc.errors import Invalid


def test_defaults_fit() -> None:
    Timing().check()
    assert Timing.of(parse({})) == Timing()


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("cluster.session_timeout_s", {"session_timeout_s": 0.9}),
        ("cluster.session_timeout_s", {"session_timeout_s": 10.5}),
        ("cluster.session_timeout_s", {"session_timeout_s": 1.5, "store_tick_s": 0.1}),
        ("cluster.store_sync_ticks", {"store_sync_ticks": 0}),
        ("daemon.lease_s", {"lease_s": 12.0}),
        ("daemon.lease_s", {"lease_s": 9.0, "session_timeout_s": 8.0, "store_sync_ticks": 1}),
        ("daemon.lease_s", {"store_tick_s": 2.0}),
        ("daemon.watchdog_s", {"watchdog_s": 3.0}),
        ("daemon.watchdog_s", {"watchdog_s": 8.5}),
        ("daemon.watchdog_s", {"watchdog_s": 61.0}),
        ("address_s", {"address_s": 2.0}),
        ("address_s", {"address_s": 16.0}),
        ("fence_grace_s", {"grace_s": 0.5}),
    ],
)
def test_what_does_not_fit_is_named(key: str, changed: dict[str, float]) -> None:
    with pytest.raises(Invalid) as refused:
        replace(Timing(), **changed).check()  # type: ignore[arg-type]
    assert refused.value.message.startswith(f"{key} = ")
    assert refused.value.hint


def test_configuration_is_read() -> None:
    config = parse(
        {
            "cluster": {"session_timeout_s": 8, "store_tick_s": 1, "store_sync_ticks": 2},
            "daemon": {"lease_s": 20, "watchdog_s": 10},
        }
    )
    timing = Timing.of(config, grace_s=3)
    assert timing == Timing(8, 1, 2, 20, 10, 5, 3)
    assert (timing.server_holds_s, timing.out_after_s) == (3, 5)


@pytest.mark.parametrize(
    ("zoo_cfg", "says"),
    [
        ({}, ""),
        ({"tickTime": "500", "syncLimit": "6", "initLimit": "99"}, ""),
        ({"tickTime": "500"}, ""),
        ({"tickTime": "2000", "syncLimit": "6"}, "tickTime = 2000 does not fit cluster.store_tick_s"),
        ({"tickTime": "500", "syncLimit": "5"}, "syncLimit = 5 does not fit cluster.store_sync_ticks"),
    ],
)
def test_ticks_of_zookeeper_are_compared_with_what_is_believed(zoo_cfg: dict[str, str], says: str) -> None:
    assert Timing().differs_from(zoo_cfg).startswith(says)
    assert bool(Timing().differs_from(zoo_cfg)) is bool(says)


def test_all_dead_nodes_are_recovered_within_the_promise() -> None:
    """45 s from the power cut, ZooKeeper's leader dead too: detection, election, session, quiet, a start."""
    timing = Timing()
    detection = timing.server_holds_s + 1.0 + timing.session_timeout_s + timing.store_tick_s
    assert detection + timing.quiet_after_s() + 3.0 <= 45.0
    assert timing.session_timeout_s + timing.quiet_after_s() == pytest.approx(36.29)
    assert timing.lease_s >= timing.verdict_s + 0.5, "air"


def test_daemon_may_stand_still_for_five_seconds() -> None:
    assert Timing().watchdog_s >= FEED_S + 5.0 + 1.0


def test_device_decides_how_long_a_judge_waits() -> None:
    timing = Timing()
    assert timing.quiet_after_s(20.0) - timing.quiet_after_s() == pytest.approx(24 * (1 + DRIFT))


def some_timing(rng: random.Random) -> Timing:
    while True:
        found = Timing(
            rng.choice((3.0, 6.0, 10.0, 15.0)),
            rng.choice((0.25, 0.5, 1.0, 2.0)),
            rng.choice((2, 4, 6)),
            rng.choice((8.0, 12.0, 20.0, 30.0)),
            rng.choice((4.0, 8.0, 30.0)),
            rng.choice((3.0, 5.0, 8.0)),
        )
        try:
            found.check()
        except Invalid:
            continue
        return found


def last_reset(timing: Timing, contact: float, rng: random.Random) -> float:
    """When a machine is reset whose feeder stands still whenever that does the most harm."""
    fed = contact
    while True:
        look = fed + rng.choice((0.0, 0.5, 1.0)) * min(timing.watchdog_s, timing.lease_s)
        feed = look + rng.choice((0.0, 0.0, 0.999)) * (timing.watchdog_s - (look - fed))
        if look >= contact + timing.lease_s or feed >= fed + timing.watchdog_s:
            return fed + timing.watchdog_s
        if feed == fed:
            feed += 0.1
        fed = feed


@pytest.mark.parametrize("seed", range(50))
def test_nothing_runs_when_a_judge_says_so(seed: int) -> None:
    """Part A of the proof, by trying it: the node's clock goes slow, the judge's fast."""
    rng = random.Random(seed)
    timing = some_timing(rng)
    for _ in range(200):
        contact = rng.random() * 10
        seen_gone = contact + rng.choice((0.0, CONTACT_S, timing.session_timeout_s))
        slow = 1 + DRIFT / 2
        ends = contact + (last_reset(timing, contact, rng) - contact) * slow
        said = seen_gone + timing.quiet_after_s() / slow
        assert ends <= said


@pytest.mark.parametrize("seed", range(50))
def test_no_address_is_held_twice(seed: int) -> None:
    """Part C: the last commit as early as the end of the session allows."""
    rng = random.Random(seed)
    timing = some_timing(rng)
    committed = 100.0
    role_ends = committed - timing.session_timeout_s / 3 + timing.session_timeout_s - timing.store_tick_s
    gone = committed + timing.address_s + KERNEL_S
    assert role_ends + timing.address_wait_s >= gone
