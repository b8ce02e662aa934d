"""The client of Ceph, against a real one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pvc.cluster.ceph_pools import CephPlan, Tier
from pvc.cluster.storage import Monitor
from pvc.errors import PVCError, Unavailable
from pvc.node.drivers import DriverError, ceph
from pvc.node.drivers.ceph_pools import CephPools
from tests.ceph import Ceph
from tests.ceph import ceph as a_ceph


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    with a_ceph(tmp_path_factory.mktemp("ceph"), may_delete=False) as made:
        yield made


@pytest.fixture
def client(cluster: Ceph) -> ceph.Ceph:
    return ceph.Ceph(cluster.conf, "admin")


def test_vms_have_a_user_of_their_own(client: ceph.Ceph, cluster: Ceph, tmp_path: Path) -> None:
    with pytest.raises(DriverError, match=r"client\.pvc-vm"):
        ceph.vm_access(client)
    ceph.make_vm_user(client)
    ceph.make_vm_user(client)
    access, key = ceph.vm_access(client)
    (port,) = [
        line.rpartition(":")[2].strip("]") for line in Path(cluster.conf).read_text().splitlines()[2:3]
    ]
    assert (access.monitors, access.user) == ((Monitor("127.0.0.1", int(port)),), "pvc-vm")
    assert ceph.vm_access(client) == (access, key)
    keyring = tmp_path / "keyring"
    keyring.write_text(f"[client.pvc-vm]\nkey = {key}\n")
    conf = tmp_path / "ceph.conf"
    conf.write_text(f"[global]\nmon host = 127.0.0.1:{port}\nkeyring = {keyring}\n")
    guest = ceph.Ceph(str(conf), "pvc-vm")
    assert guest.command("osd stat")["num_osds"] == 1
    with pytest.raises(DriverError, match="access denied"):
        guest.command("osd pool create", pool="mine")


# Pools


class Ended(PVCError):
    """As a task is."""


def end(fraction: float, words: str) -> None:
    raise Ended(words)


def nothing(fraction: float, words: str) -> None:
    """Told nobody."""


def names(cluster: Ceph) -> list[str]:
    return [str(name) for name in cluster.command("osd pool ls")]


def test_a_pool_that_is_ended_while_it_is_made_leaves_nothing(client: ceph.Ceph, cluster: Ceph) -> None:
    pools = CephPools(client)
    with pytest.raises(Ended, match="of 8 placement groups are active"):
        pools.prepare("vms", "id1", CephPlan(8, Tier.DEFAULT, 1, 1), end, force=True)
    assert names(cluster) == ["pvc-new-id1"]
    pools.retire("vms", "id1")
    pools.retire("vms", "id1")
    assert names(cluster) == []
    assert cluster.command("config dump") == []


def test_what_one_leaves_who_dies_is_taken_away(client: ceph.Ceph, cluster: Ceph) -> None:
    """Before the pool says whose it is; and while monitors were told to let us remove it."""
    cluster.command("osd pool create", pool="pvc-new-id2", pg_num=8, size=1)
    cluster.command("config set", who="mon", name="mon_allow_pool_delete", value="true")
    cluster.command("config-key set", key="pvc/pool-delete/pvc-new-id2", val="")
    CephPools(client).retire("vms", "id2")
    assert names(cluster) == []
    assert cluster.command("config dump") == []
    assert cluster.command("config-key dump", key="pvc/") == {}


def test_a_pool_that_is_kept_stays_also_when_it_is_empty(client: ceph.Ceph, cluster: Ceph) -> None:
    pools = CephPools(client)
    pools.prepare("vms", "id6", CephPlan(8, Tier.DEFAULT, 1, 1), nothing, force=True)
    pools.retire("vms", "id6", keep=True)
    pools.retire("vms", "id6")  # which it is not any more
    assert names(cluster) == ["vms"]
    with pytest.raises(Unavailable, match="not that of this cluster"):
        pools.facts("vms", "id6")
    cluster.command("osd pool application set", pool="vms", app="rbd", key="pvc", value="id6")
    pools.retire("vms", "id6")
    assert names(cluster) == []


def test_one_of_several_who_make_a_pool_has_it(client: ceph.Ceph, cluster: Ceph) -> None:
    pools, plan = CephPools(client), CephPlan(8, Tier.DEFAULT, 1, 1)
    with ThreadPoolExecutor(3) as many:
        tries = [many.submit(pools.prepare, "vms", f"id{n}", plan, nothing, force=True) for n in "345"]
    failed = [isinstance(one.exception(), PVCError) for one in tries]
    assert sorted(failed) == [False, True, True]
    for n, is_loser in zip("345", failed, strict=True):
        if is_loser:
            pools.retire("vms", f"id{n}")
    assert names(cluster) == ["vms"]
    pools.retire("vms", f"id{'345'[failed.index(False)]}")
    assert names(cluster) == []
