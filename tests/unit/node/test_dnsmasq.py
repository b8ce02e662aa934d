"""How often a network is heard, however often its guests make it speak."""

from __future__ import annotations

from pvc.node.drivers.dnsmasq import AT_ONCE, HEAR_S, Pace

NOISY, QUIET = 101, 102


def test_guests_that_boot_together_are_heard_at_once() -> None:
    pace = Pace()
    assert pace.wait_s(1000.0) is None
    for number in range(AT_ONCE):
        pace.say([NOISY])
        assert pace.wait_s(1000.0 + number / 100) == 0.0
        assert pace.due(1000.0 + number / 100) == {NOISY}
    assert pace.wait_s(1001.0) is None


def test_one_that_does_not_stop_is_heard_once_a_second_and_keeps_nobody_else_waiting() -> None:
    pace = Pace()
    heard: list[int] = []
    for tick in range(10_000):
        now = 1000.0 + tick / 100
        pace.say([NOISY])
        heard += pace.due(now)
    assert len(heard) <= AT_ONCE + 100 / HEAR_S
    assert len(heard) >= 100 / HEAR_S
    pace.say([QUIET])
    assert pace.due(1100.0) >= {QUIET}


def test_the_last_thing_said_is_heard_without_another() -> None:
    pace = Pace()
    while pace.wait_s(1000.0) in (None, 0.0):
        pace.say([NOISY])
        if not pace.due(1000.0):
            break
    wait_s = pace.wait_s(1000.0)
    assert wait_s is not None
    assert 0.0 < wait_s <= HEAR_S
    assert pace.due(1000.0) == set()
    assert pace.due(1000.0 + wait_s) == {NOISY}
    assert pace.wait_s(1000.0 + wait_s) is None


def test_who_was_quiet_for_a_while_is_heard_at_once_again() -> None:
    pace = Pace()
    for _ in range(AT_ONCE):
        pace.say([NOISY])
        pace.due(1000.0)
    later = 1000.0 + AT_ONCE * HEAR_S
    for _ in range(AT_ONCE):
        pace.say([NOISY])
        assert pace.due(later) == {NOISY}
