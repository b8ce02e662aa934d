"""A packet filter in memory, which takes every rule but those it was told not to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pvc.cluster.filters import Fault, Key, Number, Refused

RULE = re.compile(r'\bcounter packets (\d+) bytes (\d+)\b.* comment "([^"]+)"$')
FEATURE = "fancy"
"""A word that no kernel knows."""


@dataclass(slots=True)
class FakeFilter:
    text: str | None = None
    loads: list[str] = field(default_factory=list)
    unknown: tuple[str, ...] = (FEATURE,)
    """What this kernel does not have."""
    is_touched: bool = True
    counted: dict[Key, Number] = field(default_factory=dict)
    """By packets since the last load."""

    def check(self, text: str) -> None:
        faults = [
            Fault(number, f"syntax error, unexpected string, at {word}")
            for number, line in enumerate(text.split("\n"), 1)
            for word in self.unknown
            if word in line.split()
        ]
        if faults:
            raise Refused(f"nft does not take the filters: {faults[0].message}", faults)

    def load(self, text: str) -> None:
        self.check(text)
        self.loads.append(text)
        self.text, self.is_touched = text, False
        self.counted = {}

    def is_as_loaded(self) -> bool:
        return self.text is not None and not self.is_touched

    def counts(self, chain: str = "") -> Mapping[Key, Number] | None:
        if self.text is None:
            return None
        found: dict[Key, Number] = {}
        inside = ""
        for line in self.text.split("\n"):
            words = line.split()
            inside = words[1] if words[:1] == ["chain"] else inside
            if (rule := RULE.search(line)) and chain in ("", inside):
                key = (inside, rule[3])
                packets, size = self.counted.get(key, (0, 0))
                found[key] = (int(rule[1]) + packets, int(rule[2]) + size)
        return found

    def remove(self) -> None:
        self.text, self.is_touched = None, True
