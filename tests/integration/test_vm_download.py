"""Exports of VMs' snapshots that come to the client, as users fetch them, and VMs that are made of them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pvc.cluster import exports
from pvc.errors import Conflict, Failed, PVCError, Unavailable
from pvc.node import diffs
from pvc.node.transfer import MOST_BYTES
from pvc.node.vm_download import WAITING_BYTES
from tests.contract.test_pool import qemu_io
from tests.integration.test_images import MIB, Cluster, Interrupting, a_cluster
from tests.support import eventually

CONTENT = b"".join(hashlib.sha256(str(number).encode()).digest() for number in range(2**15)) * 24
"""24 MiB: more than waits on a node, and in several pieces."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """VM web1 with a disk, and snapshots mon and tue; between them 1 MiB was written, and 1 MiB zeroed."""
    assert len(CONTENT) > WAITING_BYTES
    with a_cluster(tmp_path) as made:
        assert made.pvc("storage", "volume", "upload", "vms", "web1", made.image("raw", CONTENT)) == 0
        disk = made.call("storage.volume-info", pool="vms", volume="web1")["location"]
        made.call("vm.create", name="web1", disk=[disk], target="n1")
        snapshot(made, "mon")
        qemu_io(disk, "qcow2", f"write -P 7 {MIB} {MIB}", f"write -z {3 * MIB} {MIB}")
        snapshot(made, "tue")
        yield made


def snapshot(cluster: Cluster, name: str) -> None:
    begun = cluster.call("vm.snapshot-create", vm="web1", snapshot=name)
    assert ended(cluster, begun) == ("done", "")


def ended(cluster: Cluster, begun: Any) -> tuple[str, str]:
    eventually(lambda: cluster.call("task.info", task=begun["name"])["settled"], within=30)
    found = cluster.call("task.info", task=begun["name"])
    return found["state"], found["reason"]


def there(cluster: Cluster) -> list[str]:
    """What is left here, and on the node."""
    eventually(cluster.tasks_over, within=10)
    assert cluster.leftovers() == []
    return sorted(path.name for path in cluster.tmp.glob("*.zip*"))


def file(cluster: Cluster, name: str) -> str:
    return str(cluster.tmp / name)


def test_what_was_fetched_is_a_vm_again(cluster: Cluster) -> None:
    whole, part = file(cluster, "mon.zip"), file(cluster, "tue.zip")
    assert cluster.pvc("vm", "snapshot", "download", "web1", "mon", whole) == 0
    assert cluster.pvc("vm", "snapshot", "download", "web1", "tue", part, "-i", "mon") == 0
    assert there(cluster) == ["mon.zip", "tue.zip"]
    assert Path(part).stat().st_size < 2 * MIB < len(CONTENT) < Path(whole).stat().st_size
    backup = cluster.tmp / "backup"
    for one in (whole, part):
        subprocess.run([sys.executable, "-m", "zipfile", "-e", one, backup], check=True)
    begun = cluster.call("vm.snapshot-import", name="web2", path=str(backup / "web1-tue"))
    assert ended(cluster, begun) == ("done", "")
    expected = bytearray(CONTENT)
    expected[MIB : 2 * MIB] = b"\7" * MIB
    expected[3 * MIB : 4 * MIB] = bytes(MIB)
    found = cluster.call("vm.info", vm="web2")
    assert found["state"] == "stop"
    (volume,) = (one for one in cluster.volumes() if one != "web1")
    assert cluster.content(volume) == expected


def test_it_goes_to_standard_output(cluster: Cluster, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    capfdbinary.readouterr()
    assert cluster.pvc("vm", "snapshot", "download", "web1", "mon", "-") == 0
    came = cluster.tmp / "came"
    came.write_bytes(capfdbinary.readouterr().out)
    with zipfile.ZipFile(came) as archive:
        manifest = exports.read(archive.read("web1-mon/manifest.json"), "it")
        (disk,) = manifest.disks
        assert hashlib.sha256(archive.read(f"web1-mon/{disk.file}")).hexdigest() == disk.sha256
    assert cluster.pvc("vm", "snapshot", "download", "web1", "mon", file(cluster, "same.zip")) == 0
    with pytest.raises(Conflict, match="is there already"):
        cluster.pvc("vm", "snapshot", "download", "web1", "mon", file(cluster, "same.zip"))
    assert cluster.pvc("vm", "snapshot", "download", "web1", "mon", file(cluster, "same.zip"), "--force") == 0


def test_an_api_that_is_away_for_a_while_is_asked_again(cluster: Cluster) -> None:
    def fail(number: int) -> None:
        if number in (2, 3, 5):
            raise Unavailable("the API is away")

    where = file(cluster, "mon.zip")
    assert cluster.pvc("vm", "snapshot", "download", "web1", "mon", where, before=fail) == 0
    with zipfile.ZipFile(where) as archive:
        assert archive.testzip() is None


def test_one_that_broke_off_leaves_nothing(cluster: Cluster) -> None:
    def interrupt(number: int) -> None:
        if number == 3:
            raise KeyboardInterrupt

    argv = ("vm", "snapshot", "download", "web1", "mon", file(cluster, "mon.zip"))
    with pytest.raises(PVCError, match="what had come is taken away") as interrupted:
        cluster.pvc(*argv, before=interrupt)
    assert interrupted.value.exit_code == 130
    assert there(cluster) == []
    assert [row["state"] for row in cluster.call("task.list") if "handing out" in row["about"]] == [
        "cancelled"
    ]

    def cancel(number: int) -> None:
        if number == 3:
            for row in cluster.call("task.list"):
                if row["state"] == "running":
                    cluster.call("task.cancel", task=row["name"])
                    assert ended(cluster, row)[0] == "cancelled"

    with pytest.raises(PVCError):
        cluster.pvc(*argv, before=cancel)
    assert there(cluster) == []
    assert cluster.pvc(*argv) == 0


def test_a_client_that_is_gone_holds_nothing_up(cluster: Cluster) -> None:
    """And no more of it is made than waits for it."""
    cluster.working.transfers.silence_s = 0.5
    begun = cluster.call("vm.snapshot-download-begin", vm="web1", snapshot="mon")
    assert ended(cluster, begun) == ("failed", "nobody came for 0.5 s")
    with pytest.raises(Failed, match="nobody came"):
        cluster.call("vm.snapshot-download-piece", task=begun["name"], offset=0)
    assert there(cluster) == []


def test_pieces_come_in_order_and_the_last_may_come_twice(cluster: Cluster) -> None:
    begun = cluster.call("vm.snapshot-download-begin", vm="web1", snapshot="mon")["name"]

    def piece(offset: int) -> bytes:
        found = cluster.call("vm.snapshot-download-piece", task=begun, offset=offset)
        assert isinstance(found, bytes)
        return found

    def is_whole(offset: int) -> bool:
        return bool(cluster.call("vm.snapshot-download-end", task=begun, offset=offset)["is_whole"])

    first = piece(0)
    assert len(first) == MOST_BYTES
    assert piece(0) == first
    second = piece(len(first))
    assert second != first
    with pytest.raises(Conflict, match="is not here"):
        piece(0)
    with pytest.raises(Conflict, match="is not here"):
        piece(10**12)
    assert not is_whole(0)
    with pytest.raises(Conflict, match="web1 is being changed by task"):
        cluster.call("storage.volume-resize", pool="vms", volume="web1", size="1G")
    place = len(first)
    while found := piece(place):
        place += len(found)
    assert not is_whole(place - 1)
    assert is_whole(place)
    assert ended(cluster, {"name": begun}) == ("done", "")
    assert cluster.call("task.info", task=begun)["result"]["bytes"] == place


@pytest.mark.parametrize("damage", ["on the way", "file", "manifest"])
def test_what_is_damaged_gets_no_name(cluster: Cluster, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    match damage:
        case "on the way":
            call = Interrupting.call

            def other(self: Interrupting, name: str, arguments: Mapping[str, Any], **how: Any) -> Any:
                answer = call(self, name, arguments, **how)
                return answer[:-1] + b"x" if name.endswith("-piece") and answer else answer

            monkeypatch.setattr(Interrupting, "call", other)
            words = "what came is not what was sent"
        case "file":
            monkeypatch.setattr(diffs.Written, "sha256", "0" * 64)
            words = "the checksum of vda.rbddiff is not the one in the manifest"
        case _:
            monkeypatch.setattr(exports, "written", lambda manifest: b"{}")
            words = "what came is not a whole export"
    with pytest.raises(Failed, match=words):
        cluster.pvc("vm", "snapshot", "download", "web1", "tue", file(cluster, "tue.zip"), "-i", "mon")
    assert there(cluster) == []
