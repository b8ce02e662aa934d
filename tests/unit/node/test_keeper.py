"""Who holds the floating addresses, between coordinators in memory whose clock the test turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from pvc.cluster import paths
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.codec import dumps, loads
from pvc.cluster.membership import Term
from pvc.cluster.node import Alive, DaemonState, NodeRole, NodeSpec, NodeStatus
from pvc.cluster.store import Create, Op, Put
from pvc.cluster.timing import Timing
from pvc.cluster.vm import Owner
from pvc.errors import Unavailable
from pvc.node.coordinator import Coordinator
from pvc.node.process import drop_leftovers
from tests.fakes.addresses import FakeAddresses
from tests.fakes.power import FakePower
from tests.fakes.store import MemoryCluster, MemoryStore

UPSTREAM, CLUSTER = "10.0.0.250/24", "10.0.1.250/24"
OWN = {"10.0.0.1/24": "br0", "10.0.1.1/24": "clu"}
TIMING = Timing()


@dataclass
class One:
    """A coordinator and its keeper, with their thread's turns taken by the test."""

    bench: Bench
    store: MemoryStore
    host: FakeAddresses
    coordinator: Coordinator

    @property
    def held(self) -> set[str]:
        return set(self.host.held())

    def rounds(self, count: int = 1) -> None:
        for _ in range(count):
            self.coordinator.step()
            self.coordinator.keeper.step()

    def shown(self) -> tuple[tuple[str, ...], str]:
        return self.coordinator.keeper.shown()


@dataclass
class Bench:
    now: float = 100.0
    cluster: MemoryCluster = field(default_factory=MemoryCluster)
    spec: ClusterSpec = field(
        default_factory=lambda: ClusterSpec("test", upstream_address=UPSTREAM, cluster_address=CLUSTER)
    )

    def __post_init__(self) -> None:
        self.truth = self.cluster.connect()
        self.truth.commit(*(Create(path) for path in paths.LAYOUT), Create(paths.CLUSTER, dumps(self.spec)))
        for name in ("n1", "n2"):
            self.truth.commit(
                Create(paths.node(name), dumps(NodeSpec(name, "a", "a", NodeRole.COORDINATOR))),
                Create(paths.node_status(name), dumps(NodeStatus(1, DaemonState.RUN))),
                Create(paths.alive(name), dumps(Alive(1))),
            )
        self.one, self.two = self.begin("n1"), self.begin("n2")

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 0.0

    def begin(self, name: str) -> One:
        store, host = self.cluster.connect(), FakeAddresses(self, OWN)
        made = Coordinator(Owner(name, 1), store, FakePower(), host, self, TIMING, "")
        return One(self, store, host, made)

    def change(self, **settings: str) -> None:
        self.spec = replace(self.spec, **settings)  # type: ignore[arg-type]
        self.truth.commit(Put(paths.CLUSTER, dumps(self.spec)))

    def later(self, seconds: float) -> None:
        self.now += seconds

    @property
    def term(self) -> Term:
        stored = self.truth.get(paths.TERM)
        assert stored is not None
        return loads(Term, stored.data)


@pytest.fixture
def bench() -> Bench:
    return Bench()


BOTH = {UPSTREAM, CLUSTER}


def test_the_first_primary_has_them_at_once(bench: Bench) -> None:
    bench.one.rounds()
    bench.two.rounds()
    assert (bench.one.held, bench.two.held) == (BOTH, set())
    assert bench.one.shown() == ((UPSTREAM, CLUSTER), "")


def test_held_for_as_long_as_they_are_renewed_and_not_longer(bench: Bench) -> None:
    for _ in range(10):
        bench.one.rounds()
        bench.later(1.0)
        assert bench.one.held == BOTH
    bench.later(TIMING.address_s)
    assert bench.one.held == set(), "the kernel has taken them"
    assert bench.one.shown() == ((), "")


