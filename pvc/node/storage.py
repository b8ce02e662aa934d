"""Pools as this node reaches them: whether it does, what is in them, and the tasks that change that."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from pvc.cluster import domainxml, paths
from pvc.cluster.ceph_pools import CephPlan
from pvc.cluster.codec import Unreadable, dumps, from_json, to_json
from pvc.cluster.mirror import Follow, Mirror
from pvc.cluster.storage import CephAccess, Driver, Format, PoolSpec, check_fill, volumes_of
from pvc.cluster.store import Create, Delete, Op, Put, SessionState, Store
from pvc.cluster.tasks import TaskSpec
from pvc.cluster.view import VM, View
from pvc.errors import Conflict, Invalid, NotFound, PVCError, Unavailable
from pvc.node.drivers import directory
from pvc.node.drivers.storage import Pool
from pvc.node.tasks import Progress, Work, still_its

if TYPE_CHECKING:
    from pvc.node.drivers.ceph import Ceph
    from pvc.node.drivers.ceph_pools import CephPools

log = logging.getLogger(__name__)

LOOK_S = 30.0
"""Between two looks whether pools are still here: mounts come and go."""
UNAVAILABLE_S = 1.0

Connect = Callable[[], "Ceph"]
Open = Callable[[PoolSpec], Pool]
LookAtCeph = Callable[[], tuple[CephAccess, str]]
KeepSecret = Callable[[str, str, bytes], None]
Result = Mapping[str, Any]


def connect() -> Ceph:
    """As the node's own configuration says. Raises Unavailable."""
    with _where_packaged():
        from pvc.node.drivers.ceph import Ceph
    return Ceph()


def open_pool(spec: PoolSpec, connect: Connect = connect) -> Pool:
    """Raises Unavailable."""
    if spec.driver is Driver.DIR:
        return directory.Directory(spec.path, spec.id)
    with _where_packaged():
        from pvc.node.drivers.rbd import RBDPool
    return RBDPool(spec.ceph_pool, connect(), spec.id)


@contextmanager
def _where_packaged() -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise Unavailable(
            "this node has no client of Ceph", hint="apt-get install python3-rados python3-rbd"
        ) from None


def look_at_ceph(connect: Connect = connect) -> tuple[CephAccess, str]:
    """How QEMU reaches it, and the key. Raises Unavailable, DriverError."""
    with _where_packaged():
        from pvc.node.drivers.ceph import vm_access
    return vm_access(connect())


class Place(Protocol):
    """Where a pool is or is to be."""

    def prepare(self, asked: Mapping[str, Any], progress: Progress) -> None:
        """Make it a pool."""
        ...

    def check_empty(self) -> None:
        """Of what is no volume. Raises Conflict."""
        ...

    def retire(self, *, keep: bool) -> None:
        """It is no pool any more; what is in it stays with `keep`. Done already where it is not this one."""
        ...


class DirectoryPlace:
    def __init__(self, spec: PoolSpec) -> None:
        self.spec = spec

    def prepare(self, asked: Mapping[str, Any], progress: Progress) -> None:
        directory.prepare(self.spec.path, self.spec.id)

    def check_empty(self) -> None:
        """What else is in a directory concerns nobody: it stays."""

    def retire(self, *, keep: bool) -> None:
        directory.retire(self.spec.path, self.spec.id)


class CephPlace:
    def __init__(self, spec: PoolSpec, pools: CephPools) -> None:
        self.name, self.identity = spec.ceph_pool, spec.id
        self.pools = pools

    def prepare(self, asked: Mapping[str, Any], progress: Progress) -> None:
        plan = from_json(CephPlan, asked["plan"])
        self.pools.prepare(self.name, self.identity, plan, progress, force=asked["force"])

    def check_empty(self) -> None:
        self.pools.check_empty(self.name)

    def retire(self, *, keep: bool) -> None:
        try:
            self.pools.retire(self.name, self.identity, keep=keep)
        except Unavailable as error:
            if not keep:
                raise
            log.warning("pool %s of Ceph stays as it is: %s", self.name, error.message)


