"""The daemon as a process of the machine: what it is made of, how it begins, and how it ends."""

from __future__ import annotations

import fcntl
import importlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pvc.clock import Clock, SystemClock
from pvc.cluster import guests, paths
from pvc.cluster.codec import Unreadable
from pvc.cluster.node import NodeRole
from pvc.cluster.store import Store
from pvc.cluster.timing import ASK_S, Timing
from pvc.cluster.view import View
from pvc.config import Config
from pvc.errors import Conflict, Failed, PVCError, Unavailable
from pvc.node.daemon import LONGEST_WAIT_S, Daemon, host_bridges, listed_coordinators
from pvc.node.drivers import DriverError
from pvc.node.drivers.hypervisor import Hypervisor
from pvc.node.drivers.networks import HostAddresses
from pvc.node.lease import ContactFile, Guard, Guarding
from pvc.node.loop import Loop
from pvc.node.outage import Outage, OwnServer
from pvc.node.working import blocklist, work

if TYPE_CHECKING:
    from pvc.node.coordinator import Coordinating
    from pvc.node.network import Networks
    from pvc.node.own_networks import OwnNetworks
    from pvc.node.services import Commit, Service, Services

log = logging.getLogger(__name__)

LATE_S = 30.0
"""A coordinator whose round takes longer hangs."""
NETWORKS_S = 5.0
"""So long VMs wait for the networks when the daemon starts."""
SERVICES_S = 20.0
"""For the services of networks to end, after the node has left."""
DRAIN_S = 60.0
"""For what lanes have begun (a start, a migration) to end before it leaves: less than systemd waits."""


class Process:
    """The daemon as a process of systemd: signals, readiness, watchdog, and the waiting in between."""

    def __init__(self, config: Config, notify: Callable[..., object]) -> None:
        self.config = config
        self.notify = notify
        self.is_well: Callable[[], bool] = lambda: True
        """Of what runs beside the loop: systemd restarts a daemon of which a part hangs."""
        self.woken = threading.Event()
        self.ending = threading.Event()

    def end(self, *_: object) -> None:
        self.ending.set()
        self.woken.set()

    def wait(self, seconds: float) -> None:
        self.woken.wait(seconds)
        self.woken.clear()

    def feed(self) -> None:
        if self.is_well():
            self.notify("WATCHDOG=1")

    def loop(self, daemon: Daemon) -> None:
        ready = False
        while not self.ending.is_set():
            wait = LONGEST_WAIT_S
            try:
                wait = daemon.step()
                if not ready and daemon.is_ready:
                    ready = True
                    self.notify("READY=1", f"STATUS=in the cluster as {daemon.name}")
                    log.info("%s is in state run", daemon.name)
            except Conflict as error:
                log.info("%s; looking again", error.message)
                wait = 0.1
            except (Unavailable, DriverError, Unreadable) as error:
                # A document may be of a newer pvc: what runs here outlives it.
                log.warning("%s", error.message)
                wait = 1.0
            except PVCError:
                raise
            except Exception:
                # The boundary: VMs and the other duties of the daemon outlive a mistake in a round.
                log.exception("this round failed: a bug in pvc")
                wait = 1.0
            self.feed()
            self.wait(wait)

    def drain(self, daemon: Daemon, is_busy: Callable[[], bool] = lambda: False) -> None:
        """Begin nothing more, and let what goes on end: it would be taken up again, but cleaner is better."""
        until = daemon.clock.monotonic() + DRAIN_S
        while (daemon.lanes.busy or is_busy()) and daemon.clock.monotonic() < until:
            with suppress(PVCError):
                daemon.stay()
            self.feed()
            self.wait(1.0)


