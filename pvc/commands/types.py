"""The types of parameters: each name with its strict pattern, each number with its bounds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

from pvc import bounds, names
from pvc.commands.registry import Arg
from pvc.errors import Invalid

NETWORK_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
SIZE_PATTERN = r"\d{1,9}(\.\d{1,3})?\s?([KMGT]i?B?|[kmgt])"
FILE_PATTERN = r"/[^\0\n]{1,4095}"

MIB = 1024**2

_VM_WORDS = "a VM's name: up to 63 letters, digits, dots, dashes and underscores, the first a letter or digit"
NODE_WORDS = "a node's name: up to 63 lower-case letters, digits and dashes"

VMName = Annotated[
    str, Arg("name or UUID of the VM", metavar="VM", complete="vm", pattern=names.VM, what=_VM_WORDS)
]
NewName = Annotated[str, Arg("its name from now on", metavar="NAME", pattern=names.VM, what=_VM_WORDS)]
NodeName = Annotated[
    str, Arg("name of the node", metavar="NODE", complete="node", pattern=names.NODE, what=NODE_WORDS)
]
Target = Annotated[
    str,
    Arg(
        "the node it shall go to; the best one unless given",
        short="-t",
        metavar="NODE",
        complete="node",
        pattern=names.NODE,
        what=NODE_WORDS,
    ),
]
Limit = Annotated[
    str, Arg("only names that match this regular expression, anywhere unless anchored", metavar="LIMIT")
]
NodeLimit = Annotated[
    str,
    Arg(
        "the only nodes it may be on; empty: any",
        short="-l",
        metavar="NODES",
        complete="node",
        pattern=names.NODE,
        what=NODE_WORDS,
    ),
]
TagName = Annotated[
    str,
    Arg(
        "the tag",
        metavar="TAG",
        complete="tag",
        pattern=names.TAG,
        what="a tag: up to 63 letters, digits, dots, dashes, colons and underscores",
    ),
]
Autostart = Annotated[bool, Arg("start it when its node becomes ready", short="-a/-A")]
StartPriority = Annotated[
    int,
    Arg(
        "among VMs that are to start: the greater number first; 100 unless told",
        metavar="N",
        minimum=bounds.START_PRIORITY.least,
        maximum=bounds.START_PRIORITY.most,
    ),
]
Restart = Annotated[
    bool, Arg("restart it now if it runs; else the change waits for its next start", short="-r/-R")
]
MaxDowntime = Annotated[
    int,
    Arg(
        "how long a live migration may stop it",
        short="-d",
        metavar="MS",
        minimum=bounds.MAX_DOWNTIME_MS.least,
        maximum=bounds.MAX_DOWNTIME_MS.most,
    ),
]
VCPUCount = Annotated[int, Arg("number of vCPUs", metavar="N", minimum=1, maximum=288)]
TopologyText = Annotated[
    str,
    Arg(
        "sockets, cores of each, threads of each; one socket unless given",
        metavar="S,C,T",
        pattern=r"[1-9]\d{0,2},[1-9]\d{0,2},[1-9]\d{0,2}",
        what="sockets,cores,threads like 1,4,2",
    ),
]
MACText = Annotated[
    str,
    Arg(
        "its MAC address",
        short="-a",
        metavar="MAC",
        pattern=r"(?!00(:00){5})[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}",
        what="a MAC address of one interface, like 52:54:00:12:34:56",
    ),
]
Live = Annotated[bool, Arg("while it runs, if it does; else from its next start", short="-l/-L")]
MemoryText = Annotated[
    str,
    Arg(
        "memory, in MiB unless it has a unit: 512, 512M, 2G",
        metavar="SIZE",
        pattern=rf"\d{{1,9}}|{SIZE_PATTERN}",
        what="an amount of memory like 512, 512M or 2G",
    ),
]
DISK_PATTERN = rf"{SIZE_PATTERN}|{FILE_PATTERN}|{names.POOL}/({SIZE_PATTERN}|{names.VOLUME})"
DISK_WORDS = "POOL/SIZE or SIZE like 10G for a new volume, POOL/VOLUME, or an absolute path"
DiskText = Annotated[
    str,
    Arg(
        "a disk: a new volume of that size, in the only pool unless it says which; or a volume, or a file or "
        "device of the nodes, that is there",
        metavar="[POOL/]SIZE|POOL/VOLUME|FILE",
        pattern=DISK_PATTERN,
        what=DISK_WORDS,
    ),
]
NetworkText = Annotated[
    str,
    Arg(
        "an interface in that network, or on that bridge of the nodes",
        metavar="NETWORK|bridge:NAME",
        complete="network",
        pattern=rf"bridge:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,14}}|{NETWORK_PATTERN}",
        what="a network's number or description, or bridge:NAME with the name of a bridge",
    ),
]
NetworkName = Annotated[
    str,
    Arg(
        "number (VNI) or description of the network",
        metavar="NETWORK",
        complete="network",
        pattern=NETWORK_PATTERN,
        what="a network's number or description",
    ),
]
PoolName = Annotated[
    str,
    Arg(
        "name of the pool",
        metavar="POOL",
        complete="pool",
        pattern=names.POOL,
        what="a pool's name: up to 63 letters, digits, dots, dashes and underscores",
    ),
]
_VOLUME_WORDS = (
    "{} name: up to 127 letters, digits, dots, dashes and underscores, the first a letter or digit"
)
VolumeName = Annotated[
    str,
    Arg(
        "name of the volume",
        metavar="VOLUME",
        complete="volume",
        pattern=names.VOLUME,
        what=_VOLUME_WORDS.format("a volume's"),
    ),
]
NewVolumeName = Annotated[VolumeName, Arg("its name from now on", metavar="NEW", complete="none")]
SnapshotName = Annotated[
    str,
    Arg(
        "name of the snapshot",
        metavar="SNAPSHOT",
        complete="volume-snapshot",
        pattern=names.SNAPSHOT,
        what=_VOLUME_WORDS.format("a snapshot's"),
    ),
]
VMSnapshotName = Annotated[
    str,
    Arg(
        "name of the snapshot",
        metavar="NAME",
        complete="vm-snapshot",
        pattern=names.VM,
        what=_VM_WORDS.replace("a VM's", "a snapshot's"),
    ),
]
VolumeSize = Annotated[
    str,
    Arg(
        "its size: bytes, or with a unit like 10G or 1.5T",
        metavar="SIZE",
        pattern=rf"\d{{1,16}}|{SIZE_PATTERN}",
        what="a size like 10G",
    ),
]
TaskName = Annotated[
    str,
    Arg(
        "the task",
        metavar="TASK",
        complete="task",
        pattern=r"[0-9a-f]{8}",
        what="a task's identity: 8 hexadecimal digits, as pvc task list shows them",
    ),
]
Lines = Annotated[int, Arg("how many of the last lines", short="-l", metavar="N", minimum=0, maximum=100_000)]


class Switch(StrEnum):
    ON = "on"
    OFF = "off"


class CoordinatorState(StrEnum):
    """Of a node, as users see it."""

    PRIMARY = "primary"
    TAKEOVER = "takeover"
    """It is to be primary, or is and does not answer for the floating addresses yet."""
    RELINQUISH = "relinquish"
    """It is primary, and another one is to be."""
    SECONDARY = "secondary"
    HYPERVISOR = "hypervisor"


class DomainState(StrEnum):
    """Of a node, as users see it."""

    READY = "ready"
    FLUSH = "flush"
    FLUSHED = "flushed"
    UNFLUSH = "unflush"


_FACTORS = {"": 1, "K": 1024, "M": MIB, "G": 1024**3, "T": 1024**4}


def size_bytes(text: str) -> int:
    """Bytes of 10G, 512M, 1.5T; units are powers of 1024."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s?([KMGTkmgt]?)(?:i?B?)", text)
    if found is None:
        raise Invalid(f"{text!r} is not a size", hint="like 512M or 10G")
    return int(float(found[1]) * _FACTORS[found[2].upper()])


