"""Who has which address of a managed network: reserved by an operator, or leased by DHCP."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Annotated

from pvc.cluster import paths
from pvc.cluster.client_view import ClientsView
from pvc.cluster.clients import RESERVED_NAMES, Clients, Reservation
from pvc.cluster.codec import dumps
from pvc.cluster.network import GATEWAY_MAC, LABEL, Address, Kind, NetworkSpec
from pvc.cluster.store import Check, Create, Delete, Put
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.types import NetworkName
from pvc.errors import Conflict, Invalid, NotFound

RESERVED, LEASED, BOTH = "reserved", "leased", "reserved, leased"

MAC = Annotated[
    str,
    Arg(
        "of the interface",
        metavar="MAC",
        pattern=r"([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}",
        what="a MAC address like 52:54:00:12:34:56",
    ),
]


@dataclass(frozen=True, slots=True)
class AddressRow:
    address: str
    hostname: str
    mac: str
    vm: str
    """Whose interface it is; empty: of none that is known."""
    state: str
    """reserved, leased or both."""
    until_at: float
    """When the lease ends unless it is renewed; 0: there is none."""


@operation(
    "POST",
    "/network/{network}/dhcp",
    role=Role.OPERATE,
    noun="network",
    verb="dhcp add",
    done="{address} is reserved for {mac}; the primary follows",
)
def add(
    ctx: Context,
    network: NetworkName,
    address: Annotated[str, Arg("the address it is to have", metavar="IP")],
    hostname: Annotated[str, Arg("its name in the network's domain", metavar="HOSTNAME")],
    mac: MAC,
) -> AddressRow:
    """Reserve an address of a managed network, and a name, for the interface with a MAC address.

    It is given by DHCP when the interface asks the next time, be it in the range of the network or not. Its
    name can be asked for at once.
    """
    vni = ctx.view.network(network).spec.vni
    listing = paths.network_reservations(vni)
    # Before those who are in it are read: of two that reserve at the same moment one has to see the other.
    stored = ctx.reader.get(listing)
    found, version = _found(ctx, network)
    spec = found.spec
    own, name, who = _checked_address(address, spec), _checked_name(hostname), _checked_mac(mac)
    _check_unused(found, Reservation(who, own, name))
    holder = found.leases.get(own)
    if holder is not None and holder.mac != who:
        ctx.say(f"{own} is leased to {holder.mac or 'another'} now, and is given when that lease has ended")
    ctx.say(f"{own} of network {vni} and the name {name} are reserved for {who}")
    ctx.commit(
        Check(paths.network(vni), version),
        *([Put(listing, b"", stored.version)] if stored else []),
        Create(paths.network_reservation(vni, who), dumps(Reservation(who, own, name))),
    )
    return AddressRow(own, name, who, _owners(found).get(who, ""), RESERVED, 0.0)


@operation(
    "DELETE",
    "/network/{network}/dhcp/{mac}",
    role=Role.OPERATE,
    noun="network",
    verb="dhcp remove",
    done="nothing is reserved for {mac} any more",
)
def remove(ctx: Context, network: NetworkName, mac: MAC) -> None:
    """Take back what is reserved for a MAC address. A lease that it has goes on until it ends."""
    found, _ = _found(ctx, network)
    known = found.reservations.get(mac.lower())
    if known is None:
        raise NotFound(
            f"nothing is reserved for {mac.lower()} in network {found.spec.vni}",
            hint=f"pvc network dhcp list {found.spec.vni} --static",
        )
    ctx.say(f"{known.address} is not reserved for {known.mac}, {known.hostname}, any more")
    ctx.commit(Delete(paths.network_reservation(found.spec.vni, known.mac)))


@operation(
    "GET",
    "/network/{network}/dhcp",
    noun="network",
    verb="dhcp list",
    columns=("address", "hostname", "mac", "vm", "state", "until_at"),
)
def list_(
    ctx: Context,
    network: NetworkName,
    *,
    static: Annotated[bool, Arg("only what is reserved", short="-s")] = False,
) -> tuple[AddressRow, ...]:
    """List the addresses of a managed network that are reserved or leased, and who has them."""
    found, _ = _found(ctx, network)
    owners = _owners(found)
    reserved = {one.address: one for one in found.reservations.values()}
    rows = []
    for address in {*reserved, *(() if static else found.leases)}:
        mine, lease = reserved.get(address), found.leases.get(address)
        mac = lease.mac if lease else mine.mac if mine else ""
        name = (lease.hostname if lease else "") or (mine.hostname if mine else "")
        state = (BOTH if lease else RESERVED) if mine else LEASED
        until = lease.until if lease else 0.0
        rows.append(AddressRow(address, name, mac, owners.get(mac, ""), state, until))
    return tuple(sorted(rows, key=lambda row: _order(row.address)))


def _order(text: str) -> tuple[int, int]:
    address = ip_address(text)
    return address.version, int(address)


def _found(ctx: Context, network: str) -> tuple[Clients, int]:
    known = ctx.view.network(network)
    if known.spec.kind is not Kind.MANAGED:
        raise Conflict(
            f"network {known.spec.vni} is bridged: whoever runs that VLAN gives the addresses in it",
            hint="reserve it with their DHCP server",
        )
    clients = ClientsView(ctx.view)
    clients.update([paths.network(known.spec.vni)])
    if why := clients.unreadable.get(known.spec.vni):
        raise Conflict(why)
    return clients.networks[known.spec.vni], known.spec_version


def _owners(found: Clients) -> dict[str, str]:
    return {mac: member.vm for member in found.members.values() for mac in member.macs}


# What can be reserved


def _checked_address(text: str, spec: NetworkSpec) -> str:
    what = f"network {spec.vni}"
    try:
        address: Address = ip_address(text)
    except ValueError:
        raise Invalid(f"{text!r} is not an address") from None
    ours, option = (spec.ipv4, "--dhcp") if address.version == 4 else (spec.ipv6, "--dhcp6")
    if not ours.network:
        raise Invalid(f"{address} cannot be in {what}, which has no IPv{address.version} network")
    prefix = ip_network(ours.network)
    if address not in prefix:
        raise Invalid(f"{address} is outside {prefix} of {what}")
    if str(address) in spec.gateways:
        raise Invalid(f"{address} is the gateway of {what}")
    if address == prefix.network_address or (address.version == 4 and address == prefix.broadcast_address):
        raise Invalid(f"{address} is no host's address in {prefix} of {what}")
    if not ours.dhcp:
        raise Conflict(
            f"{what} gives no IPv{address.version} addresses by DHCP",
            hint=f"pvc network modify {spec.vni} {option}",
        )
    return str(address)


def _checked_name(text: str) -> str:
    name = text.lower()
    if not LABEL.fullmatch(name):
        raise Invalid(
            f"{text!r} is not the name of a host: up to 63 letters, digits and dashes",
            hint="the domain is that of the network",
        )
    if name in RESERVED_NAMES:
        raise Invalid(f"the name {name} is the network's own")
    return name


def _checked_mac(text: str) -> str:
    mac = text.lower()
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise Invalid(f"{mac} is no interface's own MAC address")
    if mac == GATEWAY_MAC:
        raise Invalid(f"{mac} is the MAC address of every gateway")
    return mac


def _check_unused(found: Clients, wanted: Reservation) -> None:
    vni = found.spec.vni
    hint = f"pvc network dhcp remove {vni}"
    for one in found.reservations.values():
        if one.mac == wanted.mac:
            raise Conflict(f"{one.address} is reserved for {one.mac} already", hint=f"{hint} {one.mac}")
        if one.address == wanted.address:
            raise Conflict(f"{one.address} is reserved for {one.mac} already", hint=f"{hint} {one.mac}")
        if one.hostname.lower() == wanted.hostname:
            raise Conflict(f"{one.mac} is called {one.hostname} already", hint=f"{hint} {one.mac}")
    for member in found.members.values():
        if member.vm.lower() == wanted.hostname and wanted.mac not in member.macs:
            raise Conflict(f"the VM {member.vm} in network {vni} is called {wanted.hostname} already")
