"""One suite for every PacketFilter: the fake, and nftables in a network namespace that the test makes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest

from pvc.cluster.clients import AccessList, Direction, Rule
from pvc.cluster.filters import (
    Filtered,
    Hidden,
    Key,
    Number,
    Protocol,
    Refused,
    Route,
    Verdict,
    check_rule,
    compose,
    render,
)
from pvc.commands.context import invoke
from pvc.commands.registry import find
from pvc.errors import Invalid
from pvc.node.drivers.networks import PacketFilter
from pvc.node.drivers.nft import NFT, generation, routes
from pvc.node.peer import PeerServer
from pvc.peerclient import ask
from tests.contract.test_addresses import enter, ip
from tests.contract.test_quorum import config_of
from tests.fakes.filters import FEATURE, FakeFilter
from tests.unit.commands.test_network_acl import shop
from tests.unit.node.test_filters import ACCESS, HIDE, OFFICE, SHOP
from tests.unit.test_filters import GOOD

T = TypeVar("T")

HERE = f"pvc-{os.getpid()}-nft"
TEXT = render([Filtered(SHOP, ACCESS), Filtered(OFFICE, AccessList())], HIDE).text


def nft(*words: str, stdin: str = "") -> str:
    argv = ["ip", "netns", "exec", HERE, "nft", *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True, input=stdin).stdout


class Inside:
    """Calls of the driver in a network namespace, on a thread that has entered it."""

    def __init__(self, namespace: str) -> None:
        self.threads = ThreadPoolExecutor(1, initializer=enter, initargs=(namespace,))
        self.driver = NFT()

    def call(self, act: Callable[[], T]) -> T:
        return self.threads.submit(act).result(timeout=60)

    def check(self, text: str) -> None:
        self.call(lambda: self.driver.check(text))

    def load(self, text: str) -> None:
        self.call(lambda: self.driver.load(text))

    def is_as_loaded(self) -> bool:
        return self.call(self.driver.is_as_loaded)

    def counts(self, chain: str = "") -> Mapping[Key, Number] | None:
        return self.call(lambda: self.driver.counts(chain))

    def remove(self) -> None:
        self.call(self.driver.remove)


@dataclass(frozen=True, slots=True)
class Bench:
    host: PacketFilter
    meddle: Callable[[], object]
    """Change our table as somebody else would."""


@contextmanager
def fake() -> Iterator[Bench]:
    host = FakeFilter()
    yield Bench(host, lambda: setattr(host, "is_touched", True))


@contextmanager
def nftables() -> Iterator[Bench]:
    try:
        ip("netns", "add", HERE)
        yield Bench(Inside(HERE), lambda: nft("flush", "chain", "inet", "pvc", "in101"))
    finally:
        subprocess.run(["ip", "netns", "del", HERE], check=False, capture_output=True)


@pytest.fixture(params=[fake, nftables], ids=lambda made: made.__name__)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with request.param() as made:
        yield made


@pytest.fixture
def host(bench: Bench) -> PacketFilter:
    return bench.host


@pytest.fixture
def real() -> Iterator[Inside]:
    with nftables() as made:
        assert isinstance(made.host, Inside)
        yield made.host


# What every driver keeps


def test_what_is_loaded_is_there_and_stays_so(host: PacketFilter) -> None:
    assert host.counts() is None
    assert not host.is_as_loaded(), "it is not known"
    host.load(TEXT)
    assert host.is_as_loaded()
    assert host.is_as_loaded()
    assert [*(host.counts("in101") or {})] == [("in101", "1"), ("in101", "4")]
    assert [*(host.counts("out101") or {})] == [("out101", "2"), ("out101", "3")]
    assert host.counts("in102") == {}


def test_checking_loads_nothing(host: PacketFilter) -> None:
    host.check(TEXT)
    assert host.counts() is None


def test_what_is_refused_leaves_what_there_was(host: PacketFilter) -> None:
    host.load(TEXT)
    bad = TEXT.replace("tcp dport 22", f"tcp {FEATURE} 22")
    line = next(number for number, text in enumerate(bad.split("\n"), 1) if FEATURE in text)
    for attempt in (host.check, host.load):
        with pytest.raises(Refused, match=FEATURE) as caught:
            attempt(bad)
        assert [fault.line for fault in caught.value.faults] == [line]
        assert FEATURE in caught.value.faults[0].message
    assert [*(host.counts("in101") or {})] == [("in101", "1"), ("in101", "4")]


def test_counters_begin_where_they_are_told_to(host: PacketFilter) -> None:
    counts = {("in101", "4"): (7, 700), ("node", "node"): (3, 90)}
    host.load(render([Filtered(SHOP, ACCESS)], HIDE, counts).text)
    found = host.counts() or {}
    assert {key: found[key] for key in counts} == counts
    assert sum(packets for packets, _ in found.values()) == 10


def test_what_somebody_else_changed_is_noticed_and_repaired(bench: Bench) -> None:
    bench.host.load(TEXT)
    bench.meddle()
    assert not bench.host.is_as_loaded()
    bench.host.load(TEXT)
    assert bench.host.is_as_loaded()


def test_removed_is_removed(host: PacketFilter) -> None:
    host.remove()
    host.load(TEXT)
    host.remove()
    assert host.counts() is None
    assert not host.is_as_loaded()
    host.remove()


# What only nftables can show


def test_tables_of_others_are_left_alone_and_do_not_disturb(real: Inside) -> None:
    nft("-f", "-", stdin="table inet filter { chain input { type filter hook input priority 0; drop; }; }\n")
    before = nft("list", "table", "inet", "filter")
    real.load(TEXT)
    nft("-f", "-", stdin="table ip other { chain x { counter accept; }; }\n")
    assert real.is_as_loaded(), "another table is nobody's concern"
    real.remove()
    assert nft("list", "table", "inet", "filter") == before
    assert "table ip other" in nft("list", "tables")


def test_an_unchanged_look_starts_no_process(real: Inside) -> None:
    real.load(TEXT)
    real.driver._call = None  # type: ignore[assignment]
    assert real.is_as_loaded()


def test_each_change_makes_another_generation(real: Inside) -> None:
    first = real.call(generation)
    real.load(TEXT)
    assert real.call(generation) == first + 1
    real.check(TEXT)
    assert real.call(generation) == first + 1


@pytest.mark.parametrize("rule", GOOD)
def test_nft_takes_the_rules_that_we_take(real: Inside, rule: str) -> None:
    access = AccessList((Rule(Direction.IN, "x", rule, 1), Rule(Direction.OUT, "x", rule, 2)), 2)
    real.load(render([Filtered(SHOP, access)]).text)
    assert real.counts("in101") == {("in101", "1"): (0, 0)}
    assert real.counts("out101") == {("out101", "2"): (0, 0)}


TOKENS = (
    *(
        "ip",
        "ip6",
        "tcp",
        "udp",
        "icmp",
        "icmpv6",
        "meta",
        "ct",
        "fib",
        "limit",
        "log",
        "counter",
        "rt",
        "th",
    ),
    *("saddr", "daddr", "dport", "sport", "type", "state", "l4proto", "mark", "rate", "prefix", "count"),
    *("10.0.0.1", "10.0.0.0/8", "fd00::1", "22", "80-90", "new", "echo-request", "5/second", "over", "ssh"),
    *("drop", "accept", "reject", "return", "continue", "with", "reset", "icmpx", "policy", "hook", "filter"),
    *("{", "}", "(", ")", ".", ",", "==", "!=", "&", "|", '"', '"x"', "priority", "0", "input", "elements"),
    *(
        "handle",
        "position",
        "rule",
        "inet",
        "pvc",
        "in102",
        "node",
        "devices",
        "flags",
        "constant",
        "packets",
    ),
    *(
        "jump",
        "goto",
        "vmap",
        "set",
        "add",
        "flush",
        "chain",
        "table",
        "comment",
        "include",
        ";",
        "@in",
        "$x",
    ),
)
STARTS = ("tcp dport 22", "ip saddr 10.0.0.1", "ct state new", "meta l4proto tcp", "")
ENDS = ("accept", "drop", "reject", "return", "")


def test_whatever_text_is_taken_is_one_rule_in_its_chain(real: Inside) -> None:
    """Texts of nftables' own words at random: the table differs in that rule and in nothing else."""
    random = Random(4)
    access = AccessList((Rule(Direction.IN, "x", "drop", 1),))

    def shape() -> tuple[list[tuple[str, str]], int]:
        known = json.loads(nft("-j", "list", "ruleset"))["nftables"]
        named = [
            (kind, str(one[kind]["name"]))
            for one in known
            for kind in one
            if kind in ("table", "chain", "set", "map")
        ]
        # Sets without a name belong to their rule.
        return [one for one in named if not one[1].startswith("__")], sum("rule" in one for one in known)

    real.load(render([Filtered(SHOP, access)]).text)
    plain = shape()
    taken = refused = 0
    for _ in range(900):
        words = random.choices(TOKENS, k=random.randint(0, 4))
        text = " ".join((random.choice(STARTS), *words, random.choice(ENDS))).strip()
        try:
            check_rule(text)
        except Invalid:
            refused += 1
            continue
        try:
            real.load(render([Filtered(SHOP, AccessList((Rule(Direction.IN, "x", text, 1),)))]).text)
        except Refused:
            continue
        taken += 1
        assert shape() == plain, text
        assert [*(real.counts("in101") or {})] == [("in101", "1")], text
    assert taken > 25, taken
    assert refused > 250, refused


