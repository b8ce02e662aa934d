"""Interfaces of VMs as operations see them: what they write, and how it stands."""

from __future__ import annotations

from typing import Any

import pytest

from pvc.cluster import domainxml, paths
from pvc.cluster.clients import Member
from pvc.cluster.vm import Change, Migration, Refusal, State
from pvc.errors import Conflict, NotFound
from tests.unit.commands.world import OTHER, UUID, World, a_world, xml_of

MACS = tuple(f"52:54:00:00:00:0{number}" for number in (1, 2, 3, 4))


def a_vm(*networks: str, power: str = "running") -> World:
    """Networks 101 and 102 on every node; web1 with an interface in each that is named."""
    world = a_world()
    for vni in (101, 102):
        world.call("network.add", vni=vni, description=f"net{vni}", kind="managed")
    for node in ("n1", "n2", "n3"):
        world.edit(paths.node_status(node), bridges=["br0", "br101", "br102"])
    world.call("vm.define", xml=xml_of(bridge=""), target="n1")
    for mac, network in zip(MACS, networks, strict=False):
        world.call("vm.network-add", vm="web1", network=network, mac=mac)
    if power == "running":
        world.call("vm.start", vm="web1")
        world.runs("web1")
    return world


def macs(world: World) -> list[str]:
    return [nic.mac for nic in domainxml.parse(world.spec("web1").definition).nics]


def shown(world: World) -> list[tuple[str, str, str]]:
    rows = world.call("vm.network-get", vm="web1")
    return [(row["mac"], row["network"], row["state"]) for row in rows]


def has(world: World, *which: str, **fields: Any) -> None:
    """Its QEMU has these interfaces of its definition."""
    found = domainxml.shape(world.spec("web1").definition).interfaces
    world.status_is("web1", interfaces=tuple(one for one in found if one.mac in which), **fields)


def test_of_a_stopped_vm_it_is_in_its_definition_and_its_network() -> None:
    world = a_vm("101", power="stopped")
    told = world.call("vm.network-add", vm="web1", network="net102", mac=MACS[1].upper(), model="e1000e")
    assert told["goal"] is None, "nobody has to wait"
    assert [(nic["mac"], nic["network"], nic["model"], nic["bridge"]) for nic in told["networks"]] == [
        (MACS[0], "101", "virtio", "br101"),
        (MACS[1], "102", "e1000e", "br102"),
    ]
    assert world.member(102, UUID) == Member("web1", (MACS[1],))
    assert world.spec("web1").live == ()
    assert {state for *_, state in shown(world)} == {"from its next start"}
    world.check_invariants()


def test_one_that_runs_is_to_get_it_at_once() -> None:
    world = a_vm("101")
    told = world.call("vm.network-add", vm="web1", network="bridge:br0", mac=MACS[1])
    (change,) = world.spec("web1").live
    assert (change.device, bool(change.digest)) == (MACS[1], True)
    assert (told["settled"], told["goal"]) == (False, {"state": "start", "refused": ""})
    assert told["activity"] == f"attaching interface {MACS[1]}"
    assert shown(world) == [(MACS[0], "101", "live"), (MACS[1], "br0", "being attached")]
    has(world, *MACS[:2])
    assert world.call("vm.info", vm="web1")["settled"]
    assert {state for *_, state in shown(world)} == {"live"}
    world.check_invariants()


def test_of_three_exactly_the_one_that_is_meant_goes() -> None:
    """Client line 11."""
    world = a_vm("101", "102", "101")
    before = domainxml.shape(world.spec("web1").definition).interfaces
    world.call("vm.network-remove", vm="web1", network="101", mac=MACS[0])
    assert macs(world) == list(MACS[1:3])
    assert world.spec("web1").live == (Change(MACS[0]),)
    assert shown(world) == [
        (MACS[1], "102", "live"),
        (MACS[2], "101", "live"),
        (MACS[0], "101", "being detached"),
    ]
    assert world.member(101, UUID).macs == (MACS[2],)
    world.status_is("web1", interfaces=before[1:])
    assert world.call("vm.info", vm="web1")["settled"]
    world.check_invariants()


def test_which_of_two_has_to_be_said() -> None:
    world = a_vm("101", "101", "bridge:br0", "bridge:br0")
    before = world.documents()
    for network, named in (("net101", f"{MACS[0]}, {MACS[1]}"), ("bridge:br0", f"{MACS[2]}, {MACS[3]}")):
        with pytest.raises(Conflict, match=f"2 interfaces in {network}: {named}"):
            world.call("vm.network-remove", vm="web1", network=network)
    with pytest.raises(NotFound, match=f"no interface {MACS[2]} in 101"):
        world.call("vm.network-remove", vm="web1", network="101", mac=MACS[2])
    assert world.documents() == before


@pytest.mark.parametrize("verb", ["add", "remove"])
def test_without_live_it_waits_for_the_next_start(verb: str) -> None:
    world = a_vm("101")
    network = "102" if verb == "add" else "101"
    told = world.call(f"vm.network-{verb}", vm="web1", network=network, live=False)
    assert (world.spec("web1").live, told["pending_restart"], told["settled"]) == ((), True, True)
    states = [state for *_, state in shown(world)]
    assert states == (["live", "from its next start"] if verb == "add" else ["until its next start"])


def test_with_restart_it_restarts_instead() -> None:
    world = a_vm("101")
    told = world.call("vm.network-add", vm="web1", network="102", restart=True)
    assert (world.spec("web1").live, world.spec("web1").restarts) == ((), 1)
    assert told["goal"] == {"state": "start"}


