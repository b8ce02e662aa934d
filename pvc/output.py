"""Results, questions and progress on the terminal: the only module that prints.

stdout gets the result and nothing else; everything else goes to stderr. Units are made readable in tables
only: json, csv and raw carry the values as they are.
"""

from __future__ import annotations

import os
import sys

from pvc import sizes
from pvc.errors import Failed, Invalid, PVCError

TYPE_CHECKING = False  # importing typing is not worth its time in `pvc --help`
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, TextIO

FORMATS = ("table", "pretty", "short", "long", "json", "json-pretty", "raw", "csv")

HIDDEN = frozenset({"digest", "goal", "settled", "version"})
"""Fields for programs: tables leave them out unless a column asks for them."""

GREEN, YELLOW, RED = "32", "33", "31"
GOOD = "start run ready ok healthy active done up connected"
PASSING = (
    "starting shutdown restart migrate unmigrate disable flush flushed unflush init join stopping suspect "
    "degraded warning maintenance"
)
BAD = "fail failed dead fenced error critical down unavailable"
STATE_COLOURS = {
    word: colour for words, colour in ((GOOD, GREEN), (PASSING, YELLOW), (BAD, RED)) for word in words.split()
}


class Screen:
    """What this run may show, and whether a progress line is on the terminal now."""

    def __init__(self) -> None:
        self.quiet = False
        self.silent = False
        self.colour: bool | None = None
        """None: as the terminal can."""
        self._line = ""
        """The newest line of progress; on a terminal it is to be wiped away."""

    def colours(self) -> bool:
        if self.colour is not None:
            return self.colour
        if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            return False
        return sys.stdout.isatty()

    def clear_line(self) -> None:
        if self._line and sys.stderr.isatty():
            _write(sys.stderr, "\r\x1b[K")
        self._line = ""

    def draw_line(self, text: str) -> None:
        if not sys.stderr.isatty():
            if text != self._line:
                _write(sys.stderr, text + "\n")
            self._line = text
            return
        text, columns = _safe(text), _terminal_width()
        _write(sys.stderr, "\r" + text[: columns - 1] + "\x1b[K")
        self._line = text


screen = Screen()


class PipeClosed(PVCError):
    """Whoever read our output has gone (`pvc vm list | head -1`): as if SIGPIPE had ended us."""

    exit_code = 141


# Writing


def emit(text: str) -> None:
    """A result, to stdout. Adds the line end if there is none; writes nothing for nothing."""
    if screen.silent or not text:
        return
    screen.clear_line()
    _write(sys.stdout, text if text.endswith("\n") else text + "\n")


def emit_bytes(data: bytes) -> None:
    """A result that is no text, to stdout."""
    stream = sys.stdout.buffer
    try:
        stream.write(data)
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise PipeClosed("") from None
    except OSError as problem:
        raise Failed(f"cannot write the output: {problem.strerror}") from None


def note(text: str) -> None:
    """Something worth knowing that is not the result, to stderr; not with --quiet."""
    if not (screen.quiet or screen.silent):
        screen.clear_line()
        _write(sys.stderr, text + "\n")


def error(text: str) -> None:
    screen.clear_line()
    try:
        _write(sys.stderr, text + "\n")
    except PVCError:
        return  # nobody reads it: the exit code still tells


def progress(line: str) -> None:
    """One line that replaces the one before on a terminal; elsewhere a line when it is another."""
    if not (screen.quiet or screen.silent):
        screen.draw_line(line)


def ask(question: str) -> bool:
    """A yes from the terminal; no is the default. Raises Invalid when nobody can answer."""
    if not sys.stdin.isatty():
        raise Invalid("this needs an answer and there is no terminal to ask", hint="add --yes to go ahead")
    screen.clear_line()
    _write(sys.stderr, f"{question} [y/N] ")
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        _write(sys.stderr, "\n")
    return answer.strip().lower() in ("y", "yes")


def is_terminal() -> bool:
    """Somebody can be asked."""
    return sys.stdin.isatty()


