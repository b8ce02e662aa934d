"""Whether the cluster could lose a node now, and why not: quorum, room, and a way to fence it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.node import NodeRole
from pvc.cluster.placement import Placement
from pvc.cluster.verification import HOUR_S, Verification
from pvc.cluster.vm import Power, start_order
from pvc.errors import Invalid

if TYPE_CHECKING:
    from pvc.cluster.view import VM, Node

OLD_S = 2.5 * HOUR_S
NAMED_AT_MOST = 10


@dataclass(frozen=True, slots=True)
class Facts:
    """All that it is found out from."""

    cluster: ClusterSpec
    nodes: Mapping[str, Node]
    vms: Mapping[str, VM]
    verifications: Mapping[str, Verification]
    """By the coordinator that looked."""
    wall: float


@dataclass(frozen=True, slots=True)
class Readiness:
    """Of one node."""

    node: str
    can_be_lost: bool
    fenced_by: tuple[str, ...]
    """By what it could be fenced now."""
    verified_at: float
    """When its BMC last answered a coordinator as it should; 0: never."""
    why_not: tuple[str, ...]
    fence_problems: tuple[str, ...]
    """What is wrong with fencing it, also where another way is left."""
    watchdog: str
    """What this life of its daemon promises by a watchdog, or why nothing."""


def readiness(facts: Facts) -> tuple[Readiness, ...]:
    """Of every node that runs; a cluster of one has nobody to lose it to."""
    by_node: dict[str, list[VM]] = {name: [] for name in facts.nodes}
    for vm in facts.vms.values():
        if vm.place in by_node and vm.spec.power is Power.STARTED:
            by_node[vm.place].append(vm)
    return tuple(
        _of(facts, node, by_node[name]) for name, node in sorted(facts.nodes.items()) if node.is_running
    )


def _of(facts: Facts, node: Node, vms: list[VM]) -> Readiness:
    fencing = fencing_of(node, facts.nodes, facts.verifications, facts.wall)
    why_not = [*_quorum(facts, node), *_room(facts, node, vms)]
    if facts.cluster.maintenance:
        why_not.insert(0, "maintenance is on: nothing is fenced")
    if not fencing.by:
        why_not += fencing.problems
    return Readiness(
        node.spec.name,
        can_be_lost=not why_not,
        fenced_by=fencing.by,
        verified_at=fencing.verified_at,
        why_not=tuple(why_not),
        fence_problems=fencing.problems,
        watchdog=promise_of(node),
    )


# Quorum


def _quorum(facts: Facts, node: Node) -> Iterator[str]:
    if node.spec.role is not NodeRole.COORDINATOR:
        return
    every = [other for other in facts.nodes.values() if other.spec.role is NodeRole.COORDINATOR]
    down = [name for name, one in sorted(facts.verifications.items()) if one.is_store_down]
    others = [other.spec.name for other in every if other.is_running and other is not node]
    left = sum(name not in down for name in others)
    needed = len(every) // 2 + 1
    if left < needed:
        yield f"of {len(every)} coordinators {left} would be left, and {needed} are needed"


# Room


def _room(facts: Facts, node: Node, vms: list[VM]) -> Iterator[str]:
    """As recovery would do it: in start order, each reserving its place."""
    others = {name: other for name, other in facts.nodes.items() if name != node.spec.name}
    placement = Placement(others, facts.cluster.selector)
    homeless = [
        vm.spec.name for vm in sorted(vms, key=lambda vm: start_order(vm.spec)) if not _fits(placement, vm)
    ]
    if homeless:
        shown = ", ".join(homeless[:NAMED_AT_MOST])
        more = len(homeless) - NAMED_AT_MOST
        yield f"these VMs fit nowhere else: {shown}{f' and {more} more' if more > 0 else ''}"


def _fits(placement: Placement, vm: VM) -> bool:
    bridges = _bridges(vm.spec.definition)
    return bridges is not None and placement.fits(vm.spec, bridges)


@lru_cache(maxsize=8192)
def _bridges(definition: str) -> tuple[str, ...] | None:
    """None for a definition that cannot be read. Remembered: it takes most of the time for many VMs."""
    from pvc.cluster import domainxml

    try:
        return tuple(domainxml.parse(definition).bridges)
    except Invalid:
        return None


# A way to fence it


@dataclass(frozen=True, slots=True)
class Fencing:
    """Of one node, as far as is known now."""

    by: tuple[str, ...]
    verified_at: float
    problems: tuple[str, ...]


def fencing_of(
    node: Node, nodes: Mapping[str, Node], verifications: Mapping[str, Verification], wall: float
) -> Fencing:
    found = [one.of(node.spec.name) for one in verifications.values()]
    verified_at = max((one.at for one in found if one is not None and not one.problem), default=0.0)
    watchdog = ("watchdog",) if node.status.quiet_after_s > 0 else ()
    if node.spec.bmc is None:
        without = f"it has no BMC and {promise_of(node)}: nobody could say that it is off"
        return Fencing(watchdog, verified_at, () if watchdog else (without,))
    problems = tuple(_of_judges(node, nodes, verifications, wall))
    return Fencing(watchdog if problems else ("bmc", *watchdog), verified_at, problems)


def promise_of(node: Node) -> str:
    """Its status is of one life of its daemon: the next one begins without a promise."""
    told, quiet_after_s = node.status.watchdog, node.status.quiet_after_s
    if quiet_after_s > 0:
        return f"{told}: nothing of it runs {quiet_after_s:.1f} s after it is gone"
    return f"promises nothing by a watchdog{f' ({told})' if told else ''}"


def _of_judges(
    node: Node, nodes: Mapping[str, Node], verifications: Mapping[str, Verification], wall: float
) -> Iterator[str]:
    """Each coordinator that may have to judge must be able to, and have looked."""
    judges = [
        name
        for name, other in sorted(nodes.items())
        if other.is_running and other.spec.role is NodeRole.COORDINATOR and name != node.spec.name
    ]
    if not judges:
        yield "there is no other coordinator that could fence it"
    for judge in judges:
        found = verifications.get(judge, Verification()).of(node.spec.name)
        if found is None:
            yield f"{judge} has not tried its BMC yet"
        elif found.problem:
            yield f"{judge} could not fence it: {found.problem}"
        elif wall > found.at + OLD_S:
            yield f"{judge} has not tried its BMC for {(wall - found.at) / HOUR_S:.0f} hours"
