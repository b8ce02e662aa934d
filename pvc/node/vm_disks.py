"""Tasks that make, remove and rename disks together with their VM: all of it happens, or nothing.

Whose a volume is stands in the store before it is made, so that whoever has to undo a half-done task knows
what to take away. What is removed is first set aside, and goes after the VM: until then it can come back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pvc.cluster import domainxml, paths, records
from pvc.cluster.codec import dumps, from_json
from pvc.cluster.domainxml import NewDisk
from pvc.cluster.records import with_definition
from pvc.cluster.snapshots import VMSnapshot
from pvc.cluster.storage import Driver, Format, PoolSpec, Volume, default_format, location
from pvc.cluster.store import Check, Create, Delete, Op, Put, Store
from pvc.cluster.tasks import TaskSpec
from pvc.cluster.view import VM, View
from pvc.cluster.vm import Change, Power, VMSpec
from pvc.errors import Conflict, NotFound
from pvc.node.drivers.hypervisor import Hypervisor
from pvc.node.drivers.storage import Pool
from pvc.node.storage import Pools, guard, guard_clones
from pvc.node.tasks import Progress, Work, still_its

TRIES = 16
"""To commit, while the node writes of its VM at the same time."""


def works(pools: Pools, hypervisor: Hypervisor) -> dict[str, Work]:
    """By the operation that asks for them."""
    return {
        "vm.create": MakeVM(pools),
        "vm.volume-add": Add(pools),
        "vm.remove": Remove(pools),
        "vm.rename": Rename(pools),
        "storage.volume-resize": Resize(pools, hypervisor),
    }


@dataclass(frozen=True, slots=True)
class Wanted:
    """A disk for a VM: a path, a volume that is there, or one that is to be made."""

    path: str = ""
    pool: str = ""
    volume: str = ""
    size_bytes: int = 0
    """0: the volume is there."""
    target: str = ""
    """Empty: the next one that is free."""
    bus: str = "virtio"


class _Disks:
    """What tasks with disks of VMs have in common."""

    def __init__(self, pools: Pools) -> None:
        self.pools = pools
        self.store: Store = pools.store

    def vm(self, uuid: str) -> VM | None:
        return View(self.store).vms([uuid]).get(uuid)

    def existing(self, uuid: str) -> VM:
        found = self.vm(uuid)
        if found is None:
            raise NotFound(f"no VM {uuid}")
        return found

    def spec_of(self, pool: str) -> PoolSpec:
        return View(self.store).pool(pool).spec

    # Making

    def check_new(self, task: TaskSpec, wanted: Iterable[Wanted]) -> None:
        """Raises Conflict, NotFound, before anything is made."""
        new = [one for one in wanted if one.pool and one.size_bytes]
        for name in sorted({one.pool for one in new}):
            total = sum(one.size_bytes for one in new if one.pool == name)
            guard(name, self.pools.open(name), total, force=bool(task.arguments.get("force")))
        for one in new:
            with suppress(NotFound):
                self.pools.open(one.pool).volume(one.volume)
                raise Conflict(
                    f"there is a volume {one.volume} in pool {one.pool} already",
                    hint=f"--disk {one.pool}/{one.volume} takes it as it is",
                )

    def make(self, task: TaskSpec, uuid: str, wanted: tuple[Wanted, ...], progress: Progress) -> None:
        self.check_new(task, wanted)
        new = [one for one in wanted if one.pool and one.size_bytes]
        if new:
            self.store.commit(*(Create(paths.pool_vm(one.pool, one.volume), uuid.encode()) for one in new))
        for number, one in enumerate(new):
            progress(number / len(new), f"making volume {one.volume}")
            pool, format = self.pools.open(one.pool), default_format(self.spec_of(one.pool))
            pool.add(one.volume, one.size_bytes, format, _token(task, number))

    def take_away(self, task: TaskSpec, uuid: str, wanted: tuple[Wanted, ...]) -> None:
        """What was made for a VM that does not have it."""
        new = [one for one in wanted if one.pool and one.size_bytes]
        records.touch(self.store, paths.vm(uuid), *(paths.pool_vm(one.pool, one.volume) for one in new))
        vm = self.vm(uuid)
        has = {*records.volumes(View(self.store), vm.spec).values()} if vm is not None else set()
        for number, one in enumerate(new):
            index = self.store.get(paths.pool_vm(one.pool, one.volume))
            if index is None or index.data.decode() != uuid or Volume(one.pool, one.volume) in has:
                continue
            pool = self.pools.open(one.pool)
            pool.discard(_token(task, number))
            with suppress(NotFound):
                pool.remove(one.volume, _token(task, number))
            self.store.commit(Delete(index.path, index.version))

    def with_disks(self, spec: VMSpec, wanted: Iterable[Wanted], taken: Iterable[str] = ()) -> VMSpec:
        xml = spec.definition
        for one in wanted:
            target = one.target or domainxml.free_target(xml, one.bus, taken)
            xml = domainxml.add_disk(xml, self.new_disk(one), target)
        return with_definition(spec, xml)

    def new_disk(self, wanted: Wanted) -> NewDisk:
        if not wanted.pool:
            return NewDisk(wanted.path, format_of(wanted.path), bus=wanted.bus)
        spec = self.spec_of(wanted.pool)
        format = default_format(spec)
        if not wanted.size_bytes:
            pool = self.pools.open(wanted.pool)
            format = pool.volume(wanted.volume).format
            if pool.is_open(wanted.volume):
                raise Conflict(
                    f"volume {wanted.volume} of pool {wanted.pool} is in use: somebody has it open"
                )
        is_rbd = spec.driver is Driver.RBD
        return NewDisk(location(spec, wanted.volume, format), str(format), is_rbd, wanted.bus)

    def change(self, uuid: str, task: TaskSpec, edit: Callable[[VM], VMSpec], *more: Op) -> VM:
        """Commit what is made of its spec as it is then; the VM before that. Raises Conflict, NotFound."""
        for tried in range(1, TRIES + 1):
            vm = self.existing(uuid)
            ops = records.change(View(self.store), vm, edit(vm), task.id)
            try:
                self.store.commit(still_its(task), *ops, *_same_status(vm), *more)
            except Conflict:
                if tried == TRIES:
                    raise
            else:
                return vm
        raise AssertionError("unreachable")


class MakeVM(_Disks):
    """A VM with its disks."""

    def do(self, task: TaskSpec, progress: Progress) -> Mapping[str, Any]:
        spec, wanted = from_json(VMSpec, task.arguments["spec"]), wanted_of(task)
        self.make(task, spec.uuid, wanted, progress)
        spec = self.with_disks(spec, wanted)
        if self.store.get(paths.vm_name(spec.name)) is not None:
            raise Conflict(f"there is a VM named {spec.name} already", hint=f"pvc vm info {spec.name}")
        ops = records.creation(View(self.store), spec, task.id)
        if data := task.arguments.get("user_data"):
            ops += (Create(paths.vm_user_data(spec.uuid), data.encode()),)
        self.store.commit(still_its(task), *ops)
        return {"vm": spec.name, "uuid": spec.uuid}

    def undo(self, task: TaskSpec) -> None:
        self.take_away(task, task.arguments["spec"]["uuid"], wanted_of(task))


class Add(_Disks):
    """One more disk for a VM, at once where it runs."""

    def do(self, task: TaskSpec, progress: Progress) -> Mapping[str, Any]:
        uuid, wanted = task.arguments["vm"], wanted_of(task)
        self.make(task, uuid, wanted, progress)
        added: list[Change] = []

        def edit(vm: VM) -> VMSpec:
            new = self.with_disks(vm.spec, wanted, [one.target for one in vm.status.drives])
            before = {one.device for one in domainxml.shape(vm.spec.definition).drives}
            drives = domainxml.shape(new.definition).drives
            added[:] = [Change(one.device, one.digest) for one in drives if one.device not in before]
            is_up = vm.status.owner is not None and vm.spec.power is Power.STARTED
            return replace(new, live=(*new.live, *added)) if is_up and task.arguments["live"] else new

        self.change(uuid, task, edit)
        return {"device": added[0].device.partition("=")[0]}

    def undo(self, task: TaskSpec) -> None:
        self.take_away(task, task.arguments["vm"], wanted_of(task))


class Remove(_Disks):
    """A VM with its disks, and their snapshots."""

    def do(self, task: TaskSpec, progress: Progress) -> Mapping[str, Any]:
        uuid = task.arguments["vm"]
        volumes = _volumes(task)
        for volume in volumes:
            with suppress(NotFound):  # somebody has taken it away already
                _check_removable(volume, self.pools.open(volume.pool))
        for pool in sorted({one.pool for one in volumes}):
            names = [one.name for one in volumes if one.pool == pool]
            guard_clones(pool, self.pools.open(pool), names, force=bool(task.arguments.get("force")))
        for number, volume in enumerate(volumes):
            with suppress(NotFound):
                self._set_aside(task, number, volume, progress)
        for tried in range(1, TRIES + 1):
            vm = self.existing(uuid)
            if vm.status.owner is not None:
                raise Conflict(f"{vm.spec.name} runs on {vm.status.owner.node}")
            try:
                self.store.commit(still_its(task), *records.removal(View(self.store), vm))
                break
            except Conflict:
                if tried == TRIES:
                    raise
        self._discard(task)
        return {"vm": vm.spec.name}

    def _set_aside(self, task: TaskSpec, number: int, volume: Volume, progress: Progress) -> None:
        whole = len(_volumes(task))

        def told(fraction: float) -> None:
            progress((number + fraction) / whole, f"setting {volume.name} aside")

        told(0)
        self.pools.open(volume.pool).set_aside(volume.name, _aside(task, number), told)

    def _discard(self, task: TaskSpec) -> None:
        for number, volume in enumerate(_volumes(task)):
            with suppress(NotFound):
                self.pools.open(volume.pool).discard(_aside(task, number))

    def undo(self, task: TaskSpec) -> None:
        records.touch(self.store, paths.vm(task.arguments["vm"]))
        if self.vm(task.arguments["vm"]) is None:
            self._discard(task)
            return
        for number, volume in enumerate(_volumes(task)):
            self.pools.open(volume.pool).put_back(volume.name, _aside(task, number))
        self.change(task.arguments["vm"], task, lambda vm: replace(vm.spec, leaving=False))


class Rename(_Disks):
    """A VM, and the volumes that are named after it."""

    def do(self, task: TaskSpec, progress: Progress) -> Mapping[str, Any]:
        uuid, new = task.arguments["vm"], task.arguments["new"]
        for pool, name, to in task.arguments["volumes"]:
            progress.check()
            self.pools.open(pool).rename(name, to)
        kept = self._snapshots(task, self.existing(uuid))
        self.change(uuid, task, lambda vm: with_definition(vm.spec, self._renamed(task, vm, new)), *kept)
        return {"vm": new}

    def _snapshots(self, task: TaskSpec, vm: VM) -> list[Op]:
        """They name volumes, too. The task has the VM to itself: they stay as they are read."""
        to = {(pool, name): new for pool, name, new in task.arguments["volumes"]}
        sources = self._sources(task)
        stored = self.store.get_many([paths.vm_snapshot(vm.spec.uuid, one) for one in vm.spec.snapshots])
        ops: list[Op] = []
        for one in (found for found in stored if found is not None):
            kept = View(self.store).decode(VMSnapshot, one)
            disks = tuple(
                replace(disk, volume=to.get((disk.pool, disk.volume), disk.volume)) for disk in kept.disks
            )
            xml = domainxml.rename_disks(kept.definition, sources)
            ops.append(Put(one.path, dumps(replace(kept, disks=disks, definition=xml)), one.version))
        return ops

    def _renamed(self, task: TaskSpec, vm: VM, new: str) -> str:
        if vm.status.owner is not None:
            raise Conflict(f"{vm.spec.name} runs on {vm.status.owner.node}")
        return domainxml.set_name(domainxml.rename_disks(vm.spec.definition, self._sources(task)), new)

    def _sources(self, task: TaskSpec) -> dict[str, str]:
        sources: dict[str, str] = {}
        for pool, name, to in task.arguments["volumes"]:
            spec = self.spec_of(pool)
            sources |= {location(spec, name, one): location(spec, to, one) for one in Format}
        return sources

    def undo(self, task: TaskSpec) -> None:
        """Unless the VM has its new name. A volume's is of our making only where its old one is free."""
        records.touch(self.store, paths.vm(task.arguments["vm"]))
        vm = self.vm(task.arguments["vm"])
        if vm is None or vm.spec.name == task.arguments["new"]:
            return
        for pool_name, name, to in task.arguments["volumes"]:
            pool = self.pools.open(pool_name)
            if not _has(pool, name) and _has(pool, to):
                pool.rename(to, name)


