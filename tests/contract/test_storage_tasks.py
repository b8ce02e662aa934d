"""Storage as a whole: operations, tasks on real threads, qemu-img, and a node that is asked over real TLS."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pvc import pki
from pvc.clock import SystemClock
from pvc.cluster import domainxml, paths
from pvc.cluster.codec import to_json
from pvc.cluster.vm import Owner
from pvc.commands.context import invoke
from pvc.commands.registry import find
from pvc.config import Config, parse
from pvc.errors import Conflict, NotFound, Unavailable
from pvc.node.daemon import Daemon
from pvc.node.drivers.ceph import Ceph
from pvc.node.peer import PeerServer
from pvc.node.working import Working
from pvc.peerclient import ask
from pvc.proc import run
from tests.fakes.hypervisor import FakeWorld
from tests.support import eventually
from tests.unit.commands.world import World, a_world
from tests.zookeeper import free_ports


def configured(tmp_path: Path) -> Config:
    key = tmp_path / "cluster.key"
    key.write_text("5" * 64)
    certificate = pki.issue(*pki.create_ca(str(key)), str(key), "n1", ["127.0.0.1"])
    tls = tmp_path / "tls"
    tls.mkdir()
    for name in ("ca", "cert", "key"):
        (tls / f"{name}.pem").write_text(getattr(certificate, name))
    (port,) = free_ports(1)
    return parse(
        {
            "node": {"name": "n1"},
            "paths": {"tls": str(tls), "console": str(tmp_path), "state": str(tmp_path)},
            "daemon": {"console_port": port},
        }
    )


@dataclass
class OneNode:
    world: World
    config: Config
    working: Working
    daemon: SimpleNamespace

    def call(self, operation: str, /, **given: Any) -> Any:
        context = self.world.context()
        context.ask = lambda address, port, path: ask(self.config, address, port, path)
        return to_json(invoke(find(operation), context, given))

    def done(self, operation: str, /, **given: Any) -> dict[str, Any]:
        begun = self.call(operation, **given)

        def over() -> Any:
            found = self.call("task.info", task=begun["name"])
            return found if found["settled"] else None

        found = eventually(over, within=30)
        assert isinstance(found, dict)
        return found


@contextmanager
def one_node(tmp_path: Path, connect: Callable[[], Ceph] | None = None) -> Iterator[OneNode]:
    world, config = a_world(1), configured(tmp_path)
    world.edit(paths.node("n1"), address="127.0.0.1")
    world.edit(paths.node_status("n1"), console_port=config.daemon.console_port)

    def pools_are(problems: Mapping[str, str]) -> None:
        world.edit(paths.node_status("n1"), pool_problems=problems)

    daemon = SimpleNamespace(
        name="n1",
        me=Owner("n1", 1),
        config=config,
        pools_are=pools_are,
        ceph_is=lambda seen: None,
        ceph_knows=lambda addresses: None,
        is_idle=lambda: True,
        guard=SimpleNamespace(
            is_ours=lambda domain: True, end_one=lambda domain: None, may_start=lambda: True
        ),
        wake=lambda: None,
        executor=SimpleNamespace(),
        hypervisor=FakeWorld().add("n1"),
    )
    server = PeerServer(config)
    server.start()
    with pytest.raises(Unavailable, match="only just begun"):
        ask(config, "127.0.0.1", config.daemon.console_port, "storage/vms")
    clock, host = SystemClock(), daemon.hypervisor
    working = Working(cast(Daemon, daemon), world.cluster.connect(), clock, host, connect)
    server.tell_of_storage(working.pools.tell)
    server.tell_of_ceph(working.disks.watch.tell)
    server.carry_for(working.transfers.carry)
    yield OneNode(world, config, working, daemon)
    working.close()
    server.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[OneNode]:
    with one_node(tmp_path) as made:
        yield made


def test_a_volume_from_beginning_to_end(node: OneNode, tmp_path: Path) -> None:
    where = tmp_path / "pool"
    where.mkdir()
    assert node.done("storage.pool-add", pool="vms", path=str(where))["state"] == "done"
    made = node.done("storage.volume-add", pool="vms", volume="golden", size="64M")
    assert made["result"]["volume"] == {
        **made["result"]["volume"],
        "name": "golden",
        "size_bytes": 64 * 1024**2,
        "format": "qcow2",
    }
    node.done("storage.volume-snapshot-add", pool="vms", volume="golden", snapshot="s1")
    shown = node.call("storage.volume-info", pool="vms", volume="golden")
    assert shown["location"] == str(where / "golden/disk.qcow2")
    assert [one["name"] for one in shown["snapshots"]] == ["s1"]
    assert json.loads(json.dumps(shown)) == shown
    pool = node.call("storage.pool-info", pool="vms")
    assert (pool["volumes"], pool["provisioned_bytes"], pool["state"]) == (1, 64 * 1024**2, "up")
    with pytest.raises(NotFound, match="no volume web9"):
        node.call("storage.volume-info", pool="vms", volume="web9")
    assert node.done("storage.pool-remove", pool="vms")["state"] == "failed"
    node.done("storage.volume-remove", pool="vms", volume="golden")
    assert node.done("storage.pool-remove", pool="vms")["state"] == "done"
    assert list(where.iterdir()) == []


def test_clones_of_one_volume_are_made_at_the_same_time(node: OneNode, tmp_path: Path) -> None:
    """Readers do not exclude each other."""
    where = tmp_path / "pool"
    where.mkdir()
    node.done("storage.pool-add", pool="vms", path=str(where))
    node.done("storage.volume-add", pool="vms", volume="golden", size="8M", format="raw")
    begun = [
        node.call("storage.volume-clone", pool="vms", volume="golden", new=f"web{number}")["name"]
        for number in range(8)
    ]
    eventually(lambda: all(node.call("task.info", task=one)["settled"] for one in begun), within=30)
    found = [node.call("task.info", task=one) for one in begun]
    assert [one["reason"] for one in found] == [""] * 8
    names = [row["name"] for row in node.call("storage.volume-list")]
    assert names == ["golden", *(f"web{number}" for number in range(8))]
    assert sorted(path.name for path in where.iterdir()) == sorted([".pvc-pool", *names])


def test_one_changes_a_volume_at_a_time(node: OneNode, tmp_path: Path) -> None:
    where = tmp_path / "pool"
    where.mkdir()
    node.done("storage.pool-add", pool="vms", path=str(where))
    results: list[str] = []
    lock = threading.Lock()

    def add() -> None:
        try:
            state = node.done("storage.volume-add", pool="vms", volume="web1", size="8M")["state"]
        except Conflict:
            state = "refused"
        with lock:
            results.append(state)

    threads = [threading.Thread(target=add) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("done") == 1
    assert [row["name"] for row in node.call("storage.volume-list")] == ["web1"]


def test_a_directory_that_goes_is_noticed_and_told(node: OneNode, tmp_path: Path) -> None:
    where = tmp_path / "pool"
    where.mkdir()
    node.done("storage.pool-add", pool="vms", path=str(where))
    assert node.call("storage.pool-list")[0]["state"] == "up"
    where.rename(tmp_path / "away")
    node.working.looking.wake()
    eventually(lambda: node.call("storage.pool-list")[0]["state"] == "down", within=10)
    with pytest.raises(Unavailable, match=r"no node reaches pool vms now: n1: .* is not the directory"):
        node.call("storage.volume-list")
    (tmp_path / "away").rename(where)
    node.working.looking.wake()
    eventually(lambda: node.call("storage.pool-list")[0]["state"] == "up", within=10)


def test_a_daemon_that_ends_does_not_wait_for_a_long_copy(node: OneNode, tmp_path: Path) -> None:
    where = tmp_path / "pool"
    where.mkdir()
    node.done("storage.pool-add", pool="vms", path=str(where))
    node.done("storage.volume-add", pool="vms", volume="golden", size="2G", format="raw")
    with (where / "golden/disk.raw").open("rb+") as disk:
        for _ in range(1024):
            disk.write(b"x" * 1024**2)
    begun = node.call("storage.volume-clone", pool="vms", volume="golden", new="web1")
    eventually(lambda: list(where.glob(".task-*")), within=20, every=0.01)
    node.working.end()
    eventually(lambda: not node.working.is_busy(), within=20)
    ended = node.call("task.info", task=begun["name"])
    assert (ended["state"], ended["reason"]) == ("lost", "the daemon of n1 ended while it was at it")
    assert sorted(path.name for path in where.iterdir()) == [".pvc-pool", "golden"]


def test_a_stopped_vm_is_brought_back_to_a_snapshot(node: OneNode, tmp_path: Path) -> None:
    where = tmp_path / "pool"
    where.mkdir()
    node.done("storage.pool-add", pool="vms", path=str(where))
    volumes = ("root", "data")
    for name in volumes:
        node.done("storage.volume-add", pool="vms", volume=name, size="8M")
    files = [str(where / name / "disk.qcow2") for name in volumes]
    node.call("vm.create", name="web1", disk=files, target="n1")

    def write(pattern: int) -> None:
        for file in files:
            run(["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} 0 1M", file])

    def is_there(pattern: int) -> bool:
        asked = ["qemu-io", "-f", "qcow2", "-c", f"read -P {pattern} 0 1M"]
        return all(run([*asked, file], check=False).code == 0 for file in files)

    write(1)
    assert node.done("vm.snapshot-create", vm="web1", snapshot="daily")["reason"] == ""
    write(2)
    assert not is_there(1)
    assert node.done("vm.snapshot-rollback", vm="web1", snapshot="daily")["reason"] == ""
    assert is_there(1)
    for name in volumes:
        (kept,) = node.call("storage.volume-snapshot-list", pool="vms", volume=name)
        assert kept["name"].endswith(".daily")
    assert node.done("vm.snapshot-remove", vm="web1", snapshot="daily")["reason"] == ""
    assert [node.call("storage.volume-snapshot-list", pool="vms", volume=one) for one in volumes] == [[], []]


def test_whoever_migrates_vms_knows_whose_guests_stand_still(node: OneNode, tmp_path: Path) -> None:
    """Its agent does not answer, and so it goes on standing still."""
    uuid, host = "6b29fc40-ca47-1067-b31d-00dd010662da", node.daemon.hypervisor
    xml = domainxml.create("web1", uuid, memory_mib=64, vcpus=1)
    host.start(domainxml.render(xml, emulation="qemu", emulator="/qemu", console_log="/log"))
    assert not node.daemon.executor.stands_still(uuid)
    (tmp_path / f"still-{uuid}").write_text(f"agent {host.domains()[uuid].run}")
    assert node.daemon.executor.stands_still(uuid)
    host.destroy(uuid)
    assert not node.daemon.executor.stands_still(uuid)
