"""Lines of the log: priorities for the journal, what they are about first."""

from __future__ import annotations

import logging
import sys

import pytest

from pvc import log


def record(level: int, text: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("pvc.node.lanes", level, "x.py", 1, text, args, None)


def test_each_line_for_the_journal_has_its_priority() -> None:
    formatter = log.Formatter(journal=True, daemon=True)
    assert formatter.format(record(logging.INFO, "started %s", "web1")) == "<6>started web1"
    assert formatter.format(record(logging.ERROR, "a\nb")) == "<3>a\n<3>b"


def test_what_it_is_about_comes_first() -> None:
    formatter = log.Formatter(journal=True, daemon=True)
    with log.about(node_name="n1", vm_name="web1"):
        assert formatter.format(record(logging.WARNING, "slow")) == "<4>n1: web1: slow"
    assert formatter.format(record(logging.WARNING, "slow")) == "<4>slow"


def test_without_a_journal_there_is_a_time() -> None:
    text = log.Formatter(journal=False, daemon=True).format(record(logging.INFO, "up"))
    assert text[:2] == "20"
    assert text.endswith("INFO    up")


def test_an_exception_is_part_of_the_entry() -> None:
    try:
        raise ValueError("bad")
    except ValueError:
        made = record(logging.ERROR, "it failed")
        made.exc_info = sys.exc_info()
    lines = log.Formatter(journal=True, daemon=True).format(made).splitlines()
    assert lines[0] == "<3>it failed"
    assert lines[-1] == "<3>ValueError: bad"
    assert all(line.startswith("<3>") for line in lines)


@pytest.mark.parametrize(
    ("level", "expected"), [(logging.DEBUG, 7), (logging.INFO, 6), (25, 6), (logging.CRITICAL, 2), (5, 7)]
)
def test_priorities(level: int, expected: int) -> None:
    assert log.priority(level) == expected


def test_the_journal_is_known_by_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    assert not log.in_journal()
    monkeypatch.delenv("JOURNAL_STREAM")
    assert not log.in_journal()
