"""The primary's role: stand for it, leave it to who is wanted, and check it with every commit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

from pvc.cluster import election, paths
from pvc.cluster.codec import Unreadable, dumps, loads
from pvc.cluster.membership import Primary, Term
from pvc.cluster.mirror import Mirror
from pvc.cluster.node import NodeRole
from pvc.cluster.store import Check, Create, Delete, Op, Put, Store, Stored
from pvc.cluster.view import Node, View
from pvc.cluster.vm import Owner
from pvc.errors import Conflict, Unavailable

log = logging.getLogger(__name__)


class NotPrimary(Conflict):
    """The role went while this was decided."""


class Role:
    """Of one coordinator. Whether it has the role is in the store; `is_primary` is what it said last."""

    def __init__(
        self, me: Owner, store: Store, mirror: Mirror, view: View, let_go: Callable[[], bool]
    ) -> None:
        self.me = me
        self.store = store
        self.mirror = mirror
        self.view = view
        self.let_go = let_go
        """Of the floating addresses; whether nobody holds one then."""
        self.free_since: float | None = None
        self.is_primary = False

    def stand(self, nodes: Mapping[str, Node], now: float) -> float | None:
        """Take it or leave it. In how many seconds to look again though nothing changes; None: no need."""
        stored = self.mirror.get(paths.PRIMARY)
        holder = self._holder(stored)
        self.free_since = None if holder else now if self.free_since is None else self.free_since
        move = election.decide(
            self.me.node,
            holder=holder,
            wanted=self.view.cluster().primary,
            live=[
                name
                for name, node in nodes.items()
                if node.is_running and node.spec.role is NodeRole.COORDINATOR
            ],
            free_for=0.0 if self.free_since is None else now - self.free_since,
        )
        if move is election.Move.TAKE:
            self._take(stored)
        elif move is election.Move.RESIGN:
            log.info("leaving the primary role to %s", self.view.cluster().primary)
            self.resign()
        is_primary = self.authority() is not None
        if is_primary != self.is_primary:
            self.is_primary = is_primary
            log.info("%s is %s", self.me.node, "primary" if is_primary else "secondary")
        return None if holder or is_primary else election.PATIENCE_S / 2

    def _holder(self, stored: Stored | None) -> str | None:
        """None also where an ended session of ours holds it: there is no other daemon of this node."""
        if stored is None:
            return None
        known = self.view.decode(Primary, stored)
        is_old = known.node == self.me.node and stored.session != self.store.session.id
        return None if is_old else known.node

    def _take(self, old: Stored | None) -> None:
        term = self.store.get(paths.TERM)
        ops: list[Op] = [Delete(old.path, old.version)] if old is not None else []
        new = 0 if term is None else term.version + 1
        begun = dumps(Term(self.me.node))
        ops.append(Create(paths.TERM, begun) if term is None else Put(paths.TERM, begun, term.version))
        missing = [
            path for path in (paths.FENCES, paths.BLOCKS, paths.VERIFIED) if self.store.get(path) is None
        ]
        ops += [Create(path) for path in missing]
        mine = Primary(self.me.node, self.me.incarnation, new, addresses_free=_is_free(term))
        self._commit([*ops, Create(paths.PRIMARY, dumps(mine), ephemeral=True)])

    def resign(self) -> None:
        """First what nobody else may have at the same time, then the role: the next one need not wait."""
        own = self.authority()
        if own is None:
            return
        role, term = own
        ended = Term(self.me.node, let_go=self.let_go())
        self._commit([Delete(role.path, role.version), Put(term.path, dumps(ended), term.version)])

    def _commit(self, ops: list[Op]) -> None:
        try:
            self.store.commit(*ops)
        finally:
            with suppress(Unavailable):
                self.mirror.refresh([op.path for op in ops])

    def authority(self) -> tuple[Check, Check] | None:
        """What a commit as primary checks; None for one who is not."""
        stored = self.mirror.get(paths.PRIMARY)
        if stored is None or stored.session != self.store.session.id:
            return None
        term = self.view.decode(Primary, stored).term
        return Check(paths.PRIMARY, stored.version), Check(paths.TERM, term)

    def commit(self, *ops: Op) -> None:
        """As primary. Raises Conflict when somebody else is, or anything has changed."""
        self._commit([*self._own(), *ops])

    def confirm(self) -> None:
        """Nobody else is primary: a read after this is not older than this moment. Raises Conflict."""
        self.store.commit(*self._own())

    def are_addresses_free(self) -> bool:
        """As who had the role before has left it."""
        stored = self.mirror.get(paths.PRIMARY)
        return stored is not None and self.view.decode(Primary, stored).addresses_free

    def _own(self) -> tuple[Op, ...]:
        authority = self.authority()
        if authority is None:
            raise NotPrimary(f"{self.me.node} is not primary any more")
        return authority


def _is_free(term: Stored | None) -> bool:
    """Nothing is written of a term whose primary knew of no floating addresses."""
    if term is None or not term.data:
        return True
    try:
        return loads(Term, term.data, term.path).let_go
    except Unreadable:
        return False
