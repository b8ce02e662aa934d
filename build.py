#!/usr/bin/env python3
"""Builds, tests and shows PVC on a fresh Debian: `./build.py lab`, `./build.py test`, `./build.py --help`.

Needs nothing but Python's standard library. Every verb is a list of steps; a step knows what it would do
and whether that is still to be done, and an interruption leaves either nothing or the finished thing.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build"
DIST = ROOT / "dist"
VENV = BUILD / "venv"
PVC = DIST / "pvc"
LOCK = ROOT / "requirements.lock"
DEV_LOCK = ROOT / "requirements-dev.lock"

# Nodes run Debian's own Python: its libvirt module fits no other. -I keeps the user's modules and variables
# out of a program that runs as root.
PYTHON = "/usr/bin/python3"
SHEBANG = f"#!{PYTHON} -I\n"

# Debian packages by what needs them; the node image and the lab name theirs themselves.
PACKAGES: dict[str, tuple[str, ...]] = {
    "zipapp": ("ca-certificates", "python3", "python3-venv"),
    "test": (
        *("busybox-static", "dnsmasq-base", "gcc", "git", "gnutls-bin", "ipmitool", "iputils-ping"),
        *("libc6-dev", "mmdebstrap", "nftables", "openssl"),
        *("default-jre-headless", "libslf4j-java", "libzookeeper-java"),
        *("libvirt-clients", "libvirt-daemon", "libvirt-daemon-driver-qemu", "python3-libvirt"),
        *("fio", "qemu-block-extra", "qemu-system-x86", "qemu-utils"),
        *("libboost-python1.74.0", "libfuse2", "libleveldb1d", "python3-rados", "python3-rbd"),
    ),
}

# Unpacked for tests and not installed: Debian would start some of them on this machine.
CEPH = (
    *("ceph-base", "ceph-common", "ceph-mgr", "ceph-mgr-modules-core", "ceph-mon", "ceph-osd"),
    # For ceph-volume:
    *("libdevmapper-event1.02.1", "lvm2", "python3-ceph-argparse", "python3-ceph-common"),
    *("python3-prettytable", "python3-wcwidth", "udev"),
)

# From Debian's dist-packages into the virtual environment. Only these: with --system-site-packages the tests
# would see whatever else the machine has, older and unpinned.
DEBIAN_MODULES = (
    *("libvirt.py", "libvirtmod.*.so", "libvirt_qemu.py", "libvirtmod_qemu.*.so"),
    *("rados.*.so", "rbd.*.so"),
)
DIST_PACKAGES = Path("/usr/lib/python3/dist-packages")

LAYERS = ("lint", "unit", "contract", "sim", "integration", "lab")
LAYERS_ON_IMAGE = ("lab",)

MAIN = """\
import os, sys
sys.path[0] = os.path.join(os.path.abspath(sys.path[0]), "site-packages")
from pvc.__main__ import main
sys.exit(main())
"""

# Left by pip; they differ from builder to builder and nothing reads them.
NOT_SHIPPED = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")


class BuildError(Exception):
    """Something is missing or failed; the message names it and the way out."""


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    describe: Callable[[], str]
    """What it would do, in words; empty when there is nothing left to do."""
    run: Callable[[], None]


# Saying and running


STARTED = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:7.1f} s] {text}", flush=True)


def run(
    argv: Sequence[str | Path], *, env: dict[str, str] | None = None, cwd: Path = ROOT, show: bool = False
) -> str:
    """Run a command to its end and return what it printed; say that it still runs every 15 s."""
    words = [os.fspath(word) for word in argv]
    try:
        process = subprocess.Popen(
            words,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=None if show else subprocess.PIPE,
            stderr=None if show else subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        raise BuildError(f"the command {words[0]} is missing") from None
    output = _wait(process, words[0])
    if process.returncode != 0:
        tail = "".join(f"\n    {line}" for line in output.splitlines()[-25:])
        raise BuildError(f"{shlex.join(words)} ended with code {process.returncode}{tail}")
    return output


def _wait(process: subprocess.Popen[str], name: str) -> str:
    began = time.monotonic()
    try:
        while True:
            try:
                output, _ = process.communicate(timeout=15)
            except subprocess.TimeoutExpired:
                say(f"  {name} has been running for {time.monotonic() - began:.0f} s")
            else:
                return output or ""
    except BaseException:
        process.terminate()
        process.wait()
        raise


def content_hash(paths: Iterable[Path], *extra: str) -> str:
    """Of names, contents and whatever else decides what is built."""
    found = hashlib.sha256("\0".join(extra).encode())
    for path in sorted(paths):
        found.update(f"\0{path.relative_to(ROOT)}\0".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def stamped(directory: Path) -> str:
    """Key the directory was finished with; empty if it was not."""
    stamp = directory / ".stamp"
    return stamp.read_text() if stamp.exists() else ""


def replace_directory(new: Path, old: Path, key: str) -> None:
    (new / ".stamp").write_text(key)
    shutil.rmtree(old, ignore_errors=True)
    new.rename(old)


# Debian packages


def missing_packages(names: Iterable[str]) -> list[str]:
    if shutil.which("dpkg-query") is None:
        raise BuildError("dpkg-query is missing: build.py sets up Debian 12 (or newer) and nothing else")
    asked = sorted(set(names))
    found = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n", *asked],
        capture_output=True,
        text=True,
        check=False,
    )
    installed = {line.split()[1] for line in found.stdout.splitlines() if line.startswith("installed ")}
    return [name for name in asked if name not in installed]


def install_packages(names: Sequence[str]) -> None:
    missing = missing_packages(names)
    if not missing:
        return
    command = f"apt-get install --no-install-recommends {' '.join(missing)}"
    if os.geteuid() != 0:
        raise BuildError(f"Debian packages are missing and only root can install them; as root: {command}")
    if shutil.which("apt-get") is None:
        raise BuildError(f"apt-get is missing, and with it these packages: {' '.join(missing)}")
    quiet = {"DEBIAN_FRONTEND": "noninteractive", "APT_LISTCHANGES_FRONTEND": "none"}
    if run(["dpkg", "--audit"]).strip():
        say("  finishing an interrupted installation of packages")
        run(["dpkg", "--configure", "-a"], env=quiet)
    wait = "DPkg::Lock::Timeout=600"
    run(["apt-get", "-q", "-o", wait, "update"], env=quiet)
    run(["apt-get", "-q", "-y", "-o", wait, "install", "--no-install-recommends", *missing], env=quiet)


def packages(*sets: str) -> Step:
    names = [name for chosen in sets for name in packages_of(chosen)]

    def describe() -> str:
        missing = missing_packages(names)
        return f"apt-get install {len(missing)} packages: {' '.join(missing)}" if missing else ""

    return Step("packages", describe, lambda: install_packages(names))


def ceph_key() -> str:
    """Daemons are of the version of the libraries."""
    asked = ["dpkg-query", "-W", "-f", "${Version}", "librados2"]
    version = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return f"{version} {' '.join(CEPH)}"


def unpack_ceph() -> None:
    new = BUILD / "ceph.new"
    shutil.rmtree(new, ignore_errors=True)
    archives = new / "archives"
    archives.mkdir(parents=True)
    if os.geteuid() == 0:
        run(["apt-get", "-q", "-o", "DPkg::Lock::Timeout=600", "update"])
    run(["apt-get", "-q", "download", *CEPH], cwd=archives)
    for archive in sorted(archives.glob("*.deb")):
        run(["dpkg-deb", "-x", archive, new])
    shutil.rmtree(archives)
    replace_directory(new, BUILD / "ceph", ceph_key())


def ceph() -> Step:
    def describe() -> str:
        is_there = stamped(BUILD / "ceph") == ceph_key()
        return "" if is_there else f"unpack {' '.join(CEPH)} into build/ceph, for tests"

    return Step("ceph", describe, unpack_ceph)


def packages_of(chosen: str) -> list[str]:
    match chosen:
        case "image":
            from installer import image

            return image.required_packages()
        case "lab":
            from pvc.lab import preflight

            return preflight.host_packages()
    return list(PACKAGES[chosen])


# The Python tools


def venv_key() -> str:
    version = run([PYTHON, "-VV"]) if Path(PYTHON).exists() else "none"
    return content_hash([DEV_LOCK], version)


def make_venv() -> None:
    """Made in place: a virtual environment cannot be moved. Without its stamp it is made again."""
    if stamped(VENV) != venv_key():
        shutil.rmtree(VENV, ignore_errors=True)
        run([PYTHON, "-m", "venv", VENV])
        pip("install", "--require-hashes", "-r", DEV_LOCK)
        (VENV / ".stamp").write_text(venv_key())
    link_debian_modules()


def pip(*arguments: str | Path) -> None:
    run([VENV / "bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments])


def debian_modules() -> list[Path]:
    return [path for pattern in DEBIAN_MODULES for path in DIST_PACKAGES.glob(pattern)]


def site_packages() -> Path:
    return next(VENV.glob("lib/python3*/site-packages"))


def link_debian_modules() -> None:
    for path in debian_modules():
        link = site_packages() / path.name
        if not link.is_symlink():
            link.symlink_to(path)


def venv() -> Step:
    def describe() -> str:
        if stamped(VENV) != venv_key():
            count = DEV_LOCK.read_text().count("==")
            return f"make {VENV.relative_to(ROOT)} with {count} pinned packages of {DEV_LOCK.name}"
        unlinked = [path.name for path in debian_modules() if not (site_packages() / path.name).is_symlink()]
        return f"link {' '.join(unlinked)} into {VENV.relative_to(ROOT)}" if unlinked else ""

    return Step("tools", describe, make_venv)


# dist/pvc


@dataclass(frozen=True, slots=True)
class Source:
    """What identifies the sources a file was built from."""

    commit: str
    epoch: int


def git(*arguments: str) -> str:
    """Output of git, or nothing where there is no repository (a source archive)."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return ""
    # A checkout that belongs to another user is still the one to build.
    argv = ["git", "-c", f"safe.directory={ROOT}", *arguments]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def source() -> Source:
    commit = git("rev-parse", "HEAD")
    changed = bool(git("status", "--porcelain", "--", "pvc", "build.py", LOCK.name))
    epoch = int(git("log", "-1", "--format=%ct") or 0)
    return Source(
        commit=(commit or "unknown") + ("+changes" if changed else ""),
        epoch=max(epoch, 315532800),  # a zip archive cannot tell times before 1980
    )


