"""--direct: operations on the store itself, and reads that wait for a change of what they read."""

from __future__ import annotations

import threading

import pytest

from pvc import commands
from pvc.cluster.codec import version_of
from pvc.cluster.store import Create, Put
from pvc.commands.direct import DirectTransport
from pvc.errors import Invalid, NotFound
from tests.fakes.store import MemoryCluster, MemoryStore
from tests.support import eventually
from tests.unit import thing


@pytest.fixture(autouse=True)
def _things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(commands.NOUNS, "thing", "things of tests")
    monkeypatch.setitem(commands.VERBS, "thing", {thing.__name__: thing.VERBS})


@pytest.fixture
def store() -> MemoryStore:
    return MemoryCluster().connect()


@pytest.fixture
def transport(store: MemoryStore) -> DirectTransport:
    return DirectTransport(store, "n1")


def test_results_are_plain_json(transport: DirectTransport) -> None:
    assert transport.call("thing.info", {"thing": "t1"}) == {
        "name": "t1",
        "state": "none",
        "memory_mib": 1,
        "version": "",
    }


def test_bad_input_is_refused(transport: DirectTransport) -> None:
    with pytest.raises(Invalid):
        transport.call("thing.info", {"thing": "T 1"})
    with pytest.raises(NotFound):
        transport.call("thing.nonsense", {})


def test_a_plan(transport: DirectTransport) -> None:
    assert transport.call("thing.meta", {"thing": "t1"}, plan=True) == {"plan": [], "changes": []}


def test_a_read_answers_at_once_when_the_client_knows_something_else(transport: DirectTransport) -> None:
    assert transport.call("thing.at", {"node": "n1"}, after="other", within_s=60.0)["name"] == "n1"


@pytest.mark.parametrize("exists", [False, True])
def test_a_read_waits_for_a_change(store: MemoryStore, transport: DirectTransport, exists: bool) -> None:
    if exists:
        store.commit(Create("/thing", b"one"))
    answers: list[str] = []
    first = transport.call("thing.state", {"thing": "t1"})

    def ask() -> None:
        answers.append(transport.call("thing.state", {"thing": "t1"}, after=version_of(first), within_s=60.0))

    thread = threading.Thread(target=ask)
    thread.start()
    store.commit(Create("/unrelated"))
    assert not answers
    store.commit(Put("/thing", b"two") if exists else Create("/thing", b"two"))
    eventually(lambda: answers == ["two"], within=10.0)
    thread.join()


def test_a_read_that_nothing_happens_to_answers_in_time(transport: DirectTransport) -> None:
    first = transport.call("thing.state", {"thing": "t1"})
    assert transport.call("thing.state", {"thing": "t1"}, after=version_of(first), within_s=0.05) == first


def test_waiting_again_and_again_leaves_one_listener(transport: DirectTransport, store: MemoryStore) -> None:
    first = transport.call("thing.state", {"thing": "t1"})
    for _ in range(3):
        transport.call("thing.state", {"thing": "t1"}, after=version_of(first), within_s=0.01)
    assert len(store._listeners) == 1


def test_closing_ends_the_session(store: MemoryStore, transport: DirectTransport) -> None:
    transport.call("thing.info", {"thing": "t1"})
    transport.close()
    transport.close()
