"""The waiting room by itself: who is handed back when."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from pvc.http.wait import Ticket, WaitingRoom
from tests.support import eventually


@dataclass(eq=False, slots=True)
class Guest:
    connected: bool = True
    deadline: float | None = None


@dataclass(slots=True)
class Value:
    """What is waited for; counts how often it was looked at."""

    version: int = 0
    looks: int = 0

    def ticket(self, room: WaitingRoom[Guest], within_s: float = 60.0, key: str = "a") -> Ticket:
        after = self.version

        def is_ready() -> bool:
            self.looks += 1
            return self.version != after

        return Ticket(key, is_ready, within_s, room.changes)


@dataclass(slots=True)
class Room:
    back: list[Guest] = field(default_factory=list)
    room: WaitingRoom[Guest] = field(init=False)

    def __post_init__(self) -> None:
        self.room = WaitingRoom(self.back.append)


@pytest.fixture
def hall() -> Iterator[Room]:
    hall = Room()
    thread = threading.Thread(target=hall.room.run)
    thread.start()
    yield hall
    hall.room.close()
    thread.join(5)
    assert not thread.is_alive()


def test_change_hands_back_all_who_wait_for_it_and_looks_once(hall: Room) -> None:
    value, other = Value(), Value()
    guests = [Guest() for _ in range(100)]
    for guest in guests:
        hall.room.enter(guest, value.ticket(hall.room))
    stays = Guest()
    hall.room.enter(stays, other.ticket(hall.room, key="b"))
    value.version = 1
    hall.room.changed()
    eventually(lambda: len(hall.back) == 100, within=5)
    assert set(hall.back) == set(guests)
    assert value.looks == 1
    assert len(hall.room) == 1


def test_time_over_hands_back_without_a_look(hall: Room) -> None:
    value = Value()
    began = time.monotonic()
    hall.room.enter(Guest(), value.ticket(hall.room, within_s=0.2))
    eventually(lambda: len(hall.back) == 1, within=5)
    assert 0.2 <= time.monotonic() - began < 3
    assert value.looks == 0


def test_deadline_is_that_of_the_first_time(hall: Room) -> None:
    guest = Guest()
    hall.room.enter(guest, Value().ticket(hall.room, within_s=30.0))
    first = guest.deadline
    hall.room.leave(guest)
    hall.room.enter(guest, Value().ticket(hall.room, within_s=60.0))
    assert guest.deadline == first


def test_change_between_look_and_entry_is_not_missed(hall: Room) -> None:
    value = Value()
    ticket = value.ticket(hall.room)
    value.version = 1
    hall.room.changed()
    eventually(lambda: hall.room._seen == hall.room.changes, within=5)
    hall.room.enter(Guest(), ticket)
    eventually(lambda: len(hall.back) == 1, within=5)


def test_who_hung_up_before_entering_is_handed_back_to_be_tidied(hall: Room) -> None:
    gone = Guest(connected=False)
    hall.room.enter(gone, Value().ticket(hall.room))
    assert hall.back == [gone]
    assert len(hall.room) == 0


def test_who_leaves_is_forgotten(hall: Room) -> None:
    value, guest = Value(), Guest()
    hall.room.enter(guest, value.ticket(hall.room))
    hall.room.leave(guest)
    value.version = 1
    hall.room.changed()
    eventually(lambda: hall.room._seen == hall.room.changes, within=5)
    assert hall.back == []


def test_closing_hands_everybody_back_with_no_time_left() -> None:
    hall = Room()
    guests = [Guest(), Guest()]
    for guest in guests:
        hall.room.enter(guest, Value().ticket(hall.room))
    hall.room.close()
    assert set(hall.back) == set(guests)
    assert all(guest.deadline == 0.0 for guest in guests)
    late = Guest()
    hall.room.enter(late, Value().ticket(hall.room))
    assert late in hall.back


def test_room_has_an_end() -> None:
    hall = Room()
    hall.room.capacity = 2
    for _ in range(2):
        assert not hall.room.is_full
        hall.room.enter(Guest(), Value().ticket(hall.room))
    assert hall.room.is_full
