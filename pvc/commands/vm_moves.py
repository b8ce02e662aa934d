"""Changing the node of a VM: move, migrate for now, come back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pvc.cluster.vm import Method, Power, move
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.types import Target, VMName
from pvc.commands.vm_info import Goal, VMInfo, describe, is_moving
from pvc.commands.vm_place import called_back, choose, placement_of, refusal, without_size
from pvc.commands.vm_write import save
from pvc.errors import Conflict, NotFound

if TYPE_CHECKING:
    from pvc.cluster.view import VM, Node

ForceLive = Annotated[bool, Arg("only live: if that fails, it stays where it is")]


def _target(ctx: Context, vm: VM, given: str | None, current: str | None) -> str:
    """The node that was asked for, if it can take the VM, or the best of the others."""
    placement, spec = placement_of(ctx), vm.spec
    if given is None:
        return choose(ctx, placement, spec, vm.status, avoid=current)
    if given not in placement.nodes:
        raise NotFound(f"no node named {given}", hint="pvc node list shows them")
    if given == current:
        raise Conflict(f"{spec.name} is on {given} already")
    why = refusal(placement, given, spec if vm.status.owner else without_size(spec), vm.status)
    if why:
        raise Conflict(
            f"{given} cannot take {spec.name}: {why}", hint="pvc node list shows what the nodes have"
        )
    ctx.say(f"{spec.name} goes to {given}, as asked")
    return given


def _check_can_leave(ctx: Context, vm: VM) -> None:
    owner, name = vm.status.owner, vm.spec.name
    if owner is None:
        return
    node = ctx.view.nodes([owner.node]).get(owner.node)
    if node is None or not node.is_running:
        raise Conflict(
            f"{name} runs on {owner.node}, whose daemon is {_daemon(node)}: nobody can move it now"
        )
    if vm.spec.power is not Power.STARTED:
        raise Conflict(f"{name} is being stopped", hint="move it when it has stopped")
    if is_moving(vm):
        raise Conflict(
            f"{name} is on its way from {owner.node} to {vm.spec.node}",
            hint=f"pvc vm move {name} -t {owner.node} calls it back",
        )


def _daemon(node: Node | None) -> str:
    return node.daemon_state if node else "gone"


def _method(vm: VM, force_live: bool) -> Method:
    from pvc.cluster import domainxml

    wanted = Method.LIVE if force_live else vm.spec.method
    if vm.status.owner is None or not domainxml.parse(vm.spec.definition).has_host_devices:
        return wanted
    if wanted is Method.LIVE:
        raise Conflict(
            f"{vm.spec.name} has devices of its host and cannot move live", hint="without --force-live"
        )
    return Method.SHUTDOWN


def _arrived(vm: VM, target: str) -> VMInfo:
    goal: Goal = {"node": target, "state": "start"} if vm.status.owner else {"node": target}
    return describe(vm, goal)


@operation("POST", "/vm/{vm}/move", role=Role.OPERATE, noun="vm", verb="move", waits="vm.info")
def move_(ctx: Context, vm: VMName, *, target: Target | None = None, force_live: ForceLive = False) -> VMInfo:
    """Move a VM to another node for good.

    A VM that runs is moved live, or as its migration method says. A VM that was migrated away loses its old
    home. With the node where it is as the target, that becomes its home, and a move that is under
    way is called back.
    """
    found = ctx.view.vm(vm)
    owner = found.status.owner
    here = owner.node if owner else found.spec.node
    if target is not None and target == here and is_moving(found):
        ctx.say(f"{found.spec.name} stays on {here}")
        return _arrived(save(ctx, found, move(found.spec, here, home=None)), here)
    _check_can_leave(ctx, found)
    if target is not None and target == here and found.spec.home is not None:
        ctx.say(f"{found.spec.name} is at home on {here} from now on")
        return _arrived(save(ctx, found, replace(found.spec, home=None)), here)
    chosen = _target(ctx, found, target, here)
    new = move(found.spec, chosen, home=None, method=_method(found, force_live))
    return _arrived(save(ctx, found, new), chosen)


@operation("POST", "/vm/{vm}/migrate", role=Role.OPERATE, noun="vm", waits="vm.info")
def migrate(
    ctx: Context,
    vm: VMName,
    *,
    target: Target | None = None,
    force: Annotated[
        bool, Arg("also when it is migrated already; its home stays the same", short="-f")
    ] = False,
    force_live: ForceLive = False,
) -> VMInfo:
    """Move a VM to another node for now, remembering its home."""
    found = ctx.view.vm(vm)
    spec, owner = found.spec, found.status.owner
    _check_can_leave(ctx, found)
    if spec.home is not None and not force:
        raise Conflict(
            f"{spec.name} is migrated away from {spec.home} already", hint="pvc vm unmigrate, or --force"
        )
    here = owner.node if owner else spec.node
    chosen = _target(ctx, found, target, here)
    home = spec.home or here
    new = move(spec, chosen, home=None if home == chosen else home, method=_method(found, force_live))
    return _arrived(save(ctx, found, new), chosen)


@operation("POST", "/vm/{vm}/unmigrate", role=Role.OPERATE, noun="vm", waits="vm.info")
def unmigrate(ctx: Context, vm: VMName, *, force_live: ForceLive = False) -> VMInfo:
    """Move a VM back to its home; one that is still leaving it stays there."""
    found = ctx.view.vm(vm)
    spec, owner = found.spec, found.status.owner
    if spec.home is None:
        raise Conflict(f"{spec.name} is not migrated", hint="pvc vm move takes it elsewhere for good")
    if is_moving(found) and owner is not None and owner.node == spec.home:
        ctx.say(f"{spec.name} stays on {owner.node}")
        return _arrived(save(ctx, found, called_back(found)), owner.node)
    _check_can_leave(ctx, found)
    home = _target(ctx, found, spec.home, owner.node if owner else None)
    return _arrived(save(ctx, found, move(spec, home, home=None, method=_method(found, force_live))), home)
