"""What this machine must have before a lab can start, each missing thing named with the way to get it."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from pathlib import Path

from pvc.errors import NotFound, NotPermitted, Unavailable
from pvc.proc import PATH, run

IMAGE = Path("/var/cache/pvc/node.sqfs")

# Command → Debian package.
COMMANDS = {
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
    "sysctl": "procps",
    "ipmi_sim": "openipmi",
}
FILE_SYSTEMS = ("overlay", "squashfs")


def host_packages() -> list[str]:
    """For whoever installs them."""
    return sorted(set(COMMANDS.values()))


def need_root() -> None:
    if os.geteuid() != 0:
        raise NotPermitted("the lab makes containers and networks, which needs root", hint="sudo pvc lab …")


def need_commands(path: str = PATH) -> None:
    missing = sorted(
        {package for command, package in COMMANDS.items() if not shutil.which(command, path=path)}
    )
    if missing:
        raise Unavailable(
            f"this machine lacks what the lab needs: {', '.join(missing)}",
            hint=f"apt-get install {' '.join(missing)}",
        )


def need_kernel() -> None:
    known = set(Path("/proc/filesystems").read_text().split())
    for name in FILE_SYSTEMS:
        if name not in known and (
            not shutil.which("modprobe", path=PATH) or run(["modprobe", name], check=False).code
        ):
            raise Unavailable(
                f"this kernel has no {name} file system", hint=f"a kernel with {name} is needed for the lab"
            )


def find_image(given: Path | None = None) -> Path:
    """The image itself, not the link to it: a lab keeps its image when a newer one is built."""
    image = (given or IMAGE).resolve()
    if not image.is_file():
        raise NotFound(f"no node image {image}", hint="./build.py image")
    return image


def find_program(started_as: str | None = None) -> Path:
    """The file this program runs from, which every node gets a copy of."""
    program = Path(started_as if started_as is not None else sys.argv[0]).resolve()
    if not program.is_file() or not zipfile.is_zipfile(program):
        raise Unavailable(
            "the lab copies the built pvc into its nodes, and this one runs from source",
            hint="./build.py zipapp, then dist/pvc lab up",
        )
    return program
