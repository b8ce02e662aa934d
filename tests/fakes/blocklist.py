"""Ceph as far as block lists go: an OSD refuses whom the map that it knows lists."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from pvc.node.drivers import DriverError
from pvc.node.drivers.blocklist import OSDMap, as_listed


@dataclass(slots=True)
class FakeOSD:
    epoch: int
    listed: frozenset[str]
    """As its map has them."""
    is_silent: bool = False
    host: str = "127.0.0.1"


@dataclass(slots=True)
class FakeCeph:
    epoch: int = 1
    listed: frozenset[str] = frozenset()
    osds: dict[int, FakeOSD] = field(default_factory=lambda: {0: FakeOSD(1, frozenset())})
    down: set[int] = field(default_factory=set)
    is_reachable: bool = True

    def change(self, listed: frozenset[str]) -> None:
        self.epoch, self.listed = self.epoch + 1, listed
        for osd in self.osds.values():
            if not osd.is_silent:
                self.tell(osd)

    def mark_down(self, osds: Collection[int]) -> None:
        """One that lives notices, and comes up again."""
        self.down |= {one for one in osds if self.osds[one].is_silent}
        self.change(self.listed)

    def tell(self, osd: FakeOSD) -> None:
        osd.epoch, osd.listed = self.epoch, self.listed

    def takes_writes(self, address: str) -> bool:
        """Some OSD does."""
        return any(address not in osd.listed for number, osd in self.osds.items() if number not in self.down)


class FakeBlocklist:
    """As one client reaches it."""

    def __init__(self, ceph: FakeCeph, *addresses: str) -> None:
        self.ceph = ceph
        self.own = frozenset(addresses)

    def addresses(self) -> frozenset[str]:
        self._reach()
        return self.own

    def map(self) -> OSDMap:
        self._reach()
        ceph = self.ceph
        up = frozenset(ceph.osds.keys() - ceph.down)
        return OSDMap(ceph.epoch, up, ceph.listed, {one: ceph.osds[one].host for one in up})

    def add(self, address: str) -> None:
        self._reach()
        self.ceph.change(self.ceph.listed | {as_listed(address)})

    def remove(self, address: str) -> None:
        self._reach()
        if address in self.ceph.listed:
            self.ceph.change(self.ceph.listed - {address})

    def epoch_of(self, osd: int) -> int:
        self._reach()
        if self.ceph.osds[osd].is_silent:
            raise DriverError(f"osd.{osd} does not answer", retryable=True)
        return self.ceph.osds[osd].epoch

    def mark_down(self, osds: Collection[int]) -> None:
        self._reach()
        self.ceph.mark_down(osds)

    def _reach(self) -> None:
        if not self.ceph.is_reachable:
            raise DriverError("Ceph is not reached from here", retryable=True)
