"""What a VM is made of and how it is treated: definition, metadata, vCPUs, memory, tags."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from pvc import bounds, names
from pvc.cluster.placement import Placement
from pvc.cluster.vm import Method, Selector, Tag, VMSpec
from pvc.commands import types
from pvc.commands.context import Context, LocalContext
from pvc.commands.registry import Arg, Role, local, operation
from pvc.commands.types import Autostart, MaxDowntime, NodeLimit, Restart, StartPriority, TagName, VMName
from pvc.commands.vm_info import VMInfo, describe
from pvc.commands.vm_life import check_can_restart, restarted
from pvc.commands.vm_write import save, with_definition
from pvc.errors import Conflict, Failed, Invalid, NotFound

if TYPE_CHECKING:
    from pvc.cluster.view import VM


def changed(ctx: Context, vm: VM, new: VMSpec, restart: bool) -> VMInfo:
    """Commit; with `restart` the same transaction also restarts a VM that runs."""
    if vm.status.owner is None:
        return describe(save(ctx, vm, new))
    if not restart:
        if new.definition != vm.spec.definition:
            ctx.say(f"{vm.spec.name} runs: the change waits for its next start")
        return describe(save(ctx, vm, new))
    check_can_restart(vm)
    ctx.say(f"{vm.spec.name} restarts, with the change")
    saved = save(ctx, vm, restarted(new, vm), relies_on_status=True)
    return describe(saved, {"state": "start"})


# The definition


@operation(
    "PUT",
    "/vm/{vm}/definition",
    role=Role.OPERATE,
    verb="set-definition",
    noun="vm",
    done="{name} has its new definition{pending}",
    waits="vm.info",
)
def set_definition(
    ctx: Context,
    vm: VMName,
    xml: Annotated[str, Arg("file with the new libvirt domain XML", metavar="XMLFILE", file=True)],
    *,
    digest: Annotated[str, Arg("refuse when the definition it replaces is another than that (vm info)")] = "",
    restart: Restart = False,
) -> VMInfo:
    """Replace a VM's definition without showing a difference; `vm modify` is the verb for people."""
    from pvc.cluster import domainxml

    found = ctx.view.vm(vm)
    spec = found.spec
    if digest and digest != domainxml.digest(spec.definition):
        raise Conflict(
            f"the definition of {spec.name} was changed by somebody else", hint="look at it and try again"
        )
    facts = domainxml.parse(xml)
    if facts.name != spec.name:
        raise Conflict(
            f"the definition names {facts.name}, not {spec.name}", hint=f"pvc vm rename {spec.name} …"
        )
    if facts.uuid not in ("", spec.uuid):
        raise Conflict(
            f"the definition has the UUID {facts.uuid}, that of {spec.name} is {spec.uuid} and stays"
        )
    ctx.say(f"{spec.name} gets another definition")
    return changed(ctx, found, with_definition(spec, domainxml.complete(xml, spec.uuid)), restart)


@local(noun="vm")
def modify(
    ctx: LocalContext,
    vm: VMName,
    file: Annotated[str, Arg("file with the new XML; - is standard input", metavar="FILE", file=True)] = "",
    *,
    editor: Annotated[bool, Arg("edit it with $VISUAL or $EDITOR", short="-e")] = False,
    restart: Restart = False,
    yes: Annotated[bool, Arg("do not ask", short="-y")] = False,
) -> None:
    """Change a VM's libvirt XML: shows the difference, asks, and writes it if nobody else has changed it."""
    from pvc.cluster import domainxml

    if bool(file) == editor:
        raise Invalid("vm modify needs a FILE or --editor, one of them", hint="pvc vm modify VM -e")
    from pvc import output
    from pvc.commands.editing import difference, edited

    digest = ctx.call("vm.info", vm=vm)["digest"]
    now = ctx.call("vm.definition", vm=vm)
    new = edited(now) if editor else file
    shown = difference(now, domainxml.pretty(new))
    if not shown:
        output.note("nothing changed")
        return
    output.note(shown)
    if not (yes or ctx.unsafe or output.ask(f"Change VM {vm}?")):
        raise Failed("declined, nothing was changed")
    answer = ctx.call("vm.set-definition", vm=vm, xml=new, digest=digest, restart=restart)
    pending = answer["pending_restart"] and not restart
    output.note(output.done("{name} has its new definition{pending}", {**answer, "pending_restart": pending}))


