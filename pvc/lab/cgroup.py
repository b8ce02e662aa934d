"""A control group for each node: on hosts with systemd it delegates one, elsewhere we make it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def host_has_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()


def hierarchies() -> tuple[Path, ...]:
    """Version 1 has several, each mounted below the root; version 2 has one."""
    if (ROOT / "cgroup.procs").exists():
        return (ROOT,)
    return tuple(sorted(path.parent for path in ROOT.glob("*/cgroup.procs")))


def make(name: str) -> tuple[Path, ...]:
    """A group of that name (it may have a parent: lab/n1) in every hierarchy that lets us."""
    made = []
    for hierarchy in hierarchies():
        group = hierarchy / name
        try:
            group.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        _inherit_cpuset(hierarchy, group)
        made.append(group)
    return tuple(made)


def _inherit_cpuset(hierarchy: Path, group: Path) -> None:
    """A cpuset of version 1 starts empty, and an empty one takes no process."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        if not (hierarchy / "cgroup.procs").exists() or not (hierarchy / file).exists():
            continue
        for each in [*reversed([one for one in group.parents if hierarchy in one.parents]), group]:
            try:
                (each / file).write_text((hierarchy / file).read_text())
            except OSError:
                continue


def delegated() -> tuple[Path, ...]:
    """The group systemd gave this process (Delegate=yes). We step aside into a child of it: a group of
    version 2 that has processes of its own cannot hand controllers on to the container."""
    line = next(
        (one for one in Path("/proc/self/cgroup").read_text().splitlines() if one.startswith("0::")), "0::/"
    )
    base = ROOT if (ROOT / "cgroup.procs").exists() else ROOT / "unified"
    group = base / line[3:].lstrip("/")
    if group.name == "control":
        return (group.parent,)
    control = group / "control"
    try:
        control.mkdir(exist_ok=True)
        (control / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        return ()
    return (group,)


def enter(groups: tuple[Path, ...]) -> None:
    """Between fork and exec: no logging, nothing that can raise."""
    for group in groups:
        try:
            descriptor = os.open(group / "cgroup.procs", os.O_WRONLY)
            os.write(descriptor, str(os.getpid()).encode())
            os.close(descriptor)
        except OSError:
            continue


def remove(name: str) -> None:
    """The group and everything below it, where it is empty of processes."""
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy / name, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                continue


def leftovers(name: str) -> tuple[Path, ...]:
    return tuple(hierarchy / name for hierarchy in hierarchies() if (hierarchy / name).exists())
