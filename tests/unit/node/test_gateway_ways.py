"""Where a node sends what is for gateways: corrected after a move and now and then."""

from __future__ import annotations

import logging

import pytest

from pvc.node.gateway_ways import AFTER_S, LOOK_S, GatewayWays
from tests.fakes.tunnels import FakeTunnels
from tests.unit.node.test_network import ManualClock

N2, N3 = "10.0.0.2", "10.0.0.3"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def tunnels() -> FakeTunnels:
    return FakeTunnels({101: N2, 102: N3})


@pytest.fixture
def ways(tunnels: FakeTunnels, clock: ManualClock) -> GatewayWays:
    made = GatewayWays(tunnels, clock)
    made.see_to([], "")
    return made


def test_a_move_is_looked_after_once_routing_had_its_time(
    ways: GatewayWays, tunnels: FakeTunnels, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    ways.moved()
    assert ways.see_to([101, 102], N3) == clock.now + AFTER_S[0]
    assert tunnels.known == {101: N2, 102: N3}, "routing is first"
    clock.now += AFTER_S[0]
    with caplog.at_level(logging.WARNING):
        assert ways.see_to([101, 102], N3) == clock.now - AFTER_S[0] + AFTER_S[1]
    assert tunnels.known == {101: N3, 102: N3}
    assert caplog.messages == [f"gateways of networks 101 are sought at {N3}: routing led to {N2}"]


def test_looks_go_on(ways: GatewayWays, tunnels: FakeTunnels, clock: ManualClock) -> None:
    """Routing may be late, and wrong later than a move is old."""
    ways.moved()
    for wait in (AFTER_S[0], AFTER_S[1] - AFTER_S[0], LOOK_S, LOOK_S):
        clock.now += wait
        tunnels.known[101] = N2
        ways.see_to([101], N3)
        assert tunnels.known[101] == N3
        tunnels.known[101] = N2
        assert clock.now < ways.see_to([101], N3) <= clock.now + LOOK_S
        assert tunnels.known[101] == N2, "not before the next look is due"


def test_another_move_begins_anew(ways: GatewayWays, tunnels: FakeTunnels, clock: ManualClock) -> None:
    ways.moved()
    clock.now += AFTER_S[1]
    assert ways.see_to([101], N3) == clock.now + LOOK_S
    ways.moved()
    clock.now += AFTER_S[0]
    ways.see_to([101], N2)
    assert tunnels.known[101] == N2


def test_only_the_gateways_of_another_node(
    ways: GatewayWays, tunnels: FakeTunnels, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    clock.now += LOOK_S
    ways.see_to([102], N2)
    assert tunnels.known == {101: N2, 102: N2}
    clock.now += LOOK_S
    tunnels.fails = "there is nothing to ask for"
    caplog.clear()
    ways.see_to([], "")
    assert caplog.messages == []


def test_one_that_is_refused_leaves_the_others(
    ways: GatewayWays, tunnels: FakeTunnels, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    tunnels.known = dict.fromkeys(range(101, 121), N2)
    tunnels.refuses = {101}
    clock.now += LOOK_S
    ways.see_to(range(101, 121), N3)
    assert [vni for vni, vtep in tunnels.known.items() if vtep != N3] == [101]
    assert caplog.messages[0] == "network 101: refused"
    assert "networks 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, … are" in caplog.messages[1]


def test_a_look_that_fails_is_said_and_made_again(
    ways: GatewayWays, tunnels: FakeTunnels, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    clock.now += LOOK_S
    tunnels.fails = "no netlink: busy"
    with caplog.at_level(logging.WARNING):
        assert ways.see_to([101], N3) == clock.now + LOOK_S
    assert caplog.messages == ["where gateways are is not looked at: no netlink: busy"]
    tunnels.fails = ""
    clock.now += LOOK_S
    ways.see_to([101], N3)
    assert tunnels.known[101] == N3
