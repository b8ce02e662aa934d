"""Whether the whole store is out: which answers count, and what a coordinator may answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import pytest

from pvc.cluster.store import Session, SessionState
from pvc.cluster.timing import Timing
from pvc.errors import Unavailable
from pvc.node.outage import Answer, Outage, OwnServer, doubt, in_threads, is_established
from tests.unit.node.test_lease import Clock

Enough = Callable[[Sequence[Answer]], bool]
H = Timing().out_after_s


@pytest.mark.parametrize(
    ("servers", "out", "expected"),
    [(1, 0, False), (1, 1, True), (3, 1, False), (3, 2, True), (5, 2, False), (5, 3, True), (4, 2, True)],
)
def test_half_of_the_servers_suffices(servers: int, out: int, expected: bool) -> None:
    """The others are no majority without them."""
    answers = [Answer(H + 1, 0.5)] * out + [Answer(0.0, 0.1)] * (servers - out)
    assert is_established(answers, servers, Timing()) is expected


def test_answer_covers_the_time_it_took_and_that_of_the_slowest_server() -> None:
    assert is_established([Answer(H + 0.5, 0.5)], 1, Timing())
    assert not is_established([Answer(H + 0.49, 0.5)], 1, Timing())


def test_every_coordinator_of_the_store_has_to_be_in_the_file() -> None:
    assert not doubt(["a", "b", "c"], ["a", "b", "c"])
    assert not doubt(["a", "b", "witness"], ["a", "b"]), "it makes the count stricter only"
    assert "lacks c, d" in doubt(["a", "b"], ["d", "a", "b", "c"])


def test_who_does_not_answer_does_not_count() -> None:
    def ask(address: str) -> float:
        if address != "a":
            raise Unavailable("cut off")
        return 100.0

    clock = Clock()
    assert not Outage(["a", "b", "c"], ask, Timing(), clock).is_out()
    assert Outage(["a"], ask, Timing(), clock).is_out()
    assert in_threads({}, lambda answers: False) == ()


def test_who_is_silent_is_not_waited_for_when_the_others_suffice() -> None:
    silent = threading.Event()

    def ask(address: str) -> float:
        if address == "c":
            silent.wait()
        return 100.0

    outage = Outage(["a", "b", "c"], ask, Timing(), Clock())
    gathered: list[int] = []

    def gather(questions: Mapping[str, Callable[[], Answer]], is_enough: Enough) -> Sequence[Answer]:
        def noting(answers: Sequence[Answer]) -> bool:
            gathered.append(len(answers))
            return is_enough(answers)

        return in_threads(questions, noting)

    outage.gather = gather
    try:
        assert outage.is_out()
    finally:
        silent.set()
    assert gathered[-1] == 2, "it did not wait for a third answer, nor for the time to pass"


def server(clock: Clock, said: dict[str, bool], state: list[SessionState]) -> OwnServer:
    return OwnServer(lambda: said["refuses"], lambda: Session(1, state[0]), clock)


def test_server_that_serves_again_is_counted_anew() -> None:
    clock, said, state = Clock(), {"refuses": True}, [SessionState.SUSPENDED]
    own = server(clock, said, state)
    own.look()
    clock.now += 5
    assert own.without_quorum_s() == 5
    said["refuses"] = False
    own.look()
    said["refuses"] = True
    clock.now += 1
    own.look()
    clock.now += 2
    assert own.without_quorum_s() == 2


def test_session_that_is_there_is_no_outage() -> None:
    clock, said, state = Clock(), {"refuses": True}, [SessionState.SUSPENDED]
    own = server(clock, said, state)
    own.look()
    clock.now += 5
    state[0] = SessionState.CONNECTED
    own.look()
    assert own.without_quorum_s() == 0


def test_slow_look_counts_from_its_end_and_to_its_begin() -> None:
    clock = Clock()

    def refuses() -> bool:
        clock.now += 0.4
        return True

    own = OwnServer(refuses, lambda: Session(1, SessionState.LOST), clock)
    assert own.without_quorum_s() == 0
    clock.now += 2
    assert own.without_quorum_s() == pytest.approx(2)


def test_look_and_question_at_one_moment() -> None:
    """One finds the session there while the other has just found that the server refuses."""
    clock, state = Clock(), [SessionState.LOST]
    looked: list[threading.Thread] = []

    class Reading:
        """The session is back when the question has begun to count."""

        def monotonic(self) -> float:
            if own._since is not None and not looked:
                state[0] = SessionState.CONNECTED
                looked.append(threading.Thread(target=own.look))
                looked[0].start()
                looked[0].join(0.2)
            return clock.now

        wall = clock.wall

    own = OwnServer(lambda: True, lambda: Session(1, state[0]), Reading())
    own.without_quorum_s()
    clock.now += 2
    assert own.without_quorum_s() == 2
    looked[0].join()
    assert own.without_quorum_s() == 0
