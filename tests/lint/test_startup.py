"""Start-up budget, counted in modules: what a command does not need, it does not load.

benchmarks/startup.py has the times.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pvc.commands import VERBS
from pvc.errors import Invalid

ROOT = Path(__file__).parents[2]

PROBE = """
import sys
before = set(sys.modules)
sys.path.insert(0, sys.argv.pop(1))
sys.argv[0] = "pvc"
from pvc.__main__ import main
code = main()
loaded = sorted(set(sys.modules) - before)
import json
print(json.dumps([code, loaded]), file=sys.stderr)
"""

THIRD_PARTY = {"kazoo", "bottle", "waitress", "pyroute2", "libvirt", "rados", "rbd"}
HEAVY = {"asyncio", "http", "ssl", "urllib.request", "xml.etree", "unittest", "email", "concurrent"}
"""Each costs as much as the whole command may."""
HELP_ONLY = {"inspect", "dataclasses", "argparse", "subprocess", "logging", "typing", "socket"}


def loaded(*arguments: str, code: int = 0) -> set[str]:
    argv = [sys.executable, "-I", "-c", PROBE, str(ROOT), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    ended, modules = json.loads(done.stderr.splitlines()[-1])
    assert ended == code, done.stderr
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


def test_a_verb_loads_only_what_declares_it() -> None:
    modules = loaded("vm", "list", "--help")
    declaring = {module for of in VERBS.values() for module in of} & modules
    assert declaring == {"pvc.commands.vm_list"}
    assert not any_of(modules, {"pvc.cluster", "pvc.commands.vm_info", "json", "uuid", "threading"})


@pytest.mark.parametrize("verb", ["info", "start", "migrate"])
def test_a_verb_of_vms_loads_no_module_of_other_nouns(verb: str) -> None:
    modules = loaded("vm", verb, "--help")
    assert len({module for module in VERBS["vm"] if module in modules}) == 1
    others = {"pvc.commands.node", "pvc.commands.lab"}
    assert not any_of(modules, others | {"pvc.cluster.domainxml", "pvc.cluster.view", "pvc.cluster.mirror"})


def test_a_verb_that_is_not_there_loads_no_module_of_verbs() -> None:
    modules = loaded("vm", "nonsense", code=Invalid.exit_code)
    assert not any_of(modules, {"pvc.commands.registry", "dataclasses"})
