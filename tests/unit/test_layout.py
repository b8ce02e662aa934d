"""A pvc that is older than the cluster's documents keeps its hands off them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

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


def documented() -> list[str]:
    """Paths of documents with <> for what differs."""
    text = (Path(__file__).parents[2] / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| (`/pvc/.*?) \|", text.partition("## The store")[2], re.MULTILINE)
    return [re.sub("<.*?>", "<>", path) for row in rows for path in re.findall("`(.*?)`", row)]


def test_every_document_has_one_row_in_the_architecture() -> None:
    rows = documented()
    assert sorted(rows) == sorted({*rows})
    made = {
        make(*["<>"] * len(inspect.signature(make).parameters))
        for _, make in inspect.getmembers(paths, inspect.isfunction)
    }
    made |= {value for name, value in vars(paths).items() if name.isupper() and isinstance(value, str)}
    assert not [path for path in made if not any(f"{row}/".startswith(f"{path}/") for row in rows)]
