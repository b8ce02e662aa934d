"""The filters of managed networks: rules that people write, and the one nftables table that a primary loads.

A guest's packet to another network meets two base chains, so that what one accepts the other still sees:
`leaving` with the rules "out" of its network, then `arriving` with the rules "in" of the other one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

from pvc.cluster.clients import AccessList, Direction, Rule
from pvc.cluster.guests import ADDRESS as METADATA
from pvc.cluster.network import GATEWAY_GROUP, LINK_GROUP, NetworkSpec, Prefix, gateway_name
from pvc.errors import Invalid, PVCError

FAMILY, TABLE = "inet", "pvc"
LONGEST_RULE = 1000

Number = tuple[int, int]
"""Packets and bytes."""
Key = tuple[str, str]
"""Of a counter: the chain and the comment of its rule."""


def chain_name(direction: Direction, vni: int) -> str:
    return f"{direction}{vni}"


# What people write

_CHARACTERS = re.compile(r'[A-Za-z0-9 ,.:/_+*!=<>&|^~(){}"-]*')
_WORDS = re.compile(r'"[^"]*"|[{}()]|[=!<>&|^~]+|[^\s"{},()=!<>&|^~]+')
"""As nft parts them: neither it nor we need spaces around what is no letter."""
_NEVER: dict[str, str] = {
    **dict.fromkeys(("chain", "table", "include", "define", "undefine", "redefine"), "is not part of a rule"),
    **dict.fromkeys(("flush", "destroy", "rename", "list", "insert", "create"), "is a command"),
    **dict.fromkeys(("delete", "replace", "add", "update", "set", "map", "meter"), "changes something"),
    **dict.fromkeys(("jump", "goto", "vmap", "queue"), "leads elsewhere"),
    **dict.fromkeys(("dnat", "snat", "masquerade", "redirect", "tproxy", "synproxy"), "does not filter"),
    **dict.fromkeys(("dup", "fwd", "notrack", "flow", "offload"), "does not filter"),
    **dict.fromkeys(("name", "quota"), "would begin anew with every change of the filters"),
    "comment": "is what --description is for",
}
_ENDS = ("accept", "drop", "return", "continue", "reject")


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"
    ICMP = "icmp"
    ESP = "esp"
    AH = "ah"
    GRE = "gre"


class Verdict(StrEnum):
    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"


_WITH_PORTS = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)


def check_rule(text: str) -> None:
    """Raises Invalid for what is not exactly one rule that stays in its chain; nft says whether it is one."""
    if not text.strip():
        raise Invalid("the rule is empty")
    if len(text) > LONGEST_RULE:
        raise Invalid(f"the rule has {len(text)} characters, {LONGEST_RULE} are possible")
    allowed = _CHARACTERS.match(text)
    end = allowed.end() if allowed else 0
    if end < len(text):
        raise Invalid(
            f"the rule has the character {text[end]!r}, which no rule needs", hint="a rule is one line"
        )
    if text.count('"') % 2:
        raise Invalid("the rule has a quotation mark that is not closed")
    depth = 0
    words = _WORDS.findall(text)
    for word in words:
        depth += {"{": 1, "}": -1}.get(word, 0)
        if not 0 <= depth <= 1:
            raise Invalid("the braces of the rule do not belong to each other")
        said = word if _ADDRESS.fullmatch(word) else re.split(r"\d", word)[-1]
        if said in _NEVER:  # to nft 80notrack is two words
            raise Invalid(f"the rule has the word {said}, which {_NEVER[said]}")
    if depth:
        raise Invalid("the braces of the rule do not belong to each other")
    _check_addresses(words)


_OF_ADDRESS = ("saddr", "daddr", "nexthop")
_OPERATOR = re.compile(r"[=!<>&|^~()]+|and|or|xor|lshift|rshift|eq|ne|lt|gt|le|ge")
_ADDRESS = re.compile(r"[0-9./*-]+|[0-9a-fA-F:./*-]*:[0-9a-fA-F:./*-]*")


def _check_addresses(words: Sequence[str]) -> None:
    """No names: nft would ask for them whenever it loads the filters, and get other answers."""
    for place, word in enumerate(words):
        if word not in _OF_ADDRESS or (place and words[place - 1] == "fib"):
            continue
        for value in _values(words[place + 1 :]):
            if not _ADDRESS.fullmatch(value):
                raise Invalid(
                    f"the rule has {value} where only an address can be", hint="nft would look it up"
                )


def _values(words: Sequence[str]) -> Iterator[str]:
    """What is compared, of the words after what it is compared with."""
    if words[:1] == ["."] and "{" in words:
        words = words[words.index("{") :]
    expected = True
    for place, word in enumerate(words):
        if word == "{":
            end = words.index("}", place)
            yield from words[place + 1 : end]
            return
        if _OPERATOR.fullmatch(word):
            expected = expected or word != ")"
        elif expected:
            yield word
            expected = False
        else:
            return


def compose(source: str, destination: str, proto: Protocol | None, ports: str, verdict: Verdict) -> str:
    """The rule of those who know no nftables. Raises Invalid."""
    words = list(_addresses(source, destination))
    if ports:
        words.append(f"{_of_protocol(proto)} dport {_ports(ports)}")
    elif proto is Protocol.ICMP:
        words.append("meta l4proto { icmp, ipv6-icmp }")
    elif proto is not None:
        words.append(f"meta l4proto {proto}")
    end = str(verdict)
    if verdict is Verdict.REJECT:
        end = "reject with tcp reset" if proto is Protocol.TCP else "reject with icmpx type admin-prohibited"
    return " ".join([*words, end])


def _of_protocol(proto: Protocol | None) -> str:
    if proto is None:
        return "meta l4proto { tcp, udp } th"
    if proto not in _WITH_PORTS:
        raise Invalid(f"{proto} has no ports", hint=f"--port goes with {', '.join(_WITH_PORTS)}")
    return str(proto)


def _addresses(source: str, destination: str) -> Iterator[str]:
    given = {"saddr": source, "daddr": destination}
    prefixes = {role: _prefix(text) for role, text in given.items() if text}
    if len({prefix.version for prefix in prefixes.values()}) > 1:
        raise Invalid(f"{source} and {destination}: no packet is from IPv4 to IPv6")
    for role, prefix in prefixes.items():
        shown = prefix if prefix.prefixlen < prefix.max_prefixlen else prefix.network_address
        yield f"{'ip' if prefix.version == 4 else 'ip6'} {role} {shown}"


def _prefix(text: str) -> Prefix:
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        near = ip_network(text, strict=False)
    except ValueError:
        raise Invalid(
            f"{text!r} is neither an address nor a network", hint="like 10.1.0.0/24 or fd00:1::/64"
        ) from None
    raise Invalid(f"{text} is an address in the network {near}", hint=f"{near}")


def _ports(text: str) -> str:
    """`80`, `8000-8080`, or several of them with commas."""
    found = [_port(part) for part in text.split(",")]
    return found[0] if len(found) == 1 else f"{{ {', '.join(found)} }}"


def _port(text: str) -> str:
    ends = text.split("-")
    if len(ends) > 2 or not all(re.fullmatch(r"\d{1,5}", one) and 0 < int(one) < 65_536 for one in ends):
        raise Invalid(f"{text!r} is not a port", hint="1 to 65535; like 80, 8000-8080 or 80,443")
    numbers = [int(one) for one in ends]
    if numbers != sorted(set(numbers)):
        raise Invalid(f"the ports {text} end before they begin", hint="like 8000-8080")
    return "-".join(str(one) for one in numbers)


# What is loaded


@dataclass(frozen=True, slots=True)
class Route:
    """Of the node's own table: where a packet leaves."""

    device: str
    prefix: Prefix
    is_direct: bool
    """To the neighbours on the device; else by way of a router."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """What guests never reach, whatever is accepted: the networks that the nodes have among themselves."""

    devices: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()


def hidden(routes: Iterable[Route], addresses: Iterable[str]) -> Hidden:
    """By the node's addresses in its cluster and its storage network.

    A device that also leads to the world outside stays open, but for those networks themselves.
    """
    known = list(routes)
    own = [ip_network(address) for address in addresses if address]
    direct = [
        route for route in known if route.is_direct and any(_is_in(address, route.prefix) for address in own)
    ]
    outside = {route.device for route in known if not route.prefix.prefixlen}
    devices = {route.device for route in direct} - outside
    return Hidden(tuple(sorted(devices)), _collapsed(route.prefix for route in direct))


def _is_in(address: Prefix, prefix: Prefix) -> bool:
    return bool(prefix.prefixlen) and address.version == prefix.version and address.subnet_of(prefix)  # type: ignore[arg-type]


def _collapsed(prefixes: Iterable[Prefix]) -> tuple[str, ...]:
    every = list(prefixes)
    four = collapse_addresses(one for one in every if isinstance(one, IPv4Network))
    six = collapse_addresses(one for one in every if isinstance(one, IPv6Network))
    return tuple(str(one) for one in (*four, *six))


@dataclass(frozen=True, slots=True)
class Transit:
    """What the host passes on between others whether it is primary or not: it was a router before."""

    ipv4: bool = False
    """From wherever it comes."""
    ipv6: bool = False
    devices: tuple[str, ...] = ()
    """IPv4, if it comes in by one of these."""
    bridges: tuple[str, ...] = ()
    """Of the host's own; a kernel may show filters also what only passes a bridge."""


