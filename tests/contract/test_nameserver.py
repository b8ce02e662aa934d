"""One suite for every NameServer: the fake, and PowerDNS over a systemd that only starts and stops.

The real one, asked with dig, is in tests/lab/test_nameserver.py: it is in the node image only.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pvc.node.drivers.networks import Answering
from tests.fakes.nameserver import FakeNameServer
from tests.nameservers import Machine, Suite
from tests.unit.node.test_powerdns import Bench


class FakeMachine:
    wanted = Answering(("10.0.0.250",), ("10.0.0.0/24",))
    others = Answering(("10.0.0.1",), ("10.0.0.0/24",))

    def __init__(self) -> None:
        self.server = FakeNameServer()

    def ask(self, name: str, kind: str) -> set[str]:
        if self.server.wanted != self.wanted or not self.server.life():
            return set()
        zones = self.server.zones.values()
        records = {(one.name, one.type, one.content) for zone in zones for one in zone.records}
        records |= {(zone.name, "SOA", zone.soa) for zone in zones}
        return {content for *what, content in records if what == [name, kind]}

    def kill(self) -> None:
        self.server.is_dead = True


@pytest.fixture(params=["fake", "powerdns"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return FakeMachine() if request.param == "fake" else Bench(tmp_path)


class TestNameServer(Suite):
    pass
