"""One tree of errors; each class knows its exit code and its HTTP status.

Exit codes: 0 done, 1 failed or declined, 2 usage or invalid value, 3 not found, 4 conflict or wrong state,
5 cluster or API unavailable, 6 not permitted, 7 gave up waiting, 70 bug in pvc, 130 interrupted.
"""

from __future__ import annotations


class PVCError(Exception):
    """Something a user can understand and act on: a message, and a hint that names the way out."""

    code = "failed"
    exit_code = 1
    http_status = 500

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Failed(PVCError):
    """The work was accepted and did not succeed, or was declined."""

    http_status = 422


class Invalid(PVCError):
    """A value or a usage that can never work."""

    code = "invalid"
    exit_code = 2
    http_status = 400


class NotFound(PVCError):
    code = "not-found"
    exit_code = 3
    http_status = 404


class Conflict(PVCError):
    """The object is in another state than the request needs, or changed underneath it."""

    code = "conflict"
    exit_code = 4
    http_status = 409


class Unavailable(PVCError):
    """The cluster, its store or its API cannot be reached now."""

    code = "unavailable"
    exit_code = 5
    http_status = 503


class NotPermitted(PVCError):
    code = "not-permitted"
    exit_code = 6
    http_status = 403


class Unauthenticated(NotPermitted):
    code = "unauthenticated"
    http_status = 401


class TimedOut(PVCError):
    """Gave up waiting; what was waited for may still happen."""

    code = "timed-out"
    exit_code = 7
    http_status = 504


class Bug(PVCError):
    """A mistake in pvc itself; the traceback is in the log."""

    code = "bug"
    exit_code = 70
    http_status = 500


EXIT_INTERRUPTED = 130

ERRORS: dict[str, type[PVCError]] = {
    kind.code: kind
    for kind in (
        PVCError,
        Failed,
        Invalid,
        NotFound,
        Conflict,
        Unavailable,
        NotPermitted,
        Unauthenticated,
        TimedOut,
        Bug,
    )
}


def from_code(code: str, message: str, hint: str = "") -> PVCError:
    """The error an API answered with, as raised on its side."""
    return ERRORS.get(code, PVCError)(message, hint=hint)
