"""The metadata service of guests."""

from __future__ import annotations

from pvc.commands.context import LocalContext
from pvc.commands.registry import local


@local()
def serve(ctx: LocalContext) -> None:
    """Tell guests of managed networks what they are, in the foreground, as its service does."""
    from pvc import config, log
    from pvc.metadata.serve import serve as run

    log.setup(daemon=True, debug=bool(ctx.options.get("debug")))
    run(config.load())
