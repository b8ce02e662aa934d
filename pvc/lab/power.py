"""A node's power: on is a supervisor that runs the container, off is what a power cut does."""

from __future__ import annotations

import os
import signal

from pvc.lab import discover, inner, launch, network
from pvc.lab.layout import Lab, Node
from pvc.proc import run


def is_on(lab: Lab, node: Node) -> bool:
    """Also while processes of a node run whose manager was killed: off must mean off, fencing believes it."""
    return bool(discover.nspawn(lab, node) or discover.in_namespace(lab.namespace(node)))


def on(lab: Lab, node: Node) -> None:
    """Does nothing for a node that is on."""
    if not is_on(lab, node) and not discover.supervisor(lab, node):
        launch.launch(
            lab, node.name, inner.command(lab, "supervise", node.name), lab.home(node) / "supervisor.log"
        )


def off(lab: Lab, node: Node) -> None:
    """A power cut: the cables first, so that no FIN or RST gets out; then the supervisor, so that nothing
    starts again; then PID 1 of the node and not only its manager, whose death would leave it running."""
    network.pull_cables(lab, node)
    discover.kill_and_wait([discover.supervisor(lab, node)])
    manager, first = discover.nspawn(lab, node), discover.leader(lab, node)
    discover.kill_and_wait([first, manager])
    launch.forget(lab, node.name)
    put_away(lab, node)


def press_button(lab: Lab, node: Node) -> None:
    """The node stops by itself, in its own time."""
    if manager := discover.nspawn(lab, node):
        os.kill(manager, signal.SIGTERM)


def reset(lab: Lab, node: Node) -> None:
    off(lab, node)
    on(lab, node)


def put_away(lab: Lab, node: Node) -> None:
    """Remove what a node that is off leaves: its namespace would still answer to ping."""
    discover.kill_and_wait(discover.in_namespace(lab.namespace(node)))
    network.unplug(lab, node)
    run(["umount", "-l", str(lab.root(node))], check=False)
