"""The Ceph of the simulated cluster: monitors and an OSD on each coordinator, and who may write what.

Its rule: no two runs of a VM can write at the same time, and none that another one has followed can write
ever again, whether it is listed, frozen, or goes on somewhere by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from typing import TYPE_CHECKING

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.membership import Block
from pvc.cluster.storage import Driver, PoolSpec
from pvc.cluster.store import Create, Op, Put
from pvc.node.drivers import DriverError
from pvc.node.drivers.blocklist import OSDMap
from tests.fakes.blocklist import FakeCeph, FakeOSD
from tests.sim.speed import loads

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from tests.sim.world import Life, World

SEEDS = 10**9
"""Histories from this one on have Ceph: those of before it go on as they were."""
DOWN_S, TICK_S = 20.0, 2.0
"""An OSD that nobody hears of for so long is marked down."""
SILENT_S = 2.0
DISK = '<disk type="network"><source protocol="rbd" name="vms/{name}"/><target dev="vda"/></disk>'
FILE = '<disk type="file"><source file="/{name}"/><target dev="vdb"/></disk>'


@cache
def with_disks(definition: str, name: str, *, also_elsewhere: bool) -> str:
    disks = DISK.format(name=name) + (FILE.format(name=name) if also_elsewhere else "")
    return definition.replace("<devices>", f"<devices>{disks}", 1)


def address_of(host: str) -> str:
    """In a network of its own."""
    return f"10.1.0.{host[1:]}"


@dataclass(eq=False)
class Instance:
    """One run of a VM on one host."""

    number: int
    """In the order in which they began to run; 0 while it has not, as where a migration arrives."""
    runs: bool = False
    is_broken: bool = False
    """Ceph has refused it: librbd gives up for good."""


class SimCeph(FakeCeph):
    def __init__(self, world: World, places: Iterable[str]) -> None:
        super().__init__()
        self.world = world
        self.places = tuple(places)
        self.osds = {number: FakeOSD(1, frozenset()) for number in range(len(self.places))}
        for number, place in enumerate(self.places):
            self.osds[number].host = address_of(place)
        self.heard = dict.fromkeys(self.osds, world.now)
        self.away_until = 0.0
        self.slow_until: dict[int, float] = {}
        self.in_ceph: set[str] = set()
        """VMs all of whose disks are here."""
        self.runs: dict[tuple[str, str], Instance] = {}
        """By host and VM."""
        self.started = 0
        self.newest: dict[str, int] = {}
        """Of each VM, the newest run that could write."""
        world.later(TICK_S, self._tick)

    def lay_out(self) -> None:
        pool = PoolSpec("vms", "1", Driver.RBD, ceph_pool="vms")
        self.world.truth.commit(Create(paths.pool("vms"), dumps(pool)))

    # Who reaches whom

    def reaches(self, place: str) -> bool:
        """A majority of the monitors, who reach each other."""
        world = self.world
        if world.now < self.away_until or not world.is_awake(place):
            return False
        near = [one for one in self.places if world.network.talks(place, one)]
        return any(world.network.talks(a, b) for a, b in combinations(near, 2))

    def _tick(self) -> None:
        for number, osd in self.osds.items():
            if self.reaches(self.places[number]):
                self.heard[number] = self.world.now
                if number in self.down:
                    self._comes_up(number, osd)
            elif number not in self.down and self.world.now > self.heard[number] + DOWN_S:
                self.world.trace(f"osd.{number} is marked down")
                self.down.add(number)
                self._new_map()
        self.world.later(TICK_S, self._tick)

    def _comes_up(self, number: int, osd: FakeOSD) -> None:
        """With the newest map, before it serves anybody."""
        self.down.discard(number)
        self._new_map()
        self._tell(number, osd)

    def change(self, listed: frozenset[str]) -> None:
        self.world.trace(f"Ceph takes nothing from {' '.join(sorted(listed)) or 'nobody'}")
        self.listed = listed
        self._new_map()

    def mark_down(self, osds: Iterable[int]) -> None:
        self.world.trace(f"marked down: {sorted(osds)}")
        self.down |= set(osds)
        self._new_map()

    def _new_map(self) -> None:
        self.epoch += 1
        for number in self.osds:
            self.world.later(self.world.rng.choice((0.0, 0.05, 1.0, 5.0)), partial(self._spread, number))

    def _spread(self, number: int) -> None:
        osd = self.osds[number]
        if number in self.down or osd.epoch == self.epoch:
            return
        is_slow = self.world.now < self.slow_until.get(number, 0.0)
        if is_slow or not self.reaches(self.places[number]):
            self.world.later(1.0, partial(self._spread, number))
            return
        self._tell(number, osd)

    def _tell(self, number: int, osd: FakeOSD) -> None:
        self.world.zookeeper.before_change()
        self.tell(osd)
        for (host, _), run in self.runs.items():
            run.is_broken |= address_of(host) in osd.listed
        for uuid in sorted(self.in_ceph):
            self.check(uuid)

    # Who writes

    def can_write(self, host: str) -> bool:
        """Some OSD that counts would take it: also one that it cannot reach now."""
        return self.takes_writes(address_of(host))

    def is_there(self, host: str, uuid: str, *, runs: bool) -> None:
        one = self.runs.setdefault((host, uuid), Instance(0))
        if runs and not one.number:
            self.started += 1
            one.number = self.started
        one.runs = runs
        # An OSD that has an older map than its client gets the newer one before it judges.
        one.is_broken |= address_of(host) in self.listed

    def ended(self, host: str, uuid: str) -> None:
        self.runs.pop((host, uuid), None)

    def check(self, uuid: str) -> None:
        writers = [
            (run.number, host)
            for (host, one), run in self.runs.items()
            if one == uuid and run.runs and self.can_write(host)
        ]
        if len(writers) > 1:
            self.world.fail(f"{uuid[:2]} can be written by {' and '.join(host for _, host in writers)}")
        for number, host in writers:
            if number < self.newest.get(uuid, 0):
                self.world.fail(f"{uuid[:2]} can be written by an old run on {host}")
            self.newest[uuid] = max(number, self.newest.get(uuid, 0))

    def check_blocks(self, ops: Iterable[Op]) -> None:
        """What is proven is so."""
        for op in ops:
            if op.path.startswith(f"{paths.BLOCKS}/") and isinstance(op, Create | Put):
                block = loads(Block, op.data)
                if not block.proves(block.incarnation):
                    continue
                self.world.trace(f"{block.node} is shut out of Ceph in its life {block.incarnation}")
                if self.can_write(block.node):
                    self.world.fail(f"a false block: {block.node} can write")

    def is_shut_out(self, node: str, incarnation: int) -> bool:
        stored = self.world.cluster.document(paths.block(node))
        is_proven = stored is not None and (block := loads(Block, stored.data)).proves(block.incarnation)
        return is_proven and block.incarnation >= incarnation and not self.can_write(node)

    def unrest(self) -> str:
        broken = [f"{uuid[:2]} on {host}" for (host, uuid), run in self.runs.items() if run.is_broken]
        if broken:
            return f"without their disks run {broken}"
        if self.listed:
            return f"still block-listed: {sorted(self.listed)}"
        return ""

    def heal(self) -> None:
        self.away_until, self.slow_until = 0.0, {}


class SimBlocklist:
    """As one life of a daemon reaches it; a command that gets no answer may have been carried out."""

    def __init__(self, life: Life, ceph: SimCeph) -> None:
        self.life = life
        self.ceph = ceph

    def addresses(self) -> frozenset[str]:
        self._reach()
        return frozenset({address_of(self.life.name)})

    def map(self) -> OSDMap:
        self._reach()
        ceph = self.ceph
        up = frozenset(ceph.osds.keys() - ceph.down)
        return OSDMap(ceph.epoch, up, ceph.listed, {one: ceph.osds[one].host for one in up})

    def add(self, address: str) -> None:
        self._reach()
        self.ceph.change(self.ceph.listed | {address})
        if self.life.world.mutant.ceph_hour:
            self.life.world.later(self.life.world.mutant.ceph_hour, lambda: self._expire(address))
        self._reach()

    def _expire(self, address: str) -> None:
        if address in self.ceph.listed:
            self.ceph.change(self.ceph.listed - {address})

    def remove(self, address: str) -> None:
        self._reach()
        self._expire(address)
        self._reach()

    def mark_down(self, osds: Collection[int]) -> None:
        self._reach()
        self.ceph.mark_down(osds)
        self._reach()

    def epoch_of(self, osd: int) -> int:
        self._reach()
        place = self.ceph.places[osd]
        if not self.life.world.network.talks(self.life.name, place):
            self.life.point(SILENT_S)
            raise DriverError(f"osd.{osd} does not answer", retryable=True)
        return self.ceph.osds[osd].epoch

    def _reach(self) -> None:
        self.life.point(self.life.world.rng.choice((0.0, 0.0, 0.1, 1.0)))
        if not self.ceph.reaches(self.life.name):
            self.life.point(5.0)
            raise DriverError("Ceph is not reached from here", retryable=True)
