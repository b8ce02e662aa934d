"""The node image: a Debian tree with everything a node runs, as one read-only squashfs.

The lab boots it with an overlay per node; the installer will unpack the same file. It is built by mmdebstrap
from the mirror of this host's own apt configuration, and cached under the hash of all that shapes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from installer.guest_initrd import build_guest

HERE = Path(__file__).resolve().parent
UNITS = HERE.parent / "packaging" / "systemd"
PROGRAMS = HERE.parent / "packaging" / "lib"
"""What others than pvc run."""
SUITE = "bookworm"
DEFAULT_CACHE = Path("/var/cache/pvc")
EPOCH = "1700000000"

Log = Callable[[str], None]

# What a node needs, by purpose. No kernel and no boot loader: the installer adds them.
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod", "libpam-systemd"),
    *(
        "iproute2",
        "iputils-ping",
        "iputils-arping",
        "nftables",
        "ethtool",
        "tcpdump",
        "socat",
        "netcat-openbsd",
    ),
    *("openssh-server", "chrony", "procps", "less", "vim-tiny", "ca-certificates", "gnutls-bin", "openssl"),
    *("python3", "python3-yaml", "python3-libvirt"),
    *("frr", "frr-pythontools", "dnsmasq-base", "ipmitool"),
    *("pdns-server", "pdns-backend-sqlite3", "bind9-dnsutils"),
    *("libvirt-daemon-system", "libvirt-clients", "libvirt-daemon-driver-qemu"),
    *("qemu-system-x86", "qemu-utils", "qemu-block-extra", "seabios", "ovmf"),
    *("ceph-mon", "ceph-mgr", "ceph-mgr-modules-core", "ceph-osd", "ceph-common"),
    *("python3-rados", "python3-rbd", "fio"),
    *("zookeeper", "pvc-headless-jre"),
)

ENABLED = (
    "systemd-networkd.service",
    "pvc-networks.service",
    "zookeeper.service",
    "pvc-node.service",
    "pvc-api.service",
    "pvc-metadata.service",
    "pvc-ssh-keys.service",
)
# Started by the node daemon where a network needs them, or by nobody.
DISABLED = ("frr.service", "pdns.service", "ceph-crash.service", "rbdmap.service")
MASKED = (
    "libvirt-guests.service",  # would make every shutdown of a node wait for its guests
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "e2scrub_reap.service",
    "e2scrub_all.timer",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "console-getty.service",
    # These come with Ceph, for what no node has.
    "lvm2-monitor.service",
    "nvmf-autoconnect.service",
)

# What must differ between nodes, or says something about the machine that built the image.
REMOVED = (
    "etc/hostname",
    "etc/resolv.conf",
    "etc/libvirt/qemu/networks/autostart/default.xml",
    "var/lib/dbus/machine-id",
    "var/cache/ldconfig/aux-cache",
    "var/log/apt",
    "var/log/dpkg.log",
    "var/log/alternatives.log",
    "var/log/bootstrap.log",
)

# Debian's zookeeper wants the full default-jre, with X11 and Mesa: 220 MiB that no server needs.
HEADLESS_JRE = """\
Package: pvc-headless-jre
Version: 1.0
Architecture: all
Maintainer: Parallel Virtual Cluster <root@localhost>
Depends: default-jre-headless
Provides: default-jre
Description: a Java runtime without a desktop, for ZooKeeper
"""


class ImageError(Exception):
    """The image cannot be built; says what is missing."""


@dataclass(frozen=True, slots=True)
class Source:
    """One suite of the Debian archive, as apt on this host is told to fetch it."""

    uri: str
    suite: str
    signed_by: str = ""

    def line(self) -> str:
        option = f"[signed-by={self.signed_by}] " if self.signed_by else ""
        return f"deb {option}{self.uri} {self.suite} main"


def required_packages() -> list[str]:
    """Debian packages this host must have to build the image."""
    return ["mmdebstrap", "squashfs-tools", "dpkg", "kmod"]


def cache_key() -> str:
    """Changes exactly when something that shapes the image changes."""
    digest = hashlib.sha256()
    for root in (HERE, UNITS, PROGRAMS):
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                mode = path.stat().st_mode & 0o111
                digest.update(f"{root.name}/{path.relative_to(root)}\0{mode}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def image_path(cache: Path = DEFAULT_CACHE) -> Path:
    """Where the image of this checkout is, or will be."""
    return cache / f"node-{cache_key()}.sqfs"


def build_image(cache: Path = DEFAULT_CACHE, *, log: Log) -> Path:
    """Build the node image unless it is cached; node.sqfs in the cache names the newest. Needs root."""
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(cache):
        target = image_path(cache)
        if target.exists():
            log(f"node image is cached: {target}")
        else:
            _clean_leftovers(cache, log)
            _build(cache, target, log)
        _point_to(cache / "node.sqfs", target)
    return target


def _build(cache: Path, target: Path, log: Log) -> None:
    if os.geteuid() != 0:
        raise ImageError("building the node image needs root")
    if missing := [
        command for command in ("mmdebstrap", "mksquashfs", "dpkg-deb", "depmod") if not shutil.which(command)
    ]:
        packages = " ".join(required_packages())
        raise ImageError(f"missing commands: {', '.join(missing)}; apt-get install {packages}")
    sources = debian_sources()
    work = Path(tempfile.mkdtemp(prefix="build-", dir=cache))
    try:
        work.chmod(0o755)
        tree = work / "tree"
        log(f"node image: installing {len(PACKAGES)} packages and what they need (about a minute)")
        _bootstrap(work, tree, sources, log)
        log("node image: configuring")
        bake(tree)
        log("node image: guest kernel and initrd")
        _add_guest(work, tree)
        log("node image: compressing")
        new = work / "new.sqfs"
        _run(["mksquashfs", str(tree), str(new), "-noappend", "-quiet", "-no-progress", "-comp", "zstd",
              "-Xcompression-level", "3", "-b", "256K"])  # fmt: skip
        # Never over the old file in place: a loop device may still be reading it.
        new.rename(target)
        log(f"node image: {target} ({target.stat().st_size // 2**20} MiB)")
    finally:
        _remove_tree(work)


def debian_sources() -> list[Source]:
    """The Debian archive as configured on this host: the release, its updates, its security fixes."""
    fields = ("REPO_URI", "RELEASE", "CODENAME", "COMPONENT", "ORIGIN", "SOURCESENTRY")
    text = _run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "\t".join(f"$({field})" for field in fields),
            "Created-By: Packages",
        ]
    )
    return parse_sources(text, read=lambda path: Path(path).read_text())


def parse_sources(index_targets: str, *, read: Callable[[str], str]) -> list[Source]:
    """From `apt-get indextargets` and the files it names (one-line and deb822 style)."""
    found: dict[str, Source] = {}
    for line in index_targets.splitlines():
        uri, release, codename, component, origin, entry = line.split("\t")
        suite = codename if codename.startswith(SUITE) else release
        if (
            origin == "Debian"
            and component == "main"
            and suite in (SUITE, f"{SUITE}-updates", f"{SUITE}-security")
        ):
            file, _, number = entry.rpartition(":")
            found.setdefault(suite, Source(uri, suite, signed_by(file, int(number), read(file))))
    if SUITE not in found:
        raise ImageError(
            f"apt on this host knows no Debian {SUITE} archive: "
            "add it to /etc/apt/sources.list.d and run apt-get update"
        )
    return [found[suite] for suite in sorted(found)]


def signed_by(file: str, number: int, text: str) -> str:
    """The keyring an entry names, or "" where apt uses its own; the number is of a line, or of a stanza."""
    lines = text.splitlines()
    if file.endswith(".list"):
        line = lines[number - 1] if number <= len(lines) else ""
        options = line.partition("[")[2].partition("]")[0].split()
        return next((item.split("=", 1)[1] for item in options if item.lower().startswith("signed-by=")), "")
    stanzas: list[dict[str, str]] = []
    for block in text.split("\n\n"):
        pairs = (line.split(":", 1) for line in block.splitlines() if ":" in line and line[0] not in "# \t")
        if stanza := {key.strip().lower(): value.strip() for key, value in pairs}:
            stanzas.append(stanza)
    # Some versions of apt count stanzas, some lines; all stanzas of a file for Debian name the same keyring.
    stanza = stanzas[number - 1] if number <= len(stanzas) else stanzas[-1] if stanzas else {}
    value = stanza.get("signed-by", "")
    return value if value.startswith("/") else ""


def apt_options() -> list[str]:
    """How apt on this host reaches its mirror: proxies and validity checks, nothing else."""
    lines = _run(["apt-config", "dump"]).splitlines()
    wanted = ("Acquire::Check-Valid-Until ", "Acquire::Check-Date ")
    return [
        line
        for line in lines
        if line.startswith(wanted) or (line.startswith("Acquire::") and "::Proxy " in line)
    ]


def _bootstrap(work: Path, tree: Path, sources: Sequence[Source], log: Log) -> None:
    repository = work / "repository"
    _local_repository(repository)
    command = [
        "mmdebstrap",
        "--variant=minbase",
        "--components=main",
        f"--include={','.join(PACKAGES)}",
        *(f"--aptopt={option}" for option in apt_options()),
        '--aptopt=Acquire::Languages "none"',
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=path-exclude=/usr/share/man/*/*",
        "--dpkgopt=path-include=/usr/share/man/man[1-9]/",
        # openjdk's postinst fails without this directory, and everything after it.
        '--essential-hook=mkdir -p "$1"/usr/share/man/man1 "$1"/usr/share/man/man7',
        SUITE,
        str(tree),
        f"deb [trusted=yes] copy://{repository} ./",
        *(source.line() for source in sources),
    ]
    _follow(command, lambda line: log(f"  {line[3:]}") if line.startswith("I: ") else None)


def _local_repository(path: Path) -> None:
    package = path / "package"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "DEBIAN" / "control").write_text(HEADLESS_JRE)
    deb = path / "pvc-headless-jre_1.0_all.deb"
    _run(["dpkg-deb", "--root-owner-group", "-b", str(package), str(deb)])
    data = deb.read_bytes()
    (path / "Packages").write_text(
        f"{HEADLESS_JRE}Filename: ./{deb.name}\nSize: {len(data)}\n"
        f"SHA256: {hashlib.sha256(data).hexdigest()}\n"
    )


def bake(tree: Path) -> None:
    """Turn an installed Debian into a node nobody has named yet."""
    for name in REMOVED:
        _remove(tree / name)
    for pattern in (
        "etc/ssh/ssh_host_*",
        "etc/apt/sources.list.d/*",
        "var/lib/apt/lists/*",
        "var/cache/apt/*.bin",
    ):
        for path in tree.glob(pattern):
            _remove(path)
    sources = tree / "etc/apt/sources.list"
    if sources.exists():
        kept = [line for line in sources.read_text().splitlines(keepends=True) if "copy://" not in line]
        sources.write_text("".join(kept))
    (tree / "etc/machine-id").write_text("")
    targets = (
        (HERE / "overlay", tree),
        (UNITS, tree / "lib/systemd/system"),
        (PROGRAMS, tree / "usr/lib/pvc"),
    )
    for root, target in targets:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                _install(path, tree / target / path.relative_to(root))
    _replace_line(tree / "etc/frr/daemons", "bgpd=", "bgpd=yes")
    # -x: a node in a container must never steer the host's clock; the installer writes a real node's file.
    _replace_line(tree / "etc/default/chrony", "DAEMON_OPTS=", 'DAEMON_OPTS="-x -F 1"')
    _run(["systemctl", f"--root={tree}", "--quiet", "disable", *DISABLED])
    _run(["systemctl", f"--root={tree}", "--quiet", "enable", *ENABLED])
    _run(["systemctl", f"--root={tree}", "--quiet", "mask", *MASKED])
    for folder in ("etc/pvc", "srv/share", "usr/share/pvc/guest"):
        (tree / folder).mkdir(parents=True, exist_ok=True)


def _add_guest(work: Path, tree: Path) -> None:
    kernel = _first_dependency("linux-image-cloud-amd64")
    debs, unpacked = work / "debs", work / "guest"
    debs.mkdir()
    packages = (kernel, "busybox-static", "qemu-guest-agent")
    _run(["apt-get", "-o", "APT::Sandbox::User=root", "download", *packages], cwd=debs)
    for deb in sorted(debs.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(deb), str(unpacked)])
    build_guest(unpacked, tree, HERE / "guest" / "init", tree / "usr/share/pvc/guest", _run)


def _first_dependency(package: str) -> str:
    for line in _run(["apt-cache", "depends", package]).splitlines():
        if line.strip().startswith("Depends: linux-image-"):
            return line.split()[1]
    raise ImageError(f"apt on this host knows no package {package}: run apt-get update")


def _install(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)


def _replace_line(path: Path, start: str, line: str) -> None:
    lines = path.read_text().splitlines()
    if not any(old.startswith(start) for old in lines):
        raise ImageError(f"{path} has no line {start}…: Debian's package changed")
    path.write_text("".join(f"{line if old.startswith(start) else old}\n" for old in lines))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _point_to(link: Path, target: Path) -> None:
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target.name)
    new.rename(link)


@contextmanager
def _lock(cache: Path) -> Iterator[None]:
    with (cache / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _clean_leftovers(cache: Path, log: Log) -> None:
    """Whatever an interrupted build left; the lock says that no other build is running."""
    for path in cache.glob("build-*"):
        log(f"node image: removing what an interrupted build left: {path}")
        _end_processes(path)
        _remove_tree(path)


def _end_processes(path: Path) -> None:
    """A build that was killed leaves its helpers running in the tree."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace")
            if str(path) not in words and not os.readlink(entry / "root").startswith(str(path)):
                continue
            handle = os.pidfd_open(int(entry.name))
        except OSError:
            continue
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        select.select([handle], [], [])
        os.close(handle)


