"""Benchmarks of pools: what is measured, and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KEEP_COUNT = 20


@dataclass(frozen=True, slots=True)
class Pattern:
    name: str
    kind: str
    """As fio calls it."""
    block_bytes: int
    depth: int
    """How many are under way at once."""


PATTERNS = (
    Pattern("sequential read", "read", 4 * 1024**2, 16),
    Pattern("sequential write", "write", 4 * 1024**2, 16),
    Pattern("random read", "randread", 4096, 64),
    Pattern("random write", "randwrite", 4096, 64),
    Pattern("random read, one at a time", "randread", 4096, 1),
    Pattern("random write, one at a time", "randwrite", 4096, 1),
)


@dataclass(frozen=True, slots=True)
class Figure:
    pattern: str
    block_bytes: int
    depth: int
    iops: float
    rate_bytes: int
    """A second."""
    latency_ms: float
    """In the mean."""
    p99_ms: float


@dataclass(frozen=True, slots=True)
class BenchmarkDoc:
    """Kept of the last ones of the cluster."""

    pool: str
    driver: str
    node: str
    """Where it ran."""
    at: float
    seconds: int
    """Of each pattern."""
    size_bytes: int
    figures: tuple[Figure, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


def figure(pattern: Pattern, told: Mapping[str, Any]) -> Figure:
    """Of what fio says of its one job."""
    found = told["jobs"][0]["read" if "read" in pattern.kind else "write"]
    times = found["clat_ns"]
    return Figure(
        pattern.name,
        pattern.block_bytes,
        pattern.depth,
        round(found["iops"], 1),
        int(found["bw_bytes"]),
        round(found["lat_ns"]["mean"] / 1e6, 3),
        round(times.get("percentile", {}).get("99.000000", 0) / 1e6, 3),
    )


def outdated(known: Mapping[str, float]) -> list[str]:
    """Which of them (identity → when) need not be kept any longer."""
    return sorted(known, key=lambda one: known[one], reverse=True)[KEEP_COUNT:]
