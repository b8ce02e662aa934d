"""User data of VMs: what cloud-init in the guest is told to do at its first boot. It may hold secrets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pvc.cluster import paths
from pvc.cluster.guests import ADDRESS
from pvc.cluster.store import Create, Delete, Put
from pvc.cluster.view import VM
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.types import VMName
from pvc.errors import Invalid, NotFound

LARGEST = 256 * 1024
"""Of user data, in bytes: a document of ZooKeeper has less than 1 MiB, and every server has it in memory."""

SEED = f"ds=nocloud-net;s=http://{ADDRESS}/nocloud/"
"""As serial number of a machine it tells every cloud-init where to look, of which no image need know."""

UserDataText = Annotated[
    str,
    Arg("file with user data for cloud-init in the guest; - is standard input", metavar="FILE", file=True),
]


@dataclass(frozen=True, slots=True)
class UserData:
    """Never the text itself."""

    name: str
    bytes: int


@operation("GET", "/vm/{vm}/user-data", noun="vm", verb="user-data get", role=Role.OPERATE)
def user_data_get(ctx: Context, vm: VMName) -> str:
    """Print the user data that a VM's guest gets."""
    found = ctx.view.vm(vm)
    # No mirror follows it: with a thousand VMs that would be much memory for what is seldom asked.
    stored = ctx.store.get(paths.vm_user_data(found.spec.uuid))
    if stored is None:
        raise _none(found)
    return stored.data.decode(errors="replace")


@operation(
    "PUT",
    "/vm/{vm}/user-data",
    noun="vm",
    verb="user-data set",
    role=Role.OPERATE,
    done="{name} has {bytes} bytes of user data, for the first boot of its guest",
)
def user_data_set(ctx: Context, vm: VMName, text: UserDataText) -> UserData:
    """Give a VM user data, which cloud-init in the guest reads from 169.254.169.254 at its first boot."""
    found = ctx.view.vm(vm)
    data = encoded(text)
    path = paths.vm_user_data(found.spec.uuid)
    old = ctx.store.get(path)
    ctx.say(
        f"{found.spec.name} has {len(data)} bytes of user data{' instead of those it has' if old else ''}"
    )
    ctx.commit(Create(path, data) if old is None else Put(path, data, old.version))
    return UserData(found.spec.name, len(data))


@operation(
    "DELETE",
    "/vm/{vm}/user-data",
    noun="vm",
    verb="user-data remove",
    role=Role.OPERATE,
    done="{name} has no user data any more",
)
def user_data_remove(ctx: Context, vm: VMName) -> UserData:
    """Forget the user data of a VM; a guest that has read it keeps what it did."""
    found = ctx.view.vm(vm)
    stored = ctx.store.get(paths.vm_user_data(found.spec.uuid))
    if stored is None:
        raise _none(found)
    ctx.say(f"{found.spec.name} has no user data any more")
    ctx.commit(Delete(stored.path, stored.version))
    return UserData(found.spec.name, 0)


def encoded(text: str) -> bytes:
    """Raises Invalid for what is too large or empty."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise Invalid("the user data are no text in UTF-8", hint="compressed ones are not possible") from None
    if not data.strip():
        raise Invalid("the user data is empty", hint="pvc vm user-data remove takes it away")
    if len(data) > LARGEST:
        raise Invalid(
            f"{len(data)} bytes of user data are too many: {LARGEST >> 10} KiB is the most",
            hint="#include with an address, in a small one, has the guest fetch the rest",
        )
    return data


def _none(vm: VM) -> NotFound:
    return NotFound(f"{vm.spec.name} has no user data", hint=f"pvc vm user-data set {vm.spec.name} FILE")
