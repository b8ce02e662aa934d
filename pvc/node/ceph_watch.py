"""Looks at Ceph: what is wrong with it, how fast it fills. Figures stay here, for whoever asks this node."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pvc.clock import Clock
from pvc.cluster import ceph
from pvc.cluster.ceph import Figures, OSDInfo, Sample
from pvc.cluster.codec import dumps, from_json, to_json
from pvc.cluster.node import CephSeen
from pvc.cluster.store import SessionState, Store
from pvc.cluster.view import View
from pvc.errors import NotFound, PVCError
from pvc.node.drivers import DriverError
from pvc.node.monitors import Monitors, connect

log = logging.getLogger(__name__)

CONF = "/etc/ceph/ceph.conf"
LOOK_S = 30.0
PRIMARY_LOOK_S = 10.0
"""It tells for all."""
UNAVAILABLE_S = 1.0
SAMPLE_S = 900.0
MOST_SAMPLES = 672
"""A week."""


def look(monitors: Monitors) -> Figures:
    """Raises PVCError."""
    return ceph.figures(
        status=monitors.command("status"),
        health=monitors.command("health", detail="detail"),
        df=monitors.command("df"),
        tree=monitors.command("osd df", output_method="tree"),
        dump=monitors.command("osd dump"),
    )


def look_at_osd(monitors: Monitors, osd: int) -> OSDInfo:
    """Raises NotFound, PVCError."""
    dump = monitors.command("osd dump")
    entry = next((one for one in dump["osds"] if one["osd"] == osd), None)
    if entry is None:
        raise NotFound(f"there is no OSD {osd}", hint="pvc storage osd list")
    # The time that the map has of an OSD's going down is missing where its daemon ended in good order.
    epoch = entry["up_from"] if entry["up"] else entry["down_at"]
    return ceph.osd_info(
        osd,
        tree=monitors.command("osd df", output_method="tree"),
        dump=dump,
        changed=_unless_refused(monitors, "osd dump", epoch=epoch) if epoch else {},
        metadata=_unless_refused(monitors, "osd metadata", id=osd),
        perf=monitors.command("osd perf"),
        stop=_unless_refused(monitors, "osd ok-to-stop", ids=[str(osd)]),
        removal=_unless_refused(monitors, "osd safe-to-destroy", ids=[str(osd)]),
    )


def _unless_refused(monitors: Monitors, prefix: str, **arguments: Any) -> Any:
    try:
        return monitors.command(prefix, **arguments)
    except DriverError as error:
        return {"refused": error.message}


class CephWatch:
    def __init__(
        self,
        node: str,
        store: Store,
        publish: Callable[[CephSeen | None], None],
        clock: Clock,
        history: str,
        connect: Callable[[], Monitors] = connect,
        conf: str = CONF,
    ) -> None:
        self.node = node
        self.store = store
        self.publish = publish
        self.clock = clock
        self.history = History(history)
        self.connect = connect
        self.conf = conf
        self.published: CephSeen | None = None
        self.is_published = False

    def step(self) -> float:
        """Seconds until the next round is due."""
        if self.store.session.state is not SessionState.CONNECTED:
            return UNAVAILABLE_S
        is_primary = self._is_primary()
        seen = self._seen(is_primary) if os.path.exists(self.conf) else None
        if seen != self.published or not self.is_published:
            for problem in seen.problems if seen else ():
                log.warning("%s", problem)
            self.publish(seen)
            self.published, self.is_published = seen, True
        return PRIMARY_LOOK_S if is_primary else LOOK_S

    def _seen(self, is_primary: bool) -> CephSeen:
        try:
            found = look(self.connect())
        except PVCError as error:
            return replace(
                self.published or CephSeen(), fsid="", problems=(f"node {self.node}: {error.message}",)
            )
        self.history.note(ceph.sample(self.clock.wall(), found))
        problems = tuple(ceph.problems(found)) if is_primary else ()
        return CephSeen(found.fsid, ceph.osds_of(self.node, found), problems)

    def _is_primary(self) -> bool:
        node = View(self.store).nodes([self.node]).get(self.node)
        return node is not None and node.is_primary

    def tell(self, osd: int | None = None) -> dict[str, object]:
        """How Ceph is now, and how fast it has filled lately; or one OSD of it. Raises PVCError."""
        if osd is not None:
            return dict(to_json(look_at_osd(self.connect(), osd)))
        found = look(self.connect())
        return {
            "figures": to_json(found),
            "growth": to_json(ceph.growths(found, self.history.samples())),
        }


class History:
    """Of how much was used: a file of bounded size, which nothing depends on."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def samples(self) -> list[Sample]:
        """The oldest first; none when there is no file that can be read."""
        try:
            return [from_json(Sample, one) for one in json.loads(self.path.read_text())]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s is begun anew: %s", self.path, error)
            return []

    def note(self, sample: Sample) -> None:
        """When it is time for one. A clock that was set back leaves out what is in the future."""
        known = [one for one in self.samples() if one.at <= sample.at][1 - MOST_SAMPLES :]
        if known and sample.at - known[-1].at < SAMPLE_S:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_bytes(dumps((*known, sample)))
        new.replace(self.path)
