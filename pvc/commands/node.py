"""Nodes: look at them, take their VMs away, bring them back, forget them; and the daemon."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from pvc.cluster import heirs, paths
from pvc.cluster.codec import dumps, loads
from pvc.cluster.membership import Block
from pvc.cluster.node import DaemonState, NodeRole, Stray, Wanted
from pvc.cluster.placement import explained
from pvc.cluster.readiness import Fencing, fencing_of
from pvc.cluster.store import Check, Delete, Op, Put, Stored
from pvc.cluster.tasks import TaskState, forget_ops, hand_over_ops, release_ops
from pvc.cluster.vm import Power
from pvc.commands import types
from pvc.commands.context import Context, LocalContext
from pvc.commands.registry import Arg, Role, local, operation
from pvc.commands.types import Limit, Lines, NodeName
from pvc.commands.vm_info import Goal, bridges_of
from pvc.commands.vm_log import Cursor, Follow, Text, parse_cursor, show
from pvc.commands.vm_place import placement_of
from pvc.errors import Conflict, Invalid, Unavailable

if TYPE_CHECKING:
    from pvc.cluster.view import VM, Node, Task


NOT_ASKED = Fencing((), 0.0, ())


@dataclass(frozen=True, slots=True)
class NodeInfo:
    name: str
    pvc_version: str
    daemon_state: DaemonState
    coordinator_state: types.CoordinatorState
    domain_state: str
    activity: str
    """What is going on, in words; empty when nothing is."""
    reason: str
    """Why a flush or a return does not get on."""
    vms: int
    cpus: int
    vcpus: int
    load: float
    memory_total_mib: int
    memory_used_mib: int
    memory_free_mib: int
    memory_allocated_mib: int
    memory_provisioned_mib: int
    address: str
    storage_address: str
    floating_addresses: tuple[str, ...]
    """Those of the cluster that it answers for."""
    bmc: str
    """Through which it is fenced when it dies."""
    watchdog: str
    """That its daemon has armed, or why there is none."""
    fenced_by: tuple[str, ...]
    """By what it could be fenced now: bmc, watchdog. Only in node info."""
    fence_problems: tuple[str, ...]
    strays: tuple[Stray, ...]
    """VMs that ran here while they belonged elsewhere, and were ended."""
    bridges: tuple[str, ...]
    network_problems: tuple[str, ...]
    """What of its own networks is not as its pvc.toml describes it."""
    emulation: str
    libvirt: str
    qemu: str
    kernel: str
    incarnation: int
    """Counts the starts of its daemon."""
    version: str
    settled: bool
    goal: Goal | None = None


def describe(node: Node, goal: Goal | None = None, fencing: Fencing = NOT_ASKED) -> NodeInfo:
    status, load = node.status, node.load
    state = node.domain_state
    return NodeInfo(
        name=node.spec.name,
        pvc_version=status.version,
        daemon_state=node.daemon_state,
        coordinator_state=coordinator_state(node),
        domain_state=state,
        activity=_activity(node, state),
        reason=load.problem,
        vms=load.vms,
        cpus=status.cpus,
        vcpus=load.vcpus_allocated,
        load=load.load,
        memory_total_mib=status.memory_mib,
        memory_used_mib=load.memory_used_mib,
        memory_free_mib=load.memory_free_mib,
        memory_allocated_mib=load.memory_allocated_mib,
        memory_provisioned_mib=load.memory_provisioned_mib,
        address=node.spec.address,
        storage_address=node.spec.storage_address,
        floating_addresses=load.addresses if node.is_running else (),
        bmc=f"{node.spec.bmc.driver} {node.spec.bmc.address}" if node.spec.bmc else "",
        watchdog=status.watchdog,
        fenced_by=fencing.by,
        fence_problems=fencing.problems,
        strays=status.strays,
        bridges=status.bridges,
        network_problems=status.host_network_problems,
        emulation=status.emulation,
        libvirt=status.libvirt,
        qemu=status.qemu,
        kernel=status.kernel,
        incarnation=node.status.incarnation,
        version=node.version,
        settled=state in (types.DomainState.READY, types.DomainState.FLUSHED)
        and not node.role_moves
        and not node.awaits_addresses,
        goal=goal,
    )


def coordinator_state(node: Node) -> types.CoordinatorState:
    if node.role_moves:
        return types.CoordinatorState.RELINQUISH if node.is_primary else types.CoordinatorState.TAKEOVER
    if node.is_primary:
        is_new = node.awaits_addresses
        return types.CoordinatorState.TAKEOVER if is_new else types.CoordinatorState.PRIMARY
    is_coordinator = node.spec.role is NodeRole.COORDINATOR
    return types.CoordinatorState.SECONDARY if is_coordinator else types.CoordinatorState.HYPERVISOR


def _activity(node: Node, state: str) -> str:
    if node.role_moves:
        return "the primary role leaves it" if node.is_primary else "the primary role comes to it"
    if node.awaits_addresses:
        return "about to answer for the floating addresses"
    if state == types.DomainState.FLUSH:
        return f"{_vms_are(node.load.vms)} still here" if node.load.vms else "about to move VMs away"
    if state == types.DomainState.UNFLUSH:
        arriving = node.load.arriving
        return f"{_vms_are(arriving)} on their way back" if arriving else "about to bring VMs back"
    return ""


def _vms_are(count: int) -> str:
    return "1 VM is" if count == 1 else f"{count} VMs are"


@operation("GET", "/node/{node}")
def info(ctx: Context, node: NodeName = "") -> NodeInfo:
    """Show everything about a node."""
    view = ctx.view
    found = view.node(node)
    fencing = fencing_of(found, view.nodes(), view.verifications(), ctx.clock.wall())
    return describe(found, fencing=fencing if found.is_running else NOT_ASKED)


@operation(
    "GET",
    "/node",
    verb="list",
    columns=(
        "name",
        "pvc_version",
        "daemon_state",
        "coordinator_state",
        "domain_state",
        "vms",
        "vcpus",
        "load",
        "memory_total_mib",
        "memory_used_mib",
        "memory_free_mib",
        "memory_allocated_mib",
        "memory_provisioned_mib",
    ),
)
def list_(
    ctx: Context,
    limit: Limit = "",
    *,
    daemon_state: Annotated[DaemonState, Arg("only nodes whose daemon is so", short="-ds")] | None = None,
    coordinator_state: Annotated[types.CoordinatorState, Arg("only nodes of that role", short="-cs")]
    | None = None,
    domain_state: Annotated[types.DomainState, Arg("only nodes in that state", short="-vs")] | None = None,
) -> tuple[NodeInfo, ...]:
    """List nodes."""
    matches = types.limit_pattern(limit).search
    rows = [describe(node) for name, node in sorted(ctx.view.nodes().items()) if matches(name)]
    return tuple(
        row
        for row in rows
        if daemon_state in (None, row.daemon_state)
        and coordinator_state in (None, row.coordinator_state)
        and domain_state in (None, row.domain_state)
    )


# Flushed and ready


@operation("POST", "/node/{node}/flush", role=Role.OPERATE, waits="node.info")
def flush(ctx: Context, node: NodeName = "") -> NodeInfo:
    """Move every running VM off a node, each to the best other one; `node ready` brings them back.

    It is refused when a VM fits nowhere else.
    """
    found = ctx.view.node(node)
    goal: Goal = {"domain_state": "flushed"}
    if found.spec.wanted is Wanted.FLUSHED:
        ctx.say(f"{node} is to be flushed already")
        return describe(found, goal)
    _check_all_fit_elsewhere(ctx, node)
    ctx.say(f"{node} takes no VMs until it is ready again")
    return describe(_want(ctx, found, Wanted.FLUSHED), goal)


def _check_all_fit_elsewhere(ctx: Context, node: str) -> None:
    placement = placement_of(ctx)
    nowhere = []
    for vm in vms_of(ctx, node):
        if vm.spec.node != node or vm.spec.power is not Power.STARTED:
            continue
        try:
            bridges = bridges_of(vm.spec, vm.status)
        except Invalid as error:
            nowhere.append(f"{vm.spec.name} (its definition is unreadable: {error.message})")
            continue
        choice = placement.choose(vm.spec, avoid=[node], bridges=bridges)
        if choice.node is None:
            nowhere.append(f"{vm.spec.name} ({explained(choice)})")
        else:
            ctx.say(f"{vm.spec.name} goes to {choice.node}: {choice.because}")
    if nowhere:
        raise Conflict(
            f"{node} cannot be flushed, these VMs fit nowhere else: {'; '.join(nowhere)}",
            hint="stop or change them, or make another node ready",
        )


def vms_of(ctx: Context, node: str) -> list[VM]:
    """VMs assigned to a node, owned by it or at home there, by name. The mirror does not follow the index."""
    uuids = ctx.store.children(paths.node_vms(node))
    return sorted(ctx.view.vms(uuids).values(), key=lambda vm: vm.spec.name)


@operation("POST", "/node/{node}/ready", role=Role.OPERATE, waits="node.info")
def ready(ctx: Context, node: NodeName = "") -> NodeInfo:
    """Let a node take VMs again, and bring back those that are at home there."""
    found = ctx.view.node(node)
    goal: Goal = {"domain_state": "ready"}
    if found.spec.wanted is Wanted.READY:
        ctx.say(f"{node} is to be ready already")
        return describe(found, goal)
    ctx.say(f"{node} takes VMs again")
    if ctx.planning:
        for vm in vms_of(ctx, node):
            if vm.spec.home == node and vm.spec.node != node:
                ctx.say(f"{vm.spec.name} comes back from {vm.spec.node}")
            elif vm.spec.autostart and vm.spec.node == node and vm.spec.power is Power.STOPPED:
                ctx.say(f"{vm.spec.name} starts, as its autostart says")
    return describe(_want(ctx, found, Wanted.READY), goal)


def _want(ctx: Context, node: Node, wanted: Wanted) -> Node:
    spec = replace(node.spec, wanted=wanted)
    if not node.is_running:
        ctx.say(f"{spec.name} does it when its daemon runs: it is {node.daemon_state}")
    ctx.commit(Put(paths.node(spec.name), dumps(spec), node.spec_version))
    return replace(node, spec=spec, spec_version=node.spec_version + 1)


@dataclass(frozen=True, slots=True)
class Removed:
    name: str
    blocklisted: tuple[str, ...]
    """Addresses of which Ceph takes no writes until somebody takes them off its block list."""
    told: str


@operation(
    "DELETE",
    "/node/{node}",
    role=Role.ADMIN,
    confirm="Remove node {node} from the cluster, with all that is known of it?",
    done="{told}",
)
def remove(ctx: Context, node: NodeName) -> Removed:
    """Forget a node whose daemon does not run and that has no VMs.

    Where Ceph was told to take no writes from it, the addresses are named: only the node itself takes
    them off Ceph's block list, when it comes back.
    """
    found = ctx.view.node(node)
    if found.alive is not None:
        raise Conflict(
            f"the daemon of {node} is in state {found.daemon_state}",
            hint=f"systemctl stop pvc-node on {node}",
        )
    left = vms_of(ctx, node)
    if left:
        names = ", ".join(vm.spec.name for vm in left)
        raise Conflict(f"{node} still has VMs: {names}", hint="pvc vm move, or pvc vm undefine")
    cluster, version = ctx.view.cluster_document()
    if found.spec.role is NodeRole.COORDINATOR:
        _check_is_not_last(ctx, node)
    # A daemon that starts meanwhile writes its status; a VM that comes is in the index, which must be empty.
    status = ctx.store.get(paths.node_status(node))
    index = ctx.store.get(paths.node_vms(node))
    load = ctx.store.get(paths.load(node))
    ops: list[Op] = [Delete(one.path, one.version) for one in (status, index) if one is not None]
    if load is not None:
        ops.append(Delete(load.path))
    if sriov := ctx.reader.get(paths.node_sriov(node)):
        ops.append(Delete(sriov.path, sriov.version))
    if verified := ctx.reader.get(paths.verified(node)):
        ops.append(Delete(verified.path, verified.version))
    ops += _tasks_of(ctx, node)
    listed, forget = _block_of(ctx, node)
    ops += forget
    if cluster.primary == node:
        ops.append(Put(paths.CLUSTER, dumps(replace(cluster, primary="")), version))
    ctx.say(f"{node} is forgotten; a daemon that starts there makes it known again")
    told = f"{node} is forgotten"
    if listed:
        entries = ", ".join(f"[{one}]:0/0" if ":" in one else f"{one}:0/0" for one in listed)
        told += f", and on Ceph's block list as {entries}: if it never returns, ceph osd blocklist rm each"
        ctx.say(told)
    ctx.commit(Check(paths.node(node), found.spec_version), *ops, Delete(paths.node(node)))
    return Removed(node, listed, told)


def _block_of(ctx: Context, node: str) -> tuple[tuple[str, ...], list[Op]]:
    """What may be on Ceph's block list. It stays known, for a node of that name to take it off, and proves
    nothing any more: lives are counted anew."""
    path = paths.block(node)
    stored = ctx.store.get(path)
    if stored is None:
        return (), []
    block = loads(Block, stored.data, path)
    if block.lifted:
        return (), [Delete(path, stored.version)]
    return block.addresses, [Put(path, dumps(replace(block, epoch=0)), stored.version)]


def _tasks_of(ctx: Context, node: str) -> list[Op]:
    """What forgets them, with all that they claim; what was begun is for another node to undo."""
    index = ctx.store.get(paths.node_tasks(node))
    if index is None:
        return []
    ops: list[Op] = []
    claims = heirs.claims(ctx.store)
    for task in ctx.view.tasks(ctx.store.children(index.path)).values():
        claimed = [] if task.status.state.is_over else claims.get(task.spec.id, [])
        if task.status.state is TaskState.RUNNING:
            if heir := heirs.heir(ctx.store, task, {pool for pool, _, _ in claimed}):
                ctx.say(f"{heir} takes away what was begun: {task.spec.about}")
                ops += hand_over_ops(task.spec, task.spec_version, task.status, task.status_version, heir)
                continue
            ctx.say(f"nobody else can take away what was begun: {task.spec.about}")
        ops += release_ops(task.spec, ctx.store)
        ops += forget_ops(task.spec, has_status=task.status_version is not None)
        ops += _let_go(ctx, task, claimed)
    return [*ops, Delete(index.path, index.version)]


def _let_go(ctx: Context, task: Task, claimed: list[tuple[str, str, Stored]]) -> list[Op]:
    """Volumes of a VM that was never made are nobody's."""
    users = ctx.store.get_many([paths.pool_vm(pool, name) for pool, name, _ in claimed])
    found = [one for one in users if one is not None]
    there = ctx.view.vms({one.data.decode() for one in found})
    return [
        *(Delete(one.path, one.version) for *_, one in claimed if one.path not in task.spec.claims),
        *(Delete(one.path, one.version) for one in found if one.data.decode() not in there),
    ]


