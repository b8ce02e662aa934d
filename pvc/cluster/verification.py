"""Whether each coordinator could fence each node now: found out every hour, and when somebody wishes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pvc.cluster.node import BMC

if TYPE_CHECKING:
    from pvc.cluster.view import Node

HOUR_S = 3600.0
STORE_S = 10.0
"""Between two looks at one's own ZooKeeper server; two in a row have to be bad."""
AGAIN_S = 300.0
"""After one that failed: what was wrong may have been put right."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Counts them; `node` is the one that it is about, empty: all."""

    asked: int = 0
    node: str = ""


@dataclass(frozen=True, slots=True)
class Verified:
    node: str
    problem: str
    """Why this coordinator could not switch it off; empty: it could."""
    at: float
    """By the wall clock of the coordinator, to show to people."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What one coordinator found; written by it alone."""

    asked: int = 0
    """The newest wish that this is an answer to."""
    found: tuple[Verified, ...] = ()
    is_store_down: bool = False
    """Its own ZooKeeper server does not serve, though its daemon runs: it talks to another one."""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def of(self, node: str) -> Verified | None:
        return next((one for one in self.found if one.node == node), None)


@dataclass(frozen=True, slots=True)
class Look:
    """What a coordinator remembers of its newest look at a BMC, on its own monotonic clock."""

    bmc: BMC
    at: float
    found: Verified


def due_at(node: Node, look: Look | None) -> float | None:
    """When to look next; None for a node that has no BMC, or that is gone: it is fenced, not looked at."""
    if node.spec.bmc is None or node.alive is None:
        return None
    if look is None or look.bmc != node.spec.bmc:
        return 0.0
    return look.at + (AGAIN_S if look.found.problem else HOUR_S)


def wished(wish: Wish, answered: int, nodes: Mapping[str, Node]) -> frozenset[str]:
    """Nodes to look at now. Who has missed a wish cannot know which nodes it was about."""
    if wish.asked <= answered:
        return frozenset()
    if wish.node and wish.asked == answered + 1:
        return frozenset({wish.node} & nodes.keys())
    return frozenset(nodes)
