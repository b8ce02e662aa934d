"""Routing daemons in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pvc.node.drivers import DriverError
from pvc.node.drivers.networks import Speaker


@dataclass(slots=True)
class FakeRouting:
    speaker: Speaker | None = None
    found: dict[str, int] = field(default_factory=lambda: {"watchfrr": 1, "zebra": 2, "bgpd": 3})
    fails: str = ""
    asked: Callable[[], None] = lambda: None
    """Called before it serves."""

    def serve(self, speaker: Speaker) -> bool:
        self.asked()
        if self.fails:
            raise DriverError(self.fails, retryable=True)
        changed = speaker != self.speaker
        self.speaker = speaker
        return changed

    def stop(self) -> bool:
        ran, self.speaker = self.speaker is not None, None
        return ran

    def lives(self) -> Mapping[str, int]:
        return dict(self.found) if self.speaker else dict.fromkeys(self.found, 0)
