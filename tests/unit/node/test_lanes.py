"""Lanes: one action of an object at a time, and whatever it raises leaves nothing behind."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from pvc.errors import Conflict
from pvc.node.actions import Action, NodeAction, StopStray
from pvc.node.drivers import DriverError
from pvc.node.lanes import ThreadLanes
from tests.support import eventually


class Work:
    """What the lanes carry out: by the action's reason."""

    def __init__(self) -> None:
        self.done = 0
        self.go_on = threading.Event()
        self.begun: list[str] = []
        self.raises: Exception | None = None

    def carry_out(self, action: Action | NodeAction) -> None:
        assert isinstance(action, StopStray)
        self.begun.append(action.uuid)
        if action.why == "slow":
            self.go_on.wait(10)
        if self.raises is not None:
            raise self.raises

    def wake(self) -> None:
        self.done += 1


@pytest.fixture(name="work")
def _work() -> Iterator[Work]:
    work = Work()
    yield work
    work.go_on.set()


def test_slow_action_delays_nobody_else(work: Work) -> None:
    lanes = ThreadLanes(work.carry_out, work.wake)
    slow = StopStray("a", None, "slow")
    lanes.submit(slow)
    lanes.submit(StopStray("b", None, ""))
    eventually(lambda: "b" not in lanes.busy, within=5)
    assert lanes.busy == {"a": slow}
    with pytest.raises(AssertionError, match="lane a is busy"):
        lanes.submit(slow)
    work.go_on.set()
    eventually(lambda: not lanes.busy, within=5)
    assert work.done == 2
    lanes.close()


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(Conflict("it changed"), id="conflict"),
        pytest.param(DriverError("no such domain"), id="driver"),
        pytest.param(ZeroDivisionError(), id="bug"),
    ],
)
def test_14_2_11_whatever_an_action_raises_its_lane_opens_again(
    work: Work, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """After a rest, so that a lasting failure is no hot loop; it is logged, a bug with its traceback."""
    work.raises = error
    lanes = ThreadLanes(work.carry_out, work.wake)
    lanes.submit(StopStray("a", None, ""))
    eventually(lambda: not lanes.busy, within=5)
    (record,) = caplog.records
    assert (
        (record.levelno == logging.ERROR)
        is (record.exc_info is not None)
        is isinstance(error, ZeroDivisionError)
    )
    work.raises = None
    lanes.submit(StopStray("a", None, ""))
    eventually(lambda: not lanes.busy, within=5)
    assert work.begun == ["a", "a"]
    lanes.close()
