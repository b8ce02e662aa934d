"""One suite for every Hypervisor: the fake hosts and two real libvirts with QEMU keep the same promises."""

from __future__ import annotations

import base64
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import NoReturn, Protocol

import libvirt
import pytest

from pvc.cluster import domainxml
from pvc.cluster.domainxml import NewDisk, NewNic, Shape
from pvc.errors import NotFound, PVCError, TimedOut, Unavailable
from pvc.node.drivers import DriverError, NoAnswer
from pvc.node.drivers.hypervisor import (
    Cancelled,
    DomainEvent,
    DomainState,
    Emulation,
    Ended,
    EventKind,
    Hypervisor,
    MigrationResult,
    MigrationSettings,
    MigrationTarget,
    NoSuchDomain,
    Progress,
    Snapshotter,
)
from pvc.node.drivers.libvirt import ANSWER_WITHIN_S, CONNECT_WITHIN_S, LibvirtHypervisor
from pvc.proc import run
from tests.fakes.hypervisor import FakeWorld
from tests.libvirtd import Host, libvirt_hosts
from tests.support import eventually

WITHIN_S = 20.0
NOWHERE = "0a1b2c3d-0000-4000-8000-ffffffffffff"
SLOW = MigrationSettings(bandwidth_mib_s=1)
BIG_MIB = 2048  # takes 5 s at that bandwidth

_numbers = itertools.count(1)


class Guest(Enum):
    """A boot sector each: 16-bit code that ticks on the serial port, and what it does besides."""

    # mov dx, 0x602; mov ax, 0x100; out dx, ax: let the power button be seen
    OBEDIENT = bytes.fromhex("ba0206 b80001 ef")
    DEAF = b""
    # mov dx, 0x604; mov ax, 0x2000; out dx, ax: power off
    LEAVES = bytes.fromhex("ba0406 b80020 ef")
    # mov dx, 0x505; mov al, 1; out dx, al: panic
    PANICS = bytes.fromhex("ba0505 b001 ee")
    # sti; hlt; for each bus: select it (0xcd0), read what is to go (0xcc4), eject that (0xcc8); again
    YIELDS = bytes.fromhex(
        "fb f4 6631c9 bad00c 6689c8 66ef bac40c 66ed b2c8 66ef 41 80f920 72e9 ebe2".replace(" ", "")
    )

    def boot_sector(self) -> bytes:
        """Its own part, then: wait for the timer, print a dot, power off once the power button is pressed."""
        loop = bytes.fromhex("fb f4 baf803 b02e ee ba0006 ed f6c401 74ef") + bytes.fromhex(
            "ba0406 b80020 ef f4"
        )
        return (self.value + loop).ljust(510, b"\0") + b"\x55\xaa"


class Bench(Protocol):
    """Two hosts under test, and what can happen to them from outside."""

    @property
    def hosts(self) -> tuple[Snapshotter, Snapshotter]: ...
    def target(self, number: int) -> MigrationTarget: ...
    def image(self, uuid: str, guest: Guest) -> str: ...
    def disk_bytes(self, uuid: str, target: str, source: str) -> int: ...
    def disk(self, name: str) -> str:
        """An empty qcow2 file."""
        ...

    def snapshots(self, file: str) -> list[str]:
        """Of a disk that a domain has open."""
        ...

    def kill_emulator(self, number: int, uuid: str) -> None: ...
    def terminate_emulator(self, number: int, uuid: str) -> None: ...
    def restart_libvirt(self, number: int) -> None: ...
    def another(self, number: int) -> Hypervisor: ...
    def plug_in(self, number: int, uuid: str, device: str) -> None: ...
    def lose_metadata(self, number: int, uuid: str) -> None: ...
    def secret(self, number: int, uuid: str) -> bytes: ...
    def close(self) -> None: ...


class FakeBench:
    def __init__(self) -> None:
        self.world = FakeWorld()
        self.hosts = (self.world.add("n1"), self.world.add("n2"))

    def target(self, number: int) -> MigrationTarget:
        return self.world.target(f"n{number + 1}")

    def image(self, uuid: str, guest: Guest) -> str:
        ends = {Guest.LEAVES: Ended.SHUTDOWN, Guest.PANICS: Ended.CRASHED}
        self.world.guest(uuid).ignores_acpi = guest is Guest.DEAF
        self.world.guest(uuid).ends = ends.get(guest)
        self.world.guest(uuid).keeps_devices = guest is not Guest.YIELDS
        return f"/{uuid}"

    def disk_bytes(self, uuid: str, target: str, source: str) -> int:
        return self.hosts[0].sizes[(uuid, target)]

    def disk(self, name: str) -> str:
        return f"/{name}.qcow2"

    def snapshots(self, file: str) -> list[str]:
        return self.world.snapshots.get(file, [])

    def kill_emulator(self, number: int, uuid: str) -> None:
        self.hosts[number].kill(uuid)

    def terminate_emulator(self, number: int, uuid: str) -> None:
        self.hosts[number].terminate(uuid)

    def restart_libvirt(self, number: int) -> None:
        self.hosts[number].restart_libvirt()

    def another(self, number: int) -> Hypervisor:
        return self.hosts[number]

    def plug_in(self, number: int, uuid: str, device: str) -> None:
        self.hosts[number].plug_in(uuid, device)

    def lose_metadata(self, number: int, uuid: str) -> None:
        self.hosts[number].lose_metadata(uuid)

    def secret(self, number: int, uuid: str) -> bytes:
        return self.hosts[number].secrets[uuid][1]

    def close(self) -> None:
        return


