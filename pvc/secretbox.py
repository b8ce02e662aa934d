"""Small texts that only the cluster key opens: encrypted with AES-256-CTR, then signed with HMAC-SHA256.

Both keys are derived from the cluster key. openssl gets its own through the environment, since everybody on
the machine may read the arguments of a process.
"""

from __future__ import annotations

import hashlib
import hmac

from pvc.errors import Invalid
from pvc.proc import run

FORMAT = "1"
KEY_VARIABLE = "PVC_SECRETBOX_KEY"
TIMEOUT_S = 10.0


def encrypt(text: str, secret: str, *, about: str) -> str:
    """Other bytes each time. `about` is what the text is good for; it is signed and not stored."""
    return _signed(_openssl(text, secret, "-e").strip(), secret, about)


def decrypt(sealed: str, secret: str, *, about: str) -> str:
    """Raises Invalid for a text that was changed, is about something else, or is of another cluster's key."""
    version, _, rest = sealed.partition(":")
    body = rest.partition(":")[2]
    if version != FORMAT or not body:
        raise Invalid("this is no encrypted text of pvc")
    if not hmac.compare_digest(_signed(body, secret, about).encode(), sealed.encode()):
        raise Invalid(
            "an encrypted text does not fit the cluster key, or was changed",
            hint="give it again on a node with the right /etc/pvc/cluster.key",
        )
    return _openssl(body, secret, "-d")


def _signed(body: str, secret: str, about: str) -> str:
    signature = hmac.new(_key(secret, "sign"), f"{about}\0{body}".encode(), hashlib.sha256)
    return f"{FORMAT}:{signature.hexdigest()}:{body}"


def _key(secret: str, purpose: str) -> bytes:
    return hmac.new(secret.encode(), f"pvc secretbox {purpose}".encode(), hashlib.sha256).digest()


def _openssl(text: str, secret: str, direction: str) -> str:
    # The key has all its entropy already: one iteration only mixes in the salt, which is new each time.
    derive = ("-pbkdf2", "-iter", "1", "-pass", f"env:{KEY_VARIABLE}")
    argv = ["openssl", "enc", direction, "-aes-256-ctr", *derive, "-a", "-A"]
    return run(
        argv, stdin=text, timeout_s=TIMEOUT_S, env={KEY_VARIABLE: _key(secret, "encrypt").hex()}
    ).stdout
