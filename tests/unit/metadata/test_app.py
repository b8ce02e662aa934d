"""The metadata service without a socket: paths, who is refused, and that nobody learns of others."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass, field
from typing import Any

import pytest

from pvc.cluster.guests import Guests
from pvc.errors import Unavailable
from pvc.metadata.app import App
from tests.unit.test_guests import DB, DB_MAC, NETWORKS, STRANGE, WEB, WEB_MAC

WEB_AT, DB_AT = "10.1.0.10", "10.1.0.20"


@dataclass
class Wire:
    """Guests at the gateway, and what they get."""

    macs: dict[str, str] = field(default_factory=lambda: {WEB_AT: WEB_MAC, DB_AT: DB_MAC})
    user_data: dict[str, bytes] = field(default_factory=lambda: {WEB: b"#cloud-config\n"})
    now: float = 1000.0
    fails: Exception | None = None

    def __post_init__(self) -> None:
        self.app = App(lambda: Guests(NETWORKS), self._mac_at, self._user_data, self)

    def _mac_at(self, vni: int, address: str) -> str:
        return self.macs.get(address, "")

    def _user_data(self, uuid: str) -> bytes | None:
        if self.fails is not None:
            raise self.fails
        return self.user_data.get(uuid)

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def ask(self, path: str, source: str = WEB_AT, method: str = "GET", **headers: str) -> tuple[int, str]:
        status, _, body = self.whole(path, source, method, **headers)
        return status, body

    def whole(
        self, path: str, source: str = WEB_AT, method: str = "GET", **headers: str
    ) -> tuple[int, dict[str, str], str]:
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "REMOTE_ADDR": source,
            "HTTP_HOST": "169.254.169.254",
            "wsgi.input": io.BytesIO(),
            **{f"HTTP_{name.upper()}": value for name, value in headers.items()},
        }
        seen: list[Any] = []
        body = b"".join(self.app(environ, lambda status, found: seen.append((status, dict(found)))))
        status, found = seen[0]
        return int(status.split()[0]), found, body.decode()


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/latest/meta-data/instance-id", WEB),
        ("/2009-04-04/meta-data/instance-id", WEB),
        ("/2021-03-23/meta-data/local-hostname", "web-1.shop.example"),
        ("//latest//meta-data//hostname/", "web-1.shop.example"),
        ("/latest/meta-data/local-ipv4", WEB_AT),
        ("/latest/meta-data/network/interfaces/macs/", f"{WEB_MAC}/\n02:00:00:00:00:02/"),
        (f"/latest/meta-data/network/interfaces/macs/{WEB_MAC}/local-ipv4s", WEB_AT),
        ("/latest/", "meta-data/\nuser-data"),
        ("/latest/user-data", "#cloud-config\n"),
        ("/nocloud/user-data", "#cloud-config\n"),
        ("/nocloud/vendor-data", ""),
    ],
)
def test_found(wire: Wire, path: str, body: str) -> None:
    assert wire.ask(path) == (200, body)


def test_the_top_lists_the_versions(wire: Wire) -> None:
    assert wire.ask("/")[1].split("\n")[-3:] == ["2021-03-23/", "latest/", "nocloud/"]


@pytest.mark.parametrize(
    "path",
    [
        *("/2030-01-01/meta-data/", "/latest/meta-data/public-keys/", "/latest/meta-data/hostname/x"),
        *("/../etc/passwd", "/latest/dynamic/instance-identity/document", "/latest/api", "/nocloud/x"),
        *(f"/{DB}", "/latest/user-data/x", "/user-data", "/meta-data/user-data"),
    ],
)
def test_what_is_not_there(wire: Wire, path: str) -> None:
    assert wire.ask(path) == (404, "Not Found\n")


def test_no_user_data(wire: Wire) -> None:
    """cloud-init's EC2 takes their absence for an answer, and its NoCloud does not."""
    assert wire.ask("/latest/user-data", DB_AT) == (404, "Not Found\n")
    assert wire.ask("/nocloud/user-data", DB_AT) == (200, "")


