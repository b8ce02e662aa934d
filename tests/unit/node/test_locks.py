"""Before a VM starts: locks of the dead are broken, and whoever lives is named."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.membership import Evidence, Fence, FenceState
from pvc.cluster.node import NodeSpec, NodeStatus
from pvc.cluster.store import Create
from pvc.cluster.view import VM
from pvc.cluster.vm import Recovery
from pvc.errors import Conflict, Unavailable
from pvc.node.drivers import DriverError
from pvc.node.drivers.storage import Holder
from pvc.node.locks import DIES_S, Locks
from tests.fakes.blocklist import FakeBlocklist, FakeCeph
from tests.fakes.store import MemoryCluster
from tests.unit.node.pictures import UUID, spec, status
from tests.unit.test_fencing import FILE, IN_CEPH

THERE = Holder("client.7", "auto 1", "10.0.0.3:0/123", is_there=True)
RECEIPT = Fence("n3", 4, FenceState.FENCED, Evidence.POWER_OFF)


@dataclass
class Bench:
    """Of one image, vms/a, and one clock."""

    holders_of: list[Holder] = field(default_factory=list)
    broken: list[tuple[str, str, Holder]] = field(default_factory=list)
    ceph: FakeCeph = field(default_factory=FakeCeph)
    now: float = 0.0
    dies_at: float = float("inf")
    is_away: bool = False
    answers_from: float = 0.0
    cut_off_at: float = float("inf")

    def __post_init__(self) -> None:
        self.store = MemoryCluster().connect()
        self.store.commit(*(Create(path) for path in paths.LAYOUT))
        self.locks = Locks(self.store, self.pool, FakeBlocklist(self.ceph), self, self.pause, self.may_start)

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 0.0

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def may_start(self) -> bool:
        return self.now < self.cut_off_at

    def pool(self, name: str) -> Bench:
        self.asked = name
        return self

    def holders(self, name: str) -> tuple[Holder, ...]:
        if self.is_away:
            raise DriverError("Ceph is away")
        if self.now < self.answers_from:
            raise DriverError("Ceph: timed out", retryable=True)
        return tuple(replace(one, is_there=self.now < self.dies_at) for one in self.holders_of)

    def break_lock(self, name: str, holder: Holder) -> None:
        self.broken.append((self.asked, name, holder))
        self.holders_of.clear()

    def fenced(self, fence: Fence, *, incarnation: int = 4) -> VM:
        told = NodeStatus(incarnation, ceph_addresses=("10.0.0.3",))
        self.store.commit(
            Create(paths.node("n3"), dumps(NodeSpec("n3", "10.0.0.3", "10.0.0.3"))),
            Create(paths.node_status("n3"), dumps(told)),
            Create(paths.fence("n3", 4), dumps(fence)),
        )
        return vm(recovery=Recovery("n3-4", 8.0))


def vm(more: str = "", *, recovery: Recovery | None = None) -> VM:
    found = VM(spec(uuid=UUID, definition=IN_CEPH.format(more=more)), 1, status(None), 1)
    return replace(found, status=replace(found.status, recovery=recovery))


def test_lock_of_a_node_with_a_receipt_is_broken_at_once() -> None:
    bench = Bench([THERE])
    bench.locks.free(bench.fenced(RECEIPT))
    assert (bench.broken, bench.now) == ([("vms", "a", THERE)], 0.0)


def test_lock_of_a_node_that_is_shut_out_is_broken_at_once() -> None:
    bench = Bench([THERE])
    bench.ceph.change(frozenset({"10.0.0.3"}))
    bench.locks.free(vm())
    assert (len(bench.broken), bench.now) == (1, 0.0)


def test_lock_of_whom_ceph_does_not_hear_is_broken() -> None:
    bench = Bench([THERE], dies_at=30.0)
    bench.locks.free(vm())
    assert (len(bench.broken), bench.now) == (1, 30.0)


@pytest.mark.parametrize(
    ("fence", "incarnation"),
    [(replace(RECEIPT, state=FenceState.FAILED), 4), (RECEIPT, 5)],
    ids=("no receipt", "it is back"),
)
def test_holder_that_lives_refuses_the_start_and_is_named(fence: Fence, incarnation: int) -> None:
    bench = Bench([THERE])
    with pytest.raises(DriverError, match=r"vms/a is held by a client at 10\.0\.0\.3:0/123") as found:
        bench.locks.free(bench.fenced(fence, incarnation=incarnation))
    assert found.value.retryable, "after an outage Ceph takes the dead for alive for a while"
    assert not bench.broken
    assert bench.now > DIES_S


def test_flush_breaks_the_lock_of_the_dead_and_says_whose_it_was() -> None:
    bench = Bench([THERE], dies_at=0.0)
    assert bench.locks.flush(vm(), force=False) == ["vms/a: 10.0.0.3:0/123"]
    assert (len(bench.broken), bench.now) == (1, 0.0)


def test_flush_leaves_all_locks_where_a_holder_lives_unless_told() -> None:
    bench = Bench([THERE])
    with pytest.raises(Conflict, match=r"vms/a is held by a client at 10\.0\.0\.3:0/123, which is alive"):
        bench.locks.flush(vm(), force=False)
    assert not bench.broken
    bench.locks.flush(vm(), force=True)
    assert len(bench.broken) == 1


def test_flush_says_that_ceph_does_not_answer() -> None:
    with pytest.raises(DriverError, match="Ceph is away"):
        Bench([THERE], is_away=True).locks.flush(vm(), force=True)


def test_vm_that_does_not_use_ceph_asks_nobody() -> None:
    bench = Bench(is_away=True)
    bench.locks.free(VM(spec(), 1, status(None), 1))
    assert not hasattr(bench, "asked")


def test_without_an_answer_qemu_finds_out() -> None:
    bench = Bench([THERE], is_away=True)
    bench.locks.free(vm(FILE))
    assert (bench.broken, bench.now) == ([], 0.0)


def test_who_does_not_answer_in_time_is_asked_again() -> None:
    bench = Bench([THERE], answers_from=20.0)
    bench.locks.free(bench.fenced(RECEIPT))
    assert (len(bench.broken), bench.now) == (1, 20.0)


def test_who_never_answers_in_time_is_left_to_qemu() -> None:
    bench = Bench([THERE], answers_from=float("inf"))
    bench.locks.free(vm())
    assert not bench.broken
    assert bench.now > DIES_S


@pytest.mark.parametrize("answers_from", [0.0, float("inf")])
def test_node_that_is_cut_off_waits_for_nobody(answers_from: float) -> None:
    bench = Bench([THERE], answers_from=answers_from, cut_off_at=5.0)
    with pytest.raises(Unavailable, match="lost contact"):
        bench.locks.free(vm())
    assert bench.now == 5.0
