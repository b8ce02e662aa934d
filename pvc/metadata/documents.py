"""What a guest is told of itself, as cloud-init reads it: as EC2 has it, and as a seed for NoCloud. Pure."""

from __future__ import annotations

import json
from ipaddress import IPv4Network
from typing import Any

from pvc.cluster.guests import Guest, Nic

VERSIONS = ("1.0", "2009-04-04", "2016-09-02", "2018-09-24", "2021-03-23", "latest")
"""Of EC2's metadata: the paths are the same in each. cloud-init asks for the newest that it knows."""

NOCLOUD, USER_DATA = "nocloud", "user-data"
Tree = dict[str, "Tree | str"]


def tree(guest: Guest) -> Tree:
    """All there is, except for the user data, which are read when they are asked for."""
    ec2: Tree = {"meta-data": _meta_data(guest), USER_DATA: ""}
    nocloud: Tree = {
        "meta-data": _yaml({"instance-id": guest.uuid, "local-hostname": guest.hostname}),
        USER_DATA: "",
        "vendor-data": "",
        "network-config": _yaml(_network_config(guest)),
    }
    return {**dict.fromkeys(VERSIONS, ec2), NOCLOUD: nocloud}


def listing(branch: Tree) -> str:
    """A name with a slash has more below it."""
    return "\n".join(f"{name}/" if isinstance(below, dict) else name for name, below in branch.items())


def _meta_data(guest: Guest) -> Tree:
    name = guest.hostname
    macs: Tree = {nic.mac: _interface(nic, number, name) for number, nic in enumerate(guest.nics)}
    return {
        "hostname": name,
        "instance-id": guest.uuid,
        "local-hostname": name,
        "local-ipv4": guest.asking.address,
        "mac": guest.asking.mac,
        "network": {"interfaces": {"macs": macs}},
    }


def _interface(nic: Nic, number: int, name: str) -> Tree:
    found: Tree = {"device-number": str(number), "local-hostname": name}
    if nic.address:
        found["local-ipv4s"] = nic.address
    found["mac"] = nic.mac
    if nic.network.ipv4.network:
        found["subnet-ipv4-cidr-block"] = str(IPv4Network(nic.network.ipv4.network))
    return found


def _network_config(guest: Guest) -> dict[str, Any]:
    """Version 2. Each interface asks the network, where addresses change without this being read again."""
    devices = {f"nic{number}": _device(nic) for number, nic in enumerate(guest.nics)}
    return {"version": 2, "ethernets": devices}


def _device(nic: Nic) -> dict[str, Any]:
    ipv4, ipv6 = nic.network.ipv4, nic.network.ipv6
    return {
        "match": {"macaddress": nic.mac},
        "dhcp4": bool(ipv4.dhcp or nic.address),
        "dhcp6": ipv6.dhcp,
    }


def _yaml(plain: dict[str, Any]) -> str:
    """JSON is YAML."""
    return json.dumps(plain, indent=2) + "\n"
