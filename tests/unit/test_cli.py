"""argv → operation: what is understood, what is refused and how, and what happens then."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from pvc import commands, output
from pvc.__main__ import main
from pvc.cli import GLOBALS, split
from pvc.errors import EXIT_INTERRUPTED, Conflict, NotPermitted, Unavailable
from tests.unit import thing
from tests.unit.thing import FakeTransport, states

THING = {"name": "t1", "state": "start", "memory_mib": 2048}


@pytest.fixture(autouse=True)
def _things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(commands.NOUNS, "thing", "things of tests")
    monkeypatch.setitem(commands.VERBS, "thing", {thing.__name__: thing.VERBS})
    for name in ("PVC_CONNECTION", "PVC_QUIET", "PVC_DEBUG", "PVC_UNSAFE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def pvc(*argv: str, answers: list[Any] | None = None) -> tuple[int, FakeTransport]:
    transport = FakeTransport(answers or [THING])
    return main(list(argv), transport.pick), transport


@pytest.mark.parametrize(
    ("typed", "asked"), [("--verify", {}), ("--verify n3", {"node": "n3"}), ("n3 --verify", {"node": "n3"})]
)
def test_fence_with_verify_is_another_verb_and_asks_nobody(typed: str, asked: dict[str, str]) -> None:
    settled = {"settled": True, "ready": True, "version": "1", "nodes": []}
    code, transport = pvc(
        "node", "fence", *typed.split(), answers=[{**settled, "goal": {"ready": True}}, settled]
    )
    assert code == 0
    assert [(call.name, call.arguments) for call in transport.calls] == [
        ("node.verify", asked),
        ("node.readiness", asked),
    ]


class Getpass:
    """As the module, with an answer."""

    def __init__(self, answer: str) -> None:
        self.answer, self.asked = answer, [""]

    def getpass(self, prompt: str, stream: object) -> str:
        self.asked.append(prompt)
        return self.answer


def test_password_of_a_bmc_is_asked_for_at_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("node", "bmc", "n1", "--address", "10.0.0.201", "--user", "admin")
    getpass = Getpass("secret1")
    monkeypatch.setitem(sys.modules, "getpass", getpass)
    code, transport = pvc(*words)
    assert (code, transport.calls[0].arguments.get("password")) == (0, None)
    monkeypatch.setattr(sys, "stdin", Terminal())
    code, transport = pvc(*words)
    assert (code, transport.calls[0].arguments["password"]) == (0, "secret1")
    code, transport = pvc("node", "bmc", "n1", "--remove")
    assert "password" not in transport.calls[0].arguments
    assert getpass.asked == ["", "password: "]


# Refusing

BAD_USAGE = [
    ("", "say what to do"),
    ("thingy list", "did you mean thing?"),
    ("nonsense", "pvc has no noun nonsense"),
    ("thing", "pvc thing needs a verb"),
    ("thing lst", "did you mean list"),
    ("thing zzz", "pvc thing has no verb zzz"),
    ("thing tag", "pvc thing tag needs a verb"),
    ("thing tag ad x", "did you mean add?"),
    ("--nonsense thing list", "pvc has no option --nonsense"),
    ("thing --nonsense list", "pvc thing has no option --nonsense"),
    ("thing list --nonsense", "pvc thing list has no option --nonsense"),
    ("thing start t1 --forse", "did you mean --force?"),
    ("thing start t1 --for", "has no option --for"),
    ("thing start", "THING is missing"),
    ("thing tag add t1", "TAG is missing"),
    ("thing start t1 t2", "one argument too many: t2"),
    ("thing start T1!", "thing 'T1!' is not a name"),
    ("thing start t1 --shape oval", "one of: round, flat"),
    ("thing start t1 --count many", "count must be a whole number"),
    ("thing start t1 --count 10", "count must be at most 9"),
    ("thing start t1 --count", "--count: expected one argument"),
    ("thing start t1 --timeout soon", "--timeout"),
    ("thing start t1 --timeout -1", "--timeout"),
    ("thing start t1 --timeout nan", "--timeout"),
    ("thing list --wait", "has no option --wait"),
    ("thing list --plan", "has no option --plan"),
    ("thing start t1 --yes", "has no option --yes"),
    ("thing start t1 --sort name", "has no option --sort"),
    ("thing list -f yaml", "there is no format yaml"),
    ("-f", "-f needs a value"),
    ("-c", "-c needs a value"),
    ("-qx thing list", "no option -x"),
    ("thing forget t1", "thing forget needs --yes"),
]


@pytest.mark.parametrize(("line", "expected"), BAD_USAGE, ids=[line or "nothing" for line, _ in BAD_USAGE])
def test_bad_usage(line: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, transport = pvc(*line.split())
    out, err = capsys.readouterr()
    assert code == 2
    assert expected in err
    assert err.startswith("pvc: ")
    assert "\nhint: " in err or "is not a name" in err or "must be" in err
    assert not out
    assert not transport.calls


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _ = pvc("thing", "define", str(tmp_path / "no.xml"))
    assert code == 3
    assert "no.xml" in capsys.readouterr().err


def test_a_binary_file_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"\xff\xfe\x00")
    code, _ = pvc("thing", "define", str(tmp_path / "disk"))
    assert code == 2
    assert "not a text file" in capsys.readouterr().err


# Understanding


def test_arguments_and_options_reach_the_operation() -> None:
    _, transport = pvc("thing", "start", "t1", "--force", "-L", "-m", "flat", "--count=3")
    (call,) = transport.calls
    assert (call.name, call.plan) == ("thing.start", False)
    assert call.arguments == {"thing": "t1", "force": True, "live": False, "shape": "flat", "count": "3"}
    assert transport.closed


def test_what_is_not_given_is_not_sent() -> None:
    _, transport = pvc("thing", "meta", "t1")
    assert transport.calls[0].arguments == {"thing": "t1"}


@pytest.mark.parametrize(
    ("flag", "value"), [("-a", True), ("--autostart", True), ("-A", False), ("--no-autostart", False)]
)
def test_switches_have_two_sides(flag: str, value: bool) -> None:
    _, transport = pvc("thing", "meta", flag, "t1")
    assert transport.calls[0].arguments == {"thing": "t1", "autostart": value}


def test_lists_are_repeated_or_joined_and_texts_only_repeated() -> None:
    _, transport = pvc("thing", "list", "-g", "a,b", "-g", "c", "-n", "x,y", "-n", "z", answers=[[]])
    assert transport.calls[0].arguments == {"tag": ["a", "b", "c"], "note": ["x,y", "z"]}


def test_an_empty_list_clears() -> None:
    _, transport = pvc("thing", "list", "-g", "", answers=[[]])
    assert transport.calls[0].arguments == {"tag": []}


def test_arguments_may_stand_between_options() -> None:
    _, transport = pvc("thing", "tag", "add", "t1", "-q", "blue")
    assert transport.calls[0].arguments == {"thing": "t1", "tag": "blue"}


def test_a_double_dash_ends_the_options() -> None:
    _, transport = pvc("thing", "list", "--", "-x", answers=[[]])
    assert transport.calls[0].arguments == {"limit": "-x"}


def test_a_node_that_is_not_named_is_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVC_CONFIG", str(tmp_path / "pvc.toml"))
    _, transport = pvc("thing", "at")
    assert transport.calls[0].arguments == {"node": os.uname().nodename.partition(".")[0]}
    (tmp_path / "pvc.toml").write_text('[node]\nname = "n3"\n')
    assert pvc("thing", "at")[1].calls[0].arguments == {"node": "n3"}
    (tmp_path / "pvc.toml").write_text("[node\n")
    assert pvc("thing", "at")[1].calls[0].arguments == {"node": os.uname().nodename.partition(".")[0]}
    _, transport = pvc("thing", "at", "n7")
    assert transport.calls[0].arguments == {"node": "n7"}


def test_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thing.xml").write_text("<thing/>")
    _, transport = pvc("thing", "define", str(tmp_path / "thing.xml"))
    assert transport.calls[0].arguments == {"xml": "<thing/>"}
    monkeypatch.setattr(sys, "stdin", io.StringIO("<from-stdin/>"))
    _, transport = pvc("thing", "define", "-")
    assert transport.calls[0].arguments == {"xml": "<from-stdin/>"}


def test_another_program_gets_all_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = pvc("thing", "exec", "t1", "ls", "-l", "--help", "-q")
    assert code == 4, "the exit code is that of the verb: the number of words"
    assert not capsys.readouterr().out
    assert pvc("thing", "exec", "t1", "--", "ls", "-l")[0] == 2
    assert pvc("thing", "exec", "-q", "t1")[0] == 0


def test_status_is_the_status_of_the_cluster() -> None:
    assert split(["-q", "status", "--watch"]) == (["--quiet"], ["status"], ["--watch"])
    _, transport = pvc("status")
    assert transport.calls[0].name == "cluster.status"


SWITCHES = [(flag, dest) for flags, dest, value, _ in GLOBALS for flag in flags if not value]
VALUED = [(flag, dest) for flags, dest, value, _ in GLOBALS for flag in flags if value]
PLACES = (0, 1, 2, 4)
"""Before the noun, before the verb, after it, at the end of `thing meta t1 -a`."""


def at_place(place: int, *given: str) -> list[str]:
    words = ["thing", "meta", "t1", "-a"]
    return [*words[:place], *given, *words[place:]]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("flag", "dest"), SWITCHES)
def test_global_switches_stand_anywhere(
    flag: str, dest: str, place: int, capsys: pytest.CaptureFixture[str]
) -> None:
    code, transport = pvc(*at_place(place, flag))
    assert code == 0
    out = capsys.readouterr().out
    if dest == "help":
        assert "usage: pvc thing meta" in out
    elif dest == "version":
        assert out.startswith("pvc ")
    else:
        assert transport.options[dest] is True
        assert transport.calls[0].arguments == {"thing": "t1", "autostart": True}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("flag", "dest"), VALUED)
def test_global_options_with_a_value_stand_anywhere(flag: str, dest: str, place: int) -> None:
    spellings = (
        [(flag, "json"), (f"{flag}=json",)] if flag.startswith("--") else [(flag, "json"), (f"{flag}json",)]
    )
    for spelling in spellings:
        code, transport = pvc(*at_place(place, *spelling))
        assert code == 0, spelling
        assert transport.options[dest] == "json", spelling


def test_a_verb_uses_a_short_global_for_itself_and_before_the_verb_it_is_global() -> None:
    _, transport = pvc("-s", "thing", "list", "-s", "start", answers=[[]])
    assert transport.options["silent"] is True
    assert transport.calls[0].arguments == {"state": "start"}


@pytest.mark.parametrize(
    ("variable", "dest"), [("PVC_QUIET", "quiet"), ("PVC_DEBUG", "debug"), ("PVC_UNSAFE", "unsafe")]
)
def test_switches_of_the_environment(variable: str, dest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("1", True), ("0", False), ("false", False), ("", False), ("yes", True)):
        monkeypatch.setenv(variable, value)
        _, transport = pvc("thing", "info", "t1")
        assert transport.options[dest] is expected, value


def test_the_connection_of_the_environment_and_of_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVC_CONNECTION", "east")
    assert pvc("thing", "info", "t1")[1].options["connection"] == "east"
    assert pvc("-c", "west", "thing", "info", "t1")[1].options["connection"] == "west"


def test_direct_and_a_connection_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--direct", "-c", "east", "thing", "info", "t1"]) == 2
    assert "exclude each other" in capsys.readouterr().err


# Verbs of three words


def test_a_verb_of_three_words_is_found_and_helped_with(capsys: pytest.CaptureFixture[str]) -> None:
    words = "storage volume snapshot add vms web1 s1 --no-wait"
    code, transport = pvc(*words.split())
    assert code == 0
    assert transport.calls[0].name == "storage.volume-snapshot-add"
    assert transport.calls[0].arguments == {"pool": "vms", "volume": "web1", "snapshot": "s1"}
    capsys.readouterr()
    for line, expected in (
        ("storage volume snapshot -h", "  rollback  Bring back content"),
        ("storage volume -h", "  snapshot add"),
        ("storage volume snapshot rename -h", "usage: pvc storage volume snapshot rename POOL VOLUME"),
    ):
        assert pvc(*line.split())[0] == 0
        assert expected in capsys.readouterr().out
    assert main(["storage", "volume", "snapshot", "ad"]) == 2
    assert "pvc storage volume snapshot has no verb ad" in capsys.readouterr().err
    assert main(["storage", "volume", "snapshot"]) == 2
    assert "pvc storage volume snapshot needs a verb" in capsys.readouterr().err
    assert main(["storage", "vol"]) == 2
    assert "did you mean volume" in capsys.readouterr().err


# Help


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--help", "usage: pvc NOUN VERB"),
        ("-h", "  thing       things of tests"),
        ("help", "usage: pvc NOUN VERB"),
        ("thing --help", "  tag add  Tag a thing."),
        ("help thing", "usage: pvc thing VERB"),
        ("thing tag --help", "  add  Tag a thing."),
        ("thing tag add -h", "usage: pvc thing tag add THING TAG [options]"),
        ("help thing start", "More about it."),
        ("thing start --help", "-m, --shape round|flat"),
        ("thing start t1 --help", "-L, --no-live"),
        ("thing start -h", "--timeout SECONDS"),
        ("thing forget -h", "-y, --yes"),
        ("thing list -h", "-t, --node NODE"),
        ("thing list -h", "--sort FIELD"),
        ("thing list -h", "in this order: name, state"),
        ("thing exec -h", "usage: pvc thing exec [options] THING [CMD…]"),
        ("thing --help", "things of tests\n\nusage: pvc thing VERB [arguments] [options]\n\n  info "),
        ("thing at -h", "[NODE]"),
        ("thing text -h", "-f, --file FILE"),
        ("--version", "pvc "),
        ("--version --verbose", "commit: "),
    ],
)
def test_help(line: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, transport = pvc(*line.split())
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert expected in out
    assert not transport.calls


# Doing


def test_plan_asks_for_a_plan_and_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    plan = {"plan": ["t1 starts on n1"], "changes": ["change /x"]}
    code, transport = pvc("thing", "start", "t1", "--plan", "--wait", answers=[plan])
    assert code == 0
    assert transport.calls[0].plan is True
    assert "- t1 starts on n1" in capsys.readouterr().out


def test_a_plan_is_not_confirmed() -> None:
    code, transport = pvc("thing", "forget", "t1", "--plan", answers=[{"plan": [], "changes": []}])
    assert code == 0
    assert transport.calls[0].plan is True


@pytest.mark.parametrize("given", [["--yes"], ["-y"], ["--unsafe"], ["-u"]])
def test_confirmed_by_an_option(given: list[str]) -> None:
    code, transport = pvc("thing", "forget", "t1", *given, answers=[None])
    assert code == 0
    assert transport.calls[0].name == "thing.forget"


@pytest.mark.parametrize(
    ("answer", "expected"), [("y\n", 0), ("yes\n", 0), ("n\n", 1), ("\n", 1), ("", 1), ("maybe\n", 1)]
)
def test_confirmed_by_an_answer(
    answer: str, expected: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    code, transport = pvc("thing", "forget", "t1", answers=[None])
    out, err = capsys.readouterr()
    assert code == expected
    assert bool(transport.calls) is (expected == 0)
    assert "Forget t1? [y/N]" in err
    assert not out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Conflict("t1 is busy", hint="wait"), 4),
        (Unavailable("no API", hint="start it"), 5),
        (NotPermitted("not you", hint="ask"), 6),
    ],
)
def test_errors_of_the_operation(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert pvc("thing", "info", "t1", answers=[error])[0] == code
    out, err = capsys.readouterr()
    assert not out
    assert err == f"pvc: {error}\nhint: {vars(error)['hint']}\n"


def test_a_bug_is_called_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert pvc("thing", "broken")[0] == 70
    err = capsys.readouterr().err
    assert "this is a bug in pvc: ZeroDivisionError" in err
    assert "Traceback" not in err
    assert pvc("thing", "broken", "--debug")[0] == 70
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    assert pvc("thing", "info", "t1", answers=[KeyboardInterrupt()])[0] == EXIT_INTERRUPTED
    assert "interrupted" in capsys.readouterr().err


def test_local_verbs_connect_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    code, transport = pvc("thing", "here", "-f", "raw")
    assert code == 0
    assert capsys.readouterr().out == "local\n"
    assert not transport.options


def test_a_change_is_told_in_a_line_and_whole_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    pvc("thing", "meta", "t1")
    assert capsys.readouterr().out == "t1 is as you say\n"
    pvc("thing", "meta", "t1", answers=[{**THING, "pending_restart": True}])
    assert capsys.readouterr().out == "t1 is as you say, from its next start (pvc vm restart t1)\n"
    pvc("thing", "start", "t1", answers=started("starting"))
    assert capsys.readouterr().out == "t1: starting\n"
    pvc("thing", "meta", "t1", "-f", "long")
    assert "2 GiB" in capsys.readouterr().out
    pvc("thing", "meta", "t1", "--columns", "memory")
    assert "2 GiB" in capsys.readouterr().out


def test_a_change_without_a_result_says_so_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    pvc("thing", "forget", "t1", "-y", answers=[None])
    assert tuple(capsys.readouterr()) == ("", "t1 is gone\n")
    pvc("thing", "forget", "t1", "-y", "-q", answers=[None])
    assert tuple(capsys.readouterr()) == ("", "")


def test_an_empty_list_has_its_titles(capsys: pytest.CaptureFixture[str]) -> None:
    pvc("thing", "list", answers=[[]])
    assert capsys.readouterr().out == "NAME  STATE  MEMORY\n"


def test_what_may_be_old_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    transport = FakeTransport([THING], stale=True)
    assert main(["thing", "info", "t1"], transport.pick) == 0
    out, err = capsys.readouterr()
    assert out.startswith("name:")
    assert "may be old" in err


def test_a_text_goes_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = pvc("thing", "text", "t1", "-f", str(tmp_path / "out"), answers=["<thing/>\n"])
    assert code == 0
    assert (tmp_path / "out").read_text() == "<thing/>\n"
    assert not capsys.readouterr().out


def test_silent_prints_nothing_but_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert pvc("-s", "thing", "info", "t1")[0] == 0
    assert tuple(capsys.readouterr()) == ("", "")
    assert pvc("-s", "thing", "info", "t1", answers=[Conflict("busy")])[0] == 4
    assert "busy" in capsys.readouterr().err


# Waiting


def started(*words: str) -> list[Any]:
    return [{"name": "t1", "uuid": "u1", "state": "starting", "goal": {"state": "start"}}, *states(*words)]


def test_wait_ends_when_it_is_so(capsys: pytest.CaptureFixture[str]) -> None:
    code, transport = pvc("thing", "start", "t1", "-w", answers=started("starting", "start!"))
    assert code == 0
    assert [call.name for call in transport.calls] == ["thing.start", "thing.info", "thing.info"]
    assert transport.calls[1].arguments == {"thing": "u1"}
    assert [call.after for call in transport.calls] == ["", "", "0"]
    out, err = capsys.readouterr()
    assert out == "t1: start\n"
    assert err == "t1: starting\n", "how it ended is the result and told once"


def test_wait_tells_that_it_failed_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = pvc("thing", "start", "t1", "--wait", answers=started("starting", "fail!no such disk"))
    assert code == 1
    out, err = capsys.readouterr()
    assert not out
    assert "pvc: t1: no such disk" in err


def test_wait_gives_up_in_time(capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = pvc("thing", "start", "t1", "--timeout", "0.01", answers=started("starting"))
    assert code == 7
    err = capsys.readouterr().err
    assert "gave up waiting after 0.01 s; it goes on" in err
    assert "pvc thing info t1 --watch" in err


def test_wait_is_interrupted_and_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = pvc("thing", "start", "t1", "-w", answers=[*started("starting"), KeyboardInterrupt()])
    assert code == EXIT_INTERRUPTED
    assert "it goes on; to see how: pvc thing info t1 --watch" in capsys.readouterr().err


@pytest.mark.parametrize("given", [[], ["--no-wait"], ["-w", "--no-wait"]])
def test_without_wait_nothing_is_asked(given: list[str]) -> None:
    code, transport = pvc("thing", "start", "t1", *given, answers=started("starting"))
    assert code == 0
    assert len(transport.calls) == 1


def test_watch_shows_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    answers = [*states("stop", "starting", "start!"), KeyboardInterrupt()]
    code, transport = pvc(
        "thing", "info", "t1", "--watch", "-f", "raw", "--columns", "state", answers=answers
    )
    assert code == EXIT_INTERRUPTED
    assert capsys.readouterr().out == "stop\nstarting\nstart\n"
    assert [call.after for call in transport.calls] == ["", "0", "1", "2"]
    assert all(call.within_s > 10 for call in transport.calls[1:])


def test_the_screen_is_set_for_each_run() -> None:
    pvc("-q", "--colour", "thing", "info", "t1")
    assert (output.screen.quiet, output.screen.colour) == (True, True)
    pvc("thing", "info", "t1")
    assert (output.screen.quiet, output.screen.colour) == (False, None)
