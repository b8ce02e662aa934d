"""The API without a socket: arguments, answers, errors, plans."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from pvc import __version__
from pvc.commands import registry
from pvc.commands.registry import operation
from pvc.http.app import make_app
from pvc.http.arguments import LARGEST_BODY
from tests.unit.http import things
from tests.unit.http.things import Served


@pytest.fixture
def served() -> Served:
    return Served()


def make(served: Served, name: str = "a", **fields: Any) -> Any:
    answer = served.ask("POST", "/api/v1/thing", json={"name": name, **fields})
    assert answer.status == 200, answer.body
    return answer.body


def test_empty_list_is_an_empty_list(served: Served) -> None:
    answer = served.ask("GET", "/api/v1/thing")
    assert (answer.status, answer.body) == (200, [])
    assert answer.headers["Content-Type"] == "application/json"


def test_result_is_plain_json(served: Served) -> None:
    expected = {"name": "a", "size": 3, "colour": "blue", "tags": ["x", "y"], "heavy": True, "version": "0"}
    assert make(served, size=3, colour="blue", tags=["x", "y"], heavy=True) == expected
    assert served.ask("GET", "/api/v1/thing/a").body == expected


@pytest.mark.parametrize(
    "given",
    [
        {"json": {"name": "a", "size": 5, "heavy": False, "tags": ["x", "y"]}},
        {"form": {"name": "a", "size": "5", "heavy": "false", "tags": ["x", "y"]}},
        {"query": "name=a&size=5&heavy=False&tags=x&tags=y"},
        {"query": "name=a&tags=x&tags=y", "form": {"size": "5", "heavy": "no"}},
        {"query": "size=5", "json": {"name": "a", "tags": ["x", "y"]}},
    ],
)
def test_arguments_come_from_query_form_and_json(served: Served, given: dict[str, Any]) -> None:
    answer = served.ask("POST", "/api/v1/thing", **given)
    assert answer.status == 200, answer.body
    # A text "False" is false: the existing API took it for true and forced removals.
    assert (answer.body["size"], answer.body["heavy"], answer.body["tags"]) == (5, False, ["x", "y"])


BAD = [
    ("unknown", {"json": {"name": "a", "sise": 5}}, "sise"),
    ("missing", {"json": {"size": 5}}, "name is missing"),
    ("below", {"json": {"name": "a", "size": 0}}, "at least 1"),
    ("above", {"json": {"name": "a", "size": 1001}}, "at most 1000"),
    ("not a number", {"json": {"name": "a", "size": "many"}}, "size"),
    ("huge number", {"body": b'{"name":"a","size":' + b"9" * 5000 + b"}"}, "not JSON"),
    ("infinite", {"body": b'{"name":"a","size":1e999}'}, "size"),
    ("not JSON's", {"body": b'{"name":"a","size":NaN}'}, "NaN"),
    ("half", {"json": {"name": "a", "size": 1.5}}, "size"),
    ("a bool for a number", {"json": {"name": "a", "size": True}}, "size"),
    ("a choice", {"json": {"name": "a", "colour": "green"}}, "colour"),
    ("a bool", {"json": {"name": "a", "heavy": "perhaps"}}, "heavy"),
    ("pattern", {"json": {"name": "-rf"}}, "name"),
    ("slash", {"json": {"name": "a/b"}}, "name"),
    ("newline", {"json": {"name": "a\n"}}, "name"),
    ("NUL", {"json": {"name": "a", "secret": "a\0b"}}, "secret"),
    ("object", {"json": {"name": {"a": 1}}}, "name"),
    ("nested list", {"json": {"name": "a", "tags": [["x"]]}}, "tags"),
    ("null", {"json": {"name": None}}, "name"),
    ("twice in the query", {"query": "name=a&name=b"}, "name is given twice"),
    ("query and body", {"query": "name=a", "json": {"name": "a"}}, "name is given twice"),
    ("twice in the object", {"body": b'{"name":"a","name":"b"}'}, "name is given twice"),
    ("list as body", {"json": ["name"]}, "object"),
    ("not JSON", {"body": b"{name"}, "not JSON"),
    ("deep", {"body": b"[" * 100_000}, "not JSON"),
    ("not UTF-8", {"body": b'{"name":"\xff"}'}, "UTF-8"),
    ("not UTF-8 in the query", {"query": "name=%ff"}, "cannot be read"),
    ("too many fields", {"query": "&".join(f"f{i}=1" for i in range(1001))}, "cannot be read"),
    ("plan", {"query": "plan=maybe", "json": {"name": "a"}}, "plan"),
]


@pytest.mark.parametrize(("given", "told"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_refused_by_name(served: Served, given: dict[str, Any], told: str) -> None:
    answer = served.ask("POST", "/api/v1/thing", **given)
    assert (answer.status, answer.body["error"]) == (400, "invalid")
    assert told in answer.body["message"]
    assert served.store.children(things.ROOT) == ()


@pytest.mark.parametrize(
    ("query", "told"),
    [("within=-1", "within"), ("within=1e9", "within"), ("within=x", "within"), ("a=1", " a")],
)
def test_bad_query_of_a_read_is_refused(served: Served, query: str, told: str) -> None:
    answer = served.ask("GET", "/api/v1/thing", query=query)
    assert answer.status == 400
    assert told in answer.body["message"]


def test_path_and_body_cannot_disagree(served: Served) -> None:
    make(served)
    answer = served.ask("PATCH", "/api/v1/thing/a", json={"name": "b", "colour": "blue"})
    assert (answer.status, answer.body["message"]) == (
        400,
        "name is given twice, the second time in the body",
    )


def test_body_of_unknown_type_or_too_large(served: Served) -> None:
    assert served.ask("POST", "/api/v1/thing", body=b"<a/>", type="text/xml").status == 415
    answer = served.ask("POST", "/api/v1/thing", environ={"CONTENT_LENGTH": str(LARGEST_BODY + 1)})
    assert (answer.status, answer.body["error"]) == (413, "invalid")
    assert served.ask("GET", "/api/v1/thing", json={"limit": "a"}).status == 400


@pytest.mark.parametrize(
    ("method", "path", "given", "status", "code"),
    [
        ("GET", "/api/v1/thing/none", {}, 404, "not-found"),
        ("GET", "/api/v1/nothing", {}, 404, "not-found"),
        ("GET", "/", {}, 404, "not-found"),
        ("PUT", "/api/v1/thing", {}, 405, "invalid"),
        ("POST", "/api/v1/thing", {"json": {"name": "there"}}, 409, "conflict"),
        ("POST", "/api/v1/thing/a/break", {"json": {"how": "failed"}}, 422, "failed"),
    ],
)
def test_every_error_is_json(
    served: Served, method: str, path: str, given: dict[str, Any], status: int, code: str
) -> None:
    make(served, "there")
    answer = served.ask(method, path, **given)
    assert (answer.status, answer.body["error"]) == (status, code)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.body["message"]
    assert answer.body.keys() == {"error", "message", "hint"}


def test_method_not_allowed_says_which_are(served: Served) -> None:
    assert served.ask("DELETE", "/api/v1/thing").headers["Allow"] == "GET,POST"


def test_bug_shows_no_traceback_but_logs_it(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    answer = served.ask("POST", "/api/v1/thing/a/break", json={"how": "bug"})
    assert (answer.status, answer.body["error"]) == (500, "bug")
    assert b"KeyError" not in answer.text
    assert b"secret" not in answer.text
    (record,) = [record for record in caplog.records if record.exc_info]
    number = answer.body["message"].split("request ")[1].rstrip(")")
    assert number in record.getMessage()


def test_plan_changes_nothing_and_says_what_would(served: Served) -> None:
    answer = served.ask("POST", "/api/v1/thing", query="plan=true", json={"name": "a"})
    assert answer.body == {"plan": ["a would be made"], "changes": ["create /things/a"]}
    assert served.store.children(things.ROOT) == ()


def test_plan_of_a_read_is_empty(served: Served) -> None:
    assert served.ask("GET", "/api/v1/thing", query="plan=true").body == {"plan": [], "changes": []}


def test_version_of_an_object_is_its_own_and_of_a_list_follows_it(served: Served) -> None:
    make(served)
    assert served.ask("GET", "/api/v1/thing/a").headers["Etag"] == '"0"'
    before = served.ask("GET", "/api/v1/thing").headers["Etag"]
    served.ask("PATCH", "/api/v1/thing/a", json={"colour": "blue"})
    assert served.ask("GET", "/api/v1/thing/a").headers["Etag"] == '"1"'
    assert served.ask("GET", "/api/v1/thing").headers["Etag"] != before


def test_every_answer_names_the_version_of_pvc(served: Served) -> None:
    for path, key in (
        ("/api/v1/thing", "admin"),
        ("/api/v1/thing", None),
        ("/nothing", None),
        ("/healthz", None),
    ):
        assert served.ask("GET", path, key).headers["Pvc-Version"] == __version__
    assert served.ask("GET", "/api/v1/openapi.json").body["info"]["version"] == __version__


def test_health_needs_no_token_and_the_rest_does(served: Served) -> None:
    assert served.ask("GET", "/healthz", None).body == {"status": "ok"}
    assert served.ask("GET", "/api/v1/openapi.json", None).status == 401
    assert served.ask("GET", "/api/v1/openapi.json").body["openapi"] == "3.1.0"


def test_without_zookeeper_reads_go_on_marked_and_changes_are_refused() -> None:
    served = Served()
    mirrored = served.cluster.connect()  # a reader that goes on, as the mirror does
    served.site.reader = mirrored
    served.app = make_app(served.site, things.operations())
    make(served)
    served.cluster.suspend(served.store)
    read = served.ask("GET", "/api/v1/thing/a")
    assert (read.status, read.headers.get("Pvc-Stale")) == (200, "true")
    change = served.ask("PATCH", "/api/v1/thing/a", json={"colour": "blue"})
    assert (change.status, change.body["error"]) == (503, "unavailable")
    assert served.ask("GET", "/healthz", None).status == 503


def test_changes_are_audited_without_their_options(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pvc.audit"):
        make(served, secret="hunter2")
        served.ask("POST", "/api/v1/thing", "read", json={"name": "b"})
        served.ask("GET", "/api/v1/thing")
    assert [record.getMessage() for record in caplog.records] == [
        'admin: item.create {"name": "a"}: done',
        'read: item.create {"name": "b"}: not-permitted',
    ]


def test_files_are_not_in_the_audit(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.app = make_app(served.site, [registry.find("vm.user-data-set")])
    with caplog.at_level(logging.INFO, "pvc.audit"):
        served.ask("PUT", "/api/v1/vm/web1/user-data", json={"text": "hunter2"})
    assert [record.getMessage() for record in caplog.records] == [
        'admin: vm.user-data-set {"vm": "web1"}: not-found'
    ]


def test_operation_with_a_reserved_parameter_is_refused_at_start() -> None:
    def clash(ctx: object, *, within: int = 0) -> str:
        """Clash."""
        return ""

    operation("GET", "/clash", noun="clash")(clash)
    found = next(one for one in registry._registered.values() if one.noun == "clash")
    with pytest.raises(TypeError, match="within"):
        make_app(Served().site, [found])
