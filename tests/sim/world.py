"""A whole cluster in one process: real daemons and real operations over a store in memory, simulated hosts,
a virtual clock, and faults from a seed.

At every step: no VM runs twice, and ownership changes only as the design says. After the faults: everything
that users asked for is so or has failed with a reason, and nobody does anything any more.
"""

from __future__ import annotations

import heapq
import random
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

from pvc.cluster import domainxml, fencing, paths
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.codec import Unreadable, dumps
from pvc.cluster.fencing import Duties, Scene
from pvc.cluster.membership import Evidence, Fence, FenceState, Primary
from pvc.cluster.node import BMC, Alive, BMCDriver, DaemonState, Load, NodeRole, NodeSpec, NodeStatus
from pvc.cluster.storage import CephAccess, Monitor
from pvc.cluster.store import Create, Op, Put, Session, Stored, Watch
from pvc.cluster.timing import Timing
from pvc.cluster.view import VM, View
from pvc.cluster.vm import Method, Owner, Power, State, VMSpec, VMStatus, settled
from pvc.commands.context import Caller, Context, invoke
from pvc.commands.registry import Role, find
from pvc.config import ClusterConfig, Config, DaemonConfig, NodeConfig, PathsConfig
from pvc.errors import Conflict, Invalid, PVCError, Unavailable
from pvc.node.actions import key
from pvc.node.blocked import Blocked
from pvc.node.coordinator import Coordinator
from pvc.node.daemon import Daemon
from pvc.node.drivers import DriverError
from pvc.node.drivers.hypervisor import Domain, DomainState, Ended, EventKind
from pvc.node.drivers.power import BMCAccess
from pvc.node.execute import Executor
from pvc.node.judge import Judge
from pvc.node.keeper import Keeper
from pvc.node.lanes import REST_AFTER_CONFLICT_S, REST_S
from pvc.node.lease import Guard
from pvc.node.outage import Answer, Outage
from pvc.node.plan import Picture, Plan, plan
from pvc.node.process import drop_leftovers
from tests.sim import addresses
from tests.sim.addresses import SimAddresses
from tests.sim.ceph import SEEDS as CEPH_SEEDS
from tests.sim.ceph import SimBlocklist, SimCeph, with_disks
from tests.sim.hosts import BMCFault, Host, SimHypervisor, SimMemory, SimPower, SimWatchdog
from tests.sim.network import Cut, Network, bmc_of, both_ways, one_way, one_way_in
from tests.sim.speed import loads
from tests.sim.tasks import Crashed, Scheduler, Task
from tests.sim.zookeeper import ANSWER_S, PING_S, SESSION_S, TICK_S, Client, Ensemble, Tree

FAULTS_S = 60.0
SETTLE_S = 900.0
"""The longest chain after the last fault: no answer, a migration that times out, its fallback, back-offs."""
QUIET_S = 30.0
PLACES = ("n1", "n2", "n3")
"""Of ZooKeeper servers; in a cluster of two nodes the third is on a machine that does nothing else."""
NODES = (2, 3, 3, 3, 4, 5)
DRIFT = 0.005
"""Of each machine's monotonic clock: two machines differ by up to 1 %."""
BUSY_ACTIONS, BUSY_S = 100, 10.0
"""More actions in so short a time are a loop that feeds itself."""
QUICK_S = 1.0
"""A daemon that is back so soon was never away."""
BACK_S = 2.2
"""From the last look to the shot, at most."""
MAINTENANCE_S = 3.0
"""For who has just decided otherwise."""
HEALTHY_S = 15.0
"""After the last fault of a node, nobody has a reason to fence it."""
ROUNDS_AT_REST = 60
"""Of each node in QUIET_S: as many and it wakes itself."""
RUNS = (DomainState.RUNNING, DomainState.PAUSED, DomainState.SHUTTING_DOWN, DomainState.CRASHED)


@dataclass(frozen=True)
class Mutant:
    """The product as it is; test_bites.py breaks one rule at a time."""

    planner: Callable[[Picture], Plan] = plan
    executor: type[Executor] = Executor
    decide: Callable[[Scene], Duties] = fencing.duties
    judge: type[Judge] = Judge
    keeper: type[Keeper] = Keeper
    guard: type[Guard] = Guard
    old_lists: bool = False
    no_lifetime: bool = False
    """Of floating addresses, in the kernel."""
    open_from_boot: bool = False
    """libvirt takes migrations before the daemon has joined."""
    leftovers_stay: bool = False
    """Floating addresses of a life that was killed, when the next one begins."""
    daemon: type[Daemon] = Daemon
    outage: type[Outage] = Outage
    blocked: type[Blocked] = Blocked
    ceph_hour: float = 0.0
    """An entry of Ceph's block list ends by itself after so long."""
    ops: Callable[[Sequence[Op]], Sequence[Op]] = tuple
    """What of each transaction is really asked for."""
    ignores: tuple[str, ...] = ()
    """Broken rules of which nothing is said."""


class Violation(AssertionError):
    """A rule was broken; the message says which, the world's log how it came to it."""


class Actor:
    """A process of the simulation: a life of a daemon, or a user's command."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.dead = False
        self.frozen_until = 0.0
        """Stopped as by SIGSTOP: then it goes on with what it believed before."""
        self.tasks: dict[Task, None] = {}
        self.committed: Callable[[], None] = lambda: None

    @property
    def stopped_until(self) -> float:
        return self.frozen_until

    def is_awake(self) -> bool:
        return not self.dead and self.world.now >= self.stopped_until

    def point(self, least: float | None = None) -> None:
        """Others may go on here, and the process may die here."""
        if self.dead:
            raise Crashed
        world, task = self.world, self.world.current
        if task is None:
            return
        if least is None:
            if world.rng.random() >= 0.3:
                return
            least = world.rng.choice((0.0, 0.0, 0.0, 0.02, 0.3))
        world.later(least, partial(world.resume, self, task))
        task.pause()
        if self.dead:
            raise Crashed

    def kill(self) -> None:
        self.dead = True
        for task in list(self.tasks):
            task.kill()
        self.tasks.clear()


class SimStore:
    """A client of the store as one process uses it: others act between its calls, it may die between them."""

    def __init__(self, actor: Actor, inner: Client) -> None:
        self.actor = actor
        self.inner = inner
        self.world = actor.world

    @property
    def session(self) -> Session:
        return self.inner.session

    def on_session(self, listener: Callable[[Session], None]) -> None:
        self.inner.on_session(listener)

    def last_contact(self) -> float:
        return self.inner.last_contact()

    def get(self, path: str) -> Stored | None:
        return self.get_many([path])[0]

    def get_many(self, paths: Sequence[str]) -> tuple[Stored | None, ...]:
        return self.read(paths, ())[0]

    def children(self, path: str) -> tuple[str, ...]:
        return self.read((), (path,))[1][0]

    def read(
        self, paths: Sequence[str], listings: Sequence[str], watch: Watch | None = None
    ) -> tuple[tuple[Stored | None, ...], tuple[tuple[str, ...], ...]]:
        self.actor.point(self._slowness())
        if self.inner.is_connected and not self.inner.is_linked:
            self._wait_in_vain()
        return self.inner.read(paths, listings, watch)

    def commit(self, *ops: Op) -> None:
        self.actor.point(self._slowness())
        asked = self.world.mutant.ops(ops)
        if not self.inner.submit(asked, partial(self.world.apply, self.actor, asked)):
            self._wait_in_vain()
        self.actor.point(self._slowness())

    def _slowness(self) -> float | None:
        return self.world.slow.get(self.inner.place)

    def _wait_in_vain(self) -> None:
        """Until the connection is given up: whether anything was done nobody knows."""
        connection, until = self.inner.connection, self.world.now + ANSWER_S
        while self.inner.connection == connection and self.world.now < until and self.world.current:
            self.actor.point(0.2)
        if self.inner.connection == connection:
            self.inner.drop()
        raise Unavailable("the server does not answer: nobody knows whether the change was made")

    def close(self) -> None:
        self.inner.close()


class SimLock:
    """A lock of the process under the scheduler."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.held = False

    def __enter__(self) -> None:
        while self.held:
            self.actor.point(0.01)
        self.held = True

    def __exit__(self, *_: object) -> None:
        self.held = False


