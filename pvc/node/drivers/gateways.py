"""Gateways of managed networks: pairs of veth devices, and what this host passes on, through netlink."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_interface
from pathlib import Path
from typing import TYPE_CHECKING

from pvc.cluster.addresses import device_for
from pvc.cluster.filters import Transit
from pvc.cluster.network import GATEWAY_MAC, bridge_name, gateway_name, gateway_port_name
from pvc.node.drivers import DriverError, rtnetlink
from pvc.node.drivers.links import GATEWAYS, OURS, SYSCTL
from pvc.node.drivers.netlink import IFA_F_NODAD, IFF_LOOPBACK, IFF_UP, opened, refused, tell, unsupported
from pvc.node.drivers.networks import Gateway

if TYPE_CHECKING:
    from pyroute2 import IPRoute

log = logging.getLogger(__name__)

BEFORE = "/run/pvc/forwarding.json"
"""What a setting of the host was before we changed it: gone with the settings, when the host reboots."""
FAR = "192.0.2.1"
"""Where nobody is: the way there is the default route."""

ROUTER4 = {"forwarding": 1, "rp_filter": 1, "arp_ignore": 1, "accept_source_route": 0, "accept_redirects": 0}
"""Of a gateway: guests speak for themselves only, learn of no address of the host but this one, and no
route from anybody."""
ROUTER6 = {"accept_ra": 0, "accept_redirects": 0, "accept_dad": 0, "addr_gen_mode": 1}
"""It has no address but those that it is given. Whether IPv6 packets pass, `all` says."""
ALL4, ALL6 = "ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"
NUMBERS4 = {
    "forwarding": 0,
    "rp_filter": 7,
    "arp_ignore": 18,
    "accept_source_route": 8,
    "accept_redirects": 3,
}
NUMBERS6 = {"accept_ra": 3, "accept_redirects": 4, "accept_dad": 27, "disable_ipv6": 26}
"""Where the kernel tells each, in the list that it gives with a link."""


class NetlinkGateways:
    """HostGateways of the network namespace of the calling thread."""

    def __init__(self, before: str = BEFORE) -> None:
        self._before = Path(before)

    def gateways(self) -> Mapping[int, Gateway]:
        """Two calls of the kernel, however many there are."""
        links = rtnetlink.links()
        ours = {link.name: link for link in links if link.group == GATEWAYS}
        ends = {link.index: vni for link in ours.values() if (vni := _vni(link.name, "gw"))}
        addresses: dict[int, list[str]] = {vni: [] for vni in ends.values()}
        for one in rtnetlink.addresses() if ends else ():
            if one.index in ends:
                addresses[ends[one.index]].append(one.text)
        names = {link.index: link.name for link in links}
        return {
            vni: Gateway(
                vni,
                ours[gateway_name(vni)].mtu,
                tuple(sorted(addresses[vni])),
                _is_well(vni, ours, names, bool([one for one in addresses[vni] if ":" in one])),
            )
            for vni in ends.values()
        }

    def give(self, gateways: Iterable[Gateway]) -> Mapping[int, str]:
        failed: dict[int, str] = {}
        with opened("to make gateways") as route:
            for gateway in gateways:
                try:
                    with refused(f"to make {gateway_name(gateway.vni)}"):
                        _give(route, gateway)
                except DriverError as error:
                    failed[gateway.vni] = error.message
        return failed

    def take(self, vnis: Iterable[int]) -> None:
        """All of them in one call: each alone takes the kernel its time."""
        leaving, known = {*vnis}, self.gateways().keys()
        if leaving >= known:
            rtnetlink.remove_group(GATEWAYS)
            return
        with opened("to remove gateways") as route:
            for vni in leaving & known:
                route.link("del", index=_index(gateway_name(vni)))

    def announce(self, vnis: Iterable[int]) -> None:
        found = self.gateways()
        every = [(vni, address) for vni in vnis if vni in found for address in found[vni].addresses]
        for vni, address in every:
            try:
                tell(gateway_name(vni), ip_interface(address), is_router=True)
            except OSError as error:
                log.warning("%s of network %s is not announced: %s", address, vni, error.strerror)

    # Forwarding

    def forward(self, towards: Iterable[str], *, ipv6: bool) -> bool:
        wanted: dict[str, str] = {}
        for device in sorted(_devices([*towards, FAR])):
            wanted[f"ipv4/conf/{device}/forwarding"] = "1"
        if ipv6:
            # The order matters: a host that forwards forgets routes that it was told of, except with a 2.
            wanted |= {f"ipv6/conf/{name}/accept_ra": "2" for name in _told_routes()}
            wanted[ALL6] = "1"
        missing = {name: known for name in wanted if (known := _read(name)) not in (None, wanted[name])}
        if missing:
            self._remember(missing)
        for name in missing:
            _write(name, wanted[name])
        return bool(missing)

    def end_forwarding(self) -> None:
        before = self._remembered()
        for name in sorted(before, key=lambda name: name != ALL6):
            if _read(name) is not None:
                _write(name, before[name])
        self._before.unlink(missing_ok=True)

    def transit(self) -> Transit:
        before = self._remembered()
        links = [link for link in rtnetlink.links() if link.group not in (OURS, GATEWAYS)]
        # Whoever makes the whole host a router says so here, as we never do: also after us.
        is_router4 = _read(ALL4) == "1"
        devices = (
            link.name
            for link in links
            if link.ipv4
            and link.ipv4[NUMBERS4["forwarding"]] == 1
            and before.get(f"ipv4/conf/{link.name}/forwarding", "1") == "1"
        )
        return Transit(
            is_router4,
            before.get(ALL6, _read(ALL6)) == "1",
            () if is_router4 else tuple(sorted(devices)),
            tuple(sorted(link.name for link in links if link.kind == "bridge")),
        )

    def is_left(self) -> bool:
        return self._before.exists() or bool(self.gateways())

    def _remembered(self) -> dict[str, str]:
        try:
            found = json.loads(self._before.read_text())
        except (OSError, ValueError):
            return {}
        return {str(name): str(value) for name, value in found.items()}

    def _remember(self, values: Mapping[str, str]) -> None:
        """What was first is what was before us."""
        try:
            self._before.parent.mkdir(parents=True, exist_ok=True)
            half = self._before.with_suffix(".half")
            half.write_text(json.dumps({**values, **self._remembered()}))
            half.replace(self._before)
        except OSError as error:
            raise DriverError(f"{self._before} cannot be written: {error.strerror}") from None


# Making


def _give(route: IPRoute, gateway: Gateway) -> None:
    device, port = gateway_name(gateway.vni), gateway_port_name(gateway.vni)
    known = _group(route, device)
    if known not in (None, GATEWAYS):
        raise DriverError(f"{device} is a device of the host's own")
    bridge = _index(bridge_name(gateway.vni))
    if known is None:
        _make(device, port, gateway.mtu, route)
    here, there = _index(device), _index(port)
    _set_up(device, port, has_ipv6=any(":" in one for one in gateway.addresses))
    route.link("set", index=there, mtu=gateway.mtu, master=bridge, state="up")
    # Up before it has addresses: those of IPv6 are of use only then.
    route.link("set", index=here, mtu=gateway.mtu, address=GATEWAY_MAC, state="up")
    _address(route, here, gateway.addresses, is_new=known is None)


def _make(device: str, port: str, mtu: int, route: IPRoute) -> None:
    with unsupported("the kernel has no veth devices: is its module loaded?"):
        route.link(
            "add",
            ifname=device,
            kind="veth",
            group=GATEWAYS,
            mtu=mtu,
            address=GATEWAY_MAC,
            peer={"ifname": port, "group": GATEWAYS, "mtu": mtu},
        )


def _set_up(device: str, port: str, *, has_ipv6: bool) -> None:
    """Before it is up. Where the kernel has no IPv6, there is nothing to be careful with."""
    settings = {f"ipv4/conf/{device}/{key}": value for key, value in ROUTER4.items()}
    settings |= {f"ipv6/conf/{device}/{key}": value for key, value in ROUTER6.items()}
    settings[f"ipv6/conf/{device}/disable_ipv6"] = int(not has_ipv6)
    settings[f"ipv6/conf/{port}/disable_ipv6"] = 1
    for name, value in settings.items():
        if _read(name) not in (None, str(value)):
            _write(name, str(value))


def _address(route: IPRoute, index: int, wanted: tuple[str, ...], *, is_new: bool) -> None:
    found = set() if is_new else {one.text for one in rtnetlink.addresses() if one.index == index}
    for text in found.difference(wanted):
        value = ip_interface(text)
        route.addr("del", index=index, address=str(value.ip), prefixlen=value.network.prefixlen)
    for text in wanted:
        if text not in found:
            value = ip_interface(text)
            flags = IFA_F_NODAD if value.version == 6 else 0
            length = value.network.prefixlen
            route.addr("add", index=index, address=str(value.ip), prefixlen=length, flags=flags)


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise DriverError(f"there is no device {name}", retryable=True) from None


def _group(route: IPRoute, name: str) -> int | None:
    """None: there is none of that name."""
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        return None
    return int(dict(next(iter(route.get_links(index)))["attrs"]).get("IFLA_GROUP", 0))


def _vni(name: str, prefix: str) -> int:
    """0: it is called like none."""
    number = name.removeprefix(prefix)
    return int(number) if name.startswith(prefix) and number.isdigit() else 0


def _is_well(
    vni: int, ours: Mapping[str, rtnetlink.RawLink], names: Mapping[int, str], has_ipv6: bool
) -> bool:
    here, there = ours[gateway_name(vni)], ours.get(gateway_port_name(vni))
    if there is None or not here.flags & there.flags & IFF_UP:
        return False
    settings6 = {**ROUTER6, "disable_ipv6": int(not has_ipv6)}
    return (
        here.mac == GATEWAY_MAC
        and there.mtu == here.mtu
        and names.get(there.master) == bridge_name(vni)
        and _holds(here.ipv4, NUMBERS4, ROUTER4)
        and _holds(here.ipv6, NUMBERS6, settings6)
        and _holds(there.ipv6, NUMBERS6, {"disable_ipv6": 1})
    )


def _holds(told: tuple[int, ...], numbers: Mapping[str, int], wanted: Mapping[str, int]) -> bool:
    return not told or all(told[numbers[key]] == value for key, value in wanted.items() if key in numbers)


# Forwarding


def _devices(towards: Iterable[str]) -> set[str]:
    """That lead to those addresses, of which the host may have one itself."""
    links = {link.index: link for link in rtnetlink.links()}
    own = [
        (link.name, ip_interface(one.text))
        for one in rtnetlink.addresses()
        if (link := links.get(one.index)) and not link.flags & IFF_LOOPBACK and link.group != GATEWAYS
    ]
    found = {device_for(ip_interface(address), own) or _way_to(address, links) for address in towards}
    return {device for device in found if device}


def _way_to(address: str, links: Mapping[int, rtnetlink.RawLink]) -> str:
    link = links.get(rtnetlink.way_to(str(ip_interface(address).ip)))
    return link.name if link and not link.flags & IFF_LOOPBACK and link.group not in (OURS, GATEWAYS) else ""


def _told_routes() -> Iterator[str]:
    """Devices on which the host takes routes from routers, as one that does not forward."""
    accepts = NUMBERS6["accept_ra"]
    for link in rtnetlink.links():
        if link.group not in (OURS, GATEWAYS) and link.ipv6 and link.ipv6[accepts] == 1:
            yield link.name


def _read(name: str) -> str | None:
    try:
        return (SYSCTL / name).read_text().strip()
    except OSError:
        return None


def _write(name: str, value: str) -> None:
    try:
        (SYSCTL / name).write_text(value)
    except OSError as error:
        raise DriverError(f"{SYSCTL / name} cannot be set: {error.strerror}", retryable=True) from None
