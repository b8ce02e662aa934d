"""Where guests find the metadata service: its address, on the primary. It is a process of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from pvc.cluster.guests import ADDRESS
from pvc.cluster.node import NetworkProblem
from pvc.node.drivers.networks import OwnAddresses
from pvc.node.services import Scene

NOT_SERVED = "nobody serves metadata to guests (journalctl -u pvc-metadata)"

log = logging.getLogger(__name__)


class MetadataAddress:
    """A Service: while a managed network has an IPv4 gateway, through which guests come."""

    def __init__(self, host: OwnAddresses, is_served: Callable[[], bool]) -> None:
        self.host = host
        self.is_served = is_served

    def serve(self, scene: Scene) -> Sequence[NetworkProblem]:
        if not any(clients.spec.ipv4.gateway for clients in scene.networks.values()):
            self.rest()
            return ()
        if self.host.hold(ADDRESS):
            log.info("answering for %s", ADDRESS)
        return () if self.is_served() else (NetworkProblem(0, NOT_SERVED),)

    def rest(self) -> None:
        if self.host.drop(ADDRESS):
            log.info("no longer answering for %s", ADDRESS)
