"""What a fence took, step by step, in seconds since the node's last contact: kept in its receipt.

Each judge measures on its own monotonic clock. One that goes on with another's fence takes up the count by
the wall clock: only to tell people, nothing is decided by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from pvc.cluster.membership import Fence, Step, StepKind
from pvc.cluster.vm import Power, Recovery, State

if TYPE_CHECKING:
    from pvc.cluster.view import VM

MOST_STEPS = 2000
"""A document of the store has its limits."""


def at(fence: Fence, what: StepKind) -> float | None:
    """When it first came to that."""
    return next((step.at_s for step in fence.timeline if step.what is what), None)


def between(fence: Fence, first: StepKind, then: StepKind) -> float:
    began, ended = at(fence, first), at(fence, then)
    return 0.0 if began is None or ended is None else round(ended - began, 3)


def add(fence: Fence, *steps: Step) -> Fence:
    return replace(fence, timeline=(*fence.timeline, *steps)[:MOST_STEPS])


def once(fence: Fence, what: StepKind, at_s: float) -> Fence:
    return fence if at(fence, what) is not None else add(fence, Step(round(max(0.0, at_s), 3), what))


def taken_up(fence: Fence, now: float, wall: float) -> float:
    """Where on this judge's clock the count of a fence began that another one has begun."""
    reached = max((step.at_s for step in fence.timeline), default=0.0)
    since_attempt = wall - fence.since if fence.since else 0.0
    return now - max(reached, (at(fence, StepKind.FENCING) or 0.0) + since_attempt)


def tried(fence: Fence, zero: float, gone_since: float | None, session_timeout_s: float, now: float) -> Fence:
    """With all that came before an attempt. The last contact was about a session's length before its end."""
    if gone_since is not None:
        if not fence.timeline:
            fence = once(fence, StepKind.CONTACT, gone_since - session_timeout_s - zero)
        fence = once(fence, StepKind.GONE, gone_since - zero)
    is_cut = bool(fence.drill and fence.asked_by)  # the attempts to fence it come later
    return once(fence, StepKind.CUT if is_cut else StepKind.FENCING, now - zero)


def told(fence: Fence, name: str, vms: Iterable[VM], elapsed_s: float) -> Fence:
    """With what became of the VMs that were recovered with this receipt; the same if there is nothing new."""
    known = {(step.vm, step.at_s) for step in fence.timeline if step.what is not StepKind.RUNNING}
    runs = {step.vm for step in fence.timeline if step.what is StepKind.RUNNING}
    new: list[Step] = []
    for vm in vms:
        recovery = vm.status.recovery
        if recovery is None or recovery.fence != name:
            continue
        if (vm.spec.name, recovery.at_s) not in known:
            what = StepKind.RELEASED if vm.spec.power is Power.STARTED else StepKind.STOPPED
            new.append(Step(recovery.at_s, what, vm.spec.name, _place(fence, vm)))
        if vm.spec.name not in runs and vm.status.owner is not None and vm.status.state is State.START:
            at_s = round(max(elapsed_s, recovery.at_s), 3)
            new.append(Step(at_s, StepKind.RUNNING, vm.spec.name, vm.status.owner.node))
    if not new or len(fence.timeline) >= MOST_STEPS:
        return fence
    fence = add(fence, *sorted(new, key=lambda step: (step.at_s, step.vm, step.what)))
    return replace(fence, recovered=tuple(_summary(fence)))


def _place(fence: Fence, vm: VM) -> str:
    """Where it went; "" nowhere."""
    if vm.spec.power is not Power.STARTED:
        return ""
    place = vm.place or ""
    return "" if place == fence.node else place


def _summary(fence: Fence) -> Iterable[str]:
    """The newest place of each VM."""
    newest = {step.vm: step for step in fence.timeline if step.vm}
    for vm, step in newest.items():
        yield f"{vm} stopped" if step.what is StepKind.STOPPED else f"{vm} -> {step.node or 'nowhere'}"


def marked(name: str, elapsed_s: float) -> Recovery:
    """What a VM carries of its release, written with it: whoever is judge later knows of it."""
    return Recovery(name, round(elapsed_s, 3))
