"""Whether a packet of some length arrives whole, by the system's ping."""

from __future__ import annotations

import logging

from pvc.errors import PVCError
from pvc.proc import run

log = logging.getLogger(__name__)

WITHIN_S = 1
TIMEOUT_S = 10.0


def ping(address: str, payload: int) -> bool:
    """An echo of that many bytes comes back, and no router was allowed to take it to pieces."""
    words = ["ping", "-n", "-q", "-M", "do", "-c", "1", "-W", str(WITHIN_S), "-s", str(payload), address]
    try:
        return run(words, check=False, timeout_s=TIMEOUT_S).code == 0
    except PVCError as error:
        log.warning("%s", error.message)
        return False
