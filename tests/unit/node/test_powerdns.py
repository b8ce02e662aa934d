"""What PowerDNS is told, what of its file changes, and who is told of it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from pvc.cluster.zones import Record, Zone
from pvc.node.drivers import DriverError
from pvc.node.drivers.networks import Answering
from pvc.node.drivers.powerdns import ONE_BY_ONE, PowerDNS, is_here, render
from pvc.node.drivers.zonedb import ZoneDatabase, rows
from pvc.proc import CommandFailed, Completed
from tests.nameservers import BOTH, CHANGED, REVERSE, SHOP

GOLDEN = Path(__file__).parent / "golden"
FLOATING = Answering(
    ("10.0.0.250", "fd00::250"),
    ("10.0.0.0/24", "fd00::/64", "10.251.1.1/32", "192.0.2.53/32"),
    ("192.0.2.53", "2001:db8::53"),
)
ALONE = Answering(("10.251.1.1",), ("10.251.1.1/32",))
USUAL = Answering(("10.0.0.250",), ("10.0.0.0/24",), ("192.0.2.53",))


@pytest.mark.parametrize(("name", "wanted"), [("floating", FLOATING), ("alone", ALONE)])
def test_rendered_as_in_the_golden_file(name: str, wanted: Answering) -> None:
    assert render(wanted) == (GOLDEN / f"pdns-{name}.conf").read_text()


@dataclass
class Bench:
    """systemd and pdns_control as far as they are called; the server answers from the file, while it runs."""

    root: Path
    wanted: Answering = USUAL
    others: Answering = ALONE
    life: int = 0
    is_here: bool = True
    fails: bool = False
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = self.another()

    def another(self) -> PowerDNS:
        """As a daemon that starts again."""
        return PowerDNS(str(self.root), self, os.getgid(), lambda address: self.is_here)

    @property
    def directory(self) -> Path:
        return self.root / "run/pvc/dns"

    @property
    def database(self) -> Path:
        return self.directory / "zones.sqlite3"

    @property
    def told(self) -> list[str]:
        return [call.rpartition(" ")[2] for call in self.calls if call.startswith("pdns_control")]

    def __call__(self, argv: list[str], /, *, check: bool = True, timeout_s: float = 60.0) -> Completed:
        self.calls.append(" ".join(argv))
        if self.fails and argv[1] == "restart":
            raise CommandFailed(argv, Completed(1, "", "Job failed"))
        if argv[1] in ("restart", "stop"):
            self.kill()
        if argv[1] == "restart":
            self.life += 1
            (self.directory / "pdns.pid").write_text(f"{self.life}\n")
            process = self.root / "proc" / str(self.life)
            process.mkdir(parents=True)
            (process / "comm").write_text("pdns_server\n")
        return Completed(0, "", "")

    def kill(self) -> None:
        (self.root / "proc" / str(self.life) / "comm").unlink(missing_ok=True)

    def ask(self, name: str, kind: str) -> set[str]:
        config = self.directory / "pdns.conf"
        if not self.server.life() or config.read_text() != render(self.wanted):
            return set()
        query = "SELECT content FROM records WHERE name = ? AND type = ?"
        with closing(sqlite3.connect(self.database)) as database:
            return {content for (content,) in database.execute(query, (name, kind))}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def table(bench: Bench) -> dict[tuple[str, str, str], int]:
    """Each row with its number, which another one in its place would not have."""
    with closing(sqlite3.connect(bench.database)) as database:
        found = database.execute("SELECT name, type, content, id FROM records")
        return {(name, kind, content): number for name, kind, content, number in found}


def test_only_rows_that_differ_are_touched(bench: Bench) -> None:
    bench.server.publish(BOTH)
    before = table(bench)
    bench.server.publish({**BOTH, CHANGED.name: CHANGED})
    after = table(bench)
    same = rows(SHOP) & rows(CHANGED) | rows(REVERSE)
    assert after.keys() == rows(CHANGED) | rows(REVERSE)
    assert {row: after[row] for row in same} == {row: before[row] for row in same}  # type: ignore[index]


def test_a_daemon_that_starts_again_takes_up_what_is_there(bench: Bench) -> None:
    bench.server.publish(BOTH)
    bench.server.serve(bench.wanted)
    before = table(bench)
    bench.calls.clear()
    again = bench.another()
    assert again.publish({**BOTH, CHANGED.name: CHANGED}) == ("shop.example",)
    assert not again.serve(bench.wanted)
    assert bench.told == ["shop.example"], "and nobody is told of the zone that did not change"
    assert len(bench.calls) == 1
    assert {row: number for row, number in table(bench).items() if row in before}.items() <= before.items()


def test_names_in_between_are_there_for_resolvers_that_go_label_by_label() -> None:
    zone = Zone("1.10.in-addr.arpa", "ns.x", frozenset({Record("9.0.1.10.in-addr.arpa", "PTR", "web.x")}))
    empty = {name for name, kind, _ in rows(zone) if kind is None}
    assert empty == {"0.1.10.in-addr.arpa"}
    deep = Zone(
        "x", "ns.x", frozenset({Record("a.b.c.x", "A", "10.0.0.1"), Record("b.c.x", "A", "10.0.0.2")})
    )
    assert {name for name, kind, _ in rows(deep) if kind is None} == {"c.x"}


def test_secondaries_are_told_of_all_when_it_starts_and_then_of_changes(bench: Bench) -> None:
    bench.server.publish(BOTH)
    bench.server.serve(bench.wanted)
    assert bench.told == ["*"]
    bench.server.publish({**BOTH, CHANGED.name: CHANGED})
    bench.server.serve(bench.wanted)
    bench.server.serve(bench.wanted)
    assert bench.told == ["*", "shop.example"]
    bench.server.publish({SHOP.name: SHOP})
    bench.server.serve(bench.wanted)
    assert bench.told == ["*", "shop.example", "shop.example"], "a zone that is gone is nobody's news"
    many = {f"{number}.example": replace(SHOP, name=f"{number}.example") for number in range(ONE_BY_ONE + 1)}
    bench.server.publish(many)
    bench.server.serve(bench.wanted)
    assert bench.told[3:] == ["*"]


def test_secondaries_are_told_from_the_address_they_know_and_so_not_before_it_is_here(bench: Bench) -> None:
    bench.is_here = False
    bench.server.publish(BOTH)
    bench.server.serve(bench.wanted)
    assert bench.told == []
    bench.is_here = True
    bench.server.serve(bench.wanted)
    assert bench.told == ["*"]


def test_without_secondaries_nobody_is_told(bench: Bench) -> None:
    bench.server.publish(BOTH)
    bench.server.serve(bench.others)
    assert bench.told == []


def damaged(file: Path) -> None:
    file.write_bytes(b"no database at all" * 1000)


def other_schema(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE domains (id INTEGER)")


def somebody_elses(file: Path) -> None:
    file.rename(file.with_name("kept"))
    file.symlink_to(file.with_name("kept"))


@pytest.mark.parametrize("spoil", [damaged, other_schema, somebody_elses, Path.unlink])
def test_a_file_that_is_no_good_is_made_again_by_a_daemon_that_starts(bench: Bench, spoil: object) -> None:
    assert callable(spoil)
    bench.server.publish(BOTH)
    bench.server.serve(bench.wanted)
    life = bench.server.life()
    bench.server = bench.another()
    for suffix in ("-wal", "-shm"):
        bench.database.with_name(f"{bench.database.name}{suffix}").unlink(missing_ok=True)
    spoil(bench.database)
    bench.server.publish(BOTH)
    assert bench.server.serve(bench.wanted)
    assert bench.server.life() != life, "it had the other file open"
    assert table(bench).keys() == rows(SHOP) | rows(REVERSE)
    assert not bench.database.is_symlink()


def test_a_file_that_is_taken_away_meanwhile_is_made_again(bench: Bench) -> None:
    bench.server.publish(BOTH)
    bench.server.serve(bench.wanted)
    bench.database.unlink()
    bench.server.publish(BOTH)
    assert bench.server.serve(bench.wanted)
    assert table(bench).keys() == rows(SHOP) | rows(REVERSE)


def test_while_another_writes_nothing_is_half_done_and_it_is_tried_again(bench: Bench) -> None:
    bench.server.publish(BOTH)
    with closing(sqlite3.connect(bench.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DriverError, match="locked") as raised:
            bench.server.publish({CHANGED.name: CHANGED})
        assert raised.value.retryable
        assert table(bench).keys() == rows(SHOP) | rows(REVERSE)
        other.execute("ROLLBACK")
    assert set(bench.server.publish({CHANGED.name: CHANGED})) == BOTH.keys()


def test_a_reader_sees_all_of_a_change_or_nothing(tmp_path: Path) -> None:
    """And is not waited for: it may be sending a zone to a slow secondary."""
    database = ZoneDatabase(tmp_path / "zones.sqlite3", os.getgid())
    database.publish(BOTH)
    with closing(sqlite3.connect(database.file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        count = "SELECT count(*) FROM records"
        before = reader.execute(count).fetchone()
        database.publish({CHANGED.name: CHANGED})
        assert reader.execute(count).fetchone() == before
        reader.execute("COMMIT")
        assert reader.execute(count).fetchone() == (len(rows(CHANGED)),)


def test_what_systemd_cannot_start_says_where_to_look(bench: Bench) -> None:
    bench.server.publish(BOTH)
    bench.fails = True
    with pytest.raises(DriverError, match="PowerDNS: systemctl ended with code 1: Job failed") as raised:
        bench.server.serve(bench.wanted)
    assert raised.value.hint == "journalctl -u pvc-dns.service"
    assert bench.calls[-1] == "systemctl stop pvc-dns.service", "systemd does not try for ever besides"


def test_without_powerdns_it_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    server = PowerDNS(str(tmp_path), group="no-such-group-here")
    with pytest.raises(DriverError, match="PowerDNS is not here"):
        server.publish(BOTH)
    assert not (tmp_path / "run/pvc/dns").exists()


def test_files_are_for_the_server_s_group_and_nobody_else(bench: Bench) -> None:
    bench.server.publish(BOTH)
    modes = {path.name: oct(path.stat().st_mode & 0o7777) for path in (bench.directory, bench.database)}
    assert modes == {"dns": "0o1770", "zones.sqlite3": "0o660"}


def test_an_address_is_here_or_not() -> None:
    assert is_here("127.0.0.1")
    assert not is_here("192.0.2.1")
