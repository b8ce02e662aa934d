"""`pvc metadata serve` as a process, on a real ZooKeeper, in a network namespace with a guest beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pvc.cluster.guests import ADDRESS
from pvc.cluster.zookeeper import ZooKeeperStore
from pvc.node.drivers.loopback import NetlinkLoopback
from tests.api_process import ApiServer, configure
from tests.contract.test_metadata import NODE, PREFIX, UUIDS, Inside, fill, get, wired
from tests.support import eventually
from tests.zookeeper import zookeeper

KEY = "ab" * 32


@pytest.fixture
def node() -> Iterator[Inside]:
    with wired():
        yield Inside(NODE)


@pytest.fixture
def served(tmp_path: Path, node: Inside) -> Iterator[ApiServer]:
    """Not ready yet: its address is not here, and there is nothing to tell."""
    with ExitStack() as stack:
        ensemble = node.call(lambda: stack.enter_context(zookeeper(tmp_path / "zookeeper")))
        server = configure(tmp_path, ensemble.addresses)
        server.verb = ("metadata", "serve")
        done = node.call(lambda: server.pvc("--direct", "cluster", "init", "--name", "test"))
        assert done.returncode == 0, done.stderr
        node.call(lambda: server.start("-X", "importtime"))
        yield server
        if server.process is not None:
            assert server.stop() == 0, server.log


def test_serves_as_soon_as_the_address_is_here(served: ApiServer, node: Inside) -> None:
    guest = Inside(f"{PREFIX}-web1")
    before = len(served.log)
    store = node.call(lambda: connected(served))
    fill(store)
    node.call(lambda: NetlinkLoopback().hold(ADDRESS))
    own = 200, UUIDS["web1"]
    eventually(lambda: guest.call(lambda: get("/latest/meta-data/instance-id")) == own, within=20)
    assert guest.call(lambda: get("/nocloud/user-data")) == (200, "#cloud-config\n# of web1\n")
    assert guest.call(lambda: get("/x"))[0] == 404
    store.close()
    late = [line for line in served.log[before:].splitlines() if line.startswith("import time:")]
    assert not late, "the file may be replaced under a running server\n" + "\n".join(late)
    assert served.stop() == 0


def connected(served: ApiServer) -> ZooKeeperStore:
    servers = served.directory.joinpath("pvc.toml").read_text().partition("coordinators = ['")[2]
    store = ZooKeeperStore([servers.partition("'")[0]], secret=KEY)
    store.connect(20)
    return store
