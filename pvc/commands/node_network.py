"""This node's own networks: bring them up at boot, and try what pvc.toml describes now."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pvc.commands.context import LocalContext
from pvc.commands.registry import local
from pvc.errors import Conflict, Failed, TimedOut, Unavailable

T = TypeVar("T")

PATIENCE_S = 90.0
"""A trial takes 60 s at most, and so does what has to be undone."""
DEVICES_S = 10.0
LOOK_S = 0.2


@local(noun="node", verb="network up")
def up(ctx: LocalContext) -> None:
    """Bring up this node's own networks as /etc/pvc/pvc.toml describes them.

    Its service does so at boot, before ZooKeeper. On a node that runs it corrects what differs from what was
    brought up; what pvc.toml describes since then takes effect by `pvc node network apply`.
    """
    from pvc import config, log, output

    log.setup(daemon=True, debug=bool(ctx.options.get("debug")))
    settings = config.load()

    from pvc.clock import SystemClock
    from pvc.node.own_networks import FileMemory, OwnNetworks, site_of

    memory, site = FileMemory(settings.paths.state), site_of(settings)
    if not site.networks.sections() and memory.now() is None and memory.lasting().good is None:
        return  # somebody else's: every boot of such a node comes by here

    from pvc.node.drivers.host_networks import NetlinkHostNetworking

    own = OwnNetworks(NetlinkHostNetworking(), memory, lambda: site, settings.node.address, (), SystemClock())
    # The driver of a device may still be loading.
    _until(lambda: not own.up(), DEVICES_S)
    if own.problems:
        raise Failed("; ".join(own.problems), hint="the daemon goes on trying")
    output.note("the node's own networks are as described")


@local(noun="node", verb="network apply")
def apply(ctx: LocalContext) -> None:
    """Try the networks that this node's pvc.toml describes now, and keep them if the cluster is reached.

    Otherwise all is as before after 60 seconds. Outside of maintenance a change of what carries the cluster
    network is refused.
    """
    from pvc import config, output
    from pvc.node.own_networks import FileMemory

    settings = config.load()  # what is wrong in it is said at once
    memory = FileMemory(settings.paths.state)
    request = secrets.token_hex(8)
    daemon = _daemon(settings.paths.state)
    memory.ask(request)
    os.kill(daemon, signal.SIGHUP)
    output.note("trying; if the cluster is not reached, all is as before within 60 s")
    found = _until(lambda: memory.answered(request), PATIENCE_S)
    if found is None:
        raise TimedOut("the daemon has not answered", hint="journalctl -u pvc-node says what it does")
    if found.outcome == "refused":
        raise Conflict(f"nothing was changed: {found.why}")
    if found.outcome == "back":
        raise Failed(f"all is as it was before: {found.why}")
    output.note("the cluster is reached, the networks are kept" + (f"; {found.why}" if found.why else ""))


def _until(look: Callable[[], T], within_s: float) -> T:
    """The first look that is true, or the last one."""
    from pvc.clock import SystemClock
    from pvc.waiting import pause

    clock = SystemClock()
    end = clock.monotonic() + within_s
    while not (found := look()) and clock.monotonic() < end:
        pause(LOOK_S)
    return found


def _daemon(state: str) -> int:
    """Its process. Raises Unavailable where none runs."""
    path = Path(state, "node.lock")
    try:
        with path.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return int(lock.read())
    except (OSError, ValueError):
        pass
    raise Unavailable(
        "no node daemon runs here, which would try them", hint="systemctl start pvc-node; or reboot"
    )
