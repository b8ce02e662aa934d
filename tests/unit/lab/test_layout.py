"""Names, addresses, the state file, and what a lab cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvc.errors import Failed, Invalid, NotFound
from pvc.lab import network
from pvc.lab.layout import (
    DEFAULT_DIRECTORY,
    NETWORKS,
    STORAGE,
    Lab,
    directory_of_environment,
    initialised,
    load,
    new_lab,
    save,
    state_file,
)

IMAGE = Path("/var/cache/pvc/node.sqfs")
LONGEST_LINK = 15


def lab_in(directory: Path, nodes: int = 3, coordinators: int | None = None) -> Lab:
    return new_lab(directory, IMAGE, nodes, coordinators)


@pytest.mark.parametrize(("nodes", "coordinators"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 3), (9, 3)])
def test_coordinators_unless_told(nodes: int, coordinators: int) -> None:
    assert lab_in(DEFAULT_DIRECTORY, nodes).coordinators == coordinators


@pytest.mark.parametrize(
    ("nodes", "coordinators", "message"),
    [
        (0, None, "a lab cannot have 0 nodes"),
        (10, None, "a lab cannot have 10 nodes"),
        (3, 2, "a cluster cannot have 2 coordinators"),
        (3, 5, "5 coordinators do not fit on 3 nodes"),
    ],
)
def test_impossible(nodes: int, coordinators: int | None, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        lab_in(DEFAULT_DIRECTORY, nodes, coordinators)


def test_too_many_osds() -> None:
    with pytest.raises(Invalid, match="a node of a lab cannot have 5 OSDs"):
        new_lab(DEFAULT_DIRECTORY, IMAGE, 3, None, 5)


def test_addresses() -> None:
    lab = lab_in(DEFAULT_DIRECTORY)
    node = lab.node("n2")
    assert lab.address(node) == "10.251.1.2"
    assert lab.address(node, STORAGE) == "10.251.2.2"
    assert lab.bmc_address(node) == "10.251.0.202"
    assert lab.namespace(node) == "lab-n2"


def test_unknown_node_names_those_there_are() -> None:
    with pytest.raises(NotFound, match="no node n4") as caught:
        lab_in(DEFAULT_DIRECTORY).node("n4")
    assert caught.value.hint == "it has n1 to n3"


def test_two_labs_share_nothing(tmp_path: Path) -> None:
    one, other = lab_in(DEFAULT_DIRECTORY), lab_in(tmp_path / "other")
    assert {one.switch, one.host_link, one.prefix}.isdisjoint({other.switch, other.host_link, other.prefix})
    assert not {one.subnet(net) for net in NETWORKS} & {other.subnet(net) for net in NETWORKS}
    assert not {one.namespace(node) for node in one.nodes} & {other.namespace(node) for node in other.nodes}


def test_link_names_fit(tmp_path: Path) -> None:
    lab = lab_in(tmp_path / "a-long-name-for-a-lab", 9)
    names = [lab.host_link, *(network.cable(node, net) for node in lab.nodes for net in NETWORKS)]
    assert max(map(len, names)) <= LONGEST_LINK


def test_state_survives_and_is_private(tmp_path: Path) -> None:
    lab = initialised(new_lab(tmp_path, IMAGE, 5, 5, 2))
    save(lab)
    assert load(tmp_path) == lab
    assert state_file(tmp_path).stat().st_mode & 0o777 == 0o600


def test_no_lab(tmp_path: Path) -> None:
    assert load(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nodes": 3}', '{"nodes": [1]}'])
def test_damaged_state_is_named(tmp_path: Path, text: str) -> None:
    state_file(tmp_path).write_text(text)
    with pytest.raises(Failed, match=r"lab\.json is damaged") as caught:
        load(tmp_path)
    assert caught.value.hint == "pvc lab down"


@pytest.mark.parametrize("path", ["lab", "/", "/lab"])
def test_directory_must_be_its_own(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """`lab down` removes it: it cannot be /, nor depend on where one stands."""
    monkeypatch.setenv("PVC_LAB_DIR", path)
    with pytest.raises(Invalid, match="PVC_LAB_DIR"):
        directory_of_environment()
