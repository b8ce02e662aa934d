"""A VM on Ceph that is exported while it runs, and made again of that: in Ceph, and in a directory."""

from __future__ import annotations

import pytest

from tests.lab.labs import RunningLab, with_ceph
from tests.lab.test_vm_export import goes_and_comes_back

pytestmark = with_ceph


@pytest.mark.parametrize("into", ["ceph", "vms"])
def test_a_vm_on_ceph_comes_back_as_it_was_at_its_newest_snapshot(lab: RunningLab, into: str) -> None:
    goes_and_comes_back(lab, "ceph", into)
