"""Looking at one VM: info, dump."""

from __future__ import annotations

from typing import Annotated

from pvc.commands.context import Context, LocalContext
from pvc.commands.registry import Arg, local, operation
from pvc.commands.types import VMName
from pvc.commands.vm_info import VMInfo, describe
from pvc.errors import Failed


@operation("GET", "/vm/{vm}", noun="vm")
def info(ctx: Context, vm: VMName) -> VMInfo:
    """Show everything about a VM."""
    return describe(ctx.view.vm(vm))


@operation("GET", "/vm/{vm}/definition", noun="vm")
def definition(ctx: Context, vm: VMName) -> str:
    """The libvirt domain XML of a VM as data; `vm dump` is the verb for people."""
    return ctx.view.vm(vm).spec.definition


@local(noun="vm")
def dump(
    ctx: LocalContext,
    vm: VMName,
    *,
    file: Annotated[str, Arg("write it there instead of printing it", short="-f", metavar="FILE")] = "",
) -> str | None:
    """Print a VM's libvirt domain XML."""
    xml = ctx.call("vm.definition", vm=vm)
    if not file:
        return str(xml)
    try:
        with open(file, "w", encoding="utf-8") as opened:
            opened.write(xml)
    except OSError as error:
        raise Failed(f"cannot write {file}: {error.strerror}") from None
    return None
