"""What a transaction consists of that makes, changes or removes a VM: its documents, and what names it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from pvc.cluster import paths
from pvc.cluster.clients import Member, use_ops
from pvc.cluster.codec import dumps
from pvc.cluster.snapshots import forget_ops
from pvc.cluster.storage import Volume, volumes_of
from pvc.cluster.store import Check, Create, Delete, Op, Put
from pvc.cluster.vm import VMSpec, VMStatus, index_nodes, index_ops, vnis_of
from pvc.errors import Conflict, Invalid, NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pvc.cluster.store import Store
    from pvc.cluster.view import VM, Pool, View


def with_definition(spec: VMSpec, xml: str) -> VMSpec:
    """The spec with another definition, and what lists need of it.

    Of the changes that were not to wait for a start, those stay that it still has.
    """
    from pvc.cluster import domainxml

    facts = domainxml.parse(xml)
    digests = {one.device: one.digest for one in domainxml.shape(xml).devices} if spec.live else {}
    return replace(
        spec,
        definition=xml,
        name=facts.name,
        memory_mib=facts.memory_mib,
        vcpus=facts.vcpus,
        networks=tuple(nic.network for nic in facts.nics),
        live=tuple(one for one in spec.live if digests.get(one.device, "") == one.digest),
    )


def creation(view: View, spec: VMSpec, task: str = "") -> tuple[Op, ...]:
    """Of a new VM. `task`: the one that has claimed its volumes. Raises Conflict, NotFound."""
    return (
        Create(paths.vm(spec.uuid), dumps(spec)),
        Create(paths.vm_status(spec.uuid), dumps(VMStatus())),
        Create(paths.vm_name(spec.name), spec.uuid.encode()),
        *index_ops(spec.uuid, frozenset(), index_nodes(spec, None)),
        *network_ops(view, spec.uuid, None, spec),
        *volume_ops(view, spec.uuid, None, spec, task),
    )


def change(view: View, vm: VM, new: VMSpec, task: str = "") -> tuple[Op, ...]:
    """Of its spec, and of its name. Raises Conflict, NotFound."""
    before, after = (index_nodes(spec, vm.status.owner) for spec in (vm.spec, new))
    renamed: tuple[Op, ...] = ()
    if new.name != vm.spec.name:
        renamed = Delete(paths.vm_name(vm.spec.name)), Create(paths.vm_name(new.name), new.uuid.encode())
    return (
        Put(paths.vm(new.uuid), dumps(new), vm.spec_version),
        *renamed,
        *index_ops(new.uuid, before, after),
        *network_ops(view, new.uuid, vm.spec, new),
        *volume_ops(view, new.uuid, vm.spec, new, task),
    )


def removal(view: View, vm: VM) -> tuple[Op, ...]:
    """Of all that there is of it."""
    uuid = vm.spec.uuid
    below = view.reader.get_many(
        [where(uuid) for where in (paths.vm_target, paths.vm_user_data, paths.vm_claim)]
    )
    ops: list[Op] = [Delete(paths.vm_name(vm.spec.name))]
    ops += [Delete(one.path, one.version) for one in below if one is not None]
    if vm.status_version is not None:
        ops.append(Delete(paths.vm_status(uuid), vm.status_version))
    return (
        *ops,
        Delete(paths.vm(uuid), vm.spec_version),
        *index_ops(uuid, index_nodes(vm.spec, vm.status.owner), frozenset()),
        *network_ops(view, uuid, vm.spec, None),
        *volume_ops(view, uuid, vm.spec, None),
        *(forget_ops(vm.spec, vm.spec.snapshots) if vm.spec.snapshots else ()),
    )


# Networks


def network_ops(view: View, uuid: str, before: VMSpec | None, after: VMSpec | None) -> tuple[Op, ...]:
    """The index of who uses which network. Raises NotFound for a new one that the cluster does not have."""
    if before is not None and after is not None and before.definition == after.definition:
        return ()
    old, new = _members_of(before), _members_of(after)
    if added := new.keys() - old.keys():
        known = view.networks(added)
        for vni in sorted(added - known.keys()):
            raise NotFound(f"no network {vni}", hint="pvc network list shows them")
    kept = [vni for vni in new if vni in old and old[vni] != new[vni]]
    stored = view.reader.get_many([paths.network_vm(vni, uuid) for vni in kept])
    for vni, one in zip(kept, stored, strict=True):
        if one is not None and one.data:  # what a newer version has written there stays
            new[vni] = replace(new[vni], extra=view.decode(Member, one).extra)
    return use_ops(uuid, old, new)


def _members_of(spec: VMSpec | None) -> dict[int, Member]:
    """What it is in each network of the cluster that it is in. No MAC is known of a damaged definition."""
    from pvc.cluster import domainxml

    macs: dict[int, list[str]] = {vni: [] for vni in vnis_of(spec)}
    if spec is None or not macs:
        return {}
    with suppress(Invalid):
        for nic in domainxml.parse(spec.definition).nics:
            if nic.vni in macs:
                macs[nic.vni].append(nic.mac)
    return {vni: Member(spec.name, tuple(found)) for vni, found in macs.items()}


# Volumes


def volumes(view: View, spec: VMSpec | None) -> dict[str, Volume]:
    """Its disks that are volumes, by target. None is known of a damaged definition."""
    return _volumes(spec, view.pools()) if spec is not None and "<disk" in spec.definition else {}


def _volumes(spec: VMSpec | None, pools: Mapping[str, Pool]) -> dict[str, Volume]:
    from pvc.cluster import domainxml

    if spec is None:
        return {}
    try:
        disks = domainxml.parse(spec.definition).disks
    except Invalid:
        return {}
    nodes = (*spec.node_limit, *([spec.node] if spec.node else []))
    return volumes_of(disks, (pool.spec for pool in pools.values()), nodes)


def volume_ops(
    view: View, uuid: str, before: VMSpec | None, after: VMSpec | None, task: str = ""
) -> tuple[Op, ...]:
    """The index of whose disk a volume is: of one VM at most, so that it is known without looking at all.

    `task` is the one that has claimed them; no other may be at one that the VM gets, nor come to it in the
    same moment, nor may what it has made be touched meanwhile: it is being undone then. Raises Conflict.
    """
    if before is not None and after is not None and before.definition == after.definition:
        return ()
    if not any("<disk" in spec.definition for spec in (before, after) if spec is not None):
        return ()
    pools = view.pools()
    old, new = ({*_volumes(spec, pools).values()} for spec in (before, after))
    every = sorted(old | new)
    users = view.reader.get_many([paths.pool_vm(one.pool, one.name) for one in every])
    claims = view.reader.get_many([paths.pool_claim(one.pool, one.name) for one in every])
    ops: list[Op] = []
    for volume, user, claim in zip(every, users, claims, strict=True):
        is_mine = user is not None and user.data.decode() == uuid
        is_claimed = claim is not None and claim.data.decode() != task
        if volume not in new:
            ops += [Delete(user.path, user.version)] if user is not None and is_mine else []
            continue
        if user is not None and not is_mine:
            raise Conflict(f"volume {volume} is a disk of {name_of(view, user.data.decode())}")
        # Of a VM that is only to be: a task makes it, with that UUID.
        if claim is not None and is_claimed and not (is_mine and before is not None):
            by = claim.data.decode()
            raise Conflict(f"volume {volume} is being changed by task {by}", hint=f"pvc task wait {by}")
        if user is not None:
            ops += [Check(user.path, user.version)] if task or before is None else []
            continue
        pool = pools[volume.pool]
        if pool.spec.leaving:
            raise Conflict(f"pool {volume.pool} is being removed", hint="pvc task list")
        ops += [
            Create(paths.pool_vm(volume.pool, volume.name), uuid.encode()),
            Check(paths.pool(volume.pool), pool.spec_version),
            *(
                (Check(claim.path, claim.version),)
                if claim is not None
                else absent(paths.pool_claim(volume.pool, volume.name))
            ),
        ]
    return tuple(ops)


def touch(store: Store, *wanted: str) -> None:
    """By who undoes a task, before he looks: what it sent may come true late, and finds another version."""
    found = [one for one in store.get_many(wanted) if one is not None]
    if found:
        store.commit(*(Put(one.path, one.data, one.version) for one in found))


def name_of(view: View, uuid: str) -> str:
    found = view.vms([uuid]).get(uuid)
    return found.spec.name if found is not None else f"a VM that is being made ({uuid})"


def absent(path: str) -> tuple[Op, Op]:
    """Nobody has made it, nor does at the same time."""
    return Create(path), Delete(path)
