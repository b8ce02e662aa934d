"""define, create, list, info, dump, rename, undefine."""

from __future__ import annotations

from typing import Any

import pytest

from pvc.cluster import domainxml, paths
from pvc.cluster.codec import dumps
from pvc.cluster.store import Create
from pvc.cluster.vm import Method, Selector, State, Tag, Target
from pvc.errors import Conflict, NotFound
from tests.unit.commands.world import UUID, World, a_world, with_vm, xml_of


def test_define_keeps_the_xml_and_everything_that_was_asked_for() -> None:
    world = a_world()
    xml = xml_of().replace("<devices>", "<!-- mine --><devices>")
    shown = world.call(
        "vm.define",
        xml=xml,
        target="n2",
        limit=["n3", "n2", "n3"],
        selector="vms",
        autostart=True,
        method="live",
        max_downtime=500,
        tag=["blue", "red"],
        protected_tag=["red"],
    )
    spec = world.spec("web1")
    assert "<!-- mine -->" in spec.definition
    assert (spec.node, spec.node_limit, spec.selector) == ("n2", ("n2", "n3"), Selector.VMS)
    assert (spec.autostart, spec.method, spec.max_downtime_ms) == (True, Method.LIVE, 500)
    assert spec.tags == (Tag("blue"), Tag("red", protected=True))
    assert (spec.memory_mib, spec.vcpus, spec.networks) == (512, 1, ("br0",))
    assert (shown["state"], shown["node"], shown["settled"], shown["uuid"]) == ("stop", "n2", True, UUID)
    world.check_invariants()


def test_define_gives_a_uuid_and_addresses_where_there_are_none() -> None:
    world = a_world()
    xml = """<domain type='kvm'><name>old</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
      <os><type>hvm</type></os><devices><interface type='bridge'><source bridge='br0'/></interface></devices>
    </domain>"""
    shown = world.call("vm.define", xml=xml)
    assert len(shown["uuid"]) == len(UUID)
    facts = domainxml.parse(world.call("vm.definition", vm="old"))
    assert facts.uuid == shown["uuid"]
    assert facts.nics[0].mac
    assert world.spec("old").node is None
    world.check_invariants()


def test_create_writes_a_modern_definition() -> None:
    world = a_world()
    shown = world.call(
        "vm.create",
        name="web2",
        memory="2G",
        vcpus=4,
        topology="2,2,1",
        disk=["/srv/share/data.img", "/srv/share/more.qcow2"],
        network=["bridge:br0", "bridge:br1"],
        kernel="/boot/vmlinuz",
        initrd="/boot/initrd",
        cmdline="console=ttyS0",
    )
    spec = world.spec("web2")
    assert [(disk["source"], disk["format"], disk["state"]) for disk in shown["disks"]] == [
        ("/srv/share/data.img", "raw", "from its next start"),
        ("/srv/share/more.qcow2", "qcow2", "from its next start"),
    ]
    facts = domainxml.parse(spec.definition)
    assert (facts.memory_mib, facts.vcpus, facts.topology) == (2048, 4, domainxml.Topology(2, 2, 1))
    assert spec.networks == ("br0", "br1")
    world.check_invariants()


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, ["db1", "web1", "web2"]),
        ({"limit": "web"}, ["web1", "web2"]),
        ({"limit": "1$"}, ["db1", "web1"]),
        ({"limit": "^eb"}, []),
        ({"target": "n1"}, ["web1"]),
        ({"target": "n1", "negate": True}, ["db1", "web2"]),
        ({"state": "start"}, ["web1"]),
        ({"tag": "blue"}, ["db1", "web1"]),
        ({"tag": "blue", "state": "start"}, ["web1"]),
        ({"tag": "blue", "state": "start", "negate": True}, ["db1", "web2"]),
        ({"limit": "web", "tag": "blue", "negate": True}, ["web2"]),
        ({"negate": True}, ["db1", "web1", "web2"]),
    ],
)
def test_list(given: dict[str, Any], names: list[str]) -> None:
    world = with_vm("running", tag=["blue"])
    world.call("vm.create", name="web2", target="n2")
    world.call("vm.create", name="db1", tag=["blue"])
    assert [row["name"] for row in world.call("vm.list", **given)] == names


def test_a_row_of_the_list() -> None:
    world = with_vm("running", tag=["blue"])
    world.call("vm.migrate", vm="web1", target="n2")
    world.runs("web1", "n2")
    assert world.call("vm.list") == [
        {
            "name": "web1",
            "uuid": UUID,
            "state": "start",
            "tags": ["blue"],
            "snapshots": 0,
            "networks": ["br0"],
            "memory_mib": 512,
            "vcpus": 1,
            "node": "n2",
            "migrated_from": "n1",
        }
    ]


