"""Whether the whole store is out: which answers count, and what a coordinator may answer."""

from __future__ import annotations

import pytest

from pvc.cluster.store import Session, SessionState
from pvc.cluster.timing import Timing
from pvc.errors import Unavailable
from pvc.node.outage import Answer, Outage, OwnServer, in_threads, is_established
from tests.unit.node.test_lease import Clock

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


def test_who_does_not_answer_does_not_count() -> None:
    def ask(address: str) -> float:
        if address != "a":
            raise Unavailable("cut off")
        return 100.0

    clock = Clock()
    assert not Outage(["a", "b", "c"], ask, Timing(), clock).is_out()
    assert Outage(["a"], ask, Timing(), clock).is_out()
    assert in_threads({}) == ()


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
