"""/etc/pvc/pvc.toml → frozen Config; the default of each key is beside it, unknown keys are refused."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import tomllib
import types
import typing
import zlib
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface
from typing import Any

from pvc import hostnetworks
from pvc.errors import Invalid, NotFound, NotPermitted
from pvc.hostnetworks import HostNetwork, HostNetworks

DEFAULT_PATH = "/etc/pvc/pvc.toml"


def path() -> str:
    return os.environ.get("PVC_CONFIG", DEFAULT_PATH)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    name: str = field(default_factory=lambda: socket.gethostname().partition(".")[0])
    address: str = "127.0.0.1"
    """On the cluster network; unless told, the first one of network.cluster."""
    storage_address: str = ""
    """Where migrations send memory; unless told, the first one of network.storage; empty: `address`."""
    bridge_device: str = ""
    """Whose VLANs bridged networks are; empty: this node can have none."""
    sriov_devices: dict[str, int] = field(default_factory=dict)
    """Network devices that are to be split, each with the number of its virtual functions."""


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    coordinators: tuple[str, ...] = ("127.0.0.1:2181",)
    """ZooKeeper servers, host or host:port."""
    key_file: str = "/etc/pvc/cluster.key"
    session_timeout_s: float = 6.0
    store_tick_s: float = 0.5
    """tickTime of zoo.cfg."""
    store_sync_ticks: int = 6
    """syncLimit of zoo.cfg."""


@dataclass(frozen=True, slots=True)
class APIConfig:
    socket: str = "/run/pvc/api.sock"
    listen: tuple[str, ...] = ("127.0.0.1:7370",)


@dataclass(frozen=True, slots=True)
class PathsConfig:
    state: str = "/var/lib/pvc"
    console: str = "/var/log/pvc/console"
    tls: str = "/etc/pvc/tls"


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    keepalive_s: float = 5.0
    """Between two reports of the node's load."""
    console_port: int = 7371
    libvirt_uri: str = "qemu:///system"
    lease_s: float = 13.0
    """Without contact to the cluster for so long, a node ends its VMs."""
    watchdog: str = "auto"
    """A device, unix:SOCKET, "none", or "auto": the first hardware watchdog there is."""
    watchdog_s: float = 8.0
    """The machine resets that long after its watchdog was fed last."""


