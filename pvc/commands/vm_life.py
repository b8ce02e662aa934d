"""A VM's power: start, shutdown, stop, restart, disable."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pvc.cluster.vm import Power, State, VMSpec, move
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.types import VMName
from pvc.commands.vm_info import VMInfo, describe, is_moving
from pvc.commands.vm_place import called_back, choose, placement_of, refusal, without_size
from pvc.commands.vm_write import save
from pvc.errors import Conflict

if TYPE_CHECKING:
    from pvc.cluster.view import VM


@operation("POST", "/vm/{vm}/start", role=Role.OPERATE, noun="vm", waits="vm.info")
def start(
    ctx: Context,
    vm: VMName,
    *,
    force: Annotated[bool, Arg("even where its memory or vCPUs do not fit")] = False,
) -> VMInfo:
    """Start a VM.

    Without a node, or when its node cannot take it, the best node is chosen. A VM that failed, or waits
    before its next try, is tried again at once. One that is shutting down starts again when it has stopped.
    """
    found = ctx.view.vm(vm)
    spec, status = found.spec, found.status
    if status.owner is None and not _is_starting(ctx, found):
        placed = _placed(ctx, found, force)
        new = replace(
            placed, power=Power.STARTED, force=False, attempts=_next(spec.attempts, status.attempts)
        )
        # It relies on nobody owning it: else the attempt would be of a VM that runs.
        saved = save(ctx, found, new, relies_on_status=True)
        return describe(saved, {"state": "start"})
    if spec.power is Power.STARTED:
        ctx.say(f"{spec.name} is started already")
        return describe(found, {"state": "start"})
    new = start_again(found)
    ctx.say(f"{spec.name} starts again when it has shut down")
    return describe(save(ctx, found, new), {"state": "start"})


def _is_starting(ctx: Context, vm: VM) -> bool:
    """Wanted, and its node is about to look at that."""
    spec = vm.spec
    if spec.power is not Power.STARTED or spec.node is None or spec.attempts <= vm.status.attempts:
        return False
    node = ctx.view.nodes([spec.node]).get(spec.node)
    return node is not None and node.is_running


def _placed(ctx: Context, vm: VM, force: bool) -> VMSpec:
    """Where it starts: its own node if that can take it."""
    placement = placement_of(ctx)
    sized = without_size(vm.spec) if force else vm.spec
    why = refusal(placement, vm.spec.node, sized, vm.status)
    if not why:
        ctx.say(f"{vm.spec.name} starts on {vm.spec.node}, its node")
        return vm.spec
    if vm.spec.node is not None:
        ctx.say(f"not on {vm.spec.node}, its node: {why}")
    chosen = choose(ctx, placement, sized, vm.status)
    return move(vm.spec, chosen, home=None if vm.spec.home == chosen else vm.spec.home)


def start_again(vm: VM) -> VMSpec:
    """The spec of one that shall shut down and start."""
    return replace(
        vm.spec,
        power=Power.STARTED,
        force=False,
        restarts=_next(vm.spec.restarts, vm.status.restarts),
        attempts=_next(vm.spec.attempts, vm.status.attempts),
    )


def _next(wanted: int, done: int) -> int:
    return max(wanted, done) + 1


@operation("POST", "/vm/{vm}/shutdown", role=Role.OPERATE, noun="vm", waits="vm.info")
def shutdown(ctx: Context, vm: VMName) -> VMInfo:
    """Ask the guest of a VM to power off, and end it when it has not done so in time."""
    found = ctx.view.vm(vm)
    if found.spec.power is Power.STOPPED:
        ctx.say(f"{found.spec.name} is {'being stopped' if found.status.owner else 'stopped'} already")
        return describe(found, {"state": "stop"})
    seconds = found.spec.shutdown_timeout_s or ctx.view.cluster().shutdown_timeout_s
    ctx.say(
        f"the guest of {found.spec.name} is asked to power off, and ended after {seconds} s if it has not"
    )
    _say_called_back(ctx, found)
    return describe(save(ctx, found, ended(found, Power.STOPPED, force=False)), {"state": "stop"})


@operation(
    "POST",
    "/vm/{vm}/stop",
    role=Role.OPERATE,
    noun="vm",
    waits="vm.info",
    confirm="Power VM {vm} off at once, without asking its guest?",
)
def stop(ctx: Context, vm: VMName) -> VMInfo:
    """Power a VM off at once, as if its cable were pulled."""
    found = ctx.view.vm(vm)
    if found.spec.power is Power.STOPPED and found.status.owner is None:
        ctx.say(f"{found.spec.name} is stopped already")
        return describe(found, {"state": "stop"})
    ctx.say(f"{found.spec.name} is powered off at once")
    _say_called_back(ctx, found)
    return describe(save(ctx, found, ended(found, Power.STOPPED, force=True)), {"state": "stop"})


def _say_called_back(ctx: Context, vm: VM) -> None:
    if is_moving(vm):
        ctx.say(f"its move to {vm.spec.node} is called back")


def ended(vm: VM, power: Power, *, force: bool) -> VMSpec:
    """The spec of one that shall not run; a move that is under way is withdrawn, as is a restart."""
    return replace(
        called_back(vm), power=power, force=force, restarts=min(vm.spec.restarts, vm.status.restarts)
    )


@operation("POST", "/vm/{vm}/restart", role=Role.OPERATE, noun="vm", waits="vm.info")
def restart(ctx: Context, vm: VMName) -> VMInfo:
    """Shut a VM's guest down and start it again, on the same node and with its newest definition."""
    found = ctx.view.vm(vm)
    check_can_restart(found)
    new = restarted(found.spec, found)
    ctx.say(f"the guest of {new.name} is asked to power off, and it starts again on {new.node}")
    saved = save(ctx, found, new, relies_on_status=True)
    return describe(saved, {"state": "start"})


def check_can_restart(vm: VM) -> None:
    name = vm.spec.name
    if vm.status.owner is None or vm.spec.power is not Power.STARTED:
        raise Conflict(f"{name} does not run", hint=f"pvc vm start {name}")
    if is_moving(vm) or vm.status.state is State.MIGRATE:
        raise Conflict(f"{name} is being moved", hint="restart it when it has arrived")


def restarted(spec: VMSpec, vm: VM) -> VMSpec:
    return replace(spec, restarts=_next(spec.restarts, vm.status.restarts))


@operation("POST", "/vm/{vm}/disable", role=Role.OPERATE, noun="vm", waits="vm.info")
def disable(
    ctx: Context,
    vm: VMName,
    *,
    force: Annotated[bool, Arg("power it off first if it runs")] = False,
) -> VMInfo:
    """Mark a stopped VM as one that is not to run; `vm start` takes the mark away."""
    found = ctx.view.vm(vm)
    spec = found.spec
    if found.status.owner is not None and not force:
        raise Conflict(f"{spec.name} runs", hint="pvc vm shutdown first, or --force to power it off")
    new = ended(found, Power.DISABLED, force=force)
    ctx.say(f"{spec.name} does not run until it is started again")
    return describe(save(ctx, found, new, relies_on_status=True), {"state": "disable"})
