"""Network devices that are split into virtual functions (SR-IOV): what is wanted of each, and what is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from pvc.errors import Invalid

GREATEST_VLAN = 4094
GREATEST_QOS = 7


class LinkState(StrEnum):
    AUTO = "auto"
    """As the link of the device itself."""
    ENABLE = "enable"
    DISABLE = "disable"


@dataclass(frozen=True, slots=True)
class VFSettings:
    vlan: int = 0
    """Its packets are tagged with it; 0: as the guest says."""
    qos: int = 0
    """Priority in the VLAN."""
    tx_rate_min: int = 0
    """Mbit/s; 0: no promise."""
    tx_rate_max: int = 0
    """Mbit/s; 0: no limit."""
    link_state: LinkState = LinkState.AUTO
    spoof_check: bool = True
    """It sends with its own MAC only."""
    trust: bool = False
    """Its guest may change its MAC, and listen to everything."""
    query_rss: bool = False
    """Its guest may read the hash key of the device."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody has set of a virtual function; the rest is as the device has it."""

    name: str
    vlan: int | None = None
    qos: int | None = None
    tx_rate_min: int | None = None
    tx_rate_max: int | None = None
    link_state: LinkState | None = None
    spoof_check: bool | None = None
    trust: bool | None = None
    query_rss: bool | None = None

    def given(self) -> dict[str, Any]:
        every = {one.name: getattr(self, one.name) for one in fields(VFSettings)}
        return {name: value for name, value in every.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Wishes:
    """Of one node."""

    functions: tuple[Wish, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def of(self, name: str) -> Wish:
        return next((one for one in self.functions if one.name == name), Wish(name))

    def with_(self, wish: Wish) -> Wishes:
        others = (one for one in self.functions if one.name != wish.name)
        return replace(self, functions=tuple(sorted((*others, wish), key=lambda one: one.name)))


@dataclass(frozen=True, slots=True)
class VirtualFunction:
    number: int
    pci: str
    mac: str
    device: str
    """The network device it is here; empty where a guest or another driver has it."""
    settings: VFSettings
    supported: tuple[str, ...]
    """The settings that the driver of the device tells of."""


@dataclass(frozen=True, slots=True)
class PhysicalFunction:
    name: str
    wanted: int
    """Virtual functions, as the node's pvc.toml says."""
    pci: str = ""
    total: int = 0
    """That it can have."""
    functions: tuple[VirtualFunction, ...] = ()
    problems: tuple[str, ...] = ()


def function_name(device: str, number: int) -> str:
    return f"{device}v{number}"


def check(wish: Wish, now: VFSettings) -> None:
    """Raises Invalid: what cannot be together with what is not given."""
    meant = replace(now, **wish.given())
    if meant.qos and not meant.vlan:
        raise Invalid("a priority needs a VLAN", hint="--vlan-id")
    if meant.tx_rate_max and meant.tx_rate_min > meant.tx_rate_max:
        raise Invalid(
            f"the least rate, {meant.tx_rate_min} Mbit/s, is more than the greatest, {meant.tx_rate_max}"
        )
