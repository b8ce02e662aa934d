"""ZooKeeper as clusters see it fail: servers, a leader, a quorum, sessions that the network ends.

What is committed is one tree (tests.fakes.store). A server that the leader does not reach goes on answering
from an older tree for as long as real ones do (syncLimit); a leader without a majority takes transactions
that may become true much later, or never; and a session ends when the leader has not heard of it for long
enough, whatever its client believes. The arithmetic is that of zoo.cfg: tickTime 0.5 s, syncLimit 6.

Nothing is simulated while all is well (`_calm`): then every client is in contact by definition.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from pvc.cluster.store import Op, Session, SessionState, Stored, Watch
from pvc.errors import Conflict, NotFound, Unavailable
from tests.fakes.store import MemoryCluster, MemoryStore, _parent, _Watching
from tests.sim.network import Network

if TYPE_CHECKING:
    from tests.sim.world import World

TICK_S = 0.5
SYNC_S = 3.0
"""syncLimit: for so long a server goes on without hearing of the others."""
SESSION_S = 6.0
PING_S = SESSION_S / 3
ANSWER_S = SESSION_S * 2 / 3
"""A client gives a server up that does not answer for so long."""
CONNECT_S = 2.0
STEP_S = TICK_S / 2
"""How often servers look around, when there is something to see."""


@dataclass(eq=False)
class Server:
    """One ZooKeeper process."""

    place: str
    runs: bool = True
    paused_until: float = 0.0
    heard: float = 0.0
    """When the leader and it last heard of each other."""
    is_member: bool = True
    """It follows the leader, or is the leader."""
    since: float = 0.0
    """It is (or is not) a member since then."""
    joins_at: float = 0.0
    upto: int = 0
    """How many transactions it has."""
    old: dict[str, tuple[Stored | None, tuple[str, ...]]] | None = None
    """What it still has where the tree has changed: documents and the names below. None: all is the same."""
    limbo: list[Transaction] = field(default_factory=list)
    """Transactions in its log that no majority has."""


@dataclass(frozen=True, eq=False)
class Transaction:
    session: int
    ops: Sequence[Op]
    apply: Callable[[Callable[[], None]], None]
    """Carries it out with whatever the world checks about it."""


class Tree(MemoryCluster):
    """What is committed; servers that lag remember what it was, and watches wait for who cannot be told."""

    before_set: Callable[[str], None]
    gone: Callable[[str], None]
    may_tell: Callable[[int], bool]
    holding: list[_Watching]

    def _set(self, path: str, document: Stored | None) -> None:
        self.before_set(path)
        super()._set(path, document)
        if document is None:
            self.gone(path)

    def deliver(self) -> int:
        pending = self._pending
        count = len(pending)
        for _ in range(count):
            watching = pending.popleft()
            if self.may_tell(watching.session):
                watching.watch(watching.path)
            else:
                self.holding.append(watching)
        return count

    def release(self) -> None:
        self._pending.extend(self.holding)
        self.holding.clear()

    def is_open(self, session: int) -> bool:
        return session in self._alive

    def end(self, session: int) -> None:
        """As the servers end it: its client learns of it when it reaches one of them."""
        self._end(session)

    def fire(self, session: int, path: str, watch: Watch) -> None:
        self._pending.append(_Watching(session, path, watch))


class Client(MemoryStore):
    """A client's session. Calls never block here: SimStore in world.py waits where a real one would."""

    def __init__(self, ensemble: Ensemble, place: str, is_awake: Callable[[], bool]) -> None:
        super().__init__(ensemble.tree, Session(0, SessionState.LOST))
        self.ensemble = ensemble
        self.place = place
        own = [server for server in ensemble.servers if server == place]
        others = [server for server in ensemble.servers if server != place]
        ensemble.rng.shuffle(others)
        self.order = [*own, *others]
        self.is_awake = is_awake
        """The process is neither stopped nor dead, and neither is its machine."""
        self.local: Callable[[float], float] = lambda now: now
        """A time as its machine counts it."""
        self.server: Server | None = None
        self.contact = 0.0
        self.connection = 0
        """Counts connections."""
        self.barred_until = 0.0
        """By the dice: no server takes it before."""
        self.next_try = 0.0
        self.tries = 0
        self.phase = ensemble.rng.random() * PING_S

    @property
    def is_connected(self) -> bool:
        return self.session.state is SessionState.CONNECTED

    @property
    def is_linked(self) -> bool:
        """A request would be answered now: perhaps by a server that lags."""
        server = self.server
        return server is not None and self.is_connected and self.ensemble.answers(self.place, server)

    def last_contact(self) -> float:
        """When the newest request that was answered was sent."""
        self.ensemble.observe(self)
        return self.local(self.contact)

    def submit(self, ops: Sequence[Op], apply: Callable[[Callable[[], None]], None]) -> bool:
        """False: no answer will come. Raises what a real store raises at once."""
        self._reach()
        is_answered = self.ensemble.submit(self, Transaction(self.session.id, ops, apply))
        if is_answered:
            self.contact = self.ensemble.world.now
            if self.reply_lost:
                self.reply_lost = False
                raise Unavailable("the server went away: nobody knows whether the change was made")
        return is_answered

    def read(
        self, paths: Sequence[str], listings: Sequence[str], watch: Watch | None = None
    ) -> tuple[tuple[Stored | None, ...], tuple[tuple[str, ...], ...]]:
        documents, names = super().read(paths, listings, watch)
        self.contact = self.ensemble.world.now
        old = self.server.old if self.server is not None else None
        if old is None:
            return documents, names
        if watch is not None:
            for path in (*paths, *listings):
                if path in old:
                    self.ensemble.tree.fire(self.session.id, path, watch)
        return (
            tuple(old[p][0] if p in old else one for p, one in zip(paths, documents, strict=True)),
            tuple(old[p][1] if p in old else one for p, one in zip(listings, names, strict=True)),
        )

    def commit(self, *ops: Op) -> None:
        raise AssertionError("a simulated process calls submit")

    def drop(self) -> None:
        """Give up this connection, not the session."""
        if self.is_connected:
            self.ensemble.disconnect(self)

    def close(self) -> None:
        ensemble = self.ensemble
        ensemble.lose(self)
        if self.is_linked and ensemble.has_quorum():
            ensemble.tree.expire(self)


