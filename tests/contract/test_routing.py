"""One suite for every Routing: the fake, and FRR over a systemd that only starts and stops.

With the real systemd, vtysh and frr-reload.py it is shown in the lab (tests/lab/test_networks.py).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pvc.node.drivers.frr import DAEMONS
from pvc.node.drivers.networks import Routing, Speaker
from pvc.proc import Completed
from tests.fakes.routing import FakeRouting
from tests.unit.node.test_frr import Bench

CLIENT = Speaker("10.251.1.4", False, ("10.251.1.1",))
REFLECTOR = replace(CLIENT, is_reflector=True, clients=("10.251.1.5",))


class Machine(Bench):
    """Its daemons live while the unit is started."""

    def __call__(self, argv: list[str], /, *, check: bool = True, timeout_s: float = 60.0) -> Completed:
        was_active = self.active
        done = super().__call__(argv, check=check, timeout_s=timeout_s)
        if self.active and not was_active:
            self.lives(**{name: 100 + number for number, name in enumerate(DAEMONS)})
        elif was_active and not self.active:
            for name in DAEMONS:
                (self.root / "run/frr" / f"{name}.pid").unlink()
        return done


@pytest.fixture(params=["fake", "frr"])
def routing(request: pytest.FixtureRequest, tmp_path: Path) -> Routing:
    return FakeRouting() if request.param == "fake" else Machine(tmp_path).frr


def test_it_serves_from_the_first_call_and_the_second_does_nothing(routing: Routing) -> None:
    assert not any(routing.lives().values())
    assert routing.serve(CLIENT)
    lives = dict(routing.lives())
    assert lives.keys() == {*DAEMONS}
    assert all(lives.values())
    assert not routing.serve(CLIENT)
    assert routing.lives() == lives


def test_a_change_goes_on_with_the_same_daemons(routing: Routing) -> None:
    routing.serve(CLIENT)
    lives = dict(routing.lives())
    assert routing.serve(REFLECTOR)
    assert not routing.serve(REFLECTOR)
    assert routing.lives() == lives


def test_stopped_is_stopped(routing: Routing) -> None:
    assert not routing.stop()
    routing.serve(CLIENT)
    assert routing.stop()
    assert not any(routing.lives().values())
    assert not routing.stop()
    assert routing.serve(CLIENT)