def _check_is_not_last(ctx: Context, node: str) -> None:
    others = [
        name
        for name, other in ctx.view.nodes().items()
        if name != node and other.spec.role is NodeRole.COORDINATOR
    ]
    if not others:
        raise Conflict(f"{node} is the last coordinator", hint="without one there is no cluster")


# Its log and its daemon


@operation("GET", "/node/{node}/log", verb="log-text")
def log_text(ctx: Context, node: NodeName, *, lines: Lines = 1000, cursor: Cursor = "") -> Text:
    """The daemon's log as data; `node log` is the verb for people."""
    found = ctx.view.node(node)
    if not found.status.console_port:
        raise Unavailable(f"{node} does not serve texts: its daemon is in state {found.daemon_state}")
    known = parse_cursor(cursor).get(node)
    text, offset = ctx.console(
        found.spec.address,
        found.status.console_port,
        "journal",
        lines=lines,
        cursor=known,
        wait_s=0 if known is None else 1,
    )
    return Text(text, f"{node}:{offset}", node)


@local()
def log(
    ctx: LocalContext, node: NodeName = "", *, lines: Lines | None = None, follow: Follow = False
) -> None:
    """Print the log of a node's daemon: 1000 lines; with -f 10 and what comes."""
    show(ctx, "node.log-text", node, "node", lines, follow)


@local()
def run(ctx: LocalContext) -> None:
    """Run the daemon of this node in the foreground, as its service does."""
    from pvc import config, log
    from pvc.node.process import main

    log.setup(daemon=True, debug=bool(ctx.options.get("debug")))
    main(config.load())
