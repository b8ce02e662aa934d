"""The cluster's own document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pvc.cluster.vm import Selector

LAYOUT_VERSION = 1


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
    disk_directory: str = "/srv/share/vms"
    """Where `vm create --disk SIZE` puts its files: a directory that all nodes share."""
    layout: int = LAYOUT_VERSION
    """Of the documents, as the whole cluster speaks it; raised when every node can."""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Authority:
    """The certificate authority of the cluster; the key is encrypted with the cluster key."""

    certificate: str
    encrypted_key: str
