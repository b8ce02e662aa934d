"""OSDs: the tasks that make one of a disk of this node, take one away, and steer them.

What a task is about to begin with a disk it notes in a file of the node, so that also another life of the
daemon undoes that and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pvc.cluster.codec import dumps
from pvc.cluster.tasks import TaskSpec
from pvc.errors import Conflict, Failed, NotFound, PVCError, Unavailable
from pvc.node import devices
from pvc.node.devices import Device
from pvc.node.drivers.ceph_volume import OSDDisks, Prepared
from pvc.node.monitors import Monitors, connect
from pvc.node.tasks import Progress, Work

log = logging.getLogger(__name__)

LOOK_S = 2.0
BOOTSTRAP: Mapping[str, Any] = {
    "entity": "client.bootstrap-osd",
    "caps": ["mon", "allow profile bootstrap-osd"],  # as monitors make it themselves
}

Result = Mapping[str, Any]


class OSDs:
    """What the tasks have in common."""

    def __init__(
        self,
        node: str,
        disks: OSDDisks,
        notes: str,
        changed: Callable[[], None] = lambda: None,
        connect: Callable[[], Monitors] = connect,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.node = node
        self.disks = disks
        self.journal = Journal(notes)
        self.changed = changed
        """There are others now."""
        self.connect = connect
        self.pause = pause
        self.choosing = threading.Lock()
        """Two tasks never mean the same disk: the second sees what the first has made of it."""

    # Ceph

    def check_ceph(self) -> None:
        """Before something is undone, which is tried again: after a power cut Ceph may come later than we do.
        Raises Unavailable."""
        try:
            self.connect().command("status")
        except PVCError as error:
            raise Unavailable(f"Ceph does not answer: {error.message}") from None

    def known(self) -> dict[int, Mapping[str, Any]]:
        """As the map of OSDs has them."""
        return {one["osd"]: one for one in self.connect().command("osd dump")["osds"]}

    def get(self, osd: int) -> Mapping[str, Any]:
        """Raises NotFound."""
        try:
            return self.known()[osd]
        except KeyError:
            raise NotFound(f"there is no OSD {osd}", hint="pvc storage osd list") from None

    def reserve(self, identity: str) -> int:
        """The id of a new OSD. The same one for the same identity."""
        return int(self.connect().command("osd new", uuid=identity)["osdid"])

    def destroy(self, osd: int) -> None:
        """It keeps its id and its place, and waits for a disk. It has no identity any more."""
        self.connect().command("osd destroy-actual", id=osd, yes_i_really_mean_it=True)

    def purge(self, osd: int) -> None:
        if osd in self.known():
            self.connect().command("osd purge-actual", id=osd, yes_i_really_mean_it=True)

    def is_safe_to_destroy(self, osd: int) -> bool:
        """Only when Ceph says so. That it does not know yet (EAGAIN), or does not answer, is no yes."""
        try:
            return bool(
                self.connect().command("osd safe-to-destroy", ids=[str(osd)])["safe_to_destroy"] == [osd]
            )
        except PVCError as error:
            log.info("OSD %d: %s", osd, error.message)
            return False

    def wait_until_safe(self, osd: int, progress: Progress) -> None:
        """However long it takes; raises Stopped."""
        most = 0
        while not self.is_safe_to_destroy(osd):
            left = self._pgs(osd)
            most = max(most, left)
            done = 0.9 * (most - left) / most if most else 0.0
            progress(done, f"waiting until OSD {osd} has no data that nobody else has ({left} PGs on it)")
            self.pause(LOOK_S)

    def _pgs(self, osd: int) -> int:
        try:
            nodes = self.connect().command("osd df")["nodes"]
        except PVCError:
            return 0
        return next((int(one["pgs"]) for one in nodes if one["id"] == osd), 0)

    def wait_until_up(self, osds: Iterable[int], progress: Progress) -> None:
        waiting = set(osds)
        while waiting := waiting - {osd for osd, one in self.known().items() if one["up"]}:
            progress(0.9, f"waiting until {_named(sorted(waiting))} has joined")
            self.pause(LOOK_S / 4)

    def joined(self, osds: Iterable[int]) -> dict[str, int]:
        """The epoch of the map in which each came up last; 0: never."""
        known = self.known()
        return {str(osd): known[osd]["up_from"] if osd in known else 0 for osd in osds}

    def has_joined(self, osds: Iterable[int], notes: Mapping[str, Any]) -> set[int]:
        """Which have come up since that was noted: they may have data."""
        before = notes.get("up_from", {})
        return {int(osd) for osd, epoch in self.joined(osds).items() if epoch > before.get(osd, 0)}

    # Disks

    def on_disks(self, osd: int, device: str = "") -> list[Prepared]:
        """Of this Ceph: an OSD of another one may have the same id."""
        fsid = self.connect().command("status")["fsid"]
        return [one for one in self.disks.prepared(device) if (one.osd, one.fsid) == (osd, fsid)]

    def choose(self, wanted: str) -> Device:
        """Also by another name of it: /dev/disk/by-id/…"""
        path = os.path.realpath(wanted) if wanted.startswith("/dev/disk/") else wanted
        return devices.choose(path, self.disks.devices())

    def free(self, wanted: str, *, force: bool) -> str:
        """The path of a device that may become an OSD. Raises Conflict naming what is on it."""
        device = self.choose(wanted)
        self.check_others(device)
        self.disks.check_free(device, force=force)
        return device.path

    def check_others(self, device: Device, besides: int | None = None) -> None:
        """Raises Conflict naming the OSDs that have something on it."""
        there = self.disks.identities(device)
        found = sorted(n for n, one in self.known().items() if one["uuid"] in there and n != besides)
        if found:
            raise Conflict(
                f"{device.path} has data or the database of {_named(found)}",
                hint=f"pvc storage osd remove {found[0]}",
            )

    def take_off(self, osd: int) -> None:
        """Its disk, where it is still there, is empty afterwards, but for OSDs beside it.

        Never one that Ceph knows: its id may be that of a new one.
        """
        known = {one["uuid"] for one in self.known().values()}
        for one in self.on_disks(osd):
            if one.uuid not in known:
                self.disks.zap(one.device, [one])

    def sweep(self, device: str) -> None:
        """Not beside a task that prepares: what is not finished there looks the same."""
        with self.choosing:
            self.disks.sweep(device)

    def start_again(self, osd: int) -> None:
        """As after `stop`; from its disk where that is known."""
        known = self.get(osd)["uuid"]
        for one in self.on_disks(osd):
            if one.uuid == known:
                self.disks.start(one)
                return
        self.disks.resume(osd)

    def prepare(self, task: TaskSpec, device: str, osds: list[int], progress: Progress) -> None:
        asked = task.arguments
        if asked["wipe"]:
            progress(0.1, f"taking away what is on {device}")
            self.disks.zap(device, ())
        progress(0.2, f"preparing {device}")
        self.disks.bootstrap(self.connect().command("auth get-or-create", **BOOTSTRAP)[0]["key"])
        self.disks.prepare(device, osds, tier=asked["tier"], db_bytes=asked["db_bytes"])
        if weight := asked["weight"]:
            where = [f"host={self.node}", "root=default"]
            for osd in osds:
                self.connect().command("osd crush create-or-move", id=osd, weight=weight, args=where)

    def start(self, device: str, osds: list[int], progress: Progress) -> None:
        """Until they have joined."""
        for osd in osds:
            progress(0.7, f"starting OSD {osd}")
            found = self.on_disks(osd, device)
            if not found:
                raise Failed(f"OSD {osd} is not on {device} after it was prepared")
            self.disks.start(found[0])
        self.wait_until_up(osds, progress)


def works(osds: OSDs) -> dict[str, Work]:
    """By the operation that asks for them."""
    return {
        "storage.osd-add": Add(osds),
        "storage.osd-replace": Replace(osds),
        "storage.osd-remove": Remove(osds),
        "storage.osd-refresh": Refresh(osds),
        "storage.osd-create-db-vg": MakeDBGroup(osds),
        **{f"storage.osd-{prefix.partition(' ')[2]}": Steer(osds, prefix) for prefix in STEERING},
    }


class Add:
    """Reserve ids, prepare the disk under them, start their daemons: then they are OSDs."""

    def __init__(self, osds: OSDs) -> None:
        self.osds = osds

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        osds, asked = self.osds, task.arguments
        progress(0.0, f"looking at {asked['device']}")
        with osds.choosing:
            device = osds.free(asked["device"], force=asked["wipe"])
            osds.disks.check_room(asked["db_bytes"])
            made = self._reserve(task, device)
            osds.prepare(task, device, made, progress)
        osds.start(device, made, progress)
        osds.journal.forget(task.id)
        osds.changed()
        return {"osds": made, "device": device}

    def _reserve(self, task: TaskSpec, device: str) -> list[int]:
        osds = self.osds
        identities = [str(uuid.uuid4()) for _ in range(task.arguments["split"])]
        osds.journal.write(task.id, device=device, identities=identities, osds=[])
        made = [osds.reserve(identity) for identity in identities]
        osds.journal.write(
            task.id, device=device, identities=identities, osds=made, up_from=osds.joined(made)
        )
        for osd in made:
            osds.destroy(osd)
        return made

    def undo(self, task: TaskSpec) -> None:
        """One that has ever been up has data, and stays."""
        osds = self.osds
        notes = osds.journal.read(task.id)
        if not notes:
            return
        osds.check_ceph()
        known = osds.known()
        mine = {*notes["osds"], *(n for n, one in known.items() if one["uuid"] in notes["identities"])}
        for osd in sorted(mine - osds.has_joined(mine, notes)):
            osds.disks.stop(osd)
            for one in osds.on_disks(osd, notes["device"]):
                osds.disks.zap(notes["device"], [one])
            osds.purge(osd)
        osds.sweep(notes["device"])
        osds.journal.forget(task.id)


class Remove:
    """Out, wait until nothing depends on it, stop, purge, and its disk is empty."""

    def __init__(self, osds: OSDs) -> None:
        self.osds = osds

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        osd = task.arguments["osd"]
        self._drain(task, osd, progress)
        self.osds.purge(osd)
        left = self._clean(task, osd)
        self.osds.journal.forget(task.id)
        self.osds.changed()
        return {"osd": osd, "left": left}

    def _drain(self, task: TaskSpec, osd: int, progress: Progress) -> None:
        """Stopped and out, and all that it had is elsewhere, unless that is forced. Raises Stopped."""
        osds = self.osds
        found = osds.get(osd)
        osds.journal.write(task.id, osd=osd, uuid=found["uuid"], was_in=bool(found["in"]))
        osds.connect().command("osd out", ids=[str(osd)])
        if not task.arguments["force"]:
            osds.wait_until_safe(osd, progress)
        progress(0.9, f"stopping OSD {osd}")
        if task.arguments["here"]:
            osds.disks.stop(osd)
        osds.connect().command("osd down", ids=[str(osd)])

    def _clean(self, task: TaskSpec, osd: int) -> str:
        """A disk that is broken need not answer: the OSD has gone all the same. What is left, in words."""
        if not task.arguments["here"]:
            return "its disk, which is of a node that does not run"
        try:
            self.osds.take_off(osd)
        except PVCError as error:
            log.warning("the disk of OSD %d is left as it is: %s", osd, error.message)
            return f"its disk: {error.message}"
        return ""

    def undo(self, task: TaskSpec) -> None:
        """As long as Ceph knows it, it comes back; else its disk is the rest."""
        osds = self.osds
        if notes := osds.journal.read(task.id):
            osds.check_ceph()
            self._come_back(task, notes)
            osds.journal.forget(task.id)

    def _come_back(self, task: TaskSpec, notes: Mapping[str, Any]) -> None:
        osds, osd = self.osds, notes["osd"]
        if osds.known().get(osd, {}).get("uuid") != notes["uuid"]:
            self._clean(task, osd)
            return
        if task.arguments["here"]:
            osds.start_again(osd)
        if notes["was_in"]:
            osds.connect().command("osd in", ids=[str(osd)])


class Replace(Remove):
    """The OSD keeps its id and its place, and gets another disk."""

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        osds, asked = self.osds, task.arguments
        osd, known = asked["osd"], osds.get(asked["osd"])
        chosen = osds.choose(asked["device"])
        device = chosen.path
        if device in {one.device for one in osds.on_disks(osd)}:
            osds.check_others(chosen, besides=osd)
        else:
            osds.free(device, force=asked["wipe"])
        osds.disks.check_room(asked["db_bytes"], osd)
        if "destroyed" not in known["state"]:
            self._drain(task, osd, progress)
            osds.destroy(osd)
        self._clean(task, osd)
        osds.journal.write(task.id, osd=osd, device=device, up_from=osds.joined([osd]))
        with osds.choosing:
            device = osds.free(device, force=asked["wipe"])
            osds.prepare(task, device, [osd], progress)
        osds.start(device, [osd], progress)
        osds.connect().command("osd in", ids=[str(osd)])
        osds.journal.forget(task.id)
        osds.changed()
        return {"osds": [osd], "device": device}

    def _come_back(self, task: TaskSpec, notes: Mapping[str, Any]) -> None:
        """Without its old disk it waits for another one: that is for who replaces it again."""
        osds, osd = self.osds, notes["osd"]
        if "device" not in notes:
            super()._come_back(task, notes)
            return
        if osds.has_joined([osd], notes):
            return
        osds.disks.stop(osd)
        for one in osds.on_disks(osd, notes["device"]):
            osds.disks.zap(notes["device"], [one])
        osds.sweep(notes["device"])
        if osd not in osds.known():  # what prepares it takes its id back when it fails
            osds.connect().command("osd new", uuid=str(uuid.uuid4()), id=osd)
        osds.destroy(osd)


class Refresh:
    """Take up an OSD whose disk is here, as after the system of the node was installed anew."""

    def __init__(self, osds: OSDs) -> None:
        self.osds = osds

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        osds, osd = self.osds, task.arguments["osd"]
        known = osds.get(osd)
        device = osds.choose(task.arguments["device"]).path
        for one in osds.disks.prepared(device):
            if one.uuid == known["uuid"]:
                osds.disks.start(one)
                osds.wait_until_up([osd], progress)
                return {"osds": [osd], "device": device}
        there = ", ".join(f"OSD {one.osd} of Ceph {one.fsid}" for one in osds.disks.prepared(device))
        raise Conflict(f"OSD {osd} is not on {device}, but {there or 'no OSD at all'}", hint="lsblk")

    def undo(self, task: TaskSpec) -> None:
        """What has begun goes on."""


class MakeDBGroup:
    def __init__(self, osds: OSDs) -> None:
        self.osds = osds

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        with self.osds.choosing:
            device = self.osds.free(task.arguments["device"], force=task.arguments["wipe"])
            if task.arguments["wipe"]:
                self.osds.disks.zap(device, ())
            self.osds.disks.make_db_group(device)
        return {"device": device}

    def undo(self, task: TaskSpec) -> None:
        """All of it or nothing is there."""
        self.osds.sweep(task.arguments["device"])


STEERING = {"osd in": "ids", "osd out": "ids", "osd set": "key", "osd unset": "key"}
"""Commands of Ceph, and what they call what they are about."""


class Steer:
    """One command of Ceph, done or not."""

    def __init__(self, osds: OSDs, prefix: str) -> None:
        self.osds = osds
        self.prefix = prefix

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        about = task.arguments["about"]
        if STEERING[self.prefix] == "ids":
            self.osds.get(int(about))
            about = [str(about)]
        self.osds.connect().command(self.prefix, **{STEERING[self.prefix]: about})
        return {}

    def undo(self, task: TaskSpec) -> None:
        """Nothing is ever half done."""


class Journal:
    """Of tasks that are not over: a file each."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)

    def read(self, task: str) -> dict[str, Any]:
        """Empty: it has begun nothing."""
        try:
            return dict(json.loads((self.directory / f"{task}.json").read_text()))
        except FileNotFoundError:
            return {}
        except ValueError:
            raise Failed(f"the notes of task {task} in {self.directory} are damaged") from None

    def write(self, task: str, **notes: object) -> None:
        """Lasting before it returns."""
        self.directory.mkdir(parents=True, exist_ok=True)
        new = self.directory / f"{task}.new"
        with new.open("wb") as file:
            file.write(dumps(notes))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.directory / f"{task}.json")

    def forget(self, task: str) -> None:
        (self.directory / f"{task}.json").unlink(missing_ok=True)


def _named(osds: list[int]) -> str:
    return ", ".join(f"OSD {osd}" for osd in osds)