@dataclass(frozen=True, slots=True)
class Filtered:
    """A network, as far as it concerns filters."""

    spec: NetworkSpec
    access: AccessList

    def rules(self, direction: Direction) -> list[Rule]:
        return [rule for rule in self.access.rules if rule.direction is direction]

    @property
    def directions(self) -> list[Direction]:
        """Those in which anything is filtered."""
        return [direction for direction in Direction if self.rules(direction)]


@dataclass(frozen=True, slots=True)
class Place:
    """Whose rule a line of the table is."""

    vni: int
    rule: Rule


@dataclass(frozen=True, slots=True)
class Rendered:
    text: str
    places: Mapping[int, Place] = field(default_factory=dict)
    """By the number of the line, the first is 1."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What nft says of a line."""

    line: int
    message: str


class Refused(PVCError):
    """nft, or the kernel, does not take the table; nothing of it was loaded."""

    http_status = 400

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


Broken = frozenset[tuple[int, Direction]]
"""Networks with a rule that is not taken here: in that direction nothing new passes."""


def render(
    networks: Iterable[Filtered],
    hide: Hidden = Hidden(),
    counts: Mapping[Key, Number] | None = None,
    broken: Broken = frozenset(),
    transit: Transit = Transit(),
) -> Rendered:
    """The whole table, in place of the one before. `counts` go on where they were."""
    every = sorted((one for one in networks if one.spec.gateways), key=lambda one: one.spec.vni)
    lines = [
        f"table {FAMILY} {TABLE}",
        f"delete table {FAMILY} {TABLE}",
        f"table {FAMILY} {TABLE} {{",
        '\tcomment "Written by pvc, which overwrites every change."',
    ]
    places: dict[int, Place] = {}
    counted = counts or {}
    for one in every:
        for direction in one.directions:
            chain = chain_name(direction, one.spec.vni)
            lines.append(f"\tchain {chain} {{")
            if (one.spec.vni, direction) in broken:
                lines.append(f"\t\t{_counted('drop', chain, 'broken', counted)}")
            else:
                for rule in one.rules(direction):
                    lines.append(f"\t\t{_counted(rule.rule, chain, str(rule.number), counted)}")
                    places[len(lines)] = Place(one.spec.vni, rule)
            lines.append("\t}")
    lines += _sets(every, hide, transit)
    lines += _chains(transit, counted)
    lines += ["}", ""]
    return Rendered("\n".join(lines), places)


