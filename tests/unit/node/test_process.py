"""How a daemon waits for what it cannot begin without."""

from __future__ import annotations

import pytest

from pvc.config import Config
from pvc.errors import Unavailable
from pvc.node.drivers import DriverError
from pvc.node.process import Process, wait_until


def without_waiting(told: list[str]) -> Process:
    process = Process(Config(), lambda first, *rest: told.append(first))
    process.woken.set()
    process.wait = lambda seconds: None  # type: ignore[method-assign]
    return process


def test_what_is_not_there_yet_is_asked_for_again_and_each_reason_told() -> None:
    answers: list[bool | Exception] = [
        Unavailable("no quorum"),
        False,
        DriverError("libvirt is silent"),
        True,
    ]
    told: list[str] = []

    def is_there() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert wait_until(without_waiting(told), is_there, "not initialised")
    assert told == ["STATUS=no quorum", "STATUS=not initialised", "STATUS=libvirt is silent"]


def test_waiting_ends_with_the_daemon() -> None:
    process = without_waiting([])

    def is_there() -> bool:
        process.end()
        return False

    assert not wait_until(process, is_there, "not there")


def test_what_is_wrong_for_good_is_not_waited_for() -> None:
    def is_there() -> bool:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        wait_until(without_waiting([]), is_there, "not there")