class LibvirtBench:
    def __init__(self, machines: tuple[Host, Host], directory: Path) -> None:
        self.machines = machines
        self.directory = directory
        self.opened: list[LibvirtHypervisor] = []
        self.hosts = (self.another(0), self.another(1))

    def target(self, number: int) -> MigrationTarget:
        return self.machines[number].target

    def image(self, uuid: str, guest: Guest) -> str:
        file = self.directory / f"{uuid}.img"
        file.write_bytes(guest.boot_sector().ljust(1024 * 1024, b"\0"))
        return str(file)

    def disk_bytes(self, uuid: str, target: str, source: str) -> int:
        return Path(source).stat().st_size

    def disk(self, name: str) -> str:
        file = self.directory / f"{name}.qcow2"
        run(["qemu-img", "create", "-q", "-f", "qcow2", str(file), "16M"])
        return str(file)

    def snapshots(self, file: str) -> list[str]:
        told = json.loads(run(["qemu-img", "info", "-U", "--output", "json", file]).stdout)
        return [one["name"] for one in told.get("snapshots", [])]

    def _signal(self, number: int, uuid: str, signal: str) -> None:
        pid_files = f"/run/libvirt/qemu/{name_of(uuid)}.pid"
        self.machines[number].run("sh", "-c", f"kill -{signal} $(cat {pid_files})")

    def kill_emulator(self, number: int, uuid: str) -> None:
        self._signal(number, uuid, "KILL")

    def stop_emulator(self, number: int, uuid: str) -> None:
        self._signal(number, uuid, "STOP")

    def terminate_emulator(self, number: int, uuid: str) -> None:
        self._signal(number, uuid, "TERM")

    def restart_libvirt(self, number: int) -> None:
        self.machines[number].restart_libvirtd()

    def another(self, number: int) -> LibvirtHypervisor:
        hypervisor = LibvirtHypervisor(self.machines[number].uri, emulation=lambda: Emulation.QEMU)
        self.opened.append(hypervisor)
        return hypervisor

    def _virsh(self, number: int, *words: str) -> None:
        run(["virsh", "-c", self.machines[number].uri, *words])

    def plug_in(self, number: int, uuid: str, device: str) -> None:
        file = self.directory / "device.xml"
        file.write_text(device)
        self._virsh(number, "attach-device", uuid, str(file), "--live")

    def lose_metadata(self, number: int, uuid: str) -> None:
        self._virsh(number, "metadata", uuid, domainxml.NAMESPACE, "--remove", "--live")

    def edit_metadata(self, number: int, uuid: str, text: str) -> None:
        self._virsh(number, "metadata", uuid, domainxml.NAMESPACE, "--set", text, "--key", "pvc", "--live")

    def secret(self, number: int, uuid: str) -> bytes:
        """As libvirt keeps it over its end."""
        return base64.b64decode(self.machines[number].run("cat", f"/etc/libvirt/secrets/{uuid}.base64"))

    def close(self) -> None:
        for number in (0, 1):
            for uuid in self.hosts[number].domains():
                self.hosts[number].destroy(uuid)
        for hypervisor in self.opened:
            hypervisor.close()


@pytest.fixture(scope="module")
def libvirts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    with libvirt_hosts(tmp_path_factory.mktemp("libvirt")) as hosts:
        for host in hosts:
            host.run("ip", "link", "add", "br0", "up", "type", "bridge")
        yield hosts


