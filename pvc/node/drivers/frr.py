"""FRRouting: BGP EVPN between the nodes, which tells each where the others' guests are."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from pvc.errors import PVCError
from pvc.node.drivers import DriverError
from pvc.node.drivers.networks import Speaker, Upstream
from pvc.proc import Completed, Run, run

GREATEST_VNI = 2**24
LAST = 2**32 - 1
"""Of the numbers that the entries of a prefix list have."""
OURS = "! Written by pvc, which overwrites every change."
UNIT = "frr.service"
DAEMONS = ("watchfrr", "zebra", "bgpd")
RELOAD = "/usr/lib/frr/frr-reload.py"
RELOAD_S = 300.0
"""With a thousand networks more at once it takes minutes; with one more, a second."""


def router_id(address: str) -> str:
    """Of four bytes even where the address has more."""
    value = ip_address(address)
    if isinstance(value, IPv4Address):
        return str(value)
    return str(IPv4Address(int.from_bytes(hashlib.sha256(value.packed).digest()[:4]) | 1))


def render(speaker: Speaker) -> str:
    """frr.conf. Nothing is redistributed.

    The nodes tell each other of their VXLANs and who is behind them, and routers of networks behind gateways.
    """
    return "".join(f"{line}\n" for line in _lines(speaker))


def _lines(speaker: Speaker) -> Iterator[str]:
    groups = {"reflectors": speaker.reflectors, "clients": speaker.clients}
    upstream = speaker.upstream
    yield from (
        OURS,
        "frr defaults datacenter",
        "log syslog warnings",
        "service integrated-vtysh-config",
        "!",
    )
    if upstream is not None:
        yield from _prefix_lists(upstream)
    yield f"router bgp {speaker.as_number}"
    yield f" bgp router-id {router_id(speaker.address)}"
    yield " no bgp default ipv4-unicast"
    for name, members in groups.items():
        if members:
            yield from _group(name, speaker)
    for name, members in groups.items():
        yield from (f" neighbor {member} peer-group {name}" for member in sorted(members, key=ip_address))
    if upstream is not None:
        yield from _routers(upstream)
        yield from _families(upstream)
    yield " !"
    yield " address-family l2vpn evpn"
    for name, members in groups.items():
        if members:
            yield f"  neighbor {name} activate"
    if speaker.clients:
        yield "  neighbor clients route-reflector-client"
    yield from ("  advertise-all-vni", " exit-address-family", "exit", "!")


def _group(name: str, speaker: Speaker) -> Iterator[str]:
    yield f" neighbor {name} peer-group"
    yield f" neighbor {name} remote-as {speaker.as_number}"
    # A node may have floating addresses on the same device: others know it by this one.
    yield f" neighbor {name} update-source {speaker.address}"
    yield f" neighbor {name} timers 1 3"
    yield f" neighbor {name} timers connect 1"


def _routers(upstream: Upstream) -> Iterator[str]:
    for router in upstream.routers:
        yield f" neighbor {router.address} remote-as {router.as_number}"
        yield f" neighbor {router.address} timers 3 9"
        yield f" neighbor {router.address} timers connect 3"


def _families(upstream: Upstream) -> Iterator[str]:
    """A router is told of the networks of its address's family.

    A network is told of only while this node has a route to exactly it, as it has while it has its gateway.
    Whoever takes that over tells of it at once, with no change of this file.
    """
    for version in (4, 6):
        routers = [one.address for one in upstream.routers if _version(one.address) == version]
        if not routers:
            continue
        yield " !"
        yield f" address-family ipv{version} unicast"
        yield from (f"  network {prefix}" for _, prefix in _announced(upstream, version))
        for address in routers:
            yield f"  neighbor {address} activate"
            yield f"  neighbor {address} prefix-list pvc-told-{version} in"
            yield f"  neighbor {address} prefix-list pvc-tells-{version} out"
        yield " exit-address-family"


def _prefix_lists(upstream: Upstream) -> Iterator[str]:
    """Numbered by network, so that one more or less changes one line of each list.

    Of a default route and of all that is elsewhere a router is believed. What the node has otherwise, its
    own default route among them, come before what routers say.
    """
    for version, command, longest in ((4, "ip", 32), (6, "ipv6", 128)):
        if not any(_version(one.address) == version for one in upstream.routers):
            continue
        tells, told = (
            f"{command} prefix-list pvc-tells-{version}",
            f"{command} prefix-list pvc-told-{version}",
        )
        announced = list(_announced(upstream, version))
        yield from (f"{tells} seq {vni} permit {prefix}" for vni, prefix in announced)
        yield f"{tells} seq {LAST} deny any"
        own = [one for one in upstream.own if _version(one) == version]
        denied = [*announced, *enumerate(own, GREATEST_VNI)]
        yield from (f"{told} seq {number} deny {prefix} le {longest}" for number, prefix in denied)
        yield f"{told} seq {LAST} permit any"
        yield "!"


def _announced(upstream: Upstream, version: int) -> Iterator[tuple[int, str]]:
    for vni, prefixes in sorted(upstream.announced.items()):
        yield from ((vni, prefix) for prefix in prefixes if _version(prefix) == version)


def _version(text: str) -> int:
    return 6 if ":" in text else 4


class FRR:
    """Routing by FRR as a service of systemd; `root` is for tests."""

    def __init__(self, root: str = "/", call: Run = run) -> None:
        self._file = Path(root, "etc/frr/frr.conf")
        self._pids = Path(root, "run/frr")
        self._processes = Path(root, "proc")
        self._call = call

    def serve(self, speaker: Speaker) -> bool:
        text = render(speaker)
        known = self._known()
        if self._is_active():
            if text == known:
                return False
            self._reload(text)
            return True
        if text != known:
            self._write(self._file, text)
        self._command("reset-failed")
        self._command("start")
        return True

    def stop(self) -> bool:
        try:
            is_ours = OURS in self._file.read_text()
        except OSError:
            return False
        if not is_ours or not self._is_active():
            return False
        self._command("stop")
        return True

    def lives(self) -> Mapping[str, int]:
        return {name: self._life(name) for name in DAEMONS}

    def _life(self, name: str) -> int:
        try:
            pid = int((self._pids / f"{name}.pid").read_text())
            # One that ended by a signal leaves its file behind.
            runs = (self._processes / str(pid) / "comm").read_text().strip() == name
        except (OSError, ValueError):
            return 0
        return pid if runs else 0

    def _known(self) -> str:
        """What is there. Raises DriverError where somebody else configured routing here."""
        try:
            text = self._file.read_text()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise DriverError(f"{self._file} is not readable: {error.strerror}") from None
        if OURS not in text and any(line.startswith("router ") for line in text.splitlines()):
            raise DriverError(f"{self._file} is not from pvc and has routers: move it away")
        return text

    def _is_active(self) -> bool:
        return (
            self._guarded(lambda: self._call(["systemctl", "is-active", "--quiet", UNIT], check=False)).code
            == 0
        )

    def _reload(self, text: str) -> None:
        """Only what differs: sessions of neighbours that stay go on. The file is replaced when it is so."""
        new = self._file.with_name("pvc.conf.new")
        self._write(new, text)
        self._guarded(lambda: self._call([RELOAD, "--reload", str(new)], timeout_s=RELOAD_S))
        new.replace(self._file)

    def _write(self, file: Path, text: str) -> None:
        try:
            half = file.with_name(f"{file.name}.half")
            half.write_text(text)
            half.chmod(0o640)
            if self._file.exists():
                about = self._file.stat()
                shutil.chown(half, about.st_uid, about.st_gid)
            half.replace(file)
        except OSError as error:
            raise DriverError(f"{file} cannot be written: {error.strerror}", retryable=True) from None

    def _command(self, verb: str) -> None:
        self._guarded(lambda: self._call(["systemctl", verb, UNIT], check=verb != "reset-failed"))

    def _guarded(self, act: Callable[[], Completed]) -> Completed:
        try:
            return act()
        except PVCError as error:
            raise DriverError(f"FRR: {error.message}", retryable=True) from None
