"""What may be a name in storage: patterns that the command line, the API and the drivers hold to."""

from __future__ import annotations

POOL = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
VOLUME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}"
SNAPSHOT = VOLUME
