"""What the tests in the machine have in common."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from pvc.clock import SystemClock
from pvc.cluster.ceph import OSDInfo
from pvc.cluster.codec import loads
from pvc.cluster.tasks import TaskSpec
from pvc.errors import PVCError
from pvc.node.ceph_watch import look_at_osd
from pvc.node.drivers.ceph_volume import CephVolume
from pvc.node.osds import OSDs, works
from pvc.node.tasks import Progress
from tests.support import eventually

NODE = "n1"
GIB = 1024**3
MAKING: dict[str, Any] = {"wipe": False, "split": 1, "tier": "", "db_bytes": 0, "weight": None}


def of_this_node() -> OSDs:
    return OSDs(NODE, CephVolume(), "/var/lib/pvc/osds")


@pytest.fixture(scope="module")
def osds() -> OSDs:
    made = of_this_node()
    eventually(lambda: is_there(made), within=600, every=1)
    made.connect().command("osd pool create", pool="vms", pg_num=8)
    return made


def is_there(osds: OSDs) -> bool:
    """Ceph, with the OSD that it always has."""
    try:
        return is_up(osds, 0)
    except PVCError:
        return False


def new_task(kind: str, **given: Any) -> TaskSpec:
    more = MAKING if kind in ("add", "replace") else {}
    here = {"here": True, "force": False} if kind in ("remove", "replace") else {}
    arguments = {**more, **here, **given}
    return TaskSpec(uuid.uuid4().hex[:8], f"storage.osd-{kind}", "", NODE, "tester", 0.0, arguments)


def do(osds: OSDs, kind: str, **given: Any) -> Any:
    """As a node does a task: undone when it fails."""
    task = new_task(kind, **given)
    try:
        return run(osds, task)
    except PVCError:
        undo(osds, task)
        raise


def run(osds: OSDs, task: TaskSpec) -> Any:
    return works(osds)[task.kind].do(task, Progress(lambda fraction, words: None, SystemClock()))


def undo(osds: OSDs, task: TaskSpec) -> None:
    works(osds)[task.kind].undo(task)


def on(osds: OSDs, device: str) -> list[int]:
    return [one.osd for one in osds.disks.prepared(osds.choose(device).path)]


def is_up(osds: OSDs, *wanted: int) -> bool:
    known = osds.known()
    return all(osd in known and known[osd]["up"] and known[osd]["in"] for osd in wanted)


def info(osds: OSDs, osd: int) -> OSDInfo:
    return look_at_osd(osds.connect(), osd)


def paths(osds: OSDs, *wanted: str) -> tuple[tuple[str, ...], ...]:
    return tuple((osds.choose(one).path,) for one in wanted)


def empty(osds: OSDs, device: str) -> None:
    """Raises Conflict naming what is on it."""
    osds.disks.check_free(osds.choose(device), force=False)
    assert on(osds, device) == []


def volumes(group: str) -> list[str]:
    """The logical volumes of a group, none where there is no such group."""
    said = subprocess.run(["lvs", "--reportformat", "json"], capture_output=True, check=True).stdout
    return sorted(one["lv_name"] for one in json.loads(said)["report"][0]["lv"] if one["vg_name"] == group)


def links() -> list[str]:
    """By which OSDs on logical volumes are started."""
    return [
        found.name
        for where in ("/etc/systemd/system", "/run/systemd/system")
        for found in Path(where).glob("*.wants/ceph-*@*.service")
        if found.name.startswith(("ceph-volume@", "ceph-osd@"))
    ]


if __name__ == "__main__":
    run(of_this_node(), loads(TaskSpec, sys.argv[1].encode()))
