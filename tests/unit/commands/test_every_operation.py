"""What holds for every operation on VMs, nodes and the cluster; a new one that is in no table fails here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from pvc.cluster import domainxml, exports, paths
from pvc.cluster.codec import dumps
from pvc.cluster.exports import ExportedDisk, Manifest
from pvc.cluster.membership import Primary
from pvc.cluster.store import Create
from pvc.cluster.tasks import TaskSpec, begin_ops
from pvc.commands import registry
from pvc.commands.context import Caller, Context, LocalContext, invoke
from pvc.commands.registry import Operation, Role, convert, find
from pvc.errors import Conflict, Failed, Invalid, NotFound, NotPermitted, PVCError, Unavailable
from tests.unit.commands.storing import Storing, with_disks
from tests.unit.commands.test_network_sriov import split
from tests.unit.commands.world import OTHER, UUID, World, a_world, changed, with_vm, xml_of

OURS = ("vm", "node", "network", "storage", "task", "cluster", "why")

Make = Callable[[], World]

DAILY = {"vm": "web1", "snapshot": "daily"}

BMC = {"node": "n1", "address": "10.0.0.201", "user": "admin", "password": "secret1\n"}

MAC = "52:54:00:00:00:09"

NETWORK = {"vni": 103, "description": "shop", "kind": "managed"}
ROUTED = {**NETWORK, "ipnet": "10.3.0.0/24", "gateway": "10.3.0.1"}


def operations() -> list[Operation]:
    return [found for noun in OURS for found in registry.operations(noun).values()]


def migrated() -> World:
    world = with_vm("running")
    world.call("vm.migrate", vm="web1", target="n2")
    world.runs("web1", "n2")
    return world


def running() -> World:
    return with_vm("running")


def tagged() -> World:
    return with_vm(tag=["blue"])


def with_user_data() -> World:
    world = with_vm()
    world.call("vm.user-data-set", vm="web1", text="#cloud-config\n")
    return world


def flushed() -> World:
    world = a_world()
    world.call("node.flush", node="n1")
    return world


def dead_node() -> World:
    world = a_world()
    world.kill_node("n3")
    return world


def networked() -> World:
    """Networks 101 and 102; web1 is in 101."""
    world = a_world()
    for vni in (101, 102):
        world.call("network.add", vni=vni, description=f"net{vni}", kind="managed")
    world.call("vm.define", xml=xml_of(bridge="", vni=101), target="n1")
    return world


def routed() -> World:
    """Network 101 has a gateway, a domain and DHCP."""
    world = networked()
    world.call(
        "network.modify",
        network="101",
        ipnet="10.1.0.0/24",
        gateway="10.1.0.1",
        dhcp=True,
        domain="shop.example",
    )
    return world


def announced() -> World:
    """Network 101 has IPv6 addresses that VMs give themselves."""
    world = routed()
    world.call("network.modify", network="101", ipnet6="fd00:1::/64", gateway6="fd00:1::1")
    return world


def bridged() -> World:
    world = a_world()
    world.call("network.add", vni=7, description="vlan7", kind="bridged")
    return world


def filtered() -> World:
    """One rule for each direction, both called web."""
    world = routed()
    for direction in ("in", "out"):
        world.call("network.acl-add", network="101", direction=direction, description="web", port="80")
    return world


def reserved() -> World:
    """10.1.0.9 is reserved for the printer; web1 is in the network."""
    world = routed()
    world.call("network.dhcp-add", network="101", **PRINTER)
    return world


PRINTER: dict[str, Any] = {"address": "10.1.0.9", "hostname": "printer", "mac": "52:54:00:00:00:99"}
SCANNER: dict[str, Any] = {
    "network": "101",
    "address": "10.1.0.8",
    "hostname": "scanner",
    "mac": "52:54:00:00:00:98",
}
ACL = {"network": "101", "direction": "in", "description": "ssh", "rule": "tcp dport 22 drop"}
COMPOSED = {name: value for name, value in ACL.items() if name != "rule"}


def coordinators() -> World:
    """n1 is primary."""
    world = a_world()
    for name in ("n1", "n2"):
        world.edit(paths.node(name), role="coordinator")
    world.store.commit(Create(paths.PRIMARY, dumps(Primary("n1", 1, 0)), ephemeral=True))
    return world


def with_bmc() -> World:
    world = coordinators()
    world.call("node.bmc", node="n3", address="10.0.0.203", user="admin", password="secret1")
    return world


def with_task() -> World:
    """n1 is to do a task."""
    world = a_world()
    world.store.commit(*begin_ops(TaskSpec("0000000a", "thing.make", "making it", "n1", "tester", 0.0)))
    return world


def stored() -> World:
    """A pool vms with nothing in it that the store knows of."""
    made = Storing()
    made.add_pool()
    return made.world


def with_ceph() -> World:
    """n1 and n2 reach a Ceph; OSD 0 is on n1, OSD 1 on n2."""
    world = a_world()
    for number, name in enumerate(("n1", "n2")):
        world.edit(paths.node_status(name), ceph={"fsid": "f", "osds": [number], "problems": []})
    return world


def in_ceph() -> World:
    """A pool ssds, of which Ceph says how it is."""
    made = Storing()
    made.add_ceph_pool("ssds")
    return made.world


def with_volume() -> World:
    """web1 has the volume web1-vda of the pool vms."""
    world = stored()
    disk = domainxml.NewDisk("/srv/vms/web1-vda/disk.qcow2")
    world.call("vm.define", xml=domainxml.add_disk(xml_of(), disk, "vda"), target="n1")
    return world


def with_disk_in_ceph() -> World:
    """web1 is stopped, its disk is a volume of a pool in Ceph."""
    made = Storing()
    made.add_ceph_pool("fast")
    assert made.done("vm.create", name="web1", disk=["1G"])["state"] == "done"
    return made.world


def snapshotted() -> World:
    """web1 is stopped, its disk is volume golden of pool vms, and it has a snapshot daily."""
    made = with_disks("golden")
    assert made.done("vm.snapshot-create", vm="web1", snapshot="daily")["state"] == "done"
    return made.world


def anonymous(path: str) -> str:
    """A task is called something else each time."""
    return re.sub(r"(/tasks/)[0-9a-f]{8}", r"\1ID", path)


FEWER, ONLY_ONE, RISKY = "copies=2,mincopies=3", "copies=1,mincopies=1", "copies=3,mincopies=1"
QCOW2 = {"pool": "ssds", "volume": "web1", "size": "1G", "format": "qcow2"}
VOLUME = {"pool": "vms", "volume": "web1"}
SNAPSHOT = {**VOLUME, "snapshot": "s1"}
IMAGE = {**VOLUME, "size": 1024, "format": "raw"}
PIECE: dict[str, Any] = {"task": "0000000a", "offset": 0}
EXPORTED = exports.written(
    Manifest(
        *(exports.KIND, exports.VERSION, "web1", UUID, "daily", 1.5, "agent", xml_of()),
        (ExportedDisk("vda", "vms", "web1", 1024**2, "vda.rbddiff", 80, "ab"),),
    )
).decode()
SENT = {"name": "web2", "manifest": [EXPORTED]}

CHANGES: dict[str, tuple[Make, dict[str, Any]]] = {
    "cluster.init": (World, {"name": "test"}),
    "cluster.maintenance": (a_world, {"switch": "on"}),
    "cluster.set": (a_world, {"fence_policy": "off", "fence_grace": 5, "selector": "vms"}),
    "cluster.autoready": (a_world, {"switch": "on"}),
    "network.add": (a_world, NETWORK),
    "network.modify": (networked, {"network": "net102", "description": "shop", "mtu": 1400}),
    "network.remove": (networked, {"network": "102"}),
    "network.dhcp-add": (reserved, SCANNER),
    "network.dhcp-remove": (reserved, {"network": "net101", "mac": "52:54:00:00:00:99"}),
    "network.acl-add": (filtered, {**ACL, "order": 1}),
    "network.acl-remove": (filtered, {"network": "net101", "description": "web", "direction": "out"}),
    "network.sriov-vf-set": (split, {"node": "n1", "function": "eth2v0", "vlan": 7}),
    "node.bmc": (a_world, BMC),
    "node.flush": (running, {"node": "n1"}),
    "node.ready": (flushed, {"node": "n1"}),
    "node.fence": (dead_node, {"node": "n3", "confirm_off": True}),
    "node.verify": (with_bmc, {"node": "n3"}),
    "node.primary": (coordinators, {"node": "n2"}),
    "node.secondary": (coordinators, {"node": "n1"}),
    "node.remove": (dead_node, {"node": "n3"}),
    "storage.osd-add": (with_ceph, {"node": "n1", "device": "/dev/sdb"}),
    "storage.osd-replace": (with_ceph, {"osd": 1, "device": "detect:INTEL:800GB:0"}),
    "storage.osd-refresh": (with_ceph, {"osd": 1, "device": "/dev/sdb"}),
    "storage.osd-remove": (with_ceph, {"osd": 1}),
    "storage.osd-create-db-vg": (with_ceph, {"node": "n1", "device": "/dev/nvme0n1"}),
    "storage.osd-in": (with_ceph, {"osd": 0}),
    "storage.osd-out": (with_ceph, {"osd": 0}),
    "storage.osd-set": (with_ceph, {"flag": "noout"}),
    "storage.osd-unset": (with_ceph, {"flag": "noout"}),
    "storage.pool-add": (a_world, {"pool": "vms", "path": "/srv/vms"}),
    "storage.pool-remove": (stored, {"pool": "vms"}),
    "storage.pool-set-pgs": (in_ceph, {"pool": "ssds", "pgs": 64}),
    "storage.volume-add": (stored, {**VOLUME, "size": "10G"}),
    "storage.volume-remove": (stored, VOLUME),
    "storage.volume-resize": (stored, {**VOLUME, "size": "10G"}),
    "storage.volume-rename": (stored, {**VOLUME, "new": "web2"}),
    "storage.volume-clone": (stored, {**VOLUME, "new": "web2"}),
    "storage.benchmark-run": (stored, {"pool": "vms"}),
    "storage.volume-upload-begin": (stored, {**VOLUME, "size": 1024, "format": "raw"}),
    "storage.volume-download-begin": (stored, VOLUME),
    "storage.volume-snapshot-add": (stored, SNAPSHOT),
    "storage.volume-snapshot-remove": (stored, SNAPSHOT),
    "storage.volume-snapshot-rename": (stored, {**SNAPSHOT, "new": "s2"}),
    "storage.volume-snapshot-rollback": (stored, SNAPSHOT),
    "storage.volume-snapshot-protect": (stored, {**SNAPSHOT, "off": True}),
    "task.cancel": (with_task, {"task": "0000000a"}),
    "vm.define": (a_world, {"xml": xml_of(), "target": "n2"}),
    "vm.create": (stored, {"name": "web2", "memory": "512M", "disk": ["1G"], "network": ["bridge:br0"]}),
    "vm.set-definition": (with_vm, {"vm": "web1", "xml": xml_of(memory_mib=768)}),
    "vm.rename": (with_volume, {"vm": "web1", "new": "web2"}),
    "vm.remove": (with_volume, {"vm": "web1"}),
    "vm.flush-locks": (with_disk_in_ceph, {"vm": "web1"}),
    "vm.volume-add": (with_volume, {"vm": "web1", "volume": "vms/10G"}),
    "vm.volume-remove": (with_volume, {"vm": "web1", "volume": "vms/web1-vda"}),
    "vm.undefine": (with_vm, {"vm": "web1"}),
    "vm.start": (with_vm, {"vm": "web1"}),
    "vm.shutdown": (running, {"vm": "web1"}),
    "vm.stop": (running, {"vm": "web1"}),
    "vm.restart": (running, {"vm": "web1"}),
    "vm.disable": (with_vm, {"vm": "web1"}),
    "vm.move": (running, {"vm": "web1", "target": "n2"}),
    "vm.migrate": (running, {"vm": "web1"}),
    "vm.unmigrate": (migrated, {"vm": "web1"}),
    "vm.meta": (with_vm, {"vm": "web1", "selector": "vms", "limit": ["n1", "n2"]}),
    "vm.vcpu-set": (with_vm, {"vm": "web1", "vcpus": 4, "topology": "1,2,2"}),
    "vm.memory-set": (running, {"vm": "web1", "memory": "1G", "restart": True}),
    "vm.user-data-set": (with_vm, {"vm": "web1", "text": "#cloud-config\n"}),
    "vm.user-data-remove": (with_user_data, {"vm": "web1"}),
    "vm.network-add": (networked, {"vm": "web1", "network": "102", "mac": "52:54:00:00:00:07"}),
    "vm.network-remove": (networked, {"vm": "web1", "network": "net101"}),
    "vm.snapshot-download-begin": (snapshotted, DAILY),
    "vm.snapshot-export": (snapshotted, {**DAILY, "path": "/srv/backup", "parent": None}),
    "vm.snapshot-import": (stored, {"name": "web2", "path": "/srv/backup/web1-daily", "node": "n2"}),
    "vm.snapshot-upload-begin": (stored, SENT),
    "vm.snapshot-create": (snapshotted, {"vm": "web1", "snapshot": "weekly"}),
    "vm.snapshot-remove": (snapshotted, DAILY),
    "vm.snapshot-rollback": (snapshotted, DAILY),
    "vm.tag-add": (with_vm, {"vm": "web1", "tag": "blue", "protected": True}),
    "vm.tag-remove": (tagged, {"vm": "web1", "tag": "blue"}),
}
"""Each changing operation: where it works, and arguments with which it changes something."""


OF_A_NODE = {
    *("storage.volume-upload-piece", "storage.volume-download-end"),
    *("vm.snapshot-upload-piece", "vm.snapshot-download-end"),
}
"""They change something there and nothing in the store; tests/integration has them."""


def test_every_changing_operation_is_in_the_table() -> None:
    changing = {found.name for found in operations() if not found.is_local and not found.is_read}
    assert set(CHANGES) == changing - OF_A_NODE


@pytest.mark.parametrize("name", CHANGES)
def test_a_plan_changes_nothing_and_says_what_the_operation_then_does(name: str) -> None:
    make, given = CHANGES[name]
    world = make()
    before = world.documents()
    planned = world.plan(name, **given)
    assert world.documents() == before
    assert planned["changes"]
    assert planned["plan"], "a plan says in words what would happen"
    world.call(name, **given)
    touched = changed(before, world.documents())
    assert touched
    named = {anonymous(change.split()[1]) for change in planned["changes"]}
    touched = {anonymous(path) for path in touched}
    # What a new VM is called in the store is decided anew each time.
    if name != "vm.create":
        assert touched - named <= {paths.AUTHORITY}
    if name != "cluster.init":
        world.check_invariants()


@pytest.mark.parametrize("name", CHANGES)
def test_fields_of_a_newer_version_survive(name: str) -> None:
    make, given = CHANGES[name]
    world = make()
    documents = [paths.CLUSTER, paths.vm(UUID), paths.network(101), paths.network(102)]
    documents += [paths.network_access(101)]
    documents.append(paths.task("0000000a"))
    documents += [paths.task("0000000a"), paths.pool("vms")]
    documents += [paths.node(one) for one in ("n1", "n2", "n3")]
    present = [path for path in documents if world.store.get(path) is not None]
    for path in present:
        world.edit(path, of_the_future={"a": [1]})
    world.call(name, **given)
    left = [path for path in present if world.store.get(path) is not None]
    assert [world.plain(path)["of_the_future"] for path in left] == [{"a": [1]}] * len(left)


@pytest.mark.parametrize("name", CHANGES)
def test_a_reader_may_not_change_anything(name: str) -> None:
    make, given = CHANGES[name]
    world = make()
    context = Context(world.store, world.store, Caller("guest", Role.READ))
    before = world.documents()
    with pytest.raises(NotPermitted, match="guest has read"):
        invoke(find(name), context, given)
    assert world.documents() == before


BAD_NAME = "../../n1"
FILE = {"vm": "web1", "volume": "/srv/a"}
TWIN = domainxml.add_disk(xml_of("a", OTHER), domainxml.NewDisk("/srv/vms/web1-vda/disk.qcow2"), "vda")

BAD: list[tuple[str, Make, dict[str, Any], type[PVCError], str]] = [
    ("vm.snapshot-create", with_vm, {"vm": "web9"}, NotFound, "no VM named web9"),
    ("vm.snapshot-create", with_vm, {"vm": "web1", "snapshot": "a/b"}, Invalid, "is not a snapshot's name"),
    ("vm.snapshot-create", with_vm, {"vm": "web1", "snapshot": "-a"}, Invalid, "is not a snapshot's name"),
    ("vm.snapshot-create", with_vm, {"vm": "web1"}, Conflict, "web1 has no disk to keep"),
    ("vm.snapshot-create", snapshotted, DAILY, Conflict, "web1 has a snapshot daily already"),
    ("vm.snapshot-export", with_vm, {**DAILY, "path": "/x"}, NotFound, "web1 has no snapshot daily"),
    ("vm.snapshot-export", snapshotted, {**DAILY, "path": "x"}, Invalid, "is not an absolute path"),
    ("vm.snapshot-export", snapshotted, {**DAILY, "path": "/a/../b"}, Invalid, "is not an absolute path"),
    (
        "vm.snapshot-export",
        snapshotted,
        {**DAILY, "path": "/x", "parent": "sun"},
        NotFound,
        "no snapshot sun",
    ),
    (
        "vm.snapshot-export",
        snapshotted,
        {**DAILY, "path": "/x", "parent": "daily"},
        Conflict,
        "not older than",
    ),
    ("vm.snapshot-export", snapshotted, {**DAILY, "path": "/x", "node": "n9"}, NotFound, "no node named n9"),
    (
        "vm.snapshot-download",
        snapshotted,
        {**DAILY, "file": "x", "parent": "a b"},
        Invalid,
        "snapshot's name",
    ),
    ("vm.snapshot-download-begin", with_vm, DAILY, NotFound, "web1 has no snapshot daily"),
    ("vm.snapshot-download-begin", snapshotted, {**DAILY, "parent": "daily"}, Conflict, "not older than"),
    ("vm.snapshot-download-piece", with_task, PIECE, Conflict, "0000000a is another one: making it"),
    ("vm.snapshot-download-piece", with_task, {**PIECE, "offset": -1}, Invalid, "at least 0"),
    ("vm.snapshot-download-end", a_world, {"task": "0000000a", "offset": 0}, NotFound, "no task 0000000a"),
    ("vm.snapshot-import", a_world, {"name": "-a", "path": "/x"}, Invalid, "is not a VM's name"),
    ("vm.snapshot-import", a_world, {"name": "a", "path": "x"}, Invalid, "is not an absolute path"),
    ("vm.snapshot-import", with_vm, {"name": "web1", "path": "/x"}, Conflict, "a VM named web1 already"),
    ("vm.snapshot-import", a_world, {"name": "a", "path": "/x", "pool": "vms"}, NotFound, "no pool vms"),
    ("vm.snapshot-import", stored, {"name": "a", "path": "/x"}, Invalid, "which node has /x"),
    ("vm.snapshot-import", stored, {"name": "a", "path": "/x", "node": "n9"}, NotFound, "no node named n9"),
    ("vm.snapshot-upload", a_world, {"name": "a", "file": []}, Invalid, "no FILE"),
    (
        "vm.snapshot-upload",
        a_world,
        {"name": "a", "file": ["/dev/zero/x"]},
        Failed,
        "cannot read /dev/zero/x",
    ),
    ("vm.snapshot-upload", a_world, {"name": "-a", "file": ["x"]}, Invalid, "is not a VM's name"),
    ("vm.snapshot-upload-begin", with_vm, {**SENT, "name": "web1"}, Conflict, "a VM named web1 already"),
    ("vm.snapshot-upload-begin", a_world, SENT, NotFound, "no pool vms, in which disk vda was"),
    ("vm.snapshot-upload-begin", a_world, {**SENT, "pool": "fast"}, NotFound, "no pool fast"),
    ("vm.snapshot-upload-begin", stored, {**SENT, "manifest": []}, Invalid, "between 1 and"),
    ("vm.snapshot-upload-begin", stored, {**SENT, "manifest": ["\ud800"]}, Invalid, "manifest 1 is no mani"),
    ("vm.snapshot-upload-begin", stored, {**SENT, "manifest": [EXPORTED] * 2}, Invalid, "web1 is whole"),
    ("vm.snapshot-upload-piece", with_task, PIECE, Conflict, "0000000a is another one: making it"),
    ("vm.snapshot-list", with_vm, {"vm": "web9"}, NotFound, "no VM named web9"),
    ("vm.snapshot-remove", with_vm, DAILY, NotFound, "web1 has no snapshot daily"),
    ("vm.snapshot-rollback", with_vm, DAILY, NotFound, "web1 has no snapshot daily"),
    ("vm.undefine", snapshotted, {"vm": "web1"}, Conflict, "web1 has 1 snapshots: daily"),
    ("cluster.init", World, {}, Invalid, "name is missing"),
    ("cluster.init", World, {"name": "a b"}, Invalid, "is not a name"),
    ("cluster.init", a_world, {"name": "other"}, Conflict, "this is the cluster test already"),
    ("cluster.status", a_world, {"name": "x"}, Invalid, "no parameter name"),
    ("cluster.status", World, {}, Unavailable, "not initialised"),
    ("cluster.maintenance", a_world, {"switch": "maybe"}, Invalid, "cannot be 'maybe'"),
    ("cluster.maintenance", World, {"switch": "on"}, Unavailable, "not initialised"),
    ("cluster.info", World, {}, Unavailable, "not initialised"),
    ("cluster.set", World, {"fence_grace": 1}, Unavailable, "not initialised"),
    ("cluster.set", a_world, {}, Invalid, "needs something to change"),
    ("cluster.set", a_world, {"fence_grace": 0}, Invalid, "at least 1"),
    ("cluster.set", a_world, {"upstream_address": "n1"}, Invalid, "address with the length of its network"),
    ("cluster.set", a_world, {"upstream_address": "10.0.0.256/24"}, Invalid, "is no address"),
    ("cluster.set", a_world, {"cluster_address": "10.0.0.255/24"}, Invalid, "the network 10.0.0.0/24 itself"),
    ("cluster.set", a_world, {"dns_domain": "a..b"}, Invalid, "no name of the DNS"),
    ("cluster.set", a_world, {"dns_domain": "A"}, Invalid, "is not a domain in lower case"),
    ("cluster.set", a_world, {"dns_domain": "10.in-addr.arpa"}, Invalid, "for the names of addresses"),
    ("cluster.set", a_world, {"router": ["10.0.0.254"]}, Invalid, "AS number like"),
    ("cluster.set", a_world, {"router": ["10.0.0.256@1"]}, Invalid, "is no router"),
    ("cluster.set", a_world, {"router": ["10.0.0.254@0"]}, Invalid, "no AS number between"),
    ("cluster.set", a_world, {"router": ["127.0.0.1@1"]}, Invalid, "could speak with it"),
    ("cluster.set", a_world, {"router": ["10.0.0.1@1"]}, Invalid, "the address of n"),
    ("cluster.set", a_world, {"router": ["10.0.0.9@1", "10.0.0.9@2"]}, Invalid, "named twice"),
    ("cluster.set", a_world, {"as_number": 0}, Invalid, "at least 1"),
    ("cluster.set", a_world, {"dns_secondary": ["10.0.0"]}, Invalid, "no name server"),
    ("cluster.set", a_world, {"dns_secondary": ["127.0.0.1"]}, Invalid, "could not reach it"),
    ("cluster.set", a_world, {"dns_secondary": ["none", "10.0.0.9"]}, Invalid, "no name server"),
    ("cluster.set", a_world, {"dns_transfer": ["10.0.0.1/24"]}, Invalid, "has host bits set"),
    ("cluster.set", a_world, {"dns_transfer": ["10.0.0.0/33"]}, Invalid, "cannot be copied from there"),
    ("cluster.set", a_world, {"fence_policy": "explode"}, Invalid, "cannot be 'explode'"),
    ("cluster.set", a_world, {"selector": "none"}, Invalid, "cannot be 'none'"),
    ("cluster.autoready", a_world, {"switch": "maybe"}, Invalid, "cannot be 'maybe'"),
    ("cluster.autoready", World, {"switch": "on"}, Unavailable, "not initialised"),
    ("network.add", a_world, {**NETWORK, "vni": 0}, Invalid, "at least 1"),
    ("network.add", a_world, {**NETWORK, "vni": 2**24}, Invalid, "at most"),
    ("network.add", a_world, {**NETWORK, "vni": 4095, "kind": "bridged"}, Invalid, "is no VLAN"),
    ("network.add", a_world, {**NETWORK, "kind": "magic"}, Invalid, "cannot be 'magic'"),
    ("network.add", a_world, {**NETWORK, "description": "7"}, Invalid, "not only digits"),
    ("network.add", a_world, {**NETWORK, "mtu": 500}, Invalid, "below 576"),
    ("network.add", a_world, {**NETWORK, "mtu": 8951}, Invalid, "on every node: 8950"),
    ("network.add", a_world, {**ROUTED, "kind": "bridged"}, Invalid, "103 is bridged"),
    ("network.add", a_world, {**ROUTED, "gateway": "10.4.0.1"}, Invalid, "outside its network"),
    ("network.add", a_world, {**ROUTED, "gateway": "gw"}, Invalid, "is not an address"),
    ("network.add", a_world, {**NETWORK, "ipnet": "10.0.0.0/24"}, Invalid, "an address of n"),
    ("network.add", a_world, {**NETWORK, "ipnet": "10.0.0.0/8"}, Invalid, "overlaps 10.0.0.1/32"),
    ("network.add", a_world, {**NETWORK, "gateway": "10.3.0.1"}, Invalid, "no IPv4 network they"),
    ("network.add", a_world, {**NETWORK, "dhcp": True}, Invalid, "no IPv4 network they"),
    ("network.add", a_world, {**NETWORK, "dhcp6": True}, Invalid, "no IPv6 network they"),
    ("network.add", a_world, {**ROUTED, "gateway": "", "dhcp": True}, Invalid, "DHCP and no gateway"),
    ("network.add", a_world, {**ROUTED, "dhcp_end": ""}, Invalid, "has a start and an end"),
    ("network.add", a_world, {**ROUTED, "dhcp_start": "10.3.1.1"}, Invalid, "start of the DHCP range"),
    (
        "network.add",
        a_world,
        {**ROUTED, "dhcp": False, "dhcp_start": "10.3.0.9"},
        Invalid,
        "--no-dhcp goes with",
    ),
    ("network.add", a_world, {**NETWORK, "ipnet6": "fd00::/48"}, Invalid, "is not a /64"),
    ("network.add", a_world, {**NETWORK, "domain": "a b"}, Invalid, "no name of the DNS"),
    ("network.add", a_world, {**NETWORK, "dns_server": ["9.9.9"]}, Invalid, "'9.9.9', the DNS server"),
    ("network.add", routed, {**NETWORK, "domain": "Shop.example"}, Invalid, "the domain of network 101"),
    ("network.add", routed, {**NETWORK, "ipnet": "10.1.0.0/25"}, Invalid, "of network 101"),
    ("network.add", networked, {**NETWORK, "vni": 101}, Conflict, "a network 101 already"),
    ("network.add", networked, {**NETWORK, "description": "net102"}, Conflict, "102 is described as"),
    ("network.add", World, NETWORK, Unavailable, "not initialised"),
    ("network.modify", networked, {"network": "101"}, Invalid, "needs something to change"),
    ("network.modify", networked, {"network": "101", "mtu": 9000}, Invalid, "on every node: 8950"),
    ("network.modify", networked, {"network": "101", "description": "net102"}, Conflict, "102 is described"),
    ("network.modify", routed, {"network": "101", "ipnet": ""}, Invalid, "no IPv4 network they"),
    ("network.modify", routed, {"network": "101", "gateway": ""}, Invalid, "DHCP and no gateway"),
    ("network.modify", routed, {"network": "101", "gateway": "10.1.0.200"}, Invalid, "inside its DHCP range"),
    (
        "network.modify",
        routed,
        {"network": "102", "domain": "shop.example"},
        Invalid,
        "the domain of network",
    ),
    (
        "cluster.set",
        routed,
        {"upstream_address": "10.1.0.250/16"},
        Invalid,
        "is in 10.1.0.0/24 of network 101",
    ),
    ("network.modify", networked, {"network": "103", "mtu": 1500}, NotFound, "no network 103"),
    ("network.remove", networked, {"network": "net101"}, Conflict, "network 101 is used by web1"),
    ("network.remove", networked, {"network": "net103"}, NotFound, "no network described as net103"),
    ("network.add", a_world, {**NETWORK, "ntp_server": ["time"]}, Invalid, "'time', the NTP server"),
    ("network.add", a_world, {**NETWORK, "ntp_server": ["::1"]}, Invalid, "no server that others"),
    ("network.dhcp-add", networked, {**SCANNER, "network": "103"}, NotFound, "no network 103"),
    ("network.dhcp-add", bridged, {**SCANNER, "network": "7"}, Conflict, "network 7 is bridged"),
    ("network.dhcp-add", networked, SCANNER, Invalid, "no IPv4 network"),
    ("network.dhcp-add", routed, {**SCANNER, "address": "printer"}, Invalid, "'printer' is not an address"),
    ("network.dhcp-add", routed, {**SCANNER, "address": "10.2.0.8"}, Invalid, "outside 10.1.0.0/24"),
    ("network.dhcp-add", routed, {**SCANNER, "address": "10.1.0.1"}, Invalid, "the gateway of network 101"),
    ("network.dhcp-add", routed, {**SCANNER, "address": "10.1.0.0"}, Invalid, "no host's address"),
    ("network.dhcp-add", routed, {**SCANNER, "address": "10.1.0.255"}, Invalid, "no host's address"),
    ("network.dhcp-add", routed, {**SCANNER, "address": "fd00:1::8"}, Invalid, "no IPv6 network"),
    ("network.dhcp-add", announced, {**SCANNER, "address": "fd00:1::8"}, Conflict, "no IPv6 addresses by"),
    ("network.dhcp-add", routed, {**SCANNER, "hostname": "a.b"}, Invalid, "not the name of a host"),
    ("network.dhcp-add", routed, {**SCANNER, "hostname": ""}, Invalid, "not the name of a host"),
    ("network.dhcp-add", routed, {**SCANNER, "hostname": "x" * 64}, Invalid, "not the name of a host"),
    ("network.dhcp-add", routed, {**SCANNER, "hostname": "Gateway"}, Invalid, "the network's own"),
    ("network.dhcp-add", routed, {**SCANNER, "mac": "52:54:00:00:00"}, Invalid, "is not a MAC address"),
    ("network.dhcp-add", routed, {**SCANNER, "mac": "53:54:00:00:00:98"}, Invalid, "no interface's own"),
    ("network.dhcp-add", routed, {**SCANNER, "mac": "00:00:00:00:00:00"}, Invalid, "no interface's own"),
    ("network.dhcp-add", routed, {**SCANNER, "mac": "02:00:5E:00:01:01"}, Invalid, "of every gateway"),
    ("network.dhcp-add", routed, {**SCANNER, "hostname": "WEB1"}, Conflict, "the VM web1 in network 101"),
    ("network.dhcp-add", reserved, {**SCANNER, "address": "10.1.0.9"}, Conflict, "10.1.0.9 is reserved for"),
    ("network.dhcp-add", reserved, {**SCANNER, "hostname": "Printer"}, Conflict, "is called printer already"),
    ("network.dhcp-add", reserved, {**SCANNER, "mac": PRINTER["mac"]}, Conflict, "10.1.0.9 is reserved for"),
    (
        "network.dhcp-remove",
        routed,
        {"network": "101", "mac": PRINTER["mac"]},
        NotFound,
        "nothing is reserved",
    ),
    ("network.dhcp-remove", routed, {"network": "101", "mac": "web1"}, Invalid, "is not a MAC address"),
    ("network.dhcp-list", bridged, {"network": "7"}, Conflict, "network 7 is bridged"),
    ("network.acl-add", networked, {**ACL, "network": "103"}, NotFound, "no network 103"),
    ("network.acl-add", bridged, {**ACL, "network": "7"}, Conflict, "network 7 is bridged"),
    ("network.acl-add", routed, COMPOSED, Invalid, "needs --rule"),
    ("network.acl-add", routed, {**ACL, "port": "22"}, Invalid, "--rule says all of it"),
    ("network.acl-add", routed, {**ACL, "direction": "up"}, Invalid, "direction cannot be 'up'"),
    ("network.acl-add", routed, {**ACL, "description": "a/b"}, Invalid, "is not a description"),
    ("network.acl-add", routed, {**ACL, "rule": "drop; accept"}, Invalid, "the character ';'"),
    ("network.acl-add", routed, {**ACL, "rule": "fancy drop"}, Invalid, "unexpected string, at fancy"),
    ("network.acl-add", networked, {**ACL, "rule": "fancy drop"}, Invalid, "unexpected string, at fancy"),
    ("network.acl-add", filtered, {**ACL, "order": 0}, Invalid, "at least 1"),
    ("network.acl-add", filtered, {**ACL, "order": 3}, Invalid, "the order can be 1 to 2"),
    ("network.acl-add", filtered, {**ACL, "description": "web"}, Conflict, "has a rule web for in"),
    ("network.acl-add", routed, {**COMPOSED, "source": "10.1.0.9/24"}, Invalid, "in the network 10.1.0.0/24"),
    ("network.acl-add", routed, {**COMPOSED, "source": "web"}, Invalid, "neither an address nor"),
    ("network.acl-add", routed, {**COMPOSED, "port": "80-70"}, Invalid, "end before they begin"),
    ("network.acl-add", routed, {**COMPOSED, "port": "70000"}, Invalid, "'70000' is not a port"),
    ("network.acl-add", routed, {**COMPOSED, "port": "1", "proto": "icmp"}, Invalid, "icmp has no ports"),
    ("network.acl-add", routed, {**COMPOSED, "proto": "tcpp"}, Invalid, "proto cannot be 'tcpp'"),
    ("network.acl-remove", routed, {"network": "101", "description": "web"}, NotFound, "has no rule web"),
    ("network.acl-remove", filtered, {"network": "101", "description": "web"}, Conflict, "one for out"),
    ("network.acl-list", networked, {"network": "103"}, NotFound, "no network 103"),
    ("network.info", networked, {"network": "a/b"}, Invalid, "is not a network's number or description"),
    ("network.list", networked, {"limit": "("}, Invalid, "is not a regular expression"),
    ("storage.status", a_world, {}, Conflict, "this cluster has no Ceph"),
    ("storage.util", World, {}, Conflict, "this cluster has no Ceph"),
    ("storage.osd-list", a_world, {"node": "N 1"}, Invalid, "is not a node's name"),
    ("storage.osd-info", with_ceph, {"osd": -1}, Invalid, "at least 0"),
    ("storage.osd-info", a_world, {"osd": 1}, Conflict, "this cluster has no Ceph"),
    ("storage.osd-add", a_world, {"node": "n1", "device": "/dev/sdb"}, Unavailable, "n1 reaches no Ceph"),
    ("storage.osd-add", with_ceph, {"node": "n9", "device": "/dev/sdb"}, NotFound, "no node named n9"),
    ("storage.osd-add", with_ceph, {"node": "n1", "device": "sdb"}, Invalid, "a path like /dev/sdb"),
    ("storage.osd-add", with_ceph, {"node": "n1", "device": "/dev/a b"}, Invalid, "a path like /dev/sdb"),
    ("storage.osd-add", with_ceph, {"node": "n1", "device": "/dev/../etc/x"}, Invalid, "a path like /dev"),
    ("storage.osd-add", with_ceph, {"node": "n1", "device": "detect:x:0"}, Invalid, "detect:NAME:SIZE:N"),
    ("storage.osd-add", with_ceph, {"node": "n1", "device": "/dev/sdb", "split": 0}, Invalid, "at least 1"),
    ("storage.osd-add", with_ceph, {"node": "n1", "device": "/dev/sdb", "weight": -1}, Invalid, "at least"),
    ("storage.osd-add", with_ceph, {"node": "n1", "device": "/dev/sdb", "db_size": "4X"}, Invalid, "a size"),
    (
        "storage.osd-add",
        with_ceph,
        {"node": "n1", "device": "/dev/sdb", "split": 2, "db_size": "4G"},
        Invalid,
        "no databases elsewhere",
    ),
    ("storage.osd-replace", with_ceph, {"osd": 9, "device": "/dev/sdb"}, NotFound, "no node has OSD 9"),
    ("storage.osd-replace", with_ceph, {"osd": 1, "device": "/etc/x"}, Invalid, "a path like /dev/sdb"),
    ("storage.osd-refresh", with_ceph, {"osd": 9, "device": "/dev/sdb"}, NotFound, "no node has OSD 9"),
    ("storage.osd-remove", with_ceph, {"osd": -1}, Invalid, "at least 0"),
    ("storage.osd-remove", with_ceph, {"osd": 1, "force": "False?"}, Invalid, "true or false"),
    ("storage.osd-remove", a_world, {"osd": 1}, Conflict, "this cluster has no Ceph"),
    ("storage.osd-create-db-vg", a_world, {"node": "n1", "device": "/dev/sdb"}, Unavailable, "no Ceph"),
    ("storage.osd-in", with_ceph, {"osd": "one"}, Invalid, "whole number"),
    ("storage.osd-out", a_world, {"osd": 1}, Conflict, "this cluster has no Ceph"),
    ("storage.osd-set", with_ceph, {"flag": "full"}, Invalid, "flag cannot be 'full'"),
    ("storage.osd-unset", a_world, {"flag": "noout"}, Conflict, "this cluster has no Ceph"),
    ("storage.pool-add", a_world, {"pool": "a/b", "path": "/srv/vms"}, Invalid, "is not a pool's name"),
    ("storage.pool-add", a_world, {"pool": "vms", "path": "srv/vms"}, Invalid, "is not an absolute path"),
    ("storage.pool-add", a_world, {"pool": "vms", "path": "/srv/../etc"}, Invalid, "not an absolute path"),
    ("storage.pool-add", a_world, {"pool": "vms", "path": "/x", "driver": "zfs"}, Invalid, "cannot be 'zfs'"),
    ("storage.pool-add", a_world, {"pool": "vms", "driver": "dir"}, Invalid, "needs a directory"),
    ("storage.pool-add", a_world, {"pool": "vms", "path": "/x", "tier": "ssd"}, Invalid, "has no tier"),
    ("storage.pool-add", a_world, {"pool": "vms", "path": "/x", "pgs": 8}, Invalid, "has no pgs"),
    ("storage.pool-add", a_world, {"pool": "vms", "node": "n1"}, Invalid, "a pool in Ceph has no node"),
    ("storage.pool-add", a_world, {"pool": "vms", "pgs": 0}, Invalid, "at least 1"),
    ("storage.pool-add", a_world, {"pool": "vms", "pgs": 100}, Invalid, "no power of two"),
    ("storage.pool-add", a_world, {"pool": "vms", "tier": "tape"}, Invalid, "cannot be 'tape'"),
    ("storage.pool-add", a_world, {"pool": "vms", "replcfg": "3"}, Invalid, "like copies=3,mincopies=2"),
    (
        "storage.pool-add",
        a_world,
        {"pool": "vms", "replcfg": FEWER},
        Invalid,
        "3 copies cannot be required of 2",
    ),
    (
        "storage.pool-add",
        a_world,
        {"pool": "vms", "replcfg": ONLY_ONE},
        Conflict,
        "the first disk that fails",
    ),
    ("storage.pool-add", a_world, {"pool": "vms", "replcfg": RISKY}, Conflict, "takes data with it"),
    ("storage.pool-set-pgs", a_world, {"pool": "vms", "pgs": 8}, NotFound, "no pool vms"),
    ("storage.pool-set-pgs", stored, {"pool": "vms", "pgs": 8}, Conflict, "has no placement groups"),
    ("storage.pool-set-pgs", in_ceph, {"pool": "ssds", "pgs": 9}, Invalid, "no power of two"),
    ("storage.volume-add", in_ceph, QCOW2, Invalid, "volumes in Ceph are raw, not qcow2"),
    ("storage.pool-add", a_world, {"pool": "vms", "path": "/x", "node": "n9"}, NotFound, "no node named n9"),
    ("storage.pool-add", stored, {"pool": "vms", "path": "/x"}, Conflict, "there is a pool vms already"),
    ("storage.pool-add", World, {"pool": "vms", "path": "/x"}, Unavailable, "not initialised"),
    ("storage.pool-remove", a_world, {"pool": "vms"}, NotFound, "no pool vms"),
    ("storage.pool-info", a_world, {"pool": "-p"}, Invalid, "is not a pool's name"),
    ("storage.pool-list", a_world, {"limit": "("}, Invalid, "is not a regular expression"),
    ("storage.volume-add", a_world, {**VOLUME, "size": "1G"}, NotFound, "no pool vms"),
    ("storage.volume-add", stored, {**VOLUME, "size": "10X"}, Invalid, "is not a size like 10G"),
    ("storage.volume-add", stored, {**VOLUME, "size": "-10G"}, Invalid, "is not a size like 10G"),
    ("storage.volume-add", stored, {**VOLUME, "size": "0"}, Invalid, "is not between 512 B and 1 PiB"),
    ("storage.volume-add", stored, {**VOLUME, "size": "1000"}, Invalid, "no multiple of 512"),
    ("storage.volume-add", stored, {**VOLUME, "size": "1G", "format": "vmdk"}, Invalid, "cannot be 'vmdk'"),
    ("storage.volume-add", stored, {**VOLUME, "volume": "a@b", "size": "1G"}, Invalid, "a volume's name"),
    ("storage.volume-remove", stored, {**VOLUME, "volume": "-web1"}, Invalid, "is not a volume's name"),
    ("storage.volume-resize", stored, {**VOLUME, "size": "much"}, Invalid, "is not a size like 10G"),
    ("storage.volume-rename", stored, {**VOLUME, "new": "../web1"}, Invalid, "is not a volume's name"),
    ("storage.volume-clone", stored, {**VOLUME, "new": ".web1"}, Invalid, "is not a volume's name"),
    ("storage.volume-info", a_world, VOLUME, NotFound, "no pool vms"),
    ("storage.volume-list", a_world, {"limit": "("}, Invalid, "is not a regular expression"),
    ("storage.volume-list", a_world, {"pool": "vms"}, NotFound, "no pool vms"),
    ("storage.benchmark-run", a_world, {"pool": "vms"}, NotFound, "no pool vms"),
    ("storage.benchmark-run", stored, {"pool": "vms", "size": "1M"}, Conflict, "say nothing of a pool"),
    ("storage.benchmark-run", stored, {"pool": "vms", "seconds": 0}, Invalid, "at least 1"),
    ("storage.benchmark-info", a_world, {"benchmark": "0000000a"}, NotFound, "no benchmark 0000000a"),
    ("storage.benchmark-list", a_world, {"pool": "a/b"}, Invalid, "is not a pool's name"),
    ("storage.volume-upload", stored, {**VOLUME, "file": "x", "format": "iso"}, Invalid, "cannot be 'iso'"),
    ("storage.volume-download", stored, {**VOLUME, "file": "x", "format": "vdi"}, Invalid, "cannot be 'vdi'"),
    ("storage.volume-upload-begin", stored, {**IMAGE, "size": 1000}, Invalid, "no multiple of 512"),
    ("storage.volume-upload-begin", stored, {**IMAGE, "size": 0}, Invalid, "at least 1"),
    ("storage.volume-upload-begin", a_world, IMAGE, NotFound, "no pool vms"),
    ("storage.volume-upload-piece", with_task, {**PIECE, "offset": -1}, Invalid, "at least 0"),
    ("storage.volume-upload-piece", with_task, {**PIECE, "piece": "text"}, Invalid, "must be bytes"),
    ("storage.volume-upload-piece", with_task, {**PIECE, "sha256": "x"}, Invalid, "is not a sha256"),
    ("storage.volume-upload-piece", with_task, PIECE, Conflict, "0000000a is another one: making it"),
    ("storage.volume-download-begin", a_world, VOLUME, NotFound, "no pool vms"),
    ("storage.volume-download-map", with_task, {"task": "0000000a"}, Conflict, "is another one"),
    ("storage.volume-download-piece", with_task, {**PIECE, "length": 0}, Invalid, "at least 1"),
    ("storage.volume-download-end", a_world, {"task": "0000000a"}, NotFound, "no task 0000000a"),
    ("storage.volume-snapshot-add", stored, {**SNAPSHOT, "snapshot": "a b"}, Invalid, "a snapshot's name"),
    ("storage.volume-snapshot-remove", a_world, SNAPSHOT, NotFound, "no pool vms"),
    ("storage.volume-snapshot-rename", stored, {**SNAPSHOT, "new": "a@b"}, Invalid, "a snapshot's name"),
    ("storage.volume-snapshot-rollback", a_world, SNAPSHOT, NotFound, "no pool vms"),
    ("storage.volume-snapshot-protect", stored, {**SNAPSHOT, "off": "x"}, Invalid, "true or false"),
    ("storage.volume-snapshot-list", a_world, VOLUME, NotFound, "no pool vms"),
    ("task.info", a_world, {"task": "0000000a"}, NotFound, "no task 0000000a"),
    ("task.info", a_world, {"task": "../nodes"}, Invalid, "is not a task's identity"),
    ("task.list", a_world, {"limit": "("}, Invalid, "is not a regular expression"),
    ("task.list", a_world, {"state": "tired"}, Invalid, "cannot be 'tired'"),
    ("task.wait", a_world, {"task": "1"}, Invalid, "is not a task's identity"),
    ("task.wait", a_world, {"task": "0000000a", "timeout": 0}, Invalid, "at least 0.1"),
    ("task.cancel", a_world, {"task": "0000000a"}, NotFound, "no task 0000000a"),
    ("cluster.task", a_world, {"task": "x"}, Invalid, "is not a task's identity"),
    ("node.fence", a_world, {"node": "n9"}, NotFound, "no node named n9"),
    ("node.fence", a_world, {"node": "n1"}, Conflict, "has no BMC"),
    ("node.fence", a_world, {"node": "n1", "confirm_off": True}, Conflict, "its daemon has a session"),
    ("node.fence", coordinators, {"node": "n1"}, Conflict, "is the primary"),
    ("node.fences", a_world, {"limit": "("}, Invalid, "is not a regular expression"),
    ("node.readiness", a_world, {"node": "n9"}, NotFound, "no node named n9"),
    ("node.verify", a_world, {"node": BAD_NAME}, Invalid, "is not a node's name"),
    ("node.verify", coordinators, {"node": "n9"}, NotFound, "no node named n9"),
    ("node.verify", coordinators, {"node": "n3"}, Conflict, "n3 has no BMC"),
    ("node.verify", a_world, {}, Conflict, "the daemon of no coordinator runs"),
    ("node.primary", coordinators, {"node": "n3"}, Conflict, "n3 is no coordinator"),
    ("node.primary", dead_node, {"node": "n3"}, Conflict, "n3 is no coordinator"),
    ("node.secondary", coordinators, {"node": "n3"}, Conflict, "n3 is no coordinator"),
    ("node.info", a_world, {"node": BAD_NAME}, Invalid, "is not a node's name"),
    ("node.info", a_world, {"node": "n9"}, NotFound, "no node named n9"),
    ("node.list", a_world, {"limit": "("}, Invalid, "not a regular expression"),
    ("node.list", a_world, {"daemon_state": "tired"}, Invalid, "cannot be 'tired'"),
    ("node.bmc", a_world, {**BMC, "node": "n9"}, NotFound, "no node named n9"),
    ("node.bmc", a_world, {"node": "n1"}, Invalid, "needs --address"),
    ("node.bmc", a_world, {**BMC, "password": "\n"}, Invalid, "needs --password-file"),
    ("node.bmc", a_world, {**BMC, "password": "a\nb"}, Invalid, "must be one line"),
    ("node.bmc", a_world, {**BMC, "address": "-H x"}, Invalid, "is not HOST or HOST:PORT"),
    ("node.bmc", a_world, {**BMC, "user": "a b"}, Invalid, "is not a user's name"),
    ("node.bmc", a_world, {**BMC, "driver": "smoke"}, Invalid, "cannot be 'smoke'"),
    ("node.bmc", a_world, {**BMC, "certificate": "any"}, Invalid, "only redfish has a certificate"),
    ("node.bmc", a_world, {**BMC, "remove": True}, Invalid, "goes with no other option"),
    ("node.bmc", a_world, {"node": "n1", "remove": True}, Conflict, "n1 has no BMC"),
    ("node.bmc", with_bmc, {**BMC, "address": "10.0.0.203"}, Conflict, "10.0.0.203 is the BMC of n3"),
    ("node.flush", a_world, {"node": "N1"}, Invalid, "is not a node's name"),
    ("node.ready", a_world, {"node": "n9"}, NotFound, "no node named n9"),
    ("node.remove", a_world, {"node": "n9"}, NotFound, "no node named n9"),
    ("node.remove", a_world, {"node": "n1"}, Conflict, "daemon of n1 is in state run"),
    ("node.log-text", a_world, {"node": "n1", "lines": -1}, Invalid, "at least 0"),
    ("node.log-text", a_world, {"node": "n1", "cursor": "n1:x"}, Invalid, "cursor of an earlier answer"),
    ("node.is-primary", a_world, {"node": BAD_NAME}, Invalid, "is not a node's name"),
    ("node.log", a_world, {"lines": "many"}, Invalid, "must be a whole number"),
    ("node.run", a_world, {"fast": True}, Invalid, "no parameter fast"),
    ("vm.define", a_world, {}, Invalid, "xml is missing"),
    ("vm.define", a_world, {"xml": "<domain>"}, Invalid, "not well-formed"),
    ("vm.define", a_world, {"xml": xml_of(), "target": "n9"}, NotFound, "no node named n9"),
    ("vm.define", a_world, {"xml": xml_of(), "limit": ["n9"]}, NotFound, "no node named n9"),
    ("vm.define", a_world, {"xml": xml_of(), "target": "n1", "limit": ["n2"]}, Conflict, "limited to n2"),
    ("vm.define", a_world, {"xml": xml_of(), "selector": "luck"}, Invalid, "cannot be 'luck'"),
    ("vm.define", a_world, {"xml": xml_of(), "max_downtime": 0}, Invalid, "at least 10"),
    ("vm.define", a_world, {"xml": xml_of(), "tag": ["a b"]}, Invalid, "is not a tag"),
    ("vm.define", with_vm, {"xml": xml_of("web2")}, Conflict, "UUID .* already, web1"),
    (
        "vm.define",
        with_vm,
        {"xml": xml_of("web1", UUID.replace("6", "7"))},
        Conflict,
        "VM named web1 already",
    ),
    ("vm.define", World, {"xml": xml_of()}, Unavailable, "not initialised"),
    ("vm.create", a_world, {"name": "-x"}, Invalid, "is not a VM's name"),
    ("vm.create", a_world, {"name": "a", "memory": "much"}, Invalid, "an amount of memory"),
    ("vm.create", a_world, {"name": "a", "memory": "0"}, Invalid, "is not between 1 MiB"),
    ("vm.create", a_world, {"name": "a", "vcpus": 0}, Invalid, "at least 1"),
    ("vm.create", a_world, {"name": "a", "vcpus": "two"}, Invalid, "must be a whole number"),
    ("vm.create", a_world, {"name": "a", "disk": ["web.qcow2"]}, Invalid, "or an absolute path"),
    ("vm.create", a_world, {"name": "a", "disk": ["10X"]}, Invalid, "or an absolute path"),
    ("vm.create", a_world, {"name": "a", "disk": ["-1G"]}, Invalid, "or an absolute path"),
    ("vm.create", a_world, {"name": "a", "disk": ["../1G"]}, Invalid, "or an absolute path"),
    ("vm.create", a_world, {"name": "a", "disk": ["2000T"]}, Invalid, "not between 512 B and 1 PiB"),
    ("vm.create", a_world, {"name": "a", "disk": ["1G"]}, Conflict, "there is no pool for the disk"),
    ("vm.create", stored, {"name": "a", "disk": ["fast/1G"]}, NotFound, "no pool fast"),
    ("vm.create", with_volume, {"name": "a", "disk": ["vms/web1-vda"]}, Conflict, "is a disk of web1"),
    ("vm.create", stored, {"name": "a", "disk": ["vms/a", "vms/a"]}, Conflict, "cannot be two disks"),
    ("vm.define", with_volume, {"xml": TWIN}, Conflict, "volume vms/web1-vda is a disk of web1"),
    ("vm.remove", running, {"vm": "web1"}, Conflict, "needs it stopped"),
    ("vm.flush-locks", running, {"vm": "web1"}, Conflict, "flush-locks needs it stopped"),
    ("vm.flush-locks", a_world, {"vm": "web9"}, NotFound, "no VM named web9"),
    ("vm.remove", a_world, {"vm": "web9"}, NotFound, "no VM named web9"),
    ("vm.volume-get", a_world, {"vm": "web9"}, NotFound, "no VM named web9"),
    ("vm.volume-add", with_volume, {"vm": "web1", "volume": "10X"}, Invalid, "or an absolute path"),
    (
        "vm.volume-add",
        with_volume,
        {**FILE, "device": "vda"},
        Conflict,
        "has a disk",
    ),
    (
        "vm.volume-add",
        with_volume,
        {**FILE, "device": "sdb"},
        Conflict,
        "not called",
    ),
    ("vm.volume-add", with_volume, {**FILE, "device": "x"}, Invalid, "like vdb"),
    ("vm.volume-remove", with_volume, {"vm": "web1", "volume": "vdb"}, NotFound, "web1 has no disk vdb"),
    ("vm.volume-remove", with_volume, {"vm": "web1", "volume": "a/b/c"}, Invalid, "POOL/VOLUME"),
    ("storage.volume-remove", with_volume, {"pool": "vms", "volume": "web1-vda"}, Conflict, "a disk of web1"),
    ("vm.create", a_world, {"name": "a", "network": ["br0"]}, NotFound, "no network described as br0"),
    ("vm.create", networked, {"name": "a", "network": ["103"]}, NotFound, "no network 103"),
    ("vm.create", a_world, {"name": "a", "network": ["nat:br0"]}, Invalid, "bridge:NAME"),
    ("vm.define", networked, {"xml": xml_of("a", OTHER, vni=103)}, NotFound, "no network 103"),
    ("vm.set-definition", networked, {"vm": "web1", "xml": xml_of(vni=103)}, NotFound, "no network 103"),
    ("vm.create", a_world, {"name": "a", "cmdline": "quiet"}, Invalid, "needs a kernel"),
    ("vm.create", a_world, {"name": "a", "kernel": "vmlinuz"}, Invalid, "kernel 'vmlinuz'"),
    ("vm.create", a_world, {"name": "a", "topology": "2,2"}, Invalid, "sockets,cores,threads"),
    ("vm.create", a_world, {"name": "a", "topology": "2,2,2"}, Invalid, "makes 8 vCPUs, not 1"),
    ("vm.create", with_vm, {"name": "web1"}, Conflict, "VM named web1 already"),
    ("vm.info", a_world, {"vm": BAD_NAME}, Invalid, "is not a VM's name"),
    ("vm.info", a_world, {"vm": "web9"}, NotFound, "no VM named web9"),
    ("vm.info", a_world, {"vm": UUID}, NotFound, f"no VM {UUID}"),
    ("vm.list", a_world, {"limit": "["}, Invalid, "not a regular expression"),
    ("vm.list", a_world, {"state": "happy"}, Invalid, "cannot be 'happy'"),
    ("vm.list", a_world, {"tag": "a/b"}, Invalid, "is not a tag"),
    ("vm.dump", a_world, {"vm": "a/b"}, Invalid, "is not a VM's name"),
    ("vm.definition", a_world, {"vm": "web9"}, NotFound, "no VM named web9"),
    ("vm.rename", with_vm, {"vm": "web1", "new": "a/b"}, Invalid, "is not a VM's name"),
    ("vm.rename", with_vm, {"vm": "web1", "new": "web1"}, Conflict, "its name already"),
    ("vm.rename", running, {"vm": "web1", "new": "web2"}, Conflict, "needs it stopped"),
    ("vm.undefine", running, {"vm": "web1"}, Conflict, "needs it stopped"),
    ("vm.start", a_world, {"vm": "web9"}, NotFound, "no VM named web9"),
    ("vm.start", with_vm, {"vm": "web1", "force": "perhaps"}, Invalid, "force must be true or false"),
    ("vm.shutdown", a_world, {"vm": "web9"}, NotFound, "no VM named web9"),
    ("vm.stop", with_vm, {"vm": "web1", "hard": "1"}, Invalid, "no parameter hard"),
    ("vm.restart", with_vm, {"vm": "web1"}, Conflict, "web1 does not run"),
    ("vm.disable", running, {"vm": "web1"}, Conflict, "web1 runs"),
    ("vm.move", running, {"vm": "web1", "target": "n1"}, Conflict, "web1 is on n1 already"),
    ("vm.move", running, {"vm": "web1", "target": "n9"}, NotFound, "no node named n9"),
    ("vm.migrate", running, {"vm": "web1", "target": "N 2"}, Invalid, "is not a node's name"),
    ("vm.migrate", migrated, {"vm": "web1"}, Conflict, "migrated away from n1 already"),
    ("vm.unmigrate", running, {"vm": "web1"}, Conflict, "web1 is not migrated"),
    ("vm.meta", with_vm, {"vm": "web1"}, Invalid, "needs something to change"),
    ("vm.meta", with_vm, {"vm": "web1", "limit": ["n9"]}, NotFound, "no node named n9"),
    ("vm.meta", with_vm, {"vm": "web1", "max_downtime": "long"}, Invalid, "must be a whole number"),
    ("vm.meta", with_vm, {"vm": "web1", "profile": "a/b"}, Invalid, "profile 'a/b'"),
    ("vm.vcpu-get", a_world, {"vm": "web9"}, NotFound, "no VM named web9"),
    ("vm.vcpu-set", with_vm, {"vm": "web1", "vcpus": 289}, Invalid, "at most 288"),
    (
        "vm.vcpu-set",
        with_vm,
        {"vm": "web1", "vcpus": 3, "topology": "1,2,1"},
        Invalid,
        "makes 2 vCPUs, not 3",
    ),
    ("vm.memory-get", a_world, {"vm": "web9"}, NotFound, "no VM named web9"),
    ("vm.memory-set", with_vm, {"vm": "web1", "memory": "-1"}, Invalid, "an amount of memory"),
    ("vm.memory-set", with_vm, {"vm": "web1", "memory": "100T"}, Invalid, "not between 1 MiB"),
    ("vm.tag-get", a_world, {"vm": "web9"}, NotFound, "no VM named web9"),
    ("vm.tag-add", with_vm, {"vm": "web1", "tag": ""}, Invalid, "is not a tag"),
    ("vm.tag-remove", with_vm, {"vm": "web1", "tag": "blue"}, NotFound, "has no tag blue"),
    ("vm.set-definition", with_vm, {"vm": "web1", "xml": "text"}, Invalid, "not well-formed"),
    ("vm.set-definition", with_vm, {"vm": "web1", "xml": xml_of("web2")}, Conflict, "names web2, not web1"),
    (
        "vm.set-definition",
        with_vm,
        {"vm": "web1", "xml": xml_of(uuid=UUID.replace("6", "7"))},
        Conflict,
        "that of web1 is 6",
    ),
    ("vm.set-definition", with_vm, {"vm": "web1", "xml": xml_of(), "digest": "0"}, Conflict, "somebody else"),
    ("vm.modify", with_vm, {"vm": "web1"}, Invalid, "needs a FILE or --editor"),
    ("vm.modify", with_vm, {"vm": "web1", "file": "<a/>", "editor": True}, Invalid, "one of them"),
    ("vm.create", a_world, {"name": "a", "user_data": "x" * 2**18 + "x"}, Invalid, "256 KiB is the most"),
    ("vm.user-data-get", a_world, {"vm": "web9"}, NotFound, "no VM named web9"),
    ("vm.user-data-get", with_vm, {"vm": "web1"}, NotFound, "web1 has no user data"),
    ("vm.user-data-set", a_world, {"vm": "web9", "text": "x"}, NotFound, "no VM named web9"),
    ("vm.user-data-set", with_vm, {"vm": "web1", "text": " \n"}, Invalid, "user data is empty"),
    ("vm.user-data-set", with_vm, {"vm": "web1", "text": "\ud800"}, Invalid, "no text in UTF-8"),
    ("vm.user-data-set", with_vm, {"vm": "web1", "text": "ö" * 2**17 + "x"}, Invalid, "256 KiB is the most"),
    ("vm.user-data-remove", with_vm, {"vm": "web1"}, NotFound, "web1 has no user data"),
    ("vm.log", with_vm, {"vm": "web1", "lines": 1.5}, Invalid, "must be a whole number"),
    ("vm.log-text", a_world, {"vm": "web9"}, NotFound, "no VM named web9"),
    ("vm.log-text", lambda: with_vm(node=None), {"vm": "web1"}, Conflict, "has not run yet"),
    ("vm.log-text", with_vm, {"vm": "web1", "cursor": "n1:-1"}, Invalid, "cursor of an earlier answer"),
    ("vm.log-text", with_vm, {"vm": "web1"}, Unavailable, "come through the API"),
    ("why.vm", a_world, {"vm": "web9"}, NotFound, "no VM named web9"),
    ("why.fence", a_world, {"node": "n3"}, NotFound, "no fence of n3 is known"),
    ("vm.network-get", a_world, {"vm": "web9"}, NotFound, "no VM named web9"),
    ("vm.network-add", networked, {"vm": "web1", "network": "103"}, NotFound, "no network 103"),
    ("vm.network-add", networked, {"vm": "web1", "network": "nat:x"}, Invalid, "bridge:NAME"),
    ("vm.network-add", networked, {"vm": "web1", "network": "101", "mac": "1"}, Invalid, "like 52:54"),
    ("vm.network-add", networked, {"vm": "web1", "network": "101", "mac": f"01{MAC[2:]}"}, Invalid, "of one"),
    ("vm.network-add", networked, {"vm": "web1", "network": "101", "model": "x"}, Invalid, "cannot be 'x'"),
    ("vm.network-add", running, {"vm": "web1", "network": "bridge:br9"}, Conflict, "it has no bridge br9"),
    ("vm.network-remove", networked, {"vm": "web1", "network": "102"}, NotFound, "no interface in 102"),
    ("vm.network-remove", networked, {"vm": "web1", "network": "x y"}, Invalid, "network's number"),
    ("vm.network-remove", networked, {"vm": "web1", "network": "101", "mac": MAC}, NotFound, f"{MAC} in 101"),
    ("why.network", a_world, {"network": "101"}, NotFound, "no network 101"),
    ("node.network-up", a_world, {"now": "1"}, Invalid, "no parameter now"),
    ("node.network-apply", a_world, {"force": "1"}, Invalid, "no parameter force"),
    ("network.sriov-pf-list", a_world, {"node": "n9"}, NotFound, "no node named n9"),
    ("network.sriov-vf-list", a_world, {"node": "n9"}, NotFound, "no node named n9"),
    (
        "network.sriov-vf-info",
        a_world,
        {"node": "n1", "function": "eth2"},
        Invalid,
        "is not a virtual function's name",
    ),
    (
        "network.sriov-vf-set",
        a_world,
        {"node": "n1", "function": "eth2v0", "vlan": 7},
        NotFound,
        "no virtual function eth2v0",
    ),
    ("why.node", a_world, {"node": "n9"}, NotFound, "no node named n9"),
]


def test_every_operation_has_bad_input_in_the_table() -> None:
    assert {name for name, *_ in BAD} == {found.name for found in operations()}


@pytest.mark.parametrize(
    ("name", "make", "given", "error", "says"), BAD, ids=[f"{row[0]}-{row[4]}" for row in BAD]
)
def test_bad_input_is_refused_and_changes_nothing(
    name: str, make: Make, given: dict[str, Any], error: type[PVCError], says: str
) -> None:
    world = make()
    before = world.documents()
    found = find(name)
    with pytest.raises(error, match=says) as caught:
        _try(world, found, given)
    assert type(caught.value) is error
    assert world.documents() == before
    assert "\n" not in caught.value.message


def _try(world: World, found: Operation, given: dict[str, Any]) -> None:
    if found.is_local:
        found.function(LocalContext(connect=_nobody), **convert(found, given))
    else:
        world.call(found.name, **given)


def _nobody() -> Any:
    raise Failed("a bad argument must be refused before anything is asked for")


@pytest.mark.parametrize("name", CHANGES)
def test_answers_are_json_and_say_what_to_wait_for(name: str) -> None:
    make, given = CHANGES[name]
    result = make().call(name, **given)
    assert json.loads(json.dumps(result)) == result
    restarts_nothing = "restart" in convert(find(name), given) and not given.get("restart")
    if find(name).waits and not restarts_nothing:
        assert result["goal"]
