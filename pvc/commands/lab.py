"""A cluster on this one machine: for a first look, for development, for the tests."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pvc import output
from pvc.commands.context import LocalContext
from pvc.commands.registry import Arg, local
from pvc.commands.types import NodeName
from pvc.errors import Invalid


class NetworkName(StrEnum):
    """The networks of a lab: upstream, cluster, storage."""

    UPS = "ups"
    CLU = "clu"
    STO = "sto"


class PowerAction(StrEnum):
    ON = "on"
    OFF = "off"
    RESET = "reset"
    SOFT = "soft"


class BMCState(StrEnum):
    """How a simulated BMC behaves."""

    ON = "on"
    OFF = "off"
    """It answers nothing at all."""
    RUBBISH = "rubbish"
    """It answers whatever it is asked with noise."""
    LIES = "lies"
    """It agrees to every order and does nothing; what it says of the power is true."""


@dataclass(frozen=True, slots=True)
class LabNode:
    name: str
    power: str
    coordinator: bool
    zookeeper: str
    """leader, follower, standalone; empty where it does not serve."""
    address: str
    """On the cluster network."""
    upstream: str
    bmc: str
    bmc_address: str
    ceph: tuple[str, ...]
    """Kinds of Ceph's daemons that run in it."""
    cut: tuple[str, ...]
    """Networks it is cut off from."""
    pid: int
    """Of the node's PID 1, on this machine."""


Nodes = Annotated[int, Arg("how many nodes; 3 for a new lab", metavar="N", minimum=1, maximum=9)]
Coordinators = Annotated[
    int,
    Arg(
        "how many of them run ZooKeeper: 1, 3 or 5; 3 if there are as many nodes",
        metavar="N",
        minimum=1,
        maximum=5,
    ),
]
Ceph = Annotated[bool, Arg("with a Ceph: monitors on the coordinators, an OSD on every node")]
OSDs = Annotated[int, Arg("of that Ceph, on every node", metavar="N", minimum=1, maximum=4)]
ImageFile = Annotated[
    str, Arg("another node image than the one that ./build.py image made", metavar="FILE", complete="file")
]
Cable = Annotated[bool, Arg("as if its cable were unplugged, which the node sees")]
Networks = Annotated[tuple[NetworkName, ...], Arg("which cable; all of them unless given")]
Command = Annotated[
    tuple[str, ...], Arg("the command and its arguments; a shell unless given", metavar="CMD")
]
Process = Annotated[
    str,
    Arg(
        "a service (pvc-node, zookeeper, libvirtd, …) or the name of a process (qemu-system-x86)",
        metavar="PROCESS",
        pattern=r"[A-Za-z0-9][A-Za-z0-9@._-]{0,62}",
        what="the name of a service or process",
    ),
]


Action = Annotated[PowerAction, Arg("off and reset are power cuts, soft is the button", metavar="ACTION")]
Behaviour = Annotated[
    BMCState,
    Arg(
        "rubbish answers everything with noise, lies agrees to every order and does nothing", metavar="STATE"
    ),
]
Stop = Annotated[bool, Arg("only halt it (SIGSTOP), as a machine that hangs would")]
Cont = Annotated[bool, Arg("let it go on (SIGCONT)")]
COLUMNS = ("name", "power", "zookeeper", "address", "bmc", "bmc_address", "ceph", "cut")


@local(columns=COLUMNS)
def up(
    ctx: LocalContext,
    *,
    nodes: Nodes | None = None,
    coordinators: Coordinators | None = None,
    ceph: Ceph = False,
    osds: OSDs | None = None,
    image: ImageFile | None = None,
) -> list[LabNode]:
    """Start a cluster on this machine, or what is missing of it.

    Each node is a container with its own systemd, ZooKeeper, libvirt and pvc, booted from the node image.
    Needs root.
    """
    from pvc.lab.up import bring_up

    bring_up(
        output.note,
        nodes=nodes,
        coordinators=coordinators,
        osds=osds or (1 if ceph else None),
        image=Path(image) if image else None,
    )
    return status(ctx)


@local()
def down(ctx: LocalContext) -> None:
    """Stop the cluster on this machine and remove every trace of it, its VMs and their disks included."""
    from pvc.lab.down import take_down

    if not take_down(output.note):
        output.note("there is no lab")


@local(columns=COLUMNS)
def status(ctx: LocalContext) -> list[LabNode]:
    """Show the nodes of the lab: power, ZooKeeper, addresses, BMC, Ceph, and cables that were cut."""
    from pvc.lab.up import states

    return states()


@local(verb="exec")
def exec_(ctx: LocalContext, node: NodeName, cmd: Command = ()) -> int:
    """Run a command inside a node, with this terminal and its exit code."""
    from pvc.lab.inside import become

    become(node, cmd)


@local()
def cut(ctx: LocalContext, node: NodeName, *, network: Networks = (), cable: Cable = False) -> None:
    """Cut a node off from its networks, silently; with --cable it sees that its cable is unplugged."""
    from pvc.lab import network as switch
    from pvc.lab.common import existing

    lab = existing()
    switch.cut(lab, lab.node(node), switch.chosen(network), carrier=not cable)


@local()
def heal(ctx: LocalContext, node: NodeName, *, network: Networks = ()) -> None:
    """Connect a node to its networks again."""
    from pvc.lab import network as switch
    from pvc.lab.common import existing

    lab = existing()
    switch.heal(lab, lab.node(node), switch.chosen(network))


@local()
def power(ctx: LocalContext, node: NodeName, action: Action) -> None:
    """Switch a node on or off, as its power supply would, or press its power button."""
    from pvc.lab import power as supply
    from pvc.lab.common import existing

    acts = {
        PowerAction.ON: supply.on,
        PowerAction.OFF: supply.off,
        PowerAction.RESET: supply.reset,
        PowerAction.SOFT: supply.press_button,
    }
    lab = existing()
    acts[action](lab, lab.node(node))


@local()
def bmc(ctx: LocalContext, node: NodeName, state: Behaviour) -> None:
    """Make a node's BMC dead (off: it answers nothing at all), mad or a liar, or well again (on)."""
    from pvc.lab import bmc as simulated
    from pvc.lab.common import existing

    lab = existing()
    acts = {
        BMCState.ON: simulated.on,
        BMCState.OFF: simulated.off,
        BMCState.RUBBISH: simulated.rubbish,
        BMCState.LIES: simulated.lies,
    }
    acts[state](lab, lab.node(node))


@local()
def kill(
    ctx: LocalContext, node: NodeName, process: Process, *, stop: Stop = False, cont: Cont = False
) -> None:
    """Kill a process inside a node, without a chance to clean up (SIGKILL)."""
    from pvc.lab.inside import send_signal

    if stop and cont:
        raise Invalid("--stop and --cont are opposites", hint="give one of them")
    signal_name = "STOP" if stop else "CONT" if cont else "KILL"
    pids = send_signal(node, process, signal_name)
    output.note(f"SIG{signal_name} to {process} on {node}: {', '.join(map(str, pids))}")
