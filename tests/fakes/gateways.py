"""Gateways of a host in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pvc.cluster.filters import Transit
from pvc.node.drivers import DriverError
from pvc.node.drivers.networks import Gateway


@dataclass(slots=True)
class FakeGateways:
    bridges: set[int] = field(default_factory=set)
    """Networks that have theirs."""
    foreign: set[int] = field(default_factory=set)
    """Networks for whose gateway the name is taken."""
    found: dict[int, Gateway] = field(default_factory=dict)
    announced: list[int] = field(default_factory=list)
    forwarding: tuple[tuple[str, ...], bool] = ((), False)
    calls: list[str] = field(default_factory=list)
    """That change something."""
    passes: Transit = field(default_factory=Transit)
    fails: str = ""

    def gateways(self) -> Mapping[int, Gateway]:
        if self.fails:
            raise DriverError(self.fails)
        return dict(self.found)

    def give(self, gateways: Iterable[Gateway]) -> Mapping[int, str]:
        failed: dict[int, str] = {}
        for gateway in gateways:
            self.calls.append(f"give {gateway.vni}")
            if gateway.vni in self.foreign:
                failed[gateway.vni] = f"gw{gateway.vni} is a device of the host's own"
            elif gateway.vni not in self.bridges:
                failed[gateway.vni] = f"there is no device br{gateway.vni}"
            else:
                self.found[gateway.vni] = gateway
        return failed

    def take(self, vnis: Iterable[int]) -> None:
        leaving = sorted(vnis)
        self.calls.append(f"take {leaving}")
        for vni in leaving:
            self.found.pop(vni, None)

    def announce(self, vnis: Iterable[int]) -> None:
        self.announced += [vni for vni in vnis if vni in self.found]

    def forward(self, towards: Iterable[str], *, ipv6: bool) -> bool:
        wanted = tuple(towards), ipv6
        is_new, self.forwarding = wanted != self.forwarding, wanted
        if is_new:
            self.calls.append("forward")
        return is_new

    def end_forwarding(self) -> None:
        self.calls.append("end forwarding")
        self.forwarding = (), False

    def transit(self) -> Transit:
        return self.passes

    def is_left(self) -> bool:
        return self.forwarding[0] != () or self.forwarding[1] or bool(self.gateways())