class Ensemble:
    def __init__(self, world: World, network: Network, tree: Tree, places: Sequence[str]) -> None:
        self.world = world
        self.network = network
        self.rng: random.Random = world.rng
        self.tree = tree
        tree.before_set, tree.may_tell, tree.holding = self._before_set, self._may_tell, []
        tree.gone = world.gone
        self.servers = {place: Server(place) for place in places}
        self.leader: Server | None = self.servers[places[0]]
        self.count = 0
        """Of transactions in the tree."""
        self.elects_at: float | None = None
        self.clients: dict[Client, None] = {}
        self.by_session: dict[int, Client] = {}
        self.touched: dict[int, float] = {}
        """When the leader last heard of each session."""
        self.lags = False
        """Followers are slow now and then."""
        self._ticking = False
        self._lagging: list[Server] = []

    # What others ask

    def serves(self, place: str) -> bool:
        """The server there would say that it is part of a quorum: for a while after it was, too."""
        server = self.servers.get(place)
        return server is not None and server.is_member and self._is_awake(server)

    def without_quorum_s(self, place: str) -> float:
        """For how long the server there has said, if asked on its machine, that it has no quorum."""
        server = self.servers[place]
        is_silent = self.world.now < server.paused_until
        return 0.0 if server.is_member or is_silent else self.world.now - server.since

    def has_quorum(self) -> bool:
        """A transaction can be made."""
        leader = self.leader
        return leader is not None and self._is_awake(leader) and len(self._acks(leader)) >= self.majority

    def answers(self, place: str, server: Server) -> bool:
        return (
            server.is_member
            and server.runs
            and self.world.now >= server.paused_until
            and self.network.talks(place, server.place)
        )

    def provides(self, place: str) -> bool:
        """Some server takes clients from there."""
        return any(self.answers(place, server) for server in self.servers.values())

    @property
    def majority(self) -> int:
        return len(self.servers) // 2 + 1

    def connect(self, place: str, is_awake: Callable[[], bool]) -> Client:
        """A client that will have its session in a moment."""
        self.before_change()
        client = Client(self, place, is_awake)
        self.clients[client] = None
        self._try(client)
        return client

    def lose(self, client: Client) -> None:
        """Its process is gone without a word: the session goes on until it has lasted too long."""
        self.before_change()
        self._tell_leader(client)
        self.clients.pop(client, None)

    # Faults

    def kill(self, place: str) -> None:
        """The process ends: its machine says so to whoever talks to it."""
        self.before_change()
        self.servers[place].runs = False
        self._leave(self.servers[place])

    def start(self, place: str) -> None:
        self.before_change()
        self.servers[place].runs = True
        self._leave(self.servers[place])

    def pause(self, place: str, seconds: float) -> None:
        self.before_change()
        server = self.servers[place]
        server.paused_until = max(server.paused_until, self.world.now + seconds)

    def expire(self, session: int) -> None:
        """By the dice. Its client learns of it in a moment."""
        self.before_change()
        self.tree.end(session)

    def heal(self) -> None:
        self.before_change()
        for place, server in self.servers.items():
            server.paused_until = 0.0
            if not server.runs and self.network.is_awake(place):
                self.start(place)

    def cut_power(self, place: str) -> None:
        """Nobody is told. To be called before the machine is off."""
        self.before_change()
        if place in self.servers:
            self.servers[place].runs = False

    def before_change(self) -> None:
        """Something is about to change: what was so until now is noted."""
        for client in self.clients:
            self.observe(client)
            if not self._ticking and client.is_connected:
                self.touched[client.session.id] = client.contact
        if not self._ticking:
            self._ticking = True
            for server in self.servers.values():
                server.heard = self.world.now
            self.world.later(STEP_S, self._tick)

    def disconnect(self, client: Client) -> None:
        self.before_change()
        self._tell_leader(client)
        client.connection += 1
        client.server = None
        client.next_try, client.tries = self.world.now + 0.1, 0
        self.tree.suspend(client)

    # Transactions

    def submit(self, client: Client, transaction: Transaction) -> bool:
        place, server, leader = client.place, client.server, self.leader
        if server is None or leader is None or not server.is_member or not self._is_awake(server):
            return False
        if not self.network.reaches(place, server.place):
            return False
        if not self._is_awake(leader) or not self._reaches(server, leader):
            return False
        if not self.has_quorum():
            self._take_in(leader, transaction)
            return False
        self._commit(transaction, server if self.network.talks(server.place, leader.place) else None)
        return self.answers(place, server) and self.network.reaches(leader.place, server.place)

    def _commit(self, transaction: Transaction, through: Server | None) -> None:
        leader = self.leader
        assert leader is not None
        acks = self._acks(leader)
        if through is not None:
            self._catch_up(through)  # its own transactions come to it in order
        for server in self.servers.values():
            is_late = self.lags and server is not through and self.rng.random() < 0.1
            if server.is_member and server.old is None and (server not in acks or is_late):
                server.old = {}
                self._lagging.append(server)
                if server in acks:
                    self.world.later(self.rng.choice((0.02, 0.1, 0.5)), partial(self._catch_up, server))
        session, ops = transaction.session, transaction.ops
        try:
            if not self.tree.is_open(session):
                raise Unavailable("this session is over: nothing was changed")
            transaction.apply(lambda: self.tree.apply(session, ops))
        finally:
            self.count += 1
            for server in acks:
                server.upto = self.count

    def _take_in(self, leader: Server, transaction: Transaction) -> None:
        """Into the logs of those it reaches, with no majority that would make it true."""
        for server in self.servers.values():
            if server.is_member and self._is_awake(server) and self._reaches(leader, server):
                server.limbo.append(transaction)

    def _before_set(self, path: str) -> None:
        for server in self._lagging:
            assert server.old is not None
            for one in (path, _parent(path)):
                if one not in server.old:
                    server.old[one] = (self.tree.document(one), self.tree.names(one))

    def _catch_up(self, server: Server) -> None:
        if server.old is None:
            return
        leader = self.leader
        if leader is not None and server.is_member and self.network.talks(leader.place, server.place):
            self._synced(server)

    def _synced(self, server: Server) -> None:
        if server.old is not None:
            server.old = None
            self._lagging.remove(server)
            self.tree.release()
        server.upto = self.count

    def _may_tell(self, session: int) -> bool:
        """A watch's event can reach its client now."""
        if not (self._ticking or self._lagging):
            return True
        client = self.by_session.get(session)
        if client not in self.clients or not client.is_connected or client.session.id != session:
            return True  # what its own library calls when the connection has broken
        return client.is_awake() and client.is_linked and client.server.old is None  # type: ignore[union-attr]

    # Time goes on

    def _tick(self) -> None:
        now = self.world.now
        for client in self.clients:
            self.observe(client)
            self._tell_leader(client)
        self._look_around(now)
        self._note_the_disturbed()
        if self.leader is None:
            self._elect(now)
        for client in list(self.clients):
            if client.is_awake():
                self._keep(client, now)
        self._expire(now)
        self.tree.release()
        self._ticking = not self._calm()
        if self._ticking:
            self.world.later(STEP_S, self._tick)

    def _note_the_disturbed(self) -> None:
        """Whom no server takes while others have one, and who waits in vain for two of them in a row."""
        stopped = {one.place for one in self.servers.values() if self.world.now < one.paused_until}
        cut, silent = {}, {}
        for name in self.world.hosts:
            unheard = {place for place in self.servers if not self.network.talks(name, place)}
            cut[name], silent[name] = len(unheard), len(unheard | stopped)
        fewest, has_quorum = min(silent.values()), self.has_quorum()
        for name in self.world.hosts:
            is_alone = cut[name] > 1 or silent[name] > max(1, fewest)
            if is_alone or (has_quorum and not self.provides(name)):
                self.world.disturb(name, STEP_S)

    def _calm(self) -> bool:
        return (
            self.leader is not None
            and self.network.is_whole
            and not self._lagging
            and all(one.is_member and self._is_awake(one) for one in self.servers.values())
            and all(one.is_awake() and one.is_connected for one in self.clients)
            and len(self.touched) == len(self.clients)
        )

    def observe(self, client: Client) -> None:
        """Note the newest ping that was answered, before anything changes."""
        if client.is_linked and client.is_awake():
            last_ping = self.world.now - (self.world.now - client.phase) % PING_S
            client.contact = max(client.contact, last_ping)

    def _is_awake(self, server: Server) -> bool:
        return server.runs and self.world.now >= server.paused_until and self.network.is_awake(server.place)

    def _reaches(self, a: Server, b: Server) -> bool:
        return self.network.reaches(a.place, b.place)

    def _acks(self, leader: Server) -> list[Server]:
        return [
            one
            for one in self.servers.values()
            if one is leader
            or (one.is_member and self._is_awake(one) and self.network.talks(leader.place, one.place))
        ]

    def _look_around(self, now: float) -> None:
        """Followers without a leader, and a leader without followers, stop; others join."""
        if self.leader is not None and not self.leader.runs:
            self._abdicate(now)
        elif self.leader is not None and self._is_awake(self.leader):
            self._lead(self.leader, now)
        members = [one for one in self.servers.values() if one.is_member and self._is_awake(one)]
        for server in members:
            if server is not self.leader and now > server.heard + SYNC_S:
                self._leave(server)
        if self.leader not in members and not any(one.is_member for one in members):
            self.leader = None  # a paused one will see that when it goes on

    def _lead(self, leader: Server, now: float) -> None:
        acks = self._acks(leader)
        for server in acks:
            server.heard = now
            self._catch_up(server)
        alive = [one for one in self.servers.values() if one.is_member and now <= one.heard + SYNC_S]
        if len(alive) < self.majority:
            self._abdicate(now)
            return
        for server in self.servers.values():
            if server.is_member or not self._is_awake(server):
                continue
            if not self.network.talks(leader.place, server.place):
                server.joins_at = 0.0
            elif not server.joins_at:
                server.joins_at = now + self.rng.choice((0.1, 0.5, 1.5))
            elif now >= server.joins_at and len(acks) >= self.majority:
                server.limbo.clear()
                self._join(server)

    def _abdicate(self, now: float) -> None:
        leader, self.leader = self.leader, None
        assert leader is not None
        self.world.trace(f"zookeeper: {leader.place} leads no more")
        for server in self.servers.values():
            # Whom it reaches sees its connection end; the others wait for it until syncLimit is over.
            if server is leader or (self._is_awake(server) and self._reaches(leader, server)):
                self._leave(server)

    def _leave(self, server: Server) -> None:
        if server.old is not None:
            server.old = None
            self._lagging.remove(server)
        if server.is_member:
            server.is_member, server.since = False, self.world.now
        server.joins_at = 0.0

    def _join(self, server: Server) -> None:
        if not server.is_member:
            server.is_member, server.since = True, self.world.now
        server.heard, server.joins_at = self.world.now, 0.0
        self._synced(server)

    def _elect(self, now: float) -> None:
        """Of those who do not still wait for a leader of whom they have heard a moment ago."""
        awake = [one for one in self.servers.values() if self._is_awake(one) and not one.is_member]
        groups = {
            one.place: [other for other in awake if self.network.talks(one.place, other.place)]
            for one in awake
        }
        able = [one for one in awake if len(groups[one.place]) >= self.majority]
        if not able:
            self.elects_at = None
        elif self.elects_at is None:
            self.elects_at = now + self.rng.choice((0.2, 0.5, 1.5))
        elif now >= self.elects_at:
            self.elects_at = None
            self._elected(able, groups, now)

    def _elected(self, able: Sequence[Server], groups: Mapping[str, Sequence[Server]], now: float) -> None:
        newest = max((one.upto, len(one.limbo)) for one in able)
        best = [one for one in able if (one.upto, len(one.limbo)) == newest]
        leader = self.rng.choice(best)
        assert leader.upto == self.count, "a majority without the newest transaction"
        self.leader = leader
        self.world.trace(f"zookeeper: {leader.place} leads {[one.place for one in groups[leader.place]]}")
        for server in groups[leader.place]:
            self._join(server)
        late, leader.limbo = leader.limbo, []
        for transaction in late:
            with suppress(Conflict, NotFound, Unavailable):
                self.world.trace("zookeeper: a transaction of the time without quorum is made now")
                self._commit(transaction, None)
        for server in groups[leader.place]:
            server.limbo.clear()
            server.upto = self.count
        for session in self.touched:
            self.touched[session] = now

    # Clients

    def _keep(self, client: Client, now: float) -> None:
        if not client.is_connected:
            if now >= max(client.next_try, client.barred_until):
                self._try(client)
            return
        server = client.server
        assert server is not None
        if self.answers(client.place, server):
            if not self.tree.is_open(client.session.id):
                self.disconnect(client)  # the server has closed it
        else:
            is_told = self.network.talks(client.place, server.place) and now >= server.paused_until
            if is_told or now >= client.contact + ANSWER_S:
                self.disconnect(client)

    def _try(self, client: Client) -> None:
        """The next server in the client's order."""
        now = self.world.now
        server = self.servers[client.order[client.tries % len(client.order)]]
        client.tries += 1
        is_open = self.tree.is_open(client.session.id)
        # One that lags takes nobody: a client that changes servers never goes back in time.
        takes = self.answers(client.place, server) and server.old is None
        if takes and (is_open or self.has_quorum()):
            client.server = server
            client.connection += 1
            client.contact = now
            self.by_session.pop(client.session.id, None)
            self.tree.resume(client)
            self.by_session[client.session.id] = client
            self.touched[client.session.id] = now
            return
        is_refused = self.network.talks(client.place, server.place) and now >= server.paused_until
        client.next_try = now + (self.rng.uniform(0.1, 0.5) if is_refused else CONNECT_S)

    def _tell_leader(self, client: Client) -> None:
        """Of a session, whatever has become of its client since: its server does that, each half tick."""
        server, leader, session = client.server, self.leader, client.session.id
        if server is None or leader is None or not server.is_member or session not in self.touched:
            return
        if self._is_awake(server) and self.network.talks(server.place, leader.place):
            self.touched[session] = max(self.touched[session], client.contact)

    def _expire(self, now: float) -> None:
        if not self.has_quorum():
            return
        for session, touched in list(self.touched.items()):
            if not self.tree.is_open(session):
                self._forget(session)
            elif now >= touched + SESSION_S + TICK_S / 2:
                self.world.trace(f"zookeeper: session {session} ends")
                self.tree.end(session)
                self._forget(session)

    def _forget(self, session: int) -> None:
        del self.touched[session]
        client = self.by_session.pop(session, None)
        if client is not None and client.is_connected and client.session.id == session:
            self.by_session[session] = client  # until it has been told
