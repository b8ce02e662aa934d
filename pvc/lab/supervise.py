"""The supervisor of a node: network, file system, container; again after a reboot, done after a power-off."""

from __future__ import annotations

import fcntl
import logging
import resource
import shutil
import signal
from pathlib import Path
from types import FrameType

from pvc.errors import Failed
from pvc.lab import cgroup, discover, inner, launch, network, power
from pvc.lab.layout import Lab, Node
from pvc.lab.render import BOARD
from pvc.lab.watchdog import Board
from pvc.proc import CommandFailed, run, start

log = logging.getLogger(__name__)

REBOOTED = 133
"""systemd-nspawn's exit code when the container asked for a reboot."""

# Enough for networks and QEMU. With all of them, a node could set the host's clock or load kernel modules.
CAPABILITIES = ("CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_NICE", "CAP_IPC_LOCK", "CAP_SYS_RESOURCE")

MOST_FILES = 524288


def supervise(lab: Lab, node: Node) -> int:
    """Run a node until it is powered off; the container's exit code."""
    with (lab.home(node) / "lock").open("w") as lock:
        # An earlier supervisor may still be putting the node away.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if power.is_on(lab, node):
            return 0
        groups = cgroup.delegated() if cgroup.host_has_systemd() else cgroup.make(f"{lab.prefix}/{node.name}")
        try:
            while (code := boot(lab, node, groups)) == REBOOTED:
                log.info("%s reboots", node.name)
        finally:
            power.put_away(lab, node)
        return code


def boot(lab: Lab, node: Node, groups: tuple[Path, ...]) -> int:
    network.plug(lab, node)
    mount_root(lab, node)
    board = Board(lab.board(node) / "watchdog", lambda: reset(lab, node))
    board.start()
    process = start(
        nspawn_command(lab, node),
        log_file=lab.home(node) / "console.log",
        env={"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"},
        new_session=True,
        before_exec=lambda: cgroup.enter(groups),
    )

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, pass_on)
    try:
        return process.wait()
    finally:
        board.close()


def reset(lab: Lab, node: Node) -> None:
    """By somebody who outlives it: this supervisor goes with the power."""
    log.warning("the watchdog of %s was not fed", node.name)
    command = inner.command(lab, "chassis", node.name, "set", "reset", "1")
    launch.launch(lab, f"reset-{node.name}", command, lab.home(node) / "supervisor.log")


def mount_root(lab: Lab, node: Node) -> None:
    """The image below, the node's own files on top. Volatile: an fsync in a node costs nothing."""
    run(["umount", "-l", str(lab.root(node))], check=False)
    work = lab.home(node) / "work"
    # A volatile overlay refuses a second mount with the work directory of the first.
    shutil.rmtree(work, ignore_errors=True)
    for folder in (work, lab.root(node), lab.upper(node)):
        folder.mkdir(parents=True, exist_ok=True)
    layers = f"volatile,lowerdir={lab.image_mount},upperdir={lab.upper(node)},workdir={work}"
    try:
        run(["mount", "-t", "overlay", lab.namespace(node), "-o", layers, str(lab.root(node))])
    except CommandFailed as error:
        raise Failed(
            f"cannot mount the file system of {node.name}: {error.message}",
            hint=f"{lab.directory} must be on a disk file system such as ext4, xfs or btrfs (PVC_LAB_DIR)",
        ) from None


def nspawn_command(lab: Lab, node: Node) -> list[str]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    return [
        *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"),
        f"--machine={lab.namespace(node)}",
        f"--hostname={node.name}",
        f"--uuid={node.uuid}",
        discover.container_option(lab, node),
        f"--network-namespace-path={network.NAMESPACES / lab.namespace(node)}",
        f"--capability={','.join(CAPABILITIES)}",
        f"--bind={lab.share}:/srv/share",
        f"--bind={lab.board(node)}:{BOARD}",
        f"--rlimit=RLIMIT_NOFILE={files}",
        *("--resolv-conf=off", "--link-journal=no", "--timezone=off", "--console=read-only"),
        "--kill-signal=SIGRTMIN+3",
    ]
