"""What a node does once an hour: old console text goes, a chore that fails stops no other."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pvc.cluster import paths
from pvc.cluster.store import Create
from pvc.errors import Unavailable
from pvc.node.upkeep import KEEP_S, Upkeep, remove_old_consoles
from tests.fakes.store import MemoryCluster, MemoryStore
from tests.support import eventually

NOW = 1_000_000_000.0
KNOWN, GONE, JUST_GONE = (f"0a1b2c3d-0000-4000-8000-00000000000{number}" for number in range(3))


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryCluster().connect()
    store.commit(*(Create(path) for path in paths.LAYOUT), Create(paths.vm(KNOWN)))
    return store


def write(directory: Path, name: str, age_s: float) -> Path:
    file = directory / name
    file.write_text("text")
    os.utime(file, (NOW - age_s, NOW - age_s))
    return file


def test_console_text_goes_a_day_after_its_vm(tmp_path: Path, store: MemoryStore) -> None:
    stays = [
        write(tmp_path, f"{KNOWN}.log", 9 * KEEP_S),
        write(tmp_path, f"{JUST_GONE}.log", KEEP_S / 2),
        write(tmp_path, f"{JUST_GONE}.log.0", 9 * KEEP_S),
        write(tmp_path, "notes.log", 9 * KEEP_S),
        write(tmp_path, f"{GONE}.log.mine", 9 * KEEP_S),
    ]
    for name in (f"{GONE}.log", f"{GONE}.log.0"):
        write(tmp_path, name, KEEP_S + 1)
    remove_old_consoles(str(tmp_path), store, NOW)
    assert sorted(tmp_path.iterdir()) == sorted(stays)


def test_nothing_goes_while_the_store_does_not_answer(tmp_path: Path, store: MemoryStore) -> None:
    file = write(tmp_path, f"{GONE}.log", 9 * KEEP_S)
    store.close()
    with pytest.raises(Unavailable):
        remove_old_consoles(str(tmp_path), store, NOW)
    assert file.exists()


def test_chore_that_fails_or_hangs_holds_up_nobody_but_its_round(caplog: pytest.LogCaptureFixture) -> None:
    rounds, hold, released = [], threading.Event(), threading.Event()

    def fails() -> None:
        raise Unavailable("no ZooKeeper server answers")

    def works() -> None:
        rounds.append(threading.current_thread().name)
        if len(rounds) == 2:
            released.set()
            hold.wait(10)

    upkeep = Upkeep([fails, works], first_s=0, every_s=0)
    upkeep.start()
    assert released.wait(10)
    upkeep.close()
    hold.set()
    eventually(lambda: "upkeep" not in {thread.name for thread in threading.enumerate()}, within=5)
    assert rounds == ["upkeep", "upkeep"]
    assert "no ZooKeeper server answers" in caplog.text
