"""Ceph in the lab: monitors on the coordinators, two managers, OSDs on every node. Values in, files out.

All keys derive from the lab's own, so that every node knows them before any daemon runs, and all start at
once. Debian's units run them; what a daemon needs made once is made before its first start.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
import uuid
from collections.abc import Mapping, Sequence

from pvc.lab.layout import STORAGE, Lab, Node
from pvc.lab.render import File

DAEMON = "pvc"
"""The user of the nodes' daemon, an administrator: client.pvc."""
MANAGERS = 2
OSD_BYTES = 32 * 1024**3
"""Of a sparse file, which has nothing in it yet."""
PORT = 3300
POOL = "ceph"
"""For volumes."""
PGS = 8

EVERYTHING = {"mon": "allow *", "osd": "allow *", "mgr": "allow *"}
CAPS: Mapping[str, Mapping[str, str]] = {
    "mon": {"mon": "allow *"},
    "mgr": {"mon": "allow profile mgr", "osd": "allow *", "mds": "allow *"},
    "client": EVERYTHING,
}

LEFT_OUT = (
    "restful nfs iostat alerts influx insights localpool mirroring osd_support prometheus selftest "
    "snap_schedule stats telegraf test_orchestrator zabbix"
)
"""Modules of the manager: without them it starts in half the time and memory."""


def files(lab: Lab, node: Node) -> tuple[File, ...]:
    """None for a lab without Ceph."""
    if not lab.osds:
        return ()
    return (
        File("etc/ceph/ceph.conf", configuration(lab)),
        File(f"etc/ceph/ceph.client.{DAEMON}.keyring", keyring(lab, f"client.{DAEMON}"), 0o600),
        File("etc/systemd/system/ceph.target.d/lab.conf", _wanted(lab, node)),
        *_restarting(),
        *(_monitor(lab, node) if lab.is_coordinator(node) else ()),
        *(_manager(lab, node) if has_manager(lab, node) else ()),
        *(file for number in osds_of(lab, node) for file in _osd(lab, number)),
    )


def fsid(lab: Lab) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"ceph of {lab.key}"))


def osds_of(lab: Lab, node: Node) -> Sequence[int]:
    return range((node.number - 1) * lab.osds, node.number * lab.osds)


def has_manager(lab: Lab, node: Node) -> bool:
    return lab.is_coordinator(node) and node.number <= MANAGERS


def key(lab: Lab, name: str) -> str:
    """A key as Ceph writes it: its kind, when it was made, its length, sixteen bytes."""
    secret = hmac.digest(lab.key.encode(), f"ceph {name}".encode(), hashlib.sha256)[:16]
    return base64.b64encode(struct.pack("<HIIH", 1, 0, 0, len(secret)) + secret).decode()


def keyring(lab: Lab, *names: str) -> str:
    return "".join(
        f"[{name}]\n\tkey = {key(lab, name)}\n"
        + "".join(f'\tcaps {kind} = "{cap}"\n' for kind, cap in CAPS.get(name.split(".")[0], {}).items())
        for name in names
    )


def copies(lab: Lab) -> tuple[int, int]:
    """How many, each on another node, and with how few there is still writing."""
    most = min(3, len(lab.nodes))
    return most, 2 if most > 2 else 1


def configuration(lab: Lab) -> str:
    """With timings that notice a death in seconds, and the small caches of a machine that has others."""
    monitors = [node for node in lab.nodes if lab.is_coordinator(node)]
    most, fewest = copies(lab)
    return f"""\
[global]
fsid = {fsid(lab)}
mon host = {" ".join(_address(lab, node) for node in monitors)}
mon initial members = {" ".join(node.name for node in monitors)}
public network = {lab.subnet(STORAGE)}.0/24
auth allow insecure global id reclaim = false
ms bind msgr1 = false
osd pool default size = {most}
osd pool default min size = {fewest}
osd pool default pg num = {PGS}
osd pool default pg autoscale mode = off
osd crush chooseleaf type = {1 if len(lab.nodes) > 1 else 0}
mon allow pool size one = true
mon allow pool delete = true
mon warn on pool no redundancy = false
mon data avail warn = 3
mon data avail crit = 1
paxos propose interval = 0.1
osd heartbeat interval = 1
osd heartbeat grace = 4
mon osd adjust heartbeat grace = false
mon osd min down reporters = 1
mon lease = 2
mon tick interval = 1
mon mgr beacon grace = 10

[client]
objecter timeout = 2
objecter tick interval = 1
mon client ping interval = 1
mon client ping timeout = 4
mon client hunt interval = 1

[mon]
mon election timeout = 1

[mgr]
mgr initial modules = status
mgr disabled modules = {LEFT_OUT}

[osd]
osd objectstore = bluestore
bluestore block size = {OSD_BYTES}
bluestore cache autotune = false
bluestore cache size = {64 * 1024**2}
osd memory target = {896 * 1024**2}
bdev aio poll ms = 20
"""


