"""Snapshots of VMs: what is kept, that nothing is kept by half, and that guests go on whatever happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pvc.cluster import domainxml, paths
from pvc.cluster.snapshots import SnapshotDisk, VMSnapshot, disks_of
from pvc.cluster.storage import Driver, PoolSpec
from pvc.cluster.tasks import hand_over_ops
from pvc.cluster.view import View
from pvc.errors import Conflict, Invalid
from pvc.node.drivers import DriverError
from pvc.node.drivers.hypervisor import DomainState
from tests.fakes.hypervisor import FakeHypervisor
from tests.unit.commands.storing import Storing, runs, stops, with_disks

DAILY = {"vm": "web1", "snapshot": "daily"}
GIB = 1024**3


def two() -> Storing:
    made = with_disks("root", "data")
    made.pool.kept["root"].content, made.pool.kept["data"].content = b"root 1", b"data 1"
    return made


def uuid_of(made: Storing) -> str:
    return made.world.spec("web1").uuid


def on_volumes(made: Storing) -> dict[str, list[str]]:
    return {name: [one.name for one in made.pool.snapshots(name)] for name in made.pool.kept}


def document(made: Storing, name: str = "daily") -> VMSnapshot | None:
    stored = made.world.store.get(paths.vm_snapshot(uuid_of(made), name))
    return View(made.world.store).decode(VMSnapshot, stored) if stored else None


def leaves_nothing(made: Storing) -> None:
    assert on_volumes(made) == {name: [] for name in made.pool.kept}
    assert made.world.spec("web1").snapshots == ()
    assert made.world.store.children(paths.SNAPSHOTS) == ()
    assert made.world.store.get(paths.vm_claim(uuid_of(made))) is None
    assert made.world.store.children(paths.pool_claims("vms")) == ()
    assert not list(Path(made.notes.name).rglob("still-*"))


def state(host: FakeHypervisor, made: Storing) -> DomainState:
    return host.domains()[uuid_of(made)].state


def refuse(host: FakeHypervisor, call: str) -> None:
    host.refuses[call] = "it does not want to"


# Taking one


def test_all_disks_and_the_definition_of_a_stopped_vm() -> None:
    made = two()
    assert made.done("vm.snapshot-create", **DAILY)["result"] == {
        "vm": "web1",
        "snapshot": "daily",
        "quiesced": "stopped",
    }
    kept = f"vm.{uuid_of(made)[:8]}.daily"
    assert on_volumes(made) == {"root": [kept], "data": [kept]}
    found = document(made)
    assert found is not None
    assert found.definition == made.world.spec("web1").definition
    assert found.disks == (
        SnapshotDisk("vda", "vms", "root", 10 * GIB),
        SnapshotDisk("vdb", "vms", "data", 10 * GIB),
    )
    (row,) = made.call("vm.snapshot-list", vm="web1")
    assert (row["name"], row["size_bytes"], row["quiesced"]) == ("daily", 20 * GIB, "stopped")
    assert row["disks"] == ["vms/root", "vms/data"]
    assert made.call("vm.list")[0]["snapshots"] == 1
    assert made.call("vm.info", vm="web1")["snapshots"] == ["daily"]


@pytest.mark.parametrize("has_agent", [True, False], ids=["agent", "no-agent"])
def test_the_guest_stands_still_for_that_moment_and_no_longer(has_agent: bool) -> None:
    made = two()
    host = runs(made)
    guest = made.hosts.guest(uuid_of(made))
    guest.has_agent = has_agent
    seen: list[tuple[bool, DomainState]] = []
    inside = made.hosts.when_snapshot

    def look(file: str, name: str, is_there: bool) -> None:
        seen.append((guest.is_frozen, state(host, made)))
        inside(file, name, is_there)

    made.hosts.when_snapshot = look
    found = made.done("vm.snapshot-create", **DAILY)
    still = (True, DomainState.RUNNING) if has_agent else (False, DomainState.PAUSED)
    assert (found["reason"], seen) == ("", [still, still])
    assert found["result"]["quiesced"] == ("agent" if has_agent else "paused")
    assert (guest.is_frozen, state(host, made)) == (False, DomainState.RUNNING)
    calls = [call for call, _ in host.calls if call == "add_snapshots"]
    assert len(calls) == 1, "all disks in one go"


def test_a_pool_with_snapshots_of_its_own_takes_them_while_the_guest_stands_still() -> None:
    """As Ceph does, which would keep one disk after the other."""
    made = two()
    host = runs(made)
    add, seen = made.pool.add_snapshot, list[DomainState]()

    def take(name: str, snapshot: str) -> None:
        seen.append(state(host, made))
        made.pool.open.clear()
        add(name, snapshot)

    made.pool.add_snapshot = take  # type: ignore[method-assign]
    made.pool.name_in_qemu = lambda snapshot: ""  # type: ignore[method-assign]
    assert made.done("vm.snapshot-create", **DAILY)["reason"] == ""
    assert seen == [DomainState.PAUSED, DomainState.PAUSED]
    assert state(host, made) is DomainState.RUNNING
    assert "add_snapshots" not in [call for call, _ in host.calls]
    assert made.done("vm.snapshot-remove", **DAILY)["reason"] == ""
    leaves_nothing(made)


def test_a_guest_that_was_paused_before_stays_so() -> None:
    made = two()
    host = runs(made)
    host.suspend(uuid_of(made))
    assert made.done("vm.snapshot-create", **DAILY)["result"]["quiesced"] == "paused"
    assert state(host, made) is DomainState.PAUSED


def test_a_name_is_found_when_none_is_given() -> None:
    made = two()
    found = made.done("vm.snapshot-create", vm="web1")
    (name,) = made.world.spec("web1").snapshots
    assert found["result"]["snapshot"] == name
    assert (len(name), name.isdigit()) == (14, True)


def test_one_disk_that_cannot_be_kept_leaves_none_kept() -> None:
    made = two()
    made.pool.open.add("data")
    found = made.done("vm.snapshot-create", **DAILY)
    assert (found["state"], found["reason"]) == ("failed", "volume data is in use")
    leaves_nothing(made)


@pytest.mark.parametrize("call", ["add_snapshots", "suspend"])
def test_what_qemu_refuses_leaves_nothing_and_the_guest_goes_on(call: str) -> None:
    made = two()
    host = runs(made)
    refuse(host, call)
    assert made.done("vm.snapshot-create", **DAILY)["reason"] == "it does not want to"
    assert state(host, made) is DomainState.RUNNING
    leaves_nothing(made)


def test_a_definition_that_changes_meanwhile_is_not_kept_beside_other_disks() -> None:
    made = two()
    host = runs(made)
    inside = made.hosts.when_snapshot

    def change(file: str, name: str, is_there: bool) -> None:
        inside(file, name, is_there)
        spec = made.world.spec("web1")
        changed = domainxml.set_memory(spec.definition, spec.memory_mib + 1)
        made.world.edit(paths.vm(spec.uuid), definition=changed, memory_mib=spec.memory_mib + 1)

    made.hosts.when_snapshot = change
    refuse_removal = made.done("vm.snapshot-create", **DAILY)
    made.hosts.when_snapshot = inside
    assert refuse_removal["reason"] == "web1 was changed meanwhile"
    assert state(host, made) is DomainState.RUNNING
    assert document(made) is None


def test_what_its_node_writes_meanwhile_does_no_harm() -> None:
    made = two()
    runs(made)
    inside = made.hosts.when_snapshot

    def change(file: str, name: str, is_there: bool) -> None:
        inside(file, name, is_there)
        made.world.status_is("web1", reason=f"after {file}")

    made.hosts.when_snapshot = change
    assert made.done("vm.snapshot-create", **DAILY)["reason"] == ""
    assert made.world.vm("web1").status.reason == "after /srv/vms/data/disk.qcow2"


def test_cancelled_before_it_began_it_leaves_nothing() -> None:
    made = two()
    begun = made.call("vm.snapshot-create", **DAILY)
    made.call("task.cancel", task=begun["name"])
    made.work()
    assert made.call("task.info", task=begun["name"])["state"] == "cancelled"
    leaves_nothing(made)


# A daemon that dies


class Killed(BaseException):
    """The daemon: nothing that it does after that reaches the world."""


@pytest.mark.parametrize("has_agent", [True, False], ids=["agent", "no-agent"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_killed_in_the_middle_the_guest_goes_on_when_the_daemon_is_back(after: int, has_agent: bool) -> None:
    made = two()
    host = runs(made)
    made.hosts.guest(uuid_of(made)).has_agent = has_agent
    inside = made.hosts.when_snapshot
    taken: list[str] = []

    def die(file: str, name: str, is_there: bool) -> None:
        if len(taken) < after:
            taken.append(file)
            inside(file, name, is_there)
        if len(taken) == after:
            host.kills = Killed()
        if len(taken) == after < 2:
            raise Killed

    made.hosts.when_snapshot = die
    begun = made.call("vm.snapshot-create", **DAILY)
    with pytest.raises(Killed):
        made.work()
    made.hosts.when_snapshot, host.kills = inside, None
    assert made.hosts.guest(uuid_of(made)).is_frozen or state(host, made) is DomainState.PAUSED
    made.restart("n1")
    made.work()
    assert made.call("task.info", task=begun["name"])["state"] == "lost"
    assert (made.hosts.guest(uuid_of(made)).is_frozen, state(host, made)) == (False, DomainState.RUNNING)
    leaves_nothing(made)


def test_its_node_dies_in_the_middle_and_where_the_vm_goes_nothing_is_left_of_it() -> None:
    made = two()
    host = runs(made)
    inside = made.hosts.when_snapshot

    def die(file: str, name: str, is_there: bool) -> None:
        inside(file, name, is_there)
        host.kills = Killed()
        raise Killed

    made.hosts.when_snapshot = die
    begun = made.call("vm.snapshot-create", **DAILY)
    with pytest.raises(Killed):
        made.work()
    made.hosts.when_snapshot, host.kills = inside, None
    assert any(on_volumes(made).values())
    host.destroy(uuid_of(made))
    made.pool.open.clear()
    del made.tasks["n1"]
    made.world.ended("web1")
    task = View(made.world.store).task(begun["name"])
    made.world.store.commit(
        *hand_over_ops(task.spec, task.spec_version, task.status, task.status_version, "n2")
    )
    made.work()
    found = made.call("task.info", task=begun["name"])
    assert (found["state"], found["node"]) == ("lost", "n2")
    assert found["reason"] == "the daemon of n1 ended while it was at it"
    for note in Path(made.notes.name).rglob("still-*"):
        note.unlink()  # of a guest that is gone
    leaves_nothing(made)


def test_who_has_lost_a_snapshot_to_another_node_writes_none_down() -> None:
    made = two()
    host = runs(made)
    inside = made.hosts.when_snapshot

    def lose(file: str, name: str, is_there: bool) -> None:
        inside(file, name, is_there)
        task = View(made.world.store).task(begun["name"])
        if is_there and task.spec.node == "n1":
            made.world.store.commit(
                *hand_over_ops(task.spec, task.spec_version, task.status, task.status_version, "n2")
            )

    made.hosts.when_snapshot = lose
    begun = made.call("vm.snapshot-create", **DAILY)
    with pytest.raises(Conflict, match="handed over to n2"):
        made.work()
    made.hosts.when_snapshot = inside
    assert document(made) is None
    assert any(on_volumes(made).values()), "they are for n2 to take away"
    assert state(host, made) is DomainState.RUNNING


def test_what_is_written_down_is_kept_whatever_becomes_of_the_task() -> None:
    made = two()
    made.done("vm.snapshot-create", **DAILY)
    task = View(made.world.store).tasks()
    (spec,) = [one.spec for one in task.values() if one.spec.kind == "vm.snapshot-create"]
    made.tasks["n1"].works["vm.snapshot-create"].undo(spec)
    assert document(made) is not None
    assert all(on_volumes(made).values())


def test_an_agent_that_hangs_is_told_until_it_answers_and_the_vm_is_free() -> None:
    made = two()
    host = runs(made)
    guest = made.hosts.guest(uuid_of(made))
    guest.has_agent = True
    refuse(host, "thaw")
    found = made.done("vm.snapshot-create", **DAILY)
    assert (found["state"], found["settled"], guest.is_frozen) == ("failed", True, True)
    assert "its guest does not go on, and is told again: it does not want to" in found["reason"]
    assert made.world.store.get(paths.vm_claim(uuid_of(made))) is None
    made.stillness["n1"].step()
    assert guest.is_frozen
    assert "its guest does not go on" in made.done("vm.snapshot-create", **DAILY)["reason"]
    host.refuses.clear()
    made.stillness["n1"].step()
    assert not guest.is_frozen
    leaves_nothing(made)


@pytest.mark.parametrize("answers", [True, False])
def test_an_agent_that_is_slow_to_freeze_is_told_to_thaw_before_anything_else(answers: bool) -> None:
    """What it was asked for may still come true."""
    made = two()
    host = runs(made)
    guest = made.hosts.guest(uuid_of(made))
    guest.has_agent = guest.is_slow = True
    if not answers:
        refuse(host, "thaw")
    found = made.done("vm.snapshot-create", **DAILY)
    assert [call for call, _ in host.calls if call in ("freeze", "thaw", "suspend")][:2] == ["freeze", "thaw"]
    if answers:
        assert (found["reason"], found["result"]["quiesced"]) == ("", "paused")
        assert (guest.is_frozen, state(host, made)) == (False, DomainState.RUNNING)
    else:
        assert "its guest does not go on, and is told again" in found["reason"]
        guest.is_frozen = True
        host.refuses.clear()
        made.stillness["n1"].step()
        assert not guest.is_frozen
        leaves_nothing(made)


def test_no_guest_stands_still_of_which_no_note_is_taken() -> None:
    made = two()
    host = runs(made)
    Path(made.notes.name, "n1").write_text("no directory")
    assert "takes no note of who stands still" in made.done("vm.snapshot-create", **DAILY)["reason"]
    assert not [call for call, _ in host.calls if call in ("freeze", "suspend")]
    Path(made.notes.name, "n1").unlink()
    leaves_nothing(made)


def test_what_somebody_else_holds_still_stays_so() -> None:
    made = two()
    host = runs(made)
    guest = made.hosts.guest(uuid_of(made))
    guest.has_agent = guest.is_frozen = True
    assert made.done("vm.snapshot-create", **DAILY)["result"]["quiesced"] == "paused"
    assert (guest.is_frozen, state(host, made)) == (True, DomainState.RUNNING)


def test_a_guest_goes_on_also_where_nothing_is_known_of_the_task() -> None:
    made = two()
    host = runs(made)
    host.suspend(uuid_of(made))
    note = Path(made.notes.name, "n1", f"still-{uuid_of(made)}")
    note.parent.mkdir()
    note.write_text(f"paused {host.domains()[uuid_of(made)].run}")
    note.with_name("still-of-one-that-ended").write_text("agent 1")
    note.with_name("still-of-one-that-had-not-begun").write_text("")
    made.stillness["n1"].step()
    assert state(host, made) is DomainState.RUNNING
    leaves_nothing(made)


def note_of(made: Storing, vm: str = "web1") -> Path:
    return Path(made.notes.name, "n1", f"still-{made.world.spec(vm).uuid}")


def test_what_stands_still_is_no_more_than_one_run_of_the_guest() -> None:
    """What was frozen has gone with it, and nothing needs to answer for it."""
    made = two()
    host = runs(made)
    guest = made.hosts.guest(uuid_of(made))
    guest.has_agent = True
    refuse(host, "thaw")
    made.done("vm.snapshot-create", **DAILY)
    stillness = made.stillness["n1"]
    assert (note_of(made).exists(), stillness.lasts(uuid_of(made))) == (True, True)
    stops(made)
    runs(made)
    guest.has_agent = guest.is_frozen = False
    assert not stillness.lasts(uuid_of(made))
    found = made.done("vm.snapshot-create", **DAILY)
    assert (found["reason"], found["result"]["quiesced"]) == ("", "paused")
    assert (state(host, made), note_of(made).exists()) == (DomainState.RUNNING, False)


def test_a_later_run_that_somebody_has_paused_is_not_resumed() -> None:
    made = two()
    host = runs(made)
    refuse(host, "resume")
    assert "its guest does not go on" in made.done("vm.snapshot-create", **DAILY)["reason"]
    host.refuses.clear()
    stops(made)
    runs(made)
    host.suspend(uuid_of(made))
    made.stillness["n1"].step()
    assert (state(host, made), note_of(made).exists()) == (DomainState.PAUSED, False)


def test_a_guest_that_waits_for_its_agent_delays_no_other() -> None:
    made = two()
    made.world.call("vm.create", name="web0", target="n1")
    host = runs(made)
    runs(made, "web0")
    frozen, paused = sorted(made.world.spec(vm).uuid for vm in ("web0", "web1"))
    made.hosts.guest(frozen).has_agent = True
    host.suspend(paused)
    found = host.domains()
    note_of(made).parent.mkdir()
    for uuid, how in ((frozen, "agent"), (paused, "paused")):
        note_of(made).with_name(f"still-{uuid}").write_text(f"{how} {found[uuid].run}")
    made.stillness["n1"].step()
    told = [call for call in host.calls if call[0] in ("resume", "thaw")]
    assert told == [("resume", paused), ("thaw", frozen)]


def test_one_that_still_stands_still_goes_on_before_the_next_snapshot_and_not_within() -> None:
    made = two()
    host = runs(made)
    refuse(host, "resume")
    made.done("vm.snapshot-create", **DAILY)
    host.refuses.clear()
    assert state(host, made) is DomainState.PAUSED
    seen: list[DomainState] = []
    inside = made.hosts.when_snapshot

    def look(file: str, name: str, is_there: bool) -> None:
        if is_there:
            made.stillness["n1"].step()
            seen.append(state(host, made))
        inside(file, name, is_there)

    made.hosts.when_snapshot = look
    assert made.done("vm.snapshot-create", **DAILY)["reason"] == ""
    assert seen == [DomainState.PAUSED, DomainState.PAUSED]
    assert state(host, made) is DomainState.RUNNING
    assert not note_of(made).exists()


# Not while something else goes on


def test_nothing_else_is_done_to_the_vm_meanwhile() -> None:
    made = two()
    begun = made.call("vm.snapshot-create", **DAILY)
    attempts: list[tuple[str, dict[str, Any]]] = [
        ("vm.start", {}),
        ("vm.move", {"target": "n2"}),
        ("vm.migrate", {}),
        ("vm.memory-set", {"memory": "2G"}),
        ("vm.rename", {"new": "web2"}),
        ("vm.undefine", {}),
        ("vm.snapshot-create", {"snapshot": "other"}),
    ]
    for operation, given in attempts:
        with pytest.raises(Conflict, match=f"task {begun['name']} is at web1"):
            made.call(operation, vm="web1", **given)
    with pytest.raises(Conflict, match="root is being changed by task"):
        made.call("storage.volume-resize", pool="vms", volume="root", size="20G")
    made.work()
    made.call("vm.start", vm="web1")


def test_one_that_moves_is_left_alone() -> None:
    made = two()
    runs(made)
    made.call("vm.migrate", vm="web1", target="n2")
    with pytest.raises(Conflict, match="web1 is being moved"):
        made.call("vm.snapshot-create", **DAILY)


def test_one_that_is_gone_from_its_node_is_left_alone() -> None:
    made = two()
    runs(made)
    made.call("vm.snapshot-create", **DAILY)
    made.world.runs("web1", "n2")
    made.work()
    (task,) = [one for one in made.call("task.list") if one["about"].startswith("taking")]
    assert task["reason"] == "web1 does not run on n1 any more"


# Which disks


def definition(*disks: domainxml.NewDisk) -> str:
    return domainxml.create(
        "web1", "6b29fc40-ca47-1067-b31d-00dd010662da", memory_mib=64, vcpus=1, disks=disks
    )


POOLS = {
    "vms": PoolSpec("vms", "id", path="/srv/vms"),
    "fast": PoolSpec("fast", "id2", driver=Driver.RBD, ceph_pool="ceph-fast"),
}


def test_a_disk_in_no_pool_is_named() -> None:
    xml = definition(domainxml.NewDisk("/srv/vms/a/disk.qcow2"), domainxml.NewDisk("/srv/other.qcow2"))
    with pytest.raises(Conflict, match=r"disk vdb of web1, /srv/other\.qcow2, is in no pool"):
        disks_of("web1", xml, POOLS, ["n1"])


def test_a_raw_disk_in_a_directory_is_named() -> None:
    xml = definition(domainxml.NewDisk("/srv/vms/a/disk.raw", "raw"))
    with pytest.raises(Conflict, match="disk vda of web1, volume a of pool vms, is raw"):
        disks_of("web1", xml, POOLS, ["n1"])


def test_what_a_guest_only_reads_is_left_out() -> None:
    xml = definition(domainxml.NewDisk("/srv/vms/a/disk.qcow2"), domainxml.NewDisk("/srv/cd.iso", "raw"))
    xml = xml.replace("</disk>", "<readonly/></disk>").replace("<readonly/></disk>", "</disk>", 1)
    assert disks_of("web1", xml, POOLS, ["n1"]) == (SnapshotDisk("vda", "vms", "a"),)
    with pytest.raises(Conflict, match="web1 has no disk to keep"):
        disks_of("web1", definition(), POOLS, ["n1"])


# Removing


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "stopped"])
def test_removing_one_leaves_the_vm_and_the_others(is_running: bool) -> None:
    made = two()
    made.done("vm.snapshot-create", **DAILY)
    if is_running:
        host = runs(made)
        host.world.snapshots = {
            made.pool.location(one): [f"@{on_volumes(made)[one][0]}"] for one in on_volumes(made)
        }
    made.done("vm.snapshot-create", vm="web1", snapshot="weekly")
    assert made.done("vm.snapshot-remove", **DAILY)["reason"] == ""
    assert [row["name"] for row in made.call("vm.snapshot-list", vm="web1")] == ["weekly"]
    assert [len(found) for found in on_volumes(made).values()] == [1, 1]
    assert made.done("vm.snapshot-remove", vm="web1", snapshot="weekly")["reason"] == ""
    leaves_nothing(made)


def test_one_that_is_gone_in_part_is_not_rolled_back_to_and_can_be_removed_once_more() -> None:
    made = two()
    made.done("vm.snapshot-create", **DAILY)
    made.pool.open.add("data")
    assert made.done("vm.snapshot-remove", **DAILY)["reason"] == "volume data is in use"
    assert made.call("vm.snapshot-list", vm="web1")[0]["leaving"]
    with pytest.raises(Conflict, match="was removed in part"):
        made.call("vm.snapshot-rollback", **DAILY)
    made.pool.open.clear()
    assert made.done("vm.snapshot-remove", **DAILY)["reason"] == ""
    leaves_nothing(made)


@pytest.mark.parametrize("is_running", [False, True], ids=["stopped", "running"])
def test_one_of_which_a_part_is_protected_stays_whole(is_running: bool) -> None:
    made = two()
    made.done("vm.snapshot-create", **DAILY)
    kept = on_volumes(made)
    if is_running:
        host = runs(made)
        host.world.snapshots = {made.pool.location(one): [f"@{kept[one][0]}"] for one in kept}
    data = {"pool": "vms", "volume": "data", "snapshot": kept["data"][0]}
    assert made.done("storage.volume-snapshot-protect", **data)["reason"] == ""
    found = made.done("vm.snapshot-remove", **DAILY)
    assert found["reason"] == "its part of volume data of pool vms is protected"
    assert found["error"]["hint"] == f"pvc storage volume snapshot protect vms data {kept['data'][0]} --off"
    assert on_volumes(made) == kept
    assert not made.call("vm.snapshot-list", vm="web1")[0]["leaving"]
    assert made.done("storage.volume-snapshot-protect", **data, off=True)["reason"] == ""
    assert made.done("vm.snapshot-remove", **DAILY)["reason"] == ""
    leaves_nothing(made)


def test_the_verbs_of_volumes_leave_its_parts_alone() -> None:
    made = two()
    made.done("vm.snapshot-create", **DAILY)
    (part,) = on_volumes(made)["root"]
    root = {"pool": "vms", "volume": "root"}
    with pytest.raises(Conflict, match=f"{part} is a part of snapshot daily of web1"):
        made.call("storage.volume-snapshot-remove", **root, snapshot=part)
    with pytest.raises(Conflict, match="is a part of snapshot daily"):
        made.call("storage.volume-snapshot-rename", **root, snapshot=part, new="mine")
    with pytest.raises(Invalid, match=r"names that begin with vm\. are of snapshots of VMs"):
        made.call("storage.volume-snapshot-add", **root, snapshot="vm.mine")
    xml = made.world.spec("web1").definition
    data = xml[xml.index("<disk", xml.index("</disk>")) : xml.rindex("</disk>") + len("</disk>")]
    made.call("vm.set-definition", vm="web1", xml=xml.replace(data, ""))
    for operation, more in (("volume-remove", {}), ("volume-rename", {"new": "other"})):
        with pytest.raises(Conflict, match="volume data of pool vms is in snapshot daily of web1"):
            made.call(f"storage.{operation}", pool="vms", volume="data", **more)
    made.done("vm.snapshot-remove", **DAILY)
    assert made.done("storage.volume-remove", pool="vms", volume="data")["reason"] == ""


# Rolling back


def changed(made: Storing) -> None:
    """Both disks and the definition are other ones than in the snapshot."""
    made.pool.kept["root"].content, made.pool.kept["data"].content = b"root 2", b"data 2"
    made.call("vm.memory-set", vm="web1", memory="2G")


def contents(made: Storing) -> list[bytes]:
    return [made.pool.kept[name].content for name in ("root", "data")]


def test_disks_and_definition_come_back() -> None:
    made = two()
    before = made.world.spec("web1").definition
    made.done("vm.snapshot-create", **DAILY)
    changed(made)
    found = made.done("vm.snapshot-rollback", **DAILY)
    assert found["reason"] == ""
    assert contents(made) == [b"root 1", b"data 1"]
    spec = made.world.spec("web1")
    assert (spec.definition, spec.memory_mib, spec.snapshots) == (before, 1024, ("daily",))
    assert [len(names) for names in on_volumes(made).values()] == [1, 1]
    made.world.check_invariants()


def test_one_that_was_renamed_since_keeps_its_name() -> None:
    made = two()
    made.done("vm.snapshot-create", **DAILY)
    made.call("vm.rename", vm="web1", new="web2")
    assert made.done("vm.snapshot-rollback", vm="web2", snapshot="daily")["reason"] == ""
    assert domainxml.parse(made.world.spec("web2").definition).name == "web2"


def test_volumes_that_are_renamed_with_their_vm_are_found() -> None:
    made = with_disks("web1-vda")
    made.pool.kept["web1-vda"].content = b"root 1"
    made.done("vm.snapshot-create", **DAILY)
    made.pool.kept["web1-vda"].content = b"root 2"
    assert made.done("vm.rename", vm="web1", new="web2")["reason"] == ""
    assert made.call("vm.snapshot-list", vm="web2")[0]["disks"] == ["vms/web2-vda"]
    assert made.done("vm.snapshot-rollback", vm="web2", snapshot="daily")["reason"] == ""
    assert made.pool.kept["web2-vda"].content == b"root 1"
    made.world.check_invariants()


def test_a_vm_that_is_removed_takes_them_along() -> None:
    made = two()
    made.done("vm.snapshot-create", **DAILY)
    assert made.done("vm.remove", vm="web1")["reason"] == ""
    assert made.pool.kept == {}
    assert made.world.store.children(paths.SNAPSHOTS) == ()


def test_only_of_a_vm_that_is_stopped() -> None:
    made = two()
    made.done("vm.snapshot-create", **DAILY)
    runs(made)
    with pytest.raises(Conflict, match="web1 is in state start: a rollback needs it stopped"):
        made.call("vm.snapshot-rollback", **DAILY)
    stops(made)
    assert made.done("vm.snapshot-rollback", **DAILY)["reason"] == ""


@pytest.mark.parametrize("dies", [True, False], ids=["killed", "failed"])
def test_when_one_disk_cannot_be_brought_back_none_is(dies: bool) -> None:
    made = two()
    made.done("vm.snapshot-create", **DAILY)
    changed(made)
    there = made.world.spec("web1").definition
    roll_back, tried = made.pool.roll_back, []

    def stumble(name: str, snapshot: str) -> None:
        tried.append(name)
        if len(tried) == 2:
            raise Killed if dies else DriverError("no space left")
        roll_back(name, snapshot)

    made.pool.roll_back = stumble  # type: ignore[method-assign]
    begun = made.call("vm.snapshot-rollback", **DAILY)
    if dies:
        with pytest.raises(Killed):
            made.work()
        assert contents(made) == [b"root 1", b"data 2"]
        made.restart("n1")
    made.work()
    found = made.call("task.info", task=begun["name"])
    assert (found["state"], contents(made)) == ("lost" if dies else "failed", [b"root 2", b"data 2"])
    assert made.world.spec("web1").definition == there
    assert [len(names) for names in on_volumes(made).values()] == [1, 1], "nothing is left behind"


def test_a_pool_that_goes_away_half_way_leaves_no_vm_of_two_moments() -> None:
    made = two()
    made.done("vm.snapshot-create", **DAILY)
    changed(made)
    roll_back = made.pool.roll_back

    def go_away(name: str, snapshot: str) -> None:
        roll_back(name, snapshot)
        made.pool.is_mounted = False

    made.pool.roll_back = go_away  # type: ignore[method-assign]
    found = made.done("vm.snapshot-rollback", **DAILY)
    assert (found["state"], contents(made)) == ("running", [b"root 1", b"data 2"])
    assert "undoing: the pool is not here" in found["activity"]
    with pytest.raises(Conflict, match=f"task {found['name']} is at web1"):
        made.call("vm.start", vm="web1")
    made.pool.roll_back, made.pool.is_mounted = roll_back, True  # type: ignore[method-assign]
    made.again()
    assert made.call("task.info", task=found["name"])["state"] == "failed"
    assert contents(made) == [b"root 2", b"data 2"]
    assert [len(names) for names in on_volumes(made).values()] == [1, 1], "nothing is left behind"
    made.call("vm.start", vm="web1")


def test_killed_when_all_is_brought_back_it_stays_so() -> None:
    made = two()
    made.done("vm.snapshot-create", **DAILY)
    changed(made)
    remove = made.pool.remove_snapshot

    def die(name: str, snapshot: str) -> None:
        raise Killed

    made.pool.remove_snapshot = die  # type: ignore[method-assign]
    made.call("vm.snapshot-rollback", **DAILY)
    with pytest.raises(Killed):
        made.work()
    made.pool.remove_snapshot = remove  # type: ignore[method-assign]
    made.restart("n1")
    made.work()
    assert contents(made) == [b"root 1", b"data 1"]
    assert made.world.spec("web1").memory_mib == 1024
    assert [len(names) for names in on_volumes(made).values()] == [1, 1], "nothing is left behind"


def test_a_definition_that_would_be_refused_now_changes_nothing() -> None:
    made = two()
    made.call("network.add", vni=101, description="shop", kind="managed")
    made.call("vm.network-add", vm="web1", network="101")
    made.done("vm.snapshot-create", **DAILY)
    (nic,) = made.call("vm.info", vm="web1")["networks"]
    made.call("vm.network-remove", vm="web1", network="101")
    made.call("network.remove", network="101")
    assert nic["network"] == "101"
    before = made.world.documents()
    with pytest.raises(Exception, match="no network 101"):
        made.call("vm.snapshot-rollback", **DAILY)
    assert made.world.documents() == before
