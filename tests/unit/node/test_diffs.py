"""Files of differences: what is written is read again, and what is damaged makes nothing."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from pvc.cluster.storage import Format
from pvc.errors import Failed, Invalid
from pvc.node.diffs import HEADER, Written, apply, check, opened, write
from tests.fakes.pool import FakeFilling, FakePool

SIZE = 64 * 1024


def told(fraction: float) -> None:
    assert 0 <= fraction <= 1


def keep(pool: FakePool, content: bytes, snapshot: str) -> None:
    pool.kept["web1"].content = content
    pool.resize("web1", len(content), shrink=True)
    pool.add_snapshot("web1", snapshot)


def written(pool: FakePool, where: Path, snapshot: str, since: str = "") -> str:
    with where.open("wb") as file, pool.content("web1", snapshot) as content:
        out = Written(file)
        write(out, content, snapshot, since, told)
        assert out.bytes == file.tell()
    return out.sha256


@pytest.fixture
def pool() -> FakePool:
    made = FakePool()
    made.add("web1", SIZE, Format.QCOW2, "t1")
    return made


@pytest.mark.parametrize("seed", range(8))
def test_a_chain_makes_what_the_last_snapshot_was(pool: FakePool, tmp_path: Path, seed: int) -> None:
    """Sizes that go up and down: what was cut off does not come back."""
    chance, since, sums = random.Random(seed), "", []
    content = b""
    for number in range(5):
        made = bytearray(content[: chance.randrange(1, 40) * 4096])
        made += bytes(max(0, chance.randrange(1, 40) * 4096 - len(made)))
        for _ in range(4):
            at, length = chance.randrange(len(made)), chance.randrange(9000)
            made[at : at + length] = bytes([chance.choice((0, 1, 2))]) * len(made[at : at + length])
        content = bytes(made)
        keep(pool, content, f"s{number}")
        sums.append(written(pool, tmp_path / str(number), f"s{number}", since))
        since = f"s{number}"
    filling, size = FakeFilling(bytearray(len(content))), 0
    for number, one in enumerate(sums):
        check(tmp_path / str(number), one, told)
        with opened(tmp_path / str(number)) as file:
            size = apply(file, one, filling, len(content), size, told)
    assert size == len(content)
    assert bytes(filling.content) == content


def test_what_differs_is_small_and_says_what_it_is(pool: FakePool, tmp_path: Path) -> None:
    """Byte by byte as `rbd export-diff` writes it."""
    keep(pool, b"a" * SIZE, "one")
    keep(pool, b"a" * 8192 + b"b" * 4096 + bytes(4096) + b"a" * (SIZE - 16384), "two")
    written(pool, tmp_path / "diff", "two", "one")
    assert (tmp_path / "diff").read_bytes() == b"".join(
        (
            HEADER,
            b"f" + struct.pack("<I", 3) + b"one",
            b"t" + struct.pack("<I", 3) + b"two",
            b"s" + struct.pack("<Q", SIZE),
            b"w" + struct.pack("<QQ", 8192, 4096) + b"b" * 4096,
            b"z" + struct.pack("<QQ", 12288, 4096),
            b"e",
        )
    )


def test_what_is_damaged_is_noticed_wherever_it_is(pool: FakePool, tmp_path: Path) -> None:
    keep(pool, b"a" * 4096 + bytes(SIZE - 4096), "one")
    where = tmp_path / "diff"
    sha256 = written(pool, where, "one")
    whole = where.read_bytes()
    cut = [whole[:count] for count in (0, 5, 12, 13, 17, 20, 40, 60, 2000, len(whole) - 1)]
    turned = [
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (*range(60), 3000, len(whole) - 1)
    ]
    for damaged in (*cut, *turned, whole + b"e"):
        where.write_bytes(damaged)
        with pytest.raises(Invalid, match="diff"), opened(where) as file:
            apply(file, sha256, FakeFilling(bytearray(SIZE)), SIZE, 0, told)
        with pytest.raises(Failed, match="checksum"):
            check(where, sha256, told)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"e", id="no size"),
        pytest.param(b"w" + struct.pack("<QQ", 0, 1) + b"xe", id="data before the size"),
        pytest.param(
            b"s" + struct.pack("<Q", 10) + b"z" + struct.pack("<QQ", 8, 4) + b"e", id="behind the end"
        ),
        pytest.param(b"x", id="unknown"),
        pytest.param(b"t" + struct.pack("<I", 2**32 - 1), id="a name without end"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, body: bytes) -> None:
    where = tmp_path / "diff"
    where.write_bytes(HEADER + body)
    with pytest.raises(Invalid), opened(where) as file:
        apply(file, "", FakeFilling(bytearray(10)), 10, 0, told)
