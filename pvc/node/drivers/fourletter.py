"""Asking a ZooKeeper server beside its protocol, with a word of four letters."""

from __future__ import annotations

import socket

WITHIN_S = 0.5
NOT_SERVING = b"not currently serving"


def refuses(host: str, port: int) -> bool:
    """It is down, or says that it is in no quorum. False where it serves, or does not answer in time."""
    try:
        answer = _ask(host, port, b"srvr")
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return NOT_SERVING in answer


def settings(host: str, port: int) -> dict[str, str]:
    """Its zoo.cfg, by key. Empty where it does not say: 4lw.commands.whitelist has to have conf."""
    try:
        lines = _ask(host, port, b"conf").decode(errors="replace").splitlines()
    except OSError:
        return {}
    return {key: value for key, is_pair, value in (line.partition("=") for line in lines) if is_pair}


def _ask(host: str, port: int, word: bytes) -> bytes:
    with socket.create_connection((host, port), timeout=WITHIN_S) as connection:
        connection.settimeout(WITHIN_S)
        connection.sendall(word)
        return b"".join(iter(lambda: connection.recv(4096), b""))
