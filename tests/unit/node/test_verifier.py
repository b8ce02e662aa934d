"""A coordinator that tries the BMCs: what it does when, and what it writes down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pvc.cluster import paths
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.codec import dumps
from pvc.cluster.mirror import Mirror
from pvc.cluster.node import BMC, Alive, BMCDriver, DaemonState, NodeSpec, NodeStatus
from pvc.cluster.store import Create, Delete, Put
from pvc.cluster.verification import HOUR_S, STORE_S, Verification, Verified, Wish
from pvc.cluster.view import View, expand_whole_cluster, whole_cluster
from pvc.node.drivers.power import BMCAccess
from pvc.node.verifier import STORE, Chore, Verifier, lane
from tests.fakes.power import FakePower, Fault, Machine
from tests.fakes.store import MemoryCluster


@dataclass(slots=True)
class Hands:
    carry_out: Callable[[Chore], None]
    todo: dict[str, Chore] = field(default_factory=dict)

    @property
    def busy(self) -> Mapping[str, Chore]:
        return dict(self.todo)

    def submit(self, action: Chore) -> None:
        self.todo[lane(action)] = action

    def close(self) -> None:
        self.todo.clear()

    def work(self) -> list[str]:
        """Nodes that were looked at."""
        done = sorted(self.todo)
        for name in done:
            self.carry_out(self.todo.pop(name))
        return [name for name in done if name != STORE]


class Bench:
    """n1 is the coordinator that looks, n2 and n3 have BMCs, and so has n1."""

    def __init__(self) -> None:
        self.now = 0.0
        self.refuses = False
        self.cluster = MemoryCluster()
        self.store = self.cluster.connect()
        self.power = FakePower({name: Machine("secret") for name in ("n1", "n2", "n3")})
        self.store.commit(*(Create(path) for path in paths.LAYOUT))
        self.store.commit(Create(paths.CLUSTER, dumps(ClusterSpec("test"))))
        for name in ("n1", "n2", "n3"):
            bmc = BMC(BMCDriver.IPMI, name, "admin", "")
            self.store.commit(
                Create(paths.node(name), dumps(NodeSpec(name, "a", "a", bmc=bmc))),
                Create(paths.node_status(name), dumps(NodeStatus(1, DaemonState.RUN))),
                Create(paths.alive(name), dumps(Alive(1))),
            )
        self.mirror = Mirror(self.store, whole_cluster(), expand_whole_cluster, lambda: None)
        self.hands: Hands
        self.one = Verifier(
            "n1",
            self.store,
            self.mirror,
            self.power,
            self,
            "",
            lanes=self.lanes,
            access=lambda bmc, secret: BMCAccess(bmc.driver, bmc.address, bmc.user, "secret"),
            is_store_refusing=lambda: self.refuses,
        )

    def lanes(self, carry_out: Callable[[Chore], None]) -> Hands:
        self.hands = Hands(carry_out)
        return self.hands

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1000.0 + self.now

    def round(self, after_s: float = 1.0) -> list[str]:
        """Nodes that were looked at."""
        self.now += after_s
        self.cluster.deliver()
        self.mirror.sync()
        self.one.step(View(self.mirror).nodes(), self.now)
        looked = self.hands.work()
        self.one.step(View(self.mirror).nodes(), self.now)
        return looked

    def wish(self, asked: int, node: str = "") -> None:
        self.store.commit(Put(paths.VERIFIED, dumps(Wish(asked, node))))

    @property
    def written(self) -> Verification:
        return View(self.store).verifications()["n1"]


def test_it_looks_at_the_others_at_once_then_every_hour_and_says_what_it_found() -> None:
    bench = Bench()
    assert bench.round() == ["n2", "n3"], "it cannot fence itself"
    assert bench.written == Verification(0, (Verified("n2", "", 1001.0), Verified("n3", "", 1001.0)))
    assert {order for one in bench.power.machines.values() for order in one.orders} == {"state", "on"}
    assert bench.round() == []
    bench.power.machines["n3"].password = "changed"
    assert bench.round(HOUR_S) == ["n2", "n3"]
    assert bench.written.of("n3") == Verified("n3", "the BMC n3 refuses user admin", 1002.0 + HOUR_S)


def test_a_wish_is_answered_when_all_that_it_is_about_has_been_looked_at() -> None:
    bench = Bench()
    bench.round()
    bench.wish(1, "n3")
    bench.power.machines["n3"].fault = Fault.SILENT
    assert bench.round() == ["n3"]
    assert bench.written.asked == 1
    assert "does not answer" in str(bench.written.of("n3"))
    bench.wish(2)
    bench.cluster.deliver()
    bench.mirror.sync()
    bench.one.step(View(bench.mirror).nodes(), bench.now)
    assert bench.written.asked == 1, "two are being looked at"
    assert bench.hands.work() == ["n2", "n3"]
    bench.round()
    assert bench.written.asked == 2


def test_who_is_gone_is_left_to_the_judge_and_no_answer_waits_for_it() -> None:
    bench = Bench()
    bench.store.commit(Delete(paths.alive("n3")))
    bench.wish(1)
    assert bench.round() == ["n2"]
    assert bench.written.asked == 1


def test_nothing_new_writes_nothing() -> None:
    bench = Bench()
    bench.round()
    before = bench.store.get(paths.verified("n1"))
    bench.round()
    after = bench.store.get(paths.verified("n1"))
    assert before is not None
    assert after is not None
    assert before.version == after.version


def test_a_wish_of_before_this_life_counts_as_answered_after_the_first_look() -> None:
    bench = Bench()
    bench.wish(7)
    bench.round()
    assert bench.written.asked == 7


def test_own_zookeeper_server_that_refuses_twice_is_down_until_it_serves() -> None:
    bench = Bench()
    bench.refuses = True
    bench.round()
    assert not bench.written.is_store_down, "it may be starting"
    bench.round(STORE_S)
    assert bench.written.is_store_down
    bench.refuses = False
    bench.round(STORE_S)
    assert not bench.written.is_store_down


def test_bmc_that_is_busy_once_is_no_problem() -> None:
    bench = Bench()
    bench.power.machines["n3"].fault = Fault.BUSY
    bench.round()
    assert bench.written.of("n3") == Verified("n3", "", 1001.0)
