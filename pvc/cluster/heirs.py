"""Who ends what a node had begun that is gone: what is in pools that others reach too."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pvc.cluster import paths
from pvc.cluster.storage import spread
from pvc.cluster.store import Reader, Stored
from pvc.cluster.tasks import TaskState
from pvc.cluster.view import Task, View


def _is_bound(task: Task) -> bool:
    """To its node, on whose own disks is what it begins, or what it was to read: it sees to it once it is
    back."""
    spec = task.spec
    pool = spec.arguments.get("pool")
    is_of_own_pool = isinstance(pool, Mapping) and bool(pool.get("node"))
    is_to_read = task.status.state is TaskState.WAITING and "path" in spec.arguments
    return (
        is_of_own_pool
        or is_to_read
        or spec.kind == "vm.snapshot-export"
        or spec.kind.startswith("storage.osd-")
    )


def claims(reader: Reader) -> dict[str, list[tuple[str, str, Stored]]]:
    """By task: pool, volume and claim of each that it has, also of those that it claimed on its way."""
    found: dict[str, list[tuple[str, str, Stored]]] = {}
    for pool in View(reader).pools():
        names = reader.children(paths.pool_claims(pool))
        each = reader.get_many([paths.pool_claim(pool, name) for name in names])
        for name, one in zip(names, each, strict=True):
            if one is not None:
                found.setdefault(one.data.decode(), []).append((pool, name, one))
    return found


def heir(reader: Reader, task: Task, pools: Collection[str]) -> str:
    """If possible one that reaches the pools now. Empty: nobody else can."""
    if _is_bound(task):
        return ""
    view = View(reader)
    specs = [one.spec for name, one in view.pools().items() if name in pools]
    able = [
        other
        for name, other in view.nodes().items()
        if name != task.spec.node and other.is_running and reader.get(paths.node_tasks(name)) is not None
    ]
    able = [one for one in able if all(spec.node in ("", one.spec.name) for spec in specs)]
    near = [one for one in able if not any(spec.name in one.status.pool_problems for spec in specs)]
    return spread([one.spec.name for one in near or able], task.spec.id) if able else ""
