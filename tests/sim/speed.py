"""Results of pure functions kept, so that a history costs what its decisions cost.

The same few documents and definitions are read by every node of every history. What these functions return
is never changed by anybody, so that one answer serves all: nothing behaves differently, and while it lasts
the functions are the product's own.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType

from pvc.cluster import codec, domainxml, view

KEPT = 20_000
SELDOM = (50_000, 20, 50)
"""Garbage is collected: of a history, nearly all goes with its world."""
PURE: tuple[tuple[ModuleType, str], ...] = (
    (view, "loads"),
    *((domainxml, name) for name in ("parse", "render", "digest", "running")),
)
_slow = [getattr(module, name) for module, name in PURE]
_quick = [lru_cache(KEPT)(function) for function in _slow]
loads = lru_cache(KEPT)(codec.loads)


@contextmanager
def hastened() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*SELDOM)
    _use(_quick)
    try:
        yield
    finally:
        _use(_slow)
        gc.set_threshold(*before)


def _use(functions: Sequence[object]) -> None:
    for (module, name), function in zip(PURE, functions, strict=True):
        setattr(module, name, function)
