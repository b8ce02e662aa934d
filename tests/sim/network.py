"""The networks of the simulated cluster: who gets a packet to whom, one direction at a time.

Places are nodes, machines that only run a ZooKeeper server, and BMCs (`bmc_of`), which are on a network of
their own. A machine that has no power or is paused neither sends nor answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

Link = tuple[str, str]
"""From, to."""


def bmc_of(node: str) -> str:
    return f"bmc of {node}"


def both_ways(ones: Iterable[str], others: Iterable[str]) -> list[Link]:
    others = list(others)
    return [link for a in ones for b in others if a != b for link in ((a, b), (b, a))]


def one_way(ones: Iterable[str], others: Iterable[str]) -> list[Link]:
    others = list(others)
    return [(a, b) for a in ones for b in others if a != b]


def one_way_in(ones: Iterable[str], others: Iterable[str]) -> list[Link]:
    return one_way(others, list(ones))


@dataclass(eq=False)
class Cut:
    """Links that lose every packet, until it is healed."""

    links: tuple[Link, ...]


@dataclass(eq=False)
class Network:
    asleep: Collection[str]
    """Places that may be asleep; others are not."""
    is_awake: Callable[[str], bool]
    """Of a place: it has power and is not paused."""
    before_change: Callable[[], None] = lambda: None
    """Called while all is still as it was."""
    _lost: Counter[Link] = field(default_factory=Counter)
    _cuts: dict[Cut, None] = field(default_factory=dict)

    def reaches(self, a: str, b: str) -> bool:
        """A packet of a gets to b."""
        if self._lost and a != b and (a, b) in self._lost:
            return False
        return not self.asleep or (self.is_awake(a) and self.is_awake(b))

    def talks(self, a: str, b: str) -> bool:
        """A request of a gets to b, and the answer back."""
        if self._lost and a != b and ((a, b) in self._lost or (b, a) in self._lost):
            return False
        return not self.asleep or (self.is_awake(a) and self.is_awake(b))

    @property
    def is_whole(self) -> bool:
        return not self._cuts

    def cut(self, links: Iterable[Link]) -> Cut:
        self.before_change()
        new = Cut(tuple(links))
        self._cuts[new] = None
        self._lost.update(new.links)
        return new

    def heal(self, cut: Cut) -> None:
        if cut not in self._cuts:
            return
        self.before_change()
        del self._cuts[cut]
        self._lost.subtract(cut.links)
        self._lost = +self._lost

    def heal_all(self) -> None:
        for cut in list(self._cuts):
            self.heal(cut)
