"""One suite for every NameServers: the fake, and dnsmasq as its unit starts it, in a network namespace.

systemd is played by the test. The clients are busybox's, and the kernel's for IPv6.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from pvc.cluster.clients import Clients, Lease, Member, Reservation
from pvc.cluster.network import DHCPRange, IPv4, IPv6, Kind, NetworkSpec
from pvc.node.drivers import DriverError
from pvc.node.drivers.dnsmasq import Dnsmasq
from pvc.node.drivers.networks import GatewayDevice, Settings
from pvc.node.plan_dhcp import SERVER_DUID, in_place, lease_file, parse, promised, settings
from pvc.proc import Completed
from tests.contract.test_addresses import enter, ip
from tests.fakes.names import FakeNameServers
from tests.support import eventually

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "packaging/systemd/pvc-dnsmasq@.service"
SCRIPT = ROOT / "packaging/lib/dhcp-changed"
HERE, THERE = f"pvc-{os.getpid()}-gw", f"pvc-{os.getpid()}-guest"
WEB, DB = "52:54:00:00:00:01", "52:54:00:00:00:02"
SPEC = NetworkSpec(
    101,
    "shop",
    Kind.MANAGED,
    mtu=1400,
    domain="shop.example",
    dns_servers=("192.0.2.53",),
    ntp_servers=("192.0.2.123",),
    ipv4=IPv4("10.101.0.0/24", "10.101.0.1", DHCPRange("10.101.0.100", "10.101.0.199")),
    ipv6=IPv6("fd00:101::/64", "fd00:101::1"),
)
CLIENT = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev eth0
echo "bound $ip/$mask router=$router dns=$dns search=$search mtu=$mtu ntp=$ntpsrv"
kill "$PPID"
"""


class Systemd:
    """Starts, stops and starts again as the unit says, in the namespace; writes down what it was told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.calls: list[str] = []
        self.log = root / "dnsmasq.log"

    def __call__(self, argv: list[str], /, *, check: bool = True, timeout_s: float = 0) -> Completed:
        verb, *words = [word for word in argv[1:] if not word.startswith("--")]
        if verb != "show":
            self.calls.append(" ".join([verb, *words]))
        match verb:
            case "show":
                return Completed(0, "\n".join(map(self._shown, self.running)), "")
            case "start":
                for unit in words:
                    self.running.setdefault(unit, self._begin(unit))
            case "stop":
                for unit in words:
                    end(self.running.pop(unit, None))
            case "kill":
                self.running[words[0]].send_signal(signal.SIGHUP)
        return Completed(0, "", "")

    def _shown(self, unit: str) -> str:
        if self.running[unit].poll() is not None:
            self.running[unit] = self._begin(unit)
        return f"Id={unit}\nMainPID={self.running[unit].pid}\nActiveState=active\n"

    def _begin(self, unit: str) -> subprocess.Popen[bytes]:
        vni = unit.removeprefix("pvc-dnsmasq@").removesuffix(".service")
        text = (
            UNIT.read_text()
            .replace("\\\n", "")
            .replace("%i", vni)
            .replace("/run/pvc/dnsmasq", str(self.root))
        )
        said = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        caps = ",".join(
            f"+{name.lower().removeprefix('cap_')}" for name in said["AmbientCapabilities"].split()
        )
        as_unit = ["setpriv", f"--reuid={said['User']}", "--regid=nogroup", "--clear-groups"]
        as_unit += [f"--inh-caps=-all,{caps}", f"--ambient-caps=-all,{caps}", f"--bounding-set=-all,{caps}"]
        as_unit += ["--no-new-privs", "env", *said["Environment"].split()]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", HERE, *as_unit, *shlex.split(said["ExecStart"])],
                stderr=log,
                stdout=log,
            )

    def close(self) -> None:
        for one in self.running.values():
            end(one)


def end(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        process.terminate()
        process.wait(10)


class Real(Dnsmasq):
    """Devices are those of the namespace."""

    def __init__(self, root: Path, systemd: Systemd) -> None:
        self.woken = threading.Event()
        super().__init__(self.woken.set, str(root), systemd, script=str(SCRIPT))
        self.inside = ThreadPoolExecutor(1, initializer=enter, initargs=(HERE,))

    def devices(self, names: Sequence[str]) -> Mapping[str, GatewayDevice]:
        return self.inside.submit(super().devices, names).result(timeout=30)


class Bench:
    """A gateway with its server, and a guest on a wire."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.systemd = Systemd(root)
        self.servers = Real(root, self.systemd)
        self.hook = root / "client"
        self.hook.write_text(CLIENT)
        self.hook.chmod(0o755)

    def ask(self, mac: str, *options: str) -> str:
        """What busybox's client says of its lease; empty: it got none."""
        ip("-n", THERE, "link", "set", "eth0", "down")
        ip("-n", THERE, "link", "set", "eth0", "address", mac, "up")
        ip("-n", THERE, "-4", "address", "flush", "dev", "eth0")
        ip("-n", THERE, "address", "add", "10.101.0.250/24", "dev", "eth0")
        words = ["udhcpc", "-i", "eth0", "-f", "-n", "-t", "8", "-T", "1", "-s", str(self.hook)]
        wanted = ["-O", "mtu", "-O", "ntpsrv", "-O", "search"]
        return self.run("busybox", *words, *wanted, *options).strip()

    def run(self, *words: str) -> str:
        argv = ["ip", "netns", "exec", THERE, *words]
        return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60).stdout

    def resolve(self, name: str) -> set[str]:
        """Its addresses."""
        answer = self.asked(name).splitlines()[2:]  # after those of the server
        return {line.partition(": ")[2].strip() for line in answer if line.startswith("Address")}

    def asked(self, name: str) -> str:
        return self.run("busybox", "nslookup", name, "10.101.0.1")

    def serve(self, clients: Clients, memory: str = "") -> None:
        made = self.made(clients)
        self.servers.write(101, made, None)
        self.servers.remember(101, memory)
        self.servers.start([101])

    def made(self, clients: Clients) -> Settings:
        device = self.servers.devices(["gw101"])["gw101"]
        return settings(clients, device, self.servers.place(101))

    def leases(self) -> dict[str, str]:
        found = parse(self.servers.leases(101) or "", {})
        return {one.mac: one.address for one in found.values()}


