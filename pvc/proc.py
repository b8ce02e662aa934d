"""run(): the one place that starts a process and waits for it."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pvc.errors import Failed, TimedOut, Unavailable

log = logging.getLogger(__name__)

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
"""Before a command that is to end with the thread that waits for it, even by kill -9: then nothing of what it
has open is in use any more."""


def _name(argv: Sequence[str]) -> str:
    return argv[len(WITH_US)] if tuple(argv[: len(WITH_US)]) == WITH_US else argv[0]


@dataclass(frozen=True, slots=True)
class Completed:
    code: int
    stdout: str
    stderr: str


class CommandFailed(Failed):
    """A command ended with another code than 0."""

    def __init__(self, argv: Sequence[str], result: Completed) -> None:
        said = (result.stderr or result.stdout).strip().splitlines()
        super().__init__(f"{_name(argv)} ended with code {result.code}: {said[-1] if said else 'no output'}")
        self.result = result


class Run(Protocol):
    """`run`, or what stands in for it in a test of who calls it."""

    def __call__(self, argv: list[str], /, *, check: bool = True, timeout_s: float = 60.0) -> Completed: ...


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a child gets: a fixed PATH and language, nothing that the caller's shell set."""
    keep = {key: os.environ[key] for key in ("HOME", "TERM", "TMPDIR") if key in os.environ}
    return {"PATH": PATH, "LANG": "C.UTF-8", **keep, **(extra or {})}


def run(
    argv: Sequence[str],
    *,
    stdin: str = "",
    timeout_s: float = 60.0,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> Completed:
    """Run a command without a shell.

    Raises CommandFailed (if check), TimedOut, or Unavailable if it is missing.
    """
    log.debug("run %s", shlex.join(argv))
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=environment(env),
            cwd=cwd,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimedOut(f"{_name(argv)} did not end within {timeout_s:g} s") from None
    except FileNotFoundError:
        raise _missing(argv) from None
    result = Completed(done.returncode, done.stdout, done.stderr)
    if check and result.code != 0:
        raise CommandFailed(argv, result)
    return result


def lines(
    argv: Sequence[str], *, timeout_s: float = 60.0, with_errors: bool = False
) -> Generator[str, None, None]:
    """What a command says (also on its other output), while it says it: however much that is, none is kept.

    Ends as `run` does; `close` ends the command.
    """
    log.debug("run %s", shlex.join(argv))
    late = threading.Event()
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        try:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if with_errors else errors,
                text=True,
                errors="replace",
                env=environment(),
            )
        except FileNotFoundError:
            raise _missing(argv) from None

        def end() -> None:
            late.set()
            process.kill()

        watch = threading.Timer(timeout_s, end)
        watch.start()
        last = ""
        try:
            assert process.stdout is not None
            for last in process.stdout:
                yield last
            process.wait()
        finally:
            watch.cancel()
            process.kill()
            process.communicate()
        errors.seek(0)
        result = Completed(process.returncode, last, errors.read())
    if late.is_set():
        raise TimedOut(f"{argv[0]} did not end within {timeout_s:g} s")
    if result.code != 0:
        raise CommandFailed(argv, result)


def start(
    argv: Sequence[str],
    *,
    log_file: Path,
    env: Mapping[str, str] | None = None,
    new_session: bool = False,
    before_exec: Callable[[], None] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a long-running command whose output goes to a file; waiting for it is the caller's matter."""
    log.debug("start %s", shlex.join(argv))
    try:
        with log_file.open("ab") as output:
            return subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(env),
                start_new_session=new_session,
                preexec_fn=before_exec,
            )
    except FileNotFoundError:
        raise _missing(argv) from None


def _missing(argv: Sequence[str]) -> Unavailable:
    return Unavailable(f"the command {argv[0]} is missing", hint=f"install the Debian package with {argv[0]}")


def attach(argv: Sequence[str]) -> None:
    """Run a command of the user's on the user's terminal: an editor.

    Raises Failed when it does not end well.
    """
    try:
        code = subprocess.run(list(argv), check=False).returncode
    except OSError as error:
        raise Failed(f"cannot start {argv[0]}: {error.strerror}") from None
    if code != 0:
        raise Failed(f"{argv[0]} ended with code {code}, nothing was changed")
