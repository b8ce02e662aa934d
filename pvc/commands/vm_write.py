"""How an operation writes a VM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pvc.cluster import paths, records, storage
from pvc.cluster.records import with_definition
from pvc.cluster.storage import Volume
from pvc.cluster.store import Check, Op
from pvc.cluster.vm import VMSpec
from pvc.commands import task
from pvc.commands.context import Context
from pvc.errors import Conflict, Unavailable

if TYPE_CHECKING:
    from pvc.cluster.view import VM
    from pvc.commands.task import TaskInfo

__all__ = ["begin", "check_stays", "check_unclaimed", "save", "with_definition"]


def save(ctx: Context, vm: VM, new: VMSpec, *more: Op, relies_on_status: bool = False) -> VM:
    """Commit a changed spec with its index; the VM as it is after that. No change writes nothing.

    The index depends on the owner: who changes the assignment also checks that the owner is the same.
    """
    if new == vm.spec and not more:
        ctx.say("nothing would change")
        return vm
    check_unclaimed(ctx, vm)
    check_stays(vm)
    moved = (new.node, new.home) != (vm.spec.node, vm.spec.home)
    checks: list[Op] = []
    if (moved or relies_on_status) and vm.status_version is not None:
        checks.append(Check(paths.vm_status(new.uuid), vm.status_version))
    first, *rest = records.change(ctx.view, vm, new)
    ctx.commit(first, *checks, *rest, *more)
    return replace(vm, spec=new, spec_version=vm.spec_version + 1)


def check_unclaimed(ctx: Context, vm: VM) -> None:
    """Raises Conflict while a task is at the VM as a whole. One that comes changes the spec: no commit that
    was checked before succeeds after it."""
    if claim := ctx.store.get(paths.vm_claim(vm.spec.uuid)):
        by = claim.data.decode()
        raise Conflict(f"task {by} is at {vm.spec.name}", hint=f"pvc task wait {by}")


def check_stays(vm: VM) -> None:
    """Raises Conflict for one that is being removed, whatever has become of the task."""
    if vm.spec.leaving:
        name = vm.spec.name
        raise Conflict(
            f"{name} is being removed", hint=f"pvc task list; pvc vm remove {name} goes on with it"
        )


def begin(
    ctx: Context,
    kind: str,
    about: str,
    vm: VM | None,
    volumes: Iterable[Volume],
    *,
    arguments: Mapping[str, Any],
    spec: VMSpec | None = None,
    pools: Iterable[str] = (),
    ops: Iterable[Op] = (),
) -> TaskInfo:
    """A task that has a VM as a whole, and those volumes, for itself: of a node that reaches their pools, the
    VM's own while it runs. `spec`: what becomes of it at once; `pools`: others that it needs.

    Raises Conflict, NotFound, Unavailable.
    """
    volumes = sorted({*volumes})
    claims = [paths.pool_claim(one.pool, one.name) for one in volumes]
    checks: list[Op] = []
    if vm is not None:
        check_unclaimed(ctx, vm)
        if spec is None or not spec.leaving:
            check_stays(vm)
        claims.append(paths.vm_claim(vm.spec.uuid))
        checks += records.change(ctx.view, vm, spec or vm.spec)
        if vm.status_version is not None:
            checks.append(Check(paths.vm_status(vm.spec.uuid), vm.status_version))
    for name in sorted({*pools, *(one.pool for one in volumes)}):
        pool = ctx.view.pool(name)
        if pool.spec.leaving:
            raise Conflict(f"pool {name} is being removed", hint="pvc task list")
        checks.append(Check(paths.pool(name), pool.spec_version))
    node = _who_does(ctx, vm, {*pools, *(one.pool for one in volumes)}, about)
    return task.begin(ctx, kind, about, node, arguments=arguments, claims=claims, ops=[*checks, *ops])


def _who_does(ctx: Context, vm: VM | None, pools: set[str], about: str) -> str:
    """Where it runs, or is to run. Raises Unavailable."""
    nodes = ctx.view.nodes()
    able = {name for name, node in nodes.items() if node.is_running}
    for name in sorted(pools):
        able &= {one.spec.name for one in storage.who_reaches(ctx.view.pool(name).spec, nodes.values())}
    owner = vm.status.owner.node if vm is not None and vm.status.owner is not None else None
    if owner is not None and owner in able:
        return owner
    if owner is not None or not able:
        who = f"{owner}, where it runs, does not" if owner is not None else "no node does"
        raise Unavailable(
            f"{who} reach {', '.join(sorted(pools)) or 'the cluster'} now", hint="pvc node list"
        )
    placed = vm.spec.node if vm is not None else None
    return placed if placed in able else storage.spread(able, about)
