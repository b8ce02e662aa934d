"""Ceph as this node reaches it: monitors, and objects of pools. The only importer of rados (from Debian)."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import rados

from pvc.cluster.storage import CephAccess, Monitor
from pvc.errors import PVCError, Unavailable
from pvc.node.drivers import DriverError
from pvc.node.drivers.blocklist import OSDMap

CONF = "/etc/ceph/ceph.conf"
USER = "pvc"
"""Of the daemon, as an administrator of Ceph: client.pvc, whose key is beside the configuration."""
TIMES = {"client_mount_timeout": "5", "rados_mon_op_timeout": "10"}
"""In seconds. None for what is written: it may come true after it was given up."""
ASK_TIMES = {**TIMES, "rados_osd_op_timeout": "10"}

VM_USER = "pvc-vm"
"""Of QEMU: it may use images, break the locks of the dead, and nothing else."""
VM_CAPS = ("mon", "profile rbd", "osd", "profile rbd", "mgr", "profile rbd")

BLOCKED_S = 10 * 365 * 86400.0
"""Each entry of the block list ends; by default in an hour, and a client that slept longer writes again."""
SILENT_S = 2
"""For an OSD to say what it knows."""

Error = rados.Error


class Ceph:
    """Each call connects anew (some 10 ms): no handle outlives a monitor that is gone."""

    def __init__(self, conf: str = CONF, user: str = USER) -> None:
        self.conf = conf
        self.user = user

    def command(self, prefix: str, data: bytes = b"", **arguments: Any) -> Any:
        """What the monitors answer, read from JSON; None where they say nothing. Raises DriverError."""
        with self.connected(ASK_TIMES) as cluster:
            return _answer(prefix, cluster.mon_command(_asked(prefix, arguments), data))

    def osd_command(self, osd: int, prefix: str, **arguments: Any) -> Any:
        """As `command`, of one OSD."""
        with self.connected(ASK_TIMES) as cluster:
            return _answer(prefix, cluster.osd_command(osd, _asked(prefix, arguments), b""))

    @contextmanager
    def connected(self, times: Mapping[str, str] = TIMES) -> Iterator[rados.Rados]:
        """Raises Unavailable, DriverError for what Ceph raises meanwhile."""
        with told():
            cluster = self._connect(times)
            try:
                yield cluster
            finally:
                cluster.shutdown()

    @contextmanager
    def opened(self, pool: str, times: Mapping[str, str] = TIMES) -> Iterator[rados.Ioctx]:
        """The objects of a pool. Raises Unavailable where there is no such pool."""
        with self.connected(times) as cluster:
            try:
                io = cluster.open_ioctx(pool)
            except rados.ObjectNotFound:
                raise Unavailable(f"there is no pool {pool} in the Ceph that is reached from here") from None
            try:
                yield io
            finally:
                io.close()

    def _connect(self, times: Mapping[str, str]) -> rados.Rados:
        try:
            cluster = rados.Rados(name=f"client.{self.user}", conffile=self.conf)
            for option, value in times.items():
                cluster.conf_set(option, value)
            cluster.connect()
        except rados.Error as error:
            raise Unavailable(f"Ceph is not reached from here: {words(error)}") from None
        return cluster


class CephBlocklist:
    """A Blocklist."""

    def __init__(self, ceph: Ceph) -> None:
        self.ceph = ceph

    def addresses(self) -> frozenset[str]:
        with _reached(), self.ceph.connected(ASK_TIMES) as cluster:
            return frozenset(map(_host, re.findall(r"[^,\s]+/\d+", cluster.get_addrs())))

    def map(self) -> OSDMap:
        with _reached():
            found = self.ceph.command("osd dump")
        return OSDMap(
            found["epoch"],
            frozenset(one["osd"] for one in found["osds"] if one["up"]),
            frozenset(_host(entry) for entry in found["blocklist"] if entry.endswith(":0/0")),
            {
                one["osd"]: _host(address["addr"])
                for one in found["osds"]
                if one["up"]
                for address in one["public_addrs"]["addrvec"]
            },
        )

    def add(self, address: str) -> None:
        with _reached():
            self._change(address, blocklistop="add", expire=BLOCKED_S)

    def remove(self, address: str) -> None:
        with _reached():
            self._change(address, blocklistop="rm")

    def _change(self, address: str, **how: Any) -> None:
        entry = f"[{address}]:0/0" if ":" in address else f"{address}:0/0"
        self.ceph.command("osd blocklist", addr=entry, **how)

    def epoch_of(self, osd: int) -> int:
        times = {**TIMES, "rados_osd_op_timeout": str(SILENT_S)}
        with _reached(), self.ceph.connected(times) as cluster:
            asked = _asked("status", {})
            return int(_answer(f"osd.{osd}", cluster.osd_command(osd, asked, b""))["newest_map"])

    def mark_down(self, osds: Collection[int]) -> None:
        with _reached():
            self.ceph.command("osd down", ids=[str(one) for one in sorted(osds)])


def _host(entry: str) -> str:
    """Of what Ceph calls an address: v2:10.0.0.1:6800/123, [fd00::1]:0/0."""
    return re.sub(r"^\[?(v[12]|any):", "", entry).rpartition(":")[0].strip("[]")


@contextmanager
def _reached() -> Iterator[None]:
    """Not to be reached is a failure as any other: a judge must not take it for the store's."""
    try:
        yield
    except Unavailable as error:
        raise DriverError(error.message, retryable=True) from None


