"""Logs in to the BMCs now and then, so that one that would fail is known before it is needed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from pvc.clock import Clock
from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.mirror import Mirror
from pvc.cluster.node import BMC
from pvc.cluster.store import Create, Put, Store
from pvc.cluster.verification import STORE_S, Look, Verification, Verified, due_at, wished
from pvc.cluster.view import Node, View
from pvc.errors import NotFound, PVCError, Unavailable
from pvc.node.drivers.power import BMCAccess, Power
from pvc.node.lanes import Lanes

log = logging.getLogger(__name__)

TRIES = 3
"""A fence tries again too, and BMCs are slow while others are at them."""
STORE = " store"
"""No node is called so."""


@dataclass(frozen=True, slots=True)
class Verify:
    """Whether this coordinator could switch that node off."""

    node: str
    bmc: BMC


@dataclass(frozen=True, slots=True)
class LookAtStore:
    """Whether this coordinator's own ZooKeeper server serves: its daemon may talk to another one."""


Chore = Verify | LookAtStore


def lane(action: Chore) -> str:
    return action.node if isinstance(action, Verify) else STORE


class Verifier:
    """Of one coordinator, primary or not: any of them may have to judge. `step` begins what is due."""

    def __init__(
        self,
        name: str,
        store: Store,
        mirror: Mirror,
        power: Power,
        clock: Clock,
        secret: str,
        *,
        lanes: Callable[[Callable[[Chore], None]], Lanes[Chore]],
        access: Callable[[BMC, str], BMCAccess],
        is_store_refusing: Callable[[], bool],
    ) -> None:
        self.name = name
        self.store = store
        self.mirror = mirror
        self.view = View(mirror)
        self.power = power
        self.clock = clock
        self.secret = secret
        self.access = access
        self.is_store_refusing = is_store_refusing
        self.store_refusals = 0
        self.store_looked_at = float("-inf")
        self.looks: dict[str, Look] = {}
        self.looks_lock = threading.Lock()
        self.answered: int | None = None
        """The newest wish that is fulfilled; None: nobody has looked in the store yet."""
        self.owed: frozenset[str] = frozenset()
        """Nodes that the newest wish is about and that are not looked at yet."""
        self.lanes = lanes(self.carry_out)

    def step(self, nodes: Mapping[str, Node], now: float) -> float:
        """When to come again, on the monotonic clock."""
        wish = self.view.wish()
        if self.answered is None:
            self.answered = wish.asked
        if wish.asked > self.answered:
            self.owed |= wished(wish, self.answered, nodes)
            self.answered = wish.asked
        busy = self.lanes.busy
        with self.looks_lock:
            self.looks = {name: look for name, look in self.looks.items() if _has_bmc(nodes.get(name))}
            looks = dict(self.looks)
        next_due = self.store_looked_at + STORE_S
        if STORE not in busy and next_due <= now:
            self.store_looked_at = now
            self.lanes.submit(LookAtStore())
            next_due = now + STORE_S
        for name, node in sorted(nodes.items()):
            due = due_at(node, looks.get(name))
            if name == self.name or due is None or node.spec.bmc is None:
                self.owed -= {name}
            elif name in busy:
                continue
            elif due <= now or name in self.owed:
                self.owed -= {name}
                self.lanes.submit(Verify(name, node.spec.bmc))
            else:
                next_due = min(next_due, due)
        if not self.lanes.busy:
            self._publish(wish.asked)
        return next_due

    def carry_out(self, action: Chore) -> None:
        if isinstance(action, LookAtStore):
            self.store_refusals = self.store_refusals + 1 if self.is_store_refusing() else 0
        else:
            self._verify(action)

    def _verify(self, action: Verify) -> None:
        """Nobody else is asked to do anything, and nothing is switched."""
        problem = ""
        for _ in range(TRIES):
            problem, is_worth_another = self._problem(action.bmc)
            if not is_worth_another:
                break
        if problem:
            log.warning("could not fence %s now: %s", action.node, problem)
        look = Look(action.bmc, self.clock.monotonic(), Verified(action.node, problem, self.clock.wall()))
        with self.looks_lock:
            self.looks[action.node] = look

    def _problem(self, bmc: BMC) -> tuple[str, bool]:
        """Empty when all is well; and whether it may be gone when it is tried again."""
        try:
            self.power.check(self.access(bmc, self.secret))
        except PVCError as error:
            return error.message, bool(getattr(error, "retryable", False))
        return "", False

    def _publish(self, asked: int) -> None:
        """When nothing is under way: the answer to a wish is whole."""
        with self.looks_lock:
            found = tuple(look.found for _, look in sorted(self.looks.items()))
        path = paths.verified(self.name)
        stored = self.mirror.get(path)
        known = None if stored is None else self.view.decode(Verification, stored)
        wanted = Verification(asked, found, is_store_down=self.store_refusals > 1)
        if known is not None and replace(known, extra={}) == wanted:
            return
        data = dumps(wanted)
        try:
            self.store.commit(Create(path, data) if stored is None else Put(path, data, stored.version))
        except NotFound:
            return  # no primary has made the place for it yet
        finally:
            with suppress(Unavailable):
                self.mirror.refresh([path])


def _has_bmc(node: Node | None) -> bool:
    return node is not None and node.spec.bmc is not None
