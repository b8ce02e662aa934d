"""What may be a name: patterns that the command line, the API, exports and the drivers hold to."""

from __future__ import annotations

VM = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
"""Also a snapshot of one."""
NODE = r"[a-z0-9][a-z0-9-]{0,62}"
TAG = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,62}"
PROFILE = r"[\w .:-]{0,63}"
POOL = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
VOLUME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}"
SNAPSHOT = VOLUME
