"""Where a host sends what is for gateways, in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pvc.node.drivers import DriverError


@dataclass(slots=True)
class FakeTunnels:
    known: dict[int, str] = field(default_factory=dict)
    """By VNI, whatever the network is."""
    fails: str = ""
    """Why nothing can be looked at."""
    refuses: set[int] = field(default_factory=set)
    """Networks whose way cannot be changed."""

    def vteps(self, vnis: Iterable[int]) -> Mapping[int, str]:
        if self.fails:
            raise DriverError(self.fails)
        return {vni: self.known[vni] for vni in vnis if vni in self.known}

    def lead(self, vni: int, vtep: str) -> None:
        if vni in self.refuses:
            raise DriverError("refused")
        if vni in self.known:
            self.known[vni] = vtep
