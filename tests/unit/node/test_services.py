"""What the primary does for networks: who serves, with what, and what ends when the role goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from pvc.cluster import paths
from pvc.cluster.clients import Clients, Lease, Reservation
from pvc.cluster.codec import dumps
from pvc.cluster.membership import Primary
from pvc.cluster.node import NetworkProblem
from pvc.cluster.store import Create, Delete, Put
from pvc.errors import Conflict, Failed
from pvc.node.services import LOOK_S, UNAVAILABLE_S, Commit, Scene, Service, Services
from tests.fakes.store import MemoryStore
from tests.unit.commands.world import World, a_world


@dataclass
class Recorder:
    """A service that remembers what it was told."""

    name: str
    calls: list[str]
    scenes: list[Scene] = field(default_factory=list)
    problems: tuple[NetworkProblem, ...] = ()
    fails: str = ""

    def serve(self, scene: Scene) -> Sequence[NetworkProblem]:
        self.calls.append(f"serve {self.name}")
        self.scenes.append(scene)
        if self.fails:
            raise Failed(self.fails)
        return self.problems

    def rest(self) -> None:
        self.calls.append(f"rest {self.name}")
        if self.fails:
            raise Failed(self.fails)


def take(store: MemoryStore, node: str) -> None:
    """The primary's role, as coordinators do."""
    term = store.get(paths.TERM)
    assert term is not None
    primary = Primary(node, 1, term.version + 1)
    store.commit(Put(paths.TERM, b"", term.version), Create(paths.PRIMARY, dumps(primary), ephemeral=True))


class Bench:
    def __init__(self) -> None:
        self.world: World = a_world()
        self.store = self.world.cluster.connect()
        self.calls: list[str] = []
        self.first, self.second = Recorder("first", self.calls), Recorder("second", self.calls)
        self.published: list[tuple[NetworkProblem, ...]] = []
        self.woken = 0
        self.services = Services("n1", self.store, self._both, self.published.append, self._wake)

    def _both(self, commit: Commit) -> Sequence[Service]:
        return self.first, self.second

    def _wake(self) -> None:
        self.woken += 1

    def become_primary(self) -> None:
        take(self.store, "n1")

    def add(self, vni: int, kind: str = "managed") -> None:
        self.world.call("network.add", vni=vni, description=f"net{vni}", kind=kind)

    def network(self, vni: int) -> Clients:
        return self.first.scenes[-1].networks[vni]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_only_the_primary_serves_and_ends_in_the_opposite_order(bench: Bench) -> None:
    assert bench.services.step() == LOOK_S
    assert bench.calls == ["rest second", "rest first"], "an earlier life may have left something"
    bench.services.step()
    bench.become_primary()
    assert bench.woken
    bench.services.step()
    bench.store.commit(Delete(paths.PRIMARY))
    bench.services.step()
    assert bench.calls[2:] == ["serve first", "serve second", "rest second", "rest first"]


def test_who_is_primary_again_after_a_restart_takes_up_what_is_there(bench: Bench) -> None:
    bench.become_primary()
    bench.services.step()
    assert bench.calls == ["serve first", "serve second"]


def test_what_cannot_be_ended_is_tried_again(bench: Bench) -> None:
    bench.first.fails = "busy"
    bench.services.step()
    bench.first.fails = ""
    bench.services.step()
    bench.services.step()
    assert bench.calls == ["rest second", "rest first"] * 2


def test_scene_has_the_managed_networks_with_all_that_is_below_them(bench: Bench) -> None:
    bench.become_primary()
    bench.add(101)
    bench.add(7, "bridged")
    lease = Lease("10.0.0.9", "52:54:00:00:00:01")
    reservation = Reservation("52:54:00:00:00:02", "10.0.0.8")
    bench.store.commit(
        Create(paths.network_lease(101, lease.address), dumps(lease)),
        Create(paths.network_reservation(101, reservation.mac), dumps(reservation)),
    )
    bench.services.step()
    assert bench.first.scenes[-1].networks.keys() == {101}
    assert bench.network(101).leases == {lease.address: lease}
    assert bench.network(101).reservations == {reservation.mac: reservation}
    assert bench.first.scenes[-1].nodes.keys() == {"n1", "n2", "n3"}


def test_a_network_that_did_not_change_is_the_same_object(bench: Bench) -> None:
    bench.become_primary()
    bench.add(101)
    bench.add(102)
    bench.services.step()
    before = bench.network(101), bench.network(102)
    lease = Lease("10.0.0.9", "52:54:00:00:00:01")
    bench.store.commit(Create(paths.network_lease(101, lease.address), dumps(lease)))
    bench.services.step()
    assert bench.network(101) is not before[0]
    assert bench.network(102) is before[1]
    bench.world.call("network.remove", network="102")
    bench.services.step()
    assert bench.first.scenes[-1].networks.keys() == {101}


def test_a_damaged_document_freezes_its_own_network(bench: Bench) -> None:
    bench.become_primary()
    bench.add(101)
    bench.add(102)
    bench.services.step()
    before = bench.network(101)
    bench.store.commit(Put(paths.network(101), b"{", 0))
    bench.services.step()
    assert bench.network(101) is before
    assert [problem.vni for problem in bench.published[-1]] == [101]


def test_problems_are_published_when_they_change(bench: Bench) -> None:
    bench.become_primary()
    bench.services.step()
    bench.second.problems = (NetworkProblem(101, "no room"),)
    bench.services.step()
    bench.services.step()
    bench.first.fails = "nobody home"
    bench.services.step()
    assert bench.published == [
        (),
        (NetworkProblem(101, "no room"),),
        (NetworkProblem(0, "nobody home"), NetworkProblem(101, "no room")),
    ], "and one that fails does not keep the next from serving"


def test_while_the_store_is_silent_what_is_served_goes_on_until_the_session_has_ended(bench: Bench) -> None:
    bench.become_primary()
    bench.services.step()
    bench.world.cluster.suspend(bench.store)
    assert bench.services.step() == UNAVAILABLE_S
    assert bench.calls == ["serve first", "serve second"]
    bench.world.cluster.expire(bench.store)
    bench.world.cluster.resume(bench.store)
    bench.services.step()
    assert bench.calls[2:4] == ["rest second", "rest first"]


def test_commits_are_those_of_the_primary_only(bench: Bench) -> None:
    bench.become_primary()
    bench.services.step()
    other = bench.world.cluster.connect()
    bench.store.commit(Delete(paths.PRIMARY))
    take(other, "n2")
    with pytest.raises(Conflict):
        bench.services.commit(Create(paths.network("9"), b""))


def test_at_the_end_of_the_daemon_others_serve_if_there_are_any(bench: Bench) -> None:
    bench.become_primary()
    bench.services.step()
    bench.services.close()
    assert bench.calls[2:] == [], "n2 and n3 are hypervisors: nobody else would serve"
