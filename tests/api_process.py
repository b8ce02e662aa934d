"""`pvc api serve`, or another server, as a process of its own with a configuration of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.zookeeper import free_ports

ROOT = Path(__file__).parents[1]


@dataclass(slots=True)
class ApiServer:
    directory: Path
    port: int
    verb: tuple[str, str] = ("api", "serve")
    process: subprocess.Popen[bytes] | None = None
    notified: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    """Where systemd would listen."""

    @property
    def address(self) -> str:
        return str(self.directory / "api.sock")

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PVC_CONFIG": str(self.directory / "pvc.toml"),
            "PVC_CLIENT_DIR": str(self.directory / "client"),
            "NOTIFY_SOCKET": str(self.directory / "notify"),
            "PYTHONPATH": str(ROOT),
        }

    def start(self, *python: str) -> None:
        """Returns once systemd would know that it is ready."""
        self.launch(*python)
        self.wait_ready()

    def launch(self, *python: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.directory / "notify")
        self.notified.close()
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(self.directory / "notify"))
        self.notified.settimeout(30)
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *python, "-m", "pvc", *self.verb],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_ready(self) -> None:
        while b"READY=1" not in self.notified.recv(4096):
            pass

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(20)
        self.notified.close()
        self.process = None
        return code

    def pvc(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pvc", *argv], env=self.environment(), capture_output=True, text=True
        )


def configure(directory: Path, servers: list[str]) -> ApiServer:
    (port,) = free_ports(1)
    key = directory / "cluster.key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    (directory / "pvc.toml").write_text(
        f"""[node]
name = "n1"
[cluster]
coordinators = {servers}
key_file = "{key}"
session_timeout_s = 4.0
[api]
socket = "{directory}/api.sock"
listen = ["127.0.0.1:{port}"]
"""
    )
    return ApiServer(directory, port)