@dataclass(frozen=True, slots=True)
class Config:
    node: NodeConfig = field(default_factory=NodeConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    api: APIConfig = field(default_factory=APIConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    daemon: DaemonConfig = field(default_factory=DaemonConfig)
    network: HostNetworks = field(default_factory=HostNetworks)
    """Of the node itself; a section that is left out is somebody else's to configure."""

    def servers(self) -> tuple[str, ...]:
        """ZooKeeper servers, this node's own first: a dead one in front would cost its connect timeout.

        The others follow in an order that differs between nodes, so that they do not all lean on one server.
        """
        every = [name if re.search(r":\d+$", name) else f"{name}:2181" for name in self.cluster.coordinators]
        first = zlib.crc32(self.node.name.encode()) % len(every)
        turned = every[first:] + every[:first]
        return tuple(sorted(turned, key=lambda server: server.rpartition(":")[0] != self.node.address))

    def among_nodes(self) -> tuple[str, ...]:
        """This node's addresses in its cluster and its storage network."""
        described = [one.address for one in (self.network.cluster, self.network.storage) if one]
        every = [str(ip_interface(text).ip) for texts in described for text in texts]
        return tuple(dict.fromkeys(filter(None, (self.node.address, self.node.storage_address, *every))))

    def secret(self) -> str:
        """The cluster key. Raises NotFound or Invalid naming the file."""
        try:
            with open(self.cluster.key_file, encoding="ascii") as file:
                key = file.read().strip()
        except FileNotFoundError:
            raise NotFound(
                f"no cluster key {self.cluster.key_file}", hint="copy it from another node of the cluster"
            ) from None
        except PermissionError:
            raise NotPermitted(
                f"the cluster key {self.cluster.key_file} is not readable", hint="run as root"
            ) from None
        if not re.fullmatch(r"[0-9a-f]{64}", key):
            raise Invalid(f"{self.cluster.key_file} must hold 64 hexadecimal digits")
        return key


def load(file: str | None = None) -> Config:
    """Raises NotFound without a file, Invalid naming the key that is wrong."""
    where = file or path()
    try:
        with open(where, "rb") as opened:
            plain = tomllib.load(opened)
    except FileNotFoundError:
        raise NotFound(
            f"no node configuration {where}", hint="this verb runs on a node; elsewhere use a connection"
        ) from None
    except PermissionError:
        raise Invalid(f"{where} is not readable", hint="run as root") from None
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"{where}: {error}") from None
    return parse(plain, where)


def parse(plain: dict[str, Any], where: str = "configuration") -> Config:
    config = typing.cast("Config", _section(Config, plain, where, ""))
    is_told = "address" in plain.get("node", {})
    for key, value in (
        ("node.address", config.node.address),
        ("node.storage_address", config.node.storage_address),
    ):
        if value:
            try:
                ip_address(value)
            except ValueError:
                raise Invalid(f"{where}: {key} = {value!r} is not an IP address") from None
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", config.node.name):
        raise Invalid(f"{where}: node.name {config.node.name!r} is not a short host name")
    if not config.cluster.coordinators:
        raise Invalid(f"{where}: cluster.coordinators is empty", hint="name the ZooKeeper servers")
    try:
        hostnetworks.check(
            config.network,
            address=config.node.address if is_told else "",
            storage_address=config.node.storage_address,
            bridge_device=config.node.bridge_device,
        )
    except Invalid as error:
        raise Invalid(f"{where}: {error.message}", hint=error.hint) from None
    node = config.node
    if not is_told:
        node = replace(node, address=_first(config.network.cluster) or node.address)
    if not node.storage_address:
        node = replace(node, storage_address=_first(config.network.storage))
    return replace(config, node=node)


def _first(network: HostNetwork | None) -> str:
    return str(ip_interface(network.address[0]).ip) if network and network.address else ""


def _section(kind: type, plain: Any, where: str, prefix: str) -> Any:
    if not isinstance(plain, dict):
        raise Invalid(f"{where}: {prefix.rstrip('.') or 'the file'} must be a table")
    hints = typing.get_type_hints(kind, include_extras=True)
    known = [one.name for one in dataclasses.fields(kind)]
    for key in plain:
        if key not in known:
            raise Invalid(f"{where}: unknown key {prefix}{key}", hint=f"known here: {', '.join(known)}")
    return kind(**{key: _value(hints[key], value, where, prefix + key) for key, value in plain.items()})


def _value(hint: Any, value: Any, where: str, key: str) -> Any:
    if typing.get_origin(hint) is types.UnionType:
        hint, _ = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Annotated:
        hint, value = typing.get_args(hint)[0], [value] if isinstance(value, str) else value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _section(hint, value, where, key + ".")
    if typing.get_origin(hint) is dict:
        return _counts(value, where, key)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise Invalid(f"{where}: {key} must be a list of texts")
        return tuple(value)
    if hint is float and type(value) in (int, float):
        if value <= 0:
            raise Invalid(f"{where}: {key} must be greater than 0")
        return float(value)
    if type(value) is not hint:
        word = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}[hint]
        raise Invalid(f"{where}: {key} must be {word}, not {value!r}")
    return value


def _counts(value: Any, where: str, key: str) -> dict[str, int]:
    if not isinstance(value, dict) or not all(type(one) is int and one >= 0 for one in value.values()):
        raise Invalid(f"{where}: {key} must be a table of whole numbers", hint="like eth2 = 8")
    return dict(value)
