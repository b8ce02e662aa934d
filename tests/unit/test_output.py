"""Results as text: golden texts of each format, units only where people read."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any

import pytest

from pvc import output
from pvc.errors import Invalid

ROWS = [
    {"name": "web1", "state": "start", "tags": ["a", "b"], "memory_mib": 4096, "node": "n1", "load": 0.25},
    {"name": "db", "state": "fail", "tags": [], "memory_mib": 512, "node": None, "load": 1.0},
]
COLUMNS = ("name", "state", "tags", "memory_mib", "node")
INFO = {
    "name": "web1",
    "state": "start",
    "autostart": True,
    "max_downtime_ms": 300,
    "percent": 43,
    "reason": "",
    "disks": [{"device": "vda", "size_bytes": 3 << 30}],
    "load": {"memory": {"used_mib": 1536, "free_mib": 512}},
    "definition": "<a>\n  <b/>\n</a>",
    "version": "3.1",
    "settled": True,
    "goal": None,
}


def render(result: Any, format: str, **how: Any) -> str:
    return output.render(result, format=format, colour=False, **how)


def test_table() -> None:
    assert render(ROWS, "table", columns=COLUMNS) == (
        "NAME  STATE  TAGS   MEMORY  NODE\nweb1  start  a, b    4 GiB  n1\ndb    fail   -     512 MiB  -\n"
    )


def test_pretty_is_table_and_long_has_every_field() -> None:
    assert render(ROWS, "pretty", columns=COLUMNS) == render(ROWS, "table", columns=COLUMNS)
    assert render(ROWS, "long", columns=COLUMNS).splitlines()[0].endswith("LOAD")


@pytest.mark.parametrize(
    ("format", "expected"), [("table", "NAME  STATE\n"), ("raw", ""), ("csv", "name,state\n"), ("json", "[]")]
)
def test_an_empty_list(format: str, expected: str) -> None:
    assert render([], format, columns=("name", "state")) == expected


def test_raw_is_names_or_the_columns_asked_for() -> None:
    assert render(ROWS, "raw", columns=COLUMNS) == "web1\ndb\n"
    assert render(ROWS, "short", columns=COLUMNS) == "web1\ndb\n"
    assert render(ROWS, "raw", columns=COLUMNS, chosen=["memory", "tags"]) == "4096\ta,b\n512\t\n"


def test_named_things_are_their_names_in_raw_and_csv() -> None:
    tags = [{"name": "a", "protected": True}, {"name": "b", "protected": False}]
    assert render([{"tags": tags}], "raw") == "a,b\n"
    assert render({"nested": [{"x": 1}]}, "csv") == 'nested\n"[{""x"": 1}]"\n'


def test_csv() -> None:
    assert render(ROWS, "csv", columns=COLUMNS) == (
        'name,state,tags,memory_mib,node\nweb1,start,"a,b",4096,n1\ndb,fail,,512,\n'
    )


def test_json_is_the_result_itself() -> None:
    assert json.loads(render(ROWS, "json", columns=COLUMNS)) == ROWS
    assert json.loads(render(INFO, "json-pretty")) == INFO
    assert "\n" not in render(INFO, "json")


def test_json_of_chosen_columns() -> None:
    assert json.loads(render(ROWS, "json", chosen=["node", "name"])) == [
        {"node": "n1", "name": "web1"},
        {"node": None, "name": "db"},
    ]


def test_object() -> None:
    assert render(INFO, "table") == (
        "name:         web1\n"
        "state:        start\n"
        "autostart:    yes\n"
        "max downtime: 300 ms\n"
        "percent:      43 %\n"
        "disks:\n"
        "  DEVICE   SIZE\n"
        "  vda     3 GiB\n"
        "load:\n"
        "  memory:\n"
        "    used: 1.5 GiB\n"
        "    free: 512 MiB\n"
        "definition:\n"
        "  <a>\n"
        "    <b/>\n"
        "  </a>"
    )


def test_sentences_are_listed() -> None:
    assert render({"name": "x", "because": ["it is so", "that too"]}, "table") == (
        "name:    x\nbecause:\n  - it is so\n  - that too"
    )


def test_an_object_shows_what_there_is_and_everything_on_demand() -> None:
    assert "reason" not in render(INFO, "table")
    assert "reason:       -\n" in render(INFO, "long")
    assert render(INFO, "table", columns=("name", "reason")) == "name:   web1\nreason: -"


def test_object_raw_short_and_chosen() -> None:
    assert render(INFO, "raw", chosen=["load.memory.used_mib", "name"]) == "1536\tweb1"
    assert render(INFO, "raw").splitlines()[0] == "name\tweb1"
    assert render(INFO, "short") == "start"
    assert render(INFO, "short", columns=("autostart",)) == "true"
    assert render(INFO, "table", chosen=["state"]) == "state: start"
    assert render(INFO, "csv", columns=("name", "percent")) == "name,percent\nweb1,43\n"


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("name", ["db", "web1"]),
        ("-memory", ["web1", "db"]),
        ("memory_mib", ["db", "web1"]),
        ("node", ["web1", "db"]),
    ],
)
def test_sort(sort: str, expected: list[str]) -> None:
    assert render(ROWS, "raw", columns=COLUMNS, sort=sort).split() == expected


@pytest.mark.parametrize("how", [{"chosen": ["nonsense"]}, {"sort": "nonsense"}])
def test_unknown_columns_are_refused(how: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match="there is no column nonsense"):
        render(ROWS, "table", columns=COLUMNS, **how)


def test_a_text_has_no_columns() -> None:
    with pytest.raises(Invalid, match="no columns"):
        render("text", "table", chosen=["name"])


@pytest.mark.parametrize("format", ["table", "raw", "csv"])
def test_texts_stay_as_they_are(format: str) -> None:
    assert render("<a>\t1024\n</a>\n", format) == "<a>\t1024\n</a>\n"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("memory_mib", 0, "0 B"),
        ("memory_mib", 1023, "1023 MiB"),
        ("memory_mib", 1536, "1.5 GiB"),
        ("size_bytes", 1 << 60, "1024 PiB"),
        ("size_bytes", 1, "1 B"),
        ("since", 0.0, "-"),
        ("at", 0.0, "-"),
        ("shutdown_timeout_s", 90, "90 s"),
        ("load", 0.256, "0.26"),
        ("load", 2.0, "2"),
        ("vcpus", 4, "4"),
        ("tags", [{"name": "a", "protected": True}, {"name": "b", "protected": False}], "a, b"),
        ("nothing", None, "-"),
        ("extra", {"a": 1, "b_mib": 1024}, "a=1, b_mib=1 GiB"),
    ],
)
def test_values_for_people(name: str, value: Any, expected: str) -> None:
    assert output.human(name, value) == expected


def test_escapes_do_not_reach_the_terminal() -> None:
    evil = "x\x1b[2J\x07\u202e"
    assert "\x1b" not in render([{"name": evil}], "table")
    assert render({"name": evil}, "table") == "name: x?[2J??"
    assert "\x1b" not in json.dumps(render([{"name": evil}], "json")).replace("\\\\u001b", "")


def test_a_line_of_a_table_is_a_line() -> None:
    assert render([{"name": "a\nb"}], "table") == "NAME\na b\n"
    assert render([{"name": "a\tb\n", "x": 1}], "raw", chosen=["name", "x"]) == "a b \t1\n"


def test_states_are_coloured_and_nothing_else() -> None:
    text = output.render(ROWS, columns=("name", "state"), colour=True)
    assert text == "NAME  STATE\nweb1  \x1b[32mstart\x1b[0m\ndb    \x1b[31mfail \x1b[0m\n"
    assert output.render([{"name": "start"}], colour=True) == "NAME\nstart\n"


def test_colour_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    screen = output.Screen()
    assert not screen.colours()
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert screen.colours()
    monkeypatch.setenv("TERM", "dumb")
    assert not screen.colours()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not screen.colours()
    screen.colour = True
    assert screen.colours()


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"name": "w", "state": "start", "node": "n1"}, "w: start on n1"),
        ({"name": "w", "state": "stop", "node": "n1"}, "w: stop"),
        (
            {"name": "w", "state": "migrate", "activity": "migrating to n2, 43 %", "percent": 43},
            "w: migrating to n2, 43 %",
        ),
        ({"name": "w", "state": "migrate", "activity": "migrating", "percent": 43}, "w: migrating, 43 %"),
    ],
)
def test_sentence(state: dict[str, Any], expected: str) -> None:
    assert output.sentence(state) == expected


def test_plan() -> None:
    planned = {"plan": ["web1 starts on n1"], "changes": ["change /vms/1"]}
    assert output.plan(planned) == "This would happen:\n- web1 starts on n1\nNothing was changed."
    assert "- change /vms/1" in output.plan(planned, format="long")
    assert output.plan({"plan": [], "changes": []}) == "Nothing would change."
    assert output.plan({"plan": ["it is so"], "changes": []}) == "Nothing would change:\n- it is so"
    assert json.loads(output.plan(planned, format="json")) == planned


def test_progress_is_a_line_each_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.screen.quiet = output.screen.silent = False
    for line in ("one", "one", "two"):
        output.progress(line)
    output.emit("result")
    assert tuple(capsys.readouterr()) == ("result\n", "one\ntwo\n")


def test_progress_redraws_its_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    output.screen.quiet = output.screen.silent = False
    output.progress("one")
    output.progress("x" * 500)
    output.note("done")
    lines = terminal.getvalue().split("\r")
    assert lines[1] == "one\x1b[K"
    assert lines[2] == "x" * 79 + "\x1b[K"
    assert lines[3] == "\x1b[Kdone\n"


def test_a_question_needs_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(Invalid, match="no terminal"):
        output.ask("Sure?")


def test_a_reader_that_went_away_ends_the_program_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        output.screen.silent = False
        with pytest.raises(output.PipeClosed) as caught:
            output.emit("x" * 10)
        assert caught.value.exit_code == 141
        assert not caught.value.message
