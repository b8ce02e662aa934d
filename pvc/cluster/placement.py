"""Which node for a VM, and why not each other one. Pure; reserves as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pvc.cluster.network import bridge_name
from pvc.cluster.node import NetworkProblem, Wanted
from pvc.cluster.vm import Selector, VMSpec

if TYPE_CHECKING:
    from pvc.cluster.view import Node

RESERVED_MIB = 512
"""Of each node's memory, kept for the host itself."""


@dataclass(frozen=True, slots=True)
class Choice:
    """`node` is None when none can take it; `refused` says why for each node that cannot."""

    node: str | None
    refused: Mapping[str, str]
    because: str = ""


@dataclass(frozen=True, slots=True)
class Room:
    """What a node has left for VMs, with what was promised in this round taken off."""

    memory_free_mib: int
    memory_unprovisioned_mib: int
    vcpus: int
    load: float
    vms: int


RANK: dict[Selector, Callable[[Room], float]] = {
    Selector.MEM: lambda room: -room.memory_free_mib,
    Selector.MEMPROV: lambda room: -room.memory_unprovisioned_mib,
    Selector.VCPUS: lambda room: room.vcpus,
    Selector.LOAD: lambda room: room.load,
    Selector.VMS: lambda room: room.vms,
}
"""The node with the least wins; equal ones by name."""

WORDS: dict[Selector, Callable[[Room], str]] = {
    Selector.MEM: lambda room: f"most free memory ({room.memory_free_mib} MiB)",
    Selector.MEMPROV: lambda room: f"most memory not provisioned ({room.memory_unprovisioned_mib} MiB)",
    Selector.VCPUS: lambda room: f"fewest vCPUs in use ({room.vcpus})",
    Selector.LOAD: lambda room: f"lowest load ({room.load:.2f})",
    Selector.VMS: lambda room: f"fewest VMs ({room.vms})",
}


def room_of(node: Node) -> Room:
    return Room(
        memory_free_mib=min(
            node.load.memory_free_mib,
            node.status.memory_mib - RESERVED_MIB - node.load.memory_allocated_mib,
        ),
        memory_unprovisioned_mib=node.status.memory_mib - node.load.memory_provisioned_mib,
        vcpus=node.load.vcpus_allocated,
        load=node.load.load,
        vms=node.load.vms,
    )


@dataclass(slots=True)
class Placement:
    """One round of decisions over the same picture; each choice is reserved for the next."""

    nodes: Mapping[str, Node]
    default: Selector = Selector.MEM
    room: dict[str, Room] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.room:
            self.room = {name: room_of(node) for name, node in self.nodes.items()}

    def choose(self, spec: VMSpec, *, avoid: Iterable[str] = (), bridges: Iterable[str] = ()) -> Choice:
        """The best node for a VM that starts or arrives there now."""
        needed = tuple(bridges)
        refused = {name: why for name in self.nodes if (why := self.refusal(name, spec, avoid, needed))}
        selector = spec.selector if spec.selector is not Selector.NONE else self.default
        candidates = sorted(
            (name for name in self.nodes if name not in refused),
            key=lambda name: (RANK[selector](self.room[name]), name),
        )
        if not candidates:
            return Choice(None, refused)
        best = candidates[0]
        because = WORDS[selector](self.room[best])
        self.reserve(best, spec)
        return Choice(best, refused, because)

    def fits(self, spec: VMSpec, bridges: Iterable[str] = ()) -> bool:
        """As `choose`, reserved too, without a word on why: for many VMs."""
        selector = spec.selector if spec.selector is not Selector.NONE else self.default
        needed = tuple(bridges)
        for name in sorted(self.nodes, key=lambda name: (RANK[selector](self.room[name]), name)):
            if not self.refusal(name, spec, bridges=needed):
                self.reserve(name, spec)
                return True
        return False

    def refusal(self, name: str, spec: VMSpec, avoid: Iterable[str] = (), bridges: Iterable[str] = ()) -> str:
        """Why the node cannot take the VM; empty if it can."""
        node = self.nodes[name]
        if name in avoid:
            return "the VM is to leave it"
        if not node.is_running:
            return f"its daemon is {node.daemon_state}"
        if node.spec.wanted is not Wanted.READY:
            return "it is flushed"
        if spec.node_limit and name not in spec.node_limit:
            return f"the VM is limited to {', '.join(spec.node_limit)}"
        if spec.vcpus > node.status.cpus * 4:
            return f"{spec.vcpus} vCPUs are more than four times its {node.status.cpus} CPUs"
        if spec.memory_mib > self.room[name].memory_free_mib:
            return f"{spec.memory_mib} MiB do not fit its free {self.room[name].memory_free_mib} MiB"
        missing = [bridge for bridge in bridges if bridge not in node.status.bridges]
        return without_bridge(missing[0], node.status.network_problems) if missing else ""

    def reserve(self, name: str, spec: VMSpec) -> None:
        room = self.room[name]
        self.room[name] = replace(
            room,
            memory_free_mib=room.memory_free_mib - spec.memory_mib,
            memory_unprovisioned_mib=room.memory_unprovisioned_mib - spec.memory_mib,
            vcpus=room.vcpus + spec.vcpus,
            vms=room.vms + 1,
        )


def without_bridge(bridge: str, problems: Iterable[NetworkProblem] = ()) -> str:
    """Why a node cannot take a VM that needs a bridge it does not have."""
    why = next((one.why for one in problems if one.vni and bridge_name(one.vni) == bridge), "")
    return f"it has no bridge {bridge}{f': {why}' if why else ''}"


def explained(choice: Choice) -> str:
    """The refusals as one sentence."""
    return "; ".join(f"{name}: {why}" for name, why in sorted(choice.refused.items())) or "there is no node"
