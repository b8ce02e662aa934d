"""What a lab consists of, and the name of each part: all derive from its directory and size."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pvc.errors import Failed, Invalid, NotFound

DEFAULT_DIRECTORY = Path("/var/lib/pvc-lab")
MOST_NODES = 9
MOST_OSDS = 4
FLOATING_END = 250


@dataclass(frozen=True, slots=True)
class Network:
    """One of the three host networks every node is plugged into; also the name of the node's interface."""

    name: str
    octet: int
    mtu: int


UPSTREAM = Network("ups", 0, 1500)
CLUSTER = Network("clu", 1, 9000)
STORAGE = Network("sto", 2, 9000)
NETWORKS = (UPSTREAM, CLUSTER, STORAGE)


@dataclass(frozen=True, slots=True)
class Node:
    number: int
    uuid: str
    """32 hexadecimal digits: machine-id, and libvirt's host UUID."""

    @property
    def name(self) -> str:
        return f"n{self.number}"


@dataclass(frozen=True, slots=True)
class Lab:
    directory: Path
    image: Path
    nodes: tuple[Node, ...]
    coordinators: int
    key: str
    """The cluster key."""
    osds: int = 0
    """Of Ceph, on each node; none for a lab without Ceph."""
    initialised: bool = False

    @property
    def prefix(self) -> str:
        return prefix(self.directory)

    @property
    def switch(self) -> str:
        """Network namespace with the bridges and the BMCs, out of reach of the host's firewall."""
        return f"{self.prefix}-sw"

    @property
    def host_link(self) -> str:
        return f"{self.prefix}-host"

    @property
    def image_mount(self) -> Path:
        return self.directory / "image"

    @property
    def share(self) -> Path:
        return self.directory / "share"

    @property
    def program(self) -> Path:
        """The copy of pvc that this lab runs."""
        return self.directory / "pvc"

    def namespace(self, node: Node) -> str:
        return f"{self.prefix}-{node.name}"

    def unit(self, what: str) -> str:
        return f"pvc-{self.prefix}-{what}"

    def home(self, node: Node) -> Path:
        return self.directory / node.name

    def root(self, node: Node) -> Path:
        return self.home(node) / "root"

    def upper(self, node: Node) -> Path:
        return self.home(node) / "upper"

    def board(self, node: Node) -> Path:
        """What the node sees of its machine: the socket of its watchdog."""
        return self.home(node) / "board"

    def address(self, node: Node, network: Network = CLUSTER) -> str:
        return f"{self.subnet(network)}.{node.number}"

    def bmc_address(self, node: Node) -> str:
        return f"{self.subnet(UPSTREAM)}.{200 + node.number}"

    def floating_address(self, network: Network) -> str:
        """The primary answers for it."""
        return f"{self.subnet(network)}.{FLOATING_END}/24"

    def subnet(self, network: Network) -> str:
        """The first three numbers; the second one keeps two labs apart."""
        return f"10.{second_octet(self.directory)}.{network.octet}"

    def is_coordinator(self, node: Node) -> bool:
        return node.number <= self.coordinators

    def node(self, name: str) -> Node:
        """By its name, n1. Raises NotFound."""
        for node in self.nodes:
            if node.name == name:
                return node
        known = f"{self.nodes[0].name} to {self.nodes[-1].name}"
        raise NotFound(f"the lab has no node {name}", hint=f"it has {known}")


def prefix(directory: Path) -> str:
    """Starts the name of every link, namespace and unit of a lab; 15 characters is the limit for a link."""
    if directory == DEFAULT_DIRECTORY:
        return "lab"
    return "lab" + hashlib.sha256(str(directory).encode()).hexdigest()[:4]


def second_octet(directory: Path) -> int:
    if directory == DEFAULT_DIRECTORY:
        return 251
    return 130 + hashlib.sha256(str(directory).encode()).digest()[0] % 120


def directory_of_environment() -> Path:
    directory = Path(os.environ.get("PVC_LAB_DIR", DEFAULT_DIRECTORY))
    if not directory.is_absolute() or len(directory.parts) < 3:
        raise Invalid(
            f"PVC_LAB_DIR is {directory}", hint="give an absolute path of its own, like /var/lib/pvc-lab2"
        )
    return directory


def new_lab(directory: Path, image: Path, nodes: int, coordinators: int | None, osds: int = 0) -> Lab:
    """Raises Invalid for a number of coordinators that cannot vote or cannot be placed."""
    wanted = coordinators if coordinators is not None else (3 if nodes >= 3 else 1)
    if not 1 <= nodes <= MOST_NODES:
        raise Invalid(f"a lab cannot have {nodes} nodes", hint=f"1 to {MOST_NODES}")
    if wanted not in (1, 3, 5):
        raise Invalid(f"a cluster cannot have {wanted} coordinators", hint="1, 3 or 5: a majority must exist")
    if wanted > nodes:
        raise Invalid(f"{wanted} coordinators do not fit on {nodes} nodes", hint=f"--nodes {wanted}")
    if not 0 <= osds <= MOST_OSDS:
        raise Invalid(f"a node of a lab cannot have {osds} OSDs", hint=f"up to {MOST_OSDS}")
    made = tuple(Node(number, uuid.uuid4().hex) for number in range(1, nodes + 1))
    return Lab(directory, image, made, wanted, secrets.token_hex(32), osds)


# The state file


def state_file(directory: Path) -> Path:
    return directory / "lab.json"


def save(lab: Lab) -> None:
    plain = {**asdict(lab), "directory": str(lab.directory), "image": str(lab.image)}
    file = state_file(lab.directory)
    new = file.with_suffix(".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        json.dump(plain, opened, indent=1)
    new.rename(file)


def load(directory: Path) -> Lab | None:
    """None where there is no lab. Raises Failed for a file that is not ours to understand."""
    try:
        text = state_file(directory).read_text()
    except FileNotFoundError:
        return None
    try:
        plain = json.loads(text)
        return _lab(plain, directory)
    except (ValueError, TypeError, KeyError) as error:
        raise Failed(f"{state_file(directory)} is damaged: {error}", hint="pvc lab down") from None


def _lab(plain: Mapping[str, object], directory: Path) -> Lab:
    nodes = plain["nodes"]
    if not isinstance(nodes, list):
        raise TypeError("nodes is no list")
    return Lab(
        directory=directory,
        image=Path(str(plain["image"])),
        nodes=tuple(Node(int(node["number"]), str(node["uuid"])) for node in nodes),
        coordinators=int(str(plain["coordinators"])),
        key=str(plain["key"]),
        osds=int(str(plain.get("osds", 0))),
        initialised=bool(plain["initialised"]),
    )


def initialised(lab: Lab) -> Lab:
    return replace(lab, initialised=True)