class Pools:
    """`step` looks which pools this node reaches, and publishes those that it should reach and does not."""

    def __init__(
        self,
        node: str,
        store: Store,
        publish: Callable[[Mapping[str, str]], None],
        wake: Callable[[], None] = lambda: None,
        open_pool: Open | None = None,
        look_at_ceph: LookAtCeph | None = None,
        connect: Connect = connect,
        keep_secret: KeepSecret = lambda uuid, usage, value: None,
    ) -> None:
        self.node = node
        self.store = store
        self.publish = publish
        self.connect = connect
        self.open_pool = open_pool or self._open
        self.look_at_ceph = look_at_ceph or self._look_at_ceph
        self.keep_secret = keep_secret
        self.mirror = Mirror(store, (Follow(paths.POOLS, children=True),), _expand, wake)
        self.view = View(self.mirror)
        self.published: Mapping[str, str] | None = None
        self.blocked: Callable[[], str] = lambda: ""
        """Why Ceph takes no writes from this node."""
        self._ceph: CephAccess | None = None
        self._why_no_ceph = "this daemon has only just begun"

    def step(self) -> float:
        """Seconds until the next round is due."""
        if self.store.session.state is not SessionState.CONNECTED:
            return UNAVAILABLE_S
        self.mirror.sync()
        self._prepare_vms()
        problems = {name: why for name in self.mirror.children(paths.POOLS) if (why := self._problem(name))}
        if problems != self.published:
            for name, why in problems.items():
                log.warning("pool %s: %s", name, why)
            self.publish(problems)
            self.published = problems
        return LOOK_S

    def _problem(self, name: str) -> str:
        try:
            found = self.view.pools([name]).get(name)
            if found is not None and found.spec.node in ("", self.node):
                self.open_pool(found.spec).check()
                if found.spec.driver is Driver.RBD:
                    self.ceph()
                    return self.blocked()
        except PVCError as error:
            return error.message
        return ""

    def _open(self, spec: PoolSpec) -> Pool:
        return open_pool(spec, self.connect)

    def _look_at_ceph(self) -> tuple[CephAccess, str]:
        return look_at_ceph(self.connect)

    def place(self, spec: PoolSpec) -> Place:
        return DirectoryPlace(spec) if spec.driver is Driver.DIR else CephPlace(spec, self.ceph_pools())

    def ceph_pools(self) -> CephPools:
        with _where_packaged():
            from pvc.node.drivers.ceph_pools import CephPools
        return CephPools(self.connect())

    # Ceph, for VMs

    def ceph(self) -> CephAccess:
        """As it was when pools were looked at. Raises Unavailable."""
        if self._ceph is None:
            raise Unavailable(f"QEMU on {self.node} cannot reach Ceph: {self._why_no_ceph}")
        return self._ceph

    def _prepare_vms(self) -> None:
        """A look that fails leaves what was found before: VMs start also while monitors are away."""
        if not self._has_ceph():
            self._ceph, self._why_no_ceph = None, "no pool is in it"
            return
        try:
            found, key = self.look_at_ceph()
            self.keep_secret(found.secret, f"client.{found.user} {found.secret}", base64.b64decode(key))
            self._ceph = found
        except PVCError as error:
            self._why_no_ceph = error.message
            log.warning("QEMU and Ceph: %s", error.message)

    def _has_ceph(self) -> bool:
        for name in self.mirror.children(paths.POOLS):
            with suppress(Unreadable):
                found = self.view.pools([name]).get(name)
                if found is not None and found.spec.driver is Driver.RBD:
                    return True
        return False

    def open(self, name: str) -> Pool:
        """Raises NotFound, Conflict for one of another node, Unavailable."""
        spec = View(self.store).pool(name).spec
        if spec.node not in ("", self.node):
            raise Conflict(f"pool {name} is on {spec.node}, not on {self.node}")
        pool = self.open_pool(spec)
        pool.check()
        return pool

    # For other nodes that ask

    def tell(self, name: str, volume: str, *, brief: bool = False, whole: bool = False) -> dict[str, object]:
        """Of a pool, what is in it or (`brief`) how it is, or all (`whole`); or of one volume."""
        pool = self.open(name)
        if not volume:
            told: dict[str, object] = {"capacity": to_json(pool.capacity())}
            if brief or whole:
                told["ceph"] = to_json(pool.ceph_facts())
            if not brief:
                told["volumes"] = to_json(pool.volumes())
            if whole:
                told["traffic"] = to_json(pool.traffic())
            return told
        return {
            "volume": to_json(pool.volume(volume)),
            "location": pool.location(volume),
            "is_open": pool.is_open(volume),
            "users": to_json(pool.users(volume)),
            "snapshots": to_json(pool.snapshots(volume)),
        }


def _expand(listing: str, names: tuple[str, ...]) -> Iterable[Follow]:
    return (Follow(paths.pool(name)) for name in names)


# Tasks


def works(pools: Pools) -> dict[str, Work]:
    """By the operation that asks for them."""
    return {
        "storage.pool-add": PoolAdd(pools),
        "storage.pool-set-pgs": PoolSetPGs(pools),
        "storage.pool-remove": PoolRemove(pools),
        **{f"storage.volume-{kind}": VolumeWork(pools, do) for kind, do in VOLUME.items()},
    }


