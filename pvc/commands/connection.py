"""The clusters this user knows: where their APIs are, and the token for each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

from pvc import config
from pvc.commands.context import LocalContext, Transport
from pvc.commands.registry import Arg, local
from pvc.errors import Conflict, Invalid, NotFound, PVCError

if TYPE_CHECKING:
    from pvc.http.client import HttpTransport

LOCAL = "local"
"""The cluster this machine is a node of, over the unix socket of its API server."""
PORT = 7370
DETAIL_S = 5.0
MASK = "********"

Name = Annotated[
    str,
    Arg(
        "what you call the cluster",
        metavar="NAME",
        complete="connection",
        pattern=r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}",
        what="a name: up to 63 letters, digits, dots, dashes and underscores",
    ),
]
Host = Annotated[
    str,
    Arg(
        "where its API is: a name or an IP address",
        short="-a",
        metavar="HOST",
        pattern=r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*",
        what="the name or the address of a host",
    ),
]


@dataclass(frozen=True, slots=True)
class Connection:
    host: str
    port: int = PORT
    description: str = ""
    key: str = field(default="", repr=False)
    ssl: bool = True
    ca: str = ""
    """Certificates to trust, as text (PEM); empty: the system's."""

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.ssl else 'http'}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Known:
    """The file."""

    connections: dict[str, Connection] = field(default_factory=dict)
    default: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    name: str
    address: str
    description: str
    default: bool
    key: str


@dataclass(frozen=True, slots=True)
class Detail:
    name: str
    address: str
    health: str
    """ok, problems, or why nothing is known."""
    cluster: str = ""
    pvc_version: str = ""
    maintenance: bool | None = None
    nodes: int | None = None
    vms: int | None = None
    problems: tuple[str, ...] = ()


@local()
def add(
    ctx: LocalContext,
    name: Name,
    *,
    address: Host,
    port: Annotated[int, Arg("of the API", short="-p", metavar="PORT", minimum=1, maximum=65535)] = PORT,
    description: Annotated[str, Arg("what it is", short="-d", metavar="TEXT")] = "",
    key: Annotated[
        str | None, Arg("the token, or - to read it from standard input; asked for unless given", short="-k")
    ] = None,
    ssl: Annotated[
        bool | None, Arg("TLS, with the certificate checked; the default but on this machine", short="-s/-S")
    ] = None,
    ca: Annotated[
        str, Arg("file with the certificates to trust", metavar="FILE", file=True, complete="file")
    ] = "",
) -> Shown:
    """Remember a cluster, or change what is known of it."""
    if name == LOCAL:
        raise Invalid(
            f"{LOCAL} is the name of the cluster this machine is a node of", hint="choose another name"
        )
    if ca and "-----BEGIN CERTIFICATE-----" not in ca:
        raise Invalid("the file of --ca holds no certificate", hint="it is to be in PEM form")
    is_here = address in ("localhost", "::1") or address.startswith("127.")
    secret = (_asked_key(name) if key in (None, "-") else key or "").strip()
    if not secret or not secret.isascii() or not secret.isprintable() or " " in secret:
        raise Invalid("this is no token", hint="pvc api token add NAME --role ROLE makes one, on the cluster")
    found = Connection(address, port, description, secret, not is_here if ssl is None else ssl, ca)
    with changing() as known:
        first = not known.connections
        save(Known({**known.connections, name: found}, name if first else known.default))
    return _shown(name, found, load(), with_key=False)


@local(confirm="Forget the connection {name} and its token?")
def remove(ctx: LocalContext, name: Name) -> None:
    """Forget a cluster and its token; the cluster itself is not touched."""
    with changing() as known:
        _known(known, name)
        others = {other: found for other, found in known.connections.items() if other != name}
        save(Known(others, "" if known.default == name else known.default))


@local(verb="list", columns=("name", "address", "description", "default", "key"))
def list_(
    ctx: LocalContext, *, show_keys: Annotated[bool, Arg("the tokens too", short="-k")] = False
) -> list[Shown]:
    """List the clusters you know."""
    known = load()
    shown = [
        _shown(name, found, known, with_key=show_keys) for name, found in sorted(known.connections.items())
    ]
    return [*_local(known), *shown]


@local()
def default(ctx: LocalContext, name: Name) -> Shown:
    """Choose the cluster that commands go to when no other is named."""
    with changing() as known:
        if name == LOCAL:
            _socket()
        else:
            _known(known, name)
        save(replace(known, default=name))
    return next(one for one in list_(ctx) if one.name == name)


