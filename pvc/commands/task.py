"""Tasks: work that takes a while and that one node does, in the background."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.node import DaemonState
from pvc.cluster.store import Op, Put
from pvc.cluster.tasks import TaskSpec, TaskState, TaskStatus, begin_ops
from pvc.commands import types
from pvc.commands.context import Context, LocalContext
from pvc.commands.registry import Arg, Role, local, operation
from pvc.commands.types import Limit, TaskName
from pvc.errors import Conflict, Unavailable

if TYPE_CHECKING:
    from pvc.cluster.view import Node, Task

ENDED = (DaemonState.STOP, DaemonState.FENCED)


@dataclass(frozen=True, slots=True)
class TaskInfo:
    name: str
    """Its identity."""
    kind: str
    """The operation that asked for it."""
    about: str
    state: TaskState
    percent: int
    activity: str
    node: str
    by: str
    asked_at: float
    began_at: float
    ended_at: float
    result: Mapping[str, Any]
    reason: str
    """Why it was not done."""
    error: Mapping[str, str] | None
    """The same as code, message and hint."""
    version: str
    settled: bool
    goal: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class TaskRow:
    name: str
    about: str
    state: TaskState
    percent: int
    node: str
    by: str
    asked_at: float
    reason: str


@operation("GET", "/task/{task}")
def info(ctx: Context, task: TaskName) -> TaskInfo:
    """Show how a task stands: what it is at, its result, or why it failed."""
    found = ctx.view.task(task)
    return describe(found, ctx.view.nodes([found.spec.node]).get(found.spec.node))


@operation(
    "GET",
    "/task",
    verb="list",
    columns=("name", "about", "state", "percent", "node", "by", "asked_at", "reason"),
)
def list_(
    ctx: Context,
    limit: Limit = "",
    *,
    state: Annotated[TaskState, Arg("only those in that state", short="-s")] | None = None,
    node: Annotated[types.NodeName, Arg("only those of that node", short="-t")] | None = None,
) -> tuple[TaskRow, ...]:
    """List tasks, also those of the last days that are over, the newest first; LIMIT is for what they do."""
    matches = types.limit_pattern(limit).search
    nodes = ctx.view.nodes()
    found = (describe(one, nodes.get(one.spec.node)) for one in ctx.view.tasks().values())
    rows = (
        TaskRow(one.name, one.about, one.state, one.percent, one.node, one.by, one.asked_at, one.reason)
        for one in found
        if matches(one.about) and state in (None, one.state) and node in (None, one.node)
    )
    return tuple(sorted(rows, key=lambda row: (row.asked_at, row.name), reverse=True))


@operation("POST", "/task/{task}/cancel", role=Role.OPERATE, waits="task.info")
def cancel(ctx: Context, task: TaskName) -> TaskInfo:
    """End a task before it is done; what it had begun is taken away."""
    found = ctx.view.task(task)
    node = ctx.view.nodes([found.spec.node]).get(found.spec.node)
    if (shown := describe(found, node)).state.is_over:
        raise Conflict(f"task {task} is over: {shown.state}", hint=f"pvc task info {task}")
    ctx.say(f"{found.spec.about} on {found.spec.node} ends, and what it had begun is taken away")
    if not found.spec.cancel:
        spec = replace(found.spec, cancel=True)
        ctx.commit(Put(paths.task(task), dumps(spec), found.spec_version))
        found = replace(found, spec=spec, spec_version=found.spec_version + 1)
    return replace(describe(found, node), goal={"state": TaskState.CANCELLED})


@local()
def wait(
    ctx: LocalContext,
    task: TaskName,
    *,
    timeout: Annotated[float, Arg("wait no longer than that, then exit with 7", minimum=0.1)] | None = None,
) -> dict[str, Any]:
    """Wait for a task that goes on, and end as it does."""
    from pvc.waiting import wait

    again = f"pvc task info {task} --watch"
    return wait(ctx.connect(), "task.info", {"task": task}, {"state": "done"}, timeout_s=timeout, again=again)


@local(noun="cluster", verb="task")
def of_cluster(ctx: LocalContext, task: TaskName = "") -> Any:
    """Show a task, or all of them: `task info` and `task list` under the name of earlier versions."""
    return ctx.call("task.info", task=task) if task else ctx.call("task.list")


def describe(task: Task, node: Node | None) -> TaskInfo:
    """As it stands now, which its node may not have written yet: nor can one that has died."""
    spec, status = task.spec, task.status
    state = TaskState.LOST if _is_lost(task, node) else status.state
    error = {"code": e.code, "message": e.message, "hint": e.hint} if (e := status.error) else None
    reason = e.message if e else ""
    if state is TaskState.LOST and not reason:
        who = status.lost_by or spec.node
        reason = f"the daemon of {who} ended while it was at it; what it had begun is not undone yet"
        reason += f" ({status.words})" if status.words.startswith("undoing: ") else ""
    return TaskInfo(
        name=spec.id,
        kind=spec.kind,
        about=spec.about,
        state=state,
        percent=int(status.fraction * 100),
        activity="" if state.is_over else _activity(task, node),
        node=spec.node,
        by=spec.by,
        asked_at=spec.at,
        began_at=status.began,
        ended_at=status.ended,
        result=status.result,
        reason=reason,
        error=error,
        version=f"{task.version}.{node.version if node and not state.is_over else ''}",
        settled=state.is_over,
    )


def _is_lost(task: Task, node: Node | None) -> bool:
    """Surely: a node that does not answer may still be at it."""
    if task.status.state.is_over:
        return False
    if node is None:
        return True
    is_other_life = node.status.incarnation != task.status.incarnation
    is_over = is_other_life or bool(task.status.lost_by) or node.daemon_state in ENDED
    return task.status.state is TaskState.RUNNING and is_over


def _activity(task: Task, node: Node | None) -> str:
    spec, status = task.spec, task.status
    if node is not None and not node.is_running:
        return f"{spec.about}: {spec.node}, which is to do it, is {node.daemon_state}"
    if status.state is TaskState.WAITING:
        return f"{spec.about}: waiting for {spec.node}"
    words = f"{spec.about}: {status.words}" if status.words else spec.about
    ending = ", ending" if spec.cancel else ""
    return (
        f"{words}, {status.fraction:.0%}".replace("%", " %") + ending if status.fraction else words + ending
    )


# For the operations that need a task


def begin(
    ctx: Context,
    kind: str,
    about: str,
    node: str,
    *,
    arguments: Mapping[str, Any],
    claims: Iterable[str] = (),
    ops: Iterable[Op] = (),
) -> TaskInfo:
    """Commit a task for a node, and whatever belongs to it. Raises Unavailable, Conflict."""
    found = ctx.view.node(node)
    if not found.is_running:
        raise Unavailable(f"{node} is to do it, and its daemon is {found.daemon_state}")
    if ctx.store.get(paths.node_tasks(node)) is None:
        raise Unavailable(
            f"pvc {found.status.version} on {node} knows no tasks", hint="install this one there"
        )
    claims = tuple(claims)
    for path, claim in zip(claims, ctx.store.get_many(claims), strict=True):
        if claim is not None:
            other = claim.data.decode()
            raise Conflict(
                f"{path.rpartition('/')[2]} is being changed by task {other}", hint=f"pvc task wait {other}"
            )
    spec = TaskSpec(
        secrets.token_hex(4), kind, about, node, ctx.caller.name, ctx.clock.wall(), arguments, claims
    )
    ctx.say(f"{node} does it: {about}")
    ctx.commit(*ops, *begin_ops(spec))
    from pvc.cluster.view import Task

    described = describe(Task(spec, 0, TaskStatus(), None), found)
    return replace(described, goal={"state": TaskState.DONE})
