"""The real PowerDNS of the node image: in a namespace of its own, asked with dig. Needs no lab that runs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from installer.image import image_path
from pvc.node.drivers.networks import Answering
from pvc.node.drivers.powerdns import PowerDNS
from pvc.proc import Completed, run
from tests.nameservers import BOTH, CHANGED, WEB, Suite
from tests.support import eventually

GOLDEN = Path(__file__).parents[1] / "unit/node/golden"
NAMESPACE = f"dns-test-{os.getpid()}"
FLOATING, OWN, ASKER = "10.9.0.250", "10.9.0.1", "10.9.0.7"
WANTED = Answering((FLOATING,), (f"{OWN}/32",), (ASKER,))
OTHERS = Answering((OWN,))
SERVER = "pdns_server"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The node image, writable, and a namespace with three addresses."""
    image = image_path()
    assert image.exists(), "the node image is missing: ./build.py image"
    base = tmp_path_factory.mktemp("image")
    below, above, work, root = (base / name for name in ("below", "above", "work", "root"))
    for path in (below, above, work, root):
        path.mkdir()
    with ExitStack() as stack:

        def mounted(*words: str) -> None:
            run(["mount", *words])
            stack.callback(run, ["umount", "-l", words[-1]])

        mounted("-o", "loop,ro", str(image), str(below))
        layers = f"lowerdir={below},upperdir={above},workdir={work}"
        mounted("-t", "overlay", "overlay", "-o", layers, str(root))
        mounted("-t", "proc", "proc", str(root / "proc"))
        mounted("--bind", "/dev", str(root / "dev"))
        run(["ip", "netns", "add", NAMESPACE])
        stack.callback(run, ["ip", "netns", "del", NAMESPACE])
        ip = ["ip", "-n", NAMESPACE]
        run([*ip, "link", "set", "lo", "up"])
        for address in (FLOATING, OWN, ASKER):
            run([*ip, "address", "add", f"{address}/24", "dev", "lo"])
        yield root


@dataclass
class Real:
    """A machine whose systemd only starts and stops the one unit, as its file says."""

    tree: Path
    wanted: Answering = WANTED
    others: Answering = OTHERS
    process: subprocess.Popen[bytes] | None = None
    stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        groups = dict(line.split(":")[0:3:2] for line in (self.tree / "etc/group").read_text().splitlines())
        self.server = PowerDNS(str(self.tree), self, int(groups["pdns"]), lambda address: True)

    def inside(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", NAMESPACE, "chroot", str(self.tree), *words]

    def __call__(self, argv: list[str], /, *, check: bool = True, timeout_s: float = 60.0) -> Completed:
        if argv[0] == "pdns_control":
            return run(self.inside(*argv), check=check)
        if argv[1] in ("restart", "stop"):
            self.end(signal.SIGTERM)
        if argv[1] == "restart":
            self.start()
        return Completed(0, "", "")

    def start(self) -> None:
        unit = Path("packaging/systemd/pvc-dns.service").read_text()
        (command,) = [line.removeprefix("ExecStart=") for line in unit.splitlines() if "ExecStart=" in line]
        capability = "net_bind_service"
        drop = ("--reuid=pdns", "--regid=pdns", "--init-groups", f"--inh-caps=+{capability}")
        argv = self.inside("setpriv", *drop, f"--ambient-caps=+{capability}", *command.split())
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(lambda: self.dig("version.bind", "TXT", "CH", at=None), within=20.0)

    def end(self, how: signal.Signals) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.send_signal(how)
            self.process.wait(20.0)
            self.process = None

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    def dig(self, *words: str, at: str | None = FLOATING, by: str = OWN) -> str:
        servers = [at] if at else [FLOATING, OWN]
        options = ("+time=1", "+tries=1", "-b", by, *words)
        return "".join(
            run(self.inside("dig", f"@{server}", *options), check=False).stdout
            for server in servers
            if self.is_answered(server)
        )

    def is_answered(self, server: str) -> bool:
        """dig waits a second for one that is not there."""
        listening = run(["ip", "netns", "exec", NAMESPACE, "ss", "-Hltn", f"src {server}:53"]).stdout
        return bool(listening.strip())

    def ask(self, name: str, kind: str) -> set[str]:
        found = self.dig("+short", name, kind).splitlines()
        return {" ".join(word.rstrip(".") for word in line.split()) for line in found}

    def status(self, name: str, kind: str) -> str:
        return self.dig(name, kind).partition("status: ")[2].partition(",")[0]


@pytest.fixture
def machine(tree: Path) -> Iterator[Real]:
    made = Real(tree)
    try:
        yield made
    finally:
        made.server.stop()


class TestNameServer(Suite):
    pass


@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("pdns-*.conf")), ids=lambda path: path.stem)
def test_powerdns_takes_what_pvc_writes(tree: Path, golden: Path) -> None:
    place = tree / "tmp" / golden.stem
    place.mkdir()
    (place / "pdns.conf").write_text(golden.read_text())
    command = ["chroot", str(tree), "pdns_server", f"--config-dir=/tmp/{golden.stem}", "--config=check"]
    assert run(command).code == 0
    (place / "pdns.conf").write_text(f"{golden.read_text()}no-such-setting=1\n")
    assert run(command, check=False).code != 0, "it would not have said"


