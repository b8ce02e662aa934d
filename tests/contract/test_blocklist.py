"""One suite for Ceph's block list, real and fake: whom it lists writes nothing, also who slept meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

import pytest

from pvc.node.drivers import DriverError
from pvc.node.drivers.blocklist import Blocklist
from pvc.node.drivers.ceph import Ceph as Client
from pvc.node.drivers.ceph import CephBlocklist
from tests.ceph import Ceph, ceph
from tests.fakes.blocklist import FakeBlocklist, FakeCeph
from tests.support import eventually

ADDRESS = "127.0.0.5"
WRITER = Path(__file__).with_name("ceph_writer.py")
SHIM = Path(__file__).with_name("from_address.c")


class Writer(Protocol):
    def freeze(self) -> None: ...

    def is_refused(self) -> bool:
        """It goes on: to write, or to be told that it must not."""
        ...


@dataclass
class Bench:
    blocklist: Blocklist
    writer: Callable[[], Writer]
    """At ADDRESS; returns when it has written."""
    write: Callable[[bytes], None]
    """From another address."""
    read: Callable[[], bytes]
    silence: Callable[[bool], None]
    """The one OSD."""
    unreachable: Callable[[], Blocklist]


@dataclass
class FakeWriter:
    ceph: FakeCeph
    disk: list[bytes]

    def __post_init__(self) -> None:
        assert not self.is_refused()

    def freeze(self) -> None:
        pass

    def is_refused(self) -> bool:
        if not self.ceph.takes_writes(ADDRESS):
            return True
        self.disk.append(b"old")
        return False


def _fake() -> Bench:
    made, disk = FakeCeph(), [b""]

    def silence(on: bool) -> None:
        made.osds[0].is_silent = on
        if not on:
            made.down.discard(0)
        made.tell(made.osds[0])

    def unreachable() -> Blocklist:
        made.is_reachable = False
        return FakeBlocklist(made)

    return Bench(
        FakeBlocklist(made, "127.0.0.1"),
        lambda: FakeWriter(made, disk),
        disk.append,
        lambda: disk[-1],
        silence,
        unreachable,
    )


@dataclass
class RealWriter:
    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            self.command, env={**os.environ, **self.environment}, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        told = self.process.stdout.readline()
        if not told.startswith("refused"):
            assert told.startswith(f"{ADDRESS}:"), told
            return
        self.process.wait()
        raise AssertionError(told)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def is_refused(self) -> bool:
        assert self.process.stdout
        self.process.send_signal(signal.SIGCONT)
        try:
            out, _ = self.process.communicate(timeout=2.0)
        except subprocess.TimeoutExpired:
            return False
        finally:
            self.process.kill()
        return out.startswith("refused: 108")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    with ceph(tmp_path_factory.mktemp("ceph")) as made:
        made.add_pool("vms")
        yield made


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "from_address.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, SHIM], check=True)
    return library


def _real(cluster: Ceph, shim: Path, tmp_path: Path) -> Bench:
    environment = {"LD_PRELOAD": str(shim), "FROM_ADDRESS": ADDRESS}
    command = [sys.executable, str(WRITER), cluster.conf]

    def write(content: bytes) -> None:
        with Client(cluster.conf, "admin").opened("vms") as io:
            io.write_full("disk", content)

    def read() -> bytes:
        with Client(cluster.conf, "admin").opened("vms") as io:
            return bytes(io.read("disk"))

    def silence(on: bool) -> None:
        cluster.processes[-1].send_signal(signal.SIGSTOP if on else signal.SIGCONT)

    def unreachable() -> Blocklist:
        conf = tmp_path / "ceph.conf"
        conf.write_text(
            f"[global]\nmon host = [v2:127.0.0.1:1]\nkeyring = {cluster.where}/client.admin.keyring\n"
        )
        return CephBlocklist(Client(str(conf), "admin"))

    return Bench(
        CephBlocklist(Client(cluster.conf, "admin")),
        lambda: RealWriter(command, environment),
        write,
        read,
        silence,
        unreachable,
    )


@pytest.fixture(params=["fake", "ceph"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    if request.param == "fake":
        return _fake()
    return _real(request.getfixturevalue("cluster"), request.getfixturevalue("shim"), tmp_path)


def list_everywhere(blocklist: Blocklist, address: str = ADDRESS) -> None:
    blocklist.add(address)
    found = blocklist.map()
    assert address in found.listed
    assert found.up
    eventually(lambda: all(blocklist.epoch_of(osd) >= found.epoch for osd in found.up), within=10)


def test_who_slept_while_it_was_listed_writes_not_one_byte(bench: Bench) -> None:
    writer = bench.writer()
    writer.freeze()
    list_everywhere(bench.blocklist)
    bench.write(b"new")
    assert writer.is_refused()
    assert bench.read() == b"new"
    bench.blocklist.remove(ADDRESS)


def test_a_new_client_of_that_address_writes_nothing_until_it_is_off_the_list(bench: Bench) -> None:
    list_everywhere(bench.blocklist)
    bench.write(b"new")
    with pytest.raises(AssertionError):
        bench.writer()
    assert bench.read() == b"new"
    bench.blocklist.remove(ADDRESS)
    assert ADDRESS not in bench.blocklist.map().listed
    assert not bench.writer().is_refused()


def test_it_may_be_said_more_than_once(bench: Bench) -> None:
    before = bench.blocklist.map()
    for address in ("fd00::7", "FD00::0007"):
        bench.blocklist.add(address)
        bench.blocklist.add("10.0.0.7")
    after = bench.blocklist.map()
    assert after.listed == before.listed | {"fd00::7", "10.0.0.7"}
    assert after.epoch > before.epoch
    for _ in range(2):
        bench.blocklist.remove("fd00::7")
        bench.blocklist.remove("10.0.0.7")
    assert bench.blocklist.map().listed == before.listed


def test_it_knows_its_own_addresses(bench: Bench) -> None:
    assert bench.blocklist.addresses() == {"127.0.0.1"}


def test_an_osd_that_is_silent_knows_nothing(bench: Bench) -> None:
    bench.silence(True)
    try:
        assert 0 in bench.blocklist.map().up
        with pytest.raises(DriverError):
            bench.blocklist.epoch_of(0)
    finally:
        bench.silence(False)


def test_an_osd_that_is_marked_down_comes_up_again_when_it_lives(bench: Bench) -> None:
    eventually(lambda: bench.blocklist.map().at(["127.0.0.1"]) == {0}, within=60)  # again, after other tests
    before = bench.blocklist.map()
    bench.silence(True)
    try:
        for _ in range(2):
            bench.blocklist.mark_down([0])
            assert not bench.blocklist.map().up
            assert not bench.blocklist.map().at(["127.0.0.1"])
    finally:
        bench.silence(False)
    eventually(lambda: bool(bench.blocklist.map().up), within=60)
    assert bench.blocklist.map().epoch > before.epoch


def test_monitors_that_are_away_are_an_error_of_the_driver(bench: Bench) -> None:
    away = bench.unreachable()
    for asked in (away.map, lambda: away.add(ADDRESS)):
        with pytest.raises(DriverError):
            asked()


def test_an_entry_lasts_for_years(cluster: Ceph) -> None:
    """Not for Ceph's hour: see docs/high-availability.md."""
    blocklist = CephBlocklist(Client(cluster.conf, "admin"))
    blocklist.add("10.0.0.8")
    entries = cluster.command("osd dump")["blocklist"]
    until = datetime.fromisoformat(entries["10.0.0.8:0/0"].replace("+0000", "+00:00"))
    assert until.timestamp() > time.time() + 9 * 365 * 86400
    blocklist.remove("10.0.0.8")


def test_entries_of_single_clients_are_not_of_nodes(cluster: Ceph) -> None:
    """librbd makes such when it breaks a lock."""
    cluster.command("osd blocklist", blocklistop="add", addr="10.0.0.9:0/1234")
    assert "10.0.0.9" not in CephBlocklist(Client(cluster.conf, "admin")).map().listed
    assert "10.0.0.9:0/1234" in json.dumps(cluster.command("osd dump")["blocklist"])
