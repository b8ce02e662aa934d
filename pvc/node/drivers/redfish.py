"""Power through Redfish: JSON over HTTPS; the certificate is verified, pinned, or said not to matter."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPSConnection
from typing import Any

from pvc.node.drivers.power import (
    ANY_CERTIFICATE,
    BMCAccess,
    BMCNonsense,
    BMCRefused,
    BMCUnreachable,
    PowerState,
    host_and_port,
)

TIMEOUT_S = 6.0
"""Of a whole call, however slowly the BMC trickles its answers."""
PORT = 443
LARGEST_ANSWER = 1 << 20
SYSTEMS = "/redfish/v1/Systems"
RESET = "#ComputerSystem.Reset"
# One that is about to be off may still write.
STATES = {
    "On": PowerState.ON,
    "PoweringOn": PowerState.ON,
    "PoweringOff": PowerState.ON,
    "Paused": PowerState.ON,
    "Off": PowerState.OFF,
}


class Redfish:
    """Power of the one system that a BMC manages."""

    def state(self, bmc: BMCAccess) -> PowerState:
        with _connected(bmc) as connection:
            return connection.state(connection.system())

    def off(self, bmc: BMCAccess) -> None:
        self._reset(bmc, PowerState.OFF, "ForceOff")

    def on(self, bmc: BMCAccess) -> None:
        self._reset(bmc, PowerState.ON, "On")

    def check(self, bmc: BMCAccess) -> PowerState:
        with _connected(bmc) as connection:
            system = connection.system()
            found = connection.state(system)
            if system["PowerState"] == "On":  # not one that is about to be off
                connection.may_reset(system)
            return found

    def _reset(self, bmc: BMCAccess, wanted: PowerState, kind: str) -> None:
        # What is done already is an error to some.
        with _connected(bmc) as connection:
            system = connection.system()
            if connection.state(system) is not wanted:
                connection.reset(system, kind)


class _Connection(HTTPSConnection):
    """Checks the certificate each time it connects, before it says who we are."""

    def __init__(self, bmc: BMCAccess) -> None:
        self.bmc = bmc
        host, port = host_and_port(bmc.address, PORT)
        super().__init__(host, port, timeout=TIMEOUT_S, context=_context(bmc.certificate))

    def connect(self) -> None:
        super().connect()
        if self.bmc.certificate in ("", ANY_CERTIFICATE):
            return
        shown = hashlib.sha256(self.sock.getpeercert(binary_form=True) or b"").hexdigest()
        if not hmac.compare_digest(shown, self.bmc.certificate):
            self.close()
            raise BMCRefused(f"the BMC {self.bmc.address} shows another certificate: its SHA-256 is {shown}")

    def system(self) -> dict[str, Any]:
        members = self.ask("GET", SYSTEMS).get("Members")
        if not isinstance(members, list) or len(members) != 1:
            raise BMCNonsense(f"the BMC {self.bmc.address} does not manage exactly one system")
        return self.ask("GET", self.text(members[0], "@odata.id"))

    def state(self, system: dict[str, Any]) -> PowerState:
        said = self.text(system, "PowerState")
        if said not in STATES:
            raise BMCNonsense(f"the BMC {self.bmc.address} says {said[:80]!r} of its power", retryable=True)
        return STATES[said]

    def reset(self, system: dict[str, Any], kind: str) -> None:
        actions = system.get("Actions")
        target = self.text(actions.get(RESET) if isinstance(actions, dict) else None, "target")
        self.ask("POST", target, {"ResetType": kind})

    def may_reset(self, system: dict[str, Any]) -> None:
        """Of one that is on. That it is on already is an error to some, and no matter."""
        with suppress(BMCNonsense):
            self.reset(system, "On")

    def text(self, holder: object, key: str) -> str:
        value = holder.get(key) if isinstance(holder, dict) else None
        if not isinstance(value, str):
            raise BMCNonsense(f"the BMC {self.bmc.address} answers without {key}", retryable=True)
        return value

    def ask(self, method: str, path: str, body: dict[str, str] | None = None) -> dict[str, Any]:
        """The JSON of an answer; an empty one where it says nothing."""
        login = base64.b64encode(f"{self.bmc.user}:{self.bmc.password}".encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        self.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self.getresponse()
        text = answer.read(LARGEST_ANSWER)
        if answer.status in (401, 403):
            raise BMCRefused(
                f"the BMC {self.bmc.address} refuses user {self.bmc.user}",
                hint="pvc node bmc NODE with the right password",
            )
        if not 200 <= answer.status < 300:
            raise BMCNonsense(
                f"the BMC {self.bmc.address} answers {answer.status} to {method} {path}", retryable=True
            )
        plain = json.loads(text) if text else {}
        if not isinstance(plain, dict):
            raise BMCNonsense(f"the BMC {self.bmc.address} answers with no object", retryable=True)
        return plain


def _context(certificate: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if certificate:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@contextmanager
def _connected(bmc: BMCAccess) -> Iterator[_Connection]:
    """Ends with the call's time; what goes wrong on the way becomes an error of BMCs."""
    connection = _Connection(bmc)
    timer = threading.Timer(TIMEOUT_S, _hang_up, (connection,))
    timer.daemon = True
    timer.start()
    try:
        yield connection
    except ssl.SSLCertVerificationError as error:
        raise BMCRefused(
            f"the BMC {bmc.address} shows a certificate that nobody vouches for: {error.verify_message}",
            hint="pvc node bmc NODE --certificate with its SHA-256",
        ) from None
    except (HTTPException, ValueError) as error:
        raise BMCNonsense(f"the BMC {bmc.address} does not speak Redfish: {error}", retryable=True) from None
    except OSError as error:
        raise BMCUnreachable(
            f"the BMC {bmc.address} does not answer: {error.strerror or error}", retryable=True
        ) from None
    finally:
        timer.cancel()
        connection.close()


def _hang_up(connection: _Connection) -> None:
    with suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)
