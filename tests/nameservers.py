"""One suite for every NameServer: the fake, PowerDNS as far as systemd is called, and the real one."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from pvc.cluster.zones import Record, Zone
from pvc.node.drivers.networks import Answering, NameServer

WEB, DB = Record("web.shop.example", "A", "10.1.0.9"), Record("db.shop.example", "A", "10.1.0.8")
NS = Record("shop.example", "NS", "ns.pvc.example")
SHOP = Zone("shop.example", "ns.pvc.example", frozenset({NS, WEB}), 1_700_000_000)
REVERSE = Zone(
    "1.10.in-addr.arpa",
    "ns.pvc.example",
    frozenset(
        {
            Record("1.10.in-addr.arpa", "NS", "ns.pvc.example"),
            Record("9.0.1.10.in-addr.arpa", "PTR", WEB.name),
        }
    ),
    1_700_000_000,
)
BOTH = {zone.name: zone for zone in (SHOP, REVERSE)}
CHANGED = replace(SHOP, records=SHOP.records - {WEB} | {DB}, serial=SHOP.serial + 1)


class Machine(Protocol):
    """A host with a name server."""

    @property
    def server(self) -> NameServer: ...

    @property
    def wanted(self) -> Answering: ...

    @property
    def others(self) -> Answering:
        """At another address."""
        ...

    def ask(self, name: str, kind: str) -> set[str]:
        """Of whoever answers at the wanted address."""
        ...

    def kill(self) -> None: ...


class Suite:
    def test_it_answers_from_the_first_call_and_the_second_does_nothing(self, machine: Machine) -> None:
        server = machine.server
        assert not server.life()
        assert set(server.publish(BOTH)) == BOTH.keys()
        assert server.serve(machine.wanted)
        life = server.life()
        assert life
        assert machine.ask(WEB.name, "A") == {"10.1.0.9"}
        assert machine.ask("9.0.1.10.in-addr.arpa", "PTR") == {WEB.name}
        assert machine.ask("shop.example", "SOA") == {SHOP.soa}
        assert server.publish(dict(BOTH)) == ()
        assert not server.serve(machine.wanted)
        assert server.life() == life

    def test_a_change_is_answered_at_once_by_the_same_process(self, machine: Machine) -> None:
        server = machine.server
        server.publish(BOTH)
        server.serve(machine.wanted)
        life = server.life()
        assert machine.ask(DB.name, "A") == set()
        assert server.publish({**BOTH, CHANGED.name: CHANGED}) == ("shop.example",)
        assert not server.serve(machine.wanted)
        assert machine.ask(DB.name, "A") == {"10.1.0.8"}
        assert machine.ask(WEB.name, "A") == set()
        assert machine.ask("shop.example", "SOA") == {CHANGED.soa}
        more = replace(
            SHOP, name="more.example", records=frozenset({Record("more.example", "A", "10.1.0.7")})
        )
        assert server.publish({CHANGED.name: CHANGED, more.name: more}) == ("more.example", REVERSE.name)
        assert machine.ask("more.example", "A") == {"10.1.0.7"}
        assert machine.ask("9.0.1.10.in-addr.arpa", "PTR") == set()
        assert server.life() == life

    def test_other_addresses_take_a_new_life(self, machine: Machine) -> None:
        server = machine.server
        server.publish(BOTH)
        server.serve(machine.others)
        life = server.life()
        assert server.serve(machine.wanted)
        assert server.life() not in (0, life)
        assert machine.ask(WEB.name, "A") == {"10.1.0.9"}

    def test_one_that_was_killed_is_started_again(self, machine: Machine) -> None:
        server = machine.server
        server.publish(BOTH)
        server.serve(machine.wanted)
        life = server.life()
        machine.kill()
        assert not server.life()
        server.publish(BOTH)
        assert server.serve(machine.wanted)
        assert server.life() not in (0, life)
        assert machine.ask(WEB.name, "A") == {"10.1.0.9"}

    def test_stopped_is_stopped_and_forgotten(self, machine: Machine) -> None:
        server = machine.server
        assert not server.stop()
        server.publish(BOTH)
        server.serve(machine.wanted)
        assert server.stop()
        assert not server.life()
        assert machine.ask(WEB.name, "A") == set()
        assert not server.stop()
        assert set(server.publish(BOTH)) == BOTH.keys()
        assert server.serve(machine.wanted)
        assert machine.ask(WEB.name, "A") == {"10.1.0.9"}