LATER = (
    "pvc.cluster.zookeeper",
    "pvc.node.blocked",
    "pvc.node.benchmark",
    "pvc.node.certificates",
    "pvc.node.coordinator",
    "pvc.node.dhcp",
    "pvc.node.drivers.blocklist",
    "pvc.node.drivers.dnsmasq",
    "pvc.node.drivers.fourletter",
    "pvc.node.drivers.frr",
    "pvc.node.drivers.gateways",
    "pvc.node.drivers.host_networks",
    "pvc.node.drivers.ipmi",
    "pvc.node.drivers.links",
    "pvc.node.drivers.libvirt",
    "pvc.node.drivers.loopback",
    "pvc.node.drivers.netlink",
    "pvc.node.drivers.nft",
    "pvc.node.drivers.ping",
    "pvc.node.drivers.powerdns",
    "pvc.node.drivers.redfish",
    "pvc.node.drivers.rtnetlink",
    "pvc.node.drivers.sriov",
    "pvc.node.drivers.tunnels",
    "pvc.node.drivers.watchdog",
    "pvc.node.filters",
    "pvc.node.gateway",
    "pvc.node.locks",
    "pvc.node.metadata",
    "pvc.node.monitors",
    "pvc.node.names",
    "pvc.node.network",
    "pvc.node.own_networks",
    "pvc.node.path_mtu",
    "pvc.node.peer",
    "pvc.node.ceph_watch",
    "pvc.node.devices",
    "pvc.node.drivers.ceph_volume",
    "pvc.node.drivers.directory",
    "pvc.node.drivers.nbd",
    "pvc.node.drivers.qcow2",
    "pvc.node.drivers.images",
    "pvc.node.drivers.storage",
    "pvc.node.osds",
    "pvc.node.diffs",
    "pvc.node.storage",
    "pvc.node.plan_dhcp",
    "pvc.node.plan_host_network",
    "pvc.node.services",
    "pvc.node.sriov",
    "pvc.node.tasks",
    "pvc.node.transfer",
    "pvc.node.upkeep",
    "pvc.node.vm_snapshots",
    "pvc.peerclient",
    "pvc.secretbox",
    "pvc.node.vm_disks",
    "pvc.node.vm_download",
    "pvc.node.vm_export",
    "pvc.node.vm_upload",
)
"""What a daemon needs beside this module; some of it only when something has gone wrong."""


WHERE_PACKAGED = ("pvc.node.drivers.ceph", "pvc.node.drivers.ceph_pools", "pvc.node.drivers.rbd")
"""Only where its Debian packages are: python3-rados and python3-rbd."""


def load_everything() -> None:
    """Before READY: the file that pvc is may be replaced under a running daemon, and then imports fail."""
    for name in LATER:
        importlib.import_module(name)
    for name in WHERE_PACKAGED:
        with suppress(ImportError):
            importlib.import_module(name)


def main(config: Config) -> None:
    """Run until SIGTERM; raises what the preflight finds wrong."""
    timing, clock = Timing.of(config), SystemClock()
    timing.check()

    from pvc.node.drivers.libvirt import LibvirtHypervisor

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to ask
    lock = _only_one(config)
    _come_first()
    hypervisor = LibvirtHypervisor(config.daemon.libvirt_uri)
    guard = _guard(config, timing, clock, hypervisor)
    guarding = Guarding(guard)
    guard.begin()  # before anything that takes time: an earlier life may have left little of it
    guarding.start()
    load_everything()
    own_networks = _own_networks(config, guard, clock)
    config = own_networks.in_force(config)

    from pvc.cluster.zookeeper import ZooKeeperStore
    from pvc.node import certificates
    from pvc.node.drivers.host import boot_id
    from pvc.node.drivers.netlink import NetlinkAddresses
    from pvc.node.peer import PeerServer
    from pvc.node.upkeep import Upkeep, remove_old_consoles
    from pvc.systemd import notify

    process = Process(config, notify)
    signal.signal(signal.SIGTERM, process.end)
    signal.signal(signal.SIGINT, process.end)
    secret = config.secret()
    host = NetlinkAddresses()
    drop_leftovers(host)
    store = ZooKeeperStore(
        config.servers(), secret=secret, session_timeout_s=config.cluster.session_timeout_s
    )
    coordinating: Coordinating | None = None
    ended_by: PVCError | None = None
    own = _own_server(config, store, clock)
    peers = PeerServer(config, own.without_quorum_s if own else lambda: 0.0)
    guard.is_out = _outage(config, own, timing, clock).is_out
    try:
        if certificates.are_there(config):
            peers.start()  # others may ask while the store is out
        if not (_wait_for_cluster(process, store) and _wait_for_libvirt(process, hypervisor)):
            return
        _check_grace(config, store)
        changed = certificates.ensure(config, store)
        daemon = Daemon(
            *(config, store, hypervisor, clock),
            wake=process.woken.set,
            bridges=host_bridges,
            guard=guard,
            boot=boot_id(),
        )
        daemon.wrong_ticks = _wrong_ticks(config, timing)
        own_networks.contact, own_networks.publish = daemon.has_contact, daemon.own_networks_are
        try:
            certificates.serve(config, changed)
        except PVCError as error:  # upkeep tries again
            log.error("no VM can be migrated here: %s", error.message)
        os.makedirs(config.paths.console, exist_ok=True)
        peers.start()
        upkeep = Upkeep(
            [
                lambda: certificates.renew(config, store, peers.reload),
                lambda: remove_old_consoles(config.paths.console, store, clock.wall()),
                daemon.view.forget_missing,
            ]
        )
        upkeep.start()
        networking = Networking(daemon, store, clock)
        coordinating = _coordinate(process, daemon, store, host, secret)
        splitting = _split_devices(daemon, store, clock)
        serving = _serve(daemon, store, clock, networking.networks)
        working = work(daemon, store, clock, hypervisor, peers)
        try:
            process.loop(daemon)
            notify("STOPPING=1")
            daemon.begin_to_leave()
            process.is_well = lambda: True
            if coordinating is not None:
                coordinating.close()
            if serving is not None:
                serving.end()
            working.end()
            process.drain(daemon, working.is_busy)
            log.info("leaving the cluster; VMs go on")
            daemon.leave()
        except PVCError as error:
            ended_by = error
        finally:
            if coordinating is not None:
                coordinating.close()
            if serving is not None:
                serving.close()
            working.close()
            networking.close()
            if splitting is not None:
                splitting.close()
            upkeep.close()
    finally:
        if not guard.lease.armed:
            guarding.close()  # else it goes on until the process has ended
        elif guard.watchdog is not None:
            log.error("the watchdog stays armed, and resets this machine unless a daemon starts soon")
        peers.close()
        hypervisor.close()
        # A session that is closed ends the role at once. One that is left ends when the addresses have.
        if coordinating is None or coordinating.close():
            store.close()
        lock.close()
    if ended_by is not None:
        end_at_once(ended_by)


