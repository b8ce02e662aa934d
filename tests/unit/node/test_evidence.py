"""The promise of a node as evidence: counted from a read in the right order, without interruption."""

from __future__ import annotations

from dataclasses import replace

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.fencing import Shoot
from pvc.cluster.membership import Evidence, FenceState
from pvc.cluster.node import Alive, DaemonState, NodeStatus
from pvc.cluster.store import Create, Delete, Put
from pvc.cluster.view import View
from tests.fakes.power import Fault
from tests.unit.node.test_coordinator import Bench

Q = 29.0


def promising(**told: object) -> Bench:
    """n3 has promised, and its BMC is dead."""
    bench = Bench()
    bench.power.machines["n3"].fault = Fault.SILENT
    write(bench, quiet_after_s=Q, **told)
    return bench


def write(bench: Bench, **told: object) -> None:
    node = View(bench.store).node("n3")
    status = replace(node.status, **told)  # type: ignore[arg-type]
    bench.store.commit(Put(paths.node_status("n3"), dumps(status), node.status_version or 0))


def shoot(bench: Bench) -> FenceState:
    """Whatever is due, until nothing is."""
    bench.hands["n1"].todo.clear()
    bench.cluster.deliver()
    bench.one.step()
    for duty in list(bench.hands["n1"].todo):
        if isinstance(duty, Shoot):
            bench.one.judge.carry_out(duty)
    bench.cluster.deliver()
    fences = View(bench.store).fences()
    return fences["n3-1"][0].state if "n3-1" in fences else FenceState.SUSPECT


def die(bench: Bench) -> None:
    """The count of the judge begins."""
    bench.one.step()
    bench.now += 10
    bench.store.commit(Delete(paths.alive("n3")))
    assert shoot(bench) is FenceState.SUSPECT


def test_promise_counts_when_its_time_is_over_and_not_before() -> None:
    bench = promising()
    die(bench)
    bench.now += Q - 0.1
    assert shoot(bench) is FenceState.FAILED
    assert "its watchdog ends it within" in bench.fence().reason
    bench.now += 0.1
    assert shoot(bench) is FenceState.FENCED
    assert bench.fence().evidence is Evidence.WATCHDOG
    assert "off" not in bench.power.machines["n3"].orders


def test_judge_looks_again_just_when_the_time_is_over() -> None:
    """However long the pause after its last try is."""
    bench = promising()
    die(bench)
    for _ in range(8):
        bench.now += 3
        shoot(bench)
    bench.now = 10 + Q
    assert shoot(bench) is FenceState.FENCED


def test_who_has_promised_nothing_is_never_quiet() -> None:
    bench = promising()
    write(bench, quiet_after_s=0.0)
    die(bench)
    bench.now += 1000
    assert shoot(bench) is FenceState.FAILED
    assert "promised no watchdog" in bench.fence().reason


def test_judge_whose_connection_broke_counts_anew() -> None:
    """Meanwhile the whole store may have been out, and leases have grown."""
    bench = promising()
    die(bench)
    bench.now += Q - 1
    bench.cluster.suspend(bench.one.store)  # type: ignore[arg-type]
    bench.now += 1
    bench.cluster.resume(bench.one.store)  # type: ignore[arg-type]
    shoot(bench)
    bench.now += Q - 1
    assert shoot(bench) is FenceState.FAILED
    bench.now += 1
    assert shoot(bench) is FenceState.FENCED


def test_node_that_was_back_for_a_moment_is_counted_anew() -> None:
    """The judge never saw its session; its status tells that there was one."""
    bench = promising()
    die(bench)
    bench.now += Q - 1
    bench.store.commit(Create(paths.alive("n3"), dumps(Alive(1))))
    write(bench, watchdog="armed again")
    bench.store.commit(Delete(paths.alive("n3")))
    bench.now += 1
    assert shoot(bench) is FenceState.FAILED
    bench.now += Q
    assert shoot(bench) is FenceState.FENCED


def test_node_that_returns_while_the_receipt_is_written_gets_none() -> None:
    bench = promising()
    die(bench)
    bench.now += Q
    bench.hands["n1"].todo.clear()
    bench.cluster.deliver()
    bench.one.step()
    (duty,) = bench.hands["n1"].todo
    quiet = bench.one.judge._by_promise

    def returns(*words: object) -> Evidence:
        found = quiet(*words)  # type: ignore[arg-type]
        write(bench, watchdog="joined")
        return found

    bench.one.judge.kinds = (returns,)
    bench.one.judge.carry_out(duty)
    assert bench.fence().state is not FenceState.FENCED


def test_node_that_left_and_had_ended_its_vms_needs_no_bmc() -> None:
    bench = promising()
    write(bench, state=DaemonState.STOP, nothing_runs=True, quiet_after_s=0.0)
    die(bench)
    bench.now += 5
    assert shoot(bench) is FenceState.FENCED
    assert bench.fence().evidence is Evidence.STOPPED
    assert bench.power.machines["n3"].orders == []


def test_node_that_left_is_looked_at_and_never_switched() -> None:
    bench = Bench()
    write(bench, state=DaemonState.STOP)
    die(bench)
    for _ in range(4):
        bench.now += 31
        assert shoot(bench) is FenceState.SUSPECT
    assert set(bench.power.machines["n3"].orders) == {"state"}
    assert len(bench.power.machines["n3"].orders) == 4
    bench.power.machines["n3"].is_on = False
    bench.now += 31
    assert shoot(bench) is FenceState.FENCED
    assert (bench.fence().evidence, bench.fence().stopped) == (Evidence.POWER_OFF, True)
    for _ in range(5):
        bench.now += 1
        bench.hands["n1"].todo.clear()
        bench.one.step()
        for duty in list(bench.hands["n1"].todo):
            bench.one.judge.carry_out(duty)
    assert bench.fence().finished
    assert bench.owner is None
    assert not bench.power.machines["n3"].is_on, "nobody switches it on"


def test_node_that_left_and_owns_nothing_is_left_alone() -> None:
    bench = Bench()
    write(bench, state=DaemonState.STOP)
    stored = bench.store.get(
        paths.vm_status(View(bench.store).vm(next(iter(View(bench.store).vms()))).spec.uuid)
    )
    assert stored is not None
    vm = next(iter(View(bench.store).vms().values()))
    bench.store.commit(Put(stored.path, dumps(replace(vm.status, owner=None)), stored.version))
    die(bench)
    bench.now += 100
    assert shoot(bench) is FenceState.SUSPECT
    assert bench.power.machines["n3"].orders == []


def test_new_status_promises_nothing() -> None:
    assert NodeStatus().quiet_after_s == 0
