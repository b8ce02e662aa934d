"""Files of disks, by qemu-img: what one is, one made of another, and where there is something in one.

A file is named by QEMU's options, `driver=file,filename=…`: so its format is said and never guessed.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from pathlib import Path

from pvc.cluster.images import ImageFormat
from pvc.cluster.storage import Format
from pvc.errors import Invalid
from pvc.node.drivers import DriverError
from pvc.node.drivers.storage import Progress
from pvc.proc import WITH_US, CommandFailed, Completed, lines, run, start

LOOK_S = 600.0
MOST_PARTS = 8_000_000
"""Of a disk in a file: 8 TiB of it in the worst order."""
MOST_WORDS = 1024**2
CONVERT_LOOK_S = 0.25
LEAKS_ONLY = 3
"""Code of `qemu-img check`: some space is lost, and nothing else."""
LEAST = ("prlimit", f"--as={4 * 1024**3}", "--core=0")
"""A file made for it can cost qemu-img as much memory as it likes."""


def of_file(path: Path) -> str:
    return f"driver=file,filename={str(path).replace(',', ',,')}"


def look(where: str, format: ImageFormat, file_bytes: int, check: Callable[[int], None]) -> int:
    """The size of the disk in it, which `check` is told before more is looked at.

    Raises Invalid where it is not what it is said to be, or names others; what `check` raises.
    """
    try:
        found = json.loads(_few(_of_image("info --output=json", format, where, "--cpu=30")))
    except CommandFailed as error:
        raise Invalid(f"the file is not {format}, or damaged: {_said(error.result)}") from None
    named = found.get("backing-filename") or found.get("full-backing-filename")
    special = found.get("format-specific", {}).get("data", {})
    others = [one.get("filename") for one in special.get("extents", [])]
    if named or special.get("data-file") or len(others) > 1:
        raise Invalid("it names other files", hint="qemu-img convert -O qcow2 makes one file of all")
    if found.get("encrypted"):
        raise Invalid("it is encrypted", hint="qemu-img convert -O qcow2 can decrypt it")
    check(size := int(found["virtual-size"]))
    _check_whole(where, format, file_bytes)
    return size


def _check_whole(where: str, format: ImageFormat, file_bytes: int) -> None:
    """QEMU reads zeros where the end of a file is missing."""
    try:
        if format in (ImageFormat.QCOW2, ImageFormat.VMDK):
            for _ in _of_image("check -q", format, where, with_errors=True):
                """However many of them there are."""
        elif format is not ImageFormat.RAW:  # all of which is there as its size is
            _check_parts(_of_image("map --output=json", format, where), file_bytes)
    except CommandFailed as error:
        if error.result.code != LEAKS_ONLY:
            raise _damaged(_said(error.result)) from None


def _check_parts(told: Generator[str, None, None], file_bytes: int) -> None:
    """Line by line: of a large disk there may be gigabytes of them, and all of the daemon waits for whoever
    reads that at once."""
    with closing(told):
        for number, line in enumerate(told):
            if number == MOST_PARTS:
                raise Invalid(
                    f"it is in more than {MOST_PARTS} parts",
                    hint="qemu-img convert -O qcow2 makes it simpler",
                )
            if (found := line.strip("[], \n")).startswith("{"):
                one = json.loads(found)
                if one.get("data", True) and one.get("offset", 0) + one["length"] > file_bytes:
                    raise _damaged(f"it has {file_bytes} bytes")


def _damaged(words: str) -> Invalid:
    return Invalid(f"the file is damaged, or its end is missing: {words}", hint="is all of it there?")


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


def _qemu_img(words: Sequence[str]) -> Completed:
    return run(["qemu-img", *words], timeout_s=LOOK_S, check=False)


def _of_image(
    words: str, format: ImageFormat, where: str, *limits: str, with_errors: bool = False
) -> Generator[str, None, None]:
    """What qemu-img says of a file that anybody may have made. Raises CommandFailed after its last word."""
    argv = [*WITH_US, *LEAST, *limits, "qemu-img", *words.split(), "--image-opts", _with(format, where)]
    return lines(argv, timeout_s=LOOK_S, with_errors=with_errors)


def _few(told: Generator[str, None, None]) -> str:
    found = ""
    with closing(told):
        for line in told:
            found += line
            if len(found) > MOST_WORDS:
                raise Invalid("it says more of itself than a disk has to", hint="has it many snapshots?")
    return found


def _said(done: Completed) -> str:
    said = (done.stderr or done.stdout).strip().splitlines() or [f"code {done.code}"]
    return said[-1].removeprefix("qemu-img: ")
