"""When paths to other nodes are looked at, and what is said of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from pvc.node.path_mtu import LOOK_S, RETRY_S, PathMTU, Paths

PATHS = Paths(9000, (("n2", "10.0.0.2"), ("n3", "fd00::3")))


@dataclass
class Bench:
    now: float = 50.0
    carries: dict[str, int] = field(default_factory=lambda: {"10.0.0.2": 9000, "fd00::3": 9000})
    """The longest packet to each; 0: it does not answer."""
    asked: list[tuple[str, int]] = field(default_factory=list)
    woken: int = 0
    changed: int = 0

    def __post_init__(self) -> None:
        self.path_mtu = PathMTU(self._ping, self, self._wake, self._change)

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def _ping(self, address: str, payload: int) -> bool:
        self.asked.append((address, payload))
        return payload + (48 if ":" in address else 28) <= self.carries[address]

    def _wake(self) -> None:
        self.woken += 1

    def _change(self) -> None:
        self.changed += 1

    def look(self) -> float:
        self.path_mtu.look_at(PATHS)
        return self.path_mtu.step()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_whole_packets_are_sent_once_an_hour(bench: Bench) -> None:
    assert bench.look() == LOOK_S
    assert bench.asked == [("10.0.0.2", 8972), ("fd00::3", 8952)]
    bench.look()
    assert len(bench.asked) == 2
    assert (bench.woken, bench.changed) == (1, 0)
    bench.now += LOOK_S
    bench.look()
    assert len(bench.asked) == 4


def test_who_gets_only_shorter_ones_is_named_until_that_is_better(bench: Bench) -> None:
    bench.carries["fd00::3"] = 1500
    assert bench.look() == RETRY_S
    (problem,) = bench.path_mtu.problems
    assert problem.vni == 0
    assert "n3" in problem.why
    assert "n2" not in problem.why
    bench.carries["fd00::3"] = 9000
    bench.now += RETRY_S
    bench.look()
    assert not bench.path_mtu.problems
    assert bench.changed == 2


def test_who_is_dead_says_nothing_about_its_path(bench: Bench) -> None:
    bench.carries["10.0.0.2"] = 0
    assert bench.look() == LOOK_S
    assert not bench.path_mtu.problems


def test_nothing_is_sent_where_nobody_needs_to_know(bench: Bench) -> None:
    bench.path_mtu.step()
    bench.path_mtu.look_at(Paths(0, PATHS.peers))
    bench.path_mtu.step()
    assert not bench.asked
