"""What the shells are offered, and the scripts that ask."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pvc.commands import connection
from pvc.commands.completion import BASH, NAMES, PLAIN, candidates, complete
from pvc.commands.connection import Connection, Known
from pvc.commands.context import LocalContext
from pvc.commands.registry import Operation, every_operation, find
from pvc.http.client import HttpTransport
from pvc.http.serve import Texts
from tests.fakes.serving import Serving, serving
from tests.unit.commands.storing import with_disks


@pytest.fixture(autouse=True)
def _own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "client").mkdir()
    monkeypatch.setenv("PVC_CLIENT_DIR", str(tmp_path / "client"))
    monkeypatch.setenv("PVC_CONFIG", str(tmp_path / "pvc.toml"))
    monkeypatch.delenv("PVC_CONNECTION", raising=False)
    connection.save(
        Known({"prod": Connection("127.0.0.1", 1, ssl=False), "test": Connection("127.0.0.1", 1)})
    )


def offered(line: str) -> set[str]:
    *before, current = line.split(" ")[1:]
    return candidates(before, current)


CASES = [
    ("pvc ", {"vm", "node", "connection", "completion"}, {"list", "--quiet"}),
    ("pvc v", {"vm"}, {"node"}),
    ("pvc --q", {"--quiet"}, {"vm"}),
    ("pvc -c ", {"prod", "test"}, {"vm"}),
    ("pvc -c p", {"prod"}, {"test"}),
    ("pvc -c prod v", {"vm"}, {"prod"}),
    ("pvc -f ", {"json", "csv"}, {"vm"}),
    ("pvc vm ", {"list", "start", "tag", "log", "dump"}, {"add", "vm", "log-text", "definition"}),
    ("pvc storage volume ", {"upload", "download", "snapshot"}, {"upload-begin", "download-map"}),
    ("pvc vm st", {"start", "stop"}, {"list"}),
    ("pvc api token ", {"add", "list", "remove"}, {"serve"}),
    ("pvc api token add ci --role ", {"read", "operate", "admin"}, {"--role"}),
    ("pvc api token add ci --role read --", {"--expires", "--plan", "--quiet"}, {"read"}),
    ("pvc connection remove ", {"prod", "test"}, {"-y"}),
    ("pvc connection remove -", {"-y", "--yes"}, {"prod"}),
    ("pvc cluster maintenance ", {"on", "off"}, set()),
    ("pvc completion ", {"bash", "zsh", "fish"}, {"complete"}),
    ("pvc network acl add shop --in --", {"--out", "--port", "--reject"}, {"in"}),
    ("pvc network acl add shop --in --proto ", {"tcp", "icmp"}, {"--in"}),
    ("pvc vm list -f ", {"json"}, {"vm"}),
    ("pvc vm list --format ", {"json"}, {"vm"}),
]


@pytest.mark.parametrize(("line", "some", "none"), CASES, ids=[row[0] for row in CASES])
def test_candidates(line: str, some: set[str], none: set[str]) -> None:
    found = offered(line)
    assert some <= found
    assert not none & found


@pytest.mark.parametrize(
    "line",
    ["pvc nonsense ", "pvc vm nonsense ", "pvc vm list x y z ", "pvc vm --bad ", "pvc -c nobody vm start "],
)
def test_wrong_lines_offer_nothing_and_fail_not(line: str) -> None:
    assert offered(line) == set()


@pytest.mark.sockets
def test_cluster_that_does_not_answer_offers_nothing() -> None:
    assert offered("pvc -c prod vm start ") == set()


@pytest.mark.sockets
def test_live_names_come_from_the_cluster(tmp_path: Path) -> None:
    with serving(tmp_path, operations=_real()) as served:
        _make_vms(served, "web1", "web2", "db")
        (tmp_path / "pvc.toml").write_text(f'[api]\nsocket = "{served.path}"\n')
        assert offered("pvc vm start ") == {"web1", "web2", "db"}
        assert offered("pvc vm start w") == {"web1", "web2"}


@pytest.mark.sockets
def test_names_inside_of_others_are_those_of_what_the_line_names(tmp_path: Path) -> None:
    made = with_disks("root", "data")
    made.done("vm.snapshot-create", vm="web1", snapshot="daily")
    made.done("storage.volume-add", pool="vms", volume="web2", size="1M")
    made.done("storage.volume-snapshot-add", pool="vms", volume="web2", snapshot="s1")
    texts = Texts(_no_text, made.ask, _no_piece)
    with serving(tmp_path, made.world.cluster, _real(), texts) as served:
        (tmp_path / "pvc.toml").write_text(f'[api]\nsocket = "{served.path}"\n')
        for line, names in INSIDE.items():
            assert offered(line) == names, line


INSIDE: dict[str, set[str]] = {
    "pvc vm snapshot remove web1 ": {"daily"},
    "pvc vm snapshot rollback web9 ": set(),
    "pvc vm snapshot export web1 d": {"daily"},
    "pvc vm snapshot export web1 tuesday /srv -i ": {"daily"},
    "pvc vm snapshot download web1 --parent ": {"daily"},
    "pvc vm snapshot create web1 ": set(),
    "pvc storage volume info vms ": {"root", "data", "web2"},
    "pvc storage volume remove vms w": {"web2"},
    "pvc storage volume remove nosuch ": set(),
    "pvc storage volume add vms ": set(),
    "pvc storage volume clone vms web2 ": set(),
    "pvc storage volume snapshot protect --off vms web2 ": {"s1"},
    "pvc storage volume snapshot rename vms web2 ": {"s1"},
    "pvc storage volume snapshot rename vms web2 s1 ": set(),
    "pvc storage volume snapshot add vms web2 ": set(),
}


def _no_text(*_: Any, **__: Any) -> tuple[str, int]:
    raise AssertionError("names are no texts")


def _no_piece(address: str, port: int, path: str, piece: bytes | None = None) -> bytes:
    raise AssertionError("names are no pieces")


def test_whatever_is_completed_can_be_and_has_what_that_needs() -> None:
    plain = {"", "none", "file", "connection", "tag"}
    for found in every_operation():
        before: set[str] = set()
        for param in found.params:
            if (kind := param.arg.complete) not in plain:
                operation, _, needed = NAMES[kind]
                assert set(needed) <= before, f"{found.name}: {param.name}"
                assert set(needed) <= {one.name for one in find(operation).params}
            before |= {param.name} if param.positional else set()


def _real() -> list[Operation]:
    return list(every_operation())


def _make_vms(served: Serving, *names: str) -> None:
    transport = HttpTransport(served.path)
    for name in names:
        transport.call("vm.create", {"name": name, "memory": "512"})
    transport.close()


def test_files_are_offered_where_one_is_read(tmp_path: Path) -> None:
    (tmp_path / "files/more").mkdir(parents=True)
    (tmp_path / "files/web.xml").write_text("")
    start = f"{tmp_path}/files/"
    assert offered(f"pvc vm define {start}") == {f"{start}web.xml", f"{start}more/"}


def test_words_a_shell_could_evaluate_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a$(reboot)").write_text("")
    (tmp_path / "files/b").write_text("")
    ctx = LocalContext(connect=lambda: pytest.fail("needs no cluster"))
    assert complete(ctx, ("--", "vm", "define", f"{tmp_path}/files/")) == f"{tmp_path}/files/b\n"
    assert not PLAIN.fullmatch("$(reboot)")


def test_split_equals_sign_of_bash() -> None:
    ctx = LocalContext(connect=lambda: pytest.fail("needs no cluster"))
    assert complete(ctx, ("--", "vm", "list", "--format", "=", "js")) == "json\njson-pretty\n"
    assert "json" in complete(ctx, ("--", "vm", "list", "--format", "="))


@pytest.mark.processes
def test_script_of_bash_works_in_bash(tmp_path: Path) -> None:
    script = f"""
        pvc() {{ {sys.executable} -m pvc "$@"; }}
        {BASH}
        COMP_WORDS=(pvc vm st); COMP_CWORD=2; _pvc
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-ec", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert set(done.stdout.split()) >= {"start", "stop"}


@pytest.mark.parametrize("words", ["completion bash", "completion zsh", "completion fish"])
def test_scripts_call_the_program_back(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    from pvc.__main__ import main

    assert main(words.split()) == 0
    assert "pvc completion complete -- " in capsys.readouterr().out
