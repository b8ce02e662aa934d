"""Tasks: work that is no state one could wish for, done once by one node. What is asked and how it stands.

A task may claim documents: they are made with it and go with its end, so that no two tasks that claim the
same ones exist at the same time, on whatever nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.store import Create, Delete, Op, Put, Reader

KEEP_COUNT = 100
"""Tasks that are over, of each node."""
KEEP_S = 7 * 24 * 3600.0


class TaskState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"
    """The daemon that was at it has ended. What it had begun is undone once the node is back."""

    @property
    def is_over(self) -> bool:
        return self not in (TaskState.WAITING, TaskState.RUNNING)


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """Written by operations."""

    id: str
    kind: str
    """The operation that asked for it."""
    about: str
    """What it does, in words."""
    node: str
    """Who is to do it: changed when that is fenced while the VM it is at is recovered."""
    by: str
    """Who asked."""
    at: float
    """Wall clock of whoever took the request, to show to people."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    claims: tuple[str, ...] = ()
    """Documents that are there as long as it is not over."""
    cancel: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskError:
    """The error that ended it, for whoever waits to end with."""

    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """Written by the node that does it."""

    state: TaskState = TaskState.WAITING
    incarnation: int = 0
    """The life of the daemon that began it."""
    lost_by: str = ""
    """The node that began it, once it was taken from that: whoever has it now undoes it."""
    fraction: float = 0.0
    words: str = ""
    """What it is at."""
    began: float = 0.0
    ended: float = 0.0
    """Both by the wall clock of the node, to show to people."""
    result: Mapping[str, Any] = field(default_factory=dict)
    error: TaskError | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def begin_ops(spec: TaskSpec) -> tuple[Op, ...]:
    """What makes it known to its node."""
    return (
        Create(paths.task(spec.id), dumps(spec)),
        Create(paths.node_task(spec.node, spec.id)),
        *(Create(path, spec.id.encode()) for path in spec.claims),
    )


def release_ops(spec: TaskSpec, reader: Reader) -> tuple[Op, ...]:
    """What belongs into the transaction that writes its end."""
    claims = reader.get_many(spec.claims)
    mine = spec.id.encode()
    return tuple(Delete(one.path, one.version) for one in claims if one is not None and one.data == mine)


def hand_over_ops(
    spec: TaskSpec, spec_version: int, status: TaskStatus, status_version: int | None, node: str
) -> tuple[Op, ...]:
    """To a node that is to end it. Its status is written in any case: who was at it can end it no more."""
    path = paths.task_status(spec.id)
    is_begun = status.state is TaskState.RUNNING
    lost = replace(
        status, lost_by=status.lost_by or spec.node, incarnation=0
    )  # lives of two nodes do not compare
    told = dumps(lost if is_begun else status)
    return (
        Put(paths.task(spec.id), dumps(replace(spec, node=node)), spec_version),
        Create(path, told) if status_version is None else Put(path, told, status_version),
        Delete(paths.node_task(spec.node, spec.id)),
        Create(paths.node_task(node, spec.id)),
    )


def forget_ops(spec: TaskSpec, *, has_status: bool) -> tuple[Op, ...]:
    """Of one that is over."""
    status = (Delete(paths.task_status(spec.id)),) if has_status else ()
    return (*status, Delete(paths.task(spec.id)), Delete(paths.node_task(spec.node, spec.id)))


def outdated(ended: Iterable[tuple[str, float]], now: float) -> list[str]:
    """Which of the tasks that are over (identity, end) need not be kept any longer."""
    newest_first = sorted(ended, key=lambda one: one[1], reverse=True)
    return [
        identity
        for place, (identity, at) in enumerate(newest_first)
        if place >= KEEP_COUNT or now - at > KEEP_S
    ]
