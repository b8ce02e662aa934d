"""What files of images say of themselves, and what is kept of benchmarks."""

from __future__ import annotations

import struct

import pytest

from pvc.cluster import benchmark, images
from pvc.cluster.images import ImageFormat
from pvc.errors import Invalid


def qcow2(version: int = 3, backing: int = 0, encryption: int = 0, features: int = 0) -> bytes:
    head = images.QCOW2_HEAD.pack(b"QFI\xfb", version, backing, 0, 16, 1 << 30, encryption)
    return head.ljust(72, b"\0") + struct.pack(">Q", features) + bytes(400)


def vmdk(capacity: int) -> bytes:
    return b"KDMV" + bytes(8) + struct.pack("<Q", capacity) + bytes(492)


def vpc(kind: int) -> bytes:
    return b"conectix".ljust(60, b"\0") + struct.pack(">I", kind) + bytes(448)


VDI = bytes(64) + b"\x7f\x10\xda\xbe" + bytes(444)


@pytest.mark.parametrize(
    ("head", "tail", "expected"),
    [
        (qcow2(), b"", ImageFormat.QCOW2),
        (vmdk(8), b"", ImageFormat.VMDK),
        (b"# Disk DescriptorFile\n", b"", ImageFormat.VMDK),
        (VDI, b"", ImageFormat.VDI),
        (vpc(3), b"", ImageFormat.VPC),
        (bytes(512), vpc(2), ImageFormat.VPC),
        (bytes(512), bytes(512), ImageFormat.RAW),
        (b"", b"", ImageFormat.RAW),
    ],
)
def test_a_file_is_known_by_its_ends(head: bytes, tail: bytes, expected: ImageFormat) -> None:
    assert images.detect(head, tail) is expected


@pytest.mark.parametrize("magic", [magic for magic, _ in images.PACKED])
def test_what_is_packed_is_no_disk(magic: bytes) -> None:
    with pytest.raises(Invalid, match="it is ") as refused:
        images.detect(magic + bytes(512))
    assert refused.value.hint.startswith("first ")


@pytest.mark.parametrize(
    ("format", "head", "words"),
    [
        (ImageFormat.RAW, qcow2(), "begins as a qcow2 file does"),
        (ImageFormat.QCOW2, bytes(512), "does not begin as a qcow2 file does"),
        (ImageFormat.VDI, vmdk(8), "begins as a vmdk file does"),
        (ImageFormat.QCOW2, qcow2(version=1), "of version 1"),
        (ImageFormat.QCOW2, qcow2(backing=512), "has a backing file"),
        (ImageFormat.QCOW2, qcow2(encryption=1), "is encrypted"),
        (ImageFormat.QCOW2, qcow2(features=4), "its data is in another file"),
        (ImageFormat.QCOW2, qcow2()[:20], "too short"),
        (ImageFormat.VMDK, vmdk(0), "names the files that have the data"),
        (ImageFormat.VMDK, b"# Disk DescriptorFile\n", "names the files that have the data"),
        (ImageFormat.VPC, vpc(4), "the difference to another file"),
    ],
)
def test_what_is_not_taken_in(format: ImageFormat, head: bytes, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        images.check(format, head)


@pytest.mark.parametrize(
    ("format", "head"),
    [
        (ImageFormat.RAW, bytes(512)),
        (ImageFormat.RAW, b"\x1f\x8b" + bytes(510)),
        (ImageFormat.QCOW2, qcow2()),
        (ImageFormat.QCOW2, qcow2(version=2)),
        (ImageFormat.VMDK, vmdk(8)),
        (ImageFormat.VDI, VDI),
        (ImageFormat.VPC, vpc(3)),
        (ImageFormat.VPC, bytes(512)),
    ],
)
def test_what_is_taken_in(format: ImageFormat, head: bytes) -> None:
    images.check(format, head)


def test_a_fixed_vpc_says_so_at_its_end() -> None:
    images.check_tail(ImageFormat.VPC, bytes(512), vpc(2))
    images.check_tail(ImageFormat.RAW, bytes(512), bytes(512))
    with pytest.raises(Invalid, match="does not end as one does"):
        images.check_tail(ImageFormat.VPC, bytes(512), bytes(512))
    with pytest.raises(Invalid, match="the difference to another file"):
        images.check_tail(ImageFormat.VPC, bytes(512), vpc(4))


def test_zeros_are_not_written() -> None:
    block = len(images.ZEROS)
    piece = b"a" * block + bytes(2 * block) + b"b" * block + b"c" * block + bytes(100)
    found = images.written(512, piece)
    assert [(at, len(data)) for at, data in found] == [(512, block), (512 + 3 * block, 2 * block)]
    assert found[1][1] == b"b" * block + b"c" * block
    assert images.written(0, bytes(100)) == []


def test_the_last_benchmarks_are_kept() -> None:
    known = {f"b{number:02}": float(number) for number in range(25)}
    assert sorted(benchmark.outdated(known)) == [f"b{number:02}" for number in range(5)]
