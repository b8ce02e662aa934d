"""Debian's own cloud-init as the client of the metadata service, by each of the two ways it has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pvc.cluster import paths
from pvc.cluster.guests import ADDRESS
from pvc.cluster.store import Delete, Put
from pvc.commands.vm_user_data import SEED
from tests.cloud_init import USER_DATA, CloudInit, unpacked
from tests.contract.test_metadata import AT, MACS, PREFIX, UUIDS, Bench, wired


@pytest.fixture(scope="module")
def cloud_init() -> CloudInit:
    return unpacked()


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with wired():
        made = Bench()
        for name, uuid in UUIDS.items():
            made.store.commit(Put(paths.vm_user_data(uuid), USER_DATA.format(name).encode()))
        yield made
        made.close()


def test_as_ec2(bench: Bench, cloud_init: CloudInit) -> None:
    known = cloud_init.run(f"{PREFIX}-web1", "Ec2")
    assert known["source"] == "ec2"
    assert known["subplatform"] == f"metadata (http://{ADDRESS})"
    assert known["instance_id"] == UUIDS["web1"]
    assert known["userdata"] == USER_DATA.format("web1")
    assert known["written"] == "of web1"
    assert known["host_name_now"] == "web1"
    assert known["ds"]["meta-data"]["local-ipv4"] == AT["web1"]
    device = known["network_config"]["ethernets"]["eth0"]
    assert (device["match"], device["dhcp4"]) == ({"macaddress": MACS["web1"]}, True)
    assert not retried(known["log"])


def test_as_nocloud(bench: Bench, cloud_init: CloudInit) -> None:
    known = cloud_init.run(f"{PREFIX}-db1", "NoCloud", cmdline=SEED)
    assert known["source"] == "nocloud"
    assert f"http://{ADDRESS}/nocloud/" in known["subplatform"]
    assert known["instance_id"] == UUIDS["db1"]
    assert known["userdata"] == USER_DATA.format("db1")
    assert known["written"] == "of db1"
    assert known["host_name_now"] == "db1"
    assert not retried(known["log"])


def test_without_user_data(bench: Bench, cloud_init: CloudInit) -> None:
    bench.store.commit(Delete(paths.vm_user_data(UUIDS["db1"])))
    known = cloud_init.run(f"{PREFIX}-db1", "Ec2")
    assert (known["instance_id"], known["userdata"], known["written"]) == (UUIDS["db1"], "", None)
    assert not retried(known["log"])


def retried(log: str) -> str:
    """Whatever was not there at once."""
    lines = [line for line in log.splitlines() if "after" in line and "attempts" in line]
    assert lines
    return "\n".join(line for line in lines if "after 1 attempts" not in line)
