"""Files that hold a disk: which formats there are, what the first bytes say, and what is never taken in.

A file that names others (a backing file, data or extents elsewhere) would have the node read its own files
into somebody's volume: such a one is refused by what it says itself, before any other program opens it.
"""

from __future__ import annotations

import struct
from enum import StrEnum

from pvc.errors import Invalid

HEAD_BYTES = 4096
"""So much of the beginning is enough to know a file by."""
TAIL_BYTES = 512

QCOW2_HEAD = struct.Struct(">4sIQIIQI")
"""Magic, version, where the name of the backing file is and its length, cluster bits, size, encryption."""
QCOW2_FEATURES = struct.Struct(">72xQ")
QCOW2_DATA_ELSEWHERE = 1 << 2
VMDK_CAPACITY = struct.Struct("<12xQ")
VPC_TYPE = struct.Struct(">60xI")
ZEROS = bytes(64 * 1024)
VPC_TYPES = (2, 3)
"""Fixed and dynamic; the other one is the difference to another file."""


class ImageFormat(StrEnum):
    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VDI = "vdi"
    VPC = "vpc"


MAGIC: tuple[tuple[int, bytes, ImageFormat], ...] = (
    (0, b"QFI\xfb", ImageFormat.QCOW2),
    (0, b"KDMV", ImageFormat.VMDK),
    (0, b"COWD", ImageFormat.VMDK),
    (0, b"# Disk DescriptorFile", ImageFormat.VMDK),
    (64, b"\x7f\x10\xda\xbe", ImageFormat.VDI),
    (0, b"conectix", ImageFormat.VPC),
)
PACKED: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "packed with gzip: gzip -d"),
    (b"\xfd7zXZ\0", "packed with xz: xz -d"),
    (b"BZh", "packed with bzip2: bzip2 -d"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd: zstd -d"),
    (b"PK\x03\x04", "a zip archive: unzip"),
    (b"vhdxfile", "a VHDX file: qemu-img convert -O qcow2"),
    (b"QED\0", "a QED file: qemu-img convert -O qcow2"),
)


def detect(head: bytes, tail: bytes = b"") -> ImageFormat:
    """What a file is by its first and last bytes. Raises Invalid for one that is none of ours and no disk."""
    found = _by_magic(head)
    if found is not None:
        return found
    for magic, words in PACKED:
        if head.startswith(magic):
            what, _, way = words.partition(": ")
            raise Invalid(f"it is {what}", hint=f"first {way}; or say --image-format raw if it is a disk")
    return ImageFormat.VPC if tail.startswith(b"conectix") else ImageFormat.RAW


def check(format: ImageFormat, head: bytes) -> None:
    """Raises Invalid when the file is something else than it is said to be, or names other files."""
    found = _by_magic(head)
    fixed_vpc = format is ImageFormat.VPC and found is None
    if found is not (None if format is ImageFormat.RAW or fixed_vpc else format):
        is_what = (
            f"it begins as a {found} file does" if found else f"it does not begin as a {format} file does"
        )
        raise Invalid(f"the file is not {format}: {is_what}", hint=f"--image-format {found or 'raw'}")
    try:
        CHECKS.get(format, _anything)(head)
    except struct.error:
        raise Invalid(f"the file is too short for a {format} file") from None


def check_tail(format: ImageFormat, head: bytes, tail: bytes) -> None:
    """Of a format whose fixed kind says only at its end what it is."""
    if format is ImageFormat.VPC and _by_magic(head) is None:
        if not tail.startswith(b"conectix"):
            raise Invalid("the file is not vpc: it does not end as one does", hint="is it whole?")
        _check_vpc(tail)


def written(offset: int, piece: bytes) -> list[tuple[int, bytes]]:
    """What of a piece is to be written where there are only zeros."""
    view, size = memoryview(piece), len(ZEROS)
    runs: list[tuple[int, int]] = []
    for at in range(0, len(piece), size):
        block = view[at : at + size]
        if block == ZEROS[: len(block)]:
            continue
        if runs and runs[-1][1] == at:
            runs[-1] = runs[-1][0], at + len(block)
        else:
            runs.append((at, at + len(block)))
    return [(offset + first, bytes(view[first:end])) for first, end in runs]


def _by_magic(head: bytes) -> ImageFormat | None:
    for place, magic, format in MAGIC:
        if head[place : place + len(magic)] == magic:
            return format
    return None


def _anything(head: bytes) -> None:
    """Nothing is wrong with it."""


def _check_qcow2(head: bytes) -> None:
    _, version, backing, _, _, _, encryption = QCOW2_HEAD.unpack_from(head)
    if version not in (2, 3):
        raise Invalid(f"it is qcow of version {version}", hint="qemu-img convert -O qcow2 makes it a new one")
    if backing:
        raise Invalid(
            "it has a backing file, of which it is only the difference",
            hint="qemu-img convert -O qcow2 makes one file of both",
        )
    if encryption:
        raise Invalid("it is encrypted", hint="qemu-img convert -O qcow2 can decrypt it")
    if version == 3 and QCOW2_FEATURES.unpack_from(head)[0] & QCOW2_DATA_ELSEWHERE:
        raise Invalid("its data is in another file", hint="qemu-img convert -O qcow2 makes one file of both")


def _check_vmdk(head: bytes) -> None:
    if not head.startswith(b"KDMV") or not VMDK_CAPACITY.unpack_from(head)[0]:
        raise Invalid(
            "it only names the files that have the data, or is of an old kind",
            hint="qemu-img convert -O qcow2 makes one file of all",
        )


def _check_vpc(head: bytes) -> None:
    if head.startswith(b"conectix") and VPC_TYPE.unpack_from(head)[0] not in VPC_TYPES:
        raise Invalid(
            "it is only the difference to another file",
            hint="qemu-img convert -O qcow2 makes one file of both",
        )


CHECKS = {
    ImageFormat.QCOW2: _check_qcow2,
    ImageFormat.VMDK: _check_vmdk,
    ImageFormat.VPC: _check_vpc,
}