def test_what_a_node_refused_is_told() -> None:
    world = a_vm("101")
    world.call("vm.network-remove", vm="web1", network="101")
    world.status_is("web1", refused=(Refusal(MACS[0], "", "its guest keeps it"),))
    told = world.call("vm.info", vm="web1")
    assert told["settled"], "nobody waits for it"
    assert told["refused"] == told["reason"]
    assert told["refused"] == f"interface {MACS[0]} stays until its next start: its guest keeps it"
    (row,) = world.call("vm.network-get", vm="web1")
    assert (row["state"], row["why"]) == ("until its next start", "its guest keeps it")
    assert told["reason"] in " ".join(world.call("why.vm", vm="web1")["because"])


def test_a_change_is_forgotten_when_the_definition_no_longer_has_it() -> None:
    world = a_vm("101")
    before = world.spec("web1").definition
    world.call("vm.network-add", vm="web1", network="102", mac=MACS[1])
    world.call("vm.set-definition", vm="web1", xml=before)
    assert world.spec("web1").live == ()
    world.call("vm.network-remove", vm="web1", network="101")
    world.call("vm.set-definition", vm="web1", xml=before)
    assert world.spec("web1").live == (), "who edits the definition does not change what runs"
    world.call("vm.network-remove", vm="web1", network="101")
    world.call("vm.memory-set", vm="web1", memory="1G")
    assert world.spec("web1").live == (Change(MACS[0]),), "another change leaves it alone"


def test_a_new_address_is_nobody_else_s_in_that_network() -> None:
    world = a_vm("101", power="stopped")
    mine = domainxml.free_mac(OTHER, 0, ())
    world.edit(paths.network_vm(101, UUID), macs=[mine])
    world.call("vm.define", xml=xml_of("web2", OTHER, bridge=""))
    world.call("vm.network-add", vm="web2", network="102")
    world.call("vm.network-add", vm="web2", network="101")
    first, second = domainxml.parse(world.spec("web2").definition).nics
    assert first.mac == mine
    assert second.mac not in (mine, "")
    with pytest.raises(Conflict, match=f"web1 has an interface {mine} already"):
        world.call("vm.network-add", vm="web2", network="101", mac=mine)
    with pytest.raises(Conflict, match=f"web2 has an interface {second.mac} already"):
        world.call("vm.network-add", vm="web2", network="102", mac=second.mac)


def test_an_address_that_its_guest_has_not_given_up_yet_is_not_given_again() -> None:
    world = a_vm()
    world.call("vm.network-add", vm="web1", network="101")
    (first,) = macs(world)
    has(world, first)
    world.call("vm.network-remove", vm="web1", network="101")
    world.call("vm.network-add", vm="web1", network="101")
    assert macs(world) != [first]


def test_a_node_without_the_bridge_says_so() -> None:
    world = a_vm("101")
    world.edit(paths.node_status("n1"), bridges=["br0", "br101"])
    world.call("vm.network-add", vm="web1", network="102")
    assert world.call("vm.network-get", vm="web1")[1]["why"] == "n1 cannot: it has no bridge br102"
    broken = [{"vni": 102, "why": "no VXLAN"}]
    world.edit(paths.node_status("n1"), bridges=["br0", "br101"], network_problems=broken)
    said = world.call("why.vm", vm="web1")["because"]
    assert any("n1 cannot: it has no bridge br102: no VXLAN" in one for one in said)
    with pytest.raises(Conflict, match="cannot get it now: n1 cannot: it has no bridge br102: no VXLAN"):
        world.call("vm.network-add", vm="web1", network="102")
    world.call("vm.network-add", vm="web1", network="102", live=False)


def test_one_that_moves_or_is_paused_says_what_it_waits_for() -> None:
    world = a_vm("101")
    world.call("vm.network-add", vm="web1", network="102")
    world.status_is("web1", reason="paused by QEMU: ioerror")
    assert world.call("vm.network-get", vm="web1")[1]["why"] == "the VM is paused"
    world.call("vm.migrate", vm="web1", target="n2")
    world.status_is("web1", state=State.MIGRATE, migration=Migration("n2"), reason="")
    assert world.call("vm.network-get", vm="web1")[1]["why"] == "it waits until the VM is on n2"


def test_a_vm_whose_network_is_missing_on_a_node_does_not_move_there() -> None:
    world = a_vm("101")
    world.call("vm.network-add", vm="web1", network="102", mac=MACS[1])
    has(world, *MACS[:2])
    world.edit(paths.node_status("n2"), bridges=["br0", "br101"])
    with pytest.raises(Conflict, match="n2 cannot take web1: it has no bridge br102"):
        world.call("vm.migrate", vm="web1", target="n2")


def test_a_vm_whose_guest_has_an_interface_still_does_not_move_where_its_network_is_missing() -> None:
    """Its definition has it no longer, and QEMU would not find the bridge there."""
    world = a_vm("101", "102")
    world.call("vm.network-remove", vm="web1", network="102")
    world.status_is("web1", refused=(Refusal(MACS[1], "", "its guest keeps it"),))
    world.edit(paths.node_status("n2"), bridges=["br0", "br101"])
    with pytest.raises(Conflict, match="n2 cannot take web1: it has no bridge br102"):
        world.call("vm.migrate", vm="web1", target="n2")
    world.call("vm.stop", vm="web1")
    world.ended("web1")
    world.call("vm.start", vm="web1")
    world.runs("web1")
    world.call("vm.migrate", vm="web1", target="n2")


def test_of_a_node_that_does_not_say_what_runs_is_what_it_was_started_with() -> None:
    world = a_vm("101")
    world.status_is("web1", interfaces=())
    assert shown(world) == [(MACS[0], "101", "live")]
