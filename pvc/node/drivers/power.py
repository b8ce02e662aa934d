"""Switching a node's power through its BMC: what fencing needs of it, and which driver does it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol
from urllib.parse import urlsplit

from pvc.cluster.node import BMC, BMCDriver
from pvc.errors import Invalid
from pvc.node.drivers import DriverError

ANY_CERTIFICATE = "any"


class PowerState(StrEnum):
    ON = "on"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class BMCAccess:
    """How to reach a BMC, with the password in clear: never stored, never logged."""

    driver: BMCDriver
    address: str
    user: str
    password: str = field(repr=False)
    certificate: str = ""


class BMCUnreachable(DriverError):
    """No answer in time: says nothing about the power."""


class BMCRefused(DriverError):
    """It answers and does not let us: user, password or privileges are wrong."""


class BMCNonsense(DriverError):
    """It answers something that is no answer to what was asked."""


class Power(Protocol):
    """The power of one machine. Every call may raise DriverError, after some seconds at most.

    Safe to call from several threads. A call that returned says that the BMC accepted, no more: whether a
    machine is off is what `state` reads back, and nothing else.
    """

    def state(self, bmc: BMCAccess) -> PowerState: ...

    def off(self, bmc: BMCAccess) -> None:
        """Cut the power at once; done already when it is off."""
        ...

    def on(self, bmc: BMCAccess) -> None:
        """Done already when it is on."""
        ...

    def check(self, bmc: BMCAccess) -> PowerState:
        """As `state`, and whether the user may switch it: one that is on is ordered on once more.

        Raises BMCRefused where it may not. Switches nothing.
        """
        ...


def host_and_port(address: str, port: int) -> tuple[str, int]:
    """Of "10.0.0.1", "bmc1:6230" or "[fd00::1]:6230". Raises Invalid."""
    try:
        parts = urlsplit(f"//{address}")
        host, given = parts.hostname, parts.port
    except ValueError:
        host, given = None, None
    if not host:
        raise Invalid(f"{address!r} is no address of a BMC", hint="HOST or HOST:PORT")
    return host, given or port


def open_bmc(bmc: BMC, secret: str) -> BMCAccess:
    """Raises Invalid where the cluster key does not open the password, or it was for another BMC."""
    from pvc import secretbox

    password = secretbox.decrypt(bmc.password, secret, about=bmc.good_for)
    return BMCAccess(bmc.driver, bmc.address, bmc.user, password, bmc.certificate)


class AnyPower:
    """Power, by the driver that the BMC names."""

    def state(self, bmc: BMCAccess) -> PowerState:
        return _driver(bmc).state(bmc)

    def off(self, bmc: BMCAccess) -> None:
        _driver(bmc).off(bmc)

    def on(self, bmc: BMCAccess) -> None:
        _driver(bmc).on(bmc)

    def check(self, bmc: BMCAccess) -> PowerState:
        return _driver(bmc).check(bmc)


def _driver(bmc: BMCAccess) -> Power:
    if bmc.driver is BMCDriver.REDFISH:
        from pvc.node.drivers.redfish import Redfish

        return Redfish()
    from pvc.node.drivers.ipmi import Ipmi

    return Ipmi()
