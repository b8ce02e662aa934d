"""`pvc api serve` as a process of its own, on a real ZooKeeper."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pvc.cluster.codec import version_of
from pvc.errors import Conflict, Unauthenticated, Unavailable
from pvc.http.client import HttpTransport
from tests.api_process import ApiServer, configure
from tests.support import eventually
from tests.zookeeper import Ensemble, zookeeper


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ensemble]:
    with zookeeper(tmp_path_factory.mktemp("zookeeper")) as one:
        yield one


@pytest.fixture
def api(tmp_path: Path, ensemble: Ensemble) -> Iterator[ApiServer]:
    ensemble.heal()
    server = configure(tmp_path, ensemble.addresses)
    done = server.pvc("--direct", "cluster", "init", "--name", "test")
    assert done.returncode == 0, done.stderr
    server.start()
    yield server
    if server.process is not None:
        assert server.stop() == 0, server.log


def name() -> str:
    return f"vm{secrets.token_hex(4)}"


def create(server: ApiServer) -> str:
    made = name()
    done = server.pvc("vm", "create", made, "--memory", "512")
    assert done.returncode == 0, done.stderr
    return made


def test_command_line_works_through_its_socket(api: ApiServer) -> None:
    made = create(api)
    assert made in api.pvc("vm", "list").stdout
    assert api.pvc("cluster", "status").returncode == 0
    assert api.pvc("vm", "info", "none").returncode == 3


def test_token_opens_tcp_until_it_is_removed(api: ApiServer) -> None:
    done = api.pvc("api", "token", "add", "ci", "--role", "read", "--columns", "token", "-f", "json")
    assert done.returncode == 0, done.stderr
    token = next(word.strip('"{}') for word in done.stdout.replace(":", " ").split() if "pvc_ci_" in word)
    transport = HttpTransport(f"http://127.0.0.1:{api.port}", token)
    assert isinstance(transport.call("vm.list", {}), list)
    assert "ci" in api.pvc("api", "token", "list").stdout
    assert api.pvc("api", "token", "remove", "ci", "--yes").returncode == 0
    with pytest.raises(Unauthenticated):
        transport.call("vm.list", {})
    transport.close()
    assert token.rpartition("_")[2] not in api.log


def test_change_made_elsewhere_wakes_who_waits(api: ApiServer) -> None:
    made = create(api)
    transport = HttpTransport(api.address)
    known = version_of(transport.call("vm.info", {"vm": made}))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(transport.call, "vm.info", {"vm": made}, after=known, within_s=30.0)
        done = api.pvc("--direct", "vm", "tag", "add", made, "a")
        assert done.returncode == 0, done.stderr
        assert version_of(waiting.result(15)) != known
    transport.close()


def test_without_zookeeper_it_reads_and_comes_back(api: ApiServer, ensemble: Ensemble) -> None:
    made = create(api)
    transport = HttpTransport(api.address, timeout_s=10.0)
    ensemble.servers[0].kill()
    eventually(lambda: transport.call("vm.info", {"vm": made}) and transport.stale, within=15)
    with pytest.raises(Unavailable):
        transport.call("vm.tag-add", {"vm": made, "tag": "a"})
    # Longer than the session lives, so that it has to read everything again.
    ensemble.heal()

    def tagged() -> bool:
        try:
            return bool(transport.call("vm.tag-add", {"vm": made, "tag": "a"}))
        except Unavailable:
            return False

    eventually(tagged, within=30)
    done = api.pvc("--direct", "vm", "tag", "add", made, "b")
    assert done.returncode == 0, done.stderr
    # Its watches are there again: it sees what others do.
    eventually(lambda: len(transport.call("vm.info", {"vm": made})["tags"]) == 2, within=10)
    assert not transport.stale
    transport.close()


def test_started_before_zookeeper_it_waits_for_it(tmp_path: Path, ensemble: Ensemble) -> None:
    ensemble.servers[0].kill()
    server = configure(tmp_path, ensemble.addresses)
    server.launch()
    eventually(lambda: "no ZooKeeper server answers" in server.log, within=30)
    ensemble.heal()
    server.wait_ready()
    transport = HttpTransport(server.address)
    assert transport.call("vm.list", {}) is not None
    transport.close()
    assert server.stop() == 0


def test_killed_it_can_be_started_again(api: ApiServer) -> None:
    made = create(api)
    assert api.stop(signal.SIGKILL) == -signal.SIGKILL
    assert os.path.exists(api.address)
    api.start()
    assert made in api.pvc("vm", "list").stdout


def test_stopping_removes_the_socket(api: ApiServer) -> None:
    began = time.monotonic()
    assert api.stop() == 0
    assert time.monotonic() - began < 10
    assert not os.path.exists(api.address)


def test_second_server_on_the_same_socket_is_refused(api: ApiServer) -> None:
    done = api.pvc("api", "serve")
    assert done.returncode == 1
    assert "running already" in done.stderr


def test_nothing_is_imported_once_it_serves(api: ApiServer) -> None:
    """The file may be replaced under a running server: what it loaded later would be the newer version's."""
    assert api.stop() == 0
    api.start("-X", "importtime")
    before = len(api.log)
    transport = HttpTransport(api.address)
    made = name()
    transport.call("vm.create", {"name": made, "memory": "512"})
    known = version_of(transport.call("vm.info", {"vm": made}))
    transport.call("vm.info", {"vm": made}, after=known, within_s=0.1)
    for operation in ("vm.list", "node.list", "cluster.status", "api.token-list"):
        transport.call(operation, {})
    with pytest.raises(Conflict, match="there is no node"):
        transport.call("vm.start", {"vm": made})
    transport.call("vm.undefine", {"vm": made})
    wrong = HttpTransport(f"http://127.0.0.1:{api.port}", "pvc_wrong")
    with pytest.raises(Unauthenticated):
        wrong.call("vm.list", {})
    for open_one in (transport, wrong):
        open_one.close()
    late = [line for line in api.log[before:].splitlines() if line.startswith("import time:")]
    assert not late, "\n".join(late)
