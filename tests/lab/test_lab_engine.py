"""The lab itself: faults do what they say, and `lab down` leaves nothing, whatever happened before."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvc.lab import discover, network
from pvc.lab.layout import NETWORKS, load, prefix
from pvc.lab.preflight import IMAGE
from tests.lab.labs import PVC, Ended, RunningLab, Traces, run_lab
from tests.support import eventually

BROKEN = Path("/var/lib/pvc-lab-broken")
# linux/capability.h
SYS_MODULE, SYS_RAWIO, SYS_BOOT, SYS_TIME = 16, 17, 22, 25


@pytest.fixture(autouse=True)
def _whole_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test of this file finds the cluster whole, whatever the one before did."""
    yield
    if "lab" in request.fixturenames:
        lab: RunningLab = request.getfixturevalue("lab")
        lab.repair()


@pytest.fixture
def traces() -> Iterator[Traces]:
    """Of a lab of one node that a test may treat badly; its image has its own name, for loop devices."""
    image = IMAGE.resolve().with_name("pvc-lab-broken.sqfs")
    image.unlink(missing_ok=True)
    os.link(IMAGE.resolve(), image)
    run_lab(BROKEN, "down")
    try:
        yield Traces(BROKEN, prefix(BROKEN), image)
    finally:
        run_lab(BROKEN, "down")
        image.unlink()
        shutil.rmtree(image.with_suffix(".capabilities"), ignore_errors=True)


def up(traces: Traces, *options: str) -> RunningLab:
    run_lab(BROKEN, "up", "--nodes", "1", "--image", str(traces.image), *options)
    return RunningLab(BROKEN)


# Up and status


def test_three_nodes_with_a_quorum(lab: RunningLab) -> None:
    states = lab.states()
    assert [one["power"] for one in states.values()] == ["on"] * 3
    assert sorted(one["zookeeper"] for one in states.values()) == ["follower", "follower", "leader"]


def test_up_again_is_nothing_to_do(lab: RunningLab) -> None:
    before = {name: one["pid"] for name, one in lab.states().items()}
    again = lab.lab("up", "--nodes", "3")
    assert "the lab runs already" in again.stderr
    assert {name: one["pid"] for name, one in lab.states().items()} == before


def test_up_starts_what_is_missing(lab: RunningLab) -> None:
    lab.lab("power", "n3", "off")
    lab.lab("up")
    assert lab.is_whole()


@pytest.mark.parametrize("words", [("--nodes", "2"), ("--coordinators", "1"), ("--osds", "1")])
def test_up_with_another_size_is_a_conflict(lab: RunningLab, words: tuple[str, str]) -> None:
    refused = lab.lab("up", *words, check=False)
    assert refused.code == 4
    assert "pvc lab down" in refused.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("power", "n9", "off"), 3),
        (("power", "n1", "sideways"), 2),
        (("exec", "n9", "true"), 3),
        (("kill", "n1", "no-such-process"), 3),
        (("kill", "n1", "zookeeper", "--stop", "--cont"), 2),
        (("cut", "n1", "--network", "wan"), 2),
        (("heal", "n9"), 3),
        (("bmc", "n9", "off"), 3),
        (("bmc", "n1", "angry"), 2),
        (("up", "--nodes", "10"), 2),
    ],
)
def test_bad_input(lab: RunningLab, words: tuple[str, ...], code: int) -> None:
    assert lab.lab(*words, check=False).code == code
    assert lab.is_whole()


# Exec


def test_exec_passes_input_output_and_exit_code(lab: RunningLab) -> None:
    done = lab.run("n2", "sh", "-c", "hostname; cat; exit 7", stdin="in", check=False)
    assert (done.code, done.stdout) == (7, "n2\nin")


def test_exec_cannot_do_to_the_host_what_a_node_cannot(lab: RunningLab) -> None:
    """Asked of the kernel, never tried: a mistake would set this machine's clock."""
    text = lab.sh("n1", "grep -E '^Cap(Bnd|Eff)' /proc/self/status")
    for line in text.splitlines():
        mask = int(line.split()[1], 16)
        assert not [bit for bit in (SYS_MODULE, SYS_RAWIO, SYS_BOOT, SYS_TIME) if mask >> bit & 1], line


# Networks


def reaches(lab: RunningLab, node: str, address: str) -> bool:
    return lab.run(node, "ping", "-c", "1", "-W", "0.5", address, check=False).code == 0


def test_cut_is_silent_and_heals(lab: RunningLab) -> None:
    n3 = lab.states()["n3"]
    lab.lab("cut", "n3")
    assert lab.states()["n3"]["cut"] == ["ups", "clu", "sto"]
    assert not reaches(lab, "n1", n3["address"])
    assert not reaches(lab, "n1", n3["upstream"])
    assert lab.sh("n3", "cat /sys/class/net/clu/carrier").strip() == "1"
    lab.lab("heal", "n3")
    eventually(lambda: reaches(lab, "n1", n3["address"]), within=5)


