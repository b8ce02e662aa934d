"""Pictures for the planner's tests: one VM seen from node n1, in as few words as possible."""

from __future__ import annotations

from typing import Any

from pvc.cluster import domainxml
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.node import NodeSpec, Wanted
from pvc.cluster.view import VM
from pvc.cluster.vm import Owner, Power, State, Target, VMSpec, VMStatus
from pvc.node.actions import (
    AbortJob,
    Action,
    Answer,
    Attach,
    Commit,
    Destroy,
    Detach,
    Evacuate,
    FetchBack,
    Mark,
    Migrate,
    NodeAction,
    Shutdown,
    Start,
    StopStray,
)
from pvc.node.drivers.hypervisor import Domain, DomainState
from pvc.node.plan import Note, Picture

UUID = "11111111-1111-4111-8111-111111111111"
ME = Owner("n1", 3)
EARLIER_ME = Owner("n1", 2)
OTHER = Owner("n2", 7)
NOW = 1000.0
XML = domainxml.create("web1", UUID, memory_mib=512, vcpus=1, nics=[domainxml.NewNic("br0")])


def spec(**changes: Any) -> VMSpec:
    given: dict[str, Any] = {
        "uuid": UUID,
        "name": "web1",
        "definition": XML,
        "memory_mib": 512,
        "vcpus": 1,
        "power": Power.STARTED,
        "node": "n1",
    }
    return VMSpec(**{**given, **changes})


def status(owner: Owner | None = ME, state: State = State.START, **changes: Any) -> VMStatus:
    return VMStatus(owner=owner, state=state, **{"digest": "d", **changes})


def vm(spec: VMSpec, status: VMStatus) -> VM:
    return VM(spec, 5, status, 9)


def domain(state: DomainState = DomainState.RUNNING, *, migrating: bool = False, **changes: Any) -> Domain:
    given: dict[str, Any] = {
        "uuid": UUID,
        "name": "web1",
        "state": state,
        "reason": "booted",
        "migrating": migrating,
        "digest": "d",
        "memory_mib": 512,
        "vcpus": 1,
    }
    return Domain(**{**given, **changes})


def picture(
    the_vm: VM | None = None,
    the_domain: Domain | None = None,
    note: Note | None = None,
    target: Target | None = None,
    *,
    wanted: Wanted = Wanted.READY,
    cluster: ClusterSpec | None = None,
    **changes: Any,
) -> Picture:
    given: dict[str, Any] = {
        "me": ME,
        "cluster": cluster or ClusterSpec("test"),
        "node": NodeSpec("n1", "10.0.0.1", "10.0.0.1", wanted=wanted),
        "vms": {UUID: the_vm} if the_vm else {},
        "targets": {UUID: (target, 4)} if target else {},
        "domains": {UUID: the_domain} if the_domain else {},
        "notes": {UUID: note} if note else {},
        "busy": {},
        "now": NOW,
        "memory_free_mib": 4096,
        "bridges": frozenset({"br0"}),
        "flushed": wanted is Wanted.FLUSHED,
    }
    return Picture(**{**given, **changes})


def told(action: Action | NodeAction) -> str:
    """An action in the words of the tables."""
    match action:
        case Commit(_, spec, status, _):
            return " ".join(["commit", *_told_status(status), *_told_spec(spec)])
        case Answer(_, target, _):
            return f"answer {target.refused or 'yes'}"
        case Shutdown(_, state):
            return f"ask {state}"
        case Destroy(_, state, _):
            return f"destroy {state}"
        case Migrate(_, target):
            return f"migrate {target.node}"
        case Evacuate(vms):
            return f"evacuate {len(vms)}"
        case FetchBack(vms):
            return f"fetch {len(vms)}"
        case Start():
            return "start"
        case AbortJob():
            return "abort"
        case Attach(_, _, mac):
            return f"attach {mac}"
        case Detach(_, mac):
            return f"detach {mac}"
        case Mark():
            return "mark"
        case StopStray():
            return "stray"


def _told_status(status: VMStatus | None) -> list[str]:
    if status is None:
        return []
    owner = "none" if status.owner is None else {ME: "me"}.get(status.owner, status.owner.node)
    migration = [f"migration={status.migration.target}"] if status.migration else []
    return [status.state, f"owner={owner}", *migration]


def _told_spec(spec: VMSpec | None) -> list[str]:
    return [] if spec is None else [f"power={spec.power}", f"node={spec.node}"]
