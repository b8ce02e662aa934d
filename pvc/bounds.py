"""How a VM may be treated: the bounds that operations and manifests of exports hold to."""

from __future__ import annotations

from typing import NamedTuple


class Bounds(NamedTuple):
    least: int
    most: int


START_PRIORITY = Bounds(0, 1000)
MAX_DOWNTIME_MS = Bounds(10, 60_000)
MIGRATION_TIMEOUT_S = Bounds(10, 86_400)
SHUTDOWN_TIMEOUT_S = Bounds(0, 86_400)
