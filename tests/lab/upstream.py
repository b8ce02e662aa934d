"""A router upstream of a lab: FRR of the node image, in a network namespace plugged into the switch."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from pvc.lab.layout import UPSTREAM, Lab
from tests.support import eventually

AS_NUMBER, NODES_AS_NUMBER = 64512, 65000
END = 231
"""Of its address upstream."""
OUTSIDE = "203.0.113.1"
"""An address that only the router knows."""
OUTSIDE6 = "2001:db8:113::1"
PORT = 7000
"""Where it takes a guest's stream."""
DAEMONS = ("zebra", "bgpd")


@dataclass(frozen=True, slots=True)
class Router:
    lab: Lab
    base: Path
    """Of its files."""

    @property
    def root(self) -> Path:
        return self.base / "root"

    @property
    def namespace(self) -> str:
        return f"{self.lab.prefix}-rtr"

    @property
    def address(self) -> str:
        return f"{self.lab.subnet(UPSTREAM)}.{END}"

    @property
    def address6(self) -> str:
        return f"fd00:{self.lab.subnet(UPSTREAM).split('.')[1]}::{END}"

    def node_address6(self, node: str) -> str:
        return f"fd00:{self.lab.subnet(UPSTREAM).split('.')[1]}::{self.lab.node(node).number}"

    def run(self, *command: str, check: bool = True) -> str:
        """In its network."""
        argv = ["ip", "netns", "exec", self.namespace, *command]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def vtysh(self, command: str) -> Any:
        return json.loads(self.run("chroot", str(self.root), "vtysh", "-c", f"{command} json"))

    def told(self, version: int = 4) -> dict[str, set[str]]:
        """Prefixes that nodes told it of, each with the addresses of those nodes."""
        routes = self.vtysh(f"show bgp ipv{version} unicast").get("routes", {})
        found: dict[str, set[str]] = {}
        for prefix, paths in routes.items():
            peers = {path["peerId"] for path in paths if path["pathFrom"] == "external"}
            if peers:
                found[prefix] = peers
        return found

    def sessions(self) -> set[str]:
        """Neighbours with which it speaks."""
        said = self.vtysh("show bgp summary")
        return {
            peer
            for family in said.values()
            for peer, about in family.get("peers", {}).items()
            if about["state"] == "Established"
        }

    def reaches(self, address: str) -> bool:
        argv = ["ip", "netns", "exec", self.namespace, "ping", "-n", "-c", "1", "-W", "1", address]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    @contextmanager
    def hearing(self) -> Iterator[Callable[[], list[int]]]:
        """Takes one connection; all numbers that came over it."""
        heard = self.base / "heard"
        argv = ["ip", "netns", "exec", self.namespace, "busybox", "nc", "-l", "-p", str(PORT)]
        with (
            heard.open("w") as out,
            subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=out) as listener,
        ):
            try:
                yield lambda: [int(number) for number in re.findall(r"(\d+)\n", heard.read_text())]
            finally:
                listener.kill()


@contextmanager
def router(lab: Lab) -> Iterator[Router]:
    """It says that the way to everywhere is through it, and believes what nodes say."""
    made = Router(lab, Path(mkdtemp(prefix="pvc-router-")))
    try:
        _mount(made)
        _plug(made)
        _start(made)
        yield made
    finally:
        _end(made)


def _mount(made: Router) -> None:
    for name in ("upper", "work", "root"):
        (made.base / name).mkdir()
    layers = f"lowerdir={made.lab.image_mount},upperdir={made.base}/upper,workdir={made.base}/work"
    _do("mount", "-t", "overlay", "overlay", "-o", layers, str(made.root))
    _do("mount", "-t", "proc", "proc", str(made.root / "proc"))


def _plug(made: Router) -> None:
    here, switch = ("ip", "-n", made.namespace), ("ip", "-n", made.lab.switch)
    _do("ip", "netns", "add", made.namespace)
    _do(*here, "link", "add", "ups", "type", "veth", "peer", "name", "router", "netns", made.lab.switch)
    _do(*switch, "link", "set", "router", "master", UPSTREAM.name, "up")
    for name in ("lo", "ups"):
        _do(*here, "link", "set", name, "up")
    _do(*here, "address", "add", f"{made.address}/24", "dev", "ups")
    _do(*here, "address", "add", f"{made.address6}/64", "dev", "ups", "nodad")
    _do(*here, "address", "add", f"{OUTSIDE}/32", "dev", "lo")
    _do(*here, "address", "add", f"{OUTSIDE6}/128", "dev", "lo")


def _start(made: Router) -> None:
    (made.root / "etc/frr/frr.conf").write_text(_configuration(made))
    (made.root / "run/frr").mkdir(parents=True, exist_ok=True)
    _do("chroot", str(made.root), "chown", "frr:frr", "/run/frr")
    for daemon in DAEMONS:
        made.run(
            "chroot", str(made.root), f"/usr/lib/frr/{daemon}", "-d", "-F", "datacenter", "-A", "127.0.0.1"
        )
    eventually(lambda: _configured(made), within=20.0)


def _configured(made: Router) -> bool:
    made.run("chroot", str(made.root), "vtysh", "-b", check=False)
    said = made.run("chroot", str(made.root), "vtysh", "-c", "show running-config", check=False)
    return f"router bgp {AS_NUMBER}" in said


def _configuration(made: Router) -> str:
    coordinators = made.lab.nodes[: made.lab.coordinators]
    fours = [made.lab.address(node, UPSTREAM) for node in coordinators]
    sixes = [made.node_address6(node.name) for node in coordinators]
    lines = [
        "frr defaults datacenter",
        f"router bgp {AS_NUMBER}",
        f" bgp router-id {made.address}",
        " no bgp default ipv4-unicast",
        " no bgp ebgp-requires-policy",
        *(f" neighbor {address} remote-as {NODES_AS_NUMBER}" for address in (*fours, *sixes)),
        *(f" neighbor {address} timers connect 1" for address in (*fours, *sixes)),
        *_family(4, fours),
        *_family(6, sixes),
        "exit",
    ]
    return "\n".join(lines) + "\n"


def _family(version: int, neighbours: Sequence[str]) -> Iterator[str]:
    yield f" address-family ipv{version} unicast"
    for address in neighbours:
        yield f"  neighbor {address} activate"
        yield f"  neighbor {address} default-originate"
    yield " exit-address-family"


def _end(made: Router) -> None:
    for daemon in DAEMONS:
        with suppress(OSError, ValueError):
            os.kill(int((made.root / f"run/frr/{daemon}.pid").read_text()), signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", made.namespace], capture_output=True, check=False)
    for mount in (made.root / "proc", made.root):
        subprocess.run(["umount", "-l", str(mount)], capture_output=True, check=False)
    shutil.rmtree(made.base, ignore_errors=True)


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
