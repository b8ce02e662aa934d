"""What FRR is told, and how little of it when something changes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from pvc.cluster.addresses import Router
from pvc.node.drivers import DriverError
from pvc.node.drivers.frr import FRR, OURS, RELOAD, render, router_id
from pvc.node.drivers.networks import Speaker, Upstream
from pvc.proc import CommandFailed, Completed

GOLDEN = Path(__file__).parent / "golden"
REFLECTOR = Speaker("10.251.1.1", True, ("10.251.1.2", "10.251.1.3"), ("10.251.1.4", "10.251.1.10"))
CLIENT = Speaker("10.251.1.4", False, ("10.251.1.1", "10.251.1.2", "10.251.1.3"))
OVER_IPV6 = Speaker("fd00:1::1", True, (), ("fd00:1::2",))
ALONE = Speaker("10.251.1.1", True, ())
UPSTREAM = Upstream(
    (Router("10.251.0.254", 64512), Router("10.251.0.253", 64513), Router("fd00:251::254", 64512)),
    {101: ("10.1.0.0/24", "fd00:1::/64"), 7: ("10.7.0.0/16",), 102: ("fd00:2::/64",)},
    ("10.251.0.0/24", "10.251.1.0/24", "fd00:251::/64"),
)
ROUTED = Speaker("10.251.1.1", True, ("10.251.1.2", "10.251.1.3"), (), 64600, UPSTREAM)
NOTHING_TO_TELL = replace(ROUTED, upstream=Upstream((Router("10.251.0.254", 64512),)))


@pytest.mark.parametrize(
    ("name", "speaker"),
    [
        ("reflector", REFLECTOR),
        ("client", CLIENT),
        ("ipv6", OVER_IPV6),
        ("alone", ALONE),
        ("routed", ROUTED),
        ("nothing-to-tell", NOTHING_TO_TELL),
    ],
)
def test_rendered_as_in_the_golden_file(name: str, speaker: Speaker) -> None:
    assert render(speaker) == (GOLDEN / f"frr-{name}.conf").read_text()


def test_the_order_in_which_nodes_are_known_changes_nothing() -> None:
    turned = Speaker("10.251.1.1", True, REFLECTOR.reflectors[::-1], REFLECTOR.clients[::-1])
    assert render(turned) == render(REFLECTOR)


def test_nothing_is_redistributed_nor_announced_but_vxlans() -> None:
    text = render(REFLECTOR)
    assert "redistribute" not in text
    assert "network " not in text
    assert "advertise ipv" not in text


def test_routers_are_told_of_what_is_behind_gateways_and_of_nothing_else() -> None:
    lines = [line.strip() for line in render(ROUTED).splitlines()]
    assert not [line for line in lines if "redistribute" in line]
    told = {line.split()[1] for line in lines if line.startswith("network ")}
    allowed = {line.split()[-1] for line in lines if "pvc-tells" in line and " permit " in line}
    assert told == allowed == {"10.1.0.0/24", "10.7.0.0/16", "fd00:1::/64", "fd00:2::/64"}
    for router in UPSTREAM.routers:
        about = [line for line in lines if line.startswith(f"neighbor {router.address} ")]
        assert len([line for line in about if line.endswith("out") and "prefix-list" in line]) == 1
        assert len([line for line in about if line.endswith("in") and "prefix-list" in line]) == 1


def test_one_network_more_changes_nothing_about_the_others() -> None:
    more = replace(UPSTREAM, announced={**UPSTREAM.announced, 50: ("10.50.0.0/24",)})
    before, after = ({*render(replace(ROUTED, upstream=one)).splitlines()} for one in (UPSTREAM, more))
    assert before < after
    assert len(after - before) == 3


def test_only_a_reflector_reflects() -> None:
    assert "route-reflector-client" in render(REFLECTOR)
    assert "route-reflector-client" not in render(CLIENT)
    assert "cluster-id" not in render(CLIENT)


def test_a_router_id_has_four_bytes() -> None:
    assert router_id("10.251.1.1") == "10.251.1.1"
    ids = {router_id(f"fd00:1::{number:x}") for number in range(1, 100)}
    assert len(ids) == 99
    assert all(one.count(".") == 3 for one in ids)


@dataclass
class Bench:
    """systemd and frr-reload.py as far as they are called."""

    root: Path
    active: bool = False
    calls: list[str] = field(default_factory=list)
    reload_fails: bool = False

    def __post_init__(self) -> None:
        (self.root / "etc/frr").mkdir(parents=True)
        (self.root / "run/frr").mkdir(parents=True)
        self.file.write_text("log syslog informational\n")
        self.frr = FRR(str(self.root), self)

    @property
    def file(self) -> Path:
        return self.root / "etc/frr/frr.conf"

    def __call__(self, argv: list[str], /, *, check: bool = True, timeout_s: float = 60.0) -> Completed:
        if argv[:2] == ["systemctl", "is-active"]:
            return Completed(0 if self.active else 3, "", "")
        self.calls.append(" ".join(argv[:2]))
        if argv[0] == RELOAD and self.reload_fails:
            raise CommandFailed(argv, Completed(1, "", "line 7: unknown command"))
        if argv[:2] in (["systemctl", "start"], ["systemctl", "stop"]):
            self.active = argv[1] == "start"
        return Completed(0, "", "")

    def lives(self, **pids: int) -> None:
        for name, pid in pids.items():
            (self.root / "run/frr" / f"{name}.pid").write_text(f"{pid}\n")
            (self.root / "proc" / str(pid)).mkdir(parents=True, exist_ok=True)
            (self.root / "proc" / str(pid) / "comm").write_text(f"{name}\n")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_it_is_started_once(bench: Bench) -> None:
    assert bench.frr.serve(CLIENT)
    assert bench.file.read_text() == render(CLIENT)
    assert bench.calls == [f"systemctl {verb}" for verb in ("reset-failed", "start")]
    assert not bench.frr.serve(CLIENT)
    assert len(bench.calls) == 2


def test_after_a_restart_of_the_daemon_nothing_is_done(bench: Bench) -> None:
    bench.frr.serve(CLIENT)
    bench.calls.clear()
    assert not FRR(str(bench.root), bench).serve(CLIENT)
    assert not bench.calls


def test_a_change_is_loaded_without_a_restart(bench: Bench) -> None:
    bench.frr.serve(REFLECTOR)
    bench.calls.clear()
    more = Speaker("10.251.1.1", True, REFLECTOR.reflectors, (*REFLECTOR.clients, "10.251.1.5"))
    assert bench.frr.serve(more)
    assert bench.calls == [f"{RELOAD} --reload"]
    assert bench.file.read_text() == render(more)


def test_a_change_that_fails_is_tried_again(bench: Bench) -> None:
    bench.frr.serve(REFLECTOR)
    bench.reload_fails = True
    with pytest.raises(DriverError, match=r"FRR: .*line 7: unknown command"):
        bench.frr.serve(CLIENT)
    assert bench.file.read_text() == render(REFLECTOR)
    bench.reload_fails = False
    assert bench.frr.serve(CLIENT)
    assert bench.file.read_text() == render(CLIENT)


def test_one_that_ended_is_started_again(bench: Bench) -> None:
    bench.frr.serve(CLIENT)
    bench.active = False
    assert bench.frr.serve(CLIENT)
    assert bench.active


def test_somebody_else_s_routers_are_left_alone(bench: Bench) -> None:
    bench.file.write_text("router ospf\n")
    with pytest.raises(DriverError, match="is not from pvc"):
        bench.frr.serve(CLIENT)
    bench.active = True
    assert not bench.frr.stop()
    assert bench.file.read_text() == "router ospf\n"
    assert bench.active


def test_it_is_stopped_where_it_served_us(bench: Bench) -> None:
    assert not bench.frr.stop()
    bench.frr.serve(CLIENT)
    assert OURS in bench.file.read_text()
    assert bench.frr.stop()
    assert not bench.active
    assert not bench.frr.stop()


def test_lives_are_those_of_processes_that_run(bench: Bench) -> None:
    assert bench.frr.lives() == {"watchfrr": 0, "zebra": 0, "bgpd": 0}
    bench.lives(watchfrr=10, zebra=11, bgpd=12)
    assert bench.frr.lives() == {"watchfrr": 10, "zebra": 11, "bgpd": 12}
    (bench.root / "proc/12/comm").write_text("sh\n")
    assert bench.frr.lives()["bgpd"] == 0, "another process has that number by now"
