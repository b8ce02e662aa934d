#!/usr/bin/env python3
"""What verbs cost with 10 to 10,000 VMs in a real ZooKeeper: through a warm API, and with --direct."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from pvc.cluster import domainxml, paths
from pvc.cluster.cluster import Authority
from pvc.cluster.codec import dumps
from pvc.cluster.node import Alive, DaemonState, Load, NodeSpec, NodeStatus
from pvc.cluster.store import Create, Op
from pvc.cluster.vm import VMSpec, VMStatus
from pvc.cluster.zookeeper import ZooKeeperStore
from pvc.commands.context import Caller, Context, Transport, invoke
from pvc.commands.direct import DirectTransport
from pvc.commands.registry import Role, find
from pvc.errors import Unavailable
from pvc.http.client import HttpTransport
from tests.support import eventually
from tests.zookeeper import zookeeper

SIZES = (10, 1_000, 10_000)
NODES = 3
ROUNDS = 9
BATCH = 50
KEY = "0" * 64
DIST = Path(__file__).resolve().parents[1] / "dist/pvc"
BARE = ("/usr/bin/python3", "-I", "-c", "pass")
LIST_MS = 150.0
"""Promised for the whole command with 1,000 VMs."""


@dataclass(slots=True)
class Bench:
    store: ZooKeeperStore
    directory: Path
    made: int = 0
    started: int = 0
    figures: dict[str, list[float]] = field(default_factory=dict)

    def fill(self, count: int) -> None:
        while self.made < count:
            last = min(count, self.made + BATCH)
            ops: list[Op] = []
            for number in range(self.made, last):
                ops += _vm(number)
            self.store.commit(*ops)
            self.made = last

    def note(self, name: str, work: Callable[[], object], rounds: int = ROUNDS) -> None:
        """Median milliseconds; the first round warms up."""
        taken = []
        for _ in range(rounds + 1):
            began = time.perf_counter()
            work()
            taken.append((time.perf_counter() - began) * 1000)
        self.figures.setdefault(name, []).append(statistics.median(taken[1:]))

    def start_next(self, transport: Transport) -> None:
        """Each start is a change: of a VM that was not started before."""
        transport.call("vm.start", {"vm": f"vm{self.started:05}"})
        self.started += 1


def _vm(number: int) -> list[Op]:
    name, uuid = f"vm{number:05}", str(UUID(int=number + 1))
    xml = domainxml.create(name, uuid, memory_mib=64, vcpus=1, nics=[domainxml.NewNic("br0")])
    node = f"n{number % NODES + 1}"
    spec = VMSpec(uuid, name, xml, memory_mib=64, vcpus=1, node=node, networks=("br0",))
    return [
        Create(paths.vm(uuid), dumps(spec)),
        Create(paths.vm_status(uuid), dumps(VMStatus())),
        Create(paths.vm_name(name), uuid.encode()),
        Create(paths.node_vm(node, uuid)),
    ]


def prepare(store: ZooKeeperStore) -> None:
    context = Context(
        store, store, Caller("benchmark", Role.ADMIN), new_authority=lambda: Authority("none", "none")
    )
    invoke(find("cluster.init"), context, {"name": "benchmark"})
    for number in range(1, NODES + 1):
        name = f"n{number}"
        status = NodeStatus(1, DaemonState.RUN, "1", 1, 64, 10**6, bridges=("br0",))
        store.commit(
            Create(paths.node(name), dumps(NodeSpec(name, "127.0.0.1", "127.0.0.1"))),
            Create(paths.node_status(name), dumps(status)),
            Create(paths.node_vms(name)),
            Create(paths.alive(name), dumps(Alive(1)), ephemeral=True),
            Create(paths.load(name), dumps(Load(memory_free_mib=10**6))),
        )


def configure(directory: Path, server: str) -> None:
    key = directory / "cluster.key"
    key.write_text(KEY + "\n")
    key.chmod(0o600)
    (directory / "pvc.toml").write_text(
        f"""
[node]
name = "n1"
address = "127.0.0.1"
[cluster]
coordinators = ["{server}"]
key_file = "{key}"
[api]
socket = "{directory}/api.sock"
listen = []
"""
    )


def program() -> list[str]:
    return [str(DIST)] if DIST.exists() else [sys.executable, "-m", "pvc"]


def run(directory: Path, words: Sequence[str]) -> None:
    env = {**os.environ, "PVC_CONFIG": f"{directory}/pvc.toml", "HOME": str(directory)}
    subprocess.run([*program(), *words], check=True, stdout=subprocess.DEVNULL, env=env)


@contextmanager
def api(directory: Path) -> Iterator[Transport]:
    env = {**os.environ, "PVC_CONFIG": f"{directory}/pvc.toml"}
    process = subprocess.Popen([*program(), "api", "serve"], env=env, stderr=subprocess.DEVNULL)
    transport = HttpTransport(f"{directory}/api.sock")
    try:
        eventually(lambda: answers(transport), within=60)
        yield transport
    finally:
        transport.close()
        process.terminate()
        process.wait(10)


def answers(transport: Transport) -> bool:
    try:
        return bool(transport.call("cluster.status", {}))
    except Unavailable:
        return False


def measure(bench: Bench, count: int) -> None:
    bench.fill(count)
    for_direct = DirectTransport(bench.store, "benchmark")
    with api(bench.directory) as warm:
        through(bench, "API", warm, count)
        through(bench, "direct", for_direct, count)
        # Tells how busy the machine was; a command is to be seen against it.
        bench.note("python3 -I -c pass", lambda: subprocess.run(BARE, check=True))
        bench.note("whole command: pvc vm list", lambda: run(bench.directory, ["vm", "list"]))
        bench.note("whole command: pvc vm info", lambda: run(bench.directory, ["vm", "info", "vm00005"]))
    with_direct = ["--direct", "vm", "info", "vm00005"]
    bench.note("whole command: pvc --direct vm info", lambda: run(bench.directory, with_direct))


def through(bench: Bench, way: str, transport: Transport, count: int) -> None:
    assert len(transport.call("vm.list", {})) == count
    bench.note(f"{way}: vm list", lambda: transport.call("vm.list", {}))
    bench.note(f"{way}: vm info", lambda: transport.call("vm.info", {"vm": "vm00005"}))
    # Of ten VMs each way may start five.
    bench.note(f"{way}: vm start", lambda: bench.start_next(transport), min(ROUNDS, count // 2 - 1))


def main() -> int:
    with (
        tempfile.TemporaryDirectory() as scratch,
        zookeeper(Path(scratch), force_sync=True) as ensemble,
    ):
        directory = Path(scratch)
        configure(directory, ensemble.addresses[0])
        store = ZooKeeperStore(ensemble.addresses, secret=KEY)
        store.connect(10.0)
        prepare(store)
        bench = Bench(store, directory)
        for count in SIZES:
            print(f"measuring with {count:,} VMs", file=sys.stderr)
            measure(bench, count)
        store.close()
    return report(bench)


def report(bench: Bench) -> int:
    print(f"{'milliseconds (median)':38}" + "".join(f"{n:>10,} VMs" for n in SIZES) + f"{'last/first':>12}")
    for name, figures in bench.figures.items():
        ratio = figures[-1] / figures[0]
        print(f"{name:38}" + "".join(f"{figure:14.1f}" for figure in figures) + f"{ratio:11.1f}×")
    listing = bench.figures["whole command: pvc vm list"][SIZES.index(1_000)]
    met = listing <= LIST_MS
    print(f"\npvc vm list with 1,000 VMs: {listing:.0f} ms, promised at most {LIST_MS:.0f} ms")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
