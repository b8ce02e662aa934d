"""Results of pure functions kept, so that a history costs what its decisions cost.

The same few documents and definitions are read by every node of every history. What these functions return
is never changed by anybody, so that one answer serves all.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest.mock import patch

from pvc.cluster import codec, domainxml, view

KEPT = 20_000
SELDOM = (50_000, 20, 50)
"""Garbage is collected: of a history, nearly all goes with its world."""
loads = lru_cache(KEPT)(codec.loads)
_PURE = ("parse", "render", "digest", "running_digest")
_XML: dict[str, Any] = {
    name: lru_cache(KEPT)(getattr(domainxml, name))
    for name in ("parse", "render", "digest", "running_digest")
}


@contextmanager
def hastened() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*SELDOM)
    try:
        with patch.object(view, "loads", loads), patch.multiple(domainxml, **_XML):
            yield
    finally:
        gc.set_threshold(*before)
