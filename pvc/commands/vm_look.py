"""Looking at VMs: info, list, dump."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pvc.commands import types
from pvc.commands.context import Context, LocalContext
from pvc.commands.registry import Arg, local, operation
from pvc.commands.types import Limit, NodeName, TagName, VMName
from pvc.commands.vm_info import VMInfo, VMRow, describe, row
from pvc.errors import Failed


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


@operation("GET", "/vm/{vm}", noun="vm")
def info(ctx: Context, vm: VMName) -> VMInfo:
    """Show everything about a VM."""
    return describe(ctx.view.vm(vm))


@operation(
    "GET",
    "/vm",
    noun="vm",
    verb="list",
    columns=("name", "state", "tags", "networks", "memory_mib", "vcpus", "node", "migrated_from"),
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


@operation("GET", "/vm/{vm}/definition", noun="vm")
def definition(ctx: Context, vm: VMName) -> str:
    """The libvirt domain XML of a VM as data; `vm dump` is the verb for people."""
    return ctx.view.vm(vm).spec.definition


@local(noun="vm")
def dump(
    ctx: LocalContext,
    vm: VMName,
    *,
    file: Annotated[str, Arg("write it there instead of printing it", short="-f", metavar="FILE")] = "",
) -> str | None:
    """Print a VM's libvirt domain XML."""
    xml = ctx.call("vm.definition", vm=vm)
    if not file:
        return str(xml)
    try:
        with open(file, "w", encoding="utf-8") as opened:
            opened.write(xml)
    except OSError as error:
        raise Failed(f"cannot write {file}: {error.strerror}") from None
    return None
