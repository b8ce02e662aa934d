"""Who is primary. Pure; each coordinator decides for itself, and the store lets only one of them have it."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

PATIENCE_S = 3.0
"""How long a free role is left to the one who is wanted: it may be alive and yet not come."""


class Move(StrEnum):
    NONE = "none"
    TAKE = "take"
    RESIGN = "resign"


def decide(me: str, *, holder: str | None, wanted: str, live: Collection[str], free_for: float) -> Move:
    """`live` are the coordinators whose daemon runs; `free_for` is since when nobody has had the role."""
    if me not in live:
        return Move.NONE
    other_is_wanted = wanted != me and wanted in live
    if holder == me:
        return Move.RESIGN if other_is_wanted else Move.NONE
    if holder is not None:
        return Move.NONE
    return Move.NONE if other_is_wanted and free_for < PATIENCE_S else Move.TAKE
