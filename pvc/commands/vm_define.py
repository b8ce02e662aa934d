"""Defining, creating, renaming and forgetting VMs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.store import Create, Delete, Op
from pvc.cluster.view import VM
from pvc.cluster.vm import (
    Method,
    NewDisk,
    Selector,
    Tag,
    VMSpec,
    VMStatus,
    index_nodes,
    index_ops,
    shown_state,
)
from pvc.commands import types
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.types import Autostart, MaxDowntime, NewName, NodeLimit, StartPriority, VMName
from pvc.commands.vm_info import VMInfo, describe
from pvc.commands.vm_user_data import SEED, UserDataText, encoded
from pvc.commands.vm_write import network_ops, save, with_definition
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
        pattern=types.NODE_PATTERN,
        what="a node's name",
    ),
]
By = Annotated[Selector, Arg("by what its node is chosen", short="-s")]
Moving = Annotated[Method, Arg("how it changes nodes while it runs", short="-m")]
TAG_WORDS = "a tag: up to 63 letters, digits, dots, dashes, colons and underscores"
Tags = Annotated[
    str,
    Arg(
        "give it a tag", short="-g", metavar="TAG", complete="tag", pattern=types.TAG_PATTERN, what=TAG_WORDS
    ),
]
ProtectedTags = Annotated[
    str,
    Arg(
        "a tag that cannot be removed by mistake",
        short="-G",
        metavar="TAG",
        complete="tag",
        pattern=types.TAG_PATTERN,
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


@operation("POST", "/vm/create", noun="vm", role=Role.OPERATE, done=NEW)
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
) -> VMInfo:
    """Create a VM without writing XML: a modern machine with a serial console and a guest agent channel.

    A disk given by its size is made on the first start, in the cluster's shared directory of disks.
    """
    from pvc.cluster import domainxml

    uuid = str(uuid4())
    more = () if user_data is None else (Create(paths.vm_user_data(uuid), encoded(user_data)),)
    files, new_disks = _disks(ctx, name, uuid, disk)
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
    return _add(ctx, with_definition(replace(spec, new_disks=new_disks), xml), *more)


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


def _disks(
    ctx: Context, name: str, uuid: str, given: tuple[str, ...]
) -> tuple[list[domainxml.NewDisk], tuple[NewDisk, ...]]:
    """A new file carries a part of the UUID: no VM finds that of an earlier one of the same name."""
    from pvc.cluster import domainxml

    files, new = [], []
    for index, text in enumerate(given):
        size = types.disk_bytes(text)
        if size is None:
            files.append(domainxml.NewDisk(text, "qcow2" if text.endswith(".qcow2") else "raw"))
            continue
        path = f"{ctx.view.cluster().disk_directory}/{name}-{uuid[:8]}-disk{index}.qcow2"
        files.append(domainxml.NewDisk(path))
        new.append(NewDisk(path, size))
    return files, tuple(new)


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
    ops: list[Op] = [
        Create(paths.vm(spec.uuid), dumps(spec)),
        Create(paths.vm_status(spec.uuid), dumps(VMStatus())),
        Create(paths.vm_name(spec.name), spec.uuid.encode()),
    ]
    used = network_ops(ctx, spec.uuid, None, spec)
    ctx.commit(*ops, *index_ops(spec.uuid, frozenset(), index_nodes(spec, None)), *used, *more)
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


# Renaming and forgetting


@operation("POST", "/vm/{vm}/rename", noun="vm", role=Role.OPERATE, done="{vm} is named {name} from now on")
def rename(ctx: Context, vm: VMName, new: NewName) -> VMInfo:
    """Give a stopped VM another name; its disks keep theirs."""
    from pvc.cluster import domainxml

    found = ctx.view.vm(vm)
    spec = found.spec
    _check_stopped(found, "rename")
    if new == spec.name:
        raise Conflict(f"{new} is its name already")
    other = ctx.reader.get(paths.vm_name(new))
    if other is not None:
        raise Conflict(f"there is a VM named {new} already, {other.data.decode()}", hint=f"pvc vm info {new}")
    ctx.say(f"{spec.name} is named {new} from now on")
    renamed = with_definition(spec, domainxml.set_name(spec.definition, new))
    moved_name = (Delete(paths.vm_name(spec.name)), Create(paths.vm_name(new), spec.uuid.encode()))
    return describe(save(ctx, found, renamed, *moved_name, relies_on_status=True))


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
    spec, status = found.spec, found.status
    _check_stopped(found, "undefine")
    # The mirror does not follow these. The answer of a target may have been left behind.
    below = ctx.store.get_many([paths.vm_target(spec.uuid), paths.vm_user_data(spec.uuid)])
    ops: list[Op] = [Delete(paths.vm_name(spec.name))]
    ops += [Delete(one.path, one.version) for one in below if one is not None]
    if found.status_version is not None:
        ops.append(Delete(paths.vm_status(spec.uuid), found.status_version))
    ops.append(Delete(paths.vm(spec.uuid), found.spec_version))
    ctx.say(f"{spec.name} is forgotten; its disks stay")
    used = network_ops(ctx, spec.uuid, spec, None)
    ctx.commit(*ops, *index_ops(spec.uuid, index_nodes(spec, status.owner), frozenset()), *used)


def _check_stopped(vm: VM, verb: str) -> None:
    """Nobody owns it and nobody is about to."""
    state = shown_state(vm.spec, vm.status)
    if vm.status.owner is not None or state not in ("stop", "disable", "fail"):
        where = f" on {vm.place}" if vm.place else ""
        raise Conflict(
            f"{vm.spec.name} is in state {state}{where}: {verb} needs it stopped",
            hint=f"pvc vm shutdown {vm.spec.name}",
        )
