"""Network devices that nodes split into virtual functions (SR-IOV): look at them, and set each function."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.sriov import (
    GREATEST_QOS,
    GREATEST_VLAN,
    LinkState,
    PhysicalFunction,
    VirtualFunction,
    Wish,
    Wishes,
    check,
    function_name,
)
from pvc.cluster.store import Check, Create, Put
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.types import NodeName
from pvc.errors import Conflict, Invalid, NotFound

if TYPE_CHECKING:
    from pvc.cluster.view import Node

GREATEST_RATE = 1_000_000


@dataclass(frozen=True, slots=True)
class PFRow:
    name: str
    pci: str
    functions: int
    """That it is split into."""
    wanted: int
    """As node.sriov_devices says."""
    total: int
    """That it could have."""
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VFInfo:
    name: str
    node: str
    physical: str
    pci: str
    mac: str
    device: str
    """The network device it is on the node; empty where a guest has it."""
    vlan: int
    qos: int
    tx_rate_min: int
    """Mbit/s; 0: no promise."""
    tx_rate_max: int
    """Mbit/s; 0: no limit."""
    link_state: LinkState
    spoof_check: bool
    trust: bool
    query_rss: bool
    unsupported: tuple[str, ...]
    """What the driver of the device says nothing of."""
    activity: str
    """What is still to be set; empty when nothing is."""
    reason: str
    """Why it is not as wanted."""
    version: str
    settled: bool
    goal: dict[str, str] | None = None


FunctionName = Annotated[
    str,
    Arg(
        "a virtual function: the name of its device, v, and its number",
        metavar="VF",
        pattern=r"[^\s/:%]{1,15}v[0-9]{1,3}",
        what="a virtual function's name, like eth2v0",
    ),
]
Rate = Annotated[int, Arg("", metavar="MBIT/S", minimum=0, maximum=GREATEST_RATE)]


@operation(
    "GET",
    "/sriov/{node}/pf",
    noun="network",
    verb="sriov pf list",
    columns=("name", "pci", "functions", "wanted", "total", "problems"),
)
def pf_list(ctx: Context, node: NodeName = "") -> tuple[PFRow, ...]:
    """List the network devices of a node that are to be split: node.sriov_devices of its pvc.toml."""
    return tuple(
        PFRow(one.name, one.pci, len(one.functions), one.wanted, one.total, one.problems)
        for one in ctx.view.node(node).status.sriov
    )


@operation(
    "GET",
    "/sriov/{node}/vf",
    noun="network",
    verb="sriov vf list",
    columns=("name", "pci", "mac", "device", "vlan", "tx_rate_max", "link_state", "trust", "reason"),
)
def vf_list(ctx: Context, node: NodeName = "") -> tuple[VFInfo, ...]:
    """List the virtual functions of a node."""
    found, (wishes, version) = ctx.view.node(node), _wishes(ctx, node)
    return tuple(
        _described(found, physical, one, wishes, version)
        for physical in found.status.sriov
        for one in physical.functions
    )


@operation("GET", "/sriov/{node}/vf/{function}", noun="network", verb="sriov vf info")
def vf_info(ctx: Context, node: NodeName, function: FunctionName) -> VFInfo:
    """Show a virtual function of a node."""
    found, (wishes, version) = ctx.view.node(node), _wishes(ctx, node)
    return _described(found, *_named(found, function), wishes, version)


@operation(
    "PATCH",
    "/sriov/{node}/vf/{function}",
    noun="network",
    verb="sriov vf set",
    role=Role.OPERATE,
    waits="network.sriov-vf-info",
)
def vf_set(
    ctx: Context,
    node: NodeName,
    function: FunctionName,
    *,
    vlan: Annotated[
        int,
        Arg(
            "tag its packets; 0: as its guest says",
            long="vlan-id",
            metavar="VLAN",
            minimum=0,
            maximum=GREATEST_VLAN,
        ),
    ]
    | None = None,
    qos: Annotated[
        int, Arg("priority in the VLAN", long="qos-prio", metavar="0-7", minimum=0, maximum=GREATEST_QOS)
    ]
    | None = None,
    tx_rate_min: Annotated[Rate, Arg("what it has in any case; 0: nothing", long="tx-min")] | None = None,
    tx_rate_max: Annotated[Rate, Arg("what it has at most; 0: no limit", long="tx-max")] | None = None,
    link_state: Annotated[LinkState, Arg("its link: as the device's own, or forced")] | None = None,
    spoof_check: Annotated[bool, Arg("it sends with its own MAC only")] | None = None,
    trust: Annotated[bool, Arg("its guest may change its MAC, and listen to everything")] | None = None,
    query_rss: Annotated[bool, Arg("its guest may read the hash key of the device")] | None = None,
) -> VFInfo:
    """Set what is given of a virtual function, and nothing else. Its node keeps it so, also after a boot."""
    wish = Wish(function, vlan, qos, tx_rate_min, tx_rate_max, link_state, spoof_check, trust, query_rss)
    given = wish.given()
    if not given:
        raise Invalid("sriov vf set needs something to set", hint="pvc network sriov vf set --help")
    found = ctx.view.node(node)
    physical, one = _named(found, function)
    unknown = sorted(set(given) - set(one.supported))
    if unknown:
        raise Conflict(f"the driver of {physical.name} knows no {', '.join(unknown)}")
    wishes, version = _wishes(ctx, node)
    meant = replace(wishes.of(function), **given)
    check(meant, one.settings)
    for name, value in given.items():
        ctx.say(f"{name} of {function} on {node}: {getattr(one.settings, name)} → {value}")
    after = wishes.with_(meant)
    path = paths.node_sriov(node)
    change = Create(path, dumps(after)) if version < 0 else Put(path, dumps(after), version)
    ctx.commit(Check(paths.node(node), found.spec_version), change)
    return _described(found, physical, one, after, version + 1, wait=True)


def _wishes(ctx: Context, node: str) -> tuple[Wishes, int]:
    """With their version; -1 where there are none yet."""
    stored = ctx.reader.get(paths.node_sriov(node))
    return (Wishes(), -1) if stored is None else (ctx.view.decode(Wishes, stored), stored.version)


def _named(node: Node, function: str) -> tuple[PhysicalFunction, VirtualFunction]:
    for physical in node.status.sriov:
        for one in physical.functions:
            if function_name(physical.name, one.number) == function:
                return physical, one
    raise NotFound(
        f"{node.spec.name} has no virtual function {function}",
        hint=f"pvc network sriov vf list {node.spec.name}",
    )


def _described(
    node: Node,
    physical: PhysicalFunction,
    one: VirtualFunction,
    wishes: Wishes,
    version: int,
    *,
    wait: bool = False,
) -> VFInfo:
    name, now = function_name(physical.name, one.number), one.settings
    wish = wishes.of(name)
    missing = [key for key, value in wish.given().items() if getattr(now, key) != value]
    failed = [why for why in physical.problems if why.startswith(f"{name}: ")]
    return VFInfo(
        name=name,
        node=node.spec.name,
        physical=physical.name,
        pci=one.pci,
        mac=one.mac,
        device=one.device,
        vlan=now.vlan,
        qos=now.qos,
        tx_rate_min=now.tx_rate_min,
        tx_rate_max=now.tx_rate_max,
        link_state=now.link_state,
        spoof_check=now.spoof_check,
        trust=now.trust,
        query_rss=now.query_rss,
        unsupported=tuple(sorted({*Wish("").__slots__} - {"name", *one.supported})),
        activity=f"about to set {', '.join(missing)}" if missing and not failed else "",
        reason="; ".join(failed),
        version=f"{node.version}.{version}",
        settled=not missing or bool(failed),
        goal={"reason": ""} if wait else None,
    )
