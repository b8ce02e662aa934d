"""Histories in which two machines would answer for a floating address, but for one rule each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.store import Put
from pvc.cluster.timing import Timing
from pvc.cluster.view import View
from pvc.node.keeper import Keeper, Tenure
from tests.sim.addresses import CHOICES
from tests.sim.network import both_ways
from tests.sim.world import Mutant, Violation, World

SEEDS = range(12)
"""Each plot with other delays between its steps."""
ADDRESS = CHOICES[0]
TIMING = Timing()


def holders(world: World) -> list[str]:
    return [host.name for host in world.hosts.values() if host.kernel.answers(ADDRESS)]


def settled(world: World) -> str:
    """Who is primary, once it answers and everybody runs."""

    def is_so() -> bool:
        nodes = View(world.truth).nodes()
        return all(node.is_running for node in nodes.values()) and holders(world) == [world.primary()]

    world.until(is_so)
    return holders(world)[0]


def cut_off(world: World, name: str) -> None:
    """From everybody; and its session ends as soon after it was last heard of as a session can."""
    client = world.lives[name].client
    session = client.session.id
    world.network.cut(both_ways([name], [other for other in ("n1", "n2", "n3") if other != name]))
    earliest = client.contact + TIMING.session_timeout_s * 2 / 3 - TIMING.store_tick_s
    world.later(max(0.0, earliest - world.now), lambda: world.zookeeper.expire(session))


def changes_hands(world: World, before: str) -> str:
    """Wait until another one answers."""
    world.until(lambda: any(name != before for name in holders(world)))
    return next(name for name in holders(world) if name != before)


def go_on(world: World, seconds: float) -> None:
    end = world.now + seconds
    world.until(lambda: world.now >= end)


# Plots


def primary_is_cut_off(world: World) -> None:
    first = settled(world)
    cut_off(world, first)
    changes_hands(world, first)
    go_on(world, 10.0)


def primary_has_a_slow_store_and_is_cut_off(world: World) -> None:
    first = settled(world)
    world.slow[first] = 3.0
    go_on(world, 5.0)
    kernel, ends = world.hosts[first].kernel, world.now + 15.0
    before = kernel.until.get(ADDRESS, 0.0)
    world.until(lambda: world.now > ends or kernel.until.get(ADDRESS, 0.0) > before)
    cut_off(world, first)
    changes_hands(world, first)
    go_on(world, 10.0)


def two_primaries_go_one_after_the_other(world: World) -> None:
    """The second one leaves the role before it has ever held an address."""
    first = settled(world)
    cut_off(world, first)
    world.until(lambda: world.primary() not in (None, first))
    second = world.primary()
    third = next(name for name in world.hosts if name not in (first, second))
    world.command("primary", third)
    changes_hands(world, first)
    go_on(world, 10.0)


def primary_is_killed_while_its_address_is_another(world: World) -> None:
    """Its next life has the role at once, leaves it soon, and has never known of the address."""
    first = settled(world)
    world.restart_daemon(first, 0.2)
    change(world, upstream_address=CHOICES[1])
    world.until(lambda: world.hosts[first].kernel.answers(CHOICES[1]))
    world.command("primary", next(name for name in world.hosts if name != first))
    world.until(lambda: world.primary() not in (None, first))
    change(world, upstream_address=ADDRESS)
    changes_hands(world, first)
    go_on(world, 10.0)


def change(world: World, **settings: object) -> None:
    spec = replace(View(world.truth).cluster(), **settings)  # type: ignore[arg-type]
    world.truth.commit(Put(paths.CLUSTER, dumps(spec)))


def primary_stands_still(world: World) -> None:
    """For long, and goes on with what it believed before."""
    first = settled(world)
    world.zookeeper.before_change()
    world.lives[first].frozen_until = world.now + 20.0
    changes_hands(world, first)
    go_on(world, 30.0)
    assert holders(world) == [world.primary()]


def machine_of_the_primary_stands_still(world: World) -> None:
    first = settled(world)
    host = world.hosts[first]
    world.zookeeper.before_change()
    host.paused_until = world.now + 20.0
    world.asleep[first] = None
    changes_hands(world, first)
    go_on(world, 30.0)
    assert holders(world) == [world.primary()]


def role_moves_to_and_fro(world: World) -> None:
    for _ in range(4):
        first = settled(world)
        second = next(name for name in world.hosts if name != first)
        change(world, primary=second)
        began = world.now
        changes_hands(world, first)
        assert world.now < began + TIMING.address_wait_s, "nobody has to wait when it was planned"


PLOTS = [
    primary_is_cut_off,
    primary_has_a_slow_store_and_is_cut_off,
    two_primaries_go_one_after_the_other,
    primary_is_killed_while_its_address_is_another,
    primary_stands_still,
    machine_of_the_primary_stands_still,
    role_moves_to_and_fro,
]


def play_all(plot: Callable[[World], None], mutant: Mutant | None = None) -> None:
    for seed in SEEDS:
        world = World(seed, mutant or Mutant(), keep_log=True, nodes=3, vms=1)
        world.faulty = False
        change(world, maintenance=True)  # nobody is shot: who had the addresses may live on
        try:
            plot(world)
        finally:
            world.end()


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.__name__)
def test_one_machine_at_a_time(plot: Callable[[World], None]) -> None:
    play_all(plot)


# One rule taken away


class DoesNotWait(Keeper):
    """Who has the role has the addresses."""

    def serve(self, tenure: Tenure) -> None:
        super().serve(replace(tenure, are_free=True))


class SaysTheyAreFree(Keeper):
    """Also those that a primary before it may have."""

    def rest(self) -> bool:
        super().rest()
        return True


@dataclass(frozen=True)
class Bite:
    name: str
    plot: Callable[[World], None]
    mutant: Mutant


BITES = [
    Bite("no wait", primary_is_cut_off, Mutant(keeper=DoesNotWait)),
    Bite("no lifetime", primary_stands_still, Mutant(no_lifetime=True)),
    Bite("says they are free", two_primaries_go_one_after_the_other, Mutant(keeper=SaysTheyAreFree)),
    Bite("leftovers stay", primary_is_killed_while_its_address_is_another, Mutant(leftovers_stay=True)),
]


@pytest.mark.parametrize("bite", BITES, ids=lambda bite: bite.name)
def test_two_at_a_time_without_the_rule(bite: Bite) -> None:
    with pytest.raises(Violation, match=r"answer for 10\.0\.0\.250"):
        play_all(bite.plot, bite.mutant)
