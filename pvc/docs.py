"""The manual, from the declarations of the operations: docs/cli.md and the man page."""

from __future__ import annotations

from collections.abc import Iterator

from pvc import __version__
from pvc.cli import EXIT_CODES, GLOBALS
from pvc.commands import NOUNS, typed_verbs
from pvc.commands.registry import Operation, find, named
from pvc.parser import automatic, option_lines, positional_lines, usage

INTRODUCTION = """\
# The command line

Written by `./build.py docs` from the declarations in `pvc/commands`; `pvc --help`, `pvc NOUN --help` and
`pvc NOUN VERB --help` say the same. What only programs ask for is in `pvc api openapi`.

A VM is named by its name or UUID. NODE is this machine where it may be left out. LIMIT is a regular
expression, matched anywhere unless anchored. Options may stand before, between and after the arguments.
"""

FORMATS = """\
`-f table` (also `pretty`) is for people: units are readable, states coloured. Changes print one line there;
`-f long` prints the whole object. `json` and `json-pretty` are the result as it is, with sizes as whole
numbers of the unit that the field's name ends in. `csv` has the same columns as the table, without units.
`raw` is the first column only, a line each, made for `for vm in $(pvc vm list -f raw)`; with `--columns`
these, separated by tabs. stdout gets the result and nothing else; notes, questions and progress go to stderr.
"""


def cli_reference() -> str:
    """Text of docs/cli.md."""
    parts = [INTRODUCTION, "## Everywhere\n", _options(_globals()), FORMATS]
    parts.append(f"Exit codes: {' '.join(EXIT_CODES.split())}.\n")
    for noun, summary in NOUNS.items():
        found = _operations(noun)
        if found:
            parts.append(f"## {noun}: {summary}\n")
            parts += [_operation(one) for one in found]
    return "\n".join(parts).rstrip("\n") + "\n"


def _operations(noun: str) -> list[Operation]:
    return [find(named(noun, verb)) for verb in sorted(typed_verbs(noun))]


def _globals() -> Iterator[tuple[str, str]]:
    for names, _, value, text in GLOBALS:
        yield ", ".join(names) + (f" {value}" if value else ""), text


def _operation(found: Operation) -> str:
    route = (
        f"`{found.method} /api/v1{found.path}`, role {found.role}"
        if found.method
        else "Runs here, needs no API"
    )
    parts = [f"### pvc {found.noun} {found.verb}\n", f"    {usage(found)}\n", f"{found.help}\n"]
    parts += [f"{found.details}\n"] if found.details else []
    rows = [*positional_lines(found), *option_lines(found)]
    parts += [_options(rows)] if rows else []
    extra = [f"`{long}`" for _, long, _ in automatic(found) if long != "--no-wait"]
    also = f" Also takes {', '.join(extra)}." if extra else ""
    return "\n".join([*parts, f"{route}.{also}\n"])


def _options(rows: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> str:
    lines = [f"| `{_cell(name)}` | {_cell(text)} |" for name, text in rows]
    return "\n".join(["| | |", "| --- | --- |", *lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# The man page


def man_page() -> str:
    """pvc(1) in the language of man pages."""
    lines = [
        f'.TH PVC 1 "" "pvc {__version__}" "Parallel Virtual Cluster"',
        ".SH NAME",
        "pvc \\- a private cloud of KVM virtual machines",
        ".SH SYNOPSIS",
        ".B pvc",
        "NOUN VERB [arguments] [options]",
        ".SH OPTIONS OF EVERY VERB",
        *_entries(_globals()),
    ]
    for noun, summary in NOUNS.items():
        found = _operations(noun)
        if found:
            lines += [f".SH {_roff(noun.upper())}", _roff(f"{summary[0].upper()}{summary[1:]}.")]
        for one in found:
            lines += [f".SS {_roff(usage(one))}", _roff(one.help)]
            lines += [".PP", *(_roff(line) for line in one.details.splitlines())] if one.details else []
            lines += _entries([*positional_lines(one), *option_lines(one)])
    lines += [".SH EXIT STATUS", _roff(" ".join(EXIT_CODES.split()) + ".")]
    return "\n".join(lines) + "\n"


def _entries(rows: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> list[str]:
    return [line for name, text in rows for line in (".TP", f"\\fB{_roff(name)}\\fR", _roff(text) or "\\&")]


def _roff(text: str) -> str:
    """Backslashes and dashes escaped, and no line that begins like a request."""
    escaped = text.replace("\\", "\\\\").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