def volume_bytes(text: str) -> int:
    """Exact where it is a number of bytes; else the next whole sector. Raises Invalid."""
    from pvc.cluster import storage

    size = (
        int(text) if text.isdigit() else -(-size_bytes(text) // storage.SECTOR_BYTES) * storage.SECTOR_BYTES
    )
    storage.check_size(size)
    return size


def memory_mib(text: str) -> int:
    """A bare number is MiB."""
    return int(text) if text.isdigit() else size_bytes(text) // MIB


class DiskAsked(NamedTuple):
    path: str = ""
    pool: str = ""
    """Empty: the only one."""
    volume: str = ""
    size_bytes: int = 0
    """Of one that is to be made."""


def disk_asked(text: str) -> DiskAsked:
    """Of a DiskText: what looks like a size is one."""
    if text.startswith("/"):
        return DiskAsked(path=text)
    pool, _, what = text.rpartition("/")
    if re.fullmatch(SIZE_PATTERN, what):
        return DiskAsked(pool=pool, size_bytes=volume_bytes(what))
    return DiskAsked(pool=pool, volume=what)


def topology(text: str) -> tuple[int, int, int]:
    sockets, cores, threads = (int(part) for part in text.split(","))
    return sockets, cores, threads


MOST_REPEATS, MOST_CHOICES = 3, 6


def limit_pattern(text: str) -> re.Pattern[str]:
    """Raises Invalid when it is no regular expression, or one that may take for ever: (a+)+ stops servers."""
    try:
        pattern = re.compile(text)
        ways = list(_ways(vars(re)["_parser"].parse(text), 0))
    except (re.error, OverflowError, RecursionError) as error:
        raise Invalid(f"LIMIT {text!r} is not a regular expression: {error}") from None
    repeats = [depth for repeats, depth in ways if repeats]
    if (
        len(repeats) > MOST_REPEATS
        or len(ways) - len(repeats) > MOST_CHOICES
        or any(depth for _, depth in ways)
    ):
        raise Invalid(
            f"LIMIT {text!r} may take too long to match",
            hint=f"at most {MOST_REPEATS} repetitions, and neither another nor a choice inside of one",
        )
    return pattern


def _ways(parsed: Any, depth: int) -> Iterator[tuple[bool, int]]:
    """All that can match in more than one way: whether it is a repetition, and in how many others it is."""
    for kind, value in parsed:
        repeats = str(kind).endswith("_REPEAT") and value[1] > 1
        optional = str(kind).endswith("_REPEAT") and value[:2] == (0, 1)
        if repeats or optional or str(kind) in ("BRANCH", "GROUPREF", "GROUPREF_EXISTS"):
            yield repeats, depth
        for part in _parts(value):
            yield from _ways(part, depth + repeats)


def _parts(value: Any) -> Iterator[Any]:
    """The expressions inside of a node's value, however deep."""
    if hasattr(value, "getwidth"):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _parts(one)
