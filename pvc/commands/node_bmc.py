"""A node's BMC: how the cluster switches its power when it has died."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from pvc.cluster import paths
from pvc.cluster.codec import dumps
from pvc.cluster.node import BMC, BMCDriver
from pvc.cluster.store import Put
from pvc.commands.context import Context
from pvc.commands.registry import Arg, Role, operation
from pvc.commands.types import NodeName
from pvc.errors import Conflict, Invalid

if TYPE_CHECKING:
    from pvc.cluster.view import Node

USAGE = "pvc node bmc NODE --address HOST --user NAME, and --password-file FILE; or --remove"


@dataclass(frozen=True, slots=True)
class BMCInfo:
    """What may be seen of it; the password is not."""

    node: str
    driver: BMCDriver | None
    address: str
    user: str
    certificate: str


Address = Annotated[
    str,
    Arg(
        "where its BMC is",
        metavar="HOST[:PORT]",
        pattern=r"([A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9a-fA-F:]{2,39}\])(:[1-9]\d{0,4})?",
        what="HOST or HOST:PORT, an IPv6 address in brackets",
    ),
]
User = Annotated[
    str,
    Arg("its user", metavar="NAME", pattern=r"[!-~]{1,64}", what="a user's name: 1 to 64 letters, no blanks"),
]
Certificate = Annotated[
    str,
    Arg(
        "of Redfish, its SHA-256, or any; one that is vouched for unless given",
        metavar="SHA256",
        pattern="any|[0-9a-f]{64}",
        what="64 hexadecimal digits, or any",
    ),
]


@operation("PUT", "/node/{node}/bmc", role=Role.ADMIN, noun="node", done="the BMC of {node} is as told")
def bmc(
    ctx: Context,
    node: NodeName,
    *,
    address: Address = "",
    user: User = "",
    password: Annotated[
        str,
        Arg(
            "file with its password; you are asked for it unless told",
            metavar="FILE",
            long="password-file",
            file=True,
            asked_with="address",
        ),
    ] = "",
    driver: Annotated[BMCDriver, Arg("how it is spoken to")] = BMCDriver.IPMI,
    certificate: Certificate = "",
    remove: Annotated[bool, Arg("forget it: the node cannot be fenced any more")] = False,
) -> BMCInfo:
    """Set how a node's power is switched when it has died, or forget it.

    The password is stored encrypted with the cluster key; with another address it has to be given again.
    """
    nodes = ctx.view.nodes()
    found = ctx.view.node(node)
    if remove:
        if address or user or password or certificate:
            raise Invalid("--remove goes with no other option", hint=USAGE)
        if found.spec.bmc is None:
            raise Conflict(f"{node} has no BMC")
        wanted = None
        ctx.say(f"{node} cannot be fenced any more: when it dies, its VMs wait for it or for an operator")
    else:
        wanted = _given(ctx, address, user, password, driver, certificate)
        _check_is_its_own(node, wanted, nodes)
        ctx.say(f"{node} is fenced through {wanted.driver} at {wanted.address} when it dies")
    spec = replace(found.spec, bmc=wanted)
    ctx.commit(Put(paths.node(node), dumps(spec), found.spec_version))
    return _shown(node, wanted)


def _check_is_its_own(node: str, wanted: BMC, nodes: Mapping[str, Node]) -> None:
    """Off by the BMC of another machine would be taken for evidence."""
    for name, other in nodes.items():
        if name != node and other.spec.bmc is not None and other.spec.bmc.address == wanted.address:
            raise Conflict(
                f"{wanted.address} is the BMC of {name}", hint=f"pvc node bmc {name} --remove if it is not"
            )


def _given(ctx: Context, address: str, user: str, password: str, driver: BMCDriver, certificate: str) -> BMC:
    # An editor's line end at the end of a file is no part of a password.
    clear = password.rstrip("\r\n")
    for name, value in (("address", address), ("user", user), ("password-file", clear)):
        if not value:
            raise Invalid(f"node bmc needs --{name}", hint=USAGE)
    if not clear.isprintable() or len(clear) > 128:
        raise Invalid("the password must be one line of at most 128 characters")
    if certificate and driver is not BMCDriver.REDFISH:
        raise Invalid("only redfish has a certificate", hint="--driver redfish")
    plain = BMC(driver, address, user, "", certificate)
    return replace(plain, password=ctx.seal(clear, plain.good_for))


def _shown(node: str, bmc: BMC | None) -> BMCInfo:
    if bmc is None:
        return BMCInfo(node, None, "", "", "")
    return BMCInfo(node, bmc.driver, bmc.address, bmc.user, bmc.certificate)
