"""How a lab is, as it is shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LabNode:
    name: str
    power: str
    coordinator: bool
    zookeeper: str
    """leader, follower, standalone; empty where it does not serve."""
    address: str
    """On the cluster network."""
    upstream: str
    bmc: str
    bmc_address: str
    cut: tuple[str, ...]
    """Networks it is cut off from."""
    pid: int
    """Of the node's PID 1, on this machine."""
