"""Real ZooKeeper servers on loopback, for tests and benchmarks: one, or an ensemble to kill members of."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import eventually

JARS = "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-simple.jar"
TICK_MS = 500
START_WITHIN_S = 60.0


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now; all are held open together so that they differ."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in held:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in held]


@dataclass(slots=True)
class Server:
    """One ZooKeeper server process with its own data directory."""

    directory: Path
    client_port: int
    config: str
    number: int
    force_sync: bool
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.client_port}"

    def start(self) -> None:
        data = self.directory / "data"
        data.mkdir(parents=True, exist_ok=True)
        (data / "myid").write_text(f"{self.number}\n")
        config = f"dataDir={data}\nclientPort={self.client_port}\n{self.config}"
        (self.directory / "zoo.cfg").write_text(config)
        with (self.directory / "log").open("ab") as log:
            # The server dies with the test run, however that ends.
            self.process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL"),
                    *("java", "-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
                    *("-cp", f"{self.directory}:{JARS}"),
                    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
                    f"-Dzookeeper.forceSync={'yes' if self.force_sync else 'no'}",
                    "-Dzookeeper.cnxTimeout=1000",
                    "-Dzookeeper.fastleader.maxNotificationInterval=1000",
                    "org.apache.zookeeper.server.quorum.QuorumPeerMain",
                    str(self.directory / "zoo.cfg"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """Power cut: no farewell to clients or peers."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        """Keep the connections and answer nothing, like a host that hangs."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    @property
    def mode(self) -> str:
        """leader, follower, standalone; empty while it does not serve."""
        try:
            with socket.create_connection(("127.0.0.1", self.client_port), timeout=1.0) as sock:
                sock.sendall(b"srvr")
                sock.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda: sock.recv(4096), b"")).decode()
        except OSError:
            return ""
        found = [line.removeprefix("Mode: ") for line in answer.splitlines() if line.startswith("Mode: ")]
        return found[0] if found else ""


@dataclass(slots=True)
class Ensemble:
    servers: list[Server]

    @property
    def addresses(self) -> list[str]:
        return [server.address for server in self.servers]

    def in_mode(self, mode: str) -> list[Server]:
        return [server for server in self.servers if server.mode == mode]

    def heal(self) -> None:
        """Start what was killed; return once every server serves."""
        for server in self.servers:
            if server.process is None:
                server.start()
        eventually(lambda: all(server.mode for server in self.servers), within=START_WITHIN_S)


@contextmanager
def zookeeper(directory: Path, servers: int = 1, *, force_sync: bool = False) -> Iterator[Ensemble]:
    """Servers that run and serve; gone on the way out."""
    ports = free_ports(servers * 3)
    client, quorum, election = ports[:servers], ports[servers : servers * 2], ports[servers * 2 :]
    config = (
        f"tickTime={TICK_MS}\ninitLimit=20\nsyncLimit=4\nmaxSessionTimeout=40000\nmaxClientCnxns=0\n"
        "clientPortAddress=127.0.0.1\nadmin.enableServer=false\n4lw.commands.whitelist=*\n"
    )
    if servers > 1:
        peers = zip(range(1, servers + 1), quorum, election, strict=True)
        config += "".join(f"server.{n}=127.0.0.1:{q}:{e}\n" for n, q, e in peers)
    ensemble = Ensemble(
        [
            Server(directory / f"server{n}", port, config, n, force_sync)
            for n, port in enumerate(client, start=1)
        ]
    )
    try:
        ensemble.heal()
        yield ensemble
    finally:
        for server in ensemble.servers:
            server.kill()


class Link:
    """A wire between one client and one server that a test can cut, on loopback."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._up = True
        self._swallow_next_reply = False
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        with self._lock:
            self._up = False
        self._hang_up()

    def heal(self) -> None:
        with self._lock:
            self._up = True

    def swallow_next_reply(self) -> None:
        """What the client sends arrives; the connection breaks within the first bytes of the answer."""
        with self._lock:
            self._swallow_next_reply = True

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _hang_up(self) -> None:
        with self._lock:
            ends, self._open = self._open, []
        for end in ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._server.client_port), timeout=2.0)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                accepted = self._up
                if accepted:
                    self._open += [client, server]
            if not accepted:
                client.close()
                server.close()
                continue
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink, sink is client), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, replies: bool) -> None:
        try:
            while chunk := source.recv(65536):
                with self._lock:
                    broken = replies and self._swallow_next_reply
                    self._swallow_next_reply &= not broken
                sink.sendall(chunk[:3] if broken else chunk)
                if broken:
                    break
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        source.close()
