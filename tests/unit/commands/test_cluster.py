"""init, status, maintenance, and why."""

from __future__ import annotations

from typing import Any

import pytest

from pvc.clock import SystemClock
from pvc.cluster import paths
from pvc.cluster.codec import dumps, to_json
from pvc.cluster.membership import Primary
from pvc.cluster.node import Stray
from pvc.cluster.store import Create, Delete
from pvc.cluster.view import View
from pvc.cluster.vm import Owner, State
from pvc.errors import Invalid
from tests.unit.commands.test_vm import failed
from tests.unit.commands.world import UUID, World, a_world, well, with_vm


def test_init_makes_everything_at_once() -> None:
    world = World()
    world.call("cluster.init", name="home")
    documents = world.documents()
    assert set(documents) == {*paths.LAYOUT, paths.CLUSTER, paths.AUTHORITY}
    assert View(world.store).cluster().name == "home"


def test_init_again_with_the_same_name_changes_nothing() -> None:
    world = with_vm()
    before = world.documents()
    assert world.call("cluster.init", name="test")["vms"]["total"] == 1
    assert world.documents() == before


def test_status_counts() -> None:
    world = with_vm("running")
    world.call("vm.create", name="web2")
    world.kill_node("n3")
    shown = world.call("cluster.status")
    assert shown["nodes"] == {"total": 3, "dead,ready": 1, "run,ready": 2}
    assert shown["vms"] == {"total": 2, "start": 1, "stop": 1}
    assert shown["resources"]["memory_total_mib"] == 2 * 8192
    assert (shown["health"], shown["name"], shown["maintenance"]) == ("problems", "test", False)


def test_a_well_cluster_has_no_problems() -> None:
    shown = well().call("cluster.status")
    assert (shown["health"], shown["problems"]) == ("ok", [])
    assert shown["redundancy"] == "any one node could be lost now"
    assert shown["not_redundant"] == []


def test_status_says_which_node_could_not_be_lost_and_raises_no_alarm_in_maintenance() -> None:
    world = well()
    world.call("node.bmc", node="n2", remove=True)
    shown = world.call("cluster.status")
    assert (shown["health"], shown["problems"]) == ("degraded", [])
    assert shown["redundancy"] == "of n1, n3 one could be lost now"
    why = "n2: it has no BMC and promises nothing by a watchdog: nobody could say that it is off"
    assert shown["not_redundant"] == [why]
    assert world.call("cluster.maintenance", switch="on")["health"] == "ok"


def test_nobody_who_is_primary_is_a_problem_and_keeps_nobody_from_reading() -> None:
    """14.3.3: the primary is no bottleneck of what can be asked."""
    world = well()
    assert world.call("cluster.status")["primary"] == "n1"
    world.store.commit(Delete(paths.PRIMARY))
    shown = world.call("cluster.status")
    assert shown["primary"] == ""
    assert shown["problems"] == ["no coordinator is primary: nothing is fenced or recovered"]


def test_zookeeper_server_that_does_not_serve_is_a_problem() -> None:
    world = well()
    world.edit(paths.verified("n2"), is_store_down=True)
    shown = world.call("cluster.status")
    assert shown["problems"] == [
        "the ZooKeeper server of n2 does not serve: systemctl status zookeeper there"
    ]
    assert shown["redundancy"] == "of n2 one could be lost now"


def test_vm_that_ran_where_it_did_not_belong_is_a_problem_for_a_day() -> None:
    world = well()
    why = "it is owned by n1"
    new, old = Stray("web1", why, SystemClock().wall()), Stray("old", why, 0.0)
    world.edit(paths.node_status("n2"), strays=to_json((new, old)))
    told = "web1 ran on n2 though it is owned by n1, and was ended there: look at its disks"
    assert world.call("cluster.status")["problems"] == [told]
    assert [one["vm"] for one in world.call("node.info", node="n2")["strays"]] == ["web1", "old"]


