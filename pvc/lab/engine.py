"""Lab up, down, status, exec and kill: idempotent, and able to clean up after themselves at any point."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pvc.errors import Conflict, Failed, NotFound, TimedOut
from pvc.lab import bmc, cgroup, configure, discover, launch, network, power, preflight
from pvc.lab.layout import (
    MOST_NODES,
    NETWORKS,
    Lab,
    Node,
    directory_of_environment,
    initialised,
    load,
    new_lab,
    prefix,
    save,
    state_file,
)
from pvc.proc import PATH, Completed, run

Say = Callable[[str], None]

POLL_S = 0.05
QUORUM_WITHIN_S = 60.0
RUN_WITHIN_S = 90.0
# The container's own capabilities end at its kernel interface; nsenter from the host would bring the host's along.
DROPPED = ("sys_time", "sys_module", "sys_rawio", "sys_boot", "mac_admin", "mac_override", "wake_alarm")
# In the lab's share, files are made for the group that QEMU is in.
UMASK = 0o002


@dataclass(frozen=True, slots=True)
class NodeState:
    name: str
    power: str
    bmc: str
    coordinator: bool
    zookeeper: str
    address: str
    upstream: str
    bmc_address: str
    cut: tuple[str, ...]
    pid: int


@dataclass(frozen=True, slots=True)
class LabState:
    directory: str
    image: str
    nodes: tuple[NodeState, ...]


class Stages:
    """Tells each stage with the seconds since the start."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._began = time.monotonic()

    def done(self, what: str) -> None:
        self._say(f"{time.monotonic() - self._began:6.2f} s  {what}")


def existing() -> Lab:
    """The lab that was started. Raises NotFound."""
    preflight.need_root()
    lab = load(directory_of_environment())
    if lab is None:
        raise NotFound("there is no lab", hint="pvc lab up")
    return lab


# Up


def up(say: Say, *, nodes: int | None, coordinators: int | None, image: Path | None = None) -> Lab:
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
            lab = new_lab(directory, preflight.find_image(image), nodes or 3, coordinators)
            save(lab)
        _same_size(lab, nodes, coordinators)
        if lab.initialised and all(power.is_on(lab, node) for node in lab.nodes):
            say(f"the lab runs already, with {_count(lab)}")
        return _start(lab, program, Stages(say))


def _same_size(lab: Lab, nodes: int | None, coordinators: int | None) -> None:
    if nodes in (None, len(lab.nodes)) and coordinators in (None, lab.coordinators):
        return
    raise Conflict(f"there is a lab with {_count(lab)} already", hint="pvc lab down, then pvc lab up")


def _count(lab: Lab) -> str:
    plural = "s" if len(lab.nodes) > 1 else ""
    return f"{len(lab.nodes)} node{plural}, {lab.coordinators} of them coordinator{'s' if lab.coordinators > 1 else ''}"


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
    if os.path.ismount(lab.image_mount):
        return
    if not lab.image.is_file():
        raise NotFound(
            f"the lab's node image {lab.image} is gone", hint="pvc lab down, then ./build.py image"
        )
    run(["mount", "-o", "loop,ro", str(lab.image), str(lab.image_mount)])


def _make_share(lab: Lab) -> None:
    """For everybody, and what is made in it belongs to the group of QEMU, whose number only the image knows."""
    lab.share.mkdir(exist_ok=True)
    groups = (line.split(":") for line in (lab.image_mount / "etc/group").read_text().splitlines())
    kvm = next(int(fields[2]) for fields in groups if fields[0] == "kvm")
    os.chown(lab.share, 0, kvm)
    lab.share.chmod(0o2777)


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
    first = lab.nodes[0]
    done = capture(lab, first, ["pvc", "--direct", "cluster", "init", "--name", "lab"], timeout_s=30)
    if done.code not in (0, Conflict.exit_code):
        raise Failed(f"pvc cluster init on {first.name}: {(done.stderr or done.stdout).strip()}")


def _await_running(lab: Lab) -> None:
    first, names = lab.nodes[0], {node.name for node in lab.nodes}
    wait_for(
        lambda: running_nodes(lab, first) >= names,
        RUN_WITHIN_S,
        f"the daemon on {', '.join(sorted(names))}",
        f"pvc lab exec {first.name} journalctl -u pvc-node",
    )


