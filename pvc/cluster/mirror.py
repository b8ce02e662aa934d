"""An in-memory copy of the documents that concern one process, kept up to date by watches.

It has no thread: watches mark paths dirty and wake the owner's loop, which calls sync(). A watch covers one
path once, so a sync reads again what changed and nothing else, however much is followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from threading import Lock

from pvc.cluster.store import Session, SessionState, Store, Stored


@dataclass(frozen=True, slots=True)
class Follow:
    """Keep this document, or (children) the names of the documents below it."""

    path: str
    children: bool = False


Expand = Callable[[str, tuple[str, ...]], Iterable[Follow]]
"""What else to follow for names in a listing. Called once for each name that is new, with that one name."""


class Mirror:
    """A Reader. What it follows comes from memory; any other path is asked of the store.

    One thread at a time syncs, others wait; reading what is followed never waits for the store.
    """

    def __init__(
        self, store: Store, roots: Sequence[Follow], expand: Expand, wake: Callable[[], None]
    ) -> None:
        self._store = store
        self._expand = expand
        self._wake = wake
        self._syncing = Lock()
        self._lock = Lock()  # over all below; never held while the store, expand or wake is called
        self._documents: dict[str, Stored | None] = {}
        self._listings: dict[str, tuple[str, ...]] = {}
        self._leads: dict[str, dict[str, tuple[Follow, ...]]] = {}  # by listing, by name in it
        self._followed: dict[Follow, int] = dict.fromkeys(roots, 1)  # how many roots and names lead there
        self._dirty = set(self._followed)
        self._unreported: set[str] = set()
        self._version = 0
        store.on_session(self._session_changed)

    # -- reading

    @property
    def version(self) -> int:
        """Grows with each change that a reader can see."""
        return self._version

    @property
    def stale(self) -> bool:
        """Something is known to have changed, or nobody would say if it did."""
        return bool(self._dirty) or self._store.session.state is not SessionState.CONNECTED

    def get(self, path: str) -> Stored | None:
        return self.get_many((path,))[0]

    def get_many(self, paths: Sequence[str]) -> tuple[Stored | None, ...]:
        with self._lock:
            try:
                return tuple([self._documents[path] for path in paths])
            except KeyError:
                known = {path: self._documents[path] for path in paths if path in self._documents}
        unknown = [path for path in paths if path not in known]
        if unknown:
            known.update(zip(unknown, self._store.get_many(unknown), strict=True))
        return tuple(known[path] for path in paths)

    def children(self, path: str) -> tuple[str, ...]:
        with self._lock:
            names = self._listings.get(path)
        return self._store.children(path) if names is None else names

    # -- keeping up

    def sync(self) -> frozenset[str]:
        """Read what is dirty; the paths whose content changed since the last sync, as dropped ones did.

        Raises Unavailable, and then what was not read stays dirty and what was is reported by the next sync.
        """
        with self._syncing:
            with self._lock:
                batch = frozenset(self._dirty)
            self._load(batch)
            with self._lock:
                changed, self._unreported = frozenset(self._unreported), set()
            return changed

    def refresh(self, paths: Iterable[str]) -> None:
        """Read these now, to see one's own commit; the next sync still reports what changed.

        A path that is not followed yet, or is gone, is looked for in the listing it belongs to.
        """
        paths = frozenset(paths)
        with self._syncing:
            with self._lock:
                batch = self._concerned(paths)
            self._load(batch)
            with self._lock:
                moved = self._followed_of(
                    Follow(_parent(path), children=True)
                    for path in paths
                    if Follow(path) not in self._followed or self._documents.get(path) is None
                )
            self._load(moved - batch)

    def reset(self) -> None:
        """Every watch is gone: read everything again."""
        with self._lock:
            self._dirty.update(self._followed)
        self._wake()

    def _session_changed(self, session: Session) -> None:
        if session.state is SessionState.CONNECTED:
            self.reset()

    def _fired(self, path: str) -> None:
        with self._lock:
            news = self._concerned((path,)) - self._dirty
            self._dirty |= news
        if news:
            self._wake()

    def _concerned(self, paths: Iterable[str]) -> frozenset[Follow]:
        return self._followed_of(Follow(path, children) for path in paths for children in (False, True))

    def _followed_of(self, candidates: Iterable[Follow]) -> frozenset[Follow]:
        return frozenset(each for each in candidates if each in self._followed)

    def _load(self, batch: Set[Follow]) -> None:
        """Read these, and then what the names that are new in their listings lead to."""
        while batch:
            # Clean before the read: a watch that fires from now on means that the answer may be old.
            with self._lock:
                self._dirty -= batch
            paths = sorted(each.path for each in batch if not each.children)
            listings = sorted(each.path for each in batch if each.children)
            loaded = False
            try:
                documents, names = self._store.read(paths, listings, self._fired)
                loaded = True
            finally:
                if not loaded:
                    with self._lock:
                        self._dirty |= self._followed_of(batch)
            batch = self._take(
                dict(zip(paths, documents, strict=True)), dict(zip(listings, names, strict=True))
            )

    def _take(
        self, documents: dict[str, Stored | None], listings: dict[str, tuple[str, ...]]
    ) -> frozenset[Follow]:
        """Make the answers visible all at once; what has to be read besides."""
        leads = {path: self._new_leads(path, names) for path, names in listings.items()}
        with self._lock:
            changed: set[str] = set()
            found: set[Follow] = set()
            for path, names in listings.items():
                if Follow(path, children=True) in self._followed:
                    self._take_listing(path, names, leads[path], changed, found)
            for path, document in documents.items():
                if Follow(path) in self._followed:
                    if self._documents.get(path) != document:
                        changed.add(path)
                    self._documents[path] = document
            if changed:
                self._version += 1
                self._unreported |= changed
            new = self._followed_of(found)
            self._dirty |= new
            return new

    def _new_leads(self, path: str, names: tuple[str, ...]) -> dict[str, tuple[Follow, ...]]:
        known = self._leads.get(path, {})
        return {name: tuple(self._expand(path, (name,))) for name in names if name not in known}

    def _take_listing(
        self,
        path: str,
        names: tuple[str, ...],
        leads: dict[str, tuple[Follow, ...]],
        changed: set[str],
        found: set[Follow],
    ) -> None:
        if self._listings.get(path, ()) != names:
            changed.add(path)
        self._listings[path] = names
        known = self._leads.setdefault(path, {})
        for name, follows in leads.items():
            known[name] = follows
            for follow in follows:
                if follow not in self._followed:
                    found.add(follow)
                self._followed[follow] = self._followed.get(follow, 0) + 1
        for name in known.keys() - set(names):
            self._release(known.pop(name), changed)

    def _release(self, follows: Iterable[Follow], changed: set[str]) -> None:
        for follow in follows:
            self._followed[follow] -= 1
            if self._followed[follow]:
                continue
            del self._followed[follow]
            self._dirty.discard(follow)
            if follow.children:
                if self._listings.pop(follow.path, ()):
                    changed.add(follow.path)
                for below in self._leads.pop(follow.path, {}).values():
                    self._release(below, changed)
            elif self._documents.pop(follow.path, None) is not None:
                changed.add(follow.path)


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"
