"""Results of pure functions kept, so that a history costs what its decisions cost.

The same few documents and definitions are read by every node of every history. What these functions return
is never changed by anybody, so that one answer serves all.
"""

from __future__ import annotations

import gc
from functools import lru_cache

from pvc.cluster import codec, domainxml, view

KEPT = 20_000
loads = lru_cache(KEPT)(codec.loads)


def hasten() -> None:
    """Once per process."""
    if vars(view)["loads"] is loads:
        return
    setattr(view, "loads", loads)  # noqa: B010  mypy: it is imported there, not exported
    for name in ("parse", "render", "digest", "running_digest"):
        setattr(domainxml, name, lru_cache(KEPT)(getattr(domainxml, name)))
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
