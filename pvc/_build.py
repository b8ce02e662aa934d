"""What this file was built from; build.py replaces this module in the packaged file."""

from __future__ import annotations

COMMIT = "source tree"
DEPENDENCIES: dict[str, str] = {}
