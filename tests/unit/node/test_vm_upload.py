"""What comes of an export: in order, no faster than it is read, and nobody is held up when nobody reads."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from pvc.errors import Failed, Invalid
from pvc.node.transfer import MOST_BYTES
from pvc.node.vm_download import WAITING_BYTES
from pvc.node.vm_upload import Part, Pipe
from tests.support import eventually


def a_pipe(size_bytes: int, piece_s: float = 0.0) -> Pipe:
    def wait(is_true: Callable[[], bool]) -> None:
        assert is_true(), "it would wait for ever"

    return Pipe(size_bytes, wait, piece_s)


def bring(pipe: Pipe, offset: int, piece: bytes) -> int:
    found = pipe.carry("piece", {"offset": str(offset)}, piece)
    assert isinstance(found, dict)
    assert found["size_bytes"] == pipe.size_bytes
    return int(str(found["next"]))


def test_pieces_come_in_order_and_may_come_twice() -> None:
    pipe = a_pipe(6)
    assert bring(pipe, 0, b"") == 0
    assert bring(pipe, 3, b"def") == 0, "too early: not taken"
    assert bring(pipe, 0, b"abc") == 3
    assert bring(pipe, 0, b"xyz") == 3, "it has come already"
    assert bring(pipe, 3, b"def") == 6
    first, second = Part(pipe, 4), Part(pipe, 2)
    assert (first.read(3), first.read(9), first.read(1)) == (b"abc", b"d", b"")
    assert (second.read(2), second.read(1)) == (b"ef", b"")
    with pytest.raises(Failed, match="more came than the 6 bytes"):
        bring(pipe, 6, b"g")
    for what, piece in (("map", b""), ("piece", None)):
        with pytest.raises(Invalid, match="an export that comes has no"):
            pipe.carry(what, {"offset": "0"}, piece)
    with pytest.raises(Invalid, match="whole number"):
        pipe.carry("piece", {}, b"")


def test_no_more_is_taken_in_than_waits() -> None:
    pipe, place, piece = a_pipe(10 * WAITING_BYTES), 0, bytes(MOST_BYTES)
    while (came := bring(pipe, place, piece)) != place:
        place = came
    assert place == WAITING_BYTES
    assert bring(pipe, place, piece) == place
    pipe.read(1)
    assert bring(pipe, place, piece) == place + MOST_BYTES


def test_whoever_waits_for_room_goes_when_nobody_reads_any_more() -> None:
    pipe = a_pipe(WAITING_BYTES + 1, piece_s=600)
    bring(pipe, 0, bytes(WAITING_BYTES))
    last = threading.Thread(target=bring, args=(pipe, WAITING_BYTES, b"x"))
    last.start()
    pipe.close()
    last.join(60)
    assert not last.is_alive()


def test_room_is_noticed_at_once() -> None:
    pipe = a_pipe(WAITING_BYTES + 1, piece_s=600)
    bring(pipe, 0, bytes(WAITING_BYTES))
    last = threading.Thread(target=bring, args=(pipe, WAITING_BYTES, b"x"))
    last.start()
    pipe.read(MOST_BYTES)
    eventually(lambda: pipe.next == WAITING_BYTES + 1, within=60)
    last.join()
