"""The names of the cluster for the world: zones of networks and nodes, with a new serial for each change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_interface, ip_network
from typing import TypeVar

from pvc.cluster import paths
from pvc.cluster.clients import Clients
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.codec import Unreadable, dumps, loads
from pvc.cluster.node import NetworkProblem, NodeRole, NodeSpec
from pvc.cluster.store import Create, Delete, Op, Put, Reader, Stored
from pvc.cluster.zones import Edition, Server, Zone, cuts_in, hosts, joined, later, of_cluster, of_network
from pvc.errors import PVCError
from pvc.node.drivers.networks import Answering, NameServer
from pvc.node.services import Commit, Scene

K = TypeVar("K")

log = logging.getLogger(__name__)

OPS_AT_ONCE = 200
"""In one transaction of the store, which takes no more than a megabyte."""


# Pure


def server(cluster: ClusterSpec, nodes: Mapping[str, NodeSpec]) -> Server:
    """Without a floating address, whichever coordinator is primary answers at its own."""
    coordinators = (spec.address for spec in nodes.values() if spec.role is NodeRole.COORDINATOR)
    addresses = [str(ip_interface(one).ip) for one in cluster.floating_addresses] or sorted(coordinators)
    return Server(cluster.dns_domain, tuple(addresses))


def answering(me: str, cluster: ClusterSpec, nodes: Mapping[str, NodeSpec]) -> Answering:
    floating = [ip_interface(one) for one in cluster.floating_addresses]
    own = [nodes[me].address] if me in nodes else []
    usual = [str(one.network) for one in floating]
    usual += [str(ip_network(spec.address)) for _, spec in sorted(nodes.items())]
    copied_by = (
        *(cluster.dns_transfers or usual),
        *(str(ip_network(one)) for one in cluster.dns_secondaries),
    )
    addresses = tuple(str(one.ip) for one in floating) or tuple(own)
    return Answering(addresses, tuple(dict.fromkeys(copied_by)), cluster.dns_secondaries)


@dataclass(frozen=True, slots=True)
class Part:
    """What one network adds, and from what that was made."""

    clients: Clients
    server: Server
    cuts: tuple[str, ...]
    zones: Mapping[str, Zone]
    doubtful: tuple[str, ...]


class Atlas:
    """The zones of a scene; what did not change is not made again."""

    def __init__(self) -> None:
        self._parts: dict[int, Part] = {}

    def zones(self, scene: Scene) -> tuple[dict[str, Zone], tuple[NetworkProblem, ...]]:
        own = server(scene.cluster, scene.nodes)
        of_domain: dict[str, int] = {own.domain: 0} if own.domain else {}
        problems = []
        for vni, clients in sorted(scene.networks.items()):
            domain = clients.spec.domain
            if domain and of_domain.setdefault(domain, vni) != vni:
                problems.append(NetworkProblem(vni, f"its names are not told: {domain} is taken already"))
        cuts = cuts_in(of_domain)
        parts = {
            vni: self._part(scene.networks[vni], own, cuts[domain])
            for domain, vni in of_domain.items()
            if vni
        }
        self._parts = parts
        for vni, part in parts.items():
            problems += [NetworkProblem(vni, f"no VM can be called {name} here") for name in part.doubtful]
        floating = {
            name: str(ip_interface(address).ip)
            for name, address in (
                ("upstream", scene.cluster.upstream_address),
                ("cluster", scene.cluster.cluster_address),
            )
            if address
        }
        whole = of_cluster(scene.nodes, floating, own, cuts.get(own.domain, ()))
        return joined([whole, *(part.zones for part in parts.values())]), tuple(problems)

    def _part(self, clients: Clients, own: Server, cuts: tuple[str, ...]) -> Part:
        known = self._parts.get(clients.spec.vni)
        if known and known.clients is clients and (known.server, known.cuts) == (own, cuts):
            return known
        found = hosts(clients)
        return Part(clients, own, cuts, of_network(clients.spec, found, own, cuts), found.doubtful)


# With the store and the name server


class Editions:
    """Which serial each zone has, for whoever is primary.

    A zone that does not change keeps its serial when the role moves. One that does gets a greater one than it
    ever had, whatever the clock says: also one that was gone and comes again.
    """

    def __init__(self, reader: Reader, commit: Commit, now: Callable[[], float]) -> None:
        self.reader = reader
        self.commit = commit
        self.now = now
        self._known: dict[str, Edition] | None = None
        """None: it has to be read, as somebody else may have been primary."""
        self._floor = 0
        self._numbered: dict[str, tuple[Zone, Zone]] = {}
        """Of each zone the one without a serial and the one with it."""

    def forget(self) -> None:
        self._known, self._numbered = None, {}

    def numbered(self, zones: Mapping[str, Zone]) -> dict[str, Zone]:
        """With their serials, which are in the store by then: nobody tells anything else with the same."""
        try:
            return self._number(zones)
        except PVCError:
            self.forget()
            raise

    def _number(self, zones: Mapping[str, Zone]) -> dict[str, Zone]:
        known = self._read() if self._known is None else self._known
        ops: list[Op] = []
        for name, zone in zones.items():
            before = self._numbered.get(name)
            if before is not None and (before[0] is zone or before[0] == zone):
                continue
            edition, digest = known.get(name), zone.digest
            if edition is None or edition.digest != digest:
                serial = later(edition.serial if edition else self._floor, self.now())
                data = dumps(Edition(serial, digest))
                ops.append(Put(paths.zone(name), data) if edition else Create(paths.zone(name), data))
                known[name] = edition = Edition(serial, digest)
            self._numbered[name] = zone, replace(zone, serial=edition.serial)
        gone = known.keys() - zones.keys()
        if gone:
            self._floor = max(self._floor, *(known[name].serial for name in gone))
            # First: a transaction that removes zones comes after the one that remembers how far they were.
            ops.insert(0, Put(paths.ZONES, dumps(Edition(self._floor, ""))))
            ops += [Delete(paths.zone(name)) for name in sorted(gone)]
        for start in range(0, len(ops), OPS_AT_ONCE):
            self.commit(*ops[start : start + OPS_AT_ONCE])
        for name in gone:
            del known[name]
            self._numbered.pop(name, None)
        return {name: self._numbered[name][1] for name in zones}

    def _read(self) -> dict[str, Edition]:
        names = self.reader.children(paths.ZONES)
        floor, *found = self.reader.get_many([paths.ZONES, *map(paths.zone, names)])
        self._floor = _edition(floor).serial if floor and floor.data else 0
        self._known = {name: _edition(one) for name, one in zip(names, found, strict=True) if one is not None}
        return self._known


def _edition(stored: Stored) -> Edition:
    try:
        return loads(Edition, stored.data, stored.path)
    except Unreadable as error:
        log.error("%s; its serial begins anew with the time", error.message)
        return Edition(0, "")


class Names:
    """A service of the primary: see pvc.node.services."""

    def __init__(
        self, me: str, reader: Reader, commit: Commit, name_server: NameServer, now: Callable[[], float]
    ) -> None:
        self.me = me
        self.name_server = name_server
        self.atlas = Atlas()
        self.editions = Editions(reader, commit, now)
        self._scene: Scene | None = None
        """Of which the zones were told last."""
        self._problems: tuple[NetworkProblem, ...] = ()
        self._zones: Mapping[str, Zone] = {}
        self._life = 0

    def serve(self, scene: Scene) -> Sequence[NetworkProblem]:
        self._say_if_it_died()
        if self._scene is None or not _is_same(self._scene, scene):
            self._scene = None
            zones, self._problems = self.atlas.zones(scene)
            self._zones = self.editions.numbered(zones)
        wanted = answering(self.me, scene.cluster, scene.nodes)
        if self._zones and wanted.addresses:
            self._tell(wanted)
        else:
            self._stop()
        self._scene = scene
        return self._problems

    def rest(self) -> None:
        self._scene = None
        self.editions.forget()
        self._stop()

    def _tell(self, wanted: Answering) -> None:
        changed = self.name_server.publish(self._zones)
        if changed:
            log.info("names changed in %s", ", ".join(changed[:5]) + (", …" if len(changed) > 5 else ""))
        if self.name_server.serve(wanted):
            log.info("names are served at %s", ", ".join(wanted.addresses))
        self._life = self.name_server.life()

    def _stop(self) -> None:
        self._life = 0
        if self.name_server.stop():
            log.info("names are not served here any more")

    def _say_if_it_died(self) -> None:
        """One that was killed is back soon; that it died is worth knowing all the same."""
        now = self.name_server.life()
        if self._life and now != self._life:
            how = "was started again" if now else "does not run"
            log.error("PowerDNS ended by itself and %s", how)


def _is_same(one: Scene, other: Scene) -> bool:
    """What did not change is the same object."""
    return (
        one.cluster is other.cluster
        and _are_same(one.nodes, other.nodes)
        and _are_same(one.networks, other.networks)
    )


def _are_same(some: Mapping[K, object], others: Mapping[K, object]) -> bool:
    return some.keys() == others.keys() and all(some[key] is others[key] for key in some)