class Resize(_Disks):
    """A volume; of a VM that runs, by its QEMU, so that the guest sees it."""

    def __init__(self, pools: Pools, hypervisor: Hypervisor) -> None:
        super().__init__(pools)
        self.hypervisor = hypervisor

    def do(self, task: TaskSpec, progress: Progress) -> Mapping[str, Any]:
        asked = task.arguments
        name, volume, size = asked["pool"], asked["volume"], int(asked["size_bytes"])
        pool = self.pools.open(name)
        more = size - pool.volume(volume).size_bytes
        guard(name, pool, more, force=asked["force"])
        vm = self.existing(asked["vm"]) if asked.get("vm") else None
        target = self._target(vm, Volume(name, volume)) if vm is not None else ""
        if vm is None or not target:
            pool.resize(volume, size, shrink=asked["shrink"])
        else:
            self._while_it_runs(vm, target, volume, size, more)
        found = pool.volume(volume).size_bytes
        if found != size:
            raise Conflict(f"volume {volume} of pool {name} has {found} bytes, {size} were asked for")
        return {"pool": name, "volume": {"name": volume, "size_bytes": found}}

    def _target(self, vm: VM, volume: Volume) -> str:
        """What QEMU calls it; empty where it does not have it."""
        targets = [at for at, one in records.volumes(View(self.store), vm.spec).items() if one == volume]
        has = {one.target for one in vm.status.drives} if vm.status.owner is not None else set()
        return next((target for target in targets if target in has), "")

    def _while_it_runs(self, vm: VM, target: str, volume: str, size_bytes: int, more: int) -> None:
        name, owner = vm.spec.name, vm.status.owner
        if owner is not None and owner.node != self.pools.node:
            raise Conflict(f"{name} runs on {owner.node} now", hint="try again")
        if more < 0:
            raise Conflict(
                f"volume {volume} is a disk of {name}, which runs: it cannot be made smaller",
                hint=f"pvc vm shutdown {name}",
            )
        self.hypervisor.resize_disk(vm.spec.uuid, target, size_bytes)

    def undo(self, task: TaskSpec) -> None:
        """It happens at once, or not at all."""


