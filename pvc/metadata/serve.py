"""`pvc metadata serve`: runs on each coordinator, and is reached where the address is, on the primary."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable

from pvc import systemd
from pvc.clock import SystemClock
from pvc.cluster import paths
from pvc.cluster.client_view import ClientsView, expand_networks, followed_networks
from pvc.cluster.guests import ADDRESS, PORT, Guests, MacAt
from pvc.cluster.network import gateway_name
from pvc.cluster.store import Store
from pvc.cluster.zookeeper import ZooKeeperStore
from pvc.config import Config
from pvc.http.serve import Keeper, connect, tcp_socket
from pvc.http.server import Limits, Server
from pvc.metadata.app import App
from pvc.metadata.neighbours import mac_at

log = logging.getLogger(__name__)

THREADS, CONNECTIONS, CONNECTIONS_EACH, LIFETIME_S = 4, 2048, 16, 15.0
LARGEST_HEADER, LARGEST_BODY = 8 * 1024, 1024
STRANGERS = "those whose address was given to nobody"


def serve(config: Config) -> None:
    """Until SIGTERM. Raises Failed for an address that cannot be had."""
    listening = tcp_socket(f"{ADDRESS}:{PORT}", "another web server of this node may have it: ss -ltnp")
    store = ZooKeeperStore(
        config.servers(), secret=config.secret(), session_timeout_s=config.cluster.session_timeout_s
    )
    try:
        connect(store)
        site = Site(store, [listening], lambda vni, address: mac_at(gateway_name(vni), address))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: site.server.stop())
        systemd.notify("READY=1", "STATUS=serving")
        log.info("serving metadata on %s, wherever the primary is", ADDRESS)
        site.run()
    finally:
        store.close()


class Site:
    """Store, mirror, application and server, put together. What it asks of the store is little: user data."""

    def __init__(self, store: Store, sockets: list[socket.socket], mac_at: MacAt) -> None:
        self.store = store
        self.guests = Guests()
        self.keeper = Keeper(store, followed_networks(), expand_networks)
        self.clients = ClientsView(self.keeper.view)
        self.keeper.seen = self._seen
        self.keeper.first()
        app = App(lambda: self.guests, mac_at, self._user_data, SystemClock())
        self.server = Server(app, sockets, limits(lambda: self.guests), tick=self.keeper.tick)

    def run(self) -> None:
        """Until the server is stopped."""
        self.keeper.start(self.server)
        self.server.run()
        systemd.notify("STOPPING=1")
        self.keeper.stop()

    def _seen(self, changed: frozenset[str]) -> None:
        self.clients.update(changed)
        self.guests = Guests(self.clients.networks, self.guests)

    def _user_data(self, uuid: str) -> bytes | None:
        stored = self.store.get(paths.vm_user_data(uuid))
        return stored.data if stored is not None else None


def limits(guests: Callable[[], Guests]) -> Limits:
    """So that no guest can keep others out: strangers, of whatever addresses, are counted together."""
    return Limits(
        threads=THREADS,
        connections=CONNECTIONS,
        connections_each=CONNECTIONS_EACH,
        group_of=lambda address: address if guests().has(address) else STRANGERS,
        lifetime_s=LIFETIME_S,
        header=LARGEST_HEADER,
        body=LARGEST_BODY,
        answers_half_closed=True,
        trusted_proxy=None,
    )
