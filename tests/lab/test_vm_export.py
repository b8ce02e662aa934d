"""A VM that is exported while it runs, all of it and then what differs, and made again of that."""

from __future__ import annotations

from pathlib import Path

from tests.lab.labs import RunningLab
from tests.lab.vms import Cluster

WHERE = "/var/lib/exports"


def test_a_vm_that_ran_comes_back_as_it_was_at_its_newest_snapshot(lab: RunningLab) -> None:
    goes_and_comes_back(lab, "vms", "vms")


def goes_and_comes_back(lab: RunningLab, pool: str, into: str) -> None:
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
    exports = lab.layout.upper(lab.layout.node("n2")) / WHERE.lstrip("/")
    assert sorted(one.name for one in exports.iterdir()) == ["ledger-mon.1", "ledger-tue"]
    full, differs = (_size(exports / name) for name in ("ledger-mon.1", "ledger-tue"))
    assert differs <= full + 4096
    try:
        cluster.pvc("vm", "snapshot", "import", "heir", f"{WHERE}/ledger-tue", "--node", "n2", "--pool", into)
        cluster.pvc("vm", "start", "heir", "--wait", "--timeout", "60")
        node = cluster.info("heir")["node"]
        cluster.writing("heir", node)
        (kept, *_) = cluster.kept("heir", node)
        assert before <= kept <= latest + 1  # it may have written one that it has not told of yet
    finally:
        cluster.remove("heir")
        cluster.run("n2", "rm", "-r", WHERE)


def _size(export: Path) -> int:
    return sum(one.stat().st_size for one in export.glob("*.rbddiff"))