def test_an_empty_cluster_lists_nothing() -> None:
    assert a_world().call("vm.list") == []


def test_a_vm_whose_definition_is_unreadable_is_still_shown() -> None:
    world = with_vm()
    world.edit(paths.vm(UUID), definition="<domain")
    assert [row["name"] for row in world.call("vm.list")] == ["web1"]
    shown = world.call("vm.info", vm="web1")
    assert shown["state"] == "stop"
    assert "definition is unreadable" in shown["reason"]
    assert any("unreadable" in line for line in world.call("why.vm", vm="web1")["because"])
    assert world.call("cluster.status")["vms"]["total"] == 1


def test_info_shows_what_runs_and_what_waits_for_a_restart() -> None:
    world = with_vm("running")
    assert world.call("vm.info", vm=UUID)["pending_restart"] is False
    world.call("vm.memory-set", vm="web1", memory="1024")
    shown = world.call("vm.info", vm="web1")
    assert (shown["memory_mib"], shown["pending_restart"], shown["settled"]) == (1024, True, True)
    world.call("vm.restart", vm="web1")
    world.runs("web1")
    assert world.call("vm.info", vm="web1")["pending_restart"] is False


def test_the_version_of_info_changes_with_spec_and_status() -> None:
    world = with_vm()
    seen = {world.call("vm.info", vm="web1")["version"]}
    seen.add(world.call("vm.start", vm="web1")["version"])
    assert world.call("vm.info", vm="web1")["version"] in seen, "what a change answers is what is there now"
    world.runs("web1")
    seen.add(world.call("vm.info", vm="web1")["version"])
    assert len(seen) == 3


def test_rename_moves_the_name_in_spec_definition_and_index() -> None:
    world = with_vm()
    shown = world.call("vm.rename", vm="web1", new="web2")
    assert (shown["name"], shown["uuid"]) == ("web2", UUID)
    world.check_invariants()
    with pytest.raises(NotFound):
        world.call("vm.info", vm="web1")


def test_rename_changes_the_name_and_no_other_text() -> None:
    """14.2.10"""
    world = a_world()
    xml = xml_of().replace("</name>", "</name><title>web1 of web1.example</title>")
    world.call("vm.define", xml=xml, target="n1")
    world.call("vm.rename", vm="web1", new="web2")
    now = world.call("vm.definition", vm="web2")
    assert "<name>web2</name>" in now
    assert "web1 of web1.example" in now


def test_rename_by_uuid_leaves_the_uuid_alone() -> None:
    world = with_vm()
    world.call("vm.rename", vm=UUID, new="web2")
    assert domainxml.parse(world.call("vm.definition", vm="web2")).uuid == UUID
    world.check_invariants()


def test_rename_refuses_the_name_of_another() -> None:
    world = with_vm()
    world.call("vm.create", name="web2")
    with pytest.raises(Conflict, match="VM named web2 already"):
        world.call("vm.rename", vm="web1", new="web2")
    world.check_invariants()


def test_undefine_leaves_nothing() -> None:
    world = a_world()
    before = world.documents()
    world.call("vm.define", xml=xml_of(), target="n1")
    world.store.commit(Create(paths.vm_target(UUID), dumps(Target("n1", 0, 1))))
    world.call("vm.undefine", vm="web1")
    assert world.documents() == before


@pytest.mark.parametrize("state", ["running", "starting", "stopping", "migrating"])
def test_undefine_refuses_a_vm_that_is_not_stopped(state: str) -> None:
    world = with_vm("running")
    if state == "starting":
        world.call("vm.stop", vm="web1")
        world.ended("web1")
        world.call("vm.start", vm="web1")
    elif state == "stopping":
        world.call("vm.shutdown", vm="web1")
    elif state == "migrating":
        world.call("vm.migrate", vm="web1")
    with pytest.raises(Conflict, match="needs it stopped"):
        world.call("vm.undefine", vm="web1")


def test_undefine_takes_a_vm_that_failed() -> None:
    world = failed()
    world.call("vm.undefine", vm="web1")
    assert world.call("vm.list") == []
    world.check_invariants()


def failed() -> World:
    world = with_vm()
    world.call("vm.start", vm="web1")
    attempts = world.spec("web1").attempts
    world.status_is("web1", state=State.FAIL, attempts=attempts, failures=5, reason="no such disk")
    return world