def product_files() -> list[Path]:
    skipped = ("__pycache__",)
    return [
        path
        for path in (ROOT / "pvc").rglob("*")
        if path.is_file() and not any(part in skipped for part in path.parts) and path.suffix != ".pyc"
    ]


def zipapp_key() -> str:
    made = source()
    return content_hash([*product_files(), LOCK, Path(__file__)], made.commit, str(made.epoch), venv_key())


def pinned() -> dict[str, str]:
    lines = (line.split()[0] for line in LOCK.read_text().splitlines() if "==" in line)
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


def stage_dependencies() -> Path:
    """The bundled packages, unpacked, normalised and compiled: once for each lock."""
    stage = BUILD / "dependencies"
    key = content_hash([LOCK], venv_key())
    if stamped(stage) == key:
        return stage
    new = BUILD / "dependencies.new"
    shutil.rmtree(new, ignore_errors=True)
    only_these = ("--require-hashes", "--no-deps", "--only-binary", ":all:", "--no-compile")
    pip("install", *only_these, "--target", new, "-r", LOCK)
    normalise(new)
    compile_tree(new)
    replace_directory(new, stage, key)
    return stage


def normalise(stage: Path) -> None:
    shutil.rmtree(stage / "bin", ignore_errors=True)
    for path in stage.rglob("*"):
        if path.name in NOT_SHIPPED:
            path.unlink()
    # zipimport loads no compiled module, and one would tie the file to a machine.
    compiled = sorted(str(path.relative_to(stage)) for path in stage.rglob("*.so"))
    if compiled:
        raise BuildError(
            f"only pure Python can go into {PVC.name}, but {LOCK.name} brings {', '.join(compiled)}"
        )