class SimClock:
    """As one process sees it: its machine's monotonic clock drifts, its own wall clock may jump."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.ahead = 0.0

    def monotonic(self) -> float:
        return self.host.local(self.host.world.now)

    def wall(self) -> float:
        return self.host.world.now + self.ahead


class SimLanes:
    """Lanes on the scheduler of the world."""

    def __init__(
        self,
        life: Life,
        carry_out: Callable[[Any], None],
        done: Callable[[], None],
        lane_of: Callable[[Any], str] = key,
    ) -> None:
        self._life = life
        self._lane_of = lane_of
        self._carry_out = carry_out
        self._done = done
        self._busy: dict[str, Any] = {}

    @property
    def busy(self) -> Mapping[str, Any]:
        busy = dict(self._busy)
        self._life.point()
        return busy

    def submit(self, action: Any) -> None:
        lane, world = self._lane_of(action), self._life.world
        assert lane not in self._busy, f"lane {lane} is busy"
        self._busy[lane] = action
        world.count_action()
        world.trace(f"{self._life.name}: {_told(action, lane)}")
        delay = world.rng.choice((0.0, 0.0, 0.0, 0.05, 1.0))
        world.spawn(self._life, partial(self._carry_out, action), partial(self._ended, lane), delay)

    def _ended(self, lane: str, error: BaseException | None) -> None:
        world = self._life.world
        if error is None:
            self._open(lane)
            return
        world.trace(f"{self._life.name}: {lane[:8]}: {error!r}")
        if not isinstance(error, PVCError):
            world.fail(f"a bug in an action: {error!r}", error)
        world.later(
            REST_AFTER_CONFLICT_S if isinstance(error, Conflict) else REST_S, partial(self._open, lane)
        )

    def _open(self, lane: str) -> None:
        del self._busy[lane]
        self._done()

    def close(self) -> None:
        pass


def _told(action: object, lane: str) -> str:
    name = type(action).__name__
    why = getattr(action, "why", "")
    return f"{name} {lane[:2] if len(lane) == 36 else lane} {why}"


class Life(Actor):
    """A daemon from its start to its death."""

    def __init__(self, world: World, host: Host) -> None:
        super().__init__(world, host.name)
        self.host = host
        self.clock = SimClock(host)
        self.client = world.zookeeper.connect(host.name, self.is_awake)
        self.client.local = host.local
        self.store = SimStore(self, self.client)
        self.daemon: Daemon | None = None
        self.coordinator: Coordinator | None = None
        self.rounds: tuple[Rounds, ...] = ()
        """Of its coordinator and its keeper."""
        self.stepping = False
        self.woken = False
        self.due = 0
        world.spawn(self, self._boot, self._booted)

    @property
    def stopped_until(self) -> float:
        return max(self.frozen_until, self.host.paused_until)

    def _boot(self) -> None:
        mutant = self.world.mutant
        hypervisor = SimHypervisor(self)
        self.guard = guard = self._guard(hypervisor)
        guard.begin()
        for step in (guard.feed, guard.prove, guard.end):
            rounds = Rounds(self)
            rounds.step = step
            rounds.next_step(0.0)
        if not mutant.leftovers_stay:
            drop_leftovers(SimAddresses(self))
        while not self.client.is_connected:
            self.point(0.5)
        daemon = mutant.daemon(
            self.world.config(self.name),
            self.store,
            hypervisor,
            self.clock,
            lanes=lambda carry_out, done: SimLanes(self, carry_out, done),
            wake=self.wake,
            bridges=lambda: frozenset({"br0"}),
            planner=mutant.planner,
            executor=mutant.executor,
            guard=guard,
            boot=f"{self.name}-{self.host.boots}",
        )
        self.point()
        self.host.takes_migrations = True
        daemon.mirror._syncing = SimLock(self)  # type: ignore[assignment]
        daemon.status_lock = SimLock(self)  # type: ignore[assignment]
        if daemon.role is NodeRole.COORDINATOR:
            self._coordinate(daemon)
        if self.world.ceph is not None:
            self._look_at_the_block_list(daemon, self.world.ceph)
        self.daemon = daemon

    def _look_at_the_block_list(self, daemon: Daemon, ceph: SimCeph) -> None:
        rounds = Rounds(self)
        blocked = self.world.mutant.blocked(
            *(daemon.me, self.store, daemon.hypervisor.domains, SimBlocklist(self, ceph)),
            publish=daemon.ceph_knows,
            is_idle=daemon.is_idle,
            is_ours=self.guard.is_ours,
            end=self.guard.end_one,
            changed=daemon.wake,
        )
        daemon.ceph_problem = lambda: blocked.problem
        daemon.executor.ceph = lambda: CephAccess((Monitor("10.0.0.1", 3300),), "pvc-vm", "0")
        rounds.step = blocked.step
        self.rounds = (*self.rounds, rounds)

    def _guard(self, hypervisor: SimHypervisor) -> Guard:
        mutant = self.world.mutant
        guard = mutant.guard(
            Timing(),
            self.clock,
            hypervisor,
            SimWatchdog(self) if self.host.has_watchdog else None,
            SimMemory(self.host),
            spawn=lambda function: self.world.spawn(self, function, lambda error: None),
        )
        guard._device = SimLock(self)  # type: ignore[assignment]
        outage = mutant.outage(PLACES, self.world.asked(self), guard.timing, self.clock, gather=one_by_one)
        guard.is_out = outage.is_out
        return guard

    def _coordinate(self, daemon: Daemon) -> None:
        mutant = self.world.mutant
        rounds, renewals = Rounds(self), Rounds(self)
        coordinator = Coordinator(
            daemon.me,
            self.store,
            SimPower(self),
            SimAddresses(self),
            self.clock,
            Timing(),
            "",
            lanes=lambda carry_out, done: SimLanes(self, carry_out, done, fencing.lane),
            wake=rounds.wake,
            decide=mutant.decide,
            judge=mutant.judge,
            keeper=mutant.keeper,
            access=lambda bmc, secret: BMCAccess(bmc.driver, bmc.address, bmc.user, ""),
            blocklist=None if self.world.ceph is None else SimBlocklist(self, self.world.ceph),
        )
        coordinator.mirror._syncing = SimLock(self)  # type: ignore[assignment]
        keeper = coordinator.keeper
        keeper.lock = SimLock(self)  # type: ignore[assignment]
        keeper.wake, keeper.changed, daemon.floating = renewals.wake, daemon.wake, keeper.shown
        rounds.step, renewals.step = coordinator.step, keeper.step
        self.coordinator, self.rounds = coordinator, (rounds, renewals)

    def _booted(self, error: BaseException | None) -> None:
        if error is None:
            self.next_step(0.0)
            for rounds in self.rounds:
                rounds.next_step(0.0)
        elif isinstance(error, PVCError):
            self.world.restart_daemon(self.name)
        else:
            self.world.fail(f"a bug at the start of the daemon: {error!r}", error)

    def wake(self) -> None:
        if self.stepping or self.daemon is None:
            self.woken = True
        else:
            self.next_step(self.world.rng.choice((0.0, 0.0, 0.05)))

    def next_step(self, delay: float) -> None:
        self.due += 1
        self.world.later(delay, partial(self._step, self.due))

    def _step(self, due: int) -> None:
        if due != self.due or self.stepping or self.dead or self.daemon is None:
            return
        self.stepping, self.woken = True, False
        self.world.rounds_since_action += 1
        task = self.world.begin(self, self.daemon.step, self._stepped)
        self.world.resume(self, task)

    def _stepped(self, error: BaseException | None, wait: float = 5.0) -> None:
        """As Process.loop in daemon.py does."""
        self.stepping = False
        if error is None:
            self.next_step(0.0 if self.woken else wait)
        elif isinstance(error, Conflict):
            self.next_step(0.1)
        elif isinstance(error, Unavailable | DriverError | Unreadable):
            self.next_step(1.0)
        elif isinstance(error, PVCError):
            self.world.trace(f"{self.name}: the daemon ends: {error!r}")
            self.world.restart_daemon(self.name)
        else:
            self.world.fail(f"a bug in a round of the daemon: {error!r}", error)

    def leave(self) -> bool:
        """As main in daemon.py. Whether the session may be closed."""
        assert self.daemon is not None
        self.daemon.begin_to_leave()
        is_left = True
        for rounds in self.rounds:
            rounds.end()
        if self.coordinator is not None:
            is_left = self.coordinator.leave()
        self.daemon.leave()
        return is_left

    def kill(self) -> None:
        self.world.zookeeper.lose(self.client)
        super().kill()
        self.host.watchers.pop(self, None)


class Rounds:
    """What a life does beside its own rounds, as on a thread of its own."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.step: Callable[[], float] = lambda: 5.0
        self.stepping = self.woken = self.ended = False
        self.due = 0

    def wake(self) -> None:
        if self.stepping or self.life.daemon is None:
            self.woken = True
        else:
            self.next_step(self.life.world.rng.choice((0.0, 0.0, 0.05)))

    def next_step(self, delay: float) -> None:
        self.due += 1
        self.life.world.later(delay, partial(self._step, self.due))

    def _step(self, due: int) -> None:
        if due != self.due or self.stepping or self.life.dead or self.ended:
            return
        self.stepping, self.woken = True, False
        world = self.life.world
        task = world.begin(self.life, self.step, self._stepped)
        world.resume(self.life, task)

    def end(self) -> None:
        """As Loop.close, which does not wait for ever."""
        self.ended = True
        until = self.life.world.now + 5.0
        while self.stepping and self.life.world.now < until:
            self.life.point(0.1)

    def _stepped(self, error: BaseException | None, wait: float = 5.0) -> None:
        """As Loop in coordinator.py does."""
        self.stepping = False
        if error is None:
            self.next_step(0.0 if self.woken else wait)
        elif isinstance(error, PVCError):
            self.next_step(0.1 if isinstance(error, Conflict) else 1.0)
        else:
            self.life.world.fail(f"a bug in a round of the coordinator: {error!r}", error)


