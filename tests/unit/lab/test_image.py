"""Parts of the node image that are values in, values out: sources of packages, initrd, key."""

from __future__ import annotations

import gzip
import re
import subprocess
from pathlib import Path

import pytest

from installer import guest_initrd, image

LINE = "{uri}\t{suite}\t{codename}\tmain\t{origin}\t{entry}"
STANZAS = """\
# a comment
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/one.gpg

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/two.gpg
"""
ONE_LINE = "# a comment\ndeb [arch=amd64 signed-by=/k.gpg] http://m.example/d bookworm main\n"


def target(suite: str, entry: str, *, codename: str = "", origin: str = "Debian") -> str:
    uri = "http://mirror.example/debian/"
    return LINE.format(uri=uri, suite=suite, codename=codename or suite, origin=origin, entry=entry)


def test_deb822_sources_with_their_keyrings() -> None:
    listed = [
        target("bookworm", "/d.sources:1"),
        target("bookworm-updates", "/d.sources:1"),
        target("bookworm-security", "/d.sources:2"),
        target("bookworm", "/other.list:1", origin="Someone"),
    ]
    found = image.parse_sources("\n".join(listed), read=lambda _: STANZAS)
    assert [source.line() for source in found] == [
        "deb [signed-by=/usr/share/keyrings/one.gpg] http://mirror.example/debian/ bookworm main",
        "deb [signed-by=/usr/share/keyrings/two.gpg] http://mirror.example/debian/ bookworm-security main",
        "deb [signed-by=/usr/share/keyrings/one.gpg] http://mirror.example/debian/ bookworm-updates main",
    ]


def test_one_line_source() -> None:
    (found,) = image.parse_sources(target("bookworm", "/etc/apt/sources.list:2"), read=lambda _: ONE_LINE)
    assert found.signed_by == "/k.gpg"


def test_release_named_by_its_status() -> None:
    """`oldstable` in sources.list is bookworm if its Release file says so."""
    (found,) = image.parse_sources(
        target("oldstable", "/s.list:1", codename="bookworm"),
        read=lambda _: "deb http://m.example/d oldstable main",
    )
    assert found.line() == "deb http://mirror.example/debian/ bookworm main"


def test_other_release_is_refused() -> None:
    with pytest.raises(image.ImageError, match="knows no Debian bookworm archive"):
        image.parse_sources(target("trixie", "/d.sources:1"), read=lambda _: STANZAS)


def test_key_depends_on_content_only() -> None:
    assert re.fullmatch(r"[0-9a-f]{16}", image.cache_key())
    assert image.cache_key() == image.cache_key()
    assert image.image_path(Path("/c")).name == f"node-{image.cache_key()}.sqfs"


def test_modules_load_after_what_they_need() -> None:
    modules_dep = (
        "a/virtio-net.ko: a/failover.ko a/virtio.ko\na/failover.ko:\na/virtio.ko: a/ring.ko\na/ring.ko:\n"
    )
    order = guest_initrd.load_order(
        ["virtio_net", "not-in-this-kernel"], modules_dep.replace("a/virtio.ko\n", "a/virtio.ko a/ring.ko\n")
    )
    assert order == ("a/ring.ko", "a/virtio.ko", "a/failover.ko", "a/virtio-net.ko")


@pytest.mark.processes
def test_initrd_is_a_cpio_archive(tmp_path: Path) -> None:
    packed = guest_initrd.build_initrd(
        b"\x7fELF busybox", b"#!/bin/busybox sh\n", [("a.ko", b"x" * 5), ("b.ko", b"")]
    )
    assert packed == guest_initrd.build_initrd(
        b"\x7fELF busybox", b"#!/bin/busybox sh\n", [("a.ko", b"x" * 5), ("b.ko", b"")]
    )
    listed = subprocess.run(
        ["busybox", "cpio", "-t"], input=gzip.decompress(packed), capture_output=True, check=True
    ).stdout.decode()
    assert listed.split() == [
        *("bin", "bin/busybox", "dev", "dev/console", "init", "modules", "modules/order", "modules/a.ko"),
        "modules/b.ko",
    ]
    subprocess.run(
        ["busybox", "cpio", "-i", "modules/*", "modules"],
        input=gzip.decompress(packed),
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / "modules/order").read_text() == "a.ko\nb.ko\n"
    assert (tmp_path / "modules/a.ko").read_bytes() == b"x" * 5


@pytest.mark.processes
def test_programs_follow_an_initrd_with_the_libraries_that_they_load(tmp_path: Path) -> None:
    listing = (
        "\tlinux-vdso.so.1 (0x00007f)\n\tlibudev.so.1 => /tree/libudev.so.1 (0x00007f)\n"
        "\tlibc.so.6 => /tree/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n"
    )
    names = guest_initrd.loaded(listing)
    assert names == {"libudev.so.1", "libc.so.6", "ld-linux-x86-64.so.2"}
    first = guest_initrd.build_initrd(b"\x7fELF busybox", b"#!/bin/busybox sh\n", [])
    more = guest_initrd.build_programs({"qemu-ga": b"agent"}, dict.fromkeys(names, b"library"))
    for archive in (first, more):
        packed = gzip.decompress(archive)
        subprocess.run(["busybox", "cpio", "-i"], input=packed, cwd=tmp_path, check=True)
    assert (tmp_path / "sbin/qemu-ga").read_bytes() == b"agent"
    assert (tmp_path / "init").exists()
    assert sorted(str(one.relative_to(tmp_path)) for one in tmp_path.glob("lib*/*")) == [
        *("lib/libc.so.6", "lib/libudev.so.1", "lib64/ld-linux-x86-64.so.2"),
    ]


def test_every_module_of_the_guest_is_spelled_as_depmod_does() -> None:
    assert all(re.fullmatch(r"[a-z0-9_-]+", name) for name in guest_initrd.MODULES)
