"""The cluster's own document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pvc.cluster.vm import Selector

LAYOUT_VERSION = 1


class FencePolicy(StrEnum):
    """What becomes of a node that was fenced, when its VMs are released."""

    POWER_CYCLE = "power-cycle"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    name: str
    maintenance: bool = False
    selector: Selector = Selector.MEM
    shutdown_timeout_s: int = 180
    migrations_at_once: int = 3
    """Per node, outgoing."""
    starts_at_once: int = 4
    restart_limit: int = 5
    """Bad ends in a row before a VM is `fail`."""
    primary: str = ""
    """The coordinator that is wanted as primary; empty: whoever comes first."""
    fence_grace_s: float = 2.0
    """From the end of a node's session until it is fenced."""
    fence_policy: FencePolicy = FencePolicy.POWER_CYCLE
    upstream_address: str = ""
    """Floating, as 10.0.0.250/24: whoever is primary answers for it. Empty: there is none."""
    cluster_address: str = ""
    """The same on the cluster network."""
    as_number: int = 65000
    """Of BGP: between the nodes, and towards routers upstream."""
    routers: tuple[str, ...] = ()
    """Upstream, as 10.0.0.254@64512: with each, coordinators speak BGP."""
    dns_domain: str = ""
    """Of the names of nodes and floating addresses; empty: they have none."""
    dns_secondaries: tuple[str, ...] = ()
    """Name servers that are told of each change, and may copy zones."""
    dns_transfers: tuple[str, ...] = ()
    """Who else may copy zones. Empty: the networks of the floating addresses, and the nodes."""
    autoready: bool = False
    """A node that was fenced fetches its VMs home when it is back."""
    layout: int = LAYOUT_VERSION
    """Of the documents, as the whole cluster speaks it; raised when every node can."""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def floating_addresses(self) -> tuple[str, ...]:
        return tuple(one for one in (self.upstream_address, self.cluster_address) if one)


@dataclass(frozen=True, slots=True)
class Authority:
    """The certificate authority of the cluster; the key is encrypted with the cluster key."""

    certificate: str
    encrypted_key: str
