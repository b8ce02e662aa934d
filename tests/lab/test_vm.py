"""A VM's life on three real nodes: real ZooKeeper, libvirt and QEMU."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab.labs import RunningLab
from tests.lab.vms import Cluster
from tests.support import eventually


@pytest.fixture
def cluster(lab: RunningLab) -> Cluster:
    return Cluster(lab)


def other(node: str) -> str:
    return "n2" if node != "n2" else "n3"


def test_life(cluster: Cluster) -> None:
    with cluster.vm("life") as vm:
        assert (vm["state"], vm["settled"]) == ("start", True)
        first = vm["node"]
        cluster.ticking("life", first, more_than=3)
        assert "tick" in cluster.pvc("vm", "log", "life", "-l", "5").stdout

        cluster.pvc("vm", "shutdown", "life", "--wait", "--timeout", "60")
        assert cluster.info("life")["state"] == "stop"
        assert cluster.qemus("life") == []
        console = cluster.run(first, "cat", f"/var/log/pvc/console/{vm['uuid']}.log").stdout
        assert "power button pressed" in console

        cluster.pvc("vm", "start", "life", "--wait", "--timeout", "60")
        cluster.pvc("vm", "restart", "life", "--wait", "--timeout", "60")
        assert cluster.info("life")["restarts"] == 1
        cluster.pvc("vm", "stop", "life", "--yes", "--wait", "--timeout", "60")
        assert cluster.qemus("life") == []
        cluster.pvc("vm", "disable", "life")
        assert cluster.info("life")["state"] == "disable"
        cluster.pvc("vm", "rename", "life", "afterlife")
        assert cluster.info("afterlife")["uuid"] == vm["uuid"]
        cluster.pvc("vm", "rename", "afterlife", "life")


DEFINITION = """\
<domain type='kvm'>
  <name>classic</name>
  <title>Written by hand</title>
  <memory unit='MiB'>96</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>/usr/share/pvc/guest/vmlinuz</kernel>
    <initrd>/usr/share/pvc/guest/initrd</initrd>
    <cmdline>console=ttyS0 quiet no_timer_check</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='host-passthrough'/>
  <devices>
    <emulator>/usr/bin/kvm</emulator>
    <controller type='usb' model='none'/>
    <serial type='pty'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def test_definition_from_libvirt_xml(cluster: Cluster) -> None:
    """Written for KVM with the host's CPU; where KVM does not work it runs emulated, and stays as written."""
    cluster.remove("classic")
    try:
        cluster.lab.run("n1", "pvc", "vm", "define", "-", stdin=DEFINITION)
        twice = cluster.lab.run("n1", "pvc", "vm", "define", "-", stdin=DEFINITION, check=False)
        assert (twice.code, "already" in twice.stderr) == (4, True)
        dumped = cluster.pvc("vm", "dump", "classic").stdout
        for kept in ("type='kvm'", "host-passthrough", "Written by hand", "/usr/bin/kvm"):
            assert kept in dumped.replace('"', "'"), dumped
        cluster.pvc("vm", "start", "classic", "--wait", "--timeout", "60")
        node = cluster.info("classic")["node"]
        cluster.ticking("classic", node)
        cluster.pvc("vm", "move", "classic", "--wait", "--timeout", "60")
        moved = cluster.info("classic")
        assert moved["node"] != node
        assert "downtime" in moved["last_migration"]
        running = cluster.run(moved["node"], "virsh", "dumpxml", "classic").stdout
        assert "Written by hand" in running
    finally:
        cluster.remove("classic")


