"""A network of VMs: what is wanted, its rules, and what it is called on a node."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from types import MappingProxyType
from typing import Any

from pvc.errors import Invalid

LEAST_MTU, LEAST_MTU_IPV6 = 576, 1280
GREATEST_MTU = 65_535
GREATEST_VNI, GREATEST_VLAN = 2**24 - 1, 4094
VXLAN_OVERHEAD, VXLAN_OVERHEAD_IPV6 = 50, 70
"""Of the inner Ethernet header and the outer IP, UDP and VXLAN headers."""

GATEWAY_MAC = "02:00:5e:00:01:01"
"""Of every gateway on every node: each network is its own Ethernet, in which only one is primary."""

LONGEST_DOMAIN = 253
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network


class Kind(StrEnum):
    MANAGED = "managed"
    """A network of the cluster's own: VXLAN between the nodes."""
    BRIDGED = "bridged"
    """A VLAN of the network outside, on the device for bridged networks of each node."""


@dataclass(frozen=True, slots=True)
class DHCPRange:
    start: str
    end: str


@dataclass(frozen=True, slots=True)
class IPv4:
    network: str = ""
    gateway: str = ""
    dhcp: DHCPRange | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IPv6:
    network: str = ""
    gateway: str = ""
    dhcp: bool = False
    """Addresses are given by DHCPv6 besides router advertisements."""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """Written by operations."""

    vni: int
    """Of the VXLAN; the VLAN's number where the network is bridged."""
    description: str
    """What it may be called instead of its number: no two have the same."""
    kind: Kind
    mtu: int = 0
    """0: as much as the network below it carries."""
    domain: str = ""
    dns_servers: tuple[str, ...] = ()
    ntp_servers: tuple[str, ...] = ()
    ipv4: IPv4 = field(default_factory=IPv4)
    ipv6: IPv6 = field(default_factory=IPv6)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gateways(self) -> tuple[str, ...]:
        """Its addresses on the primary."""
        return tuple(one for one in (self.ipv4.gateway, self.ipv6.gateway) if one)

    def prefixes(self) -> Iterator[Prefix]:
        for text in (self.ipv4.network, self.ipv6.network):
            if text:
                yield ip_network(text)


# What it is called on a node

LINK_GROUP, HOST_GROUP, GATEWAY_GROUP = 0x707663, 0x707664, 0x707665
"""Of every link that we make, from the very call that makes it: whose it is, over our restarts too.

Of networks of VMs, of the node's own networks, of gateways. These have one of their own, because the kernel
removes a whole group in a moment and each of many alone in much more.
"""


def bridge_name(vni: int) -> str:
    """At most 15 characters, as the kernel wants it: so are the others."""
    return f"br{vni}"


def vxlan_name(vni: int) -> str:
    return f"vx{vni}"


def vlan_name(vni: int) -> str:
    return f"vl{vni}"


def gateway_name(vni: int) -> str:
    """The end that has the primary's addresses in the network."""
    return f"gw{vni}"


def gateway_port_name(vni: int) -> str:
    """Its other end, a port of the bridge."""
    return f"gp{vni}"


# What is chosen where nothing is said


def dhcp_range(network: str, gateway: str) -> DHCPRange:
    """The upper half of the network, the lower one where the gateway is inside that.

    Of what is no network, or no gateway in it, a range that `check` refuses.
    """
    try:
        prefix, own = ip_network(network), int(ip_address(gateway))
    except ValueError:
        return DHCPRange("", "")
    first = int(prefix.network_address)
    hosts = range(first + 1, first + prefix.num_addresses - 1)
    middle = len(hosts) // 2
    for half in (hosts[middle:], hosts[:middle]):
        free = half[1:] if half and half[0] == own else half
        free = free[:-1] if free and free[-1] == own else free
        if free and own not in free:
            return DHCPRange(str(ip_address(free[0])), str(ip_address(free[-1])))
    return DHCPRange("", "")


