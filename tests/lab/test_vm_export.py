"""A VM that is exported while it runs, all of it and then what differs, and made again of that."""

from __future__ import annotations

from pathlib import Path

from tests.lab.labs import RunningLab
from tests.lab.vms import Cluster

WHERE = "/var/lib/exports"
"""On n2."""
HERE = "/var/lib/downloads"
"""Where somebody has the client."""
FILES = (f"{HERE}/mon.1.zip", f"{HERE}/tue.zip")


def test_a_vm_that_ran_comes_back_as_it_was_at_its_newest_snapshot(lab: RunningLab) -> None:
    goes_and_comes_back(lab, "vms", "vms", by_files=True)


def goes_and_comes_back(lab: RunningLab, pool: str, into: str, *, by_files: bool = False) -> None:
    """By directories of a node; `by_files`, also by files of a client, to the same disk."""
    cluster = Cluster(lab)
    cluster.run("n2", "mkdir", "-p", WHERE)
    with cluster.vm("ledger", "--target", "n2", "--disk", f"{pool}/64M", cmdline="pvc.write=vda"):
        cluster.writing("ledger", "n2")
        cluster.pvc("vm", "snapshot", "create", "ledger", "mon.1")
        cluster.pvc("vm", "snapshot", "export", "ledger", "mon.1", WHERE)
        before = cluster.writing("ledger", "n2", more_than=cluster.wrote("ledger", "n2") + 10)
        cluster.pvc("vm", "snapshot", "create", "ledger", "tue")
        latest = cluster.wrote("ledger", "n2")
        cluster.pvc("vm", "snapshot", "export", "ledger", "tue", WHERE, "--parent", "mon.1")
        cluster.writing("ledger", "n2", more_than=latest)  # it goes on
        again = cluster.pvc("vm", "snapshot", "export", "ledger", "tue", WHERE, check=False)
        assert (again.code, "is there already" in again.stderr) == (4, True)
        if by_files:
            cluster.run("n1", "mkdir", "-p", HERE)
            cluster.pvc("vm", "snapshot", "download", "ledger", "mon.1", FILES[0])
            cluster.pvc("vm", "snapshot", "download", "ledger", "tue", FILES[1], "-i", "mon.1")
    exports = lab.layout.upper(lab.layout.node("n2")) / WHERE.lstrip("/")
    assert sorted(one.name for one in exports.iterdir()) == ["ledger-mon.1", "ledger-tue"]
    full, differs = (_size(exports / name) for name in ("ledger-mon.1", "ledger-tue"))
    assert differs <= full + 4096
    try:
        cluster.pvc("vm", "snapshot", "import", "heir", f"{WHERE}/ledger-tue", "--node", "n2", "--pool", into)
        if by_files:
            cluster.pvc("vm", "snapshot", "upload", "twin", *FILES, "--pool", into)
            assert _sum(cluster, into, "twin-vda") == _sum(cluster, into, "heir-vda")
        cluster.pvc("vm", "start", "heir", "--wait", "--timeout", "60")
        node = cluster.info("heir")["node"]
        cluster.writing("heir", node)
        (kept, *_) = cluster.kept("heir", node)
        assert before <= kept <= latest + 1  # it may have written one that it has not told of yet
    finally:
        for name in ("heir", "twin"):
            cluster.remove(name)
        cluster.run("n2", "rm", "-r", WHERE)
        cluster.run("n1", "rm", "-rf", HERE)


def _sum(cluster: Cluster, pool: str, volume: str) -> str:
    """Of what is on it."""
    script = f"pvc -q storage volume download {pool} {volume} - | sha256sum"
    return cluster.run("n1", "bash", "-o", "pipefail", "-c", script).stdout


def _size(export: Path) -> int:
    return sum(one.stat().st_size for one in export.glob("*.rbddiff"))
