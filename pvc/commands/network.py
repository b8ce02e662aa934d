"""Networks of VMs: make, change, look at, remove."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.network import GREATEST_MTU, GREATEST_VNI, Kind, NetworkSpec, bridge_name, check
from pvc.cluster.store import Create, Delete, Op, Put
from pvc.cluster.vm import VMSpec
from pvc.commands import types
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.types import Limit, NetworkName
from pvc.errors import Conflict, Invalid

if TYPE_CHECKING:
    from pvc.cluster.view import Node

BELOW = (paths.network_vms, paths.network_reservations, paths.network_leases)
"""What each network has a list of."""

NAMED_AT_MOST = 10
"""VMs in one sentence."""

HERE = "up"
NOT_YET = "not made yet"


@dataclass(frozen=True, slots=True)
class NetworkInfo:
    name: str
    """Its number as a text: by it the network is asked for again."""
    vni: int
    description: str
    kind: Kind
    mtu: int
    """0: as much as the network below it carries."""
    bridge: str
    """On every node."""
    state: str
    """up: every node that runs has it; else incomplete."""
    activity: str
    """Who has yet to make it; empty when nobody has."""
    reason: str
    """Why a node does not have it."""
    nodes: Mapping[str, str]
    """How it is on each node."""
    vms: tuple[str, ...]
    """That have an interface in it."""
    version: str
    settled: bool
    goal: Mapping[str, str | int] | None = None


@dataclass(frozen=True, slots=True)
class NetworkRow:
    vni: int
    description: str
    kind: Kind
    mtu: int
    state: str
    vms: int


Description = Annotated[
    str,
    Arg(
        "what it may be called instead of its number",
        short="-d",
        metavar="TEXT",
        pattern=rf"(?=.*[^0-9]){types.NETWORK_PATTERN}",
        what="a description: up to 63 letters, digits, dots, dashes and underscores, not only digits",
    ),
]
MTU = Annotated[
    int,
    Arg(
        "the longest packet; 0: as much as the network below it carries",
        short="-m",
        metavar="BYTES",
        minimum=0,
        maximum=GREATEST_MTU,
    ),
]


@operation("POST", "/network/{vni}", role=Role.OPERATE, waits="network.info")
def add(
    ctx: Context,
    vni: Annotated[
        int,
        Arg(
            "its number: of the VXLAN or, bridged, of the VLAN",
            metavar="VNI",
            minimum=1,
            maximum=GREATEST_VNI,
        ),
    ],
    *,
    description: Description,
    kind: Annotated[Kind, Arg("between the nodes only, or a VLAN of the network outside", short="-p")],
    mtu: MTU = 0,
) -> NetworkInfo:
    """Make a network: every node gets a bridge for it, to which VMs are connected by its number.

    A managed network is the cluster's own, carried by VXLAN over the cluster network. A bridged one is a VLAN
    on the device that node.bridge_device names in each node's configuration.
    """
    spec = NetworkSpec(vni, description, kind, mtu)
    ctx.view.cluster()
    nodes = ctx.view.nodes()
    _check(ctx, spec, nodes)
    if vni in ctx.view.networks([vni]):
        raise Conflict(f"there is a network {vni} already", hint=f"pvc network info {vni}")
    _check_unused(ctx, description)
    ctx.say(f"{vni} is a new {kind} network, {description}: a bridge {bridge_name(vni)} on every node")
    ctx.commit(
        Create(paths.network(vni), dumps(spec)),
        *(Create(listing(vni)) for listing in BELOW),
        Create(paths.network_name(description), str(vni).encode()),
    )
    return _described(spec, 0, nodes, (), wait=True)


@operation(
    "PATCH",
    "/network/{network}",
    role=Role.OPERATE,
    done="network {vni} is changed; the nodes follow",
)
def modify(
    ctx: Context,
    network: NetworkName,
    *,
    description: Description | None = None,
    mtu: MTU | None = None,
) -> NetworkInfo:
    """Change what is given of a network, and nothing else. VMs in it go on."""
    found = ctx.view.network(network)
    given = {"description": description, "mtu": mtu}
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        raise Invalid("network modify needs something to change", hint="pvc network modify --help")
    spec = replace(found.spec, **changes)  # type: ignore[arg-type]
    nodes = ctx.view.nodes()
    _check(ctx, spec, nodes)
    if spec == found.spec:
        ctx.say("nothing would change")
        return _described(found.spec, found.spec_version, nodes, _users(ctx, spec.vni))
    for name in changes:
        ctx.say(f"{name} of network {spec.vni}: {getattr(found.spec, name)} → {getattr(spec, name)}")
    ctx.commit(
        Put(paths.network(spec.vni), dumps(spec), found.spec_version), *_renamed(ctx, found.spec, spec)
    )
    return _described(spec, found.spec_version + 1, nodes, _users(ctx, spec.vni))


def _renamed(ctx: Context, before: NetworkSpec, after: NetworkSpec) -> tuple[Op, ...]:
    if before.description == after.description:
        return ()
    _check_unused(ctx, after.description)
    return (
        Delete(paths.network_name(before.description)),
        Create(paths.network_name(after.description), str(after.vni).encode()),
    )


def _check(ctx: Context, spec: NetworkSpec, nodes: Mapping[str, Node]) -> None:
    """Raises Invalid. An address range is all that concerns other networks."""
    carries = [
        greatest
        for node in nodes.values()
        if node.is_running
        if (greatest := node.status.managed_mtu if spec.kind is Kind.MANAGED else node.status.bridged_mtu)
    ]
    has_addresses = bool(spec.ipv4.network or spec.ipv6.network)
    others = (one.spec for one in ctx.view.networks().values()) if has_addresses else ()
    check(spec, others, carries=min(carries, default=0))


def _check_unused(ctx: Context, description: str) -> None:
    other = ctx.reader.get(paths.network_name(description))
    if other is not None:
        number = other.data.decode()
        raise Conflict(f"network {number} is described as {description} already", hint="choose another")


@operation(
    "DELETE",
    "/network/{network}",
    role=Role.OPERATE,
    confirm="Remove network {network} from every node?",
    done="network {network} is removed; the nodes take its bridges away",
)
def remove(ctx: Context, network: NetworkName) -> None:
    """Remove a network in which no VM has an interface."""
    found = ctx.view.network(network)
    vni = found.spec.vni
    users = _users(ctx, vni)
    if users:
        raise Conflict(
            f"network {vni} is used by {_named(users)}",
            hint="take it out of their definitions: pvc vm modify",
        )
    ctx.say(f"network {vni}, {found.spec.description}, goes from every node")
    ctx.commit(
        Delete(paths.network_name(found.spec.description)),
        *_all_below(ctx, vni),
        Delete(paths.network(vni), found.spec_version),
    )


def _all_below(ctx: Context, vni: int) -> list[Op]:
    """Reservations and leases go with their network; with VMs in it, which are below it too, it does not."""
    listed = [
        f"{listing(vni)}/{name}"
        for listing in (paths.network_reservations, paths.network_leases)
        for name in ctx.reader.children(listing(vni))
    ]
    single = [paths.network_access(vni)] if ctx.reader.get(paths.network_access(vni)) else []
    return [Delete(path) for path in (*listed, *single, *(listing(vni) for listing in BELOW))]


def _named(names: tuple[str, ...]) -> str:
    rest = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f" and {rest} more" if rest > 0 else "")


def _users(ctx: Context, vni: int) -> tuple[str, ...]:
    """Names of the VMs in it, of all VMs none but these being looked at."""
    uuids = ctx.reader.children(paths.network_vms(vni))
    stored = ctx.reader.get_many([paths.vm(uuid) for uuid in uuids])
    return tuple(sorted(ctx.view.decode(VMSpec, one).name for one in stored if one is not None))


# Looking


@operation("GET", "/network/{network}")
def info(ctx: Context, network: NetworkName) -> NetworkInfo:
    """Show everything about a network: how it is on each node, and which VMs are in it."""
    found = ctx.view.network(network)
    return _described(found.spec, found.spec_version, ctx.view.nodes(), _users(ctx, found.spec.vni))


@operation(
    "GET",
    "/network",
    verb="list",
    columns=("vni", "description", "kind", "mtu", "state", "vms"),
)
def list_(
    ctx: Context,
    limit: Limit = "",
    *,
    kind: Annotated[Kind, Arg("only networks of that kind", short="-p")] | None = None,
) -> tuple[NetworkRow, ...]:
    """List networks; LIMIT is for their descriptions."""
    matches = types.limit_pattern(limit).search
    networks = ctx.view.networks()
    running = [node for node in ctx.view.nodes().values() if node.is_running]
    have = [frozenset(node.status.bridges) for node in running]
    troubled = {problem.vni for node in running for problem in node.status.network_problems}
    troubled |= {vni for vni, one in networks.items() if 0 in troubled and one.spec.kind is Kind.MANAGED}
    used = Counter(name for vm in ctx.view.vms().values() for name in {*vm.spec.networks})
    rows = (
        NetworkRow(
            vni,
            one.spec.description,
            one.spec.kind,
            one.spec.mtu,
            _state(vni not in troubled and all(bridge_name(vni) in bridges for bridges in have)),
            used[str(vni)],
        )
        for vni, one in networks.items()
        if matches(one.spec.description) and kind in (None, one.spec.kind)
    )
    return tuple(sorted(rows, key=lambda row: row.vni))


def _state(is_up: bool) -> str:
    return HERE if is_up else "incomplete"


def _on_node(spec: NetworkSpec, node: Node) -> str:
    if not node.is_running:
        return f"its daemon is {node.daemon_state}"
    concerned = (spec.vni, 0) if spec.kind is Kind.MANAGED else (spec.vni,)
    for problem in node.status.network_problems:
        if problem.vni in concerned:
            return problem.why
    return HERE if bridge_name(spec.vni) in node.status.bridges else NOT_YET


def _described(
    spec: NetworkSpec, version: int, nodes: Mapping[str, Node], vms: tuple[str, ...], *, wait: bool = False
) -> NetworkInfo:
    found = {name: _on_node(spec, node) for name, node in sorted(nodes.items())}
    running = {name: how for name, how in found.items() if nodes[name].is_running}
    waiting = [name for name, how in running.items() if how == NOT_YET]
    missing = [f"{name}: {how}" for name, how in running.items() if how != HERE]
    said = hashlib.sha256(repr((found, vms)).encode()).hexdigest()[:16]
    return NetworkInfo(
        name=str(spec.vni),
        vni=spec.vni,
        description=spec.description,
        kind=spec.kind,
        mtu=spec.mtu,
        bridge=bridge_name(spec.vni),
        state=_state(not missing),
        activity=f"not made yet on {_named(tuple(waiting))}" if waiting else "",
        reason="; ".join(missing),
        nodes=found,
        vms=vms,
        version=f"{version}.{said}",
        settled=not waiting,
        goal={"state": HERE} if wait else None,
    )
