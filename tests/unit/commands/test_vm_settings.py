"""meta, vCPUs, memory, tags, definition; with and without a restart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pvc.cluster import domainxml
from pvc.cluster.vm import Method, Selector, Tag
from pvc.commands.context import LocalContext, Transport
from pvc.commands.registry import find
from pvc.errors import Conflict, Failed, Invalid
from tests.unit.commands.world import UUID, World, with_vm, xml_of


def test_meta_changes_only_what_is_given() -> None:
    world = with_vm(method="live", limit=["n1"], autostart=True, max_downtime=100, selector="load")
    world.call("vm.meta", vm="web1", max_downtime=200)
    spec = world.spec("web1")
    assert (spec.method, spec.node_limit, spec.autostart) == (Method.LIVE, ("n1",), True)
    assert (spec.max_downtime_ms, spec.selector) == (200, Selector.LOAD)


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"limit": ["n2", "n1"]}, "node_limit", ("n1", "n2")),
        ({"limit": []}, "node_limit", ()),
        ({"selector": "none"}, "selector", Selector.NONE),
        ({"autostart": False}, "autostart", False),
        ({"method": "none"}, "method", Method.NONE),
        ({"profile": "small"}, "profile", "small"),
        ({"profile": ""}, "profile", ""),
    ],
)
def test_meta_sets_and_clears(given: dict[str, Any], field: str, value: object) -> None:
    world = with_vm(method="live", limit=["n1"], autostart=True, selector="load")
    world.call("vm.meta", vm="web1", **given)
    assert getattr(world.spec("web1"), field) == value


def test_meta_tells_of_a_vm_outside_its_new_limit() -> None:
    plan = with_vm("running").plan("vm.meta", vm="web1", limit=["n2"])["plan"]
    assert "node_limit of web1: () → ('n2',)" in plan
    assert any("outside its limit" in line for line in plan)


def test_vcpus_and_memory_are_set_in_spec_and_definition() -> None:
    world = with_vm()
    world.call("vm.vcpu-set", vm="web1", vcpus=4, topology="2,1,2")
    world.call("vm.memory-set", vm="web1", memory="1.5G")
    assert world.call("vm.vcpu-get", vm="web1") == {"name": "web1", "vcpus": 4, "topology": "2,1,2"}
    assert world.call("vm.memory-get", vm="web1") == {"name": "web1", "memory_mib": 1536}
    world.check_invariants()


def test_a_change_of_one_that_runs_waits_for_its_restart() -> None:
    world = with_vm("running")
    shown = world.call("vm.vcpu-set", vm="web1", vcpus=2)
    assert (shown["pending_restart"], shown["goal"]) == (True, None)
    assert world.spec("web1").restarts == 0


@pytest.mark.parametrize(
    ("operation", "given"),
    [
        ("vm.vcpu-set", {"vcpus": 2}),
        ("vm.memory-set", {"memory": "1G"}),
        ("vm.set-definition", {"xml": xml_of(memory_mib=1024)}),
    ],
)
def test_with_restart_the_change_and_the_restart_are_one(operation: str, given: dict[str, Any]) -> None:
    world = with_vm("running")
    version = world.vm("web1").spec_version
    shown = world.call(operation, vm="web1", restart=True, **given)
    assert world.vm("web1").spec_version == version + 1
    assert world.spec("web1").restarts == 1
    assert (shown["settled"], shown["goal"]) == (False, {"state": "start"})


def test_restart_of_one_that_is_stopped_is_no_matter() -> None:
    world = with_vm()
    world.call("vm.memory-set", vm="web1", memory="1G", restart=True)
    assert (world.spec("web1").memory_mib, world.spec("web1").restarts) == (1024, 0)


def test_restart_is_refused_with_the_change_while_it_moves() -> None:
    world = with_vm("running")
    world.call("vm.move", vm="web1")
    with pytest.raises(Conflict, match="is being moved"):
        world.call("vm.memory-set", vm="web1", memory="1G", restart=True)
    assert world.spec("web1").memory_mib == 512


def test_a_plan_of_a_size_says_where_it_could_not_start() -> None:
    plan = with_vm().plan("vm.memory-set", vm="web1", memory="6850")["plan"]
    assert "web1 has 1 vCPUs and 6850 MiB from its next start" in plan
    assert any(line.startswith("as another VM it could not start on n2 now") for line in plan)


def test_tags() -> None:
    world = with_vm()
    world.call("vm.tag-add", vm="web1", tag="red", protected=True)
    world.call("vm.tag-add", vm="web1", tag="blue")
    assert world.call("vm.tag-get", vm="web1") == [
        {"name": "blue", "protected": False},
        {"name": "red", "protected": True},
    ]
    with pytest.raises(Conflict, match="the tag red of web1 is protected"):
        world.call("vm.tag-remove", vm="web1", tag="red")
    world.call("vm.tag-add", vm="web1", tag="red")
    world.call("vm.tag-remove", vm="web1", tag="red")
    assert world.spec("web1").tags == (Tag("blue"),)


def test_a_tag_again_changes_nothing() -> None:
    world = with_vm(tag=["blue"])
    before = world.documents()
    world.call("vm.tag-add", vm="web1", tag="blue")
    assert world.documents() == before


def test_set_definition_keeps_uuid_and_addresses() -> None:
    world = with_vm()
    xml = xml_of(memory_mib=1024).replace(f"<uuid>{UUID}</uuid>", "")
    world.call("vm.set-definition", vm="web1", xml=xml)
    assert domainxml.parse(world.call("vm.definition", vm="web1")).uuid == UUID
    assert world.spec("web1").memory_mib == 1024
    world.check_invariants()


def test_set_definition_only_replaces_the_one_that_was_read() -> None:
    world = with_vm()
    digest = world.call("vm.info", vm="web1")["digest"]
    world.call("vm.start", vm="web1")
    world.call("vm.set-definition", vm="web1", xml=xml_of(memory_mib=600), digest=digest)
    with pytest.raises(Conflict, match="was changed by somebody else"):
        world.call("vm.set-definition", vm="web1", xml=xml_of(memory_mib=700), digest=digest)
    assert world.spec("web1").memory_mib == 600


# The verb that runs on the client's side


class ToWorld(Transport):
    def __init__(self, world: World) -> None:
        self.world = world

    def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        *,
        plan: bool = False,
        after: str = "",
        within_s: float = 0.0,
    ) -> Any:
        return self.world.call(name, **arguments)

    def close(self) -> None:
        raise AssertionError("the verb does not own its connection")


def modify(world: World, **given: Any) -> None:
    find("vm.modify").function(LocalContext(connect=lambda: ToWorld(world)), vm="web1", **given)


def test_modify_shows_the_difference_and_writes(capsys: pytest.CaptureFixture[str]) -> None:
    world = with_vm("running")
    modify(world, file=xml_of(memory_mib=768), yes=True)
    assert world.spec("web1").memory_mib == 768
    shown = capsys.readouterr()
    assert shown.out == ""
    assert '-  <memory unit="MiB">512</memory>' in shown.err
    assert '+  <memory unit="MiB">768</memory>' in shown.err
    assert "new definition, from its next start (pvc vm restart web1)" in shown.err


def test_modify_without_a_terminal_and_without_yes_changes_nothing() -> None:
    world = with_vm()
    with pytest.raises(Invalid, match="no terminal"):
        modify(world, file=xml_of(memory_mib=768))
    assert world.spec("web1").memory_mib == 512


def test_modify_with_the_same_text_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    world = with_vm()
    version = world.vm("web1").spec_version
    modify(world, file=world.call("vm.definition", vm="web1"))
    assert world.vm("web1").spec_version == version
    assert "nothing changed" in capsys.readouterr().err


def test_modify_refuses_what_is_no_definition_before_it_asks() -> None:
    with pytest.raises(Invalid, match="not well-formed"):
        modify(with_vm(), file="<domain>", yes=True)


@pytest.mark.processes
def test_modify_with_an_editor(monkeypatch: pytest.MonkeyPatch) -> None:
    world = with_vm()
    monkeypatch.setenv("VISUAL", "sed -i s/512/640/")
    modify(world, editor=True, yes=True)
    assert world.spec("web1").memory_mib == 640


def test_dump_prints_or_writes_a_file(tmp_path: Path) -> None:
    world = with_vm()
    context = LocalContext(connect=lambda: ToWorld(world))
    dump = find("vm.dump").function
    assert dump(context, vm="web1") == world.spec("web1").definition
    assert dump(context, vm="web1", file=str(tmp_path / "web1.xml")) is None
    assert (tmp_path / "web1.xml").read_text() == world.spec("web1").definition
    with pytest.raises(Failed, match="Is a directory"):
        dump(context, vm="web1", file=str(tmp_path))