def one_by_one(
    questions: Mapping[str, Callable[[], Answer]], is_enough: Callable[[Sequence[Answer]], bool]
) -> Sequence[Answer]:
    answers = []
    for question in questions.values():
        with suppress(Unavailable):
            answers.append(question())
    return answers


@cache
def _definition(name: str, uuid: str, memory_mib: int) -> str:
    nics = [domainxml.NewNic("br0")]
    return domainxml.create(name, uuid, memory_mib=memory_mib, vcpus=1, nics=nics)


@cache
def _config(name: str) -> Config:
    return Config(
        node=NodeConfig(name=name, address=f"10.0.0.{name[1:]}"),
        daemon=DaemonConfig(keepalive_s=20.0),
        cluster=ClusterConfig(coordinators=tuple(f"10.0.0.{number}:2181" for number in (1, 2, 3))),
        paths=PathsConfig(console=tempfile.gettempdir()),
    )


@dataclass
class World:
    seed: int
    mutant: Mutant = field(default_factory=Mutant)
    keep_log: bool = False
    nodes: int = 0
    """How many; 0 leaves it to the seed."""
    vms: int = 0
    kinds: Sequence[Callable[[World], None]] = ()
    """Of faults, and then many of them; empty leaves it to the seed."""
    has_ceph: bool = False
    """Also where the seed says no."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.now = 1000.0
        self.log: list[str] = []
        self.fingerprint = 0
        self.violation: Violation | None = None
        self.scheduler = Scheduler(self._advance, self._task_ended)
        self.next_task: Task | None = None
        self.is_over: Callable[[], Any] = lambda: True
        self.ended: dict[Task, tuple[Actor, Callable[..., None]]] = {}
        self.events: list[tuple[float, float, int, Callable[[], None]]] = []
        self.count = 0
        self.faulty = True
        self.last_action_at = 0.0
        self.rounds_since_action = 0
        self.recent_actions: deque[float] = deque(maxlen=BUSY_ACTIONS)
        self.maintenance_since = float("inf")
        self.back_since: dict[str, float] = {}
        """Of each node whose newest life has a session: since when."""
        self.disturbed_until: dict[str, float] = {}
        """Of each node: a fault had to do with it."""
        self.expected: dict[str, str] = {}
        """What users last wanted of a VM's power: started, stopped, or any where nobody can know."""
        self.slow: dict[str, float] = {}
        """Places whose way to the store is slow, and by how much."""
        self.cluster = Tree(queued=True, monotonic=self.monotonic)
        self.asleep: dict[str, None] = {}
        """Machines without power or paused; some of them may go on by now."""
        self.network = Network(self.asleep, self.is_awake)
        self.zookeeper = Ensemble(self, self.network, self.cluster, PLACES)
        self.network.before_change = self.zookeeper.before_change
        self.zookeeper.lags = not self.vms
        self.truth = self.cluster.connect()
        names = [f"n{number}" for number in range(1, (self.nodes or self.rng.choice(NODES)) + 1)]
        self.hosts = {name: Host(self, name, rate=1 + self.rng.uniform(-DRIFT, DRIFT)) for name in names}
        for host in self.hosts.values():
            host.has_watchdog = bool(self.vms) or self.rng.random() < 0.8
        self.ceph = SimCeph(self, PLACES) if self.has_ceph or self.seed >= CEPH_SEEDS else None
        self.lives: dict[str, Life] = {}
        self.users: list[Actor] = []
        self.apis = {
            place: self.zookeeper.connect(place, partial(self.is_awake, place))
            for place in PLACES
            if place in self.hosts
        }
        """The API servers, on coordinators."""
        self._lay_out()
        for name in names:
            self.boot(name)

    # Time, and who runs

    def is_awake(self, place: str) -> bool:
        """The machine there has power and is not paused."""
        if place not in self.asleep:
            return True
        host = self.hosts[place]
        if host.is_up and self.now >= host.paused_until:
            del self.asleep[place]
            return True
        return False

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def later(self, delay: float, event: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + delay, self.rng.random(), self.count, event))

    @property
    def current(self) -> Task | None:
        return self.scheduler.running

    def begin(self, actor: Actor, function: Callable[[], Any], ended: Callable[..., None]) -> Task:
        task = Task(self.scheduler, function)
        actor.tasks[task] = None
        self.ended[task] = actor, ended
        return task

    def spawn(
        self, actor: Actor, function: Callable[[], Any], ended: Callable[..., None], delay: float = 0.0
    ) -> None:
        task = self.begin(actor, function, ended)
        self.later(delay, partial(self.resume, actor, task))

    def resume(self, actor: Actor, task: Task) -> None:
        """The last thing that an event does."""
        if task.done or actor.dead:
            return
        if self.now < actor.stopped_until:
            self.later(actor.stopped_until - self.now, partial(self.resume, actor, task))
            return
        assert self.next_task is None, "two tasks at once"
        self.next_task = task

    def _task_ended(self, task: Task) -> None:
        actor, ended = self.ended.pop(task)
        actor.tasks.pop(task, None)
        if isinstance(task.error, Crashed):
            return
        if task.error is None and isinstance(task.result, float):
            ended(None, task.result)
        else:
            ended(task.error)

    def run(self) -> None:
        """Faults, then peace, then everything must be as it was wanted. Raises Violation."""
        try:
            self._plan_faults()
            self._run_until(lambda: self.now >= 1000.0 + FAULTS_S)
            self._heal()
            end = self.now + SETTLE_S
            self._run_until(lambda: self._is_at_rest() or self.now > end)
            self._check_end()
        finally:
            self.end()

    def until(self, condition: Callable[[], Any], within: float = 120.0) -> None:
        """Let the world go on until the condition holds. Raises Violation when it does not in time."""
        end = self.now + within
        self._run_until(lambda: self.now > end or condition())
        if not condition():
            self.fail(f"not within {within} s; unrest: {self._unrest() or 'none'}")
            assert self.violation is not None
            raise self.violation

    def end(self) -> None:
        for actor in [*self.lives.values(), *self.users]:
            actor.kill()

    def _run_until(self, done: Callable[[], Any]) -> None:
        self.is_over = done
        self.scheduler.run()
        if self.violation:
            raise self.violation

    def _advance(self, own: Task | None) -> Task | None:
        """Events, until a task is to go on, or (None) all is over. `own` is paused on this very stack."""
        while True:
            if own is not None and own.killed:
                return own
            if self.next_task is not None:
                task, self.next_task = self.next_task, None
                if not task.done:
                    return task
            if self.violation or self.is_over():
                return None
            self.now, _, _, event = heapq.heappop(self.events)
            event()
            if self.rng.random() < 0.8:
                self.cluster.deliver()

    def count_action(self) -> None:
        self.last_action_at, self.rounds_since_action = self.now, 0
        self.recent_actions.append(self.now)
        if len(self.recent_actions) == BUSY_ACTIONS and self.now - self.recent_actions[0] < BUSY_S:
            self.fail(f"{BUSY_ACTIONS} actions within {BUSY_S} s: nodes run in circles")

    def trace(self, line: str) -> None:
        text = f"{self.now:9.3f} {line}"
        self.fingerprint = zlib.crc32(text.encode(), self.fingerprint)
        if self.keep_log:
            self.log.append(text)

    def fail(self, why: str, cause: BaseException | None = None) -> None:
        is_ignored = any(text in why for text in self.mutant.ignores)
        if self.violation is None and not is_ignored:
            self.trace(f"VIOLATION {why}")
            self.violation = Violation(f"seed {self.seed} at {self.now:.3f}: {why}")
            self.violation.__cause__ = cause

    # The cluster

    def config(self, name: str) -> Config:
        return _config(name)

    def _lay_out(self) -> None:
        self.truth.commit(*(Create(path) for path in paths.LAYOUT))
        spec = ClusterSpec(
            "sim",
            shutdown_timeout_s=30,
            restart_limit=3,
            migrations_at_once=self.rng.choice((1, 3)),
            starts_at_once=self.rng.choice((1, 4)),
            upstream_address=addresses.CHOICES[0],
            autoready=self.seed % 2 == 1,
        )
        self.truth.commit(Create(paths.CLUSTER, dumps(spec)))
        for name in self.hosts:
            bmc = BMC(BMCDriver.IPMI, name, "admin", "") if self.rng.random() < 0.9 else None
            address = f"10.0.0.{name[1:]}"
            role = NodeRole.COORDINATOR if name in PLACES else NodeRole.HYPERVISOR
            self.truth.commit(
                Create(paths.node(name), dumps(NodeSpec(name, address, address, role, bmc=bmc))),
                Create(paths.node_status(name), dumps(NodeStatus(state=DaemonState.STOP))),
                Create(paths.node_vms(name)),
                Create(paths.load(name), dumps(Load())),
            )
        if self.ceph is not None:
            self.ceph.lay_out()
        for number in range(self.vms or self.rng.choice((1, 2, 3, 4))):
            self._define(number)

    def _define(self, number: int) -> None:
        uuid = f"{'abcdef'[number]}{number:07d}-0000-4000-8000-000000000000"
        memory_mib = 512 if self.vms else self.rng.choice((512, 512, 3000, 5000))
        name = f"vm{number}"
        spec = VMSpec(
            uuid,
            name,
            _definition(name, uuid, memory_mib),
            memory_mib,
            1,
            method=self.rng.choice((Method.NONE, Method.NONE, Method.LIVE, Method.SHUTDOWN)),
            migration_timeout_s=40,
            autostart=self.rng.random() < 0.3,
        )
        if self.vms:
            spec = replace(spec, method=Method.NONE, autostart=False)
        elif self.rng.random() < 0.3:
            for host in self.hosts.values():
                host.deaf.add(uuid)
        if self.ceph is not None and (self.vms or self.rng.random() < 0.7):
            also = not self.vms and self.rng.random() < 0.2
            spec = replace(spec, definition=with_disks(spec.definition, name, also_elsewhere=also))
            if not also:
                self.ceph.in_ceph.add(uuid)
        self.truth.commit(
            Create(paths.vm(uuid), dumps(spec)),
            Create(paths.vm_status(uuid), dumps(VMStatus())),
            Create(paths.vm_name(name), uuid.encode()),
        )
        self.expected[uuid] = "stopped"

    def boot(self, name: str) -> None:
        host = self.hosts[name]
        if host.is_up and (name not in self.lives or self.lives[name].dead):
            self.lives[name] = Life(self, host)

    def disturb(self, name: str, seconds: float = 0.0) -> None:
        self.disturbed_until[name] = max(self.disturbed_until.get(name, 0.0), self.now + seconds)

    def kill_daemon(self, name: str, back_after: float | None = None) -> None:
        life = self.lives[name]
        if back_after is None or back_after > QUICK_S or self.lives[name].daemon is None:
            self.disturb(name, 10.0)
        if not life.dead:
            self.trace(f"{name}: kill -9")
            life.kill()

    def restart_daemon(self, name: str, after: float = 2.0) -> None:
        self.kill_daemon(name, after)
        self.later(after, lambda: self.boot(name))

    def reset(self, name: str) -> None:
        self.power_cut(name)
        self.later(1.0, partial(_power_comes_back, self, name))

    def asked(self, asker: Life) -> Callable[[str], float]:
        """GET /quorum of a coordinator's daemon."""

        def ask(place: str) -> float:
            asker.point()
            life = self.lives.get(place)
            if place != asker.name:
                is_there = life is not None and life.is_awake() and life.daemon is not None
                if not is_there or not self.network.talks(asker.name, place):
                    raise Unavailable(f"{place} does not answer")
            quorum = self.zookeeper.without_quorum_s(place)
            asker.point()
            return quorum

        return ask

    # The rules that hold at every step

    def apply(self, actor: Actor, ops: Sequence[Op], carry_out: Callable[[], None]) -> None:
        """A transaction is made: maybe long after its client has given it up."""
        before = self.owners(ops)
        try:
            carry_out()
            actor.committed()
            self.check_receipts(ops)
            if self.ceph is not None:
                self.ceph.check_blocks(ops)
            self.check_lives(ops)
            self._note(ops)
        finally:
            self.check_owners(actor.name, before, self.owners(ops))

    def gone(self, path: str) -> None:
        """A document was deleted, or has ended with its session."""
        self.back_since.pop(path.removeprefix(f"{paths.ALIVE}/"), None)

    def _note(self, ops: Iterable[Op]) -> None:
        for op in ops:
            kind, _, name = op.path.removeprefix(f"{paths.ROOT}/").partition("/")
            if kind == "alive" and isinstance(op, Create):
                self.back_since[name] = self.now
            elif op.path == paths.CLUSTER and isinstance(op, Put):
                is_on = loads(ClusterSpec, op.data).maintenance
                self.maintenance_since = min(self.maintenance_since, self.now) if is_on else float("inf")

    def check_receipts(self, ops: Iterable[Op]) -> None:
        """A receipt says that nothing of that life runs: then nothing does."""
        for op in ops:
            if not op.path.startswith(paths.FENCES + "/") or not isinstance(op, Create | Put):
                continue
            fence = loads(Fence, op.data)
            host, life = self.hosts[fence.node], self.lives[fence.node]
            if fence.state is not FenceState.FENCED or fence.finished:
                continue
            me = life.daemon.me if life.daemon is not None and not life.dead else None
            # One that was cut off may go on with nothing, until it learns of the receipt.
            lives = me is not None and me.incarnation <= fence.incarnation
            lives = lives and fence.evidence is not Evidence.WATCHDOG
            runs = sorted(host.domains.keys() - host.by_hand)
            if lives or runs:
                self.fail(f"a false receipt, {fence.evidence}: of {fence.node} run {runs or 'its daemon'}")

    def check_copies(self, uuid: str) -> None:
        if self.ceph is not None and uuid in self.ceph.in_ceph:
            self._check_writers(self.ceph, uuid)
            return
        where = [
            host.name
            for host in self.hosts.values()
            if uuid in host.domains and host.domains[uuid].state in RUNS and uuid not in host.by_hand
        ]
        if len(where) > 1:
            self.fail(f"{uuid[:2]} runs on {' and '.join(where)}")

    def _check_writers(self, ceph: SimCeph, uuid: str) -> None:
        """A run that can write nothing may go on beside another one."""
        for host in self.hosts.values():
            domain = host.domains.get(uuid)
            if domain is None or uuid in host.by_hand:
                ceph.ended(host.name, uuid)
            else:
                ceph.is_there(host.name, uuid, runs=domain.state in RUNS)
        ceph.check(uuid)

    def owners(self, ops: Iterable[Op]) -> dict[str, Owner | None]:
        found: dict[str, Owner | None] = {}
        for op in ops:
            parts = op.path.split("/")
            if len(parts) == 5 and parts[4] == "status" and parts[2] == "vms":
                stored = self.cluster.document(op.path)
                found[parts[3]] = loads(VMStatus, stored.data).owner if stored else None
        return found

    def check_owners(
        self, writer: str, before: Mapping[str, Owner | None], after: Mapping[str, Owner | None]
    ) -> None:
        for uuid, was in before.items():
            now = after.get(uuid)
            if was == now or (was and now and was.node == now.node == writer):
                continue
            self.trace(f"{writer}: {uuid[:2]} owner {was} -> {now}")
            if was is None and now is not None and now.node == writer:
                continue
            if was is not None and was.node != writer and self._is_released(was, now, uuid):
                continue
            if was is None or was.node != writer:
                self.fail(f"{writer} changed the owner of {uuid[:2]} from {was} to {now}")
            elif uuid in self.hosts[writer].domains and uuid not in self.hosts[writer].by_hand:
                self.fail(f"{writer} gave up {uuid[:2]} while it has its QEMU")
            elif now is None and self._runs_anywhere(uuid):
                self.fail(f"{writer} gave up {uuid[:2]} to nobody while it runs elsewhere")

    def check_lives(self, ops: Iterable[Op]) -> None:
        """Of a receipt for a life and a session of that life only one is made."""
        for op in ops:
            kind, _, name = op.path.removeprefix(f"{paths.ROOT}/").partition("/")
            if not isinstance(op, Create | Put) or kind not in ("alive", "fences", "blocks"):
                continue
            node = name.rpartition("-")[0] if kind == "fences" else name
            alive = self.cluster.document(paths.alive(node))
            if alive is None:
                continue
            if self.ceph is not None and self.ceph.is_shut_out(node, loads(Alive, alive.data).incarnation):
                self.fail(f"{node} is alive in a life that is shut out of Ceph")
            fence = self.cluster.document(paths.fence(node, loads(Alive, alive.data).incarnation))
            if fence is not None and loads(Fence, fence.data).state is FenceState.FENCED:
                self.fail(f"{node} is alive in a life for which there is a receipt")

    def _is_released(self, was: Owner, now: Owner | None, uuid: str) -> bool:
        """By a receipt, which must be true. A VM in Ceph also by the proof that Ceph takes nothing from where
        it was, and then to nobody: where it migrated to is known only when it has ended."""
        receipts = [
            loads(Fence, stored.data)
            for name in self.cluster.names(paths.FENCES)
            if (stored := self.cluster.document(f"{paths.FENCES}/{name}"))
        ]
        host = self.hosts[was.node]
        in_ceph = self.ceph if self.ceph is not None and uuid in self.ceph.in_ceph else None
        if now is None and in_ceph is not None and in_ceph.is_shut_out(was.node, was.incarnation):
            return True
        return (
            any(
                one.node == was.node and one.incarnation >= was.incarnation and one.state is FenceState.FENCED
                for one in receipts
            )
            and (uuid not in host.domains or uuid in host.by_hand)
            and (now is not None or not self._runs_anywhere(uuid))
        )

    def shot(self, name: str) -> None:
        """Somebody orders its power off."""
        stored = self.cluster.document(paths.node_status(name))
        assert stored is not None
        incarnation = loads(NodeStatus, stored.data).incarnation
        # A new life may have begun since the judge looked: the fence that somebody wanted is of the last one.
        lives = [self.cluster.document(paths.fence(name, one)) for one in (incarnation, incarnation - 1)]
        fences = [loads(Fence, one.data) for one in lives if one is not None]
        was_asked = any(fence.asked_by for fence in fences)
        by_whom = was_asked or any(fence.drill for fence in fences)
        if self.maintenance_since + MAINTENANCE_S < self.now and not by_whom:
            self.fail(f"{name} is fenced in maintenance")
        alive = self.cluster.document(paths.alive(name))
        is_back = alive is not None and loads(Alive, alive.data).incarnation == incarnation
        if is_back and self.back_since[name] + BACK_S < self.now and not by_whom:
            self.fail(f"{name} is fenced though it is back")
        has_peace = self.now > self.disturbed_until.get(name, 1000.0) + HEALTHY_S
        if has_peace and self.hosts[name].is_up and not self.lives[name].dead and not was_asked:
            self.fail(f"{name} is fenced in good health")

    def _runs_anywhere(self, uuid: str) -> bool:
        """And not only where Ceph takes nothing more from it."""
        ceph = self.ceph if self.ceph is not None and uuid in self.ceph.in_ceph else None
        return any(
            uuid in host.domains and host.domains[uuid].state in RUNS and uuid not in host.by_hand
            for host in self.hosts.values()
            if ceph is None or ceph.can_write(host.name)
        )

    # Faults and users

    def _plan_faults(self) -> None:
        faults = FAULTS if self.ceph is None else [*FAULTS, *OF_CEPH]
        kinds = [*self.kinds] or self.rng.sample(faults, self.rng.randint(0, len(faults)))
        for uuid in self.expected:
            if self.rng.random() < 0.8:
                self.later(self.rng.random() * 3 + 1, partial(self.command, "start", uuid))
        at, per_second, share = 2.0, self.rng.choice((0.2, 0.5, 1.5)), self.rng.choice((0.2, 0.4, 0.6))
        if self.kinds:
            per_second, share = self.rng.choice((0.1, 0.3, 1.0)), 0.6
        elif self.rng.random() < 0.25 and not self.vms:
            # Long enough for its promise to count, and not much else.
            self.later(2 + 6 * self.rng.random(), partial(lost, self, 58.0))
            kinds, share = kinds[:2], 0.1
        while at < FAULTS_S:
            at += self.rng.expovariate(per_second)
            kind = self.rng.choice(kinds) if kinds and self.rng.random() < share else _user
            self.later(at, partial(self._disturb, kind))

    def _disturb(self, kind: Callable[[World], None]) -> None:
        if self.faulty:
            kind(self)

    def command(self, verb: str, what: str, **options: Any) -> None:
        """A user's command, as the API server would carry it out."""
        actor = Actor(self, f"user {verb}")
        self.users = [user for user in self.users if user.tasks]
        self.users.append(actor)
        wanted = {"start": "started", "shutdown": "stopped", "stop": "stopped", "disable": "stopped"}.get(
            verb
        )

        def committed() -> None:
            self.trace(f"{actor.name} {what[:2]} {options}")
            if wanted:
                self.expected[what] = wanted

        def carry_out() -> None:
            store = self.api(actor)
            ctx = Context(store, store, Caller("someone", Role.ADMIN), clock=self)
            noun = "node" if what in self.hosts else "vm"
            invoke(find(f"{noun}.{verb}"), ctx, {noun: what, **options})

        def ended(error: BaseException | None) -> None:
            if error is not None and (not isinstance(error, PVCError) or isinstance(error, Invalid)):
                self.fail(f"a bug in {actor.name}: {error!r}", error)

        actor.committed = committed
        self.spawn(actor, carry_out, ended)

    def primary(self) -> str | None:
        stored = self.cluster.document(paths.PRIMARY)
        return loads(Primary, stored.data).node if stored else None

    def api(self, actor: Actor) -> SimStore:
        """The store as the API server knows it that this user has found."""
        up = [client for client in self.apis.values() if client.is_connected]
        return SimStore(actor, self.rng.choice(up or list(self.apis.values())))

    def power_cut(self, name: str) -> None:
        self.trace(f"{name}: power cut")
        self.zookeeper.cut_power(name)
        self.kill_daemon(name)
        for uuid in self.hosts[name].domains:
            self._excuse(uuid, only_stop=True)
        self.hosts[name].power_cut()

    def power_on(self, name: str) -> None:
        self.hosts[name].pending_off = 0
        self.disturb(name, 10.0)
        self.zookeeper.before_change()
        self.hosts[name].is_up = True
        self.hosts[name].boots += 1
        self.hosts[name].paused_until = 0.0
        if name in PLACES:
            self.later(self.rng.choice((0.1, 2.0)), partial(_zookeeper_starts, self, name))
        self.boot(name)

    def _excuse(self, uuid: str, *, only_stop: bool) -> None:
        """What becomes of it is not decided by users alone."""
        if not only_stop and self.expected[uuid] == "started":
            self.expected[uuid] = "any"

    # The end

    def _heal(self) -> None:
        self.faulty = False
        self.trace("the faults are over")
        self.network.heal_all()
        self.slow.clear()
        self.zookeeper.before_change()
        for name, host in self.hosts.items():
            host.paused_until = 0.0
            if not host.has_libvirt:
                host.libvirt_up()
            self.disturb(name, 20.0)
            host.bmc, host.pending_off = BMCFault.NONE, 0
            if not host.is_up:
                self.power_on(name)
            self.boot(name)
            self.lives[name].frozen_until = 0.0
            self.lives[name].client.barred_until = 0.0
        self.zookeeper.heal()
        if self.ceph is not None:
            self.ceph.heal()
        self.later(1.0, partial(_set_maintenance, self, "off", insists=True))
        if self.rng.random() < 0.7:
            for name in self.hosts:
                self.later(8.0, partial(self.command, "ready", name))

    def found(self) -> dict[str, VM]:
        return View(self.truth).vms()

    def where(self, uuid: str) -> list[str]:
        return [host.name for host in self.hosts.values() if uuid in host.domains]

    def _is_at_rest(self) -> bool:
        quiet_since = max(self.last_action_at, 1000.0 + FAULTS_S + 10)
        return self.now > quiet_since + QUIET_S and not self._unrest()

    def _unrest(self) -> str:
        """What is not as it should be in the end; empty when all is."""
        view = View(self.truth)
        nodes = view.nodes()
        known = self.found()
        for uuid, vm in known.items():
            wants_node = nodes[vm.spec.node].spec.wanted if vm.spec.node else "ready"
            if not settled(vm.spec, vm.status) and wants_node == "ready":
                return f"{vm.spec.name} is not settled: {vm}"
            if self.expected[uuid] == "started" and vm.spec.power is not Power.STARTED:
                return f"{vm.spec.name} was to be started: {vm}"
            if self.expected[uuid] == "stopped" and vm.spec.power is Power.STARTED and not vm.spec.autostart:
                return f"{vm.spec.name} was to be stopped: {vm}"
            if vm.spec.home is not None and vm.spec.home == vm.spec.node:
                return f"{vm.spec.name} is at home and does not know: {vm}"
            if vm.status.state is State.FAIL and not vm.status.reason:
                return f"{vm.spec.name} failed without a reason"
            runs = self.where(uuid)
            owned = [vm.status.owner.node] if vm.status.owner else []
            if runs != owned:
                return f"{vm.spec.name} runs on {runs} and is owned by {owned}"
            indexed = {name for name in nodes if uuid in self.truth.children(paths.node_vms(name))}
            if indexed != {name for name in (vm.spec.node, vm.spec.home, *owned) if name}:
                return f"the index of {vm.spec.name} is wrong: {sorted(indexed)}"
        for name, (fence, _) in view.fences().items():
            is_open = fence.state in (FenceState.FENCING, FenceState.SUSPECT)
            if is_open or (fence.state is FenceState.FENCED and not fence.finished):
                return f"the fence {name} does not end: {fence}"
        if self.zookeeper.has_quorum() and (why := addresses.unrest(self, view.cluster().floating_addresses)):
            return why
        if self.ceph is not None and (why := self.ceph.unrest()):
            return why
        for host in self.hosts.values():
            if unknown := host.domains.keys() - known.keys():
                return f"{host.name} runs what nobody knows: {sorted(unknown)}"
        for name, node in nodes.items():
            if not node.is_running:
                return f"{name} is {node.daemon_state}"
            if node.spec.wanted == "ready" and node.status.flushed:
                return f"{name} is ready and has not fetched its VMs"
        return ""

    def _check_end(self) -> None:
        why = self._unrest()
        busy_until = self.last_action_at + QUIET_S
        if not why and self.now <= busy_until and not self._flush_goes_on():
            why = "actions never end"
        if not why and self.rounds_since_action > ROUNDS_AT_REST * len(self.hosts) and self._is_at_rest():
            why = f"{self.rounds_since_action} rounds for nothing"
        if why:
            self.fail(f"after the faults: {why}")
            assert self.violation is not None
            raise self.violation

    def _flush_goes_on(self) -> bool:
        """A node that cannot be emptied tries again for ever, slowly."""
        return any(
            node.spec.wanted == "flushed" and node.load.vms for node in View(self.truth).nodes().values()
        )


