"""What the cluster as a whole is told: how it fences, places, starts and moves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from pvc.cluster import paths
from pvc.cluster.addresses import GREATEST_AS, parse_router
from pvc.cluster.cluster import ClusterSpec, FencePolicy
from pvc.cluster.codec import dumps
from pvc.cluster.store import Put
from pvc.cluster.vm import Selector
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.types import Switch
from pvc.errors import Invalid


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    name: str
    maintenance: bool
    autoready: bool
    upstream_address: str
    """Floating: whoever is primary answers for it. Empty: there is none."""
    cluster_address: str
    """The same on the cluster network."""
    as_number: int
    """Of BGP: between the nodes, and towards routers upstream."""
    routers: tuple[str, ...]
    """Upstream, each with its AS number: coordinators speak BGP with them."""
    dns_domain: str
    """Of the names of nodes and floating addresses. Empty: they have none."""
    dns_secondaries: tuple[str, ...]
    """Name servers that are told of each change, and may copy zones."""
    dns_transfers: tuple[str, ...]
    """Who else may copy zones. Empty: the networks of the floating addresses, and the nodes."""
    fence_grace_s: float
    """From the end of a node's session until it is fenced."""
    fence_policy: FencePolicy
    primary: str
    """The coordinator that is wanted as primary; empty: whoever comes first."""
    selector: Selector
    shutdown_timeout_s: int
    migrations_at_once: int
    """Per node, outgoing."""
    starts_at_once: int
    """Per node."""
    restart_limit: int
    """Bad ends in a row before a VM is `fail`."""
    layout: int


def describe(spec: ClusterSpec) -> ClusterInfo:
    return ClusterInfo(
        name=spec.name,
        maintenance=spec.maintenance,
        autoready=spec.autoready,
        upstream_address=spec.upstream_address,
        cluster_address=spec.cluster_address,
        as_number=spec.as_number,
        routers=spec.routers,
        dns_domain=spec.dns_domain,
        dns_secondaries=spec.dns_secondaries,
        dns_transfers=spec.dns_transfers,
        fence_grace_s=spec.fence_grace_s,
        fence_policy=spec.fence_policy,
        primary=spec.primary,
        selector=spec.selector,
        shutdown_timeout_s=spec.shutdown_timeout_s,
        migrations_at_once=spec.migrations_at_once,
        starts_at_once=spec.starts_at_once,
        restart_limit=spec.restart_limit,
        layout=spec.layout,
    )


Floating = Annotated[
    str,
    Arg(
        "floating address, as 10.0.0.250/24; none: without one",
        metavar="ADDRESS/LENGTH",
        pattern=r"[0-9A-Fa-f.:]{2,45}/\d{1,3}|none",
        what="an address with the length of its network, like 10.0.0.250/24, or none",
    ),
]


DNSDomain = Annotated[
    str,
    Arg(
        "domain of the names of nodes; none: they have no names",
        metavar="DOMAIN",
        pattern=r"[a-z0-9.-]{1,253}",
        what="a domain in lower case, like pvc.example.com, or none",
    ),
]
Secondary = Annotated[
    str,
    Arg(
        "name server that is told of each change and may copy zones; none: there is none",
        metavar="ADDRESS",
        pattern=r"[0-9A-Fa-f.:]{2,45}|none",
        what="an address, or none",
    ),
]
RouterText = Annotated[
    str,
    Arg(
        "router upstream and its AS number, with which coordinators speak BGP; none: there is none",
        metavar="ADDRESS@AS",
        pattern=r"[0-9A-Fa-f.:]{2,45}@\d{1,10}|none",
        what="a router's address and AS number like 10.0.0.254@64512, or none",
    ),
]
Transfer = Annotated[
    str,
    Arg(
        "who else may copy zones; none: the networks of the floating addresses, and the nodes",
        metavar="ADDRESS|NETWORK",
        pattern=r"[0-9A-Fa-f.:]{2,45}(/\d{1,3})?|none",
        what="an address or a network, or none",
    ),
]


