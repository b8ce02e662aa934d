"""Bridges, VXLAN and VLAN devices of this host, through netlink."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvc.cluster.network import GATEWAY_GROUP, LINK_GROUP
from pvc.node.drivers import DriverError
from pvc.node.drivers.netlink import IFF_UP, index_of, opened, unsupported
from pvc.node.drivers.networks import Link, Vlan, Vxlan

if TYPE_CHECKING:
    from pyroute2 import IPRoute

OURS, GATEWAYS = LINK_GROUP, GATEWAY_GROUP
QUIET = {"ipv6": {"disable_ipv6": "1"}, "ipv4": {"rp_filter": "1", "arp_ignore": "8"}}
"""Otherwise a guest could reach the node's services through its bridge.

No IPv6; no answer to ARP; and of IPv4 nothing is taken, since no route leads back through such a link.
"""
SYSCTL = Path("/proc/sys/net")

ABOUT_LINKS = frozenset(
    ("IFLA_IFNAME", "IFLA_MTU", "IFLA_GROUP", "IFLA_MASTER", "IFLA_LINK", "IFLA_LINKINFO")
)
ABOUT_KINDS = frozenset(("IFLA_INFO_KIND",))
ABOUT_DATA = frozenset(("IFLA_INFO_DATA",))
ABOUT_PORT = frozenset(("IFLA_INFO_SLAVE_DATA",))
ABOUT_PORTS = frozenset(("IFLA_BRPORT_LEARNING",))
ABOUT_TUNNELS = frozenset(
    f"IFLA_{name}"
    for name in ("VXLAN_ID", "VXLAN_LOCAL", "VXLAN_LOCAL6", "VXLAN_PORT", "VXLAN_LEARNING", "VLAN_ID")
)


class NetlinkLinks:
    """HostLinks of the network namespace of the calling thread."""

    def links(self) -> Mapping[str, Link]:
        with opened("its links") as route:
            every = [(one, _attributes(one, ABOUT_LINKS)) for one in route.get_links()]
        names = {one["index"]: str(attributes["IFLA_IFNAME"]) for one, attributes in every}
        return {names[one["index"]]: _link(one, attributes, names) for one, attributes in every}

    def device_of(self, address: str) -> str:
        wanted = ip_address(address)
        with opened("its addresses") as route:
            for one in route.get_addr():
                attributes = dict(one["attrs"])
                value = attributes.get("IFA_LOCAL") or attributes["IFA_ADDRESS"]
                if ip_address(value) == wanted:
                    return next(iter(_names(route, one["index"])), "")
        return ""

    def add(self, link: Link) -> None:
        with opened(f"to make {link.name}") as route:
            _make(route, link)
            # Before it is up: nothing is said in between.
            _set_quiet(link)
            _change(route, link)

    def change(self, link: Link) -> None:
        with opened(f"to change {link.name}") as route:
            _own(route, link.name)
            _set_quiet(link)
            _change(route, link)

    def remove(self, name: str) -> None:
        with opened(f"to remove {name}") as route:
            if route.link_lookup(ifname=name):
                route.link("del", index=_own(route, name))


def _link(one: Any, attributes: Mapping[str, Any], names: Mapping[int, str]) -> Link:
    told = attributes.get("IFLA_LINKINFO")
    kind = str(_attributes(told, ABOUT_KINDS).get("IFLA_INFO_KIND") or "")
    # Of bridges, which have the longest list, none is wanted.
    tunnel = _attributes(told, ABOUT_DATA).get("IFLA_INFO_DATA") if kind in ("vxlan", "vlan") else None
    data = _attributes(tunnel, ABOUT_TUNNELS)
    port = _attributes(_attributes(told, ABOUT_PORT).get("IFLA_INFO_SLAVE_DATA"), ABOUT_PORTS)
    name, is_ours = str(attributes["IFLA_IFNAME"]), attributes.get("IFLA_GROUP") in (OURS, GATEWAYS)
    return Link(
        name=name,
        kind=kind,
        mtu=int(attributes["IFLA_MTU"]),
        up=bool(one["flags"] & IFF_UP),
        master=names.get(attributes.get("IFLA_MASTER", 0), ""),
        learning=bool(port.get("IFLA_BRPORT_LEARNING", 1)),
        vxlan=_vxlan(data) if kind == "vxlan" else None,
        vlan=Vlan(int(data["IFLA_VLAN_ID"]), names.get(attributes.get("IFLA_LINK", 0), ""))
        if kind == "vlan"
        else None,
        is_quiet=is_ours and kind != "veth" and _is_quiet(name),
        is_ours=is_ours,
    )


def _attributes(nested: Any, wanted: frozenset[str]) -> dict[str, Any]:
    """Only these are decoded, which is most of the work where there are many links."""
    if not nested or "attrs" not in nested:
        return {}
    return {one[0]: one[1] for one in nested["attrs"] if one[0] in wanted}


def _vxlan(data: Mapping[str, Any]) -> Vxlan:
    local = data.get("IFLA_VXLAN_LOCAL") or data.get("IFLA_VXLAN_LOCAL6") or ""
    return Vxlan(
        int(data["IFLA_VXLAN_ID"]),
        str(local),
        int(data["IFLA_VXLAN_PORT"]),
        bool(data["IFLA_VXLAN_LEARNING"]),
    )


def _make(route: IPRoute, link: Link) -> None:
    about = _made_of(route, link)
    with unsupported(f"the kernel has no {link.kind} devices: is its module loaded?"):
        route.link("add", ifname=link.name, group=OURS, mtu=link.mtu, **about)


def _made_of(route: IPRoute, link: Link) -> dict[str, Any]:
    """What can be said of it only when it is made."""
    if link.vxlan is not None:
        local = "vxlan_local6" if ":" in link.vxlan.local else "vxlan_local"
        return {
            "kind": "vxlan",
            "vxlan_id": link.vxlan.vni,
            local: link.vxlan.local,
            "vxlan_port": link.vxlan.port,
            "vxlan_learning": int(link.vxlan.learning),
        }
    if link.vlan is not None:
        return {"kind": "vlan", "link": index_of(route, link.vlan.device), "vlan_id": link.vlan.number}
    return {"kind": link.kind, "br_stp_state": 0, "br_forward_delay": 0}


def _change(route: IPRoute, link: Link) -> None:
    index = index_of(route, link.name)
    master = index_of(route, link.master) if link.master else 0
    route.link("set", index=index, mtu=link.mtu, master=master)
    if link.master:
        # Of neighbours nothing is suppressed: no address is known here, and gratuitous ARP would be lost.
        route.brport("set", index=index, learning=int(link.learning), neigh_suppress=0)
    route.link("set", index=index, state="up" if link.up else "down")


def _own(route: IPRoute, name: str) -> int:
    index = index_of(route, name)
    groups = [dict(one["attrs"]).get("IFLA_GROUP") for one in route.get_links(index)]
    if groups != [OURS]:
        raise DriverError(f"{name} is a device of the host's own")
    return index


def _names(route: IPRoute, index: int) -> list[str]:
    return [str(dict(one["attrs"])["IFLA_IFNAME"]) for one in route.get_links(index)]


# Quiet


def _quiet_files(name: str) -> dict[Path, str]:
    return {
        SYSCTL / family / "conf" / name / key: value
        for family, settings in QUIET.items()
        for key, value in settings.items()
    }


def _is_quiet(name: str) -> bool:
    return all(_holds(file, value) for file, value in _quiet_files(name).items())


def _holds(file: Path, value: str) -> bool:
    try:
        return file.read_text().strip() == value
    except FileNotFoundError:
        return True  # a kernel without IPv6
    except OSError:
        return False


def _set_quiet(link: Link) -> None:
    if not link.is_quiet:
        return
    for file, value in _quiet_files(link.name).items():
        if _holds(file, value):
            continue
        try:
            file.write_text(value)
        except OSError as error:
            raise DriverError(f"{file} cannot be set: {error.strerror}", retryable=True) from None