def test_no_longer_than_from_the_moment_before_the_commit(bench: Bench) -> None:
    """What came back from a slow store was true when it was asked."""
    bench.one.rounds()
    bench.later(1.0)
    slow(bench, bench.one, 3.0)
    began = bench.now
    bench.one.coordinator.keeper.step()
    assert max(bench.one.host.until.values()) <= began + TIMING.address_s


def slow(bench: Bench, one: One, seconds: float) -> None:
    """Its next commits take so long."""
    made: Callable[..., None] = one.store.commit

    def commit(*ops: Op) -> None:
        made(*ops)
        bench.later(seconds)

    one.store.commit = commit  # type: ignore[method-assign]


def test_nothing_is_held_from_a_moment_long_ago(bench: Bench) -> None:
    """It stood still after the store had answered."""
    bench.one.coordinator.step()
    slow(bench, bench.one, 20.0)
    bench.one.coordinator.keeper.step()
    assert bench.one.host.until == {}


def test_a_planned_move_needs_no_wait(bench: Bench) -> None:
    bench.one.rounds()
    bench.change(primary="n2")
    bench.one.rounds()
    assert bench.one.held == set()
    assert bench.term == Term("n1", let_go=True)
    bench.two.rounds()
    assert bench.two.held == BOTH
    assert bench.two.host.announced == [UPSTREAM, CLUSTER]


def test_dropped_before_the_role_is_given_away(bench: Bench) -> None:
    """And taken again where the role could not be given away."""
    bench.one.rounds()
    seen: list[set[str]] = []
    made: Callable[..., None] = bench.one.store.commit

    def commit(*ops: Op) -> None:
        seen.append(bench.one.held)
        raise Unavailable("no server answers")

    bench.one.store.commit = commit  # type: ignore[method-assign]
    bench.change(primary="n2")
    with pytest.raises(Unavailable):
        bench.one.coordinator.step()
    assert seen == [set()]
    bench.one.store.commit = made  # type: ignore[method-assign]
    bench.change(primary="n1")
    bench.one.rounds()
    assert bench.one.held == BOTH


def test_after_a_death_they_are_taken_when_the_kernel_there_has_dropped_them(bench: Bench) -> None:
    bench.one.rounds()
    bench.later(TIMING.session_timeout_s * 2 / 3 - TIMING.store_tick_s)  # no session ends sooner
    bench.cluster.expire(bench.one.store)
    bench.two.rounds()
    assert bench.two.coordinator.role.is_primary
    ends = bench.now + TIMING.address_wait_s
    while bench.now < ends:
        assert bench.two.held == set()
        bench.later(0.25)
        bench.two.rounds()
    bench.two.rounds()
    assert bench.two.held == BOTH
    assert bench.one.held == set()


def test_who_never_held_them_cannot_say_that_they_are_free(bench: Bench) -> None:
    """n1 dies, n2 takes the role and leaves it at once: n1 may have them still."""
    bench.one.rounds()
    bench.cluster.expire(bench.one.store)
    bench.two.rounds()
    three = bench.begin("n1")
    bench.change(primary="n1")
    bench.two.rounds()
    assert bench.term == Term("n2", let_go=False)
    three.rounds()
    assert three.coordinator.role.is_primary
    assert three.held == set()
    bench.later(TIMING.address_wait_s)
    three.rounds()
    assert three.held == BOTH


def test_a_session_that_is_lost(bench: Bench) -> None:
    bench.one.rounds()
    bench.cluster.expire(bench.one.store)
    bench.one.coordinator.step()
    assert bench.one.held == set()


def test_a_server_that_is_away_for_a_moment(bench: Bench) -> None:
    """Nothing is dropped: the lifetime says how long that is safe."""
    bench.one.rounds()
    bench.cluster.suspend(bench.one.store)
    bench.one.rounds()
    assert bench.one.held == BOTH
    bench.later(2.0)
    bench.cluster.resume(bench.one.store)
    bench.one.rounds()
    assert bench.one.held == BOTH