def _counted(rule: str, chain: str, comment: str, counts: Mapping[Key, Number]) -> str:
    """Counted are the packets to which all of the rule applies."""
    matches, verdict = _parted(rule)
    packets, size = counts.get((chain, comment), (0, 0))
    counter = f"counter packets {packets} bytes {size}"
    return " ".join(part for part in (matches, counter, verdict, f'comment "{comment}"') if part)


def _parted(rule: str) -> tuple[str, str]:
    """What a rule looks for and logs, and what becomes of the packet. Own counters are one too many."""
    text = _without_counters(rule.strip())
    depth = 0
    for found in _WORDS.finditer(text):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if not depth and found[0] in _ENDS:
            return text[: found.start()].strip(), text[found.start() :]
    return text, ""


_COUNTER = re.compile(r'("[^"]*")|\bcounter\b(?: packets \d+ bytes \d+)? ?')


def _without_counters(text: str) -> str:
    return _COUNTER.sub(lambda found: found[1] or "", text).strip()


def _sets(networks: Sequence[Filtered], hide: Hidden, transit: Transit) -> Iterator[str]:
    names = {one.spec.vni: f'"{gateway_name(one.spec.vni)}"' for one in networks}
    yield from _set("set gateways", "ifname", names.values())
    yield from _set("set same", "ifname . ifname", (f"{name} . {name}" for name in names.values()))
    for direction in Direction:
        filtered = [one.spec.vni for one in networks if direction in one.directions]
        jumps = (f"{names[vni]} : jump {chain_name(direction, vni)}" for vni in filtered)
        yield from _set(f"map {direction}", "ifname : verdict", jumps)
    four = {one.spec.vni: one.spec.ipv4.network for one in networks if one.spec.ipv4.gateway}
    six = {one.spec.vni: one.spec.ipv6.network for one in networks if one.spec.ipv6.gateway}
    for version, known in ((4, four), (6, six)):
        of = (f"{names[vni]} . {prefix}" for vni, prefix in known.items())
        yield from _set(f"set sources{version}", f"ifname . ipv{version}_addr", of, interval=True)
    yield from _set("set hidden", "ifname", (f'"{device}"' for device in hide.devices))
    for version, mark in ((4, "."), (6, ":")):
        there = (prefix for prefix in hide.prefixes if mark in prefix)
        yield from _set(f"set hidden{version}", f"ipv{version}_addr", there, interval=True)
    yield from _set("set transit", "ifname", (f'"{device}"' for device in transit.devices))
    yield from _set("set bridged", "ifname . ifname", (f'"{name}" . "{name}"' for name in transit.bridges))


