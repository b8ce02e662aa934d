"""The promise of a node that nothing of it runs so long after it was seen gone. Proof: pvc.cluster.timing.

`Lease` is what holds now, as a value. `Guard` keeps it in rounds that do not wait for each other: it proves
contact, feeds the watchdog, and ends what runs when the lease is over.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from pvc.clock import Clock
from pvc.cluster.timing import ASK_S, CONTACT_S, FEED_S, LEAST_WATCHDOG_S, MOST_WATCHDOG_S, Timing
from pvc.errors import PVCError, Unavailable
from pvc.node.drivers import DriverError, Watchdog
from pvc.node.drivers.host import BOOT_ID, boot_id
from pvc.node.drivers.hypervisor import Domain, DomainState, Hypervisor
from pvc.node.loop import Loop

log = logging.getLogger(__name__)

LOOK_S = 0.25
"""While VMs are being ended."""
FRESH_S = 3.0
"""A look at libvirt counts for so long."""


@dataclass(frozen=True, slots=True)
class Lease:
    length_s: float
    contact: float = 0.0
    armed: bool = False
    """It holds. Whether others may rely on it is Guard.promise."""
    over: bool = False
    """It ran out, and what runs here is being ended: to its end, whatever comes."""
    quiet_at: float | None = None
    """With `over`: then nothing of ours ran, and nothing could begin to."""

    @property
    def ends(self) -> float:
        return self.contact + self.length_s

    def may_start(self, now: float) -> bool:
        return not self.armed or (not self.over and now < self.ends)

    def is_quiet(self, now: float) -> bool:
        return self.quiet_at is not None and now < self.quiet_at + FRESH_S

    def feeds(self, now: float) -> bool:
        return self.armed and (now < self.ends or self.is_quiet(now))


class Memory(Protocol):
    """What outlives a life of the daemon, and not the machine's."""

    def load(self) -> float | None:
        """The contact of a life that was armed, with a watchdog or without; None when it has disarmed."""
        ...

    def save(self, contact: float) -> None:
        """Raises OSError, and keeps what it had."""
        ...

    def clear(self) -> None: ...


class ContactFile:
    """On a tmpfs. It is never half written; one that cannot be read means that the lease is over."""

    def __init__(
        self,
        path: str = "/run/pvc/contact",
        boot: str = BOOT_ID,
        coordinators: Collection[str] = (),
    ) -> None:
        self._path = Path(path)
        self._boot = boot_id(boot)
        self._coordinators = sorted(coordinators)
        """As pvc.toml lists them in this life."""

    def doubt(self) -> str:
        """Whoever kept this had another list, and nobody has compared the new one with the store."""
        try:
            is_same = json.loads(self._path.read_text())["coordinators"] == self._coordinators
        except FileNotFoundError:
            return ""
        except (OSError, ValueError, TypeError, KeyError):
            is_same = False
        return "" if is_same else "cluster.coordinators of its pvc.toml has changed"

    def load(self) -> float | None:
        try:
            known = json.loads(self._path.read_text())
            return float(known["contact"]) if known["boot"] == self._boot else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError):
            log.exception("%s cannot be read: as if contact had been lost long ago", self._path)
            return float("-inf")

    def save(self, contact: float) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        kept = {"boot": self._boot, "contact": contact, "coordinators": self._coordinators}
        new.write_text(json.dumps(kept))
        new.rename(self._path)

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)


def in_thread(function: Callable[[], None]) -> None:
    threading.Thread(target=function, name="self-fence", daemon=True).start()


