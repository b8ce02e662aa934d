"""What can be said of a network when it is made or changed, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Annotated

from pvc.cluster.network import (
    GREATEST_MTU,
    DHCPRange,
    IPv4,
    IPv6,
    NetworkSpec,
    dhcp_range,
)
from pvc.commands import types
from pvc.commands.registry import Arg
from pvc.errors import Invalid

NONE = "none"

Description = Annotated[
    str,
    Arg(
        "what it may be called instead of its number",
        short="-d",
        metavar="TEXT",
        pattern=rf"(?=.*[^0-9]){types.NETWORK_PATTERN}",
        what="a description: up to 63 letters, digits, dots, dashes and underscores, not only digits",
    ),
]
MTU = Annotated[
    int,
    Arg(
        "the longest packet; 0: as much as the network below it carries",
        short="-m",
        metavar="BYTES",
        minimum=0,
        maximum=GREATEST_MTU,
    ),
]
Domain = Annotated[
    str, Arg("the domain of its VMs' names; of managed networks, as are all that follow", short="-n")
]
DNSServer = Annotated[
    str, Arg("whom its gateway asks for names outside; those of the node unless told", metavar="IP")
]
NTPServer = Annotated[str, Arg("whom its VMs are told to ask for the time", metavar="IP")]
IPNet = Annotated[str, Arg("its IPv4 network, like 10.1.0.0/24", short="-i", metavar="CIDR4")]
Gateway = Annotated[
    str, Arg("its IPv4 gateway: an address that the primary has in it", short="-g", metavar="IP4")
]
IPNet6 = Annotated[str, Arg("its IPv6 network, like fd00:1::/64", short="-i6", metavar="CIDR6")]
Gateway6 = Annotated[
    str, Arg("its IPv6 gateway; VMs then give themselves addresses", short="-g6", metavar="IP6")
]
DHCP = Annotated[bool, Arg("give its VMs IPv4 addresses")]
DHCPStart = Annotated[str, Arg("the first that is given; a half of the network unless told", metavar="IP4")]
DHCPEnd = Annotated[str, Arg("the last that is given", metavar="IP4")]
DHCP6 = Annotated[bool, Arg("give its VMs IPv6 addresses, besides those that they give themselves")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """None: nothing was said. An empty text clears."""

    description: str | None = None
    mtu: int | None = None
    domain: str | None = None
    dns_server: tuple[str, ...] | None = None
    ntp_server: tuple[str, ...] | None = None
    ipnet: str | None = None
    gateway: str | None = None
    ipnet6: str | None = None
    gateway6: str | None = None
    dhcp: bool | None = None
    dhcp_start: str | None = None
    dhcp_end: str | None = None
    dhcp6: bool | None = None


def changed(spec: NetworkSpec, given: Given) -> NetworkSpec:
    """What is not given stays. Whether it can be so, `network.check` says."""
    return replace(
        spec,
        description=_either(given.description, spec.description),
        mtu=spec.mtu if given.mtu is None else given.mtu,
        domain=_either(given.domain, spec.domain).lower(),
        dns_servers=_servers(given.dns_server, spec.dns_servers),
        ntp_servers=_servers(given.ntp_server, spec.ntp_servers),
        ipv4=_ipv4(spec.ipv4, given),
        ipv6=_ipv6(spec.ipv6, given),
    )


def shown(spec: NetworkSpec) -> dict[str, str]:
    """By the option's name, as a plan tells it."""
    dhcp = spec.ipv4.dhcp
    return {
        "description": spec.description,
        "mtu": str(spec.mtu),
        "domain": spec.domain or NONE,
        "dns-server": ", ".join(spec.dns_servers) or NONE,
        "ntp-server": ", ".join(spec.ntp_servers) or NONE,
        "ipnet": spec.ipv4.network or NONE,
        "gateway": spec.ipv4.gateway or NONE,
        "dhcp": f"{dhcp.start} to {dhcp.end}" if dhcp else NONE,
        "ipnet6": spec.ipv6.network or NONE,
        "gateway6": spec.ipv6.gateway or NONE,
        "dhcp6": "on" if spec.ipv6.dhcp else "off",
    }


def differences(before: NetworkSpec, after: NetworkSpec) -> Iterator[tuple[str, str, str]]:
    """Each option that changes: its name, what it was, what it is to be."""
    old, new = shown(before), shown(after)
    return ((name, old[name], new[name]) for name in new if old[name] != new[name])


def _either(given: str | None, known: str) -> str:
    return known if given is None else given


def _servers(given: tuple[str, ...] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    return known if given is None else tuple(_address(one) for one in given if one)


def _ipv4(known: IPv4, given: Given) -> IPv4:
    network = _prefix(_either(given.ipnet, known.network))
    gateway = _address(_either(given.gateway, known.gateway))
    dhcp = _range(replace(known, network=network, gateway=gateway), given)
    return replace(known, network=network, gateway=gateway, dhcp=dhcp)


def _ipv6(known: IPv6, given: Given) -> IPv6:
    return replace(
        known,
        network=_prefix(_either(given.ipnet6, known.network)),
        gateway=_address(_either(given.gateway6, known.gateway)),
        dhcp=known.dhcp if given.dhcp6 is None else given.dhcp6,
    )


def _range(ipv4: IPv4, given: Given) -> DHCPRange | None:
    """A start or an end that is given asks for DHCP; --dhcp alone for a range that fits."""
    bounds = given.dhcp_start, given.dhcp_end
    if given.dhcp is False:
        if any(bounds):
            raise Invalid("--no-dhcp goes with neither --dhcp-start nor --dhcp-end")
        return None
    if given.dhcp is None and bounds == (None, None):
        return ipv4.dhcp
    if "" in bounds:
        raise Invalid("a DHCP range has a start and an end", hint="--no-dhcp takes it away")
    base = ipv4.dhcp
    if base is None or (given.dhcp and not _is_in(base, ipv4.network)):
        base = dhcp_range(ipv4.network, ipv4.gateway)
    start, end = _either(given.dhcp_start, base.start), _either(given.dhcp_end, base.end)
    return DHCPRange(_address(start), _address(end))


def _is_in(dhcp: DHCPRange, network: str) -> bool:
    try:
        return all(ip_address(one) in ip_network(network) for one in (dhcp.start, dhcp.end))
    except ValueError:
        return False


def _address(text: str) -> str:
    """In the one way in which it is written; what is none stays as it was given."""
    try:
        return str(ip_address(text))
    except ValueError:
        return text


def _prefix(text: str) -> str:
    try:
        return str(ip_network(text)) if "/" in text else text
    except ValueError:
        return text