def format_of(path: str) -> str:
    return "qcow2" if path.endswith(".qcow2") else "raw"


def wanted_of(task: TaskSpec) -> tuple[Wanted, ...]:
    return tuple(Wanted(**one) for one in task.arguments["disks"])


def _volumes(task: TaskSpec) -> list[Volume]:
    return [Volume(pool, name) for pool, name in task.arguments["volumes"]]


def _token(task: TaskSpec, number: int) -> str:
    return f"{task.id}-{number}"


def _aside(task: TaskSpec, number: int) -> str:
    """Of the VM, so that another task can end what one could neither end nor undo."""
    return f"{task.arguments['vm']}-{number}"


def _same_status(vm: VM) -> tuple[Op, ...]:
    if vm.status_version is None:
        return ()
    return (Check(paths.vm_status(vm.spec.uuid), vm.status_version),)


def _has(pool: Pool, volume: str) -> bool:
    try:
        pool.volume(volume)
    except NotFound:
        return False
    return True


def _check_removable(volume: Volume, pool: Pool) -> None:
    """Raises Conflict, NotFound."""
    for snapshot in pool.snapshots(volume.name):
        if snapshot.is_protected:
            raise Conflict(
                f"snapshot {snapshot.name} of volume {volume} is protected",
                hint=f"pvc storage volume snapshot protect {volume.pool} {volume.name} {snapshot.name} --off",
            )
    if pool.is_open(volume.name):
        raise Conflict(f"volume {volume} is in use: somebody has it open")
