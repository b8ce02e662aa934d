"""Bringing a lab up, idempotently: what is there stays, what is missing is added; and how it is."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pvc.commands.lab import LabNode
from pvc.errors import Conflict, Failed, NotFound, TimedOut, Unavailable
from pvc.lab import bmc, ceph, configure, discover, network, power, preflight
from pvc.lab.common import Say, Stages, existing, locked
from pvc.lab.inside import capture
from pvc.lab.layout import (
    CLUSTER,
    UPSTREAM,
    Lab,
    Node,
    directory_of_environment,
    initialised,
    load,
    new_lab,
    save,
)
from pvc.lab.render import BMC_USER, bmc_password
from pvc.proc import run

POLL_S = 0.05
ASKING_S = 0.3
"""For what starts a program in a node each time: it must not slow down what it waits for."""
QUORUM_WITHIN_S = 60.0
RUN_WITHIN_S = 90.0
CEPH_WITHIN_S = 120.0
TOLD_AT_MOST = 3
POOL = "vms"
"""For the disks of VMs."""


def bring_up(
    say: Say,
    *,
    nodes: int | None,
    coordinators: int | None,
    osds: int | None = None,
    image: Path | None = None,
) -> Lab:
    """Make the lab, or start what is missing of it."""
    preflight.need_root()
    preflight.need_commands()
    preflight.need_kernel()
    directory = directory_of_environment()
    program = preflight.find_program()
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        lab = load(directory)
        if lab is None:
            lab = new_lab(directory, preflight.find_image(image), nodes or 3, coordinators, osds or 0)
            save(lab)
        _same_size(lab, nodes, coordinators, osds)
        if lab.initialised and all(power.is_on(lab, node) for node in lab.nodes):
            say(f"the lab runs already, with {_count(lab)}")
        return _start(lab, program, Stages(say))


def _same_size(lab: Lab, nodes: int | None, coordinators: int | None, osds: int | None) -> None:
    if (
        nodes in (None, len(lab.nodes))
        and coordinators in (None, lab.coordinators)
        and osds in (None, lab.osds)
    ):
        return
    raise Conflict(f"there is a lab with {_count(lab)} already", hint="pvc lab down, then pvc lab up")


def _count(lab: Lab) -> str:
    counted = f"{_plural(len(lab.nodes), 'node')}, of them {_plural(lab.coordinators, 'coordinator')}"
    return f"{counted}, and {_plural(lab.osds, 'OSD')} on each" if lab.osds else f"{counted}, without Ceph"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _start(lab: Lab, program: Path, stages: Stages) -> Lab:
    stopped = [node for node in lab.nodes if not power.is_on(lab, node)]
    if stopped:
        _copy_program(program, lab.program)
    _mount_image(lab)
    _make_share(lab)
    network.switch_up(lab)
    for node in stopped:
        if not configure.is_configured(lab, node):
            configure.configure(lab, node)
        configure.install_program(lab, node)
    stages.done("image, switch and configuration")
    for node in lab.nodes:
        bmc.on(lab, node)
        power.on(lab, node)
    if stopped:
        stages.done(f"power on: {', '.join(node.name for node in stopped)}")
    _await_quorum(lab)
    stages.done(f"ZooKeeper quorum of {lab.coordinators}")
    if not lab.initialised:
        _initialise(lab)
        lab = initialised(lab)
        save(lab)
        stages.done("cluster initialised")
    _await_running(lab)
    stages.done(f"every node runs: {', '.join(node.name for node in lab.nodes)}")
    if stopped:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: _make_bmc_known(lab, node), lab.nodes))
        stages.done("the cluster knows every BMC")
        _add_pool(lab, POOL, "--path", f"/srv/share/{POOL}")
        stages.done(f"pool {POOL} of directory /srv/share/{POOL}")
    if lab.osds:
        _await_ceph(lab)
        stages.done(f"Ceph, with {_plural(lab.osds * len(lab.nodes), 'OSD')}")
        if stopped:
            _add_ceph_pool(lab)
            stages.done(f"pool {ceph.POOL} of Ceph")
    configure.keep_capabilities(lab, lab.nodes[0])
    return lab


def _copy_program(program: Path, target: Path) -> None:
    if program == target:
        return
    new = target.with_suffix(".new")
    shutil.copyfile(program, new)
    new.chmod(0o755)
    new.rename(target)


def _mount_image(lab: Lab) -> None:
    lab.image_mount.mkdir(exist_ok=True)
    if not os.path.ismount(lab.image_mount):
        _mount(lab)
    if lab.osds and not (lab.image_mount / "usr/bin/ceph-osd").exists():
        raise NotFound(
            f"there is no Ceph in the node image {lab.image}", hint="pvc lab down, then ./build.py image"
        )


def _mount(lab: Lab) -> None:
    if not lab.image.is_file():
        raise NotFound(
            f"the lab's node image {lab.image} is gone", hint="pvc lab down, then ./build.py image"
        )
    run(["mount", "-o", "loop,ro", str(lab.image), str(lab.image_mount)])


def _make_share(lab: Lab) -> None:
    """For everybody; what is made in it gets the group of QEMU, whose number only the image knows."""
    lab.share.mkdir(exist_ok=True)
    groups = (line.split(":") for line in (lab.image_mount / "etc/group").read_text().splitlines())
    kvm = next(int(fields[2]) for fields in groups if fields[0] == "kvm")
    disks = lab.share / POOL
    disks.mkdir(exist_ok=True)
    for directory, mode in ((lab.share, 0o2777), (disks, 0o2770)):
        os.chown(directory, 0, kvm)
        directory.chmod(mode)


def _await_quorum(lab: Lab) -> None:
    servers = [node for node in lab.nodes if lab.is_coordinator(node)]
    wait_for(
        lambda: all(mode for mode in zookeeper_modes(lab, servers)),
        QUORUM_WITHIN_S,
        f"ZooKeeper on {', '.join(node.name for node in servers)}",
        f"pvc lab exec {servers[0].name} journalctl -u zookeeper",
    )


def _initialise(lab: Lab) -> None:
    """Once per cluster; a crash between doing and noting it makes us ask twice, which the cluster refuses."""
    _tell_store(lab, "init", "--name", "lab", refused=Conflict.exit_code)
    upstream, cluster = lab.floating_address(UPSTREAM), lab.floating_address(CLUSTER)
    _tell_store(lab, "set", "--upstream-address", upstream, "--cluster-address", cluster)


def _tell_store(lab: Lab, verb: str, *options: str, refused: int = 0) -> None:
    """Once more where the store did not answer: servers that have just begun may choose another leader."""
    first, words = lab.nodes[0], ["pvc", "--quiet", "--direct", "cluster", verb, *options]
    for _ in range(TOLD_AT_MOST):
        done = capture(lab, first, words, timeout_s=30)
        if done.code in (0, refused):
            return
        if done.code != Unavailable.exit_code:
            break
    raise Failed(f"pvc cluster {verb} on {first.name}: {(done.stderr or done.stdout).strip()}")


def _make_bmc_known(lab: Lab, node: Node) -> None:
    """So that the node is fenced when it dies."""
    told = ["--address", lab.bmc_address(node), "--user", BMC_USER, "--password-file", "-"]
    words = ["pvc", "--quiet", "node", "bmc", node.name, *told]
    done = capture(lab, lab.nodes[0], words, timeout_s=30, stdin=bmc_password(node))
    if done.code != 0:
        raise Failed(f"pvc node bmc {node.name}: {(done.stderr or done.stdout).strip()}")


def _add_pool(lab: Lab, name: str, *words: str) -> None:
    """Shared by all nodes. It is there already where the lab was only started again."""
    done = capture(
        lab, lab.nodes[0], ["pvc", "--quiet", "storage", "pool", "add", name, *words], timeout_s=60
    )
    if done.code not in (0, Conflict.exit_code):
        raise Failed(f"pvc storage pool add {name}: {(done.stderr or done.stdout).strip()}")


def _add_ceph_pool(lab: Lab) -> None:
    """With fewer copies than is safe where there are fewer nodes."""
    copies, fewest = ceph.copies(lab)
    replication = f"copies={copies},mincopies={fewest}"
    _add_pool(lab, ceph.POOL, str(ceph.PGS), "--driver", "rbd", "--replcfg", replication, "--force")


def _await_running(lab: Lab) -> None:
    first, names = lab.nodes[0], {node.name for node in lab.nodes}
    wait_for(
        lambda: all(_has_joined(lab, node) for node in lab.nodes) and running_nodes(lab, first) >= names,
        RUN_WITHIN_S,
        f"the daemon on {', '.join(sorted(names))}",
        f"pvc lab exec {first.name} journalctl -u pvc-node",
        every_s=ASKING_S,
    )


def _await_ceph(lab: Lab) -> None:
    wait_for(
        lambda: ceph_is_whole(lab, lab.nodes[0]),
        CEPH_WITHIN_S,
        "Ceph",
        f"pvc lab exec {lab.nodes[0].name} -- ceph -n client.{ceph.DAEMON} status",
        every_s=ASKING_S,
    )


def ceph_is_whole(lab: Lab, through: Node) -> bool:
    """Every monitor, a manager and every OSD serve, and what is in them has all its copies."""
    words = [
        "ceph",
        "--name",
        f"client.{ceph.DAEMON}",
        "--connect-timeout",
        "5",
        "status",
        "--format",
        "json",
    ]
    done = capture(lab, through, words, timeout_s=20)
    try:
        status = json.loads(done.stdout)
        pgs = {one["state_name"] for one in status["pgmap"]["pgs_by_state"]}
        return (
            len(status["quorum_names"]) == lab.coordinators
            and bool(status["mgrmap"]["available"])
            and status["osdmap"]["num_up_osds"] == lab.osds * len(lab.nodes)
            and pgs <= {"active+clean"}
        )
    except (ValueError, TypeError, KeyError):
        return False


def _has_joined(lab: Lab, node: Node) -> bool:
    """Its daemon says so itself: the cluster takes one that has just lost power for running still."""
    try:
        return capture(lab, node, ["systemctl", "is-active", "--quiet", "pvc-node"]).code == 0
    except Conflict:  # it is off: not on yet, or fenced
        return False


def running_nodes(lab: Lab, through: Node) -> set[str]:
    """Names of the nodes whose daemon is in state run, as the cluster sees it."""
    done = capture(lab, through, ["pvc", "--quiet", "node", "list", "-f", "json"], timeout_s=20)
    try:
        return {str(one["name"]) for one in json.loads(done.stdout) if one["daemon_state"] == "run"}
    except (ValueError, TypeError, KeyError, AttributeError):
        return set()


def wait_for(
    condition: Callable[[], bool], within_s: float, what: str, hint: str, *, every_s: float = POLL_S
) -> None:
    """Ask again and again: what a container does inside gives no event out here."""
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end:
            raise TimedOut(f"not ready within {within_s:g} s: {what}", hint=hint)
        time.sleep(every_s)


# Looking


def zookeeper_modes(lab: Lab, nodes: Sequence[Node]) -> list[str]:
    """leader, follower, standalone, or "" for a server that does not serve."""
    if not network.namespace_exists(lab.switch) or not nodes:
        return ["" for _ in nodes]
    with ThreadPoolExecutor(len(nodes)) as pool:
        return list(pool.map(lambda node: _zookeeper_mode(lab, node), nodes))


def _zookeeper_mode(lab: Lab, node: Node) -> str:
    try:
        answer = network.inside(lab.switch, lambda: _four_letters(lab.address(node), b"srvr"))
    except OSError:
        return ""
    found = re.search(r"^Mode: (\w+)$", answer, re.MULTILINE)
    return found[1] if found else ""


def _four_letters(address: str, word: bytes) -> str:
    with socket.create_connection((address, 2181), timeout=0.5) as connection:
        connection.sendall(word)
        parts = list(iter(lambda: connection.recv(4096), b""))
    return b"".join(parts).decode(errors="replace")


def states() -> list[LabNode]:
    lab = existing()
    modes = zookeeper_modes(lab, lab.nodes)
    return [_shown(lab, node, mode) for node, mode in zip(lab.nodes, modes, strict=True)]


def _shown(lab: Lab, node: Node, mode: str) -> LabNode:
    on = power.is_on(lab, node)
    return LabNode(
        name=node.name,
        power="on" if on else "off",
        coordinator=lab.is_coordinator(node),
        zookeeper=mode,
        address=lab.address(node),
        upstream=lab.address(node, UPSTREAM),
        bmc=bmc.state(lab, node),
        bmc_address=lab.bmc_address(node),
        ceph=discover.ceph_daemons(lab, node),
        cut=network.cut_networks(lab, node) if on else (),
        pid=discover.leader(lab, node),
    )