class PoolAdd:
    """Prepare what is to be the pool; then it exists."""

    def __init__(self, pools: Pools) -> None:
        self.pools = pools
        self.store = pools.store

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        spec = from_json(PoolSpec, task.arguments["pool"])
        self.pools.place(spec).prepare(task.arguments, progress)
        self.store.commit(still_its(task), *new_pool_ops(spec, View(self.store).vms().values()))
        return {"pool": spec.name}

    def undo(self, task: TaskSpec) -> None:
        _retire_unknown(self.pools, task, keep=False)


def new_pool_ops(spec: PoolSpec, vms: Iterable[VM]) -> tuple[Op, ...]:
    """With the index of whose disks its volumes are, for VMs that had them before it was a pool."""
    users: dict[str, str] = {}
    for vm in vms:
        with suppress(Invalid):
            found = volumes_of(domainxml.parse(vm.spec.definition).disks, [spec], ())
            users |= {volume.name: vm.spec.uuid for volume in found.values()}
    return (
        Create(paths.pool(spec.name), dumps(spec)),
        Create(paths.pool_claims(spec.name)),
        Create(paths.pool_vms(spec.name)),
        *(Create(paths.pool_vm(spec.name, name), uuid.encode()) for name, uuid in sorted(users.items())),
    )


class PoolRemove:
    """Nothing begins in it any more, as the operation has seen to; when nothing is in it either, it goes."""

    def __init__(self, pools: Pools) -> None:
        self.pools = pools
        self.store = pools.store

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        spec, force = from_json(PoolSpec, task.arguments["pool"]), task.arguments["force"]
        busy = self.store.children(paths.pool_claims(spec.name))
        used = self.store.children(paths.pool_vms(spec.name))
        if not force:
            self._check_empty(spec, busy)
        found = View(self.store).pool(spec.name)
        self.store.commit(
            still_its(task),
            *(Delete(paths.pool_claim(spec.name, volume)) for volume in busy),
            Delete(paths.pool_claims(spec.name)),
            *(Delete(paths.pool_vm(spec.name, volume)) for volume in used),
            Delete(paths.pool_vms(spec.name)),
            Delete(paths.pool(spec.name), found.spec_version),
        )
        self.pools.place(spec).retire(keep=force)
        return {"pool": spec.name}

    def _check_empty(self, spec: PoolSpec, busy: tuple[str, ...]) -> None:
        """Raises Conflict."""
        if busy:
            raise Conflict(f"volume {busy[0]} of pool {spec.name} is being changed", hint="pvc task list")
        if volumes := self.pools.open(spec.name).volumes():
            raise Conflict(
                f"pool {spec.name} has {len(volumes)} volumes: {', '.join(one.name for one in volumes[:10])}",
                hint="remove them first, or --force to leave them where they are",
            )
        self.pools.place(spec).check_empty()

    def undo(self, task: TaskSpec) -> None:
        """It stays, unless it has gone already."""
        spec = from_json(PoolSpec, task.arguments["pool"])
        found = View(self.store).pools([spec.name]).get(spec.name)
        if found is not None and found.spec.id == spec.id:
            stays = replace(found.spec, leaving=False)
            self.store.commit(Put(paths.pool(spec.name), dumps(stays), found.spec_version))
        _retire_unknown(self.pools, task, keep=task.arguments["force"])


def _retire_unknown(pools: Pools, task: TaskSpec, *, keep: bool) -> None:
    """A place of which the store knows no pool is none."""
    spec = from_json(PoolSpec, task.arguments["pool"])
    found = View(pools.store).pools([spec.name]).get(spec.name)
    if found is None or found.spec.id != spec.id:
        pools.place(spec).retire(keep=keep)


class PoolSetPGs:
    """How many placement groups a pool of Ceph is to have, which it then sees to by itself."""

    def __init__(self, pools: Pools) -> None:
        self.pools = pools

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        spec = View(self.pools.store).pool(task.arguments["pool"]).spec
        ceph = self.pools.ceph_pools()
        ceph.set_pgs(spec.ceph_pool, spec.id, task.arguments["pgs"])
        return {"pool": spec.name, "ceph": to_json(ceph.facts(spec.ceph_pool, spec.id))}

    def undo(self, task: TaskSpec) -> None:
        """What Ceph has taken counts; one number never goes without the other."""
        found = View(self.pools.store).pools([task.arguments["pool"]]).get(task.arguments["pool"])
        if found is not None:
            self.pools.ceph_pools().settle_pgs(found.spec.ceph_pool, found.spec.id)


