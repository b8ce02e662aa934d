"""A daemon has loaded all of its code before it is ready: its file may be replaced while it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pvc.node

LOADED = """
import sys
from pvc.node.process import load_everything
load_everything()
print(*sorted(sys.modules))
"""


@pytest.mark.processes
def test_every_module_of_a_node_is_loaded_before_it_is_ready() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    root = Path(pvc.node.__path__[0])
    modules = {
        ".".join(("pvc.node", *path.relative_to(root).with_suffix("").parts)) for path in root.rglob("*.py")
    }
    needed = {name.removesuffix(".__init__") for name in modules} | {"pvc.secretbox", "pvc.pki", "pvc.proc"}
    assert not needed - set(done.stdout.split())
