"""The client of Ceph, against a real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pvc.cluster.storage import Monitor
from pvc.node.drivers import DriverError, ceph
from tests.ceph import Ceph
from tests.ceph import ceph as a_ceph


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    with a_ceph(tmp_path_factory.mktemp("ceph")) as made:
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
