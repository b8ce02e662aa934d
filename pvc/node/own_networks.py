"""Keeps a node's own networks as its pvc.toml describes them; takes back a change that costs it the store.

What may take effect when:
- At boot (`up`, before ZooKeeper) pvc.toml is believed, unless just this was tried before and lost the
  store.
- While the node runs, what was brought up is kept as it is. Another pvc.toml takes effect when it is asked
  for (`ask`), on trial: with what was before on record, and rolled back unless a commit succeeds meanwhile.
- An unfinished trial of an earlier life of the daemon is rolled back first of all; one that ended with the
  machine is not tried again by itself.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

from pvc.clock import Clock
from pvc.cluster.codec import Unreadable, dumps, loads
from pvc.config import Config
from pvc.errors import Failed, PVCError
from pvc.hostnetworks import HostNetworks
from pvc.node.drivers.host_state import HostNetworking, HostState, HostStep, SetMaster
from pvc.node.plan_host_network import Wanted, as_before, carries, touched, towards, wanted

log = logging.getLogger(__name__)

T = TypeVar("T")

TRIAL_S = 60.0
"""Where nothing ends when the node is cut off for so long."""
SHORT_TRIAL_S = 3.0
"""Else: half of a session, so that nobody takes the node for dead."""
SETTLE_S = 1.0
"""Contact counts so long after the change: switches may need a moment to notice."""
ASK_S = 0.25
LOOK_S = 30.0
"""Between two looks at what somebody else may have changed."""
RETRY_S = 5.0
PASSES = 5
"""A step may undo what was right before."""
CHANGED = "pvc.toml describes other networks than the node has: `pvc node network apply` tries them"


@dataclass(frozen=True, slots=True)
class Site:
    """What of pvc.toml concerns the node's own networks."""

    networks: HostNetworks = field(default_factory=HostNetworks)
    address: str = ""
    bridge_device: str = ""


def site_of(config: Config) -> Site:
    """Nothing else counts where nothing is described."""
    if not config.network.sections():
        return Site()
    return Site(config.network, config.node.address, config.node.bridge_device)


@dataclass(frozen=True, slots=True)
class Trial:
    wanted: Site
    before: HostState
    devices: tuple[str, ...]
    """That are not what they were before."""
    request: str


@dataclass(frozen=True, slots=True)
class Now:
    """What this boot has; lost with it."""

    site: Site
    trial: Trial | None = None


@dataclass(frozen=True, slots=True)
class Lasting:
    """What the next boot has to know."""

    good: Site | None = None
    doubted: Site | None = None
    """On trial, or rolled back."""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    request: str
    outcome: str
    """kept, refused, or back."""
    why: str = ""


class Memory(Protocol):
    """What cannot be read is as if it were not there; what cannot be written raises PVCError."""

    def now(self) -> Now | None: ...

    def lasting(self) -> Lasting: ...

    def remember(self, known: Now | Lasting) -> None:
        """On the disk when it returns."""
        ...

    def request(self) -> str: ...

    def answer(self, answer: Answer) -> None: ...


class FileMemory:
    def __init__(self, state: str, run: str = "/run/pvc") -> None:
        self._now = Path(run, "networks.json")
        self._lasting = Path(state, "networks.json")
        self._request = Path(run, "networks.request")
        self._answer = Path(run, "networks.answer")

    def now(self) -> Now | None:
        return _read(Now, self._now)

    def lasting(self) -> Lasting:
        return _read(Lasting, self._lasting) or Lasting()

    def remember(self, known: Now | Lasting) -> None:
        _write(self._now if isinstance(known, Now) else self._lasting, known)

    def request(self) -> str:
        try:
            return self._request.read_text()
        except OSError:
            return ""

    def answer(self, answer: Answer) -> None:
        _write(self._answer, answer)

    # Of who asks

    def ask(self, request: str) -> None:
        self._request.parent.mkdir(parents=True, exist_ok=True)
        self._request.write_text(request)

    def answered(self, request: str) -> Answer | None:
        found = _read(Answer, self._answer)
        return found if found is not None and found.request == request else None


