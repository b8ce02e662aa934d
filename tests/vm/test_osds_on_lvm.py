"""OSDs on logical volumes, with the kernel of a machine of its own. Takes minutes, so CI leaves it out."""

from __future__ import annotations

from pathlib import Path

from tests.vm.machine import Machine


def test_osds_on_logical_volumes(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "machine")
    machine.make()
    assert machine.run("tests/vm/osds_on_lvm.py")
    assert machine.run("tests/vm/osds_after_a_start.py")
