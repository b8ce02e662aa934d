"""What a node can do about a VM: plain values that the planner returns and execute.py carries out."""

from __future__ import annotations

from dataclasses import dataclass

from pvc.cluster.view import VM
from pvc.cluster.vm import State, Target, VMSpec, VMStatus
from pvc.node.drivers.hypervisor import Domain


@dataclass(frozen=True, slots=True)
class Commit:
    """Write spec, status or both of a VM, with the index, if nothing of it changed meanwhile."""

    vm: VM
    spec: VMSpec | None
    status: VMStatus | None
    why: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell the owner whether the VM can come here."""

    vm: VM
    target: Target
    version: int | None
    """Of the older answer that this one replaces."""


@dataclass(frozen=True, slots=True)
class Start:
    """Take ownership of a VM nobody owns, then start QEMU."""

    vm: VM


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Ask the guest to power off."""

    vm: VM
    state: State


@dataclass(frozen=True, slots=True)
class Destroy:
    """End QEMU at once."""

    vm: VM
    state: State
    why: str


@dataclass(frozen=True, slots=True)
class Migrate:
    """Move the running VM to the node that has said it is prepared, and hand it over."""

    vm: VM
    target: Target


@dataclass(frozen=True, slots=True)
class AbortJob:
    """End a migration that a daemon now dead had begun."""

    vm: VM


@dataclass(frozen=True, slots=True)
class Attach:
    """Give the running VM the interface or disk that its definition has by this name (Change.device)."""

    vm: VM
    domain: Domain
    device: str


@dataclass(frozen=True, slots=True)
class Detach:
    """Ask the guest to give up that interface or disk."""

    vm: VM
    device: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Write into the domain that it has become what the VM's definition says."""

    vm: VM


@dataclass(frozen=True, slots=True)
class StopStray:
    """End a QEMU of ours that runs here and belongs elsewhere, or to nobody."""

    uuid: str
    vm: VM | None
    why: str


Action = (
    Commit | Answer | Start | Shutdown | Destroy | Migrate | AbortJob | Attach | Detach | Mark | StopStray
)


@dataclass(frozen=True, slots=True)
class Evacuate:
    """Choose new nodes for these VMs, because this one is to be flushed."""

    vms: tuple[VM, ...]


@dataclass(frozen=True, slots=True)
class FetchBack:
    """Bring the VMs home that were away while this node was flushed."""

    vms: tuple[VM, ...]
    is_all: bool = True
    """Then the node says that it is done."""


NodeAction = Evacuate | FetchBack


def key(action: Action | NodeAction) -> str:
    """The lane of an action: at most one at a time for each VM, and one for the node."""
    if isinstance(action, StopStray):
        return action.uuid
    if isinstance(action, Evacuate | FetchBack):
        return "node"
    return action.vm.spec.uuid
