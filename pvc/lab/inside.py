"""Doing things inside a node: commands, with no more power over the host than the node has, and signals."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from typing import NoReturn

from pvc.errors import Conflict, Failed, NotFound
from pvc.lab import discover
from pvc.lab.common import existing
from pvc.lab.layout import Lab, Node
from pvc.proc import PATH, Completed, run

# nsenter keeps what the host's root may do, such as setting the host's clock, whatever the container may.
DROPPED = ("sys_time", "sys_module", "sys_rawio", "sys_boot", "mac_admin", "mac_override", "wake_alarm")
# In the lab's share, files are made for the group that QEMU is in.
UMASK = 0o002


def entering(lab: Lab, node: Node, command: Sequence[str]) -> list[str]:
    """The command line that runs a command in a node."""
    first = discover.leader(lab, node)
    if not first:
        raise Conflict(f"{node.name} is off", hint=f"pvc lab power {node.name} on")
    dropped = ",".join(f"-{name}" for name in DROPPED)
    return [
        *("nsenter", f"--target={first}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"),
        *("--root", "--wd", "--", "setpriv", f"--bounding-set={dropped}", "--", *command),
    ]


def capture(
    lab: Lab, node: Node, command: Sequence[str], *, timeout_s: float = 60.0, stdin: str = ""
) -> Completed:
    """Run a command in a node and collect what it says."""
    with_mask = ["sh", "-c", f'umask {UMASK:03o}; exec "$@"', "sh", *command]
    return run(entering(lab, node, with_mask), check=False, timeout_s=timeout_s, stdin=stdin)


def become(name: str, command: tuple[str, ...]) -> NoReturn:
    """Become a command in a node: it gets this terminal, and its exit code is ours."""
    lab = existing()
    words = list(command[1:] if command[:1] == ("--",) else command)
    argv = entering(lab, lab.node(name), words or ["bash", "-l"])
    os.umask(UMASK)
    home = {
        "HOME": "/root",
        "USER": "root",
        "TERM": os.environ.get("TERM", "dumb"),
        "LANG": "C.UTF-8",
        "PATH": PATH,
    }
    os.execve(shutil.which(argv[0], path=PATH) or argv[0], argv, home)


def send_signal(name: str, process: str, signal_name: str) -> list[int]:
    """To a service's main process, or to every process of that name in the node; their PIDs there."""
    lab = existing()
    node = lab.node(name)
    unit = capture(
        lab, node, ["systemctl", "show", "--property=MainPID", "--value", "--", process]
    ).stdout.strip()
    pids = [int(unit)] if unit.isdigit() and int(unit) else []
    if not pids:
        pids = [int(word) for word in capture(lab, node, ["pgrep", "-x", "--", process[:15]]).stdout.split()]
    if not pids:
        raise NotFound(f"no service or process {process} runs on {name}", hint=f"pvc lab exec {name} ps ax")
    done = capture(lab, node, ["kill", f"-{signal_name}", *map(str, pids)])
    if done.code:
        raise Failed(f"kill -{signal_name} {shlex.join(map(str, pids))}: {done.stderr.strip()}")
    return pids
