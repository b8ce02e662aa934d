"""Disks of this machine that are, or become, OSDs: by ceph-volume, and by systemd for their daemons.

On logical volumes where the kernel has them, so that an OSD is found again whatever its disk is called; else
on the device as it is.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pvc import proc, sizes
from pvc.errors import Conflict
from pvc.node import devices
from pvc.node.devices import Device
from pvc.node.drivers import DriverError

log = logging.getLogger(__name__)

LONG_S = 3600.0
"""Discarding all blocks of a large disk takes its time."""
LABELS_MIB = 100
"""So much of a device's beginning is written over: labels and superblocks are there."""
DB_GROUP = "osd-db"
OSD_GROUPS = "ceph-"
"""So begin the names of those that ceph-volume makes."""
OURS = "pvc"
"""The tag of what we have made."""
BOOTSTRAP_KEYRING = "var/lib/ceph/bootstrap-osd/ceph.keyring"
UNIT = """\
# Of pvc: without LVM nobody else gives the disk to the user of Ceph when the machine starts.
[Service]
ExecStartPre=+/bin/chown ceph:ceph /var/lib/ceph/osd/ceph-%i/block
"""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An OSD on a disk, whether its daemon runs or not."""

    osd: int
    uuid: str
    fsid: str
    """Of its Ceph."""
    device: str
    is_lvm: bool


class OSDDisks(Protocol):
    """What becomes of disks. Raises PVCError."""

    def devices(self) -> tuple[Device, ...]: ...

    def check_free(self, device: Device, *, force: bool) -> None:
        """Raises Conflict naming what is on it."""
        ...

    def has_lvm(self) -> bool: ...

    def check_room(self, db_bytes: int, replaced: int | None = None) -> None:
        """Raises Conflict where there is no room for a database, also when that of `replaced` is gone."""
        ...

    def prepare(self, device: str, osds: Sequence[int], *, tier: str = "", db_bytes: int = 0) -> None:
        """Make these OSDs, whose ids are reserved, of a device that is free."""
        ...

    def prepared(self, device: str = "") -> tuple[Prepared, ...]:
        """On that device, or on all."""
        ...

    def identities(self, device: Device) -> frozenset[str]:
        """Of all OSDs that have something on the device, also if it is no more than their database."""
        ...

    def start(self, one: Prepared) -> None:
        """Its daemon, now and whenever the machine starts."""
        ...

    def stop(self, osd: int) -> None: ...

    def resume(self, osd: int) -> None:
        """After `stop`, of one that is set up, whatever its disk is."""
        ...

    def zap(self, device: str, osds: Sequence[Prepared]) -> None:
        """Take these OSDs off the device; whatever else is on it with `osds` empty."""
        ...

    def sweep(self, device: str) -> None:
        """Take away what `prepare` on that device, or `make_db_group`, has left that was cut off. Not beside
        another one."""
        ...

    def make_db_group(self, device: str) -> None:
        """Make a device the place for the databases of OSDs on slower ones. Raises Conflict where one is."""
        ...

    def bootstrap(self, key: str) -> None:
        """Let new OSDs make themselves known to Ceph with that key."""
        ...


class CephVolume:
    """An OSDDisks."""

    def __init__(self, run: proc.Run = proc.run, root: str = "/") -> None:
        self.run = run
        self.root = Path(root)

    # Looking

    def devices(self) -> tuple[Device, ...]:
        return devices.devices(self.run(["lsblk", "--json", "--bytes", "-o", devices.COLUMNS]).stdout)

    def check_free(self, device: Device, *, force: bool) -> None:
        if self.has_lvm():
            for one in self._physical(device):
                if int(one["pv_count"] or 0) > 1:
                    group = one["vg_name"]
                    raise Conflict(
                        f"{one['pv_name']} is one of {one['pv_count']} disks of the volume group {group}",
                        hint=f"vgreduce {group} {one['pv_name']}, or vgremove {group}",
                    )
        is_held = any(_is_held(one.path) for one in devices.leaves(device))
        devices.check_free(device, self._signatures(device.path), is_held=is_held, force=force)

    def _signatures(self, path: str) -> list[str]:
        """As they are on the device: what lsblk says may be what udev once knew."""
        said = self.run(["wipefs", "--no-act", "--json", path]).stdout
        return [one["type"] for one in json.loads(said)["signatures"]] if said.strip() else []

    def has_lvm(self) -> bool:
        return (self.root / "dev/mapper/control").exists() and self.run(
            ["lvm", "version"], check=False
        ).code == 0

    def check_room(self, db_bytes: int, replaced: int | None = None) -> None:
        if not db_bytes:
            return
        if not self.has_lvm():
            raise _no_lvm()
        free = [int(one["vg_free"]) for one in self._report("vgs", "vg_name", "vg_free") if _is_db(one)]
        if not free:
            raise Conflict(
                f"this machine has no volume group {DB_GROUP}",
                hint="pvc storage osd create-db-vg NODE DEVICE",
            )
        volumes = self._report("lvs", "lv_name", "vg_name", "lv_size")
        own = (one for one in volumes if _is_db(one) and one["lv_name"] == _db_name(replaced))
        room = free[0] + sum(int(one["lv_size"]) for one in own)
        if db_bytes > room:
            raise Conflict(
                f"the volume group {DB_GROUP} has only {sizes.show(room)} left",
                hint="vgextend makes it larger",
            )

    def prepared(self, device: str = "") -> tuple[Prepared, ...]:
        where = [device] if device else []
        found = json.loads(self._volume("raw", "list", *where, "--format", "json") or "{}")
        on_raw = [
            Prepared(one["osd_id"], one["osd_uuid"], one["ceph_fsid"], one["device"], is_lvm=False)
            for one in found.values()
            if "osd_id" in one
        ]
        return (*on_raw, *(self._on_lvm(device) if self.has_lvm() else ()))

    def _on_lvm(self, device: str) -> list[Prepared]:
        found = json.loads(self._volume("lvm", "list", "--format", "json") or "{}")
        return [
            Prepared(
                int(osd), volume["tags"]["ceph.osd_fsid"], volume["tags"]["ceph.cluster_fsid"], disk, True
            )
            for osd, volumes in found.items()
            for volume in volumes
            if volume["type"] == "block"
            for disk in volume["devices"]
            if device in ("", disk)
        ]

    def identities(self, device: Device) -> frozenset[str]:
        there = list(devices.tree(device))
        raw = [one.path for one in there if one.kind in (*devices.WHOLE, "part")]
        found = self._volume("raw", "list", *raw, "--format", "json") if raw else ""
        paths = {os.path.realpath(one.path) for one in there}
        on_lvm = self._with_volumes_on(paths) if self.has_lvm() else ()
        return frozenset(json.loads(found or "{}")).union(on_lvm)

    def _with_volumes_on(self, paths: set[str]) -> Iterator[str]:
        """A database that is no logical volume is told without its OSD's identity, beside what has it."""
        found = json.loads(self._volume("lvm", "list", "--format", "json") or "{}")
        for volumes in found.values():
            for volume in volumes:
                on = (volume["path"], *volume.get("devices", ()))
                if not paths.isdisjoint(map(os.path.realpath, on)):
                    tags = [volume["tags"], *(one["tags"] for one in volumes)]
                    yield next((one["ceph.osd_fsid"] for one in tags if "ceph.osd_fsid" in one), "")

    # Making

    def bootstrap(self, key: str) -> None:
        keyring = self.root / BOOTSTRAP_KEYRING
        text = f"[client.bootstrap-osd]\n\tkey = {key}\n"
        if keyring.is_file() and keyring.read_text() == text:
            return
        keyring.parent.mkdir(parents=True, exist_ok=True)
        new = keyring.with_suffix(".new")
        new.unlink(missing_ok=True)
        new.touch(0o600)
        new.write_text(text)
        new.replace(keyring)

    def prepare(self, device: str, osds: Sequence[int], *, tier: str = "", db_bytes: int = 0) -> None:
        ids = [str(osd) for osd in osds]
        kind = ["--crush-device-class", tier] if tier else []
        if not self.has_lvm():
            if len(osds) > 1 or db_bytes:
                raise _no_lvm()
            self._volume(
                "raw", "prepare", "--bluestore", "--data", device, "--no-tmpfs", "--osd-id", *ids, *kind
            )
        elif len(osds) == 1:
            data = ["--bluestore", "--data", device, "--osd-id", *ids, *kind]
            with self._db(osds[0], db_bytes) as where:
                self._volume("lvm", "prepare", *data, *where)
        elif db_bytes:
            raise Conflict("a device that is split has no databases elsewhere", hint="without --db-size")
        else:
            split = ["--osds-per-device", str(len(osds)), device, "--osd-ids", *ids]
            self._volume("lvm", "batch", "--bluestore", "--yes", "--prepare", "--no-systemd", *kind, *split)

    @contextmanager
    def _db(self, osd: int, size_bytes: int) -> Iterator[list[str]]:
        """A volume that stays when what needs it could be made. Of OSDs that go it goes with `zap`."""
        if not size_bytes:
            yield []
            return
        name = _db_name(osd)
        volume = f"{DB_GROUP}/{name}"
        self.run(["lvremove", "--yes", volume], check=False)  # what a daemon that died has left
        made = ["lvcreate", "--yes", "--addtag", OURS, "--name", name, "--size", f"{size_bytes}b"]
        self.run([*made, DB_GROUP])
        try:
            yield ["--block.db", volume]
        except DriverError:
            self.run(["lvremove", "--yes", volume], check=False)
            raise

    def make_db_group(self, device: str) -> None:
        if not self.has_lvm():
            raise _no_lvm()
        if self.run(["vgs", DB_GROUP], check=False).code == 0:
            raise Conflict(f"there is a volume group {DB_GROUP} already", hint="vgextend makes it larger")
        self.run(["vgcreate", "--yes", "--addtag", OURS, DB_GROUP, device])
        # With its last logical volume ceph-volume takes the group away as well.
        self.run(["lvcreate", "--yes", "--name", "keep", "--extents", "1", DB_GROUP])

    # Daemons

    def start(self, one: Prepared) -> None:
        if one.is_lvm:
            self._volume("lvm", "activate", "--bluestore", str(one.osd), one.uuid)
            return
        drop_in = self._drop_in(one.osd)
        drop_in.parent.mkdir(parents=True, exist_ok=True)
        drop_in.write_text(UNIT)
        self.run(["systemctl", "daemon-reload"])
        ids = ["--osd-id", str(one.osd), "--osd-uuid", one.uuid]
        self._volume("raw", "activate", "--device", one.device, *ids, "--no-systemd", "--no-tmpfs")
        self.resume(one.osd)

    def resume(self, osd: int) -> None:
        self.run(["systemctl", "enable", "--quiet", "--now", _unit(osd)], timeout_s=LONG_S)

    def stop(self, osd: int) -> None:
        """It is not there to be stopped after a failed start: that is no failure."""
        # ceph-volume enables it until the next start of the machine only.
        self.run(["systemctl", "disable", "--quiet", "--runtime", _unit(osd)], check=False)
        self.run(["systemctl", "disable", "--quiet", "--now", _unit(osd)], check=False, timeout_s=LONG_S)
        if self.run(["systemctl", "is-active", "--quiet", _unit(osd)], check=False).code == 0:
            raise DriverError(f"the daemon of OSD {osd} does not end", hint=f"systemctl status {_unit(osd)}")

    def _drop_in(self, osd: int) -> Path:
        return self.root / f"etc/systemd/system/{_unit(osd)}.d/pvc.conf"

    # Taking away

    def zap(self, device: str, osds: Sequence[Prepared]) -> None:
        for one in osds:
            if one.is_lvm:
                # By its number alone it also takes one of another Ceph, or of an earlier life.
                self._volume("lvm", "zap", "--destroy", "--osd-id", str(one.osd), "--osd-fsid", one.uuid)
            self._forget(one)
        if all(not one.is_lvm for one in osds):
            self._wipe(devices.choose(device, self.devices()))

    def _forget(self, one: Prepared) -> None:
        if one.is_lvm:
            self.run(["systemctl", "disable", "--quiet", f"ceph-volume@lvm-{one.osd}-{one.uuid}.service"])
        drop_in = self._drop_in(one.osd)
        if drop_in.is_file():
            drop_in.unlink()
            drop_in.parent.rmdir()
            self.run(["systemctl", "daemon-reload"])
        where = f"/var/lib/ceph/osd/ceph-{one.osd}"
        self.run(["umount", "--quiet", where], check=False)
        self.run(["rm", "-rf", "--one-file-system", where])

    def _wipe(self, device: Device) -> None:
        """ceph-volume stumbles over small logical volumes, and leaves labels on other kinds of devices."""
        if self.has_lvm():
            for one in self._physical(device):
                self._remove_group(one["vg_name"], one["pv_name"])
        for part in (one.path for one in devices.tree(device) if one.kind == "part"):
            self.run(["wipefs", "--all", "--force", part])
        self.run(["wipefs", "--all", "--force", device.path])
        self.run(["partx", "--delete", device.path], check=False)  # where it had any
        count = min(LABELS_MIB, device.size_bytes // 1024**2)
        words = [f"of={device.path}", "bs=1M", f"count={count}", "conv=fsync,notrunc", "status=none"]
        self.run(["dd", "if=/dev/zero", *words], timeout_s=LONG_S)

    def sweep(self, device: str) -> None:
        """Logical volumes are made first, and then marked as an OSD's, by which they are found."""
        if not self.has_lvm():
            return
        found = next((one for one in self.devices() if one.path == device), None)
        there = {one["vg_name"] for one in self._physical(found)} if found is not None else set()
        groups = {one for one in there if one.startswith(OSD_GROUPS)}
        for one in self._report("lvs", "lv_name", "vg_name", "lv_tags"):
            is_ours = OURS in one["lv_tags"].split(",") or one["vg_name"] in groups
            if is_ours and "ceph.osd_fsid=" not in one["lv_tags"]:
                self.run(["lvremove", "--yes", f"{one['vg_name']}/{one['lv_name']}"])
        for one in self._report("pvs", "pv_name", "vg_name", "lv_count", "vg_tags"):
            is_ours = OURS in one["vg_tags"].split(",") or one["vg_name"] in groups
            if is_ours and one["lv_count"] == "0":
                self._remove_group(one["vg_name"], one["pv_name"])

    # LVM

    def _report(self, what: str, *fields: str) -> list[dict[str, str]]:
        plain = ["--reportformat", "json", "--units", "b", "--nosuffix"]
        said = self.run([what, *plain, "--options", ",".join(fields)]).stdout
        found: list[dict[str, str]] = json.loads(said)["report"][0][what[:-1]]
        return found

    def _physical(self, device: Device) -> list[dict[str, str]]:
        """Those volumes of LVM that it is, or has."""
        paths = {os.path.realpath(one.path) for one in devices.tree(device)}
        found = self._report("pvs", "pv_name", "vg_name", "pv_count")
        return [one for one in found if os.path.realpath(one["pv_name"]) in paths]

    def _remove_group(self, group: str, device: str) -> None:
        if group:
            self.run(["vgremove", "--yes", "--force", group])
        self.run(["pvremove", "--yes", device])

    def _volume(self, *words: str) -> str:
        try:
            return self.run([*proc.WITH_US, "ceph-volume", *words], timeout_s=LONG_S).stdout
        except proc.CommandFailed as error:
            raise DriverError(f"ceph-volume {words[0]} {words[1]}: {_said(error.result.stderr)}") from None


def _no_lvm() -> Conflict:
    return Conflict(
        "this machine has no LVM, without which a device is one OSD with all that belongs to it",
        hint="apt-get install lvm2, and a kernel with device-mapper",
    )


def _is_db(reported: Mapping[str, str]) -> bool:
    return reported["vg_name"] == DB_GROUP


def _db_name(osd: int | None) -> str:
    return f"db-{osd}"


def _unit(osd: int) -> str:
    return f"ceph-osd@{osd}.service"


def _said(stderr: str) -> str:
    """The line that says why, of a program that tells everything it runs, and then what it takes back."""
    lines = [line.strip() for line in stderr.partition("will rollback changes")[0].splitlines()]
    reasons = [line for line in lines if "Error" in line or line.startswith("stderr:")]
    said = (reasons or [line for line in lines if line] or ["no output"])[-1]
    return said.removeprefix("-->").removeprefix("stderr:").strip()


def _is_held(path: str) -> bool:
    """By a mount, LVM, or whoever else wants it for himself; not by who only has it open."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL))
    except OSError:
        return True
    return False
