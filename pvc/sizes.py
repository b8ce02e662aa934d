"""Bytes as people write and read them: 10G, 512 MiB. Inside there are only whole bytes."""

from __future__ import annotations

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def show(amount: float) -> str:
    """With the unit that keeps it short: 4 GiB, 1.5 TiB."""
    unit = 0
    while abs(amount) >= 1024 and unit < len(UNITS) - 1:
        amount /= 1024
        unit += 1
    return f"{amount:.0f} {UNITS[unit]}" if amount == int(amount) else f"{amount:.1f} {UNITS[unit]}"
