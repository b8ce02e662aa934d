"""Pools in Ceph: how one is to be made, whether that can be, and how it is. What Ceph says is passed in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pvc.errors import Conflict, Invalid

REPLICATION = r"copies=([1-9]),mincopies=([1-9])"
MOST_PGS = 65536


class Tier(StrEnum):
    """Devices of which class keep it."""

    DEFAULT = "default"
    """Whatever there are."""
    HDD = "hdd"
    SSD = "ssd"
    NVME = "nvme"

    @property
    def rule(self) -> str:
        """Of CRUSH: a copy on each host."""
        return f"pvc-{self}"


@dataclass(frozen=True, slots=True)
class CephPlan:
    """How a pool is to be made."""

    pgs: int = 0
    """Placement groups; 0: as many as Ceph's autoscaler finds right."""
    tier: Tier = Tier.DEFAULT
    copies: int = 3
    min_copies: int = 2
    """With fewer there is no writing."""


@dataclass(frozen=True, slots=True)
class CephFacts:
    """How a pool is, as its Ceph says."""

    tier: str
    copies: int
    min_copies: int
    pgs: int
    pgs_wanted: int
    """To which Ceph is on its way, by itself."""
    is_autoscaled: bool
    health: str
    """ok, or what is not."""


def plan(pgs: int | None, tier: Tier, replication: str, *, force: bool) -> CephPlan:
    """Raises Invalid, Conflict for what loses data sooner or later."""
    found = re.fullmatch(REPLICATION, replication)
    if found is None:
        raise Invalid(f"{replication!r} is not like copies=3,mincopies=2")
    copies, least = int(found[1]), int(found[2])
    if least > copies:
        raise Invalid(f"{least} copies cannot be required of {copies}")
    check_pgs(pgs or 0)
    if least < 2 and not force:
        why = "the first disk that fails" if copies == 1 else "a disk that fails while another one is away"
        raise Conflict(
            f"with {replication} {why} takes data with it", hint="copies=3,mincopies=2, or --force"
        )
    return CephPlan(pgs or 0, tier, copies, least)


def check_pgs(pgs: int) -> None:
    """Raises Invalid."""
    if pgs & (pgs - 1):
        near = 1 << (pgs.bit_length() - 1)
        raise Invalid(f"{pgs} placement groups are no power of two", hint=f"{near} or {2 * near}")


def check_places(tree: Iterable[Mapping[str, Any]], wanted: CephPlan, *, force: bool) -> int:
    """On how many hosts there is a place for copies. Raises Conflict where these are too few.

    `tree` is what Ceph says to `osd tree`.
    """
    nodes = {one["id"]: one for one in tree}
    hosts: dict[str, set[str]] = {}
    for node in nodes.values():
        for child in node.get("children", []) if node["type"] == "host" else []:
            for name in {Tier.DEFAULT, nodes[child].get("device_class") or Tier.DEFAULT}:
                hosts.setdefault(str(name), set()).add(node["name"])
    having = hosts.get(wanted.tier, set())
    if not having:
        classes = ", ".join(sorted(hosts.keys() - {Tier.DEFAULT}))
        raise Conflict(
            f"no OSD is of tier {wanted.tier}; there are those of {classes}"
            if classes
            else "Ceph has no OSD",
            hint="pvc storage osd list",
        )
    if len(having) < wanted.copies and not force:
        raise Conflict(
            f"{wanted.copies} copies need as many hosts with OSDs of tier {wanted.tier}, and there "
            f"{'is' if len(having) == 1 else 'are'} {len(having)}: {', '.join(sorted(having))}",
            hint="--replcfg with fewer copies, or --force when more hosts are to come",
        )
    return len(having)


def identity(pool: Mapping[str, Any]) -> str:
    """Of which pool of a PVC this is the place; empty for one that is of none. `pool` is of `osd pool ls`."""
    return str(pool.get("application_metadata", {}).get("rbd", {}).get("pvc", ""))


def facts(pool: Mapping[str, Any], rules: Iterable[Mapping[str, Any]], states: Iterable[str]) -> CephFacts:
    rule: Mapping[str, Any] = next(
        (one for one in rules if one["rule_id"] == pool["crush_rule"]), {"steps": []}
    )
    taken = [step["item_name"] for step in rule["steps"] if step["op"] == "take"]
    return CephFacts(
        tier=taken[0].partition("~")[2] or Tier.DEFAULT if taken else Tier.DEFAULT,
        copies=pool["size"],
        min_copies=pool["min_size"],
        pgs=pool["pg_num"],
        pgs_wanted=pool["pg_num_target"],
        is_autoscaled=pool["pg_autoscale_mode"] == "on",
        health=health(states, str(pool.get("flags_names", "")).split(",")),
    )


def active(states: Iterable[str]) -> tuple[int, int]:
    """How many placement groups can be written, and how many there are."""
    every = [set(state.split("+")) for state in states]
    return sum("active" in one for one in every), len(every)


def health(states: Iterable[str], flags: Iterable[str]) -> str:
    """The worst in words, `ok` where nothing is."""
    every = [frozenset(state.split("+")) for state in states]
    if "full" in flags:
        return "full: nothing can be written"
    dead = [one for one in every if "active" not in one]
    if dead:
        names = ", ".join(sorted(Counter("+".join(sorted(one)) for one in dead)))
        return f"{len(dead)} of {len(every)} placement groups are not active ({names}): who uses them waits"
    for states_of, words in (
        ({"inconsistent"}, "have copies that differ"),
        ({"degraded", "undersized"}, "have fewer copies than wanted"),
        ({"backfill_toofull", "recovery_toofull"}, "cannot be completed: disks are too full"),
        ({"remapped", "backfilling", "backfill_wait", "recovering"}, "are being moved"),
    ):
        if count := sum(bool(one & states_of) for one in every):
            return f"{count} of {len(every)} placement groups {words}"
    return "nearly full" if "nearfull" in flags else "ok"