@contextmanager
def wire() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="pvc-dnsmasq-"))
    root.chmod(0o755)  # dnsmasq is somebody else
    try:
        for name in (HERE, THERE):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", HERE, "link", "add", "gw101", "type", "veth", "peer", "name", "eth0", "netns", THERE)
        for word in ("10.101.0.1/24", "fd00:101::1/64", "fe80::1/64"):
            ip("-n", HERE, "address", "add", word, "dev", "gw101", *(["nodad"] if ":" in word else []))
        ip("-n", HERE, "link", "set", "gw101", "address", "02:00:5e:00:01:01", "up")
        ip("-n", THERE, "link", "set", "eth0", "up")
        ip("-n", THERE, "address", "add", "10.101.0.250/24", "dev", "eth0")
        yield root
    finally:
        for name in (HERE, THERE):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        shutil.rmtree(root)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with wire() as root:
        made = Bench(root)
        try:
            yield made
        finally:
            made.systemd.close()


# What every driver keeps


@contextmanager
def fake() -> Iterator[FakeNameServers]:
    yield FakeNameServers({"gw101": GatewayDevice("gw101", 7, 1500)})


@contextmanager
def real() -> Iterator[Dnsmasq]:
    with wire() as root:
        made = Bench(root)
        try:
            yield made.servers
        finally:
            made.systemd.close()


@pytest.fixture(params=[fake, real], ids=lambda made: made.__name__)
def servers(request: pytest.FixtureRequest) -> Iterator[FakeNameServers | Dnsmasq]:
    with request.param() as made:
        yield made


def test_what_there_is_of_devices(servers: FakeNameServers | Dnsmasq) -> None:
    found = servers.devices(["gw101", "gw102"])
    assert found.keys() == {"gw101"}
    assert (found["gw101"].mtu, found["gw101"].index > 0) == (1500, True)


def test_a_server_lives_from_start_to_stop(servers: FakeNameServers | Dnsmasq) -> None:
    assert servers.known(101) is None
    assert servers.leases(101) is None
    made = settings(Clients(SPEC), servers.devices(["gw101"])["gw101"], servers.place(101))
    servers.write(101, made, None)
    servers.remember(101, "")
    assert servers.known(101) == made
    assert not servers.lives()
    servers.start([101])
    life = servers.lives()[101]
    assert life
    servers.start([101])
    assert servers.lives() == {101: life}
    servers.stop([101])
    servers.stop([101])
    assert not servers.lives()
    servers.start([101])
    assert servers.lives()[101] != life
    servers.stop([101])
    servers.forget()
    assert servers.known(101) is None


# What dnsmasq does with it


def test_a_guest_gets_an_address_and_all_that_the_network_has(bench: Bench) -> None:
    bench.serve(Clients(SPEC, {"u1": Member("web1", (WEB,))}))
    said = bench.ask(WEB, "-x", "hostname:gateway").split()
    assert said[0] == "bound"
    assert said[2:] == [
        *("router=10.101.0.1", "dns=10.101.0.1", "search=shop.example", "mtu=1400", "ntp=192.0.2.123")
    ]
    address = said[1].removesuffix("/24")
    assert bench.leases() == {WEB: address}
    for name in ("web1.shop.example", "web1"):
        assert bench.resolve(name) == {address}
    assert bench.resolve("gateway.shop.example") == {*SPEC.gateways}, "a guest took this name"
    assert "name = web1.shop.example" in bench.asked(address)