@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize("proto", [None, *Protocol])
def test_nft_takes_what_options_make(real: Inside, proto: Protocol | None, verdict: Verdict) -> None:
    rules = [compose("10.0.0.0/8", "", proto, "", verdict), compose("", "fd00::1", proto, "", verdict)]
    if proto in (None, Protocol.TCP, Protocol.UDP, Protocol.SCTP):
        rules += [compose("", "", proto, "80,90-100", verdict)]
    access = AccessList(tuple(Rule(Direction.OUT, str(n), text, n) for n, text in enumerate(rules)))
    real.check(render([Filtered(SHOP, access)]).text)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("tcp dport nonsense drop", "Could not resolve service: .*, at nonsense$"),
        ("tcp dport 22 drop accept", "Statement after terminal statement has no effect, at accept"),
        ("tcp dport 70000 drop", "Service out of range, at 70000$"),
        ("nonsense 22 drop", "No symbol type information, at nonsense$"),
        ("ip saddr 10.0.0.0/33 drop", "Prefix length 33 is invalid .*, at 10.0.0.0/33$"),
    ],
)
@pytest.mark.parametrize("gateway", ["10.1.0.1", ""])
def test_an_operation_says_what_nft_says_and_where(real: Inside, gateway: str, rule: str, says: str) -> None:
    world = shop()
    world.call("network.modify", network="shop", gateway=gateway)
    context = world.context()
    context.check_filters = real.check
    given = {"network": "shop", "direction": "in", "description": "x"}
    with pytest.raises(Invalid, match=f"^nft does not take the rule: {says}"):
        invoke(find("network.acl-add"), context, {**given, "rule": rule})
    invoke(find("network.acl-add"), context, {**given, "rule": "tcp dport ssh drop"})
    assert real.counts() is None, "checking loads nothing"


