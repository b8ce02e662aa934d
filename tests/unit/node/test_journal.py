"""The daemon's log as a node serves it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from pvc.node.peer import read_journal
from pvc.proc import Completed


class Journal:
    """journalctl, with entries (microseconds, message)."""

    def __init__(self, *entries: tuple[int, object]) -> None:
        self.entries = list(entries)
        self.asked: list[Sequence[str]] = []

    def __call__(self, argv: Sequence[str]) -> Completed:
        self.asked.append(argv)
        lines = [
            json.dumps({"__REALTIME_TIMESTAMP": str(at), "MESSAGE": message}) for at, message in self.entries
        ]
        return Completed(0, "\n".join(lines), "")


def test_the_last_lines_and_what_comes_after() -> None:
    journal = Journal((1_000_000, "up"), (2_500_000, "started web1"))
    text, cursor = read_journal(lines=5, cursor=None, journalctl=journal)
    assert text == "1970-01-01T00:00:01+00:00 up\n1970-01-01T00:00:02+00:00 started web1\n"
    assert cursor == 2_500_000
    assert list(journal.asked[0])[3:5] == ["-n", "5"]
    journal.entries.append((2_700_000, "stopped web1"))
    text, cursor = read_journal(lines=5, cursor=cursor, journalctl=journal)
    assert text == "1970-01-01T00:00:02+00:00 stopped web1\n", "the same second again, the same line not"
    assert list(journal.asked[1])[3:5] == ["--since", "@2"]
    assert read_journal(lines=5, cursor=cursor, journalctl=journal) == ("", cursor)


@pytest.mark.parametrize(("message", "shown"), [([104, 105, 255], "hi\N{REPLACEMENT CHARACTER}"), (None, "")])
def test_messages_that_are_no_text(message: object, shown: str) -> None:
    text, _ = read_journal(lines=5, cursor=None, journalctl=Journal((1, message)))
    assert text == f"1970-01-01T00:00:00+00:00 {shown}\n"
