"""Starting what outlives the command that started it: a systemd unit, or without one a new session."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pvc.lab import cgroup
from pvc.lab.layout import Lab
from pvc.proc import run, start


def launch(lab: Lab, name: str, argv: Sequence[str], log_file: Path) -> None:
    """Returns when the process runs, not when it is ready."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    if not cgroup.host_has_systemd():
        start(argv, log_file=log_file, new_session=True)
        return
    unit = lab.unit(name)
    forget(lab, name)
    properties = (
        "Type=exec",
        "Delegate=yes",
        "KillMode=mixed",
        "TasksMax=infinity",
        "TimeoutStopSec=30",
        f"StandardOutput=append:{log_file}",
        "StandardError=inherit",
    )
    run(
        [
            *("systemd-run", "--quiet", "--collect", f"--unit={unit}", f"--description=PVC lab: {name}"),
            *(f"--property={one}" for one in properties),
            "--",
            *argv,
        ]
    )


def forget(lab: Lab, name: str) -> None:
    """Remove a unit of that name, with whatever still runs in it."""
    if cgroup.host_has_systemd():
        run(["systemctl", "stop", f"{lab.unit(name)}.service"], check=False)
        run(["systemctl", "reset-failed", f"{lab.unit(name)}.service"], check=False)
