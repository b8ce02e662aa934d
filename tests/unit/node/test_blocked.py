"""A node that Ceph listens to no more: how the primary proves it, and how the node itself takes it back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from pvc.cluster import domainxml, paths
from pvc.cluster.codec import dumps
from pvc.cluster.fencing import Isolate, Release, Shoot, Verify
from pvc.cluster.membership import Block, Evidence, FenceState
from pvc.cluster.node import Alive, DaemonState, NodeSpec, NodeStatus
from pvc.cluster.storage import Driver, PoolSpec
from pvc.cluster.store import Create, Delete, Op, Put, Store
from pvc.cluster.view import View
from pvc.cluster.vm import Owner
from pvc.errors import Conflict
from pvc.node.blocked import AGAIN_S, Blocked
from pvc.node.drivers.hypervisor import Domain, DomainState
from tests.fakes.blocklist import FakeBlocklist, FakeCeph, FakeOSD
from tests.fakes.power import Fault
from tests.fakes.store import MemoryCluster
from tests.unit.node.pictures import UUID, spec
from tests.unit.node.test_coordinator import Bench
from tests.unit.test_fencing import FILE, IN_CEPH, running_as

ADDRESS = "10.0.0.3"
ON_CEPH, ON_BOTH = IN_CEPH.format(more=""), IN_CEPH.format(more=FILE)
ON_FILE = ON_BOTH.replace('type="network"', 'type="file"').replace('protocol="rbd" name=', "file=")


def on_ceph(definition: str = ON_CEPH) -> Bench:
    """n3 is dead, its BMC is silent, and its VM is on Ceph."""
    bench = Bench()
    bench.power.machines["n3"].fault = Fault.SILENT
    store = bench.store
    node = View(store).node("n3")
    told = replace(node.status, ceph_addresses=(ADDRESS,))
    store.commit(Put(paths.node_status("n3"), dumps(told), node.status_version or 0))
    vm = View(store).vm(UUID)
    runs = running_as(definition, vm.status)
    store.commit(
        Put(paths.vm(UUID), dumps(replace(vm.spec, definition=definition))),
        Put(paths.vm_status(UUID), dumps(runs)),
    )
    bench.one.judge.carry_out(bench.until_duty())
    assert bench.fence().state is FenceState.FAILED
    return bench


def isolate(bench: Bench) -> None:
    (duty,) = [one for one in next_duties(bench) if isinstance(one, Isolate)]
    bench.one.judge.carry_out(duty)


def next_duties(bench: Bench) -> list[object]:
    bench.next_duty()
    return list(bench.hands["n1"].todo)


def block(store: Store) -> Block:
    return View(store).blocks()["n3"][0]


def test_no_bmc_and_vms_go_on_when_every_osd_knows() -> None:
    bench = on_ceph()
    slow = bench.ceph.osds[1] = FakeOSD(1, frozenset(), is_silent=True)
    isolate(bench)
    assert ADDRESS in bench.ceph.listed
    assert not block(bench.store).proves(1), "a write of it may be taken yet, where the map is old"
    slow.is_silent = False
    isolate(bench)
    assert not block(bench.store).proves(1), "it answers, and has an old map"
    bench.ceph.tell(slow)
    isolate(bench)
    assert block(bench.store).proves(1)
    (release,) = [one for one in next_duties(bench) if isinstance(one, Release)]
    bench.one.judge.carry_out(release)
    assert bench.owner is None
    assert bench.fence().state is FenceState.FAILED, "that is no receipt"


def test_all_addresses_of_a_node_are_listed() -> None:
    bench = on_ceph()
    isolate(bench)
    spec = View(bench.store).node("n3").spec
    assert bench.ceph.listed == {ADDRESS, spec.address, spec.storage_address}


def test_address_is_listed_as_ceph_writes_it() -> None:
    bench = on_ceph()
    node = View(bench.store).node("n3")
    told = replace(node.spec, storage_address="FD00::0005")
    bench.store.commit(Put(paths.node("n3"), dumps(told), node.spec_version))
    isolate(bench)
    assert block(bench.store).proves(1)
    assert "fd00::5" in bench.ceph.listed


def test_osd_that_is_down_need_not_know() -> None:
    """It learns of it before it serves again."""
    bench = on_ceph()
    bench.ceph.osds[1] = FakeOSD(1, frozenset(), is_silent=True)
    bench.ceph.down.add(1)
    isolate(bench)
    assert block(bench.store).proves(1)


def test_silent_osd_of_the_node_is_marked_down_once() -> None:
    """Ceph itself waits for 20 s or more."""
    bench = on_ceph()
    bench.ceph.osds[1] = FakeOSD(1, frozenset(), is_silent=True, host=ADDRESS)
    isolate(bench)
    assert bench.ceph.down == {1}
    bench.ceph.down.clear()
    isolate(bench)
    assert not bench.ceph.down, "it came up again, and stops when it is told so too often"
    assert not block(bench.store).proves(1)
    bench.ceph.down.add(1)
    isolate(bench)
    assert block(bench.store).proves(1)


def test_osds_of_others_are_not_marked_down() -> None:
    bench = on_ceph()
    bench.ceph.osds[1] = FakeOSD(1, frozenset(), is_silent=True, host="10.0.0.4")
    isolate(bench)
    assert not bench.ceph.down


@pytest.mark.parametrize("is_off", [True, False])
def test_ceph_is_told_of_osds_of_a_node_that_is_fenced(is_off: bool) -> None:
    bench = on_ceph()
    bench.ceph.osds[1] = FakeOSD(1, frozenset(), is_silent=True, host=ADDRESS)
    if is_off:
        bench.power.machines["n3"].is_on = False
        bench.power.machines["n3"].fault = Fault.NONE
    else:
        fence, version = bench.fences()["n3-1"]
        confirmed = replace(fence, confirmed=True, asked_by="me")
        bench.store.commit(Put(paths.fence("n3", 1), dumps(confirmed), version))
    (duty,) = [one for one in next_duties(bench) if isinstance(one, Shoot)]
    bench.one.judge.carry_out(duty)
    assert bench.fence().state is FenceState.FENCED
    assert bench.ceph.down == {1}


def test_ceph_that_is_away_keeps_no_node_from_being_fenced() -> None:
    bench = on_ceph()
    bench.ceph.is_reachable = False
    bench.power.machines["n3"].is_on = False
    bench.power.machines["n3"].fault = Fault.NONE
    (duty,) = [one for one in next_duties(bench) if isinstance(one, Shoot)]
    bench.one.judge.carry_out(duty)
    assert bench.fence().state is FenceState.FENCED


def test_others_must_know_that_an_osd_is_down() -> None:
    """It may go on with its node: they would carry out what it takes from the QEMU there."""
    bench = on_ceph()
    bench.ceph.osds[1] = FakeOSD(1, frozenset(), is_silent=True)
    isolate(bench)
    bench.ceph.down.add(1)
    bench.ceph.epoch += 1
    isolate(bench)
    assert not block(bench.store).proves(1)
    bench.ceph.tell(bench.ceph.osds[0])
    isolate(bench)
    assert block(bench.store).proves(1)
    assert block(bench.store).epoch == bench.ceph.epoch


def test_maps_that_change_all_the_time_hold_nothing_up() -> None:
    bench = on_ceph()
    slow = bench.ceph.osds[1] = FakeOSD(1, frozenset(), is_silent=True)
    isolate(bench)
    slow.is_silent = False
    bench.ceph.tell(slow)
    bench.ceph.epoch += 1
    isolate(bench)
    assert block(bench.store).proves(1)


@pytest.mark.parametrize("looks_at_once", [False, True])
def test_promise_of_the_watchdog_counts_on_when_it_is_proven(looks_at_once: bool) -> None:
    bench = on_ceph()
    node = View(bench.store).node("n3")
    promised = replace(node.status, quiet_after_s=40.0)
    bench.store.commit(Put(paths.node_status("n3"), dumps(promised), node.status_version or 0))
    (duty,) = [one for one in next_duties(bench) if isinstance(one, Isolate)]
    began = bench.now
    commit = bench.one.judge.role.commit

    def commits(*ops: Op) -> None:
        commit(*ops)
        bench.now += 1.0
        if looks_at_once:
            bench.one.step()

    bench.one.judge.role.commit = commits  # type: ignore[method-assign]
    bench.one.judge.carry_out(duty)
    assert block(bench.store).proves(1)
    while bench.fence().state is not FenceState.FENCED:
        for one in next_duties(bench):
            if isinstance(one, Shoot):
                bench.one.judge.carry_out(one)
    assert bench.fence().evidence is Evidence.WATCHDOG
    assert bench.now <= began + 40.0 + 3.0


def test_who_returns_meanwhile_is_not_shut_out() -> None:
    """Also unseen: its return is a new version of its status."""
    bench = on_ceph()
    (duty,) = [one for one in next_duties(bench) if isinstance(one, Isolate)]
    told = bench.store.get(paths.node_status("n3"))
    assert told is not None

    def returns() -> None:
        bench.store.commit(Put(paths.node_status("n3"), told.data, told.version))

    read = FakeBlocklist.epoch_of

    class Meanwhile(FakeBlocklist):
        def epoch_of(self, osd: int) -> int:
            returns()
            return read(self, osd)

    bench.one.judge.blocklist = Meanwhile(bench.ceph)
    with pytest.raises(Conflict):
        bench.one.judge.carry_out(duty)
    assert not block(bench.store).proves(1)


def test_who_was_primary_lists_nobody_any_more() -> None:
    bench = on_ceph()
    (duty,) = [one for one in next_duties(bench) if isinstance(one, Isolate)]
    bench.store.commit(Delete(paths.PRIMARY))
    bench.coordinator("n2").step()
    with pytest.raises(Conflict):
        bench.one.judge.carry_out(duty)
    assert not bench.ceph.listed


def test_somebody_takes_it_off_the_list_before_it_is_proven() -> None:
    bench = on_ceph()
    bench.ceph.osds[1] = FakeOSD(1, frozenset(), is_silent=True)
    isolate(bench)
    bench.ceph.osds[1].is_silent = False
    bench.ceph.change(frozenset())
    isolate(bench)
    assert not block(bench.store).proves(1)
    isolate(bench)
    assert block(bench.store).proves(1), "listed once more"


def test_somebody_takes_it_off_the_list_after_it_was_proven() -> None:
    bench = on_ceph()
    isolate(bench)
    bench.now += 30.0
    verify(bench)
    assert block(bench.store).proves(1)
    bench.ceph.change(frozenset())
    bench.now += 30.0
    bench.ceph.is_reachable = False
    verify(bench)
    assert block(bench.store).proves(1), "nobody knows"
    bench.ceph.is_reachable = True
    bench.now += 30.0
    verify(bench)
    assert not block(bench.store).proves(1)
    isolate(bench)
    assert block(bench.store).proves(1), "listed once more"


def verify(bench: Bench) -> None:
    (duty,) = [one for one in next_duties(bench) if isinstance(one, Verify)]
    bench.one.judge.carry_out(duty)


def test_ceph_that_does_not_answer_is_no_evidence_and_the_bmc_is_asked_on() -> None:
    bench = on_ceph()
    bench.ceph.is_reachable = False
    isolate(bench)
    bench.power.machines["n3"].is_on = False
    bench.power.machines["n3"].fault = Fault.NONE
    for duty in next_duties(bench):
        bench.one.judge.carry_out(duty)  # type: ignore[arg-type]
    assert bench.fence().state is FenceState.FENCED


# The node itself


class Here:
    """n3, in its second life."""

    def __init__(self, *, definition: str = ON_CEPH) -> None:
        self.cluster = MemoryCluster()
        self.store = self.cluster.connect()
        self.store.commit(*(Create(path) for path in paths.LAYOUT))
        pool = PoolSpec("vms", "1", Driver.RBD, ceph_pool="vms")
        self.store.commit(
            Create(paths.pool("vms"), dumps(pool)),
            Create(paths.node("n3"), dumps(NodeSpec("n3", "10.0.1.3", "10.0.1.3"))),
            Create(paths.node_status("n3"), dumps(NodeStatus(2, DaemonState.RUN))),
            Create(paths.alive("n3"), dumps(Alive(2))),
            Create(paths.vm(UUID), dumps(spec(definition=definition))),
        )
        self.ceph = FakeCeph()
        self.domains: dict[str, Domain] = {}
        self.is_idle = self.is_ours = True
        self.woken = 0
        self.ended: list[str] = []
        self.blocked = Blocked(
            Owner("n3", 2),
            self.store,
            lambda: self.domains,
            FakeBlocklist(self.ceph, ADDRESS),
            publish=self.publish,
            is_idle=lambda: self.is_idle,
            is_ours=lambda domain: self.is_ours,
            end=lambda domain: self.ended.append(domain.uuid),
            wake=self.wake,
        )

    def wake(self) -> None:
        self.woken += 1

    def publish(self, addresses: Iterable[str]) -> None:
        stored = self.store.get(paths.node_status("n3"))
        assert stored is not None
        told = View(self.store).decode(NodeStatus, stored)
        known = tuple(sorted({*told.ceph_addresses, *addresses}))
        self.store.commit(Put(stored.path, dumps(replace(told, ceph_addresses=known)), stored.version))

    def listed(self, block: Block) -> None:
        self.store.commit(Create(paths.block("n3"), dumps(block)))
        self.ceph.change(frozenset({ADDRESS}))

    def runs(self, digest: str) -> None:
        self.domains[UUID] = Domain(UUID, "web1", DomainState.RUNNING, "booted", False, digest, 512, 1)

    @property
    def block(self) -> Block:
        return block(self.store)


PROVEN = Block("n3", 1, (ADDRESS,), epoch=2)


def test_vms_wait_until_the_node_has_said_by_which_addresses_it_is_known() -> None:
    here = Here()
    assert here.blocked.problem
    here.blocked.step()
    assert here.blocked.problem == ""
    assert View(here.store).node("n3").status.ceph_addresses == (ADDRESS,)


def test_new_boot_takes_itself_off_the_list() -> None:
    here = Here()
    here.listed(PROVEN)
    here.blocked.step()
    assert (here.ceph.listed, here.blocked.problem, here.block.lifted) == (frozenset(), "", True)


def test_all_that_was_listed_comes_off_the_list() -> None:
    """Found in the lab: also what it was believed to have, and an address that it has no more."""
    here = Here()
    every = (ADDRESS, "10.0.1.3", "10.0.2.3")
    here.store.commit(Create(paths.block("n3"), dumps(replace(PROVEN, addresses=every))))
    here.ceph.change(frozenset({*every, "10.0.0.4"}))
    here.blocked.step()
    assert here.ceph.listed == {"10.0.0.4"}, "of another node"


def test_address_that_it_writes_otherwise_than_ceph_comes_off_the_list() -> None:
    here = Here()
    node = View(here.store).node("n3")
    told = replace(node.spec, storage_address="FD00::0005")
    here.store.commit(Put(paths.node("n3"), dumps(told), node.spec_version))
    here.store.commit(Create(paths.block("n3"), dumps(replace(PROVEN, addresses=()))))
    here.ceph.change(frozenset({"fd00::5"}))
    here.blocked.step()
    assert not here.ceph.listed


@pytest.mark.parametrize("definition", [ON_CEPH, ON_BOTH])
def test_not_before_all_that_used_ceph_has_ended(definition: str) -> None:
    """It could write again else, what its new owner has overwritten."""
    here = Here(definition=definition)
    here.listed(PROVEN)
    here.runs(domainxml.digest(definition))
    assert here.blocked.step() == AGAIN_S
    assert (set(here.ceph.listed), here.ended) == ({ADDRESS}, [UUID])
    assert "fenced" in here.blocked.problem
    here.domains.clear()
    here.blocked.step()
    assert not here.ceph.listed


def test_vm_that_does_not_use_ceph_runs_on() -> None:
    here = Here(definition=ON_FILE)
    here.listed(PROVEN)
    here.runs(domainxml.digest(ON_FILE))
    here.blocked.step()
    assert (here.ended, here.ceph.listed) == ([], frozenset())


@pytest.mark.parametrize("unknown", [False, True])
def test_vm_that_runs_otherwise_than_defined_may_use_ceph(unknown: bool) -> None:
    here = Here(definition=ON_FILE)
    here.listed(PROVEN)
    here.runs("of another definition")
    if unknown:
        here.store.commit(Delete(paths.vm(UUID)))
    here.blocked.step()
    assert (here.ended, set(here.ceph.listed)) == ([UUID], {ADDRESS})


def test_vm_of_the_cluster_without_metadata_may_use_ceph() -> None:
    """It was released, and somebody has removed what says that it is ours."""
    here = Here()
    here.listed(PROVEN)
    here.runs("")
    here.is_ours = False
    here.blocked.step()
    assert (here.ended, set(here.ceph.listed)) == ([UUID], {ADDRESS})


def test_vm_of_somebody_else_runs_on() -> None:
    here = Here()
    here.listed(PROVEN)
    here.runs("")
    here.is_ours = False
    here.store.commit(Delete(paths.vm(UUID)))
    here.blocked.step()
    assert (here.ended, here.ceph.listed) == ([], frozenset())


def test_it_looks_as_soon_as_the_node_is_back() -> None:
    here = Here()
    here.cluster.expire(here.store)
    here.woken = 0
    here.cluster.resume(here.store)
    assert here.woken


@pytest.mark.parametrize("is_taken", [False, True])
def test_late_order_of_an_address_that_it_had(is_taken: bool) -> None:
    here = Here()
    before = "10.0.9.9"
    lifted = replace(PROVEN, addresses=(ADDRESS, before), lifted=True)
    here.store.commit(
        Create(paths.block("n3"), dumps(lifted)),
        Create(paths.node("n2"), dumps(NodeSpec("n2", "10.0.1.2", before if is_taken else "10.0.1.2"))),
        Create(paths.node_status("n2"), dumps(NodeStatus(1, DaemonState.RUN))),
    )
    here.ceph.change(frozenset({before}))
    here.blocked.step()
    assert here.ceph.listed == ({before} if is_taken else set())


def test_not_while_something_may_begin() -> None:
    here = Here()
    here.listed(PROVEN)
    here.is_idle = False
    assert here.blocked.step() == AGAIN_S
    assert here.ceph.listed


def test_starts_are_refused_before_it_looks_whether_nothing_runs() -> None:
    here = Here()
    here.listed(PROVEN)
    here.blocked.step()
    seen: list[str] = []

    def is_idle() -> bool:
        seen.append(here.blocked.problem)
        return True

    here.blocked.is_idle = is_idle
    here.ceph.change(frozenset({ADDRESS}))
    here.blocked.step()
    assert "fenced" in seen[0]


def test_late_order_of_a_primary_that_froze_is_taken_back() -> None:
    """It had announced it, and stood still before it told Ceph."""
    here = Here()
    here.store.commit(Create(paths.block("n3"), dumps(replace(PROVEN, epoch=0, incarnation=2))))
    here.blocked.step()
    assert here.block.lifted
    here.ceph.change(frozenset({ADDRESS}))
    here.blocked.step()
    assert not here.ceph.listed


def test_entry_of_somebody_else_is_left_alone_and_told() -> None:
    here = Here()
    here.ceph.change(frozenset({ADDRESS}))
    here.blocked.step()
    assert here.ceph.listed == {ADDRESS}
    assert "somebody" in here.blocked.problem


def test_ceph_that_is_away_is_asked_again() -> None:
    here = Here()
    here.ceph.is_reachable = False
    assert here.blocked.step() == AGAIN_S
    assert here.blocked.problem


def test_without_a_pool_in_ceph_nothing_is_asked() -> None:
    here = Here()
    here.store.commit(Delete(paths.pool("vms")))
    here.ceph.is_reachable = False
    here.blocked.step()
    assert here.blocked.problem == ""
