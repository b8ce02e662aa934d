"""Logging of the command line and of the daemons: one line a record, to stderr, which the journal reads."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import sys
from collections.abc import Iterator

node: contextvars.ContextVar[str] = contextvars.ContextVar("node", default="")
vm: contextvars.ContextVar[str] = contextvars.ContextVar("vm", default="")
"""What the running piece of work is about; comes first in each of its lines."""

NOISY = {"kazoo": logging.ERROR, "waitress": logging.WARNING, "waitress.queue": logging.ERROR}
"""Their warnings at default level say what our own messages say better."""

PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


@contextlib.contextmanager
def about(*, vm_name: str = "", node_name: str = "") -> Iterator[None]:
    """Lines logged inside begin with what they are about."""
    tokens = [(variable, variable.set(name)) for variable, name in ((vm, vm_name), (node, node_name)) if name]
    try:
        yield
    finally:
        for variable, token in reversed(tokens):
            variable.reset(token)


class Formatter(logging.Formatter):
    """With a priority for the journal, which has the time itself; with the time elsewhere."""

    def __init__(self, *, journal: bool, daemon: bool) -> None:
        super().__init__()
        self.journal = journal
        self.daemon = daemon

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        prefix = "".join(f"{name}: " for name in (node.get(), vm.get()) if name)
        if self.journal:
            # The journal makes an entry of each line: each needs its priority.
            return "\n".join(
                f"<{priority(record.levelno)}>{prefix}{line}" for line in text.splitlines() or [""]
            )
        if not self.daemon:
            return f"{record.levelname.lower()}: {record.name}: {prefix}{text}"
        return f"{self.formatTime(record)} {record.levelname:<7} {prefix}{text}"


def priority(level: int) -> int:
    """Of syslog, for a level of logging."""
    return next((number for known, number in PRIORITIES.items() if level >= known), 7)


def setup(daemon: bool, debug: bool = False) -> None:
    """Send this process's log to stderr. Called again it replaces what was set before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(journal=in_journal(), daemon=daemon))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.INFO if daemon else logging.WARNING)
    for name, level in NOISY.items():
        logging.getLogger(name).setLevel(logging.INFO if debug else level)


def in_journal() -> bool:
    """Whether stderr is the stream that systemd gave us: it names its device and inode."""
    named = os.environ.get("JOURNAL_STREAM", "")
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return named == f"{status.st_dev}:{status.st_ino}"
