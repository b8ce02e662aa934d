"""Manifests of exports, and the rules about them."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvc import sizes
from pvc.cluster import exports
from pvc.cluster.codec import Unreadable, loads, to_json
from pvc.cluster.exports import KIND, ExportedDisk, Manifest, Parent
from pvc.cluster.snapshots import Quiesced, SnapshotDisk, VMSnapshot
from pvc.errors import Conflict, Invalid, NotFound

DISK = ExportedDisk("vda", "vms", "web1-disk0", 4096, "vda.rbddiff", 10, "ab")
UUID = "6f2d5a3e-8a1b-4c5d-9e7f-0123456789ab"
FULL = Manifest(KIND, 1, "web1", UUID, "mon.1", 1.5, "agent", "<domain/>", (DISK,))
NEXT = replace(
    FULL,
    snapshot="tue",
    at=2.5,
    disks=(replace(DISK, since="vda"), replace(DISK, target="vdb", volume="other", file="vdb.rbddiff")),
    parent=Parent("web1-mon.1", "mon.1", 1.5),
)
TREATED = {
    "selector": "mem",
    "node_limit": ["n1"],
    "method": "live",
    "profile": "web",
    "start_priority": 7,
    "max_downtime_ms": 300,
    "migration_timeout_s": 600,
    "shutdown_timeout_s": 0,
    "tags": [{"name": "blue", "protected": True}],
}


def test_what_is_written_is_read_again() -> None:
    assert replace(exports.read(exports.written(NEXT), "here"), sha256="") == NEXT


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (replace(FULL, kind="other"), "no manifest of an export"),
        (replace(FULL, version=2), "version 2"),
        (replace(FULL, disks=(replace(DISK, file="../x"),)), "names a file"),
        (replace(FULL, disks=(replace(DISK, file=".x"),)), "names a file"),
        (replace(NEXT, parent=Parent("a/b", "mon.1", 1.5)), "names a file"),
        (replace(FULL, disks=(replace(DISK, target="../vda"),)), "names a target"),
        (replace(FULL, disks=(replace(DISK, target="v'da"),)), "names a target"),
        (replace(FULL, disks=(replace(DISK, pool="a/b"),)), "names a pool"),
        (replace(FULL, disks=(replace(DISK, volume="../web1"),)), "names a volume"),
        (replace(FULL, disks=(replace(DISK, volume=".task-1"),)), "names a volume"),
        (replace(FULL, disks=(DISK, DISK)), "twice"),
        (replace(FULL, disks=()), "names no disk"),
        (replace(FULL, disks=(replace(DISK, size_bytes=0),)), "no size that disk vda could have"),
        (replace(FULL, disks=(replace(DISK, size_bytes=2**60),)), "no size that disk vda could have"),
        (replace(FULL, disks=(replace(DISK, file_bytes=-1),)), "no size that disk vda could have"),
        (replace(FULL, uuid="../x"), "names a VM's UUID"),
        (replace(FULL, snapshot="a/b"), "names a snapshot"),
        (replace(FULL, quiesced="luck"), "names a way to hold still 'luck'"),
        (replace(FULL, at=float("nan")), "names no time"),
        (replace(FULL, at=1e300), "names no time"),
        (replace(FULL, disks=(replace(DISK, file_bytes=10**400),)), "no size that disk vda could have"),
        (replace(NEXT, disks=(replace(DISK, since="\x1b"),)), "names a target"),
        (replace(FULL, vm="a\n"), "names a VM 'a"),
        (replace(FULL, snapshot="a" * 64), "names a snapshot"),
        (replace(NEXT, parent=Parent("web1-mon.1", "x/../y\n", 1.5)), "names a snapshot"),
        (replace(NEXT, parent=Parent("web1-mon.1", "mon.1", float("nan"))), "mon.1, which is not older"),
        (replace(NEXT, parent=Parent("web1-tue", "tue", 2.5)), "tue, which is not older"),
        (replace(FULL, settings=7), "does not say how web1 was treated"),  # type: ignore[arg-type]
        (replace(FULL, disks=(DISK, replace(DISK, file="b"))), "twice"),
    ],
)
def test_what_is_no_manifest_is_refused(manifest: Manifest, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        exports.read(exports.written(manifest), "here")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"max_downtime_ms": -5}, "downtime in ms is not between 10 and 60000"),
        ({"migration_timeout_s": 0}, "migrate in s is not between 10 and"),
        ({"shutdown_timeout_s": 86_401}, "shut down in s is not between 0 and"),
        ({"start_priority": 10**30}, "priority is not between 0 and 1000"),
        ({"start_priority": 7.5}, "expected int"),
        ({"tags": [{"name": "\x1b[2J"}]}, r"a tag '\\x1b"),
        ({"tags": [{"name": "a"}, {"name": "a", "protected": True}]}, "a tag twice"),
        ({"tags": 7}, "not iterable"),
        ({"profile": "a\nb"}, "a profile"),
        ({"node_limit": ["../n1"]}, "a node"),
        ({"selector": "luck"}, "not a valid Selector"),
        ({"method": None}, "not a valid Method"),
    ],
)
def test_a_vm_is_treated_as_operations_could_have_it(changed: dict[str, Any], said: str) -> None:
    spec = exports.treated(replace(FULL, settings={**TREATED, "power": "started"}))
    assert {name: value for name, value in to_json(spec).items() if name in TREATED} == TREATED
    assert spec.power == "stopped"
    with pytest.raises(Invalid, match=f"of how web1 is treated: .*{said}"):
        exports.treated(replace(FULL, settings={**TREATED, **changed}))


PLAIN = to_json(replace(NEXT, settings=TREATED))
FIELDS = [
    *((name,) for name in PLAIN),
    *(("parent", name) for name in PLAIN["parent"]),
    *(("disks", 0, name) for name in PLAIN["disks"][0]),
    *(("settings", name) for name in TREATED),
    ("settings", "tags", 0, "name"),
]
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
ANY = st.recursive(
    VALUES | st.sampled_from([10**400, -(10**400)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def signed(plain: dict[str, Any]) -> bytes:
    """As by somebody who can write a checksum; the document as it is where there can be none."""
    data = json.dumps(plain).encode()
    with suppress(Unreadable, UnicodeEncodeError):
        return exports.written(loads(Manifest, data))
    return data


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FIELDS), ANY)
def test_whatever_a_manifest_says_is_read_or_refused(field: tuple[str | int, ...], value: Any) -> None:
    plain = json.loads(json.dumps(PLAIN))
    inner = plain
    for step in field[:-1]:
        inner = inner[step]
    inner[field[-1]] = value
    with suppress(Invalid, NotFound):
        found = exports.read(signed(plain), "here")
        exports.treated(found)
        exports.check_order((FULL, found))
        sizes.show(sum(one.file_bytes for one in found.disks))


def test_a_number_that_no_float_holds_is_refused() -> None:
    with pytest.raises(Invalid, match="here"):
        exports.read(json.dumps({**PLAIN, "at": 10**400}).encode(), "here")


ODD = exports.written(FULL).replace(b"<domain/>", rb"\ud800")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b'{"kind": 3}', b"[" * 100_000, ODD])
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(Invalid, match="here"):
        exports.read(data, "here")


def test_a_snapshot_that_was_taken_again_is_another_one() -> None:
    assert exports.is_of(FULL, UUID, "mon.1", 1.5)
    assert not exports.is_of(FULL, UUID, "mon.1", 2.5)
    assert not exports.is_of(FULL, "u2", "mon.1", 1.5)


def test_a_disk_that_came_later_is_whole() -> None:
    kept = VMSnapshot("mon.1", 1.5, "", (SnapshotDisk("vda", "vms", "web1-disk0"),), Quiesced.AGENT)
    assert exports.since(kept, "vms", "web1-disk0") == "vda"
    assert exports.since(kept, "vms", "other") == ""
    assert exports.since(kept, "fast", "web1-disk0") == ""
    assert exports.since(None, "vms", "web1-disk0") == ""


def test_a_manifest_that_was_changed_is_none() -> None:
    whole = exports.written(FULL)
    assert whole.count(b"<domain/>") == 1
    with pytest.raises(Invalid, match="is damaged, or was changed"):
        exports.read(whole.replace(b"<domain/>", b"<Domain/>"), "here")


def test_the_files_of_a_disk_are_those_since_it_was_whole() -> None:
    exports.check_chain((FULL, NEXT))
    assert [(number, one.file) for number, one in exports.files_of((FULL, NEXT), "vda")] == [
        (0, "vda.rbddiff"),
        (1, "vda.rbddiff"),
    ]
    assert [number for number, _ in exports.files_of((FULL, NEXT), "vdb")] == [1]
    with pytest.raises(Invalid, match="not in its parent"):
        exports.check_chain((NEXT,))


def test_all_disks_are_made_of_no_more_files_than_needed() -> None:
    both = replace(NEXT, disks=(*NEXT.disks, replace(DISK, target="vdc", volume="c", file="c", since="")))
    assert [(number, one.target) for number, one in exports.needed((FULL, both))] == [
        (0, "vda"),
        (1, "vda"),
        (1, "vdb"),
        (1, "vdc"),
    ]
    assert exports.needed((FULL, replace(NEXT, disks=NEXT.disks[1:]))) == [(1, NEXT.disks[1])]


def test_what_is_given_together_is_the_oldest_first_and_all_that_is_needed() -> None:
    last = replace(NEXT, snapshot="wed", at=3.5, parent=Parent("web1-tue", "tue", 2.5))
    for whole in ((FULL,), (FULL, NEXT), (FULL, NEXT, last)):
        exports.check_order(whole)
    refused: list[tuple[tuple[Manifest, ...], type[Exception], str]] = [
        ((NEXT,), NotFound, "snapshot tue of web1 needs that of snapshot mon.1"),
        ((NEXT, FULL), NotFound, "snapshot tue of web1 needs that of snapshot mon.1"),
        ((FULL, FULL), Invalid, "snapshot mon.1 of web1 is whole"),
        ((FULL, last), Invalid, "differs from snapshot tue, and what comes before it is not"),
        ((FULL, last, NEXT), Invalid, "differs from snapshot tue, and what comes before it is not"),
        ((replace(FULL, at=1.0), NEXT), Invalid, "what comes before it is not"),
        ((replace(FULL, disks=(replace(DISK, target="vdx"),)), NEXT), Invalid, "not in its parent"),
    ]
    for chain, kind, said in refused:
        with pytest.raises(kind, match=said):
            exports.check_order(chain)


def volumes(manifest: Manifest, vm: str, pool: str = "") -> dict[str, str]:
    return {name: str(one) for name, one in exports.volumes_for(manifest, vm, pool, ["fast", "vms"]).items()}


def test_volumes_are_named_after_the_new_vm_where_they_were_after_the_other() -> None:
    assert volumes(NEXT, "web2") == {"vda": "vms/web2-disk0", "vdb": "vms/other"}
    assert volumes(NEXT, "web2", "fast") == {"vda": "fast/web2-disk0", "vdb": "fast/other"}
    assert volumes(replace(FULL, disks=(replace(DISK, volume="web10"),)), "a") == {"vda": "vms/web10"}
    with pytest.raises(NotFound, match="no pool lost"):
        volumes(NEXT, "web2", "lost")
    with pytest.raises(NotFound, match="no pool old, in which disk vda was"):
        volumes(replace(FULL, disks=(replace(DISK, pool="old"),)), "web2")
    both = replace(FULL, disks=(DISK, replace(DISK, target="vdb", volume="a-disk0", file="b")))
    with pytest.raises(Conflict, match="the same name"):
        volumes(both, "a")