# Metadata


@operation("PATCH", "/vm/{vm}/meta", role=Role.OPERATE, noun="vm", done="the settings of {name} are changed")
def meta(
    ctx: Context,
    vm: VMName,
    *,
    limit: tuple[NodeLimit, ...] | None = None,
    selector: Annotated[Selector, Arg("by what its node is chosen", short="-s")] | None = None,
    autostart: Autostart | None = None,
    start_priority: StartPriority | None = None,
    method: Annotated[Method, Arg("how it changes nodes while it runs", short="-m")] | None = None,
    max_downtime: MaxDowntime | None = None,
    shutdown_timeout: Annotated[
        int,
        Arg(
            "before a guest that does not shut down is powered off; 0: the cluster's",
            metavar="SECONDS",
            minimum=bounds.SHUTDOWN_TIMEOUT_S.least,
            maximum=bounds.SHUTDOWN_TIMEOUT_S.most,
        ),
    ]
    | None = None,
    migration_timeout: Annotated[
        int,
        Arg(
            "before a live migration is given up",
            metavar="SECONDS",
            minimum=bounds.MIGRATION_TIMEOUT_S.least,
            maximum=bounds.MIGRATION_TIMEOUT_S.most,
        ),
    ]
    | None = None,
    profile: Annotated[
        str, Arg("the profile it was provisioned with; empty: none", short="-p", pattern=names.PROFILE)
    ]
    | None = None,
) -> VMInfo:
    """Change how a VM is placed, started and moved: only what is given changes."""
    found = ctx.view.vm(vm)
    given = {
        "node_limit": None if limit is None else tuple(sorted({*limit})),
        "selector": selector,
        "autostart": autostart,
        "start_priority": start_priority,
        "method": method,
        "max_downtime_ms": max_downtime,
        "shutdown_timeout_s": shutdown_timeout,
        "migration_timeout_s": migration_timeout,
        "profile": profile,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        raise Invalid("vm meta needs something to change", hint="pvc vm meta --help")
    for name in limit or ():
        ctx.view.node(name)
    new = replace(found.spec, **changes)  # type: ignore[arg-type]
    for name in changes:
        ctx.say(f"{name} of {new.name}: {getattr(found.spec, name)!s} → {getattr(new, name)!s}")
    info = describe(save(ctx, found, new))
    if new.node_limit and info.node is not None and info.node not in new.node_limit:
        ctx.say(f"{new.name} is on {info.node}, outside its limit: pvc vm move {new.name} takes it within")
    return info


# vCPUs and memory


@dataclass(frozen=True, slots=True)
class VCPUs:
    name: str
    vcpus: int
    topology: str
    """Sockets, cores, threads; empty where the definition names none."""


@dataclass(frozen=True, slots=True)
class Memory:
    name: str
    memory_mib: int


@operation("GET", "/vm/{vm}/vcpu", noun="vm", verb="vcpu get")
def vcpu_get(ctx: Context, vm: VMName) -> VCPUs:
    """Show a VM's vCPUs."""
    from pvc.cluster import domainxml

    spec = ctx.view.vm(vm).spec
    found = domainxml.parse(spec.definition).topology
    return VCPUs(spec.name, spec.vcpus, f"{found.sockets},{found.cores},{found.threads}" if found else "")


@operation(
    "PUT",
    "/vm/{vm}/vcpu",
    role=Role.OPERATE,
    noun="vm",
    verb="vcpu set",
    done="vCPUs of {name}: {vcpus}{pending}",
    waits="vm.info",
)
def vcpu_set(
    ctx: Context,
    vm: VMName,
    vcpus: types.VCPUCount,
    *,
    topology: Annotated[types.TopologyText, Arg(short="-t")] | None = None,
    restart: Restart = False,
) -> VMInfo:
    """Set the number of a VM's vCPUs."""
    from pvc.cluster import domainxml

    found = ctx.view.vm(vm)
    wanted = domainxml.Topology(*types.topology(topology)) if topology else None
    new = with_definition(found.spec, domainxml.set_vcpus(found.spec.definition, vcpus, wanted))
    _say_where_it_fits(ctx, new)
    return changed(ctx, found, new, restart)


@operation("GET", "/vm/{vm}/memory", noun="vm", verb="memory get")
def memory_get(ctx: Context, vm: VMName) -> Memory:
    """Show a VM's memory."""
    spec = ctx.view.vm(vm).spec
    return Memory(spec.name, spec.memory_mib)


@operation(
    "PUT",
    "/vm/{vm}/memory",
    role=Role.OPERATE,
    noun="vm",
    verb="memory set",
    done="memory of {name}: {memory_mib} MiB{pending}",
    waits="vm.info",
)
def memory_set(ctx: Context, vm: VMName, memory: types.MemoryText, *, restart: Restart = False) -> VMInfo:
    """Set a VM's memory."""
    from pvc.cluster import domainxml

    found = ctx.view.vm(vm)
    new = with_definition(found.spec, domainxml.set_memory(found.spec.definition, types.memory_mib(memory)))
    _say_where_it_fits(ctx, new)
    return changed(ctx, found, new, restart)


def _say_where_it_fits(ctx: Context, spec: VMSpec) -> None:
    """For --plan: a size that no node has is allowed (nodes grow), and worth knowing."""
    if not ctx.planning:
        return
    placement = Placement(ctx.view.nodes(), ctx.view.cluster().selector)
    ctx.say(f"{spec.name} has {spec.vcpus} vCPUs and {spec.memory_mib} MiB from its next start")
    for name in sorted(placement.nodes):
        why = placement.refusal(name, spec)
        if why:
            ctx.say(f"as another VM it could not start on {name} now: {why}")


# Tags


@operation("GET", "/vm/{vm}/tag", noun="vm", verb="tag get")
def tag_get(ctx: Context, vm: VMName) -> tuple[Tag, ...]:
    """List a VM's tags."""
    return ctx.view.vm(vm).spec.tags


@operation(
    "POST", "/vm/{vm}/tag", role=Role.OPERATE, noun="vm", verb="tag add", done="{name} has the tag {tag}"
)
def tag_add(
    ctx: Context,
    vm: VMName,
    tag: TagName,
    *,
    protected: Annotated[
        bool, Arg("it cannot be removed until it is added again without", short="-p")
    ] = False,
) -> VMInfo:
    """Give a VM a tag; adding one again sets whether it is protected."""
    found = ctx.view.vm(vm)
    others = tuple(one for one in found.spec.tags if one.name != tag)
    tags = tuple(sorted((*others, Tag(tag, protected)), key=lambda one: one.name))
    ctx.say(f"{found.spec.name} has the tag {tag}{', protected' if protected else ''}")
    return describe(save(ctx, found, replace(found.spec, tags=tags)))


@operation(
    "DELETE",
    "/vm/{vm}/tag/{tag}",
    role=Role.OPERATE,
    noun="vm",
    verb="tag remove",
    done="{name} no longer has the tag {tag}",
)
def tag_remove(ctx: Context, vm: VMName, tag: TagName) -> VMInfo:
    """Take a tag from a VM."""
    found = ctx.view.vm(vm)
    name = found.spec.name
    old = next((one for one in found.spec.tags if one.name == tag), None)
    if old is None:
        raise NotFound(f"{name} has no tag {tag}", hint=f"pvc vm tag get {name}")
    if old.protected:
        raise Conflict(
            f"the tag {tag} of {name} is protected", hint=f"pvc vm tag add {name} {tag} lifts that"
        )
    ctx.say(f"{name} loses the tag {tag}")
    tags = tuple(one for one in found.spec.tags if one is not old)
    return describe(save(ctx, found, replace(found.spec, tags=tags)))