def _set(head: str, kind: str, elements: Iterable[str], *, interval: bool = False) -> Iterator[str]:
    yield f"\t{head} {{"
    yield f"\t\ttype {kind}"
    if interval:
        yield "\t\tflags interval"
    known = list(elements)
    if known:
        yield "\t\telements = {"
        yield from (f"\t\t\t{element}," for element in known)
        yield "\t\t}"
    yield "\t}"


_BASE: Mapping[str, tuple[str, ...]] = {
    "input": (
        "type filter hook input priority filter + 10; policy accept;",
        "iifname @gateways goto node",
        f'iifname "gw*" iifgroup {GATEWAY_GROUP} DROP unfiltered',
    ),
    "leaving": (
        "type filter hook forward priority filter + 10; policy accept;",
        "iifname @gateways goto guest",
        f'iifname "gw*" iifgroup {GATEWAY_GROUP} DROP unfiltered',
        "oifname != @gateways goto others",
    ),
    "arriving": (
        "type filter hook forward priority filter + 20; policy accept;",
        "oifname @gateways goto towards",
        f'oifname "gw*" oifgroup {GATEWAY_GROUP} DROP unfiltered',
    ),
}
"""What a device of ours without filters (yet, or any more) says, and what is said to it, does not pass."""

_FURTHER: Mapping[str, tuple[str, ...]] = {
    "node": (
        "icmp type redirect DROP router4",
        "icmpv6 type { nd-router-advert, nd-redirect } DROP router6",
        "ip saddr 0.0.0.0 udp dport 67 accept",
        "iifname . ip saddr != @sources4 DROP spoofed4",
        "ip6 saddr != { ::, fe80::/10 } iifname . ip6 saddr != @sources6 DROP spoofed6",
        "ct state established,related accept",
        f"ip daddr {METADATA} tcp dport 80 accept",
        "fib daddr . iif type { local, broadcast, multicast } jump services",
        "DROP node",
    ),
    "services": (
        "meta l4proto { icmp, ipv6-icmp } accept",
        "udp dport { 53, 67, 123, 547 } accept",
        "tcp dport 53 accept",
    ),
    "guest": (
        "iifname . ip saddr != @sources4 DROP spoofed4",
        "iifname . ip6 saddr != @sources6 DROP spoofed6",
        "oifname @hidden DROP hidden",
        "ip daddr @hidden4 DROP hidden4",
        "ip6 daddr @hidden6 DROP hidden6",
        "ct state established,related accept",
        "iifname vmap @out",
    ),
    "towards": (
        "ct state established,related accept",
        "oifname vmap @in",
        "iifname @gateways iifname . oifname != @same DROP isolated",
    ),
}


def _others(transit: Transit) -> Iterator[str]:
    """The kernel passes packets on from a device, or all of IPv6, and not to gateways only."""
    yield f"iifgroup {LINK_GROUP} oifgroup {LINK_GROUP} accept"
    yield "iifname . oifname @bridged accept"
    if not transit.ipv4:
        yield "meta nfproto ipv4 iifname != @transit DROP transit4"
    if not transit.ipv6:
        yield "meta nfproto ipv6 DROP transit6"


def _chains(transit: Transit, counts: Mapping[Key, Number]) -> Iterator[str]:
    others = {"others": tuple(_others(transit))}
    for name, rules in (*_FURTHER.items(), *others.items(), *_BASE.items()):
        yield f"\tchain {name} {{"
        for rule in rules:
            matches, is_drop, comment = rule.rpartition("DROP ")
            yield f"\t\t{_counted(f'{matches}drop', name, comment, counts) if is_drop else rule}"
        yield "\t}"
