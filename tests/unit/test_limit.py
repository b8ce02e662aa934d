"""LIMIT is an expression of whoever asks: it must not be able to stop the server that matches it."""

from __future__ import annotations

import pytest

from pvc.commands.types import limit_pattern
from pvc.errors import Invalid


@pytest.mark.parametrize(
    "text", ["", "web", "^web[0-9]+$", "^(web|db)-\\d{1,3}$", ".*prod.*x.*", "a?b?c?d?e?", "[a+]+"]
)
def test_ordinary_expressions(text: str) -> None:
    assert limit_pattern(text).pattern == text


@pytest.mark.parametrize(
    "text",
    [
        "(a+)+$",
        r"(\w+)+\.$",
        "(a|a)*b",
        "(?:(?:a*)b?)*c",
        "(a{2,3})*",
        "(?=(a+)+)b",
        r"(a)(?:\1)*",
        "a*a*a*a*!",
        "(?:a?){30}a{30}",
        "a?" * 30 + "a" * 30,
        "(a|a)" * 30 + "b",
    ],
)
def test_expressions_that_may_take_for_ever_are_refused(text: str) -> None:
    with pytest.raises(Invalid, match=r"too long|not a regular expression"):
        limit_pattern(text)


@pytest.mark.parametrize("text", ["(", "[", "*", "a{99999999999}", "(" * 5000])
def test_no_expression(text: str) -> None:
    with pytest.raises(Invalid, match="not a regular expression"):
        limit_pattern(text)
