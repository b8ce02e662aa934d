"""Who may import whom: the directions that keep decisions pure and the start of the program short."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = sorted((ROOT / "pvc").rglob("*.py"))

# Every third-party module has one importing file, which is where another version of it would be adapted to.
IMPORTERS = {
    "kazoo": "pvc/cluster/zookeeper.py",
    "bottle": "pvc/http/app.py",
    "waitress": "pvc/http/server.py",
    "libvirt": "pvc/node/drivers/libvirt.py",
    "libvirt_qemu": "pvc/node/drivers/libvirt.py",
    "pyroute2": "pvc/node/drivers/netlink.py",
    "rados": "pvc/node/drivers/ceph.py",
    "rbd": "pvc/node/drivers/rbd.py",
}

EFFECTS = ("threading", "subprocess", "time", "socket", "pvc.proc")


@dataclass(frozen=True, slots=True)
class Rule:
    who: str
    never: tuple[str, ...]
    unless: tuple[str, ...] = ()
    """Files the rule does not bind."""
    lazily: bool = False
    """May be imported inside a function."""


RULES = (
    Rule("pvc/cluster/", ("pvc.node", "pvc.http", "pvc.commands", "pvc.lab", "pvc.cli", "pvc.output")),
    # The mirror is shared by threads and holds a lock; the ZooKeeper store is an edge.
    Rule("pvc/cluster/", EFFECTS, unless=("pvc/cluster/zookeeper.py", "pvc/cluster/mirror.py")),
    Rule("pvc/cluster/mirror.py", ("subprocess", "time", "socket", "pvc.proc")),
    Rule("pvc/commands/", ("pvc.http", "pvc.node", "pvc.metadata", "pvc.cluster.zookeeper"), lazily=True),
    # Verbs that run in the client's own process; nobody else loads these modules.
    Rule(
        "pvc/commands/",
        ("pvc.lab", "pvc.proc"),
        ("pvc/commands/lab.py", "pvc/commands/editing.py"),
        lazily=True,
    ),
    Rule("pvc/node/plan", (*EFFECTS, "pvc.node.drivers.libvirt", "pvc.cluster.zookeeper", "pvc.http")),
    Rule("pvc/node/actions", (*EFFECTS, "pvc.cluster.zookeeper", "pvc.http")),
    Rule("pvc/node/drivers/", ("pvc.cluster.store", "pvc.cluster.zookeeper", "pvc.http", "pvc.commands")),
    Rule("pvc/node/", ("pvc.http", "pvc.lab", "pvc.commands", "pvc.cli", "pvc.output")),
    Rule("pvc/http/", ("pvc.node", "pvc.metadata", "pvc.lab", "pvc.cli")),
    Rule("pvc/metadata/", ("pvc.commands", "pvc.lab", "pvc.cli", "pvc.output")),
    Rule("pvc/lab/", ("pvc.node", "pvc.http", "pvc.cli")),
    Rule(
        "pvc/",
        ("pvc.cli",),
        unless=("pvc/__main__.py", "pvc/docs.py", "pvc/parser.py", "pvc/commands/completion.py"),
    ),
    # These cost more to import than a whole command may take.
    Rule("pvc/", ("asyncio", "urllib.request", "requests", "pkg_resources")),
    *(
        Rule(f"pvc/{name}.py", ("pvc.cluster", "pvc.node", "pvc.http", "pvc.commands", "pvc.lab"))
        for name in ("errors", "clock", "config", "hostnetworks", "log", "proc")
    ),
)


@dataclass(frozen=True, slots=True)
class Import:
    module: str
    line: int
    is_lazy: bool


def imports(path: Path) -> Iterator[Import]:
    """Everything a file imports, `from a import b` as a.b too; not what only the type checker sees."""
    for node, is_lazy in _walk(ast.parse(path.read_text()), False):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, is_lazy)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield Import(node.module, node.lineno, is_lazy)
            for alias in node.names:
                yield Import(f"{node.module}.{alias.name}", node.lineno, is_lazy)


def _walk(node: ast.AST, is_lazy: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        inside = is_lazy or isinstance(child, ast.FunctionDef)
        yield child, inside
        yield from _walk(child, inside)


def is_part_of(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.who}:{rule.never[0]}")
def test_directions(rule: Rule) -> None:
    broken = [
        f"{name}:{found.line} imports {found.module}"
        for path in PRODUCT
        if (name := str(path.relative_to(ROOT))).startswith(rule.who) and name not in rule.unless
        for found in imports(path)
        if is_part_of(found.module, rule.never) and not (rule.lazily and found.is_lazy)
    ]
    assert not broken, "\n".join(broken)


def test_one_importing_file_for_each_third_party_module() -> None:
    known = {*sys.stdlib_module_names, "pvc"}
    strangers = [
        f"{name}:{found.line} imports {top}"
        for path in PRODUCT
        for found in imports(path)
        if (top := found.module.partition(".")[0]) not in known
        and IMPORTERS.get(top) != (name := str(path.relative_to(ROOT)))
    ]
    assert not strangers, "\n".join(strangers)


def test_the_check_sees_what_it_forbids(tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text(
        "from pvc import node\ndef f():\n    import time\nif TYPE_CHECKING:\n    import kazoo\n"
    )
    found = {(one.module, one.is_lazy) for one in imports(sample)}
    assert found == {("pvc", False), ("pvc.node", False), ("time", True)}
