"""Telling systemd how a service is (sd_notify), without a library."""

from __future__ import annotations

import os
import socket


def notify(*states: str) -> bool:
    """`READY=1`, `STATUS=…`, `WATCHDOG=1`, `STOPPING=1`; False when systemd does not listen."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    name = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        # A listener that does not read must not stop the service.
        sock.setblocking(False)
        try:
            sock.sendto("\n".join(states).encode(), name)
        except OSError:
            return False
    return True
