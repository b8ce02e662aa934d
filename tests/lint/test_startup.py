"""Start-up budget, counted in modules: what a command does not need, it does not load.

benchmarks/startup.py has the times.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROBE = """
import sys
before = set(sys.modules)
sys.path.insert(0, sys.argv.pop(1))
sys.argv[0] = "pvc"
from pvc.__main__ import main
code = main()
import json
print(json.dumps([code, sorted(set(sys.modules) - before)]), file=sys.stderr)
"""

THIRD_PARTY = {"kazoo", "bottle", "waitress", "pyroute2", "libvirt", "rados", "rbd"}
HEAVY = {"asyncio", "http", "ssl", "urllib.request", "xml.etree", "unittest", "email", "concurrent"}
"""Each costs as much as the whole command may."""
HELP_ONLY = {"inspect", "dataclasses", "argparse", "subprocess", "logging", "typing", "socket"}


def loaded(*arguments: str) -> set[str]:
    argv = [sys.executable, "-I", "-c", PROBE, str(ROOT), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr
    return set(modules)


def any_of(modules: set[str], unwanted: set[str]) -> list[str]:
    """Those of `modules` that are, or are inside, an unwanted one."""
    return sorted(
        module
        for module in modules
        if any(module == name or module.startswith(name + ".") for name in unwanted)
    )


@pytest.mark.parametrize("arguments", [("--help",), ("--version",)], ids=" ".join)
def test_help_loads_next_to_nothing(arguments: tuple[str, ...]) -> None:
    modules = loaded(*arguments)
    assert not any_of(modules, THIRD_PARTY | HEAVY | HELP_ONLY)
    assert "pvc.commands.registry" not in modules


@pytest.mark.parametrize(
    "arguments",
    [("vm", "--help"), ("vm", "list", "--help"), ("node", "list", "--help"), ("cluster", "status", "--help")],
    ids=" ".join,
)
def test_help_of_a_verb_loads_no_transport_and_no_driver(arguments: tuple[str, ...]) -> None:
    modules = loaded(*arguments)
    assert not any_of(modules, THIRD_PARTY | HEAVY)
    assert not any_of(modules, {"pvc.http", "pvc.node", "pvc.lab", "pvc.cluster.zookeeper"})


def test_a_noun_loads_only_its_own_operations() -> None:
    modules = loaded("vm", "list", "--help")
    others = {"pvc.commands.lab", "pvc.commands.api", "pvc.commands.connection", "pvc.commands.node"}
    assert not any_of(modules, others)
