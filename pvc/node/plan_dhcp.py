"""What the dnsmasq of a network is told, and what its leases are for the store. Values in, values out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Address, ip_address, ip_network

from pvc.cluster.clients import Clients, Lease, hostnames
from pvc.cluster.network import GATEWAY_MAC, DHCPRange, NetworkSpec
from pvc.node.drivers.networks import GatewayDevice, Place, Settings

OURS = "# Written by pvc, which overwrites every change."
LEASE_S = 24 * 3600
SLACK_S = LEASE_S / 8
"""So much later than the store says an address may still be in use: not each renewal is written there."""
GUEST_MTU = 1500
"""What a guest takes for granted."""
SERVER_DUID = f"00:03:00:01:{GATEWAY_MAC}"
"""By it clients of DHCPv6 know their server: the gateway, whichever node that is now."""
FIRST6, LAST6 = 0x1_0000, 0xFFFF_FFFF
"""Of a /64, what DHCPv6 gives; those before are for reservations, and those after for who chose their own."""
MOST_LEASES = 8192
"""Each change costs dnsmasq and the daemon a look at all of them, and guests can ask for any number."""
SPARE_LEASES = 1000


def settings(clients: Clients, device: GatewayDevice, place: Place) -> Settings:
    lines = _lines(clients.spec, device, place)
    config = "".join(f"{line}\n" for line in lines)
    return Settings(config, dict(_hosts(clients)), dict(_names(clients)))


def in_place(there: Settings, wanted: Settings) -> tuple[Settings, bool]:
    """What its files should be while it runs, and whether it has to be told to read them again.

    It reads new ones by itself. To read all again costs it a call of its script for each lease, so a name
    of which nobody has the interface any more stays until there is another reason.
    """
    pairs = ((there.hosts, wanted.hosts), (there.names, wanted.names))
    if any(_must_look(old, new) for old, new in pairs):
        return wanted, True
    (hosts, names) = ({**old, **new} for old, new in pairs)
    return replace(wanted, hosts=hosts, names=names), False


def _must_look(old: Mapping[str, str], new: Mapping[str, str]) -> bool:
    """Something changed, or an address became free."""
    gone = [text for name, text in old.items() if name not in new]
    return any(old.get(name, text) != text for name, text in new.items()) or any(map(_has_address, gone))


def _has_address(text: str) -> bool:
    """Host's names have no dots."""
    after_mac = text.partition(",")[2] or text
    return "." in after_mac or "[" in after_mac or " " in after_mac


# Who is given what


def _hosts(clients: Clients) -> Iterator[tuple[str, str]]:
    names = hostnames(clients)
    for mac in sorted({*clients.reservations, *names}):
        reserved = clients.reservations.get(mac)
        words = [mac, _bracketed(reserved.address) if reserved else "", names.get(mac, "")]
        yield mac.replace(":", ""), ",".join(word for word in words if word) + "\n"


def _names(clients: Clients) -> Iterator[tuple[str, str]]:
    """Of reservations, which hold also while nobody has a lease."""
    names = hostnames(clients)
    for mac, one in sorted(clients.reservations.items()):
        if name := names.get(mac):
            yield mac.replace(":", ""), f"{one.address} {_every_name(name, clients.spec)}\n"


def _every_name(name: str, spec: NetworkSpec) -> str:
    return f"{name}.{spec.domain} {name}" if spec.domain else name


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


# The configuration


def _lines(spec: NetworkSpec, device: GatewayDevice, place: Place) -> Iterator[str]:
    yield OURS
    # So that another device means another configuration: its sockets are bound to the one it began with.
    yield f"# {device.name} is device {device.index}"
    yield from (f"interface={device.name}", "bind-dynamic", "except-interface=lo")
    yield from ("no-hosts", "no-ident", "cache-size=1000")
    yield from _resolver(spec, place)
    yield from _dhcp(spec, device, place)


