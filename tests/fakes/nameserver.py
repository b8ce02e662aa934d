"""A name server in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pvc.cluster.zones import Zone
from pvc.node.drivers import DriverError
from pvc.node.drivers.networks import Answering


@dataclass
class FakeNameServer:
    zones: dict[str, Zone] = field(default_factory=dict)
    wanted: Answering | None = None
    is_dead: bool = False
    lives: int = 0
    fails: str = ""
    published: list[tuple[str, ...]] = field(default_factory=list)
    """What changed with each call that changed something."""

    def publish(self, zones: Mapping[str, Zone]) -> tuple[str, ...]:
        if self.fails:
            raise DriverError(self.fails, retryable=True)
        changed = [name for name, zone in zones.items() if self.zones.get(name) != zone]
        changed += sorted(self.zones.keys() - zones.keys())
        self.zones = dict(zones)
        if changed:
            self.published.append(tuple(changed))
        return tuple(changed)

    def serve(self, wanted: Answering) -> bool:
        if self.fails:
            raise DriverError(self.fails, retryable=True)
        if wanted == self.wanted and not self.is_dead:
            return False
        self.wanted, self.is_dead = wanted, False
        self.lives += 1
        return True

    def stop(self) -> bool:
        ran, self.wanted, self.zones = self.wanted is not None, None, {}
        return ran

    def life(self) -> int:
        return 0 if self.wanted is None or self.is_dead else self.lives
