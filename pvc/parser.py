"""The argument parser of one verb, from its declaration in the registry."""

from __future__ import annotations

import argparse
import os
import sys
import typing
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from pvc import output
from pvc.cli import GLOBALS, OVERRIDABLE
from pvc.commands.registry import Operation, Param
from pvc.errors import Invalid, NotFound, PVCError

ARGUMENT = "argument "
"""Before the name of an argument in the namespace, so that none meets an option of ours."""

LISTED = frozenset({"node", "tag"})
"""What may be given as `a,b`: names of these never have a comma."""


class Parser(argparse.ArgumentParser):
    """Tells what is wrong as an error of ours, which names the verb."""

    where = ""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        raise Invalid(f"{self.where}: {message}", hint=f"{self.where} --help")


def parse(found: Operation, argv: Sequence[str]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(help text if that was asked for, arguments as given, options)."""
    command = _command(found)
    if command is not None:
        parser = build(found)
        namespace, words = parser.parse_known_args(list(argv))
        given = _given(namespace)
        if given.get(command.name, [])[:1] == ["--"]:
            given[command.name] = given[command.name][1:]
    else:
        # argparse gives up on arguments with options between them and on `--`: it gets the options alone.
        end = argv.index("--") if "--" in argv else len(argv)
        if "-h" in argv[:end] or "--help" in argv[:end]:
            return build(found).format_help(), {}, {}
        parser = build(found, positionals=False)
        namespace, words = parser.parse_known_args(list(argv[:end]))
        unknown = next((word for word in words if word.startswith("-") and word != "-"), None)
        if unknown is not None:
            raise _no_option(found, parser, unknown)
        given, words = _assigned(found, [*words, *argv[end + 1 :]])
        given |= _given(namespace)
    options = {name: value for name, value in vars(namespace).items() if not name.startswith(ARGUMENT)}
    if options.get("help"):
        return build(found).format_help(), {}, {}
    if words:
        if words[0].startswith("-"):
            raise _no_option(found, parser, words[0])
        takes = ", ".join(_placeholder(param) for param in found.params if param.positional) or "no argument"
        where = f"pvc {found.noun} {found.verb}"
        raise Invalid(f"{where}: there is one argument too many: {words[0]}", hint=f"it takes {takes}")
    return "", _completed(found, given), options


def _given(namespace: argparse.Namespace) -> dict[str, Any]:
    named = {
        name.removeprefix(ARGUMENT): value
        for name, value in vars(namespace).items()
        if name.startswith(ARGUMENT)
    }
    return {name: value for name, value in named.items() if value is not None}


def _assigned(found: Operation, words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Words → positional parameters, in order; those left over."""
    given: dict[str, Any] = {}
    for param in found.params:
        if param.positional and words:
            given[param.name], words = (words, []) if param.many else (words[0], words[1:])
    return given, words


def _no_option(found: Operation, parser: argparse.ArgumentParser, word: str) -> Invalid:
    import difflib

    where = f"pvc {found.noun} {found.verb}"
    option = word.partition("=")[0]
    known = [flag for action in parser._actions for flag in action.option_strings]
    near = difflib.get_close_matches(option, known, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]}?" if near else f"{where} --help"
    return Invalid(f"{where} has no option {option}", hint=hint)


def _completed(found: Operation, given: dict[str, Any]) -> dict[str, Any]:
    """Nothing missing, files read, lists split, this machine where a node may be left out."""
    for param in found.params:
        name = param.name
        if name not in given:
            if param.positional and param.arg.complete == "node" and not param.required:
                given[name] = this_node()
            elif param.arg.asked_with in given and output.is_terminal():
                given[name] = output.ask_secret(param.name)
            elif param.required:
                what = _placeholder(param) if param.positional else param.option.replace("|", " or ")
                raise Invalid(
                    f"pvc {found.noun} {found.verb}: {what} is missing", hint=f"usage: {usage(found)}"
                )
            continue
        if param.arg.file:
            given[name] = _contents(given[name])
        elif param.many and param.arg.complete in LISTED and not param.positional:
            given[name] = [one for value in given[name] for one in value.split(",") if one]
    return given


def this_node() -> str:
    """The node that this machine is: as its configuration says, else by its host name."""
    from pvc import config

    if os.path.exists(config.path()):
        try:
            return config.load().node.name
        except PVCError:
            pass  # not for this user's eyes, or wrong, which the verb itself will tell
    return os.uname().nodename.partition(".")[0]


def _contents(path: str) -> str:
    """Text of a file; of stdin for `-`. Raises NotFound, Invalid naming it."""
    try:
        if path == "-":
            return sys.stdin.read()
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        raise NotFound(f"no file {path}") from None
    except UnicodeDecodeError:
        raise Invalid(f"{path} is not a text file in UTF-8") from None
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}") from None