def test_zones_are_copied_by_those_who_may(machine: Real) -> None:
    machine.server.publish(BOTH)
    machine.server.serve(machine.wanted)
    copied = machine.dig("+short", "shop.example", "AXFR").splitlines()
    assert "10.1.0.9" in copied
    refused = machine.dig("shop.example", "AXFR", by=ASKER)
    assert "Transfer failed" in refused
    assert "10.1.0.9" not in refused


def test_names_in_between_are_empty_and_others_do_not_exist(machine: Real) -> None:
    machine.server.publish(BOTH)
    machine.server.serve(machine.wanted)
    assert machine.status("0.1.10.in-addr.arpa", "PTR") == "NOERROR"
    assert machine.status("8.1.10.in-addr.arpa", "PTR") == "NXDOMAIN"
    assert machine.status("elsewhere.example", "A") == "REFUSED"


LISTEN = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind((sys.argv[1], 53))
    while True:
        said, who = server.recvfrom(4096)
        labels, at = [], 12
        while said[at]:
            labels.append(said[at + 1 : at + 1 + said[at]].decode())
            at += 1 + said[at]
        if said[2] >> 3 & 15 == 4:
            print("NOTIFY", ".".join(labels), "from", who[0], flush=True)
        server.sendto(said[:2] + bytes([said[2] | 0x84, 0]) + said[4:], who)
"""
"""A secondary that only listens."""


def test_a_secondary_is_told_of_a_change_from_the_address_it_knows(machine: Real, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    listening = ["ip", "netns", "exec", NAMESPACE, "python3", "-c", LISTEN, ASKER]
    with heard.open("wb") as out:
        listener = subprocess.Popen(listening, stdout=out)
    try:
        bound = ["ip", "netns", "exec", NAMESPACE, "ss", "-Hlun", f"src {ASKER}:53"]
        eventually(lambda: run(bound).stdout.strip(), within=20.0)
        machine.server.publish(BOTH)
        machine.server.serve(machine.wanted)
        eventually(lambda: f"NOTIFY 1.10.in-addr.arpa from {FLOATING}" in heard.read_text(), within=20.0)
        before = len(heard.read_text())
        machine.server.publish({**BOTH, CHANGED.name: CHANGED})
        machine.server.serve(machine.wanted)
        eventually(lambda: f"NOTIFY shop.example from {FLOATING}" in heard.read_text()[before:], within=20.0)
    finally:
        listener.kill()
        listener.wait()


def test_the_server_can_change_none_of_our_files(machine: Real) -> None:
    machine.server.publish(BOTH)
    machine.server.serve(machine.wanted)
    as_server = machine.inside("setpriv", "--reuid=pdns", "--regid=pdns", "--init-groups", "--inh-caps=-all")
    for words in ("rm -f pdns.conf", "mv zones.sqlite3 x", "echo >pdns.conf"):
        done = run([*as_server, "sh", "-c", f"cd /run/pvc/dns && {words}"], check=False)
        assert done.code != 0, words
    assert machine.ask(WEB.name, "A") == {"10.1.0.9"}