def test_one_node_alone_is_no_alarm() -> None:
    shown = a_world(1).call("cluster.status")
    assert (shown["health"], shown["redundancy"]) == ("ok", "no node could be lost now")


def test_the_version_of_status_changes_with_what_it_says() -> None:
    world = a_world()
    first = world.call("cluster.status")["version"]
    assert world.call("cluster.status")["version"] == first
    world.kill_node("n1")
    assert world.call("cluster.status")["version"] != first


def test_status_says_every_problem() -> None:
    world = failed()
    world.call("vm.create", name="lost", target="n2")
    world.call("vm.start", vm="lost")
    world.runs("lost", "n2")
    world.call("vm.create", name="homeless", target="n2")
    world.call("vm.start", vm="homeless")
    world.kill_node("n2")
    world.call("node.flush", node="n3")
    world.edit(paths.load("n1"), problem="web7 fits nowhere")
    world.add_node("n4", version="1.1")
    problems = world.call("cluster.status")["problems"]
    assert [problem.partition(" (")[0] for problem in problems] == [
        "node n1: web7 fits nowhere",
        "node n2 is dead: its daemon does not run",
        "node n3 is flush and takes no VMs",
        "the nodes run different versions of pvc: 1.0, 1.1",
        "VMs that failed: web1",
        "VMs that belong to a node whose daemon does not run: lost",
        "VMs that are to run and have no node that could run them: homeless",
    ]


def test_status_names_only_some_of_many_vms() -> None:
    world = with_vm("running")
    for number in range(12):
        world.call("vm.create", name=f"m{number:02}", target="n1")
        world.call("vm.start", vm=f"m{number:02}")
        world.runs(f"m{number:02}", "n1")
    world.kill_node("n1")
    problems = world.call("cluster.status")["problems"]
    assert any("m09 and 3 more" in problem for problem in problems)


@pytest.mark.parametrize("switch", ["on", "off"])
def test_maintenance(switch: str) -> None:
    world = a_world()
    world.edit(paths.CLUSTER, maintenance=switch != "on")
    assert world.call("cluster.maintenance", switch=switch)["maintenance"] is (switch == "on")
    assert View(world.store).cluster().maintenance is (switch == "on")
    before = world.documents()
    world.call("cluster.maintenance", switch=switch)
    assert world.documents() == before


def test_settings_are_shown_and_changed_one_by_one() -> None:
    world = a_world()
    before = world.call("cluster.info")
    assert (before["name"], before["fence_policy"], before["autoready"]) == ("test", "power-cycle", False)
    shown = world.call("cluster.set", fence_policy="off", fence_grace=1)
    assert shown == {**before, "fence_policy": "off", "fence_grace_s": 1.0}
    assert world.call("cluster.autoready", switch="on")["autoready"]
    assert world.call("cluster.info") == {**shown, "autoready": True}
    documents = world.documents()
    world.call("cluster.set", fence_policy="off")
    assert world.documents() == documents, "no change writes nothing"


FLOATING = "10.0.0.250/24"


def test_floating_addresses_are_set_and_removed() -> None:
    world = a_world()
    assert world.call("cluster.info")["upstream_address"] == ""
    shown = world.call("cluster.set", upstream_address="10.0.0.250/24", cluster_address="fd00:0:0::FA/64")
    assert (shown["upstream_address"], shown["cluster_address"]) == (FLOATING, "fd00::fa/64")
    assert world.call("cluster.set", cluster_address="none")["cluster_address"] == ""
    assert world.call("cluster.info")["upstream_address"] == FLOATING


@pytest.mark.parametrize("own", ["address", "storage_address"])
def test_what_a_node_has_already_cannot_float(own: str) -> None:
    world = a_world()
    world.edit(paths.node("n2"), **{own: "10.0.0.250"})
    with pytest.raises(Invalid, match=r"10\.0\.0\.250 is the address of n2"):
        world.call("cluster.set", upstream_address=FLOATING)


