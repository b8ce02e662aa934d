"""What every layer of tests needs: waiting for a condition instead of sleeping."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], T], within: float, every: float = 0.05) -> T:
    """The condition's value as soon as it is true; fail after that many seconds, naming what was awaited."""
    end = time.monotonic() + within
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {within:g} s: {_name(condition)} (last: {value!r})")
        time.sleep(every)
    return value


def _name(condition: Callable[[], object]) -> str:
    if getattr(condition, "__name__", "") != "<lambda>":
        return getattr(condition, "__qualname__", repr(condition))
    try:
        return " ".join(inspect.getsource(condition).split())
    except OSError:
        return repr(condition)
