"""Guests that are told what they are: after a real DHCP lease, and again after the primary role moved."""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import re
import stat
import textwrap
from collections.abc import Iterator

import pytest

from installer.guest_initrd import Entry, newc
from pvc.cluster.guests import ADDRESS
from pvc.commands.vm_user_data import SEED
from tests.lab.labs import RunningLab
from tests.lab.vms import CMDLINE, INITRD, KERNEL, Cluster
from tests.support import eventually

TOLD = re.compile(r"^told (\d+) (\S+) +(\S*?) *\[(.*)\]$", re.MULTILINE)

INIT = """\
    #!/bin/busybox sh
    /bin/busybox mkdir -p /proc /sys /dev
    /bin/busybox mount -t proc proc /proc
    /bin/busybox mount -t sysfs sysfs /sys
    /bin/busybox mount -t devtmpfs devtmpfs /dev
    export PATH=/bin
    /bin/busybox --install -s /bin
    exec </dev/console >/dev/console 2>&1
    while read -r module; do insmod "/modules/$module" 2>/dev/null; done </modules/order
    echo "serial $(cat /sys/class/dmi/id/product_serial)"
    ip link set lo up
    ip link set eth0 up
    udhcpc -i eth0 -s /leased -b -t 3 -T 1
    # Not wget: Debian's static busybox crashes when it looks for the port of http. nc gives up only while it
    # connects: who has asked a primary that is no more would wait for ever.
    ask() {
        printf 'GET /latest/%s HTTP/1.0\\r\\nHost: 169.254.169.254\\r\\n\\r\\n' "$1" |
            timeout 3 nc -w 2 169.254.169.254 80 | tr -d '\\r' | sed -n '1{/ 200 /!q};/^$/,$p' | tr '\\n' ' '
    }
    number=0
    while :; do
        number=$((number + 1))
        id=$(ask meta-data/instance-id)
        read -r uptime rest </proc/uptime
        echo "told $number $uptime $id [$(ask user-data)]"
        usleep 200000
    done
"""

LEASED = """\
    #!/bin/busybox sh
    case $1 in bound|renew)
        ip addr flush dev eth0
        ip addr add "$ip/$mask" dev eth0
        ip route replace default via $router
        echo "leased $ip"
    esac
"""


@pytest.fixture(scope="module")
def cluster(lab: RunningLab) -> Cluster:
    return Cluster(lab)


@pytest.fixture(scope="module")
def initrd(cluster: Cluster) -> str:
    """That of the ticking guest, with another program: the kernel takes the last one of a name."""
    scripts = {"init": INIT, "leased": LEASED}
    program = stat.S_IFREG | 0o755
    more = newc([Entry(name, program, textwrap.dedent(text).encode()) for name, text in scripts.items()])
    share = cluster.lab.layout.share
    (share / "asking.cpio").write_bytes(gzip.compress(more))  # which may begin anywhere
    cluster.lab.sh("n1", f"cat {INITRD} /srv/share/asking.cpio > /srv/share/asking")
    return "/srv/share/asking"


@pytest.fixture(scope="module")
def guests(cluster: Cluster, initrd: str) -> Iterator[dict[str, str]]:
    """UUIDs of two in one network and one in another, on three nodes."""
    network = ("-p", "managed", "--dhcp", "--wait")
    cluster.pvc("network", "add", "201", "-d", "told", "-i", "10.201.0.0/24", "-g", "10.201.0.1", *network)
    cluster.pvc("network", "add", "202", "-d", "else", "-i", "10.202.0.0/24", "-g", "10.202.0.1", *network)
    where = {"told-a": ("told", "n1"), "told-b": ("told", "n2"), "else-c": ("else", "n3")}
    try:
        found = {name: create(cluster, name, initrd, *place) for name, place in where.items()}
        yield found
    finally:
        for name in where:
            cluster.remove(name)
        for vni in ("201", "202"):
            cluster.pvc("network", "remove", vni, "--yes")


def create(cluster: Cluster, name: str, initrd: str, network: str, node: str) -> str:
    """The last one has no user data."""
    cluster.remove(name)
    (cluster.lab.layout.share / "user-data").write_text(f"#cloud-config\n# of {name}\n")
    own = ("--user-data", "/srv/share/user-data") if network == "told" else ()
    cluster.pvc(
        *("vm", "create", name, "--memory", "96M", "--network", network, "--target", node, *own),
        *("--kernel", KERNEL, "--initrd", initrd, "--cmdline", CMDLINE),
    )
    cluster.pvc("vm", "start", name, "--wait", "--timeout", "60")
    return str(cluster.info(name)["uuid"])


def console(cluster: Cluster, name: str) -> str:
    info = cluster.info(name)
    layout = cluster.lab.layout
    log = layout.upper(layout.node(info["node"])) / f"var/log/pvc/console/{info['uuid']}.log"
    return log.read_text(errors="replace").replace("\r", "") if log.exists() else ""


def told(cluster: Cluster, name: str) -> list[tuple[int, str, str]]:
    """What it got, each time that it asked."""
    found = TOLD.findall(console(cluster, name))
    return [(int(number), uuid, data.strip()) for number, _, uuid, data in found]


