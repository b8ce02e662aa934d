"""Who is in the cluster and who is not any more: the primary's document, fences, and what makes a suspect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pvc.cluster.node import Alive, DaemonState, NodeStatus


@dataclass(frozen=True, slots=True)
class Primary:
    """Ephemeral of the primary's session.

    `term` is the version that paths.TERM got in the same transaction. Versions of an ephemeral begin anew
    each time, terms never do: a commit that checks the term cannot be of somebody who was primary before.
    """

    node: str
    incarnation: int
    term: int
    addresses_free: bool = False
    """Who was primary before had let go of the floating addresses."""


@dataclass(frozen=True, slots=True)
class Term:
    """How the newest term began, or how it ended, if its primary could say so."""

    node: str = ""
    let_go: bool = False
    """It has ended, and nobody holds a floating address."""


class FenceState(StrEnum):
    SUSPECT = "suspect"
    """Somebody asked for it; nothing has been done."""
    FENCING = "fencing"
    FENCED = "fenced"
    """There is evidence that nothing of that life of the node runs: this document is the receipt."""
    FAILED = "failed"
    """No evidence yet; it is tried again."""
    RETURNED = "returned"


class Evidence(StrEnum):
    NONE = ""
    POWER_OFF = "power-off"
    """Its BMC was asked and said that it is off."""
    OPERATOR = "operator"
    """Somebody gave their word."""
    WATCHDOG = "watchdog"
    """It had promised that nothing of it runs when it was away for so long, and it was."""
    STOPPED = "stopped"
    """Its own last word: it had ended all its VMs when it left."""
    BLOCKLIST = "blocklist"
    """Ceph takes no write from it any more: said only of VMs that are on nothing else. See Block."""


class StepKind(StrEnum):
    CONTACT = "contact"
    """The last, by the judge's estimate: a session's length before its end."""
    CUT = "cut"
    """Its power, for a drill."""
    GONE = "gone"
    FENCING = "fencing"
    FENCED = "fenced"
    RELEASED = "released"
    """A VM, for the node that is named; for none while it fits nowhere."""
    STOPPED = "stopped"
    """A VM that was to be stopped anyway."""
    RUNNING = "running"
    """A VM: its new node says that QEMU is up."""


@dataclass(frozen=True, slots=True)
class Step:
    at_s: float
    """Since the first of them."""
    what: StepKind
    vm: str = ""
    node: str = ""


@dataclass(frozen=True, slots=True)
class Fence:
    """Of one life of a node's daemon. Times are for people, durations by the judge's monotonic clock."""

    node: str
    incarnation: int
    state: FenceState = FenceState.SUSPECT
    evidence: Evidence = Evidence.NONE
    asked_by: str = ""
    confirmed: bool = False
    """Whoever asked has given their word that it is off."""
    drill: str = ""
    """Who wanted its power cut to see what becomes of it; after that it is judged as any other."""
    judge: str = ""
    attempts: int = 0
    reason: str = ""
    since: float = 0.0
    """Wall clock when it was asked for, or else at the first attempt."""
    fenced_at: float = 0.0
    suspect_s: float = 0.0
    """From the end of its session to the first attempt."""
    fence_s: float = 0.0
    """From the first attempt to the evidence."""
    recovery_s: float = 0.0
    """From the evidence until it owned no VM any more."""
    timeline: tuple[Step, ...] = ()
    """What it took, from the last contact until the last VM ran again."""
    recovered: tuple[str, ...] = ()
    """VMs and where they went."""
    stopped: bool = False
    """It had left cleanly: nobody switched it off, and nobody switches it on."""
    finished: bool = False
    """It owns no VM any more, and its power is as the policy wants it."""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Block:
    """That Ceph takes no write from a node any more: begun before its addresses are put on Ceph's block list.

    Not a receipt: what runs there may run on. It suffices for VMs all of whose disks are in Ceph, and the
    search for evidence of all the others goes on beside it. Only the node takes its addresses off the list,
    when it has no QEMU that uses Ceph: an order of anybody else could be carried out late, when it is
    listed anew.
    """

    node: str
    incarnation: int
    addresses: tuple[str, ...]
    epoch: int = 0
    """A map of Ceph that has them, and that every OSD that was up knew; 0: that is not proven yet."""
    since: float = 0.0
    """Wall clock, for people."""
    lifted: bool = False
    """The node has taken them off the list, or is about to find them there no more."""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def proves(self, incarnation: int) -> bool:
        """Nothing of that life of the node writes to Ceph."""
        return self.epoch > 0 and not self.lifted and self.incarnation == incarnation


def is_gone(status: NodeStatus, alive: Alive | None) -> bool:
    """This life of its daemon has no session."""
    return alive is None or alive.incarnation != status.incarnation


def is_suspect(status: NodeStatus, alive: Alive | None) -> bool:
    """It did not leave cleanly and is gone: in whatever state it was, start and end included."""
    return status.state is not DaemonState.STOP and is_gone(status, alive)