def ask_secret(what: str) -> str:
    """From the terminal, without showing it."""
    from getpass import getpass

    screen.clear_line()
    try:
        return getpass(f"{what}: ", stream=sys.stderr)
    except EOFError:
        raise Invalid(f"no {what} was given") from None


def sentence(state: Mapping[str, Any]) -> str:
    """How an object stands, on one line: `web1: migrating to n2, 43 %`, `web1: start on n1`."""
    text = state.get("activity") or state.get("state") or state.get("domain_state") or ""
    if (
        not state.get("activity")
        and state.get("node")
        and state.get("state") not in ("stop", "disable", "fail")
    ):
        text = f"{text} on {state['node']}"
    if isinstance(state.get("percent"), int | float) and "%" not in text:
        text = f"{text}, {state['percent']:g} %"
    return f"{state['name']}: {text}" if state.get("name") else text


def done(template: str, state: Mapping[str, Any]) -> str:
    """Of a change that nobody has to wait for: `memory of web1: 512 MiB, from its next start (…)`."""
    pending = state.get("pending_restart")
    later = f", from its next start (pvc vm restart {state['name']})" if pending else ""
    return template.format_map({**state, "pending": later})


def write_file(path: str, text: str) -> None:
    """Instead of stdout. Raises Failed."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text if text.endswith("\n") else text + "\n")
    except OSError as problem:
        raise Failed(f"cannot write {path}: {problem.strerror}") from None


def redraw(text: str) -> None:
    """A result that replaces the one before on a terminal; one after the other elsewhere."""
    emit(("\x1b[H\x1b[2J" if sys.stdout.isatty() else "") + text)


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        # The interpreter flushes again on its way out and must not find the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise PipeClosed("") from None
    except UnicodeEncodeError:
        stream.write(text.encode("ascii", "backslashreplace").decode())
        stream.flush()
    except OSError as problem:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise Failed(f"cannot write the output: {problem.strerror}") from None


def _terminal_width() -> int:
    try:
        return max(20, os.get_terminal_size(sys.stderr.fileno()).columns)
    except (OSError, ValueError):
        return 80


# Results


def show(result: Any, **how: Any) -> None:
    emit(render(result, **how))


def render(
    result: Any,
    *,
    format: str = "table",
    columns: Sequence[str] = (),
    chosen: Sequence[str] = (),
    sort: str = "",
    colour: bool | None = None,
) -> str:
    """The text of a result. `columns` are the verb's, `chosen` the user's; a text stays as it is."""
    colour = screen.colours() if colour is None else colour
    if isinstance(result, list) and sort:
        result = _sorted(result, sort)
    if chosen:
        result, columns = _chosen(result, chosen)
    if format in ("json", "json-pretty"):
        return _json(result, pretty=format == "json-pretty")
    if result is None:
        return ""
    if _is_rows(result):
        return _rows(result, format, columns, bool(chosen), colour)
    if isinstance(result, dict):
        return _object(result, format, columns, bool(chosen), colour)
    if isinstance(result, list):
        return "".join(f"{_plain(value)}\n" for value in result)
    return str(result) if isinstance(result, str) else _plain(result)


def plan(result: Mapping[str, Any], *, format: str = "table") -> str:
    """What --plan answered, in sentences."""
    if format in ("json", "json-pretty"):
        return _json(result, pretty=format == "json-pretty")
    sentences = [f"- {sentence}" for sentence in result["plan"]]
    changes = [f"- {change}" for change in result["changes"]]
    if not changes:
        return "\n".join(["Nothing would change:", *sentences] if sentences else ["Nothing would change."])
    if not sentences:
        sentences, changes = changes, []
    lines = ["This would happen:", *sentences]
    if format == "long" and changes:
        lines += ["by these changes of the store:", *changes]
    return "\n".join([*lines, "Nothing was changed."])


def _json(result: Any, *, pretty: bool) -> str:
    import json

    return json.dumps(result, indent=2 if pretty else None, ensure_ascii=False)


def _is_rows(result: Any) -> bool:
    return isinstance(result, list) and all(isinstance(row, dict) for row in result)


def _rows(rows: list[dict[str, Any]], format: str, columns: Sequence[str], chosen: bool, colour: bool) -> str:
    names = list(columns) if columns and (chosen or format != "long") else _fields(rows)
    if format == "csv":
        return _csv(rows, names)
    if format in ("raw", "short"):
        # Without --columns the first one, which names the object: for `for vm in $(pvc vm list -f raw)`.
        wanted = names if chosen else names[:1]
        return "".join("\t".join(_plain(value_of(row, name)) for name in wanted) + "\n" for row in rows)
    return _table(rows, names, colour) if names else ""


def _object(result: dict[str, Any], format: str, columns: Sequence[str], chosen: bool, colour: bool) -> str:
    names = list(columns) if columns and (chosen or format != "long") else _fields([result])
    if format == "csv":
        return _csv([result], names)
    if format == "short":
        words = [name for name in ("health", "state", "domain_state") if name in names] if not chosen else []
        return _plain(value_of(result, [*words, *names][0])) if names else ""
    if format == "raw":
        if chosen:
            return "\t".join(_plain(value_of(result, name)) for name in names)
        return "".join(f"{name}\t{_plain(value_of(result, name))}\n" for name in names)
    values = {name: value_of(result, name) for name in names}
    if not columns and format != "long":
        values = {name: value for name, value in values.items() if value not in (None, "", [], {})}
    return "\n".join(_pairs(values, colour))


def _fields(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Of all rows, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row if name not in HIDDEN))


def value_of(row: Any, name: str) -> Any:
    """A field, or one inside it: `memory.total_mib`."""
    if isinstance(row, dict) and name in row:
        return row[name]
    head, dot, tail = name.partition(".")
    return value_of(row.get(head), tail) if dot and isinstance(row, dict) else None


def _chosen(result: Any, chosen: Sequence[str]) -> tuple[Any, list[str]]:
    """The result with only these columns. Raises Invalid for one that no row has."""
    rows = result if _is_rows(result) else [result] if isinstance(result, dict) else None
    if rows is None:
        raise Invalid("this result has no columns", hint="leave out --columns")
    names = [_field(rows, name) for name in chosen] if rows else list(chosen)
    kept = [{name: value_of(row, name) for name in names} for row in rows]
    return (kept if isinstance(result, list) else kept[0]), names


def _field(rows: list[dict[str, Any]], name: str) -> str:
    """The field a user means: by its name, or by its title without the unit."""
    known = list(dict.fromkeys(field for row in rows for field in _paths(row)))
    wanted = name.strip().lower().replace("-", "_").replace(" ", "_")
    for field in known:
        if wanted in (field.lower(), title(field).lower().replace(" ", "_")):
            return field
    raise Invalid(f"there is no column {name}", hint=f"there are: {', '.join(known)}")


def _paths(row: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for name, value in row.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{name}.")


def _sorted(result: list[Any], sort: str) -> list[Any]:
    if not result or not _is_rows(result):
        return result
    name = _field(result, sort.removeprefix("-"))

    def key(row: dict[str, Any]) -> tuple[int, float, str]:
        value = value_of(row, name)
        if value is None:
            return (2, 0.0, "")
        if isinstance(value, bool | int | float):
            return (0, float(value), "")
        return (1, 0.0, _plain(value))

    return sorted(result, key=key, reverse=sort.startswith("-"))


def _csv(rows: list[dict[str, Any]], names: list[str]) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_plain(value_of(row, name)) for name in names] for row in rows)
    return text.getvalue()


def _plain(value: Any) -> str:
    """A value for programs: one line, no units."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        return ",".join(_plain(one) for one in value)
    if isinstance(value, list) and all(isinstance(one, dict) and "name" in one for one in value):
        return ",".join(_plain(one["name"]) for one in value)
    if isinstance(value, list | dict):
        return _json(value, pretty=False)
    return str(value).replace("\t", " ").replace("\n", " ")


