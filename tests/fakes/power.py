"""Machines with BMCs in memory: for tests of fencing, where a BMC may be silent, refuse, lie or be slow."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from pvc.node.drivers.power import BMCAccess, BMCNonsense, BMCRefused, BMCUnreachable, PowerState


class Fault(StrEnum):
    NONE = "none"
    BUSY = "busy"
    """Rubbish, once."""
    SILENT = "silent"
    RUBBISH = "rubbish"
    DEAF = "deaf"
    """It says yes to every order and does nothing."""


@dataclass(slots=True)
class Machine:
    password: str
    user: str = "admin"
    is_on: bool = True
    fault: Fault = Fault.NONE
    looker: str = "looker"
    """A user that may read, with the same password."""
    orders: list[str] = field(default_factory=list)


@dataclass(slots=True)
class FakePower:
    """By the address of its BMC, machines."""

    machines: dict[str, Machine] = field(default_factory=dict)

    def state(self, bmc: BMCAccess) -> PowerState:
        return PowerState.ON if self._asked(bmc, "state").is_on else PowerState.OFF

    def off(self, bmc: BMCAccess) -> None:
        self._switch(bmc, is_on=False)

    def on(self, bmc: BMCAccess) -> None:
        self._switch(bmc, is_on=True)

    def check(self, bmc: BMCAccess) -> PowerState:
        found = self.state(bmc)
        if found is PowerState.ON:
            self.on(bmc)
        return found

    def _switch(self, bmc: BMCAccess, *, is_on: bool) -> None:
        machine = self._asked(bmc, "on" if is_on else "off")
        if machine.fault is not Fault.DEAF:
            machine.is_on = is_on

    def _asked(self, bmc: BMCAccess, order: str) -> Machine:
        machine = self.machines.get(bmc.address)
        if machine is None or machine.fault is Fault.SILENT:
            raise BMCUnreachable(f"the BMC {bmc.address} does not answer", retryable=True)
        is_known = bmc.password == machine.password and bmc.user in (machine.user, machine.looker)
        if not is_known or (bmc.user == machine.looker and order != "state"):
            raise BMCRefused(f"the BMC {bmc.address} refuses user {bmc.user}")
        machine.orders.append(order)
        if machine.fault is Fault.BUSY:
            machine.fault = Fault.NONE
            raise BMCNonsense(f"the BMC {bmc.address} did not do {order}", retryable=True)
        if machine.fault is Fault.RUBBISH:
            raise BMCNonsense(f"the BMC {bmc.address} says 'rubbish' of its power", retryable=True)
        return machine
