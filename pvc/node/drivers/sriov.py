"""SR-IOV of this host's network devices: the number through sysfs, settings through netlink."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pvc.cluster.sriov import LinkState, VFSettings, VirtualFunction
from pvc.node.drivers import DriverError
from pvc.node.drivers.netlink import index_of, opened, unsupported
from pvc.node.drivers.networks import Split

SYSFS = Path("/sys/class/net")
RTEXT_FILTER_VF = 1
LINK_STATES = {LinkState.AUTO: 0, LinkState.ENABLE: 1, LinkState.DISABLE: 2}
NUMBERED_STATES = {number: state for state, number in LINK_STATES.items()}


class KernelVirtualFunctions:
    """VirtualFunctions of the network namespace of the calling thread."""

    def __init__(self, sysfs: Path = SYSFS) -> None:
        self.sysfs = sysfs

    def look(self, device: str) -> Split | None:
        folder = self.sysfs / device
        if not folder.exists():
            return None
        total = _number(folder / "device/sriov_totalvfs")
        if not total:
            return Split("", 0, ())
        told = self.told(device)
        functions = tuple(
            _function(number, place, told.get(number, {})) for number, place in _places(folder / "device")
        )
        return Split((folder / "device").resolve().name, total, functions)

    def told(self, device: str) -> Mapping[int, Mapping[str, Any]]:
        """By number, what the kernel says of each."""
        with opened(f"to look at {device}") as route:
            (link,) = route.link("get", index=index_of(route, device), ext_mask=RTEXT_FILTER_VF)
            return told_of(dict(link["attrs"]))

    def split(self, device: str, count: int) -> None:
        file = self.sysfs / device / "device/sriov_numvfs"
        try:
            file.write_text(str(count))
        except OSError as error:
            raise DriverError(
                f"{device} cannot be split into {count} virtual functions: {error.strerror}", retryable=True
            ) from None

    def set(self, device: str, number: int, settings: VFSettings, names: tuple[str, ...]) -> None:
        with (
            opened(f"{', '.join(names)} of {device}") as route,
            unsupported(f"the driver of {device} knows no {', '.join(names)}"),
        ):
            route.link("set", index=index_of(route, device), vf=asked_for(number, settings, names))


def asked_for(number: int, settings: VFSettings, names: tuple[str, ...]) -> dict[str, Any]:
    """A change of a virtual function, as the kernel is asked for it."""
    every: dict[str, tuple[str, Any]] = {
        "vlan": ("vlan", {"vlan": settings.vlan, "qos": settings.qos}),
        "tx_rate_min": (
            "rate",
            {"min_tx_rate": settings.tx_rate_min, "max_tx_rate": settings.tx_rate_max},
        ),
        "link_state": ("link_state", LINK_STATES[settings.link_state]),
        "spoof_check": ("spoofchk", int(settings.spoof_check)),
        "trust": ("trust", int(settings.trust)),
        "query_rss": ("rss_query_en", int(settings.query_rss)),
    }
    return {"vf": number, **dict(every[name] for name in names if name in every)}


def told_of(attributes: Mapping[str, Any]) -> Mapping[int, Mapping[str, Any]]:
    """The settings and the MAC of each function, of those that its driver tells."""
    listed = attributes.get("IFLA_VFINFO_LIST")
    found: dict[int, dict[str, Any]] = {}
    for _, one in listed["attrs"] if listed else ():
        info = {
            name: dict(value) for name, value in one["attrs"] if isinstance(value, dict) and "vf" in value
        }
        for told in info.values():
            found.setdefault(int(told["vf"]), {}).update(_settings(info))
    return found


def _settings(info: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    if mac := info.get("IFLA_VF_MAC"):
        yield "mac", str(mac["mac"])
    if vlan := info.get("IFLA_VF_VLAN"):
        yield from (("vlan", int(vlan["vlan"])), ("qos", int(vlan["qos"])))
    if rate := info.get("IFLA_VF_RATE"):
        yield from (("tx_rate_min", int(rate["min_tx_rate"])), ("tx_rate_max", int(rate["max_tx_rate"])))
    if state := info.get("IFLA_VF_LINK_STATE"):
        yield "link_state", NUMBERED_STATES.get(int(state["link_state"]), LinkState.AUTO)
    for name, attribute, key in (
        ("spoof_check", "IFLA_VF_SPOOFCHK", "spoofchk"),
        ("trust", "IFLA_VF_TRUST", "trust"),
        ("query_rss", "IFLA_VF_RSS_QUERY_EN", "rss_query_en"),
    ):
        # A driver that does not know says -1.
        if (told := info.get(attribute)) and int(told[key]) in (0, 1):
            yield name, bool(told[key])


def _function(number: int, place: Path, told: Mapping[str, Any]) -> VirtualFunction:
    known = {name: value for name, value in told.items() if name != "mac"}
    nets = sorted(path.name for path in (place / "net").glob("*"))
    return VirtualFunction(
        number=number,
        pci=place.resolve().name,
        mac=str(told.get("mac", "")),
        device=nets[0] if nets else "",
        settings=VFSettings(**known),
        supported=tuple(sorted(known)),
    )


def _places(folder: Path) -> Iterator[tuple[int, Path]]:
    found = {int(path.name.removeprefix("virtfn")): path for path in folder.glob("virtfn[0-9]*")}
    return iter(sorted(found.items()))


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0
