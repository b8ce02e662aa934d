"""Console text by cursor: the last lines, what came since, and a file that was begun anew."""

from __future__ import annotations

from pathlib import Path

from pvc.node.peer import MOST_BYTES, read_console


def test_last_lines_and_what_came_since(tmp_path: Path) -> None:
    file = tmp_path / "vm.log"
    file.write_bytes(b"one\ntwo\nthree\n")
    assert read_console(file, lines=2, cursor=None) == ("two\nthree\n", 14)
    assert read_console(file, lines=0, cursor=None) == ("", 14)
    assert read_console(file, lines=2, cursor=14) == ("", 14)
    with file.open("ab") as opened:
        opened.write(b"four\n\xff")
    assert read_console(file, lines=2, cursor=14) == ("four\n\ufffd", 20)


def test_file_that_was_begun_anew_is_read_from_its_begin(tmp_path: Path) -> None:
    file = tmp_path / "vm.log"
    file.write_bytes(b"new\n")
    assert read_console(file, lines=9, cursor=2000) == ("new\n", 4)


def test_one_answer_is_bounded_and_the_next_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "vm.log"
    file.write_bytes(b"x" * MOST_BYTES + b"end")
    text, cursor = read_console(file, lines=9, cursor=0)
    assert (len(text), cursor) == (MOST_BYTES, MOST_BYTES)
    assert read_console(file, lines=9, cursor=cursor) == ("end", MOST_BYTES + 3)
    assert read_console(file, lines=9, cursor=None)[0].endswith("xend")


def test_vm_that_wrote_nothing_has_no_text(tmp_path: Path) -> None:
    assert read_console(tmp_path / "vm.log", lines=9, cursor=None) == ("", 0)
