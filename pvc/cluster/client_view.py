"""Typed reading of managed networks with all that is known of those in them: each again when it changed."""

from __future__ import annotations

from collections.abc import Iterable

from pvc.cluster import paths
from pvc.cluster.clients import AccessList, Clients, Lease, Member, Reservation
from pvc.cluster.codec import Unreadable
from pvc.cluster.mirror import Follow
from pvc.cluster.network import Kind
from pvc.cluster.store import Stored
from pvc.cluster.view import View


class ClientsView:
    """A document that is damaged freezes its own network and no other."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.networks: dict[int, Clients] = {}
        self.unreadable: dict[int, str] = {}
        self._changed: set[int] = set()

    def update(self, changed: Iterable[str]) -> None:
        """With the paths that a sync of the view's mirror has reported."""
        self._changed |= {*map(int, {_vni_in(path) for path in changed} - {""})}
        for vni in sorted(self._changed):
            self._update(vni)
            self._changed.discard(vni)  # not before: what fails is tried again

    def _update(self, vni: int) -> None:
        try:
            found = self._network(vni)
        except Unreadable as error:
            self.unreadable[vni] = error.message
            return
        self.unreadable.pop(vni, None)
        self.networks.pop(vni, None)
        if found is not None:
            self.networks[vni] = found

    def _network(self, vni: int) -> Clients | None:
        known = self.view.networks([vni]).get(vni)
        if known is None or known.spec.kind is not Kind.MANAGED:
            return None
        access = self.view.reader.get(paths.network_access(vni))
        members = self._below(paths.network_vms(vni))
        reservations = self._below(paths.network_reservations(vni))
        leases = self._below(paths.network_leases(vni))
        return Clients(
            known.spec,
            {name: self.view.decode(Member, one) if one.data else Member() for name, one in members},
            {name: self.view.decode(Reservation, one) for name, one in reservations},
            {name: self.view.decode(Lease, one) for name, one in leases},
            self.view.decode(AccessList, access) if access else AccessList(),
        )

    def _below(self, listing: str) -> list[tuple[str, Stored]]:
        reader = self.view.reader
        names = reader.children(listing)
        stored = reader.get_many([f"{listing}/{name}" for name in names])
        return [(name, one) for name, one in zip(names, stored, strict=True) if one is not None]


# What a mirror follows


def followed_networks() -> tuple[Follow, ...]:
    return (Follow(paths.NETWORKS, children=True),)


def expand_networks(listing: str, names: tuple[str, ...]) -> Iterable[Follow]:
    if listing != paths.NETWORKS:
        return [Follow(f"{listing}/{name}") for name in names]
    lists = (paths.network_vms, paths.network_reservations, paths.network_leases)
    single = (paths.network, paths.network_access)
    return [
        *(Follow(where(vni)) for vni in names for where in single),
        *(Follow(where(vni), children=True) for vni in names for where in lists),
    ]


def _vni_in(path: str) -> str:
    """Of which network a document or listing is; empty: of none."""
    if not path.startswith(f"{paths.NETWORKS}/"):
        return ""
    return path.removeprefix(f"{paths.NETWORKS}/").partition("/")[0]