def _read(kind: type[T], path: Path) -> T | None:
    try:
        return loads(kind, path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except (OSError, Unreadable, json.JSONDecodeError) as error:
        log.error("as if %s were not there: %s", path, error)
        return None


def _write(path: Path, value: object) -> None:
    new = path.with_suffix(path.suffix + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as file:
            file.write(dumps(value))
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
    except OSError as error:
        raise Failed(f"{path} cannot be written: {error.strerror}") from error


def in_thread(act: Callable[[], None]) -> None:
    threading.Thread(target=act, name="contact", daemon=True).start()


class OwnNetworks:
    """`up` at boot; `begin` once and then `step`, round after round, in a daemon."""

    def __init__(
        self,
        host: HostNetworking,
        memory: Memory,
        configured: Callable[[], Site],
        address: str,
        coordinators: Sequence[str],
        clock: Clock,
        *,
        spawn: Callable[[Callable[[], None]], None] = in_thread,
    ) -> None:
        self.host = host
        self.memory = memory
        self.configured = configured
        """Reads pvc.toml. Raises PVCError."""
        self.address = address
        """Of this node, on the cluster network, unless the networks that were brought up say another."""
        self.coordinators = coordinators
        """Their addresses or names."""
        self.clock = clock
        self.spawn = spawn
        self.contact: Callable[[], bool] = lambda: False
        """Whether a commit succeeds. Raises PVCError."""
        self.may_be_cut_off: Callable[[], bool] = lambda: True
        """For a while, and no VM ends and nobody fences this node for it."""
        self.publish: Callable[[tuple[str, ...]], None] = lambda problems: None
        self.site = Site()
        self.trial: Trial | None = None
        self.problems: tuple[str, ...] = ()
        self.published: tuple[str, ...] = ()
        self._said: tuple[str, ...] = ()
        self._is_clear = False
        """Nothing is described, and nothing of ours is left: there is nothing to look at."""
        self._asked = threading.Event()
        self._proven = threading.Event()
        self._asking = threading.Event()
        self._count_from = 0.0
        self._until = 0.0
        self._look_due = 0.0

    # Beginning

    def up(self) -> tuple[str, ...]:
        """At boot; what is not as described. Later in the same boot it changes nothing but what differs."""
        known = self.memory.now()
        if known is not None:
            return self._go_on(known)
        configured, lasting = self.configured(), self.memory.lasting()
        if configured == lasting.doubted and lasting.good is not None:
            self.site = lasting.good
        else:
            self.site = configured
            self.memory.remember(Lasting(good=configured))
        self.memory.remember(Now(self.site))
        return self._compare()

    def begin(self) -> None:
        """When a daemon begins. Where nothing was brought up at boot, only what had proved good before is."""
        known = self.memory.now()
        if known is None:
            good = self.memory.lasting().good
            known = Now(good if good is not None and good == self.configured() else Site())
            self.memory.remember(known)
        self._go_on(known)

    def _go_on(self, known: Now) -> tuple[str, ...]:
        self.site = known.site
        if known.trial is not None:
            self.trial = known.trial
            self._roll_back("whoever tried it ended meanwhile")
        return self._compare()

    def in_force(self, config: Config) -> Config:
        """With the address that this node has, whatever has been written to pvc.toml since."""
        if not self.site.address or self.site.address == config.node.address:
            return config
        log.error("node.address is %s until other networks are applied", self.site.address)
        return replace(config, node=replace(config.node, address=self.site.address))

    # Rounds

    def ask(self) -> None:
        """Try what pvc.toml describes now. From any thread; the loop has to be woken, too."""
        self._asked.set()

    def step(self) -> float:
        now = self.clock.monotonic()
        if self.trial is not None:
            return self._judge(now)
        if self._asked.is_set():
            self._asked.clear()
            self._apply(self.memory.request())
            return 0.0
        if now >= self._look_due:
            self._compare()
            self._look_due = now + (RETRY_S if self.problems else LOOK_S)
        self._publish()
        return max(0.0, self._look_due - self.clock.monotonic())

    def _publish(self) -> None:
        if self.problems != self.published:
            self.publish(self.problems)
            self.published = self.problems

    def _compare(self) -> tuple[str, ...]:
        """Correct what is ours, and say what is not as it should be."""
        goal, failed = Wanted(), list[str]()
        is_described = bool(self.site.networks.sections())
        if is_described or not self._is_clear:
            goal, failed = self._bring(
                lambda found: wanted(self.site.networks, self.site.bridge_device, found)
            )
            self._is_clear = not is_described and not failed
        self.problems = (*goal.problems, *failed, *self._differs())
        for problem in self.problems:
            if problem not in self._said:
                log.warning("%s", problem)
        self._said = self.problems
        return self.problems

    def _differs(self) -> tuple[str, ...]:
        try:
            configured = self.configured()
        except PVCError as error:
            return (error.message,)
        if configured == self.site:
            return ()
        lasting = self.memory.lasting()
        if configured == lasting.doubted and lasting.why:
            return (f"what pvc.toml describes was rolled back: {lasting.why}",)
        return (CHANGED,)

    def _bring(self, aim: Callable[[HostState], Wanted]) -> tuple[Wanted, list[str]]:
        """Step by step, each for itself; what failed."""
        failed: list[str] = []
        for _ in range(PASSES):
            found = self.host.state()
            goal = aim(found)
            steps = towards(goal, found)
            if not steps:
                return goal, []
            failed = [why for step in steps if (why := self._take(step))]
        return goal, failed or ["what is done to the networks is undone by somebody else"]

    def _take(self, step: HostStep) -> str:
        """Why it failed; empty if it did not."""
        try:
            self.host.take(step)
        except PVCError as error:
            return error.message
        log.info("%s", _told(step))
        return ""

    # Trials

    def _apply(self, request: str) -> None:
        try:
            refused = self._try(self.configured(), request)
        except PVCError as error:
            refused = error.message
        if refused:
            log.warning("not applied: %s", refused)
            self.memory.answer(Answer(request, "refused", refused))

    def _try(self, configured: Site, request: str) -> str:
        """Begin; or why nothing is changed."""
        found = self.host.state()
        goal = wanted(configured.networks, configured.bridge_device, found)
        if goal.problems:
            return "; ".join(goal.problems)
        steps = towards(goal, found)
        names = touched(steps, found)
        is_free = self.may_be_cut_off()
        if not is_free and (why := self._why_it_matters(found, names)):
            return f"{why}: first `pvc cluster maintenance on`, so that nothing ends if it fails"
        self._proven.clear()
        lasting = self.memory.lasting()
        trial = Trial(configured, found, tuple(sorted(names)), request)
        self.memory.remember(Lasting(lasting.good or self.site, configured))
        self.memory.remember(Now(self.site, trial))
        self.trial = trial
        log.warning("trying other networks: %s", ", ".join(sorted(names)) or "no device changes")
        _, failed = self._bring(lambda state: wanted(configured.networks, configured.bridge_device, state))
        if failed:
            self._roll_back("; ".join(failed))
            return ""
        now = self.clock.monotonic()
        self._count_from = now + SETTLE_S
        self._until = now + (TRIAL_S if is_free else SHORT_TRIAL_S)
        return ""

    def _why_it_matters(self, found: HostState, names: frozenset[str]) -> str:
        """Why a change of these devices may cut this node off; empty if it cannot."""
        needed = carries(found, self.site.address or self.address, self.coordinators)
        if not needed:
            return "it is not known through which device this node reaches the cluster"
        if names & needed:
            return (
                f"it would change {', '.join(sorted(names & needed))}, by which this node reaches the cluster"
            )
        return ""

    def _judge(self, now: float) -> float:
        if self._proven.is_set():
            self._keep()
        elif now >= self._until:
            self._roll_back("the cluster was not reached with it")
        elif now >= self._count_from and not self._asking.is_set():
            self._asking.set()
            self.spawn(self._ask_contact)
        return ASK_S if self.trial is not None else 0.0

    def _ask_contact(self) -> None:
        """On a thread of its own: the time of a trial does not wait for an answer."""
        trial = self.trial
        try:
            if self.contact() and trial is self.trial:
                self._proven.set()
        except PVCError as error:
            log.info("on trial, no contact: %s", error.message)
        finally:
            self._asking.clear()

    def _keep(self) -> None:
        trial = self.trial
        assert trial is not None
        self.memory.remember(Lasting(good=trial.wanted))
        self.memory.remember(Now(trial.wanted))
        moved = trial.wanted.address != self.site.address
        self.site, self.trial, self._look_due, self._is_clear = trial.wanted, None, 0.0, False
        log.info("the networks of pvc.toml are kept: the cluster is reached")
        why = "node.address is another: systemctl restart pvc-node" if moved else ""
        self.memory.answer(Answer(trial.request, "kept", why))

    def _roll_back(self, why: str) -> None:
        trial = self.trial
        assert trial is not None
        log.error("rolling back the networks: %s", why)
        _, failed = self._bring(lambda found: as_before(trial.before, trial.devices))
        for problem in failed:
            log.error("not as before: %s", problem)
        # The record comes last: who ends before this begins with it again.
        self.memory.remember(Lasting(self.memory.lasting().good or self.site, trial.wanted, why))
        self.memory.remember(Now(self.site))
        self.trial, self._look_due = None, 0.0
        self.memory.answer(Answer(trial.request, "back", "; ".join((why, *failed))))


def _told(step: HostStep) -> str:
    about = {
        "RemoveDevice": "removed {0}",
        "MakeDevice": "made {0}",
        "SetMTU": "gave {0} the MTU {1}",
        "SetUp": "brought {0} " + ("up" if getattr(step, "up", True) else "down"),
        "AddAddress": "gave {0} the address {1}",
        "DropAddress": "took the address {1} from {0}",
        "AddRoute": "made the route to {1} through {0}",
        "DropRoute": "removed the route to {1} through {0}",
    }
    if isinstance(step, SetMaster):
        return f"{step.device} belongs to {step.master}" if step.master else f"{step.device} is free again"
    more = getattr(step, "mtu", "")
    more = more or getattr(getattr(step, "address", None), "value", "")
    more = more or getattr(getattr(step, "route", None), "to", "")
    return about[type(step).__name__].format(step.device, more)
