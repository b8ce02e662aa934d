"""Rules for every layer: nothing is skipped quietly; unit tests and simulations stay within their process."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Generator
from typing import Any, NoReturn, TypeVar

import pytest

MISSING_IN_KERNEL = "Skipped: kernel lacks "
"""The one good reason to skip: pytest.skip("kernel lacks vxlan")."""

R = TypeVar("R", pytest.TestReport, pytest.CollectReport)

CLOSED_LAYERS = ("unit", "sim")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    return _refuse_skip(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    return _refuse_skip(report)


def _refuse_skip(report: R) -> R:
    """A skipped test shows nothing, so it fails, unless this kernel cannot do what it needs."""
    if report.outcome != "skipped":
        return report
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if hasattr(report, "wasxfail") or not reason.startswith(MISSING_IN_KERNEL):
        report.outcome = "failed"
        report.longrepr = f"skipped or expected to fail, which counts as failed: {reason}"
        vars(report).pop("wasxfail", None)
    return report


class OutsideWorld(BaseException):
    """A closed layer started a process or opened a connection; no handler of ours may swallow it."""


@pytest.fixture(autouse=True)
def _closed_layer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = request.path.relative_to(request.config.rootpath / "tests").parts[0]
    if layer not in CLOSED_LAYERS:
        return
    if request.node.get_closest_marker("processes") is None:
        monkeypatch.setattr(subprocess.Popen, "__init__", _refuse("start a process", "processes"))
    if request.node.get_closest_marker("sockets") is None:
        monkeypatch.setattr(socket.socket, "connect", _refuse("open a connection", "sockets"))


def _refuse(what: str, marker: str) -> Any:
    def refuse(*arguments: object, **_options: object) -> NoReturn:
        raise OutsideWorld(f"a unit test may not {what} (mark it with {marker} if it must): {arguments}")

    return refuse
