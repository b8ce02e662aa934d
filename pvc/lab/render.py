"""The files that make a node of the common image this node: values in, text out."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from pvc.lab.layout import CLUSTER, NETWORKS, STORAGE, UPSTREAM, Lab, Network, Node

BRIDGE = "br0"
BOARD = "/srv/board"
"""Where a node finds lab.board."""


@dataclass(frozen=True, slots=True)
class File:
    path: str
    """From the node's root, without a leading slash."""
    text: str
    mode: int = 0o644


def node_files(lab: Lab, node: Node) -> tuple[File, ...]:
    files = [
        File("etc/hostname", f"{node.name}\n"),
        File("etc/hosts", hosts(lab)),
        File("etc/pvc/pvc.toml", configuration(lab, node)),
        File("etc/pvc/cluster.key", f"{lab.key}\n", 0o600),
        *network_files(lab, node),
    ]
    if lab.is_coordinator(node):
        files.append(File("etc/zookeeper/pvc/zoo.cfg", zookeeper(lab)))
        files.append(File("var/lib/zookeeper/myid", f"{node.number}\n"))
    return tuple(files)


def hosts(lab: Lab) -> str:
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
    lines += [f"{lab.address(node)} {node.name}" for node in lab.nodes]
    lines += [f"{lab.address(node, STORAGE)} {node.name}-storage" for node in lab.nodes]
    lines += [f"{lab.bmc_address(node)} {node.name}-bmc" for node in lab.nodes]
    return "".join(f"{line}\n" for line in lines)


def configuration(lab: Lab, node: Node) -> str:
    servers = ", ".join(f'"{lab.address(other)}"' for other in lab.nodes if lab.is_coordinator(other))
    return f"""\
[node]
name = "{node.name}"
address = "{lab.address(node)}"
storage_address = "{lab.address(node, STORAGE)}"

[cluster]
coordinators = [{servers}]
key_file = "/etc/pvc/cluster.key"

[daemon]
watchdog = "unix:{BOARD}/watchdog"

[api]
socket = "/run/pvc/api.sock"
# Plain HTTP beyond loopback is for the lab only, whose network never leaves this machine.
listen = ["0.0.0.0:7370"]
"""


def network_files(lab: Lab, node: Node) -> tuple[File, ...]:
    """Guests reach the upstream network through a bridge, which carries the node's own address there."""
    folder = "etc/systemd/network"
    return (
        File(
            f"{folder}/10-{BRIDGE}.netdev",
            f"[NetDev]\nName={BRIDGE}\nKind=bridge\n\n[Bridge]\nSTP=no\nForwardDelaySec=0\n",
        ),
        File(f"{folder}/10-{BRIDGE}.network", addressed(BRIDGE, lab.address(node, UPSTREAM), UPSTREAM)),
        File(f"{folder}/10-{UPSTREAM.name}.network", bridged(UPSTREAM.name, BRIDGE)),
        *(
            File(
                f"{folder}/10-{network.name}.network",
                addressed(network.name, lab.address(node, network), network),
            )
            for network in NETWORKS
            if network is not UPSTREAM
        ),
    )


def addressed(link: str, address: str, network: Network) -> str:
    # Without the last two, pulling a cable would also take the address away.
    return f"""\
[Match]
Name={link}

[Link]
MTUBytes={network.mtu}

[Network]
Address={address}/24
LinkLocalAddressing=no
IPv6AcceptRA=no
ConfigureWithoutCarrier=yes
IgnoreCarrierLoss=yes
"""


def bridged(link: str, bridge: str) -> str:
    return f"""\
[Match]
Name={link}

[Network]
Bridge={bridge}
ConfigureWithoutCarrier=yes
IgnoreCarrierLoss=yes
"""


def zookeeper(lab: Lab) -> str:
    servers = "".join(
        f"server.{node.number}={lab.address(node, CLUSTER)}:2888:3888\n"
        for node in lab.nodes
        if lab.is_coordinator(node)
    )
    # With 500 ms ticks a dead leader is noticed after 3 s; no client may ask for a session of more than 40 s.
    return f"""\
tickTime=500
initLimit=20
syncLimit=6
maxSessionTimeout=40000
dataDir=/var/lib/zookeeper
clientPort=2181
admin.enableServer=false
4lw.commands.whitelist=srvr,conf,mntr,ruok,cons
autopurge.purgeInterval=1
{servers}"""


def bmc(lab: Lab, node: Node, chassis_control: str) -> str:
    """Configuration of ipmi_sim: a BMC at its own address, which runs a program to switch the power."""
    return f"""\
name "{node.name}"
set_working_mc 0x20
  startlan 1
    addr {lab.bmc_address(node)} 623
    priv_limit admin
    allowed_auths_callback none
    allowed_auths_user md5
    allowed_auths_operator md5
    allowed_auths_admin md5
    guid {node.uuid}
  endlan
  chassis_control "{chassis_control}"
  user 1 true "" "x" user 10 none
  user 2 true "{BMC_USER}" "{bmc_password(node)}" admin 10 md5
"""


BMC_USER = "admin"
BMC_EMULATION = """\
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
sel_enable 0x20 1000 0x0a
mc_enable 0x20
"""


def bmc_password(node: Node) -> str:
    """Known to everybody: it opens a simulated BMC on a network that never leaves this machine."""
    return f"secret{node.number}"


def chassis_script(command: Sequence[str]) -> str:
    """What ipmi_sim runs with the node and the question behind it."""
    return f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n'
