"""Who answers for an address: asked by ARP many times a second from the lab's switch, each answer kept."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pvc.lab.layout import Lab, Network
from pvc.lab.network import inside

EVERY_S = 0.02
ETH_P_ARP = 0x0806
ASKERS = range(160, 200)
"""Last numbers of the addresses asked from, one after the other: an answer shows which question it is to."""


@dataclass(slots=True)
class Span:
    """One host answers, without another in between; by the monotonic clock."""

    mac: str
    first_s: float
    last_s: float


@dataclass(slots=True)
class Probe:
    address: str
    asked: int = 0
    spans: list[Span] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    """What must never be: questions that two hosts answered."""
    answers: dict[int, set[str]] = field(default_factory=dict)
    """To the newest question of each asker."""
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def holder(self) -> str:
        """Who answered within the last moment; empty: nobody."""
        spans = self.spans[-1:]
        return spans[0].mac if spans and time.monotonic() < spans[0].last_s + 5 * EVERY_S else ""

    def watch(self, device: str) -> None:
        """Until `ended`; on a thread in the namespace of the switch."""
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP)) as wire:
            wire.bind((device, ETH_P_ARP))
            mac: bytes = wire.getsockname()[4]
            while not self.ended.is_set():
                wire.send(self._question(mac))
                until = time.monotonic() + EVERY_S
                while (left := until - time.monotonic()) > 0:
                    if select.select([wire], [], [], left)[0]:
                        self._answered(wire.recv(2048))

    def _question(self, mac: bytes) -> bytes:
        asker = ASKERS[self.asked % len(ASKERS)]
        self.asked += 1
        self.answers[asker] = set()
        target = socket.inet_aton(self.address)
        ethernet = b"\xff" * 6 + mac + struct.pack("!H", ETH_P_ARP)
        return (
            ethernet
            + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
            + (mac + target[:3] + bytes([asker]))
            + (bytes(6) + target)
        )

    def _answered(self, frame: bytes) -> None:
        packet = frame[14:42]
        if packet[6:8] != b"\0\2" or socket.inet_ntoa(packet[14:18]) != self.address:
            return
        now, mac, asker = time.monotonic(), packet[8:14].hex(":"), packet[27]
        answered = self.answers.setdefault(asker, set())
        answered.add(mac)
        if len(answered) > 1:
            self.twice.append(f"{' and '.join(sorted(answered))} answered for {self.address}")
        if not self.spans or self.spans[-1].mac != mac:
            self.spans.append(Span(mac, now, now))
        self.spans[-1].last_s = now

    def gap_s(self) -> float:
        """For how long nobody answered between the newest holder and the one before."""
        before, after = self.spans[-2:]
        return after.first_s - before.last_s


@contextmanager
def probing(lab: Lab, network: Network) -> Iterator[Probe]:
    """Fails when two hosts ever answered the same question."""
    probe = Probe(lab.floating_address(network).partition("/")[0])
    thread = threading.Thread(
        target=inside, args=(lab.switch, lambda: probe.watch(network.name)), daemon=True
    )
    thread.start()
    try:
        yield probe
    finally:
        probe.ended.set()
        thread.join()
    assert probe.asked > 0
    assert not probe.twice, "; ".join(probe.twice[:5])
