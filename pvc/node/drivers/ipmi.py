"""Power through IPMI: ipmitool over lanplus. Its words count only where they are exactly as expected."""

from __future__ import annotations

import re
import socket

from pvc.errors import TimedOut, Unavailable
from pvc.node.drivers.power import (
    BMCAccess,
    BMCNonsense,
    BMCRefused,
    BMCUnreachable,
    PowerState,
    host_and_port,
)
from pvc.proc import Completed, run

PASSWORD_VARIABLE = "IPMITOOL_PASSWORD"
TIMEOUT_S = 6.0
# Cipher suite 3 is what every BMC speaks; one second for an answer, and one repetition. Without -v a wrong
# password and an address where nobody is sound the same.
OPTIONS = ("-v", "-I", "lanplus", "-C", "3", "-N", "1", "-R", "1", "-E")
PORT = 623

STATE = re.compile(r"Chassis Power is (on|off)")
REFUSALS = ("RAKP 2 HMAC is invalid", "RAKP 2 message indicates an error", "nsufficient privilege")
SILENCE = ("Unable to establish IPMI v2 / RMCP+ session", "Unable to establish LAN session")


class Ipmi:
    """Power of a machine whose BMC speaks IPMI 2.0."""

    def __init__(self, program: str = "ipmitool") -> None:
        self._program = program

    def state(self, bmc: BMCAccess) -> PowerState:
        said = _chassis(self._program, bmc, "status")
        found = STATE.fullmatch(said)
        if found is None:
            raise BMCNonsense(f"the BMC {bmc.address} says {said[:80]!r} of its power", retryable=True)
        return PowerState(found[1])

    def off(self, bmc: BMCAccess) -> None:
        _chassis(self._program, bmc, "off")

    def on(self, bmc: BMCAccess) -> None:
        _chassis(self._program, bmc, "on")

    def check(self, bmc: BMCAccess) -> PowerState:
        found = self.state(bmc)
        if found is PowerState.ON:
            self.on(bmc)
        return found


def _chassis(program: str, bmc: BMCAccess, order: str) -> str:
    host, port = host_and_port(bmc.address, PORT)
    argv = [program, *OPTIONS, "-H", host, "-p", str(port), "-U", bmc.user, "chassis", "power", order]
    try:
        done = run(argv, timeout_s=TIMEOUT_S, check=False, env={PASSWORD_VARIABLE: bmc.password})
    except TimedOut:
        raise BMCUnreachable(
            f"the BMC {bmc.address} did not answer within {TIMEOUT_S:g} s", retryable=True
        ) from None
    except (Unavailable, OSError) as error:
        why = (
            error.message if isinstance(error, Unavailable) else f"{program} cannot be run: {error.strerror}"
        )
        raise BMCUnreachable(
            f"{why} on {socket.gethostname()}: apt install ipmitool", hint="on every coordinator"
        ) from None
    if done.code != 0:
        raise _error(bmc, order, done)
    return done.stdout.strip()


def _error(bmc: BMCAccess, order: str, done: Completed) -> BMCUnreachable | BMCRefused | BMCNonsense:
    said = " ".join(f"{done.stdout} {done.stderr}".split())
    if any(text in said for text in REFUSALS):
        return BMCRefused(
            f"the BMC {bmc.address} refuses user {bmc.user}", hint="pvc node bmc NODE with the right password"
        )
    if any(text in said for text in SILENCE):
        return BMCUnreachable(f"the BMC {bmc.address} does not answer", retryable=True)
    return BMCNonsense(f"the BMC {bmc.address} did not do power {order}: {said[:160]}", retryable=True)