def end_at_once(error: PVCError) -> None:
    """Python waits for threads, and a lane may be in a migration: the next life is not to wait for that."""
    log.error("%s", error.message)
    logging.shutdown()
    os._exit(1)


def _wrong_ticks(config: Config, timing: Timing) -> str:
    """Of the servers that say: one that is down is believed to be as the others are."""
    from pvc.node.drivers.fourletter import settings

    for server in config.servers():
        host, _, port = server.rpartition(":")
        if wrong := timing.differs_from(settings(host, int(port))):
            return f"ZooKeeper on {host}: {wrong}: it promises nothing"
    return ""


def _check_grace(config: Config, store: Store) -> None:
    """Of the cluster. Not to start would end the VMs here, and would help nobody."""
    try:
        Timing.of(config, View(store).cluster().fence_grace_s).check()
    except PVCError as error:
        log.error("%s", error.message)


def _come_first() -> None:
    """Before threads begin: a daemon that gets no time, or is killed to save memory, costs all VMs here."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
        Path("/proc/self/oom_score_adj").write_text("-900")


def _guard(config: Config, timing: Timing, clock: Clock, hypervisor: Hypervisor) -> Guard:
    from pvc.node.drivers.watchdog import find

    watchdog, why_none = find(config.daemon.watchdog)
    memory = ContactFile(coordinators=listed_coordinators(config))
    guard = Guard(timing, clock, hypervisor, watchdog, memory, why_none=why_none)
    guard.doubt = memory.doubt()
    return guard


def _own_server(config: Config, store: Store, clock: Clock) -> OwnServer | None:
    """Of a coordinator: its ZooKeeper server, looked at from beside."""
    from pvc.node.drivers.fourletter import refuses

    host, _, port = config.servers()[0].rpartition(":")
    if host != config.node.address:
        return None
    own = OwnServer(lambda: refuses(host, int(port)), lambda: store.session, clock)
    Loop("own server", clock).start(own.look)
    return own


def _outage(config: Config, own: OwnServer | None, timing: Timing, clock: Clock) -> Outage:
    from pvc.peerclient import ask

    def asked(address: str) -> float:
        if own is not None and address == config.node.address:
            return own.without_quorum_s()
        answer = ask(config, address, config.daemon.console_port, "quorum", timeout_s=ASK_S)
        return float(answer["without_quorum_s"])

    return Outage(listed_coordinators(config), asked, timing, clock)


def drop_leftovers(host: HostAddresses) -> None:
    """Floating addresses that an earlier life has left: nothing says that they belong here."""
    try:
        for address in host.held():
            log.info("dropping %s, which an earlier life has left", address)
            host.drop(address)
    except DriverError as error:
        log.warning("%s; the kernel ends what was left", error.message)


def _coordinate(
    process: Process, daemon: Daemon, store: Store, host: HostAddresses, secret: str
) -> Coordinating | None:
    """Beside the node's own loop, where the node is a coordinator."""
    if daemon.role is not NodeRole.COORDINATOR:
        return None
    from pvc.node.coordinator import Coordinating, Coordinator, verify_lanes
    from pvc.node.drivers.fourletter import refuses
    from pvc.node.drivers.power import AnyPower

    own_server, _, port = daemon.config.servers()[0].rpartition(":")
    clock, timing = SystemClock(), Timing.of(daemon.config)
    made = Coordinating(
        lambda wake: Coordinator(
            *(daemon.me, store, AnyPower(), host, clock, timing, secret),
            wake=wake,
            verify=verify_lanes,
            is_store_refusing=lambda: refuses(own_server, int(port)),
            blocklist=blocklist(),
        ),
        clock,
    )
    keeper = made.coordinator.keeper
    keeper.changed, daemon.floating = daemon.wake, keeper.shown
    process.is_well = lambda: clock.monotonic() < made.beat + LATE_S
    made.start()
    return made


