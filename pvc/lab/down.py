"""Taking a lab down: every trace of it, found by name, also after a crash at any point."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from pvc.errors import Failed
from pvc.lab import cgroup, discover, launch, network, power, preflight
from pvc.lab.common import Say, Stages, locked
from pvc.lab.layout import MOST_NODES, Lab, directory_of_environment, load, new_lab, prefix, state_file
from pvc.proc import run

ROUNDS = 5
"""Whoever was just being started when those that start others were killed is found in the next one."""


def take_down(say: Say) -> bool:
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
    for _ in range(ROUNDS):
        if not (found := _processes(lab) - {0}):
            break
        discover.kill_and_wait(found)
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
        found |= {discover.nspawn(lab, node), discover.leader(lab, node)}
        found |= {discover.bmc(lab, node), discover.rubbish(lab, node)}
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
