#!/usr/bin/env python3
"""How long the packaged file takes to say something, against a Python that does nothing."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PVC = Path(__file__).resolve().parents[1] / "dist/pvc"
BARE = ("/usr/bin/python3", "-I", "-c", "pass")
ROUNDS = 40


def elapsed_ms(argv: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env={})
    return (time.perf_counter() - began) * 1000


def measure(commands: Sequence[Sequence[str]], rounds: int = ROUNDS) -> list[list[float]]:
    """Interleaved, so that whatever else the machine does hits all alike; the first round only warms up."""
    taken: list[list[float]] = [[] for _ in commands]
    for _ in range(rounds + 1):
        for times, argv in zip(taken, commands, strict=True):
            times.append(elapsed_ms(argv))
    return [times[1:] for times in taken]


def main() -> int:
    if not PVC.exists():
        sys.exit(f"{PVC} is missing; ./build.py zipapp")
    pvc = str(PVC)
    commands = {
        "python3 -I -c pass": (BARE, None),
        "pvc --help": ((pvc, "--help"), 3.0),
        "pvc --version": ((pvc, "--version"), 3.0),
        "pvc vm list --help": ((pvc, "vm", "list", "--help"), 5.0),
    }
    taken = measure([argv for argv, _ in commands.values()])
    bare = statistics.median(taken[0])
    print(f"{'command':22}{'median ms':>10}{'min ms':>9}{'max ms':>9}{'ratio':>8}{'promise':>9}")
    met = True
    for (name, (_, most)), times in zip(commands.items(), taken, strict=True):
        ratio = statistics.median(times) / bare
        met &= most is None or ratio <= most
        figures = f"{statistics.median(times):10.1f}{min(times):9.1f}{max(times):9.1f}{ratio:8.2f}"
        print(f"{name:22}{figures}{f'≤ {most:g}' if most else '':>9}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
