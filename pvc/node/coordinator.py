"""What a coordinator does for the whole cluster: stand for primary, and as primary fence and recover."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pvc.clock import Clock
from pvc.cluster import fencing
from pvc.cluster.fencing import Duties, Duty, Scene
from pvc.cluster.mirror import Mirror
from pvc.cluster.node import BMC
from pvc.cluster.store import Session, SessionState, Store
from pvc.cluster.view import View, expand_whole_cluster, whole_cluster
from pvc.cluster.vm import Owner
from pvc.errors import Conflict, PVCError
from pvc.node.drivers.power import BMCAccess, Power, open_bmc
from pvc.node.judge import Judge
from pvc.node.lanes import Lanes, ThreadLanes
from pvc.node.role import Role

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 5.0
FORGET_S = 600.0


def thread_lanes(carry_out: Callable[[Duty], None], done: Callable[[], None]) -> Lanes[Duty]:
    return ThreadLanes(carry_out, done, fencing.lane)


class Coordinator:
    """`step` does one round and says when the next is due."""

    def __init__(
        self,
        me: Owner,
        store: Store,
        power: Power,
        clock: Clock,
        secret: str,
        *,
        lanes: Callable[[Callable[[Duty], None], Callable[[], None]], Lanes[Duty]] = thread_lanes,
        wake: Callable[[], None] = lambda: None,
        decide: Callable[[Scene], Duties] = fencing.duties,
        access: Callable[[BMC, str], BMCAccess] = open_bmc,
        judge: type[Judge] = Judge,
        session_timeout_s: float = 6.0,
    ) -> None:
        self.store = store
        self.clock = clock
        self.wake = wake
        self.mirror = Mirror(store, whole_cluster(), expand_whole_cluster, wake)
        self.view = View(self.mirror)
        self.role = Role(me, store, self.mirror, self.view)
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
            session_timeout_s=session_timeout_s,
        )
        self.believed_from = clock.monotonic() + fencing.SETTLE_S
        self.forgot_at = clock.monotonic()
        store.on_session(self._session_changed)

    def _session_changed(self, session: Session) -> None:
        if session.state is SessionState.CONNECTED:
            self.believed_from = self.clock.monotonic() + fencing.SETTLE_S
        self.wake()

    def step(self) -> float:
        """Stand for primary; as primary, see to those who are gone. Seconds until the next round is due."""
        if self.store.session.state is not SessionState.CONNECTED:
            return LONGEST_WAIT_S  # decisions freeze; a change of the session wakes the loop
        busy = self.judge.lanes.busy
        self.mirror.sync()
        now = self.clock.monotonic()
        if now > self.forgot_at + FORGET_S:
            self.forgot_at = now
            self.view.forget_missing()
        nodes = self.view.nodes()
        wait = self.role.stand(nodes, now)
        wait = LONGEST_WAIT_S if wait is None else wait
        if self.role.authority() is None:
            self.judge.forget()
            return wait
        due = self.judge.see_to(nodes, busy, now, self.believed_from)
        return max(0.0, min(due - now, wait))


class Loop:
    """A coordinator on a thread of its own: neither waits for the node's VMs nor they for it."""

    def __init__(self, make: Callable[[Callable[[], None]], Coordinator]) -> None:
        self._woken = threading.Event()
        self._ending = threading.Event()
        self._coordinator = make(self._woken.set)
        self._thread = threading.Thread(target=self._run, name="coordinator", daemon=True)
        self.beat = self._coordinator.clock.monotonic()
        """When its newest round began."""

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._woken.set()
        self._thread.join(LONGEST_WAIT_S)
        self._coordinator.judge.lanes.close()

    def _run(self) -> None:
        while not self._ending.is_set():
            self.beat = self._coordinator.clock.monotonic()
            self._woken.wait(self._round())
            self._woken.clear()

    def _round(self) -> float:
        try:
            return self._coordinator.step()
        except Conflict as error:
            log.info("%s; looking again", error.message)
            return 0.1
        except PVCError as error:
            log.warning("coordinator: %s", error.message)
            return 1.0
        except Exception:  # the boundary: one mistake must not end the cluster's only judge
            log.exception("a round of the coordinator failed: a bug in pvc")
            return 1.0