def compile_tree(stage: Path) -> None:
    """Compile beside the sources; unchecked-hash and a stripped prefix make it the same anywhere."""
    mode = "unchecked-hash"
    options = ("-q", "-b", "--invalidation-mode", mode, "-s", stage)
    run([VENV / "bin/python", "-m", "compileall", *options, stage], env={"PYTHONHASHSEED": "0"})


def build_info(made: Source) -> str:
    return (
        '"""What this file was built from."""\n\n'
        f"COMMIT = {made.commit!r}\n"
        f"DEPENDENCIES: dict[str, str] = {json.dumps(pinned(), sort_keys=True)}\n"
    )


def make_zipapp() -> None:
    if not zipapp_todo():
        return
    key = zipapp_key()
    made = source()
    stage = BUILD / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    ours = BUILD / "ours"
    shutil.rmtree(ours, ignore_errors=True)
    for path in product_files():
        target = ours / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (ours / "pvc/_build.py").write_text(build_info(made))
    compile_tree(ours)
    shutil.copytree(stage_dependencies(), stage, ignore=shutil.ignore_patterns(".stamp"))
    shutil.copytree(ours, stage, dirs_exist_ok=True)
    archive = BUILD / "pvc.shiv"
    environment = {"SOURCE_DATE_EPOCH": str(made.epoch)}
    options = ("--reproducible", "--compressed", "-p", f"{PYTHON} -I", "-e", "pvc.__main__:main")
    run([VENV / "bin/shiv", "--site-packages", stage, *options, "-o", archive], env=environment)
    DIST.mkdir(exist_ok=True)
    new = DIST / ".pvc.new"
    write_archive(archive, stage, new, made.epoch)
    run(["env", "-i", new, "--version"])
    new.rename(PVC)
    (BUILD / "zipapp.key").write_text(f"{key} {hashlib.sha256(PVC.read_bytes()).hexdigest()}")