def test_without_nft_it_is_said() -> None:
    from pvc.errors import Unavailable
    from pvc.node.drivers import DriverError
    from pvc.proc import Completed

    def missing(
        argv: list[str], /, *, stdin: str = "", check: bool = True, timeout_s: float = 1
    ) -> Completed:
        raise Unavailable("the command nft is missing", hint="install the Debian package with nft")

    with pytest.raises(DriverError, match="the command nft is missing"):
        NFT(missing).check(TEXT)


def test_routes_are_those_of_the_namespace(real: Inside) -> None:
    for words in (
        "link add clu type veth peer name other",
        "link set clu up",
        "link set other up",
        "address add 10.0.0.1/24 dev clu",
        "address add fd00:9::1/64 dev clu nodad",
        "route add default via 10.0.0.254",
        "-6 route add default via fd00:9::fe",
    ):
        ip("-n", HERE, *words.split())
    found = real.call(routes)
    for prefix, is_direct in (
        ("10.0.0.0/24", True),
        ("0.0.0.0/0", False),
        ("fd00:9::/64", True),
        ("::/0", False),
    ):
        assert Route("clu", ip_network(prefix), is_direct) in found
    assert Hidden() != HIDE


@pytest.mark.processes
def test_the_cluster_is_told_what_the_kernel_has(real: Inside, tmp_path: Path) -> None:
    """In the kernel's order, and nothing where there is no table."""
    config = config_of(tmp_path, "ours")
    ip("-n", HERE, "link", "set", "lo", "up")
    server = PeerServer(config)
    real.call(server.start)
    try:

        def told(vni: int) -> object:
            port = config.daemon.console_port
            return real.call(lambda: ask(config, "127.0.0.1", port, f"filters/{vni}"))["rules"]

        assert told(101) is None
        real.load(render([Filtered(SHOP, ACCESS)], HIDE, {("in101", "4"): (7, 700)}).text)
        assert told(101) == [
            {"direction": "in", "rule": "1", "packets": 0, "bytes": 0},
            {"direction": "in", "rule": "4", "packets": 7, "bytes": 700},
            {"direction": "out", "rule": "2", "packets": 0, "bytes": 0},
            {"direction": "out", "rule": "3", "packets": 0, "bytes": 0},
        ]
        assert told(102) == []
    finally:
        server.close()