class Networking:
    """Links, routing and the look at paths, each with a loop of its own: none waits for another."""

    def __init__(self, daemon: Daemon, store: Store, clock: Clock) -> None:
        from pvc.node.drivers.frr import FRR
        from pvc.node.drivers.links import NetlinkLinks
        from pvc.node.drivers.nft import routes
        from pvc.node.drivers.ping import ping
        from pvc.node.drivers.tunnels import NetlinkTunnels
        from pvc.node.gateway_ways import GatewayWays
        from pvc.node.network import Networks
        from pvc.node.path_mtu import PathMTU
        from pvc.node.routing import Speaking

        self.loops = links, probing, routing = tuple(
            Loop(name, clock) for name in ("networks", "path MTU", "routing")
        )
        speaking = Speaking(FRR(), routing.wake, links.wake)
        path_mtu = PathMTU(ping, clock, probing.wake, links.wake)
        node = daemon.config.node
        self.networks = Networks(
            node.address,
            node.bridge_device,
            store,
            NetlinkLinks(),
            speaking,
            clock,
            daemon.networks_are,
            links.wake,
            path_mtu,
            GatewayWays(NetlinkTunnels(), clock),
            routes,
        )
        links.start(self.networks.step)
        probing.start(path_mtu.step)
        routing.start(speaking.step)
        if not self.networks.linked.wait(NETWORKS_S):
            log.warning("the networks are not ready after %g s; VMs that need them wait", NETWORKS_S)

    def close(self) -> None:
        for loop in reversed(self.loops):
            loop.close()


class Serving:
    """The services of networks, with the loop that they have for themselves."""

    def __init__(self, make: Callable[[Callable[[], None]], Services], clock: Clock) -> None:
        self.loop = Loop("services", clock)
        self.closing: threading.Thread | None = None
        self.services = make(self.loop.wake)
        self.loop.start(self.services.step)

    def end(self) -> None:
        """Beside all else that the daemon has to end: systemd and the kernel may take their time."""
        if self.closing is None:
            self.closing = threading.Thread(target=self._end, name="end of services", daemon=True)
            self.closing.start()

    def _end(self) -> None:
        self.services.close()
        self.loop.close()

    def close(self) -> None:
        self.end()
        if self.closing is not None:
            self.closing.join(SERVICES_S)
            if self.closing.is_alive():
                log.error("the services of networks have not ended within %g s", SERVICES_S)