def test_cut_of_one_network_leaves_the_others(lab: RunningLab) -> None:
    n3 = lab.states()["n3"]
    lab.lab("cut", "n3", "--network", "sto", "--cable")
    assert lab.states()["n3"]["cut"] == ["sto"]
    assert reaches(lab, "n1", n3["address"])
    assert lab.sh("n3", "cat /sys/class/net/sto/carrier").strip() == "0"
    lab.lab("heal", "n3", "--network", "sto")
    eventually(lambda: lab.sh("n3", "cat /sys/class/net/sto/carrier").strip() == "1", within=5)


def test_switch_keeps_its_addresses(lab: RunningLab) -> None:
    """Those of its bridges, behind which the BMCs are: they are its own, and none that goes with a cable."""
    for known in NETWORKS:
        shown = subprocess.check_output(["ip", "-n", lab.layout.switch, "-json", "link", "show", known.name])
        assert json.loads(shown)[0]["address"] == network.mac(lab.layout, known, network.SWITCH_END)


# Power


def test_power_cut_sends_no_goodbye(lab: RunningLab) -> None:
    """A peer's connection just goes quiet: no FIN, no RST. And what was on disk is there after power-on."""
    address = lab.states()["n3"]["address"]
    lab.sh("n3", "echo kept >/root/kept; systemd-run -q socat TCP-LISTEN:9999,fork PIPE")
    eventually(lambda: "9999" in lab.sh("n3", "ss -ltn"), within=5)
    argv = ["exec", "n1", "--", "sh", "-c", f"(echo hello; sleep 6) | timeout 5 socat - TCP:{address}:9999"]
    peer = subprocess.Popen(
        [str(PVC), "lab", *argv],
        env={**os.environ, "PVC_LAB_DIR": str(lab.directory)},
        stdout=subprocess.PIPE,
    )
    assert peer.stdout is not None
    assert peer.stdout.readline() == b"hello\n"
    lab.lab("power", "n3", "off")
    assert lab.states()["n3"]["power"] == "off"
    assert peer.wait() == 124, "timeout ended it: the connection was still open"
    peer.stdout.close()
    lab.lab("power", "n3", "on")
    lab.settle()
    assert lab.sh("n3", "cat /root/kept") == "kept\n"


def test_reboot_from_inside(lab: RunningLab) -> None:
    before = lab.states()["n2"]["pid"]
    lab.run("n2", "systemctl", "--no-block", "reboot")
    eventually(lambda: lab.states()["n2"]["pid"] not in (0, before), within=60)
    lab.settle()


def test_button_stops_a_node_cleanly(lab: RunningLab) -> None:
    lab.lab("power", "n3", "soft")
    eventually(lambda: lab.states()["n3"]["power"] == "off", within=60)
    lab.lab("power", "n3", "on")
    lab.settle()
    assert re.search(
        r"Reached target .*shutdown",
        lab.sh("n3", "journalctl -b -1 --no-pager || journalctl --no-pager"),
        re.I,
    )


# BMC


def ipmi(lab: RunningLab, *words: str, password: str = "secret2") -> Ended:
    """From another node, as fencing does it."""
    address = lab.states()["n2"]["bmc_address"]
    options = ["-I", "lanplus", "-C", "3", "-N", "1", "-R", "3", "-H", address, "-U", "admin", "-P", password]
    return lab.run("n1", "ipmitool", *options, "chassis", "power", *words, check=False)


def test_bmc_switches_the_power(lab: RunningLab) -> None:
    assert ipmi(lab, "status").stdout == "Chassis Power is on\n"
    before = lab.states()["n2"]["pid"]
    assert ipmi(lab, "off").code == 0
    assert ipmi(lab, "status").stdout == "Chassis Power is off\n"
    assert lab.states()["n2"]["power"] == "off"
    assert ipmi(lab, "on").code == 0
    eventually(lambda: lab.states()["n2"]["pid"] not in (0, before), within=20)
    assert ipmi(lab, "status").stdout == "Chassis Power is on\n"
    assert ipmi(lab, "reset").code == 0
    lab.settle()


def test_bmc_refuses_a_wrong_password(lab: RunningLab) -> None:
    assert ipmi(lab, "off", password="wrong").code != 0
    assert lab.states()["n2"]["power"] == "on"


def test_dead_bmc_answers_nothing(lab: RunningLab) -> None:
    lab.lab("bmc", "n2", "off")
    assert ipmi(lab, "status").code != 0
    assert not reaches(lab, "n1", lab.states()["n2"]["bmc_address"])
    lab.lab("bmc", "n2", "on")
    eventually(lambda: ipmi(lab, "status").stdout == "Chassis Power is on\n", within=20)


def test_mad_bmc_answers_noise(lab: RunningLab) -> None:
    lab.lab("bmc", "n2", "rubbish")
    assert lab.states()["n2"]["bmc"] == "rubbish"
    address = lab.states()["n2"]["bmc_address"]
    ask = f"echo anybody there | socat -t 1 - UDP:{address}:623 | wc -c"
    eventually(lambda: int(lab.sh("n1", ask)) > 0, within=10)
    assert ipmi(lab, "off").code != 0
    assert lab.states()["n2"]["power"] == "on"
    lab.lab("bmc", "n2", "on")
    assert ipmi(lab, "status").stdout == "Chassis Power is on\n"


