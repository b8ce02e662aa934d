"""API tokens: `pvc_<name>_<secret>`. The store has only a hash, so reading it lets nobody in."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from pvc.cluster import paths
from pvc.cluster.codec import dumps, loads
from pvc.cluster.store import Reader

NAME_PATTERN = r"[a-z0-9][a-z0-9-]{0,62}"
_TOKEN = re.compile(rf"pvc_({NAME_PATTERN})_([0-9a-f]{{64}})")


@dataclass(frozen=True, slots=True)
class Token:
    name: str
    role: str
    sha256: str
    created: float
    """Wall clock of the API server that made it; only shown."""
    expires: float | None = None
    """Wall clock, compared with the clock of the API server that is asked; None: never."""


def make(name: str, role: str, now: float, expires: float | None) -> tuple[Token, str]:
    """The document and the token itself, which is not kept anywhere."""
    text = f"pvc_{name}_{secrets.token_hex(32)}"
    return Token(name, role, _hash(text), now, expires), text


def verify(reader: Reader, given: str, now: float) -> Token | None:
    """The token, whole and unexpired, or None: nobody learns which part was wrong."""
    match = _TOKEN.fullmatch(given)
    # Looked for in the listing first, which a mirror has: a wrong token costs the store nothing.
    if not match or match[1] not in reader.children(paths.TOKENS):
        return None
    found = find(reader, match[1])
    if found is None:
        return None
    token = found[0]
    if not hmac.compare_digest(_hash(given), token.sha256):
        return None
    return token if token.expires is None or now < token.expires else None


def find(reader: Reader, name: str) -> tuple[Token, int] | None:
    """With the version of its document."""
    stored = reader.get(paths.token(name))
    return (loads(Token, stored.data, stored.path), stored.version) if stored else None


def every(reader: Reader) -> list[Token]:
    found = reader.get_many([paths.token(name) for name in reader.children(paths.TOKENS)])
    return [loads(Token, stored.data, stored.path) for stored in found if stored]


def document(token: Token) -> bytes:
    return dumps(token)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