def _remove_tree(path: Path) -> None:
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in sorted((item for item in mounts if item.startswith(f"{path}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], check=True)
    shutil.rmtree(path)


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "LC_ALL": "C.UTF-8",
        "SOURCE_DATE_EPOCH": EPOCH,
        "DEBIAN_FRONTEND": "noninteractive",
    }


def _run(argv: Sequence[str], *, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            list(argv),
            capture_output=True,
            text=True,
            errors="replace",
            env=_environment(),
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError:
        raise ImageError(
            f"the command {argv[0]} is missing: apt-get install {' '.join(required_packages())}"
        ) from None
    if done.returncode != 0:
        raise ImageError(
            f"{argv[0]} ended with code {done.returncode}:\n{(done.stderr or done.stdout).strip()}"
        )
    return done.stdout


def _follow(argv: Sequence[str], each_line: Callable[[str], None]) -> None:
    """Run a long command, showing its progress; an interrupt is passed on, and waited for: it cleans up."""
    said: list[str] = []
    try:
        process = subprocess.Popen(
            list(argv),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_environment(),
        )
    except FileNotFoundError:
        raise ImageError(
            f"the command {argv[0]} is missing: apt-get install {' '.join(required_packages())}"
        ) from None
    assert process.stdout is not None
    try:
        for line in process.stdout:
            said.append(line.rstrip())
            each_line(line.rstrip())
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    if process.wait() != 0:
        raise ImageError(f"{argv[0]} ended with code {process.returncode}:\n" + "\n".join(said[-15:]))


if __name__ == "__main__":
    print(build_image(log=print))
