"""Where each document is."""

from __future__ import annotations

ROOT = "/pvc"
CLUSTER = f"{ROOT}/cluster"
AUTHORITY = f"{ROOT}/authority"
"""The cluster's certificate authority: its certificate and its encrypted key."""
NODES = f"{ROOT}/nodes"
ALIVE = f"{ROOT}/alive"
LOAD = f"{ROOT}/load"
VMS = f"{ROOT}/vms"
NAMES = f"{ROOT}/names"
VM_NAMES = f"{NAMES}/vm"
NETWORKS = f"{ROOT}/networks"
NETWORK_NAMES = f"{NAMES}/network"
TOKENS = f"{ROOT}/tokens"
TASKS = f"{ROOT}/tasks"
POOLS = f"{ROOT}/pools"
SNAPSHOTS = f"{ROOT}/snapshots"
"""Of VMs: by their UUIDs, of those that have any."""
BENCHMARKS = f"{ROOT}/benchmarks"
"""Made with the first one."""
FENCES = f"{ROOT}/fences"
BLOCKS = f"{ROOT}/blocks"
"""Of each node that was ever put on Ceph's block list."""
VERIFIED = f"{ROOT}/verified"
"""Of each coordinator, whether it could fence every other node. Its own data: the newest wish to look now."""
ZONES = f"{ROOT}/zones"
"""Of each zone of the DNS, the serial it was told with. Its own data: the greatest of zones that are gone."""
PRIMARY = f"{ROOT}/primary"
"""Ephemeral of the primary."""
TERM = f"{ROOT}/term"
"""Written by each new primary: its version grows with every change of the role."""

LAYOUT = (
    *(ROOT, NODES, ALIVE, LOAD, VMS, NETWORKS, NAMES, VM_NAMES, NETWORK_NAMES),
    *(TOKENS, FENCES, BLOCKS, VERIFIED, TERM, ZONES, TASKS, POOLS, SNAPSHOTS),
)
"""Created once, parents first."""


def node(name: str) -> str:
    return f"{NODES}/{name}"


def node_status(name: str) -> str:
    return f"{NODES}/{name}/status"


def node_sriov(name: str) -> str:
    """What is wanted of its virtual functions; made with the first wish."""
    return f"{NODES}/{name}/sriov"


def node_vms(name: str) -> str:
    return f"{NODES}/{name}/vms"


def node_vm(name: str, uuid: str) -> str:
    """Index: the VM is assigned to the node, owned by it, or at home there."""
    return f"{NODES}/{name}/vms/{uuid}"


def node_tasks(name: str) -> str:
    """Made by the first daemon there that can do tasks."""
    return f"{NODES}/{name}/tasks"


def node_task(name: str, identity: str) -> str:
    """Index: the node is to do the task, or has done it."""
    return f"{NODES}/{name}/tasks/{identity}"


def node_osd(name: str, osd: int) -> str:
    """A task is changing the OSD; its data says which."""
    return f"{NODES}/{name}/osd.{osd}"


def alive(name: str) -> str:
    return f"{ALIVE}/{name}"


def load(name: str) -> str:
    return f"{LOAD}/{name}"


def vm(uuid: str) -> str:
    return f"{VMS}/{uuid}"


def vm_status(uuid: str) -> str:
    return f"{VMS}/{uuid}/status"


def vm_target(uuid: str) -> str:
    """Written by the node a VM is to move to: prepared, or why not."""
    return f"{VMS}/{uuid}/target"


def vm_user_data(uuid: str) -> str:
    """What its guest finds at first boot, written by operations. Apart from the spec, which lists read."""
    return f"{VMS}/{uuid}/userdata"


def vm_claim(uuid: str) -> str:
    """A task is at the VM as a whole; its data says which. Meanwhile nobody starts or changes it."""
    return f"{VMS}/{uuid}/claim"


def vm_name(name: str) -> str:
    return f"{VM_NAMES}/{name}"


def network(vni: int | str) -> str:
    return f"{NETWORKS}/{vni}"


def network_vms(vni: int | str) -> str:
    return f"{NETWORKS}/{vni}/vms"


def network_vm(vni: int | str, uuid: str) -> str:
    """Index: the VM has an interface in the network."""
    return f"{NETWORKS}/{vni}/vms/{uuid}"


def network_reservations(vni: int | str) -> str:
    return f"{NETWORKS}/{vni}/reservations"


def network_reservation(vni: int | str, mac: str) -> str:
    return f"{NETWORKS}/{vni}/reservations/{mac}"


def network_leases(vni: int | str) -> str:
    return f"{NETWORKS}/{vni}/leases"


def network_lease(vni: int | str, address: str) -> str:
    return f"{NETWORKS}/{vni}/leases/{address}"


def network_access(vni: int | str) -> str:
    """The filters of the network, all in one: their order is what they mean."""
    return f"{NETWORKS}/{vni}/access"


def network_name(description: str) -> str:
    return f"{NETWORK_NAMES}/{description}"


def token(identity: str) -> str:
    return f"{TOKENS}/{identity}"


def zone(name: str) -> str:
    return f"{ZONES}/{name}"


def vm_snapshots(uuid: str) -> str:
    return f"{SNAPSHOTS}/{uuid}"


def vm_snapshot(uuid: str, name: str) -> str:
    return f"{SNAPSHOTS}/{uuid}/{name}"


def task(identity: str) -> str:
    return f"{TASKS}/{identity}"


def task_status(identity: str) -> str:
    return f"{TASKS}/{identity}/status"


def pool(name: str) -> str:
    return f"{POOLS}/{name}"


def benchmark(identity: str) -> str:
    return f"{BENCHMARKS}/{identity}"


def pool_claims(name: str) -> str:
    return f"{POOLS}/{name}/claims"


def pool_claim(name: str, volume: str) -> str:
    """A task is changing the volume; its data says which."""
    return f"{POOLS}/{name}/claims/{volume}"


def pool_vms(name: str) -> str:
    return f"{POOLS}/{name}/vms"


def pool_vm(name: str, volume: str) -> str:
    """Index: the volume is a disk of the VM whose UUID it holds, and of no other."""
    return f"{POOLS}/{name}/vms/{volume}"


def verified(coordinator: str) -> str:
    return f"{VERIFIED}/{coordinator}"


def fence(node: str, incarnation: int) -> str:
    return f"{FENCES}/{node}-{incarnation}"


def block(node: str) -> str:
    return f"{BLOCKS}/{node}"
