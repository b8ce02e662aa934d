"""The primary's floating addresses: held only for as long as the store confirms the role."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from pvc.clock import Clock
from pvc.cluster.store import Op, Store
from pvc.cluster.timing import RENEW_S, Timing
from pvc.errors import Conflict, NotFound, Unavailable
from pvc.node.drivers import DriverError
from pvc.node.drivers.networks import HostAddresses, TooLate

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 5.0
ANNOUNCE_AFTER_S = (0.0, 0.2, 1.0)
"""Neighbours may miss one announcement, and a switch may still be learning."""


@dataclass(frozen=True, slots=True)
class Tenure:
    """Of the primary's role, as the coordinator has it."""

    authority: tuple[Op, ...]
    """What a commit checks that is to succeed only in this tenure."""
    addresses: tuple[str, ...]
    are_free: bool
    """Whoever had the role before has let go of the addresses."""


class Keeper:
    """Two threads call it: the coordinator's, which tells it of the role, and its own, which does `step`.

    Each second one commit checks the role. From the moment before it, the kernel gets the addresses for
    `address_s`: a daemon that is halted or cut off from the store loses them without doing anything.
    """

    def __init__(
        self,
        store: Store,
        host: HostAddresses,
        clock: Clock,
        timing: Timing,
        *,
        wake: Callable[[], None] = lambda: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = store
        self.host = host
        self.clock = clock
        self.timing = timing
        self.wake = wake
        self.changed = changed
        self.lock = threading.Lock()
        self._tenure: Tenure | None = None
        self._authority: tuple[Op, ...] = ()
        """The newest, whether it is served now or not; with from when on it may hold."""
        self._holds_from = 0.0
        self._until: dict[str, float] = {}
        """Of each address that may be on a device."""
        self._announce_at: dict[str, list[float]] = {}
        self._problem = ""

    # Told by the coordinator

    def serve(self, tenure: Tenure) -> None:
        """Hold them, when nobody else can hold them any more."""
        with self.lock:
            if tenure == self._tenure:
                return
            self._tenure = tenure
            if tenure.authority != self._authority:
                now = self.clock.monotonic()
                self._authority = tenure.authority
                self._holds_from = now if tenure.are_free else now + self.timing.address_wait_s
        self.wake()

    def rest(self) -> bool:
        """Drop all, now. Whether nobody holds any address then: neither we nor who had the role before."""
        with self.lock:
            had = self._tenure is not None
            self._tenure = None
            self._problem = ""
            self._drop([*self._until])
            return had and not self._until and self.clock.monotonic() >= self._holds_from

    def shown(self) -> tuple[tuple[str, ...], str]:
        """What is held now, and what is wrong with what is not."""
        with self.lock:
            now = self.clock.monotonic()
            held = tuple(sorted(address for address, until in self._until.items() if now < until))
            return held, self._problem

    # On its own thread

    def step(self) -> float:
        """Renew what is held. Seconds until the next round is due."""
        before = self.shown()
        try:
            return self._round()
        finally:
            if self.shown() != before:
                self.changed()

    def _round(self) -> float:
        tenure = self._tenure
        if tenure is None:
            return self._again()
        began = self.clock.monotonic()
        try:
            self._confirm(tenure)
        except (Conflict, NotFound):
            log.info("the role is somebody else's")
            self.rest()
            return LONGEST_WAIT_S
        except Unavailable:
            return RENEW_S / 2  # the kernel ends what nobody confirms
        with self.lock:
            if self._tenure is not tenure:
                return 0.0
            wait = self._holds_from - self.clock.monotonic()
            if wait > 0.0:
                return min(wait, RENEW_S)
            self._hold(tenure.addresses, began + self.timing.address_s)
            return min(self._announce(), RENEW_S)

    def _confirm(self, tenure: Tenure) -> None:
        """A majority of the store's servers says that the role is ours, at some moment of this call."""
        self.store.commit(*tenure.authority)

    def _again(self) -> float:
        """The kernel refused to drop something: it ends by itself, but sooner is better."""
        with self.lock:
            if self._tenure is None and self._until:
                self._drop([*self._until])
            return RENEW_S if self._until else LONGEST_WAIT_S

    def _hold(self, addresses: tuple[str, ...], until: float) -> None:
        self._problem = ""
        self._drop([address for address in self._until if address not in addresses])
        for address in addresses:
            self._until[address] = max(until, self._until.get(address, until))
            try:
                is_new = self.host.hold(address, until)
            except TooLate:
                continue  # what is there ends by itself
            except DriverError as error:
                self._problem = error.message
                log.warning("%s", error.message)
                self._drop([address])
                continue
            if is_new:
                log.info("%s is here now", address)
                now = self.clock.monotonic()
                self._announce_at[address] = [now + after for after in ANNOUNCE_AFTER_S]

    def _drop(self, addresses: list[str]) -> None:
        """What the kernel does not let go of stays in `_until`, until its time is over."""
        now = self.clock.monotonic()
        for address in addresses:
            self._announce_at.pop(address, None)
            try:
                self.host.drop(address)
                log.info("%s is not here any more", address)
            except DriverError as error:
                log.warning("%s", error.message)
                if now < self._until[address]:
                    continue
            del self._until[address]

    def _announce(self) -> float:
        """Those that are due. Seconds until the next is."""
        now = self.clock.monotonic()
        for address, times in self._announce_at.items():
            if not times or times[0] > now:
                continue
            times.pop(0)
            try:
                self.host.announce(address)
            except DriverError as error:
                log.warning("%s", error.message)
        due = min((times[0] for times in self._announce_at.values() if times), default=now + RENEW_S)
        return max(0.0, due - now)