def running_nodes(lab: Lab, through: Node) -> set[str]:
    """Names of the nodes whose daemon is in state run, as the cluster sees it."""
    done = capture(lab, through, ["pvc", "--quiet", "node", "list", "-f", "json"], timeout_s=20)
    try:
        return {
            str(one["name"])
            for one in json.loads(done.stdout)
            if "run" in (one.get("state"), one.get("daemon"))
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return set()


def wait_for(condition: Callable[[], bool], within_s: float, what: str, hint: str) -> None:
    """Ask again and again: what a container does inside gives no event out here."""
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end:
            raise TimedOut(f"not ready within {within_s:g} s: {what}", hint=hint)
        time.sleep(POLL_S)


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


def status() -> LabState:
    lab = existing()
    modes = zookeeper_modes(lab, lab.nodes)
    nodes = tuple(_node_state(lab, node, mode) for node, mode in zip(lab.nodes, modes, strict=True))
    return LabState(str(lab.directory), str(lab.image), nodes)


def _node_state(lab: Lab, node: Node, mode: str) -> NodeState:
    on = power.is_on(lab, node)
    return NodeState(
        name=node.name,
        power="on" if on else "off",
        bmc="on" if discover.bmc(lab, node) else "off",
        coordinator=lab.is_coordinator(node),
        zookeeper=mode,
        address=lab.address(node),
        upstream=lab.address(node, NETWORKS[0]),
        bmc_address=lab.bmc_address(node),
        cut=network.cut_networks(lab, node) if on else (),
        pid=discover.leader(lab, node),
    )


# Inside a node


def entering(lab: Lab, node: Node, command: Sequence[str]) -> list[str]:
    """The command line that runs a command in a node, with no more power over the host than the node itself has."""
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


def execute(name: str, command: tuple[str, ...]) -> NoReturn:
    """Become a command in a node: it gets this terminal, and its exit code is ours. Returns only by raising."""
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


def kill(name: str, process: str, signal_name: str) -> list[int]:
    """Send a signal to a service's main process, or to every process of that name in the node. Their PIDs there."""
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


# Down


def down(say: Say) -> bool:
    """Remove every trace of the lab, or of a part of one; whether there was any."""
    preflight.need_root()
    directory = directory_of_environment()
    if not directory.exists() and not leftovers(directory):
        return False
    stages = Stages(say)
    if directory.exists():
        with locked(directory):
            _remove_all(directory)
    else:
        _remove_all(directory)
    remaining = leftovers(directory)
    if remaining:
        raise Failed(f"the lab is not all gone: {', '.join(remaining)}", hint="pvc lab down again")
    stages.done("the lab is gone")
    return True


def _remove_all(directory: Path) -> None:
    lab = _to_remove(directory)
    # Those that start others go first.
    discover.kill_and_wait(
        [one.pid for one in discover.processes() if discover.is_ours(one, lab, "supervise")]
    )
    for node in lab.nodes:
        network.pull_cables(lab, node)
    discover.kill_and_wait(_processes(lab))
    for node in lab.nodes:
        launch.forget(lab, node.name)
        launch.forget(lab, f"bmc-{node.name}")
        power.put_away(lab, node)
    network.switch_down(lab)
    for point in discover.mounts_below(directory):
        run(["umount", "-l", point])
    cgroup.remove(lab.prefix)
    if directory.exists():
        _remove_directory(directory)


def _to_remove(directory: Path) -> Lab:
    """The lab as recorded; without a readable record, one that could have been there."""
    with contextlib.suppress(Failed):
        if recorded := load(directory):
            return recorded
    return new_lab(directory, preflight.IMAGE, MOST_NODES, 3)


def _processes(lab: Lab) -> set[int]:
    found = {one.pid for one in discover.processes() if discover.is_ours(one, lab, "chassis")}
    found |= discover.in_namespace(lab.switch)
    for node in lab.nodes:
        found |= {discover.nspawn(lab, node), discover.leader(lab, node), discover.bmc(lab, node)}
        found |= discover.in_namespace(lab.namespace(node))
    return found


def _remove_directory(directory: Path) -> None:
    """The state file last: as long as anything is left, it says what the lab was."""
    if still := discover.mounts_below(directory):
        raise Failed(f"still mounted: {', '.join(still)}", hint="pvc lab down again")
    for path in directory.iterdir():
        if path == state_file(directory):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    state_file(directory).unlink(missing_ok=True)
    directory.rmdir()


def leftovers(directory: Path) -> list[str]:
    """What there is of a lab, by name; empty after `down`."""
    lab = new_lab(directory, preflight.IMAGE, MOST_NODES, 3)
    spaces = {lab.switch, *(lab.namespace(node) for node in lab.nodes)}
    found = [f"namespace {name}" for name in sorted(spaces) if network.namespace_exists(name)]
    found += [f"mount {point}" for point in discover.mounts_below(directory)]
    found += [f"process {pid}" for pid in sorted(_processes(lab) - {0})]
    found += [f"control group {path}" for path in cgroup.leftovers(prefix(directory))]
    if Path("/sys/class/net", lab.host_link).exists():
        found.append(f"link {lab.host_link}")
    if directory.exists():
        found.append(f"directory {directory}")
    return found


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One `up` or `down` at a time. The lock is on the directory itself, so that none is left behind."""
    while True:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(
                    "another pvc lab up or down is running", hint="wait for it, or stop it"
                ) from None
            if directory.exists() and os.fstat(descriptor).st_ino == directory.stat().st_ino:
                yield
                return
            directory.mkdir(parents=True, exist_ok=True)
        finally:
            os.close(descriptor)