def longest_silence(cluster: Cluster, name: str) -> float:
    """Seconds between two answers."""
    at = [float(uptime) for _, uptime, uuid, _ in TOLD.findall(console(cluster, name)) if uuid]
    return max(after - before for before, after in itertools.pairwise(at))


def is_told(cluster: Cluster, name: str, uuid: str, after: int = 0) -> int:
    """The number of the first time that it was told."""
    return next((number for number, known, _ in told(cluster, name) if known == uuid and number > after), 0)


def has_been_told(cluster: Cluster, name: str, uuid: str, data: str) -> bool:
    """Both in one go."""
    return (uuid, data) in [(known, found) for _, known, found in told(cluster, name)]


def test_each_guest_is_told_of_itself_and_no_other(cluster: Cluster, guests: dict[str, str]) -> None:
    for name, uuid in guests.items():
        eventually(functools.partial(is_told, cluster, name, uuid), within=90, every=0.5)
    for name, uuid in guests.items():
        own = f"#cloud-config # of {name}" if name.startswith("told") else ""
        assert {known for _, known, _ in told(cluster, name)} <= {"", uuid}, name
        assert {data for _, _, data in told(cluster, name)} <= {"", own}, name
        eventually(functools.partial(has_been_told, cluster, name, uuid, own), within=90, every=0.5)


def test_the_firmware_says_where_user_data_are(cluster: Cluster, guests: dict[str, str]) -> None:
    assert f"serial {SEED}\n" in console(cluster, "told-a")
    assert SEED not in console(cluster, "else-c")


def test_user_data_that_change_are_told_anew(cluster: Cluster, guests: dict[str, str]) -> None:
    text = "#cloud-config\n# others\n"
    cluster.lab.run("n2", "pvc", "vm", "user-data", "set", "told-a", "-", stdin=text)
    assert cluster.pvc("vm", "user-data", "get", "told-a").stdout == text
    eventually(lambda: told(cluster, "told-a")[-1][2] == "#cloud-config # others", within=30)


def holders(cluster: Cluster) -> list[str]:
    """Nodes that answer for the address."""
    found = {
        node: cluster.run(node, "ip", "-j", "-4", "address", "show", "dev", "lo").stdout
        for node in cluster.lab.nodes
    }
    return [
        node
        for node, text in found.items()
        if any(one["local"] == ADDRESS for one in json.loads(text)[0]["addr_info"])
    ]


def test_follows_the_primary(
    cluster: Cluster, guests: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    (before,) = [one["name"] for one in cluster.json("node", "list") if one["coordinator_state"] == "primary"]
    assert holders(cluster) == [before]
    after = "n2" if before != "n2" else "n3"
    cluster.pvc("node", "primary", after, "--wait", "--timeout", "60")
    eventually(lambda: holders(cluster) == [after], within=20)
    for name, uuid in guests.items():
        again = functools.partial(is_told, cluster, name, uuid, told(cluster, name)[-1][0])
        eventually(again, within=30, every=0.5)
        with capsys.disabled():
            print(
                f"\n    {name}: {longest_silence(cluster, name):.1f} s without an answer as the primary moved"
            )


def test_a_service_that_was_killed_comes_back(cluster: Cluster, guests: dict[str, str]) -> None:
    (node,) = holders(cluster)
    cluster.run(node, "systemctl", "kill", "-s", "KILL", "pvc-metadata")
    last = told(cluster, "told-b")[-1][0]
    eventually(lambda: is_told(cluster, "told-b", guests["told-b"], last + 1), within=30, every=0.5)


def test_a_service_that_is_missing_is_reported(cluster: Cluster, guests: dict[str, str]) -> None:
    def problems() -> str:
        return " ".join(cluster.json("cluster", "status")["problems"])

    (node,) = holders(cluster)
    cluster.run(node, "systemctl", "stop", "pvc-metadata")
    try:
        eventually(lambda: "nobody serves metadata to guests" in problems(), within=30, every=0.5)
    finally:
        cluster.run(node, "systemctl", "start", "pvc-metadata")
    eventually(lambda: "metadata" not in problems(), within=30, every=0.5)


def test_the_service_can_do_little(cluster: Cluster, guests: dict[str, str]) -> None:
    """What its unit takes away is really gone where it runs."""
    (node,) = holders(cluster)
    status = cluster.lab.sh(node, "cat /proc/$(systemctl show -p MainPID --value pvc-metadata)/status")
    assert re.search(r"^CapBnd:\s+0000000000000400$", status, re.MULTILINE), "port 80 and nothing else"
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE)


def test_a_node_itself_and_its_network_are_told_nothing(cluster: Cluster, guests: dict[str, str]) -> None:
    (node,) = holders(cluster)
    script = (
        f"printf 'GET /latest/user-data HTTP/1.0\\r\\nHost: {ADDRESS}\\r\\n\\r\\n' | nc -w 5 {ADDRESS} 80"
    )
    assert "404 Not Found" in cluster.lab.sh(node, script)
    refused = "journalctl -u pvc-metadata | grep 'refused .*: it is in no managed network'"
    eventually(lambda: cluster.lab.sh(node, refused, check=False), within=10)
