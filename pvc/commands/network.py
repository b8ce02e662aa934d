"""Networks of VMs: make, change, look at, remove."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, Annotated

from pvc.cluster import paths
from pvc.cluster.clients import Reservation
from pvc.cluster.codec import dumps
from pvc.cluster.network import (
    GREATEST_VNI,
    Kind,
    NetworkSpec,
    Prefix,
    bridge_name,
    check,
    has_addresses,
)
from pvc.cluster.store import Create, Delete, Op, Put
from pvc.cluster.vm import VMSpec
from pvc.commands import types
from pvc.commands.context import Context
from pvc.commands.network_options import (
    DHCP,
    DHCP6,
    MTU,
    Description,
    DHCPEnd,
    DHCPStart,
    DNSServer,
    Domain,
    Gateway,
    Gateway6,
    Given,
    IPNet,
    IPNet6,
    NTPServer,
    changed,
    differences,
)
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
    domain: str
    dns_servers: tuple[str, ...]
    ntp_servers: tuple[str, ...]
    ipnet: str
    gateway: str
    dhcp_start: str
    """Empty: there is no DHCP."""
    dhcp_end: str
    ipnet6: str
    gateway6: str
    dhcp6: bool
    leases: int
    """Addresses that DHCP has given."""
    gateway_node: str
    """The primary, where the network has a gateway."""
    state: str
    """up: every node that runs has it, and the primary serves it; else incomplete."""
    activity: str
    """Who has yet to make it; empty when nobody has."""
    reason: str
    """Why a node does not have it, or does not serve it."""
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
    domain: str
    ipnet: str
    gateway: str
    dhcp: bool
    ipnet6: str
    gateway6: str
    dhcp6: bool
    state: str
    vms: int


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
    domain: Domain = "",
    dns_server: tuple[DNSServer, ...] = (),
    ntp_server: tuple[NTPServer, ...] = (),
    ipnet: IPNet = "",
    gateway: Gateway = "",
    ipnet6: IPNet6 = "",
    gateway6: Gateway6 = "",
    dhcp: DHCP | None = None,
    dhcp_start: DHCPStart | None = None,
    dhcp_end: DHCPEnd | None = None,
    dhcp6: DHCP6 | None = None,
) -> NetworkInfo:
    """Make a network: every node gets a bridge for it, to which VMs are connected by its number.

    A managed network is the cluster's own, carried by VXLAN over the cluster network. With a gateway it is
    routed by the primary. A bridged one is a VLAN on the device that node.bridge_device names in each node's
    configuration.
    """
    given = Given(
        domain=domain,
        dns_server=dns_server,
        ntp_server=ntp_server,
        ipnet=ipnet,
        gateway=gateway,
        ipnet6=ipnet6,
        gateway6=gateway6,
        dhcp=dhcp,
        dhcp_start=dhcp_start,
        dhcp_end=dhcp_end,
        dhcp6=dhcp6,
    )
    bare = NetworkSpec(vni, description, kind, mtu)
    spec = changed(bare, given)
    ctx.view.cluster()
    nodes = ctx.view.nodes()
    alone = _one_at_a_time(ctx, spec)
    _check(ctx, spec, nodes)
    if vni in ctx.view.networks([vni]):
        raise Conflict(f"there is a network {vni} already", hint=f"pvc network info {vni}")
    _check_unused(ctx, description)
    ctx.say(f"{vni} is a new {kind} network, {description}: a bridge {bridge_name(vni)} on every node")
    for name, _, value in differences(bare, spec):
        ctx.say(f"{name} of network {vni}: {value}")
    ctx.commit(
        *alone,
        Create(paths.network(vni), dumps(spec)),
        *(Create(listing(vni)) for listing in BELOW),
        Create(paths.network_name(description), str(vni).encode()),
    )
    return _described(ctx, spec, 0, nodes, wait=True)


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
    domain: Domain | None = None,
    dns_server: tuple[DNSServer, ...] | None = None,
    ntp_server: tuple[NTPServer, ...] | None = None,
    ipnet: IPNet | None = None,
    gateway: Gateway | None = None,
    ipnet6: IPNet6 | None = None,
    gateway6: Gateway6 | None = None,
    dhcp: DHCP | None = None,
    dhcp_start: DHCPStart | None = None,
    dhcp_end: DHCPEnd | None = None,
    dhcp6: DHCP6 | None = None,
) -> NetworkInfo:
    """Change what is given of a network, and nothing else; an empty value clears. VMs in it go on."""
    found = ctx.view.network(network)
    given = Given(
        description=description,
        mtu=mtu,
        domain=domain,
        dns_server=dns_server,
        ntp_server=ntp_server,
        ipnet=ipnet,
        gateway=gateway,
        ipnet6=ipnet6,
        gateway6=gateway6,
        dhcp=dhcp,
        dhcp_start=dhcp_start,
        dhcp_end=dhcp_end,
        dhcp6=dhcp6,
    )
    if given == Given():
        raise Invalid("network modify needs something to change", hint="pvc network modify --help")
    spec = changed(found.spec, given)
    nodes = ctx.view.nodes()
    alone = _one_at_a_time(ctx, spec)
    _check(ctx, spec, nodes)
    if spec == found.spec:
        ctx.say("nothing would change")
        return _described(ctx, found.spec, found.spec_version, nodes)
    _check_reservations(ctx, found.spec, spec)
    for name, before, after in differences(found.spec, spec):
        ctx.say(f"{name} of network {spec.vni}: {before} → {after}")
    renamed = _renamed(ctx, found.spec, spec)
    ctx.commit(*alone, Put(paths.network(spec.vni), dumps(spec), found.spec_version), *renamed)
    return _described(ctx, spec, found.spec_version + 1, nodes)


def _renamed(ctx: Context, before: NetworkSpec, after: NetworkSpec) -> tuple[Op, ...]:
    if before.description == after.description:
        return ()
    _check_unused(ctx, after.description)
    return (
        Delete(paths.network_name(before.description)),
        Create(paths.network_name(after.description), str(after.vni).encode()),
    )


def _one_at_a_time(ctx: Context, spec: NetworkSpec) -> tuple[Op, ...]:
    """Of two networks that get addresses or names at the same moment, one has to see the other first.

    To be asked before the others are looked at.
    """
    stored = ctx.reader.get(paths.NETWORKS) if has_addresses(spec) else None
    return (Put(paths.NETWORKS, b"", stored.version),) if stored else ()


def _check(ctx: Context, spec: NetworkSpec, nodes: Mapping[str, Node]) -> None:
    """Raises Invalid. Addresses and names are all that concern other networks."""
    carries = [
        greatest
        for node in nodes.values()
        if node.is_running
        if (greatest := node.status.managed_mtu if spec.kind is Kind.MANAGED else node.status.bridged_mtu)
    ]
    others = (one.spec for one in ctx.view.networks().values()) if has_addresses(spec) else ()
    check(spec, others, carries=min(carries, default=0), taken=_taken(ctx, nodes))
    if spec.domain and spec.domain == ctx.view.cluster().dns_domain:
        raise Invalid(f"{spec.domain} is the domain of the cluster's nodes already")


def _taken(ctx: Context, nodes: Mapping[str, Node]) -> dict[Prefix, str]:
    """What the nodes have themselves: the primary could not tell it from what guests have."""
    cluster = ctx.view.cluster()
    floating = {"upstream": cluster.upstream_address, "cluster": cluster.cluster_address}
    taken: dict[Prefix, str] = {
        ip_interface(address).network: f"the {which} network"
        for which, address in floating.items()
        if address
    }
    for name, node in nodes.items():
        for address in (node.spec.address, node.spec.storage_address):
            if address:
                taken[ip_network(address)] = f"an address of {name}"
    return taken


def _check_reservations(ctx: Context, before: NetworkSpec, after: NetworkSpec) -> None:
    """Who has been promised an address keeps it."""
    if list(before.prefixes()) == list(after.prefixes()) and before.gateways == after.gateways:
        return
    listing = paths.network_reservations(after.vni)
    stored = ctx.reader.get_many([f"{listing}/{mac}" for mac in ctx.reader.children(listing)])
    promised = [ctx.view.decode(Reservation, one) for one in stored if one is not None]
    for one in promised:
        address = ip_address(one.address)
        fits = any(address in prefix for prefix in after.prefixes()) and str(address) not in after.gateways
        if not fits:
            raise Conflict(
                f"{one.address} is reserved for {one.mac} in network {after.vni}, and would not be there",
                hint=f"pvc network dhcp remove {after.vni} {one.mac}",
            )


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
            hint="pvc vm network remove takes a VM out of it",
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
    return _described(ctx, found.spec, found.spec_version, ctx.view.nodes())


@operation(
    "GET",
    "/network",
    verb="list",
    columns=("vni", "description", "kind", "mtu", "domain", "ipnet", "ipnet6", "dhcp", "state", "vms"),
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
    unserved = {
        problem.vni for node in running if node.is_primary for problem in node.status.service_problems
    }
    troubled |= {vni for vni, one in networks.items() if {vni, 0} & unserved and one.spec.gateways}
    used = Counter(name for vm in ctx.view.vms().values() for name in {*vm.spec.networks})
    rows = (
        _row(
            one.spec,
            vni not in troubled and all(bridge_name(vni) in bridges for bridges in have),
            used[str(vni)],
        )
        for vni, one in networks.items()
        if matches(one.spec.description) and kind in (None, one.spec.kind)
    )
    return tuple(sorted(rows, key=lambda row: row.vni))


def _row(spec: NetworkSpec, is_up: bool, vms: int) -> NetworkRow:
    return NetworkRow(
        vni=spec.vni,
        description=spec.description,
        kind=spec.kind,
        mtu=spec.mtu,
        domain=spec.domain,
        ipnet=spec.ipv4.network,
        gateway=spec.ipv4.gateway,
        dhcp=spec.ipv4.dhcp is not None,
        ipnet6=spec.ipv6.network,
        gateway6=spec.ipv6.gateway,
        dhcp6=spec.ipv6.dhcp,
        state=_state(is_up),
        vms=vms,
    )


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


def _unserved(spec: NetworkSpec, nodes: Mapping[str, Node]) -> list[str]:
    """What the primary cannot do for it."""
    return [
        f"{name}, which serves it: {problem.why}"
        for name, node in nodes.items()
        if node.is_running and node.is_primary and spec.gateways
        for problem in node.status.service_problems
        if problem.vni in (spec.vni, 0)
    ]


def _described(
    ctx: Context, spec: NetworkSpec, version: int, nodes: Mapping[str, Node], *, wait: bool = False
) -> NetworkInfo:
    vms, leases = _users(ctx, spec.vni), len(ctx.reader.children(paths.network_leases(spec.vni)))
    found = {name: _on_node(spec, node) for name, node in sorted(nodes.items())}
    running = {name: how for name, how in found.items() if nodes[name].is_running}
    waiting = [name for name, how in running.items() if how == NOT_YET]
    missing = [f"{name}: {how}" for name, how in running.items() if how != HERE]
    missing += _unserved(spec, nodes)
    serving = next((name for name, node in nodes.items() if node.is_primary and spec.gateways), "")
    said = hashlib.sha256(repr((found, missing, vms, leases, serving)).encode()).hexdigest()[:16]
    dhcp = spec.ipv4.dhcp
    return NetworkInfo(
        name=str(spec.vni),
        vni=spec.vni,
        description=spec.description,
        kind=spec.kind,
        mtu=spec.mtu,
        bridge=bridge_name(spec.vni),
        domain=spec.domain,
        dns_servers=spec.dns_servers,
        ntp_servers=spec.ntp_servers,
        ipnet=spec.ipv4.network,
        gateway=spec.ipv4.gateway,
        dhcp_start=dhcp.start if dhcp else "",
        dhcp_end=dhcp.end if dhcp else "",
        ipnet6=spec.ipv6.network,
        gateway6=spec.ipv6.gateway,
        dhcp6=spec.ipv6.dhcp,
        leases=leases,
        gateway_node=serving,
        state=_state(not missing),
        activity=f"not made yet on {_named(tuple(waiting))}" if waiting else "",
        reason="; ".join(missing),
        nodes=found,
        vms=vms,
        version=f"{version}.{said}",
        settled=not waiting,
        goal={"state": HERE} if wait else None,
    )
