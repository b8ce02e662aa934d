"""How a lab's cluster is told what it needs while its store is still settling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pvc.errors import Conflict, Failed, Unavailable
from pvc.lab import up
from pvc.lab.layout import new_lab
from pvc.proc import Completed

LAB = new_lab(Path("/var/lib/pvc-lab-x"), Path("/image"), 1, None)


def answers(monkeypatch: pytest.MonkeyPatch, *codes: int) -> list[int]:
    left = list(codes)

    def capture(*_: Any, **__: Any) -> Completed:
        return Completed(left.pop(0), "", "no quorum")

    monkeypatch.setattr(up, "capture", capture)
    return left


def test_a_node_that_is_off_has_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on yet, or fenced while its daemon is waited for."""

    def capture(*_: Any, **__: Any) -> Completed:
        raise Conflict("n1 is off")

    monkeypatch.setattr(up, "capture", capture)
    assert not up._has_joined(LAB, LAB.nodes[0])


def test_store_that_does_not_answer_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    left = answers(monkeypatch, Unavailable.exit_code, 0, 0)
    up._tell_store(LAB, "set")
    assert left == [0]


def test_who_has_been_told_before_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    left = answers(monkeypatch, Unavailable.exit_code, Conflict.exit_code, 0)
    up._tell_store(LAB, "init", refused=Conflict.exit_code)
    assert left == [0]


@pytest.mark.parametrize("codes", [(2, 0), (Unavailable.exit_code,) * up.TOLD_AT_MOST])
def test_what_stays_wrong_is_said(monkeypatch: pytest.MonkeyPatch, codes: tuple[int, ...]) -> None:
    answers(monkeypatch, *codes)
    with pytest.raises(Failed, match="no quorum"):
        up._tell_store(LAB, "set")
