"""What a node does once an hour beside its VMs, on a thread of its own: its loop waits for none of it."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from pvc.cluster import paths
from pvc.cluster.store import Reader
from pvc.errors import PVCError

log = logging.getLogger(__name__)

FIRST_S = 60.0
"""After the start, which has better things to do."""
EVERY_S = 3600.0
KEEP_S = 24 * 3600.0
"""How long the last words of a VM that was undefined stay: it may have been a mistake."""
CONSOLE_FILE = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.log(?:\.\d+)?")
"""libvirt adds a number to the older part of a long text."""


class Upkeep:
    """Chores, one after the other; one that fails is said and tried again with the next round."""

    def __init__(
        self, chores: Sequence[Callable[[], object]], *, first_s: float = FIRST_S, every_s: float = EVERY_S
    ) -> None:
        self._chores = tuple(chores)
        self._first_s = first_s
        self._every_s = every_s
        self._ending = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="upkeep", daemon=True).start()

    def close(self) -> None:
        """Begin nothing more; what is going on ends with the process."""
        self._ending.set()

    def _run(self) -> None:
        wait_s = self._first_s
        while not self._ending.wait(wait_s):
            for chore in self._chores:
                try:
                    chore()
                except (PVCError, OSError) as error:
                    log.warning("upkeep: %s", error)
            wait_s = self._every_s


def remove_old_consoles(directory: str, store: Reader, now: float) -> None:
    """Console text of VMs that the store does not know, a day after it was last written to."""
    files: dict[str, list[Path]] = {}
    for path in Path(directory).iterdir():
        if found := CONSOLE_FILE.fullmatch(path.name):
            files.setdefault(found[1], []).append(path)
    # After the files were listed: a VM that began to write meanwhile is known by now.
    known = store.get_many([paths.vm(uuid) for uuid in files])
    for (uuid, texts), vm in zip(files.items(), known, strict=True):
        if vm is None and now - max(text.stat().st_mtime for text in texts) > KEEP_S:
            for text in texts:
                text.unlink(missing_ok=True)
            log.info("removed the console text of %s, which is no VM any more", uuid)