def write_archive(shiv: Path, stage: Path, target: Path, epoch: int) -> None:
    """Shiv's archive with compiled modules, and without its bootstrap, which extracts code into a home.

    Our own __main__ runs the code where it is: 20 ms sooner, nothing written, nothing for others to plant.
    """
    with zipfile.ZipFile(shiv) as packed:
        kept = {
            name: packed.read(name)
            for name in packed.namelist()
            if not name.startswith("_bootstrap/") and not name.endswith("/")
        }
    for path in stage.rglob("*.pyc"):
        kept[f"site-packages/{path.relative_to(stage)}"] = path.read_bytes()
    kept["__main__.py"] = MAIN.encode()
    when = time.gmtime(epoch)[:6]
    with target.open("wb") as file:
        file.write(SHEBANG.encode())
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
            for name in sorted(kept):
                entry = zipfile.ZipInfo(name, when)
                entry.create_system = 3
                entry.external_attr = 0o100644 << 16
                out.writestr(entry, kept[name], zipfile.ZIP_DEFLATED)
    target.chmod(0o755)


def zipapp_todo() -> str:
    recorded = BUILD / "zipapp.key"
    if PVC.exists() and recorded.exists():
        key, digest = recorded.read_text().split()
        if key == zipapp_key() and digest == hashlib.sha256(PVC.read_bytes()).hexdigest():
            return ""
    bundled = ", ".join(f"{name} {version}" for name, version in pinned().items())
    return f"build {PVC.relative_to(ROOT)} with {bundled}"


def zipapp() -> Step:
    return Step("zipapp", zipapp_todo, make_zipapp)


# The node image


def image() -> Step:
    from installer import image as node_image

    def describe() -> str:
        path = node_image.image_path()
        is_current = path.exists() and (path.parent / "node.sqfs").resolve() == path
        return "" if is_current else f"build the node image {path}"

    def build() -> None:
        if os.geteuid() != 0:
            raise BuildError("only root can build the node image; run this as root")
        try:
            node_image.build_image(log=lambda text: say(f"  {text}"))
        except node_image.ImageError as error:
            raise BuildError(str(error)) from error

    return Step("image", describe, build)


# The lab and its demonstration


def pvc(*arguments: str) -> None:
    """Run dist/pvc, show what is typed and what it says."""
    say(f"$ dist/pvc {shlex.join(arguments)}")
    code = subprocess.run([PVC, *arguments], stdin=subprocess.DEVNULL, check=False).returncode
    if code != 0:
        raise BuildError(f"dist/pvc {shlex.join(arguments)} ended with code {code}")


def on_n1(*arguments: str) -> tuple[str, ...]:
    return ("lab", "exec", "n1", "--", "pvc", *arguments)


DEMO = (
    *("--memory", "128", "--vcpus", "1", "--cmdline", "console=ttyS0 no_timer_check"),
    *("--kernel", "/usr/share/pvc/guest/vmlinuz", "--initrd", "/usr/share/pvc/guest/initrd"),
)
NEXT = """
Type next (pvc is dist/pvc here; on every node it is installed):
    dist/pvc lab exec n1 -- pvc why vm demo             where it runs and why
    dist/pvc lab exec n1 -- pvc vm log demo -f          its console, across migrations
    dist/pvc lab exec n1 -- pvc vm move demo --wait     move it again, for good
    dist/pvc lab exec n1 -- pvc node flush n2 --wait    empty a node; node ready brings its VMs back
    dist/pvc lab kill n2 pvc-node                       VMs survive their daemon
    dist/pvc lab status                                 dist/pvc lab down ends it all
"""


