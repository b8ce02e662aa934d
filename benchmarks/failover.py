#!/usr/bin/env python3
"""Power cuts: each step of the way until a dead node's VMs run elsewhere, by the receipt and from outside.

Runs as root, in a lab of its own: failover.py [ROUNDS] [KIND…]; the kinds take turns, all unless named.
Nodes are containers, guests are emulated where KVM does not work, all on this one machine: real nodes are
faster. What that costs is the last step: from the release of a VM until its QEMU runs.
"""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.lab import dying
from tests.lab.labs import PVC, RunningLab, run_lab
from tests.lab.vms import Cluster
from tests.lab.witness import Witness, watching
from tests.support import eventually

DIRECTORY = Path("/var/lib/pvc-lab-failover")
ROUNDS = 20
VMS = ("first", "second")
WITHIN_S = 120.0


@dataclass(frozen=True, slots=True)
class Kind:
    """Whose power is cut, and what is promised: median, worst."""

    victim: Callable[[Cluster], str]
    has_bmc: bool
    median_s: float
    worst_s: float


KINDS = {
    "hypervisor": Kind(dying.not_leading, True, 15, 25),
    "primary": Kind(dying.only_primary, True, 15, 25),
    "leader": Kind(dying.only_leading, True, 15, 25),
    "leading-primary": Kind(dying.leading_primary, True, 15, 25),
    "hypervisor-without-bmc": Kind(dying.not_leading, False, 45, 45),
    "primary-without-bmc": Kind(dying.only_primary, False, 45, 45),
}
"""leader: of ZooKeeper. Where it dies, every session is counted anew."""
ROLE_MOVES = "role-moves"
ROLE_MOVED_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Cut:
    """Seconds. The first five follow each other; those of the receipt are by the judge's own clock."""

    gone_s: float
    grace_s: float
    fence_s: float
    release_s: float
    start_s: float
    first_vm_s: float
    last_vm_s: float
    role_s: float | None


STEPS = {
    "gone_s": "power cut until its session's end is seen",
    "grace_s": "  grace",
    "fence_s": "  first attempt until there is evidence",
    "release_s": "  evidence until no VM is owned",
    "start_s": "  release until the last QEMU runs (the lab)",
    "first_vm_s": "power cut until the first QEMU runs",
    "last_vm_s": "power cut until the last QEMU runs",
    "role_s": "power cut until there is another primary",
}


def one_cut(cluster: Cluster, witness: Witness, kind: Kind) -> Cut:
    victim = kind.victim(cluster)
    was_primary = dying.primary(cluster) == victim
    cluster.asked = next(node for node in cluster.lab.nodes if node != victim)
    for name in VMS:
        cluster.create(name, "--target", victim)
        cluster.ticking(name, victim)
    runs = {name: len(witness.runs[name]) for name in VMS}
    if not kind.has_bmc:
        cluster.lab.lab("bmc", victim, "off")
    wall, began = time.time(), time.monotonic()
    cluster.lab.power(victim, "off")
    eventually(lambda: all(witness.has_run(name, runs[name] + 1) for name in VMS), within=WITHIN_S)
    up = sorted(witness.runs[name][-1].first_s - began for name in VMS)
    shown = dying.seen(lambda: released(cluster, victim), within=WITHIN_S)
    # Nodes of a lab share this machine's clock.
    noticed_s = shown["since"] - wall
    ended_s = noticed_s + shown["fence_s"] + shown["recovery_s"]
    return Cut(
        gone_s=noticed_s - shown["suspect_s"],
        grace_s=shown["suspect_s"],
        fence_s=shown["fence_s"],
        release_s=shown["recovery_s"],
        start_s=up[-1] - ended_s,
        first_vm_s=up[0],
        last_vm_s=up[-1],
        role_s=role_taken_s(cluster, victim, wall) if was_primary else None,
    )


def released(cluster: Cluster, victim: str) -> Any:
    shown = dying.receipt(cluster, victim)
    return shown if shown and shown["finished"] else None


