"""Interfaces of a real guest come and go while it runs: as pvc, libvirt, the guest and its peer see them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.lab.labs import RunningLab
from tests.lab.test_networks import answers, pings
from tests.lab.vms import Cluster
from tests.support import eventually

NETWORKS = {111: "one", 112: "two"}
SECOND, THIRD, FOURTH = (f"52:54:00:00:01:0{number}" for number in (2, 3, 4))
ADDRESS, PEER = "10.11.0.1", "10.11.0.2"
SEEN = re.compile(r"^nics((?: [0-9a-f:]{17})*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def cluster(lab: RunningLab) -> Iterator[Cluster]:
    """web has one interface at its start, without an address; peer pings the address of its second one."""
    found = Cluster(lab)
    with ExitStack() as stack:
        for vni, description in NETWORKS.items():
            found.pvc("network", "add", str(vni), "-d", description, "-p", "managed", "--wait")
            stack.callback(found.pvc, "network", "remove", str(vni), "--yes", check=False)
        web = ("--target", "n1", "--network", "one")
        stack.enter_context(found.vm("web", *web, cmdline=f"pvc.nic={SECOND}={ADDRESS}/24"))
        peer = ("--target", "n2", "--network", "one")
        stack.enter_context(found.vm("peer", *peer, cmdline=f"pvc.ip={PEER}/24 pvc.ping={ADDRESS}"))
        found.ticking("web", "n1")
        yield found


def in_guest(cluster: Cluster, node: str) -> list[str]:
    """What its kernel has, as it says on its console."""
    uuid = cluster.info("web")["uuid"]
    text = cluster.run(node, "cat", f"/var/log/pvc/console/{uuid}.log").stdout.replace("\r", "")
    found = SEEN.findall(text)
    return found[-1].split() if found else []


def in_libvirt(cluster: Cluster, node: str) -> dict[str, str]:
    """Bridge by MAC address, of `virsh domiflist`."""
    said = cluster.run(node, "virsh", "domiflist", "web").stdout.splitlines()[2:]
    rows = [line.split() for line in said if line.strip()]
    return {row[4]: row[2] for row in rows}


def has(cluster: Cluster, node: str, *macs: str) -> None:
    """Everybody says the same, and nothing is pending."""
    rows = cluster.json("vm", "network", "get", "web")
    assert [(row["mac"], row["state"]) for row in rows] == [(mac, "live") for mac in macs]
    assert in_libvirt(cluster, node) == {row["mac"]: row["bridge"] for row in rows}
    eventually(lambda: sorted(in_guest(cluster, node)) == sorted(macs), within=30.0, every=0.5)
    found = cluster.info("web")
    assert (found["settled"], found["pending_restart"], found["refused"]) == (True, False, "")


def change(cluster: Cluster, *words: str) -> None:
    began = time.monotonic()
    cluster.pvc("vm", "network", *words, "--wait", "--timeout", "60")
    print(f"    vm network {' '.join(words)}: {time.monotonic() - began:.1f} s")


def first(cluster: Cluster) -> str:
    row: dict[str, Any] = cluster.json("vm", "network", "get", "web")[0]
    return str(row["mac"])


def test_a_running_guest_gets_a_second_and_a_third(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    mac = first(cluster)
    eventually(lambda: in_guest(cluster, "n1") == [mac], within=60.0, every=0.5)
    with capsys.disabled():
        print()
        change(cluster, "add", "web", "one", "-a", SECOND)
        answers(cluster, "peer", "n2")
        change(cluster, "add", "web", "two", "-a", THIRD)
    has(cluster, "n1", mac, SECOND, THIRD)
    assert sorted(cluster.json("network", "info", "two")["vms"]) == ["web"]


def test_which_of_two_has_to_be_said(cluster: Cluster) -> None:
    refused = cluster.pvc("vm", "network", "remove", "web", "one", check=False)
    assert refused.code == 4
    assert f"web has 2 interfaces in one: {first(cluster)}, {SECOND}" in refused.stderr


def test_of_three_the_first_goes_and_the_others_stay(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Client line 11 of what must not happen again."""
    before = max(pings(cluster, "peer", "n2"))
    with capsys.disabled():
        print()
        change(cluster, "remove", "web", "one", "-a", first(cluster))
    has(cluster, "n1", SECOND, THIRD)
    answers(cluster, "peer", "n2", after=before)


def test_they_go_along_in_a_live_migration_and_others_come_and_go_there(cluster: Cluster) -> None:
    before = max(pings(cluster, "peer", "n2"))
    cluster.pvc("vm", "migrate", "web", "--target", "n3", "--wait", "--timeout", "60")
    rows = cluster.json("vm", "network", "get", "web")
    assert [(row["mac"], row["state"]) for row in rows] == [(SECOND, "live"), (THIRD, "live")]
    assert in_libvirt(cluster, "n3") == {SECOND: "br111", THIRD: "br112"}
    answers(cluster, "peer", "n2", after=before)
    cluster.pvc("vm", "network", "add", "web", "two", "-a", FOURTH, "--wait", "--timeout", "60")
    has(cluster, "n3", SECOND, THIRD, FOURTH)
    cluster.pvc("vm", "network", "remove", "web", "two", "-a", THIRD, "--wait", "--timeout", "60")
    has(cluster, "n3", SECOND, FOURTH)


def test_a_paused_guest_keeps_it_until_it_goes_on_whatever_becomes_of_the_daemon(cluster: Cluster) -> None:
    cluster.run("n3", "virsh", "suspend", "web")
    try:
        eventually(lambda: "paused" in cluster.info("web")["reason"], within=30.0, every=0.5)
        cluster.pvc("vm", "network", "remove", "web", "two")
        (_, row) = cluster.json("vm", "network", "get", "web")
        assert (row["mac"], row["state"], row["why"]) == (FOURTH, "being detached", "the VM is paused")
        cluster.run("n3", "systemctl", "restart", "pvc-node")
        assert set(in_libvirt(cluster, "n3")) == {SECOND, FOURTH}
    finally:
        cluster.run("n3", "virsh", "resume", "web")
    eventually(lambda: cluster.info("web")["settled"], within=60.0, every=0.5)
    has(cluster, "n3", SECOND)


def test_without_live_it_comes_with_the_next_start(cluster: Cluster) -> None:
    cluster.pvc("vm", "network", "add", "web", "two", "--no-live", "-a", THIRD)
    rows = cluster.json("vm", "network", "get", "web")
    assert [(row["mac"], row["state"]) for row in rows] == [(SECOND, "live"), (THIRD, "from its next start")]
    assert set(in_libvirt(cluster, "n3")) == {SECOND}
    said = json.dumps(cluster.json("why", "vm", "web"))
    assert "its definition was changed since it started" in said
    cluster.pvc("vm", "restart", "web", "--wait", "--timeout", "120")
    has(cluster, "n3", SECOND, THIRD)