def test_who_is_told_by_the_store_that_the_role_is_gone_drops_at_once(bench: Bench) -> None:
    """Its coordinator may not have noticed yet."""
    bench.one.rounds()
    bench.cluster.expire(bench.one.store)
    bench.cluster.resume(bench.one.store)
    bench.one.coordinator.keeper.step()
    assert bench.one.held == set()


def test_changed_settings(bench: Bench) -> None:
    bench.one.rounds()
    bench.change(upstream_address="10.0.0.251/24", cluster_address="")
    bench.one.rounds()
    assert bench.one.held == {"10.0.0.251/24"}
    bench.change(upstream_address="")
    bench.one.rounds()
    assert bench.one.held == set()


def test_no_device_for_one_of_them(bench: Bench) -> None:
    told: list[int] = []
    bench.one.coordinator.keeper.changed = lambda: told.append(1)
    bench.change(upstream_address="192.0.2.1/24")
    bench.one.rounds()
    assert bench.one.held == {CLUSTER}
    addresses, problem = bench.one.shown()
    assert addresses == (CLUSTER,)
    assert "no network device" in problem
    assert told
    bench.change(upstream_address="")
    bench.one.rounds()
    assert bench.one.shown() == ((CLUSTER,), "")


def test_announced_three_times(bench: Bench) -> None:
    bench.change(cluster_address="")
    bench.one.coordinator.step()
    for _ in range(100):
        bench.later(min(bench.one.coordinator.keeper.step(), 1.0))
    assert bench.one.host.announced == [UPSTREAM] * 3


def test_what_the_kernel_keeps_is_tried_again_and_no_lie_is_told_of_it(bench: Bench) -> None:
    bench.one.rounds()
    bench.one.host.fails = "the kernel is busy"
    bench.change(primary="n2")
    bench.one.rounds()
    bench.one.host.fails = ""
    assert bench.term == Term("n1", let_go=False)
    assert bench.one.held == BOTH
    bench.one.coordinator.keeper.step()
    assert bench.one.held == set()


def test_leaving_gives_the_role_to_others(bench: Bench) -> None:
    bench.one.rounds()
    assert bench.one.coordinator.leave()
    assert bench.one.held == set()
    assert bench.term == Term("n1", let_go=True)
    bench.two.rounds()
    assert bench.two.held == BOTH


def test_leaving_without_the_store(bench: Bench) -> None:
    bench.one.rounds()
    bench.cluster.suspend(bench.one.store)
    assert bench.one.coordinator.leave()
    assert bench.one.held == set()


def test_leaving_while_the_kernel_keeps_them(bench: Bench) -> None:
    """The session must not be closed then."""
    bench.one.rounds()
    bench.one.host.fails = "the kernel is busy"
    assert not bench.one.coordinator.leave()


def test_leftovers_of_an_earlier_life(bench: Bench) -> None:
    bench.one.rounds()
    drop_leftovers(bench.one.host)
    assert bench.one.held == set()
    bench.one.host.fails = "the kernel is busy"
    drop_leftovers(bench.one.host)


@pytest.mark.parametrize("data", [b"", b'{"let_go":true,"node":"n9"}'])
def test_a_term_that_ended_well(bench: Bench, data: bytes) -> None:
    """Of a primary that knew of no floating addresses there is nothing written."""
    bench.truth.commit(Put(paths.TERM, data))
    bench.one.rounds()
    assert bench.one.held == BOTH


@pytest.mark.parametrize("data", [b'{"node":"n9"}', b"damaged", b"[]"])
def test_a_term_of_which_nobody_knows_how_it_ended(bench: Bench, data: bytes) -> None:
    bench.truth.commit(Put(paths.TERM, data))
    bench.one.rounds()
    assert bench.one.held == set()
    bench.later(TIMING.address_wait_s)
    bench.one.rounds()
    assert bench.one.held == BOTH
