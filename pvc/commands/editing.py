"""Editing a text in the user's editor, and what changed in it; client side."""

from __future__ import annotations

import difflib
import os
import shlex
import tempfile
from pathlib import Path

from pvc.proc import attach


def difference(before: str, after: str) -> str:
    """A unified difference; empty where there is none."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "now", "new", lineterm="")
    return "\n".join(lines)


def edited(text: str) -> str:
    """The text after $VISUAL, $EDITOR or vi. Raises Failed when the editor does."""
    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    with tempfile.TemporaryDirectory(prefix="pvc-") as directory:
        file = Path(directory, "definition.xml")
        file.write_text(text, encoding="utf-8")
        attach([*editor, str(file)])
        return file.read_text(encoding="utf-8")