# Tables


def title(name: str) -> str:
    """`memory_mib` → MEMORY."""
    for unit in ("_mib", "_bytes", "_percent", "_s", "_ms"):
        if name.endswith(unit) and len(name) > len(unit):
            name = name.removesuffix(unit)
            break
    return name.replace("_", " ").replace(".", " ").upper()


def _table(rows: list[dict[str, Any]], names: list[str], colour: bool) -> str:
    cells = [[_one_line(human(name, value_of(row, name))) for name in names] for row in rows]
    numeric = [_is_numeric(value_of(row, name) for row in rows) for name in names]
    lines = [[title(name) for name in names], *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(names))]
    drawn = []
    for number, line in enumerate(lines):
        parts = []
        for index, cell in enumerate(line):
            aligned = cell.rjust(widths[index]) if numeric[index] else cell.ljust(widths[index])
            parts.append(_coloured(names[index], cell, aligned) if colour and number else aligned)
        drawn.append("  ".join(parts).rstrip())
    return "\n".join(drawn) + "\n"


def _is_numeric(values: Iterable[Any]) -> bool:
    kept = [value for value in values if value is not None]
    return bool(kept) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in kept
    )


def _pairs(values: Mapping[str, Any], colour: bool, indent: str = "") -> list[str]:
    """Aligned `key: value` lines; what is nested follows below its key, indented."""
    names = {name: title(name).lower() for name in values}
    width = max((len(shown) for shown in names.values()), default=0) + 1
    lines = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{names[name]}:", *_pairs(value, colour, indent + "  ")]
        elif _is_sentences(value):
            lines += [f"{indent}{names[name]}:", *(f"{indent}  - {_one_line(text)}" for text in value)]
        elif _is_rows(value) and value:
            table = _table(value, _fields(value), colour).splitlines()
            lines += [f"{indent}{names[name]}:", *(f"{indent}  {line}" for line in table)]
        else:
            text = human(name, value)
            if "\n" in text:
                lines += [
                    f"{indent}{names[name]}:",
                    *(f"{indent}  {_safe(line)}" for line in text.splitlines()),
                ]
                continue
            text = _safe(text)
            shown = _coloured(name, text, text) if colour else text
            lines.append(f"{indent}{names[name] + ':':<{width}} {shown}".rstrip())
    return lines