@local(columns=("name", "address", "health", "cluster", "nodes", "vms", "maintenance", "pvc_version"))
def detail(ctx: LocalContext) -> list[Detail]:
    """Ask every cluster you know how it is, all at once."""
    from concurrent.futures import ThreadPoolExecutor

    known = load()
    names = [shown.name for shown in _local(known)] + sorted(known.connections)
    with ThreadPoolExecutor(max(len(names), 1)) as pool:
        return list(pool.map(_detail, names))


def _detail(name: str) -> Detail:
    transport = _transport(name, load(), timeout_s=DETAIL_S)
    try:
        status = transport.call("cluster.status", {})
        return Detail(
            name,
            transport.address,
            status["health"],
            status["name"],
            status["pvc_version"],
            status["maintenance"],
            status["nodes"]["total"],
            status["vms"]["total"],
            tuple(status["problems"]),
        )
    except PVCError as error:
        return Detail(name, transport.address, error.message)
    except (KeyError, TypeError):
        return Detail(name, transport.address, "answers like another version of pvc")
    finally:
        transport.close()


# Choosing


def pick(name: str = "", timeout_s: float = 60.0) -> Transport:
    """The cluster of that name, else the default, else this machine's own, else the only one."""
    known = load()
    chosen = name or known.default
    if not chosen:
        if os.path.exists(config.path()):
            chosen = LOCAL
        elif len(known.connections) == 1:
            (chosen,) = known.connections
        elif known.connections:
            raise Invalid(
                f"which cluster? you know {', '.join(sorted(known.connections))}",
                hint="say -c NAME, or choose one for good: pvc connection default NAME",
            )
        else:
            raise NotFound("no cluster is known here", hint="pvc connection add NAME -a HOST")
    return _transport(chosen, known, timeout_s)


def _transport(name: str, known: Known, timeout_s: float) -> HttpTransport:
    from pvc.http.client import HttpTransport

    if name == LOCAL:
        return HttpTransport(_socket(), timeout_s=timeout_s)
    found = _known(known, name)
    return HttpTransport(found.address, found.key, found.ca, timeout_s)


def _socket() -> str:
    if not os.path.exists(config.path()):
        raise NotFound(
            "this machine is no node of a cluster, so there is no local one", hint="pvc connection list"
        )
    return config.load().api.socket


def _known(known: Known, name: str) -> Connection:
    if name not in known.connections:
        raise NotFound(f"no connection {name}", hint="pvc connection list shows them")
    return known.connections[name]


# Showing


def _shown(name: str, found: Connection, known: Known, *, with_key: bool) -> Shown:
    key = found.key if with_key else MASK if found.key else ""
    return Shown(name, found.address, found.description, _default(known) == name, key)


def _local(known: Known) -> list[Shown]:
    if not os.path.exists(config.path()):
        return []
    return [Shown(LOCAL, _socket(), "the cluster of this node", _default(known) == LOCAL, "")]


def _default(known: Known) -> str:
    if known.default:
        return known.default
    if os.path.exists(config.path()):
        return LOCAL
    return next(iter(known.connections)) if len(known.connections) == 1 else ""


def _asked_key(name: str) -> str:
    import sys

    if not sys.stdin.isatty():
        return sys.stdin.readline()
    import getpass

    return getpass.getpass(f"Token for {name}: ", sys.stderr)


# The file


def directory() -> str:
    return os.environ.get("PVC_CLIENT_DIR") or os.path.expanduser("~/.config/pvc")


def _file() -> str:
    return os.path.join(directory(), "pvc.json")


def load() -> Known:
    """Nothing known where there is no file. Raises Invalid naming a file that cannot be read."""
    import json

    try:
        with open(_file(), encoding="utf-8") as file:
            plain = json.load(file)
        connections = {str(name): Connection(**fields) for name, fields in plain["connections"].items()}
        return Known(connections, str(plain.get("default", "")))
    except FileNotFoundError:
        return Known()
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise Invalid(f"cannot read {_file()}: {error}", hint="repair or remove it") from None


def save(known: Known) -> None:
    """All or nothing, readable by its owner only."""
    import json

    plain = {
        "default": known.default,
        "connections": {name: asdict(one) for name, one in known.connections.items()},
    }
    temporary = f"{_file()}.{os.getpid()}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(plain, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, _file())
    except OSError as error:
        raise Conflict(f"cannot write {_file()}: {error.strerror}") from None


@contextmanager
def changing() -> Iterator[Known]:
    """What is known, while no other pvc changes it."""
    import fcntl

    try:
        os.makedirs(directory(), mode=0o700, exist_ok=True)
        descriptor = os.open(directory(), os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise Conflict(
            f"cannot use {directory()}: {error.strerror}", hint="PVC_CLIENT_DIR names another"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield load()
    finally:
        os.close(descriptor)
