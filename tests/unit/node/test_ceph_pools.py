"""Pools of Ceph, by what its monitors say."""

from __future__ import annotations

from typing import Any, cast

import pytest

from pvc.node.drivers.ceph import Ceph
from pvc.node.drivers.ceph_pools import CephPools

GIB = 1024**3


class Monitors:
    """Their figures of use are some seconds old; the flags of a pool are not."""

    def __init__(self, flags: str) -> None:
        self.flags = flags

    def command(self, prefix: str, **_: Any) -> Any:
        return {
            "df": {"pools": [{"name": "vms", "stats": {"stored": GIB, "max_avail": 9 * GIB}}]},
            "osd pool ls": [{"pool_name": "vms", "flags_names": self.flags}],
        }[prefix]


@pytest.mark.parametrize(
    ("flags", "free"), [("hashpspool", 9 * GIB), ("hashpspool,nearfull", 9 * GIB), ("hashpspool,full", 0)]
)
def test_a_pool_that_takes_no_writes_has_nothing_free(flags: str, free: int) -> None:
    pools = CephPools(cast(Ceph, Monitors(flags)))
    assert pools.used_and_free_bytes("vms") == (GIB, free)
