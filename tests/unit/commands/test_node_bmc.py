"""The verb node bmc: what it stores, what it shows, and when a password has to be given again."""

from __future__ import annotations

from typing import Any

import pytest

from pvc.cluster import paths
from tests.unit.commands.world import World, a_world

GIVEN: dict[str, Any] = {"node": "n1", "address": "10.0.0.201", "user": "admin", "password": "secret1\n"}


def stored(world: World) -> Any:
    return world.plain(paths.node("n1"))["bmc"]


def test_it_is_stored_with_the_password_sealed_for_this_bmc() -> None:
    world = a_world()
    shown = world.call("node.bmc", **GIVEN)
    assert shown == {
        "node": "n1",
        "driver": "ipmi",
        "address": "10.0.0.201",
        "user": "admin",
        "certificate": "",
    }
    assert stored(world)["password"] == "sealed:1terces:ipmi 10.0.0.201 admin "


def test_what_it_answers_and_plans_has_no_password() -> None:
    world = a_world()
    said = [world.plan("node.bmc", **GIVEN), world.call("node.bmc", **GIVEN)]
    assert "secret1" not in repr(said)
    assert "1terces" not in repr(said)


@pytest.mark.parametrize("certificate", ["any", "0f" * 32])
def test_redfish_with_a_certificate(certificate: str) -> None:
    world = a_world()
    world.call("node.bmc", **GIVEN, driver="redfish", certificate=certificate)
    assert (stored(world)["driver"], stored(world)["certificate"]) == ("redfish", certificate)


@pytest.mark.parametrize("address", ["10.0.0.1:6230", "bmc-1.example.org", "[fd00::1]", "[fd00::1]:623"])
def test_addresses(address: str) -> None:
    world = a_world()
    assert world.call("node.bmc", **{**GIVEN, "address": address})["address"] == address


def test_it_is_forgotten() -> None:
    world = a_world()
    world.call("node.bmc", **GIVEN)
    assert world.call("node.bmc", node="n1", remove=True)["driver"] is None
    assert stored(world) is None
