"""Asks a node what only the node itself has: console text, its log, whether its ZooKeeper server serves."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any
from urllib.parse import urlencode

from pvc.config import Config
from pvc.errors import Unavailable, from_code

TIMEOUT_S = 15.0
PIECE_S = 50.0
"""Of a piece of a disk, which may have to wait for a disk: shorter than clients wait for the API."""
JSON = "application/json"


def fetch(
    config: Config,
    address: str,
    port: int,
    path: str,
    *,
    lines: int = 100,
    cursor: int | None = None,
    wait_s: int = 0,
) -> tuple[str, int]:
    """Text and the cursor after it.

    `path` is console/UUID or journal. Raises Unavailable naming the address.
    """
    query = {"lines": lines, "wait": wait_s} | ({} if cursor is None else {"cursor": cursor})
    answer = ask(config, address, port, f"{path}?{urlencode(query)}")
    return answer["text"], answer["cursor"]


def ask(config: Config, address: str, port: int, path: str, *, timeout_s: float = TIMEOUT_S) -> Any:
    """What it answers. Raises Unavailable, or what it says."""
    return json.loads(carry(config, address, port, path, timeout_s=timeout_s))


def carry(
    config: Config,
    address: str,
    port: int,
    path: str,
    piece: bytes | None = None,
    *,
    timeout_s: float = PIECE_S,
) -> bytes:
    """Bring it a piece, or ask for one; the body of its answer. Raises Unavailable, or what it says."""
    connection = http.client.HTTPSConnection(
        address, port, timeout=timeout_s, context=_context(config.paths.tls)
    )
    try:
        connection.request("GET" if piece is None else "PUT", f"/{path}", piece)
        response = connection.getresponse()
        answer = response.read()
        told = json.loads(answer) if response.getheader("Content-Type") == JSON else {}
    except (OSError, http.client.HTTPException, ValueError) as error:
        what = path.partition("?")[0].partition("/")[0]
        raise Unavailable(f"the node at {address}:{port} does not serve its {what}: {error}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise from_code(told.get("error", ""), told.get("message", "no message"), told.get("hint", ""))
    return answer


def _context(directory: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=f"{directory}/ca.pem")
        context.load_cert_chain(f"{directory}/cert.pem", f"{directory}/key.pem")
    except OSError as error:
        raise Unavailable(
            f"no usable certificate in {directory}: {error.strerror}",
            hint="the node daemon makes it when it joins",
        ) from error
    return context