def test_live_migration_never_stops_the_guest(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    with cluster.vm("mover") as vm:
        source, target = vm["node"], other(vm["node"])
        cluster.ticking("mover", source, more_than=5)
        pid = cluster.qemu_pid("mover", source)
        cluster.pvc("vm", "migrate", "mover", "--target", target, "--wait", "--timeout", "60")
        arrived = cluster.info("mover")
        assert (arrived["node"], arrived["migrated_from"], arrived["state"]) == (target, source, "start")
        assert cluster.qemus("mover") == [target]
        before = cluster.ticks("mover", source)
        after = cluster.ticking("mover", target, more_than=before[-1].number + 5)
        numbers = [tick.number for tick in [*before, *after]]
        assert numbers == list(range(1, len(numbers) + 1)), "a tick is missing or came twice"
        assert cluster.qemu_pid("mover", target) != pid
        assert "downtime" in arrived["last_migration"]
        with capsys.disabled():
            print(f"\n    live migration {arrived['last_migration']}")

        cluster.pvc("vm", "unmigrate", "mover", "--wait", "--timeout", "60")
        back = cluster.info("mover")
        assert (back["node"], back["migrated_from"]) == (source, None)
        assert cluster.ticking("mover", source, more_than=after[-1].number)


def test_console_follows_a_migration(cluster: Cluster) -> None:
    with cluster.vm("told") as vm:
        cluster.ticking("told", vm["node"], more_than=3)
        following = "timeout 120 pvc vm log told -f >/tmp/told.log 2>&1 </dev/null & echo $!"
        pid = cluster.lab.sh("n1", following).strip()
        try:
            cluster.pvc("vm", "migrate", "told", "--target", other(vm["node"]), "--wait", "--timeout", "60")
            last = cluster.ticks("told", vm["node"])[-1].number

            def followed() -> bool:
                text = cluster.lab.sh("n1", "cat /tmp/told.log").replace("\r", "")
                return f"tick {last} " in text and f"tick {last + 5} " in text

            eventually(followed, within=30)
        finally:
            cluster.run("n1", "kill", pid, check=False)


def test_guest_that_ignores_acpi_is_off_before_it_starts_elsewhere(cluster: Cluster) -> None:
    with cluster.vm("deaf", cmdline="pvc.ignore_acpi") as vm:
        source, target = vm["node"], other(vm["node"])
        cluster.ticking("deaf", source, more_than=3)
        cluster.pvc("vm", "meta", "deaf", "--method", "shutdown", "--shutdown-timeout", "4")
        seen: list[list[str]] = []
        watching = threading.Event()

        def watch() -> None:
            while not watching.is_set():
                seen.append(cluster.qemus("deaf"))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            cluster.pvc("vm", "move", "deaf", "--target", target, "--wait", "--timeout", "60")
        finally:
            watching.set()
            watcher.join()
        assert [source] in seen
        assert all(len(running) <= 1 for running in seen), seen
        assert cluster.qemus("deaf") == [target]
        console = cluster.run(source, "cat", f"/var/log/pvc/console/{vm['uuid']}.log").stdout
        assert "power button ignored" in console
        assert cluster.ticking("deaf", target)[0].number == 1


def test_daemon_killed_while_vms_run(cluster: Cluster) -> None:
    with cluster.vm("calm") as vm:
        node = vm["node"]
        cluster.ticking("calm", node, more_than=3)
        pid = cluster.qemu_pid("calm", node)
        incarnation = cluster.json("node", "info", node)["incarnation"]
        cluster.run(node, "systemctl", "kill", "-s", "KILL", "--kill-who=main", "pvc-node")

        def is_back() -> bool:
            info = cluster.json("node", "info", node)
            return bool(info["incarnation"] > incarnation and info["daemon_state"] == "run")

        eventually(is_back, within=30)
        last = cluster.ticks("calm", node)[-1].number
        cluster.ticking("calm", node, more_than=last + 3)
        assert cluster.qemu_pid("calm", node) == pid
        cluster.pvc("vm", "shutdown", "calm", "--wait", "--timeout", "60")
        assert cluster.qemus("calm") == []


def test_daemon_stops_and_starts_without_touching_vms(cluster: Cluster) -> None:
    with cluster.vm("still") as vm:
        node = vm["node"]
        pid = cluster.qemu_pid("still", node)
        began = time.monotonic()
        cluster.run(node, "systemctl", "stop", "pvc-node")
        if node == cluster.asked:
            cluster.asked = other(node)
        assert cluster.json("node", "info", node)["daemon_state"] == "stop"
        cluster.run(node, "systemctl", "start", "pvc-node")
        print(f"stop and start took {time.monotonic() - began:.1f} s")
        eventually(lambda: cluster.json("node", "info", node)["daemon_state"] == "run", within=15)
        assert cluster.qemu_pid("still", node) == pid
        cluster.asked = "n1"


def test_disk_and_network_come_along(cluster: Cluster) -> None:
    options = ("--disk", "64M", "--network", "bridge:br0")
    with cluster.vm("whole", *options) as vm:
        source, target = vm["node"], other(vm["node"])
        assert [nic["network"] for nic in vm["networks"]] == ["br0"]
        disk = vm["disks"][0]["source"]
        said = json.loads(cluster.run(source, "qemu-img", "info", "-U", "--output=json", disk).stdout)
        assert (said["format"], said["virtual-size"]) == ("qcow2", 64 * 1024 * 1024)
        cluster.ticking("whole", source)
        cluster.pvc("vm", "migrate", "whole", "--target", target, "--wait", "--timeout", "60")
        assert "downtime" in cluster.info("whole")["last_migration"]
        assert cluster.qemus("whole") == [target]
    again = cluster.pvc(
        "vm", "create", "bridgeless", "--network", "bridge:none", "--memory", "64M", check=False
    )
    try:
        assert again.code == 0
        refused = cluster.pvc("vm", "start", "bridgeless", check=False)
        assert refused.code == 4
        assert "no bridge none" in refused.stderr
    finally:
        cluster.remove("bridgeless")


def test_guest_that_crashes_is_started_again(cluster: Cluster) -> None:
    with cluster.vm("dizzy", cmdline="pvc.crash_after=2") as vm:
        eventually(lambda: cluster.info("dizzy")["failures"] >= 1, within=60)
        assert "the guest crashed" in cluster.info("dizzy")["reason"]
        eventually(lambda: cluster.info("dizzy")["state"] == "start", within=60)
        assert cluster.qemus("dizzy") == [vm["node"]]


def test_guest_powers_itself_off(cluster: Cluster) -> None:
    with cluster.vm("tired", cmdline="pvc.poweroff_after=2"):
        eventually(lambda: cluster.info("tired")["state"] == "stop", within=40)
        assert "powered itself off" in cluster.info("tired")["reason"]


def test_vm_that_cannot_start_fails_with_the_reason(cluster: Cluster) -> None:
    cluster.remove("hopeless")
    try:
        cluster.pvc("vm", "create", "hopeless", "--memory", "64M", "--kernel", "/nonexistent/kernel")
        ended = cluster.pvc("vm", "start", "hopeless", "--wait", "--timeout", "60", check=False)
        assert ended.code == 1
        info = cluster.info("hopeless")
        assert info["state"] == "fail"
        assert "/nonexistent/kernel" in info["reason"]
        assert "/nonexistent/kernel" in ended.stderr
        assert cluster.qemus("hopeless") == []
    finally:
        cluster.remove("hopeless")


def test_qemu_killed_is_started_again_then_given_up(cluster: Cluster) -> None:
    with cluster.vm("fragile") as vm:
        node, killed = vm["node"], 0

        def runs_anew() -> int:
            """The process, never 0: to kill that is to kill whoever asks for it."""
            pid = cluster.qemu_pid("fragile", node)
            return pid if pid != killed and cluster.info("fragile")["state"] == "start" else 0

        for _ in range(5):
            killed = eventually(runs_anew, within=60)
            cluster.run(node, "kill", "-9", str(killed))
        eventually(lambda: cluster.info("fragile")["state"] == "fail", within=40)
        assert "5 times" in cluster.info("fragile")["reason"]
        assert cluster.qemus("fragile") == []
        cluster.pvc("vm", "start", "fragile", "--wait", "--timeout", "60")


def test_twenty_clients_race_on_one_vm(cluster: Cluster) -> None:
    with cluster.vm("wanted", start=False):
        nodes = [cluster.lab.nodes[index % len(cluster.lab.nodes)] for index in range(20)]
        with ThreadPoolExecutor(20) as pool:
            ended = list(
                pool.map(
                    lambda one: cluster.run(
                        one[1], "pvc", "vm", "tag", "add", "wanted", f"t{one[0]}", check=False
                    ),
                    enumerate(nodes),
                )
            )
        done = {f"t{index}" for index, one in enumerate(ended) if one.code == 0}
        refused = [one for one in ended if one.code != 0]
        assert all(one.code == 4 and "somebody else" in one.stderr for one in refused), refused
        assert {tag["name"] for tag in cluster.info("wanted")["tags"]} == done
        print(f"{len(done)} of 20 tags written, {len(refused)} refused as conflicts")
        assert len(done) >= 3


def test_flush_and_ready_with_five_vms(cluster: Cluster) -> None:
    names = [f"herd{index}" for index in range(5)]
    try:
        for name in names:
            cluster.remove(name)
            cluster.create(name, "--target", "n2")
        for name in names:
            cluster.ticking(name, "n2")
        began = time.monotonic()
        cluster.pvc("node", "flush", "n2", "--wait", "--timeout", "180")
        flushed_s = time.monotonic() - began
        homes = {name: cluster.info(name) for name in names}
        assert all(vm["node"] != "n2" and vm["migrated_from"] == "n2" for vm in homes.values())
        assert all(vm["state"] == "start" for vm in homes.values())
        assert {vm["node"] for vm in homes.values()} == {"n1", "n3"}
        assert all(cluster.ticks(name, vm["node"])[0].number > 1 for name, vm in homes.items()), (
            "a guest was rebooted"
        )
        refused = cluster.pvc("vm", "migrate", names[0], "--target", "n2", check=False)
        assert refused.code == 4
        cluster.pvc("node", "ready", "n2", "--wait", "--timeout", "180")
        eventually(lambda: all(cluster.info(name)["node"] == "n2" for name in names), within=60)
        print(f"flush of five VMs took {flushed_s:.1f} s")
    finally:
        cluster.pvc("node", "ready", "n2", check=False)
        for name in names:
            cluster.remove(name)


CALL = """
import socket, ssl, sys

address, port, asked, certificate = sys.argv[1:]
context = ssl.create_default_context(cafile="/etc/pvc/tls/ca.pem")
if certificate:
    context.load_cert_chain("/etc/pvc/tls/cert.pem", "/etc/pvc/tls/key.pem")
try:
    with socket.create_connection((address, int(port)), 10) as raw:
        with context.wrap_socket(raw, server_hostname=address) as secured:
            secured.sendall(asked.encode())
            print("answered" if secured.recv(1) else "refused")
except (ssl.SSLError, ConnectionError):
    print("refused")
"""
"""libvirt sends a byte to a client that it has accepted; the console server answers a request."""


@pytest.mark.parametrize(
    ("port", "asked"),
    [("16514", ""), ("7371", "GET /journal?lines=1 HTTP/1.0\r\n\r\n")],
    ids=["libvirt", "console"],
)
def test_no_port_between_nodes_without_a_certificate(cluster: Cluster, port: str, asked: str) -> None:
    address = cluster.lab.states()["n1"]["address"]
    assert ":16509 " not in cluster.run("n1", "ss", "-Hltn").stdout, "libvirt listens without TLS"
    call = ("python3", "-c", CALL, address, port, asked)
    assert cluster.run("n2", *call, "").stdout == "refused\n"
    assert cluster.run("n2", *call, "certificate").stdout == "answered\n"