def ask(*arguments: str) -> str:
    """What dist/pvc says, for this program to read."""
    return subprocess.run([PVC, *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout


def wait_for_tick(began: float) -> float:
    """Seconds from `began` until the guest prints its tick."""
    while time.monotonic() < began + 120:
        if "tick" in ask(*on_n1("vm", "log", "demo", "-l", "5")):
            return time.monotonic() - began
        time.sleep(0.5)
    raise BuildError("the demo VM printed no tick within 120 s; see: dist/pvc lab exec n1 -- pvc vm log demo")


def demonstrate() -> None:
    began = time.monotonic()
    pvc("lab", "up")
    up = time.monotonic() - began
    found = json.loads(ask(*on_n1("vm", "list", "^demo$", "-f", "json")))
    if not found:
        pvc(*on_n1("vm", "create", "demo", *DEMO))
    pvc(*on_n1("vm", "start", "demo", "--wait"))
    running = wait_for_tick(began)
    before = time.monotonic()
    # A demo that was shown before is away from home: bring it back.
    is_away = bool(found) and bool(found[0]["migrated_from"])
    pvc(*on_n1("vm", "unmigrate" if is_away else "migrate", "demo", "--wait"))
    moved = time.monotonic() - before
    pvc(*on_n1("vm", "log", "demo", "-l", "10"))
    pvc(*on_n1("vm", "list"))
    pvc(*on_n1("status"))
    say(f"lab up in {up:.1f} s, a VM at work after {running:.1f} s, moved while it ran in {moved:.1f} s")
    print(NEXT)


def lab() -> Step:
    return Step("lab", lambda: "bring up three nodes; create, start and live-migrate a VM", demonstrate)


# Tests, documentation, locks, cleaning


def make_tests(arguments: Sequence[str]) -> Callable[[], None]:
    chosen = any((ROOT / argument.split("::")[0]).exists() for argument in arguments)
    layers = [] if chosen else [f"tests/{layer}" for layer in LAYERS if (ROOT / "tests" / layer).is_dir()]

    return lambda: become("pytest", "--durations=15", *layers, *arguments)


def make_sim(arguments: Sequence[str]) -> Callable[[], None]:
    return lambda: become("tests.sim", *arguments)


def become(module: str, *arguments: str) -> None:
    """Go on as that Python module, so that signals and the exit code are its own."""
    os.chdir(ROOT)
    python = os.fspath(VENV / "bin/python")
    os.execv(python, [python, "-m", module, *arguments])


def needs_image(arguments: Sequence[str]) -> bool:
    """Whether pytest was asked for nothing in particular, or for a layer that boots nodes."""
    asked = [argument for argument in arguments if (ROOT / argument.split("::")[0]).exists()]
    return not asked or any(f"tests/{layer}" in path for path in asked for layer in LAYERS_ON_IMAGE)


def generated() -> dict[str, str]:
    """Path → text of every file that is written from the declarations of the operations."""
    from pvc import docs

    return {"docs/cli.md": docs.cli_reference(), "packaging/man/pvc.1": docs.man_page()}


def write_docs() -> None:
    for name, text in generated().items():
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_text(text)


def relock() -> None:
    """Newest versions with hashes, without the name of any index."""
    import tomllib

    tools = BUILD / "lock"
    run([PYTHON, "-m", "venv", "--clear", tools])
    run([tools / "bin/python", "-m", "pip", "install", "-q", "pip-tools"])
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    bundled: list[str] = project["project"]["dependencies"]
    wanted = {LOCK: bundled, DEV_LOCK: [f"-c {LOCK}", *bundled, *project["dependency-groups"]["dev"]]}
    plain = [f"--no-emit-{what}" for what in ("index-url", "find-links", "trusted-host")]
    plain += ["--no-annotate", "--no-header"]
    options = ("--generate-hashes", "--strip-extras", "--allow-unsafe", *plain)
    for lock, names in wanted.items():
        request = BUILD / f"{lock.stem}.in"
        request.write_text("\n".join(names) + "\n")
        run([tools / "bin/pip-compile", "-q", "--upgrade", *options, "-o", lock, request])


def clean() -> None:
    shutil.rmtree(BUILD, ignore_errors=True)
    shutil.rmtree(DIST, ignore_errors=True)


def steps(verb: str, arguments: Sequence[str]) -> list[Step]:
    match verb:
        case "zipapp":
            return [packages("zipapp"), venv(), zipapp()]
        case "image":
            return [packages("zipapp", "image"), venv(), zipapp(), image()]
        case "lab":
            return [packages("zipapp", "image", "lab"), venv(), zipapp(), image(), lab()]
        case "test":
            test = Step("test", lambda: "run every layer of tests", make_tests(arguments))
            sets = ("zipapp", "test", "image", "lab") if needs_image(arguments) else ("zipapp", "test")
            boots = [image()] if needs_image(arguments) else []
            return [packages(*sets), venv(), ceph(), zipapp(), *boots, test]
        case "sim":
            search = Step("sim", lambda: "search seeded faults for broken promises", make_sim(arguments))
            return [packages("zipapp"), venv(), search]
        case "docs":
            return [
                Step("docs", lambda: "write docs/cli.md and the man page from the operations", write_docs)
            ]
        case "lock":
            newest = "find the newest bundled packages and tools, write both lock files"
            return [packages("zipapp"), Step("lock", lambda: newest, relock)]
    return [Step("clean", lambda: "remove build and dist" if BUILD.exists() or DIST.exists() else "", clean)]


VERBS = {
    "lab": "set up everything and show a three-node cluster with a VM that moves while it runs",
    "test": "set up everything and run every layer of tests; what follows -- goes to pytest",
    "sim": "set up the tools and simulate clusters under faults: --seeds N, --start S, --replay SEED",
    "zipapp": "build dist/pvc, the one file",
    "image": "build the node image",
    "docs": "write the generated documentation",
    "lock": "pin the newest dependencies",
    "clean": "remove what was built",
}


LAST = ("test", "sim")
"""Steps that build nothing: others may build meanwhile, and tests do."""


@contextmanager
def alone() -> Iterator[None]:
    """One build at a time in this tree."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build.py works in this tree; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def show_plan(todo: Sequence[Step]) -> None:
    for step in todo:
        print(f"{step.name:10} {step.describe() or 'nothing to do'}")


def carry_out(todo: Sequence[Step]) -> None:
    *before, last = todo
    with alone():
        for step in before:
            carry_out_one(step)
        if last.name not in LAST:
            carry_out_one(last)
    if last.name in LAST:
        carry_out_one(last)


def carry_out_one(step: Step) -> None:
    work = step.describe()
    if not work:
        say(f"{step.name}: nothing to do")
        return
    say(f"{step.name}: {work}")
    began = time.monotonic()
    step.run()
    say(f"{step.name}: done in {time.monotonic() - began:.1f} s")


def interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def divided(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is meant for this program, and what goes to the tests: after --, and all that follows `sim`."""
    given = list(argv)
    split = given.index("--") if "--" in given else len(given)
    own, passed = given[:split], given[split + 1 :]
    if "sim" in own and "--help" not in own:
        at = own.index("sim") + 1
        here = [one for one in own[at:] if one in ("--plan", "--list")]
        own, passed = own[:at] + here, [one for one in own[at:] if one not in here] + passed
    return own, passed


def main(argv: Sequence[str]) -> int:
    own, passed = divided(argv)
    parser = argparse.ArgumentParser(
        prog="build.py",
        description="Builds, tests and shows PVC. Everything can be interrupted and run again.",
        epilog="\n".join(f"  {verb:8} {what}" for verb, what in VERBS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="one of the verbs below")
    parser.add_argument(
        *("--plan", "--list"),
        action="store_true",
        help="say what would be installed and done; do nothing",
    )
    options = parser.parse_args(own)
    if passed and options.verb not in LAST:
        parser.error(f"only {' and '.join(LAST)} take arguments after --")
    signal.signal(signal.SIGTERM, interrupt)
    try:
        todo = steps(options.verb, passed)
        show_plan(todo) if options.plan else carry_out(todo)
    except BuildError as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("build.py: interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - whoever runs this may have an older one
        sys.exit("build.py needs Python 3.11 or newer, as in Debian 12")
    sys.exit(main(sys.argv[1:]))
