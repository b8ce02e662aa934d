"""User data of VMs: who may see them, how they go, and that they are nowhere else."""

from __future__ import annotations

import json

import pytest

from pvc.cluster import paths
from pvc.commands.context import Caller, Context, invoke
from pvc.commands.registry import Role, find
from pvc.commands.vm_user_data import LARGEST, SEED
from pvc.errors import NotPermitted
from tests.unit.commands.world import UUID, World, a_world, with_vm, xml_of

SECRET = "#cloud-config\npassword: hunter2\n"


@pytest.fixture
def world() -> World:
    world = with_vm()
    assert world.call("vm.user-data-set", vm="web1", text=SECRET) == {"name": "web1", "bytes": len(SECRET)}
    return world


def test_come_back_as_they_were_given(world: World) -> None:
    assert world.call("vm.user-data-get", vm="web1") == SECRET
    world.call("vm.user-data-set", vm="web1", text="other")
    assert world.call("vm.user-data-get", vm=UUID) == "other"
    world.call("vm.user-data-remove", vm="web1")
    assert world.store.get(paths.vm_user_data(UUID)) is None


def test_are_given_when_a_vm_is_created() -> None:
    world = a_world()
    made = world.call("vm.create", name="web1", user_data="x" * LARGEST)
    assert world.call("vm.user-data-get", vm="web1") == "x" * LARGEST
    assert world.store.get(paths.vm_user_data(made["uuid"])) is not None
    assert SEED in world.spec("web1").definition, "no image knows of us"
    world.call("vm.create", name="web2")
    assert SEED not in world.spec("web2").definition


def test_go_with_the_vm() -> None:
    world = a_world()
    before = world.documents()
    world.call("vm.define", xml=xml_of(), target="n1")
    world.call("vm.user-data-set", vm="web1", text=SECRET)
    world.call("vm.undefine", vm="web1")
    assert world.documents() == before


def test_stay_when_it_is_renamed(world: World) -> None:
    world.call("vm.rename", vm="web1", new="web2")
    assert world.call("vm.user-data-get", vm="web2") == SECRET


def test_are_nowhere_else(world: World) -> None:
    for answer in (world.call("vm.info", vm="web1"), world.call("vm.list"), world.plain(paths.vm(UUID))):
        assert "hunter2" not in json.dumps(answer)
    planned = world.plan("vm.user-data-set", vm="web1", text=SECRET + "x")
    assert "hunter2" not in json.dumps(planned)


def test_a_reader_does_not_get_them(world: World) -> None:
    context = Context(world.store, world.store, Caller("guest", Role.READ))
    with pytest.raises(NotPermitted):
        invoke(find("vm.user-data-get"), context, {"vm": "web1"})