def test_two_floating_addresses_are_two() -> None:
    world = a_world()
    world.call("cluster.set", upstream_address=FLOATING)
    with pytest.raises(Invalid, match="at the same time"):
        world.call("cluster.set", cluster_address="10.0.0.250/16")


def test_names_are_set_and_removed() -> None:
    world = a_world()
    given: dict[str, Any] = {
        "dns_domain": "pvc.example",
        "dns_secondary": ["192.0.2.53"],
        "dns_transfer": ["192.0.2.0/24", "::1"],
    }
    shown = world.call("cluster.set", **given)
    assert (shown["dns_domain"], shown["dns_secondaries"]) == ("pvc.example", ["192.0.2.53"])
    assert shown["dns_transfers"] == ["192.0.2.0/24", "::1/128"]
    gone = world.call("cluster.set", dns_domain="none", dns_secondary=["none"], dns_transfer=["none"])
    assert (gone["dns_domain"], gone["dns_secondaries"], gone["dns_transfers"]) == ("", [], [])


def test_the_domain_of_the_cluster_is_no_network_s() -> None:
    world = a_world()
    world.call("network.add", vni=101, description="shop", kind="managed", domain="shop.example")
    with pytest.raises(Invalid, match=r"shop\.example is the domain of network 101 already"):
        world.call("cluster.set", dns_domain="shop.example")
    world.call("cluster.set", dns_domain="pvc.example")
    with pytest.raises(Invalid, match="the domain of the cluster's nodes already"):
        world.call("network.modify", network="101", domain="pvc.example")


def test_who_answers_for_a_floating_address() -> None:
    """Told by who has it, so shown only while that node runs."""
    world = a_world()
    world.call("cluster.set", upstream_address=FLOATING)
    make_primary(world, "n1")
    assert world.call("cluster.status")["addresses"] == {"upstream": {"address": FLOATING, "node": ""}}
    shown = world.call("node.info", node="n1")
    assert (shown["coordinator_state"], shown["settled"]) == ("takeover", False)
    assert shown["activity"] == "about to answer for the floating addresses"
    world.edit(paths.load("n1"), addresses=[FLOATING])
    assert world.call("cluster.status")["addresses"] == {"upstream": {"address": FLOATING, "node": "n1"}}
    shown = world.call("node.info", node="n1")
    assert (shown["coordinator_state"], shown["settled"]) == ("primary", True)
    assert shown["floating_addresses"] == [FLOATING]
    world.kill_node("n1")
    assert world.call("cluster.status")["addresses"] == {"upstream": {"address": FLOATING, "node": ""}}
    assert world.call("node.info", node="n1")["floating_addresses"] == []


def test_an_address_that_has_no_device() -> None:
    world = a_world()
    world.call("cluster.set", upstream_address=FLOATING)
    make_primary(world, "n1")
    world.edit(paths.load("n1"), address_problem="no network device")
    assert world.call("cluster.status")["problems"] == ["node n1: no network device"]
    assert world.call("node.info", node="n1")["coordinator_state"] == "primary"


def test_the_role_on_its_way() -> None:
    world = a_world()
    make_primary(world, "n1")
    world.edit(paths.CLUSTER, primary="n2")
    states = {one["name"]: one["coordinator_state"] for one in world.call("node.list")}
    assert states == {"n1": "relinquish", "n2": "takeover", "n3": "secondary"}


def make_primary(world: World, name: str) -> None:
    for node in ("n1", "n2", "n3"):
        world.edit(paths.node(node), role="coordinator")
    world.store.commit(Create(paths.PRIMARY, dumps(Primary(name, 1, 0)), ephemeral=True))


# Why


def why(world: World, noun: str, name: str) -> list[str]:
    given: dict[str, Any] = {noun: name}
    lines = world.call(f"why.{noun}", **given)["because"]
    assert isinstance(lines, list)
    return lines


