"""Block devices of a node: which one is meant, and what is on it that must not be lost. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pvc import sizes
from pvc.errors import Conflict, Invalid, NotFound

COLUMNS = "NAME,PATH,TYPE,SIZE,VENDOR,MODEL,FSTYPE,MOUNTPOINTS,RO,ROTA,TRAN"
WHOLE = ("disk", "loop", "mpath")
LEAST_BYTES = 1024**3
TOLERANCE = 0.03
"""Makers round."""
UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}


@dataclass(frozen=True, slots=True)
class Device:
    path: str
    kind: str
    """disk, loop, mpath, part, lvm …"""
    size_bytes: int
    model: str
    filesystem: str
    """Or whatever else is on it, as blkid calls it."""
    mounts: tuple[str, ...]
    is_read_only: bool
    is_rotating: bool
    holders: tuple[Device, ...]
    """Partitions of it, and what else is made of it."""

    @property
    def described(self) -> str:
        return f"{self.path} ({self.model or self.kind}, {sizes.show(self.size_bytes)})"


def devices(lsblk: str) -> tuple[Device, ...]:
    """From `lsblk --json --bytes` with our columns."""
    return tuple(_device(one) for one in json.loads(lsblk)["blockdevices"])


def _device(plain: dict[str, Any]) -> Device:
    return Device(
        path=plain["path"],
        kind=plain["type"],
        size_bytes=int(plain["size"] or 0),
        model=" ".join(f"{plain['vendor'] or ''} {plain['model'] or ''}".split()),
        filesystem=plain["fstype"] or "",
        mounts=tuple(one for one in plain["mountpoints"] if one),
        is_read_only=_is_true(plain["ro"]),
        is_rotating=_is_true(plain["rota"]),
        holders=tuple(_device(one) for one in plain.get("children", ())),
    )


def _is_true(value: object) -> bool:
    """lsblk says true, or "1" in older versions."""
    return value is True or value == "1"


# Which one


def choose(wanted: str, found: Iterable[Device]) -> Device:
    """By a path, or by `detect:NAME:SIZE:N`: the Nth, from 0, with NAME in its model and that SIZE.

    Raises Invalid, NotFound.
    """
    there = list(found)
    if not wanted.startswith("detect:"):
        for one in _all(there):
            if one.path == wanted:
                return one
        raise NotFound(f"there is no device {wanted}", hint=_named(there))
    name, size_bytes, number = parse_detect(wanted)
    matching = sorted(
        (one for one in there if one.kind in WHOLE and _matches(one, name, size_bytes)),
        key=lambda one: _natural(one.path),
    )
    if number < len(matching):
        return matching[number]
    what = f"{len(matching)} devices match" if matching else "no device matches"
    raise NotFound(f"{what} {wanted}, whose last number counts from 0", hint=_named(there))


def parse_detect(wanted: str) -> tuple[str, int, int]:
    """Raises Invalid."""
    found = re.fullmatch(r"detect:([^:\n]{1,64}):(\d{1,6}(?:\.\d{1,3})?)([KMGT]?)B?:(\d{1,3})", wanted)
    if found is None:
        raise Invalid(f"{wanted!r} is not detect:NAME:SIZE:N", hint="like detect:INTEL:800GB:0")
    return found[1], int(float(found[2]) * UNITS[found[3]]), int(found[4])


def _matches(device: Device, name: str, size_bytes: int) -> bool:
    """The size as makers give it: in units of 1000."""
    near = abs(device.size_bytes - size_bytes) <= size_bytes * TOLERANCE
    return near and name.lower() in device.model.lower()


def _natural(path: str) -> tuple[int, str]:
    """sdb before sdaa."""
    return len(path), path


def _all(found: Iterable[Device]) -> Iterator[Device]:
    for one in found:
        yield one
        yield from _all(one.holders)


def _named(found: list[Device]) -> str:
    there = ", ".join(one.described for one in found if one.size_bytes)
    return f"there are {there}" if there else "there is no device at all"


# What is on it


def content(device: Device, signatures: Iterable[str] = ()) -> list[str]:
    """What would be lost, in words; empty when it is free. `signatures` are those that wipefs sees."""
    words = [_held(one) for one in device.holders]
    kinds = dict.fromkeys([*([device.filesystem] if device.filesystem else []), *signatures])
    return [*words, *(f"it has {_words(kind)}" for kind in kinds)]


def _held(device: Device) -> str:
    what = {"part": "a partition", "lvm": "a logical volume"}.get(device.kind, f"a {device.kind}")
    more = f" with {_words(device.filesystem)}" if device.filesystem else ""
    return f"it has {what} ({device.path}){more}"


def _words(signature: str) -> str:
    known = {
        "ceph_bluestore": "an OSD of Ceph",
        "LVM2_member": "LVM",
        "linux_raid_member": "RAID",
        "crypto_LUKS": "encrypted data",
        "swap": "swap space",
        "gpt": "a partition table (gpt)",
        "dos": "a partition table (dos)",
    }
    return known.get(signature, f"a file system ({signature})")


def in_use(device: Device) -> list[str]:
    """What uses it at this moment, in words: not even with --force it is taken away."""
    return [
        f"{one.path} is {'used as swap' if mount == '[SWAP]' else f'mounted at {mount}'}"
        for one in _all([device])
        for mount in one.mounts
    ]


def tree(device: Device) -> Iterator[Device]:
    """The device, and all that is made of it."""
    return _all([device])


def leaves(device: Device) -> Iterator[Device]:
    """What nothing else is made of: LVM holds a disk by itself, whether anybody uses it or not."""
    return (one for one in _all([device]) if not one.holders)


def check_free(device: Device, signatures: Iterable[str], *, is_held: bool, force: bool) -> None:
    """Raises Conflict naming what is on it."""
    if used := in_use(device):
        raise Conflict(f"{device.path} is in use: {', '.join(used)}", hint="choose another device")
    if device.is_read_only:
        raise Conflict(f"{device.path} can only be read", hint="choose another device")
    if device.size_bytes < LEAST_BYTES:
        raise Conflict(f"{device.path} has only {sizes.show(device.size_bytes)}", hint="an OSD needs 1 GiB")
    if (found := content(device, signatures)) and not force:
        told = ", ".join(found)
        raise Conflict(f"{device.path} holds data: {told}", hint="--force takes all of it away, for good")
    if is_held:
        raise Conflict(
            f"{device.path} is open by something else", hint="is it the disk of an OSD or of a VM?"
        )
