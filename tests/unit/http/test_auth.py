"""Who is let in. The existing API took any part of a token, the empty one included."""

from __future__ import annotations

from typing import Any

import pytest

from pvc.cluster import paths
from pvc.cluster.store import Delete
from pvc.http.auth import PEER, WRONG_TOKENS
from tests.unit.http.things import NOW, Served


@pytest.fixture
def served() -> Served:
    return Served()


def status(served: Served, **environ: str) -> int:
    return served.ask("GET", "/api/v1/thing", None, environ=environ).status


def test_whole_token_opens_in_both_headers(served: Served) -> None:
    token = served.keys["read"]
    assert status(served, HTTP_AUTHORIZATION=f"Bearer {token}") == 200
    assert status(served, HTTP_AUTHORIZATION=f"bearer {token}") == 200
    assert status(served, HTTP_X_API_KEY=token) == 200


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: "",
        lambda token: " ",
        lambda token: token[:-1],
        lambda token: token[1:],
        lambda token: token + "0",
        lambda token: token[:20],
        lambda token: token.rpartition("_")[2],
        lambda token: token.upper(),
        lambda token: token[:-1] + ("0" if token[-1] != "0" else "1"),
        lambda token: "pvc_read_",
        lambda token: "pvc_read_" + "0" * 64,
        lambda token: "pvc_nobody_" + "0" * 64,
        lambda token: "pvc_../tokens/read_" + "0" * 64,
        lambda token: token + "\n",
        lambda token: "pvc_admin_" + token.rpartition("_")[2],
        lambda token: "\xe9" * 70,
    ],
)
def test_part_of_a_token_or_another_opens_nothing(served: Served, spoil: Any) -> None:
    wrong = spoil(served.keys["read"])
    assert status(served, HTTP_X_API_KEY=wrong) == 401
    answer = served.ask("GET", "/api/v1/thing", wrong)
    assert (answer.status, answer.headers["Www-Authenticate"]) == (401, "Bearer")


def test_no_token_other_scheme_form_or_cookie_opens_nothing(served: Served) -> None:
    token = served.keys["admin"]
    assert status(served) == 401
    assert status(served, HTTP_AUTHORIZATION=f"Basic {token}") == 401
    assert status(served, HTTP_AUTHORIZATION=token) == 401
    assert status(served, HTTP_COOKIE=f"token={token}") == 401
    assert served.ask("GET", "/api/v1/thing", None, query=f"token={token}").status == 401
    assert served.ask("POST", "/login", None, form={"token": ""}).status == 404


def test_who_is_not_let_in_is_not_told_about_arguments(served: Served) -> None:
    assert served.ask("POST", "/api/v1/thing", None, body=b"{nonsense").status == 401


def test_expired_and_removed_tokens(served: Served) -> None:
    served.add_token("brief", "read", expires=NOW + 10)
    assert served.ask("GET", "/api/v1/thing", "brief").status == 200
    served.clock.now += 10
    assert served.ask("GET", "/api/v1/thing", "brief").status == 401
    stored = served.store.get(paths.token("read"))
    assert stored is not None
    served.store.commit(Delete(stored.path, stored.version))
    assert served.ask("GET", "/api/v1/thing", "read").status == 401


def test_store_holds_no_token(served: Served) -> None:
    for name, text in served.keys.items():
        stored = served.store.get(paths.token(name))
        assert stored is not None
        assert text.rpartition("_")[2].encode() not in stored.data


@pytest.mark.parametrize(
    ("method", "path", "needs"),
    [
        ("GET", "/api/v1/thing", "read"),
        ("POST", "/api/v1/thing", "operate"),
        ("GET", "/api/v1/thing/a/secret", "admin"),
    ],
)
@pytest.mark.parametrize("role", ["read", "operate", "admin"])
def test_roles(served: Served, method: str, path: str, needs: str, role: str) -> None:
    order = ["read", "operate", "admin"]
    given = {"json": {"name": "a"}} if method == "POST" else {}
    expected = 200 if order.index(role) >= order.index(needs) else 403
    assert served.ask(method, path, role, **given).status == expected


def test_token_with_a_role_of_another_version_opens_nothing(served: Served) -> None:
    served.add_token("future", "auditor")
    assert served.ask("GET", "/api/v1/thing", "future").status == 401


def test_wrong_tokens_are_limited_by_address_and_right_ones_never(served: Served) -> None:
    for _ in range(WRONG_TOKENS):
        assert served.ask("GET", "/api/v1/thing", "pvc_x").status == 401
    refused = served.ask("GET", "/api/v1/thing", "pvc_x")
    assert (refused.status, refused.body["error"]) == (429, "unauthenticated")
    assert refused.headers["Retry-After"] == "60"
    assert served.ask("GET", "/api/v1/thing", "pvc_x", environ={"REMOTE_ADDR": "192.0.2.2"}).status == 401
    assert served.ask("GET", "/api/v1/thing", "read").status == 200
    served.clock.now += 61
    assert served.ask("GET", "/api/v1/thing", "pvc_x").status == 401


def test_owner_of_the_local_socket_is_let_in_and_headers_cannot_claim_to_be(served: Served) -> None:
    assert status(served, **{PEER: "root"}) == 200
    assert status(served, **{"HTTP_PVC.PEER": "root", "HTTP_PVC_PEER": "root"}) == 401