# Rules


def check(
    spec: NetworkSpec,
    others: Iterable[NetworkSpec] = (),
    *,
    carries: int = 0,
    taken: Mapping[Prefix, str] = MappingProxyType({}),
) -> None:
    """Raises Invalid saying what can never work.

    `carries` is the greatest MTU that a network of its kind can have on every node, 0 where nobody knows;
    `taken` is what the nodes have themselves, and what that is.
    """
    what = f"network {spec.vni}"
    if not 1 <= spec.vni <= GREATEST_VNI:
        raise Invalid(f"{what} is not between 1 and {GREATEST_VNI}")
    if spec.kind is Kind.BRIDGED and spec.vni > GREATEST_VLAN:
        raise Invalid(
            f"{what} is no VLAN: a bridged network is called by its VLAN, 1 to {GREATEST_VLAN}",
            hint="--kind managed takes greater numbers",
        )
    _check_mtu(spec, carries)
    if spec.kind is Kind.BRIDGED and has_addresses(spec):
        raise Invalid(f"{what} is bridged: its addresses and names are given by whoever runs that VLAN")
    _check_ipv4(spec.ipv4, what)
    _check_ipv6(spec.ipv6, what)
    check_domain(spec.domain, what)
    for server in spec.dns_servers:
        _check_server(server, "DNS server", what)
    for server in spec.ntp_servers:
        _check_server(server, "NTP server", what)
    _check_against(spec, others, taken)


def has_addresses(spec: NetworkSpec) -> bool:
    """Or names: what concerns other networks."""
    return bool(
        spec.ipv4 != IPv4() or spec.ipv6 != IPv6() or spec.domain or spec.dns_servers or spec.ntp_servers
    )


def _check_mtu(spec: NetworkSpec, carries: int) -> None:
    if not spec.mtu:
        return
    least, why = (LEAST_MTU_IPV6, " with IPv6") if spec.ipv6.network else (LEAST_MTU, "")
    if spec.mtu < least:
        raise Invalid(f"an MTU of {spec.mtu} is below {least}, the least of a network{why}")
    if spec.mtu > GREATEST_MTU:
        raise Invalid(f"an MTU of {spec.mtu} is above {GREATEST_MTU}, the greatest there is")
    if carries and spec.mtu > carries:
        raise Invalid(
            f"an MTU of {spec.mtu} is more than a {spec.kind} network can have on every node: {carries}",
            hint="leave --mtu out: the network gets what is possible",
        )


def _check_ipv4(ipv4: IPv4, what: str) -> None:
    if not ipv4.network:
        if ipv4.gateway or ipv4.dhcp:
            raise Invalid(
                f"{what} has an IPv4 gateway or range and no IPv4 network they could be in",
                hint="--gateway '' --no-dhcp takes them away",
            )
        return
    prefix = _prefix(ipv4.network, 4, what)
    if not 8 <= prefix.prefixlen <= 30:
        raise Invalid(f"{prefix} of {what} leaves no addresses for VMs, or too many: /8 to /30 is possible")
    gateway = _host(ipv4.gateway, prefix, "gateway", what) if ipv4.gateway else None
    if ipv4.dhcp is None:
        return
    if gateway is None:
        raise Invalid(
            f"{what} has DHCP and no gateway, where its server would answer", hint=f"--gateway {prefix[1]}"
        )
    start = _host(ipv4.dhcp.start, prefix, "start of the DHCP range", what)
    end = _host(ipv4.dhcp.end, prefix, "end of the DHCP range", what)
    if int(start) > int(end):
        raise Invalid(f"the DHCP range of {what} ends at {end}, before its start {start}")
    if int(start) <= int(gateway) <= int(end):
        raise Invalid(f"the gateway {gateway} of {what} is inside its DHCP range {start} to {end}")


