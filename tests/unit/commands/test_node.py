"""Nodes: list, info, flush, ready, remove; and texts that nodes serve."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.membership import Block
from pvc.cluster.node import Alive, Wanted
from pvc.cluster.store import Create
from pvc.cluster.view import View
from pvc.commands.context import LocalContext
from pvc.commands.registry import find
from pvc.errors import Conflict, Unavailable
from tests.unit.commands.test_vm_settings import ToWorld
from tests.unit.commands.world import UUID, World, a_world, well, with_vm, xml_of


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, ["n1", "n2", "n3"]),
        ({"limit": "[12]"}, ["n1", "n2"]),
        ({"daemon_state": "run"}, ["n1", "n2"]),
        ({"daemon_state": "dead"}, ["n3"]),
        ({"domain_state": "flush"}, ["n2"]),
        ({"daemon_state": "run", "domain_state": "ready"}, ["n1"]),
        ({"daemon_state": "dead", "domain_state": "flush"}, []),
        ({"coordinator_state": "secondary"}, ["n1"]),
        ({"coordinator_state": "hypervisor", "daemon_state": "run"}, ["n2"]),
    ],
)
def test_list_filters_are_and_ed(given: dict[str, Any], names: list[str]) -> None:
    world = a_world()
    world.kill_node("n3")
    world.call("node.flush", node="n2")
    world.edit(paths.node("n1"), role="coordinator")
    assert [row["name"] for row in world.call("node.list", **given)] == names


def test_info() -> None:
    shown = a_world().call("node.info", node="n1")
    assert (shown["daemon_state"], shown["domain_state"], shown["memory_free_mib"]) == ("run", "ready", 6900)
    assert (shown["settled"], shown["goal"], shown["pvc_version"]) == (True, None, "1.0")


def test_flush_and_ready_change_one_word_of_the_spec() -> None:
    world = with_vm("running")
    before = world.plain(paths.node("n1"))
    world.edit(paths.load("n1"), vms=1)
    shown = world.call("node.flush", node="n1")
    assert world.plain(paths.node("n1")) == {**before, "wanted": "flushed"}
    assert (shown["domain_state"], shown["settled"]) == ("flush", False)
    assert shown["goal"] == {"domain_state": "flushed"}
    assert shown["activity"] == "1 VM is still here"
    assert world.spec("web1").node == "n1", "the node itself moves its VMs"
    world.edit(paths.node_status("n1"), flushed=True)
    world.edit(paths.load("n1"), vms=0)
    assert world.call("node.info", node="n1")["domain_state"] == "flushed"
    shown = world.call("node.ready", node="n1")
    assert world.plain(paths.node("n1")) == before
    assert (shown["domain_state"], shown["goal"]) == ("unflush", {"domain_state": "ready"})


def test_a_plan_of_a_flush_says_where_each_vm_goes_and_reserves() -> None:
    world = with_vm("running", xml=xml_of(memory_mib=4000))
    second = world.call("vm.create", name="web2", memory="4000", target="n1")
    world.call("vm.start", vm=second["uuid"])
    world.call("vm.create", name="off", target="n1")
    plan = world.plan("node.flush", node="n1")["plan"]
    assert "web1 goes to n2: most free memory (6800 MiB)" in plan
    assert "web2 goes to n3: most free memory (6700 MiB)" in plan
    assert not any("off" in line for line in plan)


def test_flush_names_the_vms_that_fit_nowhere() -> None:
    world = with_vm("running", limit=["n1"])
    with pytest.raises(Conflict, match=r"these VMs fit nowhere else: web1 \(.*n2: the VM is limited to n1"):
        world.call("node.flush", node="n1")
    assert world.call("node.info", node="n1")["domain_state"] == "ready"
    world.call("vm.stop", vm="web1")
    world.ended("web1")
    world.call("node.flush", node="n1")


def test_flush_names_a_vm_whose_definition_is_unreadable() -> None:
    world = with_vm("running")
    world.edit(paths.vm(UUID), definition="<domain")
    with pytest.raises(Conflict, match=r"web1 \(its definition is unreadable"):
        world.call("node.flush", node="n1")


def test_flush_of_the_last_node_that_is_ready() -> None:
    world = with_vm("running")
    world.call("node.flush", node="n2")
    world.call("node.flush", node="n3")
    with pytest.raises(Conflict, match="n1 cannot be flushed"):
        world.call("node.flush", node="n1")


@pytest.mark.parametrize("verb", ["node.flush", "node.ready"])
def test_again_is_no_change(verb: str) -> None:
    world = a_world()
    world.call(verb, node="n1")
    before = world.documents()
    world.call(verb, node="n1")
    assert world.documents() == before


def test_a_plan_of_ready_says_what_comes_back() -> None:
    world = with_vm("running")
    world.call("vm.create", name="auto", target="n1", autostart=True)
    world.call("vm.migrate", vm="web1", target="n2")
    world.runs("web1", "n2")
    world.call("node.flush", node="n1")
    plan = world.plan("node.ready", node="n1")["plan"]
    assert "web1 comes back from n2" in plan
    assert "auto starts, as its autostart says" in plan


def test_remove_leaves_nothing() -> None:
    world = a_world(nodes=2)
    before = world.documents()
    world.add_node("n3")
    world.kill_node("n3")
    world.call("node.remove", node="n3")
    assert world.documents() == before


def test_remove_names_what_is_on_cephs_block_list() -> None:
    """Nobody else knows; and a node that comes with that name takes it off."""
    world = a_world()
    world.kill_node("n3")
    block = Block("n3", 1, ("10.0.0.3", "fd00::3"), epoch=7)
    world.store.commit(Create(paths.block("n3"), dumps(block)))
    removed = world.call("node.remove", node="n3")
    assert removed["blocklisted"] == ["10.0.0.3", "fd00::3"]
    assert "10.0.0.3:0/0, [fd00::3]:0/0" in removed["told"]
    left, _ = View(world.store).blocks()["n3"]
    assert left == replace(block, epoch=0)


def test_remove_forgets_a_block_that_is_over() -> None:
    world = a_world()
    world.kill_node("n3")
    block = Block("n3", 1, ("10.0.0.3",), epoch=7, lifted=True)
    world.store.commit(Create(paths.block("n3"), dumps(block)))
    assert world.call("node.remove", node="n3")["blocklisted"] == []
    assert world.store.get(paths.block("n3")) is None


@pytest.mark.parametrize("place", ["assigned", "at home"])
def test_remove_refuses_a_node_with_vms(place: str) -> None:
    world = with_vm()
    if place == "at home":
        world.call("vm.migrate", vm="web1", target="n2")
    world.kill_node("n1")
    with pytest.raises(Conflict, match="n1 still has VMs: web1"):
        world.call("node.remove", node="n1")


# Texts


class Nodes:
    """Console text as nodes serve it: (node's port, path) → text."""

    def __init__(self, texts: dict[tuple[int, str], str]) -> None:
        self.texts = texts
        self.waits: list[int] = []

    def __call__(
        self,
        address: str,
        port: int,
        path: str,
        *,
        lines: int = 100,
        cursor: int | None = None,
        wait_s: int = 0,
    ) -> tuple[str, int]:
        self.waits.append(wait_s)
        if (port, path) not in self.texts:
            raise Unavailable(f"nothing at {port}")
        text = self.texts[port, path]
        if cursor is None:
            return "".join(text.splitlines(keepends=True)[-lines:]), len(text)
        return text[cursor:], len(text)


def console_world() -> tuple[World, Nodes]:
    world = with_vm("running")
    for number in (1, 2, 3):
        world.edit(paths.node_status(f"n{number}"), console_port=number)
    return world, Nodes({(1, f"console/{UUID}"): "a\nb\nc\n", (2, f"console/{UUID}"): ""})


def test_console_text_comes_from_where_it_runs() -> None:
    world, nodes = console_world()
    shown = world.call_with_console(nodes, "vm.log-text", vm="web1", lines=2)
    assert shown == {"text": "b\nc\n", "cursor": "n1:6", "node": "n1"}
    nodes.texts[1, f"console/{UUID}"] += "d\n"
    shown = world.call_with_console(nodes, "vm.log-text", vm="web1", cursor=shown["cursor"])
    assert shown == {"text": "d\n", "cursor": "n1:8", "node": "n1"}
    assert nodes.waits == [0, 1], "only who follows waits, at the node"


def test_console_text_follows_a_migration_there_and_back() -> None:
    world, nodes = console_world()
    here, there = (1, f"console/{UUID}"), (2, f"console/{UUID}")
    cursor = world.call_with_console(nodes, "vm.log-text", vm="web1")["cursor"]
    nodes.texts[here] += "last on n1\n"
    nodes.texts[there] = "first on n2\n"
    world.call("vm.migrate", vm="web1", target="n2")
    world.runs("web1", "n2")
    shown = world.call_with_console(nodes, "vm.log-text", vm="web1", cursor=cursor)
    assert shown["text"] == "last on n1\nfirst on n2\n"
    world.call("vm.unmigrate", vm="web1")
    world.runs("web1", "n1")
    nodes.texts[there] += "last on n2\n"
    nodes.texts[here] += "back on n1\n"
    shown = world.call_with_console(nodes, "vm.log-text", vm="web1", cursor=shown["cursor"])
    assert shown["text"] == "last on n2\nback on n1\n", "nothing twice, nothing lost"


def test_console_text_goes_on_when_the_node_before_is_gone() -> None:
    world, nodes = console_world()
    cursor = world.call_with_console(nodes, "vm.log-text", vm="web1")["cursor"]
    world.call("vm.migrate", vm="web1", target="n2")
    world.runs("web1", "n2")
    del nodes.texts[1, f"console/{UUID}"]
    nodes.texts[2, f"console/{UUID}"] = "on n2\n"
    assert world.call_with_console(nodes, "vm.log-text", vm="web1", cursor=cursor)["text"] == "on n2\n"


def test_console_text_of_a_node_that_serves_none() -> None:
    world, nodes = console_world()
    world.edit(paths.node_status("n1"), console_port=0)
    with pytest.raises(Unavailable, match="n1 does not serve texts"):
        world.call_with_console(nodes, "vm.log-text", vm="web1")


class Follower(ToWorld):
    """The client of `log -f`, until the user interrupts it."""

    def __init__(self, answers: list[Any]) -> None:
        super().__init__(World())
        self.answers = answers
        self.asked: list[dict[str, Any]] = []

    def call(self, name: str, arguments: Any, **how: Any) -> Any:
        self.asked.append(dict(arguments))
        if not self.answers:
            raise KeyboardInterrupt
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def text(part: str, cursor: str) -> dict[str, str]:
    return {"text": part, "cursor": cursor, "node": "n1"}


def test_log_prints_the_last_lines(capsys: pytest.CaptureFixture[str]) -> None:
    follower = Follower([text("a\nb\n", "n1:4")])
    find("vm.log").function(LocalContext(connect=lambda: follower), vm="web1")
    assert capsys.readouterr().out == "a\nb\n"
    assert follower.asked == [{"vm": "web1", "lines": 1000}]


def test_log_follows_keeps_lines_whole_and_outlives_an_outage(capsys: pytest.CaptureFixture[str]) -> None:
    follower = Follower([text("a\nb", "n1:3"), Unavailable("away"), text("b\nc\n", "n1:7")])
    with pytest.raises(KeyboardInterrupt):
        find("vm.log").function(LocalContext(connect=lambda: follower, quiet=True), vm="web1", follow=True)
    assert capsys.readouterr().out == "a\nbb\nc\n"
    assert [asked.get("cursor") for asked in follower.asked] == [None, "n1:3", "n1:3", "n1:7"]
    assert follower.asked[0]["lines"] == 10


def test_a_node_that_was_removed_can_join_again() -> None:
    world = a_world()
    world.kill_node("n3")
    world.call("node.remove", node="n3")
    world.add_node("n3")
    assert world.call("node.info", node="n3")["domain_state"] == Wanted.READY


def test_remove_loses_against_a_daemon_that_starts() -> None:
    world = a_world()
    world.kill_node("n3")
    world.store.commit(Create(paths.alive("n3"), dumps(Alive(2))))
    with pytest.raises(Conflict, match="daemon of n3"):
        world.call("node.remove", node="n3")


def test_coordinator_that_is_removed_takes_its_traces_along() -> None:
    world = well()
    world.edit(paths.CLUSTER, primary="n3")
    world.kill_node("n3")
    world.call("node.remove", node="n3")
    assert world.plain(paths.CLUSTER)["primary"] == ""
    assert world.store.get(paths.verified("n3")) is None


def test_last_coordinator_is_not_removed() -> None:
    world = a_world(1)
    world.edit(paths.node("n1"), role="coordinator")
    world.kill_node("n1")
    with pytest.raises(Conflict, match="n1 is the last coordinator"):
        world.call("node.remove", node="n1")


def test_what_of_its_own_networks_is_not_as_described() -> None:
    world = a_world()
    said = "there is no device eth7, which network.storage.device names"
    world.edit(paths.node_status("n2"), host_network_problems=[said])
    assert world.call("node.info", node="n2")["network_problems"] == [said]
    assert f"its own networks: {said}" in world.call("why.node", node="n2")["because"]
    assert world.call("cluster.status")["problems"] == [f"node n2: {said}"]
    assert world.call("node.info", node="n1")["network_problems"] == []
