"""What waits for whoever fetches an export: pieces by offset, and never something broken that looks whole."""

from __future__ import annotations

import io
import zipfile
from contextlib import suppress

import pytest

from pvc.errors import Conflict, Failed, Invalid
from pvc.node.transfer import MOST_BYTES
from pvc.node.vm_download import WAITING_BYTES, Pipe


def a_pipe() -> Pipe:
    return Pipe(lambda: None, piece_s=0.0)


def piece(pipe: Pipe, offset: int) -> bytes:
    found = pipe.carry("piece", {"offset": str(offset)}, None)
    assert isinstance(found, bytes)
    return found


def is_whole(pipe: Pipe, offset: int) -> bool:
    found = pipe.carry("end", {"offset": str(offset)}, b"")
    assert isinstance(found, dict)
    return bool(found["is_whole"])


def test_what_is_asked_for_has_come_up_to_there() -> None:
    pipe = a_pipe()
    assert piece(pipe, 0) == b""
    assert not is_whole(pipe, 0)
    pipe.write(b"abc")
    assert (piece(pipe, 0), piece(pipe, 0), piece(pipe, 1)) == (b"abc", b"abc", b"bc")
    for offset in (0, 4):
        with pytest.raises(Conflict, match=f"at {offset} is not here"):
            piece(pipe, offset)
    pipe.close()
    assert not is_whole(pipe, 2)
    assert piece(pipe, 3) == b""
    assert is_whole(pipe, 3)
    for what, given in (("map", None), ("piece", b"x")):
        with pytest.raises(Invalid, match="an export has no"):
            pipe.carry(what, {"offset": "3"}, given)
    with pytest.raises(Invalid, match="whole number"):
        pipe.carry("piece", {}, None)


def test_pieces_are_no_larger_than_they_may_be_and_what_waits_is_bounded() -> None:
    pipe = a_pipe()
    while pipe.has_room:
        pipe.write(bytes(MOST_BYTES - 1))
    assert len(pipe.waiting) < WAITING_BYTES + MOST_BYTES
    assert len(piece(pipe, 0)) == MOST_BYTES
    assert len(piece(pipe, 2 * MOST_BYTES)) == MOST_BYTES
    assert pipe.has_room


def test_what_failed_gets_no_end() -> None:
    """The library writes the directory of the archive also then."""
    pipe = a_pipe()
    with (
        suppress(Failed),
        zipfile.ZipFile(pipe, "w") as archive,
        pipe.unbroken(),
        archive.open("web1-mon/vda.rbddiff", "w") as file,
    ):
        file.write(b"data")
        raise Failed("the disk is gone")
    assert not is_whole(pipe, pipe.size)
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(io.BytesIO(piece(pipe, 0)))
