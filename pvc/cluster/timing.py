"""How long each wait of high availability must be, and why that suffices. Pure.

Words
  T   session_timeout_s   ZooKeeper ends the session of a node it has not heard of for so long
  t   store_tick_s        a tick of ZooKeeper (tickTime); k = store_sync_ticks (syncLimit)
  L   lease_s             a node that has had no confirmed contact for so long ends its VMs
  W   watchdog_s          the machine resets that long after the last time its watchdog was fed
  A   address_s           an address of the primary lives that long after its last confirmed commit
  D   DRIFT               of one machine's monotonic clock against another's, as a share
  S = t·(k + 1)           a ZooKeeper server that lost its quorum may serve its clients that much longer: a
                          follower hears its leader for k ticks, a leader counts whole ticks
  H = S + 2t              a server counts as out of its quorum after so long (below, 5)

No clocks of two machines are ever compared: everything is a duration on one monotonic clock. Nodes are not
put to sleep. D and a second for the coarseness of timers are added where one machine waits for another.

A. Nothing of a life of a node runs any more when a judge says `watchdog`

 1. Contact x is the moment *before* a commit was sent that succeeded, in a session in which the join of
    this life had succeeded. A commit succeeds only with a majority, whatever server the node talks to,
    and only while the session lives: so the ephemeral of this life was there at x or later. Pings prove
    less.
 2. The watchdog is fed only after finding now < x + L (Lease.feeds). Between that look and the feed the
    process may have stood still, yet for less than W since the feed before, or the machine would have
    been reset. So the last feed is before x + L + W, and the machine has been reset by x + L + 2W.
    Opening a watchdog feeds it: the same look comes before. The contact of a life is kept across lives of
    the daemon, on a tmpfs that goes with the boot; what is kept may be older than the truth, never
    younger. The exception, feeding on with VMs ended, does not matter here: (4).
 3. The judge read version v of the node's status, then that there was no ephemeral, at g, and saw nothing
    else since (Judge._count; in this order: a status that is newer would hide a return). A join writes
    the status in the transaction that makes the ephemeral, and the receipt is a compare-and-set of v: so
    no join lay between. Nor does one where this judge itself wrote v as it was, by such a compare-and-set
    (the proof that Ceph shuts the node out): its count goes on for v + 1. By 1. the last contact x was
    before g. The node had published Q = (L + 2W)·(1 + D) + 1 for this incarnation, in version v, so its
    watchdog was armed. At g + Q by the judge's clock, x + L + 2W has passed by the node's.
 4. A node that was cut off may go on feeding once nothing of it runs: it must have joined in this life
    (so a start that an earlier life had left to libvirt is L old or more; libvirt does not take so long),
    no lane is busy (each of them could start QEMU), libvirt was asked after that and listed none of our
    domains, and no other node was told that it may send one. It looks again four times a second, ends
    what it finds, and feeds on a look of the last 3 s only. A start looks at the lease immediately before
    libvirt is asked, on a lane that is busy meanwhile.

B. What an outage of the whole store changes

 5. While the store is out as a whole nobody can fence, so leases may grow. A coordinator answers for how
    long q its server has refused to serve. An asker that sent at v and received at r counts it if q >= (r
    - v) + H. With half of the servers or more out like that, no majority served at any moment of [v - H,
    v]. A server that still served then has lost its quorum by v - H and turned its clients away by v - H
    + S < v.
 6. So each judge's connection broke before v, and came back after v; its count began anew then (g > v),
    and v is good as contact for (3). A judge that did not notice makes no receipt: it counts up to the
    moment before a commit that succeeded on the same connection. v counts only if v < x + L: what is over
    stays over.
 7. The verdict comes in time: contact is P old at most, servers notice within S, count for H, are polled
    each POLL_S. They are asked each ASK_S, whether they answer or not; an answer that took ASK_S must have
    counted that much more, and comes that much later. P + S + H + POLL_S + 3·ASK_S <= L. The default of L
    has air above it: for a commit that is slow, or one poll that a server is too slow for.

C. Addresses of the primary: no two machines hold one

 8. The kernel drops an address by itself, whole seconds and KERNEL_S late at most: a primary gives it the
    whole seconds until c + A, where c is the moment before its last successful commit, which checked the
    role. What a client sends keeps its session, a ping each T/3 where it sends nothing else; the leader
    knows of it half a tick later. So a role that ends because its session was not heard of ends after c -
    T/3 + T - t. The session of a primary that holds addresses is never *closed*: it lets go of them
    first, or leaves the session to end.
 9. The next primary takes them A + KERNEL_S - (2T/3 - t) after it saw the role end, with D added.

What else must fit is in `check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pvc.config import Config
from pvc.errors import Invalid

DRIFT = 0.01
COARSE_S = 1.0
"""Timers of watchdogs and kernels."""
CONTACT_S = 1.0
"""A node proves its contact after so long."""
FEED_S = 1.0
ASK_S = 1.0
"""Coordinators are asked whether the store is out that often, and have that long to answer."""
POLL_S = 0.25
"""A coordinator looks at its own server while its session is away."""
RENEW_S = 1.0
"""The primary renews its addresses."""
KERNEL_S = 1.5
"""An address whose time is over is gone."""
LEAST_GRACE_S = 1.0
"""A node that lives and has lost its session has a new one, and has joined with it."""
LEAST_WATCHDOG_S = 4 * FEED_S
"""It is fed every FEED_S, and a feed may be late."""
MOST_WATCHDOG_S = 60.0
"""Q holds it twice."""
SESSION_TICKS = (2, 20)
"""What ZooKeeper grants, unless it is told otherwise."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Of one node. The names of pvc.toml, except `grace_s`, which is the cluster's."""

    session_timeout_s: float = 6.0
    store_tick_s: float = 0.5
    store_sync_ticks: int = 6
    lease_s: float = 13.0
    watchdog_s: float = 8.0
    address_s: float = 5.0
    grace_s: float = 2.0

    @classmethod
    def of(cls, config: Config, grace_s: float = 2.0) -> Timing:
        return cls(
            session_timeout_s=config.cluster.session_timeout_s,
            store_tick_s=config.cluster.store_tick_s,
            store_sync_ticks=config.cluster.store_sync_ticks,
            lease_s=config.daemon.lease_s,
            watchdog_s=config.daemon.watchdog_s,
            grace_s=grace_s,
        )

    @property
    def server_holds_s(self) -> float:
        """S: a server that lost its quorum may serve so much longer."""
        return self.store_tick_s * (self.store_sync_ticks + 1)

    @property
    def out_after_s(self) -> float:
        """H: for so long half of the servers must have refused to serve."""
        return self.server_holds_s + 2 * self.store_tick_s

    @property
    def verdict_s(self) -> float:
        """From the last contact until an outage of the whole store is established, at the latest."""
        return CONTACT_S + self.server_holds_s + self.out_after_s + POLL_S + 3 * ASK_S

    def quiet_after_s(self, watchdog_s: float | None = None) -> float:
        """Q: so long after a judge saw this node gone nothing of it runs, if its watchdog is armed.

        `watchdog_s` is what the device granted.
        """
        granted = self.watchdog_s if watchdog_s is None else watchdog_s
        return round((self.lease_s + 2 * granted) * (1 + DRIFT) + COARSE_S, 3)

    @property
    def address_wait_s(self) -> float:
        """From the end of a primary's role, seen by the next one, until its addresses are gone."""
        left = (self.address_s + KERNEL_S) * (1 + DRIFT)
        return max(0.0, left - (self.session_timeout_s * 2 / 3 - self.store_tick_s) * (1 - DRIFT))

    def differs_from(self, zoo_cfg: Mapping[str, str]) -> str:
        """What a ZooKeeper server has otherwise than is believed here; empty: nothing, or it does not say."""
        believed = {
            "tickTime": ("cluster.store_tick_s", self.store_tick_s * 1000),
            "syncLimit": ("cluster.store_sync_ticks", self.store_sync_ticks),
        }
        wrong = [
            f"{name} = {zoo_cfg[name]} does not fit {key}"
            for name, (key, value) in believed.items()
            if name in zoo_cfg and zoo_cfg[name] != f"{value:g}"
        ]
        return f"{' and '.join(wrong)} of its pvc.toml" if wrong else ""

    def check(self) -> None:
        """Raises Invalid, naming the key, where times do not fit together."""
        least, most = (ticks * self.store_tick_s for ticks in SESSION_TICKS)
        _at_least(
            "cluster.session_timeout_s",
            self.session_timeout_s,
            max(least, 2 * RENEW_S),
            f"ZooKeeper grants no less than {SESSION_TICKS[0]} ticks, and contact is proved every second",
        )
        _at_most(
            "cluster.session_timeout_s",
            self.session_timeout_s,
            most,
            f"ZooKeeper grants no more than {SESSION_TICKS[1]} ticks: see cluster.store_tick_s",
        )
        _at_least("cluster.store_sync_ticks", self.store_sync_ticks, 1, "ZooKeeper needs a syncLimit")
        _at_least(
            "daemon.lease_s",
            self.lease_s,
            self.verdict_s,
            "so long it takes to find out that the whole store is out, and not this node",
        )
        _at_least(
            "daemon.lease_s",
            self.lease_s,
            self.session_timeout_s + 2 * CONTACT_S,
            "a node must outlast the change of a ZooKeeper server, which takes a session at most",
        )
        _at_least(
            "daemon.watchdog_s",
            self.watchdog_s,
            LEAST_WATCHDOG_S,
            f"it is fed every {FEED_S:g} s, and a feed may be late",
        )
        _at_most(
            "daemon.watchdog_s",
            self.watchdog_s,
            MOST_WATCHDOG_S,
            "others wait for it twice before they recover",
        )
        if self.watchdog_s != int(self.watchdog_s):
            raise Invalid(f"daemon.watchdog_s = {self.watchdog_s:g} is too fine", hint="whole seconds")
        _at_least("address_s", self.address_s, 3 * RENEW_S, "addresses are renewed every second")
        _at_most("address_s", self.address_s, self.lease_s, "addresses go before VMs do")
        _at_least(
            "fence_grace_s", self.grace_s, LEAST_GRACE_S, "a node whose session ended joins again at once"
        )


def _at_least(key: str, value: float, least: float, why: str) -> None:
    if value < least:
        raise Invalid(f"{key} = {value:g} is too short: at least {least:g}", hint=why)


def _at_most(key: str, value: float, most: float, why: str) -> None:
    if value > most:
        raise Invalid(f"{key} = {value:g} is too long: at most {most:g}", hint=why)
