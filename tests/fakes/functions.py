"""SR-IOV of a host in memory, as kernel and drivers treat it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pvc.cluster.sriov import VFSettings, VirtualFunction
from pvc.node.drivers import DriverError
from pvc.node.drivers.networks import Split

EVERYTHING = tuple(sorted(VFSettings.__slots__))


@dataclass(slots=True)
class FakeFunctions:
    totals: dict[str, int] = field(default_factory=dict)
    """Devices, each with how many functions it can have."""
    found: dict[str, list[VirtualFunction]] = field(default_factory=dict)
    supported: tuple[str, ...] = EVERYTHING
    refuses: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)

    def look(self, device: str) -> Split | None:
        if device not in self.totals:
            return None
        return Split("0000:03:00.0", self.totals[device], tuple(self.found.get(device, ())))

    def split(self, device: str, count: int) -> None:
        self.calls.append(f"split {device} {count}")
        self.found[device] = [
            VirtualFunction(
                number,
                f"0000:03:10.{number}",
                f"02:00:00:00:00:{number:02x}",
                f"{device}v{number}",
                VFSettings(),
                self.supported,
            )
            for number in range(count)
        ]

    def set(self, device: str, number: int, settings: VFSettings, names: tuple[str, ...]) -> None:
        self.calls.append(f"set {device} {number} {','.join(names)}")
        if self.refuses & {*names}:
            raise DriverError(f"the kernel refuses {', '.join(names)} of {device}: EBUSY", retryable=True)
        known = self.found[device][number]
        given = {name: getattr(settings, name) for name in names}
        self.found[device][number] = replace(known, settings=replace(known.settings, **given))