# Building


def build(found: Operation, *, positionals: bool = True) -> Parser:
    parser = Parser(
        prog=f"pvc {found.noun} {found.verb}",
        usage=usage(found),
        description="\n\n".join(text for text in (found.help, found.details) if text),
        formatter_class=_Help,
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.where = f"pvc {found.noun} {found.verb}"
    parser._positionals.title = "arguments"
    command = _command(found)
    taken: set[str] = set()
    for param in found.params:
        if param.positional and positionals:
            _add_positional(parser, param, is_command=param is command)
        elif not param.positional:
            _add_option(parser, param)
            taken |= set(flags(param))
    for short, long, settings in automatic(found):
        names = [name for name in (short, long) if name and name not in taken]
        parser.add_argument(*names, dest=long.removeprefix("--no-").strip("-"), **settings)
        taken |= set(names)
    everywhere = parser.add_argument_group("options of every verb")
    for spelled, dest, value, text in GLOBALS:
        kept = [name for name in spelled if name not in taken]
        if value:
            everywhere.add_argument(*kept, dest=dest, metavar=value, help=text)
        else:
            everywhere.add_argument(*kept, dest=dest, action="store_true", help=text)
    return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """`-m, --method HOW`: the placeholder once."""
        if not action.option_strings:
            return super()._format_action_invocation(action)
        names = ", ".join(action.option_strings)
        return f"{names} {action.metavar}" if action.nargs != 0 else names


def usage(found: Operation) -> str:
    words = [f"pvc {found.noun} {found.verb}"]
    # Everything after the arguments belongs to a command: our own options go before them.
    before, after = (["[options]"], []) if _command(found) else ([], ["[options]"])
    words += before
    for param in found.params:
        if param.positional:
            word = _placeholder(param) + ("…" if param.many else "")
            words.append(word if param.required else f"[{word}]")
        elif param.required:
            words.append(param.option if param.arg.switches else f"{param.option} {_placeholder(param)}")
    return " ".join([*words, *after])


def automatic(found: Operation) -> Iterable[tuple[str, str, dict[str, Any]]]:
    """(short, long, settings) of the options a verb has by what it is."""
    if not found.is_local and not found.is_read:
        text = "say what would happen and why; change nothing"
        yield "", "--plan", {"action": "store_true", "help": text}
    if found.waits:
        yes, no = (", which is the default", "") if found.is_task else ("", ", which is the default")
        text = f"wait until it is done or has failed{yes}; the exit code tells which"
        yield "-w", "--wait", {"action": "store_true", "help": text}
        yield "", "--no-wait", {"action": "store_false", "help": f"do not wait{no}"}
        text = "wait no longer than that, then exit with 7; it goes on all the same"
        yield "", "--timeout", {"type": _seconds, "metavar": "SECONDS", "help": text}
    if found.confirm:
        yield "-y", "--yes", {"action": "store_true", "help": "do not ask"}
    if shows_fields(found):
        known = f": {', '.join(fields(found))}" if is_list(found) else ""
        yield "", "--columns", {"metavar": "A,B", "help": f"only these fields, in this order{known}"}
    if is_text(found):
        text = "write it into this file instead of to the terminal"
        yield "-f", "--file", {"metavar": "FILE", "help": text}
    if is_list(found):
        yield "", "--sort", {"metavar": "FIELD", "help": "by this field; --sort=-FIELD from high to low"}
    if found.is_read:
        yield "", "--watch", {"action": "store_true", "help": "show it again whenever it changes"}


def is_list(found: Operation) -> bool:
    return typing.get_origin(found.returns) in (list, tuple)


def columns(found: Operation) -> tuple[str, ...]:
    """Of the table: as declared, else by the type of a list's rows: an empty one has its titles too."""
    if found.columns or not is_list(found):
        return found.columns
    return fields(found)


def fields(found: Operation) -> tuple[str, ...]:
    """Of the rows of a list."""
    return tuple(getattr(typing.get_args(found.returns)[0], "__dataclass_fields__", ()))


def is_text(found: Operation) -> bool:
    return found.is_read and found.returns is str


def shows_fields(found: Operation) -> bool:
    return found.returns not in (str, None, type(None), int, bool)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise ValueError
    return value


_seconds.__name__ = "number of seconds"


def flags(param: Param) -> tuple[str, ...]:
    """Every option string of a parameter, those that switch it off included."""
    if param.kind is not bool:
        return tuple(_plain_flags(param))
    on, off = _switch(param)
    return (*on, *off)


def _plain_flags(param: Param) -> list[str]:
    if param.arg.switches:
        return param.option.split("|")
    return [name for name in (*param.arg.short.split("/"), param.option) if name]


def _switch(param: Param) -> tuple[list[str], list[str]]:
    """Names that switch on and names that switch off. One that is off unless given needs no second one."""
    short_on, _, short_off = param.arg.short.partition("/")
    on = [name for name in (short_on, param.option) if name]
    if param.default is False and not short_off:
        return on, []
    return on, [name for name in (short_off, "--no-" + param.option.removeprefix("--")) if name]


def _add_positional(parser: Parser, param: Param, *, is_command: bool) -> None:
    # What is missing is told by us, in one way for arguments and options: none is required here.
    settings: dict[str, Any] = {"nargs": argparse.REMAINDER if is_command else "*" if param.many else "?"}
    if param.many and not is_command:
        settings["default"] = None
    parser.add_argument(ARGUMENT + param.name, metavar=_placeholder(param), help=_help(param), **settings)


def _add_option(parser: Parser, param: Param) -> None:
    dest = ARGUMENT + param.name
    if param.kind is bool:
        on, off = _switch(param)
        parser.add_argument(*on, dest=dest, action="store_const", const=True, help=_help(param))
        if off:
            text = argparse.SUPPRESS if not _help(param) else f"the opposite of {on[-1]}"
            parser.add_argument(*off, dest=dest, action="store_const", const=False, help=text)
        return
    if param.arg.switches:
        one_of = parser.add_mutually_exclusive_group()
        for value, text in zip(param.choices, param.arg.help.split("|"), strict=True):
            one_of.add_argument(f"--{value}", dest=dest, action="store_const", const=value, help=text)
        return
    action = "append" if param.many else "store"
    parser.add_argument(
        *_plain_flags(param), dest=dest, action=action, metavar=_placeholder(param), help=_help(param)
    )


def _command(found: Operation) -> Param | None:
    """The last argument, when it is a command line: all that follows, options too, belongs to it."""
    last = next((param for param in reversed(found.params) if param.positional), None)
    return last if last is not None and last.many and last.arg.metavar in ("CMD", "COMMAND") else None


def _placeholder(param: Param) -> str:
    if param.arg.metavar:
        return param.arg.metavar
    if param.choices:
        return "|".join(param.choices)
    return param.name.strip("_").upper()


def _help(param: Param) -> str:
    text = param.help
    if param.arg.file:
        text = text if "- is" in text else f"{text or 'a file'}; - is standard input"
    if param.choices and param.arg.metavar:
        text = f"{text}: {', '.join(param.choices)}".removeprefix(": ")
    if param.positional and param.arg.complete == "node" and not param.required:
        text = f"{text or 'a node'}; this machine unless told"
    if not param.positional and param.many and "repeated" not in text:
        joined = "; a,b or repeated" if param.arg.complete in LISTED else "; may be repeated"
        text = (text + joined).removeprefix("; ")
    if param.kind is not bool and param.default not in (None, "", ()):
        text = f"{text} (default: {param.default})".strip()
    if param.default is True and not param.positional:
        text = f"{text} (this is the default)".strip()
    return text.replace("%", "%%")


def clashes(found: Operation) -> list[str]:
    """What is wrong with the options a verb declares; empty if nothing. A test asks every verb."""
    wrong: list[str] = []
    own: dict[str, str] = {}
    for param in found.params:
        for flag in flags(param) if not param.positional else ():
            if flag in own:
                wrong.append(f"{flag} is both {own[flag]} and {param.name}")
            own[flag] = param.name
    for _, long, _ in automatic(found):
        if long in own:
            wrong.append(f"{long} of {own[long]} hides the option that every verb of its kind has")
    for names, _, _, _ in GLOBALS:
        wrong += [
            f"{name} of {own[name]} hides a global"
            for name in names
            if name in own and name not in OVERRIDABLE
        ]
    return [f"{found.noun} {found.verb}: {text}" for text in wrong]


# For the manual


def positional_lines(found: Operation) -> list[tuple[str, str]]:
    """(argument, help)."""
    return [
        (_placeholder(param) + ("…" if param.many else ""), _help(param).replace("%%", "%"))
        for param in found.params
        if param.positional
    ]


def option_lines(found: Operation) -> list[tuple[str, str]]:
    """(every name of the option with its value, help)."""
    lines = []
    for param in found.params:
        if not param.positional:
            value = "" if param.kind is bool or param.arg.switches else f" {_placeholder(param)}"
            lines.append((", ".join(flags(param)) + value, _help(param).replace("%%", "%")))
    return lines
