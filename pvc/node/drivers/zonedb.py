"""Zones as PowerDNS reads them: an SQLite file, which can be made again from the zones at any time."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pvc.cluster.zones import TTL_S, Zone
from pvc.node.drivers import DriverError

BUSY_S = 1.0
"""So long another writer is waited for; PowerDNS notes here what it has told secondaries."""
SCHEMA_VERSION = 1
PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)

# Of PowerDNS 4.7.
SCHEMA = """
CREATE TABLE domains (
  id INTEGER PRIMARY KEY,
  name VARCHAR(255) NOT NULL COLLATE NOCASE,
  master VARCHAR(128) DEFAULT NULL,
  last_check INTEGER DEFAULT NULL,
  type VARCHAR(8) NOT NULL,
  notified_serial INTEGER DEFAULT NULL,
  account VARCHAR(40) DEFAULT NULL,
  options VARCHAR(65535) DEFAULT NULL,
  catalog VARCHAR(255) DEFAULT NULL
);
CREATE UNIQUE INDEX name_index ON domains(name);
CREATE INDEX catalog_idx ON domains(catalog);
CREATE TABLE records (
  id INTEGER PRIMARY KEY,
  domain_id INTEGER DEFAULT NULL,
  name VARCHAR(255) DEFAULT NULL,
  type VARCHAR(10) DEFAULT NULL,
  content VARCHAR(65535) DEFAULT NULL,
  ttl INTEGER DEFAULT NULL,
  prio INTEGER DEFAULT NULL,
  disabled BOOLEAN DEFAULT 0,
  ordername VARCHAR(255),
  auth BOOL DEFAULT 1,
  FOREIGN KEY(domain_id) REFERENCES domains(id) ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE INDEX records_lookup_idx ON records(name, type);
CREATE INDEX records_lookup_id_idx ON records(domain_id, name, type);
CREATE INDEX records_order_idx ON records(domain_id, ordername);
CREATE TABLE supermasters (
  ip VARCHAR(64) NOT NULL,
  nameserver VARCHAR(255) NOT NULL COLLATE NOCASE,
  account VARCHAR(40) NOT NULL
);
CREATE TABLE comments (
  id INTEGER PRIMARY KEY,
  domain_id INTEGER NOT NULL,
  name VARCHAR(255) NOT NULL,
  type VARCHAR(10) NOT NULL,
  modified_at INT NOT NULL,
  account VARCHAR(40) DEFAULT NULL,
  comment VARCHAR(65535) NOT NULL,
  FOREIGN KEY(domain_id) REFERENCES domains(id) ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE TABLE domainmetadata (
  id INTEGER PRIMARY KEY,
  domain_id INT NOT NULL,
  kind VARCHAR(32) COLLATE NOCASE,
  content TEXT,
  FOREIGN KEY(domain_id) REFERENCES domains(id) ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE INDEX domainmetaidindex ON domainmetadata(domain_id);
CREATE TABLE cryptokeys (
  id INTEGER PRIMARY KEY,
  domain_id INT NOT NULL,
  flags INT NOT NULL,
  active BOOL,
  published BOOL DEFAULT 1,
  content TEXT,
  FOREIGN KEY(domain_id) REFERENCES domains(id) ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE TABLE tsigkeys (
  id INTEGER PRIMARY KEY,
  name VARCHAR(255) COLLATE NOCASE,
  algorithm VARCHAR(50) COLLATE NOCASE,
  secret VARCHAR(255)
);
CREATE UNIQUE INDEX namealgoindex ON tsigkeys(name, algorithm);
"""

Row = tuple[str, str | None, str | None]
"""Name, type and content of a record."""


class NotNow(DriverError):
    """Somebody else writes it, or there is no room."""


class Damaged(DriverError):
    """The file has to be made again."""


def rows(zone: Zone) -> frozenset[Row]:
    """With the names between a record's and the zone's: of one that PowerDNS does not find it says that there
    is nothing below it either, and resolvers that ask label by label (RFC 9156) then ask no further."""
    found: set[Row] = {(one.name, one.type, one.content) for one in zone.records}
    found.add((zone.name, "SOA", zone.soa))
    named = {one.name for one in zone.records} | {zone.name}
    between = {name for one in named for name in _between(one, zone.name)} - named
    return frozenset(found | {(name, None, None) for name in between})


def _between(name: str, zone: str) -> Iterator[str]:
    while name.endswith(f".{zone}"):
        name = name.partition(".")[2]
        if name != zone:
            yield name


class ZoneDatabase:
    """For one thread at a time. Raises DriverError; Damaged where `remove` helps."""

    def __init__(self, file: Path, group: str | int) -> None:
        self.file = file
        self.group = group
        """Who besides reads it, and notes in it what was told to secondaries."""
        self._open: sqlite3.Connection | None = None
        self._inode = 0
        self._told: Mapping[str, Zone] = {}
        """What is known to be in it."""

    def is_there(self) -> bool:
        """The file that is open, or the one that an earlier life has left."""
        try:
            return self._inode in (0, self.file.lstat().st_ino)
        except FileNotFoundError:
            return False

    def publish(self, zones: Mapping[str, Zone]) -> tuple[str, ...]:
        """Have exactly these, in one transaction that touches what differs; the names of those that do."""
        changed = [zone for name, zone in zones.items() if self._differs(zone, self._told.get(name))]
        if self._open is not None and not changed and zones.keys() == self._told.keys():
            return ()
        with self._transaction() as database:
            known = dict(database.execute("SELECT name, id FROM domains"))
            wanted = changed if self._told else list(zones.values())
            different = [zone.name for zone in wanted if self._write(database, zone, known.get(zone.name))]
            gone = known.keys() - zones.keys()
            database.executemany("DELETE FROM domains WHERE id = ?", [(known[name],) for name in gone])
        self._told = dict(zones)
        return (*different, *sorted(gone))

    def remove(self) -> None:
        self.close()
        with suppress(OSError):
            for suffix in ("", "-wal", "-shm", "-journal"):
                self.file.with_name(self.file.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        if self._open is not None:
            with suppress(sqlite3.Error):
                self._open.close()
        self._open, self._inode, self._told = None, 0, {}

    @staticmethod
    def _differs(zone: Zone, other: Zone | None) -> bool:
        return zone is not other and zone != other

    def _write(self, database: sqlite3.Connection, zone: Zone, number: int | None) -> bool:
        if number is None:
            added = "INSERT INTO domains (name, type) VALUES (?, 'MASTER')"
            number = database.execute(added, (zone.name,)).lastrowid
        kept = "SELECT name, type, content, id FROM records WHERE domain_id = ?"
        found: dict[Row, int] = {row[:3]: row[3] for row in database.execute(kept, (number,))}
        wanted = rows(zone)
        database.executemany(
            "DELETE FROM records WHERE id = ?", [(found[row],) for row in found.keys() - wanted]
        )
        database.executemany(
            "INSERT INTO records (domain_id, name, type, content, ttl, prio) VALUES (?, ?, ?, ?, ?, 0)",
            [(number, *row, TTL_S) for row in wanted - found.keys()],
        )
        return found.keys() != wanted

    def _made(self) -> int:
        """Its inode. The directory is the group's too: what else is there by this name is not followed."""
        with suppress(FileExistsError):
            made = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o660)
            try:
                shutil.chown(made, group=self.group)
                os.fchmod(made, 0o660)
            finally:
                os.close(made)
        found = self.file.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise sqlite3.DatabaseError("it is not ours")
        return found.st_ino

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            database = self._open or self._opened()
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
                raise
        except OSError as error:
            self.close()
            raise DriverError(f"{self.file} cannot be made: {error.strerror}", retryable=True) from None
        except sqlite3.Error as error:
            kind = NotNow if getattr(error, "sqlite_errorcode", 0) & 0xFF in PASSING else Damaged
            if kind is Damaged:
                self.close()
            raise kind(f"{self.file} cannot be written: {error}", retryable=True) from None

    def _opened(self) -> sqlite3.Connection:
        self._inode = self._made()
        database = sqlite3.connect(
            self.file, timeout=BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=16
        )
        self._open = database
        # Readers go on while it is written. It need not survive a crash of the machine: it is made again.
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA foreign_keys = ON")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == SCHEMA_VERSION:
            return database
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables:
            raise sqlite3.DatabaseError("it has another schema")
        database.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        return database
