"""An image is uploaded from a node as from any workstation, cloned, and a VM boots from the clone."""

from __future__ import annotations

import base64
import time

import pytest

from tests.lab.labs import RunningLab, with_ceph
from tests.lab.vms import Cluster
from tests.support import eventually

pytestmark = with_ceph

SAYS = b"booted from an image"
AT = 0x7C00
"""Where firmware puts the first sector of a disk."""
BEFORE, AFTER = bytes.fromhex("31c0 8ed8 fc be"), bytes.fromhex("ac 84c0 7406 baf803 ee ebf5 f4 ebfd")
"""Between them the address of a text: each byte of it to the first serial port, up to a zero; then rest."""


def sector() -> bytes:
    text = AT + len(BEFORE) + 2 + len(AFTER)
    code = BEFORE + text.to_bytes(2, "little") + AFTER + SAYS + b"\r\n\0"
    return code.ljust(510, b"\0") + b"\x55\xaa"


@pytest.fixture
def cluster(lab: RunningLab) -> Cluster:
    return Cluster(lab)


@pytest.mark.parametrize(("pool", "format"), [("vms", "qcow2"), ("ceph", "vmdk")])
def test_vm_boots_from_an_image_that_was_uploaded(cluster: Cluster, pool: str, format: str) -> None:
    disk = base64.b64encode(sector()).decode()
    cluster.lab.sh("n1", f"echo {disk} | base64 -d > /root/boot.raw && truncate -s 64M /root/boot.raw")
    cluster.run("n1", "qemu-img", "convert", "-f", "raw", "-O", format, "/root/boot.raw", "/root/boot")
    cluster.pvc("storage", "volume", "upload", pool, "golden", "/root/boot")
    assert cluster.json("storage", "volume", "info", pool, "golden")["size_bytes"] == 64 * 1024**2
    try:
        began = time.monotonic()
        cluster.pvc("storage", "volume", "clone", pool, "golden", "web")
        cluster.pvc("vm", "create", "booted", "--memory", "64M", "--disk", f"{pool}/web", "--target", "n2")
        cluster.pvc("vm", "start", "booted", "--wait", "--timeout", "60")
        eventually(lambda: SAYS.decode() in cluster.console("booted", "n2"), within=60)
        print(f"cloned in {pool}, and booted {time.monotonic() - began:.1f} s later")
    finally:
        cluster.remove("booted")
        cluster.pvc("storage", "volume", "remove", pool, "golden", "--yes")
        cluster.run("n1", "rm", "-f", "/root/boot", "/root/boot.raw")
