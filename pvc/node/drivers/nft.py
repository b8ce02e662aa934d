"""Packet filters by nftables: loading our table, and reading what of it is in the kernel."""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Protocol

from pvc.cluster.filters import FAMILY, TABLE, Fault, Key, Number, Refused, Route
from pvc.cluster.network import Prefix
from pvc.errors import PVCError
from pvc.node.drivers import DriverError
from pvc.proc import Completed, run

NFT_S = 30.0
OURS = (FAMILY, TABLE)

_FAULT = re.compile(r"^/dev/stdin:(\d+):(\d+)-(\d+): Error: (.+)$", re.MULTILINE)

NETLINK_NETFILTER, GET_GENERATION, NEW_GENERATION = 12, 10 << 8 | 16, 10 << 8 | 15
NLM_F_REQUEST, GENERATION_ID = 1, 1


class Run(Protocol):
    def __call__(
        self, argv: list[str], /, *, stdin: str = "", check: bool = True, timeout_s: float = NFT_S
    ) -> Completed: ...


def generation() -> int:
    """Of all nftables of this network namespace: another one after every change, whoever made it."""
    header = struct.pack("=IHHII", 20, GET_GENERATION, NLM_F_REQUEST, 1, 0) + struct.pack("=BBH", 0, 0, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as kernel:
            kernel.settimeout(2.0)
            kernel.send(header)
            answer = kernel.recv(4096)
    except OSError as error:
        raise DriverError(f"the kernel has no nftables: {error.strerror}") from None
    kind = struct.unpack_from("=H", answer, 4)[0]
    length, attribute = struct.unpack_from("=HH", answer, 20) if len(answer) >= 28 else (0, 0)
    if kind != NEW_GENERATION or length < 8 or attribute != GENERATION_ID:
        raise DriverError("the kernel has no nftables")
    return int(struct.unpack_from(">I", answer, 24)[0])


class NFT:
    """PacketFilter of the network namespace of the calling thread."""

    def __init__(self, call: Run = run, generation: Callable[[], int] = generation) -> None:
        self._call = call
        self._generation = generation
        self._loaded: tuple[int, str] | None = None
        """The generation since which nobody changed anything, and how the table was then."""

    def check(self, text: str) -> None:
        self._feed(["nft", "-c", "-f", "-"], text)

    def load(self, text: str) -> None:
        before = self._generation()
        self._loaded = None
        self._feed(["nft", "-f", "-"], text)
        after = self._generation()
        if after == before + 1:  # else somebody else was there, too, and what is read is not what was loaded
            self._remember(after)

    def is_as_loaded(self) -> bool:
        if self._loaded is None:
            return False
        now = self._generation()
        known, listed = self._loaded
        if now == known:
            return True
        if self._listed() != listed:
            return False
        self._loaded = (now, listed)
        return True

    def counts(self, chain: str = "") -> Mapping[Key, Number] | None:
        what = ["chain", *OURS, chain] if chain else ["table", *OURS]
        done = self._run(["nft", "-j", "-t", "list", *what])
        if done.code:
            if "No such file" in done.stderr:
                return None if not chain or self.counts() is None else {}
            raise DriverError(f"nft: {_last(done)}", retryable=True)
        return dict(_counts(json.loads(done.stdout)))

    def remove(self) -> None:
        self._loaded = None
        done = self._run(["nft", "delete", "table", *OURS])
        if done.code and "No such file" not in done.stderr:
            raise DriverError(f"the filters cannot be removed: {_last(done)}", retryable=True)

    def _remember(self, generation: int) -> None:
        listed = self._listed()
        if self._generation() == generation:
            self._loaded = (generation, listed)

    def _listed(self) -> str:
        """Without what counters have counted."""
        return self._run(["nft", "-s", "list", "table", *OURS]).stdout

    def _feed(self, argv: list[str], text: str) -> None:
        done = self._run(argv, text)
        if done.code:
            raise refusal(done.stderr, text)

    def _run(self, argv: list[str], stdin: str = "") -> Completed:
        try:
            return self._call(argv, stdin=stdin, check=False, timeout_s=NFT_S)
        except PVCError as error:
            raise DriverError(f"filters: {error.message}", hint=error.hint, retryable=True) from None


def refusal(said: str, text: str) -> Refused:
    """What nft said, with the words it points at instead of a column in a text that nobody has seen."""
    lines = text.split("\n")
    faults = []
    for line, begin, end, message in _FAULT.findall(said):
        where = lines[int(line) - 1][int(begin) - 1 : int(end)].strip() if int(line) <= len(lines) else ""
        faults.append(Fault(int(line), f"{message}, at {where}" if where else f"{message}, at its end"))
    first = faults[0].message if faults else (said.strip().splitlines() or ["nft said nothing"])[0]
    return Refused(f"nft does not take the filters: {first}", faults)


def _last(done: Completed) -> str:
    return (done.stderr.strip().splitlines() or ["no output"])[0]


def _counts(listed: Any) -> Iterator[tuple[Key, Number]]:
    for entry in listed["nftables"]:
        rule = entry.get("rule", {})
        if "comment" not in rule:
            continue
        for part in rule["expr"]:
            counter = part.get("counter")
            if isinstance(counter, dict):
                yield (rule["chain"], rule["comment"]), (int(counter["packets"]), int(counter["bytes"]))


# Where packets leave


def routes(root: Path = Path("/proc/thread-self/net")) -> list[Route]:
    """Of this host, from one file per family, whatever their number."""
    return [*_routes4(_lines(root / "route")), *_routes6(_lines(root / "ipv6_route"))]


def _lines(file: Path) -> list[list[str]]:
    try:
        return [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return []  # a kernel without that family


def _routes4(lines: list[list[str]]) -> Iterator[Route]:
    for device, destination, gateway, _, _, _, _, mask, *_ in lines[1:]:
        length = int(mask, 16).bit_count()
        yield Route(device, _prefix(struct.pack("=I", int(destination, 16)), length), int(gateway, 16) == 0)


def _routes6(lines: list[list[str]]) -> Iterator[Route]:
    for destination, length, _, _, router, _, _, _, _, device in lines:
        if device != "lo":
            yield Route(device, _prefix(bytes.fromhex(destination), int(length, 16)), int(router, 16) == 0)


def _prefix(address: bytes, length: int) -> Prefix:
    return ip_network((address, length))
