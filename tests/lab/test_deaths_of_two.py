"""Two of five nodes lose their power at one moment, the primary among them; three are coordinators."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab.dying import finished, on, primary, recovered, returned_clean, seen
from tests.lab.vms import Cluster
from tests.support import eventually

OTHER = "brusque"


@pytest.mark.parametrize("lab", [5], indirect=True, ids=["five nodes"])
def test_two_of_five_lose_power(armed: Cluster) -> None:
    """A coordinator, which judges, and a plain node: fenced beside each other, each VM moves once."""
    cluster = armed
    judge = seen(lambda: primary(cluster), within=30)
    plain = cluster.lab.nodes[-1]
    with on(cluster, judge) as witness:
        cluster.asked = next(node for node in cluster.lab.nodes if node not in (judge, plain))
        cluster.create(OTHER, "--target", plain)
        cluster.ticking(OTHER, plain, more_than=3)
        began = time.monotonic()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: cluster.lab.power(node, "off"), (judge, plain)))
        eventually(lambda: witness.has_run(OTHER, 2), within=60)
        recovered(cluster, witness, judge, began)
        for node in (judge, plain):
            assert finished(cluster, node)["evidence"] == "power-off"
        for node in (judge, plain):
            returned_clean(cluster, node)
        assert len(places := cluster.qemus(OTHER)) == 1
        assert plain not in places
        cluster.remove(OTHER)
