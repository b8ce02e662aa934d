"""Exports in files of the client: what is none is refused here, before a cluster is asked."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pvc.cluster import exports
from pvc.cluster.exports import KIND, MANIFEST, ExportedDisk, Manifest, Parent
from pvc.commands.context import LocalContext
from pvc.commands.vm_upload import Sending, opened, upload
from pvc.errors import Failed, Invalid, NotFound, PVCError

CONTENT = b"the disk" * 100
DISK = ExportedDisk("vda", "vms", "web1", 4096, "vda.rbddiff", len(CONTENT), "ab")
FULL = Manifest(
    *(KIND, 1, "web1", "6b29fc40-ca47-1067-b31d-00dd010662da", "mon", 1.5, "agent", "<domain/>"), (DISK,)
)
NEXT = replace(
    FULL, snapshot="tue", at=2.5, disks=(replace(DISK, since="vda"),), parent=Parent("web1-mon", "mon", 1.5)
)


class Asked(Exception):
    """The cluster: nothing was wrong with the files."""


def nobody() -> Any:
    raise Asked


def written(where: Path, manifest: Manifest, within: str = "web1/", **how: Any) -> str:
    with zipfile.ZipFile(where, "w", **how) as archive:
        archive.writestr(f"{within}vda.rbddiff", CONTENT)
        archive.writestr(f"{within}{MANIFEST}", exports.written(manifest))
    return str(where)


def refused(kind: type[PVCError], said: str, *files: str) -> None:
    with pytest.raises(kind, match=said) as caught:
        upload(LocalContext(nobody), "web2", files)
    assert "\n" not in caught.value.message


def test_what_is_whole_and_in_order_is_asked_for(tmp_path: Path) -> None:
    full, differs = written(tmp_path / "mon.zip", FULL), written(tmp_path / "tue.zip", NEXT)
    for files in ((full,), (full, differs)):
        with pytest.raises(Asked):
            upload(LocalContext(nobody), "web2", files)
    refused(NotFound, "snapshot tue of web1 needs that of snapshot mon", differs)
    refused(NotFound, "snapshot tue of web1 needs that of snapshot mon", differs, full)
    refused(Invalid, "snapshot mon of web1 is whole", full, full)
    refused(Invalid, "differs from snapshot mon, and what comes before", full, differs, differs)


@pytest.mark.parametrize("how", [{}, {"compression": zipfile.ZIP_DEFLATED}, {"within": ""}])
def test_also_one_that_somebody_packed_again(tmp_path: Path, how: dict[str, Any]) -> None:
    with opened(written(tmp_path / "mon.zip", FULL, **how)) as found:
        sending = Sending([found])
        assert b"".join(sending.pieces()) == exports.written(FULL) + CONTENT
        assert sending.size_bytes == len(exports.written(FULL)) + len(CONTENT)


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    refused(NotFound, "no file", str(tmp_path / "absent"))
    refused(Failed, "cannot read .*: Is a directory", str(tmp_path))
    odd = tmp_path / "odd"
    odd.write_bytes(b"")
    refused(Invalid, "odd is not a whole zip file", str(odd))
    with zipfile.ZipFile(odd, "w") as archive:
        archive.writestr("web1/a", b"")
    refused(Invalid, "it has 0 files manifest.json", str(odd))
    with zipfile.ZipFile(odd, "w") as archive:
        for name in ("a", "b"):
            archive.writestr(f"{name}/{MANIFEST}", exports.written(FULL))
    refused(Invalid, "it has 2 files manifest.json", str(odd))
    with zipfile.ZipFile(odd, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MANIFEST, bytes(exports.MANIFESTS_BYTES + 1))
    refused(Invalid, "its manifest.json is too large", str(odd))
    with zipfile.ZipFile(odd, "w") as archive:
        archive.writestr(MANIFEST, exports.written(FULL))
    refused(Invalid, "vda.rbddiff is missing", str(odd))
    other = replace(FULL, disks=(replace(DISK, file_bytes=7),))
    refused(Invalid, "has 800 bytes, and should have 7", written(odd, other))
    refused(Invalid, "manifest.json in .*odd is of version 9", written(odd, replace(FULL, version=9)))


def test_damage_is_told_wherever_it_is(tmp_path: Path) -> None:
    """A byte, or its end is missing: it is refused, or what counts is as it was."""
    whole = Path(written(tmp_path / "mon.zip", FULL)).read_bytes()
    where, told = tmp_path / "damaged.zip", 0
    cut = [whole[:count] for count in range(0, len(whole), 7)]
    for damaged in [*cut, *(_turned(whole, at) for at in range(0, len(whole), 3))]:
        where.write_bytes(damaged)
        try:
            with opened(str(where)) as found:
                content = b"".join(Sending([found]).pieces())
            assert content == exports.written(FULL) + CONTENT
        except PVCError:
            told += 1
        with pytest.raises((Asked, PVCError)):
            upload(LocalContext(nobody), "web2", (str(where),))
    assert told >= len(cut) + len(CONTENT) // 3


def _turned(whole: bytes, at: int) -> bytes:
    return whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
