"""A machine with a kernel of its own, emulated: the node image, what is laid over it, and empty disks.

It is n1 of a lab of one node, with its Ceph. For what the kernel beneath may lack, as device-mapper.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

import installer.image
from installer.guest_initrd import LIBRARIES, build_initrd, load_order
from pvc.lab import ceph, render
from pvc.lab.layout import CLUSTER, STORAGE, Lab, new_lab
from pvc.lab.render import File

ROOT = Path(__file__).parents[2]
SITE = Path(pytest.__file__).parents[1]
PYTHON = ("_pytest", "pytest", "pluggy*", "iniconfig", "packaging", "pygments", "py.py")
"""What tests need inside."""

MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net", "virtio-rng", "sd_mod"),
    *("squashfs", "overlay", "dm-mod"),
)
INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /image /over /new
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/modules/$module"; done </modules/order
until [ -b /dev/vda ] && [ -b /dev/vdb ] && [ -b /dev/vdc ]; do sleep 0.1; done
mount -t squashfs -o ro /dev/vda /image
mount -t squashfs -o ro /dev/vdb /over
mount -t ext4 /dev/vdc /new
mkdir -p /new/upper /new/work /new/root
mount -t overlay -o lowerdir=/over:/image,upperdir=/new/upper,workdir=/new/work overlay /new/root
chroot /new/root chown -R ceph:ceph /var/lib/ceph
ip link set eth0 up
for address in {addresses}; do ip address add $address dev eth0; done
exec switch_root /new/root /sbin/init
"""
LEFT_OUT = (
    *("chrony", "libvirtd", "pvc-api", "pvc-metadata", "pvc-networks", "pvc-node", "smartmontools"),
    *("serial-getty@ttyS0", "systemd-networkd-wait-online", "zookeeper"),
)
"""Services of a node: here are only Ceph's, and the tests have the console."""
TESTS = """\
[Unit]
After=ceph.target
ConditionKernelCommandLine=tests
[Service]
Type=oneshot
WorkingDirectory=/work
Environment=PYTHONPATH=/work LANG=C.UTF-8
ExecStart=/bin/sh -c 'exec python3 -m pytest -v -x -p no:cacheprovider $(sed "s/.*tests=//" /proc/cmdline)'
ExecStopPost=/bin/sh -c 'echo "result $EXIT_STATUS"; sync; systemctl --force --force poweroff'
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
"""
SSH_PORT = 8022
OWN_BYTES = 40 * 1024**3
DISKS = 4
DISK_BYTES = 6 * 1024**3


@dataclass
class Machine:
    where: Path

    def make(self) -> None:
        self.where.mkdir(parents=True, exist_ok=True)
        lab = new_lab(self.where, installer.image.build_image(log=print), 1, 1, 1)
        self._initrd(lab)
        self._over(lab)
        with (self.where / "own").open("wb") as own:
            own.truncate(OWN_BYTES)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", own.name], check=True)
        for number in range(DISKS):
            with self._disk(number).open("wb") as disk:
                disk.truncate(DISK_BYTES)

    def run(self, tests: str) -> bool:
        """Start it, run these tests in it; it is off afterwards. What it says goes to standard output."""
        with subprocess.Popen(
            self.command(tests), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout
            try:
                said = []
                for line in process.stdout:
                    said.append(line.decode(errors="replace").strip())
                    print(said[-1], flush=True)
            finally:
                process.kill()
        return "result 0" in said

    def _disk(self, number: int) -> Path:
        return self.where / f"disk{number}"

    def _initrd(self, lab: Lab) -> None:
        """With modules of the kernel that the image has for guests."""
        packages, (node,) = self.where / "guest", lab.nodes
        if not packages.is_dir():
            tree, image = self.where / "image", installer.image.image_path()
            # What the guest's programs load is in the image.
            parts = [LIBRARIES, "usr/sbin/mke2fs"]
            subprocess.run(["unsquashfs", "-q", "-n", "-f", "-d", tree, image, *parts], check=True)
            installer.image._add_guest(self.where, tree)
        (modules,) = packages.glob("lib/modules/*")
        order = load_order(MODULES, (modules / "modules.dep").read_text())
        addresses = ["10.0.2.15/24", *(f"{lab.address(node, one)}/24" for one in (CLUSTER, STORAGE))]
        initrd = build_initrd(
            (packages / "bin/busybox").read_bytes(),
            INIT.format(addresses=" ".join(addresses)).encode(),
            [(Path(path).name, (modules / path).read_bytes()) for path in order],
        )
        (self.where / "initrd").write_bytes(initrd)

    def _over(self, lab: Lab) -> None:
        (node,) = lab.nodes
        over = self.where / "over"
        shutil.rmtree(over, ignore_errors=True)
        files = [
            *(one for one in render.node_files(lab, node) if not one.path.startswith("etc/systemd/network")),
            *ceph.files(lab, node),
            File("etc/systemd/system/multi-user.target.d/tests.conf", "[Unit]\nWants=tests.service\n"),
            File("etc/systemd/system/tests.service", TESTS),
            File("root/.ssh/authorized_keys", self._key(), 0o600),
        ]
        for file in files:
            path = over / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file.text)
            path.chmod(file.mode)
        for name in ("pvc", "tests"):
            shutil.copytree(ROOT / name, over / "work" / name)
        for path in (path for name in PYTHON for path in SITE.glob(name)):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, over / "work" / path.name)
        shutil.copy(ROOT / "pyproject.toml", over / "work")
        words = ["-noappend", "-quiet", "-no-progress", "-comp", "zstd", "-all-root"]
        subprocess.run(["mksquashfs", over, self.where / "over.sqfs", *words], check=True)

    def _key(self) -> str:
        key = self.where / "key"
        if not key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        return key.with_suffix(".pub").read_text()

    def command(self, tests: str = "") -> list[str]:
        """Without tests it is there for ssh."""
        drives = [
            *("-drive", f"file={installer.image.image_path()},format=raw,if=virtio,readonly=on"),
            *("-drive", f"file={self.where / 'over.sqfs'},format=raw,if=virtio,readonly=on"),
            *("-drive", f"file={self.where / 'own'},format=raw,if=virtio,cache=unsafe,discard=unmap"),
            *("-device", "virtio-scsi-pci"),
        ]
        for number in range(DISKS):
            file = f"file={self._disk(number)},format=raw,cache=unsafe,discard=unmap,if=none,id=d{number}"
            what = f"scsi-hd,drive=d{number},vendor=PVC,product=SCRATCH{number},serial=scratch{number}"
            drives += ["-drive", file, "-device", what]
        kernel = next((self.where / "guest/boot").glob("vmlinuz-*"))
        append = " ".join(
            [
                "console=ttyS0 net.ifnames=0 mitigations=off panic=-1 quiet",
                *(f"systemd.mask={name}.service" for name in LEFT_OUT),
                *([f"tests={tests}"] if tests else []),
            ]
        )
        return [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "4096"),
            *("-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
            *("-kernel", str(kernel), "-initrd", str(self.where / "initrd"), "-append", append),
            *("-device", "virtio-rng-pci", "-device", "virtio-net-pci,netdev=n0"),
            *("-netdev", f"user,id=n0,hostfwd=tcp:127.0.0.1:{SSH_PORT}-:22"),
            *drives,
        ]
