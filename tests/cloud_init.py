"""Debian's cloud-init, in a tree of its own: it is never installed on the machine that tests.

The tree is what apt on this machine would install, unpacked and not configured, and cached as the node image
is. A run has its own layer over it, its own mounts and host name, and the network of a namespace.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from installer.image import DEFAULT_CACHE, SUITE, apt_options, debian_sources

PACKAGES = ("cloud-init", "coreutils", "dash", "hostname", "iproute2", "util-linux")
HOOKS = "/usr/share/mmdebstrap/hooks/merged-usr"

INSIDE = """\
set -eu
mount --make-rprivate /
work=$(mktemp -d)
trap 'umount -l "$work"; rmdir "$work"' EXIT
mount -t tmpfs tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$work/upper,workdir=$work/work" "$work/root"
cd "$work/root"
mkdir -p proc sys dev run root
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
printf '%s\n' "console=ttyS0 $3" > run/cmdline
mount --bind run/cmdline proc/cmdline
ln -sf dash usr/bin/sh
rm -rf etc/cloud/cloud.cfg.d etc/resolv.conf
cat > etc/cloud/cloud.cfg
hostname localhost
chroot . /bin/sh -c 'cloud-init init --local; cloud-init init' > run/said 2>&1 || cat run/said >&2
chroot . cloud-init query --all > run/known
chroot . python3 -c "$2" < run/known
"""

REPORT = """
import json, os, socket, sys
known = json.load(sys.stdin)
network = known["ds"].get("meta-data", {}).get("network")
if network:
    from cloudinit.sources.DataSourceEc2 import convert_ec2_metadata_network_config as convert
    nics = {mac: "eth0" for mac in network["interfaces"]["macs"]}
    known["network_config"] = convert(network, macs_to_nics=nics)
known["host_name_now"] = socket.gethostname()
written = "/tmp/from-user-data"
known["written"] = open(written).read() if os.path.exists(written) else None
known["source"] = open("/run/cloud-init/cloud-id").read().strip()
known["log"] = open("/run/said").read()
print(json.dumps(known))
"""

CONFIGURATION = {
    "network": {"config": "disabled"},
    "preserve_hostname": False,
    "cloud_init_modules": ["set_hostname", "write-files"],
    "cloud_config_modules": [],
    "cloud_final_modules": [],
    "system_info": {"distro": "debian"},
}

USER_DATA = "#cloud-config\nwrite_files: [{{path: /tmp/from-user-data, content: 'of {}'}}]\n"


@dataclass(frozen=True, slots=True)
class CloudInit:
    tree: Path

    def run(self, namespace: str, source: str, cmdline: str = "") -> dict[str, Any]:
        """The first boot of a guest with the network of that namespace, up to where user data are acted upon.

        What is on its kernel's command line might as well be the serial number of the machine.

        What it knows then: all of `cloud-init query`, with its log and what the user data had it do.
        """
        configuration = {**CONFIGURATION, "datasource_list": [source]}
        command = ("sh", "-c", INSIDE, "sh", str(self.tree), REPORT, cmdline)
        done = subprocess.run(
            ["ip", "netns", "exec", namespace, "unshare", "--mount", "--uts", *command],
            input=json.dumps(configuration),  # which is YAML
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        known: dict[str, Any] = json.loads(done.stdout)
        return known


def unpacked(cache: Path = DEFAULT_CACHE) -> CloudInit:
    """Needs root, and at the first time about 15 seconds."""
    key = hashlib.sha256(" ".join((SUITE, *PACKAGES)).encode()).hexdigest()[:12]
    tree = cache / f"cloud-init-{key}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".cloud-init.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.exists():
            _unpack(cache, tree)
    return CloudInit(tree)


def _unpack(cache: Path, tree: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix="cloud-init-", dir=cache))
    try:
        command = [
            *("mmdebstrap", "--variant=extract", "--components=main", f"--hook-dir={HOOKS}"),
            f"--include={','.join(PACKAGES)}",
            *(f"--aptopt={option}" for option in apt_options()),
            '--aptopt=Acquire::Languages "none"',
            *("--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*"),
            *(SUITE, str(work / "tree"), *(source.line() for source in debian_sources())),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (work / "tree").rename(tree)
    finally:
        shutil.rmtree(work)
