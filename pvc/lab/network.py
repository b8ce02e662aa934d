"""The lab's switch: a namespace of its own with three bridges, and a cable from each node to each of them."""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pvc.errors import Failed
from pvc.lab.layout import NETWORKS, UPSTREAM, Lab, Network, Node
from pvc.proc import run

T = TypeVar("T")

NAMESPACES = Path("/run/netns")
HOST_END = 254
SWITCH_END = 253
BRIDGE_OPTIONS = "stp_state 0 forward_delay 0 mcast_snooping 0"


def namespace_exists(name: str) -> bool:
    return (NAMESPACES / name).exists()


def chosen(names: Sequence[str]) -> list[Network]:
    """The networks of these names; all of them for none."""
    return [network for network in NETWORKS if not names or network.name in names]


def switch_up(lab: Lab) -> None:
    """Make the switch, or complete one that a crash left half made."""
    if not namespace_exists(lab.switch):
        run(["ip", "netns", "add", lab.switch])
    _no_bridge_filter(lab.switch)
    have = _links(lab.switch)
    _batch(
        lab.switch,
        ["link set lo up", *(line for network in NETWORKS for line in _bridge_up(lab, network, have))],
    )
    if "host" not in have:
        run(["ip", "link", "del", lab.host_link], check=False)
        run(["ip", "link", "add", lab.host_link, "type", "veth", "peer", "name", "host", "netns", lab.switch])
    _batch(lab.switch, [f"link set host master {UPSTREAM.name} up"])
    _batch(
        "",
        [
            f"link set {lab.host_link} up",
            f"addr replace {lab.subnet(UPSTREAM)}.{HOST_END}/24 dev {lab.host_link}",
        ],
    )


def _bridge_up(lab: Lab, network: Network, have: frozenset[str]) -> list[str]:
    name, address = network.name, f"{lab.subnet(network)}.{SWITCH_END}"
    new = (
        [f"link add {name} address {mac(lab, network, SWITCH_END)} type bridge {BRIDGE_OPTIONS}"]
        if name not in have
        else []
    )
    return [*new, f"link set {name} mtu {network.mtu} up", f"addr replace {address}/24 dev {name}"]


def _no_bridge_filter(namespace: str) -> None:
    """Bridged frames must not pass iptables, which is on in new namespaces if the kernel has br_netfilter."""
    keys = [f"net.bridge.bridge-nf-call-{kind}=0" for kind in ("iptables", "ip6tables", "arptables")]
    run(["nsenter", f"--net={NAMESPACES / namespace}", "sysctl", "-q", "-e", "-w", *keys], check=False)


def switch_down(lab: Lab) -> None:
    run(["ip", "link", "del", lab.host_link], check=False)
    run(["ip", "netns", "del", lab.switch], check=False)


def plug(lab: Lab, node: Node) -> None:
    """A fresh namespace for the node with its cables, without what an earlier boot left in the old one."""
    unplug(lab, node)
    namespace = lab.namespace(node)
    run(["ip", "netns", "add", namespace])
    _batch(namespace, ["link set lo up"])
    lines = []
    for network in NETWORKS:
        lines += [
            f"link add {cable(node, network)} mtu {network.mtu} type veth"
            f" peer name {network.name} netns {namespace} mtu {network.mtu}"
            f" address {mac(lab, network, node.number)}",
            f"link set {cable(node, network)} master {network.name} up",
        ]
    _batch(lab.switch, lines)


def mac(lab: Lab, network: Network, number: int) -> str:
    """Of a node's interface, or of the switch's own.

    A bridge without an address of its own takes one of its ports', and another one when that port goes: with
    the power of some node, every BMC would vanish from the others' neighbour tables.
    """
    return f"02:51:{second(lab):02x}:00:{network.octet:02x}:{number:02x}"


def second(lab: Lab) -> int:
    return int(lab.subnet(UPSTREAM).split(".")[1])


def unplug(lab: Lab, node: Node) -> None:
    """Namespaces go away asynchronously, so the cables are removed by name."""
    for name in _links(lab.switch) & {cable(node, network) for network in NETWORKS}:
        run(["ip", "-n", lab.switch, "link", "del", name], check=False)
    if namespace_exists(lab.namespace(node)):
        run(["ip", "netns", "del", lab.namespace(node)], check=False)


def pull_cables(lab: Lab, node: Node) -> None:
    """All at once, before a power cut: no FIN or RST may leave a machine that lost its power."""
    have = _links(lab.switch)
    names = [cable(node, network) for network in NETWORKS if cable(node, network) in have]
    if names:
        _batch(lab.switch, [f"link set {name} down" for name in names])


def cut(lab: Lab, node: Node, networks: Sequence[Network], *, carrier: bool) -> None:
    """Nothing passes any more. With carrier the node sees no difference; without, a cable is unplugged."""
    _present(lab, node)
    _batch(
        lab.switch, [f"link set {cable(node, one)} {'nomaster' if carrier else 'down'}" for one in networks]
    )


def heal(lab: Lab, node: Node, networks: Sequence[Network]) -> None:
    _present(lab, node)
    _batch(lab.switch, [f"link set {cable(node, one)} master {one.name} up" for one in networks])


def _present(lab: Lab, node: Node) -> None:
    if cable(node, UPSTREAM) not in _links(lab.switch):
        raise Failed(f"{node.name} is off: it has no cables", hint=f"pvc lab power {node.name} on")


def cut_networks(lab: Lab, node: Node) -> tuple[str, ...]:
    """Names of the networks the node is cut off from."""
    return tuple(one.name for one in NETWORKS if not _is_connected(_link_lines(lab.switch), node, one))


def _is_connected(lines: dict[str, str], node: Node, network: Network) -> bool:
    line = lines.get(cable(node, network), "")
    return f" master {network.name} " in line and "UP" in re.split("[<>]", line)[1].split(",")


def cable(node: Node, network: Network) -> str:
    """The end of a node's cable in the switch."""
    return f"{node.name}{network.name}"


def _link_lines(namespace: str) -> dict[str, str]:
    if not namespace_exists(namespace):
        return {}
    lines = run(["ip", "-o", "-n", namespace, "link"], check=False).stdout.splitlines()
    return {line.split(": ")[1].split("@")[0]: line for line in lines}


def _links(namespace: str) -> frozenset[str]:
    return frozenset(_link_lines(namespace))


def _batch(namespace: str, lines: Sequence[str]) -> None:
    where = ["-n", namespace] if namespace else []
    run(["ip", *where, "-batch", "-"], stdin="".join(f"{line}\n" for line in lines))


def inside(namespace: str, act: Callable[[], T]) -> T:
    """Do something in a network namespace, in a thread of its own: one that entered never comes back."""
    results: list[T] = []
    errors: list[OSError] = []

    def enter_and_act() -> None:
        try:
            descriptor = os.open(NAMESPACES / namespace, os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(descriptor)
            results.append(act())
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=enter_and_act)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
