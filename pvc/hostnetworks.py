"""The networks of a node itself, as its pvc.toml describes them, and their rules. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Annotated

from pvc.errors import Invalid

Interface = IPv4Interface | IPv6Interface
OneOrMore = Annotated[tuple[str, ...], "one may stand without brackets"]

DEVICE = re.compile(r"(?!\.{1,2}$)[^\s/:%]{1,15}")
VIRTUAL = re.compile(r"lo|(?:br|vx|vl|gw|gp)[1-9][0-9]{0,7}")
"""Names of devices that are made for networks of VMs."""
LEAST_MTU, LEAST_MTU_IPV6, GREATEST_MTU = 576, 1280, 65535
GREATEST_VLAN = 4094
MODES = (
    "active-backup",
    "802.3ad",
    "balance-rr",
    "balance-xor",
    "broadcast",
    "balance-tlb",
    "balance-alb",
)


@dataclass(frozen=True, slots=True)
class Bond:
    members: tuple[str, ...] = ()
    mode: str = "active-backup"


@dataclass(frozen=True, slots=True)
class HostNetwork:
    device: str = ""
    """A device that is there, or with `bond` the one to make."""
    address: OneOrMore = ()
    """With the length of the network: 10.0.0.1/24."""
    mtu: int = 0
    """0: as it is."""
    gateway: OneOrMore = ()
    vlan: int = 0
    """On the device; 0: none."""
    bond: Bond | None = None

    @property
    def link(self) -> str:
        """The device that has the addresses."""
        return f"{self.device}.{self.vlan}" if self.vlan else self.device


@dataclass(frozen=True, slots=True)
class HostNetworks:
    """None: somebody else sees to it, and nothing is touched."""

    upstream: HostNetwork | None = None
    cluster: HostNetwork | None = None
    storage: HostNetwork | None = None

    def sections(self) -> dict[str, HostNetwork]:
        every = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: one for name, one in every.items() if one is not None}

    def bonds(self) -> dict[str, Bond]:
        """The devices to make of others, by name."""
        return {one.device: one.bond for one in self.sections().values() if one.bond is not None}


def check(networks: HostNetworks, *, address: str, storage_address: str, bridge_device: str) -> None:
    """Raises Invalid naming the key that is wrong."""
    sections = networks.sections()
    for name, one in sections.items():
        _check_one(f"network.{name}", one)
    _check_devices(sections)
    _check_addresses(sections)
    _check_mtus(sections)
    _check_agrees(networks.cluster, "cluster", "node.address", address)
    _check_agrees(networks.storage, "storage", "node.storage_address", storage_address)
    for bond, described in networks.bonds().items():
        if bridge_device in described.members:
            raise Invalid(
                f"node.bridge_device {bridge_device} is a member of {bond}", hint=f"name {bond} instead"
            )


def _check_one(key: str, one: HostNetwork) -> None:
    _check_name(f"{key}.device", one.device)
    if not 0 <= one.vlan <= GREATEST_VLAN:
        raise Invalid(f"{key}.vlan {one.vlan} is not between 1 and {GREATEST_VLAN}")
    if one.vlan and not DEVICE.fullmatch(one.link):
        raise Invalid(
            f"{key}: {one.link}, as its VLAN device would be called, has more than 15 characters",
            hint="give the device below it a shorter name",
        )
    if one.bond is not None:
        _check_bond(f"{key}.bond", one.device, one.bond)
    values = [_interface(f"{key}.address", text) for text in one.address]
    _check_mtu(f"{key}.mtu", one.mtu, any(value.version == 6 for value in values))
    for text in one.gateway:
        _check_gateway(f"{key}.gateway", text, values)
    versions = [ip_address(text).version for text in one.gateway]
    if len(set(versions)) < len(versions):
        raise Invalid(f"{key}.gateway names two of one kind", hint="one of IPv4 and one of IPv6")


def _check_name(key: str, name: str) -> None:
    if not name:
        raise Invalid(f"{key} is missing", hint='like device = "eth0"')
    if not DEVICE.fullmatch(name):
        raise Invalid(f"{key} {name!r} is not a device's name: up to 15 characters without / : % and blanks")
    if VIRTUAL.fullmatch(name):
        raise Invalid(f"{key} cannot be {name}, which is a name for other purposes")


def _check_bond(key: str, device: str, bond: Bond) -> None:
    if not bond.members:
        raise Invalid(f"{key}.members is empty", hint='like members = ["eth0", "eth1"]')
    for member in bond.members:
        _check_name(f"{key}.members", member)
    if len({*bond.members, device}) <= len(bond.members):
        raise Invalid(f"{key}.members names a device twice, or the bond itself")
    if bond.mode not in MODES:
        raise Invalid(f"{key}.mode cannot be {bond.mode!r}", hint=f"one of: {', '.join(MODES)}")


def _interface(key: str, text: str) -> Interface:
    try:
        found = ip_interface(text)
    except ValueError:
        found = None
    if found is None or "/" not in text or "%" in text:
        raise Invalid(
            f"{key} = {text!r} is no address with the length of its network", hint="like 10.0.0.1/24"
        )
    if found.is_multicast or found.is_loopback or found.is_link_local or found.is_unspecified:
        raise Invalid(f"{key}: {text} cannot be the address of a node")
    network = found.network
    ends = {network.network_address, *([network.broadcast_address] if found.version == 4 else [])}
    if found.max_prefixlen - network.prefixlen > 1 and found.ip in ends:
        raise Invalid(f"{key}: {text} is the address of the network {network} itself")
    return found


def _check_mtu(key: str, mtu: int, is_ipv6: bool) -> None:
    least = LEAST_MTU_IPV6 if is_ipv6 else LEAST_MTU
    if mtu and not least <= mtu <= GREATEST_MTU:
        raise Invalid(f"{key} {mtu} is not between {least} and {GREATEST_MTU}")


def _check_gateway(key: str, text: str, own: list[Interface]) -> None:
    try:
        gateway = ip_address(text if "%" not in text else "")  # it is on the device of its network
    except ValueError:
        raise Invalid(f"{key} = {text!r} is not an IP address") from None
    near = [value for value in own if value.version == gateway.version and gateway in value.network]
    if not near and not (gateway.version == 6 and gateway.is_link_local):
        raise Invalid(f"{key} {text} is in none of its networks", hint="nothing would lead to it")
    if gateway in [value.ip for value in near]:
        raise Invalid(f"{key} {text} is this node's own address")


def _check_devices(sections: Mapping[str, HostNetwork]) -> None:
    bonds: dict[str, tuple[str, Bond]] = {}
    for name, one in sections.items():
        if one.bond is None:
            continue
        other, described = bonds.setdefault(one.device, (name, one.bond))
        if described != one.bond:
            raise Invalid(f"network.{name}.bond differs from network.{other}.bond, which has the same name")
    members: dict[str, str] = {}
    for device, (name, bond) in bonds.items():
        for member in bond.members:
            if member in members:
                raise Invalid(
                    f"network.{name}.bond.members: {member} is a member of {members[member]} already"
                )
            members[member] = device
    for name, one in sections.items():
        if one.device in members:
            raise Invalid(
                f"network.{name}.device {one.device} is a member of {members[one.device]}",
                hint=f'device = "{members[one.device]}"',
            )
        if one.device in {other.link for other in sections.values() if other.vlan}:
            raise Invalid(f"network.{name}.device {one.device} is the VLAN of another network")


def _check_addresses(sections: Mapping[str, HostNetwork]) -> None:
    known: list[tuple[str, Interface]] = []
    gateways: dict[int, str] = {}
    for name, one in sections.items():
        for text in one.address:
            value = ip_interface(text)
            for other, earlier in known:
                if value.ip == earlier.ip:
                    raise Invalid(f"network.{name}.address {value.ip} is that of network.{other} too")
                if value.version == earlier.version and value.network.overlaps(earlier.network):
                    raise Invalid(
                        f"network.{name}.address {text} overlaps with {earlier} of network.{other}",
                        hint="each network needs a range of its own",
                    )
            known.append((name, value))
        for text in one.gateway:
            version = ip_address(text).version
            if version in gateways:
                raise Invalid(
                    f"network.{name}.gateway is a second default route, beside network.{gateways[version]}'s",
                    hint="one network leads to all others",
                )
            gateways[version] = name


def _check_mtus(sections: Mapping[str, HostNetwork]) -> None:
    """Two networks may share a device; a VLAN carries no more than the device below it."""
    for name, one in sections.items():
        for other, lower in sections.items():
            if not one.mtu or not lower.mtu or name == other or one.device != lower.device:
                continue
            if one.link == lower.link and one.mtu != lower.mtu:
                raise Invalid(f"network.{name}.mtu {one.mtu} is not that of network.{other}, {lower.mtu}")
            if one.vlan and not lower.vlan and one.mtu > lower.mtu:
                raise Invalid(
                    f"network.{name}.mtu {one.mtu} is more than the {lower.mtu} of {lower.device},"
                    f" on which its VLAN is"
                )


def _check_agrees(one: HostNetwork | None, name: str, key: str, address: str) -> None:
    if one is None or not address or not one.address:
        return
    if ip_address(address) not in [ip_interface(text).ip for text in one.address]:
        raise Invalid(
            f"{key} {address} is not among network.{name}.address ({', '.join(one.address)})",
            hint="both name the same address of this node",
        )
