"""The cluster as a whole: make it, see how it is, maintenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from pvc import __version__
from pvc.cluster import paths
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.codec import dumps
from pvc.cluster.membership import FenceState
from pvc.cluster.node import DaemonState, NodeRole, Wanted
from pvc.cluster.readiness import Facts, Readiness, readiness
from pvc.cluster.store import Create, Op, Put
from pvc.cluster.vm import Power, State, shown_state
from pvc.commands.context import Context
from pvc.commands.node_fence import told
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.types import Switch
from pvc.errors import Conflict

if TYPE_CHECKING:
    from pvc.cluster.view import VM, Node

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
DOWN = (DaemonState.DEAD, DaemonState.STOP, DaemonState.FENCED)
STRAY_S = 86_400.0
"""So long a VM that ran where it did not belong is a problem."""
NAMED_AT_MOST = 10
"""VMs in one sentence of the status."""


@dataclass(frozen=True, slots=True)
class Resources:
    memory_total_mib: int
    memory_used_mib: int
    memory_free_mib: int
    memory_allocated_mib: int
    memory_provisioned_mib: int
    cpus: int
    vcpus: int
    load: float


@dataclass(frozen=True, slots=True)
class FloatingAddress:
    address: str
    node: str
    """Which answers for it; empty: none does now."""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    health: str
    """ok, degraded or problems. The first field, so that `-f short` is this word.

    degraded: all is well, and yet some node could not be lost now.
    """
    problems: tuple[str, ...]
    name: str
    pvc_version: str
    maintenance: bool
    primary: str
    """The coordinator that is; empty: none now."""
    addresses: Mapping[str, FloatingAddress]
    """The floating ones that it has: upstream, cluster."""
    nodes: Mapping[str, int]
    """How many are in which state, as `run,ready`; and in total."""
    vms: Mapping[str, int]
    resources: Resources
    redundancy: str
    """Which nodes could be lost now."""
    not_redundant: tuple[str, ...]
    """Why the others could not; node readiness has it in full."""
    version: str


@operation("POST", "/cluster/init", role=Role.ADMIN)
def init(
    ctx: Context,
    *,
    name: Annotated[
        str, Arg("what the cluster is called", pattern=NAME, what="a name: letters, digits, dots and dashes")
    ],
) -> ClusterStatus:
    """Make a new cluster of an empty store: its layout, its settings and its certificate authority.

    Run once, on a coordinator, as pvc --direct cluster init --name NAME.
    """
    found = ctx.reader.get(paths.CLUSTER)
    if found is not None:
        known = ctx.view.decode(ClusterSpec, found).name
        if known != name:
            raise Conflict(f"this is the cluster {known} already", hint="pvc cluster status")
        ctx.say(f"{name} is initialised already")
        return status(ctx)
    missing = [path for path in paths.LAYOUT if ctx.reader.get(path) is None]
    ops: list[Op] = [Create(path) for path in missing]
    spec = ClusterSpec(name)
    ctx.say(f"the store becomes that of the cluster {name}, with a certificate authority of its own")
    if not ctx.planning:
        ops.append(Create(paths.AUTHORITY, dumps(ctx.new_authority())))
    ctx.commit(*ops, Create(paths.CLUSTER, dumps(spec)))
    return _status(ctx, spec)


@operation("GET", "/cluster/status")
def status(ctx: Context) -> ClusterStatus:
    """Show how the cluster is: its nodes, its VMs, what they have, and every problem in a sentence."""
    return _status(ctx, ctx.view.cluster())


@operation("PUT", "/cluster/maintenance", role=Role.OPERATE, done="maintenance is {switch}")
def maintenance(ctx: Context, switch: Annotated[Switch, Arg("on or off")]) -> ClusterStatus:
    """Switch maintenance on or off: while it is on, nothing is fenced and nothing raises an alarm."""
    spec, version = ctx.view.cluster_document()
    new = replace(spec, maintenance=switch is Switch.ON)
    if new == spec:
        ctx.say(f"maintenance is {switch} already")
    else:
        ctx.say(f"maintenance of {spec.name} goes {switch}")
        ctx.commit(Put(paths.CLUSTER, dumps(new), version))
    return _status(ctx, new)


# What status says


def _status(ctx: Context, cluster: ClusterSpec) -> ClusterStatus:
    import hashlib

    view = ctx.view
    facts = Facts(cluster, view.nodes(), view.vms(), view.verifications(), ctx.clock.wall())
    nodes, vms = facts.nodes, tuple(facts.vms.values())
    problems = (*problems_of(nodes, vms), *_stores(facts), *_strays(nodes, facts.wall))
    ready = readiness(facts)
    # One node alone is what somebody chose, and in maintenance nothing raises an alarm.
    is_short = len(nodes) > 1 and not cluster.maintenance and not all(one.can_be_lost for one in ready)
    found = ClusterStatus(
        name=cluster.name,
        pvc_version=__version__,
        health="problems" if problems else "degraded" if is_short else "ok",
        problems=problems,
        maintenance=cluster.maintenance,
        primary=next((name for name, node in nodes.items() if node.is_primary), ""),
        addresses=_addresses(cluster, nodes),
        nodes=_counted(f"{node.daemon_state},{node.domain_state}" for node in nodes.values()),
        vms=_counted(shown_state(vm.spec, vm.status) for vm in vms),
        resources=_resources(nodes.values()),
        redundancy=_redundancy(ready),
        not_redundant=tuple(f"{one.node}: {why}" for one in ready for why in one.why_not),
        version="",
    )
    return replace(found, version=hashlib.sha256(dumps(found)).hexdigest()[:16])


def _addresses(cluster: ClusterSpec, nodes: Mapping[str, Node]) -> Mapping[str, FloatingAddress]:
    held = {
        address: name for name, node in nodes.items() if node.is_running for address in node.load.addresses
    }
    wanted = {"upstream": cluster.upstream_address, "cluster": cluster.cluster_address}
    return {kind: FloatingAddress(one, held.get(one, "")) for kind, one in wanted.items() if one}


def _redundancy(ready: tuple[Readiness, ...]) -> str:
    could = [one.node for one in ready if one.can_be_lost]
    if len(could) == len(ready) and could:
        return "any one node could be lost now"
    return f"of {', '.join(could)} one could be lost now" if could else "no node could be lost now"


def _counted(states: Iterable[str]) -> Mapping[str, int]:
    counted = Counter(str(state) for state in states)
    return {"total": counted.total(), **dict(sorted(counted.items()))}


def _resources(nodes: Iterable[Node]) -> Resources:
    """Of the nodes that run."""
    running = [node for node in nodes if node.is_running]
    return Resources(
        memory_total_mib=sum(node.status.memory_mib for node in running),
        memory_used_mib=sum(node.load.memory_used_mib for node in running),
        memory_free_mib=sum(node.load.memory_free_mib for node in running),
        memory_allocated_mib=sum(node.load.memory_allocated_mib for node in running),
        memory_provisioned_mib=sum(node.load.memory_provisioned_mib for node in running),
        cpus=sum(node.status.cpus for node in running),
        vcpus=sum(node.load.vcpus_allocated for node in running),
        load=round(sum(node.load.load for node in running), 2),
    )


def problems_of(nodes: Mapping[str, Node], vms: Iterable[VM]) -> Iterator[str]:
    """What somebody should look at; empty when all is well."""
    if not nodes:
        yield "no node has joined the cluster"
    for name, node in sorted(nodes.items()):
        if node.daemon_state in DOWN:
            yield f"node {name} is {node.daemon_state}: {_why_down(node)}"
        elif node.spec.wanted is Wanted.FLUSHED:
            yield f"node {name} is {node.domain_state} and takes no VMs"
        for problem in (node.load.problem, node.load.address_problem if node.is_primary else ""):
            if problem:
                yield f"node {name}: {problem}"
        yield from _of_networks(name, node)
        yield from _of_pools(name, node)
    versions = sorted({node.status.version for node in nodes.values() if node.is_running})
    if len(versions) > 1:
        yield f"the nodes run different versions of pvc: {', '.join(versions)}"
    has_coordinators = any(node.spec.role is NodeRole.COORDINATOR for node in nodes.values())
    if has_coordinators and not any(node.is_primary for node in nodes.values()):
        yield "no coordinator is primary: nothing is fenced or recovered"
    down = {name for name, node in nodes.items() if not node.is_running}
    failed, stranded, placeless = [], [], []
    for vm in vms:
        owner = vm.status.owner
        if owner is not None and (owner.node in down or owner.node not in nodes):
            stranded.append(vm.spec.name)
        elif shown_state(vm.spec, vm.status) == State.FAIL:
            failed.append(vm.spec.name)
        elif owner is None and vm.spec.power is Power.STARTED and vm.spec.node in (None, *down):
            placeless.append(vm.spec.name)
    yield from _of_vms(failed, "failed", "pvc why vm NAME says why")
    yield from _of_vms(stranded, "belong to a node whose daemon does not run", "nobody knows how they are")
    yield from _of_vms(
        placeless, "are to run and have no node that could run them", "pvc why vm NAME says why"
    )


def _of_networks(name: str, node: Node) -> Iterator[str]:
    if not node.is_running:
        return
    for why in node.status.host_network_problems[:NAMED_AT_MOST]:
        yield f"node {name}: {why}"
    # Of who is not primary any more, what it said as primary is old.
    served = node.status.service_problems if node.is_primary else ()
    every = (*node.status.network_problems, *served)
    for problem in every[:NAMED_AT_MOST]:
        what = f"network {problem.vni}: " if problem.vni else ""
        yield f"node {name}: {what}{problem.why}"
    rest = len(every) - NAMED_AT_MOST
    if rest > 0:
        yield f"node {name}: {rest} more problems with networks (pvc why network NETWORK says why)"


def _of_pools(name: str, node: Node) -> Iterator[str]:
    if node.is_running:
        for pool, why in sorted(node.status.pool_problems.items()):
            yield f"node {name}: pool {pool}: {why}"
        if node.status.ceph is not None:
            yield from node.status.ceph.problems


def _stores(facts: Facts) -> Iterator[str]:
    for name, found in sorted(facts.verifications.items()):
        if found.is_store_down and name in facts.nodes and facts.nodes[name].is_running:
            yield f"the ZooKeeper server of {name} does not serve: systemctl status zookeeper there"


def _strays(nodes: Mapping[str, Node], now: float) -> Iterator[str]:
    """For a day: whatever ran twice has to be looked at by somebody."""
    for name, node in sorted(nodes.items()):
        for one in node.status.strays:
            if now < one.at + STRAY_S:
                yield f"{one.vm} ran on {name} though {one.why}, and was ended there: look at its disks"


def _why_down(node: Node) -> str:
    if node.fence is not None and node.fence.state is not FenceState.RETURNED:
        return told(node.fence)
    return "its daemon does not run"


def _of_vms(names: list[str], what: str, more: str) -> Iterator[str]:
    if not names:
        return
    shown = ", ".join(sorted(names)[:NAMED_AT_MOST])
    rest = len(names) - NAMED_AT_MOST
    yield f"VMs that {what}: {shown}{f' and {rest} more' if rest > 0 else ''} ({more})"
