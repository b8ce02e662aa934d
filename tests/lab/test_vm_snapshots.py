"""A guest that writes, kept as it is at one moment and brought back to that."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.lab.labs import RunningLab
from tests.lab.vms import WITH_AGENT, Cluster
from tests.support import eventually

MIB = 1024**2
LOCAL, DONE = "/srv/local", "done by the agent"


@pytest.fixture
def cluster(lab: RunningLab) -> Cluster:
    """With the pool vms, a directory that all its nodes share."""
    return Cluster(lab)


def parts(cluster: Cluster) -> list[int]:
    """How many snapshots each of its volumes has."""
    volumes = [row["name"] for row in cluster.json("storage", "volume", "list", "--pool", "vms")]
    return [len(cluster.json("storage", "volume", "snapshot", "list", "vms", name)) for name in volumes]


def test_a_guest_that_writes_goes_on_and_is_brought_back(cluster: Cluster) -> None:
    disks = ("--disk", "64M", "--disk", "16M")
    with cluster.vm("web", *disks, "--target", "n2", cmdline="pvc.write=vda"):
        before = cluster.writing("web", "n2", more_than=3)
        cluster.pvc("vm", "snapshot", "create", "web", "daily")
        later = cluster.writing("web", "n2", more_than=cluster.wrote("web", "n2") + 5)
        (row,) = cluster.json("vm", "snapshot", "list", "web")
        assert (row["name"], row["quiesced"], row["size_bytes"]) == ("daily", "paused", 80 * MIB)
        assert (cluster.info("web")["snapshots"], parts(cluster)) == (["daily"], [1, 1])
        refused = cluster.pvc("vm", "snapshot", "rollback", "web", "daily", "--yes", check=False)
        assert (refused.code, "a rollback needs it stopped" in refused.stderr) == (4, True)
        cluster.pvc("vm", "memory", "set", "web", "128M")
        cluster.pvc("vm", "stop", "web", "--yes", "--wait", "--timeout", "60")
        cluster.pvc("vm", "snapshot", "rollback", "web", "daily", "--yes")
        assert (cluster.info("web")["memory_mib"], parts(cluster)) == (96, [1, 1])
        cluster.pvc("vm", "start", "web", "--wait", "--timeout", "60")
        kept = eventually(lambda: (found := cluster.kept("web", "n2"))[1:] and found, within=90)
        assert before <= kept[-1] < later
        cluster.pvc("vm", "snapshot", "remove", "web", "daily", "--yes")
        assert (cluster.info("web")["snapshots"], parts(cluster)) == ([], [0, 0])
        cluster.writing("web", "n2", more_than=later)


@contextmanager
def with_agent(cluster: Cluster, pool: str) -> Iterator[int]:
    """VM web on n2, whose agent answers: it counts in a file on its disk and syncs nothing. How far it is."""
    options = ("--disk", f"{pool}/64M", "--target", "n2")
    with cluster.vm("web", *options, initrd=WITH_AGENT, cmdline="pvc.agent pvc.files=vda"):
        eventually(lambda: said(cluster, "guest-ping") is not None, within=90)
        yield cluster.writing("web", "n2", more_than=3)


def said(cluster: Cluster, command: str, **arguments: Any) -> Any:
    """By the agent in web; None where it does not answer."""
    asked = json.dumps({"execute": command, "arguments": arguments} if arguments else {"execute": command})
    virsh = ("virsh", "qemu-agent-command", "web", asked, "--timeout", "5")
    done = cluster.run("n2", *virsh, check=False)
    return json.loads(done.stdout)["return"] if done.code == 0 else None


def in_guest(cluster: Cluster, script: str) -> None:
    """Done by its agent, which may not live to say so."""
    before = cluster.console("web", "n2").count(DONE)
    said(cluster, "guest-exec", path="/bin/sh", arg=["-c", f"{script}; echo {DONE} >/dev/console"])
    eventually(lambda: cluster.console("web", "n2").count(DONE) > before, within=60)


def found(cluster: Cluster) -> list[str]:
    """What the guest found on its disk, each time that it booted."""
    return re.findall(r"^files (.*)$", cluster.console("web", "n2"), re.MULTILINE)


def goes_on(cluster: Cluster) -> int:
    return cluster.writing("web", "n2", more_than=cluster.wrote("web", "n2"), within=60)


def taken(cluster: Cluster, name: str) -> str:
    """How a snapshot of web came about that is made now."""
    cluster.pvc("vm", "snapshot", "create", "web", name)
    rows = cluster.json("vm", "snapshot", "list", "web")
    return next(str(row["quiesced"]) for row in rows if row["name"] == name)


def test_what_a_guest_holds_in_its_memory_is_in_a_snapshot_that_its_agent_knows_of(cluster: Cluster) -> None:
    with with_agent(cluster, "vms") as before:
        assert taken(cluster, "daily") == "agent"
        later = goes_on(cluster)
        cluster.pvc("vm", "stop", "web", "--yes", "--wait", "--timeout", "60")
        cluster.pvc("vm", "snapshot", "rollback", "web", "daily", "--yes")
        cluster.pvc("vm", "start", "web", "--wait", "--timeout", "60")
        kept = eventually(lambda: (seen := cluster.kept("web", "n2"))[1:] and seen, within=90)
        assert before <= kept[-1] < later
        assert found(cluster) == ["made", "clean"]


@pytest.fixture
def local(cluster: Cluster) -> Iterator[str]:
    """A pool of n2."""
    cluster.run("n2", "mkdir", "-p", "-m", "755", LOCAL)
    cluster.pvc("storage", "pool", "add", "local", "--path", LOCAL, "--node", "n2")
    yield "local"
    cluster.pvc("storage", "pool", "remove", "local", "--yes")
    cluster.run("n2", "rm", "-r", LOCAL)


@contextmanager
def hanging(cluster: Cluster) -> Iterator[None]:
    """Whoever looks whether that pool is there waits, until the node's daemon is killed."""
    marker, kept = f"{LOCAL}/.pvc-pool", f"{LOCAL}/.kept"
    cluster.lab.sh("n2", f"ln {marker} {kept} && mkfifo {LOCAL}/.fifo && mv {LOCAL}/.fifo {marker}")
    try:
        yield
    finally:
        cluster.run("n2", "mv", kept, marker)
        cluster.lab.lab("kill", "n2", "pvc-node")


def test_a_guest_goes_on_whatever_becomes_of_the_daemon_or_its_agent(cluster: Cluster, local: str) -> None:
    with with_agent(cluster, local):
        with hanging(cluster):
            begun = cluster.json("vm", "snapshot", "create", "web", "lost", "--no-wait")
            eventually(lambda: said(cluster, "guest-fsfreeze-status") == "frozen", within=60)
        goes_on(cluster)
        eventually(lambda: cluster.json("task", "info", begun["name"])["state"] == "lost", within=60)
        assert cluster.json("vm", "snapshot", "list", "web") == []

        in_guest(cluster, "echo exit 1 >>/freeze-hook")
        assert taken(cluster, "refused") == "paused"

        in_guest(cluster, "sleep 1; kill -STOP $(pidof qemu-ga)")
        assert taken(cluster, "silent") == "paused"
        goes_on(cluster)
