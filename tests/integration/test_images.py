"""Images into volumes and out of them, as users do it: client, API server, a node's server and its tasks."""

from __future__ import annotations

import functools
import hashlib
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pvc import cli
from pvc.cluster.benchmark import PATTERNS
from pvc.commands.registry import every_operation
from pvc.errors import Conflict, Failed, Invalid, NotFound, PVCError, Unavailable
from pvc.http.client import HttpTransport
from pvc.http.serve import Texts
from pvc.node.working import Working
from pvc.peerclient import ask, carry, fetch
from tests.contract.test_storage_tasks import one_node
from tests.fakes.serving import Serving, serving
from tests.support import eventually

MIB = 1024**2
CONTENT = b"".join([b"boot", bytes(5 * MIB), b"middle" * 100_000, bytes(9 * MIB)]).ljust(20 * MIB, b"\0")


class Interrupting(HttpTransport):
    """The user's hand on Ctrl-C, or a network that fails: `before` is called with the number of the piece."""

    before: Callable[[int], None]
    pieces: int

    def call(self, name: str, arguments: Mapping[str, Any], **how: Any) -> Any:
        if name.endswith(("-piece", "-map")):
            self.pieces += 1
            self.before(self.pieces)
        return super().call(name, arguments, **how)


@dataclass
class Cluster:
    served: Serving
    working: Working
    where: Path
    """The directory of the pool vms."""
    tmp: Path

    def transport(self, before: Callable[[int], None] = lambda number: None) -> Interrupting:
        made = Interrupting(self.served.path)
        made.before, made.pieces = before, 0
        return made

    def pvc(self, *argv: str, before: Callable[[int], None] = lambda number: None) -> int:
        return cli.run(["-q", *argv], lambda options: self.transport(before))

    def call(self, operation: str, /, **arguments: Any) -> Any:
        transport = self.transport()
        try:
            return transport.call(operation, arguments)
        finally:
            transport.close()

    def volumes(self) -> list[str]:
        return [row["name"] for row in self.call("storage.volume-list")]

    def leftovers(self) -> list[str]:
        return [path.name for path in self.where.iterdir() if path.name.startswith(".task")]

    def content(self, volume: str) -> bytes:
        copy = self.tmp / "copy"
        location = self.call("storage.volume-info", pool="vms", volume=volume)["location"]
        subprocess.run(["qemu-img", "convert", "-O", "raw", location, copy], check=True)
        return copy.read_bytes()

    def tasks_over(self) -> bool:
        return not self.working.is_busy()

    def image(self, format: str, content: bytes = CONTENT) -> str:
        raw, made = self.tmp / "image.raw", self.tmp / f"image.{format}"
        raw.write_bytes(content)
        if format != "raw":
            subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", format, raw, made], check=True)
        return str(made)


@contextmanager
def a_cluster(tmp_path: Path) -> Iterator[Cluster]:
    with one_node(tmp_path) as node:
        config = node.config
        ways = (
            functools.partial(fetch, config),
            functools.partial(ask, config),
            functools.partial(carry, config),
        )
        texts = Texts(*ways)
        with serving(tmp_path, node.world.cluster, list(every_operation()), texts) as served:
            made = Cluster(served, node.working, tmp_path / "pool", tmp_path)
            made.where.mkdir()
            assert made.pvc("storage", "pool", "add", "vms", "--path", str(made.where)) == 0
            yield made
            node.working.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with a_cluster(tmp_path) as made:
        yield made


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk"])
def test_an_image_is_uploaded_and_is_the_same_again(cluster: Cluster, format: str) -> None:
    assert cluster.pvc("storage", "volume", "upload", "vms", "web1", cluster.image(format)) == 0
    found = cluster.call("storage.volume-info", pool="vms", volume="web1")
    assert (found["format"], found["size_bytes"]) == ("qcow2", len(CONTENT))
    assert found["used_bytes"] < 2 * MIB
    assert cluster.content("web1") == CONTENT
    for written, options in (("back.raw", ()), ("back.qcow2", ("-f", "qcow2"))):
        back = cluster.tmp / written
        assert cluster.pvc("storage", "volume", "download", "vms", "web1", str(back), *options) == 0
        assert back.stat().st_blocks * 512 < 2 * MIB
        subprocess.run(["qemu-img", "compare", cluster.image("raw"), back], check=True)
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", cluster.tmp / "back.qcow2"], check=True)
    assert (cluster.tmp / "back.raw").read_bytes() == CONTENT
    eventually(cluster.tasks_over, within=10)
    assert cluster.leftovers() == []