def _check_ipv6(ipv6: IPv6, what: str) -> None:
    if not ipv6.network:
        if ipv6.gateway or ipv6.dhcp:
            raise Invalid(
                f"{what} has an IPv6 gateway or DHCPv6 and no IPv6 network they could be in",
                hint="--gateway6 '' --no-dhcp6 takes them away",
            )
        return
    prefix = _prefix(ipv6.network, 6, what)
    if prefix.prefixlen != 64:
        raise Invalid(
            f"{prefix} of {what} is not a /64, in which VMs can give themselves addresses",
            hint=f"{prefix.network_address}/64",
        )
    if ipv6.gateway:
        _host(ipv6.gateway, prefix, "gateway", what)
    elif ipv6.dhcp:
        raise Invalid(
            f"{what} has DHCPv6 and no IPv6 gateway, where its server would answer",
            hint=f"--gateway6 {prefix[1]}",
        )


def check_domain(domain: str, what: str) -> None:
    if not domain:
        return
    if len(domain) > LONGEST_DOMAIN or not all(LABEL.fullmatch(label) for label in domain.split(".")):
        raise Invalid(
            f"{domain!r}, the domain of {what}, is no name of the DNS", hint="like shop.example.com"
        )
    if f".{domain}".endswith((".in-addr.arpa", ".ip6.arpa")):
        raise Invalid(f"{domain}, the domain of {what}, is for the names of addresses")


def _check_server(text: str, role: str, what: str) -> None:
    server = _address(text, role, what)
    if server.is_unspecified or server.is_loopback or server.is_link_local or server.is_multicast:
        raise Invalid(f"{server}, the {role} of {what}, is no server that others could ask")


def _prefix(text: str, version: int, what: str) -> Prefix:
    try:
        prefix = ip_network(text, strict=False)
    except ValueError:
        raise Invalid(
            f"{text!r} of {what} is not a network", hint="like 10.1.0.0/24 or fd00:1::/64"
        ) from None
    if prefix.version != version:
        raise Invalid(f"{text} of {what} is not an IPv{version} network")
    if "/" not in text:
        raise Invalid(
            f"{text} of {what} has no prefix length", hint=f"like {text}/{24 if version == 4 else 64}"
        )
    if str(prefix.network_address) != str(ip_address(text.partition("/")[0])):
        raise Invalid(f"{text} of {what} is an address in the network {prefix}", hint=f"{prefix}")
    if (
        prefix.is_multicast
        or prefix.is_loopback
        or prefix.is_link_local
        or prefix.network_address.is_unspecified
    ):
        raise Invalid(f"{prefix} of {what} is reserved: no VM can have an address there")
    return prefix


def _address(text: str, role: str, what: str) -> Address:
    try:
        return ip_address(text)
    except ValueError:
        raise Invalid(f"{text!r}, the {role} of {what}, is not an address") from None


def _host(text: str, prefix: Prefix, role: str, what: str) -> Address:
    address = _address(text, role, what)
    if address not in prefix:
        raise Invalid(f"{address}, the {role} of {what}, is outside its network {prefix}")
    if address == prefix.network_address or (prefix.version == 4 and address == prefix.broadcast_address):
        raise Invalid(f"{address}, the {role} of {what}, is no host's address in {prefix}")
    return address


def _check_against(spec: NetworkSpec, others: Iterable[NetworkSpec], taken: Mapping[Prefix, str]) -> None:
    """All are routed by the same gateway, which could not tell them apart, and named by the same servers."""
    known = [(prefix, f"{prefix}, {whose}") for prefix, whose in taken.items()]
    for other in others:
        if other.vni == spec.vni:
            continue
        known += [(prefix, f"{prefix} of network {other.vni}") for prefix in other.prefixes()]
        if spec.domain and spec.domain == other.domain:
            raise Invalid(f"{spec.domain} is the domain of network {other.vni} already")
    for mine in spec.prefixes():
        for theirs, whose in known:
            if mine.version == theirs.version and mine.overlaps(theirs):
                raise Invalid(f"{mine} of network {spec.vni} overlaps {whose}")
