"""One suite for every Transport: --direct, the unix socket, TCP and TLS keep the same promises."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pvc.cluster.codec import version_of
from pvc.commands import connection
from pvc.commands.connection import Connection, Known
from pvc.commands.context import LocalContext, Transport
from pvc.commands.direct import DirectTransport
from pvc.commands.registry import every_operation
from pvc.errors import Conflict, Invalid, NotFound, PVCError, Unauthenticated, Unavailable
from pvc.http.client import HttpTransport
from tests.fakes.serving import Serving, serving
from tests.fakes.tls import certificate, terminated
from tests.support import eventually

VM = "web1"


@dataclass(slots=True)
class Way:
    """A kind of transport to one cluster."""

    connect: Callable[[], Transport]
    served: Serving


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["direct", "unix", "tcp", "tls"])
def way(request: pytest.FixtureRequest, tmp_path: Path, certificates: tuple[str, str]) -> Iterator[Way]:
    with ExitStack() as stack:
        served = stack.enter_context(serving(tmp_path, operations=list(every_operation())))
        port = stack.enter_context(terminated(served.port, *certificates))
        ca = Path(certificates[0]).read_text()
        ways: dict[str, Callable[[], Transport]] = {
            "direct": lambda: DirectTransport(served.cluster.connect(), "n1"),
            "unix": lambda: HttpTransport(served.path),
            "tcp": lambda: HttpTransport(served.url, served.keys["admin"]),
            "tls": lambda: HttpTransport(f"https://localhost:{port}", served.keys["admin"], ca),
        }
        made: list[Transport] = []

        def connect() -> Transport:
            made.append(ways[request.param]())
            return made[-1]

        yield Way(connect, served)
        for transport in made:
            transport.close()


@pytest.fixture
def transport(way: Way) -> Transport:
    return way.connect()


def create(transport: Transport, name: str = VM) -> Any:
    return transport.call("vm.create", {"name": name, "memory": "512"})


def test_answers_are_plain_json(transport: Transport) -> None:
    assert transport.call("vm.list", {}) == []
    create(transport)
    assert transport.call("vm.info", {"vm": VM})["name"] == VM
    assert [row["name"] for row in transport.call("vm.list", {})] == [VM]
    assert transport.call("vm.definition", {"vm": VM}).startswith("<")


def test_own_write_is_seen_at_once(transport: Transport) -> None:
    for number in range(10):
        create(transport, f"vm{number}")
        assert len(transport.call("vm.list", {})) == number + 1


def test_arguments_of_every_kind(transport: Transport) -> None:
    create(transport)
    transport.call("vm.tag-add", {"vm": VM, "tag": "a"})
    transport.call("vm.meta", {"vm": VM, "autostart": True, "max_downtime": 400})
    assert len(transport.call("vm.list", {"tag": "a"})) == 1
    assert len(transport.call("vm.list", {"tag": "a", "negate": True})) == 0
    assert transport.call("vm.list", {"limit": "^w.b[0-9]$"}) != []
    two = transport.call(
        "vm.create", {"name": "b", "memory": "512", "network": ["bridge:a", "bridge:b"], "tag": "x"}
    )
    assert len(transport.call("vm.list", {"tag": "x"})[0]["networks"]) == 2, two


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("vm.info", {"vm": "none"}, NotFound),
        ("vm.info", {"vm": "a b/../c"}, Invalid),
        ("vm.info", {"vm": ""}, Invalid),
        ("vm.info", {"vm": ".."}, Invalid),
        ("vm.info", {"vm": VM, "sise": 1}, Invalid),
        ("vm.create", {"name": VM, "memory": "512"}, Conflict),
        ("vm.create", {"name": "b", "memory": "much"}, Invalid),
        ("vm.create", {"memory": "512"}, Invalid),
        ("vm.nonsense", {}, NotFound),
        ("vm.list", {"limit": "("}, Invalid),
    ],
)
def test_errors_keep_their_class_message_and_hint(
    way: Way, transport: Transport, name: str, arguments: dict[str, Any], error: type[Exception]
) -> None:
    create(transport)
    with pytest.raises(error) as found:
        transport.call(name, arguments)
    assert type(found.value) is error
    assert str(found.value)
    # Nothing is broken after it.
    assert transport.call("vm.info", {"vm": VM})["name"] == VM


def test_plan_changes_nothing(transport: Transport) -> None:
    planned = transport.call("vm.create", {"name": VM, "memory": "512"}, plan=True)
    assert planned["changes"]
    assert transport.call("vm.list", {}) == []


def test_a_read_waits_for_a_change(way: Way, transport: Transport) -> None:
    create(transport)
    known = version_of(transport.call("vm.info", {"vm": VM}))
    other = way.connect()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(transport.call, "vm.info", {"vm": VM}, after=known, within_s=30.0)
        with pytest.raises(TimeoutError):
            waiting.result(0.3)
        other.call("vm.tag-add", {"vm": VM, "tag": "a"})
        answer = waiting.result(15)
    assert version_of(answer) != known


def test_a_read_ends_its_wait_in_time(transport: Transport) -> None:
    create(transport)
    known = version_of(transport.call("vm.info", {"vm": VM}))
    began = time.monotonic()
    answer = transport.call("vm.info", {"vm": VM}, after=known, within_s=0.3)
    assert version_of(answer) == known
    assert 0.3 <= time.monotonic() - began < 10


def test_a_list_waits_too(way: Way, transport: Transport) -> None:
    known = version_of(transport.call("vm.list", {}))
    other = way.connect()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(transport.call, "vm.list", {}, after=known, within_s=30.0)
        create(other)
        assert [row["name"] for row in waiting.result(15)] == [VM]


def test_no_update_is_lost_between_clients(way: Way) -> None:
    create(way.connect())

    def add(number: int) -> None:
        transport = way.connect()
        for each in range(3):
            transport.call("vm.tag-add", {"vm": VM, "tag": f"t{number}-{each}"})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    assert len(way.connect().call("vm.info", {"vm": VM})["tags"]) == 12


# What only a network can do


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path, operations=list(every_operation())) as one:
        yield one


def test_debugging_names_each_request_and_no_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(tmp_path, operations=list(every_operation())) as served, caplog.at_level("DEBUG"):
        transport = HttpTransport(served.url, served.keys["admin"])
        transport.call("vm.list", {"state": "start"})
        transport.close()
    assert f"{served.url} GET /api/v1/vm?state=start: 200" in caplog.messages
    assert not [line for line in caplog.messages if served.keys["admin"] in line]


def test_one_connection_serves_many_calls(served: Serving) -> None:
    transport = HttpTransport(served.url, served.keys["admin"])
    transport.call("vm.list", {})
    first = transport._connection
    for _ in range(5):
        transport.call("vm.list", {})
    assert transport._connection is first
    transport.close()


def test_dropped_idle_connection_is_made_again_for_a_read(tmp_path: Path) -> None:
    with serving(tmp_path, operations=list(every_operation())) as served:
        transport = HttpTransport(served.path)
        transport.call("vm.list", {})
        path, cluster = served.path, served.cluster
    with serving(tmp_path, cluster, operations=list(every_operation())) as again:
        Path(path).unlink()
        Path(path).symlink_to(again.path)
        assert transport.call("vm.list", {}) == []
        transport.close()


def test_request_that_changes_something_is_never_sent_twice(tmp_path: Path) -> None:
    with serving(tmp_path, operations=list(every_operation())) as served:
        transport = HttpTransport(served.path)
        transport.call("vm.list", {})
    with pytest.raises(Unavailable, match="may have been carried out"):
        create(transport)
    transport.close()


@pytest.mark.parametrize("address", ["/nonexistent/api.sock", "http://127.0.0.1:1", "https://127.0.0.1:1"])
def test_unreachable_api_is_named_with_a_way_out(address: str) -> None:
    with pytest.raises(Unavailable, match="cannot reach the API at") as found:
        HttpTransport(address).call("vm.list", {})
    assert address in found.value.message
    assert found.value.hint


@pytest.mark.parametrize("address", ["ftp://h", "h:7370", "http://", ""])
def test_address_that_is_none(address: str) -> None:
    with pytest.raises(Invalid):
        HttpTransport(address).call("vm.list", {})


def test_certificate_is_checked(served: Serving, tmp_path: Path, certificates: tuple[str, str]) -> None:
    other = certificate(tmp_path)
    right = Path(certificates[0]).read_text()
    with terminated(served.port, *certificates) as port:
        for ca in ("", Path(other[0]).read_text()):
            with pytest.raises(Unavailable, match="cannot reach") as found:
                HttpTransport(f"https://localhost:{port}", "key", ca).call("vm.list", {})
            assert "--ca" in found.value.hint
        with pytest.raises(Unavailable, match="cannot reach"):
            # Right certificate, wrong name.
            HttpTransport(f"https://127.0.0.1:{port}", "key", right).call("vm.list", {})
        with pytest.raises(Invalid, match="certificates"):
            HttpTransport(f"https://localhost:{port}", "key", "nonsense").call("vm.list", {})


def test_plain_port_asked_for_tls(served: Serving) -> None:
    with pytest.raises(Unavailable, match="cannot reach"):
        HttpTransport(f"https://127.0.0.1:{served.port}", "key", timeout_s=1.0).call("vm.list", {})


def test_wrong_key(served: Serving) -> None:
    with pytest.raises(Unauthenticated):
        HttpTransport(served.url, "wrong").call("vm.list", {})


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>", "does not answer like a pvc API"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 2\r\n\r\n{}", "status 302"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "cannot reach the API"),
        (b"", "cannot reach the API"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[]", "cannot reach the API"),
    ],
)
def test_stranger_at_the_address(answer: bytes, told: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def once() -> None:
            sock, _ = listening.accept()
            with sock:
                sock.recv(65536)
                sock.sendall(answer)

        thread = threading.Thread(target=once)
        thread.start()
        transport = HttpTransport(f"http://127.0.0.1:{listening.getsockname()[1]}", "key")
        with pytest.raises(PVCError, match=told):
            transport.call("vm.list", {})
        transport.close()
        thread.join()


def test_every_cluster_is_asked_at_once(
    served: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that do not answer; and each is sent its own key only."""
    (tmp_path / "client").mkdir()
    monkeypatch.setenv("PVC_CLIENT_DIR", str(tmp_path / "client"))
    monkeypatch.setenv("PVC_CONFIG", str(tmp_path / "none.toml"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        here = Connection("127.0.0.1", served.port, key=served.keys["read"], ssl=False)
        mute = Connection("127.0.0.1", silent.getsockname()[1], key="pvc_mute_key", ssl=False)
        connection.save(Known({"here": here, "mute1": mute, "mute2": mute, "mute3": mute}))
        monkeypatch.setattr(connection, "DETAIL_S", 1.0)
        began = time.monotonic()
        rows = {
            row.name: row for row in connection.detail(LocalContext(connect=lambda: pytest.fail("not one")))
        }
        took = time.monotonic() - began
    assert (rows["here"].cluster, rows["here"].vms) == ("test", 0)
    assert rows["here"].health in ("ok", "problems")
    assert all("no answer in time" in rows[name].health for name in ("mute1", "mute2", "mute3"))
    assert took < 2.5


def test_stale_answers_are_marked(served: Serving) -> None:
    transport = HttpTransport(served.path)
    create(transport)
    assert not transport.stale
    served.cluster.suspend(served.store)
    assert transport.call("vm.info", {"vm": VM})["name"] == VM
    assert transport.stale
    with pytest.raises(Unavailable, match="lost ZooKeeper"):
        transport.call("vm.tag-add", {"vm": VM, "tag": "a"})
    served.cluster.resume(served.store)
    eventually(lambda: transport.call("vm.tag-add", {"vm": VM, "tag": "a"}), within=5)
    assert not transport.stale
    transport.close()
