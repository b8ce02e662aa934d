"""Floating addresses in the simulation: a kernel that takes them away when their time is over, not sooner."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from pvc.cluster.timing import KERNEL_S
from pvc.node.drivers.networks import TooLate

if TYPE_CHECKING:
    from tests.sim.hosts import Host
    from tests.sim.world import Life, World

CHOICES = ("10.0.0.250/24", "10.0.0.251/24", "")


@dataclass(eq=False)
class Kernel:
    """Of one machine, as long as it has power. Daemons come and go."""

    host: Host
    until: dict[str, float] = field(default_factory=dict)
    """When it takes each away; by the world's time."""

    def answers(self, address: str) -> bool:
        host, now = self.host, self.host.world.now
        return host.is_up and now >= host.paused_until and now < self.until.get(address, 0.0)

    def give(self, address: str, seconds: float) -> None:
        world = self.host.world
        is_new = not self.answers(address)
        late = world.rng.uniform(0.0, KERNEL_S)
        self.until[address] = world.now + seconds / self.host.rate + late
        if is_new:
            world.trace(f"{self.host.name}: answers for {address}")
        check(world)

    def take(self, address: str) -> None:
        if self.answers(address):
            self.host.world.trace(f"{self.host.name}: {address} is dropped")
        self.until.pop(address, None)


class SimAddresses:
    """A machine's devices as one life of its daemon reaches them."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.kernel = life.host.kernel

    def hold(self, address: str, until: float) -> bool:
        self.life.point()
        is_new = not self.kernel.answers(address)
        # No pause after this: the driver itself finds out that it was halted between the look and the kernel.
        seconds = int(until - self.life.clock.monotonic())
        if seconds < 1:
            raise TooLate(f"{address} is confirmed no more")
        self.kernel.give(address, float("inf") if self.life.world.mutant.no_lifetime else seconds)
        self.life.point()
        return is_new

    def drop(self, address: str) -> None:
        self.life.point()
        self.kernel.take(address)
        self.life.point()

    def held(self) -> dict[str, str]:
        self.life.point()
        return {address: "br0" for address in self.kernel.until if self.kernel.answers(address)}

    def announce(self, address: str) -> None:
        self.life.point()


def check(world: World) -> None:
    """No two machines answer for an address at the same time."""
    for address in {address for host in world.hosts.values() for address in host.kernel.until}:
        holders = [host.name for host in world.hosts.values() if host.kernel.answers(address)]
        if len(holders) > 1:
            world.fail(f"{' and '.join(holders)} answer for {address}")


def check_later(world: World, seconds: float) -> None:
    """When a machine goes on that stood still, with what it still had."""
    world.later(seconds, partial(check, world))


def unrest(world: World, wanted: tuple[str, ...]) -> str:
    """In the end the primary answers for each address, and nobody for another one."""
    primary = world.primary()
    for host in world.hosts.values():
        held = {address for address in host.kernel.until if host.kernel.answers(address)}
        if held != ({*wanted} if host.name == primary else set()):
            return f"{host.name} answers for {sorted(held)}, {primary} is primary, wanted is {wanted}"
    return ""
