"""Tokens: made, listed, removed; the description of the API."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pvc.cluster import paths, tokens
from pvc.cluster.store import Create
from pvc.commands.context import Caller, Context, LocalContext, invoke
from pvc.commands.registry import Role, find
from pvc.errors import Conflict, Invalid, NotFound, NotPermitted
from tests.fakes.store import MemoryCluster, MemoryStore
from tests.unit.http.things import NOW, FixedClock


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryCluster().connect()
    store.commit(*(Create(path) for path in paths.LAYOUT))
    return store


def call(
    store: MemoryStore, operation: str, /, *, by: Role = Role.ADMIN, plan: bool = False, **given: Any
) -> Any:
    ctx = Context(store, store, Caller("tester", by), planning=plan, clock=FixedClock())
    return invoke(find(operation), ctx, given)


def test_token_opens_until_it_is_removed(store: MemoryStore) -> None:
    made = call(store, "api.token-add", name="ci", role="operate")
    found = tokens.verify(store, made.token, NOW)
    assert found is not None
    assert (found.name, found.role, found.expires) == ("ci", "operate", None)
    call(store, "api.token-remove", name="ci")
    assert tokens.verify(store, made.token, NOW) is None


def test_token_made_again_is_another(store: MemoryStore) -> None:
    first = call(store, "api.token-add", name="ci", role="read").token
    call(store, "api.token-remove", name="ci")
    second = call(store, "api.token-add", name="ci", role="read").token
    assert first != second
    assert tokens.verify(store, first, NOW) is None


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("12h", 43_200), ("30d", 2_592_000), ("2w", 1_209_600)]
)
def test_expiry(store: MemoryStore, text: str, seconds: int) -> None:
    made = call(store, "api.token-add", name="ci", role="read", expires=text)
    assert made.expires_at == NOW + seconds
    assert tokens.verify(store, made.token, NOW + seconds - 1) is not None
    assert tokens.verify(store, made.token, NOW + seconds) is None


def test_list_shows_no_secret(store: MemoryStore) -> None:
    made = call(store, "api.token-add", name="ci", role="read", expires="1h")
    (shown,) = call(store, "api.token-list", by=Role.READ)
    assert (shown.name, shown.role, shown.created_at, shown.expired) == ("ci", "read", NOW, False)
    assert made.token.rpartition("_")[2] not in repr(shown)
    stored = store.get(paths.token("ci"))
    assert stored is not None
    assert shown.expires_at == NOW + 3600


@pytest.mark.parametrize(
    "given",
    [
        {"name": "Ci", "role": "read"},
        {"name": "a_b", "role": "read"},
        {"name": "../nodes", "role": "read"},
        {"name": "", "role": "read"},
        {"name": "ci", "role": "root"},
        {"name": "ci"},
        {"name": "ci", "role": "read", "expires": "0d"},
        {"name": "ci", "role": "read", "expires": "-1d"},
        {"name": "ci", "role": "read", "expires": "soon"},
    ],
)
def test_bad_tokens_are_refused(store: MemoryStore, given: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        call(store, "api.token-add", **given)
    assert store.children(paths.TOKENS) == ()


def test_names_are_unique_and_only_administrators_make_tokens(store: MemoryStore) -> None:
    call(store, "api.token-add", name="ci", role="read")
    with pytest.raises(Conflict):
        call(store, "api.token-add", name="ci", role="admin")
    with pytest.raises(NotFound):
        call(store, "api.token-remove", name="other")
    for role in (Role.READ, Role.OPERATE):
        with pytest.raises(NotPermitted):
            call(store, "api.token-add", by=role, name="mine")
        with pytest.raises(NotPermitted):
            call(store, "api.token-remove", by=role, name="ci")


def test_plan_makes_and_removes_nothing(store: MemoryStore) -> None:
    planned = call(store, "api.token-add", plan=True, name="ci", role="read")
    assert planned.changes == [f"create {paths.token('ci')}"]
    assert store.children(paths.TOKENS) == ()


def test_openapi_describes_every_operation() -> None:
    from pvc.commands.registry import every_operation

    ctx = LocalContext(connect=lambda: pytest.fail("needs no cluster"), options={"format": "json"})
    described = find("api.openapi").function(ctx)
    named = {one["operationId"] for path in described["paths"].values() for one in path.values()}
    assert named == {found.name for found in every_operation() if not found.is_local}
    for path, methods in described["paths"].items():
        for one in methods.values():
            inside = {param["name"] for param in one["parameters"] if param["in"] == "path"}
            assert inside == set(re.findall(r"{(\w+)}", path))
            assert {"200", "400", "401", "403", "404", "503"} <= one["responses"].keys()
