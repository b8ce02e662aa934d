"""VMs that are made of exports in files of the client, as users bring them back."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pvc.errors import Conflict, Failed, Invalid, PVCError, Unavailable
from pvc.node.vm_download import WAITING_BYTES
from tests.contract.test_pool import qemu_io
from tests.integration.test_images import MIB, Cluster, a_cluster
from tests.integration.test_vm_download import CONTENT, ended, file, snapshot
from tests.support import eventually

UPLOAD = ("vm", "snapshot", "upload", "web2")
EXPECTED = b"".join((CONTENT[:MIB], b"\7" * MIB, CONTENT[2 * MIB : 3 * MIB], bytes(MIB), CONTENT[4 * MIB :]))


@pytest.fixture(scope="module")
def module_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """VM web1 with snapshots mon and tue, both downloaded."""
    assert len(CONTENT) > WAITING_BYTES
    with a_cluster(tmp_path_factory.mktemp("cluster")) as made:
        assert made.pvc("storage", "volume", "upload", "vms", "web1", made.image("raw", CONTENT)) == 0
        disk = made.call("storage.volume-info", pool="vms", volume="web1")["location"]
        made.call("vm.create", name="web1", disk=[disk], target="n1")
        snapshot(made, "mon")
        qemu_io(disk, "qcow2", f"write -P 7 {MIB} {MIB}", f"write -z {3 * MIB} {MIB}")
        snapshot(made, "tue")
        for name, options in (("mon", ()), ("tue", ("-i", "mon"))):
            argv = ("vm", "snapshot", "download", "web1", name, file(made, f"{name}.zip"), *options)
            assert made.pvc(*argv) == 0
        yield made


@pytest.fixture
def cluster(module_cluster: Cluster) -> Iterator[Cluster]:
    """Nothing is left by any test, but what it has made whole."""
    yield module_cluster
    nothing_left(module_cluster)


def nothing_left(cluster: Cluster) -> None:
    eventually(cluster.tasks_over, within=60)
    assert (cluster.volumes(), cluster.leftovers()) == (["web1"], [])
    assert [row["name"] for row in cluster.call("vm.list")] == ["web1"]


def removed(cluster: Cluster, uuid: str) -> None:
    """With its volume."""
    for kept in cluster.call("vm.snapshot-list", vm=uuid):
        assert ended(cluster, cluster.call("vm.snapshot-remove", vm=uuid, snapshot=kept["name"]))[0] == "done"
    assert ended(cluster, cluster.call("vm.remove", vm=uuid)) == ("done", "")


def made_of(cluster: Cluster, *names: str, before: Any = lambda number: None) -> bytes:
    """What is on its disk; it is gone again."""
    files = [file(cluster, name) for name in names]
    assert cluster.pvc(*UPLOAD, *files, before=before) == 0
    assert cluster.call("vm.info", vm="web2")["state"] == "stop"
    (volume,) = (one for one in cluster.volumes() if one != "web1")
    content = cluster.content(volume)
    removed(cluster, "web2")
    return content


def test_what_was_downloaded_is_a_vm_again(cluster: Cluster) -> None:
    assert made_of(cluster, "mon.zip") == CONTENT
    assert made_of(cluster, "mon.zip", "tue.zip") == EXPECTED


def test_ctrl_c_and_a_task_that_is_cancelled_leave_nothing(cluster: Cluster) -> None:
    def interrupt(number: int) -> None:
        if number == 5:
            raise KeyboardInterrupt

    with pytest.raises(PVCError, match="what had come is taken away") as interrupted:
        cluster.pvc(*UPLOAD, file(cluster, "mon.zip"), before=interrupt)
    assert interrupted.value.exit_code == 130
    nothing_left(cluster)

    def cancel(number: int) -> None:
        if number == 5:
            for row in cluster.call("task.list"):
                if row["state"] == "running":
                    cluster.call("task.cancel", task=row["name"])
                    assert ended(cluster, row)[0] == "cancelled"

    with pytest.raises(PVCError):
        cluster.pvc(*UPLOAD, file(cluster, "mon.zip"), before=cancel)


def test_one_that_was_cut_off_goes_on(cluster: Cluster) -> None:
    """Its client died; and then the API is away for a while."""

    class Died(BaseException):
        """As by kill -9: nothing is said any more."""

    def die(number: int) -> None:
        if number == 5:
            raise Died

    seen: list[int] = []

    def count(number: int) -> None:
        seen.append(number)
        if number in (2, 4):
            raise Unavailable("the API is away")

    with pytest.raises(Died):
        cluster.pvc(*UPLOAD, file(cluster, "mon.zip"), file(cluster, "tue.zip"), before=die)
    (task,) = (row for row in cluster.call("task.list") if row["state"] == "running")
    assert made_of(cluster, "mon.zip", "tue.zip", before=count) == EXPECTED
    assert cluster.call("task.info", task=task["name"])["state"] == "done"


def test_a_client_that_is_silent_loses_what_has_come(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.working.transfers, "silence_s", 0.2)
    with zipfile.ZipFile(file(cluster, "mon.zip")) as archive:
        manifest = archive.read("web1-mon/manifest.json").decode()
    begun = cluster.call("vm.snapshot-upload-begin", name="web2", manifest=[manifest])
    assert ended(cluster, begun) == ("failed", "nobody came for 0.2 s")
    with pytest.raises(Failed, match="nobody came"):
        cluster.call("vm.snapshot-upload-piece", task=begun["name"], offset=0, piece=b"x")


def test_damaged_files_make_nothing(cluster: Cluster) -> None:
    whole, odd = Path(file(cluster, "mon.zip")).read_bytes(), Path(file(cluster, "odd.zip"))
    odd.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Invalid, match="is not a whole zip file"):
        cluster.pvc(*UPLOAD, str(odd))
    damaged = bytearray(whole)
    damaged[20 * MIB] ^= 1  # the library of the client sees it at the end of the file, and the node, too
    odd.write_bytes(damaged)
    with pytest.raises(Invalid, match="is not a whole zip file of an export: Bad CRC"):
        cluster.pvc(*UPLOAD, str(odd))
    with pytest.raises(Conflict, match="VM named web1 already"):
        cluster.pvc("vm", "snapshot", "upload", "web1", file(cluster, "mon.zip"))
