"""OSDs: the disks of nodes on which Ceph keeps everything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from pvc import sizes
from pvc.cluster import paths
from pvc.cluster.ceph import OSD, Figures, OSDInfo
from pvc.cluster.codec import from_json
from pvc.commands import task, types
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.task import TaskInfo
from pvc.commands.types import NodeName
from pvc.errors import Conflict, Invalid, NotFound, Unavailable

if TYPE_CHECKING:
    from pvc.cluster.view import Node

TRIES = 2
"""Nodes that are asked one after the other when the first does not answer."""

Device = Annotated[
    str,
    Arg(
        "a disk: its path, or detect:NAME:SIZE:N for the Nth (from 0) of its model and size",
        metavar="DEVICE",
        pattern=r"/dev/(?!.*\.\.)[A-Za-z0-9._:+/-]{1,255}|detect:[^:\n]{1,64}:\d{1,6}(\.\d{1,3})?[KMGT]?B?:\d{1,3}",
        what="a path like /dev/sdb, or detect:NAME:SIZE:N like detect:INTEL:800GB:0",
    ),
]
OSDNumber = Annotated[
    int, Arg("number of the OSD", metavar="OSD", complete="osd", minimum=0, maximum=100_000)
]
Tier = Annotated[
    str,
    Arg(
        "its device class (hdd, ssd, nvme …); Ceph finds out unless given",
        short="-t",
        metavar="TIER",
        pattern=r"[a-z0-9][a-z0-9_-]{0,30}",
        what="a device class: lower-case letters, digits, dashes",
    ),
]
Weight = Annotated[
    float,
    Arg("its share of the data, in TiB; its size unless given", short="-w", minimum=0.0001, maximum=10_000),
]
DBSize = Annotated[
    str,
    Arg(
        "of its database, in the node's volume group osd-db",
        short="-s",
        metavar="SIZE",
        pattern=types.SIZE_PATTERN,
        what="a size like 40G",
    ),
]


class Flag(StrEnum):
    """Of all OSDs at once."""

    NOOUT = "noout"
    NOIN = "noin"
    NOUP = "noup"
    NODOWN = "nodown"
    NOBACKFILL = "nobackfill"
    NOREBALANCE = "norebalance"
    NORECOVER = "norecover"
    NOSCRUB = "noscrub"
    NODEEP_SCRUB = "nodeep-scrub"
    NOSNAPTRIM = "nosnaptrim"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class OSDRow:
    id: int
    node: str
    tier: str
    state: str
    weight: float
    size_bytes: int
    used_bytes: int
    used_percent: int
    pgs: int


@operation("GET", "/storage/osd", noun="storage", verb="osd list")
def list_(
    ctx: Context,
    *,
    node: Annotated[types.NodeName, Arg("only those of that node", short="-n")] | None = None,
) -> tuple[OSDRow, ...]:
    """List OSDs: where they are, whether they are up and take data, how full they are."""
    found = from_json(tuple[OSD, ...], ask(ctx)["figures"]["osds"])
    return tuple(row(one) for one in found if node in (None, one.node))


def row(osd: OSD) -> OSDRow:
    return OSDRow(
        id=osd.id,
        node=osd.node,
        tier=osd.tier,
        state=osd.state,
        weight=osd.weight,
        size_bytes=osd.size_bytes,
        used_bytes=osd.used_bytes,
        used_percent=osd.used_percent,
        pgs=osd.pgs,
    )


@operation("GET", "/storage/osd/{osd}", noun="storage", verb="osd info")
def info(ctx: Context, osd: OSDNumber) -> OSDInfo:
    """Show an OSD: where and on which disk it is, how full and how fast, and whether it could go now."""
    return from_json(OSDInfo, ask(ctx, f"ceph/osd/{osd}"))


@operation(
    "POST",
    "/storage/osd",
    noun="storage",
    verb="osd add",
    role=Role.ADMIN,
    confirm="Make {device} of {node} an OSD? With --force whatever is on it is lost.",
    waits="task.info",
    done="{device} of {node} is an OSD",
)
def add(
    ctx: Context,
    node: NodeName,
    device: Device,
    *,
    weight: Weight | None = None,
    tier: Tier | None = None,
    split: Annotated[int, Arg("into so many OSDs, of one device", minimum=1, maximum=16)] = 1,
    db_size: DBSize | None = None,
    force: Annotated[bool, Arg("take away what is on it", short="-f")] = False,
) -> TaskInfo:
    """Make a disk of a node an OSD of Ceph. One that holds data or is in use is refused, and why is told."""
    _check_ceph(ctx, node)
    if db_size and split > 1:
        raise Invalid("a device that is split has no databases elsewhere", hint="without --db-size")
    asked = {**_making(device, weight, tier, db_size, wipe=force), "split": split}
    return task.begin(ctx, "storage.osd-add", f"making {device} of {node} an OSD", node, arguments=asked)


def _making(
    device: str, weight: float | None, tier: str | None, db_size: str | None, *, wipe: bool
) -> dict[str, Any]:
    return {
        "device": device,
        "weight": weight,
        "tier": tier or "",
        "db_bytes": types.volume_bytes(db_size) if db_size else 0,
        "wipe": wipe,
    }


@operation(
    "POST",
    "/storage/osd/{osd}/replace",
    noun="storage",
    verb="osd replace",
    role=Role.ADMIN,
    confirm="Put OSD {osd} on {device}, and take it off its old disk?",
    waits="task.info",
    done="OSD {osd} is on {device}",
)
def replace(
    ctx: Context,
    osd: OSDNumber,
    device: Device,
    *,
    weight: Weight | None = None,
    tier: Tier | None = None,
    db_size: DBSize | None = None,
    wipe: Annotated[bool, Arg("take away what is on the new disk")] = False,
    force: Annotated[bool, Arg("do not wait until its data is elsewhere", short="-f")] = False,
) -> TaskInfo:
    """Give an OSD another disk of its node: it keeps its number and its place.

    Its data goes elsewhere first, however long that takes, as for `osd remove`.
    """
    node = _node_with(ctx, osd)
    asked = {**_making(device, weight, tier, db_size, wipe=wipe), **_removing(ctx, osd, node, force=force)}
    return _begin(ctx, "replace", f"putting OSD {osd} on {device}", node, osd, asked)


@operation(
    "DELETE",
    "/storage/osd/{osd}",
    noun="storage",
    verb="osd remove",
    role=Role.ADMIN,
    confirm="Remove OSD {osd} and all that is on its disk? With --force also what may have no other copy.",
    waits="task.info",
    done="OSD {osd} is removed",
)
def remove(
    ctx: Context,
    osd: OSDNumber,
    *,
    force: Annotated[bool, Arg("do not wait until its data is elsewhere", short="-f")] = False,
) -> TaskInfo:
    """Take an OSD away: its data goes elsewhere, and when Ceph says that nothing depends on it, it goes.

    However long that takes; `task cancel` brings it back. With --force it goes at once: each object on it has
    one copy less until Ceph has made another, and what had its last copy there is lost.
    """
    node = _find(ctx, osd)
    if node is not None and node.is_running:
        asked = _removing(ctx, osd, node, force=force)
        return _begin(ctx, "remove", f"removing OSD {osd}", node, osd, asked)
    other = reaching(ctx)[0]
    if node is not None:
        ctx.say(f"{node.spec.name}, which has its disk, is {node.daemon_state}: the disk stays as it is")
    asked = {**_removing(ctx, osd, other, force=force), "here": False}
    return _begin(ctx, "remove", f"removing OSD {osd}", other, osd, asked)


def _removing(ctx: Context, osd: int, node: Node, *, force: bool) -> dict[str, Any]:
    if force:
        ctx.say(f"nobody waits for copies of what is on OSD {osd}: what has no other copy is lost")
        _say_risk(ctx, osd)
    else:
        ctx.say(f"{node.spec.name} waits, however long, until Ceph says that OSD {osd} can go")
    return {"osd": osd, "here": True, "force": force}


def _say_risk(ctx: Context, osd: int) -> None:
    """As far as a node says."""
    try:
        found = from_json(Figures, ask(ctx)["figures"])
    except Unavailable as error:
        ctx.say(f"how much that is, nobody says: {error.message}")
        return
    used = next((one for one in found.osds if one.id == osd), None)
    if used is not None:
        there = f"{used.pgs} PGs, {sizes.show(used.used_bytes)}"
        ctx.say(f"on OSD {osd} are {there}; of all objects {found.degraded} copies are missing already")


@operation(
    "POST",
    "/storage/osd/{osd}/refresh",
    noun="storage",
    verb="osd refresh",
    role=Role.ADMIN,
    waits="task.info",
    done="OSD {osd} is up",
)
def refresh(ctx: Context, osd: OSDNumber, device: Device) -> TaskInfo:
    """Start an OSD whose disk is there, as after the system of its node was installed anew."""
    node = _node_with(ctx, osd)
    return _begin(ctx, "refresh", f"taking up OSD {osd}", node, osd, {"osd": osd, "device": device})


@operation(
    "POST",
    "/storage/osd-db",
    noun="storage",
    verb="osd create-db-vg",
    role=Role.ADMIN,
    confirm="Make {device} of {node} the place for databases? With --force whatever is on it is lost.",
    waits="task.info",
    done="{node} has a volume group osd-db",
)
def create_db_vg(
    ctx: Context,
    node: NodeName,
    device: Device,
    *,
    force: Annotated[bool, Arg("take away what is on it", short="-f")] = False,
) -> TaskInfo:
    """Make a fast disk of a node the place for databases of OSDs on its slow disks (osd add --db-size)."""
    _check_ceph(ctx, node)
    about = f"making {device} of {node} the place for databases of OSDs"
    asked = {"device": device, "wipe": force}
    return task.begin(ctx, "storage.osd-create-db-vg", about, node, arguments=asked)


@operation(
    "POST",
    "/storage/osd/{osd}/in",
    noun="storage",
    verb="osd in",
    role=Role.OPERATE,
    waits="task.info",
    done="OSD {osd} takes data",
)
def in_(ctx: Context, osd: OSDNumber) -> TaskInfo:
    """Let an OSD take data again."""
    return _steer_one(ctx, "in", osd, f"letting OSD {osd} take data")


@operation(
    "POST",
    "/storage/osd/{osd}/out",
    noun="storage",
    verb="osd out",
    role=Role.OPERATE,
    waits="task.info",
    done="the data of OSD {osd} goes elsewhere",
)
def out(ctx: Context, osd: OSDNumber) -> TaskInfo:
    """Let all data of an OSD go to others; its daemon goes on."""
    return _steer_one(ctx, "out", osd, f"letting the data of OSD {osd} go elsewhere")


def _steer_one(ctx: Context, verb: str, osd: int, about: str) -> TaskInfo:
    node = _find(ctx, osd)
    able = node if node is not None and node.is_running else reaching(ctx)[0]
    return _begin(ctx, verb, about, able, osd, {"about": str(osd)})


@operation(
    "PUT",
    "/storage/osd-flags/{flag}",
    noun="storage",
    verb="osd set",
    role=Role.ADMIN,
    waits="task.info",
    done="{flag} is set",
)
def set_(ctx: Context, flag: Annotated[Flag, Arg("the flag", metavar="FLAG")]) -> TaskInfo:
    """Set a flag of all OSDs: noout before the maintenance of a node, so that its data stays where it is."""
    return _steer_all(ctx, "set", flag)


@operation(
    "DELETE",
    "/storage/osd-flags/{flag}",
    noun="storage",
    verb="osd unset",
    role=Role.ADMIN,
    waits="task.info",
    done="{flag} is not set",
)
def unset(ctx: Context, flag: Annotated[Flag, Arg("the flag", metavar="FLAG")]) -> TaskInfo:
    """Take a flag of all OSDs back."""
    return _steer_all(ctx, "unset", flag)


def _steer_all(ctx: Context, verb: str, flag: Flag) -> TaskInfo:
    node = reaching(ctx)[0].spec.name
    arguments = {"about": str(flag)}
    return task.begin(ctx, f"storage.osd-{verb}", f"{verb} {flag} of all OSDs", node, arguments=arguments)


def _begin(
    ctx: Context, verb: str, about: str, node: Node, osd: int, arguments: Mapping[str, Any]
) -> TaskInfo:
    name = node.spec.name
    claims = (paths.node_osd(name, osd),)
    return task.begin(ctx, f"storage.osd-{verb}", about, name, arguments=arguments, claims=claims)


# Who is asked, and who does it


def reaching(ctx: Context) -> list[Node]:
    """Nodes that reach Ceph, in the same order each time. Raises Unavailable where none does now, Conflict
    where there is none."""
    nodes = sorted(ctx.view.nodes().values(), key=lambda node: node.spec.name)
    able = [node for node in nodes if node.is_running and (seen := node.status.ceph) and seen.fsid]
    if not able:
        problems = [why for node in nodes if (seen := node.status.ceph) for why in seen.problems]
        if not problems:
            raise Conflict(
                "this cluster has no Ceph: no node that runs has a /etc/ceph/ceph.conf",
                hint="docs/storage.md says what a node needs",
            )
        raise Unavailable(f"no node reaches Ceph now: {problems[0]}")
    return able


def ask(ctx: Context, path: str = "ceph") -> Any:
    """How Ceph is, from a node that reaches it; from another one when that does not answer."""
    *others, last = reaching(ctx)[:TRIES]
    for node in others:
        try:
            return ctx.ask(node.spec.address, node.status.console_port, path)
        except Unavailable:
            continue
    return ctx.ask(last.spec.address, last.status.console_port, path)


def _check_ceph(ctx: Context, node: str) -> None:
    seen = ctx.view.node(node).status.ceph
    if seen is None or not seen.fsid:
        told = seen.problems[0] if seen and seen.problems else f"{node} has no /etc/ceph/ceph.conf"
        raise Unavailable(f"{node} reaches no Ceph: {told}")


def _find(ctx: Context, osd: int) -> Node | None:
    """Who has its disk, as far as nodes have told."""
    for node in ctx.view.nodes().values():
        if node.status.ceph is not None and osd in node.status.ceph.osds:
            return node
    return None


def _node_with(ctx: Context, osd: int) -> Node:
    """Raises NotFound."""
    reaching(ctx)
    if (found := _find(ctx, osd)) is None:
        raise NotFound(f"no node has OSD {osd}, as far as they have told", hint="pvc storage osd list")
    return found
