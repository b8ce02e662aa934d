"""Ceph's files of a lab's nodes, against golden files, and keys as Ceph reads them."""

from __future__ import annotations

import base64
import configparser
import struct
from pathlib import Path

import pytest

from pvc.lab import ceph, render
from pvc.lab.layout import DEFAULT_DIRECTORY, Lab, Node

GOLDEN = Path(__file__).parent / "golden"


def lab_of(nodes: int, *, coordinators: int, osds: int) -> Lab:
    made = tuple(Node(number, f"{number:032x}") for number in range(1, nodes + 1))
    return Lab(DEFAULT_DIRECTORY, Path("/var/cache/pvc/node.sqfs"), made, coordinators, "ab" * 32, osds)


def as_text(files: tuple[render.File, ...]) -> str:
    return "".join(f"=== {file.path} {file.mode:04o}\n{file.text}" for file in files)


@pytest.mark.parametrize("number", [1, 4], ids=["coordinator", "hypervisor"])
def test_files_of_a_node(number: int) -> None:
    lab = lab_of(4, coordinators=3, osds=2)
    node = lab.node(f"n{number}")
    assert as_text(ceph.files(lab, node)) == (GOLDEN / f"ceph-{node.name}.txt").read_text()


def test_none_unless_asked_for() -> None:
    lab = lab_of(3, coordinators=3, osds=0)
    assert ceph.files(lab, lab.node("n1")) == ()


def test_osds_of_all_nodes_are_counted_on() -> None:
    lab = lab_of(3, coordinators=3, osds=2)
    assert [list(ceph.osds_of(lab, node)) for node in lab.nodes] == [[0, 1], [2, 3], [4, 5]]


def test_a_key_is_one_of_ceph() -> None:
    """Kind 1 (AES), when it was made in seconds and nanoseconds, length, sixteen bytes."""
    lab = lab_of(3, coordinators=3, osds=1)
    kind, _, _, length = struct.unpack_from("<HIIH", raw := base64.b64decode(ceph.key(lab, "osd.1")))
    assert (kind, length, len(raw)) == (1, 16, 12 + 16)
    assert ceph.key(lab, "osd.1") == ceph.key(lab, "osd.1") != ceph.key(lab, "osd.2")


@pytest.mark.parametrize(
    ("nodes", "copies", "fewest", "between"), [(1, "1", "1", "0"), (2, "2", "1", "1"), (3, "3", "2", "1")]
)
def test_copies_are_as_many_as_nodes_allow(nodes: int, copies: str, fewest: str, between: str) -> None:
    lab = lab_of(nodes, coordinators=1, osds=1)
    read = configparser.ConfigParser()
    read.read_string(ceph.configuration(lab))
    told = read["global"]
    assert (told["osd pool default size"], told["osd pool default min size"]) == (copies, fewest)
    assert told["osd crush chooseleaf type"] == between
