"""One suite for every Power: the fake, ipmitool against ipmi_sim, and Redfish against a real HTTPS server."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pvc.cluster.node import BMC, BMCDriver
from pvc.errors import Invalid
from pvc.node.drivers import DriverError
from pvc.node.drivers.ipmi import Ipmi
from pvc.node.drivers.power import (
    ANY_CERTIFICATE,
    AnyPower,
    BMCAccess,
    BMCNonsense,
    BMCRefused,
    BMCUnreachable,
    Power,
    PowerState,
    host_and_port,
    open_bmc,
)
from pvc.secretbox import encrypt
from tests.bmcs import LOOKER, PASSWORD, USER, chassis, free_port, ipmi_sim, redfish_bmc
from tests.fakes.power import FakePower, Fault, Machine
from tests.support import eventually

AT_MOST_S = 8.0
"""What a call may take, whatever the BMC does."""
KEY = "5c" * 32


@dataclass(frozen=True, slots=True)
class Bench:
    """A driver, how to reach a machine with it, and what the machine really does."""

    power: Power
    bmc: BMCAccess
    nobody: str
    """An address where no BMC is."""
    is_on: Callable[[], bool]
    fault: Callable[[str], None]
    has_looker: bool = True
    """There is a user that may only read."""


@contextlib.contextmanager
def fake(_directory: Path) -> Iterator[Bench]:
    machine = Machine(PASSWORD, USER)

    def fault(name: str) -> None:
        machine.fault = Fault(name)

    bmc = BMCAccess(BMCDriver.IPMI, "bmc1", USER, PASSWORD)
    yield Bench(FakePower({"bmc1": machine}), bmc, "bmc2", lambda: machine.is_on, fault)


@contextlib.contextmanager
def ipmi(directory: Path) -> Iterator[Bench]:
    machine = chassis(directory)
    with ipmi_sim(machine) as address:
        bmc = BMCAccess(BMCDriver.IPMI, address, USER, PASSWORD)
        nobody = f"127.0.0.1:{free_port(socket.SOCK_DGRAM)}"

        def fault(name: str) -> None:
            machine.fault = name

        eventually(lambda: answers(bmc), within=20)
        yield Bench(AnyPower(), bmc, nobody, lambda: machine.power == "1", fault, has_looker=False)


@contextlib.contextmanager
def redfish(directory: Path) -> Iterator[Bench]:
    machine = chassis(directory)
    with redfish_bmc(machine) as (address, pem):
        bmc = BMCAccess(BMCDriver.REDFISH, address, USER, PASSWORD, fingerprint(pem))
        nobody = f"127.0.0.1:{free_port(socket.SOCK_STREAM)}"

        def fault(name: str) -> None:
            machine.fault = name

        yield Bench(AnyPower(), bmc, nobody, lambda: machine.power == "1", fault)


def answers(bmc: BMCAccess) -> bool:
    try:
        return AnyPower().state(bmc) is PowerState.ON
    except DriverError:
        return False


def fingerprint(pem: str) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


@pytest.fixture(params=[fake, ipmi, redfish], ids=lambda made: made.__name__)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with request.param(tmp_path / "bmc") as made:
        yield made


# What every driver keeps


def test_off_is_off_and_is_read_back(bench: Bench) -> None:
    """14.1.15: by whichever method."""
    assert bench.power.state(bench.bmc) is PowerState.ON
    bench.power.off(bench.bmc)
    assert not bench.is_on()
    assert bench.power.state(bench.bmc) is PowerState.OFF
    bench.power.on(bench.bmc)
    assert bench.is_on()
    assert bench.power.state(bench.bmc) is PowerState.ON


def test_twice_is_as_good_as_once(bench: Bench) -> None:
    bench.power.on(bench.bmc)
    for _ in range(2):
        bench.power.off(bench.bmc)
    assert not bench.is_on()


@pytest.mark.parametrize("wrong", [{"password": "wrong"}, {"user": "nobody"}], ids=["password", "user"])
def test_a_wrong_login_is_said_and_switches_nothing(bench: Bench, wrong: dict[str, str]) -> None:
    bmc = BMCAccess(
        bench.bmc.driver,
        bench.bmc.address,
        wrong.get("user", USER),
        wrong.get("password", PASSWORD),
        bench.bmc.certificate,
    )
    for order in (bench.power.state, bench.power.off):
        with pytest.raises(BMCRefused, match="refuses user") as caught:
            order(bmc)
        assert not caught.value.retryable
        assert PASSWORD not in str(caught.value)
    assert bench.is_on()


def test_nobody_there_is_said_soon(bench: Bench) -> None:
    began = time.monotonic()
    with pytest.raises(BMCUnreachable, match="does not answer") as caught:
        bench.power.state(replace(bench.bmc, address=bench.nobody))
    assert caught.value.retryable
    assert time.monotonic() - began < AT_MOST_S


def test_rubbish_is_never_taken_for_off(bench: Bench) -> None:
    bench.fault("rubbish")
    with pytest.raises(BMCNonsense):
        bench.power.state(bench.bmc)


def test_a_bmc_that_only_says_yes_reads_back_as_on(bench: Bench) -> None:
    bench.fault("deaf")
    bench.power.off(bench.bmc)
    assert bench.power.state(bench.bmc) is PowerState.ON


def test_check_says_who_may_not_switch_and_switches_nothing(bench: Bench) -> None:
    assert bench.power.check(bench.bmc) is PowerState.ON
    assert bench.is_on()
    looker = replace(bench.bmc, user=LOOKER)
    if bench.has_looker:
        assert bench.power.state(looker) is PowerState.ON
    with pytest.raises(BMCRefused, match="refuses user"):
        bench.power.check(looker)
    bench.power.off(bench.bmc)
    assert bench.power.check(bench.bmc) is PowerState.OFF
    assert not bench.is_on()


# Passwords and addresses


def test_the_password_is_in_no_text_of_it(bench: Bench) -> None:
    assert PASSWORD not in repr(bench.bmc)


def test_no_process_has_the_password_in_its_arguments(tmp_path: Path) -> None:
    """While ipmitool waits for a silent address, everybody on this machine may read its command line."""
    with ipmi(tmp_path / "bmc") as bench:
        silent = replace(bench.bmc, address=bench.nobody)
        asking = threading.Thread(target=lambda: answers(silent))
        asking.start()
        argv = eventually(lambda: [line for line in command_lines() if "ipmitool" in line[:9]], within=5)
        asking.join()
    assert bench.nobody.rpartition(":")[2] in argv[0]
    assert PASSWORD not in argv[0]


def command_lines() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


def test_a_stored_bmc_opens_with_the_key_and_for_its_address_only() -> None:
    plain = BMC(BMCDriver.IPMI, "10.0.0.1", USER, "")
    stored = replace(plain, password=encrypt(PASSWORD, KEY, about=plain.good_for))
    assert open_bmc(stored, KEY) == BMCAccess(BMCDriver.IPMI, "10.0.0.1", USER, PASSWORD)
    for other in (replace(stored, address="10.0.0.2"), replace(stored, user="root")):
        with pytest.raises(Invalid, match="does not fit"):
            open_bmc(other, KEY)


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("10.0.0.1", ("10.0.0.1", 623)),
        ("bmc1:6230", ("bmc1", 6230)),
        ("[fd00::1]", ("fd00::1", 623)),
        ("[fd00::1]:1", ("fd00::1", 1)),
    ],
)
def test_addresses(address: str, wanted: tuple[str, int]) -> None:
    assert host_and_port(address, 623) == wanted


@pytest.mark.parametrize("address", ["", ":623", "bmc1:x", "bmc1:99999"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(Invalid, match="no address of a BMC"):
        host_and_port(address, 623)


# Redfish and its certificates


def test_another_certificate_than_the_pinned_one_gets_no_password(tmp_path: Path) -> None:
    with redfish(tmp_path / "bmc") as bench:
        with pytest.raises(BMCRefused, match="shows another certificate") as caught:
            bench.power.off(replace(bench.bmc, certificate="0" * 64))
        assert bench.bmc.certificate in str(caught.value)
        assert bench.is_on()


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    with redfish(tmp_path / "bmc") as bench:
        with pytest.raises(BMCRefused, match="nobody vouches for"):
            bench.power.off(replace(bench.bmc, certificate=""))
        assert bench.is_on()
        bench.power.off(replace(bench.bmc, certificate=ANY_CERTIFICATE))
        assert not bench.is_on()


def test_a_redfish_that_accepts_and_says_nothing_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        bmc = BMCAccess(
            BMCDriver.REDFISH,
            f"127.0.0.1:{silent.getsockname()[1]}",
            USER,
            PASSWORD,
            ANY_CERTIFICATE,
        )
        began = time.monotonic()
        with pytest.raises(BMCUnreachable):
            AnyPower().state(bmc)
        assert time.monotonic() - began < AT_MOST_S


def test_missing_ipmitool_is_said_with_the_way_out(tmp_path: Path) -> None:
    """It is a BMC that cannot be reached: a fence fails by it, and says so."""
    bmc = BMCAccess(BMCDriver.IPMI, "127.0.0.1", USER, PASSWORD)
    with pytest.raises(BMCUnreachable, match=r"ipmitool is missing on .*: apt install ipmitool"):
        Ipmi(str(tmp_path / "ipmitool")).state(bmc)
    with pytest.raises(BMCUnreachable, match=r"cannot be run: .*: apt install ipmitool"):
        Ipmi(str(tmp_path)).state(bmc)
