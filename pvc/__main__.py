"""Where the program starts and ends: exit code, interrupts, and errors told in a sentence."""

from __future__ import annotations

import sys

from pvc.errors import EXIT_INTERRUPTED, Bug, PVCError

TYPE_CHECKING = False  # importing typing is not worth its time in `pvc --help`
if TYPE_CHECKING:
    from types import TracebackType

    from pvc.cli import Pick


def main(argv: list[str] | None = None, pick: Pick | None = None) -> int:
    """Run a command, that of sys.argv unless given; returns its exit code. `pick` is for tests."""
    sys.excepthook = _unhandled
    try:
        from pvc.cli import run

        return run(sys.argv[1:] if argv is None else argv, pick)
    except KeyboardInterrupt:
        _tell("pvc: interrupted")
        return EXIT_INTERRUPTED
    except PVCError as error:
        if _is_debug():
            _trace(error)
        if error.message:
            _tell(f"pvc: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the boundary of the program
        return _bug(error)


def _bug(error: BaseException) -> int:
    if _is_debug():
        _trace(error)
    elif "logging" in sys.modules:
        import logging

        logging.getLogger("pvc").debug("unexpected error", exc_info=error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    hint = "" if _is_debug() else "\nhint: run it again with --debug for the traceback, and report that"
    _tell(f"pvc: this is a bug in pvc: {what}{hint}")
    return Bug.exit_code


def _is_debug() -> bool:
    cli = sys.modules.get("pvc.cli")
    return bool(cli and cli.debugging)


def _trace(error: BaseException) -> None:
    import traceback

    _tell("".join(traceback.format_exception(error)).rstrip())


def _unhandled(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    # Python's own hook cannot show source lines out of a zip file; the traceback module can.
    import traceback

    traceback.print_exception(kind, error, where)


def _tell(text: str) -> None:
    from pvc import output

    output.error(text)


if __name__ == "__main__":
    sys.exit(main())
