"""Pools as a node looks at them: what its VMs need to reach Ceph."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import pytest

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.storage import CephAccess, Driver, Monitor, PoolSpec
from pvc.cluster.store import Create, Delete
from pvc.errors import Unavailable
from pvc.node.storage import Pools
from tests.fakes.hypervisor import FakeWorld
from tests.fakes.pool import FakePool
from tests.unit.commands.world import World, a_world

ACCESS = CephAccess((Monitor("10.0.0.1", 3300),), "pvc-vm", "0a1b2c3d-0000-4000-8000-000000000001")
KEY = base64.b64encode(b"secret").decode()


class Looking:
    def __init__(self) -> None:
        self.world: World = a_world(1)
        self.host = FakeWorld().add("n1")
        self.monitors_answer = True
        self.problems: Mapping[str, str] = {}
        self.pools = Pools(
            "n1",
            self.world.store,
            self._publish,
            open_pool=lambda spec: FakePool(),
            look_at_ceph=self._look,
            keep_secret=self.host.keep_secret,
        )

    def _publish(self, problems: Mapping[str, str]) -> None:
        self.problems = problems

    def _look(self) -> tuple[CephAccess, str]:
        if not self.monitors_answer:
            raise Unavailable("Ceph is not reached from here")
        return ACCESS, KEY

    def add(self, name: str, **more: Any) -> None:
        spec = PoolSpec(name, f"id-{name}", **more)
        self.world.store.commit(Create(paths.pool(name), dumps(spec)))


def test_libvirt_gets_the_key_where_a_pool_is_in_ceph() -> None:
    node = Looking()
    node.add("files", path="/srv")
    node.pools.step()
    assert node.host.secrets == {}
    with pytest.raises(Unavailable, match="no pool is in it"):
        node.pools.ceph()
    node.add("vms", driver=Driver.RBD, ceph_pool="vms")
    node.pools.step()
    assert node.pools.ceph() == ACCESS
    ((usage, value),) = node.host.secrets.values()
    assert (list(node.host.secrets), usage.split()[0], value) == ([ACCESS.secret], "client.pvc-vm", b"secret")
    node.world.store.commit(Delete(paths.pool("vms")))
    node.pools.step()
    with pytest.raises(Unavailable, match="no pool is in it"):
        node.pools.ceph()


def test_a_node_whose_vms_cannot_reach_ceph_says_so() -> None:
    node = Looking()
    node.add("files", path="/srv")
    node.add("vms", driver=Driver.RBD, ceph_pool="vms")
    node.host.refuses["keep_secret"] = "no secrets here"
    node.pools.step()
    assert node.problems == {"vms": "QEMU on n1 cannot reach Ceph: no secrets here"}
    node.host.refuses.clear()
    node.pools.step()
    assert node.problems == {}


def test_vms_start_while_monitors_do_not_answer() -> None:
    node = Looking()
    node.add("vms", driver=Driver.RBD, ceph_pool="vms")
    node.pools.step()
    node.monitors_answer = False
    node.pools.step()
    assert node.pools.ceph() == ACCESS


def test_before_the_first_look_nothing_is_known() -> None:
    with pytest.raises(Unavailable, match="only just begun"):
        Looking().pools.ceph()
