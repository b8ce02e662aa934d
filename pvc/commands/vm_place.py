"""Finding a place for a VM; calling it back from a move."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pvc.cluster.placement import Choice, Placement, explained
from pvc.cluster.vm import VMSpec, VMStatus, move
from pvc.commands.context import Context
from pvc.commands.vm_info import bridges_of
from pvc.errors import Conflict

if TYPE_CHECKING:
    from pvc.cluster.view import VM


def placement_of(ctx: Context) -> Placement:
    return Placement(ctx.view.nodes(), ctx.view.cluster().selector)


def refusal(placement: Placement, name: str | None, spec: VMSpec, status: VMStatus) -> str:
    """Why the node cannot take the VM, one that is gone included; empty if it can."""
    if name is None:
        return "it has none"
    if name not in placement.nodes:
        return "it is no node of the cluster any more"
    return placement.refusal(name, spec, bridges=bridges_of(spec, status))


def without_size(spec: VMSpec) -> VMSpec:
    """For `--force`: fits wherever the rest allows it."""
    return replace(spec, memory_mib=0, vcpus=0)


def choose(
    ctx: Context, placement: Placement, spec: VMSpec, status: VMStatus, avoid: str | None = None
) -> str:
    """The best node. Raises Conflict saying why each one cannot take it."""
    choice = placement.choose(spec, avoid=[avoid] if avoid else [], bridges=bridges_of(spec, status))
    if choice.node is None:
        raise Conflict(
            f"no node can take {spec.name}: {explained(choice)}",
            hint="pvc node list shows what the nodes have",
        )
    ctx.say(f"{spec.name} goes to {choice.node}: {choice.because}")
    _say_refusals(ctx, choice)
    return choice.node


def _say_refusals(ctx: Context, choice: Choice) -> None:
    for name, why in sorted(choice.refused.items()):
        ctx.say(f"not {name}: {why}")


def called_back(vm: VM) -> VMSpec:
    """The spec with a move that is under way withdrawn: it stays with its owner."""
    owner = vm.status.owner
    if owner is None or vm.spec.node in (None, owner.node):
        return vm.spec
    return move(vm.spec, owner.node, home=None if vm.spec.home == owner.node else vm.spec.home)
