"""Disks and a Ceph in memory. The contract suite holds the disks to what ceph-volume does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pvc.errors import Conflict
from pvc.node import devices
from pvc.node.devices import Device
from pvc.node.drivers import DriverError
from pvc.node.drivers.ceph_volume import Prepared

FSID = "0a0a0a0a-0000-4000-8000-000000000001"


def disk(path: str, *, size_bytes: int = 8 * 1024**3, filesystem: str = "", model: str = "") -> Device:
    return Device(path, "disk", size_bytes, model, filesystem, (), False, False, ())


@dataclass
class FakeCeph:
    """Monitors, as far as OSDs concern them."""

    osds: dict[int, dict[str, Any]] = field(default_factory=dict)
    safe: set[int] = field(default_factory=set)
    said: list[str] = field(default_factory=list)
    """Commands that change something."""
    failing: str = ""
    """A command that it refuses."""

    def command(self, prefix: str, data: bytes = b"", **given: Any) -> Any:
        if prefix == self.failing:
            raise DriverError(f"Ceph says to {prefix}: no")
        match prefix:
            case "status":
                return {"fsid": FSID}
            case "osd dump":
                return {"osds": [{"osd": osd, **one} for osd, one in sorted(self.osds.items())]}
            case "osd df":
                return {"nodes": [{"id": osd, "pgs": 8} for osd in self.osds]}
            case "osd safe-to-destroy":
                return {"safe_to_destroy": [osd for osd in self.safe if given["ids"] == [str(osd)]]}
            case "auth get-or-create":
                return [{"key": "secret"}]
        self.said.append(" ".join([prefix, *(str(value) for value in given.values())]))
        return self._changed(prefix, given)

    def _changed(self, prefix: str, given: dict[str, Any]) -> Any:
        match prefix:
            case "osd new":
                known = [osd for osd, one in self.osds.items() if one["uuid"] == given["uuid"]]
                free = next(number for number in range(99) if number not in self.osds)
                osd = known[0] if known else given.get("id", free)
                self.osds[osd] = {"uuid": given["uuid"], "up": 0, "in": 0, "up_from": 0, "state": ["new"]}
                return {"osdid": osd}
            case "osd destroy-actual":
                self.osds[given["id"]] |= {"uuid": "", "up": 0, "state": ["destroyed"]}
            case "osd purge-actual":
                del self.osds[given["id"]]
            case "osd in" | "osd out":
                self.osds[int(given["ids"][0])]["in"] = int(prefix == "osd in")
        return None

    def join(self, osd: int, uuid: str) -> None:
        """Its daemon has begun."""
        epoch = 1 + max((one["up_from"] for one in self.osds.values()), default=0)
        self.osds[osd] = {"uuid": uuid, "up": 1, "in": 1, "up_from": epoch, "state": ["up"]}


@dataclass
class FakeDisks:
    ceph: FakeCeph
    there: dict[str, Device] = field(default_factory=dict)
    osds: dict[str, list[Prepared]] = field(default_factory=dict)
    databases: dict[str, set[str]] = field(default_factory=dict)
    """Of OSDs on other devices: their identities."""
    running: set[int] = field(default_factory=set)
    key: str = ""
    broken: set[str] = field(default_factory=set)
    """Operations that fail."""
    before_start: Callable[[], None] = lambda: None

    def devices(self) -> tuple[Device, ...]:
        return tuple(self.there.values())

    def check_free(self, device: Device, *, force: bool) -> None:
        devices.check_free(device, (), is_held=False, force=force)

    def has_lvm(self) -> bool:
        return False

    def prepare(self, device: str, osds: Sequence[int], *, tier: str = "", db_bytes: int = 0) -> None:
        self._work("prepare")
        if len(osds) > 1 or db_bytes:
            raise Conflict("this machine has no LVM")
        for osd in osds:
            uuid = f"{device}-{osd}"
            self.ceph.osds[osd] |= {"uuid": uuid, "state": ["new"]}
            self.osds.setdefault(device, []).append(Prepared(osd, uuid, FSID, device, is_lvm=False))
        self.there[device] = replace(self.there[device], filesystem="ceph_bluestore")

    def prepared(self, device: str = "") -> tuple[Prepared, ...]:
        return tuple(one for path, found in self.osds.items() if device in ("", path) for one in found)

    def identities(self, device: Device) -> frozenset[str]:
        data = {one.uuid for one in self.prepared(device.path)}
        return frozenset(data | self.databases.get(device.path, set()))

    def start(self, one: Prepared) -> None:
        self.before_start()
        self._work("start")
        self.running.add(one.osd)
        self.ceph.join(one.osd, one.uuid)

    def stop(self, osd: int) -> None:
        self._work("stop")
        self.running.discard(osd)
        if osd in self.ceph.osds:
            self.ceph.osds[osd]["up"] = 0

    def resume(self, osd: int) -> None:
        self.running.add(osd)
        self.ceph.osds[osd]["up"] = 1

    def zap(self, device: str, osds: Sequence[Prepared]) -> None:
        self._work("zap")
        left = [one for one in self.osds.get(device, []) if osds and one not in osds]
        self.osds[device] = left
        if not left:
            self.there[device] = replace(self.there[device], filesystem="")

    def check_room(self, db_bytes: int, replaced: int | None = None) -> None:
        if db_bytes:
            raise Conflict("this machine has no LVM", hint="")

    def sweep(self, device: str) -> None:
        """Nothing here is ever cut off."""

    def make_db_group(self, device: str) -> None:
        raise Conflict("this machine has no LVM")

    def bootstrap(self, key: str) -> None:
        self.key = key

    def _work(self, what: str) -> None:
        if what in self.broken:
            raise DriverError(f"{what} failed")
