"""Listing VMs. What is typed most often starts fastest: no other module of VMs is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

from pvc.commands import types
from pvc.commands.context import Context
from pvc.commands.registry import Arg, operation
from pvc.commands.types import Limit, NodeName, TagName

if TYPE_CHECKING:
    from pvc.cluster.view import VM


class ShownState(StrEnum):
    """The one word users see (vm.shown_state)."""

    START = "start"
    STARTING = "starting"
    STOP = "stop"
    SHUTDOWN = "shutdown"
    RESTART = "restart"
    MIGRATE = "migrate"
    DISABLE = "disable"
    FAIL = "fail"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class VMRow:
    name: str
    uuid: str
    state: str
    tags: tuple[str, ...]
    snapshots: int
    networks: tuple[str, ...]
    memory_mib: int
    vcpus: int
    node: str | None
    migrated_from: str | None


@operation(
    "GET",
    "/vm",
    noun="vm",
    verb="list",
    columns=(
        "name",
        "state",
        "tags",
        "snapshots",
        "networks",
        "memory_mib",
        "vcpus",
        "node",
        "migrated_from",
    ),
)
def list_(
    ctx: Context,
    limit: Limit = "",
    *,
    target: Annotated[NodeName, Arg("only VMs on that node", short="-t", metavar="NODE", complete="node")]
    | None = None,
    state: Annotated[ShownState, Arg("only VMs in that state", short="-s")] | None = None,
    tag: Annotated[TagName, Arg("only VMs with that tag", short="-g", metavar="TAG", complete="tag")]
    | None = None,
    negate: Annotated[bool, Arg("only VMs that do not match -t, -s and -g", short="-n")] = False,
) -> tuple[VMRow, ...]:
    """List VMs."""
    matches = types.limit_pattern(limit).search
    rows = (row(vm) for vm in ctx.view.vms().values() if matches(vm.spec.name))
    tests = [
        test
        for given, test in (
            (target, lambda one: one.node == target),
            (state, lambda one: one.state == state),
            (tag, lambda one: tag in one.tags),
        )
        if given is not None
    ]
    if tests:
        rows = (one for one in rows if all(test(one) for test in tests) is not negate)
    return tuple(sorted(rows, key=lambda one: one.name))


def row(vm: VM) -> VMRow:
    spec = vm.spec
    return VMRow(
        name=spec.name,
        uuid=spec.uuid,
        state=vm.shown_state,
        tags=tuple(tag.name for tag in spec.tags),
        snapshots=len(spec.snapshots),
        networks=spec.networks,
        memory_mib=spec.memory_mib,
        vcpus=spec.vcpus,
        node=vm.place,
        migrated_from=spec.home,
    )
