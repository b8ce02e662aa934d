"""DHCP and DNS of managed networks: a dnsmasq each on the primary, whose leases are kept in the store."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pvc.clock import Clock
from pvc.cluster import paths
from pvc.cluster.clients import Clients, Lease, hostnames
from pvc.cluster.codec import dumps
from pvc.cluster.network import gateway_name
from pvc.cluster.node import NetworkProblem
from pvc.cluster.store import Create, Delete, Op, Put
from pvc.errors import Conflict, NotFound
from pvc.node.drivers.networks import GatewayDevice, NameServers, Settings
from pvc.node.plan_dhcp import (
    Differences,
    differences,
    in_place,
    is_lease_of,
    later,
    lease_file,
    parse,
    promised,
    settings,
)
from pvc.node.services import Commit, Scene

log = logging.getLogger(__name__)

GONE_S = 1.0
"""So long a lease must be missing: dnsmasq writes all of them over the old ones, and may be seen doing it."""
LIVES_S = 1.0
"""Not oftener it is asked who runs, however often guests make it a round. No longer than GONE_S: one that was
killed while it wrote is known to have been before what it lost counts as gone."""
LEASES_AT_ONCE = 1000
"""In one transaction: a server of ZooKeeper takes no greater one than a megabyte."""


@dataclass(slots=True)
class Served:
    """A network as its dnsmasq was told of it."""

    clients: Clients
    device: GatewayDevice
    there: Settings
    """What is in its files: more than is wanted, where that does no harm."""
    life: int
    stored: Mapping[str, Lease] | None = None
    """What the store knows, where nobody else writes; None: what the clients say."""
    missing: Mapping[str, float] = field(default_factory=dict)
    """Addresses of leases that it does not remember, and since when."""


class DHCP:
    """One of the primary's services."""

    def __init__(self, servers: NameServers, commit: Commit, clock: Clock) -> None:
        self.servers = servers
        self.commit = commit
        self.clock = clock
        self._served: dict[int, Served] = {}
        self._heard: set[int] = set()
        """Those whose leases have to be read and brought to the store."""
        self._lives: Mapping[int, int] = {}
        self._look_at = 0.0

    def serve(self, scene: Scene) -> Sequence[NetworkProblem]:
        wanted = {vni: one for vni, one in scene.networks.items() if one.spec.gateways}
        self.servers.listen()
        lives = self._who_lives()
        self._say_who_died(lives)
        self._end(lives.keys() - wanted.keys())
        self._heard |= self.servers.changed()
        try:
            self._tell_all(wanted, lives)
        finally:
            self._hear()
        why = "its dnsmasq does not run; systemd starts it again and again (journalctl -u pvc-dnsmasq@{})"
        return [NetworkProblem(vni, why.format(vni)) for vni, one in self._served.items() if not one.life]

    def rest(self) -> None:
        self._served.clear()
        self._heard.clear()
        self._stop(self.servers.lives().keys())
        self.servers.forget()

    def _who_lives(self) -> Mapping[int, int]:
        now = self.clock.monotonic()
        if now >= self._look_at:
            self._lives, self._look_at = self.servers.lives(), now + LIVES_S
        return self._lives

    def _stop(self, vnis: Iterable[int]) -> None:
        self._look_at = 0.0
        self.servers.stop(set(vnis))

    # What they are told

    def _tell_all(self, wanted: Mapping[int, Clients], lives: Mapping[int, int]) -> None:
        devices = self.servers.devices([gateway_name(vni) for vni in wanted])
        others = {
            vni: (clients, devices[gateway_name(vni)])
            for vni, clients in wanted.items()
            if gateway_name(vni) in devices and not self._is_so(clients, devices[gateway_name(vni)], lives)
        }
        self._heard |= others.keys()
        anew = [vni for vni, (clients, device) in others.items() if not self._tell(clients, device, lives)]
        if anew:
            self._begin({vni: others[vni] for vni in anew}, lives)

    def _is_so(self, clients: Clients, device: GatewayDevice, lives: Mapping[int, int]) -> bool:
        """All that concerns it is as it was."""
        served = self._served.get(clients.spec.vni)
        if served is None or served.device != device or served.life != lives.get(clients.spec.vni, -1):
            return False
        return served.clients is clients

    def _tell(self, clients: Clients, device: GatewayDevice, lives: Mapping[int, int]) -> bool:
        """While it runs; False where that does not do and it has to begin anew."""
        vni = clients.spec.vni
        served = self._served.get(vni)
        there = served.there if served else self.servers.known(vni)
        made = settings(clients, device, self.servers.place(vni))
        if vni not in lives or there is None or there.config != made.config:
            return False
        is_same = served is not None and served.life == lives[vni]
        if not is_same and lives[vni] and self._has_forgotten(clients):
            return False
        have, must_look = in_place(there, made)
        if have != there:
            self.servers.write(vni, have, there)
        if must_look and lives[vni]:
            log.info("the dnsmasq of network %s reads its hosts again", vni)
            self.servers.look(vni)
        stored, missing = (served.stored, served.missing) if is_same and served else (None, {})
        self._served[vni] = Served(clients, device, have, lives[vni], stored, missing)
        return True

    def _has_forgotten(self, clients: Clients) -> bool:
        """It began with less than the store has: another was primary since, or its file was cut."""
        found = self._found(clients)
        return found is None or later(found, self._valid(clients)) != found

    def _begin(self, networks: Mapping[int, tuple[Clients, GatewayDevice]], lives: Mapping[int, int]) -> None:
        """All at once. What those that ran so far know, they are asked when they have ended."""
        log.info("starting dnsmasq of %s", ", ".join(f"network {vni}" for vni in networks))
        self._stop(networks.keys() & lives.keys())
        made: dict[int, Settings] = {}
        for vni, (clients, device) in networks.items():
            made[vni] = settings(clients, device, self.servers.place(vni))
            found = self._found(clients) if vni in lives else None
            self.servers.write(vni, made[vni], None)
            self.servers.remember(vni, lease_file(later(found or {}, promised(self._valid(clients)))))
        self.servers.start(networks.keys())
        lives = self._who_lives()
        for vni, (clients, device) in networks.items():
            self._served[vni] = Served(clients, device, made[vni], lives.get(vni, 0))

    def _end(self, vnis: Iterable[int]) -> None:
        gone = set(vnis)
        if gone:
            log.info("ending dnsmasq of %s", ", ".join(f"network {vni}" for vni in gone))
            self._stop(gone)
        for vni in gone:
            self._served.pop(vni, None)

    def _say_who_died(self, lives: Mapping[int, int]) -> None:
        for vni, served in self._served.items():
            if served.life and lives.get(vni, 0) != served.life:
                how = "was started again" if lives.get(vni) else "does not run"
                log.error("the dnsmasq of network %s ended by itself and %s", vni, how)

    # What they say

    def _found(self, clients: Clients) -> dict[str, Lease] | None:
        """What it remembers."""
        text = self.servers.leases(clients.spec.vni)
        if text is None:
            return None
        found = parse(text, {name: mac for mac, name in hostnames(clients).items()})
        return {address: one for address, one in found.items() if is_lease_of(clients.spec, address)}

    def _valid(self, clients: Clients) -> dict[str, Lease]:
        """What the store knows and still holds."""
        now = self.clock.wall()
        return {
            address: one
            for address, one in clients.leases.items()
            if is_lease_of(clients.spec, address) and promised({address: one})[address].until > now
        }

    def _hear(self) -> None:
        """One whose leases could not be read or stored is heard in the next round."""
        self._heard |= {vni for vni, one in self._served.items() if one.stored is None or one.missing}
        for vni in sorted(self._heard):
            self._hear_one(vni)
            self._heard.discard(vni)

    def _hear_one(self, vni: int) -> None:
        served = self._served.get(vni)
        found = self._found(served.clients) if served else None
        if served is None or found is None:
            return
        stored = served.clients.leases if served.stored is None else served.stored
        learned = self._confirmed(served, differences(stored, found))
        try:
            self._store(vni, learned)
        except (Conflict, NotFound) as error:
            # Read so from a mirror that is a moment behind: once more, with what it says then.
            log.info("leases of network %s: %s; looking again", vni, error.message)
            served.stored = None
            return
        served.stored = _with(stored, learned)

    def _confirmed(self, served: Served, learned: Differences) -> Differences:
        """Without those of whom it is not sure that they are gone: they are looked at again."""
        now = self.clock.monotonic()
        since = {address: served.missing.get(address, now) for address in learned.gone}
        served.missing = {address: at for address, at in since.items() if now < at + GONE_S}
        return replace(learned, gone=tuple(one for one in learned.gone if one not in served.missing))

    def _store(self, vni: int, learned: Differences) -> None:
        if not learned:
            return
        where = paths.network_lease
        ops: list[Op] = [Create(where(vni, one.address), dumps(one)) for one in learned.made]
        ops += [Put(where(vni, one.address), dumps(one)) for one in learned.changed]
        ops += [Delete(where(vni, address)) for address in learned.gone]
        for first in range(0, len(ops), LEASES_AT_ONCE):
            self.commit(*ops[first : first + LEASES_AT_ONCE])


def _with(stored: Mapping[str, Lease], learned: Differences) -> dict[str, Lease]:
    kept = {address: one for address, one in stored.items() if address not in learned.gone}
    return {**kept, **{one.address: one for one in (*learned.made, *learned.changed)}}
