"""PowerDNS: answers for the names of the cluster, from an SQLite file that is made from the zones."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from pvc.cluster.zones import Zone
from pvc.errors import PVCError
from pvc.node.drivers import DriverError
from pvc.node.drivers.networks import Answering
from pvc.node.drivers.zonedb import Damaged, ZoneDatabase
from pvc.proc import Run, run

DIRECTORY = "/run/pvc/dns"
UNIT = "pvc-dns.service"
PROCESS = "pdns_server"
GROUP = "pdns"
ONE_BY_ONE = 8
"""With more zones that changed, all are told: one process starts instead of many."""
ALL = "*"


def render(wanted: Answering) -> str:
    """pdns.conf."""
    return "".join(f"{line}\n" for line in _lines(wanted))


def _lines(wanted: Answering) -> Iterator[str]:
    yield from (
        "# Written by pvc, which overwrites every change.",
        "launch=gsqlite3",
        f"gsqlite3-database={DIRECTORY}/zones.sqlite3",
        "gsqlite3-pragma-synchronous=0",
        "gsqlite3-dnssec=no",
        f"socket-dir={DIRECTORY}",
        "write-pid=yes",
    )
    yield f"local-address={', '.join(wanted.addresses)}"
    # A floating address may come later than the server, and go without its knowing.
    yield "non-local-bind=yes"
    yield f"query-local-address={_source(wanted, 4)} {_source(wanted, 6)}"
    # Secondaries are those that the cluster is told, not what name server records say.
    yield from ("primary=yes", "only-notify=", f"also-notify={', '.join(map(_with_port, wanted.told))}")
    yield f"allow-axfr-ips={', '.join(wanted.copied_by)}"
    # What is in the file is what is answered: nothing is kept beside it.
    yield from ("cache-ttl=0", "query-cache-ttl=0", "negquery-cache-ttl=0", "zone-cache-refresh-interval=0")
    yield from ("security-poll-suffix=", "version-string=anonymous", "webserver=no", "api=no")


def _source(wanted: Answering, version: int) -> str:
    """Secondaries know the primary by the address at which they ask it."""
    own = (one for one in wanted.addresses if ip_address(one).version == version)
    return next(own, "0.0.0.0" if version == 4 else "::")


def _with_port(address: str) -> str:
    return f"[{address}]:53" if ":" in address else f"{address}:53"


def is_here(address: str) -> bool:
    """Whether this host has it now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


class PowerDNS:
    """A name server by PowerDNS as a service of systemd; `root`, `group` and `has` are for tests."""

    def __init__(
        self,
        root: str = "/",
        call: Run = run,
        group: str | int = GROUP,
        has: Callable[[str], bool] = is_here,
    ) -> None:
        self._directory = Path(root, DIRECTORY.lstrip("/"))
        self._file = self._directory / "pdns.conf"
        self._processes = Path(root, "proc")
        self._database = ZoneDatabase(self._directory / "zones.sqlite3", group)
        self._call = call
        self._group = group
        self._has = has
        self._zones: Mapping[str, Zone] = {}
        self._untold: set[str] = set()

    def publish(self, zones: Mapping[str, Zone]) -> tuple[str, ...]:
        self._prepare()
        if not self._database.is_there():
            self._end()
        try:
            changed = self._database.publish(zones)
        except Damaged:
            self._end()
            changed = self._database.publish(zones)
        self._zones = zones
        self._untold.update(changed)
        return changed

    def serve(self, wanted: Answering) -> bool:
        text = render(wanted)
        runs = self.life() and text == self._known()
        if not runs:
            self._write(text)
            self._start()
            self._untold = {ALL}
        self._tell(wanted)
        return not runs

    def stop(self) -> bool:
        """One that was configured may be about to start again: it is stopped whether it runs or not."""
        if not self._file.exists():
            return False
        self._end()
        self._file.unlink(missing_ok=True)
        self._zones, self._untold = {}, set()
        return True

    def life(self) -> int:
        try:
            pid = int((self._directory / "pdns.pid").read_text())
            # One that ended by a signal leaves its file behind.
            runs = (self._processes / str(pid) / "comm").read_text().strip() == PROCESS
        except (OSError, ValueError):
            return 0
        return pid if runs else 0

    def _end(self) -> None:
        """It keeps a file open that is removed, and would go on to answer from it."""
        self._systemctl("stop")
        self._database.remove()

    def _start(self) -> None:
        """One that cannot is tried again by whoever calls, and not by systemd several times a second."""
        self._systemctl("reset-failed")
        try:
            self._systemctl("restart")
        except DriverError:
            with suppress(DriverError):
                self._systemctl("stop")
            raise

    def _tell(self, wanted: Answering) -> None:
        """Only from the address by which secondaries know the primary."""
        untold = self._untold & {ALL, *self._zones}
        if not wanted.told or not untold:
            self._untold.clear()
            return
        versions = {ip_address(one).version for one in wanted.told}
        sources = {_source(wanted, version) for version in versions} - {"0.0.0.0", "::"}
        if not all(self._has(source) for source in sources):
            return
        names = [ALL] if ALL in untold or len(untold) > ONE_BY_ONE else sorted(untold)
        for name in names:
            self._guarded(["pdns_control", f"--config-dir={DIRECTORY}", "notify", name])
        self._untold.clear()

    def _prepare(self) -> None:
        """A directory in which the server can make files of its own, and change none of ours."""
        if self._directory.is_dir():
            return
        try:
            self._directory.mkdir(parents=True)
            shutil.chown(self._directory, group=self._group)
            self._directory.chmod(0o1770)
        except LookupError:
            self._forget_directory()
            raise DriverError(
                "PowerDNS is not here", hint="install pdns-server and pdns-backend-sqlite3"
            ) from None
        except OSError as error:
            self._forget_directory()
            raise DriverError(f"{self._directory} cannot be made: {error.strerror}", retryable=True) from None

    def _forget_directory(self) -> None:
        with suppress(OSError):
            self._directory.rmdir()

    def _known(self) -> str:
        try:
            return self._file.read_text()
        except OSError:
            return ""

    def _write(self, text: str) -> None:
        half = self._file.with_name("pdns.conf.half")
        try:
            half.unlink(missing_ok=True)
            with open(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w") as file:
                file.write(text)
            half.replace(self._file)
        except OSError as error:
            raise DriverError(f"{self._file} cannot be written: {error.strerror}", retryable=True) from None

    def _systemctl(self, verb: str) -> None:
        self._guarded(["systemctl", verb, UNIT], check=verb != "reset-failed")

    def _guarded(self, argv: list[str], *, check: bool = True) -> None:
        try:
            self._call(argv, check=check)
        except PVCError as error:
            raise DriverError(
                f"PowerDNS: {error.message}", hint=f"journalctl -u {UNIT}", retryable=True
            ) from None
