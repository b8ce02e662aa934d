"""Switching a node's power through its BMC: what fencing needs of it, and which driver does it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from pvc.cluster.node import BMC, BMCDriver
from pvc.node.drivers import DriverError


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


def open_bmc(bmc: BMC, secret: str) -> BMCAccess:
    """Raises Invalid where the cluster key does not open the password, or address or user were swapped."""
    from pvc import secretbox

    password = secretbox.decrypt(bmc.password, secret, about=about(bmc))
    return BMCAccess(bmc.driver, bmc.address, bmc.user, password, bmc.certificate)


def about(bmc: BMC) -> str:
    """What an encrypted password is good for: with another address it would be sent to somebody else."""
    return f"{bmc.driver} {bmc.address} {bmc.user} {bmc.certificate}"


class AnyPower:
    """Power, by the driver that the BMC names."""

    def state(self, bmc: BMCAccess) -> PowerState:
        return _driver(bmc).state(bmc)

    def off(self, bmc: BMCAccess) -> None:
        _driver(bmc).off(bmc)

    def on(self, bmc: BMCAccess) -> None:
        _driver(bmc).on(bmc)


def _driver(bmc: BMCAccess) -> Power:
    if bmc.driver is BMCDriver.REDFISH:
        from pvc.node.drivers.redfish import Redfish

        return Redfish()
    from pvc.node.drivers.ipmi import Ipmi

    return Ipmi()