def vm_access(ceph: Ceph) -> tuple[CephAccess, str]:
    """What QEMU needs for its disks, and the key of its user. Raises DriverError where it has none yet."""
    found = ceph.command("mon dump")
    key = ceph.command("auth get-key", entity=f"client.{VM_USER}")["key"]
    monitors = tuple(_monitor(one["public_addrs"]["addrvec"]) for one in found["mons"])
    return CephAccess(monitors, VM_USER, str(uuid.uuid5(uuid.UUID(found["fsid"]), VM_USER))), key


def make_vm_user(ceph: Ceph) -> None:
    """Done already where it is there."""
    ceph.command("auth get-or-create", entity=f"client.{VM_USER}", caps=list(VM_CAPS))


def _monitor(addresses: Sequence[Mapping[str, Any]]) -> Monitor:
    """By its newest protocol: QEMU tells by the port which one that is."""
    best = max(addresses, key=lambda one: str(one["type"]))
    host, _, port = best["addr"].rpartition(":")
    return Monitor(host.strip("[]"), int(port))


def every_object(io: rados.Ioctx) -> Iterator[str]:
    """The names of all objects of a pool, in whatever namespace."""
    io.set_namespace(rados.LIBRADOS_ALL_NSPACES)
    return (one.key for one in io.list_objects())


def application_value(io: rados.Ioctx, application: str, key: str) -> str:
    """What is said of a pool for those who use it; empty where that is not."""
    try:
        return dict(io.application_metadata_list(application)).get(key, "")
    except rados.ObjectNotFound:
        return ""


def omap_value(io: rados.Ioctx, name: str, key: str) -> bytes | None:
    """One value of an object; None where it has gone."""
    try:
        with rados.ReadOpCtx() as operation:
            values, _ = io.get_omap_vals_by_keys(operation, (key,))
            io.operate_read_op(operation, name)
            return dict(values).get(key)
    except rados.ObjectNotFound:
        return None


@contextmanager
def told() -> Iterator[None]:
    """What Ceph raises, in our words."""
    try:
        yield
    except PVCError:
        raise
    except rados.Error as error:
        raise DriverError(f"Ceph: {words(error)}", retryable=isinstance(error, rados.TimedOut)) from None


def words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _asked(prefix: str, arguments: Mapping[str, Any]) -> str:
    return json.dumps({"prefix": prefix, "format": "json", **arguments})


def _answer(prefix: str, answer: tuple[int, bytes, str]) -> Any:
    code, out, said = answer
    if code != 0:
        raise DriverError(f"Ceph says to {prefix}: {said or code}")
    # Some commands say something more after their JSON.
    return json.JSONDecoder().raw_decode(out.decode().lstrip())[0] if out.strip() else None
