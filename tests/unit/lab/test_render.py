"""What is written into a node, against golden files: a difference is a change of what nodes are."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from pvc import config
from pvc.lab import render
from pvc.lab.layout import DEFAULT_DIRECTORY, Lab, Node

GOLDEN = Path(__file__).parent / "golden"
NODES = tuple(Node(number, f"{number:032x}") for number in range(1, 5))


@pytest.fixture
def lab() -> Lab:
    return Lab(DEFAULT_DIRECTORY, Path("/var/cache/pvc/node.sqfs"), NODES, 3, "ab" * 32)


def as_text(files: tuple[render.File, ...]) -> str:
    return "".join(f"=== {file.path} {file.mode:04o}\n{file.text}" for file in files)


@pytest.mark.parametrize("number", [1, 4], ids=["coordinator", "hypervisor"])
def test_files_of_a_node(lab: Lab, number: int) -> None:
    node = lab.node(f"n{number}")
    assert as_text(render.node_files(lab, node)) == (GOLDEN / f"{node.name}.txt").read_text()


def test_bmc(lab: Lab) -> None:
    text = render.bmc(lab, lab.node("n2"), "/lab/bmc/chassis n2")
    assert text == (GOLDEN / "bmc-n2.conf").read_text()


def test_configuration_is_what_the_daemon_reads(lab: Lab) -> None:
    node = lab.node("n4")
    read = config.parse(tomllib.loads(render.configuration(lab, node)))
    assert (read.node.name, read.node.address, read.node.storage_address) == (
        "n4",
        "10.251.1.4",
        "10.251.2.4",
    )
    assert sorted(read.servers()) == ["10.251.1.1:2181", "10.251.1.2:2181", "10.251.1.3:2181"]


def test_only_coordinators_run_zookeeper(lab: Lab) -> None:
    having = [
        node.name
        for node in lab.nodes
        if any(file.path.endswith("zoo.cfg") for file in render.node_files(lab, node))
    ]
    assert having == ["n1", "n2", "n3"]


def test_cluster_key_is_for_root_only(lab: Lab) -> None:
    (key,) = (file for file in render.node_files(lab, lab.node("n1")) if file.path.endswith("cluster.key"))
    assert (key.mode, key.text) == (0o600, "ab" * 32 + "\n")


def test_chassis_script_quotes() -> None:
    assert render.chassis_script(["/a b/pvc", "chassis"]) == "#!/bin/sh\nexec '/a b/pvc' chassis \"$@\"\n"