def _address(lab: Lab, node: Node) -> str:
    return f"[v2:{lab.address(node, STORAGE)}:{PORT}]"


def _wanted(lab: Lab, node: Node) -> str:
    units = [f"ceph-osd@{number}.service" for number in osds_of(lab, node)]
    if lab.is_coordinator(node):
        units.append(f"ceph-mon@{node.name}.service")
    if has_manager(lab, node):
        units.append(f"ceph-mgr@{node.name}.service")
    return f"[Unit]\nWants={' '.join(units)}\n"


def _restarting() -> tuple[File, ...]:
    """However often one is killed, it comes back at once."""
    text = "[Unit]\nStartLimitIntervalSec=0\n\n[Service]\nRestart=always\nRestartSec=1\n"
    return tuple(
        File(f"etc/systemd/system/ceph-{kind}@.service.d/restart.conf", text)
        for kind in ("mon", "mgr", "osd")
    )


def _monitor(lab: Lab, node: Node) -> tuple[File, ...]:
    names = ["mon.", f"client.{DAEMON}", *(f"mgr.{one.name}" for one in lab.nodes if has_manager(lab, one))]
    monitors = " ".join(
        f"--addv {one.name} {_address(lab, one)}" for one in lab.nodes if lab.is_coordinator(one)
    )
    where, initial = f"/var/lib/ceph/mon/ceph-{node.name}", "/var/lib/ceph/initial.keyring"
    script = f"""\
test ! -e {where}/done || exit 0
set -e
rm -rf {where}
install -d -o ceph -g ceph {where}
monmaptool --create --clobber --fsid {fsid(lab)} {monitors} --set-min-mon-release pacific /run/ceph/monmap
ceph-mon --mkfs --id {node.name} --monmap /run/ceph/monmap --keyring {initial} --setuser ceph --setgroup ceph
touch {where}/done
"""
    return (
        File(initial[1:], keyring(lab, *names), 0o600),
        *_before_start(f"ceph-mon@{node.name}", "/var/lib/ceph/make-mon", script),
    )


def _manager(lab: Lab, node: Node) -> tuple[File, ...]:
    return (File(f"var/lib/ceph/mgr/ceph-{node.name}/keyring", keyring(lab, f"mgr.{node.name}"), 0o600),)


def _osd(lab: Lab, number: int) -> tuple[File, ...]:
    """The monitors learn of it, and of its key, once there is a quorum of them: that may be later."""
    name, where = f"osd.{number}", f"/var/lib/ceph/osd/ceph-{number}"
    identity = uuid.uuid5(uuid.UUID(fsid(lab)), name)
    script = f"""\
test ! -e {where}/done || exit 0
set -e
rm -f {where}/block
ceph-osd --mkfs --no-mon-config --id {number} --osd-uuid {identity} --setuser ceph --setgroup ceph
ceph --name client.{DAEMON} osd new {identity} {number} -i {where}/secret.json
touch {where}/done
"""
    return (
        File(f"{where[1:]}/keyring", keyring(lab, name), 0o600),
        File(f"{where[1:]}/secret.json", f'{{"cephx_secret": "{key(lab, name)}"}}\n', 0o600),
        *_before_start(f"ceph-osd@{number}", f"/var/lib/ceph/make-osd-{number}", script),
    )


def _before_start(unit: str, path: str, script: str) -> tuple[File, File]:
    told = f"[Service]\nExecStartPre=/bin/sh {path}\n"
    return File(path[1:], script), File(f"etc/systemd/system/{unit}.service.d/make.conf", told)