VERBS: dict[str, float] = {
    "start": 4,
    "shutdown": 1,
    "stop": 1,
    "restart": 1,
    "disable": 1,
    "move": 4,
    "migrate": 2,
    "unmigrate": 1,
    "undefine": 0.3,
    "flush": 1,
    "ready": 2,
    "primary": 0.4,
    "secondary": 0.4,
    "fence": 0.1,
}
"""With how often users say them."""


def _user(world: World) -> None:
    rng = world.rng
    verb = rng.choices(list(VERBS), list(VERBS.values()))[0]
    if verb in ("flush", "ready", "primary", "secondary", "fence"):
        world.command(verb, rng.choice(list(world.hosts)))
        return
    options: dict[str, Any] = {}
    if verb in ("move", "migrate") and rng.random() < 0.7:
        options["target"] = rng.choice(list(world.hosts))
    if verb in ("move", "migrate") and rng.random() < 0.2:
        options["force_live"] = True
    if verb == "disable":
        options["force"] = rng.random() < 0.5
    world.command(verb, rng.choice(list(world.expected)), **options)


def _some_node(world: World) -> str:
    return world.rng.choice(list(world.hosts))


def kill(world: World) -> None:
    world.restart_daemon(_some_node(world), world.rng.choice((0.2, 3.0, 10.0)))


