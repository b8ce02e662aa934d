"""Typed reading: a document is decoded once, and forgotten when it is gone."""

from __future__ import annotations

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.store import Create, Delete, Put
from pvc.cluster.view import View
from pvc.cluster.vm import VMSpec
from tests.fakes.store import MemoryCluster
from tests.unit.node.pictures import UUID, spec

OTHER = UUID.replace("1", "2")


def test_document_is_decoded_once_and_forgotten_when_it_is_gone() -> None:
    store = MemoryCluster().connect()
    store.commit(*(Create(path) for path in paths.LAYOUT))
    store.commit(*(Create(paths.vm(uuid), dumps(spec(uuid=uuid))) for uuid in (UUID, OTHER)))
    view = View(store)
    stored = store.get(paths.vm(UUID))
    gone = store.get(paths.vm(OTHER))
    assert stored is not None
    assert gone is not None
    first, second = view.decode(VMSpec, stored), view.decode(VMSpec, gone)
    store.commit(Delete(paths.vm(OTHER)))
    view.forget_missing()
    assert view.decode(VMSpec, stored) is first
    assert view.decode(VMSpec, gone) is not second


def test_document_that_changed_is_decoded_anew() -> None:
    store = MemoryCluster().connect()
    store.commit(*(Create(path) for path in paths.LAYOUT), Create(paths.vm(UUID), dumps(spec())))
    view = View(store)
    before = view.vm(UUID)
    store.commit(Put(paths.vm(UUID), dumps(spec(memory_mib=1024))))
    assert (before.spec.memory_mib, view.vm(UUID).spec.memory_mib) == (512, 1024)
