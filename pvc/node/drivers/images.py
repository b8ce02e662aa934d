"""Files of disks, by qemu-img: what one is, one made of another, and where there is something in one.

A file is named by QEMU's options, `driver=file,filename=…`: so its format is said and never guessed.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pvc.cluster.images import ImageFormat
from pvc.cluster.storage import Format
from pvc.errors import Invalid
from pvc.node.drivers import DriverError
from pvc.node.drivers.storage import Progress
from pvc.proc import WITH_US, Completed, run, start

LOOK_S = 600.0
CONVERT_LOOK_S = 0.25
LEAKS_ONLY = 3
"""Code of `qemu-img check`: some space is lost, and nothing else."""
LEAST = ("prlimit", f"--as={4 * 1024**3}", "--core=0")
"""A file made for it can cost qemu-img as much memory as it likes."""


def of_file(path: Path) -> str:
    return f"driver=file,filename={str(path).replace(',', ',,')}"


def look(where: str, format: ImageFormat, file_bytes: int) -> int:
    """The size of the disk in it. Raises Invalid where it is not what it is said to be, or names others."""
    done = _qemu_img(
        ["info", "--output=json", "--image-opts", _with(format, where)], limits=(*LEAST, "--cpu=30")
    )
    if done.code != 0:
        raise Invalid(f"the file is not {format}, or damaged: {_said(done)}")
    found = json.loads(done.stdout)
    named = found.get("backing-filename") or found.get("full-backing-filename")
    special = found.get("format-specific", {}).get("data", {})
    others = [one.get("filename") for one in special.get("extents", [])]
    if named or special.get("data-file") or len(others) > 1:
        raise Invalid("it names other files", hint="qemu-img convert -O qcow2 makes one file of all")
    if found.get("encrypted"):
        raise Invalid("it is encrypted", hint="qemu-img convert -O qcow2 can decrypt it")
    _check_whole(where, format, file_bytes)
    return int(found["virtual-size"])


def _check_whole(where: str, format: ImageFormat, file_bytes: int) -> None:
    """QEMU reads zeros where the end of a file is missing."""
    if format in (ImageFormat.QCOW2, ImageFormat.VMDK):
        done = _qemu_img(["check", "-q", "--image-opts", _with(format, where)], limits=LEAST)
        is_whole = done.code in (0, LEAKS_ONLY)
    else:
        done = _qemu_img(["map", "--output=json", "--image-opts", _with(format, where)], limits=LEAST)
        used = json.loads(done.stdout) if done.code == 0 else [{"offset": file_bytes, "length": 1}]
        is_whole = all(
            one.get("offset", 0) + one["length"] <= file_bytes for one in used if one.get("data", 1)
        )
    if not is_whole:
        raise Invalid(
            f"the file is damaged, or its end is missing: {_said(done)}", hint="is all of it there?"
        )


def convert(
    source: str,
    format: ImageFormat,
    target: str,
    made: Format,
    progress: Progress,
    fraction: Callable[[], float],
) -> None:
    """Into a target that is there, empty. Raises Invalid for a source that cannot be read to its end."""
    argv = [
        *(
            *WITH_US,
            *LEAST,
            "qemu-img",
            "convert",
            "-n",
            "--target-is-zero",
            "-t",
            "writeback",
            "--image-opts",
        ),
        *("--target-image-opts", _with(format, source), _with(made, target)),
    ]
    with tempfile.NamedTemporaryFile() as said:
        process = start(argv, log_file=Path(said.name))
        try:
            while process.poll() is None:
                progress(fraction())
                with suppress(subprocess.TimeoutExpired):
                    process.wait(CONVERT_LOOK_S)
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            words = said.read().decode(errors="replace").strip().splitlines() or ["no word of qemu-img"]
            raise Invalid(f"the file cannot be read to its end: {words[-1].removeprefix('qemu-img: ')}")


def parts(where: str, format: Format, start: int, length: int) -> list[tuple[int, int, int]]:
    """What of a disk is not zeros: (from, how much, where in the file). Raises DriverError."""
    words = ["map", "--output=json", f"--start-offset={start}", f"--max-length={length}", "--image-opts"]
    done = _qemu_img([*words, _with(format, where)])
    if done.code != 0:
        raise DriverError(_said(done))
    found = [one for one in json.loads(done.stdout) if one["data"] and not one["zero"]]
    if any("offset" not in one for one in found):
        raise DriverError("it has parts that are compressed", hint="pvc storage volume clone makes a copy")
    return [(one["start"], one["length"], one["offset"]) for one in found]


def _with(format: ImageFormat | Format, where: str) -> str:
    options = ",".join(f"file.{one}" for one in where.replace(",,", "\0").split(",")).replace("\0", ",,")
    return f"driver={format},{options}"


def _qemu_img(words: Sequence[str], limits: Sequence[str] = ()) -> Completed:
    return run([*limits, "qemu-img", *words], timeout_s=LOOK_S, check=False)


def _said(done: Completed) -> str:
    said = (done.stderr or done.stdout).strip().splitlines() or [f"code {done.code}"]
    return said[-1].removeprefix("qemu-img: ")
