"""What a coordinator does for the whole cluster: stand for primary, and as primary fence and recover."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from pvc.clock import Clock
from pvc.cluster import fencing
from pvc.cluster.fencing import Duties, Duty, Scene
from pvc.cluster.mirror import Mirror
from pvc.cluster.node import BMC
from pvc.cluster.store import Session, SessionState, Store
from pvc.cluster.timing import Timing
from pvc.cluster.view import Node, View, expand_whole_cluster, whole_cluster
from pvc.cluster.vm import Owner
from pvc.errors import PVCError
from pvc.node.drivers.blocklist import Blocklist
from pvc.node.drivers.networks import HostAddresses
from pvc.node.drivers.power import BMCAccess, Power, open_bmc
from pvc.node.judge import Judge
from pvc.node.keeper import Keeper, Tenure
from pvc.node.lanes import Lanes, ThreadLanes
from pvc.node.loop import LONGEST_WAIT_S, Loop
from pvc.node.role import Role
from pvc.node.verifier import Chore, Verifier, lane

log = logging.getLogger(__name__)

FORGET_S = 600.0
GIVE_BACK_S = 30.0
"""The store elects a leader in much less, if it can."""


def thread_lanes(carry_out: Callable[[Duty], None], done: Callable[[], None]) -> Lanes[Duty]:
    return ThreadLanes(carry_out, done, fencing.lane)


def verify_lanes(carry_out: Callable[[Chore], None], done: Callable[[], None]) -> Lanes[Chore]:
    return ThreadLanes(carry_out, done, lane)


class Coordinator:
    """`step` does one round and says when the next is due."""

    def __init__(
        self,
        me: Owner,
        store: Store,
        power: Power,
        host: HostAddresses,
        clock: Clock,
        timing: Timing,
        secret: str,
        *,
        lanes: Callable[[Callable[[Duty], None], Callable[[], None]], Lanes[Duty]] = thread_lanes,
        wake: Callable[[], None] = lambda: None,
        decide: Callable[[Scene], Duties] = fencing.duties,
        access: Callable[[BMC, str], BMCAccess] = open_bmc,
        judge: type[Judge] = Judge,
        keeper: type[Keeper] = Keeper,
        verify: Callable[[Callable[[Chore], None], Callable[[], None]], Lanes[Chore]] | None = None,
        is_store_refusing: Callable[[], bool] = lambda: False,
        blocklist: Blocklist | None = None,
    ) -> None:
        self.store = store
        self.clock = clock
        self.wake = wake
        self.mirror = Mirror(store, whole_cluster(), expand_whole_cluster, wake)
        self.view = View(self.mirror)
        self.keeper = keeper(store, host, clock, timing)
        self.role = Role(me, store, self.mirror, self.view, self.keeper.rest)
        self.judge = judge(
            me,
            store,
            self.mirror,
            self.view,
            self.role,
            power,
            clock,
            secret,
            lanes=lambda carry_out: lanes(carry_out, wake),
            decide=decide,
            access=access,
            blocklist=blocklist,
            session_timeout_s=timing.session_timeout_s,
        )
        self.verifier = verify and Verifier(
            me.node,
            store,
            self.mirror,
            power,
            clock,
            secret,
            lanes=lambda carry_out: verify(carry_out, wake),
            access=access,
            is_store_refusing=is_store_refusing,
        )
        self.believed_from = clock.monotonic() + fencing.SETTLE_S
        self.away_since = float("inf")
        self.forgot_at = clock.monotonic()
        store.on_session(self._session_changed)

    def _session_changed(self, session: Session) -> None:
        if session.state is not SessionState.CONNECTED:
            self.away_since = min(self.away_since, self.clock.monotonic())
        else:
            self.away_since = float("inf")
            self.believed_from = self.clock.monotonic() + fencing.SETTLE_S
        self.wake()

    def step(self) -> float:
        """Stand for primary; as primary, see to those who are gone. Seconds until the next round is due."""
        state = self.store.session.state
        if state is SessionState.LOST:
            self.keeper.rest()
        if state is not SessionState.CONNECTED:
            if self.clock.monotonic() > self.away_since + GIVE_BACK_S:
                self.judge.give_back()
            return LONGEST_WAIT_S  # decisions freeze; a change of the session wakes the loop
        busy = self.judge.lanes.busy
        self.mirror.sync()
        now = self.clock.monotonic()
        if now > self.forgot_at + FORGET_S:
            self.forgot_at = now
            self.view.forget_missing()
        nodes = self.view.nodes()
        wait = self._stand_and_judge(nodes, busy, now)
        if self.verifier is not None:
            wait = min(wait, self.verifier.step(nodes, now) - now)
        return max(0.0, wait)

    def _stand_and_judge(self, nodes: Mapping[str, Node], busy: Mapping[str, Duty], now: float) -> float:
        wait = self.role.stand(nodes, now)
        wait = LONGEST_WAIT_S if wait is None else wait
        authority = self.role.authority()
        if authority is None:
            self.keeper.rest()
            self.judge.forget()
            return wait
        addresses = self.view.cluster().floating_addresses
        self.keeper.serve(Tenure(authority, addresses, self.role.are_addresses_free()))
        due = self.judge.see_to(nodes, busy, now, self.believed_from)
        return min(due - now, wait)

    def close_lanes(self) -> None:
        """Begin nothing more."""
        self.judge.lanes.close()
        if self.verifier is not None:
            self.verifier.lanes.close()

    def leave(self) -> bool:
        """The role to others, at once. Whether no floating address is left here."""
        try:
            if self.store.session.state is SessionState.CONNECTED:
                self.role.resign()
        except PVCError as error:
            log.warning("the primary role will end with the session: %s", error.message)
        self.keeper.rest()
        return not self.keeper.shown()[0]


class Coordinating:
    """A coordinator and its keeper, each with a loop: neither waits for the other, nor for the node's VMs."""

    def __init__(self, make: Callable[[Callable[[], None]], Coordinator], clock: Clock) -> None:
        self.is_left: bool | None = None
        self.loops = Loop("coordinator", clock), Loop("keeper", clock)
        rounds, renewals = self.loops
        self.coordinator = make(rounds.wake)
        self.coordinator.keeper.wake = renewals.wake

    def start(self) -> None:
        rounds, renewals = self.loops
        rounds.start(self.coordinator.step)
        renewals.start(self.coordinator.keeper.step)

    @property
    def beat(self) -> float:
        return min(loop.beat for loop in self.loops)

    def close(self) -> bool:
        """The role goes to others. Whether no floating address is left here."""
        if self.is_left is None:
            for loop in self.loops:
                loop.close()
            self.coordinator.close_lanes()
            self.is_left = self.coordinator.leave()
        return self.is_left
