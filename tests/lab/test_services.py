"""The services around the VMs: API for a workstation, certificates, a daemon that hangs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from pvc.lab.layout import UPSTREAM
from tests.lab.labs import PVC, RunningLab
from tests.lab.vms import Cluster
from tests.support import eventually

AGED = """
import sys
sys.path.insert(0, "/usr/bin/pvc/site-packages")
from pvc import config, pki
from pvc.cluster.cluster import Authority
from pvc.cluster.codec import loads
from pvc.cluster.paths import AUTHORITY
from pvc.cluster.zookeeper import ZooKeeperStore

settings = config.load()
store = ZooKeeperStore(settings.servers(), secret=settings.secret())
store.connect(20)
authority = loads(Authority, store.get(AUTHORITY).data)
store.close()
own = settings.node
key_file = settings.cluster.key_file
addresses = [own.address, own.storage_address]
old = pki.issue(authority.certificate, authority.encrypted_key, key_file, own.name, addresses, days=0.2)
pki.install(old)
assert pki.needs_renewal(old.cert)
print(old.cert)
"""
"""Gives a node a certificate of which five sixths of its life are over."""


@pytest.fixture
def cluster(lab: RunningLab) -> Cluster:
    return Cluster(lab)


def test_workstation_with_a_token(cluster: Cluster, tmp_path: Path) -> None:
    token = cluster.json("api", "token", "add", "tester", "--role", "read")["token"]
    layout = cluster.lab.layout
    address = layout.address(layout.nodes[0], UPSTREAM)
    env = {**os.environ, "PVC_CLIENT_DIR": str(tmp_path)}

    def pvc(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([PVC, *words], env=env, capture_output=True, text=True, check=False, timeout=60)

    added = pvc("connection", "add", "lab", "-a", address, "-k", token, "-S")
    assert added.returncode == 0, added.stderr
    assert token not in pvc("connection", "list").stdout
    listed = pvc("-c", "lab", "node", "list", "-f", "json")
    assert [one["name"] for one in json.loads(listed.stdout)] == cluster.lab.nodes
    forbidden = pvc("-c", "lab", "vm", "create", "never")
    assert forbidden.returncode == 6
    assert "needs the role operate" in forbidden.stderr
    cluster.pvc("api", "token", "remove", "tester", "--yes")
    gone = pvc("-c", "lab", "vm", "list")
    assert gone.returncode == 6


def certificate(cluster: Cluster, node: str) -> str:
    return cluster.run(node, "cat", "/etc/pvc/tls/cert.pem").stdout.strip()


def test_certificate_is_renewed_under_running_vms(cluster: Cluster) -> None:
    with cluster.vm("sealed", "--target", "n2") as vm:
        pid = cluster.qemu_pid("sealed", vm["node"])
        aged = cluster.run("n2", "python3", "-c", AGED).stdout.strip()
        cluster.run("n2", "systemctl", "restart", "pvc-node")
        assert certificate(cluster, "n2") != aged
        assert cluster.qemu_pid("sealed", "n2") == pid
        cluster.pvc("vm", "move", "sealed", "--target", "n3", "--wait", "--timeout", "60")
        assert "downtime" in cluster.info("sealed")["last_migration"], "it was not moved live, over TLS"
        cluster.pvc("vm", "move", "sealed", "--target", "n2", "--wait", "--timeout", "60")
        assert cluster.qemus("sealed") == ["n2"]


def test_daemon_that_hangs_loses_its_session_and_nothing_else(cluster: Cluster) -> None:
    with cluster.vm("serene", "--target", "n3"):
        pid = cluster.qemu_pid("serene", "n3")
        # systemd's watchdog would end the daemon after 30 s; its session is gone after 6.
        cluster.lab.lab("kill", "n3", "pvc-node", "--stop")
        try:
            eventually(lambda: cluster.json("node", "info", "n3")["daemon_state"] == "dead", within=20)
            assert cluster.qemu_pid("serene", "n3") == pid
        finally:
            cluster.lab.lab("kill", "n3", "pvc-node", "--cont")
        eventually(lambda: cluster.json("node", "info", "n3")["daemon_state"] == "run", within=20)
        assert cluster.qemu_pid("serene", "n3") == pid
        cluster.pvc("vm", "shutdown", "serene", "--wait", "--timeout", "60")
        assert cluster.qemus("serene") == []


def test_two_api_servers_see_the_same(cluster: Cluster) -> None:
    with cluster.vm("seen", start=False):
        cluster.pvc("vm", "tag", "add", "seen", "here")
        other = Cluster(cluster.lab, "n3")
        eventually(lambda: [tag["name"] for tag in other.info("seen")["tags"]] == ["here"], within=5)
        other.pvc("vm", "tag", "add", "seen", "there")
        eventually(lambda: len(cluster.info("seen")["tags"]) == 2, within=5)
