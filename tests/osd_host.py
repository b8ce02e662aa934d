"""Disks that become OSDs of a throwaway Ceph: ceph-volume in a mount namespace of its own, on loop devices.

Over this machine's /usr lies what is unpacked in build/ceph; systemd is who starts and ends ceph-osd here.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pvc import proc
from pvc.proc import Completed
from tests.ceph import UNPACKED, Ceph

MOUNTS = """\
set -eu
mount --make-rprivate /
mount -t overlay overlay -o lowerdir=$1/over:{unpacked}/usr:/usr,upperdir=$1/upper,workdir=$1/work /usr
mount --bind $1/passwd /etc/passwd
mount --bind $1/group /etc/group
mkdir -p /etc/ceph /var/lib/ceph
mount --bind $1/root/etc/ceph /etc/ceph
mount --bind $1/root/var/lib/ceph /var/lib/ceph
mkdir -p /var/log/ceph
mount -t tmpfs tmpfs /var/log/ceph
echo ready
exec cat
"""

OSD = """\
[osd]
keyring = $osd_data/keyring
osd objectstore = bluestore
bluestore cache autotune = false
bluestore cache size = 67108864
bdev aio poll ms = 20
"""


class OSDHost:
    def __init__(self, where: Path, ceph: Ceph) -> None:
        self.where = where
        self.ceph = ceph
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.loops: list[str] = []
        self.said: list[str] = []
        """Commands that were run."""

    @property
    def root(self) -> str:
        return str(self.where / "root")

    def make(self) -> None:
        for name in ("over", "upper", "work", "root/etc/ceph", "root/var/lib/ceph/osd"):
            (self.where / name).mkdir(parents=True)
        for name in ("bin", "sbin", "lib/x86_64-linux-gnu"):
            shutil.copytree(UNPACKED / name, self.where / "over" / name, symlinks=True)
        for name, entry in (("passwd", "ceph:x:0:0:Ceph:/var/lib/ceph:/bin/false"), ("group", "ceph:x:0:")):
            (self.where / name).write_text(f"{Path('/etc', name).read_text()}{entry}\n")
        conf = Path(self.ceph.conf).read_text()
        (self.where / "root/etc/ceph/ceph.conf").write_text(conf[: conf.index("[osd]")] + OSD)
        self.namespace = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", MOUNTS.format(unpacked=UNPACKED), "mounts", self.where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.namespace.stdout
        assert self.namespace.stdout.readline() == b"ready\n"

    def close(self) -> None:
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()
        self.namespace.communicate()
        for loop in self.loops:
            subprocess.run(["losetup", "--detach", loop], check=False)

    def add_disk(self, size_bytes: int = 5 * 1024**3) -> str:
        """The path of a new, empty one."""
        file = self.where / f"disk{len(self.loops)}"
        with file.open("wb") as new:
            new.truncate(size_bytes)
        done = subprocess.run(
            ["losetup", "--partscan", "--find", "--show", file], capture_output=True, text=True, check=True
        )
        self.loops.append(done.stdout.strip())
        return self.loops[-1]

    # As proc.run

    def run(self, argv: list[str], /, *, check: bool = True, timeout_s: float = 60.0) -> Completed:
        self.said.append(" ".join(argv))
        if argv[0] == "systemctl":
            return Completed(self._systemctl(argv[1:]), "", "")
        return proc.run([*self._inside(), *argv], check=check, timeout_s=timeout_s)

    def _inside(self) -> list[str]:
        return ["nsenter", f"--target={self.namespace.pid}", "--mount"]

    def _systemctl(self, words: list[str]) -> int:
        unit = words[-1]
        match words[0]:
            case "enable":
                osd = unit.removeprefix("ceph-osd@").removesuffix(".service")
                command = ["ceph-osd", "-f", "-i", osd, "--public-addr", "127.0.0.1"]
                self.daemons[unit] = subprocess.Popen(
                    [*self._inside(), *command],
                    stdout=(self.where / f"{unit}.out").open("wb"),
                    stderr=subprocess.STDOUT,
                    env=proc.environment(),
                )
            case "disable":
                if daemon := self.daemons.pop(unit, None):
                    daemon.terminate()
                    daemon.wait()
            case "is-active":
                return 0 if unit in self.daemons and self.daemons[unit].poll() is None else 3
        return 0


@contextmanager
def osd_host(where: Path, ceph: Ceph) -> Iterator[OSDHost]:
    made = OSDHost(where, ceph)
    made.make()
    try:
        yield made
    finally:
        made.close()
