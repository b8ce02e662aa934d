"""Asking a ZooKeeper server beside its protocol, with a word of four letters."""

from __future__ import annotations

import socket

WITHIN_S = 0.5
NOT_SERVING = b"not currently serving"


def refuses(host: str, port: int) -> bool:
    """It is down, or says that it is in no quorum. False where it serves, or does not answer in time."""
    try:
        with socket.create_connection((host, port), timeout=WITHIN_S) as connection:
            connection.settimeout(WITHIN_S)
            connection.sendall(b"srvr")
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return NOT_SERVING in answer