@pytest.fixture(params=["fake", "libvirt"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    found: Bench
    if request.param == "fake":
        found = FakeBench()
    else:
        found = LibvirtBench(request.getfixturevalue("libvirts"), tmp_path)
    yield found
    found.close()


# The paths are the same in every test, hence the short names.


def name_of(uuid: str) -> str:
    return f"vm-{uuid[-4:]}"


def new_uuid() -> str:
    return f"0a1b2c3d-0000-4000-8000-{next(_numbers):012x}"


def definition(
    bench: Bench, uuid: str, guest: Guest, memory_mib: int = 32, nics: Sequence[NewNic] = ()
) -> str:
    disk = NewDisk(bench.image(uuid, guest), "raw")
    return domainxml.create(name_of(uuid), uuid, memory_mib=memory_mib, vcpus=2, disks=[disk], nics=nics)


def render(xml: str) -> str:
    return domainxml.render(
        xml,
        emulation="qemu",
        emulator="/usr/bin/qemu-system-x86_64",
        console_log=f"/var/log/console/{domainxml.parse(xml).uuid}.log",
    )


def started(bench: Bench, guest: Guest = Guest.DEAF, memory_mib: int = 32) -> str:
    uuid = new_uuid()
    bench.hosts[0].start(render(definition(bench, uuid, guest, memory_mib)))
    return uuid


def is_running(host: Hypervisor, uuid: str) -> bool:
    domain = host.domains().get(uuid)
    return domain is not None and domain.state is DomainState.RUNNING and not domain.migrating


@contextmanager
def events_of(host: Hypervisor) -> Iterator[list[DomainEvent]]:
    seen: list[DomainEvent] = []
    host.watch(seen.append)
    host.domains()  # connects
    yield seen


def endings(events: list[DomainEvent], uuid: str) -> list[Ended | None]:
    return [event.ended for event in events if event.kind is EventKind.ENDED and event.uuid == uuid]


def migrate(
    bench: Bench,
    uuid: str,
    settings: MigrationSettings = MigrationSettings(),  # noqa: B008  # frozen
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    target: MigrationTarget | None = None,
) -> MigrationResult:
    where = target or bench.target(1)
    return bench.hosts[0].migrate(uuid, where, settings, progress=progress, cancelled=cancelled)


def when_memory_flows(accident: Callable[[], None]) -> Callable[[Progress], None]:
    """A progress callback that does it once, in the middle of a migration."""
    flowing = itertools.count()

    def report(progress: Progress) -> None:
        if progress.total_mib and next(flowing) == 1:
            accident()

    return report


def test_a_host_says_what_it_is(bench: Bench) -> None:
    can, load = bench.hosts[0].capabilities(), bench.hosts[0].load()
    assert can.cpus >= 1
    assert can.memory_mib > 256
    assert can.emulation is Emulation.QEMU
    assert can.emulator.endswith("qemu-system-x86_64")
    assert can.qemu_version.count(".") == 2
    assert load.memory_free_mib > 0


def test_a_started_domain_is_listed_with_what_it_was_started_with(bench: Bench) -> None:
    uuid = new_uuid()
    xml = definition(bench, uuid, Guest.DEAF)
    with events_of(bench.hosts[0]) as events:
        bench.hosts[0].start(render(xml))
        domain = bench.hosts[0].domains()[uuid]
        assert (domain.uuid, domain.name, domain.state) == (uuid, name_of(uuid), DomainState.RUNNING)
        assert (domain.memory_mib, domain.vcpus, domain.migrating) == (32, 2, False)
        assert domain.digest == domainxml.digest(xml)
        eventually(lambda: DomainEvent(EventKind.STARTED, uuid) in events, within=WITHIN_S)
    assert uuid not in bench.hosts[1].domains()


def test_a_domain_cannot_be_started_twice(bench: Bench) -> None:
    uuid = new_uuid()
    xml = render(definition(bench, uuid, Guest.DEAF))
    bench.hosts[0].start(xml)
    with pytest.raises(DriverError, match="already"):
        bench.hosts[0].start(xml)
    assert is_running(bench.hosts[0], uuid)


def test_what_libvirt_refuses_leaves_nothing(bench: Bench) -> None:
    before = bench.hosts[0].domains().keys()
    with pytest.raises(DriverError):
        bench.hosts[0].start("<domain type='qemu'><name>x</name></domain>")
    assert bench.hosts[0].domains().keys() == before


def test_a_destroyed_domain_is_gone_when_the_call_returns(bench: Bench) -> None:
    uuid = started(bench)
    with events_of(bench.hosts[0]) as events:
        bench.hosts[0].destroy(uuid)
        assert uuid not in bench.hosts[0].domains()
        assert eventually(lambda: endings(events, uuid), within=WITHIN_S) == [Ended.DESTROYED]
    bench.hosts[0].destroy(uuid)


def test_a_domain_can_be_started_again_with_another_definition(bench: Bench) -> None:
    uuid = started(bench)
    before = bench.hosts[0].domains()[uuid]
    assert bench.another(0).domains()[uuid].run == before.run
    bench.hosts[0].destroy(uuid)
    xml = definition(bench, uuid, Guest.DEAF, memory_mib=48)
    bench.hosts[0].start(render(xml))
    domain = bench.hosts[0].domains()[uuid]
    assert (domain.memory_mib, domain.digest) == (48, domainxml.digest(xml))
    assert domain.run not in ("", before.run)


def test_a_guest_that_listens_powers_off(bench: Bench) -> None:
    uuid = started(bench, Guest.OBEDIENT)
    with events_of(bench.hosts[0]) as events:

        def asked() -> bool:
            with suppress(DriverError):
                bench.hosts[0].shutdown(uuid)  # until its loop has begun it does not listen
            return uuid not in bench.hosts[0].domains()

        eventually(asked, within=WITHIN_S)
        assert eventually(lambda: endings(events, uuid), within=WITHIN_S) == [Ended.SHUTDOWN]


def test_a_deaf_guest_ignores_the_request(bench: Bench) -> None:
    uuid = started(bench, Guest.DEAF)
    bench.hosts[0].shutdown(uuid)
    bench.hosts[0].shutdown(uuid)
    assert is_running(bench.hosts[0], uuid)


@pytest.mark.parametrize(
    ("guest", "ended"),
    [(Guest.LEAVES, Ended.SHUTDOWN), (Guest.PANICS, Ended.CRASHED)],
    ids=["leaves", "panics"],
)
def test_how_a_guest_ended_is_told(bench: Bench, guest: Guest, ended: Ended) -> None:
    with events_of(bench.hosts[0]) as events:
        uuid = started(bench, guest)
        assert eventually(lambda: endings(events, uuid), within=WITHIN_S) == [ended]
        assert uuid not in bench.hosts[0].domains()


def test_a_killed_emulator_is_a_failure_and_a_terminated_one_is_not_the_guests_wish(bench: Bench) -> None:
    killed, terminated = started(bench), started(bench)
    with events_of(bench.hosts[0]) as events:
        bench.kill_emulator(0, killed)
        bench.terminate_emulator(0, terminated)
        assert eventually(lambda: endings(events, killed), within=WITHIN_S) == [Ended.FAILED]
        assert eventually(lambda: endings(events, terminated), within=WITHIN_S) == [Ended.DESTROYED]


@pytest.mark.parametrize("call", ["shutdown", "resume"])
def test_no_such_domain(bench: Bench, call: str) -> None:
    with pytest.raises(NoSuchDomain):
        getattr(bench.hosts[0], call)(NOWHERE)
    with pytest.raises(NoSuchDomain):
        migrate(bench, NOWHERE)
    bench.hosts[0].destroy(NOWHERE)
    bench.hosts[0].abort_job(NOWHERE)


def test_a_migrated_domain_runs_there_and_is_gone_here(bench: Bench) -> None:
    uuid = started(bench, Guest.OBEDIENT)
    digest = bench.hosts[0].domains()[uuid].digest
    with events_of(bench.hosts[0]) as here, events_of(bench.hosts[1]) as there:
        result = migrate(bench, uuid)
        assert uuid not in bench.hosts[0].domains()
        assert is_running(bench.hosts[1], uuid)
        arrived = bench.hosts[1].domains()[uuid]
        assert (arrived.digest, arrived.memory_mib, arrived.vcpus) == (digest, 32, 2)
        assert result.elapsed_s > 0
        assert result.downtime_ms is not None
        assert eventually(lambda: endings(here, uuid), within=WITHIN_S) == [Ended.MIGRATED]
        eventually(lambda: DomainEvent(EventKind.STARTED, uuid) in there, within=WITHIN_S)


def with_disks(bench: Bench, boots: bytes = b"") -> tuple[str, str, str]:
    """A running domain, and two of its disks."""
    uuid = new_uuid()
    one, other = (bench.disk(f"{uuid}-{number}") for number in (1, 2))
    boot = bench.image(uuid, Guest.DEAF)
    if boots:
        Path(boot).write_bytes((boots.ljust(510, b"\0") + b"\x55\xaa").ljust(1024**2, b"\0"))
    disks = [NewDisk(boot, "raw"), NewDisk(one), NewDisk(other)]
    xml = domainxml.create(name_of(uuid), uuid, memory_mib=32, vcpus=1, disks=disks)
    bench.hosts[0].start(render(_known_to_firmware(xml)))
    return uuid, one, other


def _known_to_firmware(xml: str) -> str:
    """All disks, and not only the first: it leaves alone what it is not to boot from."""
    first, *others = re.sub(r"<boot [^>]*>", "", xml).split("</disk>")
    parts = [first, *(f'<boot order="{number}"/></disk>{part}' for number, part in enumerate(others, 1))]
    return "".join(parts)


def test_snapshots_of_disks_are_taken_at_one_moment_or_none_is(bench: Bench) -> None:
    uuid, one, other = with_disks(bench)
    host = bench.hosts[0]
    host.add_snapshots(uuid, {one: "@vm.a", other: "@vm.a"})
    host.add_snapshots(uuid, {other: "@vm.b"})
    assert (bench.snapshots(one), bench.snapshots(other)) == (["@vm.a"], ["@vm.a", "@vm.b"])
    with pytest.raises(DriverError, match="already exists"):
        host.add_snapshots(uuid, {one: "@vm.b", other: "@vm.b"})
    with pytest.raises(DriverError, match="does not have /nowhere open"):
        host.add_snapshots(uuid, {one: "@vm.c", "/nowhere": "@vm.c"})
    assert bench.snapshots(one) == ["@vm.a"]
    host.remove_snapshot(uuid, other, "@vm.a")
    assert bench.snapshots(other) == ["@vm.b"]
    with pytest.raises(NotFound, match=r"no snapshot @vm\.a"):
        host.remove_snapshot(uuid, other, "@vm.a")
    assert is_running(host, uuid)


COUNTER = bytes.fromhex(
    # all segments and the stack; then for ever: count in 0x7e00, and write that to the first sector of the
    # second disk (0x81), and then of the third
    "31c0 8ed8 8ec0 8ed0 bc007c 66ff06007e b281 e80700 b282 e80200 ebef"
    # int 13h, ah=3: one sector from 0x7e00
    "b80103 bb007e b90100 b600 cd13 c3"
)
"""A boot sector that tells the order of its writes: the second disk is never behind the third."""


def counted(file: str, snapshot: str) -> int:
    """The number that was on a disk then."""
    out = f"{file}.{snapshot}.raw"
    run(["qemu-img", "convert", "-f", "qcow2", "-l", f"snapshot.name={snapshot}", "-O", "raw", file, out])
    return int.from_bytes(Path(out).read_bytes()[:4], "little")


def test_snapshots_of_disks_fit_together_while_a_guest_writes(
    libvirts: tuple[Host, Host], tmp_path: Path
) -> None:
    """14.6.3: atomic across disks, also where nobody has the guest stand still."""
    bench = LibvirtBench(libvirts, tmp_path)
    try:
        uuid, one, other = with_disks(bench, COUNTER)
        host, names = bench.hosts[0], [f"@vm.{number}" for number in range(8)]
        empty = Path(bench.disk("empty")).stat().st_size
        eventually(lambda: Path(other).stat().st_size > empty, within=WITHIN_S)
        for name in names:
            host.add_snapshots(uuid, {one: name, other: name})
        assert is_running(host, uuid)
        host.destroy(uuid)
    finally:
        bench.close()
    pairs = [(counted(one, name), counted(other, name)) for name in names]
    assert all(first - second in (0, 1) for first, second in pairs), pairs
    assert pairs[0][1] < pairs[-1][0], "it wrote all the while"


def test_a_suspended_domain_goes_on_when_it_is_told_to_by_whatever_daemon(bench: Bench) -> None:
    uuid, one, _ = with_disks(bench)
    bench.hosts[0].suspend(uuid)
    assert bench.hosts[0].domains()[uuid].state is DomainState.PAUSED
    bench.hosts[0].add_snapshots(uuid, {one: "@vm.a"})
    another = bench.another(0)
    domain = another.domains()[uuid]
    assert (domain.state, domain.reason) == (DomainState.PAUSED, "user")
    another.resume(uuid)
    assert is_running(bench.hosts[0], uuid)


def test_a_guest_without_an_agent_is_not_frozen(bench: Bench) -> None:
    uuid = started(bench)
    assert not bench.hosts[0].can_freeze(uuid)
    for ask in (bench.hosts[0].freeze, bench.hosts[0].thaw):
        with pytest.raises(NoAnswer, match="agent"):
            ask(uuid)
    assert is_running(bench.hosts[0], uuid)
    with pytest.raises(NoSuchDomain):
        bench.hosts[0].add_snapshots(NOWHERE, {"/disk": "@vm.a"})


MACS = tuple(f"52:54:00:00:00:0{number}" for number in (1, 2, 3))


def with_nics(bench: Bench, guest: Guest, *macs: str) -> tuple[str, str]:
    """A running domain with these interfaces: its UUID and its definition."""
    uuid = new_uuid()
    xml = definition(bench, uuid, guest, nics=[NewNic("br0", mac=mac) for mac in macs])
    bench.hosts[0].start(render(xml))
    return uuid, xml


def macs_of(host: Hypervisor, uuid: str) -> list[str]:
    return [one.mac for one in host.domains()[uuid].interfaces]


def attach(host: Hypervisor, uuid: str, xml: str, mac: str) -> str:
    """As a node does it: noted first. Returns the definition that the domain has after that."""
    now = host.domains()[uuid]
    new = domainxml.add_nic(xml, NewNic("br0", mac=mac))
    host.mark(uuid, Shape(now.digest, now.rest, domainxml.shape(new).interfaces))
    host.attach(uuid, mac, domainxml.nic_device(new, mac))
    return new


def test_a_domain_says_which_interfaces_it_has(bench: Bench) -> None:
    uuid, xml = with_nics(bench, Guest.DEAF, *MACS)
    shape, domain = domainxml.shape(xml), bench.hosts[0].domains()[uuid]
    assert (domain.digest, domain.rest, domain.interfaces) == (shape.digest, shape.rest, shape.interfaces)
    assert [one.mac for one in domain.interfaces] == list(MACS)


def test_interfaces_come_while_it_runs_and_an_event_tells(bench: Bench) -> None:
    uuid, xml = with_nics(bench, Guest.DEAF, MACS[0])
    with events_of(bench.hosts[0]) as events:
        before = bench.hosts[0].domains()[uuid]
        for mac in MACS[1:]:
            xml = attach(bench.hosts[0], uuid, xml, mac)
        domain = bench.hosts[0].domains()[uuid]
        assert domain.interfaces == domainxml.shape(xml).interfaces, "known as the definition has them"
        assert (domain.digest, domain.rest) == (before.digest, domainxml.shape(xml).rest)
        eventually(lambda: DomainEvent(EventKind.CHANGED, uuid) in events, within=WITHIN_S)
    bench.hosts[0].mark(uuid, domainxml.shape(xml))
    assert bench.hosts[0].domains()[uuid].digest == domainxml.digest(xml)
    assert bench.another(0).domains()[uuid] == bench.hosts[0].domains()[uuid], "for another daemon too"


def test_an_interface_that_is_there_does_not_come_twice(bench: Bench) -> None:
    uuid, xml = with_nics(bench, Guest.DEAF, MACS[0])
    new = attach(bench.hosts[0], uuid, xml, MACS[1])
    bench.hosts[0].attach(uuid, MACS[1], domainxml.nic_device(new, MACS[1]))
    bench.hosts[0].attach(uuid, MACS[0], domainxml.nic_device(new, MACS[0]))
    assert macs_of(bench.another(0), uuid) == list(MACS[:2])


def test_exactly_the_interface_that_is_meant_goes(bench: Bench) -> None:
    """Client line 11: of three, the first."""
    uuid, xml = with_nics(bench, Guest.YIELDS, *MACS)
    host = bench.hosts[0]
    with events_of(host) as events:
        eventually(lambda: _asked(host, uuid, MACS[0]), within=WITHIN_S)
        assert host.domains()[uuid].interfaces == domainxml.shape(xml).interfaces[1:]
        eventually(lambda: DomainEvent(EventKind.CHANGED, uuid) in events, within=WITHIN_S)
    host.detach(uuid, MACS[0])
    assert macs_of(host, uuid) == list(MACS[1:])
    # What went may come again, and one that came may go.
    attach(host, uuid, domainxml.remove_nic(xml, MACS[0]), MACS[0])
    assert macs_of(host, uuid) == [*MACS[1:], MACS[0]]
    eventually(lambda: _asked(host, uuid, MACS[0]), within=WITHIN_S)
    assert macs_of(host, uuid) == list(MACS[1:])


def _asked(host: Hypervisor, uuid: str, mac: str) -> bool:
    host.detach(uuid, mac)
    return mac not in macs_of(host, uuid)


def test_a_guest_that_does_not_listen_keeps_its_interface(bench: Bench) -> None:
    uuid, _ = with_nics(bench, Guest.DEAF, *MACS[:2])
    bench.hosts[0].detach(uuid, MACS[0])
    bench.hosts[0].detach(uuid, MACS[0])
    assert macs_of(bench.hosts[0], uuid) == list(MACS[:2])
    assert is_running(bench.hosts[0], uuid)


def test_interfaces_that_came_and_went_migrate(bench: Bench) -> None:
    uuid, xml = with_nics(bench, Guest.YIELDS, *MACS[:2])
    new = domainxml.remove_nic(attach(bench.hosts[0], uuid, xml, MACS[2]), MACS[0])
    eventually(lambda: _asked(bench.hosts[0], uuid, MACS[0]), within=WITHIN_S)
    bench.hosts[0].mark(uuid, domainxml.shape(new))
    migrate(bench, uuid)
    arrived = bench.hosts[1].domains()[uuid]
    assert (arrived.interfaces, arrived.digest) == (
        domainxml.shape(new).interfaces,
        domainxml.digest(new),
    )
    eventually(lambda: _asked(bench.hosts[1], uuid, MACS[2]), within=WITHIN_S)
    assert macs_of(bench.hosts[1], uuid) == [MACS[1]]


# Disks that come and go, and grow


def disk_image(bench: Bench) -> str:
    return bench.image(new_uuid(), Guest.YIELDS)


def give(host: Hypervisor, uuid: str, xml: str, source: str, target: str) -> str:
    """As a node does it: noted first. Returns the definition that the domain has after that."""
    now = host.domains()[uuid]
    new = domainxml.add_disk(xml, NewDisk(source, "raw"), target)
    host.mark(uuid, Shape(now.digest, now.rest, now.interfaces, domainxml.shape(new).drives))
    host.attach(uuid, f"{target}={source}", domainxml.device(new, f"{target}={source}"))
    return new


def targets(host: Hypervisor, uuid: str) -> list[str]:
    return [one.target for one in host.domains()[uuid].drives]


def _gave_up(host: Hypervisor, uuid: str, device: str) -> bool:
    host.detach(uuid, device)
    return device not in {one.device for one in host.domains()[uuid].drives}


def test_exactly_the_disk_that_is_meant_comes_and_goes(bench: Bench) -> None:
    uuid, xml = with_nics(bench, Guest.YIELDS)
    host, (second, third) = bench.hosts[0], (disk_image(bench), disk_image(bench))
    new = give(host, uuid, xml, second, "vdb")
    with events_of(host) as events:
        new = give(host, uuid, new, third, "vdc")
        eventually(lambda: DomainEvent(EventKind.CHANGED, uuid) in events, within=WITHIN_S)
    assert host.domains()[uuid].drives == domainxml.shape(new).drives, "known as the definition has them"
    host.attach(uuid, f"vdb={second}", domainxml.device(new, f"vdb={second}"))
    assert targets(host, uuid) == ["vda", "vdb", "vdc"], "and nothing comes twice"
    host.mark(uuid, domainxml.shape(new))
    assert bench.another(0).domains()[uuid] == host.domains()[uuid]
    assert host.domains()[uuid].digest == domainxml.digest(new)
    host.detach(uuid, f"vdb={third}")
    assert targets(host, uuid) == ["vda", "vdb", "vdc"], "another content below that name is another disk"
    eventually(lambda: _gave_up(host, uuid, f"vdb={second}"), within=WITHIN_S)
    assert targets(host, uuid) == ["vda", "vdc"]
    assert host.domains()[uuid].rest == domainxml.shape(xml).rest


def test_a_guest_that_does_not_listen_keeps_its_disk(bench: Bench) -> None:
    uuid, xml = with_nics(bench, Guest.DEAF)
    source = bench.image(new_uuid(), Guest.DEAF)
    give(bench.hosts[0], uuid, xml, source, "vdb")
    bench.hosts[0].detach(uuid, f"vdb={source}")
    bench.hosts[0].detach(uuid, f"vdb={source}")
    assert targets(bench.hosts[0], uuid) == ["vda", "vdb"]


def test_a_disk_grows_to_the_very_byte_that_is_asked_for(bench: Bench) -> None:
    uuid, xml = with_nics(bench, Guest.DEAF)
    source = bench.image(new_uuid(), Guest.DEAF)
    give(bench.hosts[0], uuid, xml, source, "vdb")
    size = 3 * 1024**2 + 512
    for _ in range(2):
        bench.hosts[0].resize_disk(uuid, "vdb", size)
        assert bench.disk_bytes(uuid, "vdb", source) == size
    with pytest.raises(DriverError, match="vdq"):
        bench.hosts[0].resize_disk(uuid, "vdq", size)


TWICE = (
    f'<interface type="bridge"><mac address="{MACS[0]}"/><source bridge="br0"/>'
    '<model type="virtio"/></interface>'
)


def test_a_domain_that_we_would_not_start_any_more_stays_ours(bench: Bench) -> None:
    """Somebody gives it a MAC address twice: what is not ours outlives the lease, and would run twice."""
    uuid, _ = with_nics(bench, Guest.DEAF, MACS[0])
    host = bench.hosts[0]
    with events_of(host) as events:
        before = host.domains()[uuid]
        assert before.digest
        bench.plug_in(0, uuid, TWICE)
        eventually(lambda: DomainEvent(EventKind.CHANGED, uuid) in events, within=WITHIN_S)
    for daemon in (host, bench.another(0)):
        assert replace(daemon.domains()[uuid], vcpus=2) == before
    host.mark(uuid, Shape("new", before.rest, before.interfaces))
    assert host.domains()[uuid].digest == "new"


def test_a_domain_whose_metadata_somebody_removed_stays_ours_as_long_as_it_runs(bench: Bench) -> None:
    uuid, xml = with_nics(bench, Guest.DEAF, MACS[0])
    host = bench.hosts[0]
    with events_of(host) as events:
        before = host.domains()[uuid]
        bench.lose_metadata(0, uuid)
        eventually(lambda: DomainEvent(EventKind.CHANGED, uuid) in events, within=WITHIN_S)
        assert host.domains()[uuid] == before
        bench.restart_libvirt(0)
        eventually(lambda: DomainEvent(EventKind.DISCONNECTED) in events, within=WITHIN_S)

    def listed() -> bool:
        with suppress(DriverError):
            return host.domains()[uuid] == before
        return False

    eventually(listed, within=WITHIN_S)
    bench.plug_in(0, uuid, TWICE.replace(MACS[0], MACS[1]))
    eventually(lambda: macs_of(host, uuid) == list(MACS[:2]), within=WITHIN_S)
    assert host.domains()[uuid].digest == before.digest
    host.destroy(uuid)
    host.start(render(xml))
    again = host.domains()[uuid]
    assert (replace(again, run=before.run), again.run != before.run) == (before, True)


def test_what_libvirt_refuses_to_attach_leaves_nothing(bench: Bench) -> None:
    uuid, _ = with_nics(bench, Guest.DEAF, MACS[0])
    with pytest.raises(DriverError) as refused:
        bench.hosts[0].attach(
            uuid, MACS[1], f"<interface type='nonsense'><mac address='{MACS[1]}'/></interface>"
        )
    assert not refused.value.retryable
    assert macs_of(bench.hosts[0], uuid) == [MACS[0]]


@pytest.mark.parametrize("call", ["attach", "detach", "mark"])
def test_interfaces_of_no_such_domain(bench: Bench, call: str) -> None:
    arguments = {"attach": (MACS[0], "<interface/>"), "detach": (MACS[0],), "mark": (Shape("d"),)}
    with pytest.raises(NoSuchDomain):
        getattr(bench.hosts[0], call)(NOWHERE, *arguments[call])


def test_both_sides_show_a_migration_under_way(bench: Bench) -> None:
    uuid = started(bench, memory_mib=BIG_MIB)
    watcher = bench.another(0)
    seen: list[tuple[bool, bool, DomainState | None]] = []
    reports: list[Progress] = []

    def look(progress: Progress) -> None:
        reports.append(progress)
        there = bench.hosts[1].domains().get(uuid)
        here, also_here = (host.domains()[uuid].migrating for host in (bench.hosts[0], watcher))
        seen.append((here, also_here, there.state if there else None))

    with pytest.raises(Cancelled):
        migrate(
            bench,
            uuid,
            SLOW,
            progress=look,
            cancelled=lambda: sum(report.total_mib > 0 for report in reports) > 2,
        )
    assert (True, True, DomainState.INCOMING) in seen
    flowing = [report for report in reports if report.total_mib]  # before and after there is nothing to tell
    assert flowing[-1].total_mib >= BIG_MIB
    assert flowing[-1].remaining_mib < flowing[-1].total_mib
    assert 0 <= flowing[-1].percent < 100


def test_a_cancelled_migration_leaves_the_domain_where_it_was(bench: Bench) -> None:
    """14.2.2, 14.2.8: it can be moved again at once."""
    uuid = started(bench, memory_mib=BIG_MIB)
    with pytest.raises(Cancelled, match=name_of(uuid)):
        migrate(bench, uuid, SLOW, cancelled=lambda: True)
    assert is_running(bench.hosts[0], uuid)
    eventually(lambda: uuid not in bench.hosts[1].domains(), within=WITHIN_S)
    migrate(bench, uuid)
    assert is_running(bench.hosts[1], uuid)


def test_a_migration_that_takes_too_long_is_given_up(bench: Bench) -> None:
    """14.2.8"""
    uuid = started(bench, memory_mib=BIG_MIB)
    with pytest.raises(TimedOut, match="within 1 s"):
        migrate(bench, uuid, MigrationSettings(bandwidth_mib_s=1, timeout_s=1.0))
    assert is_running(bench.hosts[0], uuid)
    eventually(lambda: uuid not in bench.hosts[1].domains(), within=WITHIN_S)


def test_a_target_that_cannot_be_reached(bench: Bench) -> None:
    uuid = started(bench)
    nobody = MigrationTarget("qemu+tls://192.0.2.77/system", "tcp://192.0.2.77")
    with pytest.raises(DriverError) as refusal:
        migrate(bench, uuid, target=nobody)
    assert not isinstance(refusal.value, NoSuchDomain)
    assert is_running(bench.hosts[0], uuid)


def test_a_target_that_runs_it_already(bench: Bench) -> None:
    uuid = new_uuid()
    # Without a disk: QEMU would not open the same one twice.
    xml = render(domainxml.create(name_of(uuid), uuid, memory_mib=32, vcpus=1))
    for host in bench.hosts:
        host.start(xml)
    with pytest.raises(DriverError, match="already"):
        migrate(bench, uuid)
    assert is_running(bench.hosts[0], uuid)
    assert is_running(bench.hosts[1], uuid)


def test_one_migration_at_a_time(bench: Bench) -> None:
    uuid = started(bench, memory_mib=BIG_MIB)
    refused: list[PVCError] = []

    def again(_: Progress) -> None:
        try:
            migrate(bench, uuid)
        except DriverError as error:
            refused.append(error)

    with pytest.raises(Cancelled):
        migrate(bench, uuid, SLOW, progress=again, cancelled=lambda: bool(refused))
    assert "already" in refused[0].message
    assert is_running(bench.hosts[0], uuid)


def test_a_store_that_is_away_does_not_stop_a_migration(bench: Bench) -> None:
    uuid = started(bench)

    def away(*_: object) -> NoReturn:
        raise Unavailable("no quorum")

    migrate(bench, uuid, progress=away, cancelled=away)
    assert is_running(bench.hosts[1], uuid)


def test_a_domain_that_dies_while_it_migrates(bench: Bench) -> None:
    uuid = started(bench, memory_mib=BIG_MIB)
    accident = when_memory_flows(lambda: bench.kill_emulator(0, uuid))
    with pytest.raises(NoSuchDomain):
        migrate(bench, uuid, SLOW, progress=accident)
    assert uuid not in bench.hosts[0].domains()
    eventually(lambda: uuid not in bench.hosts[1].domains(), within=WITHIN_S)


def test_a_receiver_that_dies_leaves_the_domain_where_it_was(bench: Bench) -> None:
    uuid = started(bench, memory_mib=BIG_MIB)
    accident = when_memory_flows(lambda: bench.kill_emulator(1, uuid))
    with pytest.raises(DriverError) as failure:
        migrate(bench, uuid, SLOW, progress=accident)
    assert not isinstance(failure.value, NoSuchDomain)
    assert is_running(bench.hosts[0], uuid)


def test_a_job_can_be_aborted_by_another_daemon(bench: Bench) -> None:
    uuid = started(bench, memory_mib=BIG_MIB)
    other = bench.another(0)
    accident = when_memory_flows(lambda: other.abort_job(uuid))
    with pytest.raises(DriverError) as failure:
        migrate(bench, uuid, SLOW, progress=accident)
    assert not isinstance(failure.value, NoSuchDomain)
    assert is_running(bench.hosts[0], uuid)
    other.abort_job(uuid)


def test_domains_outlive_libvirt(bench: Bench) -> None:
    uuid = started(bench)
    before = bench.hosts[0].domains()[uuid]
    with events_of(bench.hosts[0]) as events:
        bench.restart_libvirt(0)
        eventually(lambda: DomainEvent(EventKind.DISCONNECTED) in events, within=WITHIN_S)

        def listed() -> bool:
            try:
                return uuid in bench.hosts[0].domains()
            except DriverError as error:
                assert error.retryable  # noqa: PT017
                return False

        eventually(listed, within=WITHIN_S)
        assert bench.hosts[0].domains()[uuid] == before
        eventually(lambda: DomainEvent(EventKind.CONNECTED) in events, within=WITHIN_S)
        bench.hosts[0].destroy(uuid)
        assert eventually(lambda: endings(events, uuid), within=WITHIN_S) == [Ended.DESTROYED]


@pytest.fixture
def real(libvirts: tuple[Host, Host], tmp_path: Path) -> Iterator[LibvirtBench]:
    bench = LibvirtBench(libvirts, tmp_path)
    yield bench
    bench.close()


def test_a_qemu_that_hangs_holds_up_nobody_and_can_be_ended(real: LibvirtBench) -> None:
    hangs, works = started(real), started(real)
    host = real.hosts[0]
    assert not host.domains()[hangs].silent
    real.stop_emulator(0, hangs)
    begin = time.monotonic()
    for _ in range(2):
        with pytest.raises(NoAnswer):
            host.shutdown(hangs)
    with pytest.raises(NoAnswer):
        migrate(real, hangs)
    host.shutdown(works)
    after_a_restart = real.another(0).domains()
    assert after_a_restart[hangs].silent
    assert not after_a_restart[works].silent
    assert time.monotonic() - begin < 3 * ANSWER_WITHIN_S
    host.destroy(hangs)
    assert set(host.domains()) == {works}


def test_whoever_carries_our_metadata_is_ours(real: LibvirtBench) -> None:
    uuid, _ = with_nics(real, Guest.DEAF, MACS[0])
    known = real.hosts[0].domains()[uuid]
    real.edit_metadata(0, uuid, "<vm/>")
    eventually(lambda: real.another(0).domains()[uuid].digest == domainxml.UNREADABLE, within=WITHIN_S)
    real.plug_in(0, uuid, TWICE)
    assert real.another(0).domains()[uuid].digest == domainxml.UNREADABLE, "also of a life that begins now"
    assert real.hosts[0].domains()[uuid] == known


def test_a_domain_that_cannot_be_read_again_is_what_it_was(
    real: LibvirtBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid, xml = with_nics(real, Guest.DEAF, MACS[0])
    host = real.hosts[0]
    before = host.domains()[uuid]
    new = attach(host, uuid, xml, MACS[1])

    def fails(*_: object) -> NoReturn:
        raise libvirt.libvirtError("it cannot be read")

    with monkeypatch.context() as now:
        now.setattr(libvirt.virDomain, "XMLDesc", fails)
        assert host.domains()[uuid] == before
        with pytest.raises(DriverError):
            real.another(0).domains()  # what nobody can know is not said
    assert host.domains()[uuid].interfaces == domainxml.shape(new).interfaces


def test_a_libvirt_that_hangs_is_not_waited_for(real: LibvirtBench) -> None:
    real.machines[0].signal_libvirtd("STOP")
    try:
        begin = time.monotonic()
        for _ in range(2):
            with pytest.raises(NoAnswer) as failure:
                real.hosts[0].domains()
            assert failure.value.retryable
        assert time.monotonic() - begin < 2 * CONNECT_WITHIN_S
    finally:
        real.machines[0].signal_libvirtd("CONT")

    def answers() -> bool:
        with suppress(NoAnswer):
            return real.hosts[0].domains() == {}
        return False

    eventually(answers, within=WITHIN_S)


def test_a_secret_is_kept_and_has_its_newest_value(bench: Bench) -> None:
    uuid, other, host = new_uuid(), new_uuid(), bench.hosts[0]
    host.keep_secret(uuid, "client.pvc-vm <&>", b"\x00one")
    host.keep_secret(uuid, "client.pvc-vm <&>", b"\x00one")
    assert bench.secret(0, uuid) == b"\x00one"
    host.keep_secret(uuid, "client.pvc-vm <&>", b"two")
    assert bench.secret(0, uuid) == b"two"
    with pytest.raises(DriverError):
        host.keep_secret(other, "client.pvc-vm <&>", b"three")


def test_a_secret_that_somebody_removed_is_given_again(libvirts: tuple[Host, Host], tmp_path: Path) -> None:
    bench, uuid = LibvirtBench(libvirts, tmp_path), new_uuid()
    try:
        bench.hosts[0].keep_secret(uuid, "lost", b"one")
        bench._virsh(0, "secret-undefine", uuid)
        bench.hosts[0].keep_secret(uuid, "lost", b"one")
        assert bench.secret(0, uuid) == b"one"
    finally:
        bench.close()


def test_a_closed_driver_says_so(libvirts: tuple[Host, Host]) -> None:
    closed = LibvirtHypervisor(libvirts[0].uri, emulation=lambda: Emulation.QEMU)
    closed.domains()
    closed.close()
    with pytest.raises(DriverError, match="closed"):
        closed.domains()


def test_the_console_goes_on_where_the_domain_goes(libvirts: tuple[Host, Host], tmp_path: Path) -> None:
    """The ticks of a real guest are in the log of each host it ran on."""
    bench = LibvirtBench(libvirts, tmp_path)
    try:
        uuid = started(bench)
        log = f"/var/log/console/{uuid}.log"

        def ticks(host: Host) -> int:
            return host.run("sh", "-c", f"cat {log} 2> /dev/null || true").count(".")

        eventually(lambda: ticks(libvirts[0]) > 3, within=WITHIN_S)
        migrate(bench, uuid)
        at_the_end = ticks(libvirts[0])
        eventually(lambda: ticks(libvirts[1]) > 3, within=WITHIN_S)
        assert ticks(libvirts[0]) == at_the_end
    finally:
        bench.close()
