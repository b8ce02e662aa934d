"""What the primary does for networks: who serves, with what, and what ends when the role goes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from pvc.cluster import paths
from pvc.cluster.clients import Clients, Lease, Reservation
from pvc.cluster.codec import dumps, loads
from pvc.cluster.membership import Primary
from pvc.cluster.node import NetworkProblem, NodeRole, NodeSpec
from pvc.cluster.store import Create, Delete, Put
from pvc.errors import Conflict, Failed
from pvc.node.services import LOOK_S, UNAVAILABLE_S, Commit, Scene, Service, Services
from tests.fakes.store import MemoryStore
from tests.support import eventually
from tests.unit.commands.world import World, a_world


@dataclass
class Recorder:
    """A service that remembers what it was told."""

    name: str
    calls: list[str]
    scenes: list[Scene] = field(default_factory=list)
    problems: tuple[NetworkProblem, ...] = ()
    fails: str = ""
    breaks: bool = False
    """By a mistake in it."""
    meanwhile: Callable[[], object] = lambda: None
    """While it serves."""

    def serve(self, scene: Scene) -> Sequence[NetworkProblem]:
        self.calls.append(f"serve {self.name}")
        self.scenes.append(scene)
        self.meanwhile()
        self._fail()
        return self.problems

    def rest(self) -> None:
        self.calls.append(f"rest {self.name}")
        self._fail()

    def _fail(self) -> None:
        if self.fails:
            raise Failed(self.fails)
        if self.breaks:
            raise KeyError("gw101")


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


def test_only_the_primary_serves_until_another_one_is(bench: Bench) -> None:
    assert bench.services.step() == LOOK_S
    bench.become_primary()
    assert bench.woken
    bench.services.step()
    bench.store.commit(Delete(paths.PRIMARY))
    bench.services.step()
    assert bench.calls == ["serve first", "serve second"], "while nobody is, it goes on"
    take(bench.world.cluster.connect(), "n2")
    bench.services.step()
    bench.services.step()
    assert bench.calls[2:] == ["rest second", "rest first"], "in the opposite order, and once"


def test_what_an_earlier_life_has_left_ends_where_another_is_primary(bench: Bench) -> None:
    take(bench.world.cluster.connect(), "n2")
    bench.services.step()
    bench.services.step()
    assert bench.calls == ["rest second", "rest first"]


def test_who_is_primary_again_after_a_restart_takes_up_what_is_there(bench: Bench) -> None:
    """The session of a daemon that was killed has the role for some seconds more."""
    killed = bench.world.cluster.connect()
    take(killed, "n1")
    bench.services.step()
    bench.world.cluster.expire(killed)
    bench.services.step()
    assert not bench.calls
    bench.become_primary()
    bench.services.step()
    assert bench.calls == ["serve first", "serve second"]


def test_what_cannot_be_ended_is_tried_again(bench: Bench) -> None:
    take(bench.world.cluster.connect(), "n2")
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


def test_what_is_served_goes_on_without_the_store_and_with_another_session(bench: Bench) -> None:
    bench.become_primary()
    bench.services.step()
    bench.world.cluster.suspend(bench.store)
    assert bench.services.step() == UNAVAILABLE_S
    bench.world.cluster.expire(bench.store)
    bench.world.cluster.resume(bench.store)
    bench.services.step()
    assert bench.calls == ["serve first", "serve second"]
    take(bench.world.cluster.connect(), "n2")
    bench.services.step()
    assert bench.calls[2:] == ["rest second", "rest first"]


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


def test_a_daemon_ends_though_the_store_does_not_say_who_else_there_is(bench: Bench) -> None:
    bench.world.cluster.suspend(bench.store)
    bench.services.close()
    assert not bench.calls


def add_coordinator(bench: Bench, name: str) -> None:
    stored = bench.store.get(paths.node(name))
    assert stored is not None
    spec = replace(loads(NodeSpec, stored.data), role=NodeRole.COORDINATOR)
    bench.store.commit(Put(stored.path, dumps(spec), stored.version))


def test_a_mistake_in_one_service_costs_only_what_that_one_does(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.become_primary()
    bench.first.breaks = bench.second.breaks = True
    add_coordinator(bench, "n2")
    bench.services.step()
    assert bench.calls == ["serve first", "serve second"]
    assert bench.published == [(NetworkProblem(0, "a bug in pvc: KeyError('gw101')"),) * 2]
    assert "Traceback" in caplog.text
    bench.services.close()
    assert bench.calls[2:] == ["rest second", "rest first"]


def test_a_node_that_cannot_be_read_may_serve(bench: Bench) -> None:
    """It may be of a newer pvc. And the daemon's end is not kept up by it."""
    bench.become_primary()
    bench.store.commit(Put(paths.node("n3"), b"{"))
    bench.services.step()
    assert bench.first.scenes[-1].nodes.keys() == {"n1", "n2"}
    bench.services.close()
    assert bench.calls == ["serve first", "serve second", "rest second", "rest first"]


def test_nothing_begins_anew_while_the_daemon_ends(bench: Bench) -> None:
    bench.become_primary()
    add_coordinator(bench, "n2")
    ending = threading.Thread(target=bench.services.close)

    def end() -> None:
        ending.start()
        eventually(lambda: bench.services.ending, within=10)

    bench.first.meanwhile = end
    bench.services.step()
    ending.join()
    bench.services.step()
    assert bench.calls == ["serve first", "rest second", "rest first"]
