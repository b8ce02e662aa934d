"""Devices that are split into virtual functions: how many, what is set of each, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.sriov import LinkState, PhysicalFunction, VFSettings, Wish, Wishes
from pvc.cluster.store import Create, Put
from pvc.node.sriov import LOOK_S, UNAVAILABLE_S, Functions
from tests.fakes.functions import FakeFunctions
from tests.unit.commands.world import World, a_world

PATH = paths.node_sriov("n1")


@dataclass
class Bench:
    world: World = field(default_factory=a_world)
    host: FakeFunctions = field(default_factory=lambda: FakeFunctions({"eth2": 8}))
    published: list[tuple[PhysicalFunction, ...]] = field(default_factory=list)
    devices: dict[str, int] = field(default_factory=lambda: {"eth2": 2})

    def __post_init__(self) -> None:
        self.store = self.world.cluster.connect()
        self.functions = Functions(
            "n1", self.devices, self.store, self.host, self.published.append, lambda: None
        )

    def wish(self, *wishes: Wish) -> None:
        stored = self.store.get(PATH)
        data = dumps(Wishes(wishes))
        self.store.commit(Put(PATH, data, stored.version) if stored else Create(PATH, data))

    def settings(self, number: int = 0) -> VFSettings:
        return self.host.found["eth2"][number].settings

    def problems(self) -> tuple[str, ...]:
        return self.published[-1][0].problems


def test_a_device_is_split_once_and_published() -> None:
    bench = Bench()
    assert bench.functions.step() == LOOK_S
    (found,) = bench.published[-1]
    assert (found.name, found.total, len(found.functions), found.problems) == ("eth2", 8, 2, ())
    bench.functions.step()
    assert bench.host.calls == ["split eth2 2"]
    assert len(bench.published) == 1


@pytest.mark.parametrize(
    ("devices", "has", "said"),
    [
        ({"eth7": 2}, 0, "there is no device eth7, which node.sriov_devices names"),
        ({"eth2": 9}, 0, "eth2 can have 8 virtual functions, and node.sriov_devices says 9"),
        ({"eth2": 4}, 2, "eth2 has 2 virtual functions, and node.sriov_devices says 4"),
    ],
)
def test_a_number_that_cannot_be_is_said(devices: dict[str, int], has: int, said: str) -> None:
    bench = Bench(devices=devices)
    if has:
        bench.host.split("eth2", has)
    bench.host.calls.clear()
    bench.functions.step()
    assert bench.host.calls == []
    assert bench.problems()[0].startswith(said)


def test_what_is_wished_is_set_and_nothing_else() -> None:
    bench = Bench()
    bench.functions.step()
    before = bench.settings(1)
    bench.wish(Wish("eth2v0", vlan=7, qos=3, link_state=LinkState.ENABLE, trust=True))
    bench.functions.step()
    assert bench.settings() == VFSettings(vlan=7, qos=3, link_state=LinkState.ENABLE, trust=True)
    assert bench.settings(1) == before
    assert bench.host.calls[1:] == ["set eth2 0 vlan,qos", "set eth2 0 link_state", "set eth2 0 trust"]
    bench.functions.step()
    assert len(bench.host.calls) == 4


def test_what_somebody_else_changes_is_set_again() -> None:
    bench = Bench()
    bench.wish(Wish("eth2v0", vlan=7))
    bench.functions.step()
    known = bench.host.found["eth2"][0]
    bench.host.found["eth2"][0] = replace(known, settings=VFSettings(tx_rate_max=5))
    bench.functions.step()
    assert bench.settings() == VFSettings(vlan=7, tx_rate_max=5)


def test_what_is_published_is_what_the_device_has_after_it() -> None:
    bench = Bench()
    bench.functions.step()
    bench.wish(Wish("eth2v1", tx_rate_max=500))
    bench.functions.step()
    assert bench.published[-1][0].functions[1].settings.tx_rate_max == 500


def test_one_that_is_refused_leaves_the_others() -> None:
    bench = Bench()
    bench.host.refuses = {"trust"}
    bench.wish(Wish("eth2v0", vlan=7, trust=True))
    bench.functions.step()
    assert bench.settings() == VFSettings(vlan=7)
    assert bench.problems() == ("eth2v0: the kernel refuses trust of eth2: EBUSY",)


def test_one_that_the_driver_does_not_know_is_said() -> None:
    bench = Bench()
    bench.host.supported = ("vlan", "qos")
    bench.wish(Wish("eth2v0", vlan=7, query_rss=True))
    bench.functions.step()
    assert bench.settings() == VFSettings(vlan=7)
    assert bench.problems() == ("eth2v0: the driver of eth2 knows no query_rss",)


def test_nothing_is_done_while_the_store_is_away() -> None:
    bench = Bench()
    bench.store.close()
    assert bench.functions.step() == UNAVAILABLE_S
    assert bench.host.calls == []