def test_each_gets_its_own(wire: Wire) -> None:
    wire.user_data[DB] = b"other"
    assert wire.ask("/latest/user-data") == (200, "#cloud-config\n")
    assert wire.ask("/latest/user-data", DB_AT) == (200, "other")
    assert wire.ask("/latest/meta-data/instance-id", DB_AT) == (200, DB)


@pytest.mark.parametrize("source", ["192.0.2.1", "10.1.0.99", "10.9.0.1", "::1", "127.0.0.1"])
@pytest.mark.parametrize("path", ["/", "/latest/user-data", "/latest/meta-data/instance-id", "/x"])
def test_strangers_learn_nothing(wire: Wire, source: str, path: str) -> None:
    """Not even what there is: each path is the same to them."""
    wire.macs[source] = STRANGE
    assert wire.ask(path, source) == (404, "Not Found\n")
    assert wire.ask("/latest/api/token", source, "PUT")[0] == 404


def test_the_address_of_another(wire: Wire) -> None:
    wire.macs[WEB_AT] = DB_MAC
    assert wire.ask("/latest/user-data") == (404, "Not Found\n")


@pytest.mark.parametrize("name", ["x_forwarded_for", "forwarded", "via", "x_real_ip"])
def test_a_proxy_is_refused(wire: Wire, name: str) -> None:
    assert wire.ask("/latest/user-data", **{name: WEB_AT})[0] == 403
    assert wire.ask("/latest/api/token", WEB_AT, "PUT", **{name: ""})[0] == 403


@pytest.mark.parametrize("host", ["evil.example", "10.1.0.1", "169.254.169.254.evil.example"])
def test_another_host_is_refused(wire: Wire, host: str) -> None:
    """A page in a browser of the guest may have its name point here."""
    assert wire.ask("/latest/user-data", host=host)[0] == 403


def test_a_token_as_ec2_gives_one(wire: Wire) -> None:
    ttl = {"x_aws_ec2_metadata_token_ttl_seconds": "21600"}
    status, headers, token = wire.whole("/latest/api/token", WEB_AT, "PUT", **ttl)
    assert (status, headers["X-aws-ec2-metadata-token-ttl-seconds"]) == (200, "21600")
    assert len(token) > 20
    assert wire.ask("/latest/meta-data/instance-id", x_aws_ec2_metadata_token=token) == (200, WEB)


@pytest.mark.parametrize("ttl", ["", "0", "21601", "-1", "x", "²", "9" * 5000])
def test_a_token_for_an_impossible_time(wire: Wire, ttl: str) -> None:
    asked = wire.ask("/latest/api/token", WEB_AT, "PUT", x_aws_ec2_metadata_token_ttl_seconds=ttl)
    assert asked[0] == 400


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "X"])
def test_methods(wire: Wire, method: str) -> None:
    assert wire.ask("/latest/user-data", method=method)[0] == 405


def test_a_head_has_the_length_and_no_body(wire: Wire) -> None:
    status, headers, body = wire.whole("/latest/user-data", method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, "14", "")


def test_a_store_that_does_not_answer(wire: Wire) -> None:
    wire.fails = Unavailable("no contact with ZooKeeper")
    status, headers, body = wire.whole("/latest/user-data")
    assert (status, headers["Retry-After"]) == (503, "1")
    assert "ZooKeeper" not in body
    assert wire.ask("/latest/meta-data/instance-id") == (200, WEB)


def test_a_mistake_of_ours_is_not_shown(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    wire.fails = ValueError("secret")
    assert wire.ask("/latest/user-data") == (500, "pvc made a mistake\n")
    assert "ValueError: secret" in caplog.text


def test_refusals_are_logged_once_a_minute(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    def ask() -> list[str]:
        caplog.clear()
        for _ in range(3):
            wire.ask("/latest/user-data", "192.0.2.1")
        return [record.getMessage() for record in caplog.records]

    with caplog.at_level(logging.WARNING):
        assert ask() == ["refused 192.0.2.1: it is in no managed network"]
        assert ask() == []
        wire.now += 60
        assert len(ask()) == 1


def test_user_data_are_not_in_the_log(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        wire.ask("/latest/user-data")
    assert "Web_1 gets its user data" in caplog.text
    assert "#cloud-config" not in caplog.text
