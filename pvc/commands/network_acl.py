"""The filters of a managed network: ordered rules for what comes in and what goes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pvc.cluster import paths
from pvc.cluster.clients import AccessList, Direction, Rule
from pvc.cluster.codec import dumps
from pvc.cluster.filters import Filtered, Protocol, Refused, Verdict, check_rule, compose, render
from pvc.cluster.membership import Primary
from pvc.cluster.network import IPv4, Kind, NetworkSpec
from pvc.cluster.store import Create, Put
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.types import NetworkName
from pvc.errors import Conflict, Invalid, NotFound, PVCError, Unavailable

MOST_RULES, MOST_BYTES = 1000, 512 * 1024
"""Of one network, all in one document."""

ENFORCED = "yes"

ANY_IPV4 = IPv4("192.0.2.0/24", "192.0.2.1")
"""For a network that has no gateway yet: its rules are checked all the same."""

Way = Annotated[
    Direction, Arg("of what comes to the network's VMs|of what they send elsewhere", switches=True)
]
RuleName = Annotated[
    str,
    Arg(
        "what the rule is for",
        short="-d",
        metavar="TEXT",
        pattern=r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}",
        what="a description: up to 63 letters, digits, spaces, dots, dashes and underscores",
    ),
]
Addresses = Annotated[str, Arg(metavar="CIDR")]


@dataclass(frozen=True, slots=True)
class RuleRow:
    direction: Direction
    order: int
    """In which the rules of a direction are tried, from 1."""
    description: str
    rule: str
    packets: int | None
    """To which all of it applied since this primary began, or since it was added; None: nobody can say."""
    bytes: int | None
    enforced: str
    """yes, or why not."""


@operation(
    "POST",
    "/network/{network}/acl",
    role=Role.OPERATE,
    noun="network",
    verb="acl add",
    done="{description} is rule {order} of those for {direction}; the primary follows",
)
def add(
    ctx: Context,
    network: NetworkName,
    *,
    direction: Way,
    description: RuleName,
    rule: Annotated[str, Arg("a rule of nftables, with its verdict", short="-r", metavar="RULE")] = "",
    source: Annotated[Addresses, Arg("only what comes from there", long="from")] = "",
    destination: Annotated[Addresses, Arg("only what goes there", long="to")] = "",
    proto: Annotated[Protocol, Arg("only that protocol")] | None = None,
    port: Annotated[
        str, Arg("only to these ports: 80, 8000-8080 or 80,443; TCP and UDP unless told", metavar="N[-M]")
    ] = "",
    verdict: Annotated[
        Verdict,
        Arg(
            "it passes|it is lost, as it is unless told|it is refused, and the sender told so", switches=True
        ),
    ]
    | None = None,
    order: Annotated[
        int,
        Arg(
            "its place among those of its direction; the last unless told", short="-o", minimum=1, metavar="N"
        ),
    ]
    | None = None,
) -> RuleRow:
    """Add a rule to the filters of a managed network; the first one that accepts or drops a packet decides.

    What no rule decides passes, except between managed networks: there an --in rule of the other one must
    accept it. Answers to what has begun always pass. Rules see what goes through the network's gateway.
    """
    spec, known, version = _found(ctx, network)
    text = _text(rule, source, destination, proto, port, verdict)
    check_rule(text)
    before = [one for one in known.rules if one.direction is direction]
    if any(one.description == description for one in before):
        raise Conflict(f"network {spec.vni} has a rule {description} for {direction} already")
    if len(known.rules) >= MOST_RULES:
        raise Conflict(f"network {spec.vni} has {MOST_RULES} rules, the most there can be")
    place = len(before) + 1 if order is None else order
    if place > len(before) + 1:
        raise Invalid(
            f"there are {len(before)} rules for {direction}: the order can be 1 to {len(before) + 1}"
        )
    new = Rule(direction, description, text, known.last + 1)
    after = replace(known, rules=_inserted(known.rules, new, place), last=new.number)
    if len(dumps(after)) > MOST_BYTES:
        raise Conflict(f"with it the rules of network {spec.vni} would be longer than {MOST_BYTES >> 10} KiB")
    _check(ctx, spec, after, new)
    ctx.say(f"{description} becomes rule {place} of {len(before) + 1} for {direction}: {text}")
    _write(ctx, spec, after, version)
    return RuleRow(direction, place, description, text, None, None, "the primary is about to")


def _text(
    rule: str, source: str, destination: str, proto: Protocol | None, port: str, verdict: Verdict | None
) -> str:
    is_composed = bool(source or destination or proto or port or verdict)
    if rule and is_composed:
        raise Invalid("--rule says all of it: no other option says what it matches or does")
    if not rule and not is_composed:
        raise Invalid(
            "network acl add needs --rule, or what it is to match", hint="--from, --to, --proto, --port"
        )
    return rule.strip() or compose(source, destination, proto, port, verdict or Verdict.DROP)


def _inserted(rules: tuple[Rule, ...], new: Rule, place: int) -> tuple[Rule, ...]:
    """Those of one direction stay together, so that an order is a place among them."""
    own = [one for one in rules if one.direction is new.direction]
    others = [one for one in rules if one.direction is not new.direction]
    return (*others, *own[: place - 1], new, *own[place - 1 :])


def _check(ctx: Context, spec: NetworkSpec, access: AccessList, new: Rule) -> None:
    """By the real nft, in the table that would be loaded. Raises Invalid with what it says of the rule."""
    shown = spec if spec.gateways else replace(spec, ipv4=ANY_IPV4)
    rendered = render([Filtered(shown, access)])
    try:
        ctx.check_filters(rendered.text)
    except Refused as refused:
        for fault in refused.faults:
            place = rendered.places.get(fault.line)
            if place is not None and place.rule == new:
                raise Invalid(f"nft does not take the rule: {fault.message}", hint="man nft") from None
        raise Unavailable(refused.message, hint="this machine's nft or kernel lacks something") from None


@operation(
    "DELETE",
    "/network/{network}/acl/{description}",
    role=Role.OPERATE,
    noun="network",
    verb="acl remove",
    done="{description} filters network {network} no more; the primary follows",
)
def remove(
    ctx: Context,
    network: NetworkName,
    description: Annotated[RuleName, Arg("the rule's description", metavar="DESC", short="")],
    *,
    direction: Way | None = None,
) -> None:
    """Remove a rule from the filters of a managed network."""
    spec, known, version = _found(ctx, network)
    meant = [
        one for one in known.rules if one.description == description and direction in (None, one.direction)
    ]
    if not meant:
        raise NotFound(
            f"network {spec.vni} has no rule {description}", hint=f"pvc network acl list {spec.vni}"
        )
    if len(meant) > 1:
        raise Conflict(f"a rule for in and one for out are called {description}", hint="say --in or --out")
    ctx.say(f"the rule {meant[0].rule} for {meant[0].direction} goes")
    left = tuple(one for one in known.rules if one is not meant[0])
    _write(ctx, spec, replace(known, rules=left), version)


def _found(ctx: Context, network: str) -> tuple[NetworkSpec, AccessList, int | None]:
    spec = ctx.view.network(network).spec
    if spec.kind is not Kind.MANAGED:
        raise Conflict(
            f"network {spec.vni} is bridged: nothing of it passes a gateway of ours, where rules apply",
            hint="filter it where that VLAN is routed",
        )
    stored = ctx.reader.get(paths.network_access(spec.vni))
    if stored is None:
        return spec, AccessList(), None
    return spec, ctx.view.decode(AccessList, stored), stored.version


def _write(ctx: Context, spec: NetworkSpec, access: AccessList, version: int | None) -> None:
    path = paths.network_access(spec.vni)
    ctx.commit(Create(path, dumps(access)) if version is None else Put(path, dumps(access), version))


# Looking


@operation(
    "GET",
    "/network/{network}/acl",
    noun="network",
    verb="acl list",
    columns=("direction", "order", "description", "rule", "packets", "bytes", "enforced"),
)
def list_(ctx: Context, network: NetworkName, *, direction: Way | None = None) -> tuple[RuleRow, ...]:
    """List the filters of a managed network in the order in which they are tried, with what they counted.

    Counted is by the primary; it also says whether a rule is in its kernel, at its place.
    """
    spec, known, _ = _found(ctx, network)
    shown = {way: [one for one in known.rules if one.direction is way] for way in Direction}
    if direction is not None:
        shown = {direction: shown[direction]}
    if not any(shown.values()):
        return ()
    found = _Enforced(ctx, spec)
    return tuple(row for rules in shown.values() for row in _rows(rules, found))


def _rows(rules: list[Rule], found: _Enforced) -> Iterator[RuleRow]:
    for order, one in enumerate(rules, 1):
        packets, size = found.counts.get((one.direction, str(one.number)), (None, None))
        why = found.why_not or found.why_not_at(rules, one)
        yield RuleRow(one.direction, order, one.description, one.rule, packets, size, why or ENFORCED)


class _Enforced:
    """What the primary's kernel has of a network's rules."""

    def __init__(self, ctx: Context, spec: NetworkSpec) -> None:
        self.counts: dict[tuple[str, str], tuple[int, int]] = {}
        self.order: dict[str, list[str]] = {}
        self.why_not = ""
        try:
            rules = _asked(ctx, spec)
        except PVCError as error:
            self.why_not = error.message
            return
        for one in rules:
            way, number = str(one["direction"]), str(one["rule"])
            self.counts[way, number] = int(one["packets"]), int(one["bytes"])
            self.order.setdefault(way, []).append(number)

    def why_not_at(self, rules: list[Rule], rule: Rule) -> str:
        have = self.order.get(rule.direction, [])
        if have == ["broken"]:
            return "nothing new passes at all: see pvc network info"
        if str(rule.number) not in have:
            return "not yet"
        # Those before it, as far as both know them: one that is being added or removed moves the others.
        wanted = [str(one.number) for one in rules if str(one.number) in have]
        return "" if [number for number in have if number in wanted] == wanted else "not yet in this order"


def _asked(ctx: Context, spec: NetworkSpec) -> list[Mapping[str, Any]]:
    """Raises Unavailable, or Conflict where there is nothing that could be enforced."""
    if not spec.gateways:
        raise Conflict("the network has no gateway: nothing leaves it")
    stored = ctx.reader.get(paths.PRIMARY)
    name = ctx.view.decode(Primary, stored).node if stored else ""
    node = ctx.view.nodes([name]).get(name) if name else None
    if node is None or not node.status.console_port:
        raise Unavailable("there is no primary now" if node is None else f"{name} does not answer yet")
    try:
        answer = ctx.ask(node.spec.address, node.status.console_port, f"filters/{spec.vni}")
    except Unavailable as error:
        raise Unavailable(f"nobody can say: {error.message}") from error
    if answer["rules"] is None:
        raise Conflict(f"{name} has loaded no filters yet")
    return list(answer["rules"])