def test_copies_of_one_image_with_one_client_identifier_are_two_guests(bench: Bench) -> None:
    bench.serve(Clients(SPEC, {"u1": Member("web1", (WEB,)), "u2": Member("web2", (DB,))}))
    given = {mac: bench.ask(mac, "-x", "0x3d:ff00000001deadbeef").split()[1] for mac in (WEB, DB)}
    assert given[WEB] != given[DB]
    assert {mac: f"{address}/24" for mac, address in bench.leases().items()} == given
    assert bench.ask(WEB, "-x", "0x3d:ff00000001deadbeef").split()[1] == given[WEB]
    assert bench.resolve("web1.shop.example") == {given[WEB].removesuffix("/24")}


def test_a_lease_says_so_at_once_and_whoever_does_not_listen_keeps_nobody_waiting(bench: Bench) -> None:
    bench.serve(Clients(SPEC))
    assert bench.ask(WEB)
    bench.servers.listen()
    assert bench.ask(DB)
    assert bench.servers.woken.wait(20)
    eventually(lambda: bench.servers.changed() == {101} or None, within=10)
    bench.servers.woken.clear()
    assert bench.ask(DB)
    assert bench.servers.woken.wait(20), "a renewal"
    bench.servers.woken.clear()
    bench.ask(DB, "-R")
    assert bench.servers.woken.wait(20), "a release"
    eventually(lambda: DB not in bench.leases(), within=10)


def test_who_comes_while_it_runs_is_known_without_a_word(bench: Bench) -> None:
    bench.serve(Clients(SPEC))
    life, calls = bench.servers.lives(), [*bench.systemd.calls]
    before = bench.made(Clients(SPEC))
    members = {"u1": Member("web1", (WEB,))}
    reserved = {DB: Reservation(DB, "10.101.0.9", "db")}
    have, must_look = in_place(before, bench.made(Clients(SPEC, members, reserved)))
    assert not must_look
    bench.servers.write(101, have, before)
    eventually(lambda: bench.resolve("db.shop.example") == {"10.101.0.9"}, within=10)
    assert bench.ask(DB).split()[1] == "10.101.0.9/24"
    assert bench.ask(WEB)
    assert bench.leases()[WEB] in bench.resolve("web1.shop.example")
    assert (bench.servers.lives(), bench.systemd.calls) == (life, calls)


def test_who_is_called_otherwise_or_goes_is_known_after_a_look(bench: Bench) -> None:
    reserved = Clients(SPEC, {"u1": Member("web1", (WEB,))}, {DB: Reservation(DB, "10.101.0.9", "db")})
    bench.serve(reserved)
    life, before = bench.servers.lives(), bench.made(reserved)
    assert bench.ask(WEB)
    address = bench.leases()[WEB]
    have, must_look = in_place(before, bench.made(Clients(SPEC, {"u1": Member("shop", (WEB,))})))
    assert must_look
    bench.servers.write(101, have, before)
    bench.servers.look(101)
    eventually(lambda: address in bench.resolve("shop.shop.example"), within=10)
    assert not bench.resolve("web1.shop.example")
    assert not bench.resolve("db.shop.example")
    assert bench.ask(DB).split()[1] != "10.101.0.9/24"
    assert bench.servers.lives() == life


def test_another_server_goes_on_with_what_was_remembered(bench: Bench) -> None:
    bench.serve(Clients(SPEC))
    assert bench.ask(WEB)
    assert bench.ask(DB)
    known = bench.leases()
    memory = parse(bench.servers.leases(101) or "", {})
    bench.servers.stop([101])
    bench.servers.forget()
    bench.serve(Clients(SPEC), lease_file(promised(memory)))
    assert bench.ask(DB, "-r", known[DB]).split()[1] == f"{known[DB]}/24"
    assert bench.ask(WEB).split()[1] == f"{known[WEB]}/24"
    # A stranger that wants an address of somebody else does not get it.
    stranger = bench.ask("52:54:00:00:00:03", "-r", known[WEB]).split()[1]
    assert stranger not in {f"{address}/24" for address in known.values()}
    assert bench.leases().items() >= known.items()


def test_one_that_was_killed_remembers(bench: Bench) -> None:
    bench.serve(Clients(SPEC))
    assert bench.ask(WEB)
    known, life = bench.leases(), bench.servers.lives()[101]
    os.kill(life, signal.SIGKILL)
    bench.systemd.running["pvc-dnsmasq@101.service"].wait(10)
    assert bench.servers.lives()[101] != life
    assert bench.ask(WEB).split()[1] == f"{known[WEB]}/24"
    assert bench.leases() == known