Do = Callable[[Pool, TaskSpec, Progress], None]


class VolumeWork:
    """Something that is done to a volume of a pool."""

    def __init__(self, pools: Pools, do: Do) -> None:
        self.pools = pools
        self._do = do

    def do(self, task: TaskSpec, progress: Progress) -> Result:
        pool = self.pools.open(task.arguments["pool"])
        self._do(pool, task, progress)
        name = task.arguments.get("new_volume", task.arguments["volume"])
        try:
            return {"pool": task.arguments["pool"], "volume": to_json(pool.volume(name))}
        except NotFound:  # it was removed
            return {"pool": task.arguments["pool"]}

    def undo(self, task: TaskSpec) -> None:
        self.pools.open(task.arguments["pool"]).discard(task.id, task.arguments["volume"])


def _guard(pool: Pool, task: TaskSpec, new_bytes: int) -> None:
    guard(task.arguments["pool"], pool, new_bytes, force=bool(task.arguments.get("force")))


def guard(name: str, pool: Pool, new_bytes: int, *, force: bool) -> None:
    """Raises Conflict where the pool would get too full."""
    if force:
        return
    there = pool.capacity()
    check_fill(
        name,
        total_bytes=there.total_bytes,
        used_bytes=there.used_bytes,
        new_bytes=new_bytes,
    )


def guard_clones(name: str, pool: Pool, volumes: Iterable[str], *, force: bool) -> None:
    """Raises Conflict where the pool would get too full of what those had for their clones."""
    try:
        guard(name, pool, sum(_clones_bytes(pool, one) for one in volumes), force=force)
    except Conflict as error:
        raise Conflict(
            f"clones of it get blocks of their own before: {error.message}",
            hint="remove clones that nobody needs, or --force",
        ) from None


def _clones_bytes(pool: Pool, volume: str) -> int:
    with suppress(NotFound):  # or nothing but its name is left
        return pool.clones_bytes(volume)
    return 0


def _add(pool: Pool, task: TaskSpec, progress: Progress) -> None:
    asked = task.arguments
    _guard(pool, task, asked["size_bytes"])
    pool.add(asked["volume"], asked["size_bytes"], Format(asked["format"]), task.id)


def _remove(pool: Pool, task: TaskSpec, progress: Progress) -> None:
    asked = task.arguments
    guard_clones(asked["pool"], pool, [asked["volume"]], force=bool(asked.get("force")))
    told = f"giving clones of {asked['volume']} blocks of their own"
    pool.remove(asked["volume"], task.id, lambda fraction: progress(fraction, told))


def _rename(pool: Pool, task: TaskSpec, progress: Progress) -> None:
    pool.rename(task.arguments["volume"], task.arguments["new_volume"])


def _clone(pool: Pool, task: TaskSpec, progress: Progress) -> None:
    asked = task.arguments
    _guard(pool, task, pool.volume(asked["volume"]).size_bytes)
    told = f"copying {asked['volume']}"
    flatten = asked.get("flatten", False)
    pool.clone(
        asked["volume"],
        asked["new_volume"],
        task.id,
        lambda fraction: progress(fraction, told),
        flatten=flatten,
    )


def _add_snapshot(pool: Pool, task: TaskSpec, progress: Progress) -> None:
    pool.add_snapshot(task.arguments["volume"], task.arguments["snapshot"])


def _remove_snapshot(pool: Pool, task: TaskSpec, progress: Progress) -> None:
    pool.remove_snapshot(task.arguments["volume"], task.arguments["snapshot"])


def _rename_snapshot(pool: Pool, task: TaskSpec, progress: Progress) -> None:
    asked = task.arguments
    pool.rename_snapshot(asked["volume"], asked["snapshot"], asked["new"])


def _roll_back(pool: Pool, task: TaskSpec, progress: Progress) -> None:
    pool.roll_back(task.arguments["volume"], task.arguments["snapshot"])


def _protect(pool: Pool, task: TaskSpec, progress: Progress) -> None:
    asked = task.arguments
    pool.protect(asked["volume"], asked["snapshot"], on=asked["on"])


VOLUME: dict[str, Do] = {
    "add": _add,
    "remove": _remove,
    "rename": _rename,
    "clone": _clone,
    "snapshot-add": _add_snapshot,
    "snapshot-remove": _remove_snapshot,
    "snapshot-rename": _rename_snapshot,
    "snapshot-rollback": _roll_back,
    "snapshot-protect": _protect,
}
