"""Two real libvirt hosts in namespaces of their own, with TLS between them.

Each has processes, mounts, network and host name to itself, and its own /etc, /run, /var and /dev, so that
nothing of the machine's libvirt is touched and everything ends with the test. There is no /dev/kvm in them:
nested, it may hang.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pvc import pki
from pvc.node.drivers.hypervisor import MigrationTarget
from pvc.proc import run
from tests.support import eventually

START_WITHIN_S = 60.0
DEVICES = "null zero full random urandom tty net/tun"

HOST = """
set -e
hostname {name}
ip link set lo up
mkdir -p {directory}/etc {directory}/sock
cp -a /etc/. {directory}/etc/
mount --bind {directory}/etc /etc
for place in /run /var/lib /var/log /var/cache; do mount -t tmpfs -o mode=755 none $place; done
mkdir /run/dev
mount -t tmpfs none /run/dev
mkdir -p /run/dev/pts /run/dev/net /run/dev/shm
mkdir -p /var/cache/libvirt /var/lib/libvirt /var/log/libvirt /var/log/console /run/libvirt
for device in {devices}; do
    touch /run/dev/$device
    mount --bind /dev/$device /run/dev/$device
done
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 none /run/dev/pts
ln -s pts/ptmx /run/dev/ptmx
mount --move /run/dev /dev
mkdir -p /etc/libvirt
printf '%s\\n' 'user = "root"' 'group = "root"' 'dynamic_ownership = 0' 'cgroup_controllers = []' \\
    'security_driver = "none"' 'namespaces = []' > /etc/libvirt/qemu.conf
printf '%s\\n' 'host_uuid = "{uuid}"' 'unix_sock_dir = "{directory}/sock"' 'auth_unix_rw = "none"' \\
    'listen_addr = "{address}"' > /etc/libvirt/libvirtd.conf
printf '%s\\n' '127.0.0.1 localhost' '192.0.2.1 n1' '192.0.2.2 n2' > /etc/hosts
id libvirt-qemu > /dev/null 2>&1 || echo 'libvirt-qemu:x:64055:64055::/:/bin/false' >> /etc/passwd
getent group libvirt-qemu > /dev/null || echo 'libvirt-qemu:x:64055:' >> /etc/group
echo prepared
read -r networked
virtlogd --daemon
# Process 1 reaps what QEMU leaves behind, and starts libvirtd again when a test kills it.
while true; do libvirtd --listen & echo $! > {directory}/libvirtd.pid; wait $! || true; done
"""


@dataclass(slots=True)
class Host:
    name: str
    address: str
    directory: Path
    process: subprocess.Popen[str]

    @property
    def uri(self) -> str:
        return f"qemu+unix:///system?socket={self.directory}/sock/libvirt-sock"

    @property
    def target(self) -> MigrationTarget:
        return MigrationTarget(uri=f"qemu+tls://{self.address}/system", data_uri=f"tcp://{self.address}")

    @property
    def init(self) -> str:
        """Process 1 of the host, as a number of ours."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return children.read_text().split()[0]

    def run(self, *argv: str) -> str:
        """In the host's namespaces."""
        return run(["nsenter", "-t", self.init, "-m", "-u", "-n", "-p", *argv]).stdout

    def signal_libvirtd(self, signal: str) -> None:
        self.run("sh", "-c", f"kill -{signal} $(cat {self.directory}/libvirtd.pid)")

    def restart_libvirtd(self) -> None:
        self.signal_libvirtd("KILL")
        eventually(self.serves, within=START_WITHIN_S)

    def serves(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(f"{self.directory}/sock/libvirt-sock")
            except OSError:
                return False
        return True


def _launch(directory: Path, number: int) -> Host:
    directory.mkdir()
    name, address = f"n{number}", f"192.0.2.{number}"
    uuid = f"0000000{number}-0000-4000-8000-000000000000"
    script = HOST.format(name=name, address=address, directory=directory, uuid=uuid, devices=DEVICES)
    unshare = ["unshare", "-m", "-u", "-n", "-p", "--fork", "--kill-child", "--mount-proc"]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *unshare, "bash", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    return Host(name, address, directory, process)


def _await_prepared(host: Host) -> None:
    assert host.process.stdout is not None
    said = host.process.stdout.readline()
    assert said == "prepared\n", (host.directory / "log").read_text()


def _connect(first: Host, second: Host) -> None:
    """One cable between the two."""
    link = ["nsenter", "-t", first.init, "-n", "ip", "link", "add", "cable", "type", "veth"]
    run([*link, "peer", "name", "cable", "netns", second.init])
    for host in (first, second):
        for arguments in (
            ["address", "add", f"{host.address}/24", "dev", "cable"],
            ["link", "set", "cable", "up"],
        ):
            run(["nsenter", "-t", host.init, "-n", "ip", *arguments])


def _certify(directory: Path, hosts: list[Host]) -> None:
    key_file = directory / "cluster.key"
    key_file.write_text("7" * 64)
    authority = pki.create_ca(str(key_file))
    for host in hosts:
        certificate = pki.issue(*authority, str(key_file), host.name, [host.address])
        pki.install(certificate, root=str(host.directory))


@contextmanager
def libvirt_hosts(directory: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts that serve and reach each other; gone on the way out."""
    with ExitStack() as stack:
        hosts = [_launch(directory / f"n{number}", number) for number in (1, 2)]
        for host in hosts:
            stack.callback(host.process.wait)
            stack.callback(host.process.kill)
        for host in hosts:
            _await_prepared(host)
        _connect(*hosts)
        _certify(directory, hosts)
        for host in hosts:
            assert host.process.stdin is not None
            host.process.stdin.write("networked\n")
            host.process.stdin.flush()
        for host in hosts:
            eventually(host.serves, within=START_WITHIN_S)
        yield hosts[0], hosts[1]
