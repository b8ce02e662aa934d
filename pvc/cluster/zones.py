"""What the cluster tells the world of its names: zones of the DNS, forward and reverse. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, ip_address
from typing import Any

from pvc.cluster.clients import RESERVED_NAMES, Clients, Lease, host_name, hostnames
from pvc.cluster.network import LONGEST_DOMAIN, Address, NetworkSpec, Prefix
from pvc.cluster.node import NodeSpec

TTL_S = 60
"""Of every record, and of the answer that there is none: a guest may have another address soon."""
REFRESH_S, RETRY_S, EXPIRE_S = 900, 60, 604_800
"""For secondaries, which NOTIFY tells of a change long before they ask for it."""
SERVER, GATEWAY = "ns", "gateway"


@dataclass(frozen=True, slots=True)
class Record:
    """All names are in lower case and without the last dot."""

    name: str
    type: str
    content: str


@dataclass(frozen=True, slots=True)
class Zone:
    name: str
    server: str
    """Its name server."""
    records: frozenset[Record]
    """All but the SOA."""
    serial: int = 0

    @property
    def soa(self) -> str:
        return (
            f"{self.server} hostmaster.{self.server.partition('.')[2]} "
            f"{self.serial} {REFRESH_S} {RETRY_S} {EXPIRE_S} {TTL_S}"
        )

    @property
    def digest(self) -> str:
        """Of all that a new serial would announce."""
        lines = sorted(f"{one.name} {one.type} {one.content}" for one in self.records)
        text = "\n".join((replace(self, serial=0).soa, *lines))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Server:
    """By what name and where whoever is primary answers."""

    domain: str
    """Of the cluster; empty: it has none."""
    addresses: tuple[str, ...]

    def name_for(self, domain: str) -> str:
        return f"{SERVER}.{self.domain or domain}"


@dataclass(frozen=True, slots=True)
class Edition:
    """Of a zone, as it was told the world last; written by the primary."""

    serial: int
    digest: str
    extra: Mapping[str, Any] = field(default_factory=dict)


def later(serial: int, now: float) -> int:
    """The serial after that one: the time, unless that goes backwards or leaps.

    Secondaries take a serial for newer when it is ahead by less than 2^31 (RFC 1982).
    """
    return min(max(int(now), serial + 1), serial + 2**31 - 1 if serial else int(now)) % 2**32


# Names


def is_below(name: str, zone: str) -> bool:
    return name.endswith(f".{zone}")


def reverse_name(address: str) -> str:
    return ip_address(address).reverse_pointer


def reverse_zones(prefix: Prefix) -> tuple[str, ...]:
    """The zones in which the addresses of a network have their names.

    They are cut at whole octets. A network between two octets (/20) has the several zones that it consists
    of, so that nothing is claimed that is not its own. One smaller than an octet has its names in the /24
    around it, which holds nothing else: the other way (RFC 2317) finds nothing without an alias for each
    address in the zone above, which is somebody else's.
    """
    if not isinstance(prefix, IPv4Network):
        digits = prefix.network_address.exploded.replace(":", "")[: prefix.prefixlen // 4]
        return (".".join((*reversed(digits), "ip6.arpa")),)
    if prefix.prefixlen > 24:
        prefix = prefix.supernet(new_prefix=24)
    octets = -(-prefix.prefixlen // 8)
    parts = prefix.subnets(new_prefix=octets * 8)
    return tuple(
        ".".join((*reversed(str(part.network_address).split(".")[:octets]), "in-addr.arpa")) for part in parts
    )


# Who is called what in a network


@dataclass(frozen=True, slots=True)
class Hosts:
    addresses: Mapping[str, tuple[str, ...]]
    """By name in the domain."""
    names: Mapping[str, str]
    """By address: the one that its reverse zone tells."""
    doubtful: tuple[str, ...] = ()
    """Names that VMs cannot have, as two would have the same, or the network itself has it."""


def hosts(clients: Clients) -> Hosts:
    """A VM is called by its name, whatever it calls itself.

    What a guest says of itself is believed only where that is no VM's name, no reservation's and no other
    guest's. Addresses that a guest gave itself are not told: it may make those of IPv6 from its MAC address,
    but most guests do not, and nobody knows which.
    """
    addresses = _addresses(clients)
    vms = Counter(host_name(member.vm) for member in clients.members.values())
    owners = {mac.lower(): member for member in clients.members.values() for mac in member.macs}
    found: dict[str, list[str]] = {}
    names: dict[str, str] = {}

    def give(name: str, mac: str) -> None:
        for address in addresses.get(mac, ()) if name and name not in RESERVED_NAMES else ():
            if address not in found.setdefault(name, []):
                found[name].append(address)
            names.setdefault(address, name)

    for mac, member in owners.items():
        name = host_name(member.vm)
        if vms[name] == 1:
            give(name, mac)
    reserved: dict[str, str] = {}
    for mac, reservation in sorted(clients.reservations.items()):
        name, owner = host_name(reservation.hostname), owners.get(mac.lower())
        if name and (name not in vms or (owner is not None and host_name(owner.vm) == name)):
            reserved[mac.lower()] = name
            give(name, mac.lower())
    taken = {*vms, *reserved.values()}
    said = _said(clients, {*owners, *reserved})
    claims = Counter(said.values())
    for who, name in said.items():
        if name not in taken and claims[name] == 1:
            give(name, who)
    doubtful = tuple(sorted(name for name in vms if name and (vms[name] > 1 or name in RESERVED_NAMES)))
    return Hosts({name: tuple(these) for name, these in found.items()}, names, doubtful)


def _addresses(clients: Clients) -> dict[str, list[str]]:
    """By who has them: those leased, else the one reserved."""
    prefixes = tuple(clients.spec.prefixes())
    given = hostnames(clients)
    found: dict[str, list[str]] = {}
    for address, lease in clients.leases.items():
        if _is_in(address, prefixes):
            found.setdefault(_who(lease, given), []).append(_plain(address))
    for mac, reservation in clients.reservations.items():
        mine = found.setdefault(mac.lower(), [])
        if _is_in(reservation.address, prefixes):
            version = ip_address(reservation.address).version
            if all(ip_address(one).version != version for one in mine):
                mine.append(_plain(reservation.address))
    return found


def _who(lease: Lease, given: Mapping[str, str]) -> str:
    """Its MAC address; `given` are the names that DHCP gives to these.

    With IPv6 a client can say any: it is believed where DHCP, which sees who sent a packet, gave its name.
    Whatever another client calls itself, it is never somebody's MAC address.
    """
    mac = lease.mac.lower()
    if ":" in lease.address and (not given.get(mac) or given[mac] != host_name(lease.hostname)):
        mac = ""
    return mac or f"client {lease.client_id}"


def _said(clients: Clients, named: Collection[str]) -> dict[str, str]:
    """What guests that have no name otherwise call themselves, by MAC address or client."""
    given = hostnames(clients)
    found: dict[str, str] = {}
    for lease in clients.leases.values():
        who, name = _who(lease, given), host_name(lease.hostname)
        if name and who not in named:
            found[who] = name
    return found


def _is_in(text: str, prefixes: Iterable[Prefix]) -> bool:
    try:
        address: Address = ip_address(text)
    except ValueError:
        return False
    return any(address.version == prefix.version and address in prefix for prefix in prefixes)


# Zones


def of_network(
    spec: NetworkSpec, known: Hosts, server: Server, cuts: Collection[str] = ()
) -> dict[str, Zone]:
    """Its zones by name; `cuts` are those of others below its domain. None where it has no domain."""
    domain = spec.domain
    if not domain:
        return {}
    gateways = tuple(one for one in (spec.ipv4.gateway, spec.ipv6.gateway) if one)
    named = {**known.addresses, GATEWAY: gateways}
    records = {record for name, these in named.items() for record in _at(f"{name}.{domain}", these)}
    forward = _forward(domain, server, records, cuts)
    zones = {domain: forward}
    for prefix in spec.prefixes():
        for name in reverse_zones(prefix):
            records = {Record(name, "NS", forward.server)}
            zones[name] = Zone(name, forward.server, frozenset(records))
    pointers: dict[str, set[Record]] = {}
    for address, name in {**known.names, **dict.fromkeys(map(_plain, gateways), GATEWAY)}.items():
        full = f"{name}.{domain}"
        if len(full) <= LONGEST_DOMAIN and not _is_cut(full, cuts):
            pointer = reverse_name(address)
            where = next(zone for zone in _above(pointer) if zone in zones)
            pointers.setdefault(where, set()).add(Record(pointer, "PTR", full))
    for where, found in pointers.items():
        zones[where] = replace(zones[where], records=zones[where].records | found)
    return zones


def of_cluster(
    nodes: Mapping[str, NodeSpec], floating: Mapping[str, str], server: Server, cuts: Collection[str] = ()
) -> dict[str, Zone]:
    """Of the names of nodes, and of floating addresses by what they are called; none without a domain."""
    if not server.domain:
        return {}
    named = {name: spec.address for name, spec in nodes.items() if name != SERVER}
    named.update(floating)
    records = {
        record for name, address in named.items() for record in _at(f"{name}.{server.domain}", [address])
    }
    return {server.domain: _forward(server.domain, server, records, cuts)}


def _forward(domain: str, server: Server, records: Iterable[Record], cuts: Collection[str]) -> Zone:
    """With the way to zones below it, as servers that have only this one need it."""
    own = server.name_for(domain)
    kept = {one for one in records if not _is_cut(one.name, cuts)}
    kept.add(Record(domain, "NS", own))
    if own == f"{SERVER}.{domain}":
        kept.update(_at(own, server.addresses))
    for cut in cuts:
        other = server.name_for(cut)
        kept.add(Record(cut, "NS", other))
        if other == cut or is_below(other, cut):
            kept.update(_at(other, server.addresses))
    return Zone(domain, own, frozenset(kept))


def _is_cut(name: str, cuts: Iterable[str]) -> bool:
    return any(name == cut or is_below(name, cut) for cut in cuts)


def _at(name: str, addresses: Iterable[str]) -> Iterator[Record]:
    if len(name) > LONGEST_DOMAIN:
        return
    for text in addresses:
        address = ip_address(text)
        yield Record(name, "A" if address.version == 4 else "AAAA", str(address))


def _plain(address: str) -> str:
    return str(ip_address(address))


def _above(name: str) -> Iterator[str]:
    """The name itself first."""
    while name:
        yield name
        name = name.partition(".")[2]


def cuts_in(domains: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Of each domain, those right below it: not those that one in between is responsible for."""
    known = {*domains}
    found: dict[str, list[str]] = {domain: [] for domain in known}
    for domain in known:
        for above in _above(domain.partition(".")[2]):
            if above in known:
                found[above].append(domain)
                break
    return {domain: tuple(sorted(below)) for domain, below in found.items()}


def joined(parts: Iterable[Mapping[str, Zone]]) -> dict[str, Zone]:
    """One zone of each name: networks smaller than an octet share the one around them."""
    found: dict[str, Zone] = {}
    for part in parts:
        for name, zone in part.items():
            if name in found:
                zone = replace(found[name], records=found[name].records | zone.records)
            found[name] = zone
    return found
