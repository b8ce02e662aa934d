"""How an operation writes a VM."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.store import Check, Op, Put
from pvc.cluster.vm import VMSpec, index_nodes, index_ops
from pvc.commands.context import Context

if TYPE_CHECKING:
    from pvc.cluster import domainxml
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
    ctx.commit(*ops, *index_ops(new.uuid, before, after), *more)
    return replace(vm, spec=new, spec_version=vm.spec_version + 1)


def with_definition(spec: VMSpec, xml: str) -> VMSpec:
    """The spec with another definition, and what lists need of it."""
    from pvc.cluster import domainxml

    facts = domainxml.parse(xml)
    return replace(
        spec,
        definition=xml,
        name=facts.name,
        memory_mib=facts.memory_mib,
        vcpus=facts.vcpus,
        networks=networks_of(facts),
    )


def networks_of(facts: domainxml.Facts) -> tuple[str, ...]:
    return tuple(nic.source or nic.type for nic in facts.nics)
