"""How an operation writes a VM."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from pvc.cluster import paths
from pvc.cluster.clients import Member, use_ops
from pvc.cluster.codec import dumps
from pvc.cluster.store import Check, Op, Put
from pvc.cluster.vm import VMSpec, index_nodes, index_ops, vnis_of
from pvc.commands.context import Context
from pvc.errors import Invalid, NotFound

if TYPE_CHECKING:
    from pvc.cluster.view import VM


def save(ctx: Context, vm: VM, new: VMSpec, *more: Op, relies_on_status: bool = False) -> VM:
    """Commit a changed spec with its index; the VM as it is after that. No change writes nothing.

    The index depends on the owner: who changes the assignment also checks that the owner is the same.
    """
    if new == vm.spec and not more:
        ctx.say("nothing would change")
        return vm
    before, after = (index_nodes(spec, vm.status.owner) for spec in (vm.spec, new))
    moved = (new.node, new.home) != (vm.spec.node, vm.spec.home)
    ops: list[Op] = [Put(paths.vm(new.uuid), dumps(new), vm.spec_version)]
    if (moved or relies_on_status) and vm.status_version is not None:
        ops.append(Check(paths.vm_status(new.uuid), vm.status_version))
    used = network_ops(ctx, new.uuid, vm.spec, new)
    ctx.commit(*ops, *index_ops(new.uuid, before, after), *used, *more)
    return replace(vm, spec=new, spec_version=vm.spec_version + 1)


def network_ops(ctx: Context, uuid: str, before: VMSpec | None, after: VMSpec | None) -> tuple[Op, ...]:
    """The index of who uses which network. Raises NotFound for a new one that the cluster does not have."""
    if before is not None and after is not None and before.definition == after.definition:
        return ()
    old, new = members_of(before), members_of(after)
    if added := new.keys() - old.keys():
        known = ctx.view.networks(added)
        for vni in sorted(added - known.keys()):
            raise NotFound(f"no network {vni}", hint="pvc network list shows them")
    kept = [vni for vni in new if vni in old and old[vni] != new[vni]]
    for vni, stored in zip(kept, ctx.reader.get_many([paths.network_vm(v, uuid) for v in kept]), strict=True):
        if stored is not None and stored.data:  # what a newer version has written there stays
            new[vni] = replace(new[vni], extra=ctx.view.decode(Member, stored).extra)
    return use_ops(uuid, old, new)


def members_of(spec: VMSpec | None) -> dict[int, Member]:
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


def with_definition(spec: VMSpec, xml: str) -> VMSpec:
    """The spec with another definition, and what lists need of it.

    Of the changes that were not to wait for a start, those stay that it still has.
    """
    from pvc.cluster import domainxml

    facts = domainxml.parse(xml)
    digests = {one.mac: one.digest for one in domainxml.shape(xml).interfaces} if spec.live else {}
    return replace(
        spec,
        definition=xml,
        name=facts.name,
        memory_mib=facts.memory_mib,
        vcpus=facts.vcpus,
        networks=tuple(nic.network for nic in facts.nics),
        live=tuple(one for one in spec.live if digests.get(one.mac, "") == one.digest),
    )
