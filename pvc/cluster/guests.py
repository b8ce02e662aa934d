"""Who asks from inside of a managed network: from its address there to the VM. Pure.

An address alone proves nothing, since any guest can use any. It must have been given to a MAC address, by
DHCP or by a reservation; that must be of an interface of a VM in that network; and whoever answers at the
gateway for the address must have just that MAC address: the answer goes to nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network

from pvc.cluster.clients import Clients, hostnames, label
from pvc.cluster.network import NetworkSpec

ADDRESS, PORT = "169.254.169.254", 80
"""Where guests ask for their metadata, as in other clouds."""


class Unknown(Exception):
    """Nobody we know asks; says why. For our log only: the asker learns nothing."""


@dataclass(frozen=True, slots=True)
class Nic:
    network: NetworkSpec
    mac: str
    address: str = ""
    """IPv4, as it was given; empty where none was."""


@dataclass(frozen=True, slots=True)
class Guest:
    uuid: str
    name: str
    """Of the VM."""
    hostname: str
    """As its network's DNS has it."""
    asking: Nic
    nics: tuple[Nic, ...]
    """In managed networks, the asking one first."""


MacAt = Callable[[int, str], str]
"""The MAC address that the gateway of a network knows for an address; empty where it knows none."""


class Guests:
    """Of all managed networks, as they are at one moment. For any number of threads."""

    def __init__(self, networks: Mapping[int, Clients] | None = None, before: Guests | None = None) -> None:
        """With those before, what did not change is not looked at again."""
        self.networks = dict(networks or {})
        self._by_prefix: dict[tuple[int, int], int] = {}
        """VNI, by length and bits of its prefix."""
        self._indexes: dict[int, _Index] = {}
        """By VNI; made when somebody asks."""
        for vni, clients in self.networks.items():
            if clients.spec.ipv4.network:
                prefix = IPv4Network(clients.spec.ipv4.network)
                self._by_prefix[_key(prefix.network_address, prefix.prefixlen)] = vni
        self._lengths = {length for length, _ in self._by_prefix}
        for vni, index in before._indexes.copy().items() if before is not None else ():
            if self.networks.get(vni) is index.clients:
                self._indexes[vni] = index

    def has(self, address: str) -> bool:
        """It was given to somebody: what can be known of who has it without looking."""
        try:
            clients = self._network_of(address)
        except Unknown:
            return False
        return address in clients.leases or address in self._index(clients).reserved

    def identify(self, address: str, mac_at: MacAt) -> Guest:
        """Raises Unknown."""
        clients = self._network_of(address)
        vni = clients.spec.vni
        mac = mac_at(vni, address).lower()
        if not mac:
            raise Unknown(f"the gateway of network {vni} knows nobody with it")
        if not _is_given(clients, address, mac):
            raise Unknown(f"{mac} uses it in network {vni}, to whom it was not given")
        index = self._index(clients)
        uuids = index.owners.get(mac, set())
        if len(uuids) != 1:
            owner = "no VM" if not uuids else "more than one VM"
            raise Unknown(f"{mac}, which uses it in network {vni}, is of {owner} there")
        (uuid,) = uuids
        name = clients.members[uuid].vm
        called = index.names.get(mac) or label(name) or uuid
        hostname = f"{called}.{clients.spec.domain}" if clients.spec.domain else called
        asking = Nic(clients.spec, mac, address)
        return Guest(uuid, name, hostname, asking, (asking, *self._others(uuid, asking)))

    def _network_of(self, address: str) -> Clients:
        try:
            wanted = IPv4Address(address)
        except AddressValueError:
            raise Unknown("it is no IPv4 address") from None
        for length in self._lengths:
            vni = self._by_prefix.get(_key(wanted, length))
            if vni is not None:
                return self.networks[vni]
        raise Unknown("it is in no managed network")

    def _index(self, clients: Clients) -> _Index:
        known = self._indexes.get(clients.spec.vni)
        if known is None or known.clients is not clients:
            known = self._indexes[clients.spec.vni] = _Index.of(clients)
        return known

    def _others(self, uuid: str, asking: Nic) -> Iterator[Nic]:
        for _, clients in sorted(self.networks.items()):
            member = clients.members.get(uuid)
            for mac in [one.lower() for one in member.macs] if member else []:
                if (clients.spec.vni, mac) != (asking.network.vni, asking.mac):
                    yield Nic(clients.spec, mac, self._index(clients).address_of(mac))


@dataclass(frozen=True, slots=True)
class _Index:
    """Of one network, by MAC address."""

    clients: Clients
    owners: Mapping[str, set[str]]
    """UUIDs: of one VM, unless something is wrong."""
    names: Mapping[str, str]
    """As the DNS has them."""
    leased: Mapping[str, str]
    reserved: frozenset[str]
    """Addresses."""

    @classmethod
    def of(cls, clients: Clients) -> _Index:
        owners: dict[str, set[str]] = {}
        for uuid, member in clients.members.items():
            for mac in member.macs:
                owners.setdefault(mac.lower(), set()).add(uuid)
        leased = {one.mac.lower(): one.address for one in clients.leases.values() if "." in one.address}
        reserved = frozenset(one.address for one in clients.reservations.values())
        return cls(clients, owners, hostnames(clients), leased, reserved)

    def address_of(self, mac: str) -> str:
        reservation = self.clients.reservations.get(mac)
        if reservation is not None and "." in reservation.address:
            return reservation.address
        return self.leased.get(mac, "")


def _is_given(clients: Clients, address: str, mac: str) -> bool:
    lease, reservation = clients.leases.get(address), clients.reservations.get(mac)
    is_leased = lease is not None and lease.mac.lower() == mac
    return is_leased or (reservation is not None and reservation.address == address)


def _key(address: IPv4Address, length: int) -> tuple[int, int]:
    return length, int(address) >> (32 - length)