def _resolver(spec: NetworkSpec, place: Place) -> Iterator[str]:
    """The network's names are answered here and asked of nobody; all others are asked of others."""
    yield from ("domain-needed", f"hostsdir={place.names}")
    if spec.domain:
        yield from (f"domain={spec.domain}", f"local=/{spec.domain}/")
        yield f"host-record=gateway.{spec.domain},{','.join(spec.gateways)}"
    for text in (spec.ipv4.network, spec.ipv6.network):
        yield from (f"local=/{zone}/" for zone in reverse_zones(text))
    if spec.dns_servers:
        yield "no-resolv"
        yield from (f"server={server}" for server in spec.dns_servers)


def reverse_zones(text: str) -> list[str]:
    """Of the addresses of a network: as few as cover it and nothing else."""
    if not text:
        return []
    prefix = ip_network(text)
    bits = 8 if isinstance(prefix, IPv4Network) else 4
    length = -(-prefix.prefixlen // bits) * bits
    kept = length // bits
    skipped = prefix.max_prefixlen // bits - kept
    pointers = (part.network_address.reverse_pointer for part in prefix.subnets(new_prefix=length))
    return [".".join(pointer.split(".")[skipped:]) for pointer in pointers]


def _dhcp(spec: NetworkSpec, device: GatewayDevice, place: Place) -> Iterator[str]:
    dhcp = spec.ipv4.dhcp if spec.ipv4.gateway else None
    if dhcp is None and not spec.ipv6.gateway:
        return
    # Guests are known by their MAC addresses: copies of one image may all say the same client identifier.
    yield from ("dhcp-authoritative", "no-ping", "dhcp-ignore-names", "dhcp-ignore-clid")
    yield f"dhcp-lease-max={_most_leases(dhcp)}"
    yield f"dhcp-leasefile={place.leases}"
    yield f"dhcp-hostsdir={place.hosts}"
    yield from (f"dhcp-script={place.script}", "script-on-renewal")
    mtu = _told_mtu(spec, device)
    if dhcp is not None:
        yield from _ipv4(spec, dhcp, mtu)
    if spec.ipv6.gateway:
        yield from _ipv6(spec, device, mtu)


def _ipv4(spec: NetworkSpec, dhcp: DHCPRange, mtu: int) -> Iterator[str]:
    yield f"dhcp-range={dhcp.start},{dhcp.end},{ip_network(spec.ipv4.network).netmask},{LEASE_S}"
    yield f"dhcp-option=option:router,{spec.ipv4.gateway}"
    yield f"dhcp-option=option:dns-server,{spec.ipv4.gateway}"
    if spec.domain:
        yield f"dhcp-option=option:domain-search,{spec.domain}"
    if mtu:
        yield f"dhcp-option=option:mtu,{mtu}"
    if servers := [server for server in spec.ntp_servers if ":" not in server]:
        yield f"dhcp-option=option:ntp-server,{','.join(servers)}"


def _ipv6(spec: NetworkSpec, device: GatewayDevice, mtu: int) -> Iterator[str]:
    """Hosts give themselves addresses by the prefix that is announced; DHCPv6 tells them the rest, or gives
    them one besides."""
    base = ip_network(spec.ipv6.network).network_address
    if spec.ipv6.dhcp:
        yield f"dhcp-range={base + FIRST6},{base + LAST6},slaac,64,{LEASE_S}"
    else:
        yield f"dhcp-range={base},ra-stateless,ra-names,64,{LEASE_S}"
    yield "enable-ra"
    yield f"ra-param={device.name},mtu:{mtu or 'off'},600,1800"
    yield f"dhcp-option=option6:dns-server,[{spec.ipv6.gateway}]"
    if spec.domain:
        yield f"dhcp-option=option6:domain-search,{spec.domain}"
    if servers := [f"[{server}]" for server in spec.ntp_servers if ":" in server]:
        yield f"dhcp-option=option6:ntp-server,{','.join(servers)}"


def _told_mtu(spec: NetworkSpec, device: GatewayDevice) -> int:
    """0: a guest may go on with what it takes for granted."""
    carried = min(spec.mtu or GUEST_MTU, device.mtu)
    return carried if spec.mtu or carried < GUEST_MTU else 0


def _most_leases(dhcp: DHCPRange | None) -> int:
    given = int(ip_address(dhcp.end)) - int(ip_address(dhcp.start)) + 1 if dhcp else 0
    return min(given + SPARE_LEASES, MOST_LEASES)


# Leases


def parse(text: str, macs: Mapping[str, str]) -> dict[str, Lease]:
    """What dnsmasq remembers, by address; `macs` has the MAC address of each name.

    Of a client of DHCPv6 it remembers none: the name tells it, which dnsmasq has given to that MAC address. A
    DUID, where anybody can write anything, is believed only where it names nobody else's.
    """
    return {lease.address: lease for line in text.splitlines() if (lease := _parsed(line.split(), macs))}


def _parsed(words: list[str], macs: Mapping[str, str]) -> Lease | None:
    if len(words) != 5 or not words[0].isdigit():
        return None
    until, second, address, name, client = words
    hostname, client_id = _said(name), _said(client)
    if ":" not in address:
        # A hardware other than Ethernet stands before the address of it.
        return Lease(address, second.rpartition("-")[2].lower(), hostname, client_id, until=float(until))
    claimed = _mac_of(client_id)
    mac = macs.get(hostname, "") or ("" if claimed in macs.values() else claimed)
    return Lease(str(ip_address(address)), mac, hostname, client_id, second, float(until))


def _said(word: str) -> str:
    return "" if word == "*" else word


def _mac_of(duid: str) -> str:
    """Made from a time and a MAC address, or from that alone."""
    if duid.startswith("00:01:00:01:") and len(duid) == 41:
        return duid[-17:].lower()
    if duid.startswith("00:03:00:01:") and len(duid) == 29:
        return duid[-17:].lower()
    return ""


def lease_file(leases: Mapping[str, Lease]) -> str:
    """From which dnsmasq begins; the opposite of `parse`."""
    ordered = sorted(leases.values(), key=lambda one: one.address)
    lines = [_line(one) for one in ordered if ":" not in one.address]
    lines.append(f"duid {SERVER_DUID}")
    lines += [_line(one) for one in ordered if ":" in one.address]
    return "".join(f"{line}\n" for line in lines)


def _line(lease: Lease) -> str:
    who = lease.iaid or "0" if ":" in lease.address else lease.mac
    return f"{round(lease.until)} {who} {lease.address} {lease.hostname or '*'} {lease.client_id or '*'}"


def promised(stored: Mapping[str, Lease]) -> dict[str, Lease]:
    """Until when clients may believe that they have what the store knows: it is not told each renewal."""
    return {address: replace(one, until=one.until + SLACK_S) for address, one in stored.items()}


def is_lease_of(spec: NetworkSpec, address: str) -> bool:
    """Of the network as it is now: one that was given before its prefix changed is of no use."""
    own = ip_address(address)
    text = spec.ipv6.network if isinstance(own, IPv6Address) else spec.ipv4.network
    return bool(text) and own in ip_network(text)


def later(one: Mapping[str, Lease], other: Mapping[str, Lease]) -> dict[str, Lease]:
    """Of two memories of the same network all that either knows; where both do, what was said last."""
    both = {**one}
    for address, lease in other.items():
        known = both.get(address)
        if known is None or known.until < lease.until:
            both[address] = lease
    return both


@dataclass(frozen=True, slots=True)
class Differences:
    made: tuple[Lease, ...] = ()
    changed: tuple[Lease, ...] = ()
    gone: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.made or self.changed or self.gone)


def differences(known: Mapping[str, Lease], found: Mapping[str, Lease]) -> Differences:
    """What the store is to learn. A renewal is worth it when what the store knows would be too early."""
    pairs = [(known[address], lease) for address, lease in found.items() if address in known]
    return Differences(
        tuple(lease for address, lease in found.items() if address not in known),
        tuple(lease for old, lease in pairs if _is_worth_it(old, lease)),
        tuple(address for address in known if address not in found),
    )


def _is_worth_it(known: Lease, found: Lease) -> bool:
    def who(lease: Lease) -> tuple[str, ...]:
        return lease.mac, lease.hostname, lease.client_id, lease.iaid

    return who(known) != who(found) or found.until > known.until + SLACK_S + 1
