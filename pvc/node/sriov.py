"""Splits this node's network devices as its pvc.toml says, and keeps virtual functions as they are wanted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from pvc.cluster import paths
from pvc.cluster.mirror import Follow, Mirror
from pvc.cluster.sriov import PhysicalFunction, VFSettings, VirtualFunction, Wish, Wishes, function_name
from pvc.cluster.store import SessionState, Store
from pvc.cluster.view import View
from pvc.errors import PVCError
from pvc.node.drivers.networks import Split, VirtualFunctions

log = logging.getLogger(__name__)

LOOK_S = 30.0
"""Between two looks at what somebody else may have changed."""
UNAVAILABLE_S = 1.0
TOGETHER = (
    ("vlan", "qos"),
    ("tx_rate_min", "tx_rate_max"),
    ("link_state",),
    ("spoof_check",),
    ("trust",),
    ("query_rss",),
)
"""A driver may refuse one, and take the others."""


@dataclass(frozen=True, slots=True)
class Correction:
    number: int
    settings: VFSettings
    names: tuple[str, ...]


def count_problem(device: str, wanted: int, found: Split | None) -> str:
    """Why it cannot be split into so many now; empty if it can, or is."""
    if found is None:
        return f"there is no device {device}, which node.sriov_devices names"
    if found.total < wanted:
        return f"{device} can have {found.total} virtual functions, and node.sriov_devices says {wanted}"
    if found.functions and len(found.functions) != wanted:
        return (
            f"{device} has {len(found.functions)} virtual functions, and node.sriov_devices says {wanted}:"
            " guests may use them, so the number changes at the next boot"
        )
    return ""


def corrections(found: VirtualFunction, wish: Wish) -> Iterator[Correction]:
    meant = replace(found.settings, **wish.given())
    for names in TOGETHER:
        differs = any(getattr(meant, name) != getattr(found.settings, name) for name in names)
        if differs:
            yield Correction(found.number, meant, names)


def unsupported(found: VirtualFunction, wish: Wish) -> list[str]:
    return sorted(set(wish.given()) - set(found.supported))


class Functions:
    """`step` does one round, on a thread of its own."""

    def __init__(
        self,
        node: str,
        devices: Mapping[str, int],
        store: Store,
        host: VirtualFunctions,
        publish: Callable[[tuple[PhysicalFunction, ...]], None],
        wake: Callable[[], None],
    ) -> None:
        self.path = paths.node_sriov(node)
        self.devices = devices
        self.store = store
        self.host = host
        self.publish = publish
        self.mirror = Mirror(store, (Follow(self.path),), lambda listing, names: (), wake)
        self.view = View(self.mirror)
        self.published: tuple[PhysicalFunction, ...] | None = None

    def step(self) -> float:
        """Seconds until the next round is due."""
        if self.store.session.state is not SessionState.CONNECTED:
            return UNAVAILABLE_S
        self.mirror.sync()
        stored = self.mirror.get(self.path)
        wishes = self.view.decode(Wishes, stored) if stored else Wishes()
        found = tuple(self._device(name, count, wishes) for name, count in sorted(self.devices.items()))
        if found != self.published:
            self._say(found)
            self.publish(found)
            self.published = found
        return LOOK_S

    def _device(self, name: str, wanted: int, wishes: Wishes) -> PhysicalFunction:
        try:
            return self._as_wanted(name, wanted, wishes)
        except PVCError as error:
            return PhysicalFunction(name, wanted, problems=(error.message,))

    def _as_wanted(self, name: str, wanted: int, wishes: Wishes) -> PhysicalFunction:
        found = self.host.look(name)
        problem = count_problem(name, wanted, found)
        problems = [problem] if problem else []
        if found is not None and not problem and not found.functions and wanted:
            self.host.split(name, wanted)
            log.info("split %s into %d virtual functions", name, wanted)
            found = self.host.look(name)
        if found is None:
            return PhysicalFunction(name, wanted, problems=tuple(problems))
        failed = [why for one in found.functions for why in self._correct(name, one, wishes)]
        if failed or self._differs(name, found, wishes):
            found = self.host.look(name) or found
        return PhysicalFunction(name, wanted, found.pci, found.total, found.functions, (*problems, *failed))

    def _differs(self, name: str, found: Split, wishes: Wishes) -> bool:
        return any(
            True
            for one in found.functions
            for _ in corrections(one, wishes.of(function_name(name, one.number)))
        )

    def _correct(self, device: str, found: VirtualFunction, wishes: Wishes) -> Iterator[str]:
        """What failed."""
        called = function_name(device, found.number)
        wish = wishes.of(called)
        for one in corrections(found, wish):
            missing = [name for name in one.names if name in unsupported(found, wish)]
            if missing:
                yield f"{called}: the driver of {device} knows no {', '.join(missing)}"
                continue
            try:
                self.host.set(device, found.number, one.settings, one.names)
                log.info("%s: set %s", called, ", ".join(one.names))
            except PVCError as error:
                yield f"{called}: {error.message}"

    def _say(self, found: tuple[PhysicalFunction, ...]) -> None:
        said = {why for one in self.published or () for why in one.problems}
        for one in found:
            for why in one.problems:
                if why not in said:
                    log.warning("%s", why)