def freeze(world: World) -> None:
    """SIGSTOP, or a host that swaps: the process goes on later, its session may be over by then."""
    life = world.lives[_some_node(world)]
    if life.dead or world.now < life.frozen_until:
        return
    seconds = world.rng.choice((1.0, 5.0, 30.0))
    world.trace(f"{life.name}: frozen for {seconds} s")
    world.zookeeper.before_change()
    life.frozen_until = world.now + seconds
    world.disturb(life.name, seconds + 5.0)


def leave(world: World) -> None:
    """systemctl restart."""
    life = world.lives[_some_node(world)]
    if life.dead or life.daemon is None or world.now < life.frozen_until:
        return
    world.trace(f"{life.name}: is told to end")
    name = life.name

    def leave() -> None:
        if life.leave():
            life.client.close()

    def left(error: BaseException | None) -> None:
        if error is not None and not isinstance(error, PVCError):
            world.fail(f"a bug at the end of the daemon: {error!r}", error)
        if not life.dead:
            world.restart_daemon(name, 0.5)

    world.spawn(life, leave, left)


def power_cut(world: World) -> None:
    name = _some_node(world)
    if world.hosts[name].is_up:
        world.power_cut(name)
        back_after = world.rng.choice((2.0, 8.0, 40.0, None))
        if back_after is not None:
            world.later(back_after, partial(_power_comes_back, world, name))