def test_a_volume_goes_to_standard_output(
    cluster: Cluster, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert cluster.pvc("storage", "volume", "upload", "vms", "web1", cluster.image("raw"), "--raw") == 0
    assert cluster.call("storage.volume-info", pool="vms", volume="web1")["format"] == "raw"
    capfdbinary.readouterr()
    assert cluster.pvc("storage", "volume", "download", "vms", "web1", "-") == 0
    assert capfdbinary.readouterr().out == CONTENT
    begun = cluster.call("storage.volume-download-begin", pool="vms", volume="web1")["name"]
    assert cluster.pvc("storage", "volume", "download-piece", begun, "--offset", "1", "--length", "3") == 0
    assert capfdbinary.readouterr().out == CONTENT[1:4]
    assert cluster.pvc("storage", "volume", "download-end", begun) == 0


def test_ctrl_c_takes_away_what_has_come(cluster: Cluster) -> None:
    def interrupt(number: int) -> None:
        if number == 3:
            raise KeyboardInterrupt

    image = cluster.image("raw")
    with pytest.raises(PVCError, match="what had come is taken away") as interrupted:
        cluster.pvc("storage", "volume", "upload", "vms", "web1", image, before=interrupt)
    assert interrupted.value.exit_code == 130
    eventually(cluster.tasks_over, within=10)
    assert (cluster.volumes(), cluster.leftovers()) == ([], [])
    assert cluster.pvc("storage", "volume", "upload", "vms", "web1", image) == 0
    back = cluster.tmp / "back"
    with pytest.raises(PVCError, match="what had come is taken away"):
        cluster.pvc("storage", "volume", "download", "vms", "web1", str(back), before=interrupt)
    assert [path.name for path in cluster.tmp.glob("back*")] == []
    eventually(cluster.tasks_over, within=10)


def test_a_client_that_died_is_gone_on_with(cluster: Cluster) -> None:
    class Died(BaseException):
        """As by kill -9: nothing is said any more."""

    def die(number: int) -> None:
        if number == 4:
            raise Died

    seen: list[int] = []
    image = cluster.image("raw")
    argv = ("storage", "volume", "upload", "vms", "web1", image)
    with pytest.raises(Died):
        cluster.pvc(*argv, before=die)
    assert cluster.pvc(*argv, before=seen.append) == 0
    assert len(seen) == 1 + 3, "asked where, and the pieces that were missing"
    assert cluster.content("web1") == CONTENT


def test_a_server_that_is_away_for_a_while_is_asked_again(cluster: Cluster) -> None:
    def fail(number: int) -> None:
        if number in (2, 4):
            raise Unavailable("the API is away")

    image = cluster.image(
        "qcow2", CONTENT + b"".join(hashlib.sha256(bytes([n])).digest() * 65536 for n in range(8))
    )
    assert cluster.pvc("storage", "volume", "upload", "vms", "web1", image, before=fail) == 0
    assert cluster.content("web1")[: len(CONTENT)] == CONTENT


def test_an_upload_whose_last_answer_is_lost_has_gone_well(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Interrupting.call

    def lost(transport: Interrupting, operation: str, arguments: dict[str, Any], **how: Any) -> Any:
        answer = ask(transport, operation, arguments, **how)
        if "sha256" in arguments:
            eventually(cluster.tasks_over, within=20)
            raise Unavailable("the answer is lost")
        return answer

    monkeypatch.setattr(Interrupting, "call", lost)
    assert cluster.pvc("storage", "volume", "upload", "vms", "web1", cluster.image("qcow2")) == 0
    assert cluster.content("web1") == CONTENT


def wrong(cluster: Cluster, kind: type[PVCError], words: str, *argv: str) -> None:
    """Refused with these words, and nothing is left."""
    with pytest.raises(kind, match=words):
        cluster.pvc("storage", "volume", "upload", "vms", "web1", *argv)
    eventually(cluster.tasks_over, within=10)
    assert (cluster.volumes(), cluster.leftovers()) == ([], [])


def test_files_that_are_no_disks_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    qcow2, raw = Path(cluster.image("qcow2")), cluster.image("raw")
    wrong(cluster, Invalid, "is not raw: it begins as a qcow2 file does", str(qcow2), "-f", "raw")
    wrong(cluster, Invalid, "is not vdi: it does not begin as", raw, "-f", "vdi")
    wrong(cluster, NotFound, "no file", str(tmp_path / "absent"))
    wrong(cluster, Invalid, "neither a file nor a disk", "/dev/null")
    odd = tmp_path / "odd"
    odd.write_bytes(b"")
    wrong(cluster, Invalid, "is empty", str(odd))
    odd.write_bytes(bytes(1000))
    wrong(cluster, Invalid, "no multiple of 512", str(odd))
    odd.write_bytes(b"\x1f\x8b" + bytes(1022))
    wrong(cluster, Invalid, "packed with gzip", str(odd))
    odd.write_bytes(qcow2.read_bytes()[: qcow2.stat().st_size // 2])
    wrong(cluster, Invalid, "its end is missing", str(odd))
    with pytest.raises(Conflict, match="is there already"):
        cluster.pvc("storage", "volume", "download", "vms", "web1", raw)
    assert cluster.pvc("storage", "volume", "add", "vms", "web1", "1M") == 0
    with pytest.raises(Conflict, match="there is a volume web1 already"):
        cluster.pvc("storage", "volume", "upload", "vms", "web1", raw)
    assert cluster.content("web1") == bytes(MIB)


def test_an_image_with_a_backing_file_would_show_the_files_of_the_node(
    cluster: Cluster, tmp_path: Path
) -> None:
    secret, overlay = tmp_path / "secret", tmp_path / "overlay"
    secret.write_bytes(b"of the node".ljust(MIB, b"\0"))
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", overlay], check=True
    )
    wrong(cluster, Invalid, "has a backing file", str(overlay))
    # A client of somebody's own does not look; the node does.
    begun = cluster.call(
        "storage.volume-upload-begin",
        pool="vms",
        volume="web1",
        size=overlay.stat().st_size,
        format="qcow2",
    )
    with pytest.raises(Failed, match="has a backing file"):
        piece(cluster, begun, 0, overlay.read_bytes())
    assert ended(cluster, begun) == ("failed", "it has a backing file, of which it is only the difference")
    assert cluster.leftovers() == []


def piece(cluster: Cluster, begun: Any, offset: int, content: bytes, sha256: str = "") -> int:
    told = cluster.call(
        "storage.volume-upload-piece",
        task=begun["name"],
        offset=offset,
        piece=content,
        sha256=sha256,
    )
    return int(told["next"])


def ended(cluster: Cluster, begun: Any) -> tuple[str, str]:
    eventually(lambda: cluster.call("task.info", task=begun["name"])["settled"], within=10)
    found = cluster.call("task.info", task=begun["name"])
    return found["state"], found["reason"]


def begin(cluster: Cluster, size: int) -> Any:
    return cluster.call(
        "storage.volume-upload-begin",
        pool="vms",
        volume="web1",
        size=size,
        format="raw",
    )


def test_pieces_come_in_order_and_may_come_twice(cluster: Cluster) -> None:
    content = b"x" * 1024
    begun = begin(cluster, 1024)
    assert piece(cluster, begun, 512, content[512:]) == 0, "too early: not taken"
    assert piece(cluster, begun, 0, content[:512]) == 512
    assert piece(cluster, begun, 0, b"y" * 512) == 512, "it has come already"
    with pytest.raises(Conflict, match="web1 is being changed by task"):
        begin(cluster, 1024)
    assert piece(cluster, begun, 512, content[512:]) == 1024
    assert piece(cluster, begun, 1024, b"", hashlib.sha256(content).hexdigest()) == 1024
    assert ended(cluster, begun) == ("done", "")
    with pytest.raises(Conflict, match="is over: done"):
        piece(cluster, begun, 1024, b"")
    assert cluster.content("web1") == content


def test_what_arrives_otherwise_than_it_was_sent_is_no_volume(cluster: Cluster) -> None:
    begun = begin(cluster, 512)
    with pytest.raises(Failed, match="what came is not what was sent"):
        piece(cluster, begun, 0, b"x" * 512, hashlib.sha256(b"y" * 512).hexdigest())
    assert ended(cluster, begun)[0] == "failed"
    begun = begin(cluster, 8 * MIB)
    with pytest.raises((Invalid, Unavailable)):
        piece(cluster, begun, 0, bytes(4 * MIB + 1))
    assert piece(cluster, begun, 0, bytes(4 * MIB)) == 4 * MIB
    cluster.call("task.cancel", task=begun["name"])
    assert ended(cluster, begun)[0] == "cancelled"
    begun = begin(cluster, 512)
    with pytest.raises(Failed, match="more came than the 512 bytes"):
        piece(cluster, begun, 0, b"x" * 1024)
    assert ended(cluster, begun)[0] == "failed"
    assert (cluster.volumes(), cluster.leftovers()) == ([], [])


def test_who_is_silent_loses_what_has_come(cluster: Cluster) -> None:
    cluster.working.transfers.silence_s = 0.2
    begun = begin(cluster, 1024)
    assert ended(cluster, begun) == ("failed", "nobody came for 0.2 s")
    with pytest.raises(Failed, match="nobody came"):
        piece(cluster, begun, 0, b"x" * 512)
    assert cluster.leftovers() == []


def test_a_pool_is_measured(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("storage", "benchmark", "run", "vms", "--size", "64M", "--seconds", "1", "--yes")
    assert cluster.pvc(*argv) == 0
    (row,) = cluster.call("storage.benchmark-list")
    assert (row["pool"], row["node"]) == ("vms", "n1")
    assert min(row[name] for name in ("read_bytes", "write_bytes", "read_iops", "write_iops")) > 0
    found = cluster.call("storage.benchmark-info", benchmark=row["name"])
    assert [one["pattern"] for one in found["figures"]] == [one.name for one in PATTERNS]
    assert all(one["latency_ms"] > 0 and one["p99_ms"] > 0 for one in found["figures"])
    capsys.readouterr()
    assert cluster.pvc("storage", "benchmark", "info", row["name"]) == 0
    assert "random write, one at a time" in capsys.readouterr().out
    assert cluster.leftovers() == []
    begun = cluster.call("storage.benchmark-run", pool="vms", size="64M", seconds=600)
    with pytest.raises(Conflict, match="is being changed by task"):
        cluster.call("storage.benchmark-run", pool="vms")
    eventually(cluster.leftovers, within=10)
    cluster.call("task.cancel", task=begun["name"])
    assert ended(cluster, begun)[0] == "cancelled"
    assert (cluster.leftovers(), len(cluster.call("storage.benchmark-list"))) == ([], 1)


def test_several_uploads_at_once(cluster: Cluster) -> None:
    image = cluster.image("raw")
    codes: list[int] = []

    def upload(name: str) -> None:
        transport = cluster.transport()
        codes.append(
            cli.run(["-q", "storage", "volume", "upload", "vms", name, image], lambda options: transport)
        )

    threads = [threading.Thread(target=upload, args=[f"web{number}"]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0] * 6
    assert cluster.volumes() == [f"web{number}" for number in range(6)]