def _serve(daemon: Daemon, store: Store, clock: Clock, networks: Networks) -> Serving | None:
    """Where the node is a coordinator, which may be primary."""
    if daemon.role is not NodeRole.COORDINATOR:
        return None
    from pvc.node.dhcp import DHCP
    from pvc.node.drivers.dnsmasq import Dnsmasq
    from pvc.node.drivers.gateways import NetlinkGateways
    from pvc.node.drivers.loopback import NetlinkLoopback, is_served
    from pvc.node.drivers.nft import NFT, routes
    from pvc.node.drivers.powerdns import PowerDNS
    from pvc.node.filters import Filters
    from pvc.node.gateway import Gateways
    from pvc.node.metadata import MetadataAddress
    from pvc.node.names import Names
    from pvc.node.services import Services

    announcing = Loop("announcements", clock)
    host = NetlinkGateways()
    filters = Filters(NFT(), daemon.config.among_nodes(), routes, host, clock)
    gateways = Gateways(host, lambda: networks.bridges, filters.guards, clock, announcing.wake)

    def services(commit: Commit, wake: Callable[[], None]) -> Sequence[Service]:
        """Filters come before what they guard, and addresses before who answers there."""
        dhcp = DHCP(Dnsmasq(wake), commit, clock)
        names = Names(daemon.name, store, commit, PowerDNS(), clock.wall)
        metadata = MetadataAddress(NetlinkLoopback(), lambda: is_served(guests.ADDRESS, guests.PORT))
        return filters, gateways, metadata, dhcp, names

    def make(wake: Callable[[], None]) -> Services:
        return Services(daemon.name, store, lambda commit: services(commit, wake), daemon.services_are, wake)

    made = Serving(make, clock)
    networks.bridges_changed = made.loop.wake
    announcing.start(gateways.announce)
    return made


def _own_networks(config: Config, guard: Guard, clock: Clock) -> OwnNetworks:
    """Kept from before the store is asked for. When SIGHUP comes, what pvc.toml describes now is tried."""
    from pvc.config import load
    from pvc.node.drivers.host_networks import NetlinkHostNetworking
    from pvc.node.own_networks import FileMemory, OwnNetworks, site_of

    made = OwnNetworks(
        NetlinkHostNetworking(),
        FileMemory(config.paths.state),
        lambda: site_of(load()),
        config.node.address,
        listed_coordinators(config),
        clock,
    )
    made.may_be_cut_off = lambda: not guard.lease.armed or guard.lease.over
    try:
        made.begin()
    except PVCError as error:
        log.error("%s", error.message)
    except Exception:  # the boundary: VMs need the daemon more than it needs to look after these
        log.exception("the node's own networks stay as they are: a bug in pvc")
    loop = Loop("own networks", clock)

    def ask(*_: object) -> None:
        made.ask()
        loop.wake()

    signal.signal(signal.SIGHUP, ask)
    loop.start(made.step)
    return made


def _split_devices(daemon: Daemon, store: Store, clock: Clock) -> Loop | None:
    """Where pvc.toml names devices to split."""
    devices = daemon.config.node.sriov_devices
    if not devices:
        if View(store).nodes([daemon.name])[daemon.name].status.sriov:
            daemon.functions_are(())
        return None
    from pvc.node.drivers.sriov import KernelVirtualFunctions
    from pvc.node.sriov import Functions

    loop = Loop("virtual functions", clock)
    functions = Functions(
        daemon.name, devices, store, KernelVirtualFunctions(), daemon.functions_are, loop.wake
    )
    loop.start(functions.step)
    return loop


def _only_one(config: Config) -> TextIO:
    """Two daemons of one node would both be right: the second one must not begin."""
    where = Path(config.paths.state, "node.lock")
    where.parent.mkdir(parents=True, exist_ok=True)
    lock = where.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise Failed(f"a node daemon runs here already ({where} is locked)") from None
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _wait_for_cluster(process: Process, store: Store) -> bool:
    """Until ZooKeeper answers and the cluster is initialised; False when told to end meanwhile."""

    def is_there() -> bool:
        store.connect(2.0)  # type: ignore[attr-defined]
        (found,), _ = store.read([paths.CLUSTER], [], lambda path: process.woken.set())
        return found is not None

    return wait_until(process, is_there, "waiting for `pvc --direct cluster init`")


def _wait_for_libvirt(process: Process, hypervisor: Hypervisor) -> bool:
    """Until it answers; False when told to end meanwhile. It may begin later than this daemon."""
    return wait_until(process, lambda: bool(hypervisor.capabilities().emulator), "libvirt knows no QEMU")


def wait_until(process: Process, is_there: Callable[[], bool], otherwise: str) -> bool:
    """Asks each second, and says why not when that is another reason; False when told to end meanwhile."""
    said = ""
    while not process.ending.is_set():
        try:
            if is_there():
                return True
            missing = otherwise
        except (Unavailable, DriverError) as error:
            missing = error.message
        if missing != said:
            log.info("%s", missing)
            said = missing
        process.notify(f"STATUS={missing}", "EXTEND_TIMEOUT_USEC=30000000", "WATCHDOG=1")
        process.wait(1.0)
    return False
