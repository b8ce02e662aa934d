"""Locks on a VM's disks in Ceph."""

from __future__ import annotations

from typing import Annotated

from pvc.cluster import records
from pvc.cluster.storage import Driver
from pvc.commands import vm_write
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.task import TaskInfo
from pvc.commands.types import VMName
from pvc.commands.vm_define import check_stopped


@operation(
    "POST",
    "/vm/{vm}/flush-locks",
    noun="vm",
    role=Role.OPERATE,
    waits="task.info",
    done="nobody holds a disk of {vm} any more",
)
def flush_locks(
    ctx: Context,
    vm: VMName,
    *,
    force: Annotated[
        bool,
        Arg("also of a client that is alive: what it has not written yet is lost, and it can write no more"),
    ] = False,
) -> TaskInfo | None:
    """Break the locks that are left on the disks of a stopped VM in Ceph.

    A start does this by itself for clients that are dead; one that is alive is named and left alone.
    """
    found = ctx.view.vm(vm)
    check_stopped(found, "flush-locks")
    pools = ctx.view.pools()
    volumes = sorted(
        {
            one
            for one in records.volumes(ctx.view, found.spec).values()
            if pools[one.pool].spec.driver is Driver.RBD
        }
    )
    if not volumes:
        ctx.say(f"{found.spec.name} has no disk in Ceph; locks in a directory end with who holds them")
        return None
    about = f"breaking locks on {', '.join(map(str, volumes))}"
    arguments = {"vm": found.spec.uuid, "force": force}
    return vm_write.begin(ctx, "vm.flush-locks", about, found, volumes, arguments=arguments)
