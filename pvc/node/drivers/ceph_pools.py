"""Pools of Ceph: made, changed and taken away by its monitors. A pool of ours says so in Ceph itself.

One that is being made is called something that nobody else takes, until all of it is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pvc.cluster import ceph, ceph_pools
from pvc.cluster.ceph import Traffic
from pvc.cluster.ceph_pools import CephFacts, CephPlan
from pvc.errors import Conflict, Unavailable
from pvc.node.drivers import DriverError
from pvc.node.drivers.ceph import ASK_TIMES, Ceph, every_object, make_vm_user

HALF_MADE = "pvc-new-"
APPLICATION = "rbd"
BOOKKEEPING = {
    "rbd_children",
    "rbd_directory",
    "rbd_info",
    "rbd_mirror_snapshot_schedule",
    "rbd_mirroring",
    "rbd_task",
    "rbd_trash",
    "rbd_trash_purge_schedule",
}
"""Objects that librbd and the manager leave in a pool without images."""
MAY_DELETE = "mon_allow_pool_delete"
BORROWED = "pvc/pool-delete/"
"""With the name of a pool: there as long as that option is on only for its sake."""
POLL_S = 0.5
TRIES = 20

Progress = Callable[[float, str], None]
"""Called with how much is done and at what it is; may raise, and then what was begun ends."""


class CephPools:
    def __init__(self, ceph: Ceph) -> None:
        self.ceph = ceph

    def prepare(
        self, name: str, identity: str, plan: CephPlan, progress: Progress, *, force: bool = False
    ) -> None:
        """Make a pool. Raises Conflict where there is one, or no place for its copies."""
        self._check_free(name)
        hosts = ceph_pools.check_places(self.ceph.command("osd tree")["nodes"], plan, force=force)
        make_vm_user(self.ceph)
        self._rule(plan)
        half = HALF_MADE + identity
        numbers: dict[str, Any] = {"pg_num": plan.pgs, "pgp_num": plan.pgs} if plan.pgs else {}
        self.ceph.command(
            "osd pool create",
            pool=half,
            pool_type="replicated",
            rule=plan.tier.rule,
            size=plan.copies,
            autoscale_mode="off" if plan.pgs else "on",
            **numbers,
        )
        self._set(half, "min_size", plan.min_copies)
        self.ceph.command("osd pool application enable", pool=half, app=APPLICATION)
        self.ceph.command("osd pool application set", pool=half, app=APPLICATION, key="pvc", value=identity)
        if hosts >= plan.min_copies:
            self._await_active(half, progress)
        self._check_free(name)
        self.ceph.command("osd pool rename", srcpool=half, destpool=name)

    def _check_free(self, name: str) -> None:
        if (found := self._pools().get(name)) is not None:
            whose = "of another cluster of pvc" if ceph_pools.identity(found) else "that is not of pvc"
            raise Conflict(
                f"Ceph has a pool {name} already, {whose}",
                hint=f"another name, or another one for that: ceph osd pool rename {name} NEW",
            )

    def _rule(self, plan: CephPlan) -> None:
        kind: dict[str, Any] = {} if plan.tier is ceph_pools.Tier.DEFAULT else {"class": str(plan.tier)}
        self.ceph.command(
            "osd crush rule create-replicated", name=plan.tier.rule, root="default", type="host", **kind
        )

    def _await_active(self, name: str, progress: Progress) -> None:
        """Until it can be written to, and Ceph knows how much it can hold.

        Its first user would wait otherwise, and could not be told to end.
        """
        while True:
            count, whole = ceph_pools.active(self._states(name))
            progress(count / max(whole, 1), f"{count} of {whole} placement groups are active")
            if whole and count == whole and self.used_and_free_bytes(name)[1]:
                return
            time.sleep(POLL_S)

    def used_and_free_bytes(self, name: str) -> tuple[int, int]:
        """What users have written counts, and what they still can: all copies of it have room."""
        pools = {one["name"]: one["stats"] for one in self.ceph.command("df")["pools"]}
        found = pools.get(name, {})
        stored, free = int(found.get("stored", 0)), int(found.get("max_avail", 0))
        return stored, 0 if "full" in self.flags(name) else free

    def flags(self, name: str) -> Sequence[str]:
        """Now: figures of use come some seconds late, and who writes to a full pool waits in there."""
        return str(self._pools().get(name, {}).get("flags_names", "")).split(",")

    def facts(self, name: str, identity: str) -> CephFacts:
        """Raises Unavailable where there is no such pool of ours."""
        found = self._required(name, identity)
        return ceph_pools.facts(found, self.ceph.command("osd crush rule dump"), self._states(name))

    def traffic(self, name: str) -> Traffic:
        (found,) = self.ceph.command("osd pool stats", pool_name=name)
        return ceph.traffic(found["client_io_rate"], found["recovery_rate"])

    def set_pgs(self, name: str, identity: str, pgs: int) -> None:
        """More or fewer, to which Ceph then moves by itself; 0: as its autoscaler finds right."""
        self._required(name, identity)
        if not pgs:
            self._set(name, "pg_autoscale_mode", "on")
            return
        self._set(name, "pg_num", pgs)  # first: Ceph may refuse it
        self._set(name, "pgp_num", pgs)
        self._set(name, "pg_autoscale_mode", "off")

    def settle_pgs(self, name: str, identity: str) -> None:
        """Have data spread over as many placement groups as there are to be."""
        found = self._ours(name, identity)
        if found is not None and found["pg_placement_num_target"] != found["pg_num_target"]:
            self._set(name, "pgp_num", found["pg_num_target"])

    # The end

    def check_empty(self, name: str) -> None:
        """Raises Conflict where anything is in it: also what others keep there, or what is in the trash."""
        with self.ceph.opened(name, ASK_TIMES) as io:
            for found in every_object(io):
                if found not in BOOKKEEPING:
                    raise Conflict(
                        f"there is more in pool {name} of Ceph than volumes: an object {found}",
                        hint=f"look for others who use it: rbd ls -a {name}, rbd trash ls -a {name}",
                    )

    def retire(self, name: str, identity: str, *, keep: bool = False) -> None:
        """It is no pool of ours any more, and gone: Conflict where anything is in it. Done already for one of
        others.

        `keep`: it stays, with what is in it.
        """
        half = HALF_MADE + identity
        for mine in (half, name):
            self._give_back(mine)
            if self._ours(mine, identity) is None:
                continue
            if keep and mine != half:
                self.ceph.command("osd pool application rm", pool=mine, app=APPLICATION, key="pvc")
                continue
            self.check_empty(mine)
            self._delete(mine)

    def _delete(self, name: str) -> None:
        arguments: dict[str, Any] = {"pool": name, "pool2": name, "yes_i_really_really_mean_it": True}
        with suppress(DriverError):
            self.ceph.command("osd pool delete", **arguments)
            return
        # Monitors do not let anybody, unless told to. Whoever is killed here leaves the key, by which
        # another life knows what to give back.
        self.ceph.command("config-key set", key=BORROWED + name, val="")
        try:
            self.ceph.command("config set", who="mon", name=MAY_DELETE, value="true")
            self._insist("osd pool delete", **arguments)
        finally:
            self._give_back(name)

    def _insist(self, prefix: str, **arguments: Any) -> None:
        """Monitors hear of an option one after the other."""
        for left in reversed(range(TRIES)):
            try:
                self.ceph.command(prefix, **arguments)
                return
            except DriverError:
                if not left:
                    raise
            time.sleep(POLL_S)

    def _give_back(self, name: str) -> None:
        borrowed = set(self.ceph.command("config-key dump", key=BORROWED))
        if BORROWED + name not in borrowed:
            return
        if borrowed == {BORROWED + name}:
            self.ceph.command("config rm", who="mon", name=MAY_DELETE)
        self.ceph.command("config-key rm", key=BORROWED + name)

    # What there is

    def _pools(self) -> dict[str, Mapping[str, Any]]:
        return {one["pool_name"]: one for one in self.ceph.command("osd pool ls", detail="detail")}

    def _ours(self, name: str, identity: str) -> Mapping[str, Any] | None:
        found = self._pools().get(name)
        is_half = name == HALF_MADE + identity  # perhaps it had no time to say whose it is
        return found if found is not None and (is_half or ceph_pools.identity(found) == identity) else None

    def _required(self, name: str, identity: str) -> Mapping[str, Any]:
        """Raises Unavailable."""
        found = self._ours(name, identity)
        if found is None:
            raise Unavailable(f"the pool {name} that this Ceph has is not that of this cluster")
        return found

    def _states(self, name: str) -> list[str]:
        return [one["state"] for one in self.ceph.command("pg ls-by-pool", poolstr=name)["pg_stats"]]

    def _set(self, name: str, option: str, value: object) -> None:
        self.ceph.command("osd pool set", pool=name, var=option, val=str(value))