def _power_comes_back(world: World, name: str) -> None:
    if not world.hosts[name].is_up:
        world.power_on(name)


def suspend(world: World) -> None:
    """By the dice, whatever the network does: no server takes a client for a while, or ends its session."""
    names = list(world.hosts) if world.rng.random() < 0.3 else [_some_node(world)]
    expires, seconds = world.rng.random() < 0.5, world.rng.choice((0.3, 3.0, 10.0, 40.0))
    for life in [world.lives[name] for name in names]:
        if life.dead or not life.client.is_connected:
            continue
        world.trace(f"{life.name}: loses the store for {seconds} s")
        life.client.drop()
        life.client.barred_until = world.now + seconds
        world.disturb(life.name, seconds + 5.0)
        if expires:
            world.later(seconds / 2, partial(_expire, world, life.client, life.client.session.id))


def partition(world: World) -> None:
    """Of some from some, in both directions or one; the BMCs are on a network of their own."""
    rng, names = world.rng, [*world.hosts]
    places = sorted({*names, *PLACES})
    kind = rng.choice(("one", "one", "primary", "leader", "pair", "halves", "stores", "bmcs", "a bmc"))
    leader = world.zookeeper.leader
    ones = {
        "primary": [world.primary() or names[0]],
        "leader": [leader.place if leader else names[0]],
        "halves": rng.sample(places, len(places) // 2),
        "stores": list(PLACES),
        "a bmc": [bmc_of(rng.choice(names))],
    }.get(kind, [rng.choice(names)])
    others = [place for place in places if place not in ones]
    if kind == "pair":
        others = [rng.choice(others)]
    elif kind == "stores":
        others = list(PLACES)
    elif kind == "bmcs":
        others = [bmc_of(name) for name in names]
    elif kind == "one" and rng.random() < 0.3:
        others += [bmc_of(name) for name in names]
    how = rng.choice((both_ways, both_ways, one_way, one_way_in))
    cut = world.network.cut(how(ones, others))
    seconds = rng.choice((0.5, 3.0, 5.0, 10.0, 20.0, 60.0))
    world.trace(f"{how.__name__}: {' '.join(ones)} from {' '.join(others)} for {seconds} s")
    world.later(seconds, partial(_heal, world, cut))


def _heal(world: World, cut: Cut) -> None:
    world.trace(f"{cut.links[0][0]} and {cut.links[0][1]} can talk again")
    world.network.heal(cut)


def lost(world: World, seconds: float = 0.0) -> None:
    """A node that nobody reaches, nor its BMC: dead, or going on by itself."""
    rng, name = world.rng, _some_node(world)
    others = [place for place in {**world.hosts, **dict.fromkeys(PLACES)} if place != name]
    cut = world.network.cut(both_ways([name], others) + both_ways([bmc_of(name)], others))
    seconds = seconds or rng.choice((20.0, 45.0))
    world.trace(f"{name} and its BMC are lost for {seconds} s")
    if rng.random() < 0.4 and world.hosts[name].is_up:
        world.power_cut(name)
        world.later(seconds, partial(_power_comes_back, world, name))
    world.later(seconds, partial(_heal, world, cut))


def zookeeper_fault(world: World) -> None:
    """Servers are killed or stopped: one, the leader, two, or all."""
    rng, leader = world.rng, world.zookeeper.leader
    some = [rng.choice(PLACES)] if leader is None or rng.random() < 0.5 else [leader.place]
    places = rng.choice((some, some, rng.sample(PLACES, 2), PLACES))
    seconds = rng.choice((0.2, 2.0, 4.0, 15.0, 60.0))
    is_killed = rng.random() < 0.5
    world.trace(f"zookeeper: {' '.join(places)} {'killed' if is_killed else 'stopped'} for {seconds} s")
    for place in places:
        if not is_killed:
            world.zookeeper.pause(place, seconds)
        elif world.zookeeper.servers[place].runs:
            world.zookeeper.kill(place)
            world.later(seconds, partial(_zookeeper_starts, world, place))


def _zookeeper_starts(world: World, place: str) -> None:
    """systemd does it, on a machine that has power and is not paused."""
    host = world.hosts.get(place)
    if host is None:
        world.zookeeper.start(place)
    elif host.is_up:
        host.later(0.0, partial(world.zookeeper.start, place))


def pause_machine(world: World) -> None:
    """All of it stands still, and goes on."""
    host = world.hosts[_some_node(world)]
    if host.is_up:
        seconds = world.rng.choice((1.0, 4.0, 12.0, 40.0))
        world.trace(f"{host.name}: the machine stands still for {seconds} s")
        world.zookeeper.before_change()
        world.disturb(host.name, seconds + 5.0)
        host.paused_until = max(host.paused_until, world.now + seconds)
        world.asleep[host.name] = None
        addresses.check_later(world, host.paused_until - world.now)


def _clock(world: World) -> None:
    """Of one process, as by hand or by NTP."""
    life = world.lives[_some_node(world)]
    life.clock.ahead += world.rng.choice((-3600.0, 3600.0))
    world.trace(f"{life.name}: the wall clock jumps, {life.clock.ahead:+.0f} s now")


def slow(world: World) -> None:
    """Every call of the store takes long there."""
    place, seconds = world.rng.choice(PLACES), world.rng.choice((2.0, 10.0, 30.0))
    world.slow[place] = world.rng.choice((0.2, 1.0, 3.0))
    if world.slow[place] > 0.5 and place in world.hosts:
        world.disturb(place, seconds + 10.0)
    world.trace(f"{place}: the store takes {world.slow[place]} s for an answer, for {seconds} s")

    def end() -> None:
        world.slow.pop(place, None)

    world.later(seconds, end)


def _honest_operator(world: World) -> None:
    """`node fence --confirm-off`, said only of a machine that is seen to be off."""
    off = [name for name, host in world.hosts.items() if not host.is_up]
    if off:
        world.command("fence", world.rng.choice(off), confirm_off=True)


def _expire(world: World, client: Client, session: int) -> None:
    """No server does it sooner after it has heard of the session."""
    earliest = client.contact + SESSION_S - PING_S - TICK_S / 2
    if client.session.id != session or client.is_connected:
        return
    if world.now < earliest:
        world.later(earliest - world.now, partial(_expire, world, client, session))
    else:
        world.zookeeper.expire(session)


def _lose_reply(world: World) -> None:
    world.cluster.lose_next_reply(world.lives[_some_node(world)].client)


def _lose_request(world: World) -> None:
    world.cluster.drop_next_request(world.lives[_some_node(world)].client)


def bmc_fault(world: World) -> None:
    """It does not answer, takes long, obeys late, or says yes and does nothing."""
    host = world.hosts[_some_node(world)]
    host.bmc = world.rng.choice(list(BMCFault))
    world.trace(f"the BMC of {host.name}: {host.bmc}")


def maintenance_fault(world: World) -> None:
    _set_maintenance(world, world.rng.choice(("on", "off", "off")))


def _set_maintenance(world: World, switch: str, *, insists: bool = False) -> None:
    actor = Actor(world, "user maintenance")

    def carry_out() -> None:
        store = world.api(actor)
        ctx = Context(store, store, Caller("someone", Role.ADMIN), clock=world)
        invoke(find("cluster.maintenance"), ctx, {"switch": switch})

    world.users.append(actor)
    world.trace(f"maintenance {switch}")

    def ended(error: BaseException | None) -> None:
        if insists and isinstance(error, Unavailable):
            world.later(5.0, partial(_set_maintenance, world, switch, insists=True))

    world.spawn(actor, carry_out, ended)


def libvirt_fault(world: World) -> None:
    host = world.hosts[_some_node(world)]
    if host.has_libvirt and host.is_up:
        world.trace(f"{host.name}: libvirt goes away")
        host.libvirt_down()
        world.later(world.rng.choice((0.5, 4.0, 40.0)), host.libvirt_up)


def _guest(world: World) -> None:
    host = world.hosts[_some_node(world)]
    running = [uuid for uuid, domain in host.domains.items() if domain.state is DomainState.RUNNING]
    if not running:
        return
    uuid = world.rng.choice(running)
    kind = world.rng.choice(("crash", "hang", "off", "pause", "die"))
    world.trace(f"{host.name}: {uuid[:2]} {kind}")
    domain = host.domains[uuid]
    if kind == "crash" and not domain.migrating:
        host.change(uuid, DomainState.CRASHED)
    elif kind == "hang":
        for every in world.hosts.values():
            every.deaf ^= {uuid}
    elif kind == "off":
        world._excuse(uuid, only_stop=False)
        host.end(uuid, Ended.SHUTDOWN)
    elif kind == "pause" and not domain.migrating:
        host.put(replace(domain, state=DomainState.PAUSED, reason="ioerror"), EventKind.PAUSED)
        world.later(5.0, lambda: _go_on(host, uuid))
    elif kind == "die":
        host.end(uuid, world.rng.choice((Ended.FAILED, Ended.CRASHED, Ended.DESTROYED)))


def _go_on(host: Host, uuid: str) -> None:
    domain = host.domains.get(uuid)
    if domain is not None and domain.state is DomainState.PAUSED:
        host.change(uuid, DomainState.RUNNING)


def _by_hand(world: World) -> None:
    """An administrator starts a VM with virsh where it does not belong."""
    host = world.hosts[_some_node(world)]
    uuid = world.rng.choice(list(world.expected))
    if not host.is_up or any(uuid in every.domains for every in world.hosts.values()):
        return
    vm = world.found().get(uuid)
    world.trace(f"{host.name}: {uuid[:2]} is started by hand")
    host.by_hand.add(uuid)
    running = Domain(
        uuid,
        vm.spec.name if vm else "old",
        DomainState.RUNNING,
        "booted",
        migrating=False,
        digest="d",
        memory_mib=512,
        vcpus=1,
    )
    host.put(running, EventKind.STARTED)


def _change_spec(world: World) -> None:
    """Something else of the VM changes, so that commits of nodes conflict."""
    uuid = world.rng.choice(list(world.expected))
    vm = world.found().get(uuid)
    if vm is None:
        return
    new = replace(vm.spec, max_downtime_ms=vm.spec.max_downtime_ms + 1)
    world.truth.commit(Put(paths.vm(uuid), dumps(new), vm.spec_version))


def _change_addresses(world: World) -> None:
    stored = world.cluster.document(paths.CLUSTER)
    assert stored is not None
    spec = replace(loads(ClusterSpec, stored.data), upstream_address=world.rng.choice(addresses.CHOICES))
    world.trace(f"the floating address is {spec.upstream_address or 'none'}")
    world.truth.commit(Put(paths.CLUSTER, dumps(spec)))


def ceph_fault(world: World) -> None:
    """Its monitors are away, or an OSD gets no news."""
    ceph, rng = world.ceph, world.rng
    if ceph is None:
        return
    seconds = rng.choice((3.0, 10.0, 40.0))
    if rng.random() < 0.3:
        ceph.away_until = world.now + seconds
    else:
        ceph.slow_until[rng.choice(list(ceph.osds))] = world.now + seconds
    world.trace(f"Ceph is slow for {seconds} s")


FAULTS: list[Callable[[World], None]] = [
    lost,
    kill,
    leave,
    freeze,
    power_cut,
    power_cut,
    bmc_fault,
    maintenance_fault,
    suspend,
    partition,
    partition,
    zookeeper_fault,
    pause_machine,
    _clock,
    slow,
    _honest_operator,
    _lose_reply,
    _lose_request,
    libvirt_fault,
    _guest,
    _by_hand,
    _change_spec,
    _change_addresses,
]


OF_CEPH: list[Callable[[World], None]] = [lost, lost, bmc_fault, ceph_fault]


def simulate(
    seed: int, mutant: Mutant | None = None, *, kinds: Sequence[Callable[[World], None]] = ()
) -> World:
    """One whole history. Raises Violation; the world is left to be looked at."""
    world = World(seed, mutant or Mutant(), kinds=kinds)
    world.run()
    return world
