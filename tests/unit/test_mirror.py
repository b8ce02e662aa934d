"""The mirror: right after each sync, one read per change, nothing lost whatever fails or races."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import pytest

from pvc.cluster.mirror import Follow, Mirror
from pvc.cluster.store import Create, Delete, Put, SessionState, Stored, Watch
from pvc.errors import Conflict, NotFound, Unavailable
from tests.fakes.store import MemoryCluster, MemoryStore

VMS = "/pvc/vms"


def expand(path: str, names: tuple[str, ...]) -> Iterable[Follow]:
    return [
        follow for name in names for follow in (Follow(f"{path}/{name}"), Follow(f"{path}/{name}/status"))
    ]


@dataclass
class Setup:
    cluster: MemoryCluster = field(default_factory=MemoryCluster)
    wakes: int = 0
    writer: MemoryStore = field(init=False)
    store: MemoryStore = field(init=False)
    mirror: Mirror = field(init=False)

    def __post_init__(self) -> None:
        self.writer = self.cluster.connect()
        self.writer.commit(Create("/pvc"), Create("/pvc/cluster", b"c"), Create(VMS))
        self.store = self.cluster.connect()
        self.mirror = Mirror(self.store, [Follow("/pvc/cluster"), Follow(VMS, True)], expand, self.wake)

    def wake(self) -> None:
        self.wakes += 1

    def create(self, *names: str) -> None:
        for name in names:
            self.writer.commit(
                Create(f"{VMS}/{name}", f"{name} 0".encode()), Create(f"{VMS}/{name}/status", b"off")
            )

    def remove(self, name: str) -> None:
        self.writer.commit(Delete(f"{VMS}/{name}/status"), Delete(f"{VMS}/{name}"))

    def reads(self, action: Callable[[], object]) -> int:
        before = self.store.reads
        action()
        return self.store.reads - before


@pytest.fixture
def setup() -> Setup:
    return Setup()


def data(stored: Stored | None) -> bytes | None:
    return None if stored is None else stored.data


def test_the_first_sync_reads_everything_followed(setup: Setup) -> None:
    setup.create("a", "b")
    stale = setup.mirror.stale
    changed = setup.mirror.sync()
    assert stale
    assert changed == {
        *("/pvc/cluster", VMS),
        *(f"{VMS}/a", f"{VMS}/a/status", f"{VMS}/b", f"{VMS}/b/status"),
    }
    assert not setup.mirror.stale
    assert setup.mirror.children(VMS) == ("a", "b")
    assert [data(each) for each in setup.mirror.get_many([f"{VMS}/b", f"{VMS}/a"])] == [b"b 0", b"a 0"]


def test_ten_thousand_vms_cost_one_read_per_change(setup: Setup) -> None:
    setup.create(*(f"{number:05}" for number in range(10_000)))
    # the cluster's document, the listing, and two documents for each VM
    assert setup.reads(setup.mirror.sync) == 2 + 20_000
    setup.writer.commit(Put(f"{VMS}/00777", b"new"))
    assert setup.reads(setup.mirror.sync) == 1
    assert data(setup.mirror.get(f"{VMS}/00777")) == b"new"
    # a new VM: the listing and its two documents
    setup.create("99999")
    assert setup.reads(setup.mirror.sync) == 3
    # a removed VM: its two documents, gone, and the listing
    setup.remove("00042")
    assert setup.reads(setup.mirror.sync) == 3
    assert setup.reads(setup.mirror.sync) == 0
    assert setup.reads(lambda: setup.mirror.get_many([f"{VMS}/{n:05}" for n in range(100, 9_999)])) == 0


def test_a_sync_reports_what_changed_and_the_version_grows_with_it(setup: Setup) -> None:
    setup.create("a", "b")
    setup.mirror.sync()
    before = setup.mirror.version
    assert setup.mirror.sync() == frozenset()
    assert setup.mirror.version == before
    setup.writer.commit(Put(f"{VMS}/a", b"a 1"), Put(f"{VMS}/b/status", b"on"))
    assert setup.mirror.stale
    assert setup.mirror.sync() == {f"{VMS}/a", f"{VMS}/b/status"}
    assert setup.mirror.version > before


def test_a_watch_wakes_once_for_a_document_however_often_it_changes(setup: Setup) -> None:
    setup.mirror.sync()
    setup.wakes = 0
    for number in range(5):
        setup.writer.commit(Put("/pvc/cluster", b"%d" % number))
    assert setup.wakes == 1
    setup.mirror.sync()
    setup.writer.commit(Put("/pvc/cluster", b"last"))
    assert setup.wakes == 2
    setup.mirror.sync()
    assert data(setup.mirror.get("/pvc/cluster")) == b"last"


def test_what_a_watch_calls_asks_nothing_of_the_store(setup: Setup) -> None:
    """14.3.4: it runs on a thread that all other watches need."""
    setup.create("a")
    setup.mirror.sync()
    assert setup.reads(lambda: setup.writer.commit(Put(f"{VMS}/a", b"new"))) == 0
    assert setup.reads(lambda: setup.create("b")) == 0
    assert setup.mirror.stale


def test_what_is_gone_is_dropped_and_reported(setup: Setup) -> None:
    setup.create("a", "b")
    setup.mirror.sync()
    setup.remove("a")
    assert setup.mirror.sync() == {VMS, f"{VMS}/a", f"{VMS}/a/status"}
    assert setup.mirror.children(VMS) == ("b",)
    assert setup.mirror.get(f"{VMS}/a") is None
    setup.wakes = 0
    setup.create("a")
    setup.mirror.sync()
    assert data(setup.mirror.get(f"{VMS}/a")) == b"a 0"


def test_a_document_that_does_not_exist_yet_is_seen_when_it_does(setup: Setup) -> None:
    mirror = Mirror(setup.store, [Follow("/pvc/later"), Follow("/pvc/list", True)], expand, setup.wake)
    assert mirror.sync() == frozenset()
    assert mirror.get("/pvc/later") is None
    setup.writer.commit(Create("/pvc/later", b"x"), Create("/pvc/list"))
    setup.writer.commit(Create("/pvc/list/one", b"1"))
    assert mirror.sync() >= {"/pvc/later", "/pvc/list", "/pvc/list/one"}
    assert mirror.children("/pvc/list") == ("one",)


def test_a_document_two_listings_lead_to_stays_until_both_dropped_it(setup: Setup) -> None:
    def to_document(path: str, names: tuple[str, ...]) -> Iterable[Follow]:
        return [Follow(f"/pvc/doc-{name}") for name in names]

    setup.writer.commit(*(Create(path) for path in ("/pvc/l1", "/pvc/l2", "/pvc/l1/x", "/pvc/l2/x")))
    setup.writer.commit(Create("/pvc/doc-x", b"x"))
    mirror = Mirror(setup.store, [Follow("/pvc/l1", True), Follow("/pvc/l2", True)], to_document, setup.wake)
    mirror.sync()
    setup.writer.commit(Delete("/pvc/l1/x"))
    assert mirror.sync() == {"/pvc/l1"}
    assert setup.reads(lambda: mirror.get("/pvc/doc-x")) == 0
    setup.writer.commit(Delete("/pvc/l2/x"))
    assert mirror.sync() == {"/pvc/l2", "/pvc/doc-x"}


def test_listings_may_lead_to_listings(setup: Setup) -> None:
    def below(path: str, names: tuple[str, ...]) -> Iterable[Follow]:
        return [Follow(f"{path}/{name}", children=path == "/pvc/tree") for name in names]

    setup.writer.commit(Create("/pvc/tree"), Create("/pvc/tree/a"), Create("/pvc/tree/a/leaf", b"x"))
    mirror = Mirror(setup.store, [Follow("/pvc/tree", True)], below, setup.wake)
    assert mirror.sync() == {"/pvc/tree", "/pvc/tree/a", "/pvc/tree/a/leaf"}
    setup.writer.commit(Delete("/pvc/tree/a/leaf"), Delete("/pvc/tree/a"))
    assert mirror.sync() == {"/pvc/tree", "/pvc/tree/a", "/pvc/tree/a/leaf"}
    assert mirror.children("/pvc/tree") == ()


def test_other_paths_are_asked_of_the_store(setup: Setup) -> None:
    setup.mirror.sync()
    setup.writer.commit(Create("/pvc/names"), Create("/pvc/names/web", b"uuid"))
    assert setup.reads(lambda: setup.mirror.get("/pvc/names/web")) == 1
    mixed = setup.mirror.get_many(["/pvc/names/web", "/pvc/cluster", "/pvc/absent"])
    assert [data(each) for each in mixed] == [b"uuid", b"c", None]
    assert setup.mirror.children("/pvc/names") == ("web",)


def test_refresh_shows_one_s_own_write_and_the_sync_still_reports_it(setup: Setup) -> None:
    setup.create("a", "b")
    setup.mirror.sync()
    setup.store.commit(Put(f"{VMS}/a", b"mine"))
    assert setup.reads(lambda: setup.mirror.refresh([f"{VMS}/a"])) == 1
    assert data(setup.mirror.get(f"{VMS}/a")) == b"mine"
    assert setup.mirror.sync() == {f"{VMS}/a"}


def test_refresh_finds_what_was_created_and_drops_what_was_deleted(setup: Setup) -> None:
    setup.mirror.sync()
    setup.create("new")
    setup.mirror.refresh([f"{VMS}/new", f"{VMS}/new/status"])
    assert setup.mirror.children(VMS) == ("new",)
    assert setup.reads(lambda: setup.mirror.get(f"{VMS}/new")) == 0
    assert data(setup.mirror.get(f"{VMS}/new")) == b"new 0"
    setup.remove("new")
    setup.mirror.refresh([f"{VMS}/new", f"{VMS}/new/status"])
    assert setup.mirror.children(VMS) == ()


def test_refresh_reads_nothing_else(setup: Setup) -> None:
    setup.create("a", "b")
    setup.mirror.sync()
    setup.writer.commit(Put(f"{VMS}/a", b"1"), Put(f"{VMS}/b", b"1"))
    setup.mirror.refresh([f"{VMS}/a"])
    assert data(setup.mirror.get(f"{VMS}/b")) == b"b 0"
    assert setup.mirror.stale
    assert setup.mirror.sync() == {f"{VMS}/a", f"{VMS}/b"}


@pytest.mark.parametrize("action", ["sync", "refresh"])
def test_a_failed_read_leaves_the_marks_and_the_old_content(setup: Setup, action: str) -> None:
    setup.create("a")
    setup.mirror.sync()
    setup.writer.commit(Put(f"{VMS}/a", b"1"))
    setup.cluster.drop_next_request(setup.store)
    with pytest.raises(Unavailable):
        setup.mirror.sync() if action == "sync" else setup.mirror.refresh([f"{VMS}/a"])
    assert setup.mirror.stale
    assert data(setup.mirror.get(f"{VMS}/a")) == b"a 0"
    assert setup.mirror.sync() == {f"{VMS}/a"}
    assert data(setup.mirror.get(f"{VMS}/a")) == b"1"


def test_a_change_during_the_read_is_not_lost() -> None:
    setup = Setup()
    setup.create("a")
    setup.mirror.sync()

    class Racing(MemoryStore):
        """Lets a write through after the answer was made and before the mirror sees it."""

        def read(
            self, paths: Sequence[str], listings: Sequence[str], watch: Watch | None = None
        ) -> tuple[tuple[Stored | None, ...], tuple[tuple[str, ...], ...]]:
            answer = super().read(paths, listings, watch)
            if setup.writer.get("/pvc/cluster") != Stored("/pvc/cluster", b"late", 1):
                setup.writer.commit(Put("/pvc/cluster", b"late"))
            return answer

    store = setup.cluster.connect()
    racing = Racing(setup.cluster, store.session)
    mirror = Mirror(racing, [Follow("/pvc/cluster")], expand, setup.wake)
    mirror.sync()
    assert data(mirror.get("/pvc/cluster")) == b"c"
    assert mirror.stale
    assert mirror.sync() == {"/pvc/cluster"}
    assert data(mirror.get("/pvc/cluster")) == b"late"


def test_a_new_session_reads_everything_again(setup: Setup) -> None:
    setup.create("a", "b")
    setup.mirror.sync()
    setup.cluster.expire(setup.store)
    assert setup.mirror.stale
    with pytest.raises(Unavailable):
        setup.mirror.sync()
    assert data(setup.mirror.get(f"{VMS}/a")) == b"a 0"
    setup.writer.commit(Put(f"{VMS}/a", b"1"))
    setup.create("c")
    setup.wakes = 0
    setup.cluster.resume(setup.store)
    assert setup.wakes
    assert setup.mirror.sync() == {f"{VMS}/a", VMS, f"{VMS}/c", f"{VMS}/c/status"}
    setup.writer.commit(Put(f"{VMS}/b", b"2"))
    assert setup.mirror.sync() == {f"{VMS}/b"}


def test_a_suspended_session_makes_it_stale_and_a_resumed_one_reads_again(setup: Setup) -> None:
    setup.mirror.sync()
    setup.cluster.suspend(setup.store)
    assert setup.mirror.stale
    setup.writer.commit(Put("/pvc/cluster", b"unseen"))
    setup.cluster.resume(setup.store)
    assert setup.store.session.state is SessionState.CONNECTED
    assert setup.mirror.sync() == {"/pvc/cluster"}


def test_readers_see_whole_answers_while_another_thread_syncs(setup: Setup) -> None:
    names = [f"{number:03}" for number in range(200)]
    setup.create(*names)
    setup.mirror.sync()
    paths = [f"{VMS}/{name}" for name in names]
    done = threading.Event()
    torn: list[set[bytes | None]] = []

    def read() -> None:
        while not done.is_set():
            seen = {data(each) for each in setup.mirror.get_many(paths)}
            if len({None if each is None else each.split()[-1] for each in seen}) != 1:
                torn.append(seen)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(1, 50):
            setup.writer.commit(*(Put(f"{VMS}/{n}", f"{n} {number}".encode()) for n in names))
            setup.mirror.sync()
    finally:
        done.set()
        reader.join()
    assert torn == []


@pytest.mark.parametrize("seed", range(30))
def test_after_any_history_it_equals_the_store(seed: int) -> None:
    """Random changes and faults, watches late or at once; then one sync shows exactly what is there."""
    chance = random.Random(seed)
    setup = Setup(MemoryCluster(queued=chance.random() < 0.5))
    names = [f"vm{number}" for number in range(8)]

    def write() -> None:
        name = chance.choice(names)
        kind = chance.randrange(3)
        try:
            if kind == 0:
                setup.create(name)
            elif kind == 1:
                setup.remove(name)
            else:
                setup.writer.commit(Put(f"{VMS}/{name}", b"%d" % chance.randrange(1000)))
        except (Conflict, NotFound):
            return

    def sync() -> None:
        try:
            setup.mirror.sync()
        except Unavailable:
            return

    def refresh() -> None:
        try:
            setup.mirror.refresh([f"{VMS}/{chance.choice(names)}"])
        except Unavailable:
            return

    faults: list[Callable[[], object]] = [
        lambda: setup.cluster.expire(setup.store),
        lambda: setup.cluster.suspend(setup.store),
        lambda: setup.cluster.resume(setup.store),
        lambda: setup.cluster.drop_next_request(setup.store),
    ]
    usual: list[Callable[[], object]] = [write, write, write, sync, refresh, setup.cluster.deliver]
    for _ in range(200):
        chance.choice(faults if chance.random() < 0.1 else usual)()

    setup.cluster.resume(setup.store)
    setup.store.request_lost = False
    setup.cluster.deliver()
    setup.mirror.sync()
    followed = [f"{VMS}/{name}{below}" for name in names for below in ("", "/status")]
    assert setup.mirror.children(VMS) == setup.writer.children(VMS)
    assert setup.mirror.get_many(followed) == setup.writer.get_many(followed)
    assert not setup.mirror.stale
    alive = [path for path in followed if setup.writer.get(path) is not None]
    assert setup.reads(lambda: setup.mirror.get_many(alive)) == 0