def test_a_guest_gives_itself_an_address_by_what_is_announced(bench: Bench) -> None:
    bench.serve(Clients(SPEC))
    ip("-n", THERE, "link", "set", "eth0", "down")
    ip("-n", THERE, "link", "set", "eth0", "up")
    eventually(lambda: "fd00:101::" in ip("-n", THERE, "-6", "address", "show", "dev", "eth0"), within=30)
    assert "default via fe80::1" in ip("-n", THERE, "-6", "route")
    assert bench.run("cat", "/proc/sys/net/ipv6/conf/eth0/mtu").strip() == "1400"


def option(code: int, data: bytes) -> bytes:
    return struct.pack("!HH", code, len(data)) + data


def options(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        code, length = struct.unpack("!HH", data[:4])
        found[code], data = data[4 : 4 + length], data[4 + length :]
    return found


def ask6(mac: str, server: bytes = b"", address: str = "") -> dict[int, bytes]:
    """One round of DHCPv6: soliciting, or asking that server for that address; what was answered."""
    duid = b"\0\3\0\1" + bytes.fromhex(mac.replace(":", ""))
    association = struct.pack("!III", 7, 0, 0)
    if address:
        association += option(5, IPv6Address(address).packed + struct.pack("!II", 0, 0))
    message = bytes([3 if server else 1, 1, 2, 3]) + option(1, duid) + option(3, association)
    message += option(8, b"\0\0") + (option(2, server) if server else b"")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        index = socket.if_nametoindex("eth0")
        sock.bind(("::", 546))
        sock.settimeout(2)
        for _ in range(10):
            with suppress(TimeoutError):
                sock.sendto(message, ("ff02::1:2", 547, 0, index))
                return options(sock.recv(2000)[4:])
    raise AssertionError("no answer to DHCPv6")


def given6(answer: dict[int, bytes]) -> str:
    return str(IPv6Address(options(answer[3][12:])[5][:16]))


def has_own_address() -> bool:
    """And knows that nobody else has it."""
    said = ip("-n", THERE, "-6", "address", "show", "dev", "eth0", "scope", "link")
    return "fe80" in said and "tentative" not in said


def test_it_is_the_same_server_of_dhcpv6_on_every_node(bench: Bench) -> None:
    spec = replace(SPEC, ipv6=replace(SPEC.ipv6, dhcp=True))
    reserved = {DB: Reservation(DB, "fd00:101::9", "db")}
    clients = Clients(spec, {"u1": Member("web1", (WEB,))}, reserved)
    bench.serve(clients, lease_file({}))
    guest = ThreadPoolExecutor(1, initializer=enter, initargs=(THERE,))
    found = {}
    for mac in (WEB, DB):
        ip("-n", THERE, "link", "set", "eth0", "down")
        ip("-n", THERE, "link", "set", "eth0", "address", mac, "up")
        eventually(has_own_address, within=30)
        offered = guest.submit(ask6, mac).result(60)
        assert offered[2].hex(":") == SERVER_DUID
        found[mac] = given6(guest.submit(ask6, mac, offered[2], given6(offered)).result(60))
    assert found[DB] == "fd00:101::9"
    names = {"web1": WEB, "db": DB}

    def remembered() -> dict[str, Lease]:
        """Is written a moment after it was said."""
        known = parse(bench.servers.leases(101) or "", names)
        return known if len(known) == len(found) else {}

    known = eventually(remembered, within=10)
    assert {(one.mac, one.address, one.hostname) for one in known.values()} == {
        (WEB, found[WEB], "web1"),
        (DB, found[DB], "db"),
    }
    bench.servers.stop([101])
    bench.serve(clients, lease_file(promised(known)))
    again = guest.submit(ask6, DB, bytes.fromhex(SERVER_DUID.replace(":", "")), found[DB]).result(60)
    assert given6(again) == found[DB], "as the same server"
    assert eventually(remembered, within=10).keys() == known.keys()
    assert bench.resolve("web1.shop.example") == {found[WEB]}


def test_it_can_make_no_files_and_is_told_of_by_root_only(bench: Bench) -> None:
    bench.serve(Clients(SPEC))
    assert bench.ask(WEB)
    owners = {path.name: path.stat().st_uid for path in bench.root.rglob("*") if path.name != "dnsmasq.log"}
    assert {name for name, owner in owners.items() if owner} == {"leases"}


def test_a_machine_without_dnsmasq_says_what_to_install(tmp_path: Path) -> None:
    made = Dnsmasq(lambda: None, str(tmp_path), user="nobody-of-this-name")
    with pytest.raises(DriverError, match="no user nobody-of-this-name"):
        made.listen()