class Guard:
    """Of one life of the daemon. A round of it: `prove`, `feed`, `end`; each returns when the next is due."""

    def __init__(
        self,
        timing: Timing,
        clock: Clock,
        hypervisor: Hypervisor,
        watchdog: Watchdog | None,
        memory: Memory,
        *,
        why_none: str = "",
        spawn: Callable[[Callable[[], None]], None] = in_thread,
    ) -> None:
        self.timing = timing
        self.clock = clock
        self.hypervisor = hypervisor
        self.watchdog = watchdog
        self.memory = memory
        self.spawn = spawn
        self.lease = Lease(timing.lease_s)
        self.granted: float | None = None
        """Of the watchdog, once this life has opened it."""
        self.told = why_none
        """The watchdog, or why there is none."""
        self.doubt = ""
        """Why this node may not know all coordinators: then it promises nothing and believes in no outage."""
        self.contact: Callable[[], bool] = lambda: False
        """Commits what can succeed only while this life is in the cluster. May raise PVCError."""
        self.is_idle: Callable[[], bool] = lambda: False
        """Nothing can begin to run here. Of what an earlier life has begun nobody can say that."""
        self.is_out: Callable[[], bool] = lambda: False
        """The whole store was out at one moment since this was called."""
        self.known: Collection[str] = ()
        """VMs that concern this node, as its daemon last read them: theirs is also a QEMU that has lost our
        metadata before this life, or before it came here."""
        self.ends: Callable[[str], None] = lambda uuid: None
        """A VM is going to be ended."""
        self._lock = threading.Lock()
        """Over changes of `lease`; never held while anybody is asked."""
        self._device = threading.Lock()
        """Over the watchdog, what is remembered, and whether it is to be fed."""
        self._ending: set[str] = set()
        self._said = ""

    # The promise

    @property
    def promise(self) -> float:
        """quiet_after_s, as the node may publish it."""
        if self.granted is None or not self.lease.armed or self.doubt:
            return 0.0
        return self.timing.quiet_after_s(self.granted)

    def begin(self) -> None:
        """What an earlier life has promised holds for this one; before anything else is done."""
        known = self.memory.load()
        if known is None:
            return
        if self.watchdog is None:
            # Nothing was promised, and this life may come much later: it has a lease's time to find contact.
            known = self.clock.monotonic()
        self._change(contact=known, armed=True)
        log.info("going on from an earlier life that was in the cluster, and has not left it")
        self.feed()

    def arm(self) -> None:
        """From now on VMs end with the contact; it is promised only where a watchdog ends them too.

        Raises Unavailable.
        """
        if self.lease.armed:
            return
        at = self.clock.monotonic()
        if not self.contact():
            return
        self._change(contact=at, armed=True)
        self.feed()

    def disarm(self) -> None:
        """Only when the promise has been taken back. Raises DriverError."""
        if not self.lease.armed:
            return
        with self._device:
            if self.watchdog is not None:
                self.watchdog.disarm()
            self._change(armed=False, over=False, quiet_at=None)
            self.granted = None
            self.memory.clear()

    def retire(self) -> None:
        """What relied on the promise has happened, and nothing runs: the next life begins without it."""
        if self.lease.is_quiet(self.clock.monotonic()):
            self.disarm()

    def may_start(self) -> bool:
        return self.lease.may_start(self.clock.monotonic())

    def _change(self, **fields: float | bool | None) -> None:
        with self._lock:
            self.lease = replace(self.lease, **fields)  # type: ignore[arg-type]

    # Contact

    def prove(self) -> float:
        if not self.lease.armed:
            return CONTACT_S
        at = self.clock.monotonic()
        try:
            if self.contact():
                self._confirmed(at)
                return self._left(at, CONTACT_S)
        except PVCError as error:
            log.info("no contact: %s", error.message)
        at = self.clock.monotonic()
        if at > self.lease.contact + 2 * CONTACT_S and not self.doubt and self.is_out():
            self._confirmed(at, is_out=True)
        return self._left(at, ASK_S)

    def _left(self, began: float, period_s: float) -> float:
        return max(0.0, began + period_s - self.clock.monotonic())

    def _confirmed(self, at: float, *, is_out: bool = False) -> None:
        """An outage does not bring back what was over when it was asked for."""
        with self._lock:
            if not self.lease.armed or (is_out and (self.lease.over or at >= self.lease.ends)):
                return
            self.lease = replace(self.lease, contact=max(self.lease.contact, at))
        with self._device:
            try:
                if self.granted is not None or self.watchdog is None:
                    self.memory.save(self.lease.contact)
            except OSError as error:
                self._say(f"contact cannot be remembered: {error.strerror}")

    def joined(self, at: float) -> None:
        """This life has made its ephemeral, by a commit that began then."""
        self._confirmed(at)

    # The watchdog

    def feed(self) -> float:
        with self._device:
            try:
                # Nothing between the look at the clock and the feed: what stands still here is in the proof.
                if self.watchdog is not None and self.lease.feeds(self.clock.monotonic()):
                    self._feed(self.watchdog)
                    self._said = ""
            except DriverError as error:
                self._say(error.message)
        return FEED_S

    def _feed(self, watchdog: Watchdog) -> None:
        if self.granted is not None:
            watchdog.feed()
            return
        try:
            granted = watchdog.arm(int(self.timing.watchdog_s))
            self._keep_for_the_next_life(watchdog, granted)
        except DriverError as error:
            self.told = error.message
            self._let_go(watchdog)
            raise
        self.granted = granted
        self.told = f"{watchdog.name}, {granted:g} s"
        log.info("armed the watchdog %s", self.told)

    def _keep_for_the_next_life(self, watchdog: Watchdog, granted: float) -> None:
        """Which could not go on feeding without it."""
        if not LEAST_WATCHDOG_S <= granted <= MOST_WATCHDOG_S:
            raise DriverError(
                f"the watchdog {watchdog.name} grants {granted:g} s, and {LEAST_WATCHDOG_S:g} to"
                f" {MOST_WATCHDOG_S:g} are of use"
            )
        try:
            self.memory.save(self.lease.contact)
        except OSError as error:
            raise DriverError(f"contact cannot be remembered: {error.strerror}") from error

    def _let_go(self, watchdog: Watchdog) -> None:
        """Opened and not armed it would reset this machine. What an earlier life has promised stands."""
        if self.memory.load() is None:
            try:
                watchdog.disarm()
            except DriverError as error:
                self._say(error.message)

    def _say(self, what: str) -> None:
        if what != self._said:
            self._said = what
            log.error("%s", what)

    # The end of the lease

    def end(self) -> float:
        """Raises DriverError when libvirt does not answer: then the watchdog is not fed."""
        now = self.clock.monotonic()
        with self._lock:
            lease = self.lease
            if lease.armed and not lease.over and now >= lease.ends:
                self.lease = lease = replace(lease, over=True, quiet_at=None)
                log.error("no contact for %.1f s: ending all VMs of this node", now - lease.contact)
        if not lease.over:
            return max(LOOK_S, min(FEED_S, lease.ends - now)) if lease.armed else FEED_S
        # In this order: what a lane has begun is in libvirt's list when the lane is done.
        is_idle = self.is_idle()
        ours = [domain for domain in self.hypervisor.domains().values() if self.is_ours(domain)]
        for domain in ours:
            self.end_one(domain)
        with self._lock:
            is_empty = not ours and not self._ending
            self.lease = replace(self.lease, quiet_at=now if is_empty and is_idle else None)
            if is_empty and self.clock.monotonic() < self.lease.ends:
                self.lease = replace(self.lease, over=False, quiet_at=None)
                log.warning("contact again: VMs may run here")
        return LOOK_S

    def is_ours(self, domain: Domain) -> bool:
        """Also one that is on its way here, of which little is known yet."""
        return bool(domain.digest) or domain.state is DomainState.INCOMING or domain.uuid in self.known

    def end_one(self, domain: Domain) -> None:
        uuid = domain.uuid
        with self._lock:
            if uuid in self._ending:
                return
            self._ending.add(uuid)
        log.warning("ending %s", domain.name)
        self.ends(uuid)
        self.spawn(lambda: self._destroy(uuid))

    def _destroy(self, uuid: str) -> None:
        try:
            self.hypervisor.destroy(uuid)
        except DriverError as error:
            log.warning("%s", error.message)
        finally:
            with self._lock:
                self._ending.discard(uuid)


class Guarding:
    """A guard with a loop for each of its rounds."""

    def __init__(self, guard: Guard) -> None:
        self._rounds = (
            (Loop("watchdog", guard.clock), guard.feed),
            (Loop("contact", guard.clock), guard.prove),
            (Loop("lease", guard.clock), guard.end),
        )

    def start(self) -> None:
        for loop, step in self._rounds:
            loop.start(step)

    def close(self) -> None:
        for loop, _ in self._rounds:
            loop.close()


def cut_off() -> Unavailable:
    return Unavailable("this node has lost contact to the cluster: no VM may start here")
