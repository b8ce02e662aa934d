"""Waiting clients: ends, outages and their pace, on a clock of our own."""

from __future__ import annotations

from typing import Any

import pytest

from pvc.errors import Failed, NotFound, TimedOut, Unavailable
from pvc.waiting import OUTAGE_S, wait
from tests.unit.thing import Call, FakeClock, FakeTransport, states

GOAL = {"state": "start"}


def run(answers: list[Any], goal: dict[str, Any], clock: FakeClock, **more: Any) -> tuple[Any, FakeTransport]:
    """A server that answers a long poll only when its time is over, as one does while nothing changes."""
    timeout_s = more.pop("timeout_s", None)

    def pass_time(call: Call) -> None:
        clock.now += call.within_s if more.get("slow", True) else 0.0

    transport = FakeTransport(answers, on_call=pass_time)
    state = wait(
        transport, "thing.info", {"thing": "t1"}, goal, timeout_s=timeout_s, clock=clock, pause=clock.pause
    )
    return state, transport


def test_done() -> None:
    state, transport = run(list(states("starting", "starting", "start!")), GOAL, FakeClock())
    assert state["state"] == "start"
    assert [call.after for call in transport.calls] == ["", "0", "1"]


def test_a_goal_of_several_fields() -> None:
    moved = {"name": "t1", "state": "start", "node": "n2", "settled": True, "version": "1"}
    assert run([moved], {"state": "start", "node": "n2"}, FakeClock())[0]["node"] == "n2"
    with pytest.raises(Failed, match="node is n2, wanted was node n3"):
        run([moved], {"state": "start", "node": "n3"}, FakeClock())


def test_failed_with_its_reason() -> None:
    with pytest.raises(Failed, match="t1: no such disk"):
        run(list(states("starting", "fail!no such disk")), GOAL, FakeClock())


def test_gives_up_when_the_time_is_over_and_not_before() -> None:
    clock = FakeClock()
    with pytest.raises(TimedOut, match="after 50 s; it goes on: t1: starting"):
        run(list(states("starting")), GOAL, clock, timeout_s=50.0)
    assert clock.now == pytest.approx(50.0, abs=1.1)


def test_reached_at_the_last_moment_counts() -> None:
    clock = FakeClock()
    state, _ = run(list(states("starting", "start!")), GOAL, clock, timeout_s=1.0)
    assert state["state"] == "start"


def test_a_server_that_answers_at_once_is_not_flooded() -> None:
    clock = FakeClock()
    transport = FakeTransport(list(states("starting")))
    with pytest.raises(TimedOut):
        wait(transport, "thing.info", {}, GOAL, timeout_s=30.0, clock=clock, pause=clock.pause)
    assert len(transport.calls) <= 35


def test_an_outage_is_survived() -> None:
    first, last = states("starting", "start!")
    clock = FakeClock()
    state, transport = run([first, Unavailable("gone"), Unavailable("gone"), last], GOAL, clock)
    assert state["state"] == "start"
    assert len(transport.calls) == 4


def test_an_outage_that_does_not_end_is_told() -> None:
    clock = FakeClock()
    transport = FakeTransport([*states("starting"), Unavailable("gone")])
    with pytest.raises(Unavailable):
        wait(transport, "thing.info", {}, GOAL, clock=clock, pause=clock.pause)
    assert OUTAGE_S < clock.now < OUTAGE_S + 5


def test_no_answer_at_all_is_told_at_once() -> None:
    clock = FakeClock()
    with pytest.raises(Unavailable):
        run([Unavailable("gone")], GOAL, clock)
    assert clock.now == 0.0


def test_what_is_gone_is_told() -> None:
    with pytest.raises(NotFound):
        run([*states("starting"), NotFound("no thing t1")], GOAL, FakeClock())