def test_lying_bmc_agrees_and_does_nothing(lab: RunningLab) -> None:
    lab.lab("bmc", "n2", "lies")
    before = lab.states()["n2"]
    assert before["bmc"] == "lies"
    assert ipmi(lab, "off").code == 0
    assert ipmi(lab, "status").stdout == "Chassis Power is on\n"
    assert lab.states()["n2"]["pid"] == before["pid"]
    lab.lab("bmc", "n2", "on")
    assert ipmi(lab, "reset").code == 0
    eventually(lambda: lab.states()["n2"]["pid"] not in (0, before["pid"]), within=20)


# Kill


def main_pid(lab: RunningLab, node: str, unit: str) -> int:
    return int(lab.sh(node, f"systemctl show -P MainPID {unit}"))


def test_kill_a_service(lab: RunningLab) -> None:
    before = main_pid(lab, "n3", "zookeeper")
    lab.lab("kill", "n3", "zookeeper")
    eventually(lambda: main_pid(lab, "n3", "zookeeper") not in (0, before), within=10)
    lab.settle()


def test_stop_and_continue(lab: RunningLab) -> None:
    pid = main_pid(lab, "n3", "zookeeper")
    state = f"cut -d' ' -f3 /proc/{pid}/stat"
    lab.lab("kill", "n3", "zookeeper", "--stop")
    eventually(lambda: lab.sh("n3", state).strip() == "T", within=5)
    lab.lab("kill", "n3", "zookeeper", "--cont")
    eventually(lambda: lab.sh("n3", state).strip() in ("S", "R"), within=5)


# Down


def test_down_leaves_nothing(traces: Traces) -> None:
    up(traces)
    assert traces.found(), "a running lab leaves traces, or this test proves nothing"
    run_lab(BROKEN, "down")
    assert traces.found() == []
    assert "there is no lab" in run_lab(BROKEN, "down").stderr


def test_down_leaves_nothing_of_a_ceph(traces: Traces) -> None:
    made = up(traces, "--osds", "2")
    assert made.is_whole()
    assert made.states()["n1"]["ceph"] == ["mgr", "mon", "osd"]
    assert "without Ceph" not in made.lab("up").stderr
    run_lab(BROKEN, "down")
    assert traces.found() == []


def stage(process: subprocess.Popen[str], words: str) -> None:
    """Read what `lab up` tells until it tells that."""
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"lab up ended before it said: {words}")


@pytest.mark.parametrize("words", ["", "configuration", "power on", "quorum"])
def test_down_after_up_was_killed(traces: Traces, words: str) -> None:
    """At its first trace, and after each of its stages."""
    argv = [str(PVC), "lab", "up", "--nodes", "1", "--image", str(traces.image)]
    process = subprocess.Popen(
        argv,
        env={**os.environ, "PVC_LAB_DIR": str(BROKEN)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        if words:
            stage(process, words)
        else:
            eventually(BROKEN.exists, within=10, every=0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    run_lab(BROKEN, "down")
    assert traces.found() == []


def test_up_finishes_what_a_killed_one_began(traces: Traces) -> None:
    argv = [str(PVC), "lab", "up", "--nodes", "1", "--image", str(traces.image)]
    with subprocess.Popen(
        argv, env={**os.environ, "PVC_LAB_DIR": str(BROKEN)}, stderr=subprocess.PIPE, text=True
    ) as process:
        stage(process, "configuration")
        process.kill()
    assert up(traces).is_whole()


def test_down_with_a_damaged_record(traces: Traces) -> None:
    up(traces)
    (BROKEN / "lab.json").write_text("{")
    assert run_lab(BROKEN, "status", check=False).code == 1
    run_lab(BROKEN, "down")
    assert traces.found() == []


def test_dead_container_manager_leaves_no_orphans(traces: Traces) -> None:
    """`kill -9` of systemd-nspawn alone leaves the container running; the supervisor ends that."""
    broken = up(traces)
    layout = broken.layout
    os.kill(discover.nspawn(layout, layout.nodes[0]), signal.SIGKILL)
    eventually(lambda: broken.states()["n1"]["power"] == "off", within=10)
    # The container manager is gone at once; the supervisor needs a moment for what it left.
    eventually(lambda: not [one for one in traces.processes() if "ipmi_sim" not in one], within=10)


def test_power_off_without_a_supervisor(traces: Traces) -> None:
    broken = up(traces)
    layout = load(BROKEN)
    assert layout is not None
    os.kill(discover.supervisor(layout, layout.nodes[0]), signal.SIGKILL)
    assert json.loads(broken.lab("status", "--format", "json").stdout)[0]["power"] == "on"
    broken.lab("power", "n1", "off")
    assert broken.states()["n1"]["power"] == "off"
    assert not [one for one in traces.processes() if "ipmi_sim" not in one]
