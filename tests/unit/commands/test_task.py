"""Tasks as clients see them: listed, waited for, ended with the exit code of what went wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.store import Create, Delete
from pvc.cluster.tasks import TaskError, TaskSpec, TaskState, TaskStatus, begin_ops
from pvc.commands import task
from pvc.commands.context import LocalContext
from pvc.errors import Conflict, Failed, Unavailable
from tests.unit.commands.world import World, a_world
from tests.unit.test_cli import pvc
from tests.unit.thing import FakeTransport

ID = "0000000a"


def with_task(identity: str = ID, node: str = "n1", **status: Any) -> World:
    world = a_world()
    add(world, identity, node, **status)
    return world


def add(world: World, identity: str = ID, node: str = "n1", **status: Any) -> None:
    spec = TaskSpec(identity, "thing.make", f"making {identity[-1]}", node, "tester", int(identity, 16))
    world.store.commit(*begin_ops(spec))
    if status:
        written = TaskStatus(incarnation=1, **status)
        world.store.commit(Create(paths.task_status(identity), dumps(written)))


def test_the_list_has_the_newest_first_and_can_be_narrowed() -> None:
    world = with_task(state=TaskState.DONE)
    add(world, "0000000b", "n2")
    assert [row["name"] for row in world.call("task.list")] == ["0000000b", ID]
    assert [row["name"] for row in world.call("task.list", state="done")] == [ID]
    assert [row["name"] for row in world.call("task.list", node="n2")] == ["0000000b"]
    assert [row["name"] for row in world.call("task.list", limit="making a")] == [ID]


def test_how_far_it_is() -> None:
    world = with_task(state=TaskState.RUNNING, fraction=0.43, words="copying")
    shown = world.call("task.info", task=ID)
    assert shown["activity"] == "making a: copying, 43 %"
    world.call("task.cancel", task=ID)
    assert world.call("task.info", task=ID)["activity"] == "making a: copying, 43 %, ending"
    before = world.documents()
    world.call("task.cancel", task=ID)
    assert world.documents() == before, "once is enough"


def test_a_task_is_begun_on_a_node_that_runs_and_can() -> None:
    world = a_world()
    world.kill_node("n1")
    with pytest.raises(Unavailable, match="n1 is to do it, and its daemon is dead"):
        task.begin(world.context(), "thing.make", "making it", "n1", arguments={})
    world.store.commit(Delete(paths.node_tasks("n2")))
    with pytest.raises(Unavailable, match=r"pvc 1.0 on n2 knows no tasks"):
        task.begin(world.context(), "thing.make", "making it", "n2", arguments={})
    begun = task.begin(world.context(), "thing.make", "making it", "n3", arguments={"a": 1})
    assert begun.goal == {"state": "done"}
    assert (begun.by, begun.state, begun.settled) == ("tester", "waiting", False)
    assert world.store.children(paths.node_tasks("n3")) == (begun.name,)


def test_what_another_task_claims_is_refused_naming_it() -> None:
    world = a_world()
    claim = f"{paths.TASKS}/web1"
    first = task.begin(world.context(), "thing.make", "", "n1", arguments={}, claims=[claim])
    with pytest.raises(Conflict, match=f"web1 is being changed by task {first.name}"):
        task.begin(world.context(), "thing.make", "", "n2", arguments={}, claims=[claim])


# The command line


def answer(state: str, **fields: Any) -> dict[str, Any]:
    found = with_task(state=TaskState(state), **fields).call("task.info", task=ID)
    assert isinstance(found, dict)
    return found


def test_waiting_ends_as_the_task_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert pvc("task", "wait", ID, answers=[answer("done", result={"made": "it"})])[0] == 0
    full = TaskError("conflict", "the pool is full", "pvc storage pool info")
    code, _ = pvc("task", "wait", ID, answers=[answer("failed", error=full)])
    assert code == 4
    assert "the pool is full" in capsys.readouterr().err
    assert pvc("task", "wait", ID, answers=[answer("cancelled")])[0] == 1
    running = {**answer("running"), "settled": False}
    assert pvc("task", "wait", ID, "--timeout", "0.1", answers=[running])[0] == 7


def test_whoever_begins_a_task_follows_it_unless_told_not_to(capsys: pytest.CaptureFixture[str]) -> None:
    begun = {**answer("running"), "goal": {"state": "cancelled"}, "settled": False}
    code, transport = pvc("task", "cancel", ID, answers=[begun, answer("cancelled")])
    assert code == 0
    assert [call.name for call in transport.calls] == ["task.cancel", "task.info"]
    code, transport = pvc("task", "cancel", ID, "--no-wait", answers=[begun])
    assert code == 0
    assert [call.name for call in transport.calls] == ["task.cancel"]
    capsys.readouterr()
    assert pvc("task", "cancel", "--help")[0] == 0
    assert "wait until it is done or has failed, which is the default" in capsys.readouterr().out


def test_cluster_task_is_the_old_name(capsys: pytest.CaptureFixture[str]) -> None:
    code, transport = pvc("cluster", "task", "-f", "json", answers=[[]])
    assert (code, transport.calls[0].name) == (0, "task.list")
    assert json.loads(capsys.readouterr().out) == []
    code, transport = pvc("cluster", "task", ID, answers=[answer("done")])
    assert (code, transport.calls[0].name) == (0, "task.info")


def test_wait_as_a_function() -> None:
    transport = FakeTransport([answer("failed", error=TaskError("failed", "no"))])
    with pytest.raises(Failed, match=r"^no$"):
        task.wait(LocalContext(connect=lambda: transport), ID)
