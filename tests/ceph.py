"""A throwaway Ceph cluster: a monitor, a manager and an OSD in memory, as plain processes.

The daemons are unpacked from their packages into build/ceph (build.py), and not installed: Debian would start
some of them on whatever machine runs these tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rados

from tests.support import eventually
from tests.zookeeper import free_ports

UNPACKED = Path(__file__).parents[1] / "build/ceph"
LIBRARIES = UNPACKED / "usr/lib/x86_64-linux-gnu"
OSD_BYTES = 4 * 1024**3

LEFT_OUT = (
    "restful nfs iostat alerts influx insights localpool mirroring osd_support prometheus selftest "
    "snap_schedule stats telegraf test_orchestrator zabbix dashboard cephadm rook diskprediction_local "
    "k8sevents"
)
"""Modules of the manager: without them it starts in half the time and memory."""

CONF = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{port}]
mon initial members = a
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
ms bind msgr1 = false
ms bind ipv6 = false
run dir = {where}
admin socket = {where}/$name.asok
keyring = {where}/$name.keyring
log file = {where}/$name.log
crash dir = {where}
plugin dir = {libraries}/ceph
osd class dir = {libraries}/rados-classes
erasure code dir = {libraries}/ceph/erasure-code
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
{more}mon data avail warn = 3
mon data avail crit = 1
paxos propose interval = 0.1
[client]
admin socket =
log file =
[mon]
mon data = {where}/mon
keyring = {where}/mon/keyring
mon cluster log file = {where}/cluster.log
[mgr]
mgr data = {where}/mgr
mgr module path = {unpacked}/usr/share/ceph/mgr
mgr initial modules = status
mgr disabled modules = {left_out}
mgr stats period = 1
[osd]
osd data = {where}/osd
osd objectstore = memstore
osd client watch timeout = 5
memstore device bytes = {osd_bytes}
"""


@dataclass
class Ceph:
    where: Path
    may_delete: bool = True
    """Pools, without asking the monitors for leave first."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def conf(self) -> str:
        return str(self.where / "ceph.conf")

    def connect(self) -> rados.Rados:
        cluster = rados.Rados(conffile=self.conf, name="client.admin")
        for key in ("client_mount_timeout", "rados_mon_op_timeout", "rados_osd_op_timeout"):
            cluster.conf_set(key, "20")
        cluster.connect()
        return cluster

    def command(self, prefix: str, data: bytes = b"", **arguments: Any) -> Any:
        cluster = self.connect()
        try:
            asked = json.dumps({"prefix": prefix, "format": "json", **arguments})
            code, out, said = cluster.mon_command(asked, data)
        finally:
            cluster.shutdown()
        assert code == 0, f"{prefix}: {said}"
        return json.loads(out) if out else None

    def run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [UNPACKED / "usr/bin" / program, *words],
            capture_output=True,
            text=True,
            check=False,
            env=self._environment(),
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self, program: str, *words: str) -> None:
        with (self.where / f"{program}.out").open("wb") as output:
            self.processes.append(
                subprocess.Popen(
                    [UNPACKED / "usr/bin" / program, "-f", *words],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._environment(),
                )
            )

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "CEPH_CONF": self.conf, "LD_LIBRARY_PATH": f"{LIBRARIES}:{LIBRARIES}/ceph"}

    # Making it

    def make(self) -> None:
        assert UNPACKED.is_dir(), f"{UNPACKED} is not there: ./build.py test unpacks it"
        fsid, (port,) = str(uuid.uuid4()), free_ports(1)
        for name in ("mon", "mgr", "osd"):
            (self.where / name).mkdir()
        Path(self.conf).write_text(
            CONF.format(
                fsid=fsid,
                port=port,
                where=self.where,
                more="mon allow pool delete = true\n" if self.may_delete else "",
                unpacked=UNPACKED,
                libraries=LIBRARIES,
                left_out=LEFT_OUT,
                osd_bytes=OSD_BYTES,
            )
        )
        self._keys()
        monmap = str(self.where / "monmap")
        self.run(
            *("monmaptool", "--create", "--clobber", "--fsid", fsid),
            *("--addv", "a", f"[v2:127.0.0.1:{port}]", "--set-min-mon-release", "pacific", monmap),
        )
        keyring = str(self.where / "all.keyring")
        self.run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)
        (self.where / "mon/keyring").write_text(Path(keyring).read_text())
        self.start("ceph-mon", "-i", "a", "--public-addrv", f"[v2:127.0.0.1:{port}]")
        self.start("ceph-mgr", "-i", "x", "--public-addr", "127.0.0.1")
        self._osd()

    def _keys(self) -> None:
        keys: Sequence[tuple[str, str, Sequence[str]]] = (
            ("mon.", "all", ("mon", "allow *")),
            ("client.admin", "client.admin", ("mon", "allow *", "osd", "allow *", "mgr", "allow *")),
            ("mgr.x", "mgr.x", ("mon", "allow profile mgr", "osd", "allow *")),
        )
        for name, file, caps in keys:
            words = [
                word for kind, cap in zip(caps[::2], caps[1::2], strict=True) for word in ("--cap", kind, cap)
            ]
            path = str(self.where / f"{file}.keyring")
            self.run("ceph-authtool", "-C", path, "--gen-key", "-n", name, *words)
            if file != "all":
                everything = str(self.where / "all.keyring")
                self.run("ceph-authtool", everything, "--import-keyring", path)

    def _osd(self) -> None:
        identity, keyring = str(uuid.uuid4()), self.where / "osd/keyring"
        self.run("ceph-authtool", "-C", str(keyring), "--gen-key", "-n", "osd.0")
        key = keyring.read_text().split("key = ")[1].split()[0]
        self.command("osd new", json.dumps({"cephx_secret": key}).encode(), uuid=identity, id=0)
        (self.where / "osd.0.keyring").write_text(keyring.read_text())
        self.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", identity)
        self.start("ceph-osd", "-i", "0", "--public-addr", "127.0.0.1")
        eventually(lambda: self.command("status")["osdmap"]["num_up_osds"] == 1, within=30)

    def add_pool(self, name: str) -> None:
        self.command("osd pool create", pool=name, pg_num=8)
        self.command("osd pool application enable", pool=name, app="rbd")
        eventually(self._is_clean, within=30)

    def _is_clean(self) -> bool:
        states = self.command("status")["pgmap"]["pgs_by_state"]
        return bool(states) and {one["state_name"] for one in states} == {"active+clean"}


@contextmanager
def ceph(where: Path, *, may_delete: bool = True) -> Iterator[Ceph]:
    made = Ceph(where, may_delete)
    try:
        made.make()
        yield made
    finally:
        for process in made.processes:
            process.kill()
            process.wait()
