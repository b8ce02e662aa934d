"""Driving a lab from a test: the commands a person would type, and what the kernel knows of it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pvc.lab.layout import Lab, load
from pvc.lab.up import ceph_is_whole
from tests.support import eventually

ROOT = Path(__file__).parents[2]
PVC = ROOT / "dist/pvc"
DIRECTORY = Path(os.environ.get("PVC_LAB_DIR", "/var/lib/pvc-lab-test"))
HOURGLASS_S = 180.0
CEPH = "ceph"
with_ceph = pytest.mark.parametrize("lab", [CEPH], indirect=True, ids=["with Ceph"])
"""For tests, or a module of them, that want a Ceph in the lab: all of them get the same lab."""


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    stdout: str
    stderr: str


def run_lab(
    directory: Path, *words: str, check: bool = True, stdin: str = "", timeout_s: float = HOURGLASS_S
) -> Ended:
    """`pvc lab …` for the lab in that directory."""
    # The lab's own copy where there is one: a build meanwhile must not change the program under a test.
    copy = directory / "pvc"
    argv = [str(copy if copy.exists() and words[0] not in ("up", "down") else PVC), "lab", *words]
    env = {**os.environ, "PVC_LAB_DIR": str(directory)}
    done = subprocess.run(
        argv, env=env, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    said = f"{' '.join(argv)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert not check or done.returncode == 0, said
    return Ended(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True, slots=True)
class RunningLab:
    """What a test does with the cluster."""

    directory: Path

    @property
    def layout(self) -> Lab:
        found = load(self.directory)
        assert found is not None
        return found

    @property
    def nodes(self) -> Sequence[str]:
        return [node.name for node in self.layout.nodes]

    def lab(self, *words: str, check: bool = True) -> Ended:
        """`pvc lab …` on this machine."""
        return run_lab(self.directory, *words, check=check)

    def run(
        self, node: str, *command: str, check: bool = True, timeout_s: float = HOURGLASS_S, stdin: str = ""
    ) -> Ended:
        """A command inside a node."""
        words = ("exec", node, "--", *command)
        return run_lab(self.directory, *words, check=check, stdin=stdin, timeout_s=timeout_s)

    def power(self, node: str, action: str) -> None:
        """on, off, reset, soft."""
        self.lab("power", node, action)

    def sh(self, node: str, script: str, *, check: bool = True) -> str:
        """What a shell script in a node says."""
        return self.run(node, "sh", "-c", script, check=check).stdout

    def states(self) -> dict[str, dict[str, Any]]:
        """`pvc lab status`, by node."""
        return {one["name"]: one for one in json.loads(self.lab("status", "--format", "json").stdout)}

    def is_whole(self) -> bool:
        """Every node is on, connected, serves ZooKeeper, its daemon runs, and Ceph has all its copies."""
        states = self.states().values()
        if not all(one["power"] == "on" and not one["cut"] and one["bmc"] == "on" for one in states):
            return False
        if not all(one["zookeeper"] for one in states if one["coordinator"]):
            return False
        done = self.run("n1", "pvc", "node", "list", "--format", "json", check=False)
        if done.code != 0:
            return False
        if not all(one["daemon_state"] == "run" for one in json.loads(done.stdout)):
            return False
        layout = self.layout
        return not layout.osds or ceph_is_whole(layout, layout.nodes[0])

    def settle(self, within: float = 60.0) -> None:
        """Wait until nothing is broken any more."""
        eventually(self.is_whole, within=within, every=0.5)

    def repair(self) -> None:
        """Undo what a test broke, whatever it was."""
        for name, one in self.states().items():
            if one["power"] == "off":
                self.lab("power", name, "on")
            elif one["cut"]:
                self.lab("heal", name)
            if one["bmc"] != "on":
                self.lab("bmc", name, "on")
        self.settle()


@dataclass(frozen=True, slots=True)
class Traces:
    """What the kernel knows of a lab, asked in other ways than the lab itself does."""

    directory: Path
    prefix: str
    image: Path

    def found(self) -> list[str]:
        return [
            *self._files(),
            *self._mounts(),
            *self._namespaces(),
            *self._links(),
            *self._loops(),
            *self.processes(),
        ]

    def _files(self) -> Sequence[str]:
        groups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/*{self.prefix}*")]
        return [*([str(self.directory)] if self.directory.exists() else []), *groups]

    def _mounts(self) -> Sequence[str]:
        return [line for line in Path("/proc/mounts").read_text().splitlines() if str(self.directory) in line]

    def _namespaces(self) -> Sequence[str]:
        return [str(path) for path in Path("/run/netns").glob(f"{self.prefix}-*")]

    def _links(self) -> Sequence[str]:
        return [str(path) for path in Path("/sys/class/net").glob(f"{self.prefix}-*")]

    def _loops(self) -> Sequence[str]:
        backing = Path("/sys/block").glob("loop*/loop/backing_file")
        return [str(path) for path in backing if path.read_text().strip() == str(self.image)]

    def processes(self) -> Sequence[str]:
        """By command line, and by control group: those in a container know nothing of the lab's directory."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                group = (entry / "cgroup").read_text()
            except OSError:
                continue
            is_ours = (
                str(self.directory) in command or f"/{self.prefix}/" in group or f"-{self.prefix}-" in group
            )
            if command and is_ours:
                found.append(f"{entry.name}: {command}")
        return found