def test_why_a_vm_runs() -> None:
    assert why(with_vm("running"), "vm", "web1") == [
        "it is wanted running on n1",
        "n1 runs it",
        "nothing is going on: it is as wanted",
    ]


def test_why_a_vm_does_not_start() -> None:
    world = with_vm()
    world.call("vm.start", vm="web1")
    world.kill_node("n1")
    world.call("node.flush", node="n2")
    assert why(world, "vm", "web1") == [
        "it is wanted running on n1",
        "no node runs it",
        "it is not there yet: starting on n1",
        "n1 cannot take it: its daemon is dead",
        "n2 cannot take it: it is flushed",
        "n3 can take it",
    ]


def test_why_a_vm_failed() -> None:
    lines = why(failed(), "vm", "web1")
    assert "its node says: no such disk" in lines
    assert "it ended badly 5 times in a row, 5 times are the limit" in lines
    assert "it is not tried again by itself: pvc vm start web1 does" in lines
    assert "nothing is going on: it is as wanted" not in lines


def test_why_a_vm_is_moving() -> None:
    world = with_vm("running")
    world.call("vm.migrate", vm="web1", target="n2")
    lines = why(world, "vm", "web1")
    assert "it is not there yet: waiting for n2 to prepare" in lines
    assert "n2 has not answered yet whether it can take it" in lines
    assert any(line.startswith("it is away from its home n1") for line in lines)


def test_why_a_vm_on_a_dead_node() -> None:
    world = with_vm("running")
    world.kill_node("n1")
    assert any(line.startswith("the daemon of n1 is dead") for line in why(world, "vm", "web1"))


def test_why_a_vm_whose_daemon_was_restarted() -> None:
    world = with_vm("running")
    world.status_is("web1", owner=Owner("n1", 7))
    assert any("was restarted" in line for line in why(world, "vm", "web1"))


def test_why_a_change_is_not_seen() -> None:
    world = with_vm("running")
    world.call("vm.memory-set", vm="web1", memory="1G")
    assert any("pvc vm restart web1 runs the new one" in line for line in why(world, "vm", "web1"))


def test_why_a_node_is_not_flushed() -> None:
    world = with_vm("running")
    world.call("node.flush", node="n1")
    world.call("node.flush", node="n2")
    world.edit(paths.load("n3"), memory_free_mib=1)
    world.edit(paths.load("n1"), problem="web1 fits nowhere")
    assert why(world, "node", "n1") == [
        "it is wanted flushed: pvc node ready n1 changes that",
        "its daemon is in state run, version 1.0",
        "it says: web1 fits nowhere",
        "it runs: web1",
        "web1 cannot go to n2: it is flushed",
        "web1 cannot go to n3: 512 MiB do not fit its free 1 MiB",
    ]


def test_why_a_node_has_vms_away() -> None:
    world = with_vm("running")
    world.call("vm.migrate", vm="web1", target="n2")
    world.status_is("web1", state=State.MIGRATE)
    world.call("node.flush", node="n1")
    lines = why(world, "node", "n1")
    assert "at home here and away: web1" in lines
    assert "web1 is on its way: migrating to n2" in lines


def test_why_a_node_is_dead() -> None:
    world = a_world()
    world.kill_node("n2")
    assert any(line.startswith("its daemon is dead") for line in why(world, "node", "n2"))


def test_why_takes_a_uuid() -> None:
    assert with_vm().call("why.vm", vm=UUID)["name"] == "web1"


def test_routers_are_named_and_forgotten() -> None:
    world = a_world()
    shown = world.call("cluster.set", router=["192.0.2.1@64512", "FD00:9::1@4200000000"], as_number=64600)
    assert shown["routers"] == ["192.0.2.1@64512", "fd00:9::1@4200000000"]
    assert world.call("cluster.info")["as_number"] == 64600
    assert world.call("cluster.set", as_number=65000)["routers"] == shown["routers"]
    assert world.call("cluster.set", router=["none"])["routers"] == []