def _is_sentences(value: Any) -> bool:
    """Joined by commas nobody could tell one from the next."""
    return isinstance(value, list) and any(isinstance(one, str) and " " in one for one in value)


def human(name: str, value: Any) -> str:
    """A value for people, by the unit its field's name ends in."""
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(name, value)
    if isinstance(value, list):
        return ", ".join(_named(one) for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={human(key, inner)}" for key, inner in value.items())
    return str(value)


def _named(value: Any) -> str:
    if isinstance(value, dict):
        return str(value["name"]) if "name" in value else human("", value)
    return human("", value)


def _number(name: str, value: float) -> str:
    last = name.rpartition(".")[2]
    if last.endswith("_mib"):
        return sizes.show(value * 1024 * 1024)
    if last.endswith("_bytes"):
        return sizes.show(value)
    if last.endswith("percent"):
        return f"{value:g} %"
    if last.endswith("_ms"):
        return f"{value:g} ms"
    if last in ("at", "since") or last.endswith(("_at", "_time")):
        return _when(value)
    if last.endswith("_s"):
        return f"{value:g} s"
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _when(seconds: float) -> str:
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"


def _coloured(name: str, value: str, text: str) -> str:
    if not name.rpartition(".")[2].endswith(("state", "health", "status")):
        return text
    colour = STATE_COLOURS.get(value)
    return f"\x1b[{colour}m{text}\x1b[0m" if colour else text


def _one_line(text: str) -> str:
    return _safe(" ".join(text.splitlines()) if "\n" in text else text)


def _safe(text: str) -> str:
    """Without control characters: terminals obey them, and names and reasons come from anybody."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "?" for character in text)