@operation("GET", "/cluster", noun="cluster")
def info(ctx: Context) -> ClusterInfo:
    """Show the settings of the cluster; cluster set changes them."""
    return describe(ctx.view.cluster())


@operation(
    "PATCH",
    "/cluster",
    role=Role.ADMIN,
    noun="cluster",
    verb="set",
    done="the settings of {name} are changed",
)
def set_(
    ctx: Context,
    *,
    upstream_address: Floating | None = None,
    cluster_address: Floating | None = None,
    router: tuple[RouterText, ...] | None = None,
    as_number: Annotated[
        int,
        Arg(
            "the cluster's own AS number in BGP; 65000 unless told",
            metavar="AS",
            minimum=1,
            maximum=GREATEST_AS,
        ),
    ]
    | None = None,
    dns_domain: DNSDomain | None = None,
    dns_secondary: tuple[Secondary, ...] | None = None,
    dns_transfer: tuple[Transfer, ...] | None = None,
    fence_grace: Annotated[
        float,
        Arg(
            "how long a node may be gone before it is fenced",
            metavar="SECONDS",
            minimum=1,
            maximum=3600,
        ),
    ]
    | None = None,
    fence_policy: Annotated[FencePolicy, Arg("what becomes of a node that was fenced")] | None = None,
    selector: Annotated[Selector, Arg("by what the node of a VM is chosen", short="-s")] | None = None,
    shutdown_timeout: Annotated[
        int,
        Arg(
            "before a guest that does not shut down is powered off",
            metavar="SECONDS",
            minimum=1,
            maximum=86_400,
        ),
    ]
    | None = None,
    migrations_at_once: Annotated[
        int, Arg("how many VMs may leave a node at the same time", metavar="N", minimum=1, maximum=100)
    ]
    | None = None,
    starts_at_once: Annotated[
        int, Arg("how many VMs a node may start at the same time", metavar="N", minimum=1, maximum=100)
    ]
    | None = None,
    restart_limit: Annotated[
        int, Arg("bad ends in a row before a VM is not started again", metavar="N", minimum=1, maximum=1000)
    ]
    | None = None,
) -> ClusterInfo:
    """Change the settings of the cluster: only what is given changes.

    The primary answers for the floating addresses, on the device where it has an address of that network.
    """
    given = {
        "upstream_address": _floating(upstream_address),
        "cluster_address": _floating(cluster_address),
        "routers": _routers(router),
        "as_number": as_number,
        "dns_domain": "" if dns_domain == "none" else dns_domain,
        "dns_secondaries": _servers(dns_secondary),
        "dns_transfers": _sources(dns_transfer),
        "fence_grace_s": fence_grace,
        "fence_policy": fence_policy,
        "selector": selector,
        "shutdown_timeout_s": shutdown_timeout,
        "migrations_at_once": migrations_at_once,
        "starts_at_once": starts_at_once,
        "restart_limit": restart_limit,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        raise Invalid("cluster set needs something to change", hint="pvc cluster set --help")
    if selector is Selector.NONE:
        raise Invalid("selector of the cluster cannot be 'none'", hint="VMs with none use the cluster's")
    spec, version = ctx.view.cluster_document()
    new = replace(spec, **changes)  # type: ignore[arg-type]
    _check_addresses(ctx, new)
    _check_networks(ctx, spec, new)
    _check_dns_domain(ctx, new)
    for name in changes:
        ctx.say(f"{name} of {spec.name}: {_told(getattr(spec, name))} → {_told(getattr(new, name))}")
    return _save(ctx, spec, new, version)


def _floating(text: str | None) -> str | None:
    if text is None or text == "none":
        return None if text is None else ""
    from pvc.cluster.addresses import parse

    return str(parse(text))


def _routers(given: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if given is None or given == ("none",):
        return None if given is None else ()
    routers = {found.address: found for found in map(parse_router, given)}
    if len(routers) < len(given):
        raise Invalid("a router is named twice")
    return tuple(map(str, routers.values()))


def _told(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _servers(given: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if given is None or given == ("none",):
        return None if given is None else ()
    from ipaddress import ip_address

    try:
        servers = [ip_address(text) for text in given]
    except ValueError as error:
        raise Invalid(f"no name server: {error}", hint="like 192.0.2.53") from None
    for server in servers:
        if server.is_unspecified or server.is_multicast or server.is_loopback or server.is_link_local:
            raise Invalid(f"{server} cannot be a name server: the primary could not reach it")
    return tuple(dict.fromkeys(map(str, servers)))


def _sources(given: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if given is None or given == ("none",):
        return None if given is None else ()
    from ipaddress import ip_network

    try:
        return tuple(dict.fromkeys(str(ip_network(text)) for text in given))
    except ValueError as error:
        raise Invalid(f"zones cannot be copied from there: {error}", hint="like 192.0.2.0/24") from None


def _check_dns_domain(ctx: Context, spec: ClusterSpec) -> None:
    if not spec.dns_domain:
        return
    from pvc.cluster.network import check_domain

    check_domain(spec.dns_domain, "the cluster")
    for vni, network in ctx.view.networks().items():
        if network.spec.domain == spec.dns_domain:
            raise Invalid(f"{spec.dns_domain} is the domain of network {vni} already")


def _check_addresses(ctx: Context, spec: ClusterSpec) -> None:
    """Of each host there is one; what a node has already cannot float."""
    wanted = [one.partition("/")[0] for one in spec.floating_addresses]
    if len(wanted) > len(set(wanted)):
        raise Invalid(f"{wanted[0]} cannot be upstream and cluster address at the same time")
    routers = {parse_router(text).address for text in spec.routers}
    if taken := routers & {*wanted}:
        raise Invalid(f"{min(taken)} cannot be a router: it is a floating address of the cluster")
    for name, node in ctx.view.nodes().items() if wanted or routers else ():
        own = {node.spec.address, node.spec.storage_address}
        for taken_address in own & {*wanted}:
            raise Invalid(
                f"{taken_address} is the address of {name}", hint="a floating address is one that nobody has"
            )
        for taken_address in own & routers:
            raise Invalid(f"{taken_address} cannot be a router: it is the address of {name}")


def _check_networks(ctx: Context, before: ClusterSpec, after: ClusterSpec) -> None:
    """The primary could not tell what VMs have from what the nodes have."""
    from ipaddress import ip_interface

    for address in {*after.floating_addresses}.difference(before.floating_addresses):
        wanted = ip_interface(address).network
        for vni, network in ctx.view.networks().items():
            for prefix in network.spec.prefixes():
                if prefix.version == wanted.version and prefix.overlaps(wanted):
                    raise Invalid(f"{address} is in {prefix} of network {vni}, which is for VMs")


@operation("PUT", "/cluster/autoready", noun="cluster", role=Role.OPERATE, done="autoready is {switch}")
def autoready(ctx: Context, switch: Annotated[Switch, Arg("on or off")]) -> ClusterInfo:
    """Choose whether a node that was fenced fetches its VMs home by itself when it is back.

    Off, as it is at first, it takes new VMs, and those that were recovered stay where they are: a node that
    dies again and again takes them down only once. pvc node flush and pvc node ready bring them home.
    """
    spec, version = ctx.view.cluster_document()
    ctx.say(f"autoready of {spec.name} goes {switch}")
    return _save(ctx, spec, replace(spec, autoready=switch is Switch.ON), version)


def _save(ctx: Context, old: ClusterSpec, new: ClusterSpec, version: int) -> ClusterInfo:
    if new == old:
        ctx.say("nothing would change")
    else:
        ctx.commit(Put(paths.CLUSTER, dumps(new), version))
    return describe(new)
