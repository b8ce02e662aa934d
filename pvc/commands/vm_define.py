"""Defining, creating, renaming and forgetting VMs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

from pvc import names
from pvc.cluster import paths, records
from pvc.cluster.codec import to_json
from pvc.cluster.storage import Volume
from pvc.cluster.store import Create, Op
from pvc.cluster.view import VM
from pvc.cluster.vm import Method, Selector, Tag, VMSpec, VMStatus, shown_state
from pvc.commands import types, vm_write
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.storage_volume import user_of
from pvc.commands.task import TaskInfo
from pvc.commands.types import Autostart, MaxDowntime, NewName, NodeLimit, StartPriority, VMName
from pvc.commands.vm_info import VMInfo, describe
from pvc.commands.vm_user_data import SEED, UserDataText, encoded
from pvc.commands.vm_write import check_stays, check_unclaimed, save, with_definition
from pvc.errors import Conflict, NotFound

if TYPE_CHECKING:
    from pvc.cluster import domainxml

# What `define` and `create` have in common

NEW = "{name} is a new VM, stopped: pvc vm start {name}"

AtNode = Annotated[
    str,
    Arg(
        "the node it starts on; the best one unless given",
        short="-t",
        metavar="NODE",
        complete="node",
        pattern=names.NODE,
        what="a node's name",
    ),
]
By = Annotated[Selector, Arg("by what its node is chosen", short="-s")]
Moving = Annotated[Method, Arg("how it changes nodes while it runs", short="-m")]
TAG_WORDS = "a tag: up to 63 letters, digits, dots, dashes, colons and underscores"
Tags = Annotated[
    str,
    Arg("give it a tag", short="-g", metavar="TAG", complete="tag", pattern=names.TAG, what=TAG_WORDS),
]
ProtectedTags = Annotated[
    str,
    Arg(
        "a tag that cannot be removed by mistake",
        short="-G",
        metavar="TAG",
        complete="tag",
        pattern=names.TAG,
        what=TAG_WORDS,
    ),
]


@operation("POST", "/vm", noun="vm", role=Role.OPERATE, done=NEW)
def define(
    ctx: Context,
    xml: Annotated[
        str, Arg("file with a libvirt domain XML; - is standard input", metavar="XMLFILE", file=True)
    ],
    *,
    target: AtNode | None = None,
    limit: tuple[NodeLimit, ...] = (),
    selector: By = Selector.NONE,
    autostart: Autostart = False,
    start_priority: StartPriority = 100,
    method: Moving = Method.NONE,
    max_downtime: MaxDowntime = 300,
    tag: tuple[Tags, ...] = (),
    protected_tag: tuple[ProtectedTags, ...] = (),
) -> VMInfo:
    """Define a new VM from a libvirt domain XML.

    The XML is kept as it is, with a UUID and MAC addresses added where it has none. The VM is stopped.
    """
    from pvc.cluster import domainxml

    uuid = domainxml.parse(xml).uuid or str(uuid4())
    tags = _tags(tag, protected_tag)
    spec = _treated(uuid, target, limit, selector, autostart, start_priority, method, max_downtime, tags)
    return _add(ctx, with_definition(spec, domainxml.complete(xml, uuid)))


@operation("POST", "/vm/create", noun="vm", role=Role.OPERATE, waits="task.info", done=NEW)
def create(
    ctx: Context,
    name: NewName,
    *,
    memory: types.MemoryText = "1G",
    vcpus: types.VCPUCount = 1,
    disk: tuple[types.DiskText, ...] = (),
    network: tuple[types.NetworkText, ...] = (),
    kernel: Annotated[str, Arg("path of a kernel on the nodes", metavar="FILE", pattern=types.FILE_PATTERN)]
    | None = None,
    initrd: Annotated[str, Arg("path of its initial RAM disk", metavar="FILE", pattern=types.FILE_PATTERN)]
    | None = None,
    cmdline: Annotated[str, Arg("its command line", metavar="TEXT")] = "",
    topology: types.TopologyText | None = None,
    user_data: Annotated[UserDataText, Arg(metavar="FILE", file=True)] | None = None,
    target: AtNode | None = None,
    limit: tuple[NodeLimit, ...] = (),
    selector: By = Selector.NONE,
    autostart: Autostart = False,
    start_priority: StartPriority = 100,
    method: Moving = Method.NONE,
    max_downtime: MaxDowntime = 300,
    tag: tuple[Tags, ...] = (),
    protected_tag: tuple[ProtectedTags, ...] = (),
    force: Annotated[bool, Arg("also when a pool gets fuller than it should", short="-f")] = False,
) -> VMInfo | TaskInfo:
    """Create a VM without writing XML: a modern machine with a serial console and a guest agent channel.

    Volumes that it is to have are made with it: there are all of them and the VM in the end, or nothing.
    """
    from pvc.cluster import domainxml

    uuid = str(uuid4())
    disks = [wanted(ctx, name, text, domainxml.disk_target(index)) for index, text in enumerate(disk)]
    files = () if any(one["pool"] for one in disks) else [_file(one["path"]) for one in disks]
    xml = domainxml.create(
        name,
        uuid,
        memory_mib=types.memory_mib(memory),
        vcpus=vcpus,
        disks=files,
        nics=[_nic(ctx, text) for text in network],
        kernel=kernel or "",
        initrd=initrd or "",
        cmdline=cmdline,
        topology=domainxml.Topology(*types.topology(topology)) if topology else None,
        serial="" if user_data is None else SEED,
    )
    tags = _tags(tag, protected_tag)
    spec = _treated(uuid, target, limit, selector, autostart, start_priority, method, max_downtime, tags)
    spec = with_definition(spec, xml)
    if disks and not files:
        return _begin(ctx, _where_its_disks_are(ctx, spec, disks), disks, user_data, force=force)
    more = () if user_data is None else (Create(paths.vm_user_data(uuid), encoded(user_data)),)
    return _add(ctx, spec, *more)


def _treated(
    uuid: str,
    target: str | None,
    limit: tuple[str, ...],
    selector: Selector,
    autostart: bool,
    start_priority: int,
    method: Method,
    max_downtime_ms: int,
    tags: tuple[Tag, ...],
) -> VMSpec:
    """How a new VM is to be treated; what it is comes with its definition."""
    return VMSpec(
        uuid=uuid,
        name="",
        definition="",
        memory_mib=0,
        vcpus=0,
        node=target,
        selector=selector,
        node_limit=tuple(sorted({*limit})),
        method=method,
        max_downtime_ms=max_downtime_ms,
        autostart=autostart,
        start_priority=start_priority,
        tags=tags,
    )


Disk = Mapping[str, Any]
"""As the task gets it."""


def wanted(ctx: Context, vm: str, text: str, target: str, bus: str = "virtio") -> Disk:
    """What a DiskText asks for. A new volume is called after the VM and the place of the disk in it."""
    asked = types.disk_asked(text)
    new = f"{vm}-{target}" if asked.size_bytes else asked.volume
    pool = "" if asked.path else (asked.pool or _only_pool(ctx))
    if pool:
        ctx.view.pool(pool)
        if (user := user_of(ctx, pool, new)) is not None:
            raise Conflict(f"volume {pool}/{new} is a disk of {user.spec.name}")
    about = {"path": asked.path, "pool": pool, "volume": new, "size_bytes": asked.size_bytes}
    return {**about, "target": target, "bus": bus}


def _only_pool(ctx: Context) -> str:
    pools = sorted(name for name, one in ctx.view.pools().items() if not one.spec.leaving)
    if not pools:
        raise Conflict("there is no pool for the disk", hint="pvc storage pool add")
    if len(pools) > 1:
        raise Conflict(
            f"in which pool is the disk to be: {', '.join(pools)}?", hint=f"--disk {pools[0]}/SIZE"
        )
    return pools[0]


def _file(path: str) -> domainxml.NewDisk:
    from pvc.cluster import domainxml

    return domainxml.NewDisk(path, "qcow2" if path.endswith(".qcow2") else "raw")


def _where_its_disks_are(ctx: Context, spec: VMSpec, disks: Iterable[Disk]) -> VMSpec:
    """A pool of one node keeps the VM there."""
    for name in sorted({disk["pool"] for disk in disks if disk["pool"]}):
        node = ctx.view.pool(name).spec.node
        if not node:
            continue
        if spec.node not in (None, node) or (spec.node_limit and node not in spec.node_limit):
            raise Conflict(f"pool {name} is on {node} only, where {spec.name} is not to be")
        spec = replace(spec, node=node, node_limit=(node,))
    return spec


def _begin(
    ctx: Context, spec: VMSpec, disks: Sequence[Disk], user_data: str | None, *, force: bool
) -> TaskInfo:
    """All that can be refused is, before anything is made."""
    ctx.view.cluster()
    check_nodes(ctx, spec)
    _check_unused(ctx, spec)
    records.network_ops(ctx.view, spec.uuid, None, spec)
    volumes = [Volume(disk["pool"], disk["volume"]) for disk in disks if disk["pool"]]
    if len({*volumes}) != len(volumes):
        raise Conflict("one volume cannot be two disks")
    arguments = {"spec": to_json(spec), "disks": disks, "force": force}
    if user_data is not None:
        arguments["user_data"] = encoded(user_data).decode()
    unused = [op for one in volumes for op in records.absent(paths.pool_vm(one.pool, one.name))]
    about = f"creating VM {spec.name} with {', '.join(map(str, volumes))}"
    return vm_write.begin(ctx, "vm.create", about, None, volumes, arguments=arguments, ops=unused)


def _nic(ctx: Context, text: str) -> domainxml.NewNic:
    from pvc.cluster import domainxml

    kind, separator, bridge = text.partition(":")
    return domainxml.NewNic(bridge) if separator else domainxml.NewNic(vni=ctx.view.network(kind).spec.vni)


def _tags(plain: tuple[str, ...], protected: tuple[str, ...]) -> tuple[Tag, ...]:
    return tuple(Tag(name, name in protected) for name in sorted({*plain, *protected}))


def _add(ctx: Context, spec: VMSpec, *more: Op) -> VMInfo:
    """Write a new VM: spec, status, name and index at once."""
    ctx.view.cluster()
    check_nodes(ctx, spec)
    _check_unused(ctx, spec)
    ctx.commit(*records.creation(ctx.view, spec), *more)
    ctx.say(f"{spec.name} is a new VM, stopped; {spec.node or 'a node is chosen when it starts'}")
    return describe(VM(spec, 0, VMStatus(), 0))


def _check_unused(ctx: Context, spec: VMSpec) -> None:
    name, uuid = ctx.reader.get_many([paths.vm_name(spec.name), paths.vm(spec.uuid)])
    if name is not None:
        raise Conflict(
            f"there is a VM named {spec.name} already, {name.data.decode()}", hint=f"pvc vm info {spec.name}"
        )
    if uuid is not None:
        other = ctx.view.decode(VMSpec, uuid)
        raise Conflict(
            f"there is a VM with the UUID {spec.uuid} already, {other.name}", hint="take <uuid> out"
        )


def check_nodes(ctx: Context, spec: VMSpec) -> None:
    """Every node that a spec names must be there, and its own be among those it is limited to."""
    named = [*spec.node_limit, *([spec.node] if spec.node else [])]
    known = ctx.view.nodes(named)
    for name in named:
        if name not in known:
            raise NotFound(f"no node named {name}", hint="pvc node list shows them")
    if spec.node and spec.node_limit and spec.node not in spec.node_limit:
        raise Conflict(
            f"{spec.name} is limited to {', '.join(spec.node_limit)} and so cannot be on {spec.node}"
        )


# Renaming, forgetting and removing


@operation(
    "POST",
    "/vm/{vm}/rename",
    noun="vm",
    role=Role.OPERATE,
    waits="task.info",
    done="{vm} is named {new} from now on",
)
def rename(ctx: Context, vm: VMName, new: NewName) -> VMInfo | TaskInfo:
    """Give a stopped VM another name, and its volumes that are named after it."""
    from pvc.cluster import domainxml

    found = ctx.view.vm(vm)
    spec = found.spec
    check_stopped(found, "rename")
    if new == spec.name:
        raise Conflict(f"{new} is its name already")
    other = ctx.reader.get(paths.vm_name(new))
    if other is not None:
        raise Conflict(f"there is a VM named {new} already, {other.data.decode()}", hint=f"pvc vm info {new}")
    ctx.say(f"{spec.name} is named {new} from now on")
    named = {
        one: Volume(one.pool, new + one.name.removeprefix(spec.name))
        for one in records.volumes(ctx.view, spec).values()
        if one.name == spec.name or one.name.startswith(f"{spec.name}-")
    }
    if not named:
        renamed = with_definition(spec, domainxml.set_name(spec.definition, new))
        return describe(save(ctx, found, renamed, relies_on_status=True))
    free = [op for one in named.values() for op in records.absent(paths.pool_vm(one.pool, one.name))]
    about = f"renaming VM {spec.name} to {new}, with {', '.join(map(str, named))}"
    pairs = [(one.pool, one.name, to.name) for one, to in named.items()]
    arguments = {"vm": spec.uuid, "new": new, "volumes": pairs}
    return vm_write.begin(
        ctx, "vm.rename", about, found, [*named, *named.values()], arguments=arguments, ops=free
    )


@operation(
    "DELETE",
    "/vm/{vm}",
    noun="vm",
    role=Role.OPERATE,
    confirm="Forget VM {vm}? Its disks stay.",
    done="{vm} is forgotten; its disks stay",
)
def undefine(ctx: Context, vm: VMName) -> None:
    """Forget a stopped VM; its disks stay where they are."""
    found = ctx.view.vm(vm)
    check_stopped(found, "undefine")
    check_unclaimed(ctx, found)
    if snapshots := found.spec.snapshots:
        raise Conflict(
            f"{found.spec.name} has {len(snapshots)} snapshots: {', '.join(snapshots)}",
            hint=f"pvc vm snapshot remove {found.spec.name} {snapshots[0]}",
        )
    ctx.say(f"{found.spec.name} is forgotten; its disks stay")
    ctx.commit(*records.removal(ctx.view, found))


@operation(
    "POST",
    "/vm/{vm}/remove",
    noun="vm",
    role=Role.OPERATE,
    confirm="Remove VM {vm} with its disks, all that is on them, and their snapshots?",
    waits="task.info",
    done="{vm} is removed, with its disks",
)
def remove(
    ctx: Context,
    vm: VMName,
    *,
    force: Annotated[bool, Arg("also when clones of its disks fill a pool more than it should be")] = False,
) -> TaskInfo | None:
    """Remove a stopped VM with its volumes and their snapshots, or nothing of it.

    A protected snapshot, or a volume that somebody has open, keeps all of it. Disks that are in no pool stay.
    """
    found = ctx.view.vm(vm)
    spec = found.spec
    check_stopped(found, "remove")
    volumes = sorted({*records.volumes(ctx.view, spec).values()})
    if not volumes:
        check_unclaimed(ctx, found)
        ctx.say(f"{spec.name} is removed; it has no volumes")
        ctx.commit(*records.removal(ctx.view, found))
        return None
    about = f"removing VM {spec.name} with {', '.join(map(str, volumes))}"
    arguments = {
        "vm": spec.uuid,
        "volumes": [(one.pool, one.name) for one in volumes],
        "force": force,
    }
    leaving = replace(spec, leaving=True)
    return vm_write.begin(ctx, "vm.remove", about, found, volumes, arguments=arguments, spec=leaving)


def check_stopped(vm: VM, verb: str) -> None:
    """Nobody owns it and nobody is about to."""
    state = shown_state(vm.spec, vm.status)
    if verb != "remove":
        check_stays(vm)
    if vm.status.owner is not None or state not in ("stop", "disable", "fail", "remove"):
        where = f" on {vm.place}" if vm.place else ""
        raise Conflict(
            f"{vm.spec.name} is in state {state}{where}: {verb} needs it stopped",
            hint=f"pvc vm shutdown {vm.spec.name}",
        )
