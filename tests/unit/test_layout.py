"""A pvc that is older than the cluster's documents keeps its hands off them."""

from __future__ import annotations

import pytest

from pvc.cluster import paths
from pvc.cluster.cluster import LAYOUT_VERSION, ClusterSpec
from pvc.cluster.codec import dumps
from pvc.cluster.store import Create
from pvc.cluster.view import View
from pvc.errors import Unavailable
from tests.fakes.store import MemoryCluster


@pytest.mark.parametrize("ahead", [0, 1])
def test_newer_layout_is_refused(ahead: int) -> None:
    store = MemoryCluster().connect()
    spec = ClusterSpec("home", layout=LAYOUT_VERSION + ahead)
    store.commit(Create(paths.ROOT), Create(paths.CLUSTER, dumps(spec)))
    if not ahead:
        assert View(store).cluster() == spec
        return
    with pytest.raises(Unavailable, match=f"layout {LAYOUT_VERSION + 1}"):
        View(store).cluster()