def role_taken_s(cluster: Cluster, victim: str, since: float) -> float:
    """When another coordinator said that it is primary."""
    said = []
    for node in cluster.lab.nodes:
        if node != victim:
            journal = ("journalctl", "-u", "pvc-node", "-o", "short-unix", "--since", f"@{int(since)}")
            said += re.findall(rf"^([\d.]+) .*\b{node} is primary", cluster.run(node, *journal).stdout, re.M)
    return min(float(stamp) for stamp in said if float(stamp) > since) - since


def restore(cluster: Cluster) -> None:
    cluster.lab.repair()
    dying.seen(lambda: dying.primary(cluster), within=WITHIN_S)
    for name in VMS:
        cluster.remove(name)


def role_moves(cluster: Cluster, rounds: int) -> list[float]:
    """From the command until another node says that it is primary."""
    taken = []
    for number in range(rounds):
        target = cluster.lab.nodes[number % len(cluster.lab.nodes)]
        if dying.primary(cluster) == target:
            continue
        others = [node for node in cluster.lab.nodes if node != target]
        cluster.asked = others[0]
        wall = time.time()
        dying.make_primary(cluster, target)
        taken.append(min(role_taken_s(cluster, other, wall) for other in others))
    return taken


def table(what: str, columns: Mapping[str, Sequence[float]]) -> None:
    print(f"\n{what}\n{'seconds':50}{'median':>8}{'min':>8}{'max':>8}")
    for step, times in columns.items():
        print(f"{step:50}{statistics.median(times):8.2f}{min(times):8.2f}{max(times):8.2f}", flush=True)


def columns_of(cuts: Sequence[Cut]) -> Iterator[tuple[str, list[float]]]:
    for field in fields(Cut):
        times = [value for one in cuts if (value := getattr(one, field.name)) is not None]
        if times:
            yield STEPS[field.name], times


def judge(kind: Kind, cuts: Sequence[Cut]) -> bool:
    times = [one.last_vm_s for one in cuts]
    median, worst = statistics.median(times), max(times)
    kept = median <= kind.median_s and worst <= kind.worst_s
    verdict = "kept" if kept else "NOT KEPT"
    promise = f"median ≤ {kind.median_s:g} s, worst ≤ {kind.worst_s:g} s"
    share = statistics.median(one.start_s / one.last_vm_s for one in cuts)
    print(f"promised: {promise}: {verdict}; the emulated lab took {share:.0%} of it")
    return kept


@contextmanager
def lab() -> Iterator[Cluster]:
    run_lab(DIRECTORY, "down")
    try:
        run_lab(DIRECTORY, "up", "--nodes", "3")
        yield Cluster(RunningLab(DIRECTORY))
    finally:
        run_lab(DIRECTORY, "down")


def chosen(words: Sequence[str]) -> tuple[int, list[str]]:
    rounds = int(words[0]) if words and words[0].isdigit() else ROUNDS
    kinds = [word for word in words if not word.isdigit()] or [*KINDS, ROLE_MOVES]
    if unknown := set(kinds) - {*KINDS, ROLE_MOVES}:
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join((*KINDS, ROLE_MOVES))}")
    return rounds, kinds


def main() -> int:
    if not PVC.exists():
        sys.exit(f"{PVC} is missing; ./build.py zipapp image")
    rounds, names = chosen(sys.argv[1:])
    kinds = [name for name in names if name != ROLE_MOVES]
    cuts: dict[str, list[Cut]] = {name: [] for name in kinds}
    moves: list[float] = []
    with lab() as cluster:
        if ROLE_MOVES in names:
            moves = role_moves(cluster, rounds)
        with watching(cluster.lab.layout.prefix) as witness:
            for number in range(rounds if kinds else 0):
                name = kinds[number % len(kinds)]
                cuts[name].append(one_cut(cluster, witness, KINDS[name]))
                print(f"cut {number + 1}, {name}: {cuts[name][-1]}", file=sys.stderr, flush=True)
                restore(cluster)
    kept = []
    for name, ones in cuts.items():
        if ones:
            table(f"{name}: {len(ones)} cuts", dict(columns_of(ones)))
            kept.append(judge(KINDS[name], ones))
    if moves:
        table(f"planned moves of the primary's role: {len(moves)}", {"until another node has it": moves})
        kept.append(max(moves) <= ROLE_MOVED_WITHIN_S)
    print("no VM ran twice")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
