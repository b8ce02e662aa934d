"""BMCs that are really spoken to on loopback: Debian's ipmi_sim, and an HTTPS server that speaks Redfish."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.fakes.tls import certificate

USER, PASSWORD = "admin", "geheim1'$#"
LOOKER = "looker"
"""May read, and has the same password. Only of Redfish: ipmi_sim lets every user do everything."""
SYSTEM = "/redfish/v1/Systems/Self"


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass(slots=True)
class Chassis:
    """The machine behind a BMC: files, so that a script of ipmi_sim sees the same as the test."""

    directory: Path

    @property
    def power(self) -> str:
        return (self.directory / "power").read_text().strip()

    @power.setter
    def power(self, state: str) -> None:
        (self.directory / "power").write_text(state)

    @property
    def fault(self) -> str:
        return (self.directory / "fault").read_text().strip()

    @fault.setter
    def fault(self, fault: str) -> None:
        """deaf: orders do nothing; rubbish: no sense in what it says; empty: it is well."""
        (self.directory / "fault").write_text(fault)


def chassis(directory: Path) -> Chassis:
    directory.mkdir(parents=True, exist_ok=True)
    made = Chassis(directory)
    made.power, made.fault = "1", ""
    return made


SCRIPT = """#!/bin/sh
cd {directory} || exit 1
fault=$(cat fault)
[ "$fault" = rubbish ] && {{ echo rubbish; exit 0; }}
case "$1 $2" in
    "get power") echo "power:$(cat power)" ;;
    "set power") [ "$fault" = deaf ] || echo "$3" > power ;;
esac
exit 0
"""

CONFIGURATION = """name "test"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 {port}
    priv_limit admin
    allowed_auths_callback none
    allowed_auths_user md5
    allowed_auths_operator md5
    allowed_auths_admin md5
    guid 0123456789abcdef0123456789abcdef
  endlan
  chassis_control "{directory}/script"
  user 1 true "" "x" user 10 none
  user 2 true "{user}" "{password}" admin 10 md5
"""

EMULATION = """mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
mc_enable 0x20
"""


@contextlib.contextmanager
def ipmi_sim(machine: Chassis) -> Iterator[str]:
    """Its address. Nobody has waited until it answers."""
    folder, port = machine.directory, free_port(socket.SOCK_DGRAM)
    script = folder / "script"
    script.write_text(SCRIPT.format(directory=folder))
    script.chmod(0o755)
    (folder / "conf").write_text(
        CONFIGURATION.format(port=port, directory=folder, user=USER, password=PASSWORD)
    )
    (folder / "emu").write_text(EMULATION)
    (folder / "state").mkdir(exist_ok=True)
    argv = ["ipmi_sim", "-n", "-c", f"{folder}/conf", "-f", f"{folder}/emu", "-s", f"{folder}/state"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(10)


# Redfish


class Handler(BaseHTTPRequestHandler):
    """What a BMC of the usual kind answers. `machine` is set in a class of its own for each server."""

    machine: Chassis
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self._may():
            return
        if self.machine.fault == "rubbish":
            self._answer(200, b"<html>rubbish</html>")
        elif self.path == "/redfish/v1/Systems":
            self._json({"Members": [{"@odata.id": SYSTEM}]})
        elif self.path == SYSTEM:
            action = {"target": f"{SYSTEM}/Actions/ComputerSystem.Reset"}
            power = "On" if self.machine.power == "1" else "Off"
            self._json({"PowerState": power, "Actions": {"#ComputerSystem.Reset": action}})
        else:
            self._answer(404, b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if not self._may() or not self._may_switch():
            return
        wanted = {"ForceOff": "0", "On": "1"}.get(json.loads(body).get("ResetType"))
        if self.machine.fault == "rubbish":
            self._answer(500, b"rubbish")
        elif self.path != f"{SYSTEM}/Actions/ComputerSystem.Reset" or wanted in (None, self.machine.power):
            # Like many: what is so already is an error.
            self._answer(409, b"{}")
        else:
            if self.machine.fault != "deaf":
                self.machine.power = str(wanted)
            self._answer(204, b"")

    def _may_switch(self) -> bool:
        if self._is(USER):
            return True
        self._answer(403, b"{}")
        return False

    def _is(self, user: str) -> bool:
        expected = base64.b64encode(f"{user}:{PASSWORD}".encode()).decode()
        return self.headers.get("Authorization") == f"Basic {expected}"

    def _may(self) -> bool:
        if self._is(USER) or self._is(LOOKER):
            return True
        self._answer(401, b"{}")
        return False

    def _json(self, plain: Any) -> None:
        self._answer(200, json.dumps(plain).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        return


@contextlib.contextmanager
def redfish_bmc(machine: Chassis) -> Iterator[tuple[str, str]]:
    """Its address, and its certificate as PEM."""
    cert, key = certificate(machine.directory)
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("OfMachine", (Handler,), {"machine": machine}), bind_and_activate=True
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", Path(cert).read_text()
    finally:
        server.shutdown()
        server.server_close()
