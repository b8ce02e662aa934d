"""The address of the metadata service: where guests can come to it, and nowhere else."""

from __future__ import annotations

import pytest

from pvc.cluster.clients import Clients
from pvc.cluster.cluster import ClusterSpec
from pvc.cluster.guests import ADDRESS
from pvc.cluster.network import IPv4, Kind, NetworkSpec
from pvc.cluster.node import NetworkProblem
from pvc.node.drivers import DriverError
from pvc.node.metadata import NOT_SERVED, MetadataAddress
from pvc.node.services import Scene
from tests.fakes.own_addresses import FakeOwnAddresses

BARE = Clients(NetworkSpec(101, "bare", Kind.MANAGED))
ROUTED = Clients(NetworkSpec(102, "routed", Kind.MANAGED, ipv4=IPv4("10.1.0.0/24", "10.1.0.1")))


def scene(*networks: Clients) -> Scene:
    return Scene(ClusterSpec("test"), {}, {one.spec.vni: one for one in networks})


def test_is_there_while_a_network_has_a_gateway() -> None:
    host = FakeOwnAddresses()
    service = MetadataAddress(host, lambda: True)
    for networks, held in (((BARE,), False), ((BARE, ROUTED), True), ((ROUTED,), True), ((), False)):
        assert service.serve(scene(*networks)) == ()
        assert (ADDRESS in host.ours) is held


def test_goes_with_the_role_also_what_an_earlier_life_has_left() -> None:
    host = FakeOwnAddresses({ADDRESS})
    MetadataAddress(host, lambda: True).rest()
    assert host.ours == set()


def test_is_not_taken_from_others() -> None:
    """As in a cloud that has its own."""
    host = FakeOwnAddresses(others={ADDRESS: "eth0"})
    with pytest.raises(DriverError, match=r"169\.254\.169\.254 is an address of this node's eth0 already"):
        MetadataAddress(host, lambda: True).serve(scene(ROUTED))


def test_a_service_that_does_not_run_is_a_problem_where_it_is_needed() -> None:
    host = FakeOwnAddresses()
    service = MetadataAddress(host, lambda: False)
    assert service.serve(scene(BARE)) == ()
    assert service.serve(scene(ROUTED)) == (NetworkProblem(0, NOT_SERVED),)
    assert host.ours == {ADDRESS}
